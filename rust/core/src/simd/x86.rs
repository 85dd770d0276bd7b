//! The vector operations of x86-64: AVX2 with FMA and F16C, and AVX-512.

use std::arch::x86_64::{
    __m256, __m256i, __m512, _MM_HINT_T0, _mm_add_ps, _mm_add_ss, _mm_cvtss_f32, _mm_loadu_si128, _mm_max_ps,
    _mm_max_ss, _mm_movehdup_ps, _mm_movehl_ps, _mm_prefetch, _mm_storeu_ps, _mm256_add_epi32, _mm256_add_ps,
    _mm256_castpd_ps, _mm256_castps_pd, _mm256_castps256_ps128, _mm256_castsi256_ps, _mm256_cvtepu16_epi32,
    _mm256_cvtph_ps, _mm256_cvtps_epi32, _mm256_extractf128_ps, _mm256_fmadd_ps, _mm256_loadu_ps,
    _mm256_loadu_si256, _mm256_max_ps, _mm256_mul_ps, _mm256_set1_epi32, _mm256_set1_ps, _mm256_slli_epi32,
    _mm256_srai_epi32, _mm256_storeu_ps, _mm256_sub_epi32, _mm256_unpackhi_pd, _mm256_unpackhi_ps,
    _mm256_unpacklo_pd, _mm256_unpacklo_ps, _mm512_add_ps, _mm512_castpd_ps, _mm512_castps_pd,
    _mm512_castps512_ps256, _mm512_castsi512_ps, _mm512_cvtepu16_epi32, _mm512_cvtph_ps,
    _mm512_extractf32x8_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_max_ps, _mm512_mul_ps, _mm512_scalef_ps,
    _mm512_set1_ps, _mm512_slli_epi32, _mm512_storeu_ps, _mm512_unpackhi_pd, _mm512_unpackhi_ps,
    _mm512_unpacklo_pd, _mm512_unpacklo_ps,
};

use super::{Simd, SimdLevel};

/// Intrinsics inside methods of a witness.
macro_rules! vector {
    ($operation:expr) => {{
        // SAFETY: `self` exists only where the processor has the instructions; what a
        // pointer must be valid for is the contract of the method around.
        unsafe { $operation }
    }};
}

/// Witness of AVX-512 F, BW, DQ and VL.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    pub(crate) fn new() -> Option<Self> {
        SimdLevel::Avx512.is_supported().then_some(Self(()))
    }
}

impl Simd for Avx512 {
    type Floats = __m512;
    const LANES: usize = 16;
    const SUMS: usize = 24;

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        vector!(_mm512_set1_ps(value))
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        vector!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        vector!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        vector!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        vector!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn scale(self, a: __m512, n: __m512) -> __m512 {
        vector!(_mm512_scalef_ps(a, n))
    }
    #[inline(always)]
    fn reduce_add(self, a: __m512) -> f32 {
        let half = vector!(_mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a)));
        vector!(reduce_add_256(half))
    }
    #[inline(always)]
    fn reduce_max(self, a: __m512) -> f32 {
        let half = vector!(_mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a)));
        vector!(reduce_max_256(half))
    }
    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        vector!(_mm_prefetch::<_MM_HINT_T0>(at.cast()));
    }
    #[inline(always)]
    unsafe fn load_f32(self, at: *const u8) -> __m512 {
        vector!(_mm512_loadu_ps(at.cast()))
    }
    #[inline(always)]
    unsafe fn load_bf16(self, at: *const u8) -> __m512 {
        let widened = vector!(_mm512_cvtepu16_epi32(_mm256_loadu_si256(at.cast())));
        vector!(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(widened)))
    }
    #[inline(always)]
    unsafe fn load_f16(self, at: *const u8) -> __m512 {
        vector!(_mm512_cvtph_ps(_mm256_loadu_si256(at.cast())))
    }
    #[inline(always)]
    unsafe fn store(self, at: *mut f32, a: __m512) {
        vector!(_mm512_storeu_ps(at, a));
    }
    #[inline(always)]
    unsafe fn store_sums(self, at: *mut f32, [a, b, c, d]: [__m512; 4]) {
        // Within each 128-bit lane: halves of a and b, of c and d, then all four.
        let ab = vector!(_mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)));
        let cd = vector!(_mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d)));
        let (ab, cd) = vector!((_mm512_castps_pd(ab), _mm512_castps_pd(cd)));
        let (low, high) = vector!((_mm512_unpacklo_pd(ab, cd), _mm512_unpackhi_pd(ab, cd)));
        let sums = vector!(_mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high)));
        let sums = vector!(_mm256_add_ps(_mm512_castps512_ps256(sums), _mm512_extractf32x8_ps::<1>(sums)));
        vector!(store_lanes_sum_256(at, sums));
    }
}

