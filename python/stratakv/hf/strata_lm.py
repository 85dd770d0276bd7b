"""`StrataLM` as a transformers model: config, cache, masks and generation around `nn/transformer.py`.

    import stratakv.hf  # registers it
    model = AutoModelForCausalLM.from_pretrained("my-model/")

The modules and their names are those of `stratakv.nn.StrataLM`, so that states go either way.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    initialization,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from stratakv.hf.compat import CACHE_ARGUMENT
from stratakv.hf.memory_layer import MemoryLayer, memory_layers, text_only
from stratakv.nn.conditional_memory import ConditionalMemory, MemoryConfig
from stratakv.nn.hyper_connections import HyperConnections, StreamHead
from stratakv.nn.transformer import (
    INITIAL_STD,
    DecoderParts,
    RotaryPositions,
    StrataLM,
    Surroundings,
    TransformerConfig,
    output_std,
)

# What transformers calls a field, where it is not our name.
_RENAMED = {
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "max_positions": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
}


class StrataConfig(PreTrainedConfig):  # type: ignore[misc]
    """Sizes and choices of a model; `stratakv.nn.TransformerConfig` says what they mean.

    Raises:
        ValueError: sizes that do not go together.
    """

    model_type = "strata"
    keys_to_ignore_at_inference = ("cache", "past_key_values")

    vocab_size: int = 32000
    hidden_size: int = 512
    intermediate_size: int | None = None
    num_hidden_layers: int = 8
    num_attention_heads: int = 8
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 2048
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = True
    num_streams: int = 4
    mixing: str = "sinkhorn"
    sinkhorn_iters: int = 20
    initializer_range: float = INITIAL_STD
    learnable_scale: bool = True
    hyper_backend: str = "auto"
    memory: dict[str, Any] | None = None
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        sizes = self.transformer()
        self.num_key_value_heads, self.head_dim = sizes.kv_heads, sizes.head_size
        self.intermediate_size = sizes.mlp_size

    def transformer(self) -> TransformerConfig:
        """The same as a `TransformerConfig`."""
        names = TransformerConfig.__dataclass_fields__
        values = {name: getattr(self, _RENAMED.get(name, name)) for name in names}
        if self.memory is not None:
            values["memory"] = MemoryConfig(**self.memory)
        return TransformerConfig(**values)

    def extra_cache_layers(self) -> list[MemoryLayer]:
        """What a cache keeps beside each block's keys and values, after these: a layer per memory."""
        return [] if self.memory is None else [MemoryLayer() for _ in self.memory["layers"]]

    @classmethod
    def from_transformer(cls, config: TransformerConfig, **kwargs: Any) -> StrataConfig:
        """The config of a `StrataLM`.

        Args:
            config: the model's.
            **kwargs: what else transformers knows, such as `eos_token_id`.
        """
        values = {_RENAMED.get(name, name): getattr(config, name) for name in config.__dataclass_fields__}
        if config.memory is not None:
            # As JSON has it, so that a config equals itself after it was saved and loaded.
            values["memory"] = json.loads(json.dumps(asdict(config.memory)))
        return cls(**values, **kwargs)


class StrataPreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    """What both models share: how they are initialised and what stays in float32."""

    config: StrataConfig
    config_class = StrataConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = False
    _no_split_modules = ("Block",)
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    # 16-bit mappings have row sums that are off by 0.003, which composes over depth.
    _keep_in_fp32_modules_strict = ("attention_connection", "mlp_connection", "stream_head")

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initial values of one module, by transformers' functions, which leave loaded ones alone."""
        if isinstance(module, HyperConnections | StreamHead):
            for name, value in module.initial_values().items():
                initialization.copy_(module.get_parameter(name), value)
        elif isinstance(module, RotaryPositions):
            initialization.copy_(module.inv_freq, module.frequencies())
        elif isinstance(module, ConditionalMemory):
            for name, value in module.initial_values().items():
                initialization.copy_(getattr(module, name), value)
        elif isinstance(module, nn.Linear) and any(module is one for one in self.base_model.output_layers()):
            initialization.normal_(module.weight, mean=0.0, std=output_std(self.config.transformer()))
        else:
            super()._init_weights(module)


