//! Going on with stored pages: prefixes by content, sessions by name.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::append::writable;
use super::feed::{Batch, PageRef, Source};
use super::layout::Layout;
use super::notes::Notes;
use super::table::{SealedKeys, SealedPage, Table};
use super::{KvCache, Layer};
use crate::error::{Error, Result};
use crate::key::Chain;
use crate::score::{DIRECTIONS, Directions};
use crate::session::{LayerShape, RowImage, SessionImage};
use crate::store::Store;

/// Keeps a session's pages from being evicted as long as a cache goes on with it.
pub(super) struct OpenSession {
    store: Store,
    name: String,
}

impl OpenSession {
    fn new(store: &Store, name: &str) -> Self {
        store.set_session_open(name, true);
        Self { store: store.clone(), name: name.to_owned() }
    }
}

impl Clone for OpenSession {
    fn clone(&self) -> Self {
        Self::new(&self.store, &self.name)
    }
}

impl Drop for OpenSession {
    fn drop(&mut self) {
        self.store.set_session_open(&self.name, false);
    }
}

impl KvCache {
    /// On an empty cache: adopts the longest run of whole stored pages, in all layers, that
    /// this identity has for a prefix of `tokens`, as one row. Returns its length in tokens.
    ///
    /// # Errors
    /// `Invalid` when the cache is not empty.
    pub fn match_prefix(&mut self, tokens: &[u32], salt: &[u8]) -> Result<usize> {
        self.check_empty("match_prefix")?;
        if self.root.is_none() {
            return Ok(0);
        }
        let page_tokens = self.config.page_tokens;
        let mut notes = self.empty_notes();
        notes.extend(tokens, salt);
        let mut tables = vec![Table::default(); self.layers.len()];
        let mut pages = 0;
        while let Some(chain) = notes.chain(pages) {
            let layers = 0..self.layers.len() as u32;
            let held: Vec<_> = layers.map(|layer| self.hold(&chain, layer)).collect();
            if !held.iter().all(|sealed| self.is_stored(sealed)) {
                break;
            }
            for (table, page) in tables.iter_mut().zip(held) {
                table.push_sealed(page);
            }
            pages += 1;
        }
        if pages == 0 {
            return Ok(0);
        }
        notes.truncate(pages * page_tokens);
        self.notes = vec![notes];
        self.rows = 1;
        for (layer, table) in self.layers.iter_mut().zip(tables) {
            *layer = Layer { len: pages * page_tokens, tables: vec![table], ..Layer::default() };
        }
        Ok(pages * page_tokens)
    }

    /// Makes the present state the session `name`, durably.
    ///
    /// # Errors
    /// `Invalid` where token ids were not noted, without identity, or when layers differ in
    /// length; the store's errors of writing; `PagesLost` for an unreadable last page.
    pub fn save(&mut self, name: &str, model: &str, extra: &[u8]) -> Result<()> {
        let image = self.image(name, model, extra)?;
        self.store.flush()?;
        self.store.save_session(&image)?;
        self.session = Some(OpenSession::new(&self.store, name));
        Ok(())
    }

    /// On an empty cache: becomes the session's state and returns its `extra`.
    ///
    /// # Errors
    /// `NotFound`; `SettingsMismatch`; `Invalid` when the cache is not empty; `PagesLost` after
    /// keeping the whole pages that precede the loss; the store's errors of reading.
    pub fn load(&mut self, name: &str) -> Result<Vec<u8>> {
        self.check_empty("load")?;
        let image = self.store.load_session(name)?;
        self.check_settings(&image)?;
        let session = OpenSession::new(&self.store, name);
        let kept = self.adopt(&image);
        if !matches!(kept, Ok(()) | Err(Error::PagesLost { .. })) {
            self.reset();
        }
        kept?;
        self.session = Some(session);
        Ok(image.extra)
    }

    fn check_empty(&self, action: &str) -> Result<()> {
        if self.longest() == 0 {
            return Ok(());
        }
        Err(Error::Invalid(format!(
            "{action} needs an empty cache; this one holds {} tokens",
            self.longest()
        )))
    }

    /// The state as a session.
    fn image(&self, name: &str, model: &str, extra: &[u8]) -> Result<SessionImage> {
        let length = self.longest();
        let identity = self.config.identity.clone().ok_or_else(|| {
            Error::Invalid("a cache without identity has private pages only and can't be saved".into())
        })?;
        if length == 0 || length != self.shortest() {
            let shortest = self.shortest();
            return Err(Error::Invalid(format!(
                "layers hold {shortest} to {length} tokens; a session has one length, of at least 1"
            )));
        }
        if let Some(row) = self.notes.iter().position(|notes| notes.len() < length) {
            return Err(Error::Invalid(format!(
                "row {row}: token ids were noted for {} of {length} tokens, so its later pages are private",
                self.notes[row].len()
            )));
        }
        let rows = (0..self.rows).map(|row| self.row_image(row, length)).collect::<Result<_>>()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Ok(SessionImage {
            name: name.to_owned(),
            model: model.to_owned(),
            identity,
            settings: self.config.settings.clone(),
            page_tokens: self.config.page_tokens as u32,
            layers: self.layers.iter().map(|layer| layer.shape).collect(),
            rows,
            extra: extra.to_vec(),
            directions: self.layers.iter().map(|layer| bytes_of(layer.directions.known())).collect(),
            created: now.map_or(0, |now| now.as_secs()),
        })
    }

