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
use crate::simd::prefetch;

/// A word that this many times as many rows have as are wanted is worth leaving for later.
const COMMON: usize = 8;
/// Rows from the one at hand to the one that is asked for, since they are far apart in memory.
const AHEAD: usize = 8;
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
#[derive(Clone, Copy, Debug)]
struct Score {
    row: u32,
    turn: f32,
    window: f32,
    /// Words of the window.
    words: f32,
    /// Units of the word at hand in the window.
    units: u32,
}

/// BM25 of every row for one query, kept between queries: clearing costs what was touched.
#[derive(Debug, Default)]
pub(super) struct TextScores {
    /// Of the rows whose window has a word of those that were counted, in the order in which they were
    /// met: what is looked through stands together.
    scores: Vec<Score>,
    /// Of each row, one more than the place of its score; 0 without one.
    places: Vec<u32>,
    /// Words that are not counted yet.
    deferred: Vec<Asked>,
    /// What they add at most.
    rest: f32,
    /// What so many rows as are of interest have so far.
    least: f32,
    /// Rows near those that are rated, while deferred words are counted.
    near: Vec<bool>,
    /// Rows that have the word at hand, and how often.
    having: Vec<(u32, u32)>,
    /// Places of the windows that it is in.
    middles: Vec<u32>,
    /// Scores among which the least one is looked for.
    windows: Vec<f32>,
}

impl TextScores {
    /// Scores the rows of the covered leaves, of which `keep` are of interest, and forgets the
    /// query before.
    pub(super) fn score(&mut self, searched: &Searched<'_>, words: &HashMap<String, u32>, keep: usize) {
        self.clear(searched.rows.len());
        let mut asked = asked(searched, words);
        self.rest = asked.iter().map(Asked::most).sum::<f32>() * SLACK;
        let mut counted = 0;
        while counted < asked.len() && !self.can_wait(&asked[counted], keep) {
            self.count_word(searched, &asked[counted], false);
            counted += 1;
            self.rest = asked[counted..].iter().map(Asked::most).sum::<f32>() * SLACK;
        }
        self.deferred = asked.split_off(counted);
        if self.deferred.is_empty() {
            self.raise_least(keep);
        }
    }

    /// Whether the next word, and those after it, are better counted for the rows that are rated only.
    fn can_wait(&mut self, next: &Asked, keep: usize) -> bool {
        if next.rows <= COMMON * keep {
            return false;
        }
        self.raise_least(keep);
        self.least > self.rest && self.promising().count() < next.rows
    }

    /// The best of the visible rows. What these and the `others` have is known then.
    pub(super) fn best(
        &mut self,
        searched: &Searched<'_>,
        count: usize,
        others: &[u32],
        visible: impl Fn(u32) -> bool,
    ) -> Vec<u32> {
        // Every row that will have the least is promising now; if so many visible ones have it already,
        // no other is among the best.
        let least = self.least;
        let reaching = self.scores.iter().filter(|score| score.window >= least);
        let is_enough = reaching.filter(|score| visible(score.row)).take(count).count() == count;
        let least = if is_enough { least } else { f32::NEG_INFINITY };
        self.count_deferred(searched, is_enough.then_some(others));
        let mut best: Vec<Score> =
            self.scores.iter().filter(|score| score.window >= least).copied().collect();
        best.sort_unstable_by(|a, b| b.window.total_cmp(&a.window).then(a.row.cmp(&b.row)));
        best.iter().map(|score| score.row).filter(|row| visible(*row)).take(count).collect()
    }

    /// Scores of a memory and of its window, after [`TextScores::best`].
    pub(super) fn of(&self, row: u32) -> (f32, f32) {
        let place = self.places[row as usize].checked_sub(1);
        place.map_or((0.0, 0.0), |place| {
            let Score { turn, window, .. } = self.scores[place as usize];
            (turn, window)
        })
    }

