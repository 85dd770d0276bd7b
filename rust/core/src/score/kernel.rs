//! Estimating blocks' masses. Letters as in [`super`].

#![expect(unsafe_code, reason = "loads through pointers into slices whose lengths were checked")]
#![expect(clippy::inline_always, reason = "what is not inlined is compiled without the instructions")]
#![expect(clippy::needless_range_loop, reason = "indices below constants unroll into registers")]

use super::summary::Places;
use super::{BLOCK_TOKENS, RANK, Summary, scalar};
use crate::simd::{Bytes, SimdLevel, dispatch, exp_vector};

/// Rows that are worked on together, at most.
const ROWS: usize = 4;
/// Blocks that are taken through a step together.
const BATCH: usize = 8;
/// Up to here scores are taken relative to their bound, which costs no search for the largest:
/// the smallest weight, e^-80, is still a normal number.
pub(super) const BOUND_MAX: f32 = 40.0;
/// Ranks with the padding of an odd one: coefficients come in pairs.
pub(super) const RANKS: usize = RANK.next_multiple_of(2);

/// Estimated attention masses of N blocks for R rows, each (R, N) with rows `stride` floats
/// apart: a mass is `sum * e^at`, un-normalised.
#[derive(Debug)]
pub struct Masses<'a> {
    /// What the estimated scores of the block's tokens are relative to.
    pub at: &'a mut [f32],
    /// Sum of `e^(score - at)` over its tokens, at most 16.
    pub sum: &'a mut [f32],
    /// Floats from one row to the next; at least N.
    pub stride: usize,
}

/// What one call works on; lengths were checked.
#[derive(Clone, Copy)]
pub(super) struct Blocks<'a> {
    pub(super) summary: &'a Summary,
    pub(super) places: Places,
    /// (N) summaries.
    pub(super) bytes: &'a [u8],
    /// N.
    pub(super) count: usize,
}

dispatch! {
    fn estimate_vectors(
        blocks: Blocks<'_>,
        query: &[f32],
        rows: usize,
        masses: &mut Masses<'_>,
    ) -> () => estimate_rows;
}

dispatch! {
    fn weigh_vectors(at: &[f32], sum: &mut [f32], reference: f32) -> f32 => weigh_blocks;
}

dispatch! {
    fn largest_vectors(values: &[f32]) -> f32 => largest_of;
}

/// The largest of some values; -inf for none, and what is no number does not count.
pub fn largest(values: &[f32]) -> f32 {
    largest_at(SimdLevel::detect(), values)
}

/// [`largest`] with the instructions of `level`, or of the best one below it.
pub fn largest_at(level: SimdLevel, values: &[f32]) -> f32 {
    largest_vectors(level.available(), values).unwrap_or_else(|| scalar::largest(values))
}

/// Turns masses into weights relative to `e^reference`, in place of `sum`; gives their sum.
///
/// # Panics
/// When the slices differ in length.
pub fn weigh(at: &[f32], sum: &mut [f32], reference: f32) -> f32 {
    weigh_at(SimdLevel::detect(), at, sum, reference)
}

/// [`weigh`] with the instructions of `level`, or of the best one below it.
///
/// # Panics
/// As [`weigh`].
pub fn weigh_at(level: SimdLevel, at: &[f32], sum: &mut [f32], reference: f32) -> f32 {
    assert_eq!(at.len(), sum.len(), "masses of different lengths");
    match weigh_vectors(level.available(), at, sum, reference) {
        Some(total) => total,
        None => scalar::weigh(at, sum, reference),
    }
}

/// Estimates what mass R query rows give each of N blocks of one KV head.
///
/// `query` is (R, [`Summary::query_floats`]), scaled, and turned to the position that the
/// blocks' keys are relative to; `blocks` is N summaries one after the other.
///
/// # Panics
/// When a slice does not have its size.
pub fn estimate(summary: &Summary, query: &[f32], rows: usize, blocks: &[u8], masses: &mut Masses<'_>) {
    estimate_at(SimdLevel::detect(), summary, query, rows, blocks, masses);
}

/// [`estimate`] with the instructions of `level`, or of the best one below it.
///
/// # Panics
/// As [`estimate`].
pub fn estimate_at(
    level: SimdLevel,
    summary: &Summary,
    query: &[f32],
    rows: usize,
    blocks: &[u8],
    masses: &mut Masses<'_>,
) {
    let blocks = checked(summary, blocks);
    assert_eq!(query.len(), rows * summary.query_floats(), "query of {rows} rows");
    let reach = (rows.max(1) - 1) * masses.stride + blocks.count;
    assert!(masses.stride >= blocks.count && masses.at.len().min(masses.sum.len()) >= reach, "masses");
    if estimate_vectors(level.available(), blocks, query, rows, masses).is_none() {
        scalar::estimate(blocks, query, rows, masses);
    }
}

