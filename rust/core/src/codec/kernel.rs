//! The vector codecs, over the loads and stores of [`Simd`].
//!
//! Lengths were checked by the callers; a slice's own end bounds every loop here.

#![expect(unsafe_code, reason = "loads and stores through pointers into slices")]
#![expect(clippy::inline_always, reason = "what is not inlined is compiled without the instructions")]

use super::coded::{Coded, Codes, CodesOrNan, With4, With8};
use super::planes::{NOT_FINITE, RowShape, inverse_scale, part, part_mut, scale_factor, scale_of};
use super::scalar;
use crate::dtype::DType;
use crate::simd::{Bf16, Element, F16, F32, Simd, dispatch, load_some};

dispatch! {
    /// As the scalar twin, with 2^8 times the scale.
    pub(super) fn decode_fp8(codes: &[u8], factor: f32, dtype: DType, out: &mut [u8]) -> () => decode_slice;
}
dispatch! {
    pub(super) fn encode_fp8(
        dtype: DType, values: &[u8], inverse_scale: f32, codes: &mut [u8],
    ) -> () => encode_slice;
}
dispatch! {
    pub(super) fn encode_rows(
        shape: RowShape, rows: &[u8], scales: &mut [u8], codes: &mut [u8], residual: &mut [u8],
    ) -> () => encode_all;
}
dispatch! {
    pub(super) fn decode_rows(
        dim: usize, scales: &[u8], codes: &[u8], dtype: DType, out: &mut [u8],
    ) -> () => decode_all;
}
dispatch! {
    pub(super) fn restore_rows(
        shape: RowShape, scales: &[u8], codes: &[u8], residual: &[u8], dtype: DType, out: &mut [u8],
    ) -> () => restore_all;
}

/// Writes the elements of one slice of codes, times `factor`.
#[inline(always)]
fn decode<S: Simd, C: Coded, E: Element>(
    simd: S,
    factor: f32,
    codes: &[u8],
    residual: &[u8],
    out: &mut [u8],
) {
    let len = codes.len();
    assert!(out.len() == len * E::SIZE && residual.len() == C::residual_bytes(len), "slices of one row");
    let factor = simd.splat(factor);
    let mut at = 0;
    while at + S::LANES <= len {
        // SAFETY: LANES elements from `at` are inside the three slices; `at` is even.
        unsafe {
            let values = C::load(simd, codes.as_ptr().add(at), residual.as_ptr().add(C::residual_bytes(at)));
            E::store(simd, out.as_mut_ptr().add(at * E::SIZE), simd.mul(values, factor));
        }
        at += S::LANES;
    }
    if at < len {
        let (mut some_codes, mut some_residual, mut some_out) = ([0; 16], [0; 16], [0; 64]);
        let rest = &residual[C::residual_bytes(at)..];
        some_codes[..len - at].copy_from_slice(&codes[at..]);
        some_residual[..rest.len()].copy_from_slice(rest);
        // SAFETY: no vector has more than 16 lanes.
        unsafe {
            let values = C::load(simd, some_codes.as_ptr(), some_residual.as_ptr());
            E::store(simd, some_out.as_mut_ptr(), simd.mul(values, factor));
        }
        out[at * E::SIZE..].copy_from_slice(&some_out[..(len - at) * E::SIZE]);
    }
}

/// [`decode`] to bfloat16, of what needs no rounding there.
#[inline(always)]
fn decode_exact<S: Simd, C: Coded>(simd: S, factor: f32, codes: &[u8], residual: &[u8], out: &mut [u8]) {
    let len = codes.len();
    assert!(out.len() == len * 2 && residual.len() == C::residual_bytes(len), "slices of one row");
    let splat = simd.splat(factor);
    let mut at = 0;
    while at + 2 * S::LANES <= len {
        // SAFETY: 2 LANES elements from `at` are inside the three slices; `at` is even.
        unsafe {
            let (codes, next) = (codes.as_ptr().add(at), codes.as_ptr().add(at + S::LANES));
            let a = C::load(simd, codes, residual.as_ptr().add(C::residual_bytes(at)));
            let b = C::load(simd, next, residual.as_ptr().add(C::residual_bytes(at + S::LANES)));
            simd.store_exact_bf16(out.as_mut_ptr().add(at * 2), simd.mul(a, splat), simd.mul(b, splat));
        }
        at += 2 * S::LANES;
    }
    let residual = &residual[C::residual_bytes(at)..];
    decode::<S, C, Bf16>(simd, factor, &codes[at..], residual, &mut out[at * 2..]);
}

/// Whether codes and residuals of 4 bits with this scale are bfloat16 values: 8 significant
/// bits are, down to 2^-133, where the smallest subnormal's unit, 2^-13 scales, still is one.
fn is_exact(scale: u8, dtype: DType) -> bool {
    dtype == DType::Bf16 && scale >= 127 - 120
}

