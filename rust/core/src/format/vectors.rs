//! Files of vectors that are derived from a user's log: a head, and bytes that it vouches for.

use super::bytes::{Reader, Writer};
use super::{FORMAT_VERSION, Flaw};

const MAGIC: &[u8; 8] = b"STRATVEC";
/// Bytes before the data.
pub const VECTORS_HEAD_BYTES: usize = 56;
const CRC_AT: usize = 12;

/// What the data are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VectorsKind {
    /// For each row the square of its window's length, float32; then for each row its direction,
    /// float16, padded to a multiple of 64 elements.
    Directions,
    /// What the library of the nearest-neighbour graph writes, in its version of this number.
    Graph {
        /// The library's version, as one number.
        library: u32,
    },
}

/// What stands before the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VectorsHead {
    /// The log's generation.
    pub generation: u64,
    /// Rows that it covers, from the first on.
    pub rows: u64,
    /// The number of the last of them.
    pub last_id: u64,
    /// Elements of a vector.
    pub dimension: u32,
    /// What the data are.
    pub kind: VectorsKind,
}

impl VectorsHead {
    /// The head that stands before `data`.
    pub fn encode(&self, data: &[&[u8]]) -> Vec<u8> {
        let (kind, library) = match self.kind {
            VectorsKind::Directions => (1, 0),
            VectorsKind::Graph { library } => (2, library),
        };
        let len: usize = data.iter().map(|part| part.len()).sum();
        let mut writer = Writer(Vec::with_capacity(VECTORS_HEAD_BYTES));
        writer.raw(MAGIC).u32(FORMAT_VERSION).u32(0).u64(self.generation).u64(self.rows).u64(self.last_id);
        writer.u32(self.dimension).u32(kind | library << 8).u64(len as u64);
        let crc = data.iter().fold(crc32c::crc32c(&writer.0), |crc, part| crc32c::crc32c_append(crc, part));
        writer.0[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
        writer.0
    }

    /// The head and the data of a whole file.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<(Self, &[u8]), Flaw> {
        let mut reader = Reader(bytes);
        if reader.array()? != *MAGIC {
            return Err("does not start as a file of vectors does".into());
        }
        let (version, stored) = (reader.u32()?, reader.u32()?);
        if version != FORMAT_VERSION {
            return Err(format!("has format version {version}; this build reads {FORMAT_VERSION}"));
        }
        let (generation, rows, last_id) = (reader.u64()?, reader.u64()?, reader.u64()?);
        let (dimension, kind, len) = (reader.u32()?, reader.u32()?, reader.u64()?);
        let data = reader.0;
        if data.len() as u64 != len {
            return Err(format!("has {} bytes of data where {len} are recorded", data.len()));
        }
        let crc = super::bytes::crc_with_hole(bytes, CRC_AT);
        if crc != stored {
            return Err(format!("has checksum {crc:08x} where {stored:08x} is recorded"));
        }
        let kind = match kind & 0xff {
            1 => VectorsKind::Directions,
            2 => VectorsKind::Graph { library: kind >> 8 },
            other => return Err(format!("is of unknown kind {other}")),
        };
        Ok((Self { generation, rows, last_id, dimension, kind }, data))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_file_reads_back_and_one_flipped_bit_is_noticed(
            generation in any::<u64>(), rows in any::<u64>(), dimension in any::<u32>(),
            library in prop::option::of(0_u32..1 << 24), data in prop::collection::vec(any::<u8>(), 0..200),
            at in any::<prop::sample::Index>(), bit in 0..8,
        ) {
            let kind = library.map_or(VectorsKind::Directions, |library| VectorsKind::Graph { library });
            let head = VectorsHead { generation, rows, last_id: rows ^ 5, dimension, kind };
            let (first, second) = data.split_at(data.len() / 3);
            let mut bytes = [&head.encode(&[first, second]), first, second].concat();
            prop_assert_eq!(VectorsHead::decode(&bytes).unwrap(), (head, &data[..]));
            let at = at.index(bytes.len());
            bytes[at] ^= 1_u8 << bit;
            prop_assert!(VectorsHead::decode(&bytes).is_err());
        }

        #[test]
        fn any_bytes_are_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert!(VectorsHead::decode(&bytes).is_err());
        }
    }
}
