"""`StrataVisionLM` as a transformers model: images and text, config, cache, generation.

    import stratakv.hf  # registers it
    model = AutoModelForImageTextToText.from_pretrained("my-model/")
    processor = AutoProcessor.from_pretrained("my-model/")

The modules and their names are those of `stratakv.nn.StrataVisionLM`. The processor is in
`strata_processor.py`.
"""

from __future__ import annotations

import functools
from dataclasses import asdict
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    initialization,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from stratakv.hf.strata_lm import StrataConfig, StrataModel, causal_arguments, causal_output
from stratakv.nn.transformer import INITIAL_STD
from stratakv.nn.vision import ImageEncoder, StrataVisionLM, VisionConfig, VisionParts

# What transformers calls a field, where it is not our name.
_RENAMED = {"num_layers": "num_hidden_layers", "num_heads": "num_attention_heads", "norm_eps": "rms_norm_eps"}


class StrataVisionConfig(PreTrainedConfig):  # type: ignore[misc]
    """Sizes of an image encoder; `stratakv.nn.VisionConfig` says what they mean.

    Raises:
        ValueError: sizes that do not go together.
    """

    model_type = "strata_vision"
    base_config_key = "vision_config"

    image_size: int = 224
    patch_size: int = 14
    hidden_size: int = 384
    num_hidden_layers: int = 6
    num_attention_heads: int = 6
    intermediate_size: int | None = None
    merge: int = 2
    rms_norm_eps: float = 1e-6

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.vision()

    def vision(self) -> VisionConfig:
        """The same as a `VisionConfig`."""
        names = VisionConfig.__dataclass_fields__
        return VisionConfig(**{name: getattr(self, _RENAMED.get(name, name)) for name in names})

    @classmethod
    def from_vision(cls, config: VisionConfig) -> StrataVisionConfig:
        """The config of an encoder."""
        return cls(**{_RENAMED.get(name, name): value for name, value in asdict(config).items()})


class StrataVLConfig(PreTrainedConfig):  # type: ignore[misc]
    """A language model, an image encoder, and the id that stands for an image's tokens.

    Raises:
        ValueError: sizes that do not go together, or an id outside the vocabulary.
    """

    model_type = "strata_vl"
    sub_configs = {"text_config": StrataConfig, "vision_config": StrataVisionConfig}  # noqa: RUF012  # theirs
    keys_to_ignore_at_inference = ("cache", "past_key_values")

    text_config: dict[str, Any] | PreTrainedConfig | None = None
    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    image_token_id: int = 0
    tie_word_embeddings: bool = True
    initializer_range: float = INITIAL_STD

    def __post_init__(self, **kwargs: Any) -> None:
        text = self.text_config = _sub_config(StrataConfig, self.text_config)
        self.vision_config = _sub_config(StrataVisionConfig, self.vision_config)
        super().__post_init__(**kwargs)
        self.tie_word_embeddings = text.tie_word_embeddings
        if not 0 <= self.image_token_id < text.vocab_size:
            raise ValueError(f"image_token_id={self.image_token_id} is outside the {text.vocab_size} tokens")


def _sub_config(kind: type[Any], value: Any) -> Any:
    if isinstance(value, kind):
        return value
    return kind(**{name: item for name, item in (value or {}).items() if name != "model_type"})


class StrataVLPreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    """What both models share."""

    config: StrataVLConfig
    config_class = StrataVLConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = False
    _no_split_modules = ("Block", "PatchBlock")
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _keep_in_fp32_modules_strict = ("attention_connection", "mlp_connection", "stream_head")

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initial values of one module of the encoder; the language model's are its own."""
        if isinstance(module, ImageEncoder):
            initialization.normal_(module.positions, mean=0.0, std=INITIAL_STD)
        else:
            super()._init_weights(module)


