"""`Fp8Linear`: a linear layer whose critical rows are multiplied in 16 bits, all others in FP8.

For inference: a gradient that would flow through it is refused. Not a training recipe, and not a
compressed checkpoint: by default the 16-bit weight stays, because critical rows need it and because
the layer's state is then the plain layer's, so that checkpoints go either way.

Letters: M rows (tokens), K input features, N output features. `quantize.py` has formats and layouts.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from stratakv.fp8.matmul import Backend, multiply
from stratakv.fp8.quantize import (
    Quantized,
    Scales,
    dequantize,
    quantize_activations,
    quantize_weight,
    weight_scaling,
)
from stratakv.fp8.routing import TokenRouting

# What is multiplied in FP8 instead; float64 is asked for by those who would mind.
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


class Fp8Linear(nn.Module):
    """`nn.Linear` with FP8 products. Made by `stratakv.fp8.convert`.

    The products of all rows are computed in FP8 and those of critical rows overwritten: a row is
    quantised by itself, so the others' results do not depend on the critical ones, and copying the
    rest together would cost more than the few products.

    Without a kept weight nothing is critical, and codes and scales are in the `state_dict` instead.
    On a device other than CUDA the `scaled_mm` backend multiplies in 16 bits, and says so once.

    Attributes:
        weight: (N, K) in the original precision, the very parameter of the plain layer; or None.
        bias: (N,) or None.
        weight_fp8: (Np, Kp) `float8_e4m3fn`, row-major, padded.
        weight_scale: float32, of rows (Np, 1) or of blocks (Np / 128, T4).
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    weight_fp8: Tensor
    weight_scale: Tensor

    def __init__(
        self,
        linear: nn.Linear,
        routing: TokenRouting,
        *,
        backend: Backend,
        scales: Scales = "rows",
        keep_weight: bool = True,
    ) -> None:
        super().__init__()
        if not keep_weight and routing.critical_fraction:
            raise ValueError("critical rows need the 16-bit weight: keep it, or ask for critical_fraction=0")
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.backend, self.scales, self.routing = backend, scales, routing
        self.weight = linear.weight if keep_weight else None  # type: ignore[assignment]
        self.bias = linear.bias
        with torch.no_grad():
            quantized = quantize_weight(linear.weight, scales)
        self.register_buffer("weight_fp8", quantized.codes, persistent=not keep_weight)
        self.register_buffer("weight_scale", quantized.scale, persistent=not keep_weight)
        self._source = _identity(self.weight)
        self._warned = False
        self.train(linear.training)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, backend={self.backend}, scales={self.scales}, "
            f"critical_fraction={self.routing.critical_fraction:g}"
        )

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N), in the input's dtype (autocast's, where it is on).

        Raises:
            ValueError: another number of features, or not of the weight's dtype.
            RuntimeError: in `backward`.
        """
        x = _autocast(x)
        self._check(x)
        if not torch.compiler.is_compiling() and _identity(self.weight) != self._source:
            self.requantize()
        with torch.no_grad():
            y_MN = self._product(x.reshape(-1, self.in_features))
            y = y_MN.reshape(*x.shape[:-1], self.out_features)
        if torch.is_grad_enabled():
            learned = [t for t in (x, self.weight, self.bias) if t is not None and t.requires_grad]
            if learned:
                y = _InferenceOnly.apply(y, *learned)
        return y

    def requantize(self) -> None:
        """Makes the codes anew from the kept weight: needed after a change of `weight.data` in place.

        Other changes (`load_state_dict`, another parameter, `weight.copy_`, `to`) are noticed.
        """
        if self.weight is None:
            return
        with torch.no_grad():
            self.weight_fp8, self.weight_scale, _ = quantize_weight(self.weight, self.scales)
        self._source = _identity(self.weight)

    def to_linear(self) -> nn.Linear:
        """The plain layer, with the same parameter objects.

        Raises:
            ValueError: the weight was not kept.
        """
        if self.weight is None:
            raise ValueError("the 16-bit weight was not kept (keep_weights=False): load the model again")
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        linear.weight = self.weight
        if self.bias is not None:
            linear.bias = self.bias
        return linear.train(self.training)

    def _check(self, x: Tensor) -> None:
        if not x.dim() or x.shape[-1] != self.in_features:
            raise ValueError(f"expected (..., {self.in_features}), not {tuple(x.shape)}")
        if x.dtype not in DTYPES:
            raise ValueError(f"expected bfloat16, float16 or float32 activations, not {x.dtype}")
        if self.weight is not None and x.dtype != self.weight.dtype and not _autocasts(x):
            raise ValueError(f"activations are {x.dtype}, the layer's weight is {self.weight.dtype}")

    def _product(self, rows_MK: Tensor) -> Tensor:
        num_rows = rows_MK.shape[0]
        if num_rows == 0:
            return rows_MK.new_empty(0, self.out_features)
        if self.backend == "scaled_mm" and not rows_MK.is_cuda:
            return self._product_elsewhere(rows_MK)
        count = self.routing.num_critical(num_rows) if self.weight is not None else 0
        if self.weight is None or count == 0:
            return self._fp8_product(rows_MK)
        if count == num_rows:
            return functional.linear(rows_MK, self.weight, self.bias)
        y_MN = self._fp8_product(rows_MK)
        critical = self.routing.critical_rows(rows_MK, count)
        exact = functional.linear(rows_MK[critical], self.weight, self.bias)
        return y_MN.index_copy_(0, critical, exact)

    def _fp8_product(self, rows_MK: Tensor) -> Tensor:
        """(M, N) in the rows' dtype, every row in FP8."""
        weight = self._quantized_weight()
        bias, late_bias = self.bias, None
        # A bias of another precision than the product's, or to a padded product, is added afterwards.
        if bias is not None and (bias.dtype != torch.bfloat16 or bias.shape[0] != weight.codes.shape[0]):
            bias, late_bias = None, bias
        rows = quantize_activations(rows_MK, self.scales)
        y_MN = multiply(rows, weight, self.backend, bias)[: rows_MK.shape[0], : self.out_features]
        y_MN = y_MN.to(rows_MK.dtype)
        return y_MN if late_bias is None else y_MN + late_bias.to(rows_MK.dtype)

    def _quantized_weight(self) -> Quantized:
        return Quantized(self.weight_fp8, self.weight_scale, weight_scaling(self.scales))

    def _product_elsewhere(self, rows_MK: Tensor) -> Tensor:
        """The 16-bit product, for a model that was moved away from the device it was converted for."""
        if not torch.compiler.is_compiling() and not self._warned:
            self._warned = True
            warnings.warn(
                f"FP8 products need CUDA: on {rows_MK.device.type} the converted layer multiplies in "
                f"{rows_MK.dtype}. stratakv.fp8.revert(model) gives its memory back",
                stacklevel=2,
            )
        if self.weight is not None:
            return functional.linear(rows_MK, self.weight, self.bias)
        weight_NK = dequantize(self._quantized_weight())[: self.out_features, : self.in_features]
        bias = None if self.bias is None else self.bias.to(rows_MK.dtype)
        return functional.linear(rows_MK, weight_NK.to(rows_MK.dtype), bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Fp8Linear:
        """Moves like any module, but `half()` and its like leave codes and scales what they are."""
        codes, scale = self.weight_fp8, self.weight_scale
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.weight_fp8.dtype != codes.dtype:
            self.weight_fp8 = codes.to(self.weight_fp8.device)
        if self.weight_scale.dtype != scale.dtype:
            self.weight_scale = scale.to(self.weight_scale.device)
        if _identity(self.weight) != self._source:
            self.requantize()
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Takes the plain layer's weight too, and quantises what was loaded."""
        if self.weight is None and prefix + "weight" in state_dict:
            weight = state_dict.pop(prefix + "weight").to(self.weight_fp8.device)
            with torch.no_grad():
                quantized = quantize_weight(weight, self.scales)
            state_dict[prefix + "weight_fp8"], state_dict[prefix + "weight_scale"] = quantized[:2]
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.requantize()


class _InferenceOnly(torch.autograd.Function):
    """The identity, whose gradient is refused: FP8 products have none worth using."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, *learned: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(
            "Fp8Linear is for inference: no gradient flows through it. "
            "stratakv.fp8.revert(model) before training"
        )


def _identity(weight: Tensor | None) -> tuple[int, int] | None:
    """What changes when a weight's values do: its memory and, outside inference mode, its version."""
    if weight is None or weight.is_meta:
        return None
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version


def _autocasts(x: Tensor) -> bool:
    """Whether autocast applies to products of this tensor (never to float64)."""
    return x.dtype != torch.float64 and torch.is_autocast_enabled(x.device.type)


def _autocast(x: Tensor) -> Tensor:
    return x.to(torch.get_autocast_dtype(x.device.type)) if _autocasts(x) else x
