//! Segment files: a header, groups of pages, and at the end of a finished one a table of
//! contents. All parts start on a 4 KiB boundary.

use super::bytes::{Reader, Writer, check_crc, stamp_crc};
use super::{FORMAT_VERSION, Flaw};
use crate::io::ALIGN;
use crate::key::PageKey;

const SEGMENT_MAGIC: &[u8; 8] = b"STRATSEG";
const GROUP_MAGIC: &[u8; 8] = b"STRATGRP";
const TRAILER_MAGIC: &[u8; 8] = b"STRATEND";

/// Bytes of a segment's header block.
pub const SEGMENT_HEADER_BYTES: usize = ALIGN;
/// Bytes of a group header before its entries.
pub const GROUP_HEADER_BYTES: usize = 64;
/// Bytes of one page entry.
pub const ENTRY_BYTES: usize = 32;
/// Bytes of the block that ends a finished segment.
pub const TRAILER_BYTES: usize = ALIGN;

/// Where the checksum of each structure lies.
const SEGMENT_CRC_AT: usize = 28;
const GROUP_CRC_AT: usize = 12;
const TRAILER_CRC_AT: usize = 12;

/// What a record holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A whole page in the model's own element type.
    Raw,
}

impl EntryKind {
    fn code(self) -> u32 {
        match self {
            Self::Raw => 0,
        }
    }

    fn from_code(code: u32) -> Result<Self, Flaw> {
        match code {
            0 => Ok(Self::Raw),
            other => Err(format!("has a record of kind {other}, which this version does not know")),
        }
    }
}

/// The first block of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Number of the segment, as in its file name.
    pub id: u64,
    /// Its pages mean nothing to another process: deleted when the store closes or opens.
    pub temporary: bool,
}

impl SegmentHeader {
    /// The block.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer(Vec::with_capacity(SEGMENT_HEADER_BYTES));
        writer
            .raw(SEGMENT_MAGIC)
            .u32(FORMAT_VERSION)
            .u32(u32::from(self.temporary))
            .u64(self.id)
            .u32(0)
            .u32(0);
        let mut bytes = writer.0;
        bytes.resize(SEGMENT_HEADER_BYTES, 0);
        stamp_crc(&mut bytes, SEGMENT_CRC_AT);
        bytes
    }

    /// Reads the block.
    ///
    /// # Errors
    /// What is wrong: another program's file, a newer version, damage.
    pub fn decode(bytes: &[u8]) -> Result<Self, Flaw> {
        let mut reader = Reader(bytes);
        let block = reader.take(SEGMENT_HEADER_BYTES).map_err(|_| "is shorter than a segment header")?;
        let mut reader = Reader(block);
        if reader.array()? != *SEGMENT_MAGIC {
            return Err("does not start as a StrataKV segment does".into());
        }
        let version = reader.u32()?;
        if version > FORMAT_VERSION {
            return Err(format!("has format version {version}; this build reads up to {FORMAT_VERSION}"));
        }
        check_crc(block, SEGMENT_CRC_AT)?;
        let flags = reader.u32()?;
        Ok(Self { id: reader.u64()?, temporary: flags & 1 == 1 })
    }
}

/// Where one page lies in its segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageEntry {
    /// The page.
    pub key: PageKey,
    /// Start in the file, in blocks of [`ALIGN`] bytes.
    pub block: u32,
    /// Length in bytes, without padding.
    pub len: u32,
    /// CRC-32C of the body with its padding.
    pub crc: u32,
    /// What it holds.
    pub kind: EntryKind,
}

impl PageEntry {
    /// Start in the file, in bytes.
    pub fn offset(&self) -> u64 {
        u64::from(self.block) * ALIGN as u64
    }

    /// Length on disk: padded to whole blocks.
    pub fn padded_len(&self) -> u64 {
        u64::from(self.len).next_multiple_of(ALIGN as u64)
    }

    fn encode(&self, writer: &mut Writer) {
        writer.raw(&self.key.0).u32(self.block).u32(self.len).u32(self.crc).u32(self.kind.code());
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, Flaw> {
        let (key, block, len, crc) = (PageKey(reader.array()?), reader.u32()?, reader.u32()?, reader.u32()?);
        let kind = EntryKind::from_code(reader.u32()?)?;
        if len == 0 || block == 0 {
            return Err("has a record without length or place".into());
        }
        Ok(Self { key, block, len, crc, kind })
    }
}

/// What stands before the pages that were written together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupHeader {
    /// The segment it belongs to: a stray copy of a header is not taken for one.
    pub segment: u64,
    /// Its own offset in bytes, likewise.
    pub offset: u64,
    /// Everything before this offset was durable when the group was written.
    pub durable_until: u64,
    /// Bytes of the bodies that follow the header.
    pub body_bytes: u64,
    /// The pages.
    pub entries: Vec<PageEntry>,
}

