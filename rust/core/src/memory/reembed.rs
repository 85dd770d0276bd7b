//! All vectors of a directory made anew, by another embedder or where there are none.
//!
//! Beside each log a new one is filled, of the same records with other vectors. Until all are
//! whole the directory is what it was; then its settings name the new embedder, in one step,
//! and each new log takes its log's place, now or when its user is next asked for. Whoever
//! stops before that goes on where it was, and memories that came meanwhile are copied too.

use std::path::PathBuf;
use std::sync::Arc;

use super::derived::RENEWED;
use super::directory::{checked, prepare, read_settings, users, write_settings};
use super::log::{Log, Records, path_of, remove_if_there};
use super::memory::{Stored, check_vector};
use super::nearest::Progress;
use super::user::{Home, random};
use crate::error::{Error, Result};
use crate::format::{Embedding, LogHead, MemorySettings, Record};
use crate::io::{Access, Disk, Mode, OsDisk, Usage};
use crate::tier::lock::DirectoryLock;

/// Bytes of texts that are given out at once, and one text more.
const TEXT_BYTES: usize = 4 << 20;

/// A directory of memories whose vectors are being made anew. Nobody else has it open.
///
/// Ask for [`Reembedding::texts`], give their vectors with [`Reembedding::give`], until there
/// are no more; then [`Reembedding::finish`].
pub struct Reembedding {
    disk: Arc<dyn Disk>,
    settings: MemorySettings,
    /// Whose memories are not done, but for the one that is being worked on. Not their files: there may be
    /// more users than files that a process may have open.
    users: Vec<String>,
    current: Option<Copy>,
    /// Whether vectors that are there are the new embedder's own.
    keeps: bool,
    progress: Progress,
    _lock: Option<DirectoryLock>,
}

impl Reembedding {
    /// Opens a directory for this process alone, to have its vectors made by this embedder:
    /// all of them, or those that are missing where it is the one that the directory has.
    ///
    /// # Errors
    /// `Locked` where another process has it; `Invalid`; `Corrupt`; `Io`.
    pub fn open(directory: impl Into<PathBuf>, embedder: &(String, usize)) -> Result<Self> {
        let path = directory.into();
        let disk = OsDisk::create(&path, Mode::Buffered).map_err(|error| Error::io("open", &path, error))?;
        let lock = DirectoryLock::take(&path)?;
        let opened = Self::open_on(Arc::new(disk), embedder)?;
        Ok(Self { _lock: Some(lock), ..opened })
    }

    /// Opens a disk that nobody else writes.
    ///
    /// # Errors
    /// As [`Reembedding::open`].
    pub fn open_on(disk: Arc<dyn Disk>, embedder: &(String, usize)) -> Result<Self> {
        let wanted = Some(checked(embedder)?);
        prepare(&*disk)?;
        let mut settings = read_settings(&*disk)?;
        let keeps = settings.now.embedder == wanted;
        let last = settings.next.as_ref().map_or(settings.now.revision, |next| next.revision);
        let begun = settings.next.clone().filter(|next| next.embedder == wanted);
        let next = begun.unwrap_or(Embedding { embedder: wanted, revision: last + 1 });
        let mut progress = Progress { done: 0, total: 0 };
        let mut left = Vec::new();
        for user in users(&*disk)? {
            let Some(old) = adopted(&disk, &user, &settings.now)? else { continue };
            let keeps = keeps && old.head().revision == settings.now.revision;
            let survey = Survey::of(&*disk, &old, next.revision, keeps)?;
            progress.done += survey.done;
            progress.total += survey.total;
            if !survey.is_whole {
                left.push(user);
            }
        }
        if keeps && progress.total == 0 {
            give_up(&disk, &mut settings)?;
            left.clear();
        } else if settings.next.as_ref() != Some(&next) {
            settings.next = Some(next);
            write_settings(&*disk, &settings)?;
        }
        Ok(Self { disk, settings, users: left, current: None, keeps, progress, _lock: None })
    }

    /// How many memories have their new vectors, of all that are to get one.
    pub const fn progress(&self) -> Progress {
        self.progress
    }

    /// The next texts to embed, `limit` at most, the same until their vectors are given; none
    /// when all are.
    ///
    /// # Errors
    /// `Io`.
    pub fn texts(&mut self, limit: usize) -> Result<Vec<String>> {
        loop {
            if self.current.is_none() {
                let Some(user) = self.users.pop() else { return Ok(Vec::new()) };
                self.current = self.begin(&user)?;
            }
            let Some(copy) = &mut self.current else { continue };
            if copy.pending.is_empty() && !copy.fill(limit.max(1))? {
                self.current = None;
                continue;
            }
            let texts: Vec<String> = copy.lacking().map(|stored| stored.text.clone()).collect();
            if !texts.is_empty() {
                return Ok(texts);
            }
            copy.write()?;
        }
    }

    /// Goes on with what is there of a user's new log, or begins it.
    fn begin(&self, user: &str) -> Result<Option<Copy>> {
        let home = home(&self.disk, user, &self.settings.now);
        let Some(old) = Log::open(&*self.disk, &home.log())? else { return Ok(None) };
        let keeps = self.keeps && old.head().revision == self.settings.now.revision;
        let revision = self.settings.next.as_ref().map_or(0, |next| next.revision);
        Copy::begin(&*self.disk, &old, revision, keeps).map(Some)
    }

