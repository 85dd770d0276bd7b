"""Splitting rows into planes, for pages that are filled on the device: `fp8/codecs.py`, in bits.

A program has some rows. Even and odd elements are apart, since two residuals of bfloat16 share a byte.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from stratakv.attention.device.kernels.bits import NOT_FINITE
from stratakv.fp8.codecs import MANTISSA_BITS, Planes, residual_bytes

# Pairs of elements that a program has, about.
PAIRS = 2048


def encode_rows(rows_ND: Tensor) -> Planes:
    """See `fp8.codecs.encode_rows`."""
    width = residual_bytes(rows_ND.dtype, 0 if rows_ND.ndim < 2 else rows_ND.shape[1])
    if rows_ND.ndim != 2:
        raise ValueError(f"rows have shape {tuple(rows_ND.shape)}, expected (N, D)")
    count, dim = rows_ND.shape
    scales, codes, residual = (
        torch.zeros(shape, dtype=torch.uint8, device=rows_ND.device)
        for shape in ((count,), (count, dim), (count, width))
    )
    if count and dim:
        kept_ND = rows_ND.bfloat16() if rows_ND.dtype == torch.float32 else rows_ND
        settings = constants(rows_ND.dtype, dim)
        grid = (triton.cdiv(count, settings["ROWS"]),)
        bits_ND = kept_ND.contiguous().view(torch.int16)
        seal_kernel[grid](bits_ND, scales, codes, residual, count, **settings)
    return Planes(rows_ND.dtype, scales, codes, residual)


def constants(dtype: torch.dtype, dim: int) -> dict[str, int]:
    """What the kernel is compiled for."""
    pairs = triton.next_power_of_2(triton.cdiv(dim, 2))
    return {
        "DIM": dim,
        "PAIRS_PAD": pairs,
        "BITS": MANTISSA_BITS[dtype],
        "ROWS": max(PAIRS // pairs, 1),
    }


@triton.jit
def widen(bits, BITS: tl.constexpr):
    """float32 of a 16-bit type's bits, subnormal numbers among them, wherever it runs."""
    if BITS == 10:
        return bits.to(tl.float16, bitcast=True).to(tl.float32)
    return (bits.to(tl.int32) << 16).to(tl.float32, bitcast=True)


@triton.jit
def minifloat(magnitude, BITS: tl.constexpr):
    """Magnitudes up to 448 as numbers of 4 exponent bits and BITS mantissa bits, ties to even."""
    shift: tl.constexpr = 23 - BITS
    # Beside 2^(shift - 6) a float's last place is the smallest subnormal number: the addition rounds.
    unit_bits: tl.constexpr = (127 + shift - 6) << 23
    unit = tl.full(magnitude.shape, unit_bits, tl.int32).to(tl.float32, bitcast=True)
    small = (magnitude + unit).to(tl.int32, bitcast=True) - unit_bits
    bits = magnitude.to(tl.int32, bitcast=True)
    large = ((bits + ((1 << (shift - 1)) - 1) + ((bits >> shift) & 1)) >> shift) - (120 << BITS)
    return tl.where(magnitude < 0.015625, small, large)


@triton.jit
def split(values, inverse, BITS: tl.constexpr):
    """Codes and residuals of values times the inverse scale, as int32."""
    rest_bits: tl.constexpr = BITS - 3
    whole = minifloat(tl.abs(values * inverse), BITS)
    rounded = (whole + (1 << (rest_bits - 1))) >> rest_bits
    sign = (values.to(tl.int32, bitcast=True) >> 31) & 1
    return rounded | (sign << 7), whole - (rounded << rest_bits)


@triton.jit
def seal_kernel(rows, scales, codes, residual, count, DIM: tl.constexpr,
                PAIRS_PAD: tl.constexpr, BITS: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    """Scales, codes and residuals of ROWS rows."""
    row_N = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_row = row_N < count
    even = 2 * tl.arange(0, PAIRS_PAD)[None, :]
    at = row_N.to(tl.int64)[:, None] * DIM + even
    is_even, is_odd = is_row[:, None] & (even < DIM), is_row[:, None] & (even + 1 < DIM)
    first = widen(tl.load(rows + at, mask=is_even, other=0), BITS)
    second = widen(tl.load(rows + at + 1, mask=is_odd, other=0), BITS)

    # Exponents of all ones, in bits: what compares as a number would let a NaN through.
    first_bits = first.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    second_bits = second.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    largest_N = tl.max(tl.maximum(first_bits, second_bits), 1)
    is_finite = largest_N < 0x7F800000
    # The exponent, one more where the significand is above 1.75, less 8.
    scale_N = tl.maximum(((largest_N + 0x1FFFFF) >> 23) - 8, 0)
    inverse = ((254 - scale_N) << 23).to(tl.float32, bitcast=True)[:, None]
    keep = is_finite[:, None]
    first, second = tl.where(keep, first, 0.0), tl.where(keep, second, 0.0)
    first_code, first_rest = split(first, inverse, BITS)
    second_code, second_rest = split(second, inverse, BITS)

    tl.store(scales + row_N, tl.where(is_finite, scale_N, NOT_FINITE).to(tl.uint8), mask=is_row)
    tl.store(codes + at, first_code.to(tl.uint8), mask=is_even)
    tl.store(codes + at + 1, second_code.to(tl.uint8), mask=is_odd)
    if BITS == 10:
        tl.store(residual + at, (first_rest & 0xFF).to(tl.uint8), mask=is_even)
        tl.store(residual + at + 1, (second_rest & 0xFF).to(tl.uint8), mask=is_odd)
    else:
        at_byte = row_N.to(tl.int64)[:, None] * ((DIM + 1) // 2) + even // 2
        packed = (first_rest & 15) | ((second_rest & 15) << 4)
        tl.store(residual + at_byte, packed.to(tl.uint8), mask=is_even)
