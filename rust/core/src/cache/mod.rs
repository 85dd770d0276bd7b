//! Page tables of a sequence batch: which pages hold the keys and values of every layer
//! and row, and exact attention over them.
//!
//! What it is not: it moves no page between tiers (the store does).
//!
//! Invariants: all rows of a layer hold equally many tokens; an operation that fails
//! leaves every layer at a length whose tokens are all valid; what a row holds is never
//! changed through another row, however much they share.
//!
//! Letters: B batch rows, H key/value heads, Q query heads, T tokens of a call, S tokens
//! of a layer, Dk and Dv head dims.

mod append;
mod attend;
mod copies;
mod digest;
mod feed;
mod gather;
mod layout;
mod notes;
mod persist;
mod sketches;
mod sparse;
mod table;
mod tensor;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use attend::Mask;
pub use copies::Plane;
pub use gather::KeyTurn;
pub use sparse::{Selected, Selection};
pub use tensor::{Bias, Extent, ReadRows, WriteRows};

use crate::error::{Error, Result};
use crate::key::Chain;
use crate::rotary::{Rotary, Turns};
use crate::score::{BLOCK_TOKENS, Directions};
use crate::session::{LayerShape, PLANES, chain_root};
use crate::store::Store;
use attend::ATTENDS_PER_REPORT;
use feed::Prefetch;
use layout::Layout;
use notes::Notes;
use persist::OpenSession;
use sparse::Focus;
use table::Table;

/// How a cache is made.
#[derive(Clone, Debug)]
pub struct CacheConfig {
    /// Layers that hold pages.
    pub num_layers: usize,
    /// Tokens in a page, 1 to 65536.
    pub page_tokens: usize,
    /// The model's fingerprint; without it all pages are private to the cache.
    pub identity: Option<Vec<u8>>,
    /// Settings that change values, by name.
    pub settings: BTreeMap<String, String>,
    /// Keys come without positions, and get them from here when they are read. The settings
    /// must tell such a cache from others, because its pages hold other values.
    pub rotary: Option<Rotary>,
    /// Sealed pages are kept as FP8 codes and residuals, so that RAM may hold the codes alone; needs a
    /// rotary and pages of whole blocks. Rows of float32 are rounded to bfloat16 when their page is
    /// sealed. Becomes one of the settings.
    pub planes: bool,
}

/// The keys and values of a sequence batch. Cloning is [`KvCache::fork`].
pub struct KvCache {
    store: Store,
    config: CacheConfig,
    /// Root of content-addressed chains; `None` without identity.
    root: Option<Chain>,
    /// Source of private page keys, and how many it gave.
    private: Chain,
    private_count: u64,
    layers: Vec<Layer>,
    /// Per row. May be set (by noting tokens) before the first append fixes the rows.
    notes: Vec<Notes>,
    rows: usize,
    /// The session that was saved or loaded last.
    session: Option<OpenSession>,
    prefetched: Option<Prefetch>,
    /// Chapters of the layer after the one that is summarised.
    ahead: Option<sparse::Ahead>,
    /// The layer of the latest attend, to learn which follows which.
    attended: Option<usize>,
    scratch: attend::Scratch,
    /// With a rotary.
    turns: Option<Turns>,
    /// What is read of a context that is longer than it says.
    selection: Option<Selection>,
    /// What is read whatever is selected.
    focus: Focus,
}

/// One layer's geometry and tables.
#[derive(Clone, Default)]
struct Layer {
    shape: Option<LayerShape>,
    /// Valid tokens per row.
    len: usize,
    /// One per row, or none before the first append.
    tables: Vec<Table>,
    /// The layer that was attended after this one, to be prefetched next time.
    next: Option<usize>,
    attends: u64,
    /// What the last step read, where it selected.
    selected: Option<Selected>,
    /// The blocks that it read then, (B, H), and their shares of the mass.
    blocks: Vec<Vec<u32>>,
    shares: Vec<Vec<f32>>,
    /// How summaries are made; once it is known.
    digest: Option<Arc<digest::DigestLayout>>,
    /// Where its queries lie.
    directions: Directions,
}

impl Layer {
    fn truncate(&mut self, length: usize, page_tokens: usize) {
        self.len = self.len.min(length);
        for table in &mut self.tables {
            table.truncate(self.len, page_tokens);
        }
    }

