//! The vector operations of x86-64: AVX2 with FMA and F16C, and AVX-512.

use std::arch::x86_64::{
    __m128i, __m256, __m256i, __m512, __m512i, _CMP_GE_OQ, _CMP_LT_OQ, _CMP_UNORD_Q, _MM_FROUND_NO_EXC,
    _MM_FROUND_TO_NEAREST_INT, _MM_HINT_T1, _mm_add_epi16, _mm_add_ps, _mm_add_ss, _mm_and_si128,
    _mm_cvtepi8_epi16, _mm_cvtsi32_si128, _mm_cvtsi128_si32, _mm_cvtss_f32, _mm_loadl_epi64, _mm_loadu_si128,
    _mm_maddubs_epi16, _mm_max_ps, _mm_max_ss, _mm_movehdup_ps, _mm_movehl_ps, _mm_mullo_epi16, _mm_or_si128,
    _mm_packus_epi16, _mm_packus_epi32, _mm_prefetch, _mm_set1_epi16, _mm_set1_epi32, _mm_setr_epi8,
    _mm_setzero_si128, _mm_shuffle_epi8, _mm_srai_epi16, _mm_storel_epi64, _mm_storeu_ps, _mm_storeu_si128,
    _mm_unpacklo_epi8, _mm256_add_epi16, _mm256_add_epi32, _mm256_add_ps, _mm256_and_si256, _mm256_andnot_ps,
    _mm256_blendv_epi8, _mm256_castpd_ps, _mm256_castps_pd, _mm256_castps_si256, _mm256_castps256_ps128,
    _mm256_castsi256_ps, _mm256_castsi256_si128, _mm256_cmp_ps, _mm256_cvtepi8_epi16, _mm256_cvtepu8_epi16,
    _mm256_cvtepu16_epi32, _mm256_cvtph_ps, _mm256_cvtps_epi32, _mm256_cvtps_ph, _mm256_extractf128_ps,
    _mm256_extracti128_si256, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_max_ps,
    _mm256_min_ps, _mm256_movemask_ps, _mm256_mul_ps, _mm256_mullo_epi16, _mm256_or_si256,
    _mm256_packus_epi32, _mm256_permute4x64_epi64, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_epi64x,
    _mm256_set1_ps, _mm256_setr_epi8, _mm256_shuffle_epi8, _mm256_slli_epi16, _mm256_slli_epi32,
    _mm256_srai_epi16, _mm256_srai_epi32, _mm256_srli_epi32, _mm256_storeu_ps, _mm256_storeu_si256,
    _mm256_sub_epi32, _mm256_unpackhi_pd, _mm256_unpackhi_ps, _mm256_unpacklo_pd, _mm256_unpacklo_ps,
    _mm512_abs_ps, _mm512_add_epi32, _mm512_add_ps, _mm512_and_si512, _mm512_castpd_ps, _mm512_castps_pd,
    _mm512_castps_si512, _mm512_castps512_ps256, _mm512_castsi512_ps, _mm512_cmp_ps_mask,
    _mm512_cvtepi32_epi8, _mm512_cvtepi32_epi16, _mm512_cvtepu16_epi32, _mm512_cvtph_ps, _mm512_cvtps_ph,
    _mm512_extractf32x8_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mask_mov_epi32, _mm512_mask_or_epi32,
    _mm512_max_ps, _mm512_min_ps, _mm512_mul_ps, _mm512_or_si512, _mm512_scalef_ps, _mm512_set1_epi32,
    _mm512_set1_ps, _mm512_slli_epi32, _mm512_srli_epi32, _mm512_storeu_ps, _mm512_sub_epi32,
    _mm512_unpackhi_pd, _mm512_unpackhi_ps, _mm512_unpacklo_pd, _mm512_unpacklo_ps,
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
    fn abs(self, a: __m512) -> __m512 {
        vector!(_mm512_abs_ps(a))
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
    fn at_least(self, a: __m512, b: __m512) -> u32 {
        u32::from(vector!(_mm512_cmp_ps_mask::<_CMP_GE_OQ>(a, b)))
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
    fn round_bf16(self, a: __m512) -> __m512 {
        let high = vector!(_mm512_set1_epi32(0xffff_0000_u32.cast_signed()));
        vector!(_mm512_castsi512_ps(_mm512_and_si512(bf16_bits_512(a), high)))
    }
    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        vector!(_mm_prefetch::<_MM_HINT_T1>(at.cast()));
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
    #[inline(always)]
    unsafe fn load_fp8(self, at: *const u8) -> __m512 {
        vector!(_mm512_cvtph_ps(halves_of_fp8_256(_mm_loadu_si128(at.cast()))))
    }
    #[inline(always)]
    unsafe fn load_fp8_or_nan(self, at: *const u8) -> __m512 {
        let halves = vector!(halves_of_fp8_256(_mm_loadu_si128(at.cast())));
        // Only 0x7f carries into the exponent's highest bit.
        let carry = vector!(_mm256_add_epi16(halves, _mm256_set1_epi16(0x80)));
        let nan = vector!(_mm256_and_si256(carry, _mm256_set1_epi16(0x4000)));
        vector!(_mm512_cvtph_ps(_mm256_or_si256(halves, nan)))
    }
    #[inline(always)]
    unsafe fn load_fp8_residual4(self, codes: *const u8, residual: *const u8) -> __m512 {
        let halves = vector!(halves_of_fp8_256(_mm_loadu_si128(codes.cast())));
        // As `residuals_of_nibbles_128`: bytes 0 to 3 for the low lanes, 4 to 7 for the high.
        let bytes = vector!(_mm256_set1_epi64x(residual.cast::<i64>().read_unaligned()));
        let to_lanes = vector!(_mm256_setr_epi8(
            -1, 0, -1, 0, -1, 1, -1, 1, -1, 2, -1, 2, -1, 3, -1, 3, -1, 4, -1, 4, -1, 5, -1, 5, -1, 6, -1, 6,
            -1, 7, -1, 7
        ));
        let to_top = vector!(_mm256_set1_epi32(0x0001_0010));
        let top = vector!(_mm256_mullo_epi16(_mm256_shuffle_epi8(bytes, to_lanes), to_top));
        let residuals = vector!(_mm256_and_si256(_mm256_srai_epi16::<9>(top), _mm256_set1_epi16(!7)));
        vector!(_mm512_cvtph_ps(_mm256_add_epi16(halves, residuals)))
    }
    #[inline(always)]
    unsafe fn load_fp8_residual8(self, codes: *const u8, residual: *const u8) -> __m512 {
        let halves = vector!(halves_of_fp8_256(_mm_loadu_si128(codes.cast())));
        let residuals = vector!(_mm256_cvtepi8_epi16(_mm_loadu_si128(residual.cast())));
        vector!(_mm512_cvtph_ps(_mm256_add_epi16(halves, residuals)))
    }
    #[inline(always)]
    unsafe fn store_bf16(self, at: *mut u8, a: __m512) {
        let halves = vector!(_mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(bf16_bits_512(a))));
        vector!(_mm256_storeu_si256(at.cast(), halves));
    }
    #[inline(always)]
    unsafe fn store_exact_bf16(self, at: *mut u8, a: __m512, b: __m512) {
        let a = vector!(_mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(_mm512_castps_si512(a))));
        let b = vector!(_mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(_mm512_castps_si512(b))));
        vector!(_mm256_storeu_si256(at.cast(), a));
        vector!(_mm256_storeu_si256(at.add(32).cast(), b));
    }
    #[inline(always)]
    unsafe fn store_f16(self, at: *mut u8, a: __m512) {
        let halves = vector!(_mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a));
        vector!(_mm256_storeu_si256(at.cast(), halves));
    }
    #[inline(always)]
    unsafe fn store_fp8(self, at: *mut u8, a: __m512) {
        let magnitude = vector!(_mm512_min_ps(_mm512_abs_ps(a), _mm512_set1_ps(448.0)));
        let codes = vector!(e4m_512::<20>(magnitude));
        let nan = vector!(_mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a, a));
        let codes = vector!(_mm512_mask_mov_epi32(codes, nan, _mm512_set1_epi32(0x7f)));
        let codes = vector!(_mm512_or_si512(codes, sign_512(a)));
        vector!(_mm_storeu_si128(at.cast(), _mm512_cvtepi32_epi8(codes)));
    }
    #[inline(always)]
    unsafe fn store_fp8_residual4(self, codes: *mut u8, residual: *mut u8, a: __m512) {
        let whole = vector!(e4m_512::<16>(_mm512_abs_ps(a)));
        let rounded = vector!(_mm512_srli_epi32::<4>(_mm512_add_epi32(whole, _mm512_set1_epi32(8))));
        let rounded = vector!(_mm512_or_si512(rounded, sign_512(a)));
        vector!(_mm_storeu_si128(codes.cast(), _mm512_cvtepi32_epi8(rounded)));
        let nibbles = vector!(_mm512_cvtepi32_epi8(_mm512_and_si512(whole, _mm512_set1_epi32(15))));
        let pairs = vector!(_mm_maddubs_epi16(nibbles, _mm_set1_epi16(0x1001)));
        vector!(_mm_storel_epi64(residual.cast(), _mm_packus_epi16(pairs, pairs)));
    }
    #[inline(always)]
    unsafe fn store_fp8_residual8(self, codes: *mut u8, residual: *mut u8, a: __m512) {
        let whole = vector!(e4m_512::<13>(_mm512_abs_ps(a)));
        let rounded = vector!(_mm512_srli_epi32::<7>(_mm512_add_epi32(whole, _mm512_set1_epi32(64))));
        let rest = vector!(_mm512_sub_epi32(whole, _mm512_slli_epi32::<7>(rounded)));
        let rounded = vector!(_mm512_or_si512(rounded, sign_512(a)));
        vector!(_mm_storeu_si128(codes.cast(), _mm512_cvtepi32_epi8(rounded)));
        vector!(_mm_storeu_si128(residual.cast(), _mm512_cvtepi32_epi8(rest)));
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
    fn abs(self, a: __m256) -> __m256 {
        vector!(_mm256_andnot_ps(_mm256_set1_ps(-0.0), a))
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
    fn at_least(self, a: __m256, b: __m256) -> u32 {
        vector!(_mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GE_OQ>(a, b))).cast_unsigned()
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
    fn round_bf16(self, a: __m256) -> __m256 {
        let high = vector!(_mm256_set1_epi32(0xffff_0000_u32.cast_signed()));
        vector!(_mm256_castsi256_ps(_mm256_and_si256(bf16_bits_256(a), high)))
    }
    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        vector!(_mm_prefetch::<_MM_HINT_T1>(at.cast()));
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
    #[inline(always)]
    unsafe fn load_fp8(self, at: *const u8) -> __m256 {
        vector!(_mm256_cvtph_ps(halves_of_fp8_128(_mm_loadl_epi64(at.cast()))))
    }
    #[inline(always)]
    unsafe fn load_fp8_or_nan(self, at: *const u8) -> __m256 {
        let halves = vector!(halves_of_fp8_128(_mm_loadl_epi64(at.cast())));
        // Only 0x7f carries into the exponent's highest bit.
        let carry = vector!(_mm_add_epi16(halves, _mm_set1_epi16(0x80)));
        let nan = vector!(_mm_and_si128(carry, _mm_set1_epi16(0x4000)));
        vector!(_mm256_cvtph_ps(_mm_or_si128(halves, nan)))
    }
    #[inline(always)]
    unsafe fn load_fp8_residual4(self, codes: *const u8, residual: *const u8) -> __m256 {
        let halves = vector!(halves_of_fp8_128(_mm_loadl_epi64(codes.cast())));
        let residuals = vector!(residuals_of_nibbles_128(residual.cast::<i32>().read_unaligned()));
        vector!(_mm256_cvtph_ps(_mm_add_epi16(halves, residuals)))
    }
    #[inline(always)]
    unsafe fn load_fp8_residual8(self, codes: *const u8, residual: *const u8) -> __m256 {
        let halves = vector!(halves_of_fp8_128(_mm_loadl_epi64(codes.cast())));
        let residuals = vector!(_mm_cvtepi8_epi16(_mm_loadl_epi64(residual.cast())));
        vector!(_mm256_cvtph_ps(_mm_add_epi16(halves, residuals)))
    }
    #[inline(always)]
    unsafe fn store_bf16(self, at: *mut u8, a: __m256) {
        let bits = vector!(_mm256_srli_epi32::<16>(bf16_bits_256(a)));
        vector!(_mm_storeu_si128(at.cast(), pack_u16_256(bits)));
    }
    #[inline(always)]
    unsafe fn store_exact_bf16(self, at: *mut u8, a: __m256, b: __m256) {
        let a = vector!(_mm256_srli_epi32::<16>(_mm256_castps_si256(a)));
        let b = vector!(_mm256_srli_epi32::<16>(_mm256_castps_si256(b)));
        // Packing goes by halves of 128 bits: the middle quarters change places.
        let halves = vector!(_mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(a, b)));
        vector!(_mm256_storeu_si256(at.cast(), halves));
    }
    #[inline(always)]
    unsafe fn store_f16(self, at: *mut u8, a: __m256) {
        vector!(_mm_storeu_si128(at.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(a)));
    }
    #[inline(always)]
    unsafe fn store_fp8(self, at: *mut u8, a: __m256) {
        let magnitude = vector!(_mm256_min_ps(self.abs(a), _mm256_set1_ps(448.0)));
        let codes = vector!(e4m_256::<20>(magnitude));
        let nan = vector!(_mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(a, a)));
        let codes = vector!(_mm256_or_si256(codes, _mm256_and_si256(nan, _mm256_set1_epi32(0x7f))));
        let codes = vector!(_mm256_or_si256(codes, sign_256(a)));
        vector!(_mm_storel_epi64(at.cast(), pack_u8_256(codes)));
    }
    #[inline(always)]
    unsafe fn store_fp8_residual4(self, codes: *mut u8, residual: *mut u8, a: __m256) {
        let whole = vector!(e4m_256::<16>(self.abs(a)));
        let rounded = vector!(_mm256_srli_epi32::<4>(_mm256_add_epi32(whole, _mm256_set1_epi32(8))));
        let rounded = vector!(_mm256_or_si256(rounded, sign_256(a)));
        vector!(_mm_storel_epi64(codes.cast(), pack_u8_256(rounded)));
        let nibbles = vector!(pack_u8_256(_mm256_and_si256(whole, _mm256_set1_epi32(15))));
        let pairs = vector!(_mm_maddubs_epi16(nibbles, _mm_set1_epi16(0x1001)));
        let bytes = vector!(_mm_cvtsi128_si32(_mm_packus_epi16(pairs, pairs)));
        vector!(residual.cast::<i32>().write_unaligned(bytes));
    }
    #[inline(always)]
    unsafe fn store_fp8_residual8(self, codes: *mut u8, residual: *mut u8, a: __m256) {
        let whole = vector!(e4m_256::<13>(self.abs(a)));
        let rounded = vector!(_mm256_srli_epi32::<7>(_mm256_add_epi32(whole, _mm256_set1_epi32(64))));
        let rest = vector!(_mm256_sub_epi32(whole, _mm256_slli_epi32::<7>(rounded)));
        let rest = vector!(_mm256_and_si256(rest, _mm256_set1_epi32(0xff)));
        let rounded = vector!(_mm256_or_si256(rounded, sign_256(a)));
        vector!(_mm_storel_epi64(codes.cast(), pack_u8_256(rounded)));
        vector!(_mm_storel_epi64(residual.cast(), pack_u8_256(rest)));
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

/// FP8 codes as the float16 of their values times 2^-8: sign, then exponent and mantissa
/// with a leading zero. 8 lanes from the lower 8 bytes.
#[target_feature(enable = "avx2")]
#[inline]
fn halves_of_fp8_128(codes: __m128i) -> __m128i {
    let top = _mm_unpacklo_epi8(_mm_setzero_si128(), codes);
    _mm_and_si128(_mm_srai_epi16::<1>(top), _mm_set1_epi16(0xbf80_u16.cast_signed()))
}

/// [`halves_of_fp8_128`] of 16 codes.
#[target_feature(enable = "avx2")]
#[inline]
fn halves_of_fp8_256(codes: __m128i) -> __m256i {
    let top = _mm256_slli_epi16::<8>(_mm256_cvtepu8_epi16(codes));
    _mm256_and_si256(_mm256_srai_epi16::<1>(top), _mm256_set1_epi16(0xbf80_u16.cast_signed()))
}

/// 8 signed nibbles, the low one of a byte first, times 8: in units of the float16 that
/// [`halves_of_fp8_128`] gives.
#[target_feature(enable = "avx2")]
#[inline]
fn residuals_of_nibbles_128(bytes: i32) -> __m128i {
    // Each byte into the upper halves of two lanes; its low nibble to the top by * 16.
    let to_lanes = _mm_setr_epi8(-1, 0, -1, 0, -1, 1, -1, 1, -1, 2, -1, 2, -1, 3, -1, 3);
    let lanes = _mm_shuffle_epi8(_mm_cvtsi32_si128(bytes), to_lanes);
    let top = _mm_mullo_epi16(lanes, _mm_set1_epi32(0x0001_0010));
    _mm_and_si128(_mm_srai_epi16::<9>(top), _mm_set1_epi16(!7))
}

/// Rounded to bfloat16, to nearest, ties to even, in the upper halves; the lower ones are
/// left over. A NaN stays one.
#[target_feature(enable = "avx2")]
#[inline]
fn bf16_bits_256(a: __m256) -> __m256i {
    let bits = _mm256_castps_si256(a);
    let parity = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
    let rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), parity);
    let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
    let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(a, a));
    _mm256_blendv_epi8(rounded, quiet, nan)
}

