//! The vector operations of 64-bit Arm.

use std::arch::aarch64::{
    float32x4_t, uint16x4_t, uint32x4_t, vabsq_f32, vaddq_f32, vaddq_s32, vaddq_u32, vaddvq_f32, vaddvq_u32,
    vandq_u32, vbslq_f32, vbslq_u32, vceqq_f32, vceqq_u32, vcgeq_f32, vcgtq_f32, vcltq_f32, vcombine_u16,
    vcreate_s8, vcreate_u8, vcvtq_s32_f32, vdupq_n_f32, vdupq_n_s32, vdupq_n_u32, vfmaq_f32, vget_lane_u32,
    vget_low_s16, vget_low_u16, vld1_u16, vld1q_f32, vld1q_s32, vld1q_u32, vmaxvq_f32, vminnmq_f32, vmovl_s8,
    vmovl_s16, vmovl_u8, vmovl_u16, vmovn_u16, vmovn_u32, vmulq_f32, vmulq_u32, vorrq_u32, vpaddq_f32,
    vreinterpret_u32_u8, vreinterpretq_f32_s32, vreinterpretq_f32_u32, vreinterpretq_s32_u32,
    vreinterpretq_u32_f32, vreinterpretq_u32_s32, vshll_n_u16, vshlq_n_s32, vshlq_n_u32, vshlq_u32,
    vshrn_n_u32, vshrq_n_s32, vshrq_n_u32, vst1_u16, vst1q_f32, vsubq_s32, vsubq_u32,
};

use super::{Simd, SimdLevel};
use crate::dtype::{f16_to_f32, f32_to_f16};

/// Intrinsics inside methods of a witness.
macro_rules! vector {
    ($operation:expr) => {{
        // SAFETY: `self` exists only where the processor has the instructions; what a
        // pointer must be valid for is the contract of the method around.
        #[allow(unused_unsafe)] // NEON is part of the baseline of most 64-bit Arm targets
        unsafe {
            $operation
        }
    }};
}

/// Witness of NEON.
#[derive(Clone, Copy)]
pub(crate) struct Neon(());

impl Neon {
    pub(crate) fn new() -> Option<Self> {
        SimdLevel::Neon.is_supported().then_some(Self(()))
    }
}

impl Simd for Neon {
    type Floats = float32x4_t;
    const LANES: usize = 4;
    const SUMS: usize = 24;

