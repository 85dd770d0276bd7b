//! Attention over the part of a long context that matters: summaries say which blocks, and
//! only their pages are brought to RAM and read.
//!
//! Every (row, KV head) reads blocks of its own: the first, the last, and those to which the
//! summaries promise most of the mass of its query group. The tokens after the last whole
//! page are always read. Past the trained window the blocks that are read are numbered
//! without gaps, so that no query meets a distance that the model was not trained on;
//! scores are then taken as if nothing were further away than the budget.
//!
//! Invariant: the result depends on the query, the tokens and the selection, not on tiers or
//! threads.
//!
//! Sources: selection by (page, KV head) within a budget, Quest (arXiv:2406.10774); compact
//! positions of what is read, InfLLM (arXiv:2402.04617).

use std::cell::RefCell;
use std::slice::Chunks;
use std::sync::Arc;

use super::KvCache;
use super::attend::{Call, Place, Scratch as AttendScratch, Step, read_query};
use super::digest::{CHAPTER_PAGES, Digest, DigestLayout};
use super::feed::{Batch, PageRef, Source, stream};
use super::table::{Layout, Table};
use crate::attend::{Inline, Parallel, Running, Tile};
use crate::error::{Error, Result};
use crate::rotary::Turns;
use crate::score::{BLOCK_TOKENS, Budget, Choice, Masses, Summary, estimate, largest, slow_elements, weigh};
use crate::session::LayerShape;
use crate::simd::SimdLevel;
use crate::sync::Mutex;
use crate::tier::ram::PageMut;

/// Parts that a row's pages are attended in, each with states of its own: enough to keep a
/// few threads busy, few enough to merge.
const PARTS: usize = 4;
/// Less than this many blocks are scored on the calling thread.
const PARALLEL_BLOCKS_MIN: usize = 1024;
/// Query tokens that one selection serves, at most: what a step of decoding or of checking
/// guessed tokens has. More of them would share too few blocks.
const QUERY_TOKENS_MAX: usize = 32;

/// When and how a cache reads only a part of its context.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Selection {
    /// What one step reads per KV head.
    pub budget: Budget,
    /// Contexts of up to this many tokens are read whole.
    pub dense_below: usize,
    /// Contexts of up to this many tokens have their true positions; longer ones are numbered
    /// by what is read.
    pub trained_tokens: usize,
}

/// What the last step read of a layer, averaged over rows and heads.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Selected {
    /// Tokens read per KV head.
    pub tokens: f32,
    /// Estimated share of the mass of all whole pages that was not read.
    pub unread: f32,
}

/// Memory that is kept between calls.
#[derive(Default)]
pub(super) struct Scratch {
    /// (B, H, chapter): see [`Scoring::chapter`].
    masses: Vec<Mutex<Vec<f32>>>,
    /// (B, H).
    heads: Vec<Mutex<HeadScratch>>,
}

#[derive(Default)]
struct HeadScratch {
    shares: Vec<f32>,
    choice: Choice,
}

thread_local! {
    /// Queries relative to the page at hand.
    static RELATIVE: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// The same as the scores take them.
    static ARRANGED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// What is read of the pages at hand.
    static RUNS: RefCell<Vec<Run>> = const { RefCell::new(Vec::new()) };
}

impl KvCache {
    /// From now on reads what `selection` says, or everything.
    ///
    /// # Errors
    /// `Invalid` without a rotary, for pages that are not whole blocks, and for a budget that
    /// cannot be.
    pub fn select(&mut self, selection: Option<Selection>) -> Result<()> {
        if let Some(selection) = &selection {
            selection.budget.check()?;
            if self.turns.is_none() {
                return Err(no_rotary());
            }
            if !self.config.page_tokens.is_multiple_of(BLOCK_TOKENS) {
                return Err(Error::Invalid(format!(
                    "page_tokens is {}, and a selection needs a multiple of {BLOCK_TOKENS}",
                    self.config.page_tokens
                )));
            }
        }
        self.selection = selection;
        self.layers.iter_mut().for_each(|layer| layer.selected = None);
        Ok(())
    }

    /// What the last step read of a layer; `None` where it read everything.
    ///
    /// # Errors
    /// `Invalid` when there is no such layer.
    pub fn selected(&self, layer: usize) -> Result<Option<Selected>> {
        self.check_layer(layer)?;
        Ok(self.layers[layer].selected)
    }

