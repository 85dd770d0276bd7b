//! What the tiers hold and have done.

use super::state::Counters;
use super::{Inner, Store};

/// Present sizes, and counters since opening.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Limit of RAM in bytes.
    pub ram_limit_bytes: u64,
    /// Bytes of the pages in RAM, open ones included.
    pub ram_used_bytes: u64,
    /// Sealed pages in RAM.
    pub ram_pages: u64,
    /// Limit of the directory in bytes, if one is set.
    pub disk_limit_bytes: Option<u64>,
    /// Bytes of the files in the directory.
    pub disk_used_bytes: u64,
    /// Pages in those.
    pub disk_pages: u64,
    /// Counters since opening.
    pub counters: Counters,
    /// The I/O engine's name.
    pub io: &'static str,
    /// The policy's name.
    pub policy: &'static str,
}

impl Store {
    /// What the tiers hold and have done.
    pub fn stats(&self) -> Stats {
        let state = self.inner.state.lock();
        Stats {
            ram_limit_bytes: self.inner.config.ram_bytes,
            ram_used_bytes: self.inner.arena.usage().used_bytes,
            ram_pages: state.ram_pages,
            disk_limit_bytes: self.inner.config.disk_limit_bytes,
            disk_used_bytes: Inner::disk_used(&state),
            disk_pages: state.index.len() as u64,
            counters: state.counters,
            io: if self.inner.disk.is_some() { self.inner.engine.name() } else { "none" },
            policy: state.policy.name(),
        }
    }
}
