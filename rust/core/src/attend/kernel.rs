//! The vector kernel. Letters as in [`super`].
//!
//! A chunk of tokens is scored for a few rows at once, softened, and its values are
//! summed for the same rows, so that each element is loaded and widened once per group of
//! rows. Scores: four tokens times R rows of sums, lanes along Dk, reduced at the end.
//! Values: R rows times D vectors of sums, lanes along Dv, over all tokens of the chunk.
//!
//! Rows with scales are read as if they had none: a key's scale multiplies its scores, a
//! value's its weights.

#![expect(unsafe_code, reason = "loads and stores through pointers that were checked")]
#![expect(clippy::inline_always, reason = "what is not inlined is compiled without the instructions")]
#![expect(clippy::needless_range_loop, reason = "indices below constants unroll into registers")]

use super::walk::{At, Plain, Scaled, Walk};
use super::{CHUNK_TOKENS, Kind, Mass, Rows, Running, Tile};
use crate::codec::{Codes, With4, With8, scale_factor};
use crate::dtype::DType;
use crate::simd::{Bf16, F16, F32, Simd, dispatch, exp, exp_vector, load_some};

dispatch! {
    /// Runs the kernel of exactly `level`; `None` where there is none on this machine.
    pub(super) fn attend(
        q: &[f32],
        rows: usize,
        tile: &Tile<'_>,
        next: Option<&Tile<'_>>,
        state: &mut Running<'_>,
        mass: &mut Mass<'_>,
    ) -> () => attend_rows;
}

/// Rows that are worked on together, at most.
const ROWS: usize = 4;

/// Scores, then weights, of a chunk: (ROWS, CHUNK_TOKENS). Whole vectors are read, so what
/// lies past the last token is `-inf`, then 0.
type Weights = [[f32; CHUNK_TOKENS]; ROWS];

/// See [`super::attend_tile`]; lengths were checked there, which everything unsafe below
/// relies on.
#[inline(always)]
fn attend_rows<S: Simd>(
    simd: S,
    q: &[f32],
    rows: usize,
    tile: &Tile<'_>,
    next: Option<&Tile<'_>>,
    state: &mut Running<'_>,
    mass: &mut Mass<'_>,
) {
    let next = next.filter(|next| next.kind == tile.kind);
    match tile.kind {
        Kind::Elements(DType::F32) => walk_tile::<S, Plain<F32>>(simd, q, rows, tile, next, state, mass),
        Kind::Elements(DType::Bf16) => walk_tile::<S, Plain<Bf16>>(simd, q, rows, tile, next, state, mass),
        Kind::Elements(DType::F16) => walk_tile::<S, Plain<F16>>(simd, q, rows, tile, next, state, mass),
        Kind::Codes => walk_tile::<S, Scaled<Codes>>(simd, q, rows, tile, next, state, mass),
        Kind::Planes(DType::F16) => walk_tile::<S, Scaled<With8>>(simd, q, rows, tile, next, state, mass),
        Kind::Planes(_) => walk_tile::<S, Scaled<With4>>(simd, q, rows, tile, next, state, mass),
    }
}

#[inline(always)]
fn walk_tile<S: Simd, W: Walk>(
    simd: S,
    q: &[f32],
    rows: usize,
    tile: &Tile<'_>,
    next: Option<&Tile<'_>>,
    state: &mut Running<'_>,
    mass: &mut Mass<'_>,
) {
    let mut weights: Weights = [[0.0; CHUNK_TOKENS]; ROWS];
    let mut factors = Factors { keys: [0.0; CHUNK_TOKENS], values: [0.0; CHUNK_TOKENS] };
    let mut start = 0;
    while start < tile.tokens {
        let len = CHUNK_TOKENS.min(tile.tokens - start);
        let end = start + len;
        if W::SCALED {
            factors.fill(tile, start, len);
        }
        let mut ahead = Ahead::default();
        if end < tile.tokens {
            ahead =
                Ahead { keys: W::row(&tile.keys, tile.dk, end), values: W::row(&tile.values, tile.dv, end) };
        } else if let Some(next) = next {
            ahead = Ahead { keys: W::row(&next.keys, next.dk, 0), values: W::row(&next.values, next.dv, 0) };
        }
        let mut row = 0;
        while row < rows {
            let block = Block { tile, factors: &factors, start, len, row, ahead };
            // SAFETY: `check` compared every length with its shape: q holds `rows` rows of
            // dk, keys and values `tokens` rows of dk and dv elements, acc `rows` rows of
            // dv; the block lies inside `rows` and `tokens` by the loops' bounds.
            row += unsafe {
                match rows - row {
                    1 => block.attend::<S, W, 1>(simd, q, &mut weights, state, mass),
                    2 => block.attend::<S, W, 2>(simd, q, &mut weights, state, mass),
                    3 => block.attend::<S, W, 3>(simd, q, &mut weights, state, mass),
                    _ => block.attend::<S, W, 4>(simd, q, &mut weights, state, mass),
                }
            };
            ahead = Ahead::default();
        }
        start = end;
    }
}

/// What the scores and the weights of a chunk's tokens are multiplied by, where rows have scales.
struct Factors {
    keys: [f32; CHUNK_TOKENS],
    values: [f32; CHUNK_TOKENS],
}

