//! Checkpoints of a user's memories: what a reader of the log would find out, ready to use.

use std::collections::HashMap;

use super::bytes::{Reader, Writer, check_crc, stamp_crc};
use super::{FORMAT_VERSION, Flaw};
use crate::memory::{Leaf, Names, Place, Postings, Row, Turn};

const MAGIC: &[u8; 8] = b"STRATIDX";
const CRC_AT: usize = 12;
/// Bytes of a row.
const ROW_BYTES: usize = 104;
const HAS_AGENT: u32 = 1;
const HAS_PROJECT: u32 = 2;
const HAS_SESSION: u32 = 4;

/// What is derived from the first part of a log.
#[derive(Debug, Default)]
pub struct Checkpoint {
    /// The log's generation.
    pub generation: u64,
    /// How far the log was read, in bytes.
    pub end: u64,
    /// The first number that no memory has.
    pub next_id: u64,
    /// Damaged stretches up to there.
    pub holes: u64,
    pub(crate) rows: Vec<Row>,
    /// One for each row.
    pub(crate) turns: Vec<Turn>,
    pub(crate) leaves: Vec<Leaf>,
    pub(crate) authors: Vec<String>,
    pub(crate) terms: HashMap<Box<str>, Postings>,
}

/// What a checkpoint is written from.
pub(crate) struct CheckpointParts<'a> {
    pub(crate) generation: u64,
    pub(crate) end: u64,
    pub(crate) next_id: u64,
    pub(crate) holes: u64,
    pub(crate) rows: &'a [Row],
    pub(crate) turns: &'a [Turn],
    pub(crate) leaves: &'a [Leaf],
    pub(crate) authors: &'a [String],
    pub(crate) terms: &'a HashMap<Box<str>, Postings>,
}

impl CheckpointParts<'_> {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let postings: usize = self.terms.iter().map(|(term, one)| term.len() + one.bytes.len() + 20).sum();
        let mut writer = Writer(Vec::with_capacity(self.rows.len() * ROW_BYTES + postings + 4096));
        writer.raw(MAGIC).u32(FORMAT_VERSION).u32(0);
        writer.u64(self.generation).u64(self.end).u64(self.next_id).u64(self.holes);
        writer.u64(self.leaves.len() as u64);
        for leaf in self.leaves {
            encode_leaf(&mut writer, leaf);
        }
        writer.u64(self.authors.len() as u64);
        for author in self.authors {
            writer.blob(author.as_bytes());
        }
        writer.u64(self.rows.len() as u64);
        for (row, turn) in self.rows.iter().zip(self.turns) {
            encode_row(&mut writer, row, turn);
        }
        writer.u64(self.terms.len() as u64);
        for (term, postings) in self.terms {
            writer.blob(term.as_bytes()).u32(postings.last).blob(&postings.bytes);
        }
        let mut bytes = writer.0;
        stamp_crc(&mut bytes, CRC_AT);
        bytes
    }
}

/// Reads a checkpoint.
///
/// # Errors
/// What is wrong with it.
pub fn decode_checkpoint(bytes: &[u8]) -> Result<Checkpoint, Flaw> {
    let mut reader = Reader(bytes);
    if reader.array()? != *MAGIC {
        return Err("does not start as a checkpoint of memories does".into());
    }
    let (version, _crc) = (reader.u32()?, reader.u32()?);
    if version != FORMAT_VERSION {
        return Err(format!("has format version {version}; this build reads {FORMAT_VERSION}"));
    }
    check_crc(bytes, CRC_AT)?;
    let (generation, end, next_id, holes) = (reader.u64()?, reader.u64()?, reader.u64()?, reader.u64()?);
    let leaves =
        (0..reader.count(60)?).map(|_| decode_leaf(&mut reader)).collect::<Result<Vec<_>, Flaw>>()?;
    let authors = (0..reader.count(8)?).map(|_| reader.text()).collect::<Result<Vec<_>, Flaw>>()?;
    let count = reader.count(ROW_BYTES)?;
    let (mut rows, mut turns) = (Vec::with_capacity(count), Vec::with_capacity(count));
    for _ in 0..count {
        let (row, turn) = decode_row(&mut reader)?;
        rows.push(row);
        turns.push(turn);
    }
    check(&rows, &turns, &leaves, &authors)?;
    let mut terms = HashMap::new();
    for _ in 0..reader.count(20)? {
        let term = reader.text()?.into_boxed_str();
        let (last, bytes) = (reader.u32()?, reader.blob()?.to_vec());
        terms.insert(term, Postings { bytes, last });
    }
    Ok(Checkpoint { generation, end, next_id, holes, rows, turns, leaves, authors, terms })
}

