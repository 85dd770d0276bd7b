//! Which of a user's memories have a word, and BM25 over those that a query may see.
//!
//! All counts that BM25 needs are those of the scope that is asked: how often a word occurs
//! elsewhere changes no score, and tells nothing.

use std::collections::HashMap;

use super::fusion::{BM25_B, BM25_K1};
use super::rows::{NONE, Row, Rows};

/// Words of a user's memories, by stem.
#[derive(Debug, Default)]
pub(super) struct TextIndex {
    terms: HashMap<Box<str>, Postings>,
}

/// The rows that have a word, ascending, as steps and counts of 7 bits a byte.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Postings {
    pub(super) bytes: Vec<u8>,
    pub(super) last: u32,
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

    fn mean(&self, words: u64) -> f32 {
        (words as f32 / self.rows.max(1) as f32).max(1.0)
    }
}

/// What a word adds that occurs `count` times among `words`.
fn saturated(count: u32, words: u32, mean_words: f32) -> f32 {
    let count = count as f32;
    let length = 1.0 - BM25_B + BM25_B * words as f32 / mean_words;
    count * (BM25_K1 + 1.0) / (count + BM25_K1 * length)
}

/// BM25 of every row for one query, kept between queries: clearing costs what was touched.
#[derive(Debug, Default)]
pub(super) struct TextScores {
    turn: Vec<f32>,
    window: Vec<f32>,
    /// How often the windows have the word at hand.
    counts: Vec<u32>,
    touched: Vec<u32>,
}

impl TextScores {
    /// Scores the rows that `visible` lets through, and forgets the query before.
    pub(super) fn score(
        &mut self,
        rows: &Rows,
        index: &TextIndex,
        words: &HashMap<String, u32>,
        corpus: &Corpus,
        visible: impl Fn(&Row) -> bool,
    ) {
        self.clear(rows.len());
        let (mean, mean_window) = (corpus.mean(corpus.words), corpus.mean(corpus.window_words));
        // In a fixed order, so that equal queries have equal scores to the last bit.
        let mut words: Vec<_> = words.iter().collect();
        words.sort_unstable();
        for (word, times) in words {
            let Some(postings) = index.terms.get(word.as_str()) else { continue };
            let found: Vec<(u32, u32)> = postings.iter().filter(|(row, _)| visible(rows.row(*row))).collect();
            let weight = *times as f32 * corpus.rarity(found.len());
            for (row, count) in &found {
                self.turn[*row as usize] += weight * saturated(*count, rows.row(*row).words, mean);
            }
            let near = self.count_windows(rows, &found, &visible);
            let weight = *times as f32 * corpus.rarity(near.len());
            for row in near {
                let score = saturated(self.counts[row as usize], window_words(rows, row), mean_window);
                self.counts[row as usize] = 0;
                if self.window[row as usize] == 0.0 {
                    self.touched.push(row);
                }
                self.window[row as usize] += weight * score;
            }
        }
    }

    /// Counts the word for the windows that it is in; which those are.
    fn count_windows(
        &mut self,
        rows: &Rows,
        found: &[(u32, u32)],
        visible: &impl Fn(&Row) -> bool,
    ) -> Vec<u32> {
        let mut near = Vec::with_capacity(found.len());
        for (row, count) in found {
            let Row { previous, next, .. } = *rows.row(*row);
            for (in_window, is_itself) in [(previous, false), (*row, true), (next, false)] {
                if in_window == NONE || !(is_itself || visible(rows.row(in_window))) {
                    continue;
                }
                if self.counts[in_window as usize] == 0 {
                    near.push(in_window);
                }
                self.counts[in_window as usize] = self.counts[in_window as usize].saturating_add(*count);
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
        self.counts.resize(rows, 0);
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

fn window_words(rows: &Rows, row: u32) -> u32 {
    let words = |row: u32| if row == NONE { 0 } else { rows.row(row).words };
    let Row { previous, next, words: own, .. } = *rows.row(row);
    own.saturating_add(words(previous)).saturating_add(words(next))
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
