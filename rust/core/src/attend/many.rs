//! The vector kernel for many rows, such as a prefill's.
//!
//! Each chunk of tokens is widened once for all rows, and its keys are turned on their side: lanes lie along
//! tokens, so that scores need no sums across lanes, and no row is decoded again for the next four.

#![expect(unsafe_code, reason = "loads and stores through pointers into buffers of known sizes")]
#![expect(clippy::inline_always, reason = "what is not inlined is compiled without the instructions")]
#![expect(clippy::needless_range_loop, reason = "indices below constants unroll into registers")]

use std::cell::Cell;

use super::fold::{Block, Factors, ROWS, Weights};
use super::walk::{At, Plain, Walk};
use super::{CHUNK_TOKENS, Mass, Rows, Running, Tile};
use crate::simd::{F32, Simd};

/// Rows from which it pays to widen first.
pub(super) const LEAST_ROWS: usize = 16;

thread_local! {
    /// Keys of a chunk, (Dk, [`CHUNK_TOKENS`]), its values, (tokens, Dv), and a row.
    static WIDE: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Folds a tile into many rows, as [`super::attend_tile`] says.
#[inline(always)]
pub(super) fn walk_tile<S: Simd, W: Walk>(
    simd: S,
    q: &[f32],
    rows: usize,
    tile: &Tile<'_>,
    state: &mut Running<'_>,
    mass: &mut Mass<'_>,
) {
    let (dk, dv) = (tile.dk, tile.dv);
    let mut wide = WIDE.take();
    wide.resize((wide.len()).max(CHUNK_TOKENS * (dk + dv) + row_room(dk)), 0.0);
    let (keys, rest) = wide.split_at_mut(CHUNK_TOKENS * dk);
    let (values, row_buffer) = rest.split_at_mut(CHUNK_TOKENS * dv);
    let mut weights: [Weights; 2] = [[[0.0; CHUNK_TOKENS]; ROWS]; 2];
    let mut factors = Factors { keys: [1.0; CHUNK_TOKENS], values: [1.0; CHUNK_TOKENS] };
    let mut start = 0;
    while start < tile.tokens {
        let len = CHUNK_TOKENS.min(tile.tokens - start);
        if W::SCALED {
            factors.fill(tile, start, len);
        }
        turn::<S, W>(simd, &tile.keys, dk, start, len, &factors.keys, row_buffer, keys);
        widen::<S, W>(simd, &tile.values, dv, start, len, &factors.values, values);
        let mut row = 0;
        while row < rows {
            let block = Block { tile, start, len, row };
            // SAFETY: `check` compared every length with its shape; the block lies inside `rows` and
            // `tokens` by the loops' bounds, and the buffers hold a chunk.
            row += unsafe {
                match rows - row {
                    1 => fold::<S, 1>(simd, block, q, keys, values, &mut weights[0], state, mass),
                    2 => fold::<S, 2>(simd, block, q, keys, values, &mut weights[0], state, mass),
                    3 => fold::<S, 3>(simd, block, q, keys, values, &mut weights[0], state, mass),
                    4..8 => fold::<S, 4>(simd, block, q, keys, values, &mut weights[0], state, mass),
                    _ => fold_twice(simd, block, q, keys, values, &mut weights, state, mass),
                }
            };
        }
        start += len;
    }
    WIDE.set(wide);
}

/// Floats that a row takes, to the end of its last vector.
const fn row_room(dim: usize) -> usize {
    dim.next_multiple_of(16)
}

/// Writes the rows of some tokens as floats, each multiplied by its factor, one after the other.
#[inline(always)]
fn widen<S: Simd, W: Walk>(
    simd: S,
    rows: &Rows<'_>,
    dim: usize,
    start: usize,
    tokens: usize,
    factors: &[f32; CHUNK_TOKENS],
    into: &mut [f32],
) {
    for (token, into) in into.chunks_exact_mut(dim).take(tokens).enumerate() {
        widen_row::<S, W>(simd, W::row(rows, dim, start + token), dim, factors[token], into);
    }
}

/// Writes the rows of some tokens as columns of (dim, [`CHUNK_TOKENS`]).
#[inline(always)]
fn turn<S: Simd, W: Walk>(
    simd: S,
    rows: &Rows<'_>,
    dim: usize,
    start: usize,
    tokens: usize,
    factors: &[f32; CHUNK_TOKENS],
    row: &mut [f32],
    into: &mut [f32],
) {
    for token in 0..tokens {
        widen_row::<S, W>(simd, W::row(rows, dim, start + token), dim, factors[token], &mut row[..dim]);
        for (column, value) in into.chunks_exact_mut(CHUNK_TOKENS).zip(&row[..dim]) {
            column[token] = *value;
        }
    }
}

#[inline(always)]
fn widen_row<S: Simd, W: Walk>(simd: S, row: At, dim: usize, factor: f32, into: &mut [f32]) {
    let scale = simd.splat(factor);
    let mut d = 0;
    while d + S::LANES <= dim {
        // SAFETY: the row has `dim` elements, as `check` saw, and `into` as many floats.
        unsafe {
            let elements = W::load(simd, row, d);
            let elements = if W::SCALED { simd.mul(elements, scale) } else { elements };
            simd.store(into.as_mut_ptr().add(d), elements);
        }
        d += S::LANES;
    }
    if d < dim {
        let mut lanes = [0.0_f32; 16];
        // SAFETY: as above; no vector is longer than `lanes`.
        unsafe {
            let elements = W::load_some(simd, row, d, dim - d);
            let elements = if W::SCALED { simd.mul(elements, scale) } else { elements };
            simd.store(lanes.as_mut_ptr(), elements);
        }
        into[d..dim].copy_from_slice(&lanes[..dim - d]);
    }
}

/// Folds a chunk into R rows; returns R.
///
/// # Safety
/// The block lies inside the tile and the state; `q` holds the state's rows of dk, `keys` and `values` a chunk.
#[inline(always)]
unsafe fn fold<S: Simd, const R: usize>(
    simd: S,
    block: Block<'_>,
    q: &[f32],
    keys: &[f32],
    values: &[f32],
    weights: &mut Weights,
    state: &mut Running<'_>,
    mass: &mut Mass<'_>,
) -> usize {
    // SAFETY: the caller's.
    unsafe {
        score::<S, R>(simd, block, q, keys, &mut [weights]);
        settle::<S, R>(simd, block, values, weights, state, mass);
    }
    R
}

/// Folds a chunk into eight rows, whose scores fill the registers together; returns 8.
///
/// # Safety
/// As [`fold`].
#[inline(always)]
unsafe fn fold_twice<S: Simd>(
    simd: S,
    block: Block<'_>,
    q: &[f32],
    keys: &[f32],
    values: &[f32],
    weights: &mut [Weights; 2],
    state: &mut Running<'_>,
    mass: &mut Mass<'_>,
) -> usize {
    let [first, second] = weights;
    // SAFETY: the caller's.
    unsafe {
        score::<S, 8>(simd, block, q, keys, &mut [first, second]);
        settle::<S, 4>(simd, block, values, first, state, mass);
        settle::<S, 4>(simd, Block { row: block.row + 4, ..block }, values, second, state, mass);
    }
    8
}

/// Scores a chunk's tokens for R rows, of which four go into each of `weights`.
///
/// # Safety
/// As [`fold`].
#[inline(always)]
unsafe fn score<S: Simd, const R: usize>(
    simd: S,
    block: Block<'_>,
    q: &[f32],
    keys: &[f32],
    weights: &mut [&mut Weights],
) {
    let vectors = block.len.div_ceil(S::LANES);
    let mut vector = 0;
    while vector < vectors {
        // SAFETY: the caller's; a chunk is whole vectors. Both sides are constants.
        vector += unsafe {
            if R * 2 <= S::SUMS && vectors - vector > 1 {
                score_vectors::<S, R, 2>(simd, block, q, keys, vector * S::LANES, weights)
            } else {
                score_vectors::<S, R, 1>(simd, block, q, keys, vector * S::LANES, weights)
            }
        };
    }
}

/// Scores N vectors of tokens from `first` on; returns N.
///
/// # Safety
/// As [`fold`], and the tokens are of a chunk.
#[inline(always)]
unsafe fn score_vectors<S: Simd, const R: usize, const N: usize>(
    simd: S,
    block: Block<'_>,
    q: &[f32],
    keys: &[f32],
    first: usize,
    weights: &mut [&mut Weights],
) -> usize {
    let dk = block.tile.dk;
    let mut sums = [[simd.splat(0.0); N]; R];
    // SAFETY: the caller's.
    unsafe {
        let q = q.as_ptr().add(block.row * dk);
        let keys = keys.as_ptr().add(first);
        for d in 0..dk {
            let mut column = [simd.splat(0.0); N];
            for n in 0..N {
                column[n] = simd.load_f32(keys.add(d * CHUNK_TOKENS + n * S::LANES).cast());
            }
            for r in 0..R {
                let q = simd.splat(*q.add(r * dk + d));
                for n in 0..N {
                    sums[r][n] = simd.fma(q, column[n], sums[r][n]);
                }
            }
        }
        for r in 0..R {
            for n in 0..N {
                let at = &mut weights[r / ROWS][r % ROWS][first + n * S::LANES..][..S::LANES];
                simd.store(at.as_mut_ptr(), sums[r][n]);
            }
        }
    }
    N
}

/// Turns scores into weights and sums the weighted values.
///
/// # Safety
/// As [`fold`].
#[inline(always)]
unsafe fn settle<S: Simd, const R: usize>(
    simd: S,
    block: Block<'_>,
    values: &[f32],
    weights: &mut Weights,
    state: &mut Running<'_>,
    mass: &mut Mass<'_>,
) {
    let shrink = block.weigh::<S, R>(simd, None, weights, state, mass);
    // SAFETY: the caller's.
    unsafe {
        let values = Plain::<F32>::floats(values);
        block.add::<S, Plain<F32>, R>(simd, weights, &shrink, values, At::default(), state);
    }
}
