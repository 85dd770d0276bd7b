"""Decoding on a model's device: scores what matters, brings its pages, attends to them.

The pages stay the engine's: in RAM and on disk, with their summaries. A device keeps copies, of summaries
all, of pages those that fit a limit. A step waits for the device once, for the list of what it reads.

Letters: B rows, H KV heads, G query heads of a group, Q = H * G, T query tokens, N blocks, K blocks that
are read, F places that pages are scored from, D and Dv head dims.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stratakv.attention.device.backend import backend_for
from stratakv.attention.device.choosing import Choice, choose, shares_of
from stratakv.attention.device.hot_summaries import HotSummaries
from stratakv.attention.device.plan import Plan
from stratakv.attention.device.pools import HotPools
from stratakv.attention.device.reads import Partial
from stratakv.attention.device.reference import weigh
from stratakv.attention.device.summaries import SummaryLayout, arrange
from stratakv.attention.device.turns import Turns
from stratakv.cache.page_table import PageTable
from stratakv.cache.selection import BLOCK_TOKENS

# Query tokens up to which a call is a step of decoding, or of checking guessed tokens.
STEP_TOKENS_MAX = 32


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
        """Whether the queries of a call without a mask are a step that this tier attends for."""
        selection = self.table.selection
        # The first token's context is the shortest.
        length = self.table.length(slot) - num_new + 1
        return (
            device == self.device
            and selection is not None
            and num_new <= STEP_TOKENS_MAX
            and length >= self.table.page_tokens
            and not selection.reads_all_of(length)
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
        query = query_BQTD.float().mul(scale).view(num_rows, layer.num_heads, -1, num_new, dim)
        first = self.table.length(slot) - num_new + 1
        # Where Triton launches; other devices need nothing.
        with torch.cuda.device_of(query):  # type: ignore[no-untyped-call]
            steps = [self._step(layer, query[..., t, :], first + t) for t in range(num_new)]
        output = torch.stack(steps, dim=3).view(num_rows, num_queries, num_new, -1)
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

    def _step(self, layer: _Layer, query_BHGD: Tensor, length: int) -> Tensor:
        """(B, H, G, Dv) float32 of one token, the last of `length`."""
        selection = self.table.selection
        assert selection is not None
        table = self.table
        plan = Plan.of(selection, table.trained_tokens, length, table.page_tokens, self._focus_blocks())
        layer.turns.grow(plan.longest_distance(layer.blocks_per_page) + 1)
        placed_BHGD = layer.turns.place(query_BHGD, plan.tail - 1)
        shares = shares_of(self._score(layer, query_BHGD, placed_BHGD, plan))
        choice = choose(shares, plan.budget, self._focus_rows())
        layer.last = _Last(choice, plan, layer.blocks_per_page)
        pools, reads = self._pools.fetch(self.table, layer.slot, choice, plan)
        part = self._backend.attend(placed_BHGD, pools, reads, layer.turns)
        if plan.tail:
            part = self._with_tail(layer, placed_BHGD, part, length - plan.tail, length)
        output: Tensor = part.output
        return output

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

    def _score(self, layer: _Layer, query_BHGD: Tensor, placed_BHGD: Tensor, plan: Plan) -> Tensor:
        """(B, H, G, N) logarithms of estimated masses."""
        pages = torch.arange(plan.first_near, plan.pages, device=self.device)
        distances_F = (plan.pages - pages) * layer.blocks_per_page
        facing = layer.turns.by_blocks(placed_BHGD[:, :, None], distances_F[:, None])
        first = 0
        if plan.far_pages is not None and plan.first_near:
            far_tokens = plan.far_pages * self.table.page_tokens
            facing = torch.cat([layer.turns.place(query_BHGD, far_tokens)[:, :, None], facing], dim=2)
            first = 1
        page_N = torch.arange(plan.pages, device=self.device).repeat_interleave(layer.blocks_per_page)
        places_N = (page_N - plan.first_near + first).clamp(min=0)
        summaries = layer.summaries.of_pages(plan.pages)
        asked = arrange(facing, layer.summaries.layout)
        masses: Tensor = self._backend.score(summaries, asked, places_N, layer.summaries.layout)
        return masses

    def _with_tail(self, layer: _Layer, placed_BHGD: Tensor, part: Partial, start: int, stop: int) -> Partial:
        """Adds the tokens after the last whole page: in the model's dtype, from the engine."""
        snapshot = self.table.snapshot(layer.slot, self.device)
        keys_BHTD, values_BHTD = snapshot.gather(start, stop, turn="stored")
        tail = weigh(placed_BHGD @ keys_BHTD.float().mT, values_BHTD.float())
        both = (torch.stack([a, b], 2) for a, b in ((part.output, tail.output), (part.log_sum, tail.log_sum)))
        merged: Partial = self._backend.merge(Partial(*both))
        return merged


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