/// [`bf16_bits_256`] of 16 lanes.
#[target_feature(enable = "avx512f")]
#[inline]
fn bf16_bits_512(a: __m512) -> __m512i {
    let bits = _mm512_castps_si512(a);
    let parity = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
    let rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), parity);
    let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a, a);
    _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x0040_0000))
}

/// Magnitudes up to 448 as numbers of 4 exponent bits and 23 - SHIFT mantissa bits, to
/// nearest, ties to even; the formula of `codec::scalar::e4m`.
#[target_feature(enable = "avx2")]
#[inline]
fn e4m_256<const SHIFT: i32>(magnitude: __m256) -> __m256i {
    let bits = _mm256_castps_si256(magnitude);
    let parity = _mm256_and_si256(_mm256_srli_epi32::<SHIFT>(bits), _mm256_set1_epi32(1));
    let half = _mm256_set1_epi32((1 << (SHIFT - 1)) - 1 - (120 << 23));
    let normal = _mm256_srli_epi32::<SHIFT>(_mm256_add_epi32(_mm256_add_epi32(bits, half), parity));
    let unit = _mm256_castsi256_ps(_mm256_set1_epi32((127 + SHIFT - 6) << 23));
    let small = _mm256_castps_si256(_mm256_add_ps(magnitude, unit));
    let small = _mm256_sub_epi32(small, _mm256_castps_si256(unit));
    let is_small = _mm256_cmp_ps::<_CMP_LT_OQ>(magnitude, _mm256_set1_ps(1.0 / 64.0));
    _mm256_blendv_epi8(normal, small, _mm256_castps_si256(is_small))
}

