//! How codes, alone or with residuals, become vectors: shared by the codecs and by kernels
//! that read planes as they are.

#![expect(unsafe_code, reason = "loads through pointers")]
#![expect(clippy::inline_always, reason = "what is not inlined is compiled without the instructions")]

use crate::simd::Simd;

/// What codes, alone or with residuals, are loaded as.
pub(crate) trait Coded {
    /// Bytes of residuals of `len` elements.
    fn residual_bytes(len: usize) -> usize;

    /// # Safety
    /// `codes` is valid for reads of `LANES` bytes, `residual` of the residuals of as many.
    unsafe fn load<S: Simd>(simd: S, codes: *const u8, residual: *const u8) -> S::Floats;
}

/// Codes of which 0x7f and 0xff are NaN.
pub(crate) struct CodesOrNan;
/// Codes of a row.
pub(crate) struct Codes;
/// With residuals of 4 bits.
pub(crate) struct With4;
/// With residuals of a byte.
pub(crate) struct With8;

impl Coded for CodesOrNan {
    #[inline(always)]
    fn residual_bytes(_: usize) -> usize {
        0
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, codes: *const u8, _: *const u8) -> S::Floats {
        // SAFETY: the caller's.
        unsafe { simd.load_fp8_or_nan(codes) }
    }
}

impl Coded for Codes {
    #[inline(always)]
    fn residual_bytes(_: usize) -> usize {
        0
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, codes: *const u8, _: *const u8) -> S::Floats {
        // SAFETY: the caller's.
        unsafe { simd.load_fp8(codes) }
    }
}

impl Coded for With4 {
    #[inline(always)]
    fn residual_bytes(len: usize) -> usize {
        len.div_ceil(2)
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, codes: *const u8, residual: *const u8) -> S::Floats {
        // SAFETY: the caller's.
        unsafe { simd.load_fp8_residual4(codes, residual) }
    }
}

impl Coded for With8 {
    #[inline(always)]
    fn residual_bytes(len: usize) -> usize {
        len
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, codes: *const u8, residual: *const u8) -> S::Floats {
        // SAFETY: the caller's.
        unsafe { simd.load_fp8_residual8(codes, residual) }
    }
}
