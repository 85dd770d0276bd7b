//! The reference: the kernels' formulas as plain loops.

use super::directions::DIRECTIONS;
use super::kernel::{BOUND_MAX, Blocks, Masses, bound};
use super::sketch::{Coefficients, FRAME, SPREAD_MAX, Sketch, bases};
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
        for (block, bytes) in blocks.each.iter().enumerate() {
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

/// See [`super::Sketch::score`]; lengths were checked there.
pub(super) fn score_sketches(
    sketch: Sketch,
    sketches: &[u8],
    rows: &[Coefficients],
    scores: &mut [f32],
    stride: usize,
    most: &mut [f32],
) {
    for (index, bytes) in sketches.chunks_exact(sketch.len_bytes()).enumerate() {
        let code = |code: usize, block: usize| f32::from(bytes[code * sketch.blocks + block].cast_signed());
        for (row, most) in most.iter_mut().enumerate() {
            let mut with = rows[row];
            for (with, bytes) in with.iter_mut().zip(sketch.frames_of(bytes).as_chunks().0) {
                *with *= f32::from_le_bytes(*bytes);
            }
            let [base] = bases(&[with]);
            let scores = &mut scores[row * stride + index * sketch.blocks..][..sketch.blocks];
            for (block, score) in scores.iter_mut().enumerate() {
                let (mut along, mut across) = (base, 0.0_f32);
                for index in 0..DIRECTIONS {
                    along += with[index * FRAME + 1] * code(index, block);
                    across += with[index * FRAME + 2] * code(DIRECTIONS + index, block);
                }
                let more = 0.5 * across * across;
                *score = along + if more > SPREAD_MAX { SPREAD_MAX } else { more };
                *most = score.max(*most);
            }
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

/// See [`super::weigh_scores`].
pub(super) fn weigh_scores(scores: &mut [f32], reference: f32) -> f32 {
    let mut total = 0.0;
    for score in scores {
        *score = exp(*score - reference);
        total += *score;
    }
    total
}

/// See [`super::add_up`]; lengths were checked there.
pub(super) fn add_up(weights: &[f32], factors: &[f32], sums: &mut [f32]) {
    sums.fill(0.0);
    for (weights, factor) in weights.chunks_exact(sums.len().max(1)).zip(factors) {
        sums.iter_mut().zip(weights).for_each(|(sum, weight)| *sum += weight * factor);
    }
}

/// See [`super::largest`].
pub(super) fn largest(values: &[f32]) -> f32 {
    values.iter().fold(f32::NEG_INFINITY, |max, value| if *value > max { *value } else { max })
}