impl GroupHeader {
    /// Bytes of the header on disk for some number of pages.
    pub fn encoded_len(num_entries: usize) -> usize {
        (GROUP_HEADER_BYTES + num_entries * ENTRY_BYTES).next_multiple_of(ALIGN)
    }

    /// Offset just past the group's bodies.
    pub fn end(&self) -> u64 {
        (self.offset + Self::encoded_len(self.entries.len()) as u64).saturating_add(self.body_bytes)
    }

    /// The header's blocks.
    pub fn encode(&self) -> Vec<u8> {
        let len = Self::encoded_len(self.entries.len());
        let mut writer = Writer(Vec::with_capacity(len));
        writer.raw(GROUP_MAGIC).u32(self.entries.len() as u32).u32(0).u64(self.segment).u64(self.offset);
        writer.u64(self.durable_until).u64(self.body_bytes);
        writer.0.resize(GROUP_HEADER_BYTES, 0);
        for entry in &self.entries {
            entry.encode(&mut writer);
        }
        let mut bytes = writer.0;
        bytes.resize(len, 0);
        stamp_crc(&mut bytes, GROUP_CRC_AT);
        bytes
    }

    /// Length of the whole header that starts with `first_block`, or what is wrong with it.
    ///
    /// # Errors
    /// Not a group header, or one that cannot be.
    pub fn announced_len(first_block: &[u8]) -> Result<usize, Flaw> {
        let mut reader = Reader(first_block);
        if reader.array()? != *GROUP_MAGIC {
            return Err("has no group where one is expected".into());
        }
        let count = reader.u32()? as usize;
        if count == 0 || count > 1 << 20 {
            return Err(format!("has a group of {count} pages"));
        }
        Ok(Self::encoded_len(count))
    }

    /// Reads a header of [`GroupHeader::announced_len`] bytes found at `offset` of `segment`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(bytes: &[u8], segment: u64, offset: u64) -> Result<Self, Flaw> {
        let len = Self::announced_len(bytes)?;
        let bytes = Reader(bytes).take(len)?;
        check_crc(bytes, GROUP_CRC_AT)?;
        let mut reader = Reader(&bytes[8..]);
        let (count, _crc) = (reader.u32()?, reader.u32()?);
        let header = (reader.u64()?, reader.u64()?, reader.u64()?, reader.u64()?);
        if (header.0, header.1) != (segment, offset) {
            return Err(format!("has a group of segment {} offset {} here", header.0, header.1));
        }
        let mut reader = Reader(&bytes[GROUP_HEADER_BYTES..]);
        let entries = (0..count).map(|_| PageEntry::decode(&mut reader)).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { segment, offset, durable_until: header.2, body_bytes: header.3, entries })
    }
}

/// The last block of a finished segment: where its table of contents is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trailer {
    /// The segment it belongs to.
    pub segment: u64,
    /// Offset of the table of contents, in bytes.
    pub contents_offset: u64,
    /// Number of entries in it.
    pub num_entries: u64,
    /// CRC-32C of the table.
    pub contents_crc: u32,
}

impl Trailer {
    /// The block.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer(Vec::with_capacity(TRAILER_BYTES));
        writer.raw(TRAILER_MAGIC).u32(self.contents_crc).u32(0);
        writer.u64(self.segment).u64(self.contents_offset).u64(self.num_entries);
        let mut bytes = writer.0;
        bytes.resize(TRAILER_BYTES, 0);
        stamp_crc(&mut bytes, TRAILER_CRC_AT);
        bytes
    }

    /// Reads the last block of `segment`.
    ///
    /// # Errors
    /// What is wrong with it: an unfinished segment has none.
    pub fn decode(bytes: &[u8], segment: u64) -> Result<Self, Flaw> {
        let block = Reader(bytes).take(TRAILER_BYTES)?;
        let mut reader = Reader(block);
        if reader.array()? != *TRAILER_MAGIC {
            return Err("has no trailer".into());
        }
        check_crc(block, TRAILER_CRC_AT)?;
        let (contents_crc, _crc) = (reader.u32()?, reader.u32()?);
        let trailer = Self {
            segment: reader.u64()?,
            contents_offset: reader.u64()?,
            num_entries: reader.u64()?,
            contents_crc,
        };
        if trailer.segment != segment {
            return Err(format!("has the trailer of segment {}", trailer.segment));
        }
        Ok(trailer)
    }
}

