//! Telling from sketches which of a long context's blocks are worth an estimate.

use super::super::sketches::VOLUME_CHAPTERS;
use super::HeadScratch;
use super::scoring::Scoring;
use crate::score::{DIRECTIONS, add_up, weigh_scores};
use crate::session::CHAPTER_PAGES;
use crate::sync::Mutex;

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

    /// Weighs the blocks of a volume's chapters, of those before chapter `end`, by their sketches.
    pub(super) fn weigh_sketches(&self, head: usize, volume: usize, end: usize, into: &mut Weighed) {
        let chapters = (end - volume * VOLUME_CHAPTERS).min(VOLUME_CHAPTERS);
        let stride = chapters * self.sketch_blocks();
        let along = &self.along[head * self.rows * DIRECTIONS..][..self.rows * DIRECTIONS];
        let (digest, head) = self.digest_of(head);
        let sketch = self.digest.sketch;
        let Weighed { weights, references, totals } = into;
        weights.resize(self.rows * stride, 0.0);
        references.clear();
        references.resize(self.rows, f32::NEG_INFINITY);
        let sketches = digest.sketches().of_volume(sketch, head, volume, chapters);
        sketch.score(sketches, along, weights, stride, references);
        totals.clear();
        for (scores, reference) in weights.chunks_exact_mut(stride).zip(references) {
            let total = weigh_scores(scores, *reference);
            totals.push(if total.is_nan() { sum_of_numbers(scores) } else { total });
        }
    }

    /// Tells by the weights of all units of a head which `count` of its sketched blocks, besides the
    /// `sinks` and the `focus`, are to be estimated; and for each query row, the mass of the others over
    /// that of these.
    pub(super) fn tell(
        &self,
        weighed: &[Mutex<Weighed>],
        sinks: usize,
        count: usize,
        focus: &[u32],
        scratch: &mut HeadScratch,
    ) {
        let weighed: Vec<_> = weighed.iter().map(Mutex::lock).collect();
        let weighed: &Vec<&Weighed> = &weighed.iter().map(|unit| &**unit).collect();
        let HeadScratch { shares, picker, estimated, left, .. } = scratch;
        shares.resize(weighed.iter().map(|unit| unit.weights.len() / self.rows).sum(), 0.0);
        let all: Vec<_> = (0..self.rows).map(|row| of_all(weighed, row)).collect();
        let mut factors = vec![0.0; self.rows];
        let mut rest = shares.as_mut_slice();
        for unit in weighed {
            let (shares, after) = rest.split_at_mut(unit.weights.len() / self.rows);
            for (row, (reference, total)) in all.iter().enumerate() {
                let factor = if *total > 0.0 { 1.0 / (total * self.rows as f32) } else { 0.0 };
                factors[row] = unit.scale(row, *reference) * factor;
            }
            add_up(&unit.weights, &factors, shares);
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

    /// Of the blocks of the first `chapters` only the `sinks` and the `focus` are to be estimated, and
    /// nothing is said of the others.
    pub(super) fn tell_focus(&self, chapters: usize, sinks: usize, focus: &[u32], scratch: &mut HeadScratch) {
        let end = chapters * self.sketch_blocks();
        let HeadScratch { estimated, left, .. } = scratch;
        estimated.clear();
        estimated.extend(0..sinks.min(end) as u32);
        estimated.extend(focus.iter().filter(|block| (sinks..end).contains(&(**block as usize))));
        left.clear();
        left.resize(self.rows, 0.0);
    }

    fn left(
        &self,
        weighed: &[&Weighed],
        estimated: &[u32],
        row: usize,
        (reference, total): (f32, f32),
    ) -> f32 {
        let per_unit = VOLUME_CHAPTERS * self.sketch_blocks();
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

/// What can't be told is estimated, and does not keep the others from being compared.
fn sum_of_numbers(weights: &[f32]) -> f32 {
    weights.iter().filter(|weight| !weight.is_nan()).sum()
}

/// The largest score of a row, and the sum of its weights relative to that.
fn of_all(weighed: &[&Weighed], row: usize) -> (f32, f32) {
    let reference = weighed.iter().map(|unit| unit.references[row]).fold(f32::NEG_INFINITY, f32::max);
    let total = weighed.iter().map(|unit| unit.scale(row, reference) * unit.totals[row]);
    (reference, total.sum())
}
