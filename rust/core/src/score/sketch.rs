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
use crate::simd::{Bytes, SimdLevel, dispatch};

/// Sketches are of a multiple of this many blocks: no vector ends among others' bytes.
pub const SKETCH_BLOCKS: usize = 16;
/// Rows that are worked on together, at most.
const ROWS: usize = 4;
/// What a spread may add to a score, at most: 16 keys have no tails.
pub(super) const SPREAD_MAX: f32 = 30.0;
/// Numbers of a direction's frame.
const FRAME: usize = 3;

/// The sketch of N blocks.
#[derive(Clone, Copy, Debug)]
pub struct Sketch {
    blocks: usize,
}

/// A query's coefficients in front of the codes of one sketch.
#[derive(Clone, Copy, Default)]
pub(super) struct Coefficients {
    pub(super) base: f32,
    pub(super) means: [f32; DIRECTIONS],
    pub(super) spreads: [f32; DIRECTIONS],
}

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

    /// What a query along the directions multiplies the codes with.
    fn coefficients(self, bytes: &[u8], query: &[f32]) -> Coefficients {
        let mut coefficients = Coefficients::default();
        for (index, frame) in bytes[self.frames()..].chunks_exact(FRAME * size_of::<f32>()).enumerate() {
            let number = |place: usize| {
                let mut bytes = [0; size_of::<f32>()];
                bytes.copy_from_slice(&frame[place * size_of::<f32>()..][..size_of::<f32>()]);
                f32::from_le_bytes(bytes)
            };
            coefficients.base += query[index] * number(0);
            coefficients.means[index] = query[index] * number(1);
            coefficients.spreads[index] = query[index] * number(2);
        }
        coefficients
    }

    /// What R query rows make of each of the N blocks of a sketch: the logarithms of its keys' mean
    /// mass, in rows `stride` apart; `query` is (R, [`DIRECTIONS`]): scaled, and along the directions.
    ///
    /// # Panics
    /// When a slice does not have its size.
    pub fn score(self, bytes: &[u8], query: &[f32], scores: &mut [f32], stride: usize) {
        self.score_at(SimdLevel::detect(), bytes, query, scores, stride);
    }

    /// [`Sketch::score`] with the instructions of `level`, or of the best one below it.
    ///
    /// # Panics
    /// As [`Sketch::score`].
    pub fn score_at(self, level: SimdLevel, bytes: &[u8], query: &[f32], scores: &mut [f32], stride: usize) {
        assert_eq!(bytes.len(), self.len_bytes(), "bytes of a sketch");
        assert!(query.len().is_multiple_of(DIRECTIONS), "query rows along the directions");
        let reach = ((query.len() / DIRECTIONS).max(1) - 1) * stride + self.blocks;
        assert!(stride >= self.blocks && scores.len() >= reach, "scores");
        let level = level.available();
        for (query, scores) in query.chunks(ROWS * DIRECTIONS).zip(scores.chunks_mut(ROWS * stride)) {
            let mut coefficients = [Coefficients::default(); ROWS];
            for (into, query) in coefficients.iter_mut().zip(query.chunks_exact(DIRECTIONS)) {
                *into = self.coefficients(bytes, query);
            }
            let coefficients = &coefficients[..query.len() / DIRECTIONS];
            if score_vectors(level, bytes, self.blocks, coefficients, scores, stride).is_none() {
                scalar::score_sketch(bytes, self.blocks, coefficients, scores, stride);
            }
        }
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
        codes: &[u8],
        blocks: usize,
        rows: &[Coefficients],
        scores: &mut [f32],
        stride: usize,
    ) -> () => score_rows;
}

#[inline(always)]
fn score_rows<S: Bytes>(
    simd: S,
    codes: &[u8],
    blocks: usize,
    rows: &[Coefficients],
    scores: &mut [f32],
    stride: usize,
) {
    // SAFETY: lengths were checked by the caller.
    unsafe {
        match rows.len() {
            1 => score_some::<S, 1>(simd, codes, blocks, rows, scores, stride),
            2 => score_some::<S, 2>(simd, codes, blocks, rows, scores, stride),
            3 => score_some::<S, 3>(simd, codes, blocks, rows, scores, stride),
            _ => score_some::<S, ROWS>(simd, codes, blocks, rows, scores, stride),
        }
    }
}

/// # Safety
/// `rows` are R, `codes` has both kinds of all blocks, and `scores` R rows of them `stride` apart.
#[inline(always)]
unsafe fn score_some<S: Bytes, const R: usize>(
    simd: S,
    codes: &[u8],
    blocks: usize,
    rows: &[Coefficients],
    scores: &mut [f32],
    stride: usize,
) {
    let mut block = 0;
    while block < blocks {
        let (mut along, mut across) = ([simd.splat(0.0); R], [simd.splat(0.0); R]);
        for r in 0..R {
            along[r] = simd.splat(rows[r].base);
        }
        for index in 0..DIRECTIONS {
            // SAFETY: the caller's; vectors divide a sketch's blocks.
            let (mean, spread) = unsafe {
                let mean = codes.as_ptr().add(index * blocks + block);
                (simd.load_i8(mean), simd.load_i8(mean.add(DIRECTIONS * blocks)))
            };
            for r in 0..R {
                along[r] = simd.fma(simd.splat(rows[r].means[index]), mean, along[r]);
                across[r] = simd.fma(simd.splat(rows[r].spreads[index]), spread, across[r]);
            }
        }
        for r in 0..R {
            // The lesser of both, as the greater of their negatives; a NaN stays one.
            let less = simd.mul(simd.mul(across[r], across[r]), simd.splat(-0.5));
            let less = simd.max(simd.splat(-SPREAD_MAX), less);
            let score = simd.fma(less, simd.splat(-1.0), along[r]);
            // SAFETY: the caller's.
            unsafe { simd.store(scores.as_mut_ptr().add(r * stride + block), score) };
        }
        block += S::LANES;
    }
}