    /// Row by row, the blocks that each KV head read of a layer in the last step: ascending,
    /// with those after the last whole page, of which the last may be shorter. `None` where
    /// the step read everything.
    ///
    /// # Errors
    /// `Invalid` when there is no such layer.
    pub fn read_blocks(&self, layer: usize) -> Result<Option<Chunks<'_, Vec<u32>>>> {
        self.check_layer(layer)?;
        let held = &self.layers[layer];
        let heads = held.shape.map_or(1, |shape| shape.kv_heads as usize);
        Ok(held.selected.map(|_| held.blocks.chunks(heads)))
    }

    /// The selection, where it serves a step of so many query tokens.
    pub(super) fn selection_for(&self, layer: usize, tokens: usize) -> Option<Selection> {
        let length = self.layers[layer].len;
        self.selection.filter(|selection| {
            (1..=QUERY_TOKENS_MAX).contains(&tokens)
                && length > selection.dense_below
                && length >= self.config.page_tokens
        })
    }

    /// How the summaries of a layer of that shape are made; found out once.
    fn digest_layout(&mut self, layer: usize, shape: &LayerShape) -> Result<Arc<DigestLayout>> {
        let rotary = self.turns.as_ref().ok_or_else(no_rotary)?.rotary();
        let page_tokens = self.config.page_tokens;
        let known = self.layers[layer].digest.get_or_insert_with(|| {
            let dim = shape.key_dim as usize;
            let summary = Summary::new(dim, slow_elements(rotary, dim));
            Arc::new(DigestLayout::new(summary, shape, page_tokens))
        });
        Ok(known.clone())
    }

    /// Summarises a page that was sealed just now, unless earlier ones wait for that too. What
    /// fails here is tried again when the summaries are needed.
    pub(super) fn summarise_sealed(&mut self, layer: usize, row: usize, page: &PageMut) {
        let Some(shape) = self.layers[layer].shape.filter(|_| self.selection.is_some()) else { return };
        let Ok(digest) = self.digest_layout(layer, &shape) else { return };
        let layout = Layout::new(&shape, self.config.page_tokens);
        let table = &mut self.layers[layer].tables[row];
        if table.digest.pages() + 1 == table.sealed.len() {
            let _ = table.digest.add(&self.store, &digest, &layout, page);
        }
    }

    /// Summarises the whole pages of a layer that are not yet.
    fn summarise(
        &mut self,
        layer: usize,
        layout: &Layout,
        digest: &DigestLayout,
        scratch: &mut AttendScratch,
    ) -> Result<()> {
        let whole = self.layers[layer].len / layout.page_tokens;
        for row in 0..self.rows {
            let known = self.layers[layer].tables[row].digest.pages();
            if known >= whole {
                continue;
            }
            let mut summaries = std::mem::take(&mut self.layers[layer].tables[row].digest);
            let source = Source { store: &self.store, tables: &self.layers[layer].tables, layout };
            let entry = |page: usize| PageRef { row: row as u32, page: page as u32 };
            let entries: Vec<_> = (known..whole).map(entry).collect();
            let result = stream(
                &source,
                &entries,
                None,
                &mut scratch.batches,
                || (),
                |batch| {
                    (0..batch.entries.len()).try_for_each(|i| {
                        summaries.add(&self.store, digest, layout, batch.page(i, source.tables))
                    })
                },
            );
            self.layers[layer].tables[row].digest = summaries;
            result?;
        }
        Ok(())
    }

    /// The body of [`KvCache::attend`] for what a selection reads.
    pub(super) fn attend_selected(
        &mut self,
        scratch: &mut AttendScratch,
        layer: usize,
        shape: LayerShape,
        layout: &Layout,
        selection: &Selection,
        call: Call<'_, '_>,
        parallel: &dyn Parallel,
    ) -> Result<()> {
        let Call { query, out, scale, mask } = call;
        let digest = self.digest_layout(layer, &shape)?;
        self.summarise(layer, layout, &digest, scratch)?;
        let extent = query.extent();
        read_query(query, scale, &mut scratch.query, &mut scratch.bytes);
        let length = self.layers[layer].len;
        let pages = length / layout.page_tokens;
        let tail = length - pages * layout.page_tokens;
        let budget = budget_of(&selection.budget, tail, extent.tokens);
        let most = (budget.blocks as f32 * budget.guard.growth) as usize + budget.sinks + budget.window;
        let turns = self.turns.as_mut().ok_or_else(no_rotary)?;
        turns.grow(pages + 1);
        turns.grow_blocks(most + 1);
        let (turns, tables) = (&*turns, &self.layers[layer].tables);

        let compact = length > selection.trained_tokens;
        let far = (most * BLOCK_TOKENS).div_ceil(layout.page_tokens);
        let scoring = Scoring {
            digest: &digest,
            turns,
            tables,
            pages,
            heads: layout.heads,
            rows: extent.heads / layout.heads * extent.tokens,
            dim: extent.dim,
            nearest_far: if compact { pages.saturating_sub(far) } else { 0 },
        };
        scratch.placed.clone_from(&scratch.query);
        turns.place_queries(&mut scratch.placed, extent.tokens, extent.dim, length);
        scoring.choose(&scratch.placed, &budget, &mut scratch.selection, parallel);

        let chosen: Vec<_> = scratch.selection.heads.iter().map(Mutex::lock).collect();
        let choices: Vec<&Choice> = chosen.iter().map(|head| &head.choice).collect();
        if compact {
            scratch.placed.clone_from(&scratch.query);
            let queries = scratch.placed.chunks_exact_mut(scoring.rows * extent.dim);
            for (queries, choice) in queries.zip(&choices) {
                let read = choice.blocks.len() * BLOCK_TOKENS + tail;
                turns.place_queries(queries, extent.tokens, extent.dim, read);
            }
        }
        let bounds = list_pages(tables, layout, length, &choices, &mut scratch.order);
        let states = fresh_states(
            &mut scratch.states,
            self.rows * PARTS * layout.heads,
            scoring.rows,
            shape.value_dim as usize,
        );
        let step = Step {
            shape,
            layout,
            tables,
            length,
            tokens: extent.tokens,
            rows: scoring.rows,
            chunk_pages: 1,
            chunks: PARTS,
            query: &scratch.placed,
            states,
            mask,
            turns: Some(turns),
        };
        let reading = Reading { step: &step, choices: &choices, bounds: &bounds, compact, pages };
        let source = Source { store: &self.store, tables, layout };
        if scratch.batches[0].pin(&source, &scratch.order) {
            reading.advance(&scratch.batches[0], parallel);
            scratch.batches[0].touch(&source, 1);
        } else {
            scratch.batches[0].clear();
            let mut advance = |batch: &Batch| {
                reading.advance(batch, parallel);
                Ok(())
            };
            stream(&source, &scratch.order, None, &mut scratch.batches, || (), &mut advance)?;
        }
        step.finish(self.rows, out, &mut scratch.bytes);
        let held = &mut self.layers[layer];
        held.selected = Some(average(&choices, tail));
        note_blocks(&choices, length, layout.page_tokens, &mut held.blocks);
        Ok(())
    }
}

