//! One user's memories: the log, and what is derived from it.
//!
//! Everything here belongs to one user, so that no slip in a filter can show one user's
//! memories to another: there is nothing of another's to be shown.

use std::sync::Arc;

use super::bm25::TextScores;
use super::graph::Graph;
use super::log::{Damage, Log, Place};
use super::memory::{Draft, Memory, When};
use super::rows::{Row, Rows};
use super::scope::{Names, Scope};
use super::text::TextIndex;
use super::vectors::Vectors;
use super::words::Words;
use crate::error::{Error, Result};
use crate::format::{CheckpointParts, LogHead, Record};
use crate::io::Disk;

/// Where a user's files are, and what all users share.
#[derive(Clone)]
pub(super) struct Home {
    pub(super) disk: Arc<dyn Disk>,
    /// The user.
    pub(super) user: String,
    /// Elements of a vector; `None` for memories of text alone.
    pub(super) dimension: Option<usize>,
    /// Of which embedding the vectors are.
    pub(super) revision: u32,
    /// Whether what is acknowledged is durable.
    pub(super) sync: bool,
    /// Up to how many memories of a scope every vector is looked at.
    pub(super) exact_rows_max: usize,
    /// How many records a reader may have to replay before a checkpoint is worth its bytes.
    pub(super) checkpoint_after: u64,
}

impl Home {
    /// The file of the log.
    pub(super) fn log(&self) -> String {
        super::file_of(&self.user, "log")
    }

    pub(super) fn no_memory(&self, id: u64) -> Error {
        Error::NoMemory { id, user: self.user.clone() }
    }

    /// The log is not what it should be.
    pub(super) fn corrupt(&self, what: &str) -> Error {
        let path = super::log::path_of(&*self.disk, &self.log());
        Error::Corrupt { path, what: what.into(), offset: 0 }
    }

    pub(super) fn failed(&self, action: &'static str, error: std::io::Error) -> Error {
        Error::io(action, super::log::path_of(&*self.disk, &self.log()), error)
    }
}

/// A user's memories.
pub(super) struct User {
    pub(super) home: Home,
    /// `None` until something is remembered.
    pub(super) log: Option<Log>,
    pub(super) rows: Rows,
    pub(super) index: TextIndex,
    /// `None` until a vector is asked for.
    pub(super) vectors: Option<Vectors>,
    pub(super) scores: TextScores,
    pub(super) words: Words,
    next_id: u64,
    damage: Damage,
    /// Records that did not hold when they were read again.
    pub(super) lost: u64,
    /// After a failed write nobody knows what the log holds.
    pub(super) broken: bool,
    /// Records that are in no checkpoint.
    unsaved: u64,
    /// `None` until it is built, or read with the vectors.
    pub(super) graph: Option<Graph>,
    /// Rows whose vectors are in their file.
    pub(super) saved_vectors: usize,
    /// Whether the graph has more than its file.
    pub(super) unsaved_graph: bool,
}

impl User {
    /// Reads a user's memories; a user that nobody knows has none.
    ///
    /// # Errors
    /// `Corrupt` for a log whose head is damaged twice, or is another user's; `Io`.
    pub(super) fn load(home: Home) -> Result<Self> {
        let mut log = Log::open(&*home.disk, &home.log())?;
        if log.as_ref().is_some_and(|log| log.head().user != home.user) {
            return Err(home.corrupt("is the log of another user"));
        }
        if log.as_ref().is_some_and(|log| log.head().revision != home.revision) {
            log = Some(home.adopt()?);
        }
        let mut user = Self {
            home,
            log: None,
            rows: Rows::default(),
            index: TextIndex::default(),
            vectors: None,
            scores: TextScores::default(),
            words: Words::default(),
            next_id: log.as_ref().map_or(1, |log| log.head().next_id),
            damage: Damage::default(),
            lost: 0,
            broken: false,
            unsaved: 0,
            graph: None,
            saved_vectors: 0,
            unsaved_graph: false,
        };
        if let Some(mut log) = log {
            user.restore(&mut log)?;
            let holes = user.damage.holes;
            user.damage = log.scan(|place, record| {
                user.apply(place, &record);
                user.unsaved += 1;
                Ok(())
            })?;
            user.damage.holes += holes;
            user.log = Some(log);
            user.save_if_due();
        }
        Ok(user)
    }