fn checked<'a>(summary: &'a Summary, bytes: &'a [u8]) -> Blocks<'a> {
    let places = summary.places();
    assert!(bytes.len().is_multiple_of(places.len), "{} bytes of summaries of {}", bytes.len(), places.len);
    Blocks { summary, places, bytes, count: bytes.len() / places.len }
}

#[inline(always)]
fn estimate_rows<S: Bytes>(simd: S, blocks: Blocks<'_>, query: &[f32], rows: usize, masses: &mut Masses<'_>) {
    let mut row = 0;
    while row < rows {
        // SAFETY: lengths were checked; `row` and those after it are below `rows`.
        row += unsafe {
            match rows - row {
                1 => estimate_some::<S, 1>(simd, blocks, query, row, masses),
                2 => estimate_some::<S, 2>(simd, blocks, query, row, masses),
                3 => estimate_some::<S, 3>(simd, blocks, query, row, masses),
                _ => estimate_some::<S, ROWS>(simd, blocks, query, row, masses),
            }
        };
    }
}

/// R rows against all blocks; returns R.
///
/// # Safety
/// Query and masses have rows `row..row + R`, and the blocks their count of summaries.
#[inline(always)]
unsafe fn estimate_some<S: Bytes, const R: usize>(
    simd: S,
    blocks: Blocks<'_>,
    query: &[f32],
    row: usize,
    masses: &mut Masses<'_>,
) -> usize {
    let stride = blocks.summary.query_floats();
    // SAFETY: the caller's.
    let query = unsafe { query.as_ptr().add(row * stride) };
    let summary = |block: usize| &blocks.bytes[block * blocks.places.len..][..blocks.places.len];
    let mut parts = [([0.0; R], [[0.0; RANKS]; R]); BATCH];
    let mut first = 0;
    while first < blocks.count {
        // One step for a few blocks before the next one: each step is a long chain of its own, and
        // only those of different blocks overlap.
        let count = BATCH.min(blocks.count - first);
        for (part, block) in parts[..count].iter_mut().zip(first..) {
            let bytes = summary(block);
            // The next ones are asked for early: they are read once, in order.
            for line in 0..3 {
                simd.prefetch(bytes.as_ptr().wrapping_add(BATCH * blocks.places.len + 64 * line));
            }
            let scales = Summary::scales(&blocks.places, bytes);
            // SAFETY: the caller's; a summary has all its places.
            *part = unsafe { project::<S, R>(simd, blocks, bytes, query, stride, &scales) };
        }
        for ((centre, along), block) in parts[..count].iter().zip(first..) {
            let place = blocks.places.coefficients;
            // SAFETY: as above.
            let (reference, sum) = unsafe { log_sum_exps(simd, summary(block), place, along) };
            for r in 0..R {
                masses.at[(row + r) * masses.stride + block] = centre[r] + reference[r];
                masses.sum[(row + r) * masses.stride + block] = sum[r];
            }
        }
        first += count;
    }
    R
}

/// The products of R query rows with a block's mean key, and with each basis row.
///
/// # Safety
/// `query` is valid for R rows `stride` floats apart, `bytes` is one summary.
#[inline(always)]
unsafe fn project<S: Bytes, const R: usize>(
    simd: S,
    blocks: Blocks<'_>,
    bytes: &[u8],
    query: *const f32,
    stride: usize,
    scales: &[f32; RANK + 1],
) -> ([f32; R], [[f32; RANKS]; R]) {
    let (whole, half) = (blocks.summary.key_padded(), blocks.summary.slow_padded() / 2);
    let mut sums = [[simd.splat(0.0); 4]; R];
    let mut d = 0;
    // SAFETY: the caller's; padding makes every row whole vectors of bytes and of floats.
    unsafe {
        while d < whole {
            let mean = simd.load_i8(bytes.as_ptr().add(d));
            for r in 0..R {
                sums[r][0] = simd.fma(simd.load_f32(query.add(r * stride + d).cast()), mean, sums[r][0]);
            }
            d += S::LANES;
        }
        for rank in 0..RANK {
            let basis = bytes.as_ptr().add(blocks.places.basis + rank * half);
            let mut j = 0;
            while j < half {
                let (low, high) = simd.load_nibbles(basis.add(j));
                for r in 0..R {
                    let slow = query.add(r * stride + whole + j);
                    let sum = simd.fma(simd.load_f32(slow.cast()), low, sums[r][1 + rank]);
                    sums[r][1 + rank] = simd.fma(simd.load_f32(slow.add(half).cast()), high, sum);
                }
                j += S::LANES;
            }
        }
    }
    let (mut centre, mut along) = ([0.0; R], [[0.0; RANKS]; R]);
    for r in 0..R {
        let mut lanes = [0.0_f32; 4];
        // SAFETY: four floats.
        unsafe { simd.store_sums(lanes.as_mut_ptr(), sums[r]) };
        centre[r] = lanes[0] * scales[0];
        for rank in 0..RANK {
            along[r][rank] = lanes[1 + rank] * scales[1 + rank];
        }
    }
    (centre, along)
}

