//! Summaries of a row's whole pages, in chapters of many pages.
//!
//! A chapter is one slot of the warm tier, so summaries count towards the RAM limit. It is
//! laid out for reading one KV head at a time: per head, the blocks of its pages in order.
//! Chapters are shared between forks until one of them adds a page to the last.

use std::sync::Arc;

use super::table::Layout;
use crate::dtype::DType;
use crate::error::Result;
use crate::score::{BLOCK_TOKENS, Summary};
use crate::session::LayerShape;
use crate::store::Store;
use crate::tier::ram::PageMut;

/// Pages of a chapter: 64 KiB or so of summaries, much more than a slot is rounded up by.
pub(super) const CHAPTER_PAGES: usize = 16;

/// The summaries of one layer and row. Cloning shares them.
#[derive(Clone, Default)]
pub(super) struct Digest {
    chapters: Arc<Vec<Arc<PageMut>>>,
    /// Pages summarised: always the first ones.
    pages: usize,
}

/// How the summaries of a layer are made and laid out.
#[derive(Clone, Debug)]
pub(super) struct DigestLayout {
    pub(super) summary: Summary,
    pub(super) blocks_per_page: usize,
    heads: usize,
    key_dim: usize,
    dtype: DType,
}

impl DigestLayout {
    pub(super) fn new(summary: Summary, shape: &LayerShape, page_tokens: usize) -> Self {
        Self {
            summary,
            blocks_per_page: page_tokens / BLOCK_TOKENS,
            heads: shape.kv_heads as usize,
            key_dim: shape.key_dim as usize,
            dtype: shape.dtype,
        }
    }

    fn page_bytes(&self) -> usize {
        self.blocks_per_page * self.summary.len_bytes()
    }

    fn chapter_bytes(&self) -> usize {
        self.heads * CHAPTER_PAGES * self.page_bytes()
    }

    fn start(&self, head: usize, page: usize) -> usize {
        (head * CHAPTER_PAGES + page % CHAPTER_PAGES) * self.page_bytes()
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
            Arc::make_mut(&mut self.chapters).truncate(pages.div_ceil(CHAPTER_PAGES));
        }
    }

    /// Summaries of one head's blocks in pages [first, first + count) of one chapter.
    pub(super) fn blocks(&self, layout: &DigestLayout, head: usize, first: usize, count: usize) -> &[u8] {
        let start = layout.start(head, first);
        &self.chapters[first / CHAPTER_PAGES][start..start + count * layout.page_bytes()]
    }

    /// Summarises the next page, whose bytes these are.
    pub(super) fn add(
        &mut self,
        store: &Store,
        layout: &DigestLayout,
        pages: &Layout,
        page: &[u8],
    ) -> Result<()> {
        let at = self.pages;
        let chapters = Arc::make_mut(&mut self.chapters);
        let bytes = layout.chapter_bytes();
        let is_own = chapters.get_mut(at / CHAPTER_PAGES).is_some_and(|last| Arc::get_mut(last).is_some());
        if !is_own {
            let mut fresh = store.allocate(bytes)?;
            if let Some(shared) = chapters.get(at / CHAPTER_PAGES) {
                fresh.copy_from_slice(shared);
                chapters.pop();
            }
            chapters.push(Arc::new(fresh));
        }
        let Some(chapter) = chapters.last_mut().and_then(Arc::get_mut) else { return Ok(()) };
        let mut keys = vec![0.0_f32; BLOCK_TOKENS * layout.key_dim];
        for head in 0..layout.heads {
            let start = layout.start(head, at);
            let summaries = &mut chapter[start..start + layout.page_bytes()];
            for (block, summary) in summaries.chunks_exact_mut(layout.summary.len_bytes()).enumerate() {
                let stored = &page[pages.keys(head, block * BLOCK_TOKENS, BLOCK_TOKENS)];
                for (index, key) in keys.iter_mut().enumerate() {
                    *key = layout.dtype.read(stored, index);
                }
                layout.summary.encode(&keys, summary);
            }
        }
        self.pages += 1;
        Ok(())
    }
}
