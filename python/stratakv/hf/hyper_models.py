"""Models that `stratakv.nn.add_hyper_connections` gave streams, for AutoConfig and AutoModelForCausalLM.

Their configs have a type of their own (`mhc_llama`), so that they are never loaded without their
connections: without `import stratakv.hf` transformers does not know the type.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, initialization

from stratakv.nn.hyper_connections import HyperConnections, StreamHead
from stratakv.nn.retrofit import CONFIG_FIELD, StreamConfig, config_class_of, convert_layers

# Config classes of families that are accepted; those of later releases may be missing in earlier ones.
FAMILIES = (
    "LlamaConfig",
    "MistralConfig",
    "Qwen2Config",
    "Qwen3Config",
    "GemmaConfig",
    "Gemma2Config",
    "Gemma3TextConfig",
    "Olmo2Config",
    "Phi3Config",
    "GraniteConfig",
    "SmolLM3Config",
)
_MODEL_CLASSES: dict[type[Any], type[Any]] = {}


def model_class_of(base_config: type[Any]) -> type[Any]:
    """The family's causal model, with streams from the start; one class for each family."""
    if base_config not in _MODEL_CLASSES:
        _MODEL_CLASSES[base_config] = _model_class(base_config)
    return _MODEL_CLASSES[base_config]


def _model_class(base_config: type[Any]) -> type[Any]:
    base: Any = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[base_config]

    def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        base.__init__(self, config, *args, **kwargs)
        convert_layers(self, StreamConfig(**getattr(config, CONFIG_FIELD)))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self: Any, module: nn.Module) -> None:
        if isinstance(module, HyperConnections | StreamHead):
            for name, value in module.initial_values().items():
                initialization.copy_(module.get_parameter(name), value)
        else:
            base._init_weights(self, module)

    kept = tuple(base._keep_in_fp32_modules_strict or ())
    return type(
        f"Mhc{base.__name__}",
        (base,),
        {
            "__init__": __init__,
            "_init_weights": _init_weights,
            "config_class": config_class_of(base_config),
            # 16-bit mappings have row sums that are off by 0.003, which composes over depth.
            "_keep_in_fp32_modules_strict": (*kept, "attention_connection", "mlp_connection", "stream_head"),
            "__module__": __name__,
            "__doc__": f"{base.__name__} with hyper-connections.",
        },
    )


def _loader_of(base_config: type[Any]) -> type[Any]:
    """What AutoModelForCausalLM finds: the model's class is made, and its module imported, on use."""

    class Loader:
        config_class = config_class_of(base_config)

        @classmethod
        def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
            return model_class_of(base_config).from_pretrained(*args, **kwargs)

        @classmethod
        def _from_config(cls, *args: Any, **kwargs: Any) -> Any:
            return model_class_of(base_config)._from_config(*args, **kwargs)

    return Loader


def _register() -> None:
    for name in FAMILIES:
        base = getattr(transformers, name, None)
        if base is not None:
            made = config_class_of(base)
            AutoConfig.register(made.model_type, made)
            AutoModelForCausalLM.register(made, _loader_of(base))


_register()
