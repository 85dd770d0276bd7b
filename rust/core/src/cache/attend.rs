//! Exact attention over everything that a layer holds.
//!
//! A row's pages are cut into chunks, and every (row, chunk, KV head) has a softmax state
//! of its own. Batches of pages, in whatever order they reach RAM, advance the states of
//! their chunks; at the end the states of a head are merged in order. The cut depends on
//! the page count alone, so neither tiers nor threads change a bit of the result.

use std::cell::RefCell;

use super::feed::{Batch, PageRef, Prefetch, Source, arrange, chunk_pages, stream};
use super::layout::{Layout, Scales, Slice};
use super::{Bias, Extent, KvCache, ReadRows, WriteRows};
use crate::attend::{Bias as TileBias, Inline, Parallel, Running, Tile, attend_tile_at};
use crate::error::{Error, Result};
use crate::rotary::Turns;
use crate::session::LayerShape;
use crate::simd::SimdLevel;
use crate::sync::Mutex;

/// Less than this many bytes of pages are attended on the calling thread: waking others
/// costs more than they save.
const PARALLEL_BYTES_MIN: usize = 256 << 10;

/// Attends of a layer that was wholly in RAM between two reports of that to the store.
pub(super) const ATTENDS_PER_REPORT: u64 = 16;

/// What a query must not see, or less.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mask<'a> {
    /// Added to the scores; `-inf` excludes.
    pub bias: Option<Bias<'a>>,
    /// Query `t` of T sees all but the last `T - 1 - t` tokens.
    pub causal: bool,
}

impl Mask<'_> {
    /// The mask of the query tokens from this one on.
    pub(super) fn skip(&self, first: usize) -> Self {
        Self { bias: self.bias.map(|bias| bias.skip(first)), ..*self }
    }
}

/// Memory that is kept between calls.
#[derive(Default)]
pub(super) struct Scratch {
    pub(super) query: Vec<f32>,
    pub(super) bytes: Vec<u8>,
    pub(super) states: Vec<Mutex<Vec<f32>>>,
    items: Vec<Item>,
    pub(super) order: Vec<PageRef>,
    pub(super) batches: [Batch; 2],
    /// (B, H, R, Dk): the query at the positions of what a selection reads.
    pub(super) placed: Vec<f32>,
    pub(super) selection: super::sparse::Scratch,
}

impl Scratch {
    /// Unpins everything, also after an error.
    pub(super) fn release(&mut self) {
        self.batches.iter_mut().for_each(Batch::clear);
    }
}

/// Consecutive entries of a batch that belong to one chunk of one row.
struct Item {
    chunk: usize,
    entries: std::ops::Range<usize>,
}

/// What a caller asks for.
pub(super) struct Call<'a, 'o> {
    pub(super) query: &'a dyn ReadRows,
    pub(super) out: &'o mut dyn WriteRows,
    pub(super) scale: f32,
    pub(super) mask: &'a Mask<'a>,
}

/// Where a page is read as if it stood.
#[derive(Clone, Copy)]
pub(super) enum Place {
    /// Among the pages of the sequence.
    Page(usize),
    /// For the `within`-th block of the page to be at `place` among blocks.
    Block { place: usize, within: usize },
}

/// One call, as the threads see it.
pub(super) struct Step<'a> {
    pub(super) shape: LayerShape,
    pub(super) source: Source<'a>,
    /// S.
    pub(super) length: usize,
    /// T of the query.
    pub(super) tokens: usize,
    /// R: query rows per KV head, the query heads of a group one after the other.
    pub(super) rows: usize,
    pub(super) chunk_pages: usize,
    /// Per row of the batch.
    pub(super) chunks: usize,
    /// (B, H, R, Dk), scaled, and with a rotary turned to its position.
    pub(super) query: &'a [f32],
    /// (B, chunk, H).
    pub(super) states: &'a [Mutex<Vec<f32>>],
    pub(super) mask: &'a Mask<'a>,
    pub(super) turns: Option<&'a Turns>,
}

