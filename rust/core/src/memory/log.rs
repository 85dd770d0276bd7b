//! A user's log: the only truth about the user's memories.
//!
//! Records are appended, and never changed. A reader takes every record whose checksums
//! hold, wherever it lies, and steps over what is damaged: a crash can only have torn what
//! was not acknowledged, and rot takes no more than it touches.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::format::{
    LOG_HEAD_BYTES, LOG_RECORDS_AT, LogHead, RECORD_HEAD_BYTES, RECORD_MAGIC, Record, RecordHead,
};
use crate::io::{Access, Disk, DiskFile, Usage};

/// Bytes that a scan reads at once.
const WINDOW_BYTES: usize = 1 << 20;

/// Where a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) offset: u64,
    pub(crate) bytes: u32,
}

/// A file that a user's memories are in.
pub(super) struct Log {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    head: LogHead,
    /// Behind the last record that holds: where the next one goes.
    end: u64,
}

/// What a scan stepped over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Damage {
    /// Stretches of bytes that are no records, with records behind them.
    pub(super) holes: u64,
    /// Whether the file ends with such a stretch: what a crash leaves of the last write.
    pub(super) torn: bool,
}

impl Log {
    /// The log of this name, if there is one; nothing of its records is read.
    ///
    /// # Errors
    /// `Corrupt` where both copies of its head are damaged; `Io`.
    pub(super) fn open(disk: &dyn Disk, name: &str) -> Result<Option<Self>> {
        let path = path_of(disk, name);
        let file = match disk.open(name, Access::Write, Usage::Metadata) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|error| Error::io("open", &path, error))?,
        };
        let len = file.len().map_err(|error| Error::io("read", &path, error))?;
        let mut bytes = vec![0; len.min(LOG_RECORDS_AT) as usize];
        file.read_at(&mut bytes, 0).map_err(|error| Error::io("read", &path, error))?;
        let head =
            LogHead::decode(&bytes).map_err(|what| Error::Corrupt { path: path.clone(), what, offset: 0 })?;
        Ok(Some(Self { path, file, head, end: LOG_RECORDS_AT }))
    }

    /// Makes a log that has these records, durable, and gives it its name in one step.
    /// `before_rename` is the last thing that happens before it takes the place of what had the name.
    ///
    /// # Errors
    /// `Io`; what had the name is unharmed then.
    pub(super) fn create(
        disk: &dyn Disk,
        name: &str,
        head: LogHead,
        fill: impl FnOnce(&mut Self) -> Result<()>,
        before_rename: impl FnOnce() -> Result<()>,
    ) -> Result<Self> {
        let beside = format!("{name}.tmp");
        let path = path_of(disk, name);
        let failed = |action, error| Error::io(action, &path, error);
        remove_if_there(disk, &beside).map_err(|error| failed("remove", error))?;
        let file =
            disk.open(&beside, Access::Create, Usage::Metadata).map_err(|error| failed("create", error))?;
        file.write_at(&[&head.encode()], 0).map_err(|error| failed("write", error))?;
        let mut log = Self { path: path.clone(), file, head, end: LOG_RECORDS_AT };
        let made = fill(&mut log).and_then(|()| log.sync()).and_then(|()| before_rename()).and_then(|()| {
            disk.rename(&beside, name).map_err(|error| failed("rename", error))?;
            disk.sync_dir(super::USERS).map_err(|error| failed("sync", error))
        });
        if made.is_err() {
            // Best effort: what is left is removed when the store is opened.
            let _ = remove_if_there(disk, &beside);
        }
        made.map(|()| log)
    }

    pub(super) const fn head(&self) -> &LogHead {
        &self.head
    }

    /// Bytes up to the end of the last record.
    pub(super) const fn end(&self) -> u64 {
        self.end
    }

    /// The same log, to be scanned from its first record on.
    pub(super) fn rescanned(&self) -> Self {
        Self {
            file: Arc::clone(&self.file),
            path: self.path.clone(),
            head: self.head.clone(),
            end: LOG_RECORDS_AT,
        }
    }

    /// Takes up where a reader left off that had read up to `end`.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn resume(&mut self, end: u64) -> Result<bool> {
        let len = self.file.len().map_err(|error| Error::io("read", &self.path, error))?;
        let fits = (LOG_RECORDS_AT..=len).contains(&end);
        if fits {
            self.end = end;
        }
        Ok(fits)
    }

    /// Visits every record from `self.end()` on, and moves the end behind the last.
    ///
    /// # Errors
    /// `Io`, or what `visit` gives.
    pub(super) fn scan(&mut self, mut visit: impl FnMut(Place, Record) -> Result<()>) -> Result<Damage> {
        let mut records = self.records()?;
        while let Some((place, record)) = records.next()? {
            visit(place, record)?;
            self.end = place.offset + u64::from(place.bytes);
        }
        Ok(records.damage)
    }

    /// The records from `self.end()` on.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn records(&self) -> Result<Records> {
        let window = Window::new(&self.file).map_err(|error| Error::io("read", &self.path, error))?;
        let generation = self.head.generation;
        Ok(Records { window, path: self.path.clone(), generation, at: self.end, damage: Damage::default() })
    }

    /// Appends records, durable if `sync`. After an error the end of the file is unknown: the
    /// log must be opened and scanned again.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn append(&mut self, records: &[Record], sync: bool) -> Result<Vec<Place>> {
        let mut places = Vec::with_capacity(records.len());
        let mut bytes = Vec::new();
        for record in records {
            let offset = self.end + bytes.len() as u64;
            let record = record.encode(self.head.generation, offset);
            places.push(Place { offset, bytes: record.len() as u32 });
            bytes.extend_from_slice(&record);
        }
        self.file.write_at(&[&bytes], self.end).map_err(|error| Error::io("write", &self.path, error))?;
        if sync {
            self.sync()?;
        }
        self.end += bytes.len() as u64;
        Ok(places)
    }

    /// Makes everything durable.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn sync(&self) -> Result<()> {
        self.file.sync().map_err(|error| Error::io("sync", &self.path, error))
    }

    /// The record at a place; `None` where it does not hold any more.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn read(&self, place: Place) -> Result<Option<Record>> {
        let mut bytes = vec![0; place.bytes as usize];
        match self.file.read_at(&mut bytes, place.offset) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other.map_err(|error| Error::io("read", &self.path, error))?,
        }
        let Ok(head) = RecordHead::decode(&bytes, self.head.generation, place.offset) else {
            return Ok(None);
        };
        let payload = bytes.get(RECORD_HEAD_BYTES..).unwrap_or_default();
        Ok((payload.len() == head.len as usize).then(|| head.decode_payload(payload).ok()).flatten())
    }
}