    /// Takes up a checkpoint, if there is one that belongs to the log.
    fn restore(&mut self, log: &mut Log) -> Result<()> {
        let Some(checkpoint) = self.home.read_checkpoint()? else { return Ok(()) };
        if checkpoint.generation != log.head().generation || !log.resume(checkpoint.end)? {
            return self.home.remove_indexes();
        }
        self.next_id = self.next_id.max(checkpoint.next_id);
        self.damage.holes = checkpoint.holes;
        self.rows = Rows::restore(checkpoint.rows, checkpoint.turns, checkpoint.leaves, checkpoint.authors);
        self.index = TextIndex::restore(checkpoint.terms);
        Ok(())
    }

    /// Writes a checkpoint where a reader without it would replay a good part of the log: each
    /// record is written into few checkpoints, however many there are.
    fn save_if_due(&mut self) {
        if self.unsaved >= self.home.checkpoint_after.max(self.rows.len() as u64 / 4) {
            self.save();
        }
    }

    /// Writes a checkpoint, if anything is in none. It may fail: the log has it all.
    pub(super) fn save(&mut self) {
        // What is derived from the log is not to be more durable than the log.
        if self.flush().is_err() {
            return;
        }
        let Some(log) = self.log.as_ref().filter(|_| self.unsaved > 0 && !self.broken) else { return };
        let parts = CheckpointParts {
            generation: log.head().generation,
            end: log.end(),
            next_id: self.next_id,
            holes: self.damage.holes,
            rows: self.rows.all(),
            turns: self.rows.turns(),
            leaves: self.rows.leaves(),
            authors: self.rows.authors(),
            terms: self.index.terms(),
        };
        if self.home.write_checkpoint(&parts.encode()).is_ok() {
            self.unsaved = 0;
        }
    }

    /// Writes a checkpoint where one is worth its bytes, before the memories are closed.
    pub(super) fn close(&mut self) -> Result<()> {
        self.flush()?;
        if self.rows.len() as u64 >= self.home.checkpoint_after {
            self.save();
        }
        self.save_directions_if_due()
    }

    /// Reads a user's memories after an error: which files there are is made durable first.
    ///
    /// # Errors
    /// As [`User::load`].
    pub(super) fn reload(home: Home) -> Result<Self> {
        home.disk.sync_dir(super::USERS).map_err(|error| home.failed("sync", error))?;
        Self::load(home)
    }

    pub(super) const fn is_broken(&self) -> bool {
        self.broken
    }

    /// The generation of the log.
    pub(super) fn generation(&self) -> Option<u64> {
        self.log.as_ref().map(|log| log.head().generation)
    }

    /// Bytes of the log.
    pub(super) fn bytes(&self) -> u64 {
        self.log.as_ref().map_or(0, Log::end)
    }

