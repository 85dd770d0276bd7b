"""Windows: what a memory's neighbours in its session add to it, for all memories of a session at once.

N memories in the order of their session, D elements of a vector. A memory counts for its neighbours by
`Question.WINDOW`, in units of which it counts the first for itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from stratakv._native import Question

# Neighbours on each side, and what they count by their distance.
REACH = len(Question.WINDOW) - 1
UNIT = Question.WINDOW[0]
STEPS = list(range(-REACH, REACH + 1))
UNITS = [Question.WINDOW[abs(step)] for step in STEPS]

Floats = npt.NDArray[np.float32]


def sums(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Of each row (N, ...) the sum over its window, in units."""
    total = values * UNIT
    for distance, units in enumerate(Question.WINDOW[1:], 1):
        total[distance:] += units * values[:-distance]
        total[:-distance] += units * values[distance:]
    return total


def directions(vectors: npt.ArrayLike) -> Floats:
    """Rows (N, D) of length 1; a row of zeros stays one."""
    # In float64: squares of tiny elements are nothing in less.
    rows = np.asarray(vectors, dtype=np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    made: Floats = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0).astype(np.float32)
    return made
