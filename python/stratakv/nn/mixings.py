"""Residual mixing matrices from logits: the ways in which streams may be mixed.

Every function takes (..., L) logits and gives (..., S, S) matrices `comb`, where `comb[j, k]` is what
stream j gives to stream k: the transpose of the papers' H_res. No parameters live here.

S streams, L logits of one matrix.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor

MixingName = Literal["sinkhorn", "permutations", "kronecker", "unconstrained"]
# 120 permutations; one stream more has 720 logits per token and connection.
PERMUTATION_STREAMS_MAX = 5


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """What mappings are computed in: float32, or float64 for those who bring it."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def sinkhorn(logits_SS: Tensor, *, num_iters: int = 20, eps: float = 1e-6) -> Tensor:
    """Pushes logits towards doubly stochastic matrices.

    Args:
        logits_SS: (..., S, S), any float dtype; computed in float32 (float64 stays float64).
        num_iters: sweeps over rows and columns, at least 1.
        eps: added to the softmax and to every sum that is divided by.

    Returns:
        (..., S, S) in the dtype of the computation. Sums over the second last dimension are 1 up to
        `eps` and rounding; those over the last approach 1 with more sweeps, slowly where the logits
        are far apart.

    Raises:
        ValueError: the last two dimensions differ, or num_iters < 1.

    Source: mHC (arXiv 2512.24880), section 4.2, in the order and with the `eps` of DeepSeek's published
    code. The paper's exponential and first column step of H_res are the softmax over rows of its transpose.
    """
    if logits_SS.dim() < 2 or logits_SS.shape[-1] != logits_SS.shape[-2]:
        raise ValueError(f"expected (..., S, S) logits, not {tuple(logits_SS.shape)}")
    if num_iters < 1:
        raise ValueError(f"num_iters must be at least 1, not {num_iters}")
    comb = logits_SS.to(accumulation_dtype(logits_SS.dtype)).softmax(-1) + eps
    comb = comb / (comb.sum(-2, keepdim=True) + eps)
    for _ in range(num_iters - 1):
        comb = comb / (comb.sum(-1, keepdim=True) + eps)
        comb = comb / (comb.sum(-2, keepdim=True) + eps)
    return comb


@cache
def permutation_matrices(num_streams: int) -> Tensor:
    """(S!, S, S) float32, the identity first."""
    orders = list(itertools.permutations(range(num_streams)))
    matrices = torch.zeros(len(orders), num_streams, num_streams)
    for matrix, order in zip(matrices, orders, strict=True):
        matrix[range(num_streams), order] = 1
    return matrices


def permutation_mixture(logits_L: Tensor, num_streams: int) -> Tensor:
    """A convex combination of all permutation matrices: doubly stochastic up to rounding (Birkhoff).

    Args:
        logits_L: (..., S!), of the softmax that weighs them.
        num_streams: S, at most 5.

    Returns:
        (..., S, S) in the dtype of the computation.

    Source: mHC-lite (arXiv 2601.05732).
    """
    weights = logits_L.to(accumulation_dtype(logits_L.dtype)).softmax(-1)
    matrices = permutation_matrices(num_streams).to(weights)
    return (weights @ matrices.flatten(1)).reshape(*weights.shape[:-1], num_streams, num_streams)


def kronecker_product(logits_L: Tensor, num_streams: int) -> Tensor:
    """A Kronecker product of 2x2 doubly stochastic matrices: doubly stochastic up to rounding.

    Args:
        logits_L: (..., log2 S); the sigmoid of each is the diagonal of one factor.
        num_streams: S, a power of two.

    Returns:
        (..., S, S) in the dtype of the computation.

    Source: KromHC (arXiv 2601.21579), with factors of two streams.
    """
    logits_L = logits_L.to(accumulation_dtype(logits_L.dtype))
    stay, swap = logits_L.sigmoid().unbind(-1), (-logits_L).sigmoid().unbind(-1)
    comb = logits_L.new_ones(*logits_L.shape[:-1], 1, 1)
    for a, b in zip(stay, swap, strict=True):
        factor = torch.stack([torch.stack([a, b], -1), torch.stack([b, a], -1)], -2)
        size = comb.shape[-1] * 2
        comb = torch.einsum("...ij,...kl->...ikjl", comb, factor).reshape(*logits_L.shape[:-1], size, size)
    assert comb.shape[-1] == num_streams, (comb.shape, num_streams)
    return comb


@dataclass(frozen=True)
class Mixing:
    """One way to mix.

    Attributes:
        num_logits: S to L.
        check: raises ValueError for a number of streams that it does not have.
        initial: (S, d) to (L,) logits whose matrix has d on its diagonal and the rest spread evenly
            (kronecker: as evenly as its form allows).
    """

    num_logits: Callable[[int], int]
    check: Callable[[int], None]
    initial: Callable[[int, float], Tensor]


def mixing_of(name: str) -> Mixing:
    """The mixing of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in MIXINGS:
        raise ValueError(f"mixing must be one of {', '.join(get_args(MixingName))}, not {name!r}")
    return MIXINGS[name]


def _even_matrix(num_streams: int, diagonal: float) -> Tensor:
    """(S, S) with d on the diagonal, rows and columns summing to 1."""
    rest = (1 - diagonal) / (num_streams - 1)
    return torch.full((num_streams, num_streams), rest).fill_diagonal_(diagonal)


def _initial_permutations(num_streams: int, diagonal: float) -> Tensor:
    """The identity, and every other permutation alike, so that all diagonal entries are d."""
    matrices = permutation_matrices(num_streams)
    # Of the others, (S-1)! - 1 keep any given stream.
    keeping = (math.factorial(num_streams - 1) - 1) / (len(matrices) - 1)
    identity = (diagonal - keeping) / (1 - keeping)
    weights = torch.full((len(matrices),), (1 - identity) / (len(matrices) - 1))
    weights[0] = identity
    return weights.log()


def _initial_kronecker(num_streams: int, diagonal: float) -> Tensor:
    """Equal factors, whose diagonals multiply to d."""
    num_factors = num_streams.bit_length() - 1
    return torch.full((num_factors,), diagonal ** (1 / num_factors)).logit()


def _check_any(num_streams: int) -> None:
    pass


def _check_permutations(num_streams: int) -> None:
    if num_streams > PERMUTATION_STREAMS_MAX:
        raise ValueError(
            f"permutations need {math.factorial(num_streams)} logits for {num_streams} streams: "
            f"use at most {PERMUTATION_STREAMS_MAX}, or another mixing"
        )


def _check_kronecker(num_streams: int) -> None:
    if num_streams & (num_streams - 1):
        raise ValueError(f"kronecker needs a power of two of streams, not {num_streams}")


MIXINGS: dict[str, Mixing] = {
    "sinkhorn": Mixing(lambda s: s * s, _check_any, lambda s, d: _even_matrix(s, d).log().flatten()),
    "permutations": Mixing(math.factorial, _check_permutations, _initial_permutations),
    "kronecker": Mixing(lambda s: s.bit_length() - 1, _check_kronecker, _initial_kronecker),
    "unconstrained": Mixing(lambda s: s * s, _check_any, lambda s, d: _even_matrix(s, d).flatten()),
}
