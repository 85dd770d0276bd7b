//! Forgetting: a log is written anew without what is forgotten, and takes the old one's place.

use super::log::remove_if_there;
use super::scope::{Names, Scope};
use super::user::User;
use crate::error::Result;
use crate::format::Record;

/// Bytes that are collected before they are written to a new log.
const REWRITE_BYTES: usize = 4 << 20;

impl User {
    /// Erases memories with all their versions: the log is written anew without them.
    /// How many records went.
    ///
    /// # Errors
    /// `NoMemory` for any that the scope does not cover, and nothing is erased then; `Io`.
    pub(super) fn forget(&mut self, scope: &Scope, ids: &[u64]) -> Result<u64> {
        let mut gone = vec![false; self.rows.len()];
        for id in ids {
            for version in self.versions(self.find(scope, *id)?) {
                gone[version as usize] = true;
            }
        }
        self.erase(&gone)
    }

    /// Erases everything that the scope covers.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn forget_all(&mut self, scope: &Scope) -> Result<u64> {
        if *scope.names() == Names::default() && self.log.is_some() {
            // The whole user: also what is damaged, and so in no row.
            self.broken = true;
            self.remove_files()?;
            return Ok(self.rows.len() as u64);
        }
        let covered = self.rows.covered(scope.names());
        let gone: Vec<bool> = self.rows.all().iter().map(|row| covered[row.leaf as usize]).collect();
        self.erase(&gone)
    }

    /// Writes the log anew without some rows, and with nothing that was damaged.
    pub(super) fn erase(&mut self, gone: &[bool]) -> Result<u64> {
        let count = gone.iter().filter(|gone| **gone).count() as u64;
        if count == 0 {
            return Ok(0);
        }
        // Whatever happens from here on, the files say what is there.
        self.broken = true;
        if count == gone.len() as u64 {
            self.remove_files()?;
        } else {
            self.rewrite(gone)?;
        }
        Ok(count)
    }

    /// Removes all of the user's files: nothing is left, not even the name.
    fn remove_files(&mut self) -> Result<()> {
        self.home.remove_derived()?;
        let disk = &self.home.disk;
        remove_if_there(&**disk, &self.home.log()).map_err(|error| self.home.failed("remove", error))?;
        disk.sync_dir(super::USERS).map_err(|error| self.home.failed("sync", error))
    }

    fn rewrite(&mut self, gone: &[bool]) -> Result<()> {
        let Some(old) = &self.log else { return Ok(()) };
        let kept = |id: u64| self.rows.find(id).filter(|row| !gone[*row as usize]);
        self.create_log(|new| {
            let mut old = old.rescanned();
            let mut batch = Vec::new();
            let mut bytes = 0;
            old.scan(|place, record| {
                // Of two records of one number, the first is the memory.
                let is_kept = kept(record.id()).is_some_and(|row| {
                    matches!(record, Record::End { .. }) || self.rows.row(row).place == place
                });
                if is_kept {
                    bytes += place.bytes as usize;
                    batch.push(record);
                }
                if bytes >= REWRITE_BYTES {
                    bytes = 0;
                    new.append(&std::mem::take(&mut batch), false)?;
                }
                Ok(())
            })?;
            new.append(&batch, false).map(drop)
        })?;
        Ok(())
    }
}
