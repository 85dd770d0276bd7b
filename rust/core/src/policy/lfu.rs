//! Least frequently used, with ageing: counts of resident pages, halved now and then.
//!
//! The count dies with the page's residence, so a page that was evicted starts anew: it
//! has no answer to a scan larger than RAM. Kept as the plain form of the idea.

use super::Policy;
use super::list::Lists;
use crate::key::PageKey;

/// Counts saturate here, so a page has one of sixteen levels and each level is a list.
const LEVELS: usize = 16;

/// Reads between two halvings, per resident page: TinyLFU's sample factor.
const READS_PER_PAGE: usize = 10;

/// See the module.
#[derive(Debug)]
pub struct Lfu {
    pages: Lists<(), LEVELS>,
    reads: usize,
}

impl Lfu {
    /// For about `capacity_hint_pages` pages.
    pub fn new(capacity_hint_pages: usize) -> Self {
        Self { pages: Lists::new(capacity_hint_pages), reads: 0 }
    }

    /// Halves every count: level `n` joins level `n / 2`. Linear in the number of pages,
    /// but due only every tenth read of each.
    fn age(&mut self) {
        for level in 1..LEVELS {
            while let Some(slot) = self.pages.oldest(level) {
                self.pages.move_newest(slot, level / 2);
            }
        }
    }
}

impl Policy for Lfu {
    fn name(&self) -> &'static str {
        "lfu"
    }

    fn insert(&mut self, key: PageKey, _bytes: u64) {
        if self.pages.slot(key).is_some() {
            self.touch(key);
        } else {
            self.pages.push_newest(0, key, ());
        }
    }

    fn touch(&mut self, key: PageKey) {
        let Some(slot) = self.pages.slot(key) else { return };
        let level = self.pages.list_of(slot);
        self.pages.move_newest(slot, (level + 1).min(LEVELS - 1));
        self.reads += 1;
        if self.reads >= READS_PER_PAGE * self.pages.len() {
            self.reads = 0;
            self.age();
        }
    }

    fn remove(&mut self, key: PageKey) {
        self.pages.remove(key);
    }

    fn admit(&mut self, _candidate: PageKey) -> bool {
        true
    }

    fn victim(&mut self, evictable: &mut dyn FnMut(PageKey) -> bool) -> Option<PageKey> {
        let slot = (0..LEVELS).find_map(|level| self.pages.find_oldest(level, evictable))?;
        Some(self.pages.key(slot))
    }

    fn len(&self) -> usize {
        self.pages.len()
    }
}