/// What lookups rely on.
fn check(rows: &[Row], turns: &[Turn], leaves: &[Leaf], authors: &[String]) -> Result<(), Flaw> {
    let is_row = |row: u32| row == u32::MAX || (row as usize) < rows.len();
    let is_author = |author: u32| author == u32::MAX || (author as usize) < authors.len();
    let fits = |row: &Row| {
        (row.leaf as usize) < leaves.len()
            && is_author(row.author)
            // Versions lead one way, or who follows them would never arrive; 0 stands for none.
            && row.id != 0
            && (row.superseded_by == 0 || row.superseded_by > row.id)
            && (row.supersedes == 0 || row.supersedes < row.id)
    };
    let stands = |turn: &Turn| is_row(turn.previous) && is_row(turn.next);
    if !rows.iter().all(fits)
        || !turns.iter().all(stands)
        || !leaves.iter().all(|leaf| leaf.last.is_none_or(is_row))
    {
        return Err("names rows, scopes, authors or versions that it does not have".into());
    }
    if !rows.is_sorted_by(|a, b| a.id < b.id) {
        return Err("has numbers out of order".into());
    }
    Ok(())
}

fn encode_leaf(writer: &mut Writer, leaf: &Leaf) {
    let names = [&leaf.names.agent, &leaf.names.project, &leaf.names.session];
    let flags = [HAS_AGENT, HAS_PROJECT, HAS_SESSION];
    let flags = names.iter().zip(flags).filter(|(name, _)| name.is_some()).map(|(_, flag)| flag).sum();
    writer.u32(flags).u32(leaf.last.unwrap_or(u32::MAX));
    writer.u64(leaf.rows).u64(leaf.words).u64(leaf.window_words);
    for name in names {
        writer.blob(name.as_deref().unwrap_or_default().as_bytes());
    }
}

fn decode_leaf(reader: &mut Reader<'_>) -> Result<Leaf, Flaw> {
    let (flags, last) = (reader.u32()?, reader.u32()?);
    let (rows, words, window_words) = (reader.u64()?, reader.u64()?, reader.u64()?);
    let mut name = |flag| -> Result<Option<String>, Flaw> {
        let text = reader.text()?;
        Ok((flags & flag != 0).then_some(text))
    };
    let names = Names { agent: name(HAS_AGENT)?, project: name(HAS_PROJECT)?, session: name(HAS_SESSION)? };
    Ok(Leaf { names, last: (last != u32::MAX).then_some(last), rows, words, window_words })
}

fn encode_row(writer: &mut Writer, row: &Row, turn: &Turn) {
    writer.u64(row.id).u64(row.place.offset).u32(row.place.bytes).u32(row.leaf);
    writer.u32(turn.words).u32(turn.window_words).u32(row.traits).u32(row.author);
    writer.i64(row.valid_from).i64(row.valid_to).i64(row.recorded);
    writer.i64(row.closed_to).i64(row.closed);
    writer.u64(row.supersedes).u64(row.superseded_by).u32(turn.previous).u32(turn.next);
}

