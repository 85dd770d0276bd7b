//! How many pages RAM holds, learned from the store's calls.
//!
//! The store counts bytes, of pages of several sizes, some of them pinned; a policy needs
//! pages. The hint is believed until a victim is first asked for, which is when RAM is
//! full. Only the first victim after an insertion tells: a store that empties RAM asks
//! for many in a row, and a policy that took each count for the capacity would then
//! refuse to fill RAM again.

#[derive(Clone, Copy, Debug)]
pub(super) struct Capacity {
    pages: usize,
    inserted: bool,
}

impl Capacity {
    pub(super) fn new(hint_pages: usize) -> Self {
        Self { pages: hint_pages.max(1), inserted: false }
    }

    /// At least 1.
    pub(super) fn pages(self) -> usize {
        self.pages
    }

    /// One page in `one_in`, rounded up.
    pub(super) fn share(self, one_in: usize) -> usize {
        self.pages.div_ceil(one_in)
    }

    pub(super) fn on_insert(&mut self, resident: usize) {
        self.pages = self.pages.max(resident);
        self.inserted = true;
    }

    pub(super) fn on_victim(&mut self, resident: usize) {
        if std::mem::take(&mut self.inserted) {
            self.pages = resident.max(1);
        }
    }
}
