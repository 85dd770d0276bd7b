"""Kernels of the backward pass: of what `forward.py` computes. Letters and dtypes as there.

The mixed streams count as an output of the reading (`fused.py`), so that all that reaches the streams is
written once, by `streams_backward_kernel`. Mappings are computed again, from the numbers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from stratakv.nn.gpu.forward import load_streams, store_streams, tokens_of
from stratakv.nn.gpu.sinkhorn import (
    matrix_logits,
    matrix_places,
    sinkhorn,
    sinkhorn_backward,
    vector_logits,
    vector_places,
)


@triton.jit
def write_backward_kernel(
    y_NC: tl.tensor,
    post_NS: tl.tensor,
    grad_NSC: tl.tensor,
    to_y_NC: tl.tensor,
    to_post_NS: tl.tensor,
    num_tokens: tl.tensor,
    width: tl.tensor,
    S: tl.constexpr,
    PADDED: tl.constexpr,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    """Of the branch's output and of post."""
    tokens = tokens_of(TOKENS)
    s, there_NS = vector_places(tokens, num_tokens, S, PADDED)
    post = tl.load(post_NS + tokens[:, None] * S + s, there_NS, 0.0)
    to_post = tl.zeros((TOKENS, PADDED), tl.float32)
    for first in range(0, width, WIDTH):
        c = first + tl.arange(0, WIDTH)
        there = (tokens < num_tokens)[:, None] & (c < width)[None, :]
        y = tl.load(y_NC + tokens[:, None] * width + c[None, :], there, 0.0).to(tl.float32)
        grad = load_streams(grad_NSC, tokens, num_tokens, c, width, S, PADDED)
        tl.store(
            to_y_NC + tokens[:, None] * width + c[None, :], tl.sum(post[:, :, None] * grad, axis=1), there
        )
        to_post += tl.sum(grad * y[:, None, :], axis=2)
    tl.store(to_post_NS + tokens[:, None] * S + s, to_post, there_NS)