    /// How many vectors are asked for: of the texts that were given out last.
    pub fn asked(&self) -> usize {
        self.current.as_ref().map_or(0, |copy| copy.lacking().count())
    }

    /// Takes the vectors of the texts that were given out last, in their order; durable when
    /// it comes back.
    ///
    /// # Errors
    /// `Invalid` for another number of vectors, or one that has no direction, and none is
    /// taken then; `Io`.
    pub fn give(&mut self, vectors: Vec<Vec<f32>>) -> Result<()> {
        let dimension = self.settings.next.as_ref().and_then(|next| next.embedder.as_ref());
        let dimension = dimension.map(|(_, dimension)| *dimension as usize);
        vectors.iter().try_for_each(|vector| check_vector(vector, dimension))?;
        let given = vectors.len();
        let asked = self.asked();
        if given != asked {
            return Err(Error::Invalid(format!("{given} vectors for {asked} texts")));
        }
        let Some(copy) = self.current.as_mut().filter(|_| given > 0) else { return Ok(()) };
        copy.take(vectors);
        copy.write()?;
        self.progress.done += given as u64;
        Ok(())
    }

    /// Makes the new vectors those of the directory.
    ///
    /// # Errors
    /// `Invalid` while texts are left; `Io`, and call again.
    pub fn finish(&mut self) -> Result<()> {
        if !self.texts(1)?.is_empty() {
            let Progress { done, total } = self.progress;
            return Err(Error::Invalid(format!("{done} of {total} memories have their new vectors")));
        }
        if let Some(next) = self.settings.next.clone() {
            let synced = self.disk.sync_dir(super::USERS);
            synced.map_err(|error| Error::io("sync", path_of(&*self.disk, super::USERS), error))?;
            let settings = MemorySettings { now: next, next: None };
            write_settings(&*self.disk, &settings)?;
            self.settings = settings;
        }
        // What fails here is done when its user is next asked for.
        for user in users(&*self.disk)? {
            adopted(&self.disk, &user, &self.settings.now)?;
        }
        Ok(())
    }
}

impl Home {
    /// Puts the log that was made anew in the place of one with an older embedder's vectors.
    ///
    /// # Errors
    /// `Corrupt` where there is none; `Io`, and call again.
    pub(super) fn adopt(&self) -> Result<Log> {
        let renewed = super::file_of(&self.user, RENEWED);
        let head = Log::open(&*self.disk, &renewed)?.map(|log| log.head().clone());
        if head.is_none_or(|head| head.revision != self.revision || head.user != self.user) {
            return Err(self.corrupt(
                "has vectors of an embedder that its directory had before: `stratakv memory reembed` makes them anew",
            ));
        }
        self.remove_indexes()?;
        self.disk.rename(&renewed, &self.log()).map_err(|error| self.failed("rename", error))?;
        self.disk.sync_dir(super::USERS).map_err(|error| self.failed("sync", error))?;
        Log::open(&*self.disk, &self.log())?.ok_or_else(|| self.corrupt("is gone"))
    }
}

/// One log, as far as it has been copied.
struct Copy {
    old: Numbered,
    new: Log,
    /// Whether vectors that are there are the new embedder's own.
    keeps: bool,
    /// Read from the old log, and not yet in the new one.
    pending: Vec<Record>,
}

impl Copy {
    /// Goes on with what is there of the new log, or begins it.
    fn begin(disk: &dyn Disk, old: &Log, revision: u32, keeps: bool) -> Result<Self> {
        if let Some(mut new) = renewed(disk, old, revision)? {
            let mut records = Numbered::new(old)?;
            if common(&mut records, &mut new, keeps)?.is_some() {
                return Ok(Self { old: records, new, keeps, pending: Vec::new() });
            }
        }
        let head = LogHead { generation: random()?, revision, ..old.head().clone() };
        let name = super::file_of(&head.user, RENEWED);
        let failed = |error| Error::io("create", path_of(disk, &name), error);
        remove_if_there(disk, &name).map_err(failed)?;
        let file = disk.open(&name, Access::Create, Usage::Metadata).map_err(failed)?;
        file.write_at(&[&head.encode()], 0).map_err(failed)?;
        file.sync().map_err(failed)?;
        let new = Log::open(disk, &name)?.ok_or_else(|| failed(std::io::ErrorKind::NotFound.into()))?;
        Ok(Self { old: Numbered::new(old)?, new, keeps, pending: Vec::new() })
    }

    /// Reads the next records; whether there are any.
    fn fill(&mut self, limit: usize) -> Result<bool> {
        let mut bytes = 0;
        while self.pending.len() < limit && bytes < TEXT_BYTES {
            let Some(record) = self.old.next()? else { break };
            if let Record::Memory { stored, .. } = &record {
                bytes += stored.text.len();
            }
            self.pending.push(record);
        }
        Ok(!self.pending.is_empty())
    }

