//! Where bytes go: files in one directory, read and written in batches.
//!
//! [`Disk`] is the directory: names, lengths, renames, syncs. [`IoEngine`] carries out
//! batches of aligned reads and writes on its files asynchronously. The store above
//! knows only these two traits, so a test can put a disk that crashes, tears writes or
//! fails on the Nth call under the whole engine.
//!
//! Alignment: every offset and every buffer length that reaches an engine is a multiple
//! of [`ALIGN`], and every buffer starts on an [`ALIGN`] boundary, so that one layout
//! serves direct I/O, mapping and plain files.

mod aligned;
mod blocking;
mod config;
mod directory;
mod file;
mod inline;
mod mmap;
pub(crate) mod names;
mod platform;
mod pool;
mod rows;
#[cfg(target_os = "linux")]
mod uring;

use std::io;
use std::sync::Arc;
use std::time::SystemTime;

pub use aligned::AlignedBuf;
pub use config::{Backend, EngineKind, IoConfig, open_engine};
pub use directory::{Mode, OsDisk};
pub use inline::InlineEngine;
pub use pool::{PoolConfig, PoolEngine};
pub use rows::RowFile;
#[cfg(target_os = "linux")]
pub use uring::{UringConfig, UringEngine};

/// Alignment of records, buffers and offsets, in bytes: the largest logical block size
/// of the disks in use, and the page size of the machines we know.
pub const ALIGN: usize = 4096;

/// One file of a [`Disk`].
///
/// Implementations MUST be safe to call from many threads at once on disjoint ranges,
/// MUST return an error rather than a short transfer, and MUST NOT change bytes outside
/// the range named.
pub trait DiskFile: Send + Sync {
    /// Length in bytes.
    ///
    /// # Errors
    /// Whatever the file system says.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file is empty.
    ///
    /// # Errors
    /// Whatever the file system says.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` where the file ends early; else what the file system says.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `parts`, one after the other, from `offset`, growing the file.
    ///
    /// # Errors
    /// `StorageFull` when the disk is; else what the file system says.
    fn write_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()>;

    /// Makes everything written so far durable. The file MUST have been opened for
    /// writing: Windows flushes no other.
    ///
    /// # Errors
    /// What the file system says; the caller must treat the file as lost for writing.
    fn sync(&self) -> io::Result<()>;

    /// The descriptor for engines that submit to the kernel themselves, where there is one.
    fn raw_fd(&self) -> Option<i32> {
        None
    }
}

/// An entry of a directory listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Path relative to the disk's root, with `/` between parts.
    pub name: String,
    /// Length in bytes.
    pub len: u64,
    /// Last modification.
    pub modified: SystemTime,
    /// False for anything that is not a regular file (directory, link, socket).
    pub is_file: bool,
}

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// An existing file, for reading.
    Read,
    /// An existing file, for reading and writing.
    Write,
    /// A file that must not exist yet, for reading and writing.
    Create,
}

/// How a file's bytes are used, so that a disk can choose how to open it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// Page bodies: large, aligned, read at random; direct I/O where possible.
    Pages,
    /// Small metadata, read and written as a whole; always buffered.
    Metadata,
}

/// A private directory: files 0600, directories 0700.
///
/// Names are relative, use `/`, and never contain `..`. Implementations MUST refuse
/// to follow a symbolic link out of the directory when opening for writing.
pub trait Disk: Send + Sync {
    /// Where this is, for messages.
    fn describe(&self) -> String;

    /// Opens or creates a file.
    ///
    /// # Errors
    /// `NotFound`, `AlreadyExists` for [`Access::Create`], else what the file system says.
    fn open(&self, name: &str, access: Access, usage: Usage) -> io::Result<Arc<dyn DiskFile>>;

    /// Everything directly inside `dir` ("" is the root), sorted by name.
    ///
    /// # Errors
    /// `NotFound`, or what the file system says.
    fn list(&self, dir: &str) -> io::Result<Vec<Entry>>;

    /// Creates a directory (0700) unless it exists.
    ///
    /// # Errors
    /// What the file system says.
    fn create_dir(&self, dir: &str) -> io::Result<()>;

    /// Moves `from` over `to`, atomically. Durable after [`Disk::sync_dir`].
    ///
    /// # Errors
    /// What the file system says.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// What the file system says.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes the directory's names durable.
    ///
    /// # Errors
    /// What the file system says.
    fn sync_dir(&self, dir: &str) -> io::Result<()>;

    /// Sets a file's modification time to now.
    ///
    /// # Errors
    /// What the file system says.
    fn touch(&self, name: &str) -> io::Result<()>;

    /// Bytes that an unprivileged user may still write.
    ///
    /// # Errors
    /// What the file system says.
    fn free_bytes(&self) -> io::Result<u64>;
}

/// A buffer that an engine may fill. Its address must not change while the box moves,
/// and it must start on an [`ALIGN`] boundary with a length that is a multiple of it.
pub trait ReadBuf: Send {
    /// The bytes to fill.
    fn bytes_mut(&mut self) -> &mut [u8];
    /// Lets the owner of a batch take its concrete buffer back.
    fn into_any(self: Box<Self>) -> Box<dyn std::any::Any + Send>;
}

/// Bytes that an engine may write from, kept alive by the operation that names them.
/// Same alignment as [`ReadBuf`].
pub trait WriteBuf: Send + Sync {
    /// The bytes to write.
    fn bytes(&self) -> &[u8];
}

/// What happens when a read ends: the buffer comes back with the outcome.
pub type ReadDone = Box<dyn FnOnce(Box<dyn ReadBuf>, io::Result<()>) + Send>;
/// What happens when a write ends.
pub type WriteDone = Box<dyn FnOnce(io::Result<()>) + Send>;

/// One operation of a batch.
pub enum IoOp {
    /// Fill `buf` from `offset` of `file`.
    Read {
        /// The file.
        file: Arc<dyn DiskFile>,
        /// Offset in bytes, a multiple of [`ALIGN`].
        offset: u64,
        /// Where the bytes go.
        buf: Box<dyn ReadBuf>,
        /// Called exactly once, on any thread, with the buffer.
        done: ReadDone,
    },
    /// Write `parts` one after the other from `offset` of `file`.
    Write {
        /// The file.
        file: Arc<dyn DiskFile>,
        /// Offset in bytes, a multiple of [`ALIGN`].
        offset: u64,
        /// What is written; each part's length is a multiple of [`ALIGN`].
        parts: Vec<Arc<dyn WriteBuf>>,
        /// Called exactly once, on any thread.
        done: WriteDone,
    },
}

/// Carries out operations asynchronously, many at a time.
///
/// Implementations MUST call every `done` exactly once, also when the engine is dropped
/// (drop waits for what was submitted), MUST NOT run `done` inside `submit`'s caller
/// while holding a lock of their own, and MAY reorder operations.
pub trait IoEngine: Send + Sync {
    /// Name for reports: "io_uring", "pread", "mmap".
    fn name(&self) -> &'static str;
    /// Queues a batch. Blocks only while the engine's own queue is full.
    fn submit(&self, batch: Vec<IoOp>);
}

#[cfg(test)]
mod tests;
