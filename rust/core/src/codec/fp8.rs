//! FP8 e4m3: 1 sign bit, 4 exponent bits with bias 7, 3 mantissa bits. Largest 448,
//! smallest normal 2^-6, smallest subnormal 2^-9; no infinity; 0x7f and 0xff are NaN.
//!
//! Bit for bit what PyTorch's casts do, where it saturates (2.13 and later).

use super::{kernel, scalar};
use crate::dtype::{DType, f16_to_f32};
use crate::simd::SimdLevel;

/// The value of every code.
static VALUES: [f32; 256] = values();

const fn values() -> [f32; 256] {
    let mut values = [0.0; 256];
    let mut code = 0;
    while code < 128 {
        // Four exponent bits with bias 7 under a leading zero are five with bias 15, of a
        // value 2^-8 times as large.
        let value = if code == 0x7f { f32::NAN } else { f16_to_f32((code << 7) as u16) * 256.0 };
        values[code] = value;
        values[code | 0x80] = -value;
        code += 1;
    }
    values
}

/// The value of a code; exact.
#[inline]
pub fn fp8_to_f32(code: u8) -> f32 {
    VALUES[usize::from(code)]
}

/// Narrows to e4m3, to nearest, ties to even. Saturates: beyond 448, and from infinity, comes
/// +-448. A NaN gives 0x7f with its sign.
#[inline]
pub fn f32_to_fp8(value: f32) -> u8 {
    let sign = u8::from(value.is_sign_negative()) << 7;
    if value.is_nan() { 0x7f | sign } else { scalar::e4m(value.abs().min(448.0), 3) as u8 | sign }
}

/// Writes the codes of `values * inverse_scale`; `values` are elements of `dtype`.
///
/// # Panics
/// When there are not as many values as codes.
pub fn encode_fp8(dtype: DType, values: &[u8], inverse_scale: f32, codes: &mut [u8]) {
    encode_fp8_at(SimdLevel::detect(), dtype, values, inverse_scale, codes);
}

/// [`encode_fp8`] with the instructions of `level`, or of the best one below it.
///
/// # Panics
/// As [`encode_fp8`].
pub fn encode_fp8_at(level: SimdLevel, dtype: DType, values: &[u8], inverse_scale: f32, codes: &mut [u8]) {
    check(codes.len(), values.len(), dtype);
    if kernel::encode_fp8(level.available(), dtype, values, inverse_scale, codes).is_none() {
        scalar::encode_fp8(dtype, values, inverse_scale, codes);
    }
}

/// Writes `code * scale` as elements of `dtype`, to nearest, ties to even.
///
/// # Panics
/// When there are not as many values as codes.
pub fn decode_fp8(codes: &[u8], scale: f32, dtype: DType, out: &mut [u8]) {
    decode_fp8_at(SimdLevel::detect(), codes, scale, dtype, out);
}

/// [`decode_fp8`] with the instructions of `level`, or of the best one below it.
///
/// # Panics
/// As [`decode_fp8`].
pub fn decode_fp8_at(level: SimdLevel, codes: &[u8], scale: f32, dtype: DType, out: &mut [u8]) {
    check(codes.len(), out.len(), dtype);
    // The vectors take 2^8 times the scale.
    let usual = (scale * 256.0).is_finite();
    if !usual || kernel::decode_fp8(level.available(), codes, scale * 256.0, dtype, out).is_none() {
        scalar::decode_fp8(codes, scale, dtype, out);
    }
}

fn check(codes: usize, bytes: usize, dtype: DType) {
    assert!(bytes == codes * dtype.size(), "{bytes} bytes for {codes} elements of {dtype}");
}