impl KvCache {
    /// Attention of (B, Q, T, Dk) queries over all tokens of the layer, into (B, Q, T, Dv): exact,
    /// or with a [`Selection`](super::Selection), over those that it reads. Sums in float32
    /// and rounds once. A query that may see nothing gives zeros.
    ///
    /// # Errors
    /// `Invalid` for shapes that do not fit; `PagesLost`; `RamFull`, `Io` from the store;
    /// `Interrupted`. What `out` holds then is unspecified.
    pub fn attend(
        &mut self,
        layer: usize,
        query: &dyn ReadRows,
        out: &mut dyn WriteRows,
        scale: f32,
        mask: &Mask<'_>,
        parallel: &dyn Parallel,
    ) -> Result<()> {
        let (shape, layout) = self.filled(layer)?;
        self.check_query(layer, &shape, &query.extent(), &out.extent(), mask)?;
        let prefetched = self.prefetched.take().filter(|prefetch| prefetch.layer == layer);
        let mut scratch = std::mem::take(&mut self.scratch);
        self.layers[layer].selected = None;
        let call = Call { query, out, scale, mask };
        let result = if let Some(selection) = self.selection_for(layer, query.extent().tokens, mask) {
            self.attend_selected(&mut scratch, layer, shape, &layout, &selection, call, parallel)
                .map(|()| None)
        } else {
            self.attend_with(&mut scratch, layer, shape, &layout, call, prefetched, parallel)
        };
        scratch.release();
        self.scratch = scratch;
        self.prefetched = result?;
        Ok(())
    }

    /// Starts reading what the layer's next attend will miss in RAM.
    ///
    /// # Errors
    /// `Invalid` when there is no such layer.
    pub fn prefetch(&mut self, layer: usize) -> Result<()> {
        self.check_layer(layer)?;
        self.prefetched = self.start_prefetch(layer);
        Ok(())
    }

    fn check_query(
        &self,
        layer: usize,
        shape: &LayerShape,
        query: &Extent,
        out: &Extent,
        mask: &Mask<'_>,
    ) -> Result<()> {
        let kv_heads = shape.kv_heads as usize;
        if query.heads == 0 || !query.heads.is_multiple_of(kv_heads) {
            return Err(Error::Invalid(format!(
                "query has {} heads, expected a multiple of {kv_heads}",
                query.heads
            )));
        }
        query.expect("query", &Extent { batch: self.rows, dim: shape.key_dim as usize, ..*query })?;
        let dim = shape.value_dim as usize;
        out.expect("out", &Extent { dim, dtype: out.dtype, ..*query })?;
        let length = self.layers[layer].len;
        if mask.causal && query.tokens > length {
            return Err(Error::Invalid(format!(
                "{} causal queries over {length} tokens: append their tokens first",
                query.tokens
            )));
        }
        mask.bias.map_or(Ok(()), |bias| bias.expect(self.rows, query.tokens, length))
    }

    /// The body of [`KvCache::attend`]; gives what was prefetched for the layer after this one.
    fn attend_with(
        &mut self,
        scratch: &mut Scratch,
        layer: usize,
        shape: LayerShape,
        layout: &Layout,
        call: Call<'_, '_>,
        prefetched: Option<Prefetch>,
        parallel: &dyn Parallel,
    ) -> Result<Option<Prefetch>> {
        let Call { query, out, scale, mask } = call;
        if let Some(previous) = self.attended.replace(layer).filter(|previous| *previous != layer) {
            self.layers[previous].next = Some(layer);
        }
        let extent = query.extent();
        if extent.tokens == 0 {
            return Ok(None);
        }
        let unreported = self.layers[layer].count_attend();
        read_query(query, scale, &mut scratch.query, &mut scratch.bytes);
        let length = self.layers[layer].len;
        let num_pages = length.div_ceil(layout.page_tokens);
        if let Some(turns) = &mut self.turns {
            self.layers[layer].learn(&scratch.query, layout.heads, &extent);
            turns.grow(num_pages);
            turns.place_queries(&mut scratch.query, extent.tokens, extent.dim, length);
        }
        let chunk_pages = chunk_pages(num_pages, layout.page_tokens);
        let chunks = num_pages.div_ceil(chunk_pages);
        scratch.states.resize_with(self.rows * chunks * layout.heads, Mutex::default);
        let tables = &self.layers[layer].tables;
        let source = Source { store: &self.store, tables, layout };
        let step = Step {
            shape,
            source,
            length,
            tokens: extent.tokens,
            rows: extent.heads / layout.heads * extent.tokens,
            chunk_pages,
            chunks,
            query: &scratch.query,
            states: &scratch.states,
            mask,
            turns: self.turns.as_ref(),
        };
        let small = self.rows * num_pages * layout.page_bytes() < PARALLEL_BYTES_MIN;
        let parallel = if small { &Inline } else { parallel };
        let (order, items) = (&mut scratch.order, &mut scratch.items);
        let prefetched = prefetched.filter(|prefetch| prefetch.chunk_pages == chunk_pages);

        list_all(self.rows, num_pages, order);
        let mut following = None;
        if prefetched.is_none() && scratch.batches[0].pin(&source, order) {
            step.advance(&scratch.batches[0], items, parallel);
            if let Some(times) = unreported {
                scratch.batches[0].touch(&source, times);
            }
        } else {
            scratch.batches[0].clear();
            let first = prefetched.map(|prefetch| prefetch.batch);
            let entries = first.as_ref().map_or(&[][..], |first| &first.entries);
            arrange(&source, num_pages, chunk_pages, entries, order);
            let last = || following = self.layers[layer].next.and_then(|next| self.start_prefetch(next));
            stream(&source, order, first, &mut scratch.batches, last, |batch| {
                step.advance(batch, items, parallel);
                Ok(())
            })?;
        }
        step.finish(self.rows, out, &mut scratch.bytes);
        Ok(following)
    }

