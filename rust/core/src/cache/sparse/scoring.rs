//! Estimating every block's share of the attention mass, and choosing by it.
//!
//! Where a context is long, the sketches of its full chapters say first which of their blocks
//! are worth an estimate from their summaries: what that costs does not grow with the context.

use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::digest::{Digest, DigestLayout};
use super::super::sketches::VOLUME_CHAPTERS;
use super::super::table::Table;
use super::{HeadScratch, Scratch};
use crate::attend::{Inline, Parallel};
use crate::rotary::Turns;
use crate::score::{Budget, Masses, Queries, estimate, largest, weigh};
use crate::session::CHAPTER_PAGES;
use crate::sync::Mutex;

/// Less than this many blocks are scored on the calling thread.
const PARALLEL_BLOCKS_MIN: usize = 1024;
/// Units of work that a head's blocks are estimated in, when they are told from their sketches.
const ESTIMATE_UNITS: usize = 4;
/// For each block that may be read, so many are told from their sketches to be estimated.
pub(super) const ESTIMATED_PER_READ: usize = 4;

/// Blocks from the one at hand to the one whose chapter is looked for, where they are apart.
const AHEAD: usize = 16;

thread_local! {
    /// Queries relative to the page at hand.
    static RELATIVE: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// The same as the scores take them.
    static ARRANGED: RefCell<Queries> = RefCell::default();
}

/// What one of a few units of work takes of some blocks.
fn part_of(blocks: &[u32], unit: usize, units: usize) -> &[u32] {
    let bound = |part: usize| part * blocks.len() / units;
    &blocks[bound(unit)..bound(unit + 1)]
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
    /// Pages before this one are scored as if they all stood in one place, far away.
    pub(super) nearest_far: usize,
    /// The queries that ask, (B, H, R, Dk), at their positions.
    pub(super) placed: &'a [f32],
    /// As seen from the far place.
    pub(super) far: &'a [f32],
    /// Along the directions of the head's queries, (B, H, R, [`DIRECTIONS`]); empty where these
    /// are not known.
    pub(super) along: &'a [f32],
    /// For each row, the blocks that all its heads read, ascending; nothing for all.
    pub(super) focus: &'a [Vec<u32>],
    /// Whether the heads choose nothing besides the focus: far blocks out of it are not estimated then.
    pub(super) focus_only: bool,
    /// Whether far blocks may be told from their sketches.
    pub(super) sketches: bool,
}

/// How a call's work is cut.
struct Plan {
    /// Chapters, the first ones, whose blocks are told from their sketches; or, without units of that, by
    /// the focus.
    sketched: usize,
    /// Of these chapters' blocks, how many are estimated besides the sinks.
    estimated: usize,
    /// Units of work of a head: over sketches, over the blocks that these tell, and a unit for each of
    /// the other chapters.
    sketch_units: usize,
    estimate_units: usize,
    chapters: usize,
}