    /// Learns where the queries lie, from the first of them.
    fn learn(&mut self, query: &[f32], heads: usize, extent: &Extent) {
        self.directions.learn(query, heads, extent.heads / heads, extent.tokens, extent.dim);
    }

    /// Counts one attend; tells how many the store should hear of, if it is time for that.
    fn count_attend(&mut self) -> Option<u64> {
        self.attends += 1;
        match self.attends {
            1 => Some(1),
            count => count.is_multiple_of(ATTENDS_PER_REPORT).then_some(ATTENDS_PER_REPORT),
        }
    }
}

impl KvCache {
    /// An empty cache over `store`.
    ///
    /// # Errors
    /// `Invalid` for a count out of range.
    pub fn new(store: Store, mut config: CacheConfig) -> Result<Self> {
        if config.num_layers == 0 || config.num_layers > 1 << 16 {
            return Err(Error::Invalid(format!("num_layers is {}, expected 1 to 65536", config.num_layers)));
        }
        if config.page_tokens == 0 || config.page_tokens > 1 << 16 {
            return Err(Error::Invalid(format!(
                "page_tokens is {}, expected 1 to 65536",
                config.page_tokens
            )));
        }
        if config.planes {
            if config.rotary.is_none() || !config.page_tokens.is_multiple_of(BLOCK_TOKENS) {
                return Err(Error::Invalid(format!(
                    "planes need keys that come without positions, and pages of a multiple of {BLOCK_TOKENS} \
                     tokens, not {}",
                    config.page_tokens
                )));
            }
            config.settings.insert(PLANES.0.into(), PLANES.1.into());
        }
        let root = config
            .identity
            .as_ref()
            .map(|identity| chain_root(identity, &config.settings, config.page_tokens as u32));
        let turns = config.rotary.clone().map(|rotary| Turns::new(rotary, config.page_tokens)).transpose()?;
        Ok(Self {
            store,
            root,
            private: Chain::anonymous()?,
            private_count: 0,
            layers: vec![Layer::default(); config.num_layers],
            notes: Vec::new(),
            rows: 0,
            session: None,
            prefetched: None,
            ahead: None,
            attended: None,
            scratch: attend::Scratch::default(),
            turns,
            selection: None,
            focus: Focus::default(),
            config,
        })
    }

    /// The store that holds the pages.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Tokens in a page.
    pub fn page_tokens(&self) -> usize {
        self.config.page_tokens
    }

    /// Layers.
    pub fn num_layers(&self) -> usize {
        self.layers.len()
    }

    /// B; 0 before the first append.
    pub fn num_rows(&self) -> usize {
        self.rows
    }

    /// Tokens that `layer` holds per row.
    ///
    /// # Errors
    /// `Invalid` when there is no such layer.
    pub fn length(&self, layer: usize) -> Result<usize> {
        self.check_layer(layer)?;
        Ok(self.layers[layer].len)
    }

    /// Tells the ids of the next appended tokens, one slice and one salt per row. What was
    /// noted for tokens that never came is replaced.
    ///
    /// A row of which some token was never noted keeps its later pages private.
    ///
    /// # Errors
    /// `Invalid` when rows differ in length, or their number is not the cache's.
    pub fn note_tokens(&mut self, rows: &[&[u32]], salts: &[&[u8]]) -> Result<()> {
        let tokens = rows.first().map_or(0, |row| row.len());
        if rows.is_empty() || (self.rows != 0 && rows.len() != self.rows) {
            let expected = if self.rows == 0 { "at least 1".into() } else { self.rows.to_string() };
            return Err(Error::Invalid(format!("token_ids has {} rows, expected {expected}", rows.len())));
        }
        if let Some(row) = rows.iter().position(|row| row.len() != tokens) {
            return Err(Error::Invalid(format!(
                "token_ids row {row} has {} tokens and row 0 has {tokens}; rows are equally long",
                rows[row].len()
            )));
        }
        if salts.len() != rows.len() {
            return Err(Error::Invalid(format!("{} salts for {} rows", salts.len(), rows.len())));
        }
        if self.rows == 0 {
            self.notes = vec![self.empty_notes(); rows.len()];
        }
        let length = self.longest();
        for ((notes, row), salt) in self.notes.iter_mut().zip(rows).zip(salts) {
            notes.truncate(length);
            if notes.len() == length {
                notes.extend(row, salt);
            }
        }
        Ok(())
    }

