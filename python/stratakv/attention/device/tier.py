"""Attention on a model's device: scores what matters, brings its pages, attends to them.

The pages stay the engine's: in RAM and on disk, with their summaries. A device keeps copies, of summaries
all, of pages those that fit a limit. A step waits for the device once, for the list of what it reads, and so
does each part of a prefill that selects.

Letters: B rows, H KV heads, G query heads of a group, Q = H * G, T query tokens, R = G * T, N blocks,
F places that pages are scored from, D and Dv head dims.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stratakv.attention.device.backend import backend_for
from stratakv.attention.device.choosing import Choice, choose, shares_of
from stratakv.attention.device.hot_summaries import HotSummaries
from stratakv.attention.device.own import attend_own
from stratakv.attention.device.plan import Plan, parts_of
from stratakv.attention.device.pools import HotPools
from stratakv.attention.device.reads import Partial
from stratakv.attention.device.summaries import SummaryLayout, arrange
from stratakv.attention.device.turns import Turns
from stratakv.cache.page_table import PageTable
from stratakv.cache.selection import BLOCK_TOKENS

# Query tokens up to which a call is a step of decoding, or of checking guessed tokens.
STEP_TOKENS_MAX = 32
# Of the tokens of a prefill that share a selection, one in so many is asked what it attends to.
SAMPLE_TOKENS = 8


class HotTier:
    """What a device keeps of one table, and its attention.

    Args:
        table: pages in planes, with a rotary.
        limit_bytes: bytes of the pages on the device. Their summaries come on top: 3.4 % of the context's
            keys and values in 16 bits.
        device: where queries come from.
        policy: which pages stay there, one of `stratakv.cache.store.POLICIES`.

    Raises:
        ValueError: pages that are not kept in planes.
    """

    def __init__(
        self, table: PageTable, limit_bytes: int, device: torch.device, *, policy: str = "auto"
    ) -> None:
        if not table.planes or table.rotary is None:
            raise ValueError(
                "a hot tier keeps the planes of pages: open the cache for an attached model, with "
                'precision="mixed"'
            )
        self._build(table, HotPools(limit_bytes, device, policy))

    def _build(self, table: PageTable, pools: HotPools) -> None:
        self.table = table
        self.device = pools.device
        self._pools = pools
        self._backend = backend_for(pools.device.type)
        self._layers: dict[int, _Layer] = {}
        self._turns: dict[int, Turns] = {}

    def fork(self, table: PageTable) -> HotTier:
        """The tier of a fork of the table: its own summaries, the same slots."""
        twin = object.__new__(HotTier)
        twin._build(table, self._pools)
        return twin

    def serves(self, slot: int, num_new: int, device: torch.device) -> bool:
        """Whether this tier attends for the queries of a call without a mask: a step, or a prefill's chunk.

        Not where they may read all of a context for being short, and not before there is a page.
        """
        selection, length = self.table.selection, self.table.length(slot)
        if num_new <= STEP_TOKENS_MAX:
            # The first token's context is the shortest.
            length -= num_new - 1
        return (
            device == self.device
            and selection is not None
            and length >= self.table.page_tokens
            and not selection.reads_all_of(length, self.table.trained_tokens)
        )

    def attend(self, slot: int, query_BQTD: Tensor, scale: float) -> Tensor:
        """Causal attention of the last T tokens' queries, which have no positions: (B, Q, T, Dv).

        Raises:
            ValueError: a step that reads more pages than the tier has slots for.
        """
        num_rows, num_queries, num_new, dim = query_BQTD.shape
        layer = self._layer(slot)
        # Keys and values may have come from elsewhere.
        self.table.devices[slot] = self.device
        query_BHGTD = query_BQTD.float().mul(scale).view(num_rows, layer.num_heads, -1, num_new, dim)
        length = self.table.length(slot)
        start = length - num_new
        if num_new <= STEP_TOKENS_MAX:
            parts = [(end - 1, end, self._step) for end in range(start + 1, length + 1)]
        else:
            # Before the first whole page there is nothing to choose from.
            whole = max(self.table.dense_prefill_below, self.table.page_tokens - 1)
            cuts = parts_of(start, length, whole)
            parts = [(a, b, self._whole if is_dense else self._part) for a, b, is_dense in cuts]
        # Where Triton launches; other devices need nothing.
        with torch.cuda.device_of(query_BQTD):  # type: ignore[no-untyped-call]
            outputs = [attend(layer, query_BHGTD[..., a - start : b - start, :], b) for a, b, attend in parts]
            if num_new <= STEP_TOKENS_MAX:
                self._guess_after(slot)
        output = torch.cat(outputs, dim=3).view(num_rows, num_queries, num_new, -1)
        return output.to(query_BQTD.dtype)

    def attended(self, slot: int) -> bool:
        """Whether the slot's last attention was a step of this tier."""
        return self._last(slot) is not None

    def forget(self, slot: int) -> None:
        """It was not: there is nothing to tell of it."""
        if slot in self._layers:
            self._layers[slot].last = None

    def selected(self, slot: int) -> tuple[float, float] | None:
        """As `KvCache.selected`: tokens per head, and the share of the mass that was not read."""
        last = self._last(slot)
        if last is None:
            return None
        tokens = last.choice.counts.float().mean() * BLOCK_TOKENS + last.plan.tail
        return float(tokens), float(last.choice.unread.mean())

    def read_blocks(self, slot: int) -> list[list[list[int]]] | None:
        """As `KvCache.read_blocks`: the blocks of each row and head, those of the tail among them."""
        last = self._last(slot)
        return None if last is None else last.lists(last.choice.blocks, last.tail_blocks)

    def read_shares(self, slot: int) -> list[list[list[float]]] | None:
        """As `KvCache.read_shares`."""
        last = self._last(slot)
        return None if last is None else last.lists(last.choice.shares, [0.0] * len(last.tail_blocks))

    def stats(self) -> dict[str, Any]:
        """Limit and used bytes, pages, hits, misses, evictions and copied bytes since the tier was made."""
        summaries = sum(layer.summaries.num_bytes for layer in self._layers.values())
        return {"device": str(self.device), **self._pools.stats(), "summary_bytes": summaries}

    def _last(self, slot: int) -> _Last | None:
        layer = self._layers.get(slot)
        return None if layer is None else layer.last

    def _layer(self, slot: int) -> _Layer:
        layer = self._layers.get(slot)
        if layer is None or layer.geometry != self.table.geometry[slot]:
            layer = self._layers[slot] = _Layer(self.table, slot, self._turns, self.device)
        return layer

    def settle(self) -> None:
        """Waits for pages that are still being copied ahead: before the table changes."""
        self._pools.settle()

    def _guess_after(self, slot: int) -> None:
        """Starts to bring what the next layer read last: most of it will be read again."""
        num_slots = self.table.num_slots
        following = (self._layers.get((slot + further) % num_slots) for further in range(1, num_slots + 1))
        layer = next(layer for layer in following if layer is not None)
        epoch, pages = layer.read
        if epoch == self.table.epoch and layer.geometry == self.table.geometry[layer.slot]:
            self._pools.guess(self.table, layer.slot, pages)

    def _step(self, layer: _Layer, query_BHGTD: Tensor, end: int) -> Tensor:
        """(B, H, G, 1, Dv) float32 of one token, the last of `end`."""
        plan = self._plan(end)
        return self._selected(layer, query_BHGTD, end, plan, plan.pages * self.table.page_tokens)

    def _part(self, layer: _Layer, query_BHGTD: Tensor, end: int) -> Tensor:
        """(B, H, G, T, Dv) float32 of T tokens of a prefill, the last of `end`, that share a selection."""
        num_new = query_BHGTD.shape[3]
        return self._selected(
            layer, query_BHGTD, end, self._plan(end, num_new), self._first_own(end - num_new, end)
        )

    def _whole(self, layer: _Layer, query_BHGTD: Tensor, end: int) -> Tensor:
        """The same of T tokens that read everything, and in 16 bits."""
        first_own = self._first_own(end - query_BHGTD.shape[3], end)
        layer.last = None
        blocks, pages = first_own // BLOCK_TOKENS, end // self.table.page_tokens
        layer.turns.grow(pages * layer.blocks_per_page + 1)
        placed_BHRD = self._placed(layer, query_BHGTD, end).flatten(2, 3)
        parts = [self._own(layer, query_BHGTD, first_own, end)]
        # As many as fit at a time: later ones may take the slots of those that were read.
        for pools, reads, _ in self._pools.fetch_all(self.table, layer.slot, blocks, pages):
            parts.append(self._backend.attend(placed_BHRD, pools, reads, layer.turns))
        return self._merged(parts, query_BHGTD)

    def _first_own(self, start: int, end: int) -> int:
        """Where the blocks of a prefill's tokens begin, which are not read from planes."""
        whole = end // self.table.page_tokens * self.table.page_tokens
        return min(start // BLOCK_TOKENS * BLOCK_TOKENS, whole)

    def _plan(self, end: int, part_tokens: int = 0) -> Plan:
        selection = self.table.selection
        assert selection is not None
        table, focus = self.table, self._focus_blocks()
        rules = (selection, table.trained_tokens, end, table.page_tokens, focus)
        return Plan.of(*rules, since=table.focus_since, part_tokens=part_tokens)

    def _selected(self, layer: _Layer, query_BHGTD: Tensor, end: int, plan: Plan, first_own: int) -> Tensor:
        """(B, H, G, T, Dv): selects for all T tokens, and reads planes of what is before `first_own`."""
        layer.turns.grow(plan.longest_distance(layer.blocks_per_page) + 1)
        placed_BHGTD = self._placed(layer, query_BHGTD, end)
        asked_BHRD, faced_BHRD = (_sample(part).flatten(2, 3) for part in (query_BHGTD, placed_BHGTD))
        shares = shares_of(self._score(layer, asked_BHRD, faced_BHRD, plan))
        choice = choose(shares, plan.budget, self._focus_rows())
        layer.last = _Last(choice, plan, layer.blocks_per_page)
        own_blocks = plan.pages * layer.blocks_per_page - first_own // BLOCK_TOKENS
        pools, reads, pages = self._pools.fetch(self.table, layer.slot, choice, plan, own_blocks)
        layer.read = (self.table.epoch, pages)
        parts = [self._backend.attend(placed_BHGTD.flatten(2, 3), pools, reads, layer.turns)]
        if first_own < end:
            parts.append(self._own(layer, query_BHGTD, first_own, end))
        return self._merged(parts, query_BHGTD)

    def _placed(self, layer: _Layer, query_BHGTD: Tensor, end: int) -> Tensor:
        """The queries of the last T of `end` tokens, relative to the end of the whole pages."""
        tokens_T = torch.arange(-query_BHGTD.shape[3], 0) + end % self.table.page_tokens
        return layer.turns.place(query_BHGTD, tokens_T)

    def _own(self, layer: _Layer, query_BHGTD: Tensor, first: int, end: int) -> Partial:
        """Over the tokens [first, end), from the engine in the model's dtype."""
        snapshot = self.table.snapshot(layer.slot, self.device)
        return attend_own(query_BHGTD, snapshot, first, end, layer.turns)

    def _merged(self, parts: list[Partial], query_BHGTD: Tensor) -> Tensor:
        """(B, H, G, T, Dv)."""
        if len(parts) > 1:
            both = (torch.stack([getattr(part, name) for part in parts], 2) for name in ("output", "log_sum"))
            parts = [self._backend.merge(Partial(*both))]
        return parts[0].output.view(*query_BHGTD.shape[:4], -1)

    def _focus_blocks(self) -> int | None:
        """What a focused step reads beside sinks and window."""
        rows = self.table.focused
        return max(map(len, rows)) + self.table.focus_own if rows else None

    def _focus_rows(self) -> Tensor | None:
        """(B, F) blocks that all heads read, padded by what is past any context."""
        rows = [torch.tensor(row, dtype=torch.int64) for row in self.table.focused]
        if not rows:
            return None
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=1 << 40).to(self.device)

    def _score(self, layer: _Layer, query_BHRD: Tensor, placed_BHRD: Tensor, plan: Plan) -> Tensor:
        """(B, H, R, N) logarithms of estimated masses."""
        pages = torch.arange(plan.first_near, plan.pages, device=self.device)
        distances_F = (plan.pages - pages) * layer.blocks_per_page
        facing = layer.turns.by_blocks(placed_BHRD[:, :, None], distances_F[:, None])
        first = 0
        if plan.far_pages is not None and plan.first_near:
            far = torch.tensor([plan.far_pages * self.table.page_tokens])
            facing = torch.cat([layer.turns.place(query_BHRD, far)[:, :, None], facing], dim=2)
            first = 1
        page_N = torch.arange(plan.pages, device=self.device).repeat_interleave(layer.blocks_per_page)
        places_N = (page_N - plan.first_near + first).clamp(min=0)
        summaries = layer.summaries.of_pages(plan.pages)
        asked = arrange(facing, layer.summaries.layout)
        masses: Tensor = self._backend.score(summaries, asked, places_N, layer.summaries.layout)
        return masses


