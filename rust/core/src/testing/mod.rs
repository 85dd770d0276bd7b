//! Disks that misbehave on demand, for tests, benches and fuzz targets.
//!
//! Nothing here is reachable in a release build: the module exists with the `testing`
//! feature and in the crate's own tests only. Everything that looks random is drawn from
//! a seed that the caller gives, so every failure can be replayed.

mod faults;
mod inode;
mod memory_disk;
mod names;
mod random;

pub use faults::{Effect, Fault, OpKind};
pub use memory_disk::MemoryDisk;
pub use random::Seeded;

#[cfg(test)]
mod tests;
