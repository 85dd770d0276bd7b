//! A log of memories whose records are any bytes, opened and asked; and the decoders of the files
//! that are derived from it. Where a head allows it, checksums are put right, or everything would
//! end there.
#![no_main]
#![expect(clippy::expect_used, reason = "a target that fails says so by panicking")]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use stratakv_core::format::{
    LOG_RECORDS_AT, LogHead, RECORD_HEAD_BYTES, RECORD_MAGIC, VectorsHead, decode_checkpoint,
};
use stratakv_core::io::{Access, Disk, Usage};
use stratakv_core::memory::{Draft, Engram, EngramConfig, Query, Scope, When};
use stratakv_core::testing::MemoryDisk;

const GENERATION: u64 = 7;
const ANYTHING: Option<When> = Some(When { as_of: None, known_at: 0, any: true });

fn crc32c(parts: &[&[u8]]) -> u32 {
    let bytes = parts.iter().flat_map(|part| part.iter());
    !bytes.fold(!0_u32, |crc, byte| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |crc, _| {
                if crc & 1 == 1 { (crc >> 1) ^ 0x82F6_3B78 } else { crc >> 1 }
            },
        )
    })
}

/// Makes records of the bytes: a byte says how long the payload is, one of which kind, one the number.
fn records(mut data: &[u8]) -> Vec<u8> {
    let mut log = Vec::new();
    while let [len, kind, id, rest @ ..] = data {
        let (payload, rest) = rest.split_at(rest.len().min(*len as usize * 2));
        data = rest;
        let offset = LOG_RECORDS_AT + log.len() as u64;
        let mut head = Vec::with_capacity(RECORD_HEAD_BYTES);
        head.extend_from_slice(RECORD_MAGIC);
        head.extend_from_slice(&[0; 4]);
        head.extend_from_slice(&crc32c(&[payload]).to_le_bytes());
        head.extend_from_slice(&u64::from(*id).to_le_bytes());
        head.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        head.extend_from_slice(&u32::from(*kind % 4).to_le_bytes());
        let crc = crc32c(&[&GENERATION.to_le_bytes(), &offset.to_le_bytes(), &head[..8], &head[12..]]);
        // Some are left damaged.
        if kind & 0x80 == 0 {
            head[8..12].copy_from_slice(&crc.to_le_bytes());
        }
        log.extend_from_slice(&head);
        log.extend_from_slice(payload);
    }
    log
}

fn open(disk: &MemoryDisk) -> stratakv_core::Result<Engram> {
    let config = EngramConfig {
        embedder: Some(("e".into(), 2)),
        checkpoint_after: 3,
        exact_rows_max: 100,
        durable: true,
    };
    Engram::open_on(Arc::new(disk.clone()), config)
}

/// The disk with this log as Ana's.
fn disk_with(log: &[u8]) -> Option<MemoryDisk> {
    let disk = MemoryDisk::new();
    let ana = Scope::user("ana").ok()?;
    open(&disk).ok()?.remember(&ana, &[Draft::new("x")]).ok()?;
    let name = disk.list("users").ok()?.into_iter().find(|entry| entry.name.ends_with("log"))?.name;
    disk.remove(&name).ok()?;
    let file = disk.open(&name, Access::Create, Usage::Metadata).ok()?;
    let head = LogHead { generation: GENERATION, next_id: 1, user: "ana".into(), revision: 0 }.encode();
    file.write_at(&[&head, log], 0).ok()?;
    Some(disk)
}

fuzz_target!(|data: &[u8]| {
    let _ = (LogHead::decode(data), VectorsHead::decode(data).is_ok(), decode_checkpoint(data).is_ok());
    let Some(disk) = disk_with(&records(data)) else { return };
    let ana = Scope::user("ana").expect("a name");
    let ask = |engram: &Engram| {
        let query = Query { vector: Some(vec![1.0, 0.5]), when: ANYTHING, ..Query::new("any words", 5) };
        let hits = engram.recall(&ana, &query).expect("recall");
        let all = engram.list(&ana, ANYTHING, 0, 1000).expect("list");
        for hit in &hits {
            assert!(all.contains(&hit.memory));
            engram.history(&ana, hit.memory.id).expect("history");
        }
        all
    };
    let engram = open(&disk).expect("open");
    let all = ask(&engram);
    engram.close().expect("close");
    // With the checkpoint that may have been written now.
    assert_eq!(ask(&open(&disk).expect("open")), all);
});
