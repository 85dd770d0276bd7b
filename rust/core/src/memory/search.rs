//! Recall: which of the memories that a scope covers answer a query.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::bm25::{Corpus, Searched, TextScores};
use super::clues::Clues;
use super::cosines::Cosines;
use super::fusion::{Ranges, Signals, Weights};
use super::graph::Graph;
use super::memory::{Memory, When, check_vector};
use super::rows::Rows;
use super::scope::Scope;
use super::user::User;
use crate::error::{Error, Result};

/// Most memories that one call gives.
pub const RECALL_MAX: usize = 10_000;

/// Fewest rows that are rated of the nearest, and of the best by words.
const POOL_MIN: usize = 128;
/// How many times as many rows are found by words as are rated, since not all may be visible.
const BETTER_PART: usize = 4;

/// What is asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Query {
    /// Words to look for.
    pub text: Option<String>,
    /// The text's embedding. Without one, only memories that have a word of the text, or are
    /// beside one that has, are found.
    pub vector: Option<Vec<f32>>,
    /// How many memories, 1 to 10,000.
    pub k: usize,
    /// What counts as present; what is true now if not given.
    pub when: Option<When>,
    /// What each signal counts.
    pub weights: Weights,
}

impl Query {
    /// The `k` best memories for a text.
    pub fn new(text: impl Into<String>, k: usize) -> Self {
        Self { text: Some(text.into()), vector: None, k, when: None, weights: Weights::default() }
    }

    /// How many are rated of the nearest, and of the best by words.
    pub(super) fn pool(&self) -> usize {
        POOL_MIN.max(2 * self.k)
    }

    /// Whether it can be asked of a store whose vectors have so many elements.
    ///
    /// # Errors
    /// `Invalid`.
    pub(super) fn check(&self, dimension: Option<usize>) -> Result<()> {
        if self.text.is_none() && self.vector.is_none() {
            return Err(Error::Invalid("a query needs a text, a vector, or both".into()));
        }
        if !(1..=RECALL_MAX).contains(&self.k) {
            return Err(Error::Invalid(format!("k={}: accepted are 1 to {RECALL_MAX}", self.k)));
        }
        if !self.weights.are_usable() {
            return Err(Error::Invalid("weights are finite numbers, and one at least is not 0".into()));
        }
        self.vector.as_deref().map_or(Ok(()), |vector| check_vector(vector, dimension))
    }
}

/// A memory that was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Hit {
    /// The memory.
    pub memory: Memory,
    /// Weighted sum of where each signal is among the memories that were rated, 0 to 1.
    pub score: f32,
    /// The signals that the score is made of.
    pub signals: Signals,
}

/// A row that may be given.
pub(super) struct Candidate {
    pub(super) score: f32,
    pub(super) row: u32,
    pub(super) signals: Signals,
}

impl Ord for Candidate {
    /// By score; of equal ones the later is the greater.
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(self.row.cmp(&other.row))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}

impl User {
    /// The best memories for a query, the best first.
    ///
    /// # Errors
    /// `Invalid`, `Io`.
    pub(super) fn recall(&mut self, scope: &Scope, query: &Query, now: i64) -> Result<Vec<Hit>> {
        query.check(self.home.dimension)?;
        if let Some(vector) = &query.vector {
            self.load_vectors(vector.len())?;
        }
        let mut scores = std::mem::take(&mut self.scores);
        let best = self.best(scope, query, now, &mut scores);
        self.scores = scores;
        self.tell(best?, query.k)
    }

    /// Rows that are rated, the best on top.
    fn best(
        &self,
        scope: &Scope,
        query: &Query,
        now: i64,
        scores: &mut TextScores,
    ) -> Result<BinaryHeap<Candidate>> {
        let when = query.when.unwrap_or_else(|| When::now(now));
        let covered = self.rows.covered(scope.names());
        let corpus = Corpus::of(&self.rows, &covered);
        let authors = self.rows.authors_of(&covered);
        let text = query.text.as_deref().unwrap_or_default();
        let (words, clues) = (self.words.asked(text, &authors), Clues::of(text, &authors));
        let visible = |row: u32| {
            let row = self.rows.row(row);
            covered[row.leaf as usize] && self.rows.is_present(row, &when, now)
        };
        let pool = query.pool();
        let cosines = self.cosines(query, &covered, &corpus);
        let near = cosines.as_ref().map_or(Ok(Vec::new()), |all| self.nearest(all, pool, &visible))?;
        let searched = Searched { rows: &self.rows, index: &self.index, covered: &covered, corpus };
        scores.score(&searched, &words, BETTER_PART * pool);
        let mut rows = scores.best(&searched, pool, &near, visible);
        rows.extend(near);
        rows.sort_unstable();
        rows.dedup();
        Ok(Rated { rows: &self.rows, text: scores, clues: &clues, cosines }.rank(&rows, &query.weights))
    }

