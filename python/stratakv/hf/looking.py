"""Looking over a long context before reading it: where it answers a question.

A model that meets more tokens than it was trained on finds a fact among them with few of its heads, and what
these fetch is lost among what the others read. So a question is processed several times. First on a fork,
where every block collects the cubes of its shares of the attention, over all layers, heads and tokens of the
question. The places that collected most, and those with the question's rare words, are then read one at a
time: each makes the question more or less likely (Sachan et al., "Improving Passage Retrieval with Zero-Shot
Question Generation", 2022). At last, in earnest, all heads read the few places that make it most likely.
docs/selection.md has the measurements.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from stratakv.cache.selection import BLOCK_TOKENS, Look
from stratakv.hf.compat import cache_kwargs
from stratakv.hf.lexical import word_scores
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
    """The blocks in which a model finds the end of a prompt answered, ascending.

    Args:
        cache: holds the beginning of the prompt, and selects; it stays as it is.
        model: the cache's.
        ids: the whole prompt.
        how: how to look.
        on_token: is told the steps that are done, and all of them.
    """
    selection = cache.selection
    assert selection is not None
    far = selection.far_blocks(len(ids))
    with cache.fork() as fork:
        fork.focus([])
        covered = int(fork.get_seq_length())
        first = max(covered, len(ids) - how.question)
        feed(model, fork, ids[covered:first])
        question = ids[first:]
        steps = _Steps(len(question) + 2 * how.candidates, on_token)
        with fork.fork() as voting:
            # Much is read, and nothing is left to sketches: their choice hides what few heads look for.
            asked = replace(selection, budget=how.budget, recent=0.0, sketches=False)
            voting.select(replace(asked, unread=1.0, dense_below=0))
            votes_N = _votes(voting, model, question, steps)
        if not how.candidates:
            return _around(_places(votes_N, far, how, how.places), far, how)
        words_N = torch.from_numpy(word_scores(ids[:first], question, neighbours=how.neighbours))
        by_votes, by_words = (_places(one, far, how, how.candidates) for one in (votes_N, words_N))
        # Of both kinds there may be two that overlap: one of them may be nearer.
        places = list(dict.fromkeys([*by_votes, *by_words]))
        likelihoods = [_likelihood(fork, model, question, _around([one], far, how), steps) for one in places]
    return _around(_likely(places, likelihoods, how), far, how)


class _Steps:
    """Counts steps, and tells of each."""

    def __init__(self, total: int, on_token: OnToken | None) -> None:
        self._total = total
        self._on_token = on_token
        self._done = 0

    def add(self) -> None:
        self._done += 1
        if self._on_token is not None:
            self._on_token(self._done, self._total)


def _votes(cache: TieredCache, model: nn.Module, question: list[int], steps: _Steps) -> Tensor:
    """For each of N blocks (N), the cubes of its shares, over layers, heads and tokens of the question."""
    votes_N = torch.zeros(-(-(int(cache.get_seq_length()) + len(question)) // BLOCK_TOKENS))
    for token in question:
        feed(model, cache, [token])
        shares_LHN = cache.attention_shares()
        if shares_LHN is not None:
            votes_N[: shares_LHN.shape[-1]] += shares_LHN.pow_(POWER).sum((0, 1))
        steps.add()
    return votes_N


def _likelihood(
    cache: TieredCache, model: nn.Module, question: list[int], blocks: list[int], steps: _Steps
) -> float:
    """The log likelihood of a question's tokens but the first, where nothing is read but some blocks."""
    cache.focus(blocks, 0)
    ids_BT = torch.tensor([question], device=next(model.parameters()).device)
    logits_TV = model(input_ids=ids_BT, use_cache=True, **cache_kwargs(cache)).logits[0].float()
    cache.crop(-len(question))
    steps.add()
    return -float(torch.nn.functional.cross_entropy(logits_TV[:-1], ids_BT[0, 1:], reduction="sum"))


def _places(scores_N: Tensor, far: range, how: Look, count: int) -> list[int]:
    """The far blocks of the highest scores, the best first; with `candidates`, none beside a better one."""
    scores = scores_N[far.start : far.stop]
    # Whatever stands beside a better one is passed over: so many more may have to be looked at.
    looked_at = count * (2 * how.neighbours + 1 if how.candidates else 1)
    order = scores.argsort(descending=True, stable=True)[:looked_at]
    places = [far.start + int(at) for at in order if scores[at] > 0]
    return (_apart(places, how) if how.candidates else places)[:count]


def _apart(places: list[int], how: Look) -> list[int]:
    """Of some places those that are no neighbours of an earlier one."""
    kept: list[int] = []
    for place in places:
        if all(abs(place - other) > how.neighbours for other in kept):
            kept.append(place)
    return kept


def _likely(places: list[int], likelihoods: list[float], how: Look) -> list[int]:
    """The places that make the question most likely, the best first, none beside a better one."""
    order = sorted(range(len(places)), key=lambda at: -likelihoods[at])
    return _apart([places[at] for at in order], how)[: how.places]


def _around(places: list[int], far: range, how: Look) -> list[int]:
    """Places with their neighbours, ascending."""
    near = range(-how.neighbours, how.neighbours + 1)
    return sorted({place + by for place in places for by in near if place + by in far})
