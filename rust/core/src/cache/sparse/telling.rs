//! Telling from sketches which of a long context's blocks are worth an estimate.

use std::cell::RefCell;

use super::HeadScratch;
use super::scoring::{Scoring, weigh_finite};
use crate::score::{DIRECTIONS, largest};
use crate::session::CHAPTER_PAGES;
use crate::simd::prefetch;

/// Chapters whose sketches are scored in one unit of work.
pub(super) const SKETCH_CHAPTERS: usize = 16;

thread_local! {
    /// Scores of the blocks of a unit of work, (R, blocks).
    static SCORES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// What one head's query rows give the blocks of a unit of chapters, by their sketches.
#[derive(Default)]
pub(super) struct Weighed {
    /// (R, blocks): relative to e^reference of their row.
    weights: Vec<f32>,
    /// Per row, the largest score.
    references: Vec<f32>,
    /// Per row, the sum of the weights.
    totals: Vec<f32>,
}

impl Weighed {
    fn row(&self, row: usize) -> &[f32] {
        let blocks = self.weights.len() / self.totals.len();
        &self.weights[row * blocks..(row + 1) * blocks]
    }

    /// What makes a row's weights relative to e^`reference`.
    fn scale(&self, row: usize, reference: f32) -> f32 {
        (self.references[row] - reference).exp()
    }
}

impl Scoring<'_> {
    fn sketch_blocks(&self) -> usize {
        CHAPTER_PAGES * self.digest.blocks_per_page
    }

    /// Weighs the blocks of some chapters, before chapter `end`, by their sketches.
    pub(super) fn weigh_sketches(&self, head: usize, first: usize, end: usize, into: &mut Weighed) {
        let chapters = first..end.min(first + SKETCH_CHAPTERS);
        let stride = chapters.len() * self.sketch_blocks();
        let along = &self.along[head * self.rows * DIRECTIONS..][..self.rows * DIRECTIONS];
        let (digest, head) = self.digest_of(head);
        SCORES.with_borrow_mut(|scores| {
            scores.resize(self.rows * stride, 0.0);
            // Sketches are far from each other in memory, so the next one is asked for early.
            let mut sketches: [&[u8]; SKETCH_CHAPTERS] = [&[]; SKETCH_CHAPTERS];
            for (sketch, chapter) in sketches.iter_mut().zip(chapters.clone()) {
                *sketch = digest.sketch_of(self.digest, head, chapter);
            }
            for (index, sketch) in sketches[..chapters.len()].iter().enumerate() {
                if let Some(next) = sketches.get(index + 1) {
                    prefetch(next);
                }
                self.digest.sketch.score(sketch, along, &mut scores[index * self.sketch_blocks()..], stride);
            }
            into.weights.clear();
            into.weights.resize(self.rows * stride, 1.0);
            into.references.clear();
            into.totals.clear();
            for (scores, weights) in scores.chunks_exact(stride).zip(into.weights.chunks_exact_mut(stride)) {
                let reference = largest(scores);
                into.references.push(reference);
                into.totals.push(weigh_finite(scores, weights, reference));
            }
        });
    }

    /// Tells by the weights of all units of a head which `count` of its sketched blocks, besides the
    /// `sinks` and the `focus`, are to be estimated; and for each query row, the mass of the others over
    /// that of these.
    pub(super) fn tell(
        &self,
        weighed: &[&Weighed],
        sinks: usize,
        count: usize,
        focus: &[u32],
        scratch: &mut HeadScratch,
    ) {
        let HeadScratch { shares, picker, estimated, left, .. } = scratch;
        shares.clear();
        shares.resize(weighed.iter().map(|unit| unit.weights.len() / self.rows).sum(), 0.0);
        let all: Vec<_> = (0..self.rows).map(|row| of_all(weighed, row)).collect();
        let mut rest = shares.as_mut_slice();
        for unit in weighed {
            let (shares, after) = rest.split_at_mut(unit.weights.len() / self.rows);
            for (row, (reference, total)) in all.iter().enumerate() {
                let factor = if *total > 0.0 { 1.0 / (total * self.rows as f32) } else { 0.0 };
                let factor = unit.scale(row, *reference) * factor;
                shares.iter_mut().zip(unit.row(row)).for_each(|(share, weight)| *share += weight * factor);
            }
            rest = after;
        }
        picker.pick(shares, sinks, count, estimated);
        let known = focus.partition_point(|block| (*block as usize) < shares.len());
        if known > 0 {
            estimated.extend_from_slice(&focus[..known]);
            estimated.sort_unstable();
            estimated.dedup();
        }
        left.clear();
        left.extend(all.iter().enumerate().map(|(row, all)| self.left(weighed, estimated, row, *all)));
    }

    fn left(
        &self,
        weighed: &[&Weighed],
        estimated: &[u32],
        row: usize,
        (reference, total): (f32, f32),
    ) -> f32 {
        let per_unit = SKETCH_CHAPTERS * self.sketch_blocks();
        let mut known = 0.0;
        // Ascending: those of a unit stand together.
        for blocks in estimated.chunk_by(|a, b| *a as usize / per_unit == *b as usize / per_unit) {
            let unit = weighed[blocks[0] as usize / per_unit];
            let weights = unit.row(row);
            let sum: f32 = blocks.iter().map(|block| weights[*block as usize % per_unit]).sum();
            known += unit.scale(row, reference) * sum;
        }
        let left = (total - known) / known;
        if left.is_finite() { left.max(0.0) } else { 0.0 }
    }
}

/// The largest score of a row, and the sum of its weights relative to that.
fn of_all(weighed: &[&Weighed], row: usize) -> (f32, f32) {
    let reference = weighed.iter().map(|unit| unit.references[row]).fold(f32::NEG_INFINITY, f32::max);
    let total = weighed.iter().map(|unit| unit.scale(row, reference) * unit.totals[row]);
    (reference, total.sum())
}
