//! The element types that kernels load as float32.

use super::Simd;

/// How elements become float32, always exactly, and float32 becomes elements.
pub(crate) trait Element {
    /// Bytes per element.
    const SIZE: usize;

    /// # Safety
    /// `at` is valid for reads of `LANES` elements; any alignment.
    unsafe fn load<S: Simd>(simd: S, at: *const u8) -> S::Floats;

    /// Rounds to nearest, ties to even.
    ///
    /// # Safety
    /// `at` is valid for writes of `LANES` elements; any alignment.
    unsafe fn store<S: Simd>(simd: S, at: *mut u8, a: S::Floats);
}

pub(crate) struct F32;
pub(crate) struct Bf16;
pub(crate) struct F16;

impl Element for F32 {
    const SIZE: usize = 4;

    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, at: *const u8) -> S::Floats {
        // SAFETY: the caller's.
        unsafe { simd.load_f32(at) }
    }

    #[inline(always)]
    unsafe fn store<S: Simd>(simd: S, at: *mut u8, a: S::Floats) {
        // SAFETY: the caller's.
        unsafe { simd.store(at.cast(), a) }
    }
}

impl Element for Bf16 {
    const SIZE: usize = 2;

    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, at: *const u8) -> S::Floats {
        // SAFETY: the caller's.
        unsafe { simd.load_bf16(at) }
    }

    #[inline(always)]
    unsafe fn store<S: Simd>(simd: S, at: *mut u8, a: S::Floats) {
        // SAFETY: the caller's.
        unsafe { simd.store_bf16(at, a) }
    }
}

impl Element for F16 {
    const SIZE: usize = 2;

    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, at: *const u8) -> S::Floats {
        // SAFETY: the caller's.
        unsafe { simd.load_f16(at) }
    }

    #[inline(always)]
    unsafe fn store<S: Simd>(simd: S, at: *mut u8, a: S::Floats) {
        // SAFETY: the caller's.
        unsafe { simd.store_f16(at, a) }
    }
}

/// `len` elements, fewer than a vector, followed by zeros.
///
/// # Safety
/// `at` is valid for reads of `len` elements, and `len` is at most `LANES`.
#[inline(always)]
pub(crate) unsafe fn load_some<S: Simd, E: Element>(simd: S, at: *const u8, len: usize) -> S::Floats {
    let mut bytes = [0_u8; 64];
    // SAFETY: the caller's; 16 elements of 4 bytes are the most.
    unsafe {
        std::ptr::copy_nonoverlapping(at, bytes.as_mut_ptr(), len * E::SIZE);
        E::load(simd, bytes.as_ptr())
    }
}
