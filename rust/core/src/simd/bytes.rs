//! Small integers, for what is kept in 2, 4 or 8 bits.

use super::Simd;

/// Vectors that also take small integers.
///
/// Codes of 2 bits are in words, one to a lane: bits `8 j + 2 k` of a word have the code `4 k + j`. The four
/// of one `k` are a quad, whose products with four signed bytes are summed as integers.
pub(crate) trait Bytes: Simd {
    /// A word to a lane.
    type Words: Copy;
    /// The sums of some quads' products, of which each half fits 16 bits.
    type Products: Copy;

    /// Signed bytes.
    ///
    /// # Safety
    /// `at` is valid for reads of `LANES` bytes.
    unsafe fn load_i8(self, at: *const u8) -> Self::Floats;

    /// The low halves of bytes and the high ones, each less 8.
    ///
    /// # Safety
    /// `at` is valid for reads of `LANES` bytes.
    unsafe fn load_nibbles(self, at: *const u8) -> (Self::Floats, Self::Floats);

    /// Some of 16 nibbles, as they are: those of the lanes `first..first + LANES`. The low halves of 8
    /// bytes come first.
    ///
    /// # Safety
    /// `at` is valid for reads of 8 bytes, and `first` a multiple of `LANES` below 16.
    unsafe fn load_some_nibbles(self, at: *const u8, first: usize) -> Self::Floats;

    /// # Safety
    /// `at` is valid for reads of `LANES` words of 4 bytes.
    unsafe fn load_words(self, at: *const u8) -> Self::Words;

    /// Words of 8 codes, the code `e` in bits `2 e`: the quad `k` of the two is then of the codes `k`, `k + 4`,
    /// `k + 2`, `k + 6`.
    ///
    /// # Safety
    /// `at` is valid for reads of `LANES` words of 2 bytes.
    unsafe fn load_half_words(self, at: *const u8) -> Self::Words;

    /// A quad of every word.
    fn quad(self, words: Self::Words, k: u32) -> Self::Words;