def _sample(query_BHGTD: Tensor) -> Tensor:
    """Those that are asked of T tokens: all of a step's, a few of a prefill's, the last among them."""
    num_new = query_BHGTD.shape[3]
    if num_new <= STEP_TOKENS_MAX:
        return query_BHGTD
    return query_BHGTD[..., (num_new - 1) % SAMPLE_TOKENS :: SAMPLE_TOKENS, :]


@dataclass(frozen=True)
class _Last:
    """What the last step of a slot read."""

    choice: Choice
    plan: Plan
    blocks_per_page: int

    @property
    def tail_blocks(self) -> list[int]:
        """Numbers of the blocks after the last whole page."""
        first = self.plan.pages * self.blocks_per_page
        return [*range(first, first + -(-self.plan.tail // BLOCK_TOKENS))]

    def lists(self, values_BHK: Tensor, of_tail: list[Any]) -> list[list[list[Any]]]:
        """What belongs to the blocks that each row and head read, and then what belongs to the tail."""
        pairs = zip(values_BHK.tolist(), self.choice.counts.tolist(), strict=True)
        return [
            [values[:count] + of_tail for values, count in zip(heads, counts, strict=True)]
            for heads, counts in pairs
        ]


class _Layer:
    """What a tier keeps for one slot of a table."""

    def __init__(self, table: PageTable, slot: int, turns: dict[int, Turns], device: torch.device) -> None:
        geometry = table.geometry[slot]
        assert geometry is not None and table.rotary is not None
        self.slot = slot
        self.geometry = geometry
        self.num_heads = geometry.num_heads
        self.blocks_per_page = table.page_tokens // BLOCK_TOKENS
        self.turns = turns.setdefault(geometry.key_dim, Turns(table.rotary, geometry.key_dim, device))
        layout = SummaryLayout.of(table.rotary, geometry.key_dim)
        self.summaries = HotSummaries(table, slot, layout, device)
        self.last: _Last | None = None
        # The table's epoch and the (row, page)s whose codes were read, when planes were last read.
        self.read: tuple[int, list[tuple[int, int]]] = (table.epoch, [])