    fn row_image(&self, row: usize, length: usize) -> Result<RowImage> {
        let tails = (0..self.layers.len()).map(|layer| self.tail(layer, row)).collect::<Result<_>>()?;
        let notes = &self.notes[row];
        Ok(RowImage { tokens: notes.tokens(length), salts: notes.salts(length), tails })
    }

    /// The unsealed tokens of a row, packed.
    fn tail(&self, layer: usize, row: usize) -> Result<Vec<u8>> {
        let held = &self.layers[layer];
        let Some(layout) = held.shape.map(|shape| self.layout_of(&shape)) else {
            // A prefix that nothing was appended to has no shape, and no tail.
            return Ok(Vec::new());
        };
        let tokens = held.len % layout.page_tokens;
        let mut tail = Vec::new();
        if tokens == 0 {
            return Ok(tail);
        }
        let source = Source { store: &self.store, tables: &held.tables, layout: &layout };
        let page = (held.len / layout.page_tokens) as u32;
        let mut batch = Batch::default();
        batch.start(&source, &[PageRef::whole(row as u32, page)]);
        batch.settle(&source)?;
        let mut bytes = vec![0; layout.page_bytes()];
        layout.restore(batch.page(0, &source), &mut bytes);
        for head in 0..layout.heads {
            tail.extend_from_slice(&bytes[layout.keys(head, 0, tokens)]);
            tail.extend_from_slice(&bytes[layout.values(head, 0, tokens)]);
        }
        Ok(tail)
    }

    /// Compares a session with what this cache is for, naming everything that differs.
    fn check_settings(&self, image: &SessionImage) -> Result<()> {
        let mut found = Vec::new();
        let identity = self.config.identity.as_deref().map_or_else(|| NOTHING.to_owned(), short_hex);
        differ(&mut found, "model identity", &short_hex(&image.identity), &identity);
        differ(&mut found, "page_tokens", &image.page_tokens, &(self.config.page_tokens as u32));
        differ(&mut found, "num_layers", &image.layers.len(), &self.layers.len());
        settings_differ(&mut found, &image.settings, &self.config.settings);
        for (index, (theirs, ours)) in image.layers.iter().zip(&self.layers).enumerate() {
            if let (Some(theirs), Some(ours)) = (theirs, &ours.shape) {
                shapes_differ(&mut found, index, theirs, ours);
            }
        }
        // One line for each layer says no more than the first few.
        found.truncate(8);
        if found.is_empty() {
            return Ok(());
        }
        Err(Error::SettingsMismatch { name: image.name.clone(), differences: found.join("; ") })
    }

    /// Takes over a session's pages.
    fn adopt(&mut self, image: &SessionImage) -> Result<()> {
        let length = image.rows.first().map_or(0, |row| row.tokens.len());
        let page_tokens = self.config.page_tokens;
        if image.rows.iter().any(|row| row.tokens.len() != length || row.tails.len() != image.layers.len()) {
            return Err(Error::Invalid(format!(
                "session {:?}: its rows or tails differ in number",
                image.name
            )));
        }
        self.notes = image.rows.iter().map(|row| Notes::of_image(row, page_tokens, image.root())).collect();
        self.rows = image.rows.len();
        let mut lost = Lost::default();
        for (index, shape) in image.layers.iter().enumerate() {
            let Some(shape) = shape else {
                self.layers[index] = Layer::default();
                continue;
            };
            let tables: Vec<_> = (0..self.rows)
                .map(|row| self.adopt_table(index, row, length / page_tokens, &mut lost))
                .collect();
            let directions = directions_of(image.directions.get(index), shape)?;
            self.layers[index] =
                Layer { shape: Some(*shape), len: length, tables, directions, ..Layer::default() };
        }
        if let Some(page) = lost.first {
            self.crop(page * page_tokens);
            let first_token = (page * page_tokens) as u64;
            return Err(Error::PagesLost { missing: lost.missing, total: lost.total, first_token });
        }
        for (index, shape) in image.layers.iter().enumerate() {
            let Some(shape) = shape else { continue };
            let layout = self.layout_of(shape);
            for (row, saved) in image.rows.iter().enumerate() {
                self.adopt_tail(index, row, &layout, &saved.tails[index], length)?;
            }
        }
        Ok(())
    }

    fn adopt_table(&self, layer: usize, row: usize, pages: usize, lost: &mut Lost) -> Table {
        let chains = (0..pages).filter_map(|page| self.notes[row].chain(page));
        let held: Vec<_> = chains.map(|chain| self.hold(&chain, layer as u32)).collect();
        for (page, sealed) in held.iter().enumerate() {
            lost.count(page, self.is_stored(sealed));
        }
        Table { sealed: Arc::new(held), ..Table::default() }
    }

