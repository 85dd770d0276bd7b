//! Writes what the encoders make into the folders of first inputs: `fuzz_seeds DIRECTORY`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::{fs, io};

use stratakv_core::dtype::DType;
use stratakv_core::format::{
    EntryKind, GroupHeader, PageEntry, RECORD_HEAD_BYTES, Record, SegmentHeader, Trailer, encode_contents,
    encode_session,
};
use stratakv_core::io::{Disk, EngineKind, open_engine};
use stratakv_core::key::PageKey;
use stratakv_core::memory::{FOREVER, Names, Stored};
use stratakv_core::session::{LayerShape, RowImage, Salt, SessionImage};
use stratakv_core::store::{Lifetime, Store, StoreConfig};
use stratakv_core::testing::MemoryDisk;

fn main() -> io::Result<()> {
    let root = PathBuf::from(std::env::args_os().nth(1).ok_or(io::ErrorKind::InvalidInput)?);
    let put = |target: &str, name: &str, bytes: &[u8]| {
        let directory = root.join(target);
        fs::create_dir_all(&directory)?;
        fs::write(directory.join(name), bytes)
    };
    let entries: Vec<_> = (1..4_u32)
        .map(|block| PageEntry {
            key: PageKey([block as u8; 16]),
            block,
            len: 4096,
            crc: block,
            kind: EntryKind::Raw,
        })
        .collect();
    let trailer = Trailer { segment: 1, contents_offset: 4096, num_entries: 3, contents_crc: 7 };
    let group = GroupHeader {
        segment: 1,
        offset: 4096,
        durable_until: 0,
        body_bytes: 12288,
        entries: entries.clone(),
    };
    let parts = [
        SegmentHeader { id: 1, temporary: false }.encode(),
        group.encode(),
        trailer.encode(),
        encode_contents(&entries).bytes,
    ];
    for (choice, part) in parts.into_iter().enumerate() {
        put("fuzz_segment", &format!("part{choice}"), &[&[choice as u8], &part[..256]].concat())?;
    }
    put("fuzz_session", "session", &encode_session(&session()))?;
    put("fuzz_memory", "memories", &memories())?;
    for closed in [true, false] {
        put(
            "fuzz_recovery",
            if closed { "closed" } else { "open" },
            &segment(closed).map_err(io::Error::other)?,
        )?;
    }
    Ok(())
}

/// Two memories and an end, in the shape that the target makes a log of.
fn memories() -> Vec<u8> {
    let stored = |text: &str, supersedes| Stored {
        names: Names { session: Some("s".into()), ..Names::default() },
        text: text.into(),
        metadata: String::new(),
        source: None,
        author: Some("ana".into()),
        vector: vec![0.5, 1.0],
        valid_from: 1,
        valid_to: FOREVER,
        recorded: 2,
        supersedes,
    };
    let records = [
        Record::Memory { id: 1, stored: stored("some words", 0) },
        Record::Memory { id: 2, stored: stored("other words ", 1) },
        Record::End { id: 2, valid_to: 3, recorded: 4 },
    ];
    let mut bytes = Vec::new();
    for record in &records {
        let kind = if matches!(record, Record::End { .. }) { 2 } else { 1 };
        let payload = &record.encode(0, 0)[RECORD_HEAD_BYTES..];
        bytes.extend_from_slice(&[payload.len().div_ceil(2) as u8, kind, record.id() as u8]);
        bytes.extend_from_slice(payload);
    }
    bytes
}

fn session() -> SessionImage {
    let shape = LayerShape { kv_heads: 2, key_dim: 4, value_dim: 4, dtype: DType::Bf16 };
    let salts = vec![Salt { position: 3, digest: [5; 32] }];
    SessionImage {
        name: "name".into(),
        model: "model".into(),
        identity: vec![1, 2, 3],
        settings: BTreeMap::from([("a".into(), "b".into())]),
        page_tokens: 4,
        layers: vec![Some(shape), None],
        rows: vec![RowImage { tokens: (0..9).collect(), salts, tails: vec![vec![1; 8], Vec::new()] }],
        extra: vec![9; 5],
        directions: vec![Vec::new(), vec![7; 8]],
        created: 1,
    }
}

fn segment(closed: bool) -> stratakv_core::Result<Vec<u8>> {
    let disk = MemoryDisk::new();
    let config = StoreConfig { free_floor_bytes: 0, ..StoreConfig::in_memory(1 << 16) };
    let store = Store::open_on(&config, Arc::new(disk.clone()), open_engine(EngineKind::Inline))?;
    for number in 0..3 {
        let mut page = store.allocate(4096)?;
        page.fill(number);
        store.seal(PageKey([number; 16]), page, Lifetime::Durable)?;
    }
    store.flush()?;
    if closed {
        store.close()?;
    }
    let failed = |error| stratakv_core::Error::io("read", "segments", error);
    let first = disk.list("segments").map_err(failed)?.swap_remove(0);
    disk.content(&first.name).map_err(failed)
}