#[inline(always)]
fn decode_to<S: Simd, C: Coded>(
    simd: S,
    factor: f32,
    codes: &[u8],
    residual: &[u8],
    dtype: DType,
    out: &mut [u8],
) {
    match dtype {
        DType::F32 => decode::<S, C, F32>(simd, factor, codes, residual, out),
        DType::Bf16 => decode::<S, C, Bf16>(simd, factor, codes, residual, out),
        DType::F16 => decode::<S, C, F16>(simd, factor, codes, residual, out),
    }
}

#[inline(always)]
fn decode_slice<S: Simd>(simd: S, codes: &[u8], factor: f32, dtype: DType, out: &mut [u8]) {
    decode_to::<S, CodesOrNan>(simd, factor, codes, &[], dtype, out);
}

#[inline(always)]
fn decode_all<S: Simd>(simd: S, dim: usize, scales: &[u8], codes: &[u8], dtype: DType, out: &mut [u8]) {
    for (index, &scale) in scales.iter().enumerate() {
        let codes = part(codes, index, dim);
        let out = part_mut(out, index, dim * dtype.size());
        if !scalar::is_usual(scale) {
            scalar::decode_row(scale, codes, dtype, out);
        } else if is_exact(scale, dtype) {
            decode_exact::<S, Codes>(simd, scale_factor(scale), codes, &[], out);
        } else {
            decode_to::<S, Codes>(simd, scale_factor(scale), codes, &[], dtype, out);
        }
    }
}

#[inline(always)]
fn restore_all<S: Simd>(
    simd: S,
    shape: RowShape,
    scales: &[u8],
    codes: &[u8],
    residual: &[u8],
    dtype: DType,
    out: &mut [u8],
) {
    for (index, &scale) in scales.iter().enumerate() {
        let codes = part(codes, index, shape.code_bytes());
        let residual = part(residual, index, shape.residual_bytes());
        let out = part_mut(out, index, shape.dim * dtype.size());
        if !scalar::is_usual(scale) {
            scalar::restore_row(shape, scale, codes, residual, dtype, out);
        } else if shape.dtype == DType::F16 {
            decode_to::<S, With8>(simd, scale_factor(scale), codes, residual, dtype, out);
        } else if is_exact(scale, dtype) {
            decode_exact::<S, With4>(simd, scale_factor(scale), codes, residual, out);
        } else {
            decode_to::<S, With4>(simd, scale_factor(scale), codes, residual, dtype, out);
        }
    }
}

#[inline(always)]
fn encode_slice<S: Simd>(simd: S, dtype: DType, values: &[u8], inverse_scale: f32, codes: &mut [u8]) {
    match dtype {
        DType::F32 => encode::<S, F32>(simd, values, inverse_scale, codes),
        DType::Bf16 => encode::<S, Bf16>(simd, values, inverse_scale, codes),
        DType::F16 => encode::<S, F16>(simd, values, inverse_scale, codes),
    }
}

/// Writes the codes of one slice of elements, times `inverse_scale`.
#[inline(always)]
fn encode<S: Simd, E: Element>(simd: S, values: &[u8], inverse_scale: f32, codes: &mut [u8]) {
    let len = codes.len();
    assert!(values.len() == len * E::SIZE, "as many elements as codes");
    let factor = simd.splat(inverse_scale);
    let mut at = 0;
    while at + S::LANES <= len {
        // SAFETY: LANES elements from `at` are inside both slices.
        unsafe {
            let values = E::load(simd, values.as_ptr().add(at * E::SIZE));
            simd.store_fp8(codes.as_mut_ptr().add(at), simd.mul(values, factor));
        }
        at += S::LANES;
    }
    if at < len {
        let mut some = [0; 16];
        // SAFETY: fewer elements than a vector are left, and none has more than 16 lanes.
        unsafe {
            let values = load_some::<S, E>(simd, values.as_ptr().add(at * E::SIZE), len - at);
            simd.store_fp8(some.as_mut_ptr(), simd.mul(values, factor));
        }
        codes[at..].copy_from_slice(&some[..len - at]);
    }
}

/// What a row of elements keeps.
trait Kept: Element {
    /// How it is loaded again.
    type Planes: Coded;

    /// The kept value.
    fn keep<S: Simd>(simd: S, value: S::Floats) -> S::Floats;

    /// # Safety
    /// `codes` is valid for writes of `LANES` bytes, `residual` of the residuals of as many.
    unsafe fn store_planes<S: Simd>(simd: S, codes: *mut u8, residual: *mut u8, value: S::Floats);
}

impl Kept for F32 {
    type Planes = With4;