fn no_rotary() -> Error {
    Error::Invalid("a selection needs keys that come without positions: this cache has no rotary".into())
}

/// `count` states of R rows that have seen nothing.
fn fresh_states(
    states: &mut Vec<Mutex<Vec<f32>>>,
    count: usize,
    rows: usize,
    value_dim: usize,
) -> &[Mutex<Vec<f32>>] {
    states.resize_with(count.max(states.len()), Mutex::default);
    for state in &states[..count] {
        let mut buffer = state.lock();
        buffer.resize(Running::len_f32(rows, value_dim), 0.0);
        Running::in_buffer(&mut buffer, rows, value_dim).reset();
    }
    &states[..count]
}

/// The budget of the whole pages: less the blocks of the tail, and with a window that
/// reaches back to the first of the query tokens.
fn budget_of(budget: &Budget, tail_tokens: usize, query_tokens: usize) -> Budget {
    let tail = tail_tokens.div_ceil(BLOCK_TOKENS);
    let own = query_tokens.saturating_sub(tail_tokens).div_ceil(BLOCK_TOKENS);
    let window = budget.window.saturating_sub(tail).max(own);
    let blocks = budget.blocks.saturating_sub(tail).max(budget.sinks + window);
    Budget { blocks, window, ..*budget }
}

fn average(choices: &[&Choice], tail_tokens: usize) -> Selected {
    let count = choices.len().max(1) as f32;
    let blocks: usize = choices.iter().map(|choice| choice.blocks.len()).sum();
    Selected {
        tokens: (blocks * BLOCK_TOKENS) as f32 / count + tail_tokens as f32,
        unread: choices.iter().map(|choice| choice.unread).sum::<f32>() / count,
    }
}

/// Keeps what was read beyond the step, whose scratch all layers share.
fn note_blocks(choices: &[&Choice], length: usize, page_tokens: usize, blocks: &mut Vec<Vec<u32>>) {
    let whole = length / page_tokens * page_tokens / BLOCK_TOKENS;
    blocks.resize_with(choices.len(), Vec::new);
    for (choice, blocks) in choices.iter().zip(blocks) {
        blocks.clone_from(&choice.blocks);
        blocks.extend(whole as u32..length.div_ceil(BLOCK_TOKENS) as u32);
    }
}