    #[inline(always)]
    fn splat(self, value: f32) -> float32x4_t {
        vector!(vdupq_n_f32(value))
    }
    #[inline(always)]
    fn add(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        vector!(vaddq_f32(a, b))
    }
    #[inline(always)]
    fn mul(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        vector!(vmulq_f32(a, b))
    }
    #[inline(always)]
    fn fma(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        vector!(vfmaq_f32(c, a, b))
    }
    #[inline(always)]
    fn abs(self, a: float32x4_t) -> float32x4_t {
        vector!(vabsq_f32(a))
    }
    #[inline(always)]
    fn max(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // Not `vmaxq_f32`, which gives a NaN where either is one.
        vector!(vbslq_f32(vcgtq_f32(a, b), a, b))
    }
    #[inline(always)]
    fn scale(self, a: float32x4_t, n: float32x4_t) -> float32x4_t {
        // In two halves, of which only the second can round to a subnormal.
        let n = vector!(vcvtq_s32_f32(n));
        let half = vector!(vshrq_n_s32::<1>(n));
        let rest = vector!(vsubq_s32(n, half));
        let bias = vector!(vdupq_n_s32(127));
        let half = vector!(vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(half, bias))));
        let rest = vector!(vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(rest, bias))));
        vector!(vmulq_f32(vmulq_f32(a, half), rest))
    }
    #[inline(always)]
    fn at_least(self, a: float32x4_t, b: float32x4_t) -> u32 {
        let bits = [1, 2, 4, 8];
        vector!(vaddvq_u32(vandq_u32(vcgeq_f32(a, b), vld1q_u32(bits.as_ptr()))))
    }
    #[inline(always)]
    fn reduce_add(self, a: float32x4_t) -> f32 {
        vector!(vaddvq_f32(a))
    }
    #[inline(always)]
    fn reduce_max(self, a: float32x4_t) -> f32 {
        vector!(vmaxvq_f32(a))
    }
    #[inline(always)]
    fn round_bf16(self, a: float32x4_t) -> float32x4_t {
        let high = vector!(vdupq_n_u32(0xffff_0000));
        vector!(vreinterpretq_f32_u32(vandq_u32(self.bf16_bits(a), high)))
    }
    #[inline(always)]
    fn prefetch(self, _: *const u8) {
        // Not offered by stable Rust.
    }
    #[inline(always)]
    unsafe fn load_f32(self, at: *const u8) -> float32x4_t {
        vector!(vld1q_f32(at.cast()))
    }
    #[inline(always)]
    unsafe fn load_bf16(self, at: *const u8) -> float32x4_t {
        let elements: uint16x4_t = vector!(vld1_u16(at.cast()));
        vector!(vreinterpretq_f32_u32(vshll_n_u16::<16>(elements)))
    }
    #[inline(always)]
    unsafe fn load_f16(self, at: *const u8) -> float32x4_t {
        // The vector conversion needs a type that stable Rust does not have; the scalar
        // one compiles to a few instructions without branches.
        let mut widened = [0.0_f32; 4];
        for (lane, widened) in widened.iter_mut().enumerate() {
            *widened = f16_to_f32(vector!(at.cast::<u16>().add(lane).read_unaligned()));
        }
        vector!(vld1q_f32(widened.as_ptr()))
    }
    #[inline(always)]
    unsafe fn store(self, at: *mut f32, a: float32x4_t) {
        vector!(vst1q_f32(at, a));
    }
    #[inline(always)]
    unsafe fn store_sums(self, at: *mut f32, [a, b, c, d]: [float32x4_t; 4]) {
        vector!(vst1q_f32(at, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d))));
    }
    #[inline(always)]
    unsafe fn load_fp8(self, at: *const u8) -> float32x4_t {
        // SAFETY: the caller's.
        let codes = unsafe { self.load_codes(at) };
        self.of_e4m::<20>(codes.magnitude, codes.sign)
    }
    #[inline(always)]
    unsafe fn load_fp8_or_nan(self, at: *const u8) -> float32x4_t {
        // SAFETY: the caller's.
        let codes = unsafe { self.load_codes(at) };
        let nan = vector!(vceqq_u32(codes.magnitude, vdupq_n_u32(0x7f)));
        let nan = vector!(vandq_u32(nan, vdupq_n_u32(0x7fc0_0000)));
        self.of_e4m::<20>(codes.magnitude, vector!(vorrq_u32(codes.sign, nan)))
    }
    #[inline(always)]
    unsafe fn load_fp8_residual4(self, codes: *const u8, residual: *const u8) -> float32x4_t {
        const TO_TOP: [i32; 4] = [28, 24, 20, 16];
        // SAFETY: the caller's.
        let codes = unsafe { self.load_codes(codes) };
        let nibbles = vector!(vdupq_n_u32(u32::from(residual.cast::<u16>().read_unaligned())));
        let top = vector!(vreinterpretq_s32_u32(vshlq_u32(nibbles, vld1q_s32(TO_TOP.as_ptr()))));
        let rest = vector!(vreinterpretq_u32_s32(vshrq_n_s32::<28>(top)));
        let whole = vector!(vaddq_u32(vshlq_n_u32::<4>(codes.magnitude), rest));
        self.of_e4m::<16>(whole, codes.sign)
    }
    #[inline(always)]
    unsafe fn load_fp8_residual8(self, codes: *const u8, residual: *const u8) -> float32x4_t {
        // SAFETY: the caller's.
        let codes = unsafe { self.load_codes(codes) };
        let bytes = vector!(vcreate_s8(u64::from(residual.cast::<u32>().read_unaligned())));
        let rest = vector!(vreinterpretq_u32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes)))));
        let whole = vector!(vaddq_u32(vshlq_n_u32::<7>(codes.magnitude), rest));
        self.of_e4m::<13>(whole, codes.sign)
    }
    #[inline(always)]
    unsafe fn store_bf16(self, at: *mut u8, a: float32x4_t) {
        vector!(vst1_u16(at.cast(), vshrn_n_u32::<16>(self.bf16_bits(a))));
    }
    #[inline(always)]
    unsafe fn store_exact_bf16(self, at: *mut u8, a: float32x4_t, b: float32x4_t) {
        vector!(vst1_u16(at.cast(), vshrn_n_u32::<16>(vreinterpretq_u32_f32(a))));
        vector!(vst1_u16(at.add(8).cast(), vshrn_n_u32::<16>(vreinterpretq_u32_f32(b))));
    }
    #[inline(always)]
    unsafe fn store_f16(self, at: *mut u8, a: float32x4_t) {
        // As in `load_f16`.
        let mut lanes = [0.0_f32; 4];
        vector!(vst1q_f32(lanes.as_mut_ptr(), a));
        for (lane, value) in lanes.iter().enumerate() {
            vector!(at.cast::<u16>().add(lane).write_unaligned(f32_to_f16(*value)));
        }
    }
    #[inline(always)]
    unsafe fn store_fp8(self, at: *mut u8, a: float32x4_t) {
        // The smaller number: 448 where a is a NaN.
        let magnitude = vector!(vminnmq_f32(vabsq_f32(a), vdupq_n_f32(448.0)));
        let number = vector!(vceqq_f32(a, a));
        let codes = vector!(vbslq_u32(number, self.e4m::<20>(magnitude), vdupq_n_u32(0x7f)));
        let codes = vector!(vorrq_u32(codes, self.sign(a)));
        vector!(at.cast::<u32>().write_unaligned(self.low_bytes(codes)));
    }
    #[inline(always)]
    unsafe fn store_fp8_residual4(self, codes: *mut u8, residual: *mut u8, a: float32x4_t) {
        const TO_PLACES: [u32; 4] = [1, 1 << 4, 1 << 8, 1 << 12];
        let whole = self.e4m::<16>(self.abs(a));
        let rounded = vector!(vshrq_n_u32::<4>(vaddq_u32(whole, vdupq_n_u32(8))));
        let rounded = vector!(vorrq_u32(rounded, self.sign(a)));
        vector!(codes.cast::<u32>().write_unaligned(self.low_bytes(rounded)));
        let nibbles = vector!(vandq_u32(whole, vdupq_n_u32(15)));
        let nibbles = vector!(vaddvq_u32(vmulq_u32(nibbles, vld1q_u32(TO_PLACES.as_ptr()))));
        vector!(residual.cast::<u16>().write_unaligned(nibbles as u16));
    }
    #[inline(always)]
    unsafe fn store_fp8_residual8(self, codes: *mut u8, residual: *mut u8, a: float32x4_t) {
        let whole = self.e4m::<13>(self.abs(a));
        let rounded = vector!(vshrq_n_u32::<7>(vaddq_u32(whole, vdupq_n_u32(64))));
        let rest = vector!(vsubq_u32(whole, vshlq_n_u32::<7>(rounded)));
        let rounded = vector!(vorrq_u32(rounded, self.sign(a)));
        vector!(codes.cast::<u32>().write_unaligned(self.low_bytes(rounded)));
        vector!(residual.cast::<u32>().write_unaligned(self.low_bytes(rest)));
    }
}

