//! What the kernels for few rows and for many share: scores become weights, and weighted values are summed.

#![expect(unsafe_code, reason = "loads and stores through pointers that were checked")]
#![expect(clippy::inline_always, reason = "what is not inlined is compiled without the instructions")]
#![expect(clippy::needless_range_loop, reason = "indices below constants unroll into registers")]

use super::walk::{At, Walk};
use super::{CHUNK_TOKENS, Mass, Rows, Running, Tile};
use crate::codec::scale_factor;
use crate::simd::{Simd, exp, exp_vector};

/// Rows that are worked on together, at most.
pub(super) const ROWS: usize = 4;

/// Scores, then weights, of a chunk: (ROWS, CHUNK_TOKENS). Whole vectors are read, so what
/// lies past the last token is `-inf`, then 0.
pub(super) type Weights = [[f32; CHUNK_TOKENS]; ROWS];

/// What the scores and the weights of a chunk's tokens are multiplied by, where rows have scales.
pub(super) struct Factors {
    pub(super) keys: [f32; CHUNK_TOKENS],
    pub(super) values: [f32; CHUNK_TOKENS],
}

impl Factors {
    pub(super) fn fill(&mut self, tile: &Tile<'_>, start: usize, len: usize) {
        let each = |rows: &Rows<'_>, into: &mut [f32]| {
            for (factor, scale) in into.iter_mut().zip(&rows.scales[start..start + len]) {
                *factor = scale_factor(*scale);
            }
        };
        each(&tile.keys, &mut self.keys);
        each(&tile.values, &mut self.values);
    }
}

/// Where the next chunk is, to be asked for line by line while this one is worked on: the
/// processor's own prefetcher stops at every page and is too late for the rest, which
/// costs half of the bandwidth and more. Null for none.
#[derive(Clone, Copy, Default)]
pub(super) struct Ahead {
    pub(super) keys: At,
    pub(super) values: At,
}

/// Some rows against one chunk.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    pub(super) tile: &'a Tile<'a>,
    /// First token of the chunk.
    pub(super) start: usize,
    /// Its tokens.
    pub(super) len: usize,
    /// First row.
    pub(super) row: usize,
}

impl Block<'_> {
    /// Turns the scores of R rows into weights, multiplied by the factors, if there are any. Gives what the
    /// rows' sums so far shrink by.
    #[inline(always)]
    pub(super) fn weigh<S: Simd, const R: usize>(
        self,
        simd: S,
        factors: Option<&Factors>,
        weights: &mut Weights,
        state: &mut Running<'_>,
        mass: &mut Mass<'_>,
    ) -> [f32; R] {
        let mut shrink = [0.0; R];
        let padded = self.len.next_multiple_of(S::LANES);
        for r in 0..R {
            let scores = &mut weights[r];
            if let Some(factors) = factors {
                multiply(&mut scores[..self.len], &factors.keys);
            }
            scores[self.len..padded].fill(f32::NEG_INFINITY);
            if let Some(bias) = &self.tile.bias {
                let bias = bias.of_row(self.row + r, self.tile.tokens, self.start, self.len);
                for (score, bias) in scores.iter_mut().zip(bias) {
                    *score += bias;
                }
            }
            shrink[r] = soften(simd, &mut scores[..padded], self.row + r, state, mass);
            if let Some(factors) = factors {
                multiply(&mut scores[..self.len], &factors.values);
            }
        }
        shrink
    }

    /// Adds the weighted values of the chunk, which start at `values`, to the sums of R rows.
    ///
    /// # Safety
    /// `values` is valid for the chunk's rows of dv elements; the rows are rows of the state.
    #[inline(always)]
    pub(super) unsafe fn add<S: Simd, W: Walk, const R: usize>(
        self,
        simd: S,
        weights: &Weights,
        shrink: &[f32; R],
        values: At,
        mut ahead: At,
        state: &mut Running<'_>,
    ) {
        let dv = self.tile.dv;
        let mut column = 0;
        // SAFETY: the caller's; `column` and the vectors from there stay below dv.
        unsafe {
            let acc = state.acc.as_mut_ptr().add(self.row * dv);
            macro_rules! sum_columns {
                ($($d:literal)*) => { $(
                    // Both sides are constants: of the widths, only those remain whose sums
                    // fit the registers.
                    if $d == 1 || R * $d <= S::SUMS {
                        while dv - column >= $d * S::LANES {
                            let acc = acc.add(column);
                            sum::<S, W, R, $d>(
                                simd, weights, shrink, self.len, values, ahead, column, acc, dv,
                            );
                            // Whole rows were asked for.
                            ahead = At::default();
                            column += $d * S::LANES;
                        }
                    }
                )* };
            }
            sum_columns!(8 4 2 1);
            if column < dv {
                let acc = acc.add(column);
                sum_rest::<S, W, R>(simd, weights, shrink, self.len, values, column, acc, dv);
            }
        }
    }
}