fn decode_row(reader: &mut Reader<'_>) -> Result<(Row, Turn), Flaw> {
    // One slice for all fields: a million rows are read at once.
    let mut reader = Reader(reader.take(ROW_BYTES)?);
    let (id, offset, bytes, leaf) = (reader.u64()?, reader.u64()?, reader.u32()?, reader.u32()?);
    let (words, window_words, traits, author) = (reader.u32()?, reader.u32()?, reader.u32()?, reader.u32()?);
    let row = Row {
        id,
        place: Place { offset, bytes },
        leaf,
        traits,
        author,
        valid_from: reader.i64()?,
        valid_to: reader.i64()?,
        recorded: reader.i64()?,
        closed_to: reader.i64()?,
        closed: reader.i64()?,
        supersedes: reader.u64()?,
        superseded_by: reader.u64()?,
    };
    let turn = Turn { words, window_words, previous: reader.u32()?, next: reader.u32()? };
    Ok((row, turn))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn row() -> impl Strategy<Value = Row> {
        (any::<[u32; 2]>(), prop::option::of(0_u32..2), any::<[i64; 5]>(), any::<[u64; 3]>()).prop_map(
            |(small, author, times, large)| Row {
                id: 0,
                place: Place { offset: large[0], bytes: small[0] },
                leaf: 0,
                traits: small[1],
                author: author.unwrap_or(u32::MAX),
                valid_from: times[0],
                valid_to: times[1],
                recorded: times[2],
                closed_to: times[3],
                closed: times[4],
                supersedes: large[1],
                superseded_by: large[2],
            },
        )
    }

    fn turn() -> impl Strategy<Value = Turn> {
        (any::<[u32; 2]>(), 0_u32..5).prop_map(|([words, window_words], previous)| Turn {
            words,
            window_words,
            previous: if previous == 0 { u32::MAX } else { previous - 1 },
            next: u32::MAX,
        })
    }

    fn leaf() -> impl Strategy<Value = Leaf> {
        let name = any::<Option<String>>();
        (name.clone(), name.clone(), name, any::<[u64; 3]>()).prop_map(|(agent, project, session, counts)| {
            let names = Names { agent, project, session };
            Leaf { names, last: Some(3), rows: counts[0], words: counts[1], window_words: counts[2] }
        })
    }

    fn terms() -> impl Strategy<Value = HashMap<Box<str>, Postings>> {
        let postings = any::<(Vec<u8>, u32)>().prop_map(|(bytes, last)| Postings { bytes, last });
        prop::collection::hash_map(any::<String>().prop_map(String::into_boxed_str), postings, 0..9)
    }

    proptest! {
        #[test]
        fn a_checkpoint_reads_back_and_one_flipped_bit_is_noticed(
            turned in prop::collection::vec((row(), turn()), 5..20), leaves in prop::collection::vec(leaf(), 1..4),
            terms in terms(), at in any::<prop::sample::Index>(), bit in 0..8,
        ) {
            let (mut rows, turns): (Vec<_>, Vec<_>) = turned.into_iter().unzip();
            for (index, row) in rows.iter_mut().enumerate() {
                row.id = index as u64 * 3 + 1;
                row.supersedes %= row.id;
                row.superseded_by |= 1 << 20;
            }
            let authors = ["ana".to_owned(), "bob".to_owned()];
            let parts = CheckpointParts {
                generation: 1, end: 2, next_id: 3, holes: 4, rows: &rows, turns: &turns, leaves: &leaves,
                authors: &authors, terms: &terms,
            };
            let mut bytes = parts.encode();
            let read = decode_checkpoint(&bytes).unwrap();
            prop_assert_eq!((read.generation, read.end, read.next_id, read.holes), (1, 2, 3, 4));
            prop_assert_eq!((&read.rows, &read.turns), (&rows, &turns));
            prop_assert_eq!((&read.leaves, &read.terms), (&leaves, &terms));
            prop_assert_eq!(&read.authors, &authors);
            let at = at.index(bytes.len());
            bytes[at] ^= 1_u8 << bit;
            prop_assert!(decode_checkpoint(&bytes).is_err());
        }

        #[test]
        fn any_bytes_are_refused_without_a_panic(mut bytes in prop::collection::vec(any::<u8>(), 60..400)) {
            prop_assert!(decode_checkpoint(&bytes).is_err());
            bytes[..8].copy_from_slice(MAGIC);
            bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
            stamp_crc(&mut bytes, CRC_AT);
            let _ = decode_checkpoint(&bytes);
        }
    }
}
