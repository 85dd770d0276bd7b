//! How a store is opened.

use std::path::PathBuf;

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
        }
    }
}
