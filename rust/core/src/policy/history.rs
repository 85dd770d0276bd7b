//! When pages were last seen, for pages that are no longer resident.
//!
//! A hash table of fixed size in sets of one cache line. It may forget the oldest page
//! of a full set, and takes one page for another with a probability of about 2^-13; both
//! cost a hit rate, never a wrong page.

use crate::key::PageKey;

/// Past pages worth remembering per page of capacity, at 8 to 16 bytes each: a scan ten
/// times larger than RAM is told from new pages, with room to spare in every set. A scan
/// larger than that is forgotten before it comes round, and admits nothing, rightly.
pub(super) const HISTORY_PER_PAGE: usize = 32;

/// One cache line of eight-byte entries.
const WAYS: usize = 8;

/// The low bits of an entry hold the time, the others the fingerprint: 2^48 reads last
/// for years, and sixteen bits among eight entries are wrong once in 8192 look-ups.
const TIME_BITS: u32 = 48;
const TIME_MASK: u64 = (1 << TIME_BITS) - 1;

/// At most 64 MiB of history.
const SETS_MAX: usize = 1 << 20;

#[derive(Clone, Debug)]
pub(super) struct History {
    sets: Vec<[u64; WAYS]>,
}

impl History {
    /// Remembers about `pages` pages, at 8 to 16 bytes for each.
    pub(super) fn new(pages: usize) -> Self {
        let num_sets = pages.div_ceil(WAYS).clamp(16, SETS_MAX).next_power_of_two();
        Self { sets: vec![[0; WAYS]; num_sets] }
    }

    /// Notes that the page was seen at `time` (at least 1), and tells when before.
    pub(super) fn replace(&mut self, key: PageKey, time: u64) -> Option<u64> {
        let hash = key.low64();
        let fingerprint = hash & !TIME_MASK;
        let set_index = hash as usize & (self.sets.len() - 1);
        let entry = fingerprint | (time & TIME_MASK);
        let set = &mut self.sets[set_index];
        let (mut oldest, mut oldest_time) = (0, u64::MAX);
        for (way, slot) in set.iter_mut().enumerate() {
            let seen = *slot & TIME_MASK;
            if seen != 0 && *slot & !TIME_MASK == fingerprint {
                *slot = entry;
                return Some(seen);
            }
            if seen < oldest_time {
                (oldest, oldest_time) = (way, seen);
            }
        }
        set[oldest] = entry;
        None
    }

    /// Forgets the page; tells when it was seen.
    pub(super) fn take(&mut self, key: PageKey) -> Option<u64> {
        let hash = key.low64();
        let set_index = hash as usize & (self.sets.len() - 1);
        for slot in &mut self.sets[set_index] {
            let seen = *slot & TIME_MASK;
            if seen != 0 && *slot & !TIME_MASK == hash & !TIME_MASK {
                *slot = 0;
                return Some(seen);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::trace::page_key;
    use super::*;

    #[test]
    fn remembers_the_newest_and_forgets_the_oldest() {
        let mut history = History::new(1000);
        for page in 0..500 {
            assert_eq!(history.replace(page_key(page), 1 + u64::from(page)), None);
        }
        let known =
            (0..500).filter(|&page| history.replace(page_key(page), 1000) == Some(1 + u64::from(page)));
        assert!(known.count() > 480);
        assert_eq!(history.take(page_key(7)), Some(1000));
        assert_eq!(history.take(page_key(7)), None);
        for page in 1000..100_000 {
            history.replace(page_key(page), 2000);
        }
        assert_eq!(history.take(page_key(8)), None);
    }
}
