"""Hyper-connections on a GPU by Triton kernels: the functions of the engine's CPU kernels, for CUDA tensors.

`fused.py` has what is kept between them, and when they are used. The streams are read twice where the CPU's
kernels read them once: for the projections, then with the mappings that these gave. Sinkhorn's iterations
stay in registers, in float32.

Letters: N tokens, S streams, C width, F = S * C, M = S (S + 2) numbers per token.

Source: mHC (arXiv 2512.24880), section 4.3; `mappings.py` is the slow reference. Differs: mappings and the
sum that a branch reads are one kernel; a product is three of TF32, the paper's one.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from stratakv.nn.gpu.backward import (
    mappings_backward_kernel,
    streams_backward_kernel,
    weight_backward_kernel,
    write_backward_kernel,
)
from stratakv.nn.gpu.forward import gather_kernel, project_kernel, write_kernel

__all__ = ["streams_read", "streams_read_backward", "streams_write", "streams_write_backward"]

# Of one program. Matrix products have at least 16 rows, columns and terms; a program's (tokens, S, S, width)
# values are to fit its registers.
TOKENS = 16
WIDTH = 32
FEATURES = 64
# Of the tokens, in the weight's gradient: enough programs for a GPU where the width alone gives few.
PARTS_MAX = 8


def streams_read(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor,
    *,
    sinkhorn_iters: int,
    norm_eps: float,
    eps: float,
    input: Tensor,
    post: Tensor,
    comb: Tensor,
    numbers: Tensor,
    inverse_rms: Tensor,
) -> None:
    """See `_native.streams_read`: x (N, S, C) is read, the last five are written."""
    num_tokens, streams, width = x.shape
    if not num_tokens:
        return
    grid = (triton.cdiv(num_tokens, TOKENS),)
    num_numbers, padded = bias.shape[0], triton.next_power_of_2(streams)
    with _device_of(x):
        project_kernel[grid](
            x,
            weight,
            numbers,
            inverse_rms,
            num_tokens,
            streams * width,
            norm_eps,
            NUMBERS=num_numbers,
            PADDED_NUMBERS=_padded_numbers(num_numbers),
            TOKENS=TOKENS,
            FEATURES=FEATURES,
        )
        gather_kernel[grid](
            x,
            numbers,
            bias,
            scale,
            input,
            post,
            comb,
            num_tokens,
            width,
            eps,
            S=streams,
            PADDED=padded,
            ITERS=sinkhorn_iters,
            TOKENS=TOKENS,
            WIDTH=WIDTH,
        )


def streams_write(x: Tensor, y: Tensor, post: Tensor, comb: Tensor, out: Tensor) -> None:
    """See `_native.streams_write`: the streams (N, S, C) after a branch that gave y (N, C)."""
    num_tokens, streams, width = x.shape
    if not num_tokens:
        return
    with _device_of(x):
        write_kernel[_grid(num_tokens, width)](
            x,
            y,
            post,
            comb,
            out,
            num_tokens,
            width,
            S=streams,
            PADDED=triton.next_power_of_2(streams),
            TOKENS=TOKENS,
            WIDTH=WIDTH,
        )


def streams_write_backward(y: Tensor, post: Tensor, grad: Tensor, to_y: Tensor, to_post: Tensor) -> None:
    """See `_native.streams_write_backward`: gradients of y (N, C) and post (N, S)."""
    num_tokens, streams, width = grad.shape
    if not num_tokens:
        return
    with _device_of(y):
        write_backward_kernel[(triton.cdiv(num_tokens, TOKENS),)](
            y,
            post,
            grad,
            to_y,
            to_post,
            num_tokens,
            width,
            S=streams,
            PADDED=triton.next_power_of_2(streams),
            TOKENS=TOKENS,
            WIDTH=WIDTH,
        )


def streams_read_backward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor,
    *,
    sinkhorn_iters: int,
    norm_eps: float,  # As the engine has it; `inverse_rms` is what it came to.
    eps: float,
    numbers: Tensor,
    inverse_rms: Tensor,
    input_grad: Tensor,
    mixed_grad: Tensor,
    pre_grad: Tensor | None,
    post_grad: Tensor,
    comb_grad: Tensor | None,
    to_x: Tensor,
    to_weight: Tensor,
    to_bias: Tensor,
    to_scale: Tensor,
) -> None:
    """See `_native.streams_read_backward`: the last four are written."""
    num_tokens, streams, width = x.shape
    if not num_tokens:
        for one in (to_weight, to_bias, to_scale):
            one.zero_()
        return
    padded, sizes = triton.next_power_of_2(streams), [streams, streams, streams * streams]
    comb, logit_grad = numbers.new_empty(num_tokens, streams, streams), torch.empty_like(numbers)
    with _device_of(x):
        mappings_backward_kernel[(triton.cdiv(num_tokens, TOKENS),)](
            x,
            numbers,
            bias,
            scale,
            input_grad,
            mixed_grad,
            torch.zeros_like(post_grad) if pre_grad is None else pre_grad,
            post_grad,
            torch.zeros_like(comb) if comb_grad is None else comb_grad,
            comb,
            logit_grad,
            num_tokens,
            width,
            eps,
            S=streams,
            PADDED=padded,
            ITERS=sinkhorn_iters,
            TOKENS=TOKENS,
            WIDTH=WIDTH,
        )
        number_grad = logit_grad * torch.cat(
            [one.expand(size) for one, size in zip(scale, sizes, strict=True)]
        )
        product_grad = number_grad * inverse_rms[:, None]
        norm_grad = (number_grad * numbers).sum(1) * inverse_rms.square() / -(streams * width)
        streams_backward_kernel[_grid(num_tokens, width)](
            x,
            weight,
            numbers,
            bias,
            scale,
            comb,
            product_grad,
            norm_grad,
            input_grad,
            mixed_grad,
            to_x,
            num_tokens,
            width,
            eps,
            S=streams,
            PADDED=padded,
            PADDED_NUMBERS=_padded_numbers(numbers.shape[1]),
            TOKENS=TOKENS,
            WIDTH=WIDTH,
        )
        to_weight.copy_(_weight_gradient(x.flatten(1), product_grad))
    to_bias.copy_(logit_grad.sum(0))
    of_scale = torch.split((logit_grad * numbers).sum(0), sizes)
    to_scale.copy_(torch.stack([part.sum() for part in of_scale]))


def _weight_gradient(x_NF: Tensor, product_grad_NM: Tensor) -> Tensor:
    """(M, F)."""
    (num_tokens, num_features), num_numbers = x_NF.shape, product_grad_NM.shape[1]
    parts = min(PARTS_MAX, triton.cdiv(num_tokens, TOKENS))
    part_PMF = product_grad_NM.new_empty(parts, num_numbers, num_features)
    weight_backward_kernel[(triton.cdiv(num_features, FEATURES), parts)](
        x_NF,
        product_grad_NM,
        part_PMF,
        num_tokens,
        num_features,
        triton.cdiv(num_tokens, parts),
        NUMBERS=num_numbers,
        PADDED_NUMBERS=_padded_numbers(num_numbers),
        TOKENS=TOKENS,
        FEATURES=FEATURES,
    )
    return part_PMF.sum(0)


def _device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device. The interpreter, of tests, takes tensors on the CPU."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _grid(num_tokens: int, width: int) -> tuple[int, int]:
    return triton.cdiv(num_tokens, TOKENS), triton.cdiv(width, WIDTH)


def _padded_numbers(num_numbers: int) -> int:
    return max(16, int(triton.next_power_of_2(num_numbers)))
