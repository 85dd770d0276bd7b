//! Logs of memories: a head, twice, then records.
//!
//! A record's checksums start from the log's generation and the record's offset, neither of
//! which is in the record. So a record that was copied, or a text that looks like one, is
//! never taken for a record, also where a reader has to search for the next one.

use super::bytes::{Reader, Writer, check_crc, stamp_crc};
use super::{FORMAT_VERSION, Flaw};
use crate::memory::{Names, Stored};

/// Bytes of one copy of a log's head.
pub const LOG_HEAD_BYTES: usize = 4096;
/// Where a log's records start: the head is there twice.
pub const LOG_RECORDS_AT: u64 = 2 * LOG_HEAD_BYTES as u64;
/// Bytes of a record before its payload.
pub const RECORD_HEAD_BYTES: usize = 32;
/// How every record starts.
pub const RECORD_MAGIC: &[u8; 8] = b"STRATREC";
/// Longest payload in bytes; a longer one is damage.
pub const PAYLOAD_BYTES_MAX: usize = 4 << 20;

const LOG_MAGIC: &[u8; 8] = b"STRATMEM";
const SETTINGS_MAGIC: &[u8; 8] = b"STRATEMB";
const LOG_CRC_AT: usize = 12;
const RECORD_CRC_AT: usize = 8;
/// Where a memory's vector starts in its payload.
const VECTOR_AT: usize = 40;

const KIND_MEMORY: u8 = 1;
const KIND_END: u8 = 2;

const HAS_AGENT: u32 = 1;
const HAS_PROJECT: u32 = 2;
const HAS_SESSION: u32 = 4;
const HAS_SOURCE: u32 = 8;
const HAS_AUTHOR: u32 = 16;

/// The head of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogHead {
    /// A random number of this file: derived files name the log that they belong to by it.
    pub generation: u64,
    /// The first number that no memory has had when the file was made.
    pub next_id: u64,
    /// Whose memories these are.
    pub user: String,
    /// Of which [`Embedding`] its vectors are.
    pub revision: u32,
}

impl LogHead {
    /// Both copies.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer(Vec::with_capacity(LOG_RECORDS_AT as usize));
        writer.raw(LOG_MAGIC).u32(FORMAT_VERSION).u32(0).u64(self.generation).u64(self.next_id);
        writer.blob(self.user.as_bytes()).u32(self.revision);
        twice(writer.0)
    }

    /// Reads the first copy that holds.
    ///
    /// # Errors
    /// What is wrong with the first, where both are damaged.
    pub fn decode(bytes: &[u8]) -> Result<Self, Flaw> {
        either(bytes, *LOG_MAGIC, |reader| {
            let (generation, next_id) = (reader.u64()?, reader.u64()?);
            Ok(Self { generation, next_id, user: reader.text()?, revision: reader.u32()? })
        })
    }
}

/// What makes vectors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Embedding {
    /// What made the vectors, and their elements; `None` until the first embedder comes.
    pub embedder: Option<(String, u32)>,
    /// Its number: a larger one each time that all vectors are made anew. Logs say of which they are.
    pub revision: u32,
}

impl Embedding {
    fn encode(&self, writer: &mut Writer) {
        let (identity, dimension) = self.embedder.as_ref().map_or(("", 0), |(name, size)| (name, *size));
        writer.u32(dimension).u32(self.revision).blob(identity.as_bytes());
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, Flaw> {
        let (dimension, revision) = (reader.u32()?, reader.u32()?);
        let identity = reader.text()?;
        Ok(Self { embedder: (dimension > 0).then_some((identity, dimension)), revision })
    }
}

/// What all memories of a directory share.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemorySettings {
    /// What made the vectors.
    pub now: Embedding,
    /// What is making them anew.
    pub next: Option<Embedding>,
}

