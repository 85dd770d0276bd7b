//! The bytes that stand for many blocks of one KV head where each [`Summary`] would be too much to
//! read: their keys along the [`DIRECTIONS`] that the head's queries lie in.
//!
//! ```text
//! means      DIRECTIONS x N signed bytes: the blocks' mean keys
//! spreads    DIRECTIONS x N signed bytes: what the blocks' keys differ by, along their main direction
//! frames     per direction, as float32: the middle and the step of its means, the step of its spreads
//! ```
//!
//! With `m` a block's mean and `s` its spread, a query's estimated mass of the block is that of 16
//! keys that are normally distributed: `16 e^(q m + (q s)^2 / 2)`, of which a score is the exponent. What is not finite makes its
//! direction's step a NaN, and every estimate of these blocks with it.

#![expect(unsafe_code, reason = "loads through pointers into slices whose lengths were checked")]
#![expect(clippy::inline_always, reason = "what is not inlined is compiled without the instructions")]

use super::directions::DIRECTIONS;
use super::{Summary, scalar};
use crate::simd::{Bytes, SimdLevel, dispatch, prefetch_near};

/// Sketches are of a multiple of this many blocks: no vector ends among others' bytes.
pub const SKETCH_BLOCKS: usize = 16;
/// Rows that are worked on together, at most.
const ROWS: usize = 4;
/// What a spread may add to a score, at most: 16 keys have no tails.
pub(super) const SPREAD_MAX: f32 = 30.0;
/// Numbers of a direction's frame.
pub(super) const FRAME: usize = 3;
/// Sketches from the one at hand to the one that is asked for.
const AHEAD: usize = 6;

/// The sketch of N blocks.
#[derive(Clone, Copy, Debug)]
pub struct Sketch {
    pub(super) blocks: usize,
}

/// What a query along the directions multiplies each number of a frame with, and then the codes: per
/// direction for the middle, the step of the means and the step of the spreads.
pub(super) type Coefficients = [f32; DIRECTIONS * FRAME];

impl Sketch {
    /// For N blocks.
    ///
    /// # Panics
    /// When N is not a positive multiple of [`SKETCH_BLOCKS`].
    pub fn new(blocks: usize) -> Self {
        assert!(blocks > 0 && blocks.is_multiple_of(SKETCH_BLOCKS), "a sketch of {blocks} blocks");
        Self { blocks }
    }

    fn frames(self) -> usize {
        2 * DIRECTIONS * self.blocks
    }

    /// Bytes of one sketch.
    pub fn len_bytes(self) -> usize {
        self.frames() + DIRECTIONS * FRAME * size_of::<f32>()
    }

    /// Sketches N blocks from their summaries; `directions` is ([`DIRECTIONS`], D), turned as a
    /// query of these keys would be.
    ///
    /// # Panics
    /// When a slice does not have its size.
    pub fn encode(self, summary: &Summary, directions: &[f32], summaries: &[u8], out: &mut [u8]) {
        let dim = summary.key_dim();
        assert_eq!(directions.len(), DIRECTIONS * dim, "directions");
        assert_eq!(summaries.len(), self.blocks * summary.len_bytes(), "summaries of the blocks");
        assert_eq!(out.len(), self.len_bytes(), "bytes of a sketch");
        let (mut means, mut spreads) =
            (vec![0.0; DIRECTIONS * self.blocks], vec![0.0; DIRECTIONS * self.blocks]);
        let (mut mean, mut spread) = (vec![0.0; dim], vec![0.0; dim]);
        for (block, bytes) in summaries.chunks_exact(summary.len_bytes()).enumerate() {
            summary.decode_mean(bytes, &mut mean);
            summary.decode_spread(bytes, &mut spread);
            for (index, direction) in directions.chunks_exact(dim).enumerate() {
                means[index * self.blocks + block] = dot(direction, &mean);
                spreads[index * self.blocks + block] = dot(direction, &spread);
            }
        }
        let (codes, frames) = out.split_at_mut(self.frames());
        let (mean_codes, spread_codes) = codes.split_at_mut(DIRECTIONS * self.blocks);
        let rows = means.chunks_exact(self.blocks).zip(spreads.chunks_exact(self.blocks));
        let codes = mean_codes.chunks_exact_mut(self.blocks).zip(spread_codes.chunks_exact_mut(self.blocks));
        for (((means, spreads), (mean_codes, spread_codes)), frame) in
            rows.zip(codes).zip(frames.chunks_exact_mut(FRAME * size_of::<f32>()))
        {
            let middle = middle_of(means);
            let numbers = [middle, quantise(means, middle, mean_codes), quantise(spreads, 0.0, spread_codes)];
            for (bytes, number) in frame.chunks_exact_mut(size_of::<f32>()).zip(numbers) {
                bytes.copy_from_slice(&number.to_le_bytes());
            }
        }
    }

