//! Summaries of a row's whole pages, in chapters of many pages; and their scales, where they are
//! kept in planes.
//!
//! A chapter is one slot of the warm tier, so summaries count towards the RAM limit. It is
//! laid out for reading one KV head at a time: per head, the blocks of its pages in order; behind
//! all heads' summaries, per head and page, the scale bytes of keys and of values; behind these, per
//! head, the sketch of its blocks, once the chapter is full and the directions of queries are known;
//! at the end the far place that the sketch is made for.
//!
//! Chapters are shared between forks until one of them writes to it. A copy of a sketched one is stored
//! like a page, so that a session goes on without reading its pages. A copy, since the store looks through
//! pages that it can't take from RAM whenever it needs room, and a cache holds its chapters for good.

use std::sync::Arc;

use super::layout::{Layout, PageBytes, Scales, Slice};
use super::sketches::Sketches;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::key::PageKey;
use crate::score::{BLOCK_TOKENS, DIRECTIONS, Sketch, Summary};
use crate::session::{CHAPTER_PAGES, LayerShape};
use crate::simd::prefetch_near;
use crate::store::Store;
use crate::tier::ram::PageMut;

/// Bytes of the far place.
const FAR_BYTES: usize = size_of::<u64>();

/// The summaries of one layer and row. Cloning shares them.
#[derive(Clone, Default)]
pub(super) struct Digest {
    chapters: Arc<Vec<Arc<PageMut>>>,
    /// Pages summarised: always the first ones.
    pages: usize,
    sketches: Sketches,
}

/// How the summaries of a layer are made and laid out.
#[derive(Clone, Debug)]
pub(super) struct DigestLayout {
    pub(super) summary: Summary,
    pub(super) sketch: Sketch,
    pub(super) blocks_per_page: usize,
    heads: usize,
    key_dim: usize,
    /// Scale bytes of a head's page; 0 without planes.
    scale_bytes: usize,
}

impl DigestLayout {
    pub(super) fn new(summary: Summary, shape: &LayerShape, layout: &Layout) -> Self {
        let blocks_per_page = layout.page_tokens / BLOCK_TOKENS;
        Self {
            summary,
            sketch: Sketch::new(CHAPTER_PAGES * blocks_per_page),
            blocks_per_page,
            heads: layout.heads,
            key_dim: shape.key_dim as usize,
            scale_bytes: if layout.has_planes() { 2 * layout.page_tokens } else { 0 },
        }
    }

    fn page_bytes(&self) -> usize {
        self.blocks_per_page * self.summary.len_bytes()
    }

    pub(super) fn chapter_bytes(&self) -> usize {
        self.sketch_start(self.heads) + FAR_BYTES
    }

    fn start(&self, head: usize, page: usize) -> usize {
        (head * CHAPTER_PAGES + page % CHAPTER_PAGES) * self.page_bytes()
    }

    fn scales_start(&self, head: usize, page: usize) -> usize {
        let summaries = self.heads * CHAPTER_PAGES * self.page_bytes();
        summaries + (head * CHAPTER_PAGES + page % CHAPTER_PAGES) * self.scale_bytes
    }

    fn far(&self, chapter: &[u8]) -> u64 {
        let mut far = [0; FAR_BYTES];
        far.copy_from_slice(&chapter[self.sketch_start(self.heads)..]);
        u64::from_le_bytes(far)
    }

    /// The sketches of a chapter, one per head.
    fn sketches_of<'a>(&self, chapter: &'a [u8]) -> &'a [u8] {
        &chapter[self.sketch_start(0)..self.sketch_start(self.heads)]
    }

    fn sketch_start(&self, head: usize) -> usize {
        let pages = self.heads * CHAPTER_PAGES * (self.page_bytes() + self.scale_bytes);
        pages + head * self.sketch.len_bytes()
    }
}

impl Digest {
    /// Pages summarised.
    pub(super) fn pages(&self) -> usize {
        self.pages
    }

    /// Forgets all but the first `pages`.
    pub(super) fn truncate(&mut self, pages: usize) {
        if pages < self.pages {
            self.pages = pages;
            self.sketches.truncate(pages / CHAPTER_PAGES);
            Arc::make_mut(&mut self.chapters).truncate(pages.div_ceil(CHAPTER_PAGES));
        }
    }

    /// Summaries of one head's blocks in pages [first, first + count) of one chapter.
    pub(super) fn blocks(&self, layout: &DigestLayout, head: usize, first: usize, count: usize) -> &[u8] {
        let start = layout.start(head, first);
        &self.chapters[first / CHAPTER_PAGES][start..start + count * layout.page_bytes()]
    }

    /// Asks for what says where a page's chapter is.
    pub(super) fn prefetch(&self, page: usize) {
        prefetch_near(std::slice::from_ref(&*self.chapters[page / CHAPTER_PAGES]));
    }

    /// Sketches of its chapters.
    pub(super) fn sketches(&self) -> &Sketches {
        &self.sketches
    }

    /// Chapters sketched.
    pub(super) fn sketched(&self) -> usize {
        self.sketches.count()
    }

