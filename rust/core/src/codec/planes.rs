//! A row of D elements as a scale, D codes, and residuals.
//!
//! * The scale is a power of two, 2^(byte - 127), the smallest whose 448-fold is not below
//!   the row's largest magnitude; so that this one's code is in (224, 448] and nothing
//!   saturates. Byte 0 (2^-127) is also for what would need less, an all-zero row included.
//! * With u the magnitude over the scale as a number of 4 exponent bits and 7 (bfloat16) or
//!   10 (float16) mantissa bits, the code's magnitude is u rounded to 3 mantissa bits, ties
//!   away from zero: C = (u + half) >> n, n 4 or 7. Hence u = (C << n) + sign_extend(r), with
//!   r the low n bits of u themselves: the residual. For n = 4, element 2i is in the low
//!   half of byte i and 2i + 1 in the high one; for n = 7, a byte holds one, sign-extended.
//! * float32 rows are rounded to bfloat16 first, and are bfloat16 rows.
//!
//! What is restored: every value whose magnitude is at least 2^-6 scales, exactly; a smaller
//! one to within 2^-14 (bfloat16) or 2^-17 (float16) scales; the sign always, of zeros too.
//! Codes alone are within 1/16 of a value of at least 2^-6 scales, and within
//! 2^-10 + 2^-14 scales of a smaller one.
//!
//! What is not kept: a row with an infinity or a NaN has byte 255 and zeros, and all of it
//! decodes to NaN. Codes alone of a magnitude above 1.9375 * 2^127 (bfloat16) or 1.9375 *
//! 2^15 (float16) round up past what the type holds, and decode to its infinity, as
//! rounding does; with their residuals they are restored exactly.

use super::{kernel, scalar};
use crate::dtype::DType;
use crate::simd::SimdLevel;

/// The scale byte of a row with an infinity or a NaN.
pub const NOT_FINITE: u8 = 255;

/// The largest scale byte whose [`scale_factor`] is finite; larger ones are only those of
/// bfloat16 rows with magnitudes above 1.75 * 2^127.
pub(super) const LARGEST_FACTOR: u8 = 246;

/// Rows of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowShape {
    /// D: elements of a row.
    pub dim: usize,
    /// Element type of the rows that are encoded.
    pub dtype: DType,
}

impl RowShape {
    /// Bytes of a row as elements.
    pub const fn row_bytes(self) -> usize {
        self.dim * self.dtype.size()
    }

    /// Bytes of a row's codes.
    pub const fn code_bytes(self) -> usize {
        self.dim
    }

    /// Bytes of a row's residuals.
    pub const fn residual_bytes(self) -> usize {
        match self.dtype {
            DType::F32 | DType::Bf16 => self.dim.div_ceil(2),
            DType::F16 => self.dim,
        }
    }
}

/// 2^8 times the scale that a byte stands for: what values loaded as [`crate::simd`] loads
/// codes are multiplied by. NaN for 255; infinite from 247 on, which are past float32.
#[inline]
pub fn scale_factor(scale: u8) -> f32 {
    match scale {
        NOT_FINITE => f32::NAN,
        0..=LARGEST_FACTOR => f32::from_bits((u32::from(scale) + 8) << 23),
        _ => f32::INFINITY,
    }
}

/// The scale byte of a row whose largest magnitude this is; finite, not negative.
#[inline]
pub(super) fn scale_of(largest: f32) -> u8 {
    // The exponent, one more where the significand is above 1.75, less 8.
    ((largest.to_bits() + 0x001f_ffff) >> 23).saturating_sub(8) as u8
}

/// One over the scale.
#[inline]
pub(super) fn inverse_scale(scale: u8) -> f32 {
    f32::from_bits((254 - u32::from(scale)) << 23)
}

/// Encodes N rows: `rows` is (N, D) elements, `scales` (N), `codes` (N, D) and `residual`
/// (N, [`RowShape::residual_bytes`]) bytes.
///
/// # Panics
/// When a slice is not as long as that.
pub fn encode_rows(shape: RowShape, rows: &[u8], scales: &mut [u8], codes: &mut [u8], residual: &mut [u8]) {
    encode_rows_at(SimdLevel::detect(), shape, rows, scales, codes, residual);
}

