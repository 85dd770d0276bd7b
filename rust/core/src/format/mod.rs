//! Bytes on disk and the structures they stand for. No I/O happens here.
//!
//! Everything is little-endian with fixed widths; `docs/format.md` draws each field and
//! changes in the commit that changes this module. A decoder takes any bytes: it returns
//! what is wrong with them and never panics.

mod bytes;
mod checkpoint;
mod memory;
mod segment;
mod session;
mod vectors;

pub(crate) use checkpoint::CheckpointParts;
pub use checkpoint::{Checkpoint, decode_checkpoint};
pub use memory::{
    Embedding, LOG_HEAD_BYTES, LOG_RECORDS_AT, LogHead, MemorySettings, PAYLOAD_BYTES_MAX, RECORD_HEAD_BYTES,
    RECORD_MAGIC, Record, RecordHead,
};
pub use segment::{
    Contents, ENTRY_BYTES, EntryKind, GROUP_HEADER_BYTES, GroupHeader, PageEntry, SEGMENT_HEADER_BYTES,
    SegmentHeader, TRAILER_BYTES, Trailer, decode_contents, encode_contents,
};
pub use session::{decode_session, decode_session_head, encode_session, is_newer_session};
pub use vectors::{VECTORS_HEAD_BYTES, VectorsHead, VectorsKind};

/// Version of the on-disk format that this build writes, and the newest that it reads.
pub const FORMAT_VERSION: u32 = 1;

/// What is wrong with some bytes, in words that complete "the file … ".
pub type Flaw = String;
