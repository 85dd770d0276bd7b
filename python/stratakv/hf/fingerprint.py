"""Which model this is: what its pages may be shared by.

Two models with equal fingerprints compute equal keys and values for equal tokens, up to
rounding. Not covered: adapters that are switched on after the fingerprint was taken.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor, nn

# Names of config entries that do not change what is computed.
_IGNORED = {
    "_attn_implementation",
    "_attn_implementation_internal",
    "_name_or_path",
    "architectures",
    "dtype",
    "name_or_path",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
_SAMPLES = 64


def model_identity(model: nn.Module) -> bytes:
    """32 bytes over the config, the parameters' names, shapes and dtypes, and a sample of their values.

    Reads 64 evenly spaced values of each parameter, so it takes milliseconds whatever the size.
    """
    digest = hashlib.blake2b(digest_size=32, person=b"stratakv model")
    config = getattr(model, "config", None)
    digest.update(_canonical(config.to_dict() if config is not None else {}).encode())
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}\n".encode())
        digest.update(_sample(parameter.detach()))
    return digest.digest()


def model_name(model: nn.Module) -> str:
    """The model for people: class, name where it has one, and size."""
    config = getattr(model, "config", None)
    name = str(getattr(config, "_name_or_path", "") or "").rstrip("/").rsplit("/", 1)[-1]
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    size = f"{num_parameters / 1e6:.1f}M parameters"
    return f"{type(model).__name__} {name}, {size}" if name else f"{type(model).__name__}, {size}"


def model_settings(model: nn.Module, *, page_tokens: int) -> dict[str, str]:
    """What besides weights and tokens changes stored values; a session of other settings is refused."""
    config: Any = getattr(model, "config", None)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return {
        "attention": str(getattr(config, "_attn_implementation", None) or "eager"),
        "dtype": str(dtype).removeprefix("torch."),
        "key_rotation": "applied",
        "page_tokens": str(page_tokens),
    }


def _canonical(value: Any) -> str:
    return json.dumps(_without_ignored(value), sort_keys=True, default=_as_text)


def _as_text(value: Any) -> str:
    """Text that is the same in every process: no memory addresses."""
    text = str(value)
    return type(value).__name__ if " at 0x" in text else text


def _without_ignored(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _without_ignored(v) for k, v in value.items() if k not in _IGNORED}
    if isinstance(value, list | tuple):
        return [_without_ignored(item) for item in value]
    return value


def _sample(parameter: Tensor) -> bytes:
    """Bytes of evenly spaced values; none where the values are not in memory."""
    if parameter.device.type == "meta" or parameter.numel() == 0:
        return b""
    try:
        flat = parameter.reshape(-1)
        step = max(flat.numel() // _SAMPLES, 1)
        return flat[::step][: 2 * _SAMPLES].to("cpu").contiguous().view(torch.uint8).numpy().tobytes()
    except (RuntimeError, TypeError, NotImplementedError):
        # Packed formats of quantisers are no plain tensors: their names and shapes must do.
        return b""