/// [`encode_rows`] with the instructions of `level`, or of the best one below it.
///
/// # Panics
/// As [`encode_rows`].
pub fn encode_rows_at(
    level: SimdLevel,
    shape: RowShape,
    rows: &[u8],
    scales: &mut [u8],
    codes: &mut [u8],
    residual: &mut [u8],
) {
    let count = scales.len();
    check("rows", rows.len(), count, shape.row_bytes());
    check("codes", codes.len(), count, shape.code_bytes());
    check("residual", residual.len(), count, shape.residual_bytes());
    if kernel::encode_rows(level.available(), shape, rows, scales, codes, residual).is_none() {
        for (index, scale) in scales.iter_mut().enumerate() {
            let codes = part_mut(codes, index, shape.code_bytes());
            let residual = part_mut(residual, index, shape.residual_bytes());
            *scale = scalar::encode_row(shape, part(rows, index, shape.row_bytes()), codes, residual);
        }
    }
}

/// Decodes N rows of `dim` elements from their codes alone: `scales` is (N), `codes` (N, D);
/// `out` becomes (N, D) elements of `dtype`, to nearest, ties to even.
///
/// # Panics
/// When a slice is not as long as that.
pub fn decode_rows(dim: usize, scales: &[u8], codes: &[u8], dtype: DType, out: &mut [u8]) {
    decode_rows_at(SimdLevel::detect(), dim, scales, codes, dtype, out);
}

/// [`decode_rows`] with the instructions of `level`, or of the best one below it.
///
/// # Panics
/// As [`decode_rows`].
pub fn decode_rows_at(
    level: SimdLevel,
    dim: usize,
    scales: &[u8],
    codes: &[u8],
    dtype: DType,
    out: &mut [u8],
) {
    let count = scales.len();
    check("codes", codes.len(), count, dim);
    check("out", out.len(), count, dim * dtype.size());
    if kernel::decode_rows(level.available(), dim, scales, codes, dtype, out).is_none() {
        for (index, scale) in scales.iter().enumerate() {
            let out = part_mut(out, index, dim * dtype.size());
            scalar::decode_row(*scale, part(codes, index, dim), dtype, out);
        }
    }
}

/// Restores N rows from both planes, as [`encode_rows`] made them from `shape`; `out`
/// becomes (N, D) elements of `dtype`, to nearest, ties to even: exactly, if that is the
/// type of 16 bits that was encoded, or float32.
///
/// # Panics
/// When a slice is not as long as that.
pub fn restore_rows(
    shape: RowShape,
    scales: &[u8],
    codes: &[u8],
    residual: &[u8],
    dtype: DType,
    out: &mut [u8],
) {
    restore_rows_at(SimdLevel::detect(), shape, scales, codes, residual, dtype, out);
}

/// [`restore_rows`] with the instructions of `level`, or of the best one below it.
///
/// # Panics
/// As [`restore_rows`].
pub fn restore_rows_at(
    level: SimdLevel,
    shape: RowShape,
    scales: &[u8],
    codes: &[u8],
    residual: &[u8],
    dtype: DType,
    out: &mut [u8],
) {
    let count = scales.len();
    check("codes", codes.len(), count, shape.code_bytes());
    check("residual", residual.len(), count, shape.residual_bytes());
    check("out", out.len(), count, shape.dim * dtype.size());
    if kernel::restore_rows(level.available(), shape, scales, codes, residual, dtype, out).is_none() {
        for (index, scale) in scales.iter().enumerate() {
            let codes = part(codes, index, shape.code_bytes());
            let residual = part(residual, index, shape.residual_bytes());
            let out = part_mut(out, index, shape.dim * dtype.size());
            scalar::restore_row(shape, *scale, codes, residual, dtype, out);
        }
    }
}

fn check(name: &str, found: usize, rows: usize, bytes: usize) {
    assert!(found == rows * bytes, "{name} has {found} bytes, not {rows} rows of {bytes}");
}

pub(super) fn part(bytes: &[u8], index: usize, len: usize) -> &[u8] {
    &bytes[index * len..(index + 1) * len]
}

pub(super) fn part_mut(bytes: &mut [u8], index: usize, len: usize) -> &mut [u8] {
    &mut bytes[index * len..(index + 1) * len]
}