impl MemorySettings {
    /// Both copies.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer(Vec::with_capacity(LOG_RECORDS_AT as usize));
        writer.raw(SETTINGS_MAGIC).u32(FORMAT_VERSION).u32(0);
        self.now.encode(&mut writer);
        self.next.clone().unwrap_or_default().encode(&mut writer);
        twice(writer.0)
    }

    /// Reads the first copy that holds.
    ///
    /// # Errors
    /// What is wrong with the first, where both are damaged.
    pub fn decode(bytes: &[u8]) -> Result<Self, Flaw> {
        either(bytes, *SETTINGS_MAGIC, |reader| {
            let (now, next) = (Embedding::decode(reader)?, Embedding::decode(reader)?);
            Ok(Self { now, next: next.embedder.is_some().then_some(next) })
        })
    }
}

/// A block with its checksum, and once more: what everything depends on outlives one damage.
fn twice(mut block: Vec<u8>) -> Vec<u8> {
    debug_assert!(block.len() <= LOG_HEAD_BYTES);
    block.resize(LOG_HEAD_BYTES, 0);
    stamp_crc(&mut block, LOG_CRC_AT);
    block.extend_from_within(..);
    block
}

/// Reads the first copy that holds.
fn either<T>(
    bytes: &[u8],
    magic: [u8; 8],
    decode: impl Fn(&mut Reader<'_>) -> Result<T, Flaw>,
) -> Result<T, Flaw> {
    let one = |bytes: &[u8]| {
        let block = Reader(bytes).take(LOG_HEAD_BYTES)?;
        let mut reader = Reader(block);
        if reader.array()? != magic {
            return Err("starts as no file of memories does".into());
        }
        let version = reader.u32()?;
        check_crc(block, LOG_CRC_AT)?;
        if version > FORMAT_VERSION {
            return Err(format!("has format version {version}; this build reads up to {FORMAT_VERSION}"));
        }
        reader.u32()?;
        decode(&mut reader)
    };
    one(bytes).or_else(|flaw| one(bytes.get(LOG_HEAD_BYTES..).unwrap_or_default()).map_err(|_| flaw))
}

/// What a record says.
#[expect(clippy::large_enum_variant, reason = "nearly all are memories")]
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// A memory of this number.
    Memory {
        /// Its number.
        id: u64,
        /// The rest.
        stored: Stored,
    },
    /// A memory ceased to be true, and no other took its place.
    End {
        /// Its number.
        id: u64,
        /// Until when it was true, in milliseconds since 1970.
        valid_to: i64,
        /// When that became known.
        recorded: i64,
    },
}

impl Record {
    /// The number that it is about.
    pub const fn id(&self) -> u64 {
        match self {
            Self::Memory { id, .. } | Self::End { id, .. } => *id,
        }
    }

    /// The bytes of a record at `offset` of the log of this generation.
    pub fn encode(&self, generation: u64, offset: u64) -> Vec<u8> {
        let (kind, payload) = match self {
            Self::Memory { stored, .. } => (KIND_MEMORY, encode_memory(stored)),
            Self::End { valid_to, recorded, .. } => {
                let mut writer = Writer(Vec::with_capacity(16));
                writer.i64(*valid_to).i64(*recorded);
                (KIND_END, writer.0)
            }
        };
        let mut writer = Writer(Vec::with_capacity(RECORD_HEAD_BYTES + payload.len()));
        writer.raw(RECORD_MAGIC).u32(0).u32(crc32c::crc32c(&payload));
        writer.u64(self.id()).u32(payload.len() as u32).u32(u32::from(kind));
        let crc = head_crc(&writer.0, generation, offset);
        writer.0[RECORD_CRC_AT..RECORD_CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
        writer.raw(&payload);
        writer.0
    }
}

/// What stands before a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHead {
    /// The number that the record is about.
    pub id: u64,
    /// Bytes of the payload.
    pub len: u32,
    payload_crc: u32,
    kind: u8,
}

