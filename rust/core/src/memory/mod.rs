//! Engram: long-term memory. Texts with their vectors, in one directory, found by words and
//! by meaning.
//!
//! What it is not: it embeds nothing and extracts nothing; a caller brings texts and vectors.
//! The invariants: a user's memories are apart from every other user's, in files of their
//! own and in structures of their own; a user's log is the only truth, and everything else
//! is derived from it; what is acknowledged is durable; what is forgotten is in no file.

mod bm25;
mod clues;
mod cosines;
mod derived;
mod directory;
mod elsewhere;
mod engram;
mod erase;
mod fusion;
mod graph;
mod log;
#[expect(clippy::module_inception, reason = "a memory is what the room is named for")]
mod memory;
mod nearest;
mod reembed;
mod retention;
mod rows;
mod scan;
mod scope;
mod search;
mod text;
mod user;
mod vectors;
mod words;

pub use clues::HAS_VECTOR;
pub use elsewhere::{Found, Prepared, Question, Ranked, prepare};
pub use engram::{Engram, EngramConfig, Stats};
pub use fusion::{BM25_B, BM25_K1, Signals, WINDOW, Weights};
pub(crate) use log::Place;
pub use memory::{DIMENSION_MAX, Draft, FOREVER, METADATA_BYTES_MAX, Memory, Stored, TEXT_BYTES_MAX, When};
pub use nearest::Progress;
pub use reembed::Reembedding;
pub use retention::Retention;
pub(crate) use rows::{Leaf, Row, Turn};
pub use scope::{NAME_BYTES_MAX, Names, Scope};
pub use search::{Hit, Query, RECALL_MAX};
pub(crate) use text::Postings;

/// The directory of the users' files.
const USERS: &str = "users";

/// A file of a user. The name is a hash: it fits every file system, and tells nobody's name.
fn file_of(user: &str, kind: &str) -> String {
    let hash = blake3::derive_key("stratakv engram user", user.as_bytes());
    let number = hash.iter().take(16).fold(0_u128, |number, byte| number << 8 | u128::from(*byte));
    format!("{USERS}/{number:032x}.{kind}")
}

/// Whether a file's name ends as those of this kind do.
fn is_kind(name: &str, kind: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(_, end)| end == kind)
}

#[cfg(test)]
mod tests;
