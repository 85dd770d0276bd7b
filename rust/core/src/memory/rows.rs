//! What is known of each of a user's memories without reading the log.

use std::collections::{BTreeSet, HashMap};

use super::clues::{HAS_VECTOR, traits_of};
use super::fusion::WINDOW;
use super::log::Place;
use super::memory::{FOREVER, Stored, When};
use super::scope::Names;
use crate::simd::prefetch;

/// No memory.
pub(super) const NONE: u32 = u32::MAX;

/// A memory. Its index among the user's is its *row*.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) id: u64,
    pub(crate) place: Place,
    /// Where it is, see [`Rows::leaves`].
    pub(crate) leaf: u32,
    /// What its text shows, as bits of [`super::clues`].
    pub(crate) traits: u32,
    /// Who said it, see [`Rows::authors`]; [`NONE`] if nobody is named.
    pub(crate) author: u32,
    pub(crate) valid_from: i64,
    pub(crate) valid_to: i64,
    pub(crate) recorded: i64,
    /// Until when it was true, as somebody said at `closed`; later versions are another matter.
    pub(crate) closed_to: i64,
    pub(crate) closed: i64,
    pub(crate) supersedes: u64,
    pub(crate) superseded_by: u64,
}

/// What a search by words reads of a row. Apart from the rest: it looks at many, in their windows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    /// Words that it is found by.
    pub(crate) words: u32,
    /// Words of its window, in units of [`super::fusion::WINDOW_UNIT`].
    pub(crate) window_words: u32,
    /// Rows before and after it in its session.
    pub(crate) previous: u32,
    pub(crate) next: u32,
}

impl Row {
    /// Whether it has a vector.
    pub(super) const fn has_vector(&self) -> bool {
        self.traits & HAS_VECTOR != 0
    }

    /// Until when it is true by itself, as was known then.
    const fn own_end(&self, known_at: i64) -> i64 {
        if self.closed <= known_at && self.closed_to < self.valid_to { self.closed_to } else { self.valid_to }
    }
}

/// A scope that memories were written to, without its user, and what it holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Leaf {
    pub(crate) names: Names,
    pub(crate) last: Option<u32>,
    pub(crate) rows: u64,
    pub(crate) words: u64,
    /// Words of its memories' windows, in units of [`super::fusion::WINDOW_UNIT`].
    pub(crate) window_words: u64,
}

/// A user's memories, in the order of their numbers.
#[derive(Debug, Default)]
pub(super) struct Rows {
    all: Vec<Row>,
    /// One for each row.
    turns: Vec<Turn>,
    leaves: Vec<Leaf>,
    leaf_of: HashMap<Names, u32>,
    authors: Vec<String>,
    author_of: HashMap<String, u32>,
    /// Who said something in each leaf.
    authors_in: Vec<BTreeSet<u32>>,
}

impl Rows {
    /// What a checkpoint holds.
    pub(super) fn restore(all: Vec<Row>, turns: Vec<Turn>, leaves: Vec<Leaf>, authors: Vec<String>) -> Self {
        let leaf_of =
            leaves.iter().enumerate().map(|(index, leaf)| (leaf.names.clone(), index as u32)).collect();
        let author_of =
            authors.iter().enumerate().map(|(index, author)| (author.clone(), index as u32)).collect();
        let mut authors_in = vec![BTreeSet::new(); leaves.len()];
        for row in all.iter().filter(|row| row.author != NONE) {
            authors_in[row.leaf as usize].insert(row.author);
        }
        Self { all, turns, leaves, leaf_of, authors, author_of, authors_in }
    }

    /// Everybody who said something.
    pub(super) fn authors(&self) -> &[String] {
        &self.authors
    }

    /// Who said something in the covered leaves, by number and name.
    pub(super) fn authors_of(&self, covered: &[bool]) -> Vec<(u32, &str)> {
        let leaves = self.authors_in.iter().zip(covered).filter(|(_, covered)| **covered);
        let numbers: BTreeSet<u32> = leaves.flat_map(|(authors, _)| authors).copied().collect();
        numbers.into_iter().map(|author| (author, self.authors[author as usize].as_str())).collect()
    }

    pub(super) fn all(&self) -> &[Row] {
        &self.all
    }

    pub(super) fn turns(&self) -> &[Turn] {
        &self.turns
    }

