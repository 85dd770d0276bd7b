//! Finding memory for a page: free slots first, then pages that have a copy on disk, then
//! waiting until the writer has made one.

use super::state::State;
use super::{Inner, closed};
use crate::error::{Error, Result};
use crate::sync::MutexGuard;
use crate::tier::ram::PageMut;

impl Inner {
    /// Bytes that stay free of admitted pages, for those that only pass through.
    pub(super) fn reserve_bytes(&self) -> u64 {
        self.config.ram_bytes / 8
    }

    /// As [`Inner::allocate`], with no wait.
    pub(super) fn memory_without_waiting(&self, state: &mut State, len: usize) -> Option<PageMut> {
        loop {
            if let Ok(Some(page)) = self.arena.allocate(len) {
                return Some(page);
            }
            if !state.evict_one() {
                return None;
            }
        }
    }

    pub(super) fn allocate(&self, len: usize) -> Result<PageMut> {
        if let Some(page) = self.arena.allocate(len)? {
            return Ok(page);
        }
        let mut state = self.state.lock();
        loop {
            if let Some(page) = self.memory_without_waiting(&mut state, len) {
                return Ok(page);
            }
            state = self.wait_for_memory(state, len as u64)?;
        }
    }

    /// Waits for a read or write to end that may free memory; an error where none is under way
    /// and the writer has nothing that it could write.
    pub(super) fn wait_for_memory<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        needed_bytes: u64,
    ) -> Result<MutexGuard<'a, State>> {
        if let Some(error) = state.write_error.take() {
            return Err(as_error(&error));
        }
        // Nobody is left who could write.
        if state.closing {
            return Err(closed());
        }
        let under_way = state.writes_in_flight > 0 || state.reads_in_flight > 0 || !state.queue.is_empty();
        let can_be_written = self.can_write() && state.unwritten_bytes > 0;
        if !under_way && !can_be_written {
            return Err(self.ram_full(needed_bytes));
        }
        state.starving += 1;
        self.work.notify_one();
        let waited = self.wait(state);
        let mut state = match waited {
            Ok(state) => state,
            Err(interrupted) => {
                self.state.lock().starving -= 1;
                return Err(interrupted);
            }
        };
        state.starving -= 1;
        Ok(state)
    }

    fn ram_full(&self, needed_bytes: u64) -> Error {
        let hint = if self.disk.is_none() {
            "give the cache a directory (disk=...) or a larger limit (ram=...)"
        } else if self.config.read_only {
            "the directory is open read-only, so new pages have to fit into RAM: raise ram=..."
        } else {
            "every page is in use at once: raise ram=..."
        };
        Error::RamFull { limit_bytes: self.config.ram_bytes, needed_bytes, hint }
    }
}

/// A copy of a background failure for the caller who hears of it.
pub(super) fn as_error(error: &Error) -> Error {
    match error {
        Error::Io { action, path, source } => {
            let copy = source.raw_os_error().map_or_else(
                || std::io::Error::new(source.kind(), source.to_string()),
                std::io::Error::from_raw_os_error,
            );
            Error::io(action, path, copy)
        }
        Error::DiskFull { used_bytes, limit_bytes, needed_bytes, hint } => Error::DiskFull {
            used_bytes: *used_bytes,
            limit_bytes: *limit_bytes,
            needed_bytes: *needed_bytes,
            hint: hint.clone(),
        },
        Error::Foreign { path, what } => Error::Foreign { path: path.clone(), what: what.clone() },
        Error::Corrupt { path, what, offset } => {
            Error::Corrupt { path: path.clone(), what: what.clone(), offset: *offset }
        }
        other => Error::Poisoned(other.to_string()),
    }
}
