//! What a cut-off write leaves must not hide what was written since.

use super::*;
use crate::format::{LOG_RECORDS_AT, LogHead, RECORD_HEAD_BYTES, Record};
use crate::io::{Access, Disk, Usage};

fn record(id: u64, text: &str) -> Record {
    let stored = Draft::new(text).stored(&Names::default(), 5, None).unwrap();
    Record::Memory { id, stored }
}

fn log_of(disk: &MemoryDisk) -> String {
    disk.list("users").unwrap().into_iter().find(|entry| is_kind(&entry.name, "log")).unwrap().name
}

/// A head that holds, whose payload never came, speaks of bytes that later records lie in.
#[test]
fn a_torn_record_does_not_cover_later_ones() {
    for long in [40, 200, 5000] {
        let disk = MemoryDisk::new();
        let ana = scope("ana");
        open(&disk).remember(&ana, &[Draft::new("before")]).unwrap();
        let log = log_of(&disk);
        let bytes = disk.content(&log).unwrap();
        let generation = LogHead::decode(&bytes).unwrap().generation;
        let (torn_at, later_at) = (bytes.len() as u64, (bytes.len() + RECORD_HEAD_BYTES + 8) as u64);
        let torn = record(2, &"x".repeat(long)).encode(generation, torn_at);
        let later = record(3, "later").encode(generation, later_at);
        let last = record(4, "last").encode(generation, later_at + later.len() as u64);
        let file = disk.open(&log, Access::Write, Usage::Metadata).unwrap();
        file.write_at(&[&torn[..RECORD_HEAD_BYTES], &[0; 8], &later, &last], torn_at).unwrap();
        let engram = open(&disk);
        let all = engram.list(&ana, None, 0, 9).unwrap();
        assert_eq!(texts(&all), ["before", "later", "last"], "a torn text of {long}");
        assert_eq!(engram.stats(&ana).unwrap().damaged, 1);
        assert_eq!(engram.remember(&ana, &[Draft::new("next")]).unwrap(), [5]);
        // And a log that is written anew has them all, and nothing of the torn one.
        engram.forget(&ana, &[5]).unwrap();
        for engram in [engram, open(&disk)] {
            assert_eq!(texts(&engram.list(&ana, None, 0, 9).unwrap()), ["before", "later", "last"]);
            assert_eq!(engram.stats(&ana).unwrap().damaged, 0);
        }
    }
}

/// 0 stands for no memory: one of that number would be its own older version.
#[test]
fn a_memory_without_a_number_is_none() {
    let disk = MemoryDisk::new();
    let ana = scope("ana");
    open(&disk).remember(&ana, &[Draft::new("before")]).unwrap();
    let log = log_of(&disk);
    let generation = LogHead::decode(&disk.content(&log).unwrap()).unwrap().generation;
    let none = record(0, "none").encode(generation, LOG_RECORDS_AT);
    let one = record(1, "one").encode(generation, LOG_RECORDS_AT + none.len() as u64);
    let file = disk.open(&log, Access::Write, Usage::Metadata).unwrap();
    file.write_at(&[&none, &one], LOG_RECORDS_AT).unwrap();
    let engram = open(&disk);
    assert_eq!(texts(&engram.list(&ana, None, 0, 9).unwrap()), ["one"]);
    assert_eq!(texts(&engram.history(&ana, 1).unwrap()), ["one"]);
}

/// Also with a checkpoint that ends before the torn record, and where nothing comes after it.
#[test]
fn a_torn_end_is_written_over() {
    let disk = MemoryDisk::new();
    let ana = scope("ana");
    let saving = || {
        let config = EngramConfig { checkpoint_after: 1, ..config() };
        Engram::open_on(Arc::new(disk.clone()), config).unwrap()
    };
    saving().remember(&ana, &[Draft::new("before")]).unwrap();
    let log = log_of(&disk);
    let bytes = disk.content(&log).unwrap();
    let generation = LogHead::decode(&bytes).unwrap().generation;
    let torn = record(2, &"x".repeat(3000)).encode(generation, bytes.len() as u64);
    let file = disk.open(&log, Access::Write, Usage::Metadata).unwrap();
    file.write_at(&[&torn[..2000]], bytes.len() as u64).unwrap();
    assert!(bytes.len() as u64 > LOG_RECORDS_AT);
    for round in 0..9 {
        let engram = saving();
        assert_eq!(engram.list(&ana, None, 0, 99).unwrap().len(), 1 + round);
        engram.remember(&ana, &[Draft::new("after")]).unwrap();
    }
}