/// A table of contents with its checksum.
pub struct Contents {
    /// The table, padded to whole blocks.
    pub bytes: Vec<u8>,
    /// CRC-32C of it.
    pub crc: u32,
}

/// All entries of a finished segment, one after the other.
pub fn encode_contents(entries: &[PageEntry]) -> Contents {
    let mut writer = Writer(Vec::with_capacity((entries.len() * ENTRY_BYTES).next_multiple_of(ALIGN)));
    for entry in entries {
        entry.encode(&mut writer);
    }
    let mut bytes = writer.0;
    bytes.resize(bytes.len().next_multiple_of(ALIGN), 0);
    let crc = crc32c::crc32c(&bytes);
    Contents { bytes, crc }
}

/// Reads a table of contents.
///
/// # Errors
/// What is wrong with it.
pub fn decode_contents(bytes: &[u8], trailer: &Trailer) -> Result<Vec<PageEntry>, Flaw> {
    let crc = crc32c::crc32c(bytes);
    if crc != trailer.contents_crc {
        return Err(format!(
            "has a table of contents with checksum {crc:08x}, not {:08x}",
            trailer.contents_crc
        ));
    }
    if trailer.num_entries > (bytes.len() / ENTRY_BYTES) as u64 {
        return Err("has a table of contents shorter than its trailer says".into());
    }
    let mut reader = Reader(bytes);
    (0..trailer.num_entries).map(|_| PageEntry::decode(&mut reader)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry() -> impl Strategy<Value = PageEntry> {
        (any::<[u8; 16]>(), 1_u32.., 1_u32.., any::<u32>()).prop_map(|(key, block, len, crc)| PageEntry {
            key: PageKey(key),
            block,
            len,
            crc,
            kind: EntryKind::Raw,
        })
    }

    proptest! {
        #[test]
        fn everything_reads_back(
            id in any::<u64>(), temporary in any::<bool>(), offset in any::<u64>(), durable_until in any::<u64>(),
            body_bytes in any::<u64>(), entries in prop::collection::vec(entry(), 1..300),
        ) {
            let header = SegmentHeader { id, temporary };
            prop_assert_eq!(SegmentHeader::decode(&header.encode()).unwrap(), header);
            let group = GroupHeader { segment: id, offset, durable_until, body_bytes, entries: entries.clone() };
            prop_assert_eq!(GroupHeader::decode(&group.encode(), id, offset).unwrap(), group);
            let contents = encode_contents(&entries);
            let trailer = Trailer {
                segment: id, contents_offset: offset, num_entries: entries.len() as u64, contents_crc: contents.crc,
            };
            prop_assert_eq!(Trailer::decode(&trailer.encode(), id).unwrap(), trailer);
            prop_assert_eq!(decode_contents(&contents.bytes, &trailer).unwrap(), entries);
        }

        #[test]
        fn one_flipped_bit_is_noticed(at in 0_usize..4096 * 8, entries in prop::collection::vec(entry(), 1..20)) {
            let group = GroupHeader { segment: 7, offset: 4096, durable_until: 0, body_bytes: 4096, entries };
            let mut bytes = group.encode();
            bytes[at / 8] ^= 1 << (at % 8);
            prop_assert!(GroupHeader::decode(&bytes, 7, 4096).is_err());
            let mut bytes = SegmentHeader { id: 3, temporary: false }.encode();
            bytes[at / 8] ^= 1 << (at % 8);
            prop_assert!(SegmentHeader::decode(&bytes).is_err());
        }

        #[test]
        fn any_bytes_are_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..9000)) {
            let _ = SegmentHeader::decode(&bytes);
            let _ = GroupHeader::decode(&bytes, 1, 4096);
            let _ = Trailer::decode(&bytes, 1);
        }
    }

    #[test]
    fn a_header_elsewhere_is_not_taken_for_one() {
        let entry = PageEntry { key: PageKey([1; 16]), block: 2, len: 9, crc: 5, kind: EntryKind::Raw };
        let group = GroupHeader {
            segment: 1,
            offset: 4096,
            durable_until: 0,
            body_bytes: 4096,
            entries: vec![entry],
        };
        let bytes = group.encode();
        assert!(GroupHeader::decode(&bytes, 1, 8192).is_err());
        assert!(GroupHeader::decode(&bytes, 2, 4096).is_err());
    }
}
