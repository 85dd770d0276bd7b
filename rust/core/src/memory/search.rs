//! Recall: which of the memories that a scope covers answer a query.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap, HashSet};

use super::clues::Clues;
use super::fusion::{Ranges, Signals, WINDOW_UNIT, Weights};
use super::graph::Graph;
use super::memory::{Memory, When, check_vector};
use super::rows::{Row, Rows};
use super::scope::Scope;
use super::text::{Corpus, TextScores};
use super::user::User;
use super::vectors::Vectors;
use crate::error::{Error, Result};

/// Most memories that one call gives.
pub const RECALL_MAX: usize = 10_000;

/// Fewest rows that are rated of the nearest, and of the best by words.
const POOL_MIN: usize = 128;
/// How many times as many rows are asked whether they are visible as are wanted of the best.
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
        let corpus = Corpus::of(&self.rows, &covered);
        let authors = self.rows.authors_of(&covered);
        let text = query.text.as_deref().unwrap_or_default();
        let (words, clues) = (self.asked_words(text, &authors), Clues::of(text, &authors));
        self.scores.score(&self.rows, &self.index, &words, &corpus, &covered);
        if let Some(vector) = &query.vector {
            self.load_vectors(vector.len())?;
        }
        let visible = |row: &Row| covered[row.leaf as usize] && self.rows.is_present(row, &when, now);
        let rated = self.rated(query, &covered, &corpus, &clues);
        let rows = self.pool(&rated, query.k, visible)?;
        let best = rated.rank(&rows, &query.weights);
        self.tell(best, query.k)
    }

    /// All signals of a query, the exact cosines only where every vector is looked at.
    fn rated<'a>(
        &'a self,
        query: &Query,
        covered: &'a [bool],
        corpus: &Corpus,
        clues: &'a Clues,
    ) -> Rated<'a> {
        let cosines = match (&query.vector, &self.vectors) {
            (Some(vector), Some(vectors)) => {
                let query = vectors.query(vector);
                let values = if self.asks_graph(corpus) {
                    None
                } else {
                    Some(cosines(&self.rows, vectors, &query, covered))
                };
                Some(Cosines { vectors, query, values })
            }
            _ => None,
        };
        Rated { rows: &self.rows, text: &self.scores, covered, clues, cosines }
    }

    /// The words to look for. Authors' names are clues, not words, unless there are no others.
    fn asked_words(&self, text: &str, authors: &[(u32, &str)]) -> HashMap<String, u32> {
        let all = self.words.count(text);
        let names: HashSet<String> =
            authors.iter().flat_map(|(_, name)| self.words.count(name).into_keys()).collect();
        let others: HashMap<String, u32> = all
            .iter()
            .filter(|(word, _)| !names.contains(*word))
            .map(|(word, count)| (word.clone(), *count))
            .collect();
        if others.is_empty() { all } else { others }
    }

    fn asks_graph(&self, corpus: &Corpus) -> bool {
        let unindexed = |graph: &Graph| self.rows.len() - graph.rows();
        corpus.rows > self.home.exact_rows_max as u64
            && self.graph.as_ref().is_some_and(|graph| unindexed(graph) <= self.home.exact_rows_max)
    }

    /// The rows that are rated: the best by words, and the nearest.
    fn pool(&self, rated: &Rated<'_>, k: usize, visible: impl Fn(&Row) -> bool + Copy) -> Result<Vec<u32>> {
        let count = POOL_MIN.max(2 * k);
        let mut rows = match &rated.cosines {
            None => Vec::new(),
            Some(Cosines { values: Some(_), .. }) => rated.nearest(0, count, visible),
            Some(Cosines { query, .. }) => self.proposed(rated, query, count, visible)?,
        };
        rows.extend(rated.best_by_words(count, visible));
        rows.sort_unstable();
        rows.dedup();
        Ok(rows)
    }

    /// The nearest as the graph has them, and of those that are not in it yet.
    fn proposed(
        &self,
        rated: &Rated<'_>,
        query: &[f32],
        count: usize,
        visible: impl Fn(&Row) -> bool + Copy,
    ) -> Result<Vec<u32>> {
        let Some(graph) = &self.graph else { return Ok(Vec::new()) };
        let is_visible = |row: u32| self.rows.get(row).is_some_and(visible);
        let mut rows = graph.nearest(query, count, is_visible)?;
        if rows.len() < count {
            // A graph of which little is visible may miss some that are.
            return Ok(rated.nearest(0, count, visible));
        }
        rows.extend(rated.nearest(graph.rows(), count, visible));
        Ok(rows)
    }

    fn check(&self, query: &Query) -> Result<()> {
        if query.text.is_none() && query.vector.is_none() {
            return Err(Error::Invalid("a query needs a text, a vector, or both".into()));
        }
        if !(1..=RECALL_MAX).contains(&query.k) {
            return Err(Error::Invalid(format!("k={}: accepted are 1 to {RECALL_MAX}", query.k)));
        }
        if !query.weights.are_usable() {
            return Err(Error::Invalid("weights are finite numbers, and one at least is not 0".into()));
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
    let mut cosines = vec![f32::NAN; rows.len()];
    let counts = |row: usize| {
        let row = rows.row(row as u32);
        row.has_vector() && covered[row.leaf as usize]
    };
    let mut first = 0;
    while first < rows.len() {
        let run = (first..rows.len()).take_while(|row| counts(*row)).count();
        vectors.cosines(query, first, &mut cosines[first..first + run]);
        first += run + 1;
    }
    cosines
}

/// Cosines with one query.
struct Cosines<'a> {
    vectors: &'a Vectors,
    query: Vec<f32>,
    /// Of all rows, NaN for none; `None` where they are taken as they are needed.
    values: Option<Vec<f32>>,
}