    /// Cosines with a query, all of them taken where every vector is looked at.
    fn cosines<'a>(&'a self, query: &Query, covered: &'a [bool], corpus: &Corpus) -> Option<Cosines<'a>> {
        let vectors = self.vectors.as_ref()?;
        let cosines = Cosines::new(&self.rows, vectors, query.vector.as_ref()?, covered);
        Some(if self.asks_graph(corpus) { cosines } else { cosines.all() })
    }

    fn asks_graph(&self, corpus: &Corpus) -> bool {
        let unindexed = |graph: &Graph| self.rows.len() - graph.rows();
        corpus.rows > self.home.exact_rows_max as u64
            && self.graph.as_ref().is_some_and(|graph| unindexed(graph) <= self.home.exact_rows_max)
    }

    /// The nearest visible rows: of all, or as the graph has them, with those that are not in it yet.
    fn nearest(
        &self,
        cosines: &Cosines<'_>,
        count: usize,
        visible: &impl Fn(u32) -> bool,
    ) -> Result<Vec<u32>> {
        let Some(graph) = self.graph.as_ref().filter(|_| !cosines.are_all()) else {
            return Ok(cosines.nearest(0, count, visible));
        };
        let is_visible = |row: u32| self.rows.get(row).is_some() && visible(row);
        let mut rows = graph.nearest(cosines.query(), count, is_visible)?;
        if rows.len() < count {
            // A graph of which little is visible may miss some that are.
            return Ok(cosines.nearest(0, count, visible));
        }
        rows.extend(cosines.nearest(graph.rows(), count, visible));
        Ok(rows)
    }

    /// Reads the best from the log, stepping over those whose records do not hold any more.
    fn tell(&mut self, mut best: BinaryHeap<Candidate>, k: usize) -> Result<Vec<Hit>> {
        let mut hits = Vec::with_capacity(k.min(best.len()));
        while hits.len() < k
            && let Some(Candidate { score, row, signals }) = best.pop()
        {
            let memory = self.memory(row)?;
            hits.extend(memory.map(|memory| Hit { memory, score, signals }));
        }
        Ok(hits)
    }
}

/// All signals of one query.
struct Rated<'a> {
    rows: &'a Rows,
    text: &'a TextScores,
    clues: &'a Clues,
    cosines: Option<Cosines<'a>>,
}

impl Rated<'_> {
    fn signals(&self, row: u32) -> Signals {
        let (bm25, bm25_window) = self.text.of(row);
        let cosines = self.cosines.as_ref();
        let known = |cosine: Option<f32>| cosine.unwrap_or(f32::NAN);
        Signals {
            bm25,
            bm25_window,
            cosine: known(cosines.and_then(|cosines| cosines.of(row))),
            cosine_window: known(cosines.and_then(|cosines| cosines.of_window(row))),
            ..self.clues.of_row(self.rows, row)
        }
    }

    /// Some rows as a heap, the best on top.
    fn rank(&self, rows: &[u32], weights: &Weights) -> BinaryHeap<Candidate> {
        let signals: Vec<Signals> = rows.iter().map(|row| self.signals(*row)).collect();
        ranked(rows.iter().copied(), &signals, weights)
    }
}

/// Rows with their signals as a heap, the best on top; of equal ones the later row.
pub(super) fn ranked(
    rows: impl Iterator<Item = u32>,
    signals: &[Signals],
    weights: &Weights,
) -> BinaryHeap<Candidate> {
    let ranges = Ranges::of(signals);
    let candidates = rows.zip(signals).map(|(row, signals)| {
        let score = ranges.score(signals, weights);
        Candidate { score, row, signals: signals.told() }
    });
    candidates.collect()
}
