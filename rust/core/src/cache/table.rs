//! The page table of one layer and row: shared sealed pages, then one open page.
//!
//! A layer's length says which tokens are valid; tables may hold more. So cropping into a
//! sealed page only drops what lies behind it: the page is copied into an open one when
//! something is appended, and never read from disk before.

use std::sync::{Arc, Weak};

use super::digest::Digest;
use crate::key::PageKey;
use crate::session::LayerShape;
use crate::store::Store;
use crate::sync::Mutex;
use crate::tier::ram::{Page, PageMut};

/// One reference to a sealed page in the store, given back on drop. Tables share it.
pub(super) struct HeldPage {
    store: Store,
    key: PageKey,
    /// Where the page was in RAM last: while it is still there, it is pinned from here
    /// without asking the store.
    warm: Mutex<Weak<PageMut>>,
}

impl HeldPage {
    /// Takes over a reference that the caller has.
    pub(super) fn adopt(store: Store, key: PageKey) -> Arc<Self> {
        Arc::new(Self { store, key, warm: Mutex::default() })
    }

    pub(super) fn key(&self) -> PageKey {
        self.key
    }

    /// The page, if it has not left RAM since it was seen last.
    #[inline]
    pub(super) fn pin(&self) -> Option<Page> {
        self.warm.lock().upgrade()
    }

    /// Remembers where the page is.
    pub(super) fn seen(&self, page: &Page) {
        *self.warm.lock() = Arc::downgrade(page);
    }
}

impl Drop for HeldPage {
    fn drop(&mut self) {
        self.store.release(&[self.key]);
    }
}

/// Page table of one layer and row. Cloning shares everything.
#[derive(Clone, Default)]
pub(super) struct Table {
    /// Whole pages, as sealed; the last one may be valid in part, see the module.
    pub(super) sealed: Arc<Vec<Arc<HeldPage>>>,
    /// The page after the sealed ones. Shared until one of its holders appends.
    pub(super) open: Option<Arc<PageMut>>,
    /// Summaries of the whole pages, where the cache selects.
    pub(super) digest: Digest,
}

impl Table {
    /// Drops what lies wholly behind `length`.
    pub(super) fn truncate(&mut self, length: usize, page_tokens: usize) {
        if length <= self.sealed.len() * page_tokens {
            self.open = None;
        }
        self.digest.truncate(length / page_tokens);
        let keep = length.div_ceil(page_tokens);
        if keep < self.sealed.len() {
            Arc::make_mut(&mut self.sealed).truncate(keep);
        }
    }

    pub(super) fn push_sealed(&mut self, page: Arc<HeldPage>) {
        Arc::make_mut(&mut self.sealed).push(page);
    }

    pub(super) fn pop_sealed(&mut self) {
        Arc::make_mut(&mut self.sealed).pop();
    }
}

/// Where things are in a page of a layer: per KV head keys of all tokens, then values.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub(super) page_tokens: usize,
    pub(super) heads: usize,
    pub(super) key_row: usize,
    pub(super) value_row: usize,
}

impl Layout {
    pub(super) fn new(shape: &LayerShape, page_tokens: usize) -> Self {
        let size = shape.dtype.size();
        Self {
            page_tokens,
            heads: shape.kv_heads as usize,
            key_row: shape.key_dim as usize * size,
            value_row: shape.value_dim as usize * size,
        }
    }

    pub(super) fn page_bytes(&self) -> usize {
        self.heads * self.head_bytes()
    }

    pub(super) fn head_bytes(&self) -> usize {
        self.page_tokens * (self.key_row + self.value_row)
    }

    /// Bytes of the keys of `tokens` tokens from `first` on.
    pub(super) fn keys(&self, head: usize, first: usize, tokens: usize) -> std::ops::Range<usize> {
        let start = head * self.head_bytes() + first * self.key_row;
        start..start + tokens * self.key_row
    }

    /// Bytes of the values of `tokens` tokens from `first` on.
    pub(super) fn values(&self, head: usize, first: usize, tokens: usize) -> std::ops::Range<usize> {
        let start = head * self.head_bytes() + self.page_tokens * self.key_row + first * self.value_row;
        start..start + tokens * self.value_row
    }
}
