//! One kernel, written over the few vector operations that it needs.
//!
//! A [`Simd`] value is a witness: it exists only where the processor has its
//! instructions, which makes arithmetic on it safe; only loads and stores are not. The
//! whole kernel is inlined into one function per instruction set that enables those
//! instructions, because a function that does not is compiled without them, and a vector
//! passed to or from it would travel through memory. For the same reason there are no
//! closures here.

#![expect(unsafe_code, reason = "vector intrinsics, and loads and stores through checked pointers")]
#![expect(
    clippy::inline_always,
    reason = "see above: what is not inlined is compiled without the instructions"
)]
#![expect(clippy::needless_range_loop, reason = "indices below constants unroll into registers")]

mod kernel;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod x86;

use super::{Mass, Running, SimdLevel, Tile};

/// Runs the kernel of exactly `level`; false where there is none on this machine.
pub(super) fn attend(
    level: SimdLevel,
    q: &[f32],
    rows: usize,
    tile: &Tile<'_>,
    next: Option<&Tile<'_>>,
    state: &mut Running<'_>,
    mass: &mut Mass<'_>,
) -> bool {
    match level {
        #[cfg(target_arch = "x86_64")]
        SimdLevel::Avx512 => x86::avx512(q, rows, tile, next, state, mass),
        #[cfg(target_arch = "x86_64")]
        SimdLevel::Avx2 => x86::avx2(q, rows, tile, next, state, mass),
        #[cfg(target_arch = "aarch64")]
        SimdLevel::Neon => neon::neon(q, rows, tile, next, state, mass),
        _ => false,
    }
}

/// Vectors of float32 of one instruction set.
trait Simd: Copy {
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
    /// The greater; `b` where either is a NaN.
    fn max(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a * 2^n` for integral `n` in -151..=0 and `a` in 0.5..2, rounded once.
    fn scale(self, a: Self::Floats, n: Self::Floats) -> Self::Floats;
    fn reduce_add(self, a: Self::Floats) -> f32;
    fn reduce_max(self, a: Self::Floats) -> f32;
    /// Asks for the cache line of `at`, which may be any address.
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
}

/// How elements become float32; always exact.
trait Element {
    /// Bytes per element.
    const SIZE: usize;

    /// # Safety
    /// `at` is valid for reads of `LANES` elements; any alignment.
    unsafe fn load<S: Simd>(simd: S, at: *const u8) -> S::Floats;
}

struct F32;
struct Bf16;
struct F16;

impl Element for F32 {
    const SIZE: usize = 4;

    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, at: *const u8) -> S::Floats {
        // SAFETY: the caller's.
        unsafe { simd.load_f32(at) }
    }
}

impl Element for Bf16 {
    const SIZE: usize = 2;

    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, at: *const u8) -> S::Floats {
        // SAFETY: the caller's.
        unsafe { simd.load_bf16(at) }
    }
}

impl Element for F16 {
    const SIZE: usize = 2;

    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, at: *const u8) -> S::Floats {
        // SAFETY: the caller's.
        unsafe { simd.load_f16(at) }
    }
}