    /// What R query rows make of each of the N blocks of every one of some sketches, which follow each other: the logarithms of its
    /// keys' mean mass, in rows `stride` apart, sketch after sketch. `query` is (R, [`DIRECTIONS`]): scaled, and
    /// along the directions. `most`, (R), becomes the largest score of each row that is a number, if that is
    /// larger.
    ///
    /// # Panics
    /// When a slice does not have its size.
    pub fn score(self, sketches: &[u8], query: &[f32], scores: &mut [f32], stride: usize, most: &mut [f32]) {
        self.score_at(SimdLevel::detect(), sketches, query, scores, stride, most);
    }

    /// [`Sketch::score`] with the instructions of `level`, or of the best one below it.
    ///
    /// # Panics
    /// As [`Sketch::score`].
    pub fn score_at(
        self,
        level: SimdLevel,
        sketches: &[u8],
        query: &[f32],
        scores: &mut [f32],
        stride: usize,
        most: &mut [f32],
    ) {
        assert!(sketches.len().is_multiple_of(self.len_bytes()), "bytes of sketches");
        assert_eq!(query.len(), most.len() * DIRECTIONS, "query rows along the directions");
        let width = sketches.len() / self.len_bytes() * self.blocks;
        let reach = (most.len().max(1) - 1) * stride + width;
        assert!(stride >= width && scores.len() >= reach, "scores");
        // Each row as it is multiplied with the frames.
        let rows = query.chunks_exact(DIRECTIONS);
        let rows: Vec<Coefficients> =
            rows.map(|row| std::array::from_fn(|index| row[index / FRAME])).collect();
        let level = level.available();
        if score_vectors(level, self, sketches, &rows, scores, stride, most).is_none() {
            scalar::score_sketches(self, sketches, &rows, scores, stride, most);
        }
    }

