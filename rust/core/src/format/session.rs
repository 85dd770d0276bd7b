//! Session files: one session each, written whole and replaced atomically.
//!
//! The head comes first with a checksum of its own, so that a listing reads a few hundred
//! bytes of a file whose token ids may be megabytes.

use std::collections::BTreeMap;
use std::str::FromStr;

use super::bytes::{Reader, Writer};
use super::{FORMAT_VERSION, Flaw};
use crate::dtype::DType;
use crate::session::{LayerShape, RowImage, Salt, SessionHead, SessionImage};

const SESSION_MAGIC: &[u8; 8] = b"STRATSES";
/// Magic, version, checksum and length of the head, checksum and length of the body.
const PREAMBLE_BYTES: usize = 8 + 4 + 4 + 8 + 4 + 4 + 8;

/// The file of a session.
pub fn encode_session(image: &SessionImage) -> Vec<u8> {
    let head = encode_head(image);
    let body = encode_body(image);
    let mut writer = Writer(Vec::with_capacity(PREAMBLE_BYTES + head.len() + body.len()));
    writer.raw(SESSION_MAGIC).u32(FORMAT_VERSION);
    writer.u32(crc32c::crc32c(&head)).u64(head.len() as u64);
    writer.u32(crc32c::crc32c(&body)).u32(0).u64(body.len() as u64);
    writer.raw(&head).raw(&body);
    writer.0
}

fn encode_head(image: &SessionImage) -> Vec<u8> {
    let mut writer = Writer(Vec::new());
    writer.blob(image.name.as_bytes()).blob(image.model.as_bytes()).blob(&image.identity);
    writer.u64(image.created).u32(image.page_tokens);
    writer.u64(image.settings.len() as u64);
    for (name, value) in &image.settings {
        writer.blob(name.as_bytes()).blob(value.as_bytes());
    }
    writer.u64(image.layers.len() as u64);
    for layer in &image.layers {
        let Some(shape) = layer else {
            writer.u32(0).u32(0).u32(0).blob(b"");
            continue;
        };
        writer
            .u32(shape.kv_heads)
            .u32(shape.key_dim)
            .u32(shape.value_dim)
            .blob(shape.dtype.name().as_bytes());
    }
    writer.u64(image.rows.len() as u64);
    for row in &image.rows {
        writer.u64(row.tokens.len() as u64);
    }
    writer.0
}

fn encode_body(image: &SessionImage) -> Vec<u8> {
    let mut writer = Writer(Vec::new());
    for row in &image.rows {
        writer.u64(row.tokens.len() as u64);
        for token in &row.tokens {
            writer.u32(*token);
        }
        writer.u64(row.salts.len() as u64);
        for salt in &row.salts {
            writer.u64(salt.position).raw(&salt.digest);
        }
        writer.u64(row.tails.len() as u64);
        for tail in &row.tails {
            writer.blob(tail);
        }
    }
    writer.blob(&image.extra);
    writer.u64(image.directions.len() as u64);
    for layer in &image.directions {
        writer.blob(layer);
    }
    writer.0
}

/// Whether the file is a session of a version that this build does not read.
pub fn is_newer_session(bytes: &[u8]) -> bool {
    let mut reader = Reader(bytes);
    let magic = reader.array().is_ok_and(|magic: [u8; 8]| magic == *SESSION_MAGIC);
    magic && reader.u32().is_ok_and(|version| version > FORMAT_VERSION)
}

struct Preamble<'a> {
    head: &'a [u8],
    rest: &'a [u8],
    body_crc: u32,
    body_len: u64,
}

fn preamble(bytes: &[u8]) -> Result<Preamble<'_>, Flaw> {
    let mut reader = Reader(bytes);
    if reader.array().map_err(|_| "is too short for a session")? != *SESSION_MAGIC {
        return Err("does not start as a StrataKV session does".into());
    }
    let version = reader.u32()?;
    if version > FORMAT_VERSION {
        return Err(format!("has format version {version}; this build reads up to {FORMAT_VERSION}"));
    }
    let (head_crc, head_len) = (reader.u32()?, reader.u64()?);
    let (body_crc, _pad, body_len) = (reader.u32()?, reader.u32()?, reader.u64()?);
    let head = reader.take(usize::try_from(head_len).map_err(|_| "has an impossible head")?)?;
    if crc32c::crc32c(head) != head_crc {
        return Err("has a damaged head".into());
    }
    Ok(Preamble { head, rest: reader.0, body_crc, body_len })
}

/// Reads the head of a session file; `bytes` may end anywhere after it.
///
/// # Errors
/// What is wrong with it.
pub fn decode_session_head(bytes: &[u8]) -> Result<SessionHead, Flaw> {
    decode_head(preamble(bytes)?.head)
}

fn decode_head(bytes: &[u8]) -> Result<SessionHead, Flaw> {
    let mut reader = Reader(bytes);
    let (name, model, identity) = (reader.text()?, reader.text()?, reader.blob()?.to_vec());
    let (created, page_tokens) = (reader.u64()?, reader.u32()?);
    if page_tokens == 0 {
        return Err("has pages of no tokens".into());
    }
    let mut settings = BTreeMap::new();
    for _ in 0..reader.count(16)? {
        settings.insert(reader.text()?, reader.text()?);
    }
    let layers = (0..reader.count(20)?).map(|_| decode_shape(&mut reader)).collect::<Result<Vec<_>, _>>()?;
    let row_tokens = (0..reader.count(8)?).map(|_| reader.u64()).collect::<Result<Vec<_>, _>>()?;
    Ok(SessionHead { name, model, identity, settings, page_tokens, layers, row_tokens, created })
}

