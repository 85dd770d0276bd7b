//! The vector kernel, for few rows; [`many`] has that for many. Letters as in [`super`].
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

use super::fold::{Ahead, Block, Factors, ROWS, Weights};
use super::many;
use super::walk::{At, Plain, Scaled, Walk};
use super::{CHUNK_TOKENS, Kind, Mass, Running, Tile};
use crate::codec::{Codes, With4, With8};
use crate::dtype::DType;
use crate::simd::{Bf16, F16, F32, Simd, dispatch, load_some};

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
    if rows >= many::LEAST_ROWS {
        return many::walk_tile::<S, W>(simd, q, rows, tile, state, mass);
    }
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
            let block = Block { tile, start, len, row };
            // SAFETY: `check` compared every length with its shape: q holds `rows` rows of
            // dk, keys and values `tokens` rows of dk and dv elements, acc `rows` rows of
            // dv; the block lies inside `rows` and `tokens` by the loops' bounds.
            row += unsafe {
                match rows - row {
                    1 => attend_block::<S, W, 1>(simd, block, &factors, ahead, q, &mut weights, state, mass),
                    2 => attend_block::<S, W, 2>(simd, block, &factors, ahead, q, &mut weights, state, mass),
                    3 => attend_block::<S, W, 3>(simd, block, &factors, ahead, q, &mut weights, state, mass),
                    _ => attend_block::<S, W, 4>(simd, block, &factors, ahead, q, &mut weights, state, mass),
                }
            };
            ahead = Ahead::default();
        }
        start = end;
    }
}

/// Folds the chunk into R rows; returns R.
///
/// # Safety
/// q, keys, values and state are as long as their shapes say, and the block is inside.
#[inline(always)]
unsafe fn attend_block<S: Simd, W: Walk, const R: usize>(
    simd: S,
    block: Block<'_>,
    factors: &Factors,
    ahead: Ahead,
    q: &[f32],
    weights: &mut Weights,
    state: &mut Running<'_>,
    mass: &mut Mass<'_>,
) -> usize {
    let (tile, dk, ahead_keys) = (block.tile, block.tile.dk, ahead.keys);
    // SAFETY: the caller's; offsets stay inside the slices named there.
    unsafe {
        let keys = W::row(&tile.keys, dk, block.start);
        let q = q.as_ptr().add(block.row * dk);
        macro_rules! score_dims {
            ($($v:literal)*) => {
                match dk {
                    $(_ if dk == $v * S::LANES => {
                        score::<S, W, R, $v>(simd, q, dk, keys, ahead_keys, block.len, weights);
                    })*
                    _ => score::<S, W, R, 0>(simd, q, dk, keys, ahead_keys, block.len, weights),
                }
            };
        }
        score_dims!(4 8);
    }
    let factors = if W::SCALED { Some(factors) } else { None };
    let shrink = block.weigh::<S, R>(simd, factors, weights, state, mass);
    // SAFETY: the caller's.
    unsafe {
        let values = W::row(&tile.values, tile.dv, block.start);
        block.add::<S, W, R>(simd, weights, &shrink, values, ahead.values, state);
    }
    R
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
