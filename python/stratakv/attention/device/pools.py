"""Slots for the pages of all of a model's layers: codes of all, residuals of those with critical blocks.

Layers of one geometry share their slots. The limit is divided in advance: among geometries by the bytes
of their pages, and between the planes by how many pages have a critical block.

Letters: B rows, H KV heads, K blocks that are read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stratakv.attention.device.choosing import Choice
from stratakv.attention.device.plan import Plan
from stratakv.attention.device.reads import PlanePools, Reads
from stratakv.cache.hot_pages import HotPages
from stratakv.cache.page_table import LayerGeometry, PageTable
from stratakv.cache.planes import PlaneLayout
from stratakv.cache.selection import BLOCK_TOKENS, Selection

# What is critical is spread over more pages than blocks alone would tell, and changes.
RESIDUAL_ROOM = 1.5
# Pages that a prefill reads at a time where it reads everything: bounds what is kept of scores.
DENSE_PAGES = 128


@dataclass(frozen=True)
class _Pair:
    """The pools of one geometry."""

    codes: HotPages
    residuals: HotPages
    planes: PlanePools


class Fetched(NamedTuple):
    """What is on the device for one attention.

    Attributes:
        pools: the slots.
        reads: what is read of them.
        pages: (row, page) of these, those with critical blocks first.
    """

    pools: PlanePools
    reads: Reads
    pages: list[tuple[int, int]]


class HotPools:
    """The slots of a device, for a table and its forks.

    They are made when the first step of decoding tells what pages look like.

    Args:
        limit_bytes: bytes of all slots together.
        device: where they are.
        policy: which pages stay.
    """

    def __init__(self, limit_bytes: int, device: torch.device, policy: str) -> None:
        self.limit_bytes = limit_bytes
        self.device = device
        self._policy = policy
        self._pairs: dict[LayerGeometry, _Pair] = {}
        self._critical = 0.0
        self._worker: ThreadPoolExecutor | None = None

    def fetch(self, table: PageTable, slot: int, choice: Choice, plan: Plan, own_blocks: int = 0) -> Fetched:
        """Brings what was chosen for a slot of the table to the device.

        Args:
            table: whose pages.
            slot: its layer.
            choice: the blocks of every row and head.
            plan: of the same tokens.
            own_blocks: so many of the last blocks, which all heads chose, are read elsewhere.

        Raises:
            ValueError: more pages than there are slots for, or a limit that holds none.
        """
        per_page = table.page_tokens // BLOCK_TOKENS
        blocks_BHK, critical_BHK, counts_BH = _on_host(choice)
        place_K = torch.arange(blocks_BHK.shape[-1])
        if plan.far_pages is None:
            distances_BHK = (plan.pages - blocks_BHK // per_page) * per_page
        else:
            # Numbered by what is read: the last block ends where the whole pages do.
            distances_BHK = (counts_BH[..., None] - place_K).clamp(min=0) + blocks_BHK % per_page
        wanted = _Wanted(blocks_BHK, counts_BH - own_blocks, critical_BHK, distances_BHK)
        return self._bring(self._pair(table, slot), table, slot, wanted, plan.pages)

    def fetch_all(self, table: PageTable, slot: int, blocks: int, pages: int) -> Iterator[Fetched]:
        """Brings the first blocks of a slot of the table, in 16 bits, some pages at a time.

        Args:
            table: whose pages.
            slot: its layer.
            blocks: that are read, by all heads of all rows.
            pages: whole pages, from whose end distances are.

        Raises:
            ValueError: fewer slots than rows, or a limit that holds none.
        """
        pair = self._pair(table, slot)
        per_page = table.page_tokens // BLOCK_TOKENS
        fitting = min(pair.codes.num_slots, pair.residuals.num_slots) // table.num_rows
        each = min(max(fitting, 1), DENSE_PAGES) * per_page
        for start in range(0, blocks, each):
            block_K = torch.arange(start, min(start + each, blocks))
            shape = (table.num_rows, pair.planes.codes_layout.num_heads, len(block_K))
            wanted = _Wanted(
                block_K.expand(shape),
                torch.full(shape[:2], len(block_K)),
                torch.ones(shape, dtype=torch.bool),
                ((pages - block_K // per_page) * per_page).expand(shape),
            )
            yield self._bring(pair, table, slot, wanted, pages)

    def guess(self, table: PageTable, slot: int, pages: list[tuple[int, int]]) -> None:
        """Starts to bring codes of (row, page)s that a slot of the table may read next, the likeliest first.

        Residuals are few, and which are needed changes too much (docs/gpu.md).
        """
        geometry = table.geometry[slot]
        if geometry not in self._pairs:
            return
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, "stratakv-hot")
        native = table.native

        def read(places: list[int], out: Tensor) -> None:
            native.copy_planes(slot, [pages[place] for place in places], out)

        self._pairs[geometry].codes.guess(native.page_keys(slot, pages), read, self._worker)

    def settle(self) -> None:
        """Waits for what `guess` began to read."""
        for pair in self._pairs.values():
            pair.codes.settle()

    def _bring(self, pair: _Pair, table: PageTable, slot: int, wanted: _Wanted, num_pages: int) -> Fetched:
        per_page = table.page_tokens // BLOCK_TOKENS
        is_read_BHK = torch.arange(wanted.blocks.shape[-1]) < wanted.counts[..., None]
        pages_BHK = (wanted.blocks // per_page).where(is_read_BHK, 0)
        row_B11 = torch.arange(len(pages_BHK))[:, None, None]
        # One number for each page of each row.
        of_slot = _Pages(table, slot, pages_BHK + row_B11 * num_pages, num_pages)
        slots_BHK, pages = of_slot.bring(pair.codes, is_read_BHK, residuals=False)
        is_critical_BHK = is_read_BHK & wanted.critical
        residual_slots_BHK, critical = of_slot.bring(pair.residuals, is_critical_BHK, residuals=True)
        within_BHK = wanted.blocks % per_page
        on_device = (
            part.to(self.device, torch.int32)
            for part in (slots_BHK, residual_slots_BHK, within_BHK, wanted.distances, wanted.counts)
        )
        return Fetched(pair.planes, Reads(*on_device), list(dict.fromkeys(critical + pages)))

    def stats(self) -> dict[str, Any]:
        """Limit and used bytes, pages, and the sums of what the pools counted."""
        pools = [pool for pair in self._pairs.values() for pool in (pair.codes, pair.residuals)]
        counted: Counter[str] = Counter()
        for pool in pools:
            counted.update(asdict(pool.counts))
        used = sum(len(pool) * pool.slots.shape[1] for pool in pools)
        pages = sum(len(pair.codes) for pair in self._pairs.values())
        return {"limit_bytes": self.limit_bytes, "used_bytes": used, "pages": pages, **counted}

    def _pair(self, table: PageTable, slot: int) -> _Pair:
        """The pools of the slot's geometry; all are made anew where more is to be read in 16 bits."""
        geometry = table.geometry[slot]
        assert geometry is not None and table.selection is not None
        critical = _critical_pages(table.selection, table.page_tokens)
        if geometry not in self._pairs or critical > self._critical:
            self._critical = max(critical, self._critical)
            self._pairs.clear()
            self._pairs = self._make(table)
        return self._pairs[geometry]

    def _make(self, table: PageTable) -> dict[LayerGeometry, _Pair]:
        """Pools for the device's layers, each geometry's by the bytes of its pages."""
        weights: Counter[LayerGeometry] = Counter()
        for geometry, device in zip(table.geometry, table.devices, strict=True):
            assert geometry is not None, "a step comes after a prefill of all layers"
            # Of a resumed session's layers it is not known yet.
            if device in {None, self.device}:
                weights[geometry] += PlaneLayout.of_codes(geometry, table.page_tokens).page_bytes
        return {
            one: self._of_geometry(one, table.page_tokens, self.limit_bytes * weight // weights.total())
            for one, weight in weights.items()
        }

    def _of_geometry(self, geometry: LayerGeometry, page_tokens: int, limit_bytes: int) -> _Pair:
        codes = PlaneLayout.of_codes(geometry, page_tokens)
        residuals = PlaneLayout.of_residuals(geometry, page_tokens)
        num_pages = limit_bytes / (codes.page_bytes + self._critical * residuals.page_bytes)
        residual_bytes = max(int(num_pages * self._critical), 1) * residuals.page_bytes
        pools = (
            HotPages(codes.page_bytes, limit_bytes - residual_bytes, self.device, policy=self._policy),
            HotPages(residuals.page_bytes, residual_bytes, self.device, policy=self._policy),
        )
        planes = PlanePools(
            codes=pools[0].slots,
            residuals=pools[1].slots,
            codes_layout=codes,
            residuals_layout=residuals,
            key_dim=geometry.key_dim,
            value_dim=geometry.value_dim,
            has_byte_residuals=geometry.dtype == torch.float16,
        )
        return _Pair(*pools, planes)


@dataclass(frozen=True)
class _Wanted:
    """What is read of a slot's pages, on the host.

    Attributes:
        blocks: (B, H, K) int64.
        counts: (B, H), how many of them.
        critical: (B, H, K) bool, in 16 bits.
        distances: (B, H, K), as `Reads` has them.
    """

    blocks: Tensor
    counts: Tensor
    critical: Tensor
    distances: Tensor


@dataclass(frozen=True)
class _Pages:
    """The pages that the blocks of one step are in.

    Attributes:
        table: whose pages.
        slot: its layer.
        numbers: (B, H, K) int64, row * num_pages + page of each block.
        num_pages: whole pages of a row.
    """

    table: PageTable
    slot: int
    numbers: Tensor
    num_pages: int

    def bring(
        self, pool: HotPages, is_read: Tensor, *, residuals: bool
    ) -> tuple[Tensor, list[tuple[int, int]]]:
        """(B, H, K): the slots of the pages where they are read, and -1 elsewhere; and the pages."""
        distinct, place_of = torch.unique(self.numbers[is_read], return_inverse=True)
        pages = [divmod(number, self.num_pages) for number in distinct.tolist()]
        native = self.table.native

        def read(places: list[int], out: Tensor) -> None:
            native.copy_planes(self.slot, [pages[place] for place in places], out, residuals=residuals)

        held = pool.hold(native.page_keys(self.slot, pages), read)
        return torch.full_like(self.numbers, -1).masked_scatter_(is_read, held[place_of]), pages


def _on_host(choice: Choice) -> tuple[Tensor, Tensor, Tensor]:
    """Blocks (B, H, K), whether they are critical, and counts (B, H): the device is waited for once."""
    packed = torch.cat([choice.blocks * 2 + choice.critical, choice.counts[..., None]], dim=-1).cpu()
    blocks, counts = packed[..., :-1], packed[..., -1]
    return blocks >> 1, (blocks & 1).bool(), counts


def _critical_pages(selection: Selection, page_tokens: int) -> float:
    """The share of pages whose residuals there is room for."""
    return min(selection.critical_fraction * (page_tokens // BLOCK_TOKENS) * RESIDUAL_ROOM, 1.0)