    #[inline(always)]
    fn keep<S: Simd>(simd: S, value: S::Floats) -> S::Floats {
        simd.round_bf16(value)
    }
    #[inline(always)]
    unsafe fn store_planes<S: Simd>(simd: S, codes: *mut u8, residual: *mut u8, value: S::Floats) {
        // SAFETY: the caller's.
        unsafe { simd.store_fp8_residual4(codes, residual, value) };
    }
}

impl Kept for Bf16 {
    type Planes = With4;

    #[inline(always)]
    fn keep<S: Simd>(_: S, value: S::Floats) -> S::Floats {
        value
    }
    #[inline(always)]
    unsafe fn store_planes<S: Simd>(simd: S, codes: *mut u8, residual: *mut u8, value: S::Floats) {
        // SAFETY: the caller's.
        unsafe { simd.store_fp8_residual4(codes, residual, value) };
    }
}

impl Kept for F16 {
    type Planes = With8;

    #[inline(always)]
    fn keep<S: Simd>(_: S, value: S::Floats) -> S::Floats {
        value
    }
    #[inline(always)]
    unsafe fn store_planes<S: Simd>(simd: S, codes: *mut u8, residual: *mut u8, value: S::Floats) {
        // SAFETY: the caller's.
        unsafe { simd.store_fp8_residual8(codes, residual, value) };
    }
}

#[inline(always)]
fn encode_all<S: Simd>(
    simd: S,
    shape: RowShape,
    rows: &[u8],
    scales: &mut [u8],
    codes: &mut [u8],
    residual: &mut [u8],
) {
    for (index, scale) in scales.iter_mut().enumerate() {
        let row = part(rows, index, shape.row_bytes());
        let codes = part_mut(codes, index, shape.code_bytes());
        let residual = part_mut(residual, index, shape.residual_bytes());
        *scale = match shape.dtype {
            DType::F32 => encode_row::<S, F32>(simd, row, codes, residual),
            DType::Bf16 => encode_row::<S, Bf16>(simd, row, codes, residual),
            DType::F16 => encode_row::<S, F16>(simd, row, codes, residual),
        };
    }
}

/// Encodes one row; gives its scale byte.
#[inline(always)]
fn encode_row<S: Simd, K: Kept>(simd: S, row: &[u8], codes: &mut [u8], residual: &mut [u8]) -> u8 {
    let len = codes.len();
    let bytes = K::Planes::residual_bytes;
    assert!(row.len() == len * K::SIZE && residual.len() == bytes(len), "slices of one row");
    let Some(largest) = largest_magnitude::<S, K>(simd, row) else {
        codes.fill(0);
        residual.fill(0);
        return NOT_FINITE;
    };
    let scale = scale_of(largest);
    let factor = simd.splat(inverse_scale(scale));
    let mut at = 0;
    while at + S::LANES <= len {
        // SAFETY: LANES elements from `at` are inside the three slices; `at` is even.
        unsafe {
            let values = K::keep(simd, K::load(simd, row.as_ptr().add(at * K::SIZE)));
            let (codes, residual) = (codes.as_mut_ptr().add(at), residual.as_mut_ptr().add(bytes(at)));
            K::store_planes(simd, codes, residual, simd.mul(values, factor));
        }
        at += S::LANES;
    }
    if at < len {
        let (mut some_codes, mut some_residual) = ([0; 16], [0; 16]);
        // SAFETY: fewer elements than a vector are left, and none has more than 16 lanes.
        unsafe {
            let values = load_some::<S, K>(simd, row.as_ptr().add(at * K::SIZE), len - at);
            let values = simd.mul(K::keep(simd, values), factor);
            K::store_planes(simd, some_codes.as_mut_ptr(), some_residual.as_mut_ptr(), values);
        }
        codes[at..].copy_from_slice(&some_codes[..len - at]);
        residual[bytes(at)..].copy_from_slice(&some_residual[..bytes(len) - bytes(at)]);
    }
    scale
}

/// The largest magnitude that a row keeps; `None` where one is not finite.
#[inline(always)]
fn largest_magnitude<S: Simd, K: Kept>(simd: S, row: &[u8]) -> Option<f32> {
    let len = row.len() / K::SIZE;
    let zero = simd.splat(0.0);
    // Zero times what is not finite is a NaN, which then stays.
    let (mut largest, mut zeros) = (zero, zero);
    let mut at = 0;
    while at < len {
        // SAFETY: as many elements as are left, a vector at most, are inside the row.
        let values = unsafe {
            let from = row.as_ptr().add(at * K::SIZE);
            if at + S::LANES <= len { K::load(simd, from) } else { load_some::<S, K>(simd, from, len - at) }
        };
        let values = K::keep(simd, values);
        largest = simd.max(simd.abs(values), largest);
        zeros = simd.fma(values, zero, zeros);
        at += S::LANES;
    }
    if simd.reduce_add(zeros).is_nan() { None } else { Some(simd.reduce_max(largest)) }
}