class StrataVLModel(StrataVLPreTrainedModel, VisionParts):
    """Tokens and images to hidden states."""

    def __init__(self, config: StrataVLConfig) -> None:
        super().__init__(config)
        text: Any = config.text_config
        vision: Any = config.vision_config
        self.build_vision(vision.vision(), text.hidden_size, config.image_token_id)
        self.language_model = StrataModel(text)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The language model's."""
        return self.language_model.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replaces the language model's."""
        self.language_model.embed_tokens = value

    def forward(  # noqa: PLR0917  # transformers' own signature
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        image_tokens_before: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """(B, T) ids and (B, I, 3, size, size) images to (B, T, C) hidden states.

        For a prompt in pieces all its images may come with each piece: `image_tokens_before` (B,) then says
        how many image tokens of each row were before it. `inputs_embeds` are taken as they are.

        Raises:
            ValueError: both or neither of ids and embeddings; images with embeddings; image tokens
                without images, or more of them than images have.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if input_ids is not None:
            inputs_embeds, kwargs["memory_ids"] = self.with_images(
                self.language_model.embed_tokens(input_ids), input_ids, pixel_values, image_tokens_before
            )
        elif pixel_values is not None:
            raise ValueError("pixel_values need input_ids, which say where the images are")
        output = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=use_cache,
            **kwargs,
        )
        return cast("BaseModelOutputWithPast", output)


class StrataForConditionalGeneration(StrataVLPreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """`stratakv.nn.StrataVisionLM` as a transformers model."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: StrataVLConfig) -> None:
        super().__init__(config)
        text: Any = config.text_config
        self.model = StrataVLModel(config)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_vision_lm(cls, model: StrataVisionLM, **kwargs: Any) -> StrataForConditionalGeneration:
        """The same model, with a copy of its parameters.

        Args:
            model: a trained `StrataVisionLM`.
            **kwargs: what else the text model's config knows, such as `eos_token_id`.
        """
        text = StrataConfig.from_transformer(model.config, **kwargs)
        vision = StrataVisionConfig.from_vision(model.vision)
        config = StrataVLConfig(text_config=text, vision_config=vision, image_token_id=model.image_token_id)
        made = cls(config)
        made.load_state_dict(model.state_dict())
        return cast("StrataForConditionalGeneration", made.to(next(model.parameters()).device))

    def get_decoder(self) -> nn.Module:
        """The text decoder."""
        return self.model.language_model

    def forward(  # noqa: PLR0917  # transformers' own signature
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        image_tokens_before: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """(B, T) ids and images to (B, T, V) logits, and the loss where labels are given.

        Arguments as for `StrataVLModel`, and those of every causal model of transformers.
        """
        told = causal_arguments(kwargs)
        output = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            image_tokens_before=image_tokens_before,
            **kwargs,
        )
        result: CausalLMOutputWithPast = causal_output(self, output, labels, logits_to_keep, told)
        return result

    # Its signature, too: generation looks there for the name that a cache has in this release.
    @functools.wraps(GenerationMixin.prepare_inputs_for_generation)
    def prepare_inputs_for_generation(
        self, input_ids: Tensor, *args: Any, pixel_values: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """As for every model; images only with the pieces of the prompt that have tokens of them."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(input_ids, *args, **kwargs)
        given = inputs.get("input_ids")
        image = self.config.image_token_id
        if pixel_values is not None and given is not None and bool((given == image).any()):
            inputs["pixel_values"] = pixel_values
            # What a cache holds already is left out of `given`.
            before_BX = input_ids[:, : input_ids.shape[1] - given.shape[1]]
            if bool((before_BX == image).any()):
                inputs["image_tokens_before"] = (before_BX == image).sum(-1)
        return inputs


AutoConfig.register("strata_vision", StrataVisionConfig)
AutoConfig.register("strata_vl", StrataVLConfig)
AutoModel.register(StrataVLConfig, StrataVLModel)
AutoModelForImageTextToText.register(StrataVLConfig, StrataForConditionalGeneration)
