//! The files that are derived from a log. Any of them may be lost at any time; none is
//! trusted before its checksum, and none outlives what it was derived from.

use std::io;

use super::log::{path_of, remove_if_there};
use super::user::Home;
use crate::error::{Error, Result};
use crate::format::{Checkpoint, VECTORS_HEAD_BYTES, VectorsHead, decode_checkpoint};
use crate::io::{Access, Usage};

/// What kinds of files there are, by the ends of their names.
const CHECKPOINT: &str = "idx";
pub(super) const DIRECTIONS: &str = "vec";
pub(super) const GRAPH: &str = "graph";
/// A log with the same memories, whose vectors are being made anew.
pub(super) const RENEWED: &str = "next";

impl Home {
    /// The file of the checkpoint.
    fn checkpoint(&self) -> String {
        super::file_of(&self.user, CHECKPOINT)
    }

    /// The checkpoint; `None` where there is none that holds.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn read_checkpoint(&self) -> Result<Option<Checkpoint>> {
        let Some(bytes) = self.read_derived(&self.checkpoint())? else { return Ok(None) };
        let checkpoint = decode_checkpoint(&bytes).ok();
        if checkpoint.is_none() {
            self.remove_indexes()?;
        }
        Ok(checkpoint)
    }

    /// Replaces the checkpoint. Not synced: what a crash leaves of it fails its checksum.
    ///
    /// # Errors
    /// `Io`; the one before is unharmed then.
    pub(super) fn write_checkpoint(&self, bytes: &[u8]) -> Result<()> {
        self.write_derived(&self.checkpoint(), &[bytes])
    }

    /// The head and the data of a file of vectors; `None` where there is none that holds and
    /// belongs to the log of this generation.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn read_vectors(&self, kind: &str, generation: u64) -> Result<Option<(VectorsHead, Vec<u8>)>> {
        let Some(mut bytes) = self.read_derived(&super::file_of(&self.user, kind))? else { return Ok(None) };
        let head = VectorsHead::decode(&bytes).ok().map(|(head, _)| head);
        let Some(head) = head.filter(|head| self.fits(head, generation)) else { return Ok(None) };
        bytes.drain(..VECTORS_HEAD_BYTES);
        Ok(Some((head, bytes)))
    }

    fn fits(&self, head: &VectorsHead, generation: u64) -> bool {
        head.generation == generation && Some(head.dimension as usize) == self.dimension
    }

    /// Replaces a file of vectors. Not synced, as the checkpoint.
    ///
    /// # Errors
    /// `Io`; the one before is unharmed then.
    pub(super) fn write_vectors(&self, kind: &str, head: &[u8], data: &[u8]) -> Result<()> {
        self.write_derived(&super::file_of(&self.user, kind), &[head, data])
    }

    /// All bytes of a derived file; `None` where there is none.
    pub(super) fn read_derived(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let failed = |error| Error::io("read", path_of(&*self.disk, name), error);
        let file = match self.disk.open(name, Access::Read, Usage::Metadata) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(failed)?,
        };
        let mut bytes = vec![0; file.len().map_err(failed)? as usize];
        file.read_at(&mut bytes, 0).map_err(failed)?;
        Ok(Some(bytes))
    }

    /// Replaces a derived file.
    pub(super) fn write_derived(&self, name: &str, parts: &[&[u8]]) -> Result<()> {
        let beside = format!("{name}.tmp");
        let written = remove_if_there(&*self.disk, &beside).and_then(|()| {
            let file = self.disk.open(&beside, Access::Create, Usage::Metadata)?;
            file.write_at(parts, 0)?;
            self.disk.rename(&beside, name)
        });
        if written.is_err() {
            // Best effort: what is left is removed when the store is opened.
            let _ = remove_if_there(&*self.disk, &beside);
        }
        written.map_err(|error| Error::io("write", path_of(&*self.disk, name), error))
    }

    /// Removes what is derived from a log, durably, so that nothing of it outlives the log.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn remove_derived(&self) -> Result<()> {
        self.remove_kinds(&[CHECKPOINT, DIRECTIONS, GRAPH, RENEWED])
    }

    /// The same, but what was made to take the log's place.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn remove_indexes(&self) -> Result<()> {
        self.remove_kinds(&[CHECKPOINT, DIRECTIONS, GRAPH])
    }

    fn remove_kinds(&self, kinds: &[&str]) -> Result<()> {
        for kind in kinds {
            let name = super::file_of(&self.user, kind);
            remove_if_there(&*self.disk, &name).map_err(|error| self.failed("remove", error))?;
        }
        self.disk.sync_dir(super::USERS).map_err(|error| self.failed("sync", error))
    }
}
