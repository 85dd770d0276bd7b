//! The reference kernel: plain loops, the formulas of the vector kernels.

use super::{CHUNK_TOKENS, Kind, Mass, Rows, Running, Tile};
use crate::codec::{decoded, restored};
use crate::simd::exp;

/// See [`super::attend_tile`]; lengths were checked there.
pub(super) fn attend(q: &[f32], rows: usize, tile: &Tile<'_>, state: &mut Running<'_>, mass: &mut Mass<'_>) {
    let (dk, dv, kind) = (tile.dk, tile.dv, tile.kind);
    let mut weights = [0.0_f32; CHUNK_TOKENS];
    for start in (0..tile.tokens).step_by(CHUNK_TOKENS) {
        let len = CHUNK_TOKENS.min(tile.tokens - start);
        for row in 0..rows {
            let weights = &mut weights[..len];
            let q = &q[row * dk..(row + 1) * dk];
            for (token, score) in weights.iter_mut().enumerate() {
                let mut dot = 0.0_f32;
                for (d, q) in q.iter().enumerate() {
                    dot = q.mul_add(element(kind, &tile.keys, dk, start + token, d), dot);
                }
                *score = dot;
            }
            if let Some(bias) = &tile.bias {
                for (score, bias) in weights.iter_mut().zip(bias.of_row(row, tile.tokens, start, len)) {
                    *score += bias;
                }
            }
            let shrink = soften(weights, row, state, mass);
            let acc = &mut state.acc[row * dv..(row + 1) * dv];
            for (d, acc) in acc.iter_mut().enumerate() {
                // The chunk is summed on its own first: sums of sums lose less.
                let mut part = 0.0_f32;
                for (token, weight) in weights.iter().enumerate() {
                    part = weight.mul_add(element(kind, &tile.values, dv, start + token, d), part);
                }
                *acc = acc.mul_add(shrink, part);
            }
        }
    }
}

/// One element, whatever it is kept as.
fn element(kind: Kind, rows: &Rows<'_>, dim: usize, token: usize, d: usize) -> f32 {
    match kind {
        Kind::Elements(dtype) => dtype.read(rows.bytes, token * dim + d),
        Kind::Codes => decoded(rows.scales[token], rows.bytes[token * dim + d]),
        Kind::Planes(dtype) => {
            let codes = &rows.bytes[token * dim..(token + 1) * dim];
            let residual = &rows.residual[token * kind.residual_bytes(dim)..];
            restored(dtype, rows.scales[token], codes, residual, d)
        }
    }
}

/// Turns a chunk's scores into weights `e^(score - max)` and updates the row's maximum and
/// sum; returns the factor by which what was summed before shrinks.
fn soften(scores: &mut [f32], row: usize, state: &mut Running<'_>, mass: &mut Mass<'_>) -> f32 {
    let before = state.max[row];
    let max = scores.iter().fold(before, |max, &score| if score > max { score } else { max });
    // With nothing unmasked so far, any finite reference gives weights of 0 and no NaN.
    let reference = if max == f32::NEG_INFINITY { 0.0 } else { max };
    let mut sum = 0.0_f32;
    for score in scores.iter_mut() {
        *score = exp(*score - reference);
        sum += *score;
    }
    let shrink = exp(before - reference);
    state.max[row] = max;
    state.sum[row] = state.sum[row].mul_add(shrink, sum);
    mass.add(row, max, shrink, sum);
    shrink
}