    /// A page of the chain. The reference comes before any question about it, so that what is found
    /// cannot leave in between.
    fn hold(&self, chain: &Chain, layer: u32) -> Arc<SealedPage> {
        let keys = SealedKeys::of(chain, layer, self.config.planes);
        keys.iter().for_each(|key| self.store.retain(&[key]));
        SealedPage::adopt(&self.store, keys)
    }

    /// Whether some tier holds all of it.
    fn is_stored(&self, sealed: &SealedPage) -> bool {
        sealed.parts().all(|held| self.store.contains(held.key()))
    }

    fn adopt_tail(
        &mut self,
        layer: usize,
        row: usize,
        layout: &Layout,
        tail: &[u8],
        length: usize,
    ) -> Result<()> {
        let tokens = length % layout.page_tokens;
        let (key_row, value_row) = layout.row_bytes();
        let head_bytes = tokens * (key_row + value_row);
        if tail.len() != layout.heads * head_bytes {
            return Err(Error::Invalid(format!(
                "layer {layer}: the session's last page has {} bytes, expected {}",
                tail.len(),
                layout.heads * head_bytes
            )));
        }
        if tokens == 0 {
            return Ok(());
        }
        let table = &mut self.layers[layer].tables[row];
        let open = writable(&self.store, table, length / layout.page_tokens, layout)?;
        for (head, saved) in tail.chunks_exact(head_bytes).enumerate() {
            let (keys, values) = saved.split_at(tokens * key_row);
            open[layout.keys(head, 0, tokens)].copy_from_slice(keys);
            open[layout.values(head, 0, tokens)].copy_from_slice(values);
        }
        Ok(())
    }
}

/// Directions as a session keeps them.
pub(super) fn bytes_of(directions: &[f32]) -> Vec<u8> {
    directions.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// A layer's directions as a session kept them.
fn directions_of(bytes: Option<&Vec<u8>>, shape: &LayerShape) -> Result<Directions> {
    let Some(bytes) = bytes.filter(|bytes| !bytes.is_empty()) else { return Ok(Directions::default()) };
    let (numbers, rest) = bytes.as_chunks();
    let expected = shape.kv_heads as usize * DIRECTIONS * shape.key_dim as usize;
    if numbers.len() != expected || !rest.is_empty() {
        return Err(Error::Invalid(format!(
            "the session's query directions have {} bytes, expected {}",
            bytes.len(),
            expected * size_of::<f32>()
        )));
    }
    Ok(Directions::of_known(numbers.iter().map(|number| f32::from_le_bytes(*number)).collect()))
}

/// What a session, or a cache, has of a setting that it does not know.
const NOTHING: &str = "nothing";

/// Pages of a session that no tier holds.
#[derive(Default)]
struct Lost {
    total: u64,
    missing: u64,
    first: Option<usize>,
}

impl Lost {
    fn count(&mut self, page: usize, is_there: bool) {
        self.total += 1;
        if !is_there {
            self.missing += 1;
            self.first = Some(self.first.map_or(page, |first| first.min(page)));
        }
    }
}

/// The first bytes of a fingerprint, enough to tell two apart.
fn short_hex(bytes: &[u8]) -> String {
    let mut digits = String::new();
    for byte in bytes.iter().take(8) {
        digits.extend([byte >> 4, byte & 15].map(|digit| char::from(b"0123456789abcdef"[digit as usize])));
    }
    if bytes.len() > 8 { digits + "..." } else { digits }
}

fn differ<T: PartialEq + Display + ?Sized>(found: &mut Vec<String>, field: &str, theirs: &T, ours: &T) {
    if theirs != ours {
        found.push(format!("{field}: session has {theirs}, this cache has {ours}"));
    }
}

fn settings_differ(
    found: &mut Vec<String>,
    theirs: &BTreeMap<String, String>,
    ours: &BTreeMap<String, String>,
) {
    for name in theirs.keys().chain(ours.keys().filter(|name| !theirs.contains_key(*name))) {
        let of = |settings: &BTreeMap<String, String>| {
            settings.get(name).map_or_else(|| NOTHING.to_owned(), |value| format!("{value:?}"))
        };
        differ(found, name, &of(theirs), &of(ours));
    }
}

fn shapes_differ(found: &mut Vec<String>, layer: usize, theirs: &LayerShape, ours: &LayerShape) {
    differ(found, &format!("layer {layer} dtype"), theirs.dtype.name(), ours.dtype.name());
    differ(found, &format!("layer {layer} kv_heads"), &theirs.kv_heads, &ours.kv_heads);
    differ(found, &format!("layer {layer} key_dim"), &theirs.key_dim, &ours.key_dim);
    differ(found, &format!("layer {layer} value_dim"), &theirs.value_dim, &ours.value_dim);
}
