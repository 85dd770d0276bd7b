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

mod chapters;
mod reading;
mod scoring;
mod telling;

use std::slice::Chunks;

use super::attend::{Call, Scratch as AttendScratch, Step, read_query};
use super::digest::DigestLayout;
use super::feed::{Batch, Source, stream};
use super::layout::Layout;
use super::tensor::{Part, PartMut};
use super::{KvCache, Mask};
use crate::attend::{Parallel, Running};
use crate::error::{Error, Result};
use crate::interrupt::Poll;
use crate::score::{BLOCK_TOKENS, Budget, Choice, DIRECTIONS, Guard, Picker};
use crate::session::LayerShape;
use crate::sync::Mutex;
pub(super) use chapters::Ahead;
use reading::{PARTS, Reading, list_pages};
use scoring::Scoring;
use telling::Weighed;

/// Query tokens up to which a call is a step of decoding, or of checking guessed tokens: each has a
/// selection of its own, as if they came one by one.
const STEP_TOKENS_MAX: usize = 32;
/// Query tokens of a prefill that share one selection; they end at multiples of it, so that the
/// chunks of a prefill change nothing.
const PART_TOKENS: usize = 64;
/// Of these, one in so many is asked what it attends to.
const SAMPLE_TOKENS: usize = 8;

/// The far place is this share of the trained length away.
const FAR_SHARE: usize = 4;

/// When and how a cache reads only a part of its context.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Selection {
    /// What one step reads per KV head.
    pub budget: Budget,
    /// Blocks of the window, where that is more, in a step of decoding over a context that is longer than
    /// `trained_tokens` and in which heads choose for themselves.
    pub recent: usize,
    /// A step of decoding reads contexts of up to this many tokens whole.
    pub dense_below: usize,
    /// The same of a prefill.
    pub dense_prefill_below: usize,
    /// Contexts of up to this many tokens have their true positions; longer ones are numbered
    /// by what is read.
    pub trained_tokens: usize,
    /// Whether the far blocks of long contexts are told from their sketches. Without, every block is
    /// estimated from its summary, which costs time that grows with the context.
    pub sketches: bool,
}

/// What the last step read of a layer, averaged over rows and heads.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Selected {
    /// Tokens read per KV head.
    pub tokens: f32,
    /// Estimated share of the mass of all whole pages that was not read.
    pub unread: f32,
}

/// Blocks that all heads read.
#[derive(Clone, Default)]
pub(super) struct Focus {
    /// For each row, ascending; or no rows at all.
    pub(super) rows: Vec<Vec<u32>>,
    /// Blocks that each head reads besides.
    own: usize,
    /// The first of the blocks that are all read, as if they were the window.
    since: Option<usize>,
}

impl Focus {
    /// What is read instead of a budget, of `blocks` whole blocks; the window grows as far as there is `room`.
    /// What that leaves unread is left on purpose: the guard asks for nothing.
    fn budget(&self, budget: Budget, blocks: usize, room: usize) -> Budget {
        let Some(most) = self.rows.iter().map(Vec::len).max() else { return budget };
        let others = budget.sinks + most + self.own;
        let later = self.since.map_or(0, |since| blocks.saturating_sub(since));
        let window = budget.window.max(later.min(room.saturating_sub(others)));
        Budget { blocks: others + window, window, guard: Guard { unread: 1.0, growth: 1.0 }, ..budget }
    }

    /// Whether heads read it besides the sinks and the window of that many blocks, and have nothing to
    /// choose: no block of their own, nor one in the place of any that is read anyway or not there.
    fn is_all(&self, budget: &Budget, blocks: usize) -> bool {
        let far = budget.sinks..blocks.saturating_sub(budget.window);
        let counted = |row: &Vec<u32>| row.iter().filter(|block| far.contains(&(**block as usize))).count();
        let most = self.rows.iter().map(Vec::len).max();
        self.own == 0 && most.is_some_and(|most| self.rows.iter().all(|row| counted(row) == most))
    }
}

