"""Linear layers that train in FP8, their weights in the precision that they had.

Letters: M rows (tokens), K input features, N output features. Each operand of a product is quantised anew,
along the dimension that is summed over, with a scale of its own for each row, or tile (`quantize.py`):

- output (M, N) = x W^T: x by tokens, W by output features;
- gradient of the input (M, K) = g W: g by tokens, W by input features;
- gradient of the weight (N, K) = g^T x: in the input's own precision by default, since a long sum over tokens
  decides what is learned; in FP8 if asked for, g by output features, x by input features.

By tiles these are 1 x 128 of x and g, along tokens in the last product, and 128 x 128 of W.

The optimizer sees the plain layer's parameters: they are the master weights, and checkpoints are the plain
model's.

Sources: dynamic row-wise scaling, e4m3 for gradients too, and the weight's gradient in higher precision are
the recipe "rowwise_with_gw_hp" of torchao's float8 training. Tiles are DeepSeek-V3's (arXiv 2412.19437), with
weight gradients in FP8.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from stratakv.fp8.matmul import Backend, multiply
from stratakv.fp8.quantize import Scales, quantize_activations, quantize_second, quantize_weight

WeightGradient = Literal["high", "fp8"]


class Fp8TrainingLinear(nn.Linear):
    """`nn.Linear` whose products are in FP8, gradients included.

    Made of a plain layer by `stratakv.fp8.convert_for_training`: the very module becomes one, so that whoever
    holds it or its parameters sees no other.
    """

    backend: Backend
    scales: Scales
    weight_gradient: WeightGradient

    @staticmethod
    def take_over(
        linear: nn.Linear, backend: Backend, scales: Scales, weight_gradient: WeightGradient
    ) -> None:
        """Makes a plain layer one of these."""
        linear.__class__ = Fp8TrainingLinear
        assert isinstance(linear, Fp8TrainingLinear)
        linear.backend, linear.scales, linear.weight_gradient = backend, scales, weight_gradient

    def give_back(self) -> None:
        """Makes it a plain layer again."""
        del self.backend, self.scales, self.weight_gradient
        self.__class__ = nn.Linear  # type: ignore[assignment]

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return (
            f"{super().extra_repr()}, backend={self.backend}, scales={self.scales}, "
            f"weight_gradient={self.weight_gradient}"
        )

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N), in the input's dtype (autocast's, where it is on)."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        rows_MK = x.reshape(-1, self.in_features)
        y_MN: Tensor = _Product.apply(rows_MK, self.weight, self.backend, self.scales, self.weight_gradient)
        y = y_MN.reshape(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class _Product(torch.autograd.Function):
    """x W^T, and its gradients."""

    @staticmethod
    def forward(  # noqa: PLR0917  # autograd's form
        ctx: Any,
        x_MK: Tensor,
        weight_NK: Tensor,
        backend: Backend,
        scales: Scales,
        weight_gradient: WeightGradient,
    ) -> Tensor:
        ctx.save_for_backward(x_MK, weight_NK)
        ctx.backend, ctx.scales, ctx.weight_gradient = backend, scales, weight_gradient
        return product(x_MK, weight_NK, backend, scales)

    @staticmethod
    def backward(ctx: Any, grad_MN: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x_MK, weight_NK = ctx.saved_tensors
        grad_x_MK = grad_weight_NK = None
        if ctx.needs_input_grad[0]:
            grad_x_MK = product(grad_MN, weight_NK.t(), ctx.backend, ctx.scales)
        if ctx.needs_input_grad[1]:
            if ctx.weight_gradient == "fp8":
                grad_weight_NK = product(grad_MN.t(), x_MK.t(), ctx.backend, ctx.scales, weight=False)
            else:
                grad_weight_NK = grad_MN.t() @ x_MK
            grad_weight_NK = grad_weight_NK.to(weight_NK.dtype)
        return grad_x_MK, grad_weight_NK, None, None, None


def product(a_MK: Tensor, b_NK: Tensor, backend: Backend, scales: Scales, *, weight: bool = True) -> Tensor:
    """A b^T (M, N) in FP8, in the dtype of a; b a weight, or quantised as activations are."""
    num_rows, num_columns = a_MK.shape[0], b_NK.shape[0]
    if not a_MK.numel():
        return a_MK.new_zeros(num_rows, num_columns)
    b = quantize_weight(b_NK, scales) if weight else quantize_second(b_NK, scales)
    y_MN = multiply(quantize_activations(a_MK, scales), b, backend)
    return y_MN[:num_rows, :num_columns].to(a_MK.dtype)
