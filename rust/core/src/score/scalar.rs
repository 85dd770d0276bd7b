//! The reference: the kernels' formulas as plain loops.

use super::directions::DIRECTIONS;
use super::kernel::{BOUND_MAX, Blocks, Masses, RANKS, bound};
use super::sketch::{Coefficients, SPREAD_MAX};
use super::{BLOCK_TOKENS, RANK, Summary};
use crate::simd::exp;

fn nibbles(byte: u8) -> (f32, f32) {
    (f32::from(byte & 15) - 8.0, f32::from(byte >> 4) - 8.0)
}

/// See [`super::estimate`]; lengths were checked there.
pub(super) fn estimate(blocks: Blocks<'_>, query: &[f32], rows: usize, masses: &mut Masses<'_>) {
    let Blocks { summary, places, .. } = blocks;
    let (whole, half) = (summary.key_padded(), summary.slow_padded() / 2);
    for (row, query) in query.chunks_exact(summary.query_floats()).enumerate().take(rows) {
        let (query, slow) = query.split_at(whole);
        for (block, bytes) in blocks.bytes.chunks_exact(places.len).enumerate() {
            let scales = Summary::scales(&places, bytes);
            let mean = query.iter().zip(bytes).map(|(q, byte)| q * f32::from(byte.cast_signed()));
            let centre = mean.sum::<f32>() * scales[0];
            let mut along = [0.0_f32; RANKS];
            for rank in 0..RANK {
                for (j, byte) in bytes[places.basis + rank * half..][..half].iter().enumerate() {
                    let (low, high) = nibbles(*byte);
                    along[rank] += slow[j] * low + slow[half + j] * high;
                }
                along[rank] *= scales[1 + rank];
            }
            let mut scores = [0.0_f32; BLOCK_TOKENS];
            for pair in 0..RANKS / 2 {
                let bytes = &bytes[places.coefficients + pair * BLOCK_TOKENS..][..BLOCK_TOKENS];
                for (score, byte) in scores.iter_mut().zip(bytes) {
                    let (even, odd) = nibbles(*byte);
                    *score += even * along[2 * pair] + odd * along[2 * pair + 1];
                }
            }
            let bound = bound(&along);
            let reference = if bound <= BOUND_MAX { bound } else { largest(&scores) };
            masses.at[row * masses.stride + block] = centre + reference;
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
