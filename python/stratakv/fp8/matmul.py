"""Products of quantised matrices: the hardware's, and the same in plain PyTorch.

The product is rounded to bfloat16, the one output that every supported release has for row-wise scales (2.6
to 2.8 refuse others); callers cast. A bfloat16 bias is added before that rounding, any other after it, by the
caller. `quantize.py` has formats and layouts.

Letters: M rows, K what is summed over, N columns of the product, all padded.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from stratakv.fp8.quantize import Quantized, dequantize

Backend = Literal["scaled_mm", "emulate"]


def multiply(a_MK: Quantized, b_NK: Quantized, backend: Backend, bias_N: Tensor | None = None) -> Tensor:
    """The product a b^T, (M, N) bfloat16, by the backend."""
    return (scaled_mm if backend == "scaled_mm" else emulated_mm)(a_MK, b_NK, bias_N)


def scaled_mm(a_MK: Quantized, b_NK: Quantized, bias_N: Tensor | None = None) -> Tensor:
    """The product a b^T by the hardware, (M, N) bfloat16.

    On a CPU torch emulates row-wise products, 280 to 13,000 times slower than a bfloat16 product, and has no
    others: only tests call it there.

    Args:
        a_MK: by rows or by tiles.
        b_NK: by rows, where a is; by tiles or by blocks, where a is by tiles.
        bias_N: (N) bfloat16.
    """
    # Full accumulation: the fast one of Hopper keeps some 14 bits, which long sums show.
    if hasattr(functional, "scaled_mm"):
        return functional.scaled_mm(
            a_MK.codes,
            b_NK.codes.t(),
            a_MK.scale,
            getattr(functional.ScalingType, a_MK.scaling),
            # torch takes the scales of tiles as they are on either side.
            b_NK.scale if b_NK.scaling == "BlockWise1x128" else b_NK.scale.t(),
            getattr(functional.ScalingType, b_NK.scaling),
            bias=bias_N,
            output_dtype=torch.bfloat16,
        )
    assert a_MK.scaling == b_NK.scaling == "RowWise", "`detect` refuses tiles on such a release"
    return torch._scaled_mm(
        a_MK.codes, b_NK.codes.t(), a_MK.scale, b_NK.scale.t(), bias=bias_N, out_dtype=torch.bfloat16
    )


def emulated_mm(a_MK: Quantized, b_NK: Quantized, bias_N: Tensor | None = None) -> Tensor:
    """`scaled_mm` in float32 on any device: the same roundings, another order of summation."""
    with torch.autocast(a_MK.codes.device.type, enabled=False):
        product_MN = dequantize(a_MK) @ dequantize(b_NK).t()
        if bias_N is not None:
            product_MN = product_MN + bias_N.float()
        return product_MN.bfloat16()
