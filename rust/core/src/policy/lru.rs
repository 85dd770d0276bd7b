//! Least recently used: the baseline, and right for working sets that fit.
//!
//! On a cyclic scan larger than RAM, which is what exact attention does, it evicts each
//! page just before its next use and never hits.

use super::Policy;
use super::list::Lists;
use crate::key::PageKey;

/// See the module.
#[derive(Debug)]
pub struct Lru {
    pages: Lists<(), 1>,
}

impl Lru {
    /// For about `capacity_hint_pages` pages.
    pub fn new(capacity_hint_pages: usize) -> Self {
        Self { pages: Lists::new(capacity_hint_pages) }
    }
}

impl Policy for Lru {
    fn name(&self) -> &'static str {
        "lru"
    }

    fn insert(&mut self, key: PageKey, _bytes: u64) {
        if let Some(slot) = self.pages.slot(key) {
            self.pages.move_newest(slot, 0);
        } else {
            self.pages.push_newest(0, key, ());
        }
    }

    fn touch(&mut self, key: PageKey) {
        if let Some(slot) = self.pages.slot(key) {
            self.pages.move_newest(slot, 0);
        }
    }

    fn remove(&mut self, key: PageKey) {
        self.pages.remove(key);
    }

    fn admit(&mut self, _candidate: PageKey) -> bool {
        true
    }

    fn victim(&mut self, evictable: &mut dyn FnMut(PageKey) -> bool) -> Option<PageKey> {
        self.pages.find_oldest(0, evictable).map(|slot| self.pages.key(slot))
    }

    fn len(&self) -> usize {
        self.pages.len()
    }
}