    /// Starts reading the first cold pages of a layer; `None` when there are none.
    fn start_prefetch(&self, layer: usize) -> Option<Prefetch> {
        let (_, layout) = self.filled(layer).ok()?;
        let held = &self.layers[layer];
        let source = Source { store: &self.store, tables: &held.tables, layout: &layout };
        let num_pages = held.len.div_ceil(layout.page_tokens);
        let chunk_pages = chunk_pages(num_pages, layout.page_tokens);
        let mut order = Vec::new();
        let cold = arrange(&source, num_pages, chunk_pages, &[], &mut order);
        let limit = self.store.request_pages(layout.page_bytes()).max(1);
        let end = (cold + limit).min(order.len());
        let mut batch = Batch::default();
        // Open pages would be copied by an append in between.
        let sealed = order[cold..end]
            .iter()
            .take_while(|entry| held.tables[entry.row as usize].sealed.len() > entry.page as usize);
        let sealed = sealed.count();
        if sealed == 0 {
            return None;
        }
        batch.start(&source, &order[cold..cold + sealed]);
        Some(Prefetch { layer, chunk_pages, batch })
    }
}

/// Every page of every row, in order.
fn list_all(rows: usize, num_pages: usize, order: &mut Vec<PageRef>) {
    order.clear();
    for row in 0..rows as u32 {
        order.extend((0..num_pages as u32).map(|page| PageRef::whole(row, page)));
    }
}

/// Reads the query as float32, multiplied by the scale: (B, Q, T, Dk), which is (B, H, R, Dk).
pub(super) fn read_query(query: &dyn ReadRows, scale: f32, into: &mut Vec<f32>, bytes: &mut Vec<u8>) {
    let extent = query.extent();
    let head_elements = extent.tokens * extent.dim;
    bytes.resize(extent.tokens * extent.row_bytes(), 0);
    into.resize(extent.batch * extent.heads * head_elements, 0.0);
    for (index, head) in into.chunks_exact_mut(head_elements).enumerate() {
        query.read(index / extent.heads, index % extent.heads, 0, bytes);
        for (element, value) in head.iter_mut().enumerate() {
            *value = extent.dtype.read(bytes, element) * scale;
        }
    }
}

