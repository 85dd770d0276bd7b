//! One process writes a directory: a lock file with the owner's name in it.
//!
//! The lock is the operating system's, so it goes with the process however that ends; a
//! file left behind is only a note, taken over by the next owner. Windows lets no other
//! handle read what is locked, so there the note is a file beside the lock.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use crate::error::{Error, Result};

/// Name of the lock file.
const LOCK_FILE: &str = "LOCK";
/// Name of the file with the owner's name, where that can't be the lock file.
#[cfg(windows)]
const NOTE_FILE: &str = "LOCK.owner";

/// Held while a store may write.
#[derive(Debug)]
pub struct DirectoryLock {
    file: File,
    process: u32,
}

impl Drop for DirectoryLock {
    fn drop(&mut self) {
        // Forked children have the file open too, and the lock is theirs as much as ours:
        // closing it here would leave the directory locked for as long as they live, and
        // unlocking it there would take the lock from the owner.
        if std::process::id() == self.process {
            let _ = self.file.unlock();
        }
    }
}

impl DirectoryLock {
    /// Takes the lock of `directory`.
    ///
    /// # Errors
    /// `Locked` with the owner where another process has it; `Io`.
    pub fn take(directory: &Path) -> Result<Self> {
        let path = directory.join(LOCK_FILE);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        #[cfg(unix)]
        {
            use std::os::unix::fs::OpenOptionsExt;
            options.mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC);
        }
        let file = options.open(&path).map_err(|error| Error::io("open", &path, error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                // A missing or damaged note only costs the owner's name.
                let owner = note(&file, directory).and_then(read_owner).unwrap_or_default();
                let owner = if owner.is_empty() { "another process".into() } else { owner };
                return Err(Error::Locked { path: directory.to_path_buf(), owner });
            }
            Err(TryLockError::Error(error)) => return Err(Error::io("lock", &path, error)),
        }
        let written = note(&file, directory).and_then(write_owner);
        written.map_err(|error| Error::io("write", &path, error))?;
        Ok(Self { file, process: std::process::id() })
    }
}

/// The file that the owner's name is in.
#[cfg(windows)]
fn note(_lock: &File, directory: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(directory.join(NOTE_FILE))
}

/// The file that the owner's name is in.
#[cfg(not(windows))]
fn note(lock: &File, _directory: &Path) -> io::Result<File> {
    lock.try_clone()
}

fn read_owner(note: File) -> io::Result<String> {
    let mut text = String::new();
    note.take(4096).read_to_string(&mut text)?;
    Ok(text.trim().replace('\n', ", "))
}

fn write_owner(mut note: File) -> io::Result<()> {
    note.seek(SeekFrom::Start(0))?;
    note.set_len(0)?;
    writeln!(note, "process {}", std::process::id())?;
    note.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_owner_is_told_who_the_first_is() {
        let directory = tempfile::tempdir().unwrap();
        let first = DirectoryLock::take(directory.path()).unwrap();
        let error = DirectoryLock::take(directory.path()).unwrap_err();
        assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
        drop(first);
        // The file stays, the lock does not: a stale note is taken over.
        assert!(directory.path().join(LOCK_FILE).exists());
        DirectoryLock::take(directory.path()).unwrap();
    }

    /// A forked child has the file open as long as it lives, as this clone does.
    #[test]
    fn a_lock_that_was_given_back_is_free_though_a_child_has_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let lock = DirectoryLock::take(directory.path()).unwrap();
        let child = lock.file.try_clone().unwrap();
        drop(lock);
        DirectoryLock::take(directory.path()).unwrap();
        drop(child);
    }
}
