//! The vector kernel. Letters as in [`super`].
//!
//! A chunk of tokens is scored for a few rows at once, softened, and its values are
//! summed for the same rows, so that each element is loaded and widened once per group of
//! rows. Scores: four tokens times R rows of sums, lanes along Dk, reduced at the end.
//! Values: R rows times D vectors of sums, lanes along Dv, over all tokens of the chunk.

#![expect(unsafe_code, reason = "loads and stores through pointers that were checked")]
#![expect(clippy::inline_always, reason = "what is not inlined is compiled without the instructions")]
#![expect(clippy::needless_range_loop, reason = "indices below constants unroll into registers")]

use super::{CHUNK_TOKENS, Mass, Running, Tile};
use crate::dtype::DType;
use crate::simd::{Bf16, Element, F16, F32, Simd, dispatch, exp, exp_vector, load_some};

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
    match tile.dtype {
        DType::F32 => attend_elements::<S, F32>(simd, q, rows, tile, next, state, mass),
        DType::Bf16 => attend_elements::<S, Bf16>(simd, q, rows, tile, next, state, mass),
        DType::F16 => attend_elements::<S, F16>(simd, q, rows, tile, next, state, mass),
    }
}

#[inline(always)]
fn attend_elements<S: Simd, E: Element>(
    simd: S,
    q: &[f32],
    rows: usize,
    tile: &Tile<'_>,
    next: Option<&Tile<'_>>,
    state: &mut Running<'_>,
    mass: &mut Mass<'_>,
) {
    let mut weights: Weights = [[0.0; CHUNK_TOKENS]; ROWS];
    let mut start = 0;
    while start < tile.tokens {
        let len = CHUNK_TOKENS.min(tile.tokens - start);
        let end = start + len;
        let mut ahead = Ahead::default();
        if end < tile.tokens {
            ahead.keys = tile.keys.as_ptr().wrapping_add(end * tile.dk * E::SIZE);
            ahead.values = tile.values.as_ptr().wrapping_add(end * tile.dv * E::SIZE);
        } else if let Some(next) = next {
            ahead = Ahead { keys: next.keys.as_ptr(), values: next.values.as_ptr() };
        }
        let mut row = 0;
        while row < rows {
            let block = Block { tile, start, len, row, ahead };
            // SAFETY: `check` compared every length with its shape: q holds `rows` rows of
            // dk, keys and values `tokens` rows of dk and dv elements, acc `rows` rows of
            // dv; the block lies inside `rows` and `tokens` by the loops' bounds.
            row += unsafe {
                match rows - row {
                    1 => block.attend::<S, E, 1>(simd, q, &mut weights, state, mass),
                    2 => block.attend::<S, E, 2>(simd, q, &mut weights, state, mass),
                    3 => block.attend::<S, E, 3>(simd, q, &mut weights, state, mass),
                    _ => block.attend::<S, E, 4>(simd, q, &mut weights, state, mass),
                }
            };
            ahead = Ahead::default();
        }
        start = end;
    }
}

/// Where the next chunk is, to be asked for line by line while this one is worked on: the
/// processor's own prefetcher stops at every page and is too late for the rest, which
/// costs half of the bandwidth and more. Null for none.
#[derive(Clone, Copy)]
struct Ahead {
    keys: *const u8,
    values: *const u8,
}

impl Default for Ahead {
    fn default() -> Self {
        Self { keys: std::ptr::null(), values: std::ptr::null() }
    }
}

/// Some rows against one chunk.
#[derive(Clone, Copy)]
struct Block<'a> {
    tile: &'a Tile<'a>,
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
    unsafe fn attend<S: Simd, E: Element, const R: usize>(
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
            let keys = tile.keys.as_ptr().add(self.start * tile.dk * E::SIZE);
            let q = q.as_ptr().add(row * tile.dk);
            score::<S, E, R>(simd, q, tile.dk, keys, self.ahead.keys, self.len, weights);
        }
        let mut shrink = [0.0; R];
        let padded = self.len.next_multiple_of(S::LANES);
        for r in 0..R {
            let scores = &mut weights[r];
            scores[self.len..padded].fill(f32::NEG_INFINITY);
            if let Some(bias) = &tile.bias {
                let bias = bias.of_row(row + r, tile.tokens, self.start, self.len);
                for (score, bias) in scores.iter_mut().zip(bias) {
                    *score += bias;
                }
            }
            shrink[r] = soften(simd, &mut scores[..padded], row + r, state, mass);
        }
        let (dv, stride) = (tile.dv, tile.dv * E::SIZE);
        let mut column = 0;
        let mut ahead = self.ahead.values;
        // SAFETY: the caller's; `column` and the vectors from there stay below dv.
        unsafe {
            let values = tile.values.as_ptr().add(self.start * stride);
            let acc = state.acc.as_mut_ptr().add(row * dv);
            macro_rules! sum_columns {
                ($($d:literal)*) => { $(
                    // Both sides are constants: of the widths, only those remain whose sums
                    // fit the registers.
                    if $d == 1 || R * $d <= S::SUMS {
                        while dv - column >= $d * S::LANES {
                            let (values, acc) = (values.add(column * E::SIZE), acc.add(column));
                            sum::<S, E, R, $d>(
                                simd, weights, &shrink, self.len, values, ahead, stride, acc, dv,
                            );
                            // Whole rows were asked for.
                            ahead = std::ptr::null();
                            column += $d * S::LANES;
                        }
                    }
                )* };
            }
            sum_columns!(8 4 2 1);
            if column < dv {
                let (values, acc) = (values.add(column * E::SIZE), acc.add(column));
                sum_rest::<S, E, R>(simd, weights, &shrink, self.len, values, stride, acc, dv, dv - column);
            }
        }
        R
    }
}

