//! Reading what was chosen: which pages that takes, and their runs of blocks through the kernel.

use std::cell::RefCell;

use super::super::attend::{Place, Step};
use super::super::digest::DigestLayout;
use super::super::feed::{Batch, PageRef};
use super::super::layout::{Layout, PageBytes, Slice};
use super::super::table::Table;
use crate::attend::{Parallel, Running, Tile};
use crate::score::{BLOCK_TOKENS, Choice};
use crate::simd::SimdLevel;

/// Parts that a row's pages are attended in, each with states of its own: enough to keep a
/// few threads busy, few enough to merge.
pub(super) const PARTS: usize = 4;

thread_local! {
    /// What is read of the pages at hand.
    static RUNS: RefCell<Vec<Run>> = const { RefCell::new(Vec::new()) };
}

/// Fills `order` with the pages of which some head of the row reads a block, whole where it is to
/// be read in 16 bits, and the tail. Gives, per row, the first pages of all parts but the first.
pub(super) fn list_pages(
    tables: &[Table],
    layout: &Layout,
    length: usize,
    choices: &[&Choice],
    order: &mut Vec<PageRef>,
) -> Vec<[u32; PARTS - 1]> {
    let (pages, per_page) = (length / layout.page_tokens, layout.page_tokens / BLOCK_TOKENS);
    let mut is_read = vec![None; pages];
    order.clear();
    let mut bounds = Vec::with_capacity(tables.len());
    for row in 0..tables.len() {
        is_read.fill(None);
        for choice in &choices[row * layout.heads..(row + 1) * layout.heads] {
            for (block, is_critical) in choice.blocks.iter().zip(&choice.critical) {
                *is_read[*block as usize / per_page].get_or_insert(false) |= is_critical;
            }
        }
        let first = order.len();
        let read = is_read.iter().enumerate().filter_map(|(page, whole)| Some((page as u32, (*whole)?)));
        order.extend(read.map(|(page, whole)| PageRef { row: row as u32, page, whole }));
        if length > pages * layout.page_tokens {
            order.push(PageRef::whole(row as u32, pages as u32));
        }
        let own = &order[first..];
        bounds.push(std::array::from_fn(|part| {
            own.get((part + 1) * own.len() / PARTS).map_or(u32::MAX, |entry| entry.page)
        }));
    }
    bounds
}

/// Consecutive blocks of one page that one head reads.
#[derive(Clone, Copy)]
struct Run {
    /// Entry of the batch.
    entry: usize,
    page: usize,
    /// First block of the page.
    within: usize,
    tokens: usize,
    /// In 16 bits.
    is_critical: bool,
    /// Place of the first block among those that the head reads.
    place: usize,
}

/// One step's reading, as the threads see it.
pub(super) struct Reading<'a> {
    pub(super) step: &'a Step<'a>,
    pub(super) digest: &'a DigestLayout,
    /// (B, H).
    pub(super) choices: &'a [&'a Choice],
    pub(super) bounds: &'a [[u32; PARTS - 1]],
    pub(super) compact: bool,
    /// Whole pages.
    pub(super) pages: usize,
}

impl Reading<'_> {
    /// Attends what is read of a batch of pages, and beside it calls `also`.
    pub(super) fn advance(&self, batch: &Batch, also: impl Fn() + Sync, parallel: &dyn Parallel) {
        let part = |entry: &PageRef| {
            let bounds = &self.bounds[entry.row as usize];
            entry.row as usize * PARTS + bounds.partition_point(|bound| *bound <= entry.page)
        };
        let mut items: Vec<(usize, std::ops::Range<usize>)> = Vec::with_capacity(PARTS);
        for (index, entry) in batch.entries.iter().enumerate() {
            match items.last_mut() {
                Some((known, entries)) if *known == part(entry) => entries.end = index + 1,
                _ => items.push((part(entry), index..index + 1)),
            }
        }
        let heads = self.step.source.layout.heads;
        parallel.run(items.len() * heads + 1, &|unit| {
            let Some(unit) = unit.checked_sub(1) else { return also() };
            let (part, entries) = &items[unit / heads];
            self.unit(batch, *part, entries.clone(), unit % heads);
        });
    }

    /// One KV head of one part of a row.
    fn unit(&self, batch: &Batch, part: usize, entries: std::ops::Range<usize>, head: usize) {
        let step = self.step;
        let (row, heads, dim) = (part / PARTS, step.source.layout.heads, step.shape.key_dim as usize);
        let choice = self.choices[row * heads + head];
        let query = &step.query[(row * heads + head) * step.rows * dim..][..step.rows * dim];
        // Never contended: a part and head are in one unit of a batch.
        let mut buffer = step.states[part * heads + head].lock();
        let mut state = Running::in_buffer(&mut buffer, step.rows, step.shape.value_dim as usize);
        let level = SimdLevel::detect();
        RUNS.with_borrow_mut(|runs| {
            self.list_runs(batch, entries, choice, runs);
            for (index, run) in runs.iter().enumerate() {
                let next = runs.get(index + 1).map(|next| self.tile(batch, next, head));
                let first = run.page * step.source.layout.page_tokens + run.within * BLOCK_TOKENS;
                let stands = if self.compact {
                    Place::Block { place: run.place, within: run.within }
                } else {
                    Place::Page(run.page)
                };
                step.facing(query, stands, |query| {
                    let tile = self.tile(batch, run, head);
                    step.attend_tile(level, query, row, first, tile, next, &mut state);
                });
            }
        });
    }

    /// What a head reads of some entries, in order.
    fn list_runs(
        &self,
        batch: &Batch,
        entries: std::ops::Range<usize>,
        choice: &Choice,
        runs: &mut Vec<Run>,
    ) {
        let (step, per_page) = (self.step, self.step.source.layout.page_tokens / BLOCK_TOKENS);
        runs.clear();
        for entry in entries {
            let page = batch.entries[entry].page as usize;
            if page == self.pages {
                let tokens = step.length - page * step.source.layout.page_tokens;
                runs.push(Run {
                    entry,
                    page,
                    within: 0,
                    tokens,
                    is_critical: true,
                    place: choice.blocks.len(),
                });
                continue;
            }
            let start = choice.blocks.partition_point(|block| (*block as usize) < page * per_page);
            for (place, block) in choice.blocks.iter().enumerate().skip(start) {
                let block = *block as usize;
                if block / per_page != page {
                    break;
                }
                let (within, is_critical) = (block % per_page, choice.critical[place]);
                let goes_on = |run: &Run| {
                    (run.entry, run.is_critical) == (entry, is_critical)
                        && run.within + run.tokens / BLOCK_TOKENS == within
                };
                match runs.last_mut() {
                    Some(run) if goes_on(run) => run.tokens += BLOCK_TOKENS,
                    _ => runs.push(Run { entry, page, within, tokens: BLOCK_TOKENS, is_critical, place }),
                }
            }
        }
    }

    fn tile<'b>(&'b self, batch: &'b Batch, run: &Run, head: usize) -> Tile<'b> {
        let source = &self.step.source;
        let page = match batch.page(run.entry, source) {
            // Another head may have asked for its residuals.
            PageBytes::Planes { codes, .. } if !run.is_critical => {
                PageBytes::Planes { codes, residual: None }
            }
            page => page,
        };
        let slice = Slice { head, first: run.within * BLOCK_TOKENS, tokens: run.tokens };
        let row = batch.entries[run.entry].row as usize;
        let scales = || source.tables[row].digest.scales(self.digest, head, run.page);
        source.layout.tile(page, slice, scales)
    }
}