/// [`e4m_256`] of 16 lanes.
#[target_feature(enable = "avx512f")]
#[inline]
fn e4m_512<const SHIFT: u32>(magnitude: __m512) -> __m512i {
    let bits = _mm512_castps_si512(magnitude);
    let parity = _mm512_and_si512(_mm512_srli_epi32::<SHIFT>(bits), _mm512_set1_epi32(1));
    let half = _mm512_set1_epi32((1 << (SHIFT - 1)) - 1 - (120 << 23));
    let normal = _mm512_srli_epi32::<SHIFT>(_mm512_add_epi32(_mm512_add_epi32(bits, half), parity));
    let unit = _mm512_castsi512_ps(_mm512_set1_epi32(((127 + SHIFT - 6) << 23).cast_signed()));
    let small = _mm512_castps_si512(_mm512_add_ps(magnitude, unit));
    let small = _mm512_sub_epi32(small, _mm512_castps_si512(unit));
    let is_small = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(magnitude, _mm512_set1_ps(1.0 / 64.0));
    _mm512_mask_mov_epi32(normal, is_small, small)
}

/// The sign bit, where an FP8 code has it.
#[target_feature(enable = "avx2")]
#[inline]
fn sign_256(a: __m256) -> __m256i {
    _mm256_and_si256(_mm256_srli_epi32::<24>(_mm256_castps_si256(a)), _mm256_set1_epi32(0x80))
}

/// [`sign_256`] of 16 lanes.
#[target_feature(enable = "avx512f")]
#[inline]
fn sign_512(a: __m512) -> __m512i {
    _mm512_and_si512(_mm512_srli_epi32::<24>(_mm512_castps_si512(a)), _mm512_set1_epi32(0x80))
}

/// The lower halves of the lanes, which are below 2^16.
#[target_feature(enable = "avx2")]
#[inline]
fn pack_u16_256(a: __m256i) -> __m128i {
    _mm_packus_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256::<1>(a))
}

/// The lowest bytes of the lanes, which are below 2^8, twice.
#[target_feature(enable = "avx2")]
#[inline]
fn pack_u8_256(a: __m256i) -> __m128i {
    let halves = pack_u16_256(a);
    _mm_packus_epi16(halves, halves)
}
