"""A reusable buffer for tiles, so that a long context costs no allocation per layer and step."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

DEFAULT_TILE_BYTES = 32 << 20


class Workspace(threading.local):
    """One flat CPU buffer per thread, grown to the largest request.

    What is built on it is overwritten by the next request: it serves kernels that are done
    with their input when they return, never tensors that a caller keeps.
    """

    def __init__(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def buffer(self, numel: int, dtype: torch.dtype) -> Tensor:
        """At least `numel` uninitialised elements, flat."""
        num_bytes = numel * dtype.itemsize
        if self._bytes.numel() < num_bytes:
            self._bytes = torch.empty(num_bytes, dtype=torch.uint8)
        return self._bytes[:num_bytes].view(dtype)


WORKSPACE = Workspace()
