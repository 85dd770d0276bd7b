//! One process writes a directory: a lock file with the owner's name in it.
//!
//! The lock is the operating system's, so it goes with the process however that ends; a
//! file left behind is only a note, taken over by the next owner.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use crate::error::{Error, Result};

/// Name of the lock file.
const LOCK_FILE: &str = "LOCK";

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
        let mut file = options.open(&path).map_err(|error| Error::io("open", &path, error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::Locked { path: directory.to_path_buf(), owner: owner(&mut file) });
            }
            Err(TryLockError::Error(error)) => return Err(Error::io("lock", &path, error)),
        }
        write_owner(&mut file).map_err(|error| Error::io("write", &path, error))?;
        Ok(Self { file, process: std::process::id() })
    }
}

fn owner(file: &mut File) -> String {
    let mut text = String::new();
    // A damaged note only costs the owner's name.
    let _ = file.take(4096).read_to_string(&mut text);
    let text = text.trim();
    if text.is_empty() { "another process".into() } else { text.replace('\n', ", ") }
}

fn write_owner(file: &mut File) -> std::io::Result<()> {
    file.seek(SeekFrom::Start(0))?;
    file.set_len(0)?;
    writeln!(file, "process {}", std::process::id())?;
    file.flush()
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