    /// Rows that may come to have the least.
    fn promising(&self) -> impl Iterator<Item = u32> + '_ {
        let bound = self.least - self.rest;
        self.scores.iter().filter(move |score| score.window >= bound).map(|score| score.row)
    }

    /// Finds what the last of the `keep` best has. Scores only grow, so it is at least what it was.
    fn raise_least(&mut self, keep: usize) {
        let reaching = self.scores.iter().map(|score| score.window).filter(|window| *window >= self.least);
        self.windows.clear();
        self.windows.extend(reaching);
        if self.windows.len() >= keep {
            self.least = *self.windows.select_nth_unstable_by(keep - 1, |a, b| b.total_cmp(a)).1;
        }
    }

    /// Counts the deferred words: for the rows that are promising and some others, or for all.
    fn count_deferred(&mut self, searched: &Searched<'_>, others: Option<&[u32]>) {
        let deferred = std::mem::take(&mut self.deferred);
        if deferred.is_empty() {
            return;
        }
        let rated: Vec<u32> =
            others.iter().flat_map(|others| self.promising().chain(others.iter().copied())).collect();
        self.mark_near(searched.rows, &rated, true);
        for word in &deferred {
            self.count_word(searched, word, others.is_some());
        }
        self.mark_near(searched.rows, &rated, false);
    }

    fn mark_near(&mut self, rows: &Rows, rated: &[u32], is_near: bool) {
        for (member, _) in rated.iter().flat_map(|row| rows.window(*row)) {
            self.near[member as usize] = is_near;
        }
    }

    /// Adds what a word counts, in the windows near the rows that are rated or in all.
    fn count_word(&mut self, searched: &Searched<'_>, asked: &Asked, only_near: bool) {
        let (rows, corpus) = (searched.rows, &searched.corpus);
        let (mean, mean_window) = (corpus.mean_words(), corpus.mean_window_words());
        let mut middles = std::mem::take(&mut self.middles);
        let mut having = std::mem::take(&mut self.having);
        having.clear();
        having.extend(searched.having(&asked.word).filter(|(row, _)| !only_near || self.near[*row as usize]));
        for (index, (row, count)) in having.iter().copied().enumerate() {
            if let Some((later, _)) = having.get(index + AHEAD) {
                rows.prefetch_window(*later);
                prefetch(&self.places[*later as usize..=*later as usize]);
            }
            let words = rows.turn(row).words as f32;
            self.score_of(rows, row).1.turn += asked.weight * saturated(count as f32, words, mean);
            // Windows are symmetric: those that a row is in are those in its own. A window is of
            // one session, and so of one leaf: what is covered stays so.
            for (middle, weight) in rows.window(row) {
                let (place, score) = self.score_of(rows, middle);
                if score.units == 0 {
                    middles.push(place);
                }
                score.units = score.units.saturating_add(count.saturating_mul(weight));
            }
        }
        for place in middles.drain(..) {
            let score = &mut self.scores[place as usize];
            let count = words_of(std::mem::take(&mut score.units));
            score.window += asked.weight * saturated(count, score.words, mean_window);
        }
        (self.middles, self.having) = (middles, having);
    }

    /// A row's score, and its place.
    fn score_of(&mut self, rows: &Rows, row: u32) -> (u32, &mut Score) {
        let place = &mut self.places[row as usize];
        if *place == 0 {
            let words = words_of(rows.turn(row).window_words);
            self.scores.push(Score { row, turn: 0.0, window: 0.0, words, units: 0 });
            *place = self.scores.len() as u32;
        }
        (*place - 1, &mut self.scores[*place as usize - 1])
    }

    fn clear(&mut self, rows: usize) {
        for score in self.scores.drain(..) {
            self.places[score.row as usize] = 0;
        }
        self.least = 0.0;
        self.places.resize(rows, 0);
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
        assert_eq!((scores.scores.len(), scores.deferred.len()), (10, 1));
        assert_eq!(scores.best(&searched, 4, &[], |_| true).len(), 4);
    }
}