impl Scoring<'_> {
    /// Chooses the blocks of every (row, KV head).
    ///
    /// Whoever finishes the last unit of a head goes on with what needs them all, while others work on
    /// the units of other heads.
    pub(super) fn choose(&self, budget: &Budget, scratch: &mut Scratch, parallel: &dyn Parallel) {
        let plan = self.plan(budget);
        let heads = self.tables.len() * self.heads;
        let parts = plan.estimate_units + plan.chapters;
        scratch.weighed.resize_with((heads * plan.sketch_units).max(scratch.weighed.len()), Default::default);
        scratch.masses.resize_with((heads * parts).max(scratch.masses.len()), Default::default);
        scratch.heads.resize_with(heads, Default::default);
        let small = self.pages * self.digest.blocks_per_page * heads < PARALLEL_BLOCKS_MIN;
        let parallel = if small { &Inline } else { parallel };
        let Scratch { weighed, masses, heads: picks, .. } = &*scratch;
        let units = plan.sketch_units + plan.chapters;
        let unfinished: Vec<_> = (0..heads).map(|_| AtomicUsize::new(units)).collect();
        let is_last = |head: usize| unfinished[head].fetch_sub(1, Ordering::AcqRel) == 1;
        parallel.run(heads * units, &|unit| {
            let (head, unit) = (unit / units, unit % units);
            if let Some(chapter) = unit.checked_sub(plan.sketch_units) {
                let mut masses = masses[head * parts + plan.estimate_units + chapter].lock();
                self.chapter(head, plan.sketched + chapter, &mut masses);
            } else {
                let mut weighed = weighed[head * plan.sketch_units + unit].lock();
                self.weigh_sketches(head, unit, plan.sketched, &mut weighed);
            }
            if is_last(head) {
                let scratch = &mut picks[head].lock();
                if plan.sketched > 0 && plan.sketch_units == 0 {
                    self.tell_focus(plan.sketched, budget.sinks, self.focus_of(head), scratch);
                } else if plan.sketched > 0 {
                    let weighed = &weighed[head * plan.sketch_units..][..plan.sketch_units];
                    self.tell(weighed, budget.sinks, plan.estimated, self.focus_of(head), scratch);
                } else {
                    self.pick(head, &plan, budget, &masses[head * parts..][..parts], &[], scratch);
                }
            }
        });
        if plan.sketched == 0 {
            return;
        }
        for count in &unfinished {
            count.store(plan.estimate_units, Ordering::Relaxed);
        }
        let told: Vec<_> = picks.iter().map(|head| std::mem::take(&mut head.lock().estimated)).collect();
        parallel.run(heads * plan.estimate_units, &|unit| {
            let (head, unit) = (unit / plan.estimate_units, unit % plan.estimate_units);
            let blocks = part_of(&told[head], unit, plan.estimate_units);
            self.scattered(head, blocks, &mut masses[head * parts + unit].lock());
            if is_last(head) {
                let masses = &masses[head * parts..][..parts];
                self.pick(head, &plan, budget, masses, &told[head], &mut picks[head].lock());
            }
        });
        for (head, told) in picks.iter().zip(told) {
            head.lock().estimated = told;
        }
    }

    fn plan(&self, budget: &Budget) -> Plan {
        let chapters = self.pages.div_ceil(CHAPTER_PAGES);
        let estimated = ESTIMATED_PER_READ * budget.most_blocks();
        let known = self.tables.iter().map(|table| table.digest.sketched()).min().unwrap_or(0);
        // The window is never in question.
        let window = budget.window.div_ceil(self.digest.blocks_per_page);
        let far = self.nearest_far.min(self.pages.saturating_sub(window)) / CHAPTER_PAGES;
        if self.focus_only && 0 < far && far < chapters {
            let (sketched, chapters) = (far, chapters - far);
            return Plan {
                sketched,
                estimated: 0,
                sketch_units: 0,
                estimate_units: ESTIMATE_UNITS,
                chapters,
            };
        }
        let sketched = if self.along.is_empty() || !self.sketches { 0 } else { known.min(far) };
        let blocks = sketched * CHAPTER_PAGES * self.digest.blocks_per_page;
        let sketched = if blocks > 2 * (estimated + budget.sinks) { sketched } else { 0 };
        Plan {
            sketched,
            estimated,
            sketch_units: sketched.div_ceil(VOLUME_CHAPTERS),
            estimate_units: if sketched > 0 { ESTIMATE_UNITS } else { 0 },
            chapters: chapters - sketched,
        }
    }

    fn focus_of(&self, head: usize) -> &[u32] {
        self.focus.get(head / self.heads).map_or(&[], Vec::as_slice)
    }

    pub(super) fn digest_of(&self, head: usize) -> (&Digest, usize) {
        (&self.tables[head / self.heads].digest, head % self.heads)
    }

    /// Estimates the masses of one chapter's blocks: ({at, sum}, R, blocks).
    fn chapter(&self, head: usize, chapter: usize, masses: &mut Vec<f32>) {
        let pages = chapter * CHAPTER_PAGES..((chapter + 1) * CHAPTER_PAGES).min(self.pages);
        let per_page = self.digest.blocks_per_page;
        let stride = pages.len() * per_page;
        let (at, sum) = self.sized(masses, stride);
        let mut page = pages.start;
        while page < pages.end {
            // Pages that are scored as if they stood in one place are scored in one go.
            let end = if page < self.nearest_far { pages.end.min(self.nearest_far) } else { page + 1 };
            let first = (page - pages.start) * per_page;
            let mut masses = Masses { at: &mut at[first..], sum: &mut sum[first..], stride };
            let (digest, of_row) = self.digest_of(head);
            let summaries = digest.blocks(self.digest, of_row, page, end - page);
            let summaries: Vec<_> = summaries.chunks_exact(self.digest.summary.len_bytes()).collect();
            self.estimate(head, page, &summaries, &mut masses);
            page = end;
        }
    }

    /// Estimates the masses of some far blocks, wherever they are: ({at, sum}, R, blocks).
    fn scattered(&self, head: usize, blocks: &[u32], masses: &mut Vec<f32>) {
        let (at, sum) = self.sized(masses, blocks.len());
        let (digest, of_row) = self.digest_of(head);
        let (len, per_page) = (self.digest.summary.len_bytes(), self.digest.blocks_per_page);
        let page_of = |block: &u32| *block as usize / per_page;
        let mut summaries = Vec::with_capacity(blocks.len());
        for (index, block) in blocks.iter().enumerate() {
            if let Some(later) = blocks.get(index + AHEAD) {
                digest.prefetch(page_of(later));
            }
            let of_page = digest.blocks(self.digest, of_row, page_of(block), 1);
            summaries.push(&of_page[*block as usize % per_page * len..][..len]);
        }
        self.estimate(head, 0, &summaries, &mut Masses { at, sum, stride: blocks.len() });
    }

    /// Room for ({at, sum}, R, blocks).
    fn sized<'m>(&self, masses: &'m mut Vec<f32>, blocks: usize) -> (&'m mut [f32], &'m mut [f32]) {
        masses.resize(2 * self.rows * blocks, 0.0);
        masses.split_at_mut(self.rows * blocks)
    }

    /// Estimates the masses of blocks whose page is `page`, or stands in the far place with it.
    fn estimate(&self, head: usize, page: usize, blocks: &[&[u8]], masses: &mut Masses<'_>) {
        let summary = &self.digest.summary;
        let own = head * self.rows * self.dim..(head + 1) * self.rows * self.dim;
        let mut arranged = |relative: &[f32]| {
            ARRANGED.with_borrow_mut(|arranged| {
                summary.arrange(relative, arranged);
                estimate(summary, arranged, blocks, masses);
            });
        };
        if page < self.nearest_far {
            return arranged(&self.far[own]);
        }
        RELATIVE.with_borrow_mut(|relative| {
            self.turns.relative_to(page, &self.placed[own], self.dim, relative);
            arranged(relative);
        });
    }

    /// Chooses one head's blocks by their masses, of which the first few parts are of those that were `told`
    /// from sketches.
    fn pick(
        &self,
        head: usize,
        plan: &Plan,
        budget: &Budget,
        masses: &[Mutex<Vec<f32>>],
        told: &[u32],
        scratch: &mut HeadScratch,
    ) {
        let mut parts: Vec<_> = masses.iter().map(Mutex::lock).collect();
        let mut parts: Vec<_> = parts.iter_mut().map(|masses| masses.as_mut_slice()).collect();
        let HeadScratch { shares, choice, left, focus, .. } = scratch;
        let rest = self.share(&mut parts, plan.estimate_units, left, shares);
        let per_page = self.digest.blocks_per_page;
        // The shares are of the blocks that were told from sketches, then of all those from `first` on.
        let first = plan.sketched * CHAPTER_PAGES * per_page;
        let place_of = |block: &u32| match (*block as usize).checked_sub(first) {
            Some(after) => Some((told.len() + after) as u32),
            None => told.binary_search(block).ok().map(|place| place as u32),
        };
        let known = self.focus_of(head).iter().filter(|block| (**block as usize) < self.pages * per_page);
        focus.clear();
        focus.extend(known.filter_map(place_of));
        choice.pick(shares, rest, budget, focus);
        if plan.sketched == 0 {
            return;
        }
        for block in &mut choice.blocks {
            let place = *block as usize;
            let after = || (first + place - told.len()) as u32;
            *block = told.get(place).copied().unwrap_or_else(after);
        }
    }

    /// Shares of the mass, averaged over the query rows, of all blocks whose masses are given,
    /// which become weights. `left` is, for each row, what mass there is besides, relative to that of the
    /// first `estimated` parts; gives its share.
    fn share(&self, parts: &mut [&mut [f32]], estimated: usize, left: &[f32], shares: &mut Vec<f32>) -> f32 {
        shares.clear();
        shares.resize(parts.iter().map(|masses| masses.len() / (2 * self.rows)).sum(), 0.0);
        let mut rest = 0.0;
        for row in 0..self.rows {
            let mut reference = f32::NEG_INFINITY;
            for masses in parts.iter() {
                let stride = masses.len() / (2 * self.rows);
                reference = reference.max(largest(&masses[row * stride..(row + 1) * stride]));
            }
            let (mut total, mut besides) = (0.0, 0.0);
            for (index, masses) in parts.iter_mut().enumerate() {
                let stride = masses.len() / (2 * self.rows);
                let (at, sum) = masses.split_at_mut(self.rows * stride);
                let weights = &mut sum[row * stride..(row + 1) * stride];
                let sum = weigh_finite(&at[row * stride..(row + 1) * stride], weights, reference);
                besides += if index < estimated { left[row] * sum } else { 0.0 };
                total += sum;
            }
            total += besides;
            let factor = if total > 0.0 { 1.0 / (total * self.rows as f32) } else { 0.0 };
            rest += besides * factor;
            let mut first = 0;
            for masses in parts.iter() {
                let stride = masses.len() / (2 * self.rows);
                let weights = &masses[(self.rows + row) * stride..][..stride];
                let shares = &mut shares[first..first + stride];
                shares.iter_mut().zip(weights).for_each(|(share, weight)| *share += weight * factor);
                first += stride;
            }
        }
        rest
    }
}

/// [`weigh`], without what is no number in the sum: what can't be estimated is read, and does not keep
/// the others from being compared.
pub(super) fn weigh_finite(at: &[f32], weights: &mut [f32], reference: f32) -> f32 {
    let sum = weigh(at, weights, reference);
    if sum.is_nan() { weights.iter().filter(|weight| !weight.is_nan()).sum() } else { sum }
}
