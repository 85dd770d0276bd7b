//! Which of a user's memories have a word.

use std::collections::HashMap;

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
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, u32)> {
        let mut bytes = self.bytes.as_slice();
        let mut row = 0_u32;
        std::iter::from_fn(move || {
            row = row.checked_add(take_varint(&mut bytes)?)?;
            Some((row, take_varint(&mut bytes)?))
        })
    }

    /// How many rows have it: every number ends with a byte that says so.
    pub(super) fn rows(&self) -> usize {
        self.bytes.iter().filter(|byte| **byte < 0x80).count() / 2
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

    pub(super) fn of(&self, word: &str) -> Option<&Postings> {
        self.terms.get(word)
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
            prop_assert_eq!(postings.rows(), expected.len());
            prop_assert_eq!(postings.iter().collect::<Vec<_>>(), expected);
        }

        #[test]
        fn any_bytes_are_postings_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = Postings { bytes, last: 0 }.iter().count();
        }
    }
}
