//! The default: W-TinyLFU's regions, entered by LIRS's comparison.
//!
//! A page that was read from disk stays if its last read but one is more recent than the
//! last read of the page that would leave. In a cyclic scan every resident page is read
//! between two reads of any other, so nothing is replaced and a fixed subset hits: the
//! optimum. When that scan ends and another begins, its second round already finds the
//! old pages staler than itself, where counts need many rounds. Pages that were sealed,
//! on the other hand, have no history; they wait in a window, and the less often read of
//! its oldest page and the main region's leaves. So a prefill passes through the window,
//! and what it reads again soon is found there.
//!
//! Sources: G. Einziger, R. Friedman, B. Manes, "TinyLFU: a highly efficient cache
//! admission policy", ACM Transactions on Storage 13(4), 2017; S. Jiang, X. Zhang, "LIRS:
//! an efficient low inter-reference recency set replacement policy", SIGMETRICS 2002.

use super::Policy;
use super::capacity::Capacity;
use super::history::{HISTORY_PER_PAGE, History};
use super::list::{Lists, Slot};
use super::sketch::Sketch;
use crate::key::PageKey;

/// Sealed pages; in the order of their last read.
const WINDOW: usize = 0;
/// The main region is segmented: a page read here moves to the protected part, whose
/// oldest page comes back.
const PROBATION: usize = 1;
const PROTECTED: usize = 2;

/// The window's share is one page in so many. A scan costs nothing for it (pages in it
/// stay, too, while nothing is sealed), and a tenth holds what a prefill reads again
/// soon; with W-TinyLFU's hundredth that is lost (`docs/policies.md`).
const WINDOW_ONE_IN: usize = 10;
/// The protected share of the main region, in percent: W-TinyLFU's.
const PROTECTED_PERCENT: usize = 80;
/// Reads between two halvings of the counts, per page of capacity: TinyLFU's.
const SAMPLE_PER_PAGE: u64 = 10;
/// Reads that are looked up together.
const TOGETHER: usize = 16;

/// See the module.
#[derive(Debug)]
pub struct TinyLirs {
    /// The time of its last read, or of its insertion, is kept with each page.
    pages: Lists<u64, 3>,
    history: History,
    sketch: Sketch,
    /// Counts reads and insertions, from 1.
    now: u64,
    capacity: Capacity,
    /// The page last admitted, if it is not inserted yet.
    admitted: Option<PageKey>,
}

impl TinyLirs {
    /// For about `capacity_hint_pages` pages.
    pub fn new(capacity_hint_pages: usize) -> Self {
        let capacity = Capacity::new(capacity_hint_pages);
        Self {
            pages: Lists::new(capacity_hint_pages),
            history: History::new(capacity_hint_pages.saturating_mul(HISTORY_PER_PAGE)),
            sketch: Sketch::new(capacity.pages(), SAMPLE_PER_PAGE.saturating_mul(capacity.pages() as u64)),
            now: 0,
            capacity,
            admitted: None,
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

    /// What a read of a resident page changes.
    fn read(&mut self, key: PageKey, slot: Slot) {
        self.sketch.record(key);
        self.now += 1;
        *self.pages.meta_mut(slot) = self.now;
        if self.pages.list_of(slot) == WINDOW {
            self.pages.move_newest(slot, WINDOW);
            return;
        }
        self.pages.move_newest(slot, PROTECTED);
        if self.pages.list_len(PROTECTED) * 100 > self.main_max() * PROTECTED_PERCENT
            && let Some(oldest) = self.pages.oldest(PROTECTED)
        {
            self.pages.move_newest(oldest, PROBATION);
            // The next one to go.
            if let Some(oldest) = self.pages.oldest(PROTECTED) {
                self.pages.prefetch_neighbours(oldest);
            }
        }
    }

    fn frequency(&self, slot: Slot) -> u8 {
        self.sketch.frequency(self.pages.key(slot))
    }
}

impl Policy for TinyLirs {
    fn name(&self) -> &'static str {
        "tiny-lirs"
    }

    fn insert(&mut self, key: PageKey, _bytes: u64) {
        if self.pages.slot(key).is_some() {
            self.touch(key);
            return;
        }
        self.now += 1;
        let admitted = self.admitted.take() == Some(key);
        self.pages.push_newest(if admitted { PROBATION } else { WINDOW }, key, self.now);
        self.capacity.on_insert(self.pages.len());
        while self.pages.list_len(WINDOW) > self.window_max() && self.main_len() < self.main_max() {
            let Some(slot) = self.pages.oldest(WINDOW) else { break };
            self.pages.move_newest(slot, PROBATION);
        }
    }

    fn touch(&mut self, key: PageKey) {
        if let Some(slot) = self.pages.slot(key) {
            self.read(key, slot);
        }
    }

    fn touch_all(&mut self, keys: &[PageKey]) {
        let mut slots = [None; TOGETHER];
        for keys in keys.chunks(TOGETHER) {
            // What a read changes is all over memory: it is asked for before the first of them.
            for (slot, key) in slots.iter_mut().zip(keys) {
                self.sketch.prefetch(*key);
                *slot = self.pages.slot(*key).inspect(|slot| self.pages.prefetch(*slot));
            }
            let slots = &slots[..keys.len()];
            slots.iter().flatten().for_each(|slot| self.pages.prefetch_neighbours(*slot));
            for (key, slot) in keys.iter().zip(slots) {
                if let Some(slot) = *slot {
                    self.read(*key, slot);
                }
            }
        }
    }

    fn remove(&mut self, key: PageKey) {
        if let Some((_, last)) = self.pages.remove(key) {
            self.history.replace(key, last);
        }
    }

    fn admit(&mut self, candidate: PageKey) -> bool {
        self.now += 1;
        self.sketch.record(candidate);
        let before = self.history.replace(candidate, self.now);
        let admit = self.pages.len() < self.capacity.pages()
            || self
                .main_victim(&mut |_| true)
                .is_none_or(|victim| before.is_some_and(|time| time > self.pages.meta(victim)));
        self.admitted = admit.then_some(candidate);
        admit
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
