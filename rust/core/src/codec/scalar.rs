//! The reference codecs: plain loops, the formulas of the vector kernels.

use super::fp8::{f32_to_fp8, fp8_to_f32};
use super::planes::{LARGEST_FACTOR, NOT_FINITE, RowShape, inverse_scale, scale_of};
use crate::dtype::{DType, bf16_to_f32, f16_to_f32, f32_to_bf16};

/// A magnitude up to 448 as a number of 4 exponent bits (bias 7) and `mantissa` bits, to
/// nearest, ties to even.
pub(super) fn e4m(magnitude: f32, mantissa: u32) -> u32 {
    let shift = 23 - mantissa;
    if magnitude < 1.0 / 64.0 {
        // Beside 2^(shift - 6) a float's last place is the smallest subnormal, so the
        // addition itself rounds.
        let unit = f32::from_bits((127 + shift - 6) << 23);
        (magnitude + unit).to_bits() - unit.to_bits()
    } else {
        let bits = magnitude.to_bits();
        ((bits + (1 << (shift - 1)) - 1 + ((bits >> shift) & 1)) >> shift) - (120 << mantissa)
    }
}

pub(super) fn encode_fp8(dtype: DType, values: &[u8], inverse_scale: f32, codes: &mut [u8]) {
    for (index, code) in codes.iter_mut().enumerate() {
        *code = f32_to_fp8(dtype.read(values, index) * inverse_scale);
    }
}

pub(super) fn decode_fp8(codes: &[u8], scale: f32, dtype: DType, out: &mut [u8]) {
    for (index, code) in codes.iter().enumerate() {
        dtype.write(out, index, fp8_to_f32(*code) * scale);
    }
}

/// Gives the scale byte.
pub(super) fn encode_row(shape: RowShape, row: &[u8], codes: &mut [u8], residual: &mut [u8]) -> u8 {
    let value = |index| kept(shape.dtype, row, index);
    let mut largest = 0.0_f32;
    for index in 0..shape.dim {
        if !value(index).is_finite() {
            codes.fill(0);
            residual.fill(0);
            return NOT_FINITE;
        }
        largest = largest.max(value(index).abs());
    }
    let scale = scale_of(largest);
    residual.fill(0);
    for (index, code) in codes.iter_mut().enumerate() {
        let scaled = value(index) * inverse_scale(scale);
        let sign = u8::from(scaled.is_sign_negative()) << 7;
        if shape.dtype == DType::F16 {
            let whole = e4m(scaled.abs(), 10);
            let rounded = (whole + 64) >> 7;
            *code = rounded as u8 | sign;
            residual[index] = whole.wrapping_sub(rounded << 7) as u8;
        } else {
            let whole = e4m(scaled.abs(), 7);
            *code = ((whole + 8) >> 4) as u8 | sign;
            residual[index / 2] |= ((whole & 15) << (index % 2 * 4)) as u8;
        }
    }
    scale
}

pub(super) fn decode_row(scale: u8, codes: &[u8], dtype: DType, out: &mut [u8]) {
    for (index, code) in codes.iter().enumerate() {
        dtype.write(out, index, decoded(scale, *code));
    }
}

/// The value of a row's code.
pub(crate) fn decoded(scale: u8, code: u8) -> f32 {
    scaled(scale, code, u16::from(code & 0x7f) * 128)
}

pub(super) fn restore_row(
    shape: RowShape,
    scale: u8,
    codes: &[u8],
    residual: &[u8],
    dtype: DType,
    out: &mut [u8],
) {
    for index in 0..codes.len() {
        dtype.write(out, index, restored(shape.dtype, scale, codes, residual, index));
    }
}

/// The value that both planes of a row have at `index`; `dtype` is the row's.
pub(crate) fn restored(dtype: DType, scale: u8, codes: &[u8], residual: &[u8], index: usize) -> f32 {
    let code = codes[index];
    let rounded = i16::from(code & 0x7f);
    let half = if dtype == DType::F16 {
        rounded * 128 + i16::from(residual[index].cast_signed())
    } else {
        let nibble = residual[index / 2] >> (index % 2 * 4);
        // Two's complement of 4 bits, times 8: a nibble's place in a float16.
        rounded * 128 + i16::from((nibble << 4).cast_signed() >> 1)
    };
    scaled(scale, code, half.cast_unsigned())
}

/// What a float16 of the value times 2^-8 stands for, with the code's sign.
fn scaled(scale: u8, code: u8, half: u16) -> f32 {
    if scale == NOT_FINITE {
        return f32::NAN;
    }
    let value = f16_to_f32(half | u16::from(code & 0x80) << 8) * 256.0;
    // 2^-127 is subnormal, 2^127 the largest: every scale is a float.
    let scale = if scale == 0 { f32::from_bits(1 << 22) } else { f32::from_bits(u32::from(scale) << 23) };
    value * scale
}

/// Whether the vector kernels can fold 2^8 into the factor.
pub(super) fn is_usual(scale: u8) -> bool {
    scale <= LARGEST_FACTOR
}

/// The value that a row keeps: float32 is rounded to bfloat16.
fn kept(dtype: DType, row: &[u8], index: usize) -> f32 {
    let value = dtype.read(row, index);
    if dtype == DType::F32 { bf16_to_f32(f32_to_bf16(value)) } else { value }
}
