"""The hot tiers of a model whose layers are on several devices: one for each, under a limit of its own.

A layer's pages and summaries are on the device that its queries come from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from stratakv.attention.device.tier import HotTier
from stratakv.cache.page_table import PageTable


class HotTiers:
    """A `HotTier` for each device.

    Args:
        table: pages in planes, with a rotary.
        limit_bytes: bytes of the pages on each device.
        devices: where queries may come from; those of others are not served.
        policy: which pages stay, one of `stratakv.cache.store.POLICIES`.

    Raises:
        ValueError: pages that are not kept in planes.
    """

    def __init__(
        self, table: PageTable, limit_bytes: int, devices: Iterable[torch.device], *, policy: str = "auto"
    ) -> None:
        self._tiers = {device: HotTier(table, limit_bytes, device, policy=policy) for device in devices}

    def fork(self, table: PageTable) -> HotTiers:
        """The tiers of a fork of the table: its own summaries, the same slots."""
        twin = object.__new__(HotTiers)
        twin._tiers = {device: tier.fork(table) for device, tier in self._tiers.items()}
        return twin

    def serves(self, slot: int, num_new: int, device: torch.device) -> bool:
        """Whether the queries of a call without a mask are a step that one of the tiers attends for."""
        return device in self._tiers and self._tiers[device].serves(slot, num_new, device)

    def attend(self, slot: int, query_BQTD: Tensor, scale: float) -> Tensor:
        """As `HotTier.attend`, on the query's device."""
        # A layer that was moved has nothing to tell of where it was.
        self.forget(slot)
        return self._tiers[query_BQTD.device].attend(slot, query_BQTD, scale)

    def attended(self, slot: int) -> bool:
        """Whether the slot's last attention was a step of one of the tiers."""
        return self._of(slot) is not None

    def forget(self, slot: int) -> None:
        """It was not: there is nothing to tell of it."""
        for tier in self._tiers.values():
            tier.forget(slot)

    def selected(self, slot: int) -> tuple[float, float] | None:
        """As `KvCache.selected`."""
        tier = self._of(slot)
        return None if tier is None else tier.selected(slot)

    def read_blocks(self, slot: int) -> list[list[list[int]]] | None:
        """As `KvCache.read_blocks`."""
        tier = self._of(slot)
        return None if tier is None else tier.read_blocks(slot)

    def read_shares(self, slot: int) -> list[list[list[float]]] | None:
        """As `KvCache.read_shares`."""
        tier = self._of(slot)
        return None if tier is None else tier.read_shares(slot)

    def settle(self) -> None:
        """Waits for pages that are still being copied ahead: before the table changes."""
        for tier in self._tiers.values():
            tier.settle()

    def stats(self) -> dict[str, Any]:
        """As `HotTier.stats`; of several devices the sums, and under "devices" each one's own."""
        each = [tier.stats() for tier in self._tiers.values()]
        if len(each) == 1:
            return each[0]
        sums: Counter[str] = Counter()
        for stats in each:
            sums.update({name: value for name, value in stats.items() if name != "device"})
        return {"device": ", ".join(stats["device"] for stats in each), **sums, "devices": each}

    def _of(self, slot: int) -> HotTier | None:
        """The tier that attended last for a slot."""
        return next((tier for tier in self._tiers.values() if tier.attended(slot)), None)
