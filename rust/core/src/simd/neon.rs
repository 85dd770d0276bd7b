//! The vector operations of 64-bit Arm.

use std::arch::aarch64::{
    float32x4_t, uint16x4_t, vaddq_f32, vaddq_s32, vaddvq_f32, vbslq_f32, vcgtq_f32, vcvtq_s32_f32,
    vdupq_n_f32, vdupq_n_s32, vfmaq_f32, vld1_u16, vld1q_f32, vmaxvq_f32, vmulq_f32, vpaddq_f32,
    vreinterpretq_f32_s32, vreinterpretq_f32_u32, vshll_n_u16, vshlq_n_s32, vshrq_n_s32, vst1q_f32,
    vsubq_s32,
};

use super::{Simd, SimdLevel};
use crate::dtype::f16_to_f32;

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
    fn reduce_add(self, a: float32x4_t) -> f32 {
        vector!(vaddvq_f32(a))
    }
    #[inline(always)]
    fn reduce_max(self, a: float32x4_t) -> f32 {
        vector!(vmaxvq_f32(a))
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
}
