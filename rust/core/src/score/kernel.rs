//! Estimating blocks' masses. Letters as in [`super`].

#![expect(unsafe_code, reason = "loads through pointers into slices whose lengths were checked")]
#![expect(clippy::inline_always, reason = "what is not inlined is compiled without the instructions")]
#![expect(clippy::needless_range_loop, reason = "indices below constants unroll into registers")]

use super::residuals::SCALE_STEPS;
use super::summary::{Frame, Places, Queries};
use super::{BLOCK_TOKENS, Summary, scalar};
use crate::simd::{Bytes, SimdLevel, dispatch, exp_vector, prefetch_near};

/// Rows that are worked on together, at most.
const ROWS: usize = 4;
/// Summaries from the one at hand to the one that is asked for.
const AHEAD: usize = 24;
/// Up to here scores are taken relative to their bound, which costs no search for the largest:
/// the smallest weight, e^-80, is still a normal number.
pub(super) const BOUND_MAX: f32 = 40.0;

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
    /// (N): their summaries.
    pub(super) each: &'a [&'a [u8]],
}

dispatch! {
    fn estimate_vectors(
        blocks: Blocks<'_>,
        queries: &Queries,
        masses: &mut Masses<'_>,
    ) -> () => estimate_rows;
}

dispatch! {
    fn weigh_vectors(at: &[f32], sum: &mut [f32], reference: f32) -> f32 => weigh_blocks;
}

dispatch! {
    fn weigh_score_vectors(scores: &mut [f32], reference: f32) -> f32 => weigh_all_scores;
}