    pub(super) fn leaves(&self) -> &[Leaf] {
        &self.leaves
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn row(&self, row: u32) -> &Row {
        &self.all[row as usize]
    }

    pub(super) fn turn(&self, row: u32) -> &Turn {
        &self.turns[row as usize]
    }

    /// Asks for what a walk through a row's window reads, if its session's rows stand together.
    pub(super) fn prefetch_window(&self, row: u32) {
        let row = row as usize;
        let (start, end) = (row.saturating_sub(WINDOW.len() - 1), row + WINDOW.len());
        prefetch(&self.turns[start..end.min(self.turns.len())]);
    }

    /// A row, if there is one.
    pub(super) fn get(&self, row: u32) -> Option<&Row> {
        self.all.get(row as usize)
    }

    /// The names of a row's scope.
    pub(super) fn names(&self, row: &Row) -> &Names {
        &self.leaves[row.leaf as usize].names
    }

    /// The row of a number, whatever its scope.
    pub(super) fn find(&self, id: u64) -> Option<u32> {
        self.all.binary_search_by_key(&id, |row| row.id).ok().map(|row| row as u32)
    }

    /// For each leaf, whether the scope covers it.
    pub(super) fn covered(&self, names: &Names) -> Vec<bool> {
        self.leaves.iter().map(|leaf| names.covers(&leaf.names)).collect()
    }

    /// Adds a memory with the count of its words. Its number is larger than all before it.
    pub(super) fn push(&mut self, id: u64, stored: &Stored, place: Place, words: u32) {
        let row = self.all.len() as u32;
        let leaf = self.leaf(&stored.names);
        let previous = self.leaves[leaf as usize].last.unwrap_or(NONE);
        let previous = if stored.names.session.is_some() { previous } else { NONE };
        if let Some(before) = self.turns.get_mut(previous as usize) {
            before.next = row;
        }
        let window_words = self.count_words(leaf, previous, words);
        self.leaves[leaf as usize].last = Some(row);
        let author = stored.author.as_ref().map_or(NONE, |author| self.author(author, leaf));
        self.turns.push(Turn { words, window_words, previous, next: NONE });
        self.all.push(Row {
            id,
            place,
            leaf,
            traits: traits_of(&stored.text, !stored.vector.is_empty()),
            author,
            valid_from: stored.valid_from,
            valid_to: stored.valid_to,
            recorded: stored.recorded,
            closed_to: FOREVER,
            closed: FOREVER,
            // Only of an older one: versions that lead back to themselves would never end.
            supersedes: if stored.supersedes < id { stored.supersedes } else { 0 },
            superseded_by: 0,
        });
        if let Some(old) = self.find(stored.supersedes).filter(|old| *old < row) {
            self.all[old as usize].superseded_by = id;
        }
    }

    /// Notes that a memory ceased to be true.
    pub(super) fn end(&mut self, id: u64, valid_to: i64, recorded: i64) {
        if let Some(row) = self.find(id) {
            let row = &mut self.all[row as usize];
            row.closed_to = valid_to;
            row.closed = recorded;
        }
    }

    fn leaf(&mut self, names: &Names) -> u32 {
        if let Some(leaf) = self.leaf_of.get(names) {
            return *leaf;
        }
        let leaf = self.leaves.len() as u32;
        self.leaves.push(Leaf { names: names.clone(), ..Leaf::default() });
        self.leaf_of.insert(names.clone(), leaf);
        self.authors_in.push(BTreeSet::new());
        leaf
    }

    /// The number of an author who said something in a leaf.
    fn author(&mut self, name: &str, leaf: u32) -> u32 {
        let author = self.author_of.get(name).copied().unwrap_or_else(|| {
            self.authors.push(name.to_owned());
            self.authors.len() as u32 - 1
        });
        self.author_of.entry(name.to_owned()).or_insert(author);
        self.authors_in[leaf as usize].insert(author);
        author
    }

    /// Counts a row that is about to be pushed, in its leaf and in the windows that it joins;
    /// the words of its own window.
    fn count_words(&mut self, leaf: u32, previous: u32, words: u32) -> u32 {
        let mut own = words.saturating_mul(WINDOW[0]);
        let mut others = 0_u64;
        let mut at = previous;
        for weight in &WINDOW[1..] {
            let Some(before) = self.turns.get_mut(at as usize) else { break };
            own = own.saturating_add(before.words.saturating_mul(*weight));
            before.window_words = before.window_words.saturating_add(words.saturating_mul(*weight));
            others += u64::from(words) * u64::from(*weight);
            at = before.previous;
        }
        let leaf = &mut self.leaves[leaf as usize];
        leaf.rows += 1;
        leaf.words += u64::from(words);
        leaf.window_words += u64::from(own) + others;
        own
    }

    /// The later versions of a memory, the next one first.
    fn later(&self, row: &Row) -> impl Iterator<Item = &Row> + '_ {
        let mut next = row.superseded_by;
        std::iter::from_fn(move || {
            let later = self.row(self.find(next)?);
            next = later.superseded_by;
            Some(later)
        })
    }

    /// Until when a memory is true, as is known now: until it ended, or any later version began. One
    /// that began before those between them takes the place of all. A memory whose place was taken
    /// before it began was never true, and ends as it begins.
    pub(super) fn true_until(&self, row: &Row) -> i64 {
        let later = self.later(row).map(|later| later.valid_from);
        later.fold(row.own_end(FOREVER), i64::min).max(row.valid_from)
    }

    /// When it became known that a memory does not stay true.
    pub(super) fn closed(&self, row: &Row) -> i64 {
        self.later(row).next().map_or(row.closed, |later| later.recorded.min(row.closed))
    }

    /// Whether a memory counts as present.
    pub(super) fn is_present(&self, row: &Row, when: &When, now: i64) -> bool {
        if when.any {
            return true;
        }
        if row.recorded > when.known_at || when.as_of.is_some_and(|time| time < row.valid_from) {
            return false;
        }
        // Without a time: what is still to come counts, unless its place is taken before it comes.
        let time = when.as_of.unwrap_or(now.max(row.valid_from));
        let is_over = |later: &Row| later.recorded <= when.known_at && later.valid_from <= time;
        time < row.own_end(when.known_at) && !self.later(row).any(is_over)
    }

    /// The rows of a window with what each counts there, the row itself first.
    pub(super) fn window(&self, row: u32) -> impl Iterator<Item = (u32, u32)> + '_ {
        let side = |step: fn(&Turn) -> u32| {
            let mut at = row;
            WINDOW[1..].iter().map_while(move |weight| {
                at = step(self.turns.get(at as usize)?);
                (at != NONE).then_some((at, *weight))
            })
        };
        std::iter::once((row, WINDOW[0])).chain(side(|turn| turn.previous)).chain(side(|turn| turn.next))
    }
}
