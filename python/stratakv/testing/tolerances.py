"""How close two computations of the same attention must be, by dtype: the one table for all tests."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tolerance:
    """|actual - expected| <= absolute + relative * |expected|."""

    relative: float
    absolute: float


# Values of order one. float32: sums in another order. 16 bits: one rounding of the result, and one
# more of each tile where results of tiles are merged (bfloat16 has 8 bits of mantissa, float16 11).
TOLERANCES = {
    torch.float32: Tolerance(relative=1e-5, absolute=2e-6),
    torch.bfloat16: Tolerance(relative=1.6e-2, absolute=8e-3),
    torch.float16: Tolerance(relative=2e-3, absolute=1e-3),
}


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Compares by the table's row for the actual dtype.

    Raises:
        AssertionError: further apart than that, or other shapes or dtypes.
    """
    tolerance = TOLERANCES[actual.dtype]
    torch.testing.assert_close(actual, expected, rtol=tolerance.relative, atol=tolerance.absolute)