    /// Makes what was written durable.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn flush(&mut self) -> Result<()> {
        let flushed = self.log.as_ref().map_or(Ok(()), Log::sync);
        self.broken |= flushed.is_err();
        flushed
    }

    /// What the scope covers.
    pub(super) fn stats(&self, scope: &Scope, now: i64) -> super::Stats {
        let covered = self.rows.covered(scope.names());
        let when = When::now(now);
        let mut stats = super::Stats {
            log_bytes: self.bytes(),
            damaged: self.damage.holes + self.lost,
            ..super::Stats::default()
        };
        for row in self.rows.all().iter().filter(|row| covered[row.leaf as usize]) {
            stats.memories += 1;
            stats.present += u64::from(self.rows.is_present(row, &when, now));
            stats.vectors += u64::from(row.has_vector());
        }
        stats
    }

    /// Takes a record of the log into what is derived from it.
    fn apply(&mut self, place: Place, record: &Record) {
        match record {
            Record::Memory { id, stored } => {
                // A number out of order is none that this program wrote, nor is 0, which stands for none: a
                // memory of that number would be its own older version without end.
                if self.rows.all().last().map_or(0, |last| last.id) >= *id {
                    return;
                }
                let words = self.words.count(&stored.text);
                let row = self.rows.len() as u32;
                self.rows.push(*id, stored, place, words.values().sum());
                self.index.push(row, &words);
                if let Some(vectors) = &mut self.vectors {
                    vectors.push(&self.rows, fitting(self.home.dimension, &stored.vector));
                }
                self.next_id = self.next_id.max(id.saturating_add(1));
            }
            Record::End { id, valid_to, recorded } => self.rows.end(*id, *valid_to, *recorded),
        }
    }

    /// Remembers, in the order given; the numbers. Nothing of a batch that is refused is kept.
    ///
    /// # Errors
    /// `Invalid`, or `NoMemory` for one to supersede that the scope does not cover; `Io`, after
    /// which a part of the batch may have been kept.
    pub(super) fn remember(&mut self, scope: &Scope, drafts: &[Draft], now: i64) -> Result<Vec<u64>> {
        let mut records = Vec::with_capacity(drafts.len());
        let mut taken = std::collections::HashSet::new();
        for (id, draft) in (self.next_id..).zip(drafts) {
            let names = match draft.supersedes {
                Some(old) => self.superseded(scope, old, &mut taken)?,
                None => scope.names().clone(),
            };
            records.push(Record::Memory { id, stored: draft.stored(&names, now, self.home.dimension)? });
        }
        self.write(&records)?;
        Ok(records.iter().map(Record::id).collect())
    }

    /// Where a memory is that is to be superseded.
    fn superseded(
        &self,
        scope: &Scope,
        old: u64,
        taken: &mut std::collections::HashSet<u64>,
    ) -> Result<Names> {
        let row = self.rows.row(self.find(scope, old)?);
        if row.superseded_by != 0 || !taken.insert(old) {
            let by = if row.superseded_by == 0 {
                "one of the same batch".into()
            } else {
                row.superseded_by.to_string()
            };
            return Err(Error::Invalid(format!("memory {old} was superseded by {by}; update that one")));
        }
        Ok(self.rows.names(row).clone())
    }

    /// Notes that a memory is true until `valid_to` only.
    ///
    /// # Errors
    /// `NoMemory`, `Invalid`, `Io`.
    pub(super) fn end(&mut self, scope: &Scope, id: u64, valid_to: i64, now: i64) -> Result<()> {
        let row = self.rows.row(self.find(scope, id)?);
        if valid_to < row.valid_from {
            return Err(Error::Invalid(format!(
                "memory {id} is true from {} on, it can't end at {valid_to} (milliseconds since 1970)",
                row.valid_from
            )));
        }
        if row.superseded_by != 0 {
            return Err(Error::Invalid(format!("memory {id} was superseded by {}", row.superseded_by)));
        }
        self.write(&[Record::End { id, valid_to, recorded: now }])
    }

    fn write(&mut self, records: &[Record]) -> Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        let mut log = match self.log.take() {
            Some(log) => log,
            None => self.create_log(|_| Ok(()))?,
        };
        let written = log.append(records, self.home.sync);
        self.log = Some(log);
        self.broken = written.is_err();
        for (place, record) in written?.into_iter().zip(records) {
            self.apply(place, record);
        }
        self.unsaved += records.len() as u64;
        self.save_if_due();
        Ok(())
    }

    pub(super) fn create_log(&self, fill: impl FnOnce(&mut Log) -> Result<()>) -> Result<Log> {
        let (user, revision) = (self.home.user.clone(), self.home.revision);
        let head = LogHead { generation: random()?, next_id: self.next_id, user, revision };
        Log::create(&*self.home.disk, &self.home.log(), head, fill, || self.home.remove_derived())
    }

    /// The row of a memory that the scope covers.
    ///
    /// # Errors
    /// `NoMemory`, the same whether there is none or it is another scope's.
    pub(super) fn find(&self, scope: &Scope, id: u64) -> Result<u32> {
        let row = self.rows.find(id).filter(|row| scope.names().covers(self.rows.names(self.rows.row(*row))));
        row.ok_or_else(|| self.home.no_memory(id))
    }

    /// One memory, past or present.
    ///
    /// # Errors
    /// `NoMemory`; `Corrupt` where its record does not hold any more; `Io`.
    pub(super) fn get(&mut self, scope: &Scope, id: u64) -> Result<Memory> {
        let row = self.find(scope, id)?;
        self.memory(row)?.ok_or_else(|| Error::Corrupt {
            path: super::log::path_of(&*self.home.disk, &self.home.log()),
            what: format!("the record of memory {id} is damaged"),
            offset: self.rows.row(row).place.offset,
        })
    }

    /// The memory of a row; `None`, and counted, where its record does not hold any more.
    pub(super) fn memory(&mut self, row: u32) -> Result<Option<Memory>> {
        let row = self.rows.row(row);
        let Some(stored) = self.record(row)? else {
            self.lost += 1;
            return Ok(None);
        };
        let at = |id: u64| self.rows.find(id).map(|_| id);
        Ok(Some(Memory {
            id: row.id,
            names: stored.names,
            text: stored.text,
            metadata: stored.metadata,
            source: stored.source,
            author: stored.author,
            vector: stored.vector,
            valid_from: row.valid_from,
            valid_to: self.rows.true_until(row),
            recorded: row.recorded,
            closed: self.rows.closed(row),
            supersedes: at(row.supersedes),
            superseded_by: at(row.superseded_by),
        }))
    }

    pub(super) fn record(&self, row: &Row) -> Result<Option<super::memory::Stored>> {
        let Some(log) = &self.log else { return Ok(None) };
        match log.read(row.place)? {
            Some(Record::Memory { id, stored }) if id == row.id => Ok(Some(stored)),
            _ => Ok(None),
        }
    }

    /// Present memories whose numbers are larger than `after`, `limit` at most, in order.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn list(
        &mut self,
        scope: &Scope,
        when: &When,
        after: u64,
        limit: usize,
        now: i64,
    ) -> Result<Vec<Memory>> {
        let covered = self.rows.covered(scope.names());
        let first = self.rows.all().partition_point(|row| row.id <= after);
        let mut memories = Vec::new();
        for row in first..self.rows.len() {
            if memories.len() == limit {
                break;
            }
            let here = self.rows.row(row as u32);
            if covered[here.leaf as usize] && self.rows.is_present(here, when, now) {
                memories.extend(self.memory(row as u32)?);
            }
        }
        Ok(memories)
    }

    /// All versions of a memory, the oldest first.
    ///
    /// # Errors
    /// `NoMemory`, `Io`.
    pub(super) fn history(&mut self, scope: &Scope, id: u64) -> Result<Vec<Memory>> {
        let versions = self.versions(self.find(scope, id)?);
        let mut memories = Vec::with_capacity(versions.len());
        for row in versions {
            memories.extend(self.memory(row)?);
        }
        Ok(memories)
    }

    /// Rows of all versions of a memory, the oldest first. All are in one scope, which
    /// [`User::remember`] sees to.
    pub(super) fn versions(&self, row: u32) -> Vec<u32> {
        let follow = |next: fn(&Row) -> u64| {
            let mut at = row;
            std::iter::from_fn(move || {
                at = self.rows.find(next(self.rows.row(at)))?;
                Some(at)
            })
        };
        let mut versions: Vec<u32> = follow(|row| row.supersedes).collect();
        versions.reverse();
        versions.push(row);
        versions.extend(follow(|row| row.superseded_by));
        versions
    }
}

/// A vector of this store's dimension, or none.
fn fitting(dimension: Option<usize>, vector: &[f32]) -> &[f32] {
    if Some(vector.len()) == dimension { vector } else { &[] }
}

/// A random number that names a log.
pub(super) fn random() -> Result<u64> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes)
        .map_err(|error| Error::Invalid(format!("the system gives no random numbers: {error}")))?;
    Ok(u64::from_le_bytes(bytes))
}
