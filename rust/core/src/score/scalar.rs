//! The reference: the kernels' formulas as plain loops.

use super::directions::DIRECTIONS;
use super::kernel::{BOUND_MAX, Blocks, Masses, bound};
use super::sketch::{Coefficients, SPREAD_MAX};
use super::summary::Queries;
use super::{BLOCK_TOKENS, Summary};
use crate::simd::exp;

fn nibbles(byte: u8) -> (f32, f32) {
    (f32::from(byte & 15) - 8.0, f32::from(byte >> 4) - 8.0)
}

/// See [`super::estimate`]; lengths were checked there.
pub(super) fn estimate(blocks: Blocks<'_>, queries: &Queries, masses: &mut Masses<'_>) {
    let Blocks { summary, places, .. } = blocks;
    let (whole, half) = (summary.key_padded(), summary.key_padded() / 2);
    for (row, frame) in queries.frames.iter().enumerate() {
        let query = &queries.whole[row * whole..][..whole];
        let quads = &queries.quads[row * summary.quads()..][..summary.quads()];
        for (block, bytes) in blocks.bytes.chunks_exact(places.len).enumerate() {
            let scales = Summary::scales(&places, bytes);
            let mut centre = 0.0;
            for (j, byte) in bytes[..half].iter().enumerate() {
                let (low, high) = nibbles(*byte);
                centre += query[j] * low + query[half + j] * high;
            }
            let codes = &bytes[places.residuals..places.scales];
            let scores: [f32; BLOCK_TOKENS] = std::array::from_fn(|token| {
                let mut sum = 0;
                for (elements, quad) in places.parts.quads().zip(quads) {
                    for (element, byte) in elements.into_iter().zip(quad.to_le_bytes()) {
                        sum += places.parts.code(codes, token, element) * i32::from(byte.cast_signed());
                    }
                }
                let step = places.parts.scale_steps(codes, token) * (frame.step * scales[1]);
                (sum as f32 - frame.middle) * step
            });
            let bound = bound(frame, scales[1]);
            let reference = if bound <= BOUND_MAX { bound } else { largest(&scores) };
            masses.at[row * masses.stride + block] = centre * scales[0] + reference;
            masses.sum[row * masses.stride + block] = scores.iter().map(|score| exp(score - reference)).sum();
        }
    }
}

/// See [`super::Sketch::estimate`]; lengths were checked there.
pub(super) fn score_sketch(
    codes: &[u8],
    blocks: usize,
    rows: &[Coefficients],
    scores: &mut [f32],
    stride: usize,
) {
    let code = |index: usize, block: usize| f32::from(codes[index * blocks + block].cast_signed());
    for (row, coefficients) in rows.iter().enumerate() {
        for block in 0..blocks {
            let (mut along, mut across) = (coefficients.base, 0.0_f32);
            for index in 0..DIRECTIONS {
                along += coefficients.means[index] * code(index, block);
                across += coefficients.spreads[index] * code(DIRECTIONS + index, block);
            }
            let more = 0.5 * across * across;
            scores[row * stride + block] = along + if more > SPREAD_MAX { SPREAD_MAX } else { more };
        }
    }
}

/// See [`super::weigh`]; lengths were checked there.
pub(super) fn weigh(at: &[f32], sum: &mut [f32], reference: f32) -> f32 {
    let mut total = 0.0;
    for (at, sum) in at.iter().zip(sum) {
        *sum *= exp(at - reference);
        total += *sum;
    }
    total
}

/// See [`super::largest`].
pub(super) fn largest(values: &[f32]) -> f32 {
    values.iter().fold(f32::NEG_INFINITY, |max, value| if *value > max { *value } else { max })
}
