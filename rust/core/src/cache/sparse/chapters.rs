//! The summaries that a selection is made from: taken from the store, made of pages, sketched and stored.

use std::sync::Arc;

use super::{Selecting, no_rotary};
use crate::cache::KvCache;
use crate::cache::attend::Scratch as AttendScratch;
use crate::cache::digest::DigestLayout;
use crate::cache::feed::{PageRef, Source, stream};
use crate::cache::layout::{Layout, PageBytes};
use crate::cache::notes::Notes;
use crate::cache::persist::bytes_of;
use crate::error::{Error, Result};
use crate::key::PageKey;
use crate::score::{Summary, slow_elements};
use crate::session::{CHAPTER_PAGES, LayerShape};
use crate::store::Request;

/// How a layer's chapters are named in the store.
struct Names {
    layer: u32,
    /// Hash of the layer's directions.
    directions: [u8; 32],
}

impl Names {
    fn new(layer: usize, directions: &[f32]) -> Self {
        Self { layer: layer as u32, directions: *blake3::hash(&bytes_of(directions)).as_bytes() }
    }

    /// The name of a chapter of a row; none where its tokens are not known.
    fn key(&self, row: Option<&Notes>, chapter: usize) -> Option<PageKey> {
        let end = row?.chain((chapter + 1) * CHAPTER_PAGES - 1)?;
        Some(end.chapter(self.layer, &self.directions))
    }
}

/// Chapters on their way to RAM.
pub(in crate::cache) struct Ahead {
    keys: Vec<PageKey>,
    request: Request,
}

impl KvCache {
    /// How the summaries of a layer of that shape are made; found out once.
    pub(in crate::cache) fn digest_layout(
        &mut self,
        layer: usize,
        shape: &LayerShape,
    ) -> Result<Arc<DigestLayout>> {
        let rotary = self.turns.as_ref().ok_or_else(no_rotary)?.rotary();
        let layout = self.layout_of(shape);
        let known = self.layers[layer].digest.get_or_insert_with(|| {
            let dim = shape.key_dim as usize;
            let summary = Summary::new(dim, slow_elements(rotary, dim));
            Arc::new(DigestLayout::new(summary, shape, &layout))
        });
        Ok(known.clone())
    }

    /// Summarises a page that was sealed just now, unless earlier ones wait for that too. What
    /// fails here is tried again when the summaries are needed.
    pub(in crate::cache) fn summarise_sealed(
        &mut self,
        layer: usize,
        row: usize,
        layout: &Layout,
        page: PageBytes<'_>,
    ) {
        let Some(shape) = self.layers[layer].shape.filter(|_| self.selection.is_some()) else { return };
        let Ok(digest) = self.digest_layout(layer, &shape) else { return };
        let table = &mut self.layers[layer].tables[row];
        if table.digest.pages() + 1 == table.sealed.len() {
            let _ = table.digest.add(&self.store, &digest, layout, page);
        }
    }

    /// Brings the summaries of all whole pages of a layer to RAM: stored ones, and others from the pages.
    pub(in crate::cache) fn summarise(
        &mut self,
        what: &Selecting<'_>,
        scratch: &mut AttendScratch,
    ) -> Result<()> {
        let whole = self.layers[what.layer].len / what.layout.page_tokens;
        for row in 0..self.rows {
            if self.layers[what.layer].tables[row].digest.pages() < whole {
                self.take_up(what, row, whole)?;
                self.summarise_pages(what, row, whole, scratch)?;
            }
        }
        Ok(())
    }

    /// Stored chapters of a row that follow what is known of it.
    fn stored_chapters(&self, layer: usize, row: usize, whole: usize) -> Vec<PageKey> {
        let held = &self.layers[layer];
        let Some(table) = held.tables.get(row).filter(|_| !held.directions.known().is_empty()) else {
            return Vec::new();
        };
        let first = table.digest.sketched();
        if table.digest.pages() != first * CHAPTER_PAGES {
            return Vec::new();
        }
        let names = Names::new(layer, held.directions.known());
        let named =
            (first..whole / CHAPTER_PAGES).map_while(|chapter| names.key(self.notes.get(row), chapter));
        named.take_while(|key| self.store.contains(*key)).collect()
    }