@triton.jit
def mappings_backward_kernel(
    x_NSC: tl.tensor,
    numbers_NM: tl.tensor,
    bias_M: tl.tensor,
    scale_3: tl.tensor,
    input_grad_NC: tl.tensor,
    mixed_grad_NSC: tl.tensor,
    pre_grad_NS: tl.tensor,
    post_grad_NS: tl.tensor,
    comb_grad_NSS: tl.tensor,
    comb_NSS: tl.tensor,
    logit_grad_NM: tl.tensor,
    num_tokens: tl.tensor,
    width: tl.tensor,
    eps: tl.tensor,
    S: tl.constexpr,
    PADDED: tl.constexpr,
    ITERS: tl.constexpr,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    """Of the logits, (N, M); and the mixing matrix again, which the streams' gradient needs."""
    tokens = tokens_of(TOKENS)
    s, there_NS = vector_places(tokens, num_tokens, S, PADDED)
    entry, there_NSS = matrix_places(tokens, num_tokens, S, PADDED)
    to_pre = tl.load(pre_grad_NS + tokens[:, None] * S + s, there_NS, 0.0)
    to_post = tl.load(post_grad_NS + tokens[:, None] * S + s, there_NS, 0.0)
    to_comb = tl.load(comb_grad_NSS + tokens[:, None, None] * (S * S) + entry, there_NSS, 0.0)
    for first in range(0, width, WIDTH):
        c = first + tl.arange(0, WIDTH)
        x = load_streams(x_NSC, tokens, num_tokens, c, width, S, PADDED)
        mixed_grad = load_streams(mixed_grad_NSC, tokens, num_tokens, c, width, S, PADDED)
        input_grad = tl.load(
            input_grad_NC + tokens[:, None] * width + c[None, :],
            (tokens < num_tokens)[:, None] & (c < width)[None, :],
            0.0,
        ).to(tl.float32)
        to_pre += tl.sum(x * input_grad[:, None, :], axis=2)
        to_comb += tl.sum(x[:, :, None, :] * mixed_grad[:, None, :, :], axis=3)
    pre = tl.sigmoid(vector_logits(numbers_NM, bias_M, scale_3, 0, tokens, num_tokens, S, PADDED))
    half_post = tl.sigmoid(vector_logits(numbers_NM, bias_M, scale_3, 1, tokens, num_tokens, S, PADDED))
    logits = matrix_logits(numbers_NM, bias_M, scale_3, tokens, num_tokens, S, PADDED)
    comb, softmax, trail = sinkhorn(logits, there_NSS, eps, ITERS)
    tl.store(comb_NSS + tokens[:, None, None] * (S * S) + entry, comb, there_NSS)
    of_tokens = logit_grad_NM + tokens[:, None] * (S * (S + 2))
    tl.store(of_tokens + s, to_pre * pre * (1.0 - pre), there_NS)
    tl.store(of_tokens + S + s, 2.0 * to_post * half_post * (1.0 - half_post), there_NS)
    to_logits = sinkhorn_backward(to_comb, comb, softmax, trail, ITERS)
    tl.store(of_tokens[:, :, None] + 2 * S + entry, to_logits, there_NSS)


@triton.jit
def streams_backward_kernel(
    x_NSC: tl.tensor,
    weight_MF: tl.tensor,
    numbers_NM: tl.tensor,
    bias_M: tl.tensor,
    scale_3: tl.tensor,
    comb_NSS: tl.tensor,
    product_grad_NM: tl.tensor,
    norm_grad_N: tl.tensor,
    input_grad_NC: tl.tensor,
    mixed_grad_NSC: tl.tensor,
    to_x_NSC: tl.tensor,
    num_tokens: tl.tensor,
    width: tl.tensor,
    eps: tl.tensor,
    S: tl.constexpr,
    PADDED: tl.constexpr,
    PADDED_NUMBERS: tl.constexpr,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    """Of the streams: through what the branch read, through mixing, through the products and their norm."""
    tokens = tokens_of(TOKENS)
    c = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    there_NC = (tokens < num_tokens)[:, None] & (c < width)[None, :]
    s, _ = vector_places(tokens, num_tokens, S, PADDED)
    entry, there_NSS = matrix_places(tokens, num_tokens, S, PADDED)
    pre = tl.sigmoid(vector_logits(numbers_NM, bias_M, scale_3, 0, tokens, num_tokens, S, PADDED)) + eps
    comb = tl.load(comb_NSS + tokens[:, None, None] * (S * S) + entry, there_NSS, 0.0)
    norm = tl.load(norm_grad_N + tokens, tokens < num_tokens, 0.0)
    input_grad = tl.load(input_grad_NC + tokens[:, None] * width + c[None, :], there_NC, 0.0).to(tl.float32)
    mixed_grad = load_streams(mixed_grad_NSC, tokens, num_tokens, c, width, S, PADDED)
    to_x = pre[:, :, None] * input_grad[:, None, :]
    to_x += tl.sum(comb[:, :, :, None] * mixed_grad[:, None, :, :], axis=2)
    to_x += norm[:, None, None] * load_streams(x_NSC, tokens, num_tokens, c, width, S, PADDED)
    m = tl.arange(0, PADDED_NUMBERS)
    NUMBERS: tl.constexpr = S * (S + 2)
    products = tl.load(
        product_grad_NM + tokens[:, None] * NUMBERS + m[None, :],
        (tokens < num_tokens)[:, None] & (m < NUMBERS)[None, :],
        0.0,
    )
    for stream in tl.static_range(S):
        weight_MC = tl.load(
            weight_MF + (m[:, None] * S + stream) * width + c[None, :],
            (m < NUMBERS)[:, None] & (c < width)[None, :],
            0.0,
        )
        through_NC = tl.dot(products, weight_MC, input_precision="tf32x3")
        to_x += tl.where((s == stream)[:, :, None], through_NC[:, None, :], 0.0)
    store_streams(to_x_NSC, to_x, tokens, num_tokens, c, width, S, PADDED)


@triton.jit
def weight_backward_kernel(
    x_NF: tl.tensor,
    product_grad_NM: tl.tensor,
    part_PMF: tl.tensor,
    num_tokens: tl.tensor,
    num_features: tl.tensor,
    part_tokens: tl.tensor,
    NUMBERS: tl.constexpr,
    PADDED_NUMBERS: tl.constexpr,
    TOKENS: tl.constexpr,
    FEATURES: tl.constexpr,
) -> None:
    """Of the projections, the sum over one part of the tokens: (M, F). Parts are added outside, in order."""
    m = tl.arange(0, PADDED_NUMBERS)
    f = tl.program_id(0) * FEATURES + tl.arange(0, FEATURES)
    begin = tl.program_id(1).to(tl.int64) * part_tokens
    end = tl.minimum(begin + part_tokens, num_tokens)
    sum_MF = tl.zeros((PADDED_NUMBERS, FEATURES), tl.float32)
    for first in range(begin, end, TOKENS):
        tokens = first + tl.arange(0, TOKENS)
        x = tl.load(
            x_NF + tokens[:, None] * num_features + f[None, :],
            (tokens < end)[:, None] & (f < num_features)[None, :],
            0.0,
        ).to(tl.float32)
        products_MN = tl.load(
            product_grad_NM + tokens[None, :] * NUMBERS + m[:, None],
            (tokens < end)[None, :] & (m < NUMBERS)[:, None],
            0.0,
        )
        sum_MF = tl.dot(products_MN, x, sum_MF, input_precision="tf32x3")
    places = (tl.program_id(1).to(tl.int64) * NUMBERS + m[:, None]) * num_features + f[None, :]
    tl.store(part_PMF + places, sum_MF, (m < NUMBERS)[:, None] & (f < num_features)[None, :])
