"""What the bytes of a block's summary are, and queries in the form that scores take.

A summary (docs/selection.md) has the mean key in 4 bits an element, and what the slow elements of each
token's key differ by from it, turned by Hadamard matrices, in 2 bits an element and a scale of 4 bits a
token. The engine makes them; this file only reads them.

Letters: B rows, H KV heads, G query heads of a group, D elements of a key, L slow elements, padded,
F places to score from.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from stratakv.cache.rotary import Rotary
from stratakv.cache.selection import BLOCK_TOKENS

_MEAN_PAD = 32
_ROW_PAD = 8
_WORD = 16  # codes of a 4-byte word
_FEW_ELEMENTS = 24


@dataclass(frozen=True)
class SummaryLayout:
    """Where the parts of a summary are, in bytes.

    Attributes:
        key_dim: D.
        slow: elements whose residuals are kept, ascending.
    """

    key_dim: int
    slow: tuple[int, ...]

    @classmethod
    def of(cls, rotary: Rotary, key_dim: int) -> SummaryLayout:
        """The engine's layout for keys of a rotary: the three eighths that turn slowest are slow."""
        frequencies = [0.0] * key_dim
        for pair, frequency in enumerate(rotary.inv_freq):
            ends = (2 * pair, 2 * pair + 1) if rotary.interleaved else (pair, pair + len(rotary.inv_freq))
            for element in ends:
                frequencies[element] = abs(frequency)
        order = sorted(range(key_dim), key=frequencies.__getitem__)
        return cls(key_dim, tuple(sorted(order[: max(key_dim * 3 // 8, _FEW_ELEMENTS)])))

    @property
    def num_slow(self) -> int:
        """L."""
        return -(-max(len(self.slow), 1) // _ROW_PAD) * _ROW_PAD

    @property
    def mean_bytes(self) -> int:
        """Bytes of the mean key: byte j has element j, and element j + mean_bytes in its high half."""
        return -(-self.key_dim // _MEAN_PAD) * _MEAN_PAD // 2

    @property
    def word_groups(self) -> int:
        """Groups of 16 slow elements; 8 more may follow."""
        return self.num_slow // _WORD

    @property
    def steps_start(self) -> int:
        """Where the tokens' scales are: byte t % 8 of 8 has token t's in its low or high half, less 1."""
        return self.mean_bytes + BLOCK_TOKENS * self.num_slow // 4

    @property
    def scales_start(self) -> int:
        """Where the float16 scales of the mean and of the residuals are."""
        return self.steps_start + BLOCK_TOKENS // 2

    @property
    def num_bytes(self) -> int:
        """Bytes of a summary."""
        return self.scales_start + 4

    @property
    def largest_step(self) -> int:
        """Largest magnitude of an element of a turned query: so many that sums fit the engine's integers."""
        return min(32767 // (6 * (self.num_slow // 4)), 127)


@dataclass(frozen=True)
class Asked:
    """Queries as scores take them, from F places each.

    Attributes:
        whole: (B, H, F, G, D) float32.
        slow: (B, H, F, G, L) float16, whole numbers.
        steps: (B, H, F, G) float32, what one of these numbers stands for.
    """

    whole: Tensor
    slow: Tensor
    steps: Tensor


def arrange(queries_BHFGD: Tensor, layout: SummaryLayout) -> Asked:
    """Brings float32 queries, relative to the pages that they score, into the form that scores take.

    The turned slow elements are rounded to 8 bits, as the engine does: products with the 2-bit codes are then
    exact in float16 with float32 sums.
    """
    slow = queries_BHFGD @ _slow_turn(layout, queries_BHFGD.device)
    steps = slow.abs().amax(-1) / layout.largest_step
    inverse = torch.where(steps > 0, 1 / steps, 0.0)
    scaled = slow * inverse[..., None]
    # To nearest, halves away from zero.
    whole_numbers = torch.trunc(scaled + 0.5 * scaled.sign())
    return Asked(queries_BHFGD, whole_numbers.half(), steps)


@lru_cache(maxsize=16)
def _slow_turn(layout: SummaryLayout, device: torch.device) -> Tensor:
    """(D, L): what turns a key or query into its turned slow elements, by the largest matrices that fit."""
    turn_LL = torch.zeros(layout.num_slow, layout.num_slow)
    start = 0
    while start < layout.num_slow:
        size = 1 << (layout.num_slow - start).bit_length() - 1
        turn_LL[start : start + size, start : start + size] = _hadamard(size)
        start += size
    matrix_DL = torch.zeros(layout.key_dim, layout.num_slow)
    matrix_DL[list(layout.slow)] = turn_LL[: len(layout.slow)]
    return matrix_DL.to(device)


def _hadamard(size: int) -> Tensor:
    """The normalised Walsh-Hadamard matrix of 2^n elements."""
    matrix: Tensor = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix.mul(size**-0.5)