    /// Asks for chapters, unless they are on their way, and for those of the next layer, so that they are
    /// read while this one's are used.
    fn ask_for_chapters(&mut self, keys: &[PageKey], next: impl FnOnce(&Self) -> Vec<PageKey>) -> Request {
        let asked = self.ahead.take().filter(|ahead| ahead.keys == keys);
        let request = asked.map_or_else(|| self.store.request(keys), |ahead| ahead.request);
        let mut next = next(self);
        next.truncate(keys.len());
        self.ahead = (!next.is_empty()).then(|| Ahead { request: self.store.request(&next), keys: next });
        request
    }

    /// Takes up the stored chapters of a row that follow what is known. What fails is made of the pages.
    fn take_up(&mut self, what: &Selecting<'_>, row: usize, whole: usize) -> Result<()> {
        let keys = self.stored_chapters(what.layer, row, whole);
        let limit = self.store.request_pages(what.digest.chapter_bytes());
        for keys in keys.chunks(limit) {
            let next = what.layer + 1;
            let request = self.ask_for_chapters(keys, |cache| match cache.layers.get(next) {
                Some(held) if held.shape == Some(what.shape) => cache.stored_chapters(next, row, whole),
                _ => Vec::new(),
            });
            let Self { layers, store, .. } = &mut *self;
            let digest = &mut layers[what.layer].tables[row].digest;
            let chapters = match request.wait() {
                Ok(chapters) => chapters,
                Err(error) => return not_needed(error),
            };
            for chapter in chapters {
                let Some(chapter) = chapter else { return Ok(()) };
                match digest.adopt(store, what.digest, &chapter, what.far()) {
                    Ok(true) => {}
                    Ok(false) => return Ok(()),
                    Err(error) => return not_needed(error),
                }
            }
            // The digest has copies; and the next ones are read into the same memory.
            store.let_go(keys);
        }
        Ok(())
    }

    /// Summarises the whole pages of a row that are not yet.
    fn summarise_pages(
        &mut self,
        what: &Selecting<'_>,
        row: usize,
        whole: usize,
        scratch: &mut AttendScratch,
    ) -> Result<()> {
        let tables = &mut self.layers[what.layer].tables;
        let mut summaries = std::mem::take(&mut tables[row].digest);
        let source = Source { store: &self.store, tables, layout: what.layout };
        let entry = |page: usize| PageRef::whole(row as u32, page as u32);
        let entries: Vec<_> = (summaries.pages()..whole).map(entry).collect();
        let (store, digest, layout) = (&self.store, what.digest, what.layout);
        let result = stream(
            &source,
            &entries,
            None,
            &mut scratch.batches,
            || (),
            |batch| {
                (0..batch.entries.len())
                    .try_for_each(|i| summaries.add(store, digest, layout, batch.page(i, &source)))
            },
        );
        self.layers[what.layer].tables[row].digest = summaries;
        result
    }

    /// Sketches the full chapters of a layer that are not yet, once the directions of its queries are
    /// known, and stores them.
    pub(super) fn sketch(&mut self, what: &Selecting<'_>, pages: usize) -> Result<()> {
        let Self { layers, notes, store, turns, .. } = self;
        let turns = turns.as_ref().ok_or_else(no_rotary)?;
        let layer = &mut layers[what.layer];
        let full = pages / CHAPTER_PAGES;
        let is_due = layer.tables.iter().any(|table| table.digest.sketched() < full);
        if layer.directions.known().is_empty() || !is_due {
            return Ok(());
        }
        let names = Names::new(what.layer, layer.directions.known());
        let mut directions = layer.directions.known().to_vec();
        turns.place_all(&mut directions, what.shape.key_dim as usize, what.far() as usize);
        for (row, table) in layer.tables.iter_mut().enumerate() {
            while table.digest.sketched() < table.digest.pages() / CHAPTER_PAGES {
                let key = names.key(notes.get(row), table.digest.sketched());
                table.digest.sketch(store, what.digest, &directions, what.far())?;
                if let Some(key) = key.filter(|_| store.is_writable()) {
                    table.digest.keep(store, key).or_else(not_needed)?;
                }
            }
        }
        Ok(())
    }
}

/// Stored chapters only save time: only Ctrl-C is of interest.
fn not_needed(error: Error) -> Result<()> {
    if matches!(error, Error::Interrupted) { Err(error) } else { Ok(()) }
}
