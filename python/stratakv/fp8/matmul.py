"""Row-wise quantised matrix products in FP8 e4m3: the hardware's, and the same in plain PyTorch.

Letters: M rows (tokens), K input features, N output features; a suffix p: padded to `ALIGNMENT`.

Format: `float8_e4m3fn` (4 bits of exponent, 3 of mantissa, no infinities, largest value 448) with
one float32 scale per row, of activations per token, of weights per output channel. A value is
`code * scale`, with `scale = max|row| / 448`: the largest element of a row is kept to 2^-4 at worst,
as is every element down to 2^-15 of it; smaller ones lose bits.

Layouts, which are those that `torch._scaled_mm` asks for on CUDA:

- activations (M, Kp): row-major, K contiguous; M is free.
- weights (Np, Kp): row-major as `nn.Linear` stores them, so that their transpose, which is passed as
  the second matrix, is (Kp, Np) column-major without a copy.
- scales: (M, 1) and (1, Np), contiguous.
- Kp and Np are multiples of 16. Padding is zeros, which add nothing; padded outputs are cut off.
- The product is rounded to bfloat16, the one output that every supported release has for row-wise
  scales (2.6 to 2.8 refuse others), then cast. A bfloat16 bias is added before that rounding, any
  other after it, in its own precision.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
ALIGNMENT = 16


class Quantized(NamedTuple):
    """Codes (rows, features) `float8_e4m3fn`, and the (rows, 1) float32 scale of each row."""

    codes: Tensor
    scale: Tensor


def quantize_rows(rows_MK: Tensor) -> Quantized:
    """Quantises each row by its own largest magnitude; pads the features with zeros to `ALIGNMENT`.

    A row of zeros has zero codes. A row with an infinity or a NaN becomes NaN throughout, as a
    product with it would; other rows are not touched by it.

    Args:
        rows_MK: (M, K), any floating dtype but float8; computed in float32.
    """
    rows_MK = rows_MK.float()
    if rows_MK.shape[1] % ALIGNMENT:
        rows_MK = functional.pad(rows_MK, (0, -rows_MK.shape[1] % ALIGNMENT))
    scale_M1 = rows_MK.abs().amax(dim=1, keepdim=True) / FP8_MAX
    # A scale below the smallest normal number would be flushed to zero by some devices.
    scale_M1 = scale_M1.clamp_min(torch.finfo(torch.float32).tiny)
    # The quotient may be rounded to just over the maximum: the cast of some releases makes that NaN.
    quotient_MK = (rows_MK / scale_M1).clamp(-FP8_MAX, FP8_MAX)
    # Row-major even where the input is a transposed view, which elementwise operations would follow.
    codes_MK = quotient_MK.to(FP8, memory_format=torch.contiguous_format)
    return Quantized(codes_MK, scale_M1)


def quantize_weight(weight_NK: Tensor) -> Quantized:
    """Codes (Np, Kp) and scales (1, Np) of a linear layer's weight."""
    padding = -weight_NK.shape[0] % ALIGNMENT
    codes, scale = quantize_rows(functional.pad(weight_NK, (0, 0, 0, padding)) if padding else weight_NK)
    return Quantized(codes, scale.t().contiguous())


def dequantize_weight(weight: Quantized, out_features: int, in_features: int) -> Tensor:
    """The (N, K) float32 values that the codes stand for."""
    values_NK = weight.codes.float() * weight.scale.t()
    return values_NK[:out_features, :in_features]


def scaled_mm(rows: Quantized, weight: Quantized, bias_N: Tensor | None = None) -> Tensor:
    """The product by the hardware: (M, Kp) times (Np, Kp) transposed, (M, Np) bfloat16.

    `bias_N` is bfloat16, of Np elements. On a CPU it is emulated by torch, 280 to 13,000 times
    slower than a bfloat16 product: only tests call it there.
    """
    # Full accumulation: the fast one of Hopper keeps some 14 bits, which long sums show.
    if hasattr(functional, "scaled_mm"):
        row_wise = functional.ScalingType.RowWise
        return functional.scaled_mm(
            rows.codes,
            weight.codes.t(),
            rows.scale,
            row_wise,
            weight.scale,
            row_wise,
            bias=bias_N,
            output_dtype=torch.bfloat16,
        )
    return torch._scaled_mm(
        rows.codes, weight.codes.t(), rows.scale, weight.scale, bias=bias_N, out_dtype=torch.bfloat16
    )


def emulated_mm(rows: Quantized, weight: Quantized, bias_N: Tensor | None = None) -> Tensor:
    """`scaled_mm` in float32 on any device: the same roundings, another order of summation."""
    with torch.autocast(rows.codes.device.type, enabled=False):
        sums_MN = rows.codes.float() @ weight.codes.float().t()
        product_MN = sums_MN * rows.scale * weight.scale
        if bias_N is not None:
            product_MN = product_MN + bias_N.float()
        return product_MN.bfloat16()
