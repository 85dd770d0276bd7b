//! `e^x` for `x <= 0`, the same formula for scalars and vectors.
//!
//! Cody and Waite's reduction, `x = n ln 2 + r` with `|r| <= ln 2 / 2`, then a polynomial
//! of degree 6 and an exponent shift. The vector twin performs the very same operations
//! (fused where this one is fused), so both give the same bits.

use super::Simd;

/// Below this, `e^x` rounds to zero even as a subnormal; `-inf` is lifted to it.
const LOWEST: f32 = -105.0;
/// ln 2, rounded so that `n * LN_2_HIGH` is exact for |n| < 512.
const LN_2_HIGH: f32 = 355.0 / 512.0;
/// ln 2 less [`LN_2_HIGH`].
const LN_2_LOW: f32 = -2.121_944_4e-4;
/// Adding and subtracting 1.5 * 2^23 rounds a small float to an integer, ties to even.
const ROUND: f32 = 12_582_912.0;
/// Coefficients of r^6 .. r^2: minimax for `(e^r - 1 - r) / r^2` on `|r| <= ln 2 / 2`
/// (Cephes `expf`).
const POLYNOMIAL: [f32; 6] =
    [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5e-1];

/// `e^x` for `x <= 0` to about one unit in the last place, subnormal results included;
/// 0 for `-inf`, NaN for NaN.
#[inline]
pub(crate) fn exp(x: f32) -> f32 {
    let x = if x < LOWEST { LOWEST } else { x };
    let n = x.mul_add(std::f32::consts::LOG2_E, ROUND) - ROUND;
    let r = n.mul_add(-LN_2_LOW, n.mul_add(-LN_2_HIGH, x));
    let mut p = POLYNOMIAL[0];
    for coefficient in &POLYNOMIAL[1..] {
        p = p.mul_add(r, *coefficient);
    }
    let p = p.mul_add(r * r, r) + 1.0;
    // 2^n may be subnormal while p * 2^n still rounds correctly: shift in two halves, of
    // which only the second can round.
    let n = n as i32;
    let half = n >> 1;
    p * pow2(half) * pow2(n - half)
}

/// [`exp`], lane by lane, to the bit.
#[inline(always)]
pub(crate) fn exp_vector<S: Simd>(simd: S, x: S::Floats) -> S::Floats {
    let x = simd.max(simd.splat(LOWEST), x);
    let n = simd.fma(x, simd.splat(std::f32::consts::LOG2_E), simd.splat(ROUND));
    let n = simd.add(n, simd.splat(-ROUND));
    let r = simd.fma(n, simd.splat(-LN_2_HIGH), x);
    let r = simd.fma(n, simd.splat(-LN_2_LOW), r);
    let mut p = simd.splat(POLYNOMIAL[0]);
    let mut i = 1;
    while i < POLYNOMIAL.len() {
        p = simd.fma(p, r, simd.splat(POLYNOMIAL[i]));
        i += 1;
    }
    let p = simd.add(simd.fma(p, simd.mul(r, r), r), simd.splat(1.0));
    simd.scale(p, n)
}

/// 2^n for n in the normal range.
#[inline]
fn pow2(n: i32) -> f32 {
    f32::from_bits(((n + 127) as u32) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{SimdLevel, dispatch};

    #[test]
    fn error_is_below_one_and_a_half_units_over_the_whole_range() {
        let mut worst = 0.0_f64;
        let mut x = 0.0_f32;
        while x >= -104.0 {
            let truth = f64::from(x).exp();
            // Spacing of floats at the true value; 2^-149 among the subnormals.
            let unit = 2.0_f64.powi((truth.log2().floor() as i32 - 23).max(-149));
            worst = worst.max((f64::from(exp(x)) - truth).abs() / unit);
            x -= 104.0 / 3_000_000.0;
        }
        assert!(worst < 1.5, "worst error {worst} units");
    }

    #[test]
    fn ends_are_exact() {
        assert_eq!(exp(0.0).to_bits(), 1.0_f32.to_bits());
        assert_eq!(exp(-0.0).to_bits(), 1.0_f32.to_bits());
        assert_eq!(exp(f32::NEG_INFINITY).to_bits(), 0);
        assert_eq!(exp(-1e30).to_bits(), 0);
        assert_eq!(exp(-105.0).to_bits(), 0);
        assert!(exp(f32::NAN).is_nan());
    }

    dispatch! {
        fn exp_all(values: &mut [f32]) -> () => exp_into;
    }

    #[inline(always)]
    fn exp_into<S: Simd>(simd: S, values: &mut [f32]) {
        for chunk in values.chunks_exact_mut(S::LANES) {
            // SAFETY: a chunk is one vector.
            unsafe {
                let x = simd.load_f32(chunk.as_ptr().cast());
                simd.store(chunk.as_mut_ptr(), exp_vector(simd, x));
            }
        }
    }

    #[test]
    fn exponentials_equal_the_scalar_ones_to_the_bit() {
        let mut x: Vec<f32> = (0..1 << 20).map(|i| -(i as f32) * (106.0 / (1 << 20) as f32)).collect();
        x.extend([f32::NEG_INFINITY, -0.0, -1e-30, -1e30]);
        x.resize(x.len().next_multiple_of(16), f32::NEG_INFINITY);
        let truth: Vec<u32> = x.iter().map(|x| exp(*x).to_bits()).collect();
        for level in SimdLevel::supported() {
            let mut out = x.clone();
            if exp_all(level, &mut out).is_some() {
                for (i, out) in out.iter().enumerate() {
                    assert_eq!(out.to_bits(), truth[i], "{level}: e^{}", x[i]);
                }
            }
        }
    }
}
