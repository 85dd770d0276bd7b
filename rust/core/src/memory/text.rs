//! Which of a user's memories have a word, and BM25 over those that a scope covers.
//!
//! All counts that BM25 needs are those of the scope that is asked: how often a word occurs
//! elsewhere changes no score, and tells nothing.

use std::collections::HashMap;

use super::fusion::{BM25_B, BM25_K1, WINDOW_UNIT};
use super::rows::Rows;

/// Words of a user's memories, by stem.
#[derive(Debug, Default)]
pub(super) struct TextIndex {
    terms: HashMap<Box<str>, Postings>,
}

/// The rows that have a word, ascending, as steps and counts of 7 bits a byte.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Postings {
    pub(crate) bytes: Vec<u8>,
    pub(crate) last: u32,
}

impl Postings {
    fn push(&mut self, row: u32, count: u32) {
        let step = if self.bytes.is_empty() { row } else { row - self.last };
        self.last = row;
        push_varint(&mut self.bytes, step);
        push_varint(&mut self.bytes, count);
    }

    /// Rows and counts. Ends early where the bytes are none that `push` wrote.
    fn iter(&self) -> impl Iterator<Item = (u32, u32)> {
        let mut bytes = self.bytes.as_slice();
        let mut row = 0_u32;
        std::iter::from_fn(move || {
            row = row.checked_add(take_varint(&mut bytes)?)?;
            Some((row, take_varint(&mut bytes)?))
        })
    }
}

fn push_varint(bytes: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn take_varint(bytes: &mut &[u8]) -> Option<u32> {
    let (mut value, mut shift) = (0_u32, 0);
    loop {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u32::from(first & 0x7f).checked_shl(shift)?;
        if first & 0x80 == 0 {
            return Some(value);
        }
        shift += 7;
    }
}

impl TextIndex {
    /// What a checkpoint holds.
    pub(super) fn restore(terms: HashMap<Box<str>, Postings>) -> Self {
        Self { terms }
    }

    pub(super) const fn terms(&self) -> &HashMap<Box<str>, Postings> {
        &self.terms
    }

    /// Adds a row with its words; rows come in order.
    pub(super) fn push(&mut self, row: u32, words: &HashMap<String, u32>) {
        for (word, count) in words {
            match self.terms.get_mut(word.as_str()) {
                Some(postings) => postings.push(row, *count),
                None => self.terms.entry(word.as_str().into()).or_default().push(row, *count),
            }
        }
    }
}

/// What BM25 compares with: the memories of a scope.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Corpus {
    pub(super) rows: u64,
    words: u64,
    window_words: u64,
}

impl Corpus {
    /// All memories that the covered leaves hold, past ones included.
    pub(super) fn of(rows: &Rows, covered: &[bool]) -> Self {
        let mut corpus = Self::default();
        for (leaf, _) in rows.leaves().iter().zip(covered).filter(|(_, covered)| **covered) {
            corpus.rows += leaf.rows;
            corpus.words += leaf.words;
            corpus.window_words += leaf.window_words;
        }
        corpus
    }

    /// How much a word tells that so many memories have.
    fn rarity(&self, with_word: usize) -> f32 {
        let (all, with_word) = (self.rows as f32, with_word as f32);
        (((all - with_word).max(0.0) + 0.5) / (with_word + 0.5)).ln_1p()
    }

    fn mean(&self, words: f32) -> f32 {
        (words / self.rows.max(1) as f32).max(1.0)
    }
}

/// What a word adds that occurs `count` times among `words`.
fn saturated(count: f32, words: f32, mean_words: f32) -> f32 {
    let length = 1.0 - BM25_B + BM25_B * words / mean_words;
    count * (BM25_K1 + 1.0) / (count + BM25_K1 * length)
}

/// A count of units as a number of words.
fn words_of(units: u32) -> f32 {
    units as f32 / WINDOW_UNIT as f32
}

/// BM25 of every row for one query, kept between queries: clearing costs what was touched.
#[derive(Debug, Default)]
pub(super) struct TextScores {
    turn: Vec<f32>,
    window: Vec<f32>,
    /// Units of the word at hand in the windows.
    units: Vec<u32>,
    touched: Vec<u32>,
}

impl TextScores {
    /// Scores the rows of the covered leaves, and forgets the query before.
    pub(super) fn score(
        &mut self,
        rows: &Rows,
        index: &TextIndex,
        words: &HashMap<String, u32>,
        corpus: &Corpus,
        covered: &[bool],
    ) {
        self.clear(rows.len());
        let mean = corpus.mean(corpus.words as f32);
        let mean_window = corpus.mean(corpus.window_words as f32 / WINDOW_UNIT as f32);
        // In a fixed order, so that equal queries have equal scores to the last bit.
        let mut words: Vec<_> = words.iter().collect();
        words.sort_unstable();
        for (word, times) in words {
            let Some(postings) = index.terms.get(word.as_str()) else { continue };
            // A row that there is not is in a checkpoint that nobody here wrote.
            let is_covered = |row: u32| rows.get(row).is_some_and(|row| covered[row.leaf as usize]);
            let found: Vec<(u32, u32)> = postings.iter().filter(|(row, _)| is_covered(*row)).collect();
            let weight = *times as f32 * corpus.rarity(found.len());
            for (row, count) in &found {
                let words = rows.row(*row).words as f32;
                self.turn[*row as usize] += weight * saturated(*count as f32, words, mean);
            }
            for row in self.count_windows(rows, &found) {
                let count = words_of(std::mem::take(&mut self.units[row as usize]));
                let score = saturated(count, words_of(rows.row(row).window_words), mean_window);
                if self.window[row as usize] == 0.0 {
                    self.touched.push(row);
                }
                self.window[row as usize] += weight * score;
            }
        }
    }

    /// Counts the word for the windows that it is in; which those are. A window is of one
    /// session, and so of one leaf: what is covered stays so.
    fn count_windows(&mut self, rows: &Rows, found: &[(u32, u32)]) -> Vec<u32> {
        let mut near = Vec::with_capacity(found.len());
        for (row, count) in found {
            // Windows are symmetric: those that a row is in are those in its own.
            for (middle, weight) in rows.window(*row) {
                let units = &mut self.units[middle as usize];
                if *units == 0 {
                    near.push(middle);
                }
                *units = units.saturating_add(count.saturating_mul(weight));
            }
        }
        near
    }

    fn clear(&mut self, rows: usize) {
        for row in self.touched.drain(..) {
            self.turn[row as usize] = 0.0;
            self.window[row as usize] = 0.0;
        }
        self.turn.resize(rows, 0.0);
        self.window.resize(rows, 0.0);
        self.units.resize(rows, 0);
    }

    /// Rows whose window has a word of the query; in no order.
    pub(super) fn touched(&self) -> &[u32] {
        &self.touched
    }

    /// Scores of the memory and of its window.
    pub(super) fn of(&self, row: u32) -> (f32, f32) {
        (self.turn[row as usize], self.window[row as usize])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn postings_read_back(steps in prop::collection::vec((1_u32..1 << 20, 1_u32..300), 0..200)) {
            let mut postings = Postings::default();
            let mut expected = Vec::new();
            let mut row = 0;
            for (step, count) in steps {
                postings.push(row, count);
                expected.push((row, count));
                row += step;
            }
            prop_assert_eq!(postings.iter().collect::<Vec<_>>(), expected);
        }

        #[test]
        fn any_bytes_are_postings_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = Postings { bytes, last: 0 }.iter().count();
        }
    }
}