/// Fills `order` with the pages of which some head of the row reads a block, and the tail.
/// Gives, per row, the first pages of all parts but the first.
fn list_pages(
    tables: &[Table],
    layout: &Layout,
    length: usize,
    choices: &[&Choice],
    order: &mut Vec<PageRef>,
) -> Vec<[u32; PARTS - 1]> {
    let (pages, per_page) = (length / layout.page_tokens, layout.page_tokens / BLOCK_TOKENS);
    let mut is_read = vec![false; pages];
    order.clear();
    let mut bounds = Vec::with_capacity(tables.len());
    for row in 0..tables.len() {
        is_read.fill(false);
        for choice in &choices[row * layout.heads..(row + 1) * layout.heads] {
            choice.blocks.iter().for_each(|block| is_read[*block as usize / per_page] = true);
        }
        let first = order.len();
        let read = is_read.iter().enumerate().filter(|(_, is_read)| **is_read);
        order.extend(read.map(|(page, _)| PageRef { row: row as u32, page: page as u32 }));
        if length > pages * layout.page_tokens {
            order.push(PageRef { row: row as u32, page: pages as u32 });
        }
        let own = &order[first..];
        bounds.push(std::array::from_fn(|part| {
            own.get((part + 1) * own.len() / PARTS).map_or(u32::MAX, |entry| entry.page)
        }));
    }
    bounds
}

/// What scoring works on.
struct Scoring<'a> {
    digest: &'a DigestLayout,
    turns: &'a Turns,
    tables: &'a [Table],
    /// Whole pages of each row.
    pages: usize,
    heads: usize,
    /// R.
    rows: usize,
    /// Dk.
    dim: usize,
    /// Pages before this one are scored as if they stood there.
    nearest_far: usize,
}

impl Scoring<'_> {
    /// Chooses the blocks of every (row, KV head); `placed` is (B, H, R, Dk).
    fn choose(&self, placed: &[f32], budget: &Budget, scratch: &mut Scratch, parallel: &dyn Parallel) {
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

/// Consecutive blocks of one page that one head reads.
#[derive(Clone, Copy)]
struct Run {
    /// Entry of the batch.
    entry: usize,
    page: usize,
    /// First block of the page.
    within: usize,
    tokens: usize,
    /// Place of the first block among those that the head reads.
    place: usize,
}

/// One step's reading, as the threads see it.
struct Reading<'a> {
    step: &'a Step<'a>,
    /// (B, H).
    choices: &'a [&'a Choice],
    bounds: &'a [[u32; PARTS - 1]],
    compact: bool,
    /// Whole pages.
    pages: usize,
}

impl Reading<'_> {
    /// Attends what is read of a batch of pages.
    fn advance(&self, batch: &Batch, parallel: &dyn Parallel) {
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
        let heads = self.step.layout.heads;
        parallel.run(items.len() * heads, &|unit| {
            let (part, entries) = &items[unit / heads];
            self.unit(batch, *part, entries.clone(), unit % heads);
        });
    }

    /// One KV head of one part of a row.
    fn unit(&self, batch: &Batch, part: usize, entries: std::ops::Range<usize>, head: usize) {
        let step = self.step;
        let (row, heads, dim) = (part / PARTS, step.layout.heads, step.shape.key_dim as usize);
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
                let first = run.page * step.layout.page_tokens + run.within * BLOCK_TOKENS;
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
        let (step, per_page) = (self.step, self.step.layout.page_tokens / BLOCK_TOKENS);
        runs.clear();
        for entry in entries {
            let page = batch.entries[entry].page as usize;
            if page == self.pages {
                let tokens = step.length - page * step.layout.page_tokens;
                runs.push(Run { entry, page, within: 0, tokens, place: choice.blocks.len() });
                continue;
            }
            let start = choice.blocks.partition_point(|block| (*block as usize) < page * per_page);
            for (place, block) in choice.blocks.iter().enumerate().skip(start) {
                let block = *block as usize;
                if block / per_page != page {
                    break;
                }
                let within = block % per_page;
                match runs.last_mut() {
                    Some(run) if run.entry == entry && run.within + run.tokens / BLOCK_TOKENS == within => {
                        run.tokens += BLOCK_TOKENS;
                    }
                    _ => runs.push(Run { entry, page, within, tokens: BLOCK_TOKENS, place }),
                }
            }
        }
    }

    fn tile<'b>(&'b self, batch: &'b Batch, run: &Run, head: usize) -> Tile<'b> {
        let (step, layout) = (self.step, self.step.layout);
        let page = batch.page(run.entry, step.tables);
        let first = run.within * BLOCK_TOKENS;
        Tile {
            keys: &page[layout.keys(head, first, run.tokens)],
            values: &page[layout.values(head, first, run.tokens)],
            tokens: run.tokens,
            dk: step.shape.key_dim as usize,
            dv: step.shape.value_dim as usize,
            dtype: step.shape.dtype,
            bias: None,
        }
    }
}
