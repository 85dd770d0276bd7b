//! Loads of small integers, for what is kept in 4 or 8 bits.

use super::Simd;

/// Vectors that also load small integers.
pub(crate) trait Bytes: Simd {
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
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m256, __m512, _mm_loadl_epi64, _mm_loadu_si128, _mm256_and_si256, _mm256_cvtepi8_epi32,
        _mm256_cvtepi32_ps, _mm256_cvtepu8_epi32, _mm256_set1_epi32, _mm256_srli_epi32, _mm256_sub_epi32,
        _mm512_and_si512, _mm512_cvtepi8_epi32, _mm512_cvtepi32_ps, _mm512_cvtepu8_epi32, _mm512_set1_epi32,
        _mm512_srli_epi32, _mm512_sub_epi32,
    };

    use super::super::x86::{Avx2, Avx512};
    use super::Bytes;

    impl Bytes for Avx2 {
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
    }

    impl Bytes for Avx512 {
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
    }
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use std::arch::aarch64::{
        float32x4_t, vandq_s32, vcreate_s8, vcreate_u8, vcvtq_f32_s32, vdupq_n_s32, vget_low_s16,
        vget_low_u16, vmovl_s8, vmovl_s16, vmovl_u8, vmovl_u16, vreinterpretq_s32_u32, vshrq_n_s32,
        vsubq_s32,
    };

    use super::super::neon::Neon;
    use super::Bytes;

    impl Bytes for Neon {
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
    }
}