dispatch! {
    fn add_up_vectors(weights: &[f32], factors: &[f32], sums: &mut [f32]) -> () => add_up_rows;
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

/// Turns scores into weights relative to `e^reference`; gives their sum.
pub fn weigh_scores(scores: &mut [f32], reference: f32) -> f32 {
    weigh_scores_at(SimdLevel::detect(), scores, reference)
}

/// [`weigh_scores`] with the instructions of `level`, or of the best one below it.
pub fn weigh_scores_at(level: SimdLevel, scores: &mut [f32], reference: f32) -> f32 {
    match weigh_score_vectors(level.available(), scores, reference) {
        Some(total) => total,
        None => scalar::weigh_scores(scores, reference),
    }
}

/// The sums, (N), of R rows of weights, (R, N), each times its factor, (R): the same bits at every level.
///
/// # Panics
/// When a slice does not have its size.
pub fn add_up(weights: &[f32], factors: &[f32], sums: &mut [f32]) {
    add_up_at(SimdLevel::detect(), weights, factors, sums);
}

/// [`add_up`] with the instructions of `level`, or of the best one below it.
///
/// # Panics
/// As [`add_up`].
pub fn add_up_at(level: SimdLevel, weights: &[f32], factors: &[f32], sums: &mut [f32]) {
    assert_eq!(weights.len(), factors.len() * sums.len(), "rows of weights");
    if add_up_vectors(level.available(), weights, factors, sums).is_none() {
        scalar::add_up(weights, factors, sums);
    }
}

/// Estimates what mass R query rows give each of N blocks of one KV head.
///
/// The queries are scaled, and turned to the position that the blocks' keys are relative to; `blocks` are
/// N summaries, wherever they are.
///
/// # Panics
/// When a slice does not have its size.
pub fn estimate(summary: &Summary, queries: &Queries, blocks: &[&[u8]], masses: &mut Masses<'_>) {
    estimate_at(SimdLevel::detect(), summary, queries, blocks, masses);
}

/// [`estimate`] with the instructions of `level`, or of the best one below it.
///
/// # Panics
/// As [`estimate`].
pub fn estimate_at(
    level: SimdLevel,
    summary: &Summary,
    queries: &Queries,
    blocks: &[&[u8]],
    masses: &mut Masses<'_>,
) {
    let (places, rows) = (summary.places(), queries.rows());
    assert!(blocks.iter().all(|bytes| bytes.len() == places.len), "bytes of a summary");
    assert_eq!(queries.whole.len(), rows * summary.key_padded(), "queries of another summary");
    assert_eq!(queries.quads.len(), rows * summary.quads(), "queries of another summary");
    let reach = (rows.max(1) - 1) * masses.stride + blocks.len();
    assert!(masses.stride >= blocks.len() && masses.at.len().min(masses.sum.len()) >= reach, "masses");
    let blocks = Blocks { summary, places, each: blocks };
    if estimate_vectors(level.available(), blocks, queries, masses).is_none() {
        scalar::estimate(blocks, queries, masses);
    }
}

#[inline(always)]
fn estimate_rows<S: Bytes>(simd: S, blocks: Blocks<'_>, queries: &Queries, masses: &mut Masses<'_>) {
    let (mut row, rows) = (0, queries.rows());
    while row < rows {
        // SAFETY: lengths were checked; `row` and those after it are below `rows`.
        row += unsafe {
            match rows - row {
                1 => estimate_some::<S, 1>(simd, blocks, queries, row, masses),
                2 => estimate_some::<S, 2>(simd, blocks, queries, row, masses),
                3 => estimate_some::<S, 3>(simd, blocks, queries, row, masses),
                _ => estimate_some::<S, ROWS>(simd, blocks, queries, row, masses),
            }
        };
    }
}

/// R rows against all blocks; returns R.
///
/// # Safety
/// Queries and masses have rows `row..row + R`, and the blocks their count of summaries.
#[inline(always)]
unsafe fn estimate_some<S: Bytes, const R: usize>(
    simd: S,
    blocks: Blocks<'_>,
    queries: &Queries,
    row: usize,
    masses: &mut Masses<'_>,
) -> usize {
    let mut frames = [queries.frames[row]; R];
    frames.copy_from_slice(&queries.frames[row..row + R]);
    // SAFETY: the caller's.
    let whole = unsafe { queries.whole.as_ptr().add(row * blocks.summary.key_padded()) };
    // SAFETY: as above.
    let quads = unsafe { queries.quads.as_ptr().add(row * blocks.summary.quads()) };
    for bytes in blocks.each.iter().take(AHEAD) {
        prefetch_near(bytes);
    }
    for (block, bytes) in blocks.each.iter().enumerate() {
        // The next ones are asked for early: they are read once, and may be far from each other.
        if let Some(next) = blocks.each.get(block + AHEAD) {
            prefetch_near(next);
        }
        let scales = Summary::scales(&blocks.places, bytes);
        // SAFETY: the caller's; a summary has all its places.
        let centre = unsafe { centres::<S, R>(simd, blocks, bytes, whole) };
        // SAFETY: as above.
        let (reference, sum) =
            unsafe { log_sum_exps::<S, R>(simd, blocks, bytes, quads, &frames, scales[1]) };
        for r in 0..R {
            masses.at[(row + r) * masses.stride + block] = centre[r] * scales[0] + reference[r];
            masses.sum[(row + r) * masses.stride + block] = sum[r];
        }
    }
    R
}

/// The products of R query rows with a block's mean key, in steps.
///
/// # Safety
/// `whole` is valid for R padded rows, `bytes` is one summary.
#[inline(always)]
unsafe fn centres<S: Bytes, const R: usize>(
    simd: S,
    blocks: Blocks<'_>,
    bytes: &[u8],
    whole: *const f32,
) -> [f32; R] {
    let (stride, half) = (blocks.summary.key_padded(), blocks.summary.key_padded() / 2);
    let mut sums = [simd.splat(0.0); ROWS];
    let mut j = 0;
    // SAFETY: the caller's; padding makes every row whole vectors of bytes and of floats.
    unsafe {
        while j < half {
            let (low, high) = simd.load_nibbles(bytes.as_ptr().add(j));
            for r in 0..R {
                let at = whole.add(r * stride + j);
                let sum = simd.fma(simd.load_f32(at.cast()), low, sums[r]);
                sums[r] = simd.fma(simd.load_f32(at.add(half).cast()), high, sum);
            }
            j += S::LANES;
        }
    }
    let (mut lanes, mut centre) = ([0.0_f32; ROWS], [0.0; R]);
    // SAFETY: four floats.
    unsafe { simd.store_sums(lanes.as_mut_ptr(), sums) };
    centre.copy_from_slice(&lanes[..R]);
    centre
}

/// For R rows, what a block's 16 scores about its mean's are relative to, and the sum of
/// `e^(score - reference)`.
///
/// # Safety
/// `bytes` is one summary; `quads` is valid for R rows of them.
#[inline(always)]
unsafe fn log_sum_exps<S: Bytes, const R: usize>(
    simd: S,
    blocks: Blocks<'_>,
    bytes: &[u8],
    quads: *const i32,
    frames: &[Frame; R],
    scale: f32,
) -> ([f32; R], [f32; R]) {
    let mut scores = [[simd.splat(0.0); BLOCK_TOKENS / 4]; R];
    let parts = BLOCK_TOKENS / S::LANES;
    for part in 0..parts {
        let first = part * S::LANES;
        // SAFETY: the caller's.
        let sums = unsafe { products::<S, R>(simd, blocks, bytes, quads, first) };
        // SAFETY: a summary has the scales of 16 tokens.
        let steps = unsafe {
            let at = bytes.as_ptr().add(blocks.places.residuals + blocks.places.parts.scales);
            simd.add(simd.load_some_nibbles(at, first), simd.splat(1.0))
        };
        for r in 0..R {
            let about = simd.add(sums[r], simd.splat(-frames[r].middle));
            scores[r][part] = simd.mul(about, simd.mul(steps, simd.splat(frames[r].step * scale)));
        }
    }
    let (mut reference, mut sums) = ([0.0; R], [simd.splat(0.0); ROWS]);
    for r in 0..R {
        reference[r] = bound(&frames[r], scale);
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

/// The sums of R rows' products with the codes of `LANES` tokens from `first` on.
///
/// # Safety
/// As [`log_sum_exps`].
#[inline(always)]
unsafe fn products<S: Bytes, const R: usize>(
    simd: S,
    blocks: Blocks<'_>,
    bytes: &[u8],
    quads: *const i32,
    first: usize,
) -> [S::Floats; R] {
    let Places { residuals, parts, .. } = blocks.places;
    let stride = blocks.summary.quads();
    let mut sums = [simd.no_products(); R];
    // SAFETY: the caller's.
    unsafe {
        let codes = bytes.as_ptr().add(residuals);
        for group in 0..parts.words {
            let words = simd.load_words(codes.add((group * BLOCK_TOKENS + first) * 4));
            add_quads::<S, R, 4>(simd, words, quads.add(4 * group), stride, &mut sums);
        }
        if parts.half {
            let words = simd.load_half_words(codes.add(parts.words * BLOCK_TOKENS * 4 + first * 2));
            add_quads::<S, R, 2>(simd, words, quads.add(4 * parts.words), stride, &mut sums);
        }
    }
    let mut floats = [simd.splat(0.0); R];
    for r in 0..R {
        floats[r] = simd.products(sums[r]);
    }
    floats
}

/// Adds R rows' products with the K quads of some words.
///
/// # Safety
/// `quads` is valid for R rows `stride` apart, K quads of each.
#[inline(always)]
unsafe fn add_quads<S: Bytes, const R: usize, const K: u32>(
    simd: S,
    words: S::Words,
    quads: *const i32,
    stride: usize,
    sums: &mut [S::Products; R],
) {
    for k in 0..K {
        let codes = simd.quad(words, k);
        for r in 0..R {
            // SAFETY: the caller's.
            let with = unsafe { *quads.add(r * stride + k as usize) };
            sums[r] = simd.add_products(sums[r], codes, with);
        }
    }
}

/// The largest that a score about the mean's can be.
#[inline(always)]
pub(super) fn bound(frame: &Frame, scale: f32) -> f32 {
    frame.reach * frame.step * scale * SCALE_STEPS
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
fn weigh_all_scores<S: Bytes>(simd: S, scores: &mut [f32], reference: f32) -> f32 {
    let whole = scores.len() - scores.len() % S::LANES;
    let mut total = simd.splat(0.0);
    let mut i = 0;
    while i < whole {
        // SAFETY: the vector ends inside the slice.
        unsafe {
            let at = scores.as_mut_ptr().add(i);
            let weight = exp_vector(simd, simd.add(simd.load_f32(at.cast()), simd.splat(-reference)));
            total = simd.add(total, weight);
            simd.store(at, weight);
        }
        i += S::LANES;
    }
    simd.reduce_add(total) + scalar::weigh_scores(&mut scores[whole..], reference)
}

#[inline(always)]
fn add_up_rows<S: Bytes>(simd: S, weights: &[f32], factors: &[f32], sums: &mut [f32]) {
    let stride = sums.len();
    let mut i = 0;
    while i + S::LANES <= stride {
        let mut sum = simd.splat(0.0);
        for (row, factor) in factors.iter().enumerate() {
            // SAFETY: the vector ends inside the row.
            let weight = unsafe { simd.load_f32(weights.as_ptr().add(row * stride + i).cast()) };
            sum = simd.add(sum, simd.mul(weight, simd.splat(*factor)));
        }
        // SAFETY: the vector ends inside the slice.
        unsafe { simd.store(sums.as_mut_ptr().add(i), sum) };
        i += S::LANES;
    }
    for i in i..stride {
        let each = factors.iter().enumerate();
        sums[i] = each.fold(0.0, |sum, (row, factor)| sum + weights[row * stride + i] * factor);
    }
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
