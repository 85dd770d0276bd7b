//! Memories under power cuts, failing operations, and bytes that go wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use stratakv_core::io::Disk;
use stratakv_core::memory::{Draft, Engram, EngramConfig, Memory, Query, Scope, When};
use stratakv_core::testing::{Effect, Fault, MemoryDisk, OpKind, Seeded};
use stratakv_core::{Error, Result};

use crate::common::{effort, watched};

const SECRET: &str = "xylophone";
const ANYTHING: Option<When> = Some(When { as_of: None, known_at: 0, any: true });

fn open(disk: &MemoryDisk) -> Result<Engram> {
    let config =
        EngramConfig { embedder: Some(("test".into(), 4)), checkpoint_after: 5, ..EngramConfig::default() };
    Engram::open_on(Arc::new(disk.clone()), config)
}

fn scope(user: &str) -> Scope {
    Scope::user(user).unwrap()
}

fn draft(text: &str) -> Draft {
    let mut vector = vec![1.0; 4];
    vector[text.len() % 4] = 9.0;
    Draft { vector: Some(vector), ..Draft::new(text) }
}

/// What may be found.
#[derive(Clone, Default)]
struct Promises {
    /// Acknowledged: (user, number) and text.
    certain: BTreeMap<(&'static str, u64), String>,
    /// Begun and not acknowledged: texts that may be there or not.
    possible: BTreeSet<(&'static str, String)>,
    /// Whether the secret is forgotten, and that was acknowledged.
    forgotten: bool,
}

impl Promises {
    fn remember(&mut self, engram: &Engram, user: &'static str, texts: &[&str]) -> bool {
        let drafts: Vec<Draft> = texts.iter().map(|text| draft(text)).collect();
        self.write(engram, user, &drafts)
    }

    fn write(&mut self, engram: &Engram, user: &'static str, drafts: &[Draft]) -> bool {
        let texts = drafts.iter().map(|draft| draft.text.clone());
        let done = engram.remember(&scope(user), drafts);
        if let Ok(ids) = &done {
            self.certain.extend(ids.iter().map(|id| (user, *id)).zip(texts));
        } else {
            self.possible.extend(texts.map(|text| (user, text)));
        }
        done.is_ok()
    }

    fn forget(&mut self, engram: &Engram, user: &'static str, id: Option<u64>) -> bool {
        let gone = |key: &(&str, u64)| key.0 == user && id.is_none_or(|id| id == key.1);
        let going: Vec<_> = self.certain.keys().filter(|key| gone(key)).copied().collect();
        let done = match id {
            Some(id) => engram.forget(&scope(user), &[id]),
            None => engram.forget_all(&scope(user)),
        };
        let known = !matches!(done, Err(Error::NoMemory { .. }));
        for key in going.into_iter().filter(|_| known) {
            let text = self.certain.remove(&key).unwrap();
            if done.is_err() {
                self.possible.insert((user, text));
            }
        }
        done.is_ok()
    }
}

/// The fixed scenario; goes on after errors where `stubborn`.
fn scenario(disk: &MemoryDisk, stubborn: bool) -> Promises {
    let mut promises = Promises::default();
    let opened = open(disk);
    let Some(engram) = opened.or_else(|error| if stubborn { open(disk) } else { Err(error) }).ok() else {
        return promises;
    };
    let secret = format!("the {SECRET} is here");
    let steps: [&dyn Fn(&mut Promises) -> bool; 10] = [
        &|promises| promises.remember(&engram, "ana", &["one", &secret, "three"]),
        &|promises| promises.remember(&engram, "bob", &["bob's one", "bob's two"]),
        &|promises| {
            let newer = Draft { supersedes: Some(1), ..draft("one, corrected") };
            promises.write(&engram, "ana", &[newer])
        },
        &|_| engram.end(&scope("ana"), 3, i64::MAX - 9).is_ok(),
        &|promises| promises.remember(&engram, "ana", &["four", "five", "six"]),
        &|promises| {
            promises.forgotten = promises.forget(&engram, "ana", Some(2));
            promises.forgotten
        },
        &|promises| promises.remember(&engram, "ana", &["seven"]),
        &|_| engram.recall(&scope("ana"), &Query::new("seven", 3)).is_ok(),
        &|promises| promises.forget(&engram, "bob", None),
        &|_| engram.close().is_ok(),
    ];
    let _ = steps.iter().all(|step| step(&mut promises) || stubborn);
    promises
}

fn everything(engram: &Engram, user: &str) -> Vec<Memory> {
    engram.list(&scope(user), ANYTHING, 0, 1000).unwrap()
}

/// What is found is what may be there, and all that was acknowledged is.
fn check(disk: &MemoryDisk, promises: &Promises) {
    let engram = open(disk).unwrap();
    for user in ["ana", "bob"] {
        let found = everything(&engram, user);
        for memory in &found {
            let certain = promises
                .certain
                .iter()
                .any(|((owner, id), text)| (*owner, *id, text) == (user, memory.id, &memory.text));
            let possible =
                promises.possible.iter().any(|(owner, text)| (*owner, text) == (user, &memory.text));
            assert!(certain || possible, "{user} has {memory:?}");
            assert_eq!(memory.vector, draft(&memory.text).vector.unwrap());
        }
        for ((_, id), text) in promises.certain.iter().filter(|((owner, _), _)| *owner == user) {
            let there = found.iter().any(|memory| (memory.id, &memory.text) == (*id, text));
            assert!(there, "{user} lost {id}, {text:?}");
        }
    }
    if promises.forgotten {
        assert!(!holds_secret(disk), "what was forgotten is on the disk");
    }
    // And everything goes on as ever.
    let later = engram.remember(&scope("ana"), &[draft("later")]).unwrap();
    engram.recall(&scope("ana"), &Query { vector: Some(vec![1.0; 4]), ..Query::new("later", 9) }).unwrap();
    engram.close().unwrap();
    let engram = open(disk).unwrap();
    assert_eq!(engram.get(&scope("ana"), later[0]).unwrap().text, "later");
}

fn files(disk: &MemoryDisk) -> Vec<String> {
    let dirs = ["", "users"];
    let entries = dirs.iter().flat_map(|dir| disk.list(dir).unwrap_or_default());
    entries.filter(|entry| entry.is_file).map(|entry| entry.name).collect()
}

fn holds_secret(disk: &MemoryDisk) -> bool {
    files(disk).iter().any(|name| {
        let bytes = disk.content(name).unwrap();
        bytes.windows(SECRET.len()).any(|window| window == SECRET.as_bytes())
    })
}

fn operations(kind: Option<OpKind>) -> u64 {
    let disk = MemoryDisk::new();
    let promises = scenario(&disk, false);
    assert!(promises.possible.is_empty() && promises.forgotten);
    let count = disk.count(kind);
    assert!(files(&disk).iter().any(|name| name.ends_with("idx")), "a checkpoint was written");
    check(&disk, &promises);
    count
}

#[test]
fn power_fails_at_every_operation() {
    for (kind, seeds) in [(None, 3), (Some(OpKind::Sync), 6), (Some(OpKind::SyncDir), 6)] {
        for count in 0..operations(kind) {
            watched(&format!("power off at operation {count} ({kind:?})"), move || {
                let disk = MemoryDisk::new();
                disk.power_off_after(kind, count);
                let promises = scenario(&disk, false);
                for seed in 0..seeds * effort() {
                    check(&disk.crash(seed * 1000 + count), &promises);
                }
            });
        }
    }
}

/// A killed process loses nothing that it wrote; what the next one builds on that must
/// outlive a power cut.
#[test]
fn a_kill_and_then_a_power_cut() {
    for count in 0..operations(None) {
        watched(&format!("killed at operation {count}"), move || {
            let disk = MemoryDisk::new();
            disk.power_off_after(None, count);
            let mut promises = scenario(&disk, false);
            disk.clear_faults();
            let engram = open(&disk).unwrap();
            promises.remember(&engram, "ana", &["after the kill"]);
            drop(engram);
            for seed in 0..2 * effort() {
                check(&disk.crash(seed * 1000 + count), &promises);
            }
            check(&disk, &promises);
        });
    }
}

#[test]
fn every_operation_fails_once() {
    let effects = [
        Effect::Fail(io::ErrorKind::PermissionDenied),
        Effect::Short(3, io::ErrorKind::StorageFull),
        Effect::Short(70, io::ErrorKind::StorageFull),
    ];
    for effect in effects {
        for after in 0..operations(None) {
            watched(&format!("operation {after} fails ({effect:?})"), move || {
                let disk = MemoryDisk::new();
                disk.plan(Fault { kind: None, after, repeats: false, effect });
                let promises = scenario(&disk, true);
                disk.clear_faults();
                check(&disk, &promises);
            });
        }
    }
}

#[test]
fn a_full_disk_refuses_and_keeps_what_it_has() {
    for capacity in [1 << 10, 10 << 10, 17 << 10, 18 << 10, 30 << 10] {
        let disk = MemoryDisk::new();
        disk.set_capacity(Some(capacity));
        let promises = scenario(&disk, true);
        disk.set_capacity(None);
        check(&disk, &promises);
    }
}

/// Four memories with a checkpoint or without; the files.
fn small(checkpoint: bool) -> (MemoryDisk, Vec<Memory>) {
    let disk = MemoryDisk::new();
    let config = EngramConfig {
        embedder: Some(("test".into(), 4)),
        checkpoint_after: if checkpoint { 1 } else { 1000 },
        ..EngramConfig::default()
    };
    let engram = Engram::open_on(Arc::new(disk.clone()), config).unwrap();
    for text in ["red", "green STRATREC green", "blue", "grey"] {
        engram.remember(&scope("ana"), &[draft(text)]).unwrap();
    }
    engram.close().unwrap();
    let all = everything(&open(&disk).unwrap(), "ana");
    assert_eq!(files(&disk).iter().any(|name| name.ends_with("idx")), checkpoint);
    (disk, all)
}

/// No flipped byte makes a wrong text or takes more than the record that it is in.
#[test]
fn every_byte_is_flipped() {
    let mut random = Seeded::new(11);
    for checkpoint in [true, false] {
        let (disk, all) = small(checkpoint);
        for name in files(&disk) {
            let is_log = name.ends_with("log");
            for byte in 0..disk.content(&name).unwrap().len() as u64 {
                let disk = disk.crash(0);
                disk.rot(&name, byte * 8 + random.below(8)).unwrap();
                let engram = open(&disk).unwrap();
                let found = everything(&engram, "ana");
                assert!(found.iter().all(|memory| all.contains(memory)), "{name}, byte {byte}: {found:?}");
                let least = all.len() - usize::from(is_log && byte >= 8192);
                assert!(found.len() >= least, "{name}, byte {byte}: {} are left", found.len());
                let query = Query { vector: Some(vec![1.0; 4]), ..Query::new("green", 9) };
                let hits = engram.recall(&scope("ana"), &query).unwrap();
                assert_eq!(hits.len(), found.len());
                assert!(hits.iter().all(|hit| all.contains(&hit.memory)));
            }
        }
    }
}

#[test]
fn a_file_ends_anywhere() {
    for checkpoint in [true, false] {
        let (disk, all) = small(checkpoint);
        let log = files(&disk).into_iter().find(|name| name.ends_with("log")).unwrap();
        let bytes = disk.content(&log).unwrap();
        for len in 8192..bytes.len() {
            let disk = disk.crash(0);
            disk.remove(&log).unwrap();
            let file = disk
                .open(&log, stratakv_core::io::Access::Create, stratakv_core::io::Usage::Metadata)
                .unwrap();
            file.write_at(&[&bytes[..len]], 0).unwrap();
            let engram = open(&disk).unwrap();
            let found = everything(&engram, "ana");
            assert_eq!(found, all[..found.len()], "cut at {len}");
            let next = engram.remember(&scope("ana"), &[draft("new")]).unwrap();
            drop(engram);
            let again = everything(&open(&disk).unwrap(), "ana");
            assert_eq!(again.len(), found.len() + 1, "cut at {len}");
            assert_eq!((again[found.len()].id, again[found.len()].text.as_str()), (next[0], "new"));
        }
    }
}

#[test]
fn damage_is_counted() {
    let (disk, all) = small(false);
    let log = files(&disk).into_iter().find(|name| name.ends_with("log")).unwrap();
    disk.rot(&log, 8250 * 8).unwrap();
    let engram = open(&disk).unwrap();
    assert_eq!(everything(&engram, "ana"), all[1..]);
    assert_eq!(engram.stats(&scope("ana")).unwrap().damaged, 1);
}
