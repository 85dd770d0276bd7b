//! The vector operations that kernels are written over, shared by the rooms that have
//! kernels.
//!
//! A [`Simd`] value is a witness: it exists only where the processor has its
//! instructions, which makes arithmetic on it safe; only loads and stores are not. A
//! whole kernel is inlined into one function per instruction set that enables those
//! instructions ([`dispatch`] writes these functions), because a function that does not
//! is compiled without them, and a vector passed to or from it would travel through
//! memory. For the same reason kernels are `#[inline(always)]` and have no closures.

#![expect(unsafe_code, reason = "vector intrinsics, and loads and stores through checked pointers")]
#![expect(
    clippy::inline_always,
    reason = "see above: what is not inlined is compiled without the instructions"
)]

mod bytes;
mod element;
mod exp;
mod level;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86;

pub(crate) use bytes::Bytes;
pub(crate) use element::{Bf16, Element, F16, F32, load_some};
pub(crate) use exp::{exp, exp_vector};
pub use level::SimdLevel;

/// Bytes that come from memory together.
#[cfg(target_arch = "x86_64")]
const CACHE_LINE: usize = 64;

/// Writes a function that runs a kernel with the instructions of exactly one level.
///
/// `fn name(argument: type, …) -> result => kernel;` becomes
/// `fn name(level, argument, …) -> Option<result>`, which is `None` where this machine has
/// no such vectors: the caller has a scalar twin. `kernel` is a path to an
/// `#[inline(always)]` function of a witness and the same arguments.
macro_rules! dispatch {
    (
        $(#[$meta:meta])*
        $visibility:vis fn $name:ident($($argument:ident: $kind:ty),* $(,)?) -> $result:ty => $kernel:path;
    ) => {
        $(#[$meta])*
        $visibility fn $name(level: $crate::simd::SimdLevel, $($argument: $kind),*) -> Option<$result> {
            match level {
                #[cfg(target_arch = "x86_64")]
                $crate::simd::SimdLevel::Avx512 => {
                    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
                    fn enabled(simd: $crate::simd::x86::Avx512, $($argument: $kind),*) -> $result {
                        $kernel(simd, $($argument),*)
                    }
                    let simd = $crate::simd::x86::Avx512::new()?;
                    // SAFETY: the witness says that the instructions are there.
                    Some(unsafe { enabled(simd, $($argument),*) })
                }
                #[cfg(target_arch = "x86_64")]
                $crate::simd::SimdLevel::Avx2 => {
                    #[target_feature(enable = "avx2,fma,f16c")]
                    fn enabled(simd: $crate::simd::x86::Avx2, $($argument: $kind),*) -> $result {
                        $kernel(simd, $($argument),*)
                    }
                    let simd = $crate::simd::x86::Avx2::new()?;
                    // SAFETY: the witness says that the instructions are there.
                    Some(unsafe { enabled(simd, $($argument),*) })
                }
                // NEON is enabled wherever the architecture is.
                #[cfg(target_arch = "aarch64")]
                $crate::simd::SimdLevel::Neon => Some($kernel($crate::simd::neon::Neon::new()?, $($argument),*)),
                _ => None,
            }
        }
    };
}
pub(crate) use dispatch;

/// Asks for the cache lines of some values that are read soon, where stable Rust offers that: into the
/// second level, see [`Simd::prefetch`].
#[inline]
pub(crate) fn prefetch<T>(values: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..size_of_val(values)).step_by(CACHE_LINE) {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: part of the architecture, and it reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(values.as_ptr().cast::<i8>().wrapping_add(line)) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = values;
}

/// The same into the first level: for what is small and far from all that was read before it. On an AMD EPYC
/// (Zen 5), summaries at random were estimated twice as fast as with lines in the second level.
#[inline(always)]
pub(crate) fn prefetch_near<T>(values: &[T]) {
    let (at, len) = (values.as_ptr().cast::<u8>(), size_of_val(values));
    for line in (0..len).step_by(64).chain([len.saturating_sub(1)]) {
        prefetch_at(at.wrapping_add(line));
    }
}

/// The same for the line of an address, which may be any.
#[inline(always)]
pub(crate) fn prefetch_at<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: part of the architecture, and it reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Vectors of float32 of one instruction set.
pub(crate) trait Simd: Copy {
    /// A vector.
    type Floats: Copy;
    /// Floats in a vector; at most 16.
    const LANES: usize;
    /// Sums that fit the registers beside their operands.
    const SUMS: usize;

    fn splat(self, value: f32) -> Self::Floats;
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    fn abs(self, a: Self::Floats) -> Self::Floats;
    /// The greater; `b` where either is a NaN.
    fn max(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a * 2^n` for integral `n` in -151..=0 and `a` in 0.5..2, rounded once.
    fn scale(self, a: Self::Floats, n: Self::Floats) -> Self::Floats;
    /// A bit for each lane, the first one's the lowest, where `a` is at least `b`.
    fn at_least(self, a: Self::Floats, b: Self::Floats) -> u32;
    fn reduce_add(self, a: Self::Floats) -> f32;
    fn reduce_max(self, a: Self::Floats) -> f32;
    /// Rounded to bfloat16, to nearest, ties to even; a NaN stays one.
    fn round_bf16(self, a: Self::Floats) -> Self::Floats;
    /// Asks for the cache line of `at`, which may be any address, to be brought as far as the second
    /// level: the few requests that the first level can have under way are then left to
    /// loads. On an AMD EPYC (Zen 4), attention over 64 MiB went from 0.53 of a read's speed to 0.65.
    fn prefetch(self, at: *const u8);

    /// # Safety
    /// `at` is valid for reads of `LANES` floats; any alignment.
    unsafe fn load_f32(self, at: *const u8) -> Self::Floats;
    /// # Safety
    /// `at` is valid for reads of `LANES` 16-bit elements; any alignment.
    unsafe fn load_bf16(self, at: *const u8) -> Self::Floats;
    /// # Safety
    /// `at` is valid for reads of `LANES` 16-bit elements; any alignment.
    unsafe fn load_f16(self, at: *const u8) -> Self::Floats;
    /// # Safety
    /// `at` is valid for writes of `LANES` floats.
    unsafe fn store(self, at: *mut f32, a: Self::Floats);
    /// Writes the sums of the four vectors' lanes.
    ///
    /// # Safety
    /// `at` is valid for writes of 4 floats.
    unsafe fn store_sums(self, at: *mut f32, a: [Self::Floats; 4]);

    /// FP8 codes as their values times 2^-8 ([`crate::codec::scale_factor`] makes up for
    /// it). No code is a NaN's: 0x7f and 0xff are read as +-480.
    ///
    /// # Safety
    /// `at` is valid for reads of `LANES` bytes.
    unsafe fn load_fp8(self, at: *const u8) -> Self::Floats;
    /// [`Simd::load_fp8`] of any codes; 0x7f and 0xff give a NaN.
    ///
    /// # Safety
    /// `at` is valid for reads of `LANES` bytes.
    unsafe fn load_fp8_or_nan(self, at: *const u8) -> Self::Floats;
    /// The 16-bit values of a bfloat16 row, times 2^-8: codes with residuals of 4 bits, the
    /// even lane's in the low half of a byte.
    ///
    /// # Safety
    /// `codes` is valid for reads of `LANES` bytes, `residual` of half as many.
    unsafe fn load_fp8_residual4(self, codes: *const u8, residual: *const u8) -> Self::Floats;
    /// The 16-bit values of a float16 row, times 2^-8: codes with residuals of a byte.
    ///
    /// # Safety
    /// `codes` and `residual` are valid for reads of `LANES` bytes.
    unsafe fn load_fp8_residual8(self, codes: *const u8, residual: *const u8) -> Self::Floats;
    /// Rounds to bfloat16, to nearest, ties to even; a NaN stays one.
    ///
    /// # Safety
    /// `at` is valid for writes of `LANES` 16-bit elements; any alignment.
    unsafe fn store_bf16(self, at: *mut u8, a: Self::Floats);
    /// Stores bfloat16 values, `a` before `b`: what is not one is cut off.
    ///
    /// # Safety
    /// `at` is valid for writes of 2 `LANES` 16-bit elements; any alignment.
    unsafe fn store_exact_bf16(self, at: *mut u8, a: Self::Floats, b: Self::Floats);
    /// Rounds to float16, to nearest, ties to even; a NaN stays one.
    ///
    /// # Safety
    /// `at` is valid for writes of `LANES` 16-bit elements; any alignment.
    unsafe fn store_f16(self, at: *mut u8, a: Self::Floats);
    /// Rounds to FP8 codes, to nearest, ties to even; what is too large becomes +-448, and
    /// a NaN 0x7f with its sign.
    ///
    /// # Safety
    /// `at` is valid for writes of `LANES` bytes.
    unsafe fn store_fp8(self, at: *mut u8, a: Self::Floats);
    /// The inverse of [`Simd::load_fp8_residual4`], without its factor, for values of at most
    /// 8 significant bits and 448 in magnitude; those below 2^-6 are rounded to multiples
    /// of 2^-13, ties to even.
    ///
    /// # Safety
    /// `codes` is valid for writes of `LANES` bytes, `residual` of half as many.
    unsafe fn store_fp8_residual4(self, codes: *mut u8, residual: *mut u8, a: Self::Floats);
    /// The inverse of [`Simd::load_fp8_residual8`], without its factor, for values of at most
    /// 11 significant bits and 448 in magnitude; those below 2^-6 are rounded to multiples
    /// of 2^-16, ties to even.
    ///
    /// # Safety
    /// `codes` and `residual` are valid for writes of `LANES` bytes.
    unsafe fn store_fp8_residual8(self, codes: *mut u8, residual: *mut u8, a: Self::Floats);
}
