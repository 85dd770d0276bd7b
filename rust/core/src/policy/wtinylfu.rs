//! W-TinyLFU: a small window in order of use, and behind it a main region that a page
//! enters only if it was read more often than the page that would leave.
//!
//! Source: G. Einziger, R. Friedman, B. Manes, "TinyLFU: a highly efficient cache admission
//! policy", ACM Transactions on Storage 13(4), 2017. Differs:
//! - The candidate's count excludes the read at hand. In a cyclic scan each page is read
//!   once per round, and the pages at the end of the order have one read fewer until
//!   their turn comes: counting the read at hand would replace them all.
//! - Sealing is no read, so a prefill's pages leave before any that was read.

use super::Policy;
use super::capacity::Capacity;
use super::list::{Lists, Slot};
use super::sketch::Sketch;
use crate::key::PageKey;

const WINDOW: usize = 0;
const PROBATION: usize = 1;
const PROTECTED: usize = 2;

/// The window's share is one page in so many; the paper's 1 %.
const WINDOW_ONE_IN: usize = 100;
/// The protected share of the main region, in percent: the paper's.
const PROTECTED_PERCENT: usize = 80;
/// Reads between two halvings of the counts, per page of capacity: the paper's.
const SAMPLE_PER_PAGE: u64 = 10;

/// See the module.
#[derive(Debug)]
pub struct WTinyLfu {
    pages: Lists<(), 3>,
    sketch: Sketch,
    capacity: Capacity,
}

impl WTinyLfu {
    /// For about `capacity_hint_pages` pages.
    pub fn new(capacity_hint_pages: usize) -> Self {
        let capacity = Capacity::new(capacity_hint_pages);
        Self {
            pages: Lists::new(capacity_hint_pages),
            sketch: Sketch::new(capacity.pages(), SAMPLE_PER_PAGE.saturating_mul(capacity.pages() as u64)),
            capacity,
        }
    }

    fn window_max(&self) -> usize {
        self.capacity.share(WINDOW_ONE_IN)
    }

    fn main_max(&self) -> usize {
        self.capacity.pages() - self.window_max()
    }

    fn main_len(&self) -> usize {
        self.pages.list_len(PROBATION) + self.pages.list_len(PROTECTED)
    }

    fn main_victim(&self, evictable: &mut dyn FnMut(PageKey) -> bool) -> Option<Slot> {
        self.pages.find_oldest(PROBATION, evictable).or_else(|| self.pages.find_oldest(PROTECTED, evictable))
    }

    fn frequency(&self, slot: Slot) -> u8 {
        self.sketch.frequency(self.pages.key(slot))
    }
}

impl Policy for WTinyLfu {
    fn name(&self) -> &'static str {
        "w-tinylfu"
    }

    fn insert(&mut self, key: PageKey, _bytes: u64) {
        if self.pages.slot(key).is_some() {
            self.touch(key);
            return;
        }
        self.pages.push_newest(WINDOW, key, ());
        self.capacity.on_insert(self.pages.len());
        while self.pages.list_len(WINDOW) > self.window_max() && self.main_len() < self.main_max() {
            let Some(slot) = self.pages.oldest(WINDOW) else { break };
            self.pages.move_newest(slot, PROBATION);
        }
    }

    fn touch(&mut self, key: PageKey) {
        let Some(slot) = self.pages.slot(key) else { return };
        self.sketch.record(key);
        if self.pages.list_of(slot) == WINDOW {
            self.pages.move_newest(slot, WINDOW);
            return;
        }
        self.pages.move_newest(slot, PROTECTED);
        if self.pages.list_len(PROTECTED) * 100 > self.main_max() * PROTECTED_PERCENT
            && let Some(oldest) = self.pages.oldest(PROTECTED)
        {
            self.pages.move_newest(oldest, PROBATION);
        }
    }

    fn remove(&mut self, key: PageKey) {
        self.pages.remove(key);
    }

    fn admit(&mut self, candidate: PageKey) -> bool {
        let before = self.sketch.frequency(candidate);
        self.sketch.record(candidate);
        self.pages.len() < self.capacity.pages()
            || self.main_victim(&mut |_| true).is_none_or(|victim| before > self.frequency(victim))
    }

    fn victim(&mut self, evictable: &mut dyn FnMut(PageKey) -> bool) -> Option<PageKey> {
        self.capacity.on_victim(self.pages.len());
        let main = self.main_victim(evictable);
        let window = self.pages.find_oldest(WINDOW, evictable);
        let slot = match (window, main) {
            (Some(window), Some(main)) => {
                let window_is_full = self.pages.list_len(WINDOW) >= self.window_max();
                if window_is_full && self.frequency(window) <= self.frequency(main) { window } else { main }
            }
            (window, main) => window.or(main)?,
        };
        Some(self.pages.key(slot))
    }

    fn len(&self) -> usize {
        self.pages.len()
    }
}
