//! BM25 over the memories that a scope covers, each with its window.
//!
//! All counts that BM25 needs are those of the scope that is asked: how often a word occurs
//! elsewhere changes no score, and tells nothing.
//!
//! The words that tell most are looked up first. Once those that are left cannot together bring a row
//! among the best that has none of the words before, they are counted for the rows that are
//! rated only (MaxScore: Turtle and Flood 1995). The best are the same, and so are their scores.

use std::collections::HashMap;

use super::fusion::{BM25_B, BM25_K1, WINDOW_UNIT};
use super::rows::Rows;
use super::text::{Postings, TextIndex};

/// A word that this many times as many rows have as are wanted is worth leaving for later.
const COMMON: usize = 8;
/// Sums of float32 are compared with a bound of theirs.
const SLACK: f32 = 1.001;

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

    fn mean_words(&self) -> f32 {
        self.mean(self.words as f32)
    }

    fn mean_window_words(&self) -> f32 {
        self.mean(self.window_words as f32 / WINDOW_UNIT as f32)
    }
}

/// What a word adds that occurs `count` times among `words`; less than [`SATURATED_MAX`].
fn saturated(count: f32, words: f32, mean_words: f32) -> f32 {
    let length = 1.0 - BM25_B + BM25_B * words / mean_words;
    count * (BM25_K1 + 1.0) / (count + BM25_K1 * length)
}

const SATURATED_MAX: f32 = BM25_K1 + 1.0;

/// A count of units as a number of words.
fn words_of(units: u32) -> f32 {
    units as f32 / WINDOW_UNIT as f32
}

/// Where a query looks.
#[derive(Clone, Copy)]
pub(super) struct Searched<'a> {
    pub(super) rows: &'a Rows,
    pub(super) index: &'a TextIndex,
    /// Of each leaf, whether the scope covers it.
    pub(super) covered: &'a [bool],
    pub(super) corpus: Corpus,
}

impl Searched<'_> {
    /// Rows that have a word, and how often.
    fn having(&self, word: &str) -> impl Iterator<Item = (u32, u32)> {
        let everything = self.covers_all();
        // A row that there is not is in a checkpoint that nobody here wrote.
        let covers = move |row: u32| match self.rows.get(row) {
            Some(row) => everything || self.covered[row.leaf as usize],
            None => false,
        };
        let postings = self.index.of(word).map(Postings::iter);
        postings.into_iter().flatten().filter(move |(row, _)| covers(*row))
    }

    fn count(&self, word: &str) -> usize {
        if self.covers_all() {
            return self.index.of(word).map_or(0, Postings::rows);
        }
        self.having(word).count()
    }

    fn covers_all(&self) -> bool {
        self.covered.iter().all(|covered| *covered)
    }
}

/// A word of a query.
#[derive(Debug)]
struct Asked {
    word: String,
    /// How many memories have it.
    rows: usize,
    /// What it counts: its rarity, as often as it is asked for.
    weight: f32,
}

/// What a row has of a query.
#[derive(Clone, Copy, Debug, Default)]
struct Score {
    turn: f32,
    window: f32,
    /// Units of the word at hand in the window.
    units: u32,
}

/// BM25 of every row for one query, kept between queries: clearing costs what was touched.
#[derive(Debug, Default)]
pub(super) struct TextScores {
    scores: Vec<Score>,
    /// Rows whose window has a word of those that were counted; in no order.
    touched: Vec<u32>,
    /// Words that are not counted yet.
    deferred: Vec<Asked>,
    /// What they add at most.
    rest: f32,
    /// What the last of the best rows has so far.
    least: f32,
    /// Rows near those that are rated, while deferred words are counted.
    near: Vec<bool>,
    /// Windows that the word at hand is in.
    middles: Vec<u32>,
}

impl TextScores {
    /// Scores the rows of the covered leaves, of which `keep` are of interest, and forgets the
    /// query before.
    pub(super) fn score(&mut self, searched: &Searched<'_>, words: &HashMap<String, u32>, keep: usize) {
        self.clear(searched.rows.len());
        let mut asked = asked(searched, words);
        self.rest = asked.iter().map(Asked::most).sum::<f32>() * SLACK;
        let mut counted = 0;
        while counted < asked.len() {
            if asked[counted].rows > COMMON * keep {
                self.least = self.least_of(keep);
                if self.least > self.rest {
                    break;
                }
            }
            self.count_word(searched, &asked[counted], false);
            counted += 1;
            self.rest = asked[counted..].iter().map(Asked::most).sum::<f32>() * SLACK;
        }
        self.least = self.least_of(keep);
        self.deferred = asked.split_off(counted);
    }

