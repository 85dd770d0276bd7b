"""The summaries of a layer's whole pages, kept on a device.

They are copied once; after the table was cropped or its rows moved, from the first page on that is another.

Letters: B rows, H KV heads, N blocks, Z bytes of a summary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stratakv.attention.device.summaries import SummaryLayout
from stratakv.cache.page_table import PageTable
from stratakv.cache.selection import BLOCK_TOKENS

# Pages whose summaries are copied in one go: they pass through host memory.
PAGES_PER_COPY = 1024


class HotSummaries:
    """Summaries of one slot of a table."""

    def __init__(self, table: PageTable, slot: int, layout: SummaryLayout, device: torch.device) -> None:
        self.table = table
        self.slot = slot
        self.layout = layout
        self.device = device
        self._bytes = torch.empty(0, 0, 0, layout.num_bytes, dtype=torch.uint8, device=device)
        # What is there, page by page: the names of all rows' pages.
        self._names: list[tuple[bytes, ...]] = []
        self._epoch = table.epoch

    @property
    def num_bytes(self) -> int:
        """Bytes on the device."""
        return self._bytes.numel()

    def of_pages(self, pages: int) -> Tensor:
        """(B, H, N, Z) of the first whole pages, brought up to date."""
        if self._epoch != self.table.epoch:
            self._forget_others()
        if len(self._names) < pages:
            self._add(pages)
        return self._bytes[:, :, : pages * self._blocks_per_page]

    @property
    def _blocks_per_page(self) -> int:
        return self.table.page_tokens // BLOCK_TOKENS

    def _forget_others(self) -> None:
        """Keeps the pages that the table still has in their places."""
        whole = self.table.length(self.slot) // self.table.page_tokens
        now = self._names_of(0, min(whole, len(self._names)))
        same = (place for place, names in enumerate(now) if names != self._names[place])
        del self._names[next(same, len(now)) :]
        self._epoch = self.table.epoch

    def _names_of(self, start: int, stop: int) -> list[tuple[bytes, ...]]:
        rows = self.table.num_rows
        pages = [(row, page) for page in range(start, stop) for row in range(rows)]
        names = self.table.native.page_keys(self.slot, pages)
        return [tuple(names[place : place + rows]) for place in range(0, len(names), rows)]

    def _add(self, pages: int) -> None:
        geometry = self.table.geometry[self.slot]
        assert geometry is not None, "whole pages have a geometry"
        shape = (self.table.num_rows, geometry.num_heads)
        # What inference mode allocates could not be written outside it.
        with torch.inference_mode(mode=False):
            self._make_room(shape, pages * self._blocks_per_page)
        for start in range(len(self._names), pages, PAGES_PER_COPY):
            stop = min(start + PAGES_PER_COPY, pages)
            first, last = (page * self._blocks_per_page for page in (start, stop))
            fresh = torch.empty(*shape, last - first, self.layout.num_bytes, dtype=torch.uint8)
            self.table.native.copy_summaries(self.slot, start, stop, fresh)
            self._bytes[:, :, first:last] = fresh.to(self.device)
            self._names += self._names_of(start, stop)

    def _make_room(self, shape: tuple[int, int], blocks: int) -> None:
        """Doubles, so that growing costs little; starts afresh for another number of rows."""
        if tuple(self._bytes.shape[:2]) != shape:
            self._names.clear()
            self._bytes = self._bytes.new_empty(*shape, 0, self.layout.num_bytes)
        if self._bytes.shape[2] < blocks:
            grown = self._bytes.new_empty(
                *shape, max(blocks, 2 * self._bytes.shape[2]), self.layout.num_bytes
            )
            held = len(self._names) * self._blocks_per_page
            grown[:, :, :held] = self._bytes[:, :, :held]
            self._bytes = grown
