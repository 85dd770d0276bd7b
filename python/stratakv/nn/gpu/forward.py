"""Kernels of the forward pass: project, gather (with the mappings), write.

Letters: N tokens, S streams, C width, F = S * C, M = S (S + 2) numbers per token. Tensors are contiguous;
streams and what branches read and write have any float dtype, all else is float32, and so is every sum.
"""

from __future__ import annotations

import triton
import triton.language as tl

from stratakv.nn.gpu.sinkhorn import (
    matrix_logits,
    matrix_places,
    sinkhorn,
    vector_logits,
    vector_places,
)


@triton.jit
def tokens_of(TOKENS: tl.constexpr) -> tl.tensor:
    """The tokens of this program, in int64: streams have more than 2^31 elements soon."""
    return (tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)


@triton.jit
def stream_places(
    tokens: tl.tensor,
    num_tokens: tl.tensor,
    c: tl.tensor,
    width: tl.tensor,
    S: tl.constexpr,
    PADDED: tl.constexpr,
) -> tl.tensor:
    """(N, S, C): where the streams' elements are, and whether there are such."""
    s, there = vector_places(tokens, num_tokens, S, PADDED)
    places = (tokens[:, None] * S + s)[:, :, None] * width + c[None, None, :]
    return places, there[:, :, None] & (c < width)[None, None, :]


@triton.jit
def load_streams(
    x_NSC: tl.tensor,
    tokens: tl.tensor,
    num_tokens: tl.tensor,
    c: tl.tensor,
    width: tl.tensor,
    S: tl.constexpr,
    PADDED: tl.constexpr,
) -> tl.tensor:
    """(N, S, C) float32 of some tokens and columns."""
    places, there = stream_places(tokens, num_tokens, c, width, S, PADDED)
    return tl.load(x_NSC + places, there, 0.0).to(tl.float32)


@triton.jit
def store_streams(
    out_NSC: tl.tensor,
    value_NSC: tl.tensor,
    tokens: tl.tensor,
    num_tokens: tl.tensor,
    c: tl.tensor,
    width: tl.tensor,
    S: tl.constexpr,
    PADDED: tl.constexpr,
) -> None:
    """The other way; rounded to the dtype of `out_NSC`."""
    places, there = stream_places(tokens, num_tokens, c, width, S, PADDED)
    tl.store(out_NSC + places, value_NSC, there)


@triton.jit
def project_kernel(
    x_NF: tl.tensor,
    weight_MF: tl.tensor,
    numbers_NM: tl.tensor,
    inverse_rms_N: tl.tensor,
    num_tokens: tl.tensor,
    num_features: tl.tensor,
    norm_eps: tl.tensor,
    NUMBERS: tl.constexpr,
    PADDED_NUMBERS: tl.constexpr,
    TOKENS: tl.constexpr,
    FEATURES: tl.constexpr,
) -> None:
    """`mappings.project`: the norm is a factor after the product."""
    tokens = tokens_of(TOKENS)
    m = tl.arange(0, PADDED_NUMBERS)
    product_NM = tl.zeros((TOKENS, PADDED_NUMBERS), tl.float32)
    squares_N = tl.zeros((TOKENS,), tl.float32)
    for first in range(0, num_features, FEATURES):
        f = first + tl.arange(0, FEATURES)
        x = tl.load(
            x_NF + tokens[:, None] * num_features + f[None, :],
            (tokens < num_tokens)[:, None] & (f < num_features)[None, :],
            0.0,
        ).to(tl.float32)
        weight_FM = tl.load(
            weight_MF + m[None, :] * num_features + f[:, None],
            (m < NUMBERS)[None, :] & (f < num_features)[:, None],
            0.0,
        )
        # Three products of TF32 have the precision of one of float32.
        product_NM = tl.dot(x, weight_FM, product_NM, input_precision="tf32x3")
        squares_N += tl.sum(x * x, axis=1)
    inverse_N = tl.rsqrt(squares_N / num_features + norm_eps)
    there = (tokens < num_tokens)[:, None] & (m < NUMBERS)[None, :]
    tl.store(numbers_NM + tokens[:, None] * NUMBERS + m[None, :], product_NM * inverse_N[:, None], there)
    tl.store(inverse_rms_N + tokens, inverse_N, tokens < num_tokens)


@triton.jit
def gather_kernel(
    x_NSC: tl.tensor,
    numbers_NM: tl.tensor,
    bias_M: tl.tensor,
    scale_3: tl.tensor,
    input_NC: tl.tensor,
    post_NS: tl.tensor,
    comb_NSS: tl.tensor,
    num_tokens: tl.tensor,
    width: tl.tensor,
    eps: tl.tensor,
    S: tl.constexpr,
    PADDED: tl.constexpr,
    ITERS: tl.constexpr,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    """`mappings.mappings_of` and `mappings.gather`: what a branch reads, and what it is written with."""
    tokens = tokens_of(TOKENS)
    s, there_NS = vector_places(tokens, num_tokens, S, PADDED)
    entry, there_NSS = matrix_places(tokens, num_tokens, S, PADDED)
    post = 2.0 * tl.sigmoid(vector_logits(numbers_NM, bias_M, scale_3, 1, tokens, num_tokens, S, PADDED))
    tl.store(post_NS + tokens[:, None] * S + s, post, there_NS)
    logits = matrix_logits(numbers_NM, bias_M, scale_3, tokens, num_tokens, S, PADDED)
    comb, _, _ = sinkhorn(logits, there_NSS, eps, ITERS)
    tl.store(comb_NSS + tokens[:, None, None] * (S * S) + entry, comb, there_NSS)
    pre = tl.sigmoid(vector_logits(numbers_NM, bias_M, scale_3, 0, tokens, num_tokens, S, PADDED)) + eps
    for first in range(0, width, WIDTH):
        c = first + tl.arange(0, WIDTH)
        x = load_streams(x_NSC, tokens, num_tokens, c, width, S, PADDED)
        there = (tokens < num_tokens)[:, None] & (c < width)[None, :]
        tl.store(input_NC + tokens[:, None] * width + c[None, :], tl.sum(pre[:, :, None] * x, axis=1), there)


@triton.jit
def write_kernel(
    x_NSC: tl.tensor,
    y_NC: tl.tensor,
    post_NS: tl.tensor,
    comb_NSS: tl.tensor,
    out_NSC: tl.tensor,
    num_tokens: tl.tensor,
    width: tl.tensor,
    S: tl.constexpr,
    PADDED: tl.constexpr,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    """`mappings.scatter`: out[k] = sum over j of comb[j, k] x[j], plus post[k] y."""
    tokens = tokens_of(TOKENS)
    c = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    s, there_NS = vector_places(tokens, num_tokens, S, PADDED)
    entry, there_NSS = matrix_places(tokens, num_tokens, S, PADDED)
    x = load_streams(x_NSC, tokens, num_tokens, c, width, S, PADDED)
    y = tl.load(
        y_NC + tokens[:, None] * width + c[None, :],
        (tokens < num_tokens)[:, None] & (c < width)[None, :],
        0.0,
    ).to(tl.float32)
    post = tl.load(post_NS + tokens[:, None] * S + s, there_NS, 0.0)
    comb = tl.load(comb_NSS + tokens[:, None, None] * (S * S) + entry, there_NSS, 0.0)
    mixed = tl.sum(comb[:, :, :, None] * x[:, :, None, :], axis=1)
    store_streams(out_NSC, mixed + post[:, :, None] * y[:, None, :], tokens, num_tokens, c, width, S, PADDED)
