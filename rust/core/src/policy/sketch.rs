//! How often pages were read lately, approximately, in 16 bytes per page of capacity.
//!
//! A count-min sketch of 4-bit counters that are halved together now and then, so that
//! what was popular long ago is forgotten. Sources: G. Cormode, S. Muthukrishnan, "An
//! improved data stream summary: the count-min sketch", J. Algorithms 55(1), 2005; the
//! halving is TinyLFU's; only the smallest counters are raised ("conservative update",
//! C. Estan, G. Varghese, SIGCOMM 2002), which lowers the error.

use crate::key::PageKey;
use crate::simd::prefetch_near;

const ROWS: u64 = 4;
const COUNTER_MAX: u8 = 15;
/// The low bit of every counter in a word is cleared when they are all shifted.
const HALVING_MASK: u64 = 0x7777_7777_7777_7777;
/// Counters per page of capacity. A scan may be ten times larger than RAM, and its
/// pages must still be told apart: with TinyLFU's one counter per page they are not.
const COUNTERS_PER_PAGE: usize = 32;
/// At most 32 MiB.
const WORDS_MAX: usize = 1 << 22;

#[derive(Clone, Debug)]
pub(super) struct Sketch {
    words: Vec<u64>,
    recorded: u64,
    /// Reads between two halvings.
    sample_size: u64,
}

impl Sketch {
    pub(super) fn new(capacity_pages: usize, sample_size: u64) -> Self {
        let num_words = (capacity_pages.saturating_mul(COUNTERS_PER_PAGE) / 16).clamp(16, WORDS_MAX);
        Self { words: vec![0; num_words.next_power_of_two()], recorded: 0, sample_size: sample_size.max(16) }
    }

    /// Reads of the page in the recent past, 0 to 15; may be too high, never too low
    /// (but for ageing).
    pub(super) fn frequency(&self, key: PageKey) -> u8 {
        self.places(key).map(|(word, shift)| self.counter(word, shift)).min().unwrap_or(0)
    }

    /// Asks for the memory of a page's counters.
    pub(super) fn prefetch(&self, key: PageKey) {
        self.places(key).for_each(|(word, _)| prefetch_near(std::slice::from_ref(&self.words[word])));
    }

    pub(super) fn record(&mut self, key: PageKey) {
        let frequency = self.frequency(key);
        if frequency < COUNTER_MAX {
            for (word, shift) in self.places(key) {
                if self.counter(word, shift) == frequency {
                    self.words[word] += 1 << shift;
                }
            }
        }
        self.recorded += 1;
        if self.recorded >= self.sample_size {
            self.recorded /= 2;
            for word in &mut self.words {
                *word = (*word >> 1) & HALVING_MASK;
            }
        }
    }

    fn counter(&self, word: usize, shift: u32) -> u8 {
        (self.words[word] >> shift) as u8 & COUNTER_MAX
    }

    /// Word and bit offset of the page's counters: the key's halves, combined as A. Kirsch
    /// and M. Mitzenmacher ("Less hashing, same performance", 2006) show to be enough.
    fn places(&self, key: PageKey) -> impl Iterator<Item = (usize, u32)> + use<> {
        let first = key.low64();
        let step = key.0.last_chunk().map_or(1, |high| u64::from_le_bytes(*high) | 1);
        let mask = self.words.len() - 1;
        (0..ROWS).map(move |row| {
            let hash = first.wrapping_add(row.wrapping_mul(step));
            ((hash >> 4) as usize & mask, (hash & 15) as u32 * 4)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::trace::page_key;
    use super::*;

    #[test]
    fn counts_saturate_and_are_halved() {
        let mut sketch = Sketch::new(100, 1000);
        for _ in 0..20 {
            sketch.record(page_key(1));
        }
        sketch.record(page_key(2));
        assert_eq!(sketch.frequency(page_key(1)), 15);
        assert_eq!(sketch.frequency(page_key(2)), 1);
        assert_eq!(sketch.frequency(page_key(3)), 0);
        for _ in 0..1000 {
            sketch.record(page_key(4));
        }
        assert_eq!(sketch.frequency(page_key(1)), 7);
        assert_eq!(sketch.frequency(page_key(2)), 0);
    }

    #[test]
    fn ten_times_more_pages_than_capacity_are_still_told_apart() {
        let mut sketch = Sketch::new(1000, u64::MAX);
        for page in 0..10_000 {
            sketch.record(page_key(page));
        }
        let exact = (0..10_000).filter(|&page| sketch.frequency(page_key(page)) == 1).count();
        assert!(exact > 9_000, "{exact} of 10000 counts are exact");
        assert!((0..10_000).all(|page| sketch.frequency(page_key(page)) >= 1));
    }
}
