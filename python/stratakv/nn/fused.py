"""Hyper-connections by kernels: what `mappings.py` computes, in two passes.

On the CPU the kernels are the engine's, on a GPU Triton's (`gpu/`), with the same four functions.

A connection is two functions of autograd, `_Read` and `_Write`. On the CPU each reads the streams from
memory once per pass. Kept for the backward pass are the streams themselves, which the previous connection
made anyway, and 24 numbers per token (S = 4); everything else is computed again there, as in section
4.3 of the mHC paper; `recompute.py` has how most of the streams are, too.

The trick between the two: the mixed streams, `comb^T x`, count as an output of `_Read`, though only
`_Write` computes them, on its way, and nobody stores them. Their gradient is the one that reaches
`_Write`, unchanged; `_Read` alone takes it back through the mixing matrix, together with all else
that reaches the streams, and writes their gradient once. The tensor that stands for them in the
graph is the streams themselves (`_Read`'s last output); it must not be used for anything else.

N tokens (all leading dimensions), S streams, C width, M numbers per token.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from stratakv import _native
from stratakv.nn import recompute
from stratakv.nn.mappings import Form, Mappings
from stratakv.nn.recompute import Written

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Of the kernels for a GPU, which take any width; more streams would not fit their registers.
GPU_STREAMS_MAX = 4


class Kernels(Protocol):
    """The four functions; `_native.pyi` says what each reads and writes."""

    streams_read: Callable[..., None]
    streams_write: Callable[..., None]
    streams_read_backward: Callable[..., None]
    streams_write_backward: Callable[..., None]


def is_supported(form: Form, dim: int) -> bool:
    """Whether there are kernels for connections of this form and width on some device of this machine."""
    return any(_of_device(device, form, dim) is not None for device in ("cpu", "cuda"))


def is_usable(x_SC: Tensor, form: Form, *parameters: Tensor) -> bool:
    """Whether these tensors can be handed to the kernels of their device."""
    # First: what follows cannot be traced.
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    return (
        _of_device(x_SC.device.type, form, x_SC.shape[-1]) is not None
        and x_SC.dtype in DTYPES
        and type(x_SC) in (Tensor, torch.nn.Parameter)
        and all(one.dtype == torch.float32 and one.device == x_SC.device for one in parameters)
    )


def _of_device(device: str, form: Form, dim: int) -> Kernels | None:
    """The kernels for connections of this form and width there."""
    if form.mixing != "sinkhorn":
        return None
    if device == "cpu" and _native.streams_supported(form.num_streams, dim):
        return _native
    if device == "cuda" and form.num_streams <= GPU_STREAMS_MAX and _has_triton():
        return _gpu_kernels()
    return None


def _kernels(tensor: Tensor) -> Kernels:
    """Those of a device that was found to have some."""
    return _gpu_kernels() if tensor.is_cuda else _native


def _gpu_kernels() -> Kernels:
    """Triton's, which are imported where there is a GPU."""
    return importlib.import_module("stratakv.nn.gpu")


@functools.cache
def _has_triton() -> bool:
    return torch.cuda.is_available() and importlib.util.find_spec("triton") is not None


def read(
    x_SC: Tensor, weight_MF: Tensor, bias_M: Tensor, scale_3: Tensor, form: Form
) -> tuple[Tensor, Mappings, Tensor, Tensor | Written | None]:
    """The branch's input, what to write with, the streams as `write` needs them, and where from again.

    Args:
        x_SC: (..., S, C).
        weight_MF: (M, S * C) float32.
        bias_M: (M,) float32.
        scale_3: (3,) float32.
        form: one that `is_supported`.
    """
    leading = x_SC.shape[:-2]
    x_NSC = x_SC.reshape(leading.numel(), *x_SC.shape[-2:]).contiguous()
    written = recompute.known(x_SC)
    outputs = _Read.apply(x_NSC, weight_MF, bias_M, scale_3, form, written)
    input_NC, pre_NS, post_NS, comb_NSS, mixed_NSC = cast("tuple[Tensor, ...]", outputs)
    mappings = Mappings(*(part.reshape(*leading, *part.shape[1:]) for part in (pre_NS, post_NS, comb_NSS)))
    source = (written or x_NSC.detach()) if recompute.is_on() else None
    return input_NC.reshape(*leading, x_SC.shape[-1]), mappings, mixed_NSC, source


def write(mixed_NSC: Tensor, y_C: Tensor, mappings: Mappings, source: Tensor | Written | None) -> Tensor:
    """The streams after the branch, (..., S, C), from what `read` gave."""
    num_tokens, streams, dim = mixed_NSC.shape
    y_NC = y_C.to(mixed_NSC.dtype).reshape(num_tokens, dim).contiguous()
    post_NS = mappings.post.reshape(num_tokens, streams).contiguous()
    comb_NSS = mappings.comb.reshape(num_tokens, streams, streams).contiguous()
    out_NSC = cast("Tensor", _Write.apply(mixed_NSC, y_NC, post_NS, comb_NSS))
    out_SC = out_NSC.reshape(*y_C.shape[:-1], streams, dim)
    if source is not None:
        parts = y_NC.detach(), post_NS.detach(), comb_NSS.detach()
        recompute.remember(out_SC, Written(source, parts, mix_and_add))
    return out_SC