    fn no_products(self) -> Self::Products;
    /// Adds a quad's products with the four signed bytes of `with`.
    fn add_products(self, sums: Self::Products, quad: Self::Words, with: i32) -> Self::Products;
    fn products(self, sums: Self::Products) -> Self::Floats;
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m256, __m256i, __m512, __m512i, _mm_and_si128, _mm_cvtsi32_si128, _mm_loadl_epi64, _mm_loadu_si128,
        _mm_set1_epi8, _mm_srli_epi16, _mm_unpacklo_epi64, _mm256_add_epi16, _mm256_and_si256,
        _mm256_cvtepi8_epi32, _mm256_cvtepi32_ps, _mm256_cvtepu8_epi32, _mm256_cvtepu16_epi32,
        _mm256_loadu_si256, _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_or_si256, _mm256_set1_epi16,
        _mm256_set1_epi32, _mm256_setzero_si256, _mm256_slli_epi32, _mm256_srl_epi32, _mm256_srli_epi32,
        _mm256_sub_epi32, _mm512_add_epi16, _mm512_and_si512, _mm512_cvtepi8_epi32, _mm512_cvtepi32_ps,
        _mm512_cvtepu8_epi32, _mm512_cvtepu16_epi32, _mm512_loadu_si512, _mm512_madd_epi16,
        _mm512_maddubs_epi16, _mm512_or_si512, _mm512_set1_epi16, _mm512_set1_epi32, _mm512_setzero_si512,
        _mm512_slli_epi32, _mm512_srl_epi32, _mm512_srli_epi32, _mm512_sub_epi32,
    };

    use super::super::x86::{Avx2, Avx512};
    use super::Bytes;

    impl Bytes for Avx2 {
        type Words = __m256i;
        type Products = __m256i;

        #[inline(always)]
        unsafe fn load_i8(self, at: *const u8) -> __m256 {
            // SAFETY: `self` exists only where AVX2 is; the pointer is the caller's.
            unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(at.cast()))) }
        }

        #[inline(always)]
        unsafe fn load_nibbles(self, at: *const u8) -> (__m256, __m256) {
            // SAFETY: as above.
            unsafe {
                let bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(at.cast()));
                let eight = _mm256_set1_epi32(8);
                let low = _mm256_sub_epi32(_mm256_and_si256(bytes, _mm256_set1_epi32(15)), eight);
                let high = _mm256_sub_epi32(_mm256_srli_epi32::<4>(bytes), eight);
                (_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high))
            }
        }

        #[inline(always)]
        unsafe fn load_some_nibbles(self, at: *const u8, first: usize) -> __m256 {
            // SAFETY: as above.
            unsafe {
                let bytes = _mm_loadl_epi64(at.cast());
                let half = if first == 0 { bytes } else { _mm_srli_epi16::<4>(bytes) };
                _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_and_si128(half, _mm_set1_epi8(15))))
            }
        }

        #[inline(always)]
        unsafe fn load_words(self, at: *const u8) -> __m256i {
            // SAFETY: as above.
            unsafe { _mm256_loadu_si256(at.cast()) }
        }

        #[inline(always)]
        unsafe fn load_half_words(self, at: *const u8) -> __m256i {
            // SAFETY: as above.
            unsafe {
                let words = _mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast()));
                _mm256_or_si256(words, _mm256_slli_epi32::<12>(words))
            }
        }

        #[inline(always)]
        fn quad(self, words: __m256i, k: u32) -> __m256i {
            // SAFETY: `self` exists only where AVX2 is.
            unsafe {
                let shifted = _mm256_srl_epi32(words, _mm_cvtsi32_si128(2 * k.cast_signed()));
                _mm256_and_si256(shifted, _mm256_set1_epi32(0x0303_0303))
            }
        }

        #[inline(always)]
        fn no_products(self) -> __m256i {
            // SAFETY: as above.
            unsafe { _mm256_setzero_si256() }
        }

        #[inline(always)]
        fn add_products(self, sums: __m256i, quad: __m256i, with: i32) -> __m256i {
            // SAFETY: as above.
            unsafe { _mm256_add_epi16(sums, _mm256_maddubs_epi16(quad, _mm256_set1_epi32(with))) }
        }

        #[inline(always)]
        fn products(self, sums: __m256i) -> __m256 {
            // SAFETY: as above.
            unsafe { _mm256_cvtepi32_ps(_mm256_madd_epi16(sums, _mm256_set1_epi16(1))) }
        }
    }

    impl Bytes for Avx512 {
        type Words = __m512i;
        type Products = __m512i;

        #[inline(always)]
        unsafe fn load_i8(self, at: *const u8) -> __m512 {
            // SAFETY: `self` exists only where AVX-512 is; the pointer is the caller's.
            unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(at.cast()))) }
        }

        #[inline(always)]
        unsafe fn load_nibbles(self, at: *const u8) -> (__m512, __m512) {
            // SAFETY: as above.
            unsafe {
                let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(at.cast()));
                let eight = _mm512_set1_epi32(8);
                let low = _mm512_sub_epi32(_mm512_and_si512(bytes, _mm512_set1_epi32(15)), eight);
                let high = _mm512_sub_epi32(_mm512_srli_epi32::<4>(bytes), eight);
                (_mm512_cvtepi32_ps(low), _mm512_cvtepi32_ps(high))
            }
        }

        #[inline(always)]
        unsafe fn load_some_nibbles(self, at: *const u8, _first: usize) -> __m512 {
            // SAFETY: as above.
            unsafe {
                let bytes = _mm_loadl_epi64(at.cast());
                let all = _mm_unpacklo_epi64(bytes, _mm_srli_epi16::<4>(bytes));
                _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_and_si128(all, _mm_set1_epi8(15))))
            }
        }

        #[inline(always)]
        unsafe fn load_words(self, at: *const u8) -> __m512i {
            // SAFETY: as above.
            unsafe { _mm512_loadu_si512(at.cast()) }
        }

        #[inline(always)]
        unsafe fn load_half_words(self, at: *const u8) -> __m512i {
            // SAFETY: as above.
            unsafe {
                let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(at.cast()));
                _mm512_or_si512(words, _mm512_slli_epi32::<12>(words))
            }
        }

        #[inline(always)]
        fn quad(self, words: __m512i, k: u32) -> __m512i {
            // SAFETY: `self` exists only where AVX-512 is.
            unsafe {
                let shifted = _mm512_srl_epi32(words, _mm_cvtsi32_si128(2 * k.cast_signed()));
                _mm512_and_si512(shifted, _mm512_set1_epi32(0x0303_0303))
            }
        }

        #[inline(always)]
        fn no_products(self) -> __m512i {
            // SAFETY: as above.
            unsafe { _mm512_setzero_si512() }
        }

        #[inline(always)]
        fn add_products(self, sums: __m512i, quad: __m512i, with: i32) -> __m512i {
            // SAFETY: as above.
            unsafe { _mm512_add_epi16(sums, _mm512_maddubs_epi16(quad, _mm512_set1_epi32(with))) }
        }

        #[inline(always)]
        fn products(self, sums: __m512i) -> __m512 {
            // SAFETY: as above.
            unsafe { _mm512_cvtepi32_ps(_mm512_madd_epi16(sums, _mm512_set1_epi16(1))) }
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use std::arch::aarch64::{
        float32x4_t, int16x8_t, uint32x4_t, vaddq_s16, vand_u8, vandq_s32, vandq_u32, vcreate_s8, vcreate_u8,
        vcreate_u16, vcvtq_f32_s32, vcvtq_f32_u32, vdup_n_u8, vdupq_n_s16, vdupq_n_s32, vdupq_n_u32,
        vget_low_s8, vget_low_s16, vget_low_u16, vld1q_u32, vmovl_s8, vmovl_s16, vmovl_u8, vmovl_u16,
        vmull_high_s8, vmull_s8, vorrq_u32, vpaddlq_s16, vpaddq_s16, vreinterpretq_s8_s32,
        vreinterpretq_s8_u32, vreinterpretq_s32_u32, vshlq_n_u32, vshlq_u32, vshrq_n_s32, vsubq_s32,
    };

    use super::super::neon::Neon;
    use super::Bytes;

    impl Bytes for Neon {
        type Words = uint32x4_t;
        type Products = int16x8_t;

        #[inline(always)]
        unsafe fn load_i8(self, at: *const u8) -> float32x4_t {
            // SAFETY: NEON is part of the architecture; the pointer is the caller's.
            unsafe {
                let bytes = vcreate_s8(u64::from(at.cast::<u32>().read_unaligned()));
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))))
            }
        }

        #[inline(always)]
        unsafe fn load_nibbles(self, at: *const u8) -> (float32x4_t, float32x4_t) {
            // SAFETY: as above.
            unsafe {
                let bytes = vcreate_u8(u64::from(at.cast::<u32>().read_unaligned()));
                let wide = vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(bytes))));
                let eight = vdupq_n_s32(8);
                let low = vsubq_s32(vandq_s32(wide, vdupq_n_s32(15)), eight);
                let high = vsubq_s32(vshrq_n_s32::<4>(wide), eight);
                (vcvtq_f32_s32(low), vcvtq_f32_s32(high))
            }
        }

        #[inline(always)]
        unsafe fn load_some_nibbles(self, at: *const u8, first: usize) -> float32x4_t {
            // SAFETY: as above; four of the bytes, from one of two places.
            unsafe {
                let bytes = u64::from(at.add(first % 8).cast::<u32>().read_unaligned());
                let half = vand_u8(vcreate_u8(bytes >> (if first < 8 { 0 } else { 4 })), vdup_n_u8(15));
                vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(half))))
            }
        }

        #[inline(always)]
        unsafe fn load_words(self, at: *const u8) -> uint32x4_t {
            // SAFETY: as above.
            unsafe { vld1q_u32(at.cast()) }
        }

        #[inline(always)]
        unsafe fn load_half_words(self, at: *const u8) -> uint32x4_t {
            // SAFETY: as above.
            unsafe {
                let words = vmovl_u16(vcreate_u16(at.cast::<u64>().read_unaligned()));
                vorrq_u32(words, vshlq_n_u32::<12>(words))
            }
        }

        #[inline(always)]
        fn quad(self, words: uint32x4_t, k: u32) -> uint32x4_t {
            // SAFETY: NEON is part of the architecture.
            unsafe {
                let shifted = vshlq_u32(words, vdupq_n_s32(-2 * k.cast_signed()));
                vandq_u32(shifted, vdupq_n_u32(0x0303_0303))
            }
        }

        #[inline(always)]
        fn no_products(self) -> int16x8_t {
            // SAFETY: as above.
            unsafe { vdupq_n_s16(0) }
        }

        #[inline(always)]
        fn add_products(self, sums: int16x8_t, quad: uint32x4_t, with: i32) -> int16x8_t {
            // SAFETY: as above.
            unsafe {
                let (codes, with) = (vreinterpretq_s8_u32(quad), vreinterpretq_s8_s32(vdupq_n_s32(with)));
                let low = vmull_s8(vget_low_s8(codes), vget_low_s8(with));
                vaddq_s16(sums, vpaddq_s16(low, vmull_high_s8(codes, with)))
            }
        }

        #[inline(always)]
        fn products(self, sums: int16x8_t) -> float32x4_t {
            // SAFETY: as above.
            unsafe { vcvtq_f32_s32(vpaddlq_s16(sums)) }
        }
    }
}
