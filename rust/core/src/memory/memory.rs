//! What is remembered, and what comes back.

use super::scope::{NAME_BYTES_MAX, Names};
use crate::error::{Error, Result};

/// A time that never comes, in milliseconds since 1970: the end of what is still true.
pub const FOREVER: i64 = i64::MAX;

/// Longest text in bytes.
pub const TEXT_BYTES_MAX: usize = 1 << 20;
/// Longest metadata, and longest source, in bytes.
pub const METADATA_BYTES_MAX: usize = 64 << 10;
/// Most elements of a vector.
pub const DIMENSION_MAX: usize = 65_536;

/// What a log's record of a memory holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// The scope below the user.
    pub names: Names,
    /// The text.
    pub text: String,
    /// The caller's own data; opaque here.
    pub metadata: String,
    /// Where it came from.
    pub source: Option<String>,
    /// Who said it.
    pub author: Option<String>,
    /// The text's embedding; empty where there is none.
    pub vector: Vec<f32>,
    /// From when it is true, in milliseconds since 1970.
    pub valid_from: i64,
    /// Until when, as was known when it was recorded; [`FOREVER`] where that was not known.
    pub valid_to: i64,
    /// When it was recorded.
    pub recorded: i64,
    /// The memory whose place it takes; 0 for none.
    pub supersedes: u64,
}

/// Something to remember.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Draft {
    /// The text, 1 byte to 1 MiB.
    pub text: String,
    /// The caller's own data, opaque here; at most 64 KiB.
    pub metadata: String,
    /// Where it came from; at most 64 KiB.
    pub source: Option<String>,
    /// Who said it, 1 to 1,024 bytes: questions that name who are answered better.
    pub author: Option<String>,
    /// The text's embedding: of the store's dimension, finite, and not all zeros.
    pub vector: Option<Vec<f32>>,
    /// From when it is true, in milliseconds since 1970; from now on if not given.
    pub valid_from: Option<i64>,
    /// Until when it is true, if that is known.
    pub valid_to: Option<i64>,
    /// When it became known; now if not given.
    pub recorded: Option<i64>,
    /// The memory whose place it takes. Both are in the scope of the older one then.
    pub supersedes: Option<u64>,
}

impl Draft {
    /// A text alone.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::default() }
    }

    /// The record of this draft.
    ///
    /// # Errors
    /// `Invalid` for what is too long, empty, or no vector of the store's dimension.
    pub(super) fn stored(&self, names: &Names, now: i64, dimension: Option<usize>) -> Result<Stored> {
        length("text", self.text.len(), 1, TEXT_BYTES_MAX)?;
        length("metadata", self.metadata.len(), 0, METADATA_BYTES_MAX)?;
        length("source", self.source.as_deref().map_or(0, str::len), 0, METADATA_BYTES_MAX)?;
        if let Some(author) = &self.author {
            length("author", author.len(), 1, NAME_BYTES_MAX)?;
        }
        if let Some(vector) = &self.vector {
            check_vector(vector, dimension)?;
        }
        let recorded = self.recorded.unwrap_or(now);
        let valid_from = self.valid_from.unwrap_or(recorded);
        let valid_to = self.valid_to.unwrap_or(FOREVER);
        if valid_to <= valid_from {
            return Err(Error::Invalid(format!(
                "valid_to={valid_to} is not after valid_from={valid_from} (milliseconds since 1970)"
            )));
        }
        Ok(Stored {
            names: names.clone(),
            text: self.text.clone(),
            metadata: self.metadata.clone(),
            source: self.source.clone(),
            author: self.author.clone(),
            vector: self.vector.clone().unwrap_or_default(),
            valid_from,
            valid_to,
            recorded,
            supersedes: self.supersedes.unwrap_or(0),
        })
    }
}

fn length(what: &str, bytes: usize, least: usize, most: usize) -> Result<()> {
    if (least..=most).contains(&bytes) {
        return Ok(());
    }
    Err(Error::Invalid(format!("{what} has {bytes} bytes, accepted are {least} to {most}")))
}

/// A vector that a cosine can be taken with.
pub(super) fn check_vector(vector: &[f32], dimension: Option<usize>) -> Result<()> {
    let Some(dimension) = dimension else {
        return Err(Error::Invalid(
            "a vector for a store without an embedder: open it with the embedder's identity and dimension"
                .into(),
        ));
    };
    if vector.len() != dimension {
        let len = vector.len();
        return Err(Error::Invalid(format!("a vector of {len} elements, this store's have {dimension}")));
    }
    let norm = vector.iter().map(|value| f64::from(*value) * f64::from(*value)).sum::<f64>();
    if !norm.is_finite() || norm <= 0.0 {
        return Err(Error::Invalid(
            "a vector needs a direction: finite elements, not all of them zero".into(),
        ));
    }
    Ok(())
}

/// A memory, as it is told.
#[derive(Clone, Debug, PartialEq)]
pub struct Memory {
    /// Its number among the user's memories, from 1 on; never given again.
    pub id: u64,
    /// The scope below the user.
    pub names: Names,
    /// The text.
    pub text: String,
    /// The caller's own data.
    pub metadata: String,
    /// Where it came from.
    pub source: Option<String>,
    /// Who said it.
    pub author: Option<String>,
    /// The text's embedding; empty where there is none.
    pub vector: Vec<f32>,
    /// From when it is true, in milliseconds since 1970.
    pub valid_from: i64,
    /// Until when, as far as is known now; [`FOREVER`] where it is not.
    pub valid_to: i64,
    /// When it was recorded.
    pub recorded: i64,
    /// When it became known that it is not true any more; [`FOREVER`] where it did not.
    pub closed: i64,
    /// The memory whose place it took.
    pub supersedes: Option<u64>,
    /// The memory that took its place.
    pub superseded_by: Option<u64>,
}

/// What counts as present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct When {
    /// What was true at this time, in milliseconds since 1970. Without it: whatever has not
    /// ceased to be true by now, what is still to come included.
    pub as_of: Option<i64>,
    /// As it was known at this time; later records and corrections count as unknown.
    pub known_at: i64,
    /// Whatever was recorded, whether it is true or not.
    pub any: bool,
}

impl When {
    /// What is true and known at `now`.
    pub const fn now(now: i64) -> Self {
        Self { as_of: None, known_at: now, any: false }
    }
}
