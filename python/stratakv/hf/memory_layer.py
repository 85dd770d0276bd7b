"""What a conditional memory knows of the tokens before, as a layer of a transformers cache.

A cache has one of them for each memory of a model, after the blocks' own layers. It steps back, moves
rows, is saved and forked like any other layer, in `DynamicCache` as in `TieredCache`.

B rows, T tokens, S streams.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from stratakv.nn.conditional_memory import MemoryState


class MemoryLayer(MemoryState, DynamicLayer):  # type: ignore[misc]  # transformers is untyped
    """A `MemoryState` that has what caches call. It stays where its tensors are: it is small."""

    is_compileable = False
    is_sliding = False
    is_croppable = True
    supports_early_init = False

    def __init__(self, **kwargs: Any) -> None:
        DynamicLayer.__init__(self, **kwargs)
        MemoryState.__init__(self)

    def append(self, ids_BT: Tensor, gates_BTS: Tensor) -> None:
        """Adds tokens to the end."""
        super().append(ids_BT, gates_BTS)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> NoReturn:
        """Always an error: a memory has no keys and values."""
        raise RuntimeError("this layer of the cache is a conditional memory's: it has no keys and values")

    def get_seq_length(self) -> int:
        """Tokens held."""
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """As for attention; nothing asks."""
        return self.length + query_length, 0

    def offload(self) -> None:
        """Nothing to do."""

    def prefetch(self) -> None:
        """Nothing to do."""

    def reset(self) -> None:
        """Forgets everything, in place."""
        self.clear()
        self.is_initialized = False

    def crop(self, tokens_to_remove: int) -> None:
        """Removes the last `-tokens_to_remove` tokens.

        Raises:
            ValueError: a positive number.
        """
        if tokens_to_remove > 0:
            raise ValueError(f"crop({tokens_to_remove}): pass a negative number of tokens to remove, or 0")
        self.drop_last(-tokens_to_remove)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes what row `beam_idx[i]` was."""
        self.take_rows(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every row, in place (r0 r0 r1 r1)."""
        if self.ids is not None:
            self.take_rows(torch.arange(self.ids.shape[0]).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps the rows that an index or bool tensor selects."""
        if self.ids is not None:
            self.take_rows(torch.arange(self.ids.shape[0])[indices.to("cpu")])


def memory_layers(cache: Any, config: Any) -> dict[int, MemoryLayer] | None:
    """A cache's layers for the memories of a model, by block; made where they are missing.

    Args:
        cache: of any kind whose layers are a list; None for none.
        config: a `StrataConfig` with memories.

    Raises:
        ValueError: a cache whose layers after the blocks' are something else, or that has tokens already
            which its memories do not know.
    """
    if cache is None:
        return None
    num_blocks, wanted = config.num_hidden_layers, config.memory["layers"]
    while len(cache.layers) < num_blocks:  # a DynamicCache that was made without a config
        cache.layers.append(cache.layer_class_to_replicate())
    if len(cache.layers) == num_blocks and cache.get_seq_length():
        raise ValueError(
            f"the cache holds {cache.get_seq_length()} tokens that this model's memories have not seen: "
            "give an empty cache, or the one that this model filled"
        )
    while len(cache.layers) < num_blocks + len(wanted):
        cache.layers.append(MemoryLayer())
    layers = cache.layers[num_blocks:]
    if len(layers) != len(wanted) or not all(isinstance(layer, MemoryLayer) for layer in layers):
        raise ValueError(f"a {type(cache).__name__} of another model: make one from this model's config")
    return dict(zip(wanted, layers, strict=True))


def text_only(ids_BT: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Ids with a negative one in place of padding, which is no text.

    Args:
        ids_BT: (B, T).
        attention_mask: (B, P + T) of the tokens before and these, or None; masks of other shapes hide
            tokens from some queries only, and stay text.
    """
    if attention_mask is None or attention_mask.dim() != 2 or attention_mask.shape[1] < ids_BT.shape[1]:
        return ids_BT
    is_seen_BT = attention_mask[:, attention_mask.shape[1] - ids_BT.shape[1] :] != 0
    return torch.where(is_seen_BT, ids_BT, -1)