/// Witness of AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    pub(crate) fn new() -> Option<Self> {
        SimdLevel::Avx2.is_supported().then_some(Self(()))
    }
}

impl Simd for Avx2 {
    type Floats = __m256;
    const LANES: usize = 8;
    const SUMS: usize = 8;

    #[inline(always)]
    fn splat(self, value: f32) -> __m256 {
        vector!(_mm256_set1_ps(value))
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        vector!(_mm256_add_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        vector!(_mm256_mul_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        vector!(_mm256_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        vector!(_mm256_max_ps(a, b))
    }
    #[inline(always)]
    fn scale(self, a: __m256, n: __m256) -> __m256 {
        // In two halves, of which only the second can round to a subnormal.
        let n = vector!(_mm256_cvtps_epi32(n));
        let half = vector!(_mm256_srai_epi32::<1>(n));
        let rest = vector!(_mm256_sub_epi32(n, half));
        vector!(_mm256_mul_ps(_mm256_mul_ps(a, pow2_256(half)), pow2_256(rest)))
    }
    #[inline(always)]
    fn reduce_add(self, a: __m256) -> f32 {
        vector!(reduce_add_256(a))
    }
    #[inline(always)]
    fn reduce_max(self, a: __m256) -> f32 {
        vector!(reduce_max_256(a))
    }
    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        vector!(_mm_prefetch::<_MM_HINT_T0>(at.cast()));
    }
    #[inline(always)]
    unsafe fn load_f32(self, at: *const u8) -> __m256 {
        vector!(_mm256_loadu_ps(at.cast()))
    }
    #[inline(always)]
    unsafe fn load_bf16(self, at: *const u8) -> __m256 {
        let widened = vector!(_mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast())));
        vector!(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(widened)))
    }
    #[inline(always)]
    unsafe fn load_f16(self, at: *const u8) -> __m256 {
        vector!(_mm256_cvtph_ps(_mm_loadu_si128(at.cast())))
    }
    #[inline(always)]
    unsafe fn store(self, at: *mut f32, a: __m256) {
        vector!(_mm256_storeu_ps(at, a));
    }
    #[inline(always)]
    unsafe fn store_sums(self, at: *mut f32, [a, b, c, d]: [__m256; 4]) {
        let ab = vector!(_mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b)));
        let cd = vector!(_mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d)));
        let (ab, cd) = vector!((_mm256_castps_pd(ab), _mm256_castps_pd(cd)));
        let (low, high) = vector!((_mm256_unpacklo_pd(ab, cd), _mm256_unpackhi_pd(ab, cd)));
        let sums = vector!(_mm256_add_ps(_mm256_castpd_ps(low), _mm256_castpd_ps(high)));
        vector!(store_lanes_sum_256(at, sums));
    }
}

/// 2^n, lane by lane, for n in the normal range.
#[target_feature(enable = "avx2")]
#[inline]
fn pow2_256(n: __m256i) -> __m256 {
    _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(n, _mm256_set1_epi32(127))))
}

#[target_feature(enable = "avx2")]
#[inline]
fn reduce_add_256(a: __m256) -> f32 {
    let sums = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
    let sums = _mm_add_ps(sums, _mm_movehl_ps(sums, sums));
    _mm_cvtss_f32(_mm_add_ss(sums, _mm_movehdup_ps(sums)))
}

#[target_feature(enable = "avx2")]
#[inline]
fn reduce_max_256(a: __m256) -> f32 {
    let max = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
    let max = _mm_max_ps(max, _mm_movehl_ps(max, max));
    _mm_cvtss_f32(_mm_max_ss(max, _mm_movehdup_ps(max)))
}

/// Writes the sum of the two 128-bit lanes.
///
/// # Safety
/// `at` is valid for writes of 4 floats.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn store_lanes_sum_256(at: *mut f32, a: __m256) {
    let sums = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
    // SAFETY: the caller's.
    unsafe { _mm_storeu_ps(at, sums) };
}
