"""Linear layers that train in FP8, their weights in the precision that they had.

Letters: M rows (tokens), K input features, N output features. Each operand of a product is quantised anew,
along the dimension that is summed over, with a scale of its own for each row (`matmul.py`):

- output (M, N) = x W^T: x by tokens, W by output features;
- gradient of the input (M, K) = g W: g by tokens, W by input features;
- gradient of the weight (N, K) = g^T x: in the input's own precision by default, since a long sum over tokens
  decides what is learned; in FP8 if asked for, g by output features, x by input features.

The optimizer sees the plain layer's parameters: they are the master weights, and checkpoints are the plain
model's.

Sources: dynamic row-wise scaling, e4m3 for gradients too, and the weight's gradient in higher precision are
the recipe "rowwise_with_gw_hp" of torchao's float8 training.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from stratakv.fp8.matmul import emulated_mm, quantize_rows, quantize_weight, scaled_mm

Backend = Literal["scaled_mm", "emulate"]
WeightGradient = Literal["high", "fp8"]


class Fp8TrainingLinear(nn.Linear):
    """`nn.Linear` whose products are in FP8, gradients included.

    Made of a plain layer by `stratakv.fp8.convert_for_training`: the very module becomes one, so that whoever
    holds it or its parameters sees no other.
    """

    backend: Backend
    weight_gradient: WeightGradient

    @staticmethod
    def take_over(linear: nn.Linear, backend: Backend, weight_gradient: WeightGradient) -> None:
        """Makes a plain layer one of these."""
        linear.__class__ = Fp8TrainingLinear
        assert isinstance(linear, Fp8TrainingLinear)
        linear.backend, linear.weight_gradient = backend, weight_gradient

    def give_back(self) -> None:
        """Makes it a plain layer again."""
        del self.backend, self.weight_gradient
        self.__class__ = nn.Linear  # type: ignore[assignment]

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"{super().extra_repr()}, backend={self.backend}, weight_gradient={self.weight_gradient}"

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N), in the input's dtype (autocast's, where it is on)."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        rows_MK = x.reshape(-1, self.in_features)
        y_MN: Tensor = _Product.apply(rows_MK, self.weight, self.backend, self.weight_gradient)
        y = y_MN.reshape(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class _Product(torch.autograd.Function):
    """x W^T, and its gradients."""

    @staticmethod
    def forward(
        ctx: Any, x_MK: Tensor, weight_NK: Tensor, backend: Backend, weight_gradient: WeightGradient
    ) -> Tensor:
        ctx.save_for_backward(x_MK, weight_NK)
        ctx.backend, ctx.weight_gradient = backend, weight_gradient
        return product(x_MK, weight_NK, backend)

    @staticmethod
    def backward(ctx: Any, grad_MN: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x_MK, weight_NK = ctx.saved_tensors
        grad_x_MK = grad_weight_NK = None
        if ctx.needs_input_grad[0]:
            grad_x_MK = product(grad_MN, weight_NK.t(), ctx.backend)
        if ctx.needs_input_grad[1]:
            if ctx.weight_gradient == "fp8":
                grad_weight_NK = product(grad_MN.t(), x_MK.t(), ctx.backend)
            else:
                grad_weight_NK = grad_MN.t() @ x_MK
            grad_weight_NK = grad_weight_NK.to(weight_NK.dtype)
        return grad_x_MK, grad_weight_NK, None, None


def product(a_MK: Tensor, b_NK: Tensor, backend: Backend) -> Tensor:
    """A b^T (M, N) in FP8, both quantised by their rows; in the dtype of a."""
    if not a_MK.shape[0]:
        return a_MK.new_zeros(0, b_NK.shape[0])
    multiply = scaled_mm if backend == "scaled_mm" else emulated_mm
    return multiply(quantize_rows(a_MK), quantize_weight(b_NK))[:, : b_NK.shape[0]].to(a_MK.dtype)