impl Factors {
    fn fill(&mut self, tile: &Tile<'_>, start: usize, len: usize) {
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
struct Ahead {
    keys: At,
    values: At,
}

/// Some rows against one chunk.
#[derive(Clone, Copy)]
struct Block<'a> {
    tile: &'a Tile<'a>,
    factors: &'a Factors,
    /// First token of the chunk.
    start: usize,
    /// Its tokens.
    len: usize,
    /// First row.
    row: usize,
    ahead: Ahead,
}

impl Block<'_> {
    /// Folds the chunk into R rows; returns R.
    ///
    /// # Safety
    /// q, keys, values and state are as long as their shapes say, and the block is inside.
    #[inline(always)]
    unsafe fn attend<S: Simd, W: Walk, const R: usize>(
        self,
        simd: S,
        q: &[f32],
        weights: &mut Weights,
        state: &mut Running<'_>,
        mass: &mut Mass<'_>,
    ) -> usize {
        let (tile, row) = (self.tile, self.row);
        // SAFETY: the caller's; offsets stay inside the slices named there.
        unsafe {
            let keys = W::row(&tile.keys, tile.dk, self.start);
            let q = q.as_ptr().add(row * tile.dk);
            let (dk, ahead) = (tile.dk, self.ahead.keys);
            macro_rules! score_dims {
                ($($v:literal)*) => {
                    match dk {
                        $(_ if dk == $v * S::LANES => {
                            score::<S, W, R, $v>(simd, q, dk, keys, ahead, self.len, weights);
                        })*
                        _ => score::<S, W, R, 0>(simd, q, dk, keys, ahead, self.len, weights),
                    }
                };
            }
            score_dims!(4 8);
        }
        let mut shrink = [0.0; R];
        let padded = self.len.next_multiple_of(S::LANES);
        for r in 0..R {
            let scores = &mut weights[r];
            if W::SCALED {
                multiply(&mut scores[..self.len], &self.factors.keys);
            }
            scores[self.len..padded].fill(f32::NEG_INFINITY);
            if let Some(bias) = &tile.bias {
                let bias = bias.of_row(row + r, tile.tokens, self.start, self.len);
                for (score, bias) in scores.iter_mut().zip(bias) {
                    *score += bias;
                }
            }
            shrink[r] = soften(simd, &mut scores[..padded], row + r, state, mass);
            if W::SCALED {
                multiply(&mut scores[..self.len], &self.factors.values);
            }
        }
        let dv = tile.dv;
        let mut column = 0;
        let mut ahead = self.ahead.values;
        // SAFETY: the caller's; `column` and the vectors from there stay below dv.
        unsafe {
            let values = W::row(&tile.values, dv, self.start);
            let acc = state.acc.as_mut_ptr().add(row * dv);
            macro_rules! sum_columns {
                ($($d:literal)*) => { $(
                    // Both sides are constants: of the widths, only those remain whose sums
                    // fit the registers.
                    if $d == 1 || R * $d <= S::SUMS {
                        while dv - column >= $d * S::LANES {
                            let acc = acc.add(column);
                            sum::<S, W, R, $d>(
                                simd, weights, &shrink, self.len, values, ahead, column, acc, dv,
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
                sum_rest::<S, W, R>(simd, weights, &shrink, self.len, values, column, acc, dv);
            }
        }
        R
    }
}

/// Multiplies as many values as there are.
#[inline(always)]
fn multiply(values: &mut [f32], factors: &[f32; CHUNK_TOKENS]) {
    for (value, factor) in values.iter_mut().zip(factors) {
        *value *= factor;
    }
}

/// Scores `tokens` keys for R rows. V is `dk` in vectors where that is known when this is compiled: rows
/// of a few vectors are then straight code, a third faster than a loop that ends after each; 0
/// where it is not. The last group of four is filled up with repetitions
/// of the last token; the caller overwrites their scores.
///
/// # Safety
/// `q` is valid for R rows of `dk` floats, `keys` for `tokens` rows of `dk` elements;
/// `tokens` is 1 to `CHUNK_TOKENS`.
#[inline(always)]
unsafe fn score<S: Simd, W: Walk, const R: usize, const V: usize>(
    simd: S,
    q: *const f32,
    dk: usize,
    keys: At,
    ahead: At,
    tokens: usize,
    scores: &mut Weights,
) {
    let dk = if V == 0 { dk } else { V * S::LANES };
    let last = tokens - 1;
    let whole = dk - dk % S::LANES;
    let mut token = 0;
    while token < tokens {
        if !ahead.is_null() {
            W::prefetch(simd, ahead, dk, token, 4);
        }
        // SAFETY: the caller's; no token is past `last`, no element past dk, and the
        // scores have room for whole groups of four because CHUNK_TOKENS is a multiple.
        unsafe {
            let mut rows = [keys; 4];
            for (t, row) in rows.iter_mut().enumerate() {
                *row = W::step(keys, dk, (token + t).min(last));
            }
            let mut sums = [[simd.splat(0.0); 4]; R];
            let mut d = 0;
            while d < whole {
                let mut elements = [simd.splat(0.0); 4];
                for t in 0..4 {
                    elements[t] = W::load(simd, rows[t], d);
                }
                for r in 0..R {
                    let q = simd.load_f32(q.add(r * dk + d).cast());
                    for t in 0..4 {
                        sums[r][t] = simd.fma(q, elements[t], sums[r][t]);
                    }
                }
                d += S::LANES;
            }
            if d < dk {
                for r in 0..R {
                    let q = load_some::<S, F32>(simd, q.add(r * dk + d).cast(), dk - d);
                    for t in 0..4 {
                        let element = W::load_some(simd, rows[t], d, dk - d);
                        sums[r][t] = simd.fma(q, element, sums[r][t]);
                    }
                }
            }
            for r in 0..R {
                simd.store_sums(scores[r].as_mut_ptr().add(token), sums[r]);
            }
        }
        token += 4;
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