def mix_and_add(x_NSC: Tensor, y_NC: Tensor, post_NS: Tensor, comb_NSS: Tensor) -> Tensor:
    """The streams after a branch, all arguments contiguous."""
    out_NSC = torch.empty_like(x_NSC)
    _kernels(x_NSC).streams_write(x_NSC, y_NC, post_NS, comb_NSS, out_NSC)
    return out_NSC


class _Read(torch.autograd.Function):
    """Streams to branch input, pre, post, comb, and the mixed streams' stand-in."""

    @staticmethod
    def forward(  # noqa: PLR0917  # autograd's form
        ctx: Any,
        x_NSC: Tensor,
        weight_MF: Tensor,
        bias_M: Tensor,
        scale_3: Tensor,
        form: Form,
        written: Written | None,
    ) -> tuple[Tensor, ...]:
        weight_MF = weight_MF.contiguous()
        num_tokens, streams, dim = x_NSC.shape
        input_NC = x_NSC.new_empty(num_tokens, dim)
        post_NS = weight_MF.new_empty(num_tokens, streams)
        comb_NSS = weight_MF.new_empty(num_tokens, streams, streams)
        numbers_NM = weight_MF.new_empty(num_tokens, bias_M.shape[0])
        inverse_rms_N = weight_MF.new_empty(num_tokens)
        _kernels(x_NSC).streams_read(
            x_NSC,
            weight_MF,
            bias_M,
            scale_3,
            sinkhorn_iters=form.sinkhorn_iters,
            norm_eps=form.norm_eps,
            eps=form.eps,
            input=input_NC,
            post=post_NS,
            comb=comb_NSS,
            numbers=numbers_NM,
            inverse_rms=inverse_rms_N,
        )
        pre_NS = torch.addcmul(bias_M[:streams], numbers_NM[:, :streams], scale_3[0]).sigmoid_() + form.eps
        ctx.set_materialize_grads(False)
        ctx.form, ctx.written = form, written
        kept_NSC = x_NSC if written is None else None
        ctx.save_for_backward(kept_NSC, weight_MF, bias_M, scale_3, numbers_NM, inverse_rms_N)
        return input_NC, pre_NS, post_NS, comb_NSS, x_NSC.view_as(x_NSC)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # noqa: PLR0917  # autograd's form
        ctx: Any,
        input_grad_NC: Tensor | None,
        pre_grad_NS: Tensor | None,
        post_grad_NS: Tensor | None,
        comb_grad_NSS: Tensor | None,
        mixed_grad_NSC: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, None, None]:
        kept_NSC, weight_MF, bias_M, scale_3, numbers_NM, inverse_rms_N = ctx.saved_tensors
        x_NSC = ctx.written.again() if kept_NSC is None else kept_NSC
        num_tokens, streams, dim = x_NSC.shape
        to_x, to_weight = torch.empty_like(x_NSC), torch.empty_like(weight_MF)
        to_bias, to_scale = torch.empty_like(bias_M), torch.empty_like(scale_3)
        _kernels(x_NSC).streams_read_backward(
            x_NSC,
            weight_MF,
            bias_M,
            scale_3,
            sinkhorn_iters=ctx.form.sinkhorn_iters,
            norm_eps=ctx.form.norm_eps,
            eps=ctx.form.eps,
            numbers=numbers_NM,
            inverse_rms=inverse_rms_N,
            input_grad=_dense(input_grad_NC, x_NSC, (num_tokens, dim)),
            mixed_grad=_dense(mixed_grad_NSC, x_NSC, x_NSC.shape),
            pre_grad=None if pre_grad_NS is None else pre_grad_NS.contiguous(),
            post_grad=_dense(post_grad_NS, numbers_NM, (num_tokens, streams)),
            comb_grad=None if comb_grad_NSS is None else comb_grad_NSS.contiguous(),
            to_x=to_x,
            to_weight=to_weight,
            to_bias=to_bias,
            to_scale=to_scale,
        )
        if ctx.written is not None:
            ctx.written.release()
        return to_x, to_weight, to_bias, to_scale, None, None


class _Write(torch.autograd.Function):
    """The mixed streams, plus each stream's share of the branch's output."""

    @staticmethod
    def forward(ctx: Any, mixed_NSC: Tensor, y_NC: Tensor, post_NS: Tensor, comb_NSS: Tensor) -> Tensor:
        ctx.save_for_backward(y_NC, post_NS)
        return mix_and_add(mixed_NSC, y_NC, post_NS, comb_NSS)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_NSC: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        y_NC, post_NS = ctx.saved_tensors
        grad_NSC = grad_NSC.contiguous()
        to_y, to_post = torch.empty_like(y_NC), torch.empty_like(post_NS)
        _kernels(y_NC).streams_write_backward(y_NC, post_NS, grad_NSC, to_y, to_post)
        return grad_NSC, to_y, to_post, None


def _dense(grad: Tensor | None, like: Tensor, shape: tuple[int, ...] | torch.Size) -> Tensor:
    """A gradient as the kernels take it; zeros where none came."""
    return like.new_zeros(shape) if grad is None else grad.contiguous()