    /// The best of the visible rows. What these and the `others` have is known then.
    pub(super) fn best(
        &mut self,
        searched: &Searched<'_>,
        count: usize,
        others: &[u32],
        visible: impl Fn(u32) -> bool,
    ) -> Vec<u32> {
        let (least, rest) = (self.least, self.rest);
        let window = |scores: &Self, row: u32| scores.scores[row as usize].window;
        let mut best = self.touched.clone();
        best.retain(|row| window(self, *row) >= least - rest && visible(*row));
        if best.iter().filter(|row| window(self, **row) >= least).count() < count {
            // Too few of the best are visible: no bound holds for the others.
            self.count_deferred(searched, None);
            best = self.touched.iter().copied().filter(|row| visible(*row)).collect();
        } else {
            self.count_deferred(searched, Some(&[&best, others]));
        }
        if best.len() > count {
            best.select_nth_unstable_by(count, |a, b| window(self, *b).total_cmp(&window(self, *a)));
            best.truncate(count);
        }
        best
    }

    /// Scores of a memory and of its window, after [`TextScores::best`].
    pub(super) fn of(&self, row: u32) -> (f32, f32) {
        let Score { turn, window, .. } = self.scores[row as usize];
        (turn, window)
    }

    /// What the last of the `keep` best has; 0 where there are fewer.
    fn least_of(&self, keep: usize) -> f32 {
        if self.touched.len() < keep {
            return 0.0;
        }
        let mut windows: Vec<f32> =
            self.touched.iter().map(|row| self.scores[*row as usize].window).collect();
        *windows.select_nth_unstable_by(keep - 1, |a, b| b.total_cmp(a)).1
    }

    /// Counts the deferred words for some rows, or for all.
    fn count_deferred(&mut self, searched: &Searched<'_>, some: Option<&[&[u32]]>) {
        let deferred = std::mem::take(&mut self.deferred);
        if deferred.is_empty() {
            return;
        }
        for row in some.into_iter().flatten().copied().flatten() {
            for (member, _) in searched.rows.window(*row) {
                self.near[member as usize] = true;
            }
        }
        for word in &deferred {
            self.count_word(searched, word, some.is_some());
        }
        self.near.fill(false);
    }

    /// Adds what a word counts, in the windows near the rows that are rated or in all.
    fn count_word(&mut self, searched: &Searched<'_>, asked: &Asked, only_near: bool) {
        let (rows, corpus) = (searched.rows, &searched.corpus);
        let (mean, mean_window) = (corpus.mean_words(), corpus.mean_window_words());
        let mut middles = std::mem::take(&mut self.middles);
        for (row, count) in searched.having(&asked.word) {
            if only_near && !self.near[row as usize] {
                continue;
            }
            let words = rows.row(row).words as f32;
            self.scores[row as usize].turn += asked.weight * saturated(count as f32, words, mean);
            // Windows are symmetric: those that a row is in are those in its own. A window is of
            // one session, and so of one leaf: what is covered stays so.
            for (middle, weight) in rows.window(row) {
                let units = &mut self.scores[middle as usize].units;
                if *units == 0 {
                    middles.push(middle);
                }
                *units = units.saturating_add(count.saturating_mul(weight));
            }
        }
        for row in middles.drain(..) {
            let score = &mut self.scores[row as usize];
            let count = words_of(std::mem::take(&mut score.units));
            if score.window == 0.0 {
                self.touched.push(row);
            }
            let words = words_of(rows.row(row).window_words);
            score.window += asked.weight * saturated(count, words, mean_window);
        }
        self.middles = middles;
    }

    fn clear(&mut self, rows: usize) {
        for row in self.touched.drain(..) {
            self.scores[row as usize] = Score::default();
        }
        self.scores.resize(rows, Score::default());
        self.near.resize(rows, false);
    }
}

impl Asked {
    fn most(&self) -> f32 {
        self.weight * SATURATED_MAX
    }
}

