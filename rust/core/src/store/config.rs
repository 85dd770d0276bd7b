//! How a store is opened.

use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::io::Backend;
use crate::policy::PolicyKind;

/// A segment is about this large: one sync and one table of contents for many groups, and
/// still a small unit to delete.
const SEGMENT_BYTES: u64 = 64 << 20;
/// A group is about this large: one write that keeps a disk busy.
const GROUP_BYTES: u64 = 16 << 20;

/// Settings of a store.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Limit of the warm tier in bytes; never exceeded.
    pub ram_bytes: u64,
    /// Where the cold tier lives; `None` keeps everything in RAM.
    pub directory: Option<PathBuf>,
    /// Limit of everything in the directory, in bytes; `None` is only the free-space floor.
    pub disk_limit_bytes: Option<u64>,
    /// Bytes that stay free on the file system whatever the limit says.
    pub free_floor_bytes: u64,
    /// Open without the lock, and write nothing.
    pub read_only: bool,
    /// How files are read and written.
    pub backend: Backend,
    /// Which pages stay in RAM.
    pub policy: PolicyKind,
}

impl StoreConfig {
    /// A store in RAM only.
    pub fn in_memory(ram_bytes: u64) -> Self {
        Self {
            ram_bytes,
            directory: None,
            disk_limit_bytes: None,
            free_floor_bytes: 1 << 30,
            read_only: false,
            backend: Backend::default(),
            policy: PolicyKind::default(),
        }
    }

    /// A store with a directory.
    pub fn on_disk(ram_bytes: u64, directory: impl Into<PathBuf>) -> Self {
        Self { directory: Some(directory.into()), ..Self::in_memory(ram_bytes) }
    }

    /// Refuses settings that can't work.
    pub(super) fn check(&self) -> Result<()> {
        if self.ram_bytes < 1 << 16 {
            let given = self.ram_bytes;
            return Err(Error::Invalid(format!(
                "a RAM limit of {given} bytes holds no page; 64KiB is the least"
            )));
        }
        Ok(())
    }

    /// Small limits get small segments, so that deleting one frees a small share.
    pub(super) fn segment_bytes(&self) -> u64 {
        self.disk_limit_bytes.map_or(SEGMENT_BYTES, |limit| (limit / 16).clamp(1 << 16, SEGMENT_BYTES))
    }

    /// Bytes written at once; a small share of RAM where that is small.
    pub(super) fn group_bytes(&self) -> u64 {
        GROUP_BYTES.min(self.ram_bytes / 16).min(self.segment_bytes())
    }

    /// Pages that fit, for the policy to size its history by.
    pub(super) fn expected_pages(&self) -> usize {
        const TYPICAL_PAGE_BYTES: u64 = 64 << 10;
        usize::try_from(self.ram_bytes / TYPICAL_PAGE_BYTES).unwrap_or(usize::MAX).max(64)
    }
}