/// All signals of one query.
struct Rated<'a> {
    rows: &'a Rows,
    text: &'a TextScores,
    covered: &'a [bool],
    clues: &'a Clues,
    cosines: Option<Cosines<'a>>,
}

impl Rated<'_> {
    fn cosine(&self, row: u32) -> Option<f32> {
        let Cosines { vectors, query, values } = self.cosines.as_ref()?;
        if let Some(values) = values {
            return values.get(row as usize).copied().filter(|cosine| !cosine.is_nan());
        }
        let here = self.rows.row(row);
        if !here.has_vector() || !self.covered[here.leaf as usize] {
            return None;
        }
        let mut cosine = [0.0];
        vectors.cosines(query, row as usize, &mut cosine);
        Some(cosine[0])
    }

    /// Cosine of the window's sum, for rows that have a vector themselves.
    fn cosine_window(&self, row: u32) -> Option<f32> {
        self.cosine(row)?;
        let products = self.rows.window(row);
        let products = products.map(|(member, units)| units as f32 * self.cosine(member).unwrap_or(0.0));
        let length = self.cosines.as_ref()?.vectors.window_length(row);
        Some(products.sum::<f32>() / WINDOW_UNIT as f32 / length)
    }

    fn signals(&self, row: u32) -> Signals {
        let (bm25, bm25_window) = self.text.of(row);
        Signals {
            bm25,
            bm25_window,
            cosine: self.cosine(row).unwrap_or(f32::NAN),
            cosine_window: self.cosine_window(row).unwrap_or(f32::NAN),
            ..self.clues.of_row(self.rows, row)
        }
    }

    /// The nearest visible rows from `first` on.
    fn nearest(&self, first: usize, count: usize, visible: impl Fn(&Row) -> bool) -> Vec<u32> {
        let rows = first as u32..self.rows.len() as u32;
        let rows = rows.filter(|row| visible(self.rows.row(*row)));
        let mut near: Vec<(f32, u32)> =
            rows.filter_map(|row| Some((self.cosine_window(row)?, row))).collect();
        if near.len() > count {
            near.select_nth_unstable_by(count, |a, b| b.0.total_cmp(&a.0));
            near.truncate(count);
        }
        near.into_iter().map(|(_, row)| row).collect()
    }

    /// The visible rows that have a word of the query in their window, or the best of them. Of very
    /// many only the better part is asked whether it is visible.
    fn best_by_words(&self, count: usize, visible: impl Fn(&Row) -> bool) -> Vec<u32> {
        let better = |a: &u32, b: &u32| self.text.of(*b).1.total_cmp(&self.text.of(*a).1);
        let cut = |rows: &mut Vec<u32>, count: usize| {
            if rows.len() > count {
                rows.select_nth_unstable_by(count, better);
                rows.truncate(count);
            }
        };
        let touched = self.text.touched();
        let mut rows = touched.to_vec();
        cut(&mut rows, BETTER_PART * count);
        let is_part = rows.len() < touched.len();
        rows.retain(|row| visible(self.rows.row(*row)));
        if rows.len() < count && is_part {
            rows = touched.iter().copied().filter(|row| visible(self.rows.row(*row))).collect();
        }
        cut(&mut rows, count);
        rows
    }

    /// Some rows as a heap, the best on top.
    fn rank(&self, rows: &[u32], weights: &Weights) -> BinaryHeap<Candidate> {
        let signals: Vec<Signals> = rows.iter().map(|row| self.signals(*row)).collect();
        let ranges = Ranges::of(&signals);
        let candidates = rows.iter().zip(&signals).map(|(row, signals)| {
            let score = ranges.score(signals, weights);
            Candidate { score, row: *row, signals: signals.told() }
        });
        candidates.collect()
    }
}
