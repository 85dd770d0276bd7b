"""The planes of a row, in plain PyTorch: the slow reference of the engine's codecs.

A row (one token of one head, D elements) is kept as a scale, a plane of FP8 e4m3 codes that is usable
alone, and a residual plane that together with the codes gives the 16-bit values back:

* scale: a power of two, 2^(byte - 127), the smallest whose 448-fold is not below the row's largest
  magnitude, and at least 2^-127. Byte 255: the row has an infinity or a NaN, and is lost.
* u: a magnitude over the scale as a number of 4 exponent bits and m mantissa bits, m = 7 for bfloat16 and 10
  for float16. Exact for magnitudes of at least 2^-6 scales, else to nearest, ties to even.
* code: sign, and C, u rounded to 3 mantissa bits, ties away from zero.
* residual: the low n = m - 3 bits of u as a signed number r, so that u = (C << n) + r. For bfloat16 two to a
  byte, the even element's in the low half; for float16 one to a byte.

float32 rows are rounded to bfloat16 first. `docs/format.md` has the bytes.

Letters: N rows, D elements of a row, R residual bytes of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MANTISSA_BITS = {torch.float32: 7, torch.bfloat16: 7, torch.float16: 10}
CODE_BITS = 3
NOT_FINITE = 255


@dataclass(frozen=True)
class Planes:
    """Encoded rows.

    Attributes:
        dtype: the element type that was encoded.
        scales: (N), uint8.
        codes: (N, D), uint8; `.view(torch.float8_e4m3fn)` are the values over the scale.
        residual: (N, R), uint8; R = ceil(D / 2), for float16 R = D.
    """

    dtype: torch.dtype
    scales: Tensor
    codes: Tensor
    residual: Tensor


def residual_bytes(dtype: torch.dtype, dim: int) -> int:
    """R: bytes of a row's residuals.

    Raises:
        ValueError: the dtype is none of float32, bfloat16 and float16.
    """
    _mantissa_bits(dtype)
    return dim if dtype == torch.float16 else (dim + 1) // 2


def encode_rows(rows_ND: Tensor) -> Planes:
    """Splits rows into scales, codes and residuals.

    Args:
        rows_ND: (N, D) of float32, bfloat16 or float16.

    Raises:
        ValueError: another shape or dtype.
    """
    bits = _mantissa_bits(rows_ND.dtype)
    if rows_ND.ndim != 2:
        raise ValueError(f"rows have shape {tuple(rows_ND.shape)}, expected (N, D)")
    kept_ND = (rows_ND.bfloat16() if rows_ND.dtype == torch.float32 else rows_ND).double()
    finite_N = kept_ND.isfinite().all(dim=1)
    kept_ND = kept_ND.where(finite_N[:, None], 0.0)
    scales_N = _scale_bytes(kept_ND)
    # In float64 the quotient is exact: a power of two divides.
    whole_ND = _minifloat(kept_ND.abs() / _scales(scales_N)[:, None], bits)
    rest_bits = bits - CODE_BITS
    rounded_ND = (whole_ND + (1 << rest_bits - 1)) >> rest_bits
    rest_ND = whole_ND - (rounded_ND << rest_bits)
    codes_ND = rounded_ND | kept_ND.signbit().long() << 7
    return Planes(
        rows_ND.dtype,
        scales_N.where(finite_N, NOT_FINITE).to(torch.uint8),
        codes_ND.to(torch.uint8),
        (rest_ND & 0xFF if bits == 10 else _pack_nibbles(rest_ND)).to(torch.uint8),
    )


def decode_rows(planes: Planes, dtype: torch.dtype) -> Tensor:
    """(N, D) of `dtype` from the codes alone, to nearest, ties to even."""
    return _assemble(planes, (planes.codes & 0x7F).long(), CODE_BITS, dtype)


def restore_rows(planes: Planes, dtype: torch.dtype) -> Tensor:
    """(N, D) of `dtype` from both planes.

    Exact, if that is the 16-bit type that was encoded, or float32, for values of at least 2^-6 scales; others
    are within 2^-14 (bfloat16) or 2^-17 (float16) scales.
    """
    bits = _mantissa_bits(planes.dtype)
    codes_ND = (planes.codes & 0x7F).long()
    if bits == 10:
        rest_ND = planes.residual.view(torch.int8).long()
    else:
        rest_ND = _unpack_nibbles(planes.residual.long())[:, : codes_ND.shape[1]]
    return _assemble(planes, (codes_ND << bits - CODE_BITS) + rest_ND, bits, dtype)


def _mantissa_bits(dtype: torch.dtype) -> int:
    if dtype not in MANTISSA_BITS:
        raise ValueError(f"{dtype} has no planes; float32, bfloat16 and float16 have")
    return MANTISSA_BITS[dtype]


def _scale_bytes(rows_ND: Tensor) -> Tensor:
    """(N) int64: exponents plus 127, from finite float64 rows."""
    largest_N = rows_ND.abs().amax(dim=1) if rows_ND.shape[1] else rows_ND.new_zeros(len(rows_ND))
    significand_N, exponent_N = torch.frexp(largest_N)  # significand in [0.5, 1): 448 is 0.875 * 2^9
    exponent_N = exponent_N.long() - 9 + (significand_N > 0.875).long()
    return (exponent_N + 127).clamp(min=0).where(largest_N > 0, 0)


def _scales(scales_N: Tensor) -> Tensor:
    return torch.ldexp(torch.ones(len(scales_N), dtype=torch.float64), scales_N.long() - 127)


def _minifloat(magnitude: Tensor, bits: int) -> Tensor:
    """Magnitudes up to 448 as the int64 of a number of 4 exponent bits (bias 7) and `bits` mantissa bits."""
    exponent = (torch.frexp(magnitude).exponent.long() - 1).clamp(min=-6).where(magnitude > 0, -6)
    steps = torch.ldexp(magnitude, bits - exponent).round().long()
    # Above the subnormal ones, the steps' leading one adds 1 to the exponent field.
    return steps + ((exponent + 6) << bits)


def _value(whole: Tensor, bits: int) -> Tensor:
    """The float64 that `_minifloat` stands for."""
    exponent, mantissa = whole >> bits, whole & ((1 << bits) - 1)
    steps = (mantissa + ((exponent > 0).long() << bits)).double()
    return torch.ldexp(steps, exponent.clamp(min=1) - 7 - bits)


def _assemble(planes: Planes, whole_ND: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    values_ND = _value(whole_ND, bits) * _scales(planes.scales)[:, None]
    values_ND = torch.where(planes.codes > 0x7F, -values_ND, values_ND)
    return values_ND.where((planes.scales != NOT_FINITE)[:, None], torch.nan).to(dtype)


def _pack_nibbles(rest_ND: Tensor) -> Tensor:
    padded_ND = torch.nn.functional.pad(rest_ND & 15, (0, rest_ND.shape[1] % 2))
    return padded_ND[:, ::2] | padded_ND[:, 1::2] << 4


def _unpack_nibbles(residual_NR: Tensor) -> Tensor:
    nibbles_NR2 = torch.stack([residual_NR & 15, residual_NR >> 4], dim=-1)
    return ((nibbles_NR2 ^ 8) - 8).flatten(1)