    /// The row's ids up to the shortest layer; `None` where they were not all noted.
    ///
    /// # Errors
    /// `Invalid` when there is no such row.
    pub fn token_ids(&self, row: usize) -> Result<Option<Vec<u32>>> {
        if row >= self.rows.max(1) {
            return Err(Error::Invalid(format!("row {row} of {} rows", self.rows)));
        }
        let length = self.shortest();
        let Some(notes) = self.notes.get(row) else { return Ok((length == 0).then(Vec::new)) };
        Ok((notes.len() >= length).then(|| notes.tokens(length)))
    }

    /// Forgets all tokens from `length` on, in every layer and row. Reads and copies nothing.
    pub fn crop(&mut self, length: usize) {
        self.prefetched = None;
        for layer in &mut self.layers {
            layer.truncate(length, self.config.page_tokens);
        }
        for notes in &mut self.notes {
            notes.truncate(length);
        }
        for blocks in &mut self.focus.rows {
            blocks.retain(|block| (*block as usize) < length / BLOCK_TOKENS);
        }
    }

    /// Row `i` becomes what row `rows[i]` was; any number of rows.
    ///
    /// # Errors
    /// `Invalid` for no rows at all, or a row that does not exist.
    pub fn reorder(&mut self, rows: &[usize]) -> Result<()> {
        if rows.is_empty() {
            return Err(Error::Invalid("reorder keeps at least one row".into()));
        }
        if let Some(row) = rows.iter().find(|row| **row >= self.rows) {
            return Err(Error::Invalid(format!("row {row} of {} rows", self.rows)));
        }
        self.prefetched = None;
        for layer in self.layers.iter_mut().filter(|layer| !layer.tables.is_empty()) {
            layer.tables = rows.iter().map(|row| layer.tables[*row].clone()).collect();
        }
        if !self.notes.is_empty() {
            self.notes = rows.iter().map(|row| self.notes[*row].clone()).collect();
        }
        if !self.focus.rows.is_empty() {
            self.focus.rows = rows.iter().map(|row| self.focus.rows[*row].clone()).collect();
        }
        self.rows = rows.len();
        Ok(())
    }

    /// An empty cache again: shapes, rows, notes and pages are gone.
    pub fn reset(&mut self) {
        self.prefetched = None;
        self.ahead = None;
        self.attended = None;
        self.layers.fill_with(Layer::default);
        self.notes.clear();
        self.focus = Focus::default();
        self.rows = 0;
        self.session = None;
    }

    /// An independent cache with the same contents. Pages are shared, the open ones until
    /// either side appends.
    ///
    /// # Errors
    /// `Invalid` when the system gives no random bytes.
    pub fn fork(&self) -> Result<Self> {
        Ok(Self {
            store: self.store.clone(),
            config: self.config.clone(),
            root: self.root,
            private: Chain::anonymous()?,
            private_count: 0,
            layers: self.layers.clone(),
            notes: self.notes.clone(),
            rows: self.rows,
            session: self.session.clone(),
            prefetched: None,
            ahead: None,
            attended: None,
            scratch: attend::Scratch::default(),
            turns: self.turns.clone(),
            selection: self.selection,
            focus: self.focus.clone(),
        })
    }

    fn empty_notes(&self) -> Notes {
        Notes::new(self.config.page_tokens, self.root)
    }

    fn longest(&self) -> usize {
        self.layers.iter().map(|layer| layer.len).max().unwrap_or(0)
    }

    /// Length of the shortest layer that anything was ever put into.
    fn shortest(&self) -> usize {
        let used = self.layers.iter().filter(|layer| !layer.tables.is_empty());
        used.map(|layer| layer.len).min().unwrap_or(0)
    }

    fn check_layer(&self, layer: usize) -> Result<()> {
        if layer < self.layers.len() {
            return Ok(());
        }
        Err(Error::Invalid(format!("layer {layer} of {} layers", self.layers.len())))
    }

    /// The geometry of a layer that holds something.
    fn filled(&self, layer: usize) -> Result<(LayerShape, Layout)> {
        self.check_layer(layer)?;
        let held = &self.layers[layer];
        match held.shape {
            Some(shape) if held.len > 0 => Ok((shape, self.layout_of(&shape))),
            _ => Err(Error::Invalid(format!("layer {layer} holds no tokens yet"))),
        }
    }

    fn layout_of(&self, shape: &LayerShape) -> Layout {
        Layout::new(shape, self.config.page_tokens, self.config.planes)
    }
}
