//! Summaries of a row's whole pages, in chapters of many pages; and their scales, where they are
//! kept in planes.
//!
//! A chapter is one slot of the warm tier, so summaries count towards the RAM limit. It is
//! laid out for reading one KV head at a time: per head, the blocks of its pages in order; behind
//! all heads' summaries, per head and page, the scale bytes of keys and of values.
//! Chapters are shared between forks until one of them adds a page to the last.

use std::sync::Arc;

use super::layout::{Layout, PageBytes, Scales, Slice};
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
    /// Scale bytes of a head's page; 0 without planes.
    scale_bytes: usize,
}

impl DigestLayout {
    pub(super) fn new(summary: Summary, shape: &LayerShape, layout: &Layout) -> Self {
        Self {
            summary,
            blocks_per_page: layout.page_tokens / BLOCK_TOKENS,
            heads: layout.heads,
            key_dim: shape.key_dim as usize,
            scale_bytes: if layout.has_planes() { 2 * layout.page_tokens } else { 0 },
        }
    }

    fn page_bytes(&self) -> usize {
        self.blocks_per_page * self.summary.len_bytes()
    }

    fn chapter_bytes(&self) -> usize {
        self.heads * CHAPTER_PAGES * (self.page_bytes() + self.scale_bytes)
    }

    fn start(&self, head: usize, page: usize) -> usize {
        (head * CHAPTER_PAGES + page % CHAPTER_PAGES) * self.page_bytes()
    }

    fn scales_start(&self, head: usize, page: usize) -> usize {
        let summaries = self.heads * CHAPTER_PAGES * self.page_bytes();
        summaries + (head * CHAPTER_PAGES + page % CHAPTER_PAGES) * self.scale_bytes
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