    /// The frames of a sketch.
    pub(super) fn frames_of(self, bytes: &[u8]) -> &[u8] {
        &bytes[self.frames()..]
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn middle_of(values: &[f32]) -> f32 {
    let least = values.iter().copied().fold(f32::INFINITY, f32::min);
    let most = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    f32::midpoint(least, most)
}

/// Writes the values' distances from `middle` as signed bytes, and gives their step.
fn quantise(values: &[f32], middle: f32, codes: &mut [u8]) -> f32 {
    let largest = values.iter().map(|value| (value - middle).abs()).fold(0.0, f32::max);
    if values.iter().any(|value| !value.is_finite()) || !largest.is_finite() {
        codes.fill(0);
        return f32::NAN;
    }
    let step = largest / 127.0;
    let inverse = if step > 0.0 { 1.0 / step } else { 0.0 };
    for (code, value) in codes.iter_mut().zip(values) {
        *code = (((value - middle) * inverse).round().clamp(-127.0, 127.0) as i8).cast_unsigned();
    }
    step
}

dispatch! {
    fn score_vectors(
        sketch: Sketch,
        sketches: &[u8],
        rows: &[Coefficients],
        scores: &mut [f32],
        stride: usize,
        most: &mut [f32],
    ) -> () => score_rows;
}

#[inline(always)]
fn score_rows<S: Bytes>(
    simd: S,
    sketch: Sketch,
    sketches: &[u8],
    rows: &[Coefficients],
    scores: &mut [f32],
    stride: usize,
    most: &mut [f32],
) {
    for (index, bytes) in sketches.chunks_exact(sketch.len_bytes()).enumerate() {
        // Asked for early, and across the ends of the system's pages.
        if let Some(next) = sketches.get((index + AHEAD) * bytes.len()..(index + AHEAD + 1) * bytes.len()) {
            prefetch_near(next);
        }
        let mut row = 0;
        while row < rows.len() {
            let (rows, most) = (&rows[row..], &mut most[row..]);
            let scores = &mut scores[row * stride + index * sketch.blocks..];
            // SAFETY: lengths were checked by the caller.
            row += unsafe {
                match (rows.len(), S::SUMS) {
                    (1, _) => score_some::<S, 1, 4>(simd, sketch, bytes, rows, scores, stride, most),
                    (2, ..16) => score_some::<S, 2, 2>(simd, sketch, bytes, rows, scores, stride, most),
                    (2, _) => score_some::<S, 2, 4>(simd, sketch, bytes, rows, scores, stride, most),
                    (3, ..24) => score_some::<S, 3, 1>(simd, sketch, bytes, rows, scores, stride, most),
                    (3, _) => score_some::<S, 3, 4>(simd, sketch, bytes, rows, scores, stride, most),
                    (_, ..16) => score_some::<S, ROWS, 1>(simd, sketch, bytes, rows, scores, stride, most),
                    _ => score_some::<S, ROWS, 2>(simd, sketch, bytes, rows, scores, stride, most),
                }
            };
        }
    }
}

/// The first R rows against all blocks of a sketch, V vectors of blocks at a time, so that what is loaded for
/// a row serves them all; returns R.
///
/// # Safety
/// There are R rows and `most` of them, `bytes` is a sketch, and `scores` has R rows of its blocks
/// `stride` apart.
#[inline(always)]
unsafe fn score_some<S: Bytes, const R: usize, const V: usize>(
    simd: S,
    sketch: Sketch,
    bytes: &[u8],
    rows: &[Coefficients],
    scores: &mut [f32],
    stride: usize,
    most: &mut [f32],
) -> usize {
    let mut with = [[0.0; DIRECTIONS * FRAME]; R];
    let frames = sketch.frames_of(bytes).as_ptr();
    for r in 0..R {
        let mut i = 0;
        while i < DIRECTIONS * FRAME {
            // The last vector may repeat some of the one before it.
            let at = i.min(DIRECTIONS * FRAME - S::LANES);
            // SAFETY: the caller's.
            unsafe {
                let numbers = simd.load_f32(frames.add(at * size_of::<f32>()));
                let row = simd.load_f32(rows[r].as_ptr().add(at).cast());
                simd.store(with[r].as_mut_ptr().add(at), simd.mul(numbers, row));
            }
            i += S::LANES;
        }
    }
    let base = bases(&with);
    let mut largest = [simd.splat(f32::NEG_INFINITY); R];
    let mut block = 0;
    // SAFETY: the caller's; vectors divide a sketch's blocks.
    unsafe {
        while block + V * S::LANES <= sketch.blocks {
            let (codes, scores) = (bytes.as_ptr().add(block), scores.as_mut_ptr().add(block));
            score_vector::<S, R, V>(simd, sketch, codes, &with, &base, scores, stride, &mut largest);
            block += V * S::LANES;
        }
        while block < sketch.blocks {
            let (codes, scores) = (bytes.as_ptr().add(block), scores.as_mut_ptr().add(block));
            score_vector::<S, R, 1>(simd, sketch, codes, &with, &base, scores, stride, &mut largest);
            block += S::LANES;
        }
    }
    for r in 0..R {
        most[r] = most[r].max(simd.reduce_max(largest[r]));
    }
    R
}

/// R rows against V vectors of blocks.
///
/// # Safety
/// `codes` and `scores` are valid for so many blocks of a sketch, from its first ones or later ones on.
#[inline(always)]
unsafe fn score_vector<S: Bytes, const R: usize, const V: usize>(
    simd: S,
    sketch: Sketch,
    codes: *const u8,
    with: &[Coefficients; R],
    base: &[f32; R],
    scores: *mut f32,
    stride: usize,
    largest: &mut [S::Floats; R],
) {
    let (mut along, mut across) = ([[simd.splat(0.0); V]; R], [[simd.splat(0.0); V]; R]);
    for r in 0..R {
        along[r] = [simd.splat(base[r]); V];
    }
    for index in 0..DIRECTIONS {
        for v in 0..V {
            // SAFETY: the caller's.
            let (mean, spread) = unsafe {
                let mean = codes.add(index * sketch.blocks + v * S::LANES);
                (simd.load_i8(mean), simd.load_i8(mean.add(DIRECTIONS * sketch.blocks)))
            };
            for r in 0..R {
                along[r][v] = simd.fma(simd.splat(with[r][index * FRAME + 1]), mean, along[r][v]);
                across[r][v] = simd.fma(simd.splat(with[r][index * FRAME + 2]), spread, across[r][v]);
            }
        }
    }
    for r in 0..R {
        for v in 0..V {
            // The lesser of both, as the greater of their negatives; a NaN stays one.
            let less = simd.mul(simd.mul(across[r][v], across[r][v]), simd.splat(-0.5));
            let less = simd.max(simd.splat(-SPREAD_MAX), less);
            let score = simd.fma(less, simd.splat(-1.0), along[r][v]);
            largest[r] = simd.max(score, largest[r]);
            // SAFETY: the caller's.
            unsafe { simd.store(scores.add(r * stride + v * S::LANES), score) };
        }
    }
}

/// The sums of R rows' products with the middles.
#[inline(always)]
pub(super) fn bases<const R: usize>(with: &[Coefficients; R]) -> [f32; R] {
    let mut sums = [0.0; R];
    for index in 0..DIRECTIONS {
        for r in 0..R {
            sums[r] += with[r][index * FRAME];
        }
    }
    sums
}
