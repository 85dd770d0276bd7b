"""From projected numbers to mappings, and back through Sinkhorn's algorithm, in a kernel's registers.

Letters: N tokens of one program, S streams padded to a power of two, M = S (S + 2) numbers per token (S pre,
S post, S * S mixing logits, row by row). What is padding is masked, and zero in every matrix.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def vector_places(
    tokens: tl.tensor, num_tokens: tl.tensor, S: tl.constexpr, PADDED: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """(N, S): which stream each place is, and whether there is one."""
    s = tl.arange(0, PADDED)[None, :]
    return s, (s < S) & (tokens < num_tokens)[:, None]


@triton.jit
def matrix_places(
    tokens: tl.tensor, num_tokens: tl.tensor, S: tl.constexpr, PADDED: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """(N, S, S): row by row, which entry each place is, and whether there is one."""
    j, k = tl.arange(0, PADDED)[None, :, None], tl.arange(0, PADDED)[None, None, :]
    return j * S + k, (j < S) & (k < S) & (tokens < num_tokens)[:, None, None]


@triton.jit
def vector_logits(
    numbers: tl.tensor,
    bias: tl.tensor,
    scale: tl.tensor,
    which: tl.constexpr,
    tokens: tl.tensor,
    num_tokens: tl.tensor,
    S: tl.constexpr,
    PADDED: tl.constexpr,
) -> tl.tensor:
    """(N, S): the pre (`which` 0) or post (1) logits."""
    s, there = vector_places(tokens, num_tokens, S, PADDED)
    number_NS = tl.load(numbers + tokens[:, None] * (S * (S + 2)) + which * S + s, there, 0.0)
    return number_NS * tl.load(scale + which) + tl.load(bias + which * S + s, s < S, 0.0)


@triton.jit
def matrix_logits(
    numbers: tl.tensor,
    bias: tl.tensor,
    scale: tl.tensor,
    tokens: tl.tensor,
    num_tokens: tl.tensor,
    S: tl.constexpr,
    PADDED: tl.constexpr,
) -> tl.tensor:
    """(N, S, S): the mixing logits."""
    entry, there = matrix_places(tokens, num_tokens, S, PADDED)
    number_NSS = tl.load(numbers + tokens[:, None, None] * (S * (S + 2)) + 2 * S + entry, there, 0.0)
    j, k = tl.arange(0, PADDED)[None, :, None], tl.arange(0, PADDED)[None, None, :]
    return number_NSS * tl.load(scale + 2) + tl.load(bias + 2 * S + entry, (j < S) & (k < S), 0.0)


@triton.jit
def nonzero(x: tl.tensor) -> tl.tensor:
    """What is divided by: sums of padding are zero, and 1 keeps it so."""
    return tl.where(x == 0.0, 1.0, x)


@triton.jit
def sinkhorn(
    logits_NSS: tl.tensor, there_NSS: tl.tensor, eps: tl.tensor, ITERS: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tuple[tl.tensor, ...]]:
    """The mixing matrix, the softmax that it began as, and the inverse sums of each normalisation.

    `mixings.sinkhorn` is the reference. The first normalisation is of columns (sums over axis 1).
    """
    largest_NS = tl.max(tl.where(there_NSS, logits_NSS, -float("inf")), axis=2)
    largest_NS = tl.where(largest_NS == -float("inf"), 0.0, largest_NS)
    power_NSS = tl.exp(tl.where(there_NSS, logits_NSS - largest_NS[:, :, None], -float("inf")))
    softmax_NSS = power_NSS / nonzero(tl.sum(power_NSS, axis=2))[:, :, None]
    comb_NSS = tl.where(there_NSS, softmax_NSS + eps, 0.0)
    trail = ()
    for step in tl.static_range(2 * ITERS - 1):
        inverse_NS = 1.0 / nonzero(tl.sum(comb_NSS, axis=1 + step % 2) + eps)
        comb_NSS = comb_NSS * tl.expand_dims(inverse_NS, 1 + step % 2)
        trail = trail + (inverse_NS,)  # type: ignore[assignment]
    return comb_NSS, softmax_NSS, trail


@triton.jit
def sinkhorn_backward(
    grad_NSS: tl.tensor,
    comb_NSS: tl.tensor,
    softmax_NSS: tl.tensor,
    trail: tl.tensor,  # a tuple, but Triton takes no such annotation
    ITERS: tl.constexpr,
) -> tl.tensor:
    """The gradient of the logits from that of the mixing matrix.

    Of y = m / sum(m) it is (dy - sum(dy y)) / sum(m). The matrices between are not kept: dividing by the
    inverse sums undoes a normalisation, as exactly as it was done.
    """
    for step in tl.static_range(2 * ITERS - 1):
        # Backwards, from columns, as it ended, to columns, as it began.
        inverse_NSS = tl.expand_dims(trail[2 * ITERS - 2 - step], 1 + step % 2)
        dot_NSS = tl.expand_dims(tl.sum(grad_NSS * comb_NSS, axis=1 + step % 2), 1 + step % 2)
        grad_NSS = (grad_NSS - dot_NSS) * inverse_NSS
        comb_NSS = comb_NSS / inverse_NSS
    dot_NS = tl.sum(grad_NSS * softmax_NSS, axis=2)
    return softmax_NSS * (grad_NSS - dot_NS[:, :, None])
