//! Segment header, group header, trailer and table of contents, from any bytes.
//!
//! The first byte chooses the parser; the checksum is put right, or everything would end there.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stratakv_core::format::{GroupHeader, SegmentHeader, Trailer, decode_contents};

/// CRC-32C of `bytes` with the four at `hole` taken as zero, put there.
fn stamp(bytes: &mut [u8], hole: usize) {
    if bytes.len() >= hole + 4 {
        bytes[hole..hole + 4].fill(0);
        let crc = crc32c(bytes);
        bytes[hole..hole + 4].copy_from_slice(&crc.to_le_bytes());
    }
}

/// Bit by bit: independent of the library that the format uses.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |crc, _| {
                if crc & 1 == 1 { (crc >> 1) ^ 0x82F6_3B78 } else { crc >> 1 }
            },
        )
    })
}

fuzz_target!(|data: &[u8]| {
    let Some((choice, bytes)) = data.split_first() else { return };
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().next_multiple_of(4096), 0);
    match choice % 4 {
        0 => {
            stamp(&mut bytes, 28);
            if let Ok(header) = SegmentHeader::decode(&bytes) {
                let again = SegmentHeader::decode(&header.encode());
                assert_eq!(again.as_ref(), Ok(&header));
            }
        }
        1 => {
            if let Ok(len) = GroupHeader::announced_len(&bytes)
                && let Some(header) = bytes.get_mut(..len)
            {
                stamp(header, 12);
            }
            if let Ok(group) = GroupHeader::decode(&bytes, 1, 4096) {
                assert_eq!(GroupHeader::decode(&group.encode(), 1, 4096).as_ref(), Ok(&group));
                let _ = group.end();
            }
        }
        2 => {
            let end = bytes.len().min(4096);
            stamp(&mut bytes[..end], 12);
            let _ = Trailer::decode(&bytes, 1);
        }
        _ => {
            let num_entries = u64::from(data.get(1).copied().unwrap_or(0)) * 3;
            let contents_crc = crc32c(&bytes);
            let trailer = Trailer { segment: 1, contents_offset: 4096, num_entries, contents_crc };
            let _ = decode_contents(&bytes, &trailer);
        }
    }
});