thread_local! {
    /// Masks of the tile at hand, where they differ between query rows.
    static TILE_BIAS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// Queries relative to the page at hand, with a rotary.
    static PAGE_QUERY: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

impl Step<'_> {
    /// Folds a batch of pages into the states of their chunks.
    fn advance(&self, batch: &Batch, items: &mut Vec<Item>, parallel: &dyn Parallel) {
        items.clear();
        for (index, entry) in batch.entries.iter().enumerate() {
            let chunk = entry.row as usize * self.chunks + entry.page as usize / self.chunk_pages;
            match items.last_mut() {
                Some(item) if item.chunk == chunk => item.entries.end = index + 1,
                _ => items.push(Item { chunk, entries: index..index + 1 }),
            }
        }
        let (items, heads) = (&*items, self.source.layout.heads);
        parallel.run(items.len() * heads, &|unit| self.unit(batch, &items[unit / heads], unit % heads));
    }

    /// One KV head of one run of pages.
    fn unit(&self, batch: &Batch, item: &Item, head: usize) {
        let (dk, dv) = (self.shape.key_dim as usize, self.shape.value_dim as usize);
        let (heads, page_tokens) = (self.source.layout.heads, self.source.layout.page_tokens);
        let row = item.chunk / self.chunks;
        let query = &self.query[(row * heads + head) * self.rows * dk..][..self.rows * dk];
        // Never contended: a chunk and head are in one unit of a batch.
        let mut buffer = self.states[item.chunk * heads + head].lock();
        buffer.resize(Running::len_f32(self.rows, dv), 0.0);
        let mut state = Running::in_buffer(&mut buffer, self.rows, dv);
        let tile_of = |index: usize| {
            let first = batch.entries[index].page as usize * page_tokens;
            let slice = Slice { head, first: 0, tokens: page_tokens.min(self.length - first) };
            // Whole pages have their scales with them.
            let none = || Scales { keys: &[], values: &[] };
            self.source.layout.tile(batch.page(index, &self.source), slice, none)
        };
        let level = SimdLevel::detect();
        for index in item.entries.clone() {
            let page = batch.entries[index].page as usize;
            if page.is_multiple_of(self.chunk_pages) {
                state.reset();
            }
            let next = (index + 1 < item.entries.end).then(|| tile_of(index + 1));
            self.facing(query, Place::Page(page), |query| {
                self.attend_tile(level, query, row, page * page_tokens, tile_of(index), next, &mut state);
            });
        }
    }

    /// Calls with the queries as a page's keys need them: with a rotary, relative to the page.
    pub(super) fn facing(&self, query: &[f32], place: Place, call: impl FnOnce(&[f32])) {
        let Some(turns) = self.turns else { return call(query) };
        let dim = self.shape.key_dim as usize;
        PAGE_QUERY.with_borrow_mut(|relative| {
            match place {
                Place::Page(page) => turns.relative_to(page, query, dim, relative),
                Place::Block { place, within } => {
                    turns.relative_to_block(place, within, query, dim, relative);
                }
            }
            call(relative);
        });
    }

    /// One tile with the mask that it needs, while the memory of the next is asked for.
    pub(super) fn attend_tile(
        &self,
        level: SimdLevel,
        query: &[f32],
        row: usize,
        first: usize,
        tile: Tile<'_>,
        next: Option<Tile<'_>>,
        state: &mut Running<'_>,
    ) {
        let (tokens, next) = (tile.tokens, next.as_ref());
        // Tokens that some query must not see start here.
        let hidden = if self.mask.causal { self.length + 1 - self.tokens } else { self.length };
        let bias = self.mask.bias;
        match bias {
            None if first + tokens <= hidden => {
                attend_tile_at(level, query, self.rows, &tile, next, state, None);
            }
            Some(bias) if first + tokens <= hidden && bias.token_stride == 0 => {
                let tile = tile.with_bias(TileBias::Shared(bias.slice(row, 0, first, tokens)));
                attend_tile_at(level, query, self.rows, &tile, next, state, None);
            }
            _ => TILE_BIAS.with_borrow_mut(|buffer| {
                self.tile_bias(row, first, tokens, buffer);
                let tile = tile.with_bias(TileBias::PerRow(buffer));
                attend_tile_at(level, query, self.rows, &tile, next, state, None);
            }),
        }
    }

    /// Writes bias and causal mask of a tile: (R, tokens).
    fn tile_bias(&self, row: usize, first: usize, tokens: usize, into: &mut Vec<f32>) {
        into.clear();
        for index in 0..self.rows {
            let token = index % self.tokens;
            let at = into.len();
            match &self.mask.bias {
                Some(bias) => into.extend_from_slice(bias.slice(row, token, first, tokens)),
                None => into.resize(at + tokens, 0.0),
            }
            if self.mask.causal {
                let visible = (self.length + token + 1 - self.tokens).saturating_sub(first).min(tokens);
                into[at + visible..].fill(f32::NEG_INFINITY);
            }
        }
    }

    /// Merges the states of each head in order and writes the result.
    pub(super) fn finish(&self, batch: usize, out: &mut dyn WriteRows, bytes: &mut Vec<u8>) {
        let (dv, heads) = (self.shape.value_dim as usize, self.source.layout.heads);
        let extent = out.extent();
        bytes.resize(self.rows * extent.row_bytes(), 0);
        for row in 0..batch {
            for head in 0..heads {
                let at = |chunk: usize| &self.states[(row * self.chunks + chunk) * heads + head];
                let mut buffer = at(0).lock();
                let mut state = Running::in_buffer(&mut buffer, self.rows, dv);
                for chunk in 1..self.chunks {
                    state.merge(&Running::in_buffer(&mut at(chunk).lock(), self.rows, dv));
                }
                state.finish(bytes, extent.dtype);
                let group = self.rows / self.tokens;
                for (member, rows) in bytes.chunks_exact(self.tokens * extent.row_bytes()).enumerate() {
                    out.write(row, head * group + member, 0, rows);
                }
            }
        }
    }
}
