"""One full-attention layer of a model, as transformers sees it."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from stratakv.attention.paged_tensor import PagedTensor
from stratakv.cache.page_table import PageTable


class TieredLayer(DynamicLayer):  # type: ignore[misc]  # transformers is untyped
    """Keys and values in pages.

    The first update gives back the tensors it was given, so a prefill computes what it always
    did; later ones give a pair of `PagedTensor`. What moves tokens or rows is done by the cache
    for all layers at once, because they share one page table.
    """

    is_compileable = False
    is_sliding = False
    is_croppable = True

    def __init__(self, table: PageTable, slot: int) -> None:
        self.table = table
        self.slot = slot
        super().__init__()
        self.dtype: torch.dtype | None = None
        self.device: torch.device = torch.device("cpu")

    @property
    def keys(self) -> Tensor | None:
        """(B, H, S, Dk) in pages, or None while empty."""
        return self._part("keys")

    @keys.setter
    def keys(self, value: None) -> None:
        self._refuse(value)

    @property
    def values(self) -> Tensor | None:
        """(B, H, S, Dv) in pages, or None while empty."""
        return self._part("values")

    @values.setter
    def values(self, value: None) -> None:
        self._refuse(value)

    def _part(self, part: str) -> Tensor | None:
        if not self.table.is_open or self.table.geometry[self.slot] is None or not self.get_seq_length():
            return None
        return PagedTensor(self.table.snapshot(self.slot, self.device), part)

    @staticmethod
    def _refuse(value: Any) -> None:
        if value is not None:
            raise AttributeError("keys and values of a tiered layer live in pages: use update()")

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Notes dtype and device."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Adds (B, H, T, D) keys and values; gives everything held, in pages or as given.

        Raises:
            ValueError: shapes or dtypes that pages cannot hold.
            RamFullError, DiskFullError: no room is left for one more page.
        """
        self.lazy_initialization(key_states, value_states)
        is_first = self.table.length(self.slot) == 0
        self.table.append(self.slot, key_states, value_states)
        if is_first:
            return key_states, value_states
        snapshot = self.table.snapshot(self.slot, key_states.device)
        return PagedTensor(snapshot, "keys"), PagedTensor(snapshot, "values")

    def get_seq_length(self) -> int:
        """Tokens held."""
        return self.table.length(self.slot) if self.table.is_open else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Tokens that the next attention spans, and the offset of the first."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """-1: no bound."""
        return -1

    def get_max_cache_shape(self) -> int:
        """-1: no bound (the name that transformers used before 5.20)."""
        return -1

    def offload(self) -> None:
        """Nothing to do: pages move between tiers by themselves."""

    def prefetch(self) -> None:
        """Starts reading what the next attention misses in RAM."""
        self.table.prefetch(self.slot)

    def reset(self) -> None:
        """Part of the cache's `reset`."""
        self.is_initialized = False

    def crop(self, tokens_to_remove: int) -> NoReturn:
        """Always an error: layers share one page table."""
        self._whole_cache_only("crop")

    def reorder_cache(self, beam_idx: Tensor) -> NoReturn:
        """Always an error: layers share one page table."""
        self._whole_cache_only("reorder_cache")

    def batch_repeat_interleave(self, repeats: int) -> NoReturn:
        """Always an error: layers share one page table."""
        self._whole_cache_only("batch_repeat_interleave")

    def batch_select_indices(self, indices: Tensor) -> NoReturn:
        """Always an error: layers share one page table."""
        self._whole_cache_only("batch_select_indices")

    @staticmethod
    def _whole_cache_only(name: str) -> NoReturn:
        raise RuntimeError(
            f"call {name} on the TieredCache: its layers share one page table and change together"
        )