impl RecordHead {
    /// Reads the head of a record at `offset` of the log of this generation.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(bytes: &[u8], generation: u64, offset: u64) -> Result<Self, Flaw> {
        let head = Reader(bytes).take(RECORD_HEAD_BYTES)?;
        let mut reader = Reader(head);
        if reader.array()? != *RECORD_MAGIC {
            return Err("has no record there".into());
        }
        let (stored, computed) = (reader.u32()?, head_crc(head, generation, offset));
        if stored != computed {
            return Err(format!("has checksum {computed:08x} where {stored:08x} is recorded"));
        }
        let (payload_crc, id, len) = (reader.u32()?, reader.u64()?, reader.u32()?);
        if len as usize > PAYLOAD_BYTES_MAX {
            return Err(format!("has a record of {len} bytes where {PAYLOAD_BYTES_MAX} are the most"));
        }
        Ok(Self { id, len, payload_crc, kind: reader.u32()? as u8 })
    }

    /// Bytes of the record, head and payload.
    pub const fn record_bytes(&self) -> u64 {
        RECORD_HEAD_BYTES as u64 + self.len as u64
    }

    /// Reads the payload.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode_payload(&self, payload: &[u8]) -> Result<Record, Flaw> {
        let crc = crc32c::crc32c(payload);
        if crc != self.payload_crc {
            return Err(format!("has checksum {crc:08x} where {:08x} is recorded", self.payload_crc));
        }
        match self.kind {
            KIND_MEMORY => Ok(Record::Memory { id: self.id, stored: decode_memory(payload)? }),
            KIND_END => {
                let mut reader = Reader(payload);
                let (valid_to, recorded) = (reader.i64()?, reader.i64()?);
                Ok(Record::End { id: self.id, valid_to, recorded })
            }
            kind => Err(format!("has a record of unknown kind {kind}")),
        }
    }
}

fn head_crc(head: &[u8], generation: u64, offset: u64) -> u32 {
    let crc = crc32c::crc32c(&generation.to_le_bytes());
    let crc = crc32c::crc32c_append(crc, &offset.to_le_bytes());
    let crc = crc32c::crc32c_append(crc, &head[..RECORD_CRC_AT]);
    crc32c::crc32c_append(crc, &head[RECORD_CRC_AT + 4..])
}

fn encode_memory(stored: &Stored) -> Vec<u8> {
    let Stored { names, source, author, vector, .. } = stored;
    let optional = [&names.agent, &names.project, &names.session, source, author];
    let flags = [HAS_AGENT, HAS_PROJECT, HAS_SESSION, HAS_SOURCE, HAS_AUTHOR];
    let flags = optional.iter().zip(flags).filter(|(name, _)| name.is_some()).map(|(_, flag)| flag).sum();
    let mut writer = Writer(Vec::with_capacity(VECTOR_AT + vector.len() * 4 + stored.text.len() + 64));
    writer.i64(stored.valid_from).i64(stored.valid_to).i64(stored.recorded);
    writer.u64(stored.supersedes).u32(vector.len() as u32).u32(flags);
    for value in vector {
        writer.raw(&value.to_le_bytes());
    }
    for name in optional {
        writer.blob(name.as_deref().unwrap_or_default().as_bytes());
    }
    writer.blob(stored.metadata.as_bytes()).blob(stored.text.as_bytes());
    writer.0
}

