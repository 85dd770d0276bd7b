"""Which implementation serves a device: Triton's kernels on CUDA, plain PyTorch elsewhere."""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType

import torch

from stratakv.attention.device import reference


@lru_cache(maxsize=4)
def backend_for(device_type: str) -> ModuleType:
    """A module with `score`, `attend` and `merge`: `kernels` for "cuda", otherwise `reference`."""
    if device_type != "cuda" or torch.version.hip is not None:
        return reference
    try:
        from stratakv.attention.device import kernels  # noqa: PLC0415  # Triton is only there with CUDA
    except ImportError:
        return reference
    return kernels