/// FP8 codes in lanes: the magnitude's 7 bits, and the sign where a float32 has it.
struct Codes {
    magnitude: uint32x4_t,
    sign: uint32x4_t,
}

impl Neon {
    /// # Safety
    /// `at` is valid for reads of 4 bytes.
    #[inline(always)]
    unsafe fn load_codes(self, at: *const u8) -> Codes {
        let bytes = vector!(vcreate_u8(u64::from(at.cast::<u32>().read_unaligned())));
        let codes = vector!(vmovl_u16(vget_low_u16(vmovl_u8(bytes))));
        let magnitude = vector!(vandq_u32(codes, vdupq_n_u32(0x7f)));
        let sign = vector!(vshlq_n_u32::<24>(vandq_u32(codes, vdupq_n_u32(0x80))));
        Codes { magnitude, sign }
    }

    /// Numbers of 4 exponent bits and 23 - SHIFT mantissa bits, times 2^-8. Their bits are a
    /// float32's but for the bias, and so are the subnormal ones: a factor makes up for it.
    #[inline(always)]
    fn of_e4m<const SHIFT: i32>(self, whole: uint32x4_t, sign: uint32x4_t) -> float32x4_t {
        let bits = vector!(vorrq_u32(vshlq_n_u32::<SHIFT>(whole), sign));
        let bias = vector!(vdupq_n_f32(f32::from_bits((127 + 120 - 8) << 23)));
        vector!(vmulq_f32(vreinterpretq_f32_u32(bits), bias))
    }