/// Memory that is kept between calls.
#[derive(Default)]
pub(super) struct Scratch {
    /// (B, H, unit): see [`Scoring::weigh_sketches`].
    weighed: Vec<Mutex<Weighed>>,
    /// (B, H, unit): see [`Scoring::scattered`] and [`Scoring::chapter`].
    masses: Vec<Mutex<Vec<f32>>>,
    /// (B, H).
    heads: Vec<Mutex<HeadScratch>>,
    asked: Asked,
}

/// The query rows that are asked what they attend to.
#[derive(Default)]
struct Asked {
    /// (B, H, R, Dk), at their positions.
    placed: Vec<f32>,
    /// (B, H, R, Dk), as seen from the far place, where some pages stand there.
    far: Vec<f32>,
    /// (B, H, R, [`DIRECTIONS`]), where they are known.
    along: Vec<f32>,
}

#[cfg(test)]
impl Scratch {
    /// What the last step read, (B, H).
    pub(super) fn choices(&self) -> Vec<Choice> {
        self.heads.iter().map(|head| head.lock().choice.clone()).collect()
    }
}

#[derive(Default)]
struct HeadScratch {
    shares: Vec<f32>,
    choice: Choice,
    picker: Picker,
    /// Blocks of sketched chapters that are estimated, and what is left: see [`Scoring::tell`].
    estimated: Vec<u32>,
    left: Vec<f32>,
    /// Places, among the shares, of the blocks that are read whatever they are.
    focus: Vec<u32>,
}

/// What a call of a layer that selects works on.
pub(super) struct Selecting<'a> {
    pub(super) layer: usize,
    pub(super) shape: LayerShape,
    pub(super) layout: &'a Layout,
    pub(super) digest: &'a DigestLayout,
    pub(super) selection: &'a Selection,
    pub(super) parallel: &'a dyn Parallel,
}

impl Selecting<'_> {
    /// Tokens from the far place to the query.
    fn far(&self) -> u64 {
        (self.selection.far_pages(self.layout.page_tokens) * self.layout.page_tokens) as u64
    }
}

impl Selection {
    /// Pages from the far place to the query. Of a context longer than the model was trained on, all
    /// pages that are further away are scored as if they stood there.
    fn far_pages(&self, page_tokens: usize) -> usize {
        (self.trained_tokens / FAR_SHARE / page_tokens).max(1)
    }

    /// What the last `tokens` of `length` tokens read, in a step or in a prefill. What is short enough is
    /// read whole and in 16 bits; the own blocks of a prefill's tokens come on top.
    fn budget_at(&self, length: usize, tokens: usize, is_step: bool, is_focused: bool) -> Budget {
        let budget = self.budget;
        let dense_below = if is_step { self.dense_below } else { self.dense_prefill_below };
        if length <= dense_below {
            return Budget { blocks: length.div_ceil(BLOCK_TOKENS), critical: 1.0, ..budget };
        }
        let own = if is_step { 0 } else { tokens.div_ceil(BLOCK_TOKENS) };
        let is_long = length > self.trained_tokens;
        let mut budget = if is_long { self.within_trained(own) } else { budget };
        if is_long && is_step && !is_focused {
            budget.window = budget.window.max(self.recent.min(budget.blocks.saturating_sub(budget.sinks)));
        }
        Budget { blocks: budget.blocks + own, window: budget.window + own, ..budget }
    }

