//! Recall: which of the memories that a scope covers answer a query.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use super::fusion::{Signals, Spreads, WINDOW_UNIT, Weights};
use super::memory::{Memory, When, check_vector};
use super::rows::{Row, Rows};
use super::scope::Scope;
use super::text::{Corpus, TextScores};
use super::user::User;
use super::vectors::Vectors;
use crate::error::{Error, Result};

/// Most memories that one call gives.
pub const RECALL_MAX: usize = 10_000;

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
}

/// A memory that was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Hit {
    /// The memory.
    pub memory: Memory,
    /// Weighted sum of how far each signal is above its mean over the scope, in deviations.
    pub score: f32,
    /// The signals that the score is made of.
    pub signals: Signals,
}

/// A row that may be given.
struct Candidate {
    score: f32,
    row: u32,
    signals: Signals,
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
        self.check(query)?;
        let when = query.when.unwrap_or_else(|| When::now(now));
        let covered = self.rows.covered(scope.names());
        let visible = |row: &Row| covered[row.leaf as usize] && row.is_present(&when, now);
        let corpus = Corpus::of(&self.rows, &covered);
        let words = query.text.as_deref().map_or_else(HashMap::new, |text| self.words.count(text));
        self.scores.score(&self.rows, &self.index, &words, &corpus, &covered);
        let cosines = match &query.vector {
            Some(vector) => {
                self.load_vectors(vector.len())?;
                self.vectors.as_ref().map(|vectors| (vectors, cosines(&self.rows, vectors, vector, &covered)))
            }
            None => None,
        };
        let signals = Rated { rows: &self.rows, text: &self.scores, cosines: cosines.as_ref() };
        let best = signals.rank(&corpus, &query.weights, visible);
        self.tell(best, query.k)
    }

    fn check(&self, query: &Query) -> Result<()> {
        if query.text.is_none() && query.vector.is_none() {
            return Err(Error::Invalid("a query needs a text, a vector, or both".into()));
        }
        if !(1..=RECALL_MAX).contains(&query.k) {
            return Err(Error::Invalid(format!("k={}: accepted are 1 to {RECALL_MAX}", query.k)));
        }
        if !query.weights.are_usable() {
            return Err(Error::Invalid(
                "weights are finite numbers from 0 on, and one at least is more than 0".into(),
            ));
        }
        query.vector.as_deref().map_or(Ok(()), |vector| check_vector(vector, self.home.dimension))
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

/// Cosines of all rows that are covered and have a vector; NaN for the others.
fn cosines(rows: &Rows, vectors: &Vectors, query: &[f32], covered: &[bool]) -> Vec<f32> {
    let query = vectors.query(query);
    let mut cosines = vec![f32::NAN; rows.len()];
    let counts = |row: usize| {
        let row = rows.row(row as u32);
        row.has_vector && covered[row.leaf as usize]
    };
    let mut first = 0;
    while first < rows.len() {
        let run = (first..rows.len()).take_while(|row| counts(*row)).count();
        vectors.cosines(&query, first, &mut cosines[first..first + run]);
        first += run + 1;
    }
    cosines
}

/// All signals of one query.
struct Rated<'a> {
    rows: &'a Rows,
    text: &'a TextScores,
    cosines: Option<&'a (&'a Vectors, Vec<f32>)>,
}

impl Rated<'_> {
    fn cosine(&self, row: u32) -> Option<f32> {
        let cosine = *self.cosines?.1.get(row as usize)?;
        (!cosine.is_nan()).then_some(cosine)
    }

    /// Cosine of the window's sum, for rows that have a vector themselves.
    fn cosine_window(&self, row: u32) -> Option<f32> {
        self.cosine(row)?;
        let products = self.rows.window(row);
        let products = products.map(|(member, units)| units as f32 * self.cosine(member).unwrap_or(0.0));
        Some(products.sum::<f32>() / WINDOW_UNIT as f32 / self.cosines?.0.window_length(row))
    }

    fn signals(&self, row: u32) -> Signals {
        let (bm25, bm25_window) = self.text.of(row);
        Signals {
            bm25,
            bm25_window,
            cosine: self.cosine(row).unwrap_or(f32::NAN),
            cosine_window: self.cosine_window(row).unwrap_or(f32::NAN),
        }
    }

    /// All rows that may be given, as a heap.
    fn rank(
        &self,
        corpus: &Corpus,
        weights: &Weights,
        visible: impl Fn(&Row) -> bool,
    ) -> BinaryHeap<Candidate> {
        let all = self.cosines.map_or(0, |(_, cosines)| cosines.len() as u32);
        let with_vector = (0..all).filter(|row| self.cosine(*row).is_some());
        let with_words = self.text.touched().iter().copied().filter(|row| self.cosine(*row).is_none());
        let rows = with_vector.chain(with_words).filter(|row| visible(self.rows.row(*row)));
        let rows: Vec<u32> = rows.collect();
        let spreads = self.spreads(&rows, corpus);
        let candidate = |row: u32| {
            let signals = self.signals(row);
            Candidate { score: spreads.score(&signals, weights), row, signals: signals.told() }
        };
        rows.into_iter().map(candidate).collect()
    }

    fn spreads(&self, rows: &[u32], corpus: &Corpus) -> Spreads {
        let mut spreads = Spreads::default();
        for row in rows {
            let signals = self.signals(*row);
            spreads.bm25.add(signals.bm25);
            spreads.bm25_window.add(signals.bm25_window);
            if !signals.cosine.is_nan() {
                spreads.cosine.add(signals.cosine);
                spreads.cosine_window.add(signals.cosine_window);
            }
        }
        spreads.bm25.fill_up_to(corpus.rows);
        spreads.bm25_window.fill_up_to(corpus.rows);
        spreads
    }
}