    /// Magnitudes up to 448 as numbers of 4 exponent bits and 23 - SHIFT mantissa bits, to
    /// nearest, ties to even; the formula of `codec::scalar::e4m`.
    #[inline(always)]
    fn e4m<const SHIFT: i32>(self, magnitude: float32x4_t) -> uint32x4_t {
        let bits = vector!(vreinterpretq_u32_f32(magnitude));
        let parity = vector!(vandq_u32(vshrq_n_u32::<SHIFT>(bits), vdupq_n_u32(1)));
        let half = vector!(vdupq_n_u32(((1 << (SHIFT - 1)) - 1 - (120_i32 << 23)).cast_unsigned()));
        let normal = vector!(vshrq_n_u32::<SHIFT>(vaddq_u32(vaddq_u32(bits, half), parity)));
        let unit = vector!(vreinterpretq_f32_s32(vdupq_n_s32((127 + SHIFT - 6) << 23)));
        let small = vector!(vreinterpretq_u32_f32(vaddq_f32(magnitude, unit)));
        let small = vector!(vsubq_u32(small, vreinterpretq_u32_f32(unit)));
        let is_small = vector!(vcltq_f32(magnitude, vdupq_n_f32(1.0 / 64.0)));
        vector!(vbslq_u32(is_small, small, normal))
    }

    /// The sign bit, where an FP8 code has it.
    #[inline(always)]
    fn sign(self, a: float32x4_t) -> uint32x4_t {
        vector!(vandq_u32(vshrq_n_u32::<24>(vreinterpretq_u32_f32(a)), vdupq_n_u32(0x80)))
    }

    /// Rounded to bfloat16, to nearest, ties to even, in the upper halves; the lower ones
    /// are left over. A NaN stays one.
    #[inline(always)]
    fn bf16_bits(self, a: float32x4_t) -> uint32x4_t {
        let bits = vector!(vreinterpretq_u32_f32(a));
        let parity = vector!(vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1)));
        let rounded = vector!(vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), parity));
        let quiet = vector!(vorrq_u32(bits, vdupq_n_u32(0x0040_0000)));
        vector!(vbslq_u32(vceqq_f32(a, a), rounded, quiet))
    }

    /// The lowest bytes of the lanes, the first lane's in the lowest.
    #[inline(always)]
    fn low_bytes(self, a: uint32x4_t) -> u32 {
        let halves = vector!(vmovn_u32(a));
        let bytes = vector!(vmovn_u16(vcombine_u16(halves, halves)));
        vector!(vget_lane_u32::<0>(vreinterpret_u32_u8(bytes)))
    }
}
