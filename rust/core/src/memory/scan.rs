//! Products of a query with many vectors, and of two vectors.

#![expect(unsafe_code, reason = "loads through pointers into slices whose lengths were checked")]
#![expect(clippy::inline_always, reason = "what is not inlined is compiled without the instructions")]

use crate::dtype::f16_to_f32;
use crate::simd::{Simd, SimdLevel, dispatch};

/// Vectors are padded with zeros to a multiple of so many elements: no kernel has a tail.
pub(super) const PADDING: usize = 64;
/// Sums that are kept apart, so that each product need not wait for the one before.
const SUMS: usize = 4;

dispatch! {
    fn dots_vectors(query: &[f32], vectors: &[u16], out: &mut [f32]) -> () => dots_rows;
}

dispatch! {
    fn product_vectors(a: &[Half], b: &[Half]) -> f32 => product_rows;
}

/// A float16 as its bytes, wherever it lies.
pub(super) type Half = [u8; 2];

/// The dot product of two padded float16 vectors, with the instructions of `level`, or of the
/// best one below it.
///
/// # Panics
/// When a length does not fit.
pub(super) fn product_at(level: SimdLevel, a: &[Half], b: &[Half]) -> f32 {
    assert!(a.len().is_multiple_of(PADDING) && a.len() == b.len(), "vectors of another dimension");
    product_vectors(level, a, b).unwrap_or_else(|| {
        let value = |half: &Half| f16_to_f32(u16::from_ne_bytes(*half));
        a.iter().zip(b).map(|(a, b)| value(a) * value(b)).sum()
    })
}

/// The dot product of a padded query with each of `out.len()` padded float16 vectors.
///
/// # Panics
/// When a length does not fit.
pub(super) fn dots(query: &[f32], vectors: &[u16], out: &mut [f32]) {
    dots_at(SimdLevel::detect(), query, vectors, out);
}

/// [`dots`] with the instructions of `level`, or of the best one below it.
fn dots_at(level: SimdLevel, query: &[f32], vectors: &[u16], out: &mut [f32]) {
    assert!(query.len().is_multiple_of(PADDING), "an unpadded query");
    assert_eq!(vectors.len(), query.len() * out.len(), "vectors of another dimension");
    if dots_vectors(level.available(), query, vectors, out).is_none() {
        dots_scalar(query, vectors, out);
    }
}

/// The reference.
fn dots_scalar(query: &[f32], vectors: &[u16], out: &mut [f32]) {
    for (vector, out) in vectors.chunks_exact(query.len().max(1)).zip(out) {
        *out = vector.iter().zip(query).map(|(half, value)| f16_to_f32(*half) * value).sum();
    }
}

#[inline(always)]
fn dots_rows<S: Simd>(simd: S, query: &[f32], vectors: &[u16], out: &mut [f32]) {
    for (vector, out) in vectors.chunks_exact(query.len().max(1)).zip(out) {
        let mut sums = [simd.splat(0.0); SUMS];
        let mut at = 0;
        while at < query.len() {
            for (lane, sum) in sums.iter_mut().enumerate() {
                let at = at + lane * S::LANES;
                // SAFETY: both have `query.len()` elements, a multiple of PADDING and so of
                // what one step of the loop loads.
                let (a, b) = unsafe {
                    (
                        simd.load_f32(query.as_ptr().add(at).cast()),
                        simd.load_f16(vector.as_ptr().add(at).cast()),
                    )
                };
                *sum = simd.fma(a, b, *sum);
            }
            at += SUMS * S::LANES;
        }
        let [a, b, c, d] = sums;
        *out = simd.reduce_add(simd.add(simd.add(a, b), simd.add(c, d)));
    }
}

#[inline(always)]
fn product_rows<S: Simd>(simd: S, a: &[Half], b: &[Half]) -> f32 {
    let mut sums = [simd.splat(0.0); SUMS];
    let mut at = 0;
    while at < a.len() {
        for (lane, sum) in sums.iter_mut().enumerate() {
            let at = at + lane * S::LANES;
            // SAFETY: both have `a.len()` elements, a multiple of PADDING and so of what one
            // step of the loop loads.
            let (a, b) = unsafe {
                (simd.load_f16(a.as_ptr().add(at).cast()), simd.load_f16(b.as_ptr().add(at).cast()))
            };
            *sum = simd.fma(a, b, *sum);
        }
        at += SUMS * S::LANES;
    }
    let [a, b, c, d] = sums;
    simd.reduce_add(simd.add(simd.add(a, b), simd.add(c, d)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::f32_to_f16;
    use crate::testing::Seeded;

    #[test]
    fn every_level_agrees_with_the_reference() {
        let mut random = Seeded::new(5);
        let mut value = || (random.below(2001) as f32 - 1000.0) / 1000.0;
        for (dimension, count) in [(64, 1), (128, 3), (384, 9), (1024, 2), (64, 0)] {
            let query: Vec<f32> = (0..dimension).map(|_| value()).collect();
            let vectors: Vec<u16> = (0..dimension * count).map(|_| f32_to_f16(value())).collect();
            let mut expected = vec![0.0; count];
            dots_scalar(&query, &vectors, &mut expected);
            for level in SimdLevel::supported() {
                let mut out = vec![f32::NAN; count];
                dots_at(level, &query, &vectors, &mut out);
                for (out, expected) in out.iter().zip(&expected) {
                    assert!((out - expected).abs() < 1e-3, "{level}: {out}, not {expected}");
                }
                let bytes = |halves: &[u16]| halves.iter().map(|half| half.to_ne_bytes()).collect::<Vec<_>>();
                let halves: Vec<u16> = query.iter().map(|value| f32_to_f16(*value)).collect();
                for (vector, expected) in vectors.chunks_exact(dimension).zip(&expected) {
                    let product = product_at(level, &bytes(&halves), &bytes(vector));
                    assert!((product - expected).abs() < 2e-2, "{level}: {product}, not {expected}");
                }
            }
        }
    }
}
