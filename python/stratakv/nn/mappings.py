"""The mappings of a hyper-connection, and how they are applied: the slow reference of everything fused.

Plain PyTorch, one line per line of the papers. `fused.py` computes the same faster.

S streams, C width, M numbers per token: S pre, S post, then L logits of the mixing matrix. Leading
dimensions are any; all tokens are alike.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from stratakv.nn.mixings import (
    MixingName,
    accumulation_dtype,
    kronecker_product,
    mixing_of,
    permutation_mixture,
    sinkhorn,
)

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def full_precision(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """The function without autocast: in 16 bits rows of a mixing matrix are off by 0.003, which composes.

    Args:
        function: one whose first argument is a tensor, given by its place.
    """

    @functools.wraps(function)
    def plain(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        first: Any = args[0]
        if not torch.is_autocast_enabled(first.device.type):
            return function(*args, **kwargs)
        with torch.autocast(first.device.type, enabled=False):
            return function(*args, **kwargs)

    return plain


@dataclass(frozen=True)
class Form:
    """What is constant in a hyper-connection.

    Attributes:
        num_streams: S, at least 2.
        mixing: how the residual mixing matrix is made.
        sinkhorn_iters: sweeps, where it is made by Sinkhorn's algorithm.
        norm_eps: of the root mean square over all S * C values of a token.
        eps: added to the pre mapping, and inside Sinkhorn's algorithm.
    """

    num_streams: int
    mixing: MixingName = "sinkhorn"
    sinkhorn_iters: int = 20
    norm_eps: float = 1e-6
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.num_streams < 2:
            raise ValueError(f"num_streams must be at least 2 here, not {self.num_streams}")
        if self.sinkhorn_iters < 1:
            raise ValueError(f"sinkhorn_iters must be at least 1, not {self.sinkhorn_iters}")
        mixing_of(self.mixing).check(self.num_streams)

    @property
    def num_logits(self) -> int:
        """L."""
        return mixing_of(self.mixing).num_logits(self.num_streams)

    @property
    def sizes(self) -> list[int]:
        """Of pre, post and mixing logits; their sum is M."""
        return [self.num_streams, self.num_streams, self.num_logits]


class Mappings(NamedTuple):
    """What one connection does with one token's streams.

    pre: (..., S) weights of the sum that the branch reads.
    post: (..., S) what each stream receives of the branch's output.
    comb: (..., S, S); `comb[j, k]` is what stream j gives to stream k (the transpose of H_res).
    """

    pre: Tensor
    post: Tensor
    comb: Tensor


@full_precision
def project(x_SC: Tensor, weight_MF: Tensor, norm_eps: float) -> Tensor:
    """The numbers that a token's streams ask for, before scales and biases.

    Args:
        x_SC: (..., S, C) streams.
        weight_MF: (M, S * C); a norm's weight, if one is wanted, is part of it.
        norm_eps: see `Form`.

    Returns:
        (..., M) float32 (float64 for float64 streams).

    Source: mHC, equation 7, x' phi with the norm over all streams at once.
    """
    dtype = accumulation_dtype(x_SC.dtype)
    flat_F = x_SC.flatten(-2).to(dtype)
    inverse_rms = torch.rsqrt(flat_F.square().mean(-1, keepdim=True) + norm_eps)
    return functional.linear(flat_F, weight_MF.to(dtype)) * inverse_rms


@full_precision
def mappings_of(numbers_M: Tensor, scale_3: Tensor, bias_M: Tensor, form: Form) -> Mappings:
    """The mappings from projected numbers.

    Args:
        numbers_M: (..., M) from `project`.
        scale_3: (3,) factors of pre, post and mixing numbers (the paper's alpha).
        bias_M: (M,), in the same order.
        form: what else is constant.

    Returns:
        Mappings in the dtype of the numbers.

    Source: mHC, equation 8, with `form.eps` where DeepSeek's published code has it. Unconstrained: Hyper-
    Connections (arXiv 2409.19606), equations 10 to 13; differs from it by the norm over all streams.
    """
    scale_3, bias_M = scale_3.to(numbers_M.dtype), bias_M.to(numbers_M.dtype)
    parts = torch.split(numbers_M, form.sizes, -1), torch.split(bias_M, form.sizes), scale_3.unbind()
    streams = form.num_streams
    square = (*numbers_M.shape[:-1], streams, streams)
    if form.mixing == "unconstrained":
        pre, post, comb = (n.tanh() * s + b for n, b, s in zip(*parts, strict=True))
        return Mappings(pre, post, comb.reshape(square))
    pre, post, logits = (n * s + b for n, b, s in zip(*parts, strict=True))
    if form.mixing == "permutations":
        comb = permutation_mixture(logits, streams)
    elif form.mixing == "kronecker":
        comb = kronecker_product(logits, streams)
    else:
        comb = sinkhorn(logits.reshape(square), num_iters=form.sinkhorn_iters, eps=form.eps)
    return Mappings(pre.sigmoid() + form.eps, 2 * post.sigmoid(), comb)


@full_precision
def gather(x_SC: Tensor, pre_S: Tensor) -> Tensor:
    """What the branch reads: the streams' weighted sum.

    Args:
        x_SC: (..., S, C).
        pre_S: (..., S).

    Returns:
        (..., C) in the streams' dtype; summed in float32.
    """
    return (pre_S.unsqueeze(-1) * x_SC).sum(-2).to(x_SC.dtype)


@full_precision
def scatter(x_SC: Tensor, y_C: Tensor, post_S: Tensor, comb_SS: Tensor) -> Tensor:
    """The streams after a branch: mixed among themselves, each with its share of the branch's output.

    Args:
        x_SC: (..., S, C).
        y_C: (..., C).
        post_S: (..., S).
        comb_SS: (..., S, S).

    Returns:
        (..., S, C) in the streams' dtype; summed in float32.

    Source: mHC, equation 3.
    """
    mixed = comb_SS.transpose(-1, -2) @ x_SC.to(comb_SS.dtype)
    return (mixed + post_S.unsqueeze(-1) * y_C.unsqueeze(-2)).to(x_SC.dtype)
