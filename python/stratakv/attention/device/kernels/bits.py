"""Bits that several kernels read."""

import triton
import triton.language as tl

NOT_FINITE: tl.constexpr = tl.constexpr(255)


@triton.jit
def restore(codes, rest):
    """Values over their row's scale, of codes and residuals in units of a float16's last place.

    What both planes say is a float16 of the value over 2^8: `reference.restore`.
    """
    code = codes.to(tl.int32)
    half = ((code & 0x7F) * 128 + rest) | ((code & 0x80) << 8)
    return half.to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32) * 256.0


@triton.jit
def scale_of(scale_bytes):
    """The scales that bytes stand for; NaN for rows that are no numbers."""
    exponent = scale_bytes.to(tl.int32)
    # Byte 0 is 2^-127, a subnormal number.
    bits = tl.where(exponent == 0, 1 << 22, exponent << 23)
    return tl.where(exponent == NOT_FINITE, float("nan"), bits.to(tl.float32, bitcast=True))


@triton.jit
def load_half(address):
    """A float16 whose address need not be even."""
    low = tl.load(address).to(tl.int32)
    high = tl.load(address + 1).to(tl.int32)
    return (low | (high << 8)).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
