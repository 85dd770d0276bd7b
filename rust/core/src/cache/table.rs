//! The page table of one layer and row: shared sealed pages, then one open page.
//!
//! A layer's length says which tokens are valid; tables may hold more. So cropping into a
//! sealed page only drops what lies behind it: the page is copied into an open one when
//! something is appended, and never read from disk before.

use std::sync::{Arc, Weak};

use super::digest::Digest;
use crate::key::{Chain, PageKey};
use crate::simd::prefetch_at;
use crate::store::Store;
use crate::sync::Mutex;
use crate::tier::ram::{Page, PageMut};

/// One reference to a page in the store, given back on drop. Tables share it.
pub(super) struct HeldPage {
    store: Store,
    key: PageKey,
    /// Where the page was in RAM last: while it is still there, it is pinned from here
    /// without asking the store.
    warm: Mutex<Weak<PageMut>>,
}

impl HeldPage {
    /// Takes over a reference that the caller has.
    pub(super) fn adopt(store: Store, key: PageKey) -> Self {
        Self { store, key, warm: Mutex::default() }
    }

    pub(super) fn key(&self) -> PageKey {
        self.key
    }

    /// The page, if it has not left RAM since it was seen last.
    #[inline]
    pub(super) fn pin(&self) -> Option<Page> {
        self.warm.lock().upgrade()
    }

    /// Asks for the memory that [`HeldPage::pin`] looks at.
    pub(super) fn prefetch(&self) {
        prefetch_at(self.warm.lock().as_ptr());
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

/// The keys of a whole page.
#[derive(Clone, Copy)]
pub(super) struct SealedKeys {
    /// Of its elements, or of its codes.
    pub(super) page: PageKey,
    /// Of its scales and residuals, in a cache that keeps planes.
    pub(super) residual: Option<PageKey>,
}

impl SealedKeys {
    pub(super) fn of(chain: &Chain, layer: u32, in_planes: bool) -> Self {
        Self { page: chain.page(layer), residual: in_planes.then(|| chain.residual(layer)) }
    }

    /// Of a cache that keeps planes, of the codes and of the residuals.
    pub(super) fn planes(&self) -> Option<[PageKey; 2]> {
        self.residual.map(|residual| [self.page, residual])
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = PageKey> {
        [Some(self.page), self.residual].into_iter().flatten()
    }
}

/// A whole page: its elements, or its codes and beside them its scales and residuals.
pub(super) struct SealedPage {
    pub(super) page: HeldPage,
    pub(super) residual: Option<HeldPage>,
}

impl SealedPage {
    /// Takes over references that the caller has.
    pub(super) fn adopt(store: &Store, keys: SealedKeys) -> Arc<Self> {
        let held = |key| HeldPage::adopt(store.clone(), key);
        Arc::new(Self { page: held(keys.page), residual: keys.residual.map(held) })
    }

    /// What the store holds of it.
    pub(super) fn parts(&self) -> impl Iterator<Item = &HeldPage> {
        [Some(&self.page), self.residual.as_ref()].into_iter().flatten()
    }
}

/// Page table of one layer and row. Cloning shares everything.
#[derive(Clone, Default)]
pub(super) struct Table {
    /// Whole pages, as sealed; the last one may be valid in part, see the module.
    pub(super) sealed: Arc<Vec<Arc<SealedPage>>>,
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

    pub(super) fn push_sealed(&mut self, page: Arc<SealedPage>) {
        Arc::make_mut(&mut self.sealed).push(page);
    }

    pub(super) fn pop_sealed(&mut self) {
        Arc::make_mut(&mut self.sealed).pop();
    }
}