/// The records of a log, one after the other.
pub(super) struct Records {
    window: Window,
    path: PathBuf,
    generation: u64,
    at: u64,
    /// What was stepped over so far.
    pub(super) damage: Damage,
}

impl Records {
    /// The next record that holds.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn next(&mut self) -> Result<Option<(Place, Record)>> {
        loop {
            let found = self.window.record(self.generation, self.at);
            match found.map_err(|error| Error::io("read", &self.path, error))? {
                Found::Record { bytes, record } => {
                    self.damage.holes += u64::from(self.damage.torn);
                    self.damage.torn = false;
                    let place = Place { offset: self.at, bytes };
                    self.at += u64::from(bytes);
                    return Ok(Some((place, record)));
                }
                Found::Damaged { next } => {
                    self.damage.torn = true;
                    self.at = next;
                }
                Found::End => return Ok(None),
            }
        }
    }
}

/// What is at an offset.
#[expect(clippy::large_enum_variant, reason = "one at a time, taken apart at once")]
enum Found {
    Record {
        bytes: u32,
        record: Record,
    },
    /// Nothing that holds; the next record is at `next` at the earliest.
    Damaged {
        next: u64,
    },
    End,
}

/// A part of a file, moved along it.
struct Window {
    file: Arc<dyn DiskFile>,
    file_len: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl Window {
    fn new(file: &Arc<dyn DiskFile>) -> io::Result<Self> {
        Ok(Self { file: Arc::clone(file), file_len: file.len()?, start: 0, bytes: Vec::new() })
    }

    /// Bytes of the file from `offset` on, `wanted` of them or what there is; more if at hand.
    fn from(&mut self, offset: u64, wanted: usize) -> io::Result<&[u8]> {
        let wanted = wanted.min(self.file_len.saturating_sub(offset) as usize);
        let held = self.start..self.start + self.bytes.len() as u64;
        if offset < held.start || offset + wanted as u64 > held.end {
            let len = WINDOW_BYTES.max(wanted).min(self.file_len.saturating_sub(offset) as usize);
            self.bytes.resize(len, 0);
            self.file.read_at(&mut self.bytes, offset)?;
            self.start = offset;
        }
        Ok(&self.bytes[(offset - self.start) as usize..])
    }

    fn record(&mut self, generation: u64, at: u64) -> io::Result<Found> {
        if at >= self.file_len {
            return Ok(Found::End);
        }
        let Ok(head) = RecordHead::decode(self.from(at, RECORD_HEAD_BYTES)?, generation, at) else {
            return Ok(Found::Damaged { next: self.next_magic(at + 1)? });
        };
        let bytes = self.from(at, head.record_bytes() as usize)?;
        let payload = bytes.get(RECORD_HEAD_BYTES..head.record_bytes() as usize);
        match payload.map(|payload| head.decode_payload(payload)) {
            Some(Ok(record)) => Ok(Found::Record { bytes: head.record_bytes() as u32, record }),
            // A head of a write that was cut off may be there without its payload, and what was
            // written since lies in the bytes that it speaks of: its length is not to be trusted.
            Some(Err(_)) | None => Ok(Found::Damaged { next: self.next_magic(at + 1)? }),
        }
    }

    /// Where a record may start, from `at` on; the end of the file where none does.
    fn next_magic(&mut self, mut at: u64) -> io::Result<u64> {
        loop {
            let (len, bytes) = (self.file_len, self.from(at, RECORD_MAGIC.len())?);
            if bytes.len() < RECORD_MAGIC.len() {
                return Ok(len);
            }
            match bytes.windows(RECORD_MAGIC.len()).position(|eight| eight == RECORD_MAGIC) {
                Some(found) => return Ok(at + found as u64),
                // The last seven may begin one that goes on behind the window.
                None => at += (bytes.len() - RECORD_MAGIC.len() + 1) as u64,
            }
        }
    }
}

/// Removes a file that may not be there.
pub(super) fn remove_if_there(disk: &dyn Disk, name: &str) -> io::Result<()> {
    match disk.remove(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// A file of the disk, for messages.
pub(super) fn path_of(disk: &dyn Disk, name: &str) -> PathBuf {
    PathBuf::from(disk.describe()).join(name)
}

/// Whose log this is, read from its head alone.
///
/// # Errors
/// `Corrupt` where both copies of its head are damaged; `Io`.
pub(super) fn user_of(disk: &dyn Disk, name: &str) -> Result<Option<String>> {
    Ok(Log::open(disk, name)?.map(|log| log.head.user))
}

const _: () = assert!(LOG_RECORDS_AT == 2 * LOG_HEAD_BYTES as u64);