class StrataModel(StrataPreTrainedModel, DecoderParts):
    """The decoder: tokens to hidden states."""

    def __init__(self, config: StrataConfig) -> None:
        super().__init__(config)
        self.build(config.transformer())
        self.post_init()

    def forward(  # noqa: PLR0917  # transformers' own signature
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        memory_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """(B, T) ids, or (B, T, C) embeddings, to (B, T, C) hidden states.

        The cache comes by the name that this release of transformers has for it. `memory_ids` are (B, T)
        ids for the memories, negative where there is no text; None takes `input_ids`.

        Raises:
            ValueError: both or neither of ids and embeddings; embeddings alone for a model with memories.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        memory_ids = input_ids if memory_ids is None else memory_ids
        if memory_ids is None and self.config.memory is not None:
            raise ValueError(
                "this model's memories look tokens up by their ids: give input_ids, or memory_ids beside "
                "inputs_embeds"
            )
        h_BTC = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        cache = kwargs.pop(CACHE_ARGUMENT, None)
        kwargs.pop("return_dict", None)
        use_cache = self.config.use_cache and not self.training if use_cache is None else use_cache
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        if position_ids is None:
            held = 0 if cache is None else int(cache.get_seq_length())
            position_ids = torch.arange(h_BTC.shape[1], device=h_BTC.device)[None] + held
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=h_BTC,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **{CACHE_ARGUMENT: cache},
        )
        cos, sin = self.rotary_emb(h_BTC, position_ids)
        interface = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, sdpa_attention_forward
        )

        def attend(
            module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Any, *, scaling: float
        ) -> Tensor:
            out_BTHD, _ = interface(module, q, k, v, mask, dropout=0.0, scaling=scaling, **kwargs)
            return cast("Tensor", out_BTHD)

        update = None if cache is None else cache.update
        memories = memory_layers(cache, self.config) if self.config.memory is not None else None
        ids = None if memory_ids is None else text_only(memory_ids, attention_mask)
        h_BTC = self.run(h_BTC, Surroundings(cos, sin, attend, mask, update, ids, memories))
        return BaseModelOutputWithPast(last_hidden_state=h_BTC, **{CACHE_ARGUMENT: cache})


class StrataForCausalLM(StrataPreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """`stratakv.nn.StrataLM` as a transformers model."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012  # theirs

    def __init__(self, config: StrataConfig) -> None:
        super().__init__(config)
        self.model = StrataModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_strata_lm(cls, model: StrataLM, **kwargs: Any) -> StrataForCausalLM:
        """The same model with the very memory of its parameters: tables may be larger than RAM.

        Args:
            model: a trained `StrataLM`.
            **kwargs: what else transformers' config knows, such as `eos_token_id`.
        """
        with torch.device("meta"):
            made = cls(StrataConfig.from_transformer(model.config, **kwargs))
        made.load_state_dict(model.state_dict(), assign=True)
        made.tie_weights()
        return cast("StrataForCausalLM", made.to(next(model.parameters()).device))

    def forward(  # noqa: PLR0917  # transformers' own signature
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """(B, T) ids to (B, T, V) logits, and the loss where labels are given.

        The arguments are those of every causal model of transformers.
        """
        told = causal_arguments(kwargs)
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        result: CausalLMOutputWithPast = causal_output(self, output, labels, logits_to_keep, told)
        return result


def causal_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Takes out of a forward pass's arguments those that its end needs, see `causal_output`."""
    return {name: kwargs.pop(name) for name in ("return_dict", "num_items_in_batch") if name in kwargs}


def causal_output(
    model: Any, output: Any, labels: Tensor | None, logits_to_keep: int | Tensor, told: dict[str, Any]
) -> Any:
    """The end of a causal model's forward pass: logits (B, T, V) of what is kept, and the loss.

    Args:
        model: has an `lm_head` and a `loss_function`.
        output: of its decoder.
        labels: (B, T), or None for no loss.
        logits_to_keep: so many of the last tokens, 0 for all; or which.
        told: what `causal_arguments` took.
    """
    kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
    logits_BTV = model.lm_head(output.last_hidden_state[:, kept])
    return_dict, loss = told.pop("return_dict", None), None
    if labels is not None:
        loss = model.loss_function(logits=logits_BTV, labels=labels, vocab_size=logits_BTV.shape[-1], **told)
    result = CausalLMOutputWithPast(
        loss=loss, logits=logits_BTV, **{CACHE_ARGUMENT: output.get(CACHE_ARGUMENT)}
    )
    return result.to_tuple() if return_dict is False else result


AutoConfig.register("strata", StrataConfig)
AutoModel.register(StrataConfig, StrataModel)
AutoModelForCausalLM.register(StrataConfig, StrataForCausalLM)
