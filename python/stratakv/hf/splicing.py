"""Taking over what another cache holds, at another place of the sequence, without computing it again.

Keys are kept without positions, so a run of tokens can stand anywhere: its keys and values are copied, and
get the positions of where they are read. They are what they were in the cache that they come from, as if what
this one holds before them were not there: an approximation, whose price docs/memory.md has.

Sources: text chunks used again behind other text, Yao et al., "CacheBlend", 2024 (arXiv:2405.16444); the
first of their tokens computed again, Hu et al., "EPIC", 2024 (arXiv:2410.15332).
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import torch

from stratakv.hf.layers import TieredLayer
from stratakv.hf.tokens import MASKED_BIT

if TYPE_CHECKING:
    from stratakv.hf.cache import TieredCache

__all__ = ["check_paged", "splice"]

COPY_TOKENS = 4096
"""Tokens of a layer that are copied at once."""


def splice(cache: TieredCache, source: TieredCache, start: int, stop: int | None) -> int:
    """The body of `TieredCache.splice`."""
    stop = int(source.get_seq_length()) if stop is None else stop
    _check_caches(cache, source)
    _check_range(source, start, stop)
    if start == stop:
        return 0
    held = int(cache.get_seq_length())
    _note(cache, source, start, stop)
    try:
        for mine, theirs in zip(cache.layers, source.layers, strict=True):
            _copy(mine, theirs, start, stop)
    except BaseException:
        # Layers of several lengths are no cache: it holds what it held.
        cache._table.crop(held)
        raise
    return stop - start


def _copy(mine: TieredLayer, theirs: TieredLayer, start: int, stop: int) -> None:
    """Appends tokens [start, stop) of one layer to another's."""
    snapshot = theirs.table.snapshot(theirs.slot, torch.device("cpu"))
    for first in range(start, stop, COPY_TOKENS):
        keys_BHTD, values_BHTD = snapshot.gather(first, min(first + COPY_TOKENS, stop))
        if not mine.is_initialized:
            mine.lazy_initialization(keys_BHTD, values_BHTD)
            mine.device = theirs.device
        mine.table.append(mine.slot, keys_BHTD, values_BHTD)


def _note(cache: TieredCache, source: TieredCache, start: int, stop: int) -> None:
    """Tells the ids, and that more than they and what precedes them here made the values.

    Caches that splice the same share pages. Where what made the values is not known from ids alone (images),
    none does.
    """
    ids = source._table.native.token_ids(0)
    if ids is None:
        return  # pages of unknown tokens stay private
    salted_from = source._salted_from
    if salted_from is not None and salted_from < stop:
        salt = os.urandom(16)
    else:
        made_by = f"spliced\0{start}\0{source._table.planes}\0{ids[:stop]}"
        salt = hashlib.blake2b(made_by.encode(), digest_size=16).digest()
    cache._table.native.note_tokens([ids[start:stop]], salt)


def check_paged(cache: TieredCache) -> None:
    """Refuses a model of which a text's state is not all in pages.

    Raises:
        ValueError: it has such layers; the message names them.
    """
    others = {type(layer).__name__ for layer in cache._other_layers().values()}
    if others:
        raise ValueError(
            f"the model has layers that keep no pages ({', '.join(sorted(others))}): what they hold depends "
            "on all that came before and can't be spliced; compute these tokens instead"
        )


def _check_caches(cache: TieredCache, source: TieredCache) -> None:
    """Refuses caches of which one can't take over from the other."""
    if cache.attachment is None or source.attachment is None:
        raise ValueError(
            "splice needs keys without positions: open both caches inside `with stratakv.attach(model):`"
        )
    if cache.binding is not source.binding:
        raise ValueError("splice takes from a cache of the same model; this one is another's")
    check_paged(cache)
    if source._num_rows() != 1 or cache._num_rows() > 1 or cache._mask is not None:
        raise ValueError(
            f"splice takes one row into one without padding; these caches have {source._num_rows()} and "
            f"{cache._num_rows()} rows"
        )
    mine, theirs = cache._table.geometry, source._table.geometry
    if cache.get_seq_length() and mine != theirs:
        raise ValueError(f"the layers differ: {mine[0]} here, {theirs[0]} in the other cache")


def _check_range(source: TieredCache, start: int, stop: int) -> None:
    length = int(source.get_seq_length())
    if not 0 <= start <= stop <= length:
        raise ValueError(f"splice of tokens {start} to {stop}: the other cache has {length}")
    ids = source._table.native.token_ids(0) or []
    if any(token & MASKED_BIT for token in ids[:stop]):
        raise ValueError("splice takes text without padding, and the other cache has some")