/// For R rows, what a block's 16 scores about its mean's are relative to, and the sum of
/// `e^(score - reference)`.
///
/// # Safety
/// `bytes` has the coefficients at `place`.
#[inline(always)]
unsafe fn log_sum_exps<S: Bytes, const R: usize>(
    simd: S,
    bytes: &[u8],
    place: usize,
    along: &[[f32; RANKS]; R],
) -> ([f32; R], [f32; R]) {
    let mut scores = [[simd.splat(0.0); BLOCK_TOKENS / 4]; R];
    let parts = BLOCK_TOKENS / S::LANES;
    for part in 0..parts {
        for pair in 0..RANKS / 2 {
            // SAFETY: the caller's.
            let at = unsafe { bytes.as_ptr().add(place + pair * BLOCK_TOKENS + part * S::LANES) };
            // SAFETY: as above.
            let (even, odd) = unsafe { simd.load_nibbles(at) };
            for r in 0..R {
                let score = simd.fma(even, simd.splat(along[r][2 * pair]), scores[r][part]);
                scores[r][part] = simd.fma(odd, simd.splat(along[r][2 * pair + 1]), score);
            }
        }
    }
    let (mut reference, mut sums) = ([0.0; R], [simd.splat(0.0); ROWS]);
    for r in 0..R {
        reference[r] = bound(&along[r]);
        if reference[r].is_nan() || reference[r] > BOUND_MAX {
            let mut max = simd.splat(f32::NEG_INFINITY);
            for part in 0..parts {
                max = simd.max(scores[r][part], max);
            }
            reference[r] = simd.reduce_max(max);
        }
        for part in 0..parts {
            let below = simd.add(scores[r][part], simd.splat(-reference[r]));
            sums[r] = simd.add(sums[r], exp_vector(simd, below));
        }
    }
    let (mut lanes, mut sum) = ([0.0_f32; ROWS], [0.0; R]);
    // SAFETY: four floats.
    unsafe { simd.store_sums(lanes.as_mut_ptr(), sums) };
    sum.copy_from_slice(&lanes[..R]);
    (reference, sum)
}

/// The largest that a score about the mean's can be.
#[inline(always)]
pub(super) fn bound(along: &[f32; RANKS]) -> f32 {
    let mut sum = 0.0;
    for along in along {
        sum += along.abs();
    }
    sum * 8.0
}

#[inline(always)]
fn weigh_blocks<S: Bytes>(simd: S, at: &[f32], sum: &mut [f32], reference: f32) -> f32 {
    let whole = at.len() - at.len() % S::LANES;
    let mut total = simd.splat(0.0);
    let mut i = 0;
    while i < whole {
        // SAFETY: the vector ends inside both slices.
        unsafe {
            let score = simd.load_f32(at.as_ptr().add(i).cast());
            let weight = exp_vector(simd, simd.add(score, simd.splat(-reference)));
            let into = sum.as_mut_ptr().add(i);
            let weight = simd.mul(weight, simd.load_f32(into.cast()));
            total = simd.add(total, weight);
            simd.store(into, weight);
        }
        i += S::LANES;
    }
    simd.reduce_add(total) + scalar::weigh(&at[whole..], &mut sum[whole..], reference)
}

#[inline(always)]
fn largest_of<S: Bytes>(simd: S, values: &[f32]) -> f32 {
    let whole = values.len() - values.len() % S::LANES;
    let mut max = simd.splat(f32::NEG_INFINITY);
    let mut i = 0;
    while i < whole {
        // SAFETY: the vector ends inside the slice.
        max = simd.max(unsafe { simd.load_f32(values.as_ptr().add(i).cast()) }, max);
        i += S::LANES;
    }
    let (whole, rest) = (simd.reduce_max(max), scalar::largest(&values[whole..]));
    if rest > whole { rest } else { whole }
}