    /// Sketches a full chapter along directions (H, [`DIRECTIONS`], D), placed `far` tokens away.
    pub(super) fn sketch(
        &mut self,
        store: &Store,
        layout: &DigestLayout,
        directions: &[f32],
        far: u64,
    ) -> Result<()> {
        let index = self.sketched();
        let first = index * CHAPTER_PAGES;
        let chapter = own(&mut Arc::make_mut(&mut self.chapters)[index], store)?;
        let (pages, sketches) = chapter.split_at_mut(layout.sketch_start(0));
        for (head, directions) in directions.chunks_exact(DIRECTIONS * layout.key_dim).enumerate() {
            let summaries = &pages[layout.start(head, first)..][..CHAPTER_PAGES * layout.page_bytes()];
            let sketch = &mut sketches[head * layout.sketch.len_bytes()..][..layout.sketch.len_bytes()];
            layout.sketch.encode(&layout.summary, directions, summaries, sketch);
        }
        chapter[layout.sketch_start(layout.heads)..].copy_from_slice(&far.to_le_bytes());
        self.sketches.push(store, layout.sketch, layout.sketches_of(chapter))
    }

    /// Stores a copy of the chapter that was sketched last. One that is stored under that name and differs
    /// was made of pages that are no more.
    pub(super) fn keep(&self, store: &Store, key: PageKey) -> Result<()> {
        let held = &self.chapters[self.sketched() - 1];
        let mut copy = store.allocate(held.len())?;
        copy.copy_from_slice(held);
        store.renew(key, copy)
    }

    /// Takes up a copy of a stored chapter as the next one; false where it is none, or for another place.
    pub(super) fn adopt(
        &mut self,
        store: &Store,
        layout: &DigestLayout,
        stored: &[u8],
        far: u64,
    ) -> Result<bool> {
        if stored.len() != layout.chapter_bytes() || layout.far(stored) != far {
            return Ok(false);
        }
        let mut chapter = store.allocate(stored.len())?;
        chapter.copy_from_slice(stored);
        self.sketches.push(store, layout.sketch, layout.sketches_of(stored))?;
        Arc::make_mut(&mut self.chapters).push(Arc::new(chapter));
        self.pages += CHAPTER_PAGES;
        Ok(true)
    }

    /// Forgets all sketches: other directions are to come.
    pub(super) fn forget_sketches(&mut self) {
        self.sketches.truncate(0);
    }

    /// Scales of one head of a page.
    pub(super) fn scales(&self, layout: &DigestLayout, head: usize, page: usize) -> Scales<'_> {
        let start = layout.scales_start(head, page);
        let bytes = &self.chapters[page / CHAPTER_PAGES][start..start + layout.scale_bytes];
        let (keys, values) = bytes.split_at(layout.scale_bytes / 2);
        Scales { keys, values }
    }

    /// Summarises the next page, whose bytes these are: all of them, where it is kept in planes.
    pub(super) fn add(
        &mut self,
        store: &Store,
        layout: &DigestLayout,
        pages: &Layout,
        page: PageBytes<'_>,
    ) -> Result<()> {
        let at = self.pages;
        if at.is_multiple_of(CHAPTER_PAGES) {
            let fresh = store.allocate(layout.chapter_bytes())?;
            Arc::make_mut(&mut self.chapters).push(Arc::new(fresh));
        }
        let chapter = own(&mut Arc::make_mut(&mut self.chapters)[at / CHAPTER_PAGES], store)?;
        let mut keys = vec![0.0_f32; BLOCK_TOKENS * layout.key_dim];
        let mut bytes = vec![0; keys.len() * DType::F32.size()];
        for head in 0..layout.heads {
            let start = layout.start(head, at);
            let summaries = &mut chapter[start..start + layout.page_bytes()];
            for (block, summary) in summaries.chunks_exact_mut(layout.summary.len_bytes()).enumerate() {
                let slice = Slice { head, first: block * BLOCK_TOKENS, tokens: BLOCK_TOKENS };
                pages.read_keys(page, slice, DType::F32, &mut bytes);
                for (index, key) in keys.iter_mut().enumerate() {
                    *key = DType::F32.read(&bytes, index);
                }
                layout.summary.encode(&keys, summary);
            }
            if let PageBytes::Planes { residual: Some(residual), .. } = page {
                let scales = pages.scales(residual, head);
                let start = layout.scales_start(head, at);
                let (keys, values) =
                    chapter[start..start + layout.scale_bytes].split_at_mut(scales.keys.len());
                keys.copy_from_slice(scales.keys);
                values.copy_from_slice(scales.values);
            }
        }
        self.pages += 1;
        Ok(())
    }
}

/// Bytes that nobody else sees; a copy, where somebody does.
pub(super) fn own<'a>(held: &'a mut Arc<PageMut>, store: &Store) -> Result<&'a mut PageMut> {
    if Arc::get_mut(held).is_none() {
        let mut copy = store.allocate(held.len())?;
        copy.copy_from_slice(held);
        *held = Arc::new(copy);
    }
    Arc::get_mut(held).ok_or_else(|| Error::Invalid("a chapter of summaries is held elsewhere".into()))
}
