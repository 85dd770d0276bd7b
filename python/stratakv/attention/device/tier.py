"""Decoding on a model's device: scores what matters, brings its pages, attends to them.

The pages stay the engine's: in RAM and on disk, with their summaries. A device keeps copies, of summaries
all, of pages those that fit a limit. A step waits for the device once, for the list of what it reads.

Letters: B rows, H KV heads, G query heads of a group, Q = H * G, T query tokens, N blocks, K blocks that
are read, F places that pages are scored from, D and Dv head dims.
"""

from __future__ import annotations

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
            and not self.table.is_focused
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
        query = query_BQTD.float().mul(scale).view(num_rows, layer.num_heads, -1, num_new, dim)
        first = self.table.length(slot) - num_new + 1
        steps = [self._step(layer, query[..., t, :], first + t) for t in range(num_new)]
        output = torch.stack(steps, dim=3).view(num_rows, num_queries, num_new, -1)
        return output.to(query_BQTD.dtype)

    def selected(self, slot: int) -> tuple[float, float] | None:
        """As `KvCache.selected`: tokens per head, and the share of the mass that was not read."""
        layer = self._layers.get(slot)
        if layer is None or layer.choice is None:
            return None
        tokens = layer.choice.counts.float().mean() * BLOCK_TOKENS + layer.tail
        return float(tokens), float(layer.choice.unread.mean())

    def stats(self) -> dict[str, Any]:
        """Limit and used bytes, pages, hits, misses, evictions and copied bytes since the tier was made."""
        summaries = sum(layer.summaries.num_bytes for layer in self._layers.values())
        return {"device": str(self.device), **self._pools.stats(), "summary_bytes": summaries}

    def _layer(self, slot: int) -> _Layer:
        layer = self._layers.get(slot)
        if layer is None or layer.geometry != self.table.geometry[slot]:
            layer = self._layers[slot] = _Layer(self.table, slot, self._turns, self.device)
        return layer

    def _step(self, layer: _Layer, query_BHGD: Tensor, length: int) -> Tensor:
        """(B, H, G, Dv) float32 of one token, the last of `length`."""
        selection = self.table.selection
        assert selection is not None
        plan = Plan.of(selection, self.table.trained_tokens, length, self.table.page_tokens)
        layer.turns.grow(plan.longest_distance(layer.blocks_per_page) + 1)
        placed_BHGD = layer.turns.place(query_BHGD, plan.tail - 1)
        choice = choose(shares_of(self._score(layer, query_BHGD, placed_BHGD, plan)), plan.budget)
        layer.choice, layer.tail = choice, plan.tail
        pools, reads = self._pools.fetch(self.table, layer.slot, choice, plan)
        part = self._backend.attend(placed_BHGD, pools, reads, layer.turns)
        if plan.tail:
            part = self._with_tail(layer, placed_BHGD, part, length - plan.tail, length)
        output: Tensor = part.output
        return output

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
        self.choice: Choice | None = None
        self.tail = 0