fn decode_shape(reader: &mut Reader<'_>) -> Result<Option<LayerShape>, Flaw> {
    let (kv_heads, key_dim, value_dim) = (reader.u32()?, reader.u32()?, reader.u32()?);
    let dtype = reader.text()?;
    if kv_heads == 0 {
        return Ok(None);
    }
    let dtype = DType::from_str(&dtype).map_err(|error| format!("has a layer of unknown type: {error}"))?;
    Ok(Some(LayerShape { kv_heads, key_dim, value_dim, dtype }))
}

/// Reads a whole session file.
///
/// # Errors
/// What is wrong with it.
pub fn decode_session(bytes: &[u8]) -> Result<SessionImage, Flaw> {
    let preamble = preamble(bytes)?;
    let head = decode_head(preamble.head)?;
    let body = Reader(preamble.rest)
        .take(usize::try_from(preamble.body_len).map_err(|_| "has an impossible body")?)?;
    if crc32c::crc32c(body) != preamble.body_crc {
        return Err("has a damaged body".into());
    }
    let mut reader = Reader(body);
    let rows = head.row_tokens.iter().map(|_| decode_row(&mut reader)).collect::<Result<Vec<_>, _>>()?;
    let extra = reader.blob()?.to_vec();
    // Sessions of the first builds end here.
    let layers = if reader.0.is_empty() { 0 } else { reader.count(8)? };
    let directions = (0..layers).map(|_| Ok(reader.blob()?.to_vec())).collect::<Result<Vec<_>, Flaw>>()?;
    Ok(SessionImage {
        name: head.name,
        model: head.model,
        identity: head.identity,
        settings: head.settings,
        page_tokens: head.page_tokens,
        layers: head.layers,
        rows,
        extra,
        directions,
        created: head.created,
    })
}

fn decode_row(reader: &mut Reader<'_>) -> Result<RowImage, Flaw> {
    let tokens = (0..reader.count(4)?).map(|_| reader.u32()).collect::<Result<Vec<_>, _>>()?;
    let salts = (0..reader.count(40)?)
        .map(|_| Ok(Salt { position: reader.u64()?, digest: reader.array()? }))
        .collect::<Result<Vec<_>, Flaw>>()?;
    let tails =
        (0..reader.count(8)?).map(|_| Ok(reader.blob()?.to_vec())).collect::<Result<Vec<_>, Flaw>>()?;
    Ok(RowImage { tokens, salts, tails })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn image() -> impl Strategy<Value = SessionImage> {
        let row = (
            prop::collection::vec(any::<u32>(), 0..50),
            prop::collection::vec((any::<u64>(), any::<[u8; 32]>()), 0..3),
            prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..4),
        )
            .prop_map(|(tokens, salts, tails)| RowImage {
                tokens,
                salts: salts.into_iter().map(|(position, digest)| Salt { position, digest }).collect(),
                tails,
            });
        (
            any::<String>(),
            1_u32..99,
            prop::collection::vec(row, 0..3),
            any::<Vec<u8>>(),
            any::<Vec<Vec<u8>>>(),
        )
            .prop_map(|(name, page_tokens, rows, extra, directions)| SessionImage {
                name,
                model: "tiny".into(),
                identity: vec![1, 2],
                settings: [("dtype".into(), "float32".into())].into(),
                page_tokens,
                layers: vec![
                    None,
                    Some(LayerShape { kv_heads: 2, key_dim: 8, value_dim: 4, dtype: DType::Bf16 }),
                ],
                rows,
                extra,
                directions,
                created: 5,
            })
    }

    proptest! {
        #[test]
        fn a_session_reads_back(image in image()) {
            let bytes = encode_session(&image);
            let head = decode_session_head(&bytes).unwrap();
            prop_assert_eq!(&head.name, &image.name);
            prop_assert_eq!(decode_session(&bytes).unwrap(), image);
        }

        #[test]
        fn a_session_of_the_first_builds_reads_back(image in image()) {
            let image = SessionImage { directions: Vec::new(), ..image };
            let mut bytes = encode_session(&image);
            // They did not write the count of layers with directions.
            bytes.truncate(bytes.len() - 8);
            let head_len = u64::from_le_bytes(bytes[16..24].try_into().unwrap()) as usize;
            let body_crc = crc32c::crc32c(&bytes[PREAMBLE_BYTES + head_len..]);
            let body_len = (bytes.len() - PREAMBLE_BYTES - head_len) as u64;
            bytes[24..28].copy_from_slice(&body_crc.to_le_bytes());
            bytes[32..40].copy_from_slice(&body_len.to_le_bytes());
            prop_assert_eq!(decode_session(&bytes).unwrap(), image);
        }

        #[test]
        fn one_flipped_bit_is_noticed(image in image(), at in any::<prop::sample::Index>(), bit in 0..8) {
            let mut bytes = encode_session(&image);
            let at = at.index(bytes.len());
            // The four bytes of padding in the preamble carry nothing.
            prop_assume!(!(28..32).contains(&at));
            bytes[at] ^= 1_u8 << bit;
            // A flip in the version may only make it older, which still reads.
            if let Ok(read) = decode_session(&bytes) {
                prop_assert!((8..12).contains(&at));
                prop_assert_eq!(read, image);
            }
        }

        #[test]
        fn any_bytes_are_refused_without_a_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..500)) {
            let _ = decode_session(&bytes);
            bytes.splice(0..0, SESSION_MAGIC.iter().copied().chain(1_u32.to_le_bytes()));
            let _ = decode_session(&bytes);
        }
    }
}
