"""Which blocks of a context have the rare tokens of a question: BM25 over token ids.

What the heads of a small model look at misses a block now and then that says the very words of the question.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from stratakv.cache.selection import BLOCK_TOKENS

# BM25's saturation of a count, as in the engine's recall. All windows are of one length: b has no part.
K1 = 0.9


def word_scores(ids: Sequence[int], question: Sequence[int], *, neighbours: int) -> npt.NDArray[np.float64]:
    """For each of N blocks (N,) what it and its neighbours have of a question's tokens, 0 for nothing.

    Args:
        ids: the context's token ids.
        question: the question's.
        neighbours: blocks on each side that count as one text with a block.
    """
    tokens = np.asarray(ids)
    num_blocks = -(-len(tokens) // BLOCK_TOKENS)
    scores = np.zeros(num_blocks)
    for token in set(question):
        blocks = np.flatnonzero(tokens == token) // BLOCK_TOKENS
        if not len(blocks):
            continue
        counts = np.bincount(blocks, minlength=num_blocks)
        near = np.convolve(counts, np.ones(2 * neighbours + 1), "full")[neighbours : neighbours + num_blocks]
        having = np.count_nonzero(near)
        rarity = np.log1p((num_blocks - having + 0.5) / (having + 0.5))
        scores += rarity * near * (K1 + 1) / (near + K1)
    return scores