    /// The budget, its guard's growth included, cut to what fits the trained window beside `own` blocks: what
    /// is read is numbered without gaps, and the model knows no number beyond.
    fn within_trained(&self, own: usize) -> Budget {
        let Budget { sinks, window, guard, .. } = self.budget;
        let room = (self.trained_tokens / BLOCK_TOKENS).saturating_sub(own).max(sinks + window);
        let blocks = self.budget.blocks.min(room);
        let growth = guard.growth.min((room + own) as f32 / (blocks + own) as f32);
        Budget { blocks, guard: Guard { growth, ..guard }, ..self.budget }
    }
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
        let far = |selection: Selection| selection.far_pages(self.config.page_tokens);
        let is_moved = self.selection.map(far) != selection.map(far);
        self.selection = selection;
        for layer in &mut self.layers {
            layer.selected = None;
            if is_moved {
                layer.tables.iter_mut().for_each(|table| table.digest.forget_sketches());
            }
        }
        Ok(())
    }

    /// From now on every head of a layer that selects reads the same blocks besides the sinks and the
    /// window, and `own` of its own choice, instead of a budget. For each row the numbers of its blocks,
    /// in any order; no rows end that. The window begins at block `since`, or later where what is read would
    /// not fit the trained window.
    ///
    /// # Errors
    /// `Invalid` for another number of rows than the cache has.
    pub fn focus(&mut self, mut rows: Vec<Vec<u32>>, own: usize, since: Option<usize>) -> Result<()> {
        if !rows.is_empty() && rows.len() != self.rows {
            let (found, expected) = (rows.len(), self.rows);
            return Err(Error::Invalid(format!("a focus of {found} rows for a cache of {expected}")));
        }
        for blocks in &mut rows {
            blocks.sort_unstable();
            blocks.dedup();
        }
        self.focus = Focus { rows, own, since };
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

    /// Chapters of a layer that are sketched.
    #[cfg(test)]
    pub(super) fn sketched(&self, layer: usize) -> usize {
        self.layers[layer].tables[0].digest.sketched()
    }

    /// Row by row, the blocks that each KV head read of a layer in the last step: ascending,
    /// with those after the last whole page, of which the last may be shorter. `None` where
    /// the step read everything.
    ///
    /// # Errors
    /// `Invalid` when there is no such layer.
    pub fn read_blocks(&self, layer: usize) -> Result<Option<Chunks<'_, Vec<u32>>>> {
        self.check_layer(layer)?;
        Ok(self.by_row(layer, &self.layers[layer].blocks))
    }

    /// The estimated shares of the attention mass of those blocks, of which those after the last
    /// whole page have none: 0.
    ///
    /// # Errors
    /// `Invalid` when there is no such layer.
    pub fn read_shares(&self, layer: usize) -> Result<Option<Chunks<'_, Vec<f32>>>> {
        self.check_layer(layer)?;
        Ok(self.by_row(layer, &self.layers[layer].shares))
    }

    /// What the last step of a layer left for each row and KV head, if it selected.
    fn by_row<'a, T>(&self, layer: usize, heads: &'a [T]) -> Option<Chunks<'a, T>> {
        let held = &self.layers[layer];
        let per_row = held.shape.map_or(1, |shape| shape.kv_heads as usize);
        held.selected.map(|_| heads.chunks(per_row))
    }

    /// The selection, where it serves a call of so many query tokens.
    pub(super) fn selection_for(&self, layer: usize, tokens: usize, mask: &Mask<'_>) -> Option<Selection> {
        let length = self.layers[layer].len;
        let is_step = (1..=STEP_TOKENS_MAX).contains(&tokens);
        // A prefill without the usual mask is a padded batch, or something stranger: read whole.
        let is_prefill = tokens > STEP_TOKENS_MAX && mask.causal && mask.bias.is_none();
        self.selection.filter(|selection| {
            length >= self.config.page_tokens
                && ((is_step && length > selection.dense_below)
                    || (is_prefill && length > selection.dense_prefill_below))
        })
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
        let digest = &*self.digest_layout(layer, &shape)?;
        let what = Selecting { layer, shape, layout, digest, selection, parallel };
        self.summarise(&what, scratch)?;
        let Call { query, out, scale, mask } = call;
        let (tokens, length) = (query.extent().tokens, self.layers[layer].len);
        let is_step = tokens <= STEP_TOKENS_MAX;
        let mut poll = Poll::default();
        let mut start = length - tokens;
        while start < length {
            poll.check()?;
            let end = match (is_step, mask.causal) {
                (true, true) => start + 1,
                // Only the bias knows what each token must not see.
                (true, false) => length,
                (false, _) => ((start / PART_TOKENS + 1) * PART_TOKENS).min(length),
            };
            let (first, count) = (start + tokens - length, end - start);
            let query = Part { whole: query, first, tokens: count };
            let mut out = PartMut { whole: &mut *out, first, tokens: count };
            let mask = mask.skip(first);
            let call = Call { query: &query, out: &mut out, scale, mask: &mask };
            let budget = selection.budget_at(end, count, is_step, !self.focus.rows.is_empty());
            self.attend_part(scratch, &what, &budget, call, end)?;
            start = end;
        }
        Ok(())
    }

    /// A few query tokens, the last of the first `length` tokens, over what one selection reads.
    fn attend_part(
        &mut self,
        scratch: &mut AttendScratch,
        what: &Selecting<'_>,
        budget: &Budget,
        call: Call<'_, '_>,
        length: usize,
    ) -> Result<()> {
        let Selecting { layer, shape, layout, digest, selection, parallel } = *what;
        let Call { query, out, scale, mask } = call;
        let extent = query.extent();
        read_query(query, scale, &mut scratch.query, &mut scratch.bytes);
        self.layers[layer].learn(&scratch.query, layout.heads, &extent);
        let pages = length / layout.page_tokens;
        let tail = length - pages * layout.page_tokens;
        let compact = length > selection.trained_tokens;
        let room =
            if compact { selection.trained_tokens.saturating_sub(tail) / BLOCK_TOKENS } else { usize::MAX };
        let budget = budget_of(budget, tail, extent.tokens);
        let budget = self.focus.budget(budget, pages * digest.blocks_per_page, room);
        let nearest_far =
            if compact { pages.saturating_sub(selection.far_pages(layout.page_tokens)) } else { 0 };
        self.sketch(what, pages)?;
        let turns = self.turns.as_mut().ok_or_else(no_rotary)?;
        turns.grow(pages + 1);
        turns.grow_blocks(budget.most_blocks() + 1);
        let (turns, held) = (&*turns, &self.layers[layer]);
        let tables = &held.tables;

        let rows = extent.heads / layout.heads * extent.tokens;
        scratch.placed.clone_from(&scratch.query);
        turns.place_queries(&mut scratch.placed, extent.tokens, extent.dim, length);
        let mut asked = std::mem::take(&mut scratch.selection.asked);
        let sampled = sample(&scratch.placed, extent.tokens, extent.dim, &mut asked.placed);
        asked.far.clear();
        asked.along.clear();
        if nearest_far > 0 {
            sample(&scratch.query, extent.tokens, extent.dim, &mut asked.far);
            let asked_rows = rows / extent.tokens * sampled;
            project(&asked.far, held.directions.known(), asked_rows, extent.dim, &mut asked.along);
            turns.place_all(&mut asked.far, extent.dim, what.far() as usize);
        }
        let scoring = Scoring {
            digest,
            turns,
            tables,
            pages,
            heads: layout.heads,
            rows: rows / extent.tokens * sampled,
            dim: extent.dim,
            nearest_far,
            placed: &asked.placed,
            far: &asked.far,
            along: &asked.along,
            focus: &self.focus.rows,
            focus_only: self.focus.is_all(&budget, pages * digest.blocks_per_page),
            sketches: selection.sketches,
        };
        scoring.choose(&budget, &mut scratch.selection, parallel);
        scratch.selection.asked = asked;

        let chosen: Vec<_> = scratch.selection.heads.iter().map(Mutex::lock).collect();
        let choices: Vec<&Choice> = chosen.iter().map(|head| &head.choice).collect();
        if compact {
            scratch.placed.clone_from(&scratch.query);
            let queries = scratch.placed.chunks_exact_mut(rows * extent.dim);
            for (queries, choice) in queries.zip(&choices) {
                let read = choice.blocks.len() * BLOCK_TOKENS + tail;
                turns.place_queries(queries, extent.tokens, extent.dim, read);
            }
        }
        let bounds = list_pages(tables, layout, length, &choices, &mut scratch.order);
        let states = fresh_states(
            &mut scratch.states,
            self.rows * PARTS * layout.heads,
            rows,
            shape.value_dim as usize,
        );
        let step = Step {
            shape,
            source: Source { store: &self.store, tables, layout },
            length,
            tokens: extent.tokens,
            rows,
            chunk_pages: 1,
            chunks: PARTS,
            query: &scratch.placed,
            states,
            mask,
            turns: Some(turns),
        };
        let reading = Reading { step: &step, digest, choices: &choices, bounds: &bounds, compact, pages };
        let source = step.source;
        if scratch.batches[0].pin(&source, &scratch.order) {
            // Somebody reports what is read, while others read it.
            let batch = &scratch.batches[0];
            reading.advance(batch, || batch.touch(&source, 1), parallel);
        } else {
            scratch.batches[0].clear();
            let mut advance = |batch: &Batch| {
                reading.advance(batch, || (), parallel);
                Ok(())
            };
            stream(&source, &scratch.order, None, &mut scratch.batches, || (), &mut advance)?;
        }
        step.finish(self.rows, out, &mut scratch.bytes);
        let held = &mut self.layers[layer];
        held.selected = Some(average(&choices, tail));
        note_blocks(&choices, length, layout.page_tokens, &mut held.blocks, &mut held.shares);
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

/// Queries (B, H, R, Dk) along the directions (H, [`DIRECTIONS`], Dk) of their heads: (B, H, R,
/// [`DIRECTIONS`]). Without directions, nothing.
fn project(queries: &[f32], directions: &[f32], rows: usize, dim: usize, into: &mut Vec<f32>) {
    let heads = directions.len() / (DIRECTIONS * dim);
    if heads == 0 {
        return;
    }
    for (head, queries) in queries.chunks_exact(rows * dim).enumerate() {
        let directions = &directions[head % heads * DIRECTIONS * dim..][..DIRECTIONS * dim];
        for query in queries.chunks_exact(dim) {
            let along = |direction: &[f32]| direction.iter().zip(query).map(|(a, b)| a * b).sum::<f32>();
            into.extend(directions.chunks_exact(dim).map(along));
        }
    }
}

/// The rows of a few of T query tokens, spread evenly and the last among them: of (N, T, Dk) gives
/// (N, S, Dk). Gives S; all of a step's.
fn sample(placed: &[f32], tokens: usize, dim: usize, into: &mut Vec<f32>) -> usize {
    into.clear();
    if tokens <= STEP_TOKENS_MAX {
        into.extend_from_slice(placed);
        return tokens;
    }
    for head in placed.chunks_exact(tokens * dim) {
        let rows = head.chunks_exact(dim).rev().step_by(SAMPLE_TOKENS);
        rows.for_each(|row| into.extend_from_slice(row));
    }
    tokens.div_ceil(SAMPLE_TOKENS)
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
fn note_blocks(
    choices: &[&Choice],
    length: usize,
    page_tokens: usize,
    blocks: &mut Vec<Vec<u32>>,
    shares: &mut Vec<Vec<f32>>,
) {
    let whole = length / page_tokens * page_tokens / BLOCK_TOKENS;
    blocks.resize_with(choices.len(), Vec::new);
    shares.resize_with(choices.len(), Vec::new);
    for ((choice, blocks), shares) in choices.iter().zip(blocks).zip(shares) {
        blocks.clone_from(&choice.blocks);
        blocks.extend(whole as u32..length.div_ceil(BLOCK_TOKENS) as u32);
        shares.clone_from(&choice.shares);
        shares.resize(blocks.len(), 0.0);
    }
}