    /// Those of the pending memories that are to get a vector.
    fn lacking(&self) -> impl Iterator<Item = &Stored> {
        self.pending.iter().filter_map(|record| match record {
            Record::Memory { stored, .. } if lacks(stored, self.keeps) => Some(stored),
            _ => None,
        })
    }

    fn take(&mut self, vectors: Vec<Vec<f32>>) {
        let keeps = self.keeps;
        let lacking = self.pending.iter_mut().filter_map(|record| match record {
            Record::Memory { stored, .. } if lacks(stored, keeps) => Some(stored),
            _ => None,
        });
        for (stored, vector) in lacking.zip(vectors) {
            stored.vector = vector;
        }
    }

    /// Writes the pending records.
    fn write(&mut self) -> Result<()> {
        self.new.append(&self.pending, true)?;
        self.pending.clear();
        Ok(())
    }
}

const fn lacks(stored: &Stored, keeps: bool) -> bool {
    !keeps || stored.vector.is_empty()
}

/// The records of a log but those whose numbers are out of order, which nobody counts.
struct Numbered {
    records: Records,
    last_id: u64,
}

impl Numbered {
    fn new(log: &Log) -> Result<Self> {
        Ok(Self { records: log.rescanned().records()?, last_id: 0 })
    }

    fn next(&mut self) -> Result<Option<Record>> {
        while let Some((_, record)) = self.records.next()? {
            if let Record::Memory { id, .. } = record {
                if id <= self.last_id {
                    continue;
                }
                self.last_id = id;
            }
            return Ok(Some(record));
        }
        Ok(None)
    }
}

/// Moves both logs behind what the new one has of the old one; how many memories got a vector.
/// `None` where the new one has something else.
fn common(old: &mut Numbered, new: &mut Log, keeps: bool) -> Result<Option<u64>> {
    let (mut done, mut same) = (0, true);
    let damage = new.scan(|_, copied| {
        let Some(mut record) = old.next()?.filter(|_| same) else {
            same = false;
            return Ok(());
        };
        if let (Record::Memory { stored, .. }, Record::Memory { stored: copied, .. }) = (&mut record, &copied)
            && lacks(stored, keeps)
        {
            done += 1;
            stored.vector.clone_from(&copied.vector);
        }
        same = record == copied;
        Ok(())
    })?;
    Ok((same && damage.holes == 0).then_some(done))
}

/// What is to be done for a user.
struct Survey {
    /// Memories that are to get a vector, and those of them that have it.
    total: u64,
    done: u64,
    /// Whether the new log has all that the old one has.
    is_whole: bool,
}

impl Survey {
    fn of(disk: &dyn Disk, old: &Log, revision: u32, keeps: bool) -> Result<Self> {
        let mut records = Numbered::new(old)?;
        let begun = match renewed(disk, old, revision)? {
            Some(mut new) => common(&mut records, &mut new, keeps)?,
            None => None,
        };
        if begun.is_none() {
            records = Numbered::new(old)?;
        }
        let done = begun.unwrap_or(0);
        let (mut total, mut is_whole) = (done, begun.is_some());
        while let Some(record) = records.next()? {
            is_whole = false;
            total += u64::from(matches!(&record, Record::Memory { stored, .. } if lacks(stored, keeps)));
        }
        Ok(Self { total, done, is_whole })
    }
}

/// The log that is beside another, if it is of this revision.
fn renewed(disk: &dyn Disk, old: &Log, revision: u32) -> Result<Option<Log>> {
    match Log::open(disk, &super::file_of(&old.head().user, RENEWED)) {
        Ok(log) => {
            Ok(log.filter(|log| log.head().revision == revision && log.head().user == old.head().user))
        }
        Err(Error::Corrupt { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A user's log, the one made anew where that is whole.
fn adopted(disk: &Arc<dyn Disk>, user: &str, embedding: &Embedding) -> Result<Option<Log>> {
    let home = home(disk, user, embedding);
    let Some(log) = Log::open(&**disk, &home.log())? else { return Ok(None) };
    if log.head().revision == embedding.revision {
        return Ok(Some(log));
    }
    match home.adopt() {
        Err(Error::Corrupt { .. }) => Ok(Some(log)),
        adopted => adopted.map(Some),
    }
}

/// Forgets that another embedder had begun.
fn give_up(disk: &Arc<dyn Disk>, settings: &mut MemorySettings) -> Result<()> {
    if settings.next.take().is_none() {
        return Ok(());
    }
    write_settings(&**disk, settings)?;
    for user in users(&**disk)? {
        let name = super::file_of(&user, RENEWED);
        remove_if_there(&**disk, &name)
            .map_err(|error| Error::io("remove", path_of(&**disk, &name), error))?;
    }
    Ok(())
}

fn home(disk: &Arc<dyn Disk>, user: &str, embedding: &Embedding) -> Home {
    Home {
        disk: Arc::clone(disk),
        user: user.to_owned(),
        dimension: embedding.embedder.as_ref().map(|(_, dimension)| *dimension as usize),
        revision: embedding.revision,
        sync: true,
        exact_rows_max: 0,
        checkpoint_after: 0,
    }
}