fn decode_memory(payload: &[u8]) -> Result<Stored, Flaw> {
    let mut reader = Reader(payload);
    let (valid_from, valid_to, recorded) = (reader.i64()?, reader.i64()?, reader.i64()?);
    let (supersedes, dimension, flags) = (reader.u64()?, reader.u32()? as usize, reader.u32()?);
    let vector = reader.take(dimension.saturating_mul(4))?;
    let vector = vector.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect::<Vec<_>>();
    // None is ever written, and one would be near to nothing and equal to nothing, itself included.
    if !vector.iter().all(|value| value.is_finite()) {
        return Err("has a vector with elements that are no numbers".into());
    }
    let mut name = |flag| -> Result<Option<String>, Flaw> {
        let text = reader.text()?;
        Ok((flags & flag != 0).then_some(text))
    };
    let names = Names { agent: name(HAS_AGENT)?, project: name(HAS_PROJECT)?, session: name(HAS_SESSION)? };
    let (source, author) = (name(HAS_SOURCE)?, name(HAS_AUTHOR)?);
    let (metadata, text) = (reader.text()?, reader.text()?);
    Ok(Stored { names, text, metadata, source, author, vector, valid_from, valid_to, recorded, supersedes })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stored() -> impl Strategy<Value = Stored> {
        let names = (any::<Option<String>>(), any::<Option<String>>(), any::<Option<String>>());
        let times = (any::<i64>(), any::<i64>(), any::<i64>(), any::<u64>());
        let vector = prop::collection::vec(-1.0_f32..1.0, 0..20);
        (names, any::<(String, String)>(), any::<[Option<String>; 2]>(), vector, times).prop_map(
            |((agent, project, session), (text, metadata), [source, author], vector, times)| Stored {
                names: Names { agent, project, session },
                text,
                metadata,
                source,
                author,
                vector,
                valid_from: times.0,
                valid_to: times.1,
                recorded: times.2,
                supersedes: times.3,
            },
        )
    }

    fn read(bytes: &[u8], generation: u64, offset: u64) -> Result<Record, Flaw> {
        let head = RecordHead::decode(bytes, generation, offset)?;
        head.decode_payload(Reader(&bytes[RECORD_HEAD_BYTES..]).take(head.len as usize)?)
    }

    proptest! {
        #[test]
        fn everything_reads_back(
            stored in stored(), id in any::<u64>(), generation in any::<u64>(), offset in any::<u64>(),
            user in ".{0,64}", revision in any::<u32>(),
        ) {
            let record = Record::Memory { id, stored };
            prop_assert_eq!(&read(&record.encode(generation, offset), generation, offset).unwrap(), &record);
            let record = Record::End { id, valid_to: 5, recorded: -7 };
            prop_assert_eq!(&read(&record.encode(generation, offset), generation, offset).unwrap(), &record);
            let now = Embedding { embedder: Some((user.clone(), 7)), revision };
            let next = Embedding { embedder: Some((user.repeat(2), 9)), revision: !revision };
            for next in [None, Some(next)] {
                let settings = MemorySettings { now: now.clone(), next };
                prop_assert_eq!(MemorySettings::decode(&settings.encode()).unwrap(), settings);
            }
            let head = LogHead { generation, next_id: id, user, revision };
            prop_assert_eq!(LogHead::decode(&head.encode()).unwrap(), head);
        }

        #[test]
        fn a_vector_that_has_no_direction_is_refused(stored in stored(), infinite in any::<bool>()) {
            let element = if infinite { f32::NEG_INFINITY } else { f32::NAN };
            let stored = Stored { vector: [stored.vector, vec![element]].concat(), ..stored };
            let bytes = Record::Memory { id: 1, stored }.encode(7, 8192);
            prop_assert!(read(&bytes, 7, 8192).unwrap_err().contains("no numbers"));
        }

        #[test]
        fn one_flipped_bit_is_noticed(
            stored in stored(), at in any::<prop::sample::Index>(), bit in 0..8,
        ) {
            let mut bytes = Record::Memory { id: 3, stored }.encode(9, 8192);
            let at = at.index(bytes.len());
            bytes[at] ^= 1_u8 << bit;
            prop_assert!(read(&bytes, 9, 8192).is_err());
        }

        #[test]
        fn a_damaged_head_has_a_second_copy(at in 0..2 * LOG_HEAD_BYTES, bit in 0..8) {
            let head = LogHead { generation: 1, next_id: 2, user: "ana".into(), revision: 3 };
            let mut bytes = head.encode();
            bytes[at] ^= 1_u8 << bit;
            prop_assert_eq!(LogHead::decode(&bytes).unwrap(), head);
        }

        #[test]
        fn any_bytes_are_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = LogHead::decode(&bytes);
            let _ = read(&bytes, 0, 0);
            let _ = decode_memory(&bytes);
        }
    }

    #[test]
    fn a_record_elsewhere_is_not_taken_for_one() {
        let bytes = Record::End { id: 1, valid_to: 2, recorded: 3 }.encode(5, 8192);
        assert!(read(&bytes, 5, 8192).is_ok());
        assert!(read(&bytes, 5, 8193).is_err());
        assert!(read(&bytes, 6, 8192).is_err());
    }
}
