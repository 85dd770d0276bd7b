//! Session head and body, from any bytes. Where the preamble allows it, both checksums are
//! put right, or everything would end there.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stratakv_core::format::{decode_session, decode_session_head, encode_session, is_newer_session};

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

/// Magic 8, version 4, checksum 4 and length 8 of the head, checksum 4, padding 4, length 8 of the body.
fn put_right(bytes: &mut [u8]) -> Option<()> {
    let rest = bytes.len().checked_sub(40)?;
    let head_len = u64::from_le_bytes(bytes[16..24].try_into().ok()?) as usize % (rest + 1);
    bytes[16..24].copy_from_slice(&(head_len as u64).to_le_bytes());
    bytes[32..40].copy_from_slice(&((rest - head_len) as u64).to_le_bytes());
    let (head, body) = bytes[40..].split_at(head_len);
    let crcs = [crc32c(head), crc32c(body)];
    bytes[12..16].copy_from_slice(&crcs[0].to_le_bytes());
    bytes[24..28].copy_from_slice(&crcs[1].to_le_bytes());
    Some(())
}

fuzz_target!(|data: &[u8]| {
    let _ = (decode_session(data), decode_session_head(data), is_newer_session(data));
    let mut bytes = data.to_vec();
    if put_right(&mut bytes).is_none() {
        return;
    }
    let _ = decode_session_head(&bytes);
    if let Ok(image) = decode_session(&bytes) {
        assert_eq!(decode_session(&encode_session(&image)), Ok(image));
    }
});