/// Multiplies as many values as there are.
#[inline(always)]
fn multiply(values: &mut [f32], factors: &[f32; CHUNK_TOKENS]) {
    for (value, factor) in values.iter_mut().zip(factors) {
        *value *= factor;
    }
}

/// As the scalar kernel's `soften`, on whole vectors.
#[inline(always)]
fn soften<S: Simd>(
    simd: S,
    scores: &mut [f32],
    row: usize,
    state: &mut Running<'_>,
    mass: &mut Mass<'_>,
) -> f32 {
    let before = state.max[row];
    let mut max = simd.splat(before);
    let mut at = 0;
    while at + S::LANES <= scores.len() {
        // SAFETY: LANES floats from `at` are inside `scores`.
        max = simd.max(unsafe { simd.load_f32(scores.as_ptr().add(at).cast()) }, max);
        at += S::LANES;
    }
    let max = simd.reduce_max(max);
    let reference = if max == f32::NEG_INFINITY { 0.0 } else { max };
    let mut sums = simd.splat(0.0);
    let negated = simd.splat(-reference);
    at = 0;
    while at + S::LANES <= scores.len() {
        // SAFETY: LANES floats from `at` are inside `scores`.
        unsafe {
            let score = simd.load_f32(scores.as_ptr().add(at).cast());
            let weight = exp_vector(simd, simd.add(score, negated));
            sums = simd.add(sums, weight);
            simd.store(scores.as_mut_ptr().add(at), weight);
        }
        at += S::LANES;
    }
    let sum = simd.reduce_add(sums);
    // In the steady state the maximum stands, and nothing shrinks.
    let shrink = if before.to_bits() == reference.to_bits() { 1.0 } else { exp(before - reference) };
    state.max[row] = max;
    state.sum[row] = state.sum[row].mul_add(shrink, sum);
    mass.add(row, max, shrink, sum);
    shrink
}

/// Adds the weighted values of D vectors of columns, from `column` on, to R rows of `acc`.
///
/// # Safety
/// `values` is valid for `tokens` rows of `dv` elements, and the columns are inside;
/// `acc` for R rows `dv` floats apart, of D vectors; `tokens` is at most `CHUNK_TOKENS`.
#[inline(always)]
unsafe fn sum<S: Simd, W: Walk, const R: usize, const D: usize>(
    simd: S,
    weights: &Weights,
    shrink: &[f32; R],
    tokens: usize,
    values: At,
    ahead: At,
    column: usize,
    acc: *mut f32,
    dv: usize,
) {
    // The chunk is summed on its own first: sums of sums lose less.
    let mut sums = [[simd.splat(0.0); D]; R];
    let mut token = 0;
    let mut value = values;
    while token < tokens {
        if !ahead.is_null() {
            W::prefetch(simd, ahead, dv, token, 1);
        }
        let mut elements = [simd.splat(0.0); D];
        // SAFETY: the caller's.
        unsafe {
            for d in 0..D {
                elements[d] = W::load(simd, value, column + d * S::LANES);
            }
        }
        for r in 0..R {
            let weight = simd.splat(weights[r][token]);
            for d in 0..D {
                sums[r][d] = simd.fma(weight, elements[d], sums[r][d]);
            }
        }
        value = W::step(value, dv, 1);
        token += 1;
    }
    for r in 0..R {
        let shrink = simd.splat(shrink[r]);
        for d in 0..D {
            // SAFETY: the caller's.
            unsafe {
                let at = acc.add(r * dv + d * S::LANES);
                simd.store(at, simd.fma(simd.load_f32(at.cast()), shrink, sums[r][d]));
            }
        }
    }
}

/// [`sum`] for the last columns, fewer than a vector.
///
/// # Safety
/// As [`sum`].
#[inline(always)]
unsafe fn sum_rest<S: Simd, W: Walk, const R: usize>(
    simd: S,
    weights: &Weights,
    shrink: &[f32; R],
    tokens: usize,
    values: At,
    column: usize,
    acc: *mut f32,
    dv: usize,
) {
    let columns = dv - column;
    let mut sums = [simd.splat(0.0); R];
    for token in 0..tokens {
        // SAFETY: the caller's.
        let elements = unsafe { W::load_some(simd, W::step(values, dv, token), column, columns) };
        for r in 0..R {
            sums[r] = simd.fma(simd.splat(weights[r][token]), elements, sums[r]);
        }
    }
    for r in 0..R {
        let mut lanes = [0.0_f32; 16];
        // SAFETY: the caller's; no vector is longer than `lanes`.
        unsafe {
            simd.store(lanes.as_mut_ptr(), sums[r]);
            for (column, lane) in lanes.iter().enumerate().take(columns) {
                let at = acc.add(r * dv + column);
                at.write(at.read().mul_add(shrink[r], *lane));
            }
        }
    }
}
