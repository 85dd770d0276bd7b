"""Looking over a long context before reading it: which of its blocks the heads of a model agree on.

A model that meets more tokens than it was trained on finds a fact among them with few of its heads, and what
these fetch is lost among what the others read. So a question is processed twice: first on a fork, where
every block collects the cubes of its shares of the attention, over all layers, heads and tokens of the
question; then in earnest, where all heads read the blocks that collected most. docs/selection.md has the
measurements.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from stratakv.cache.selection import BLOCK_TOKENS, Look
from stratakv.hf.passes import feed

if TYPE_CHECKING:
    from stratakv.hf.cache import TieredCache

__all__ = ["agreed_blocks"]

POWER = 3
"""Of a share, as it counts: the few heads that fetch something look at one place much."""

OnToken = Callable[[int, int], None]


@torch.inference_mode()
def agreed_blocks(
    cache: TieredCache, model: nn.Module, ids: list[int], how: Look, on_token: OnToken | None
) -> list[int]:
    """The blocks that a model's heads agree on when it processes the end of a prompt, ascending.

    Args:
        cache: holds the beginning of the prompt, and selects; it stays as it is.
        model: the cache's.
        ids: the whole prompt.
        how: how to look.
        on_token: is told the tokens of the question that are done, and all of them.
    """
    selection = cache.selection
    assert selection is not None
    with cache.fork() as fork:
        fork.focus([])
        covered = int(fork.get_seq_length())
        first = max(covered, len(ids) - how.question)
        feed(model, fork, ids[covered:first])
        # Much is read, and nothing is left to sketches: their choice hides what few heads look for.
        fork.select(replace(selection, budget=how.budget, sketches=False, unread=1.0, dense_below=0))
        votes_N = _votes(fork, model, ids[first:], on_token)
    return _best(votes_N, selection.far_blocks(len(ids)), how)


def _votes(cache: TieredCache, model: nn.Module, question: list[int], on_token: OnToken | None) -> Tensor:
    """For each of N blocks (N), the cubes of its shares, over layers, heads and tokens of the question."""
    votes_N = torch.zeros(-(-(int(cache.get_seq_length()) + len(question)) // BLOCK_TOKENS))
    for done, token in enumerate(question, 1):
        feed(model, cache, [token])
        shares_LHN = cache.attention_shares()
        if shares_LHN is not None:
            votes_N[: shares_LHN.shape[-1]] += shares_LHN.pow_(POWER).sum((0, 1))
        if on_token is not None:
            on_token(done, len(question))
    return votes_N


def _best(votes_N: Tensor, far: range, how: Look) -> list[int]:
    """The far blocks of the most votes, with their neighbours."""
    order = votes_N[far.start : far.stop].argsort(descending=True, stable=True)[: how.places] + far.start
    places = [block for block in order.tolist() if votes_N[block] > 0]
    near = range(-how.neighbours, how.neighbours + 1)
    return sorted({place + by for place in places for by in near if place + by in far})
