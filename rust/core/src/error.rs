//! The one error type of the engine. Messages carry what was found, what was expected
//! and what to do next.

use std::path::PathBuf;

/// Everything that can go wrong in the engine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operation of the file system failed.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was being done, as a verb: "read", "write", "create".
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The operating system's error.
        #[source]
        source: std::io::Error,
    },
    /// The warm tier cannot hold what is needed at once.
    #[error(
        "the RAM limit of {limit_bytes} bytes is full: {needed_bytes} bytes more are needed and nothing can be \
         moved out ({hint})"
    )]
    RamFull {
        /// The limit that the user set.
        limit_bytes: u64,
        /// Size of the allocation that failed.
        needed_bytes: u64,
        /// What to do next.
        hint: &'static str,
    },
    /// The disk limit or the free-space floor is reached and nothing is left to evict.
    #[error(
        "the disk tier is full: {used_bytes} bytes used of a limit of {limit_bytes}, {needed_bytes} more needed; \
         {hint}"
    )]
    DiskFull {
        /// Bytes that the directory holds.
        used_bytes: u64,
        /// The limit in force: the user's, or what the free-space floor leaves.
        limit_bytes: u64,
        /// Bytes that were to be written.
        needed_bytes: u64,
        /// What to do next.
        hint: String,
    },
    /// Another process writes the directory.
    #[error("{path} is in use by {owner}; close it there, or open it read-only here")]
    Locked {
        /// The directory.
        path: PathBuf,
        /// The owner's process id and host, as its lock file tells.
        owner: String,
    },
    /// A mutating call on a store that was opened read-only.
    #[error("the store was opened read-only: {action} is not possible")]
    ReadOnly {
        /// What was attempted.
        action: &'static str,
    },
    /// A store used in a forked child.
    #[error(
        "this store belongs to process {owner}, and this is process {here}: a forked child opens its own \
         (read-only where the parent still writes)"
    )]
    Forked {
        /// The process that opened the store.
        owner: u32,
        /// The calling process.
        here: u32,
    },
    /// Bytes on disk that are not what the format says.
    #[error("{path}: {what} at offset {offset}")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
        /// Where, in bytes from the start of the file.
        offset: u64,
    },
    /// A file of a newer format, or of another program.
    #[error("{path}: {what}")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it is, and what is accepted.
        what: String,
    },
    /// A named thing that does not exist.
    #[error("{what}")]
    NotFound {
        /// What was looked for, and what there is instead.
        what: String,
    },
    /// A session that was written by another model or with other settings.
    #[error("session {name:?} was written with other settings: {differences}")]
    SettingsMismatch {
        /// The session.
        name: String,
        /// "field: session has X, this cache has Y" for each that differs.
        differences: String,
    },
    /// A number that no memory of the scope has.
    #[error("no memory {id} in this scope of {user:?}")]
    NoMemory {
        /// The number.
        id: u64,
        /// Whose memories were asked.
        user: String,
    },
    /// Memories whose vectors another embedder made.
    #[error(
        "the memories in {path} were embedded by {stored}, not by {given}: vectors of two embedders do not compare; \
         open them with the first, or embed them anew: `stratakv memory reembed`, `Engram.reembed`"
    )]
    EmbedderMismatch {
        /// The directory.
        path: PathBuf,
        /// Identity and dimension of the embedder whose vectors are there.
        stored: String,
        /// Those of the one that was given.
        given: String,
    },
    /// The index of vectors failed; the memories are unharmed.
    #[error("the index of vectors failed ({0}); the memories are unharmed, call again")]
    Index(String),
    /// An argument outside what is accepted.
    #[error("{0}")]
    Invalid(String),
    /// A page that the session needs and that no tier holds any more.
    #[error(
        "{missing} of {total} pages are lost (first at token {first_token}); re-run the prefill from there"
    )]
    PagesLost {
        /// Pages that are missing.
        missing: u64,
        /// Pages that were asked for.
        total: u64,
        /// First token that the lost pages cover.
        first_token: u64,
    },
    /// Ctrl-C while waiting.
    #[error("interrupted")]
    Interrupted,
    /// A background write failed earlier; nothing further is accepted.
    #[error("an earlier write failed ({0}); the store is read-only until it is reopened")]
    Poisoned(String),
}

impl Error {
    /// Wraps an operating system error with what was being done, and to what.
    pub fn io(action: &'static str, path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { action, path: path.into(), source }
    }
}

/// The engine's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;
