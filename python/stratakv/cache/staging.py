"""How pages reach a device: through host buffers of a bounded size.

On CUDA the buffers are pinned and there are two: while one is on its way, on a stream of its own, the
next is filled. Elsewhere a copy is over when the call returns. One thread at a time copies.

Letters: A slots of a pool, N pages.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

BUFFER_BYTES = 16 << 20

Fill: TypeAlias = Callable[[range, Tensor], None]
"""Writes the bytes of pages [start, stop) of those asked for into (stop - start, bytes) uint8 on the CPU."""


class Staging:
    """Host buffers for slots of one size, and copies out of them that are over when `copy` returns."""

    def __init__(self, slot_bytes: int) -> None:
        self.slot_bytes = slot_bytes
        self.rows = max(BUFFER_BYTES // slot_bytes, 1)
        self._buffer = torch.empty(0, slot_bytes, dtype=torch.uint8)

    def send(self, pool_AB: Tensor, slots_N: Tensor, fill: Fill) -> None:
        """Fills the slots of a pool with pages; the present stream goes on once they are, the host before."""
        self.copy(pool_AB, slots_N, fill, self.mark())
        self.arrive()

    def mark(self) -> Any:
        """What `copy` begins after: all that the calling thread launched."""
        return None

    def arrive(self) -> None:
        """What the calling thread launches from now on comes after what was copied."""

    def copy(self, pool_AB: Tensor, slots_N: Tensor, fill: Fill, mark: Any) -> None:
        """Fills the slots of a pool with pages, a buffer at a time, on any thread."""
        for start in range(0, len(slots_N), self.rows):
            pages = range(start, min(start + self.rows, len(slots_N)))
            if len(self._buffer) < len(pages):
                self._buffer = torch.empty(len(pages), self.slot_bytes, dtype=torch.uint8)
            buffer = self._buffer[: len(pages)]
            fill(pages, buffer)
            slots = slots_N[pages.start : pages.stop]
            pool_AB.index_copy_(0, slots.to(pool_AB.device), buffer.to(pool_AB.device))


class CudaStaging(Staging):
    """Two pinned buffers, and a stream on which copies go on while the next buffer is filled."""

    def __init__(self, slot_bytes: int, device: torch.device) -> None:
        super().__init__(slot_bytes)
        self.device = device
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pinned = [torch.empty(self.rows, slot_bytes, dtype=torch.uint8, pin_memory=True) for _ in "ab"]
        self._sent = [torch.cuda.Event() for _ in "ab"]  # type: ignore[no-untyped-call]
        self._turn = 0

    def mark(self) -> torch.cuda.Event:
        """See `Staging.mark`."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        return event

    def arrive(self) -> None:
        """See `Staging.arrive`."""
        torch.cuda.current_stream(self.device).wait_stream(self.stream)

    def copy(self, pool_AB: Tensor, slots_N: Tensor, fill: Fill, mark: torch.cuda.Event) -> None:
        """See `Staging.copy`."""
        # What was launched before may still read what these slots held.
        self.stream.wait_event(mark)
        # A thread begins on the first device.
        with torch.cuda.device(self.device):
            self._copy(pool_AB, slots_N, fill)

    def _copy(self, pool_AB: Tensor, slots_N: Tensor, fill: Fill) -> None:
        slots_N = slots_N.pin_memory()
        for start in range(0, len(slots_N), self.rows):
            pages = range(start, min(start + self.rows, len(slots_N)))
            buffer, sent = self._pinned[self._turn][: len(pages)], self._sent[self._turn]
            sent.synchronize()
            fill(pages, buffer)
            with torch.cuda.stream(self.stream):
                slots = slots_N[pages.start : pages.stop].to(pool_AB.device, non_blocking=True)
                pool_AB.index_copy_(0, slots, buffer.to(pool_AB.device, non_blocking=True))
                sent.record(self.stream)
            self._turn = 1 - self._turn


def staging_for(slot_bytes: int, device: torch.device) -> Staging:
    """Pinned buffers and a stream for CUDA, a plain buffer for others."""
    return CudaStaging(slot_bytes, device) if device.type == "cuda" else Staging(slot_bytes)