/// The words of a query that somebody has, those that tell most first; in a fixed order, so that equal
/// queries have equal scores to the last bit.
fn asked(searched: &Searched<'_>, words: &HashMap<String, u32>) -> Vec<Asked> {
    let with_weight = |(word, times): (&String, &u32)| {
        let rows = searched.count(word);
        let weight = *times as f32 * searched.corpus.rarity(rows);
        (rows > 0).then(|| Asked { word: word.clone(), rows, weight })
    };
    let mut asked: Vec<Asked> = words.iter().filter_map(with_weight).collect();
    asked.sort_unstable_by(|a, b| b.weight.total_cmp(&a.weight).then_with(|| a.word.cmp(&b.word)));
    asked
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::memory::log::Place;
    use crate::memory::memory::{Draft, FOREVER};
    use crate::memory::scope::Names;

    /// Rows by their words, some in sessions, some in projects.
    fn filled(texts: &[(u8, Vec<u8>)]) -> (Rows, TextIndex) {
        let (mut rows, mut index) = (Rows::default(), TextIndex::default());
        for (row, (place, words)) in texts.iter().enumerate() {
            let session = (place & 1 == 1).then(|| format!("s{}", place >> 1));
            let names = Names { session, ..Names::default() };
            let stored = Draft::new("x").stored(&names, FOREVER - 1, None).unwrap();
            rows.push(row as u64 + 1, &stored, Place { offset: 0, bytes: 0 }, words.len() as u32);
            let mut counts = HashMap::new();
            for word in words {
                *counts.entry(format!("w{word}")).or_insert(0) += 1;
            }
            index.push(row as u32, &counts);
        }
        (rows, index)
    }

    /// Words of which the first are in nearly every text.
    fn words(count: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec((0_u8..12, 0_u8..12).prop_map(|(a, b)| a.min(b)), count)
    }

    proptest! {
        /// What is left for later changes neither the best nor a score.
        #[test]
        fn the_best_are_those_of_counting_every_word(
            texts in prop::collection::vec((0_u8..6, words(1..12)), 1..300),
            query in words(1..6),
            count in 1_usize..4,
            seen in 1_u32..4,
        ) {
            let (rows, index) = filled(&texts);
            let covered: Vec<bool> = (0..rows.leaves().len()).map(|leaf| leaf % 3 != 1).collect();
            let corpus = Corpus::of(&rows, &covered);
            let searched = Searched { rows: &rows, index: &index, covered: &covered, corpus };
            let words: HashMap<String, u32> = query.iter().map(|word| (format!("w{word}"), 1)).collect();
            let visible = |row: u32| row.is_multiple_of(seen);
            let mut all = TextScores::default();
            all.score(&searched, &words, usize::MAX / COMMON);
            let mut expected = all.best(&searched, usize::MAX, &[], visible);
            expected.sort_by(|a, b| all.of(*b).1.total_cmp(&all.of(*a).1));
            let mut some = TextScores::default();
            for _ in 0..2 {
                some.score(&searched, &words, 2 * count);
                let others = [0, rows.len() as u32 - 1];
                let mut best = some.best(&searched, count, &others, visible);
                best.sort_by(|a, b| some.of(*b).1.total_cmp(&some.of(*a).1));
                prop_assert_eq!(best.len(), expected.len().min(count));
                for (row, same) in best.iter().zip(&expected) {
                    // Of equal ones any.
                    prop_assert_eq!(some.of(*row).1.to_bits(), all.of(*same).1.to_bits());
                }
                for row in best.iter().chain(&others) {
                    prop_assert_eq!(some.of(*row), all.of(*row));
                }
            }
        }
    }

    #[test]
    fn common_words_are_left_for_later() {
        let mut texts: Vec<(u8, Vec<u8>)> = (0..200).map(|_| (0, vec![1, 2])).collect();
        texts.extend((0..10).map(|_| (0, vec![1, 3])));
        let (rows, index) = filled(&texts);
        let covered = vec![true; rows.leaves().len()];
        let searched =
            Searched { rows: &rows, index: &index, covered: &covered, corpus: Corpus::of(&rows, &covered) };
        let mut scores = TextScores::default();
        scores.score(&searched, &[("w1".into(), 1), ("w3".into(), 1)].into(), 4);
        assert_eq!((scores.touched.len(), scores.deferred.len()), (10, 1));
        assert_eq!(scores.best(&searched, 4, &[], |_| true).len(), 4);
    }
}
