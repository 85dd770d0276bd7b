//! Estimating every block's share of the attention mass, and choosing by it.

use std::cell::RefCell;

use super::super::digest::{CHAPTER_PAGES, Digest, DigestLayout};
use super::super::table::Table;
use super::{HeadScratch, Scratch};
use crate::attend::{Inline, Parallel};
use crate::rotary::Turns;
use crate::score::{Budget, Masses, estimate, largest, weigh};
use crate::sync::Mutex;

/// Less than this many blocks are scored on the calling thread.
const PARALLEL_BLOCKS_MIN: usize = 1024;

thread_local! {
    /// Queries relative to the page at hand.
    static RELATIVE: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// The same as the scores take them.
    static ARRANGED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// What scoring works on.
pub(super) struct Scoring<'a> {
    pub(super) digest: &'a DigestLayout,
    pub(super) turns: &'a Turns,
    pub(super) tables: &'a [Table],
    /// Whole pages of each row.
    pub(super) pages: usize,
    pub(super) heads: usize,
    /// R.
    pub(super) rows: usize,
    /// Dk.
    pub(super) dim: usize,
    /// Pages before this one are scored as if they stood there.
    pub(super) nearest_far: usize,
}

impl Scoring<'_> {
    /// Chooses the blocks of every (row, KV head); `placed` is (B, H, R, Dk).
    pub(super) fn choose(
        &self,
        placed: &[f32],
        budget: &Budget,
        scratch: &mut Scratch,
        parallel: &dyn Parallel,
    ) {
        let chapters = self.pages.div_ceil(CHAPTER_PAGES);
        let heads = self.tables.len() * self.heads;
        scratch.masses.resize_with((heads * chapters).max(scratch.masses.len()), Mutex::default);
        scratch.heads.resize_with(heads, Mutex::default);
        let small = self.pages * self.digest.blocks_per_page * heads < PARALLEL_BLOCKS_MIN;
        let parallel = if small { &Inline } else { parallel };
        let (masses, picks) = (&scratch.masses, &scratch.heads);
        let head_floats = self.rows * self.dim;
        parallel.run(heads * chapters, &|unit| {
            let (head, chapter) = (unit / chapters, unit % chapters);
            let query = &placed[head * head_floats..(head + 1) * head_floats];
            let digest = &self.tables[head / self.heads].digest;
            self.chapter(query, digest, head % self.heads, chapter, &mut masses[unit].lock());
        });
        parallel.run(heads, &|head| {
            let mut pick = picks[head].lock();
            let HeadScratch { shares, choice } = &mut *pick;
            self.share(&masses[head * chapters..(head + 1) * chapters], shares);
            choice.pick(shares, budget);
        });
    }

    /// Estimates the masses of one chapter's blocks: ({at, sum}, R, blocks).
    fn chapter(&self, query: &[f32], digest: &Digest, head: usize, chapter: usize, masses: &mut Vec<f32>) {
        let pages = chapter * CHAPTER_PAGES..((chapter + 1) * CHAPTER_PAGES).min(self.pages);
        let per_page = self.digest.blocks_per_page;
        let (stride, summary) = (pages.len() * per_page, &self.digest.summary);
        masses.resize(2 * self.rows * stride, 0.0);
        let (at, sum) = masses.split_at_mut(self.rows * stride);
        let mut page = pages.start;
        while page < pages.end {
            // Pages that are scored as if they stood in one place are scored in one go.
            let place = page.max(self.nearest_far);
            let end = if place > page { pages.end.min(self.nearest_far + 1) } else { page + 1 };
            let blocks = digest.blocks(self.digest, head, page, end - page);
            let first = (page - pages.start) * per_page;
            let mut masses = Masses { at: &mut at[first..], sum: &mut sum[first..], stride };
            self.arranged(query, place, |query| estimate(summary, query, self.rows, blocks, &mut masses));
            page = end;
        }
    }

    /// Calls with the queries relative to the page at `place`, as the scores take them.
    fn arranged(&self, query: &[f32], place: usize, call: impl FnOnce(&[f32])) {
        let floats = self.digest.summary.query_floats();
        RELATIVE.with_borrow_mut(|relative| {
            self.turns.relative_to(place, query, self.dim, relative);
            ARRANGED.with_borrow_mut(|arranged| {
                arranged.resize(self.rows * floats, 0.0);
                for (row, into) in relative.chunks_exact(self.dim).zip(arranged.chunks_exact_mut(floats)) {
                    self.digest.summary.arrange_query(row, into);
                }
                call(arranged);
            });
        });
    }

    /// Shares of the mass, averaged over the query rows, of all blocks of one head.
    fn share(&self, chapters: &[Mutex<Vec<f32>>], shares: &mut Vec<f32>) {
        let blocks = self.pages * self.digest.blocks_per_page;
        let chapter_blocks = CHAPTER_PAGES * self.digest.blocks_per_page;
        shares.clear();
        shares.resize(blocks, 0.0);
        let mut held: Vec<_> = chapters.iter().map(Mutex::lock).collect();
        for row in 0..self.rows {
            let mut reference = f32::NEG_INFINITY;
            for masses in &held {
                let stride = masses.len() / (2 * self.rows);
                reference = reference.max(largest(&masses[row * stride..(row + 1) * stride]));
            }
            let mut total = 0.0;
            for masses in &mut held {
                let stride = masses.len() / (2 * self.rows);
                let (at, sum) = masses.split_at_mut(self.rows * stride);
                let weights = &mut sum[row * stride..(row + 1) * stride];
                let sum = weigh(&at[row * stride..(row + 1) * stride], weights, reference);
                // What can't be estimated is read, and does not keep the others from being compared.
                total += if sum.is_nan() { weights.iter().filter(|w| !w.is_nan()).sum() } else { sum };
            }
            let factor = if total > 0.0 { 1.0 / (total * self.rows as f32) } else { 0.0 };
            for (masses, shares) in held.iter().zip(shares.chunks_mut(chapter_blocks)) {
                let weights = &masses[(self.rows + row) * shares.len()..][..shares.len()];
                shares.iter_mut().zip(weights).for_each(|(share, weight)| *share += weight * factor);
            }
        }
    }
}