/// Scores `tokens` keys for R rows. The last group of four is filled up with repetitions
/// of the last token; the caller overwrites their scores.
///
/// # Safety
/// `q` is valid for R rows of `dk` floats, `keys` for `tokens` rows of `dk` elements;
/// `tokens` is 1 to `CHUNK_TOKENS`.
#[inline(always)]
unsafe fn score<S: Simd, E: Element, const R: usize>(
    simd: S,
    q: *const f32,
    dk: usize,
    keys: *const u8,
    ahead: *const u8,
    tokens: usize,
    scores: &mut Weights,
) {
    let last = tokens - 1;
    let whole = dk - dk % S::LANES;
    let mut token = 0;
    while token < tokens {
        if !ahead.is_null() {
            prefetch(simd, ahead.wrapping_add(token * dk * E::SIZE), 4 * dk * E::SIZE);
        }
        // SAFETY: the caller's; no token is past `last`, no element past dk, and the
        // scores have room for whole groups of four because CHUNK_TOKENS is a multiple.
        unsafe {
            let mut rows = [keys; 4];
            for (t, row) in rows.iter_mut().enumerate() {
                *row = keys.add((token + t).min(last) * dk * E::SIZE);
            }
            let mut sums = [[simd.splat(0.0); 4]; R];
            let mut d = 0;
            while d < whole {
                let mut elements = [simd.splat(0.0); 4];
                for t in 0..4 {
                    elements[t] = E::load(simd, rows[t].add(d * E::SIZE));
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
                        let element = load_some::<S, E>(simd, rows[t].add(d * E::SIZE), dk - d);
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

/// Adds the weighted values of D vectors' columns to R rows of `acc`.
///
/// # Safety
/// `values` is valid for `tokens` rows `stride` bytes apart, of D vectors of elements;
/// `acc` for R rows `dv` floats apart, of D vectors; `tokens` is at most `CHUNK_TOKENS`.
#[inline(always)]
unsafe fn sum<S: Simd, E: Element, const R: usize, const D: usize>(
    simd: S,
    weights: &Weights,
    shrink: &[f32; R],
    tokens: usize,
    values: *const u8,
    ahead: *const u8,
    stride: usize,
    acc: *mut f32,
    dv: usize,
) {
    // The chunk is summed on its own first: sums of sums lose less.
    let mut sums = [[simd.splat(0.0); D]; R];
    let mut token = 0;
    let mut value = values;
    while token < tokens {
        if !ahead.is_null() {
            prefetch(simd, ahead.wrapping_add(token * stride), stride);
        }
        let mut elements = [simd.splat(0.0); D];
        // SAFETY: the caller's.
        unsafe {
            for d in 0..D {
                elements[d] = E::load(simd, value.add(d * S::LANES * E::SIZE));
            }
        }
        for r in 0..R {
            let weight = simd.splat(weights[r][token]);
            for d in 0..D {
                sums[r][d] = simd.fma(weight, elements[d], sums[r][d]);
            }
        }
        value = value.wrapping_add(stride);
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

/// [`sum`] for the last `columns`, fewer than a vector.
///
/// # Safety
/// As [`sum`], with `columns` elements per row.
#[inline(always)]
unsafe fn sum_rest<S: Simd, E: Element, const R: usize>(
    simd: S,
    weights: &Weights,
    shrink: &[f32; R],
    tokens: usize,
    values: *const u8,
    stride: usize,
    acc: *mut f32,
    dv: usize,
    columns: usize,
) {
    let mut sums = [simd.splat(0.0); R];
    for token in 0..tokens {
        // SAFETY: the caller's.
        let elements = unsafe { load_some::<S, E>(simd, values.add(token * stride), columns) };
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

/// Asks for `len` bytes. Any address is allowed.
#[inline(always)]
fn prefetch<S: Simd>(simd: S, at: *const u8, len: usize) {
    let mut line = 0;
    while line < len {
        simd.prefetch(at.wrapping_add(line));
        line += 64;
    }
}
