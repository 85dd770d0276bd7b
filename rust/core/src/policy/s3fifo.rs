//! S3-FIFO: a small first-in-first-out queue on probation, a large one for what was read
//! again, and a memory of what left the small one.
//!
//! Source: J. Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023.
//! Differs: the memory is a fixed hash table with times (section 4.2 names this option),
//! and pinned pages are skipped in place. It admits everything, so a cyclic scan larger
//! than the large queue and the memory together leaves it nothing to hit.

use super::Policy;
use super::history::History;
use super::list::Lists;
use crate::key::PageKey;

const SMALL: usize = 0;
const MAIN: usize = 1;

/// Reads are counted up to three, with two bits in the paper.
const READS_MAX: u8 = 3;
/// Reads in the small queue with which a page moves to the main one.
const READS_TO_PROMOTE: u8 = 2;
/// The small queue's share is one page in so many.
const SMALL_ONE_IN: usize = 10;

/// See the module.
#[derive(Debug)]
pub struct S3Fifo {
    /// The number of reads is kept with each page.
    pages: Lists<u8, 2>,
    ghosts: History,
    ghosts_made: u64,
}

impl S3Fifo {
    /// For about `capacity_hint_pages` pages.
    pub fn new(capacity_hint_pages: usize) -> Self {
        Self {
            pages: Lists::new(capacity_hint_pages),
            ghosts: History::new(capacity_hint_pages.saturating_mul(2)),
            ghosts_made: 0,
        }
    }

    /// The oldest evictable page of the small queue; pages read again move on meanwhile.
    fn small_victim(&mut self, evictable: &mut dyn FnMut(PageKey) -> bool) -> Option<PageKey> {
        let mut next = self.pages.oldest(SMALL);
        while let Some(slot) = next {
            next = self.pages.newer(slot);
            if self.pages.meta(slot) >= READS_TO_PROMOTE {
                *self.pages.meta_mut(slot) = 0;
                self.pages.move_newest(slot, MAIN);
            } else if evictable(self.pages.key(slot)) {
                return Some(self.pages.key(slot));
            }
        }
        None
    }

    /// The oldest evictable unread page of the main queue; others get another round.
    fn main_victim(&mut self, evictable: &mut dyn FnMut(PageKey) -> bool) -> Option<PageKey> {
        let mut next = self.pages.oldest(MAIN);
        while let Some(slot) = next {
            next = self.pages.newer(slot);
            if self.pages.meta(slot) > 0 {
                *self.pages.meta_mut(slot) -= 1;
                self.pages.move_newest(slot, MAIN);
                // The walk meets it again further on, or at once if it was the newest.
                next = next.or(Some(slot));
            } else if evictable(self.pages.key(slot)) {
                return Some(self.pages.key(slot));
            }
        }
        None
    }
}

impl Policy for S3Fifo {
    fn name(&self) -> &'static str {
        "s3-fifo"
    }

    fn insert(&mut self, key: PageKey, _bytes: u64) {
        if self.pages.slot(key).is_some() {
            self.touch(key);
            return;
        }
        // As many ghosts count as there are pages in the main queue.
        let ghosts_max = self.pages.len().max(1) as u64;
        let remembered = self.ghosts.take(key).is_some_and(|made| self.ghosts_made - made < ghosts_max);
        self.pages.push_newest(if remembered { MAIN } else { SMALL }, key, 0);
    }

    fn touch(&mut self, key: PageKey) {
        if let Some(slot) = self.pages.slot(key) {
            let reads = self.pages.meta_mut(slot);
            *reads = (*reads + 1).min(READS_MAX);
        }
    }

    fn remove(&mut self, key: PageKey) {
        if let Some((SMALL, _)) = self.pages.remove(key) {
            self.ghosts_made += 1;
            self.ghosts.replace(key, self.ghosts_made);
        }
    }

    fn admit(&mut self, _candidate: PageKey) -> bool {
        true
    }

    fn victim(&mut self, evictable: &mut dyn FnMut(PageKey) -> bool) -> Option<PageKey> {
        if self.pages.list_len(SMALL) * SMALL_ONE_IN >= self.pages.len() {
            self.small_victim(evictable).or_else(|| self.main_victim(evictable))
        } else {
            // The small queue's walk may move pages to the main one, hence the last look.
            self.main_victim(evictable)
                .or_else(|| self.small_victim(evictable))
                .or_else(|| self.main_victim(evictable))
        }
    }

    fn len(&self) -> usize {
        self.pages.len()
    }
}
