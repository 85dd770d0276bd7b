//! Engram: long-term memory. Texts with their vectors, in one directory, found by words and
//! by meaning.
//!
//! What it is not: it embeds nothing and extracts nothing; a caller brings texts and vectors.
//! The invariants: a user's memories are apart from every other user's, in files of their
//! own and in structures of their own; a user's log is the only truth, and everything else
//! is derived from it; what is acknowledged is durable; what is forgotten is in no file.

mod engram;
mod fusion;
mod log;
#[expect(clippy::module_inception, reason = "a memory is what the room is named for")]
mod memory;
mod rows;
mod scan;
mod scope;
mod search;
mod text;
mod user;
mod vectors;
mod words;

pub use engram::{Engram, EngramConfig, Stats};
pub use fusion::{Signals, Weights};
pub use memory::{DIMENSION_MAX, Draft, FOREVER, METADATA_BYTES_MAX, Memory, Stored, TEXT_BYTES_MAX, When};
pub use scope::{NAME_BYTES_MAX, Names, Scope};
pub use search::{Hit, Query, RECALL_MAX};

/// The directory of the users' files.
const USERS: &str = "users";

/// A file of a user. The name is a hash: it fits every file system, and tells nobody's name.
fn file_of(user: &str, kind: &str) -> String {
    let hash = blake3::derive_key("stratakv engram user", user.as_bytes());
    let name: String = hash[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{USERS}/{name}.{kind}")
}

#[cfg(test)]
mod tests;
