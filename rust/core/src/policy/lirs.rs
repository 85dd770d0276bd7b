//! Low inter-reference recency: a page is worth its place while its last read is more
//! recent than the last but one of the page that wants it.
//!
//! In a cyclic scan every resident page is read between two reads of any other, so
//! nothing is ever replaced and a fixed subset hits: the optimum. When the scan ends and
//! another begins, its second round already finds the old pages staler than itself.
//!
//! Source: S. Jiang, X. Zhang, "LIRS: an efficient low inter-reference recency set
//! replacement policy", SIGMETRICS 2002. Differs: times and a hashed history of fixed
//! size stand in for the paper's stack of resident and past pages; a page read from disk
//! that loses the comparison is not kept at all, where the paper gives it a short stay.

use super::Policy;
use super::capacity::Capacity;
use super::history::{HISTORY_PER_PAGE, History};
use super::list::Lists;
use crate::key::PageKey;

/// Short stay: pages sealed, or pushed out of the main region. The oldest leaves first.
const WINDOW: usize = 0;
/// Pages with a proven short interval between reads, in the order of their last one.
const MAIN: usize = 1;

/// The window's share is one page in so many; the paper's 1 %.
const WINDOW_ONE_IN: usize = 100;

/// See the module.
#[derive(Debug)]
pub struct Lirs {
    /// The time of its last read is kept with each page.
    pages: Lists<u64, 2>,
    history: History,
    /// Counts reads and insertions, from 1.
    now: u64,
    capacity: Capacity,
    /// The page last admitted, if it is not inserted yet.
    admitted: Option<PageKey>,
}

impl Lirs {
    /// For about `capacity_hint_pages` pages.
    pub fn new(capacity_hint_pages: usize) -> Self {
        Self {
            pages: Lists::new(capacity_hint_pages),
            history: History::new(capacity_hint_pages.saturating_mul(HISTORY_PER_PAGE)),
            now: 0,
            capacity: Capacity::new(capacity_hint_pages),
            admitted: None,
        }
    }

    fn main_max(&self) -> usize {
        self.capacity.pages() - self.capacity.share(WINDOW_ONE_IN)
    }

    /// Whether a page last read at `time` was read since the stalest main page was.
    fn outlives_main(&self, time: u64) -> bool {
        self.pages.oldest(MAIN).is_none_or(|stalest| time > self.pages.meta(stalest))
    }

    fn shrink_main(&mut self) {
        while self.pages.list_len(MAIN) > self.main_max() {
            let Some(stalest) = self.pages.oldest(MAIN) else { break };
            self.pages.move_newest(stalest, WINDOW);
        }
    }
}

impl Policy for Lirs {
    fn name(&self) -> &'static str {
        "lirs"
    }

    fn insert(&mut self, key: PageKey, _bytes: u64) {
        if self.pages.slot(key).is_some() {
            self.touch(key);
            return;
        }
        self.now += 1;
        let admitted = self.admitted.take() == Some(key);
        let list = if admitted || self.pages.list_len(MAIN) < self.main_max() { MAIN } else { WINDOW };
        self.pages.push_newest(list, key, self.now);
        self.capacity.on_insert(self.pages.len());
        self.shrink_main();
    }

    fn touch(&mut self, key: PageKey) {
        let Some(slot) = self.pages.slot(key) else { return };
        self.now += 1;
        let before = std::mem::replace(self.pages.meta_mut(slot), self.now);
        let list = if self.pages.list_of(slot) == MAIN || self.outlives_main(before) { MAIN } else { WINDOW };
        self.pages.move_newest(slot, list);
        self.shrink_main();
    }

    fn remove(&mut self, key: PageKey) {
        if let Some((_, last)) = self.pages.remove(key) {
            self.history.replace(key, last);
        }
    }

    fn admit(&mut self, candidate: PageKey) -> bool {
        self.now += 1;
        let before = self.history.replace(candidate, self.now);
        let admit =
            self.pages.len() < self.capacity.pages() || before.is_some_and(|time| self.outlives_main(time));
        self.admitted = admit.then_some(candidate);
        admit
    }

    fn victim(&mut self, evictable: &mut dyn FnMut(PageKey) -> bool) -> Option<PageKey> {
        self.capacity.on_victim(self.pages.len());
        let slot =
            self.pages.find_oldest(WINDOW, evictable).or_else(|| self.pages.find_oldest(MAIN, evictable))?;
        Some(self.pages.key(slot))
    }

    fn len(&self) -> usize {
        self.pages.len()
    }
}
