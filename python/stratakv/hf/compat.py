"""What differs between the supported releases of transformers (5.15 and later)."""

from __future__ import annotations

import inspect
from typing import Any

import transformers
from torch import nn
from transformers.cache_utils import (
    DYNAMIC_LAYER_TYPE_MAPPING,
    DynamicLayer,
    get_layer_types_and_kwargs,
)

from stratakv.errors import NotInstalledError

MIN_VERSION = (5, 15)
VERSION = tuple(int(part) for part in transformers.__version__.split(".")[:2])

# What `generate` and forward passes call their cache; the other name warns or is an error.
CACHE_ARGUMENT = "cache" if VERSION >= (5, 24) else "past_key_values"


def cache_kwargs(cache: Any) -> dict[str, Any]:
    """A cache as a keyword argument of `generate` or of a forward pass, by the name of this release."""
    return {CACHE_ARGUMENT: cache}


def last_logits_only(model: nn.Module) -> dict[str, Any]:
    """Arguments of a forward pass that wants the last position's logits: all of them are not small."""
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}


def check_version() -> None:
    """Refuses a transformers whose cache contract is another one.

    Raises:
        NotInstalledError: older than 5.15.
    """
    if VERSION < MIN_VERSION:
        raise NotInstalledError(
            f"stratakv.TieredCache needs transformers 5.15 or later, found {transformers.__version__}",
            "pip install 'stratakv[hf]'",
        )


def layer_plan(config: Any) -> list[tuple[type[Any], dict[str, Any]]]:
    """For each layer of a model, the class of its cache layer in transformers and its arguments.

    Args:
        config: the model's config; its decoder's text config is what counts.
    """
    config = config.get_text_config(decoder=True)
    layer_types, kwargs = get_layer_types_and_kwargs(config)
    # Early releases give one dict for all layers, later ones a dict per layer.
    per_layer = [kwargs] * len(layer_types) if isinstance(kwargs, dict) else kwargs
    plan = [
        (DYNAMIC_LAYER_TYPE_MAPPING[layer_type], layer_kwargs)
        for layer_type, layer_kwargs in zip(layer_types, per_layer, strict=True)
    ]
    plan += [(DynamicLayer, {})] * (_num_decoder_layers(config) - len(plan))
    # Configs of our own models: what their caches keep beside keys and values.
    extra = getattr(config, "extra_cache_layers", list)
    return plan + [(type(layer), {}) for layer in extra()]


def _num_decoder_layers(config: Any) -> int:
    """Layers of an encoder-decoder's decoder, whose config may count the encoder's; 0 for other models."""
    if not getattr(config, "is_encoder_decoder", False):
        return 0
    return int(getattr(config, "num_decoder_layers", None) or getattr(config, "decoder_layers", None) or 0)


def is_full_attention(layer_class: type[Any]) -> bool:
    """Whether layers of that class hold nothing but every token's keys and values."""
    return layer_class is DynamicLayer
