//! For memories that are kept elsewhere, as in a database: what a draft becomes, and how what was
//! found is ranked.
//!
//! What it is not: it stores and finds nothing. Whoever does takes the checks, the words and the
//! scores from here, so that they are those of memories in files.

use std::collections::HashMap;

use super::clues::{Clues, Shown, traits_of};
use super::fusion::{Signals, Weights};
use super::memory::{Draft, Stored};
use super::rows::NONE;
use super::scope::Scope;
use super::search::{Query, ranked};
use super::words::Words;
use crate::error::Result;
use crate::format::Record;

/// A draft that was accepted, with what its memory is found by.
#[derive(Clone, Debug, PartialEq)]
pub struct Prepared {
    /// What is stored of it.
    pub stored: Stored,
    /// Stems of its words, and how often each occurs.
    pub words: HashMap<String, u32>,
    /// What its text shows, as bits that [`Found`] takes back.
    pub traits: u32,
    /// Bytes that its record would have in a file.
    pub bytes: u64,
}

/// Checks drafts as [`super::Engram::remember`] does, and prepares them.
///
/// # Errors
/// `Invalid`; nothing of the batch is to be stored then.
pub fn prepare(scope: &Scope, drafts: &[Draft], now: i64, dimension: Option<usize>) -> Result<Vec<Prepared>> {
    let words = Words::default();
    let prepare = |draft: &Draft| {
        let stored = draft.stored(scope.names(), now, dimension)?;
        Ok(Prepared {
            words: words.count(&stored.text),
            traits: traits_of(&stored.text, !stored.vector.is_empty()),
            bytes: Record::Memory { id: 0, stored: stored.clone() }.encode(0, 0).len() as u64,
            stored,
        })
    };
    drafts.iter().map(prepare).collect()
}

/// A query, as those who look for memories elsewhere need it.
pub struct Question {
    words: HashMap<String, u32>,
    clues: Clues,
    authors: HashMap<String, u32>,
    weights: Weights,
    pool: usize,
}

/// A memory that was found elsewhere.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// As [`Signals::bm25`].
    pub bm25: f32,
    /// As [`Signals::bm25_window`].
    pub bm25_window: f32,
    /// As [`Signals::cosine`]; `None` where the query or the memory has no vector.
    pub cosine: Option<f32>,
    /// As [`Signals::cosine_window`]; `None` where the query or the memory has no vector.
    pub cosine_window: Option<f32>,
    /// Who said it.
    pub author: Option<String>,
    /// From when it is true, in milliseconds since 1970.
    pub valid_from: i64,
    /// Its [`Prepared::traits`].
    pub traits: u32,
    /// Those of the memory before it in its session; 0 where there is none.
    pub traits_before: u32,
}

/// A memory's place among the found ones, its score and the signals that this is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ranked {
    /// Which of the found ones it is, from 0 on.
    pub index: usize,
    /// As [`super::Hit::score`].
    pub score: f32,
    /// As [`super::Hit::signals`].
    pub signals: Signals,
}

impl Question {
    /// What a query asks of a store with vectors of so many elements, of which these authors are those
    /// that the scope covers, each once.
    ///
    /// # Errors
    /// `Invalid`, as [`super::Engram::recall`].
    pub fn new(query: &Query, authors: &[String], dimension: Option<usize>) -> Result<Self> {
        query.check(dimension)?;
        let text = query.text.as_deref().unwrap_or_default();
        let numbered: Vec<(u32, &str)> = (0..).zip(authors.iter().map(String::as_str)).collect();
        Ok(Self {
            words: Words::default().asked(text, &numbered),
            clues: Clues::of(text, &numbered),
            authors: numbered.iter().map(|(number, name)| ((*name).to_owned(), *number)).collect(),
            weights: query.weights,
            pool: query.pool(),
        })
    }

    /// The stems to look for, and how often each is asked for.
    pub const fn words(&self) -> &HashMap<String, u32> {
        &self.words
    }

    /// How many are to be rated of the nearest by window, and of the best by window and words.
    pub const fn pool(&self) -> usize {
        self.pool
    }

    /// Ranks what was found, the best first; of equal ones the one that was given later.
    pub fn rank(&self, found: &[Found]) -> Vec<Ranked> {
        let signals: Vec<Signals> = found.iter().map(|one| self.signals(one)).collect();
        let mut heap = ranked(0.., &signals, &self.weights);
        let mut best = Vec::with_capacity(heap.len());
        while let Some(one) = heap.pop() {
            best.push(Ranked { index: one.row as usize, score: one.score, signals: one.signals });
        }
        best
    }

    fn signals(&self, found: &Found) -> Signals {
        let shown = Shown {
            author: found.author.as_ref().and_then(|name| self.authors.get(name)).copied().unwrap_or(NONE),
            valid_from: found.valid_from,
            traits: found.traits,
            traits_before: found.traits_before,
        };
        Signals {
            bm25: found.bm25,
            bm25_window: found.bm25_window,
            cosine: found.cosine.unwrap_or(f32::NAN),
            cosine_window: found.cosine_window.unwrap_or(f32::NAN),
            ..self.clues.of_shown(&shown)
        }
    }
}
