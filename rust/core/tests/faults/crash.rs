//! The power fails at every operation, and the process is killed at every operation.

use std::collections::BTreeMap;

use stratakv_core::io::EngineKind;
use stratakv_core::session::SessionImage;
use stratakv_core::store::Store;
use stratakv_core::testing::{MemoryDisk, OpKind};

use crate::common::{config, effort, image, open, save, watched, whole};

const RAM_BYTES: u64 = 256 << 10;

/// What a name may stand for after the crash.
type Promises = BTreeMap<String, Vec<Option<SessionImage>>>;

/// True where it succeeded.
type Step = dyn Fn(&Store, &mut Promises) -> bool;

/// The fixed scenario, until the first error.
fn scenario(disk: &MemoryDisk) -> Promises {
    let mut promises = Promises::new();
    let Ok(store) = open(&config(RAM_BYTES), disk, EngineKind::Inline) else { return promises };
    let steps: [&Step; 8] = [
        &|store, promises| saved(store, promises, &image("a", 1, 3)),
        &|store, promises| saved(store, promises, &image("b", 2, 2)),
        &|store, promises| saved(store, promises, &image("a", 1, 5)),
        &|store, promises| removed(store, promises, "b"),
        // Its pages share segments with what is to be kept.
        &|store, _| store.gc().is_ok(),
        &|store, promises| {
            promises.insert("twin".into(), vec![None, Some(image("twin", 1, 5))]);
            let forked = store.fork_session("a", "twin").is_ok();
            forked && promises.get_mut("twin").is_some_and(|allowed| allowed.remove(0).is_none())
        },
        &|store, promises| saved(store, promises, &image("c", 3, 4)),
        &|store, _| store.close().is_ok(),
    ];
    let _ = steps.iter().all(|step| step(&store, &mut promises));
    promises
}

fn saved(store: &Store, promises: &mut Promises, image: &SessionImage) -> bool {
    let allowed = promises.entry(image.name.clone()).or_insert_with(|| vec![None]);
    allowed.push(Some(image.clone()));
    let done = save(store, image).is_ok();
    if done {
        allowed.remove(0);
    }
    done
}

fn removed(store: &Store, promises: &mut Promises, name: &str) -> bool {
    let Some(allowed) = promises.get_mut(name) else { return false };
    allowed.push(None);
    let done = store.remove_session(name).is_ok();
    if done {
        allowed.remove(0);
    }
    done
}

/// What is found is what may be there, and every session that is there is whole.
fn check(disk: &MemoryDisk, promises: &Promises) {
    let store = open(&config(RAM_BYTES), disk, EngineKind::Inline).unwrap();
    for (name, allowed) in promises {
        let found = whole(&store, name).map(|image| SessionImage { created: 1, ..image });
        assert!(allowed.contains(&found), "{name} is {:?}", found.map(|image| image.rows[0].tokens.len()));
    }
    let verification = store.verify(None).unwrap();
    assert_eq!((verification.corrupt, verification.missing), (0, 0), "{:?}", verification.problems);
    // And the store goes on as ever.
    let later = image("later", 9, 2);
    save(&store, &later).unwrap();
    store.gc().unwrap();
    store.close().unwrap();
    let store = open(&config(RAM_BYTES), disk, EngineKind::Inline).unwrap();
    assert_eq!(whole(&store, "later"), Some(later));
}

fn operations(kind: Option<OpKind>) -> u64 {
    let disk = MemoryDisk::new();
    let promises = scenario(&disk);
    assert!(promises.values().all(|allowed| allowed.len() == 1));
    check(&disk, &promises);
    // A concurrent writer orders things a little differently each time.
    disk.count(kind)
}

fn sweep(kind: Option<OpKind>, seeds: u64) {
    for count in 0..operations(kind) {
        watched(&format!("power off at operation {count} ({kind:?})"), move || {
            let disk = MemoryDisk::new();
            disk.power_off_after(kind, count);
            let promises = scenario(&disk);
            for seed in 0..seeds {
                check(&disk.crash(seed * 1000 + count), &promises);
            }
        });
    }
}

#[test]
fn power_fails_at_every_sync() {
    sweep(Some(OpKind::Sync), 6 * effort());
    sweep(Some(OpKind::SyncDir), 6 * effort());
}

#[test]
fn power_fails_at_every_operation() {
    sweep(None, 3 * effort());
}

/// A killed process loses nothing that it wrote; what the next one builds on that must
/// outlive a power cut.
#[test]
fn a_kill_and_then_a_power_cut() {
    for count in 0..operations(None) {
        watched(&format!("killed at operation {count}"), move || {
            let disk = MemoryDisk::new();
            disk.power_off_after(None, count);
            let promises = scenario(&disk);
            disk.clear_faults();
            check(&disk, &promises);

            let store = open(&config(RAM_BYTES), &disk, EngineKind::Inline).unwrap();
            let again = image("a", 1, 6);
            save(&store, &again).unwrap();
            for seed in 0..2 * effort() {
                let crashed = disk.crash(seed * 1000 + count);
                let store = open(&config(RAM_BYTES), &crashed, EngineKind::Inline).unwrap();
                assert_eq!(whole(&store, "a"), Some(again.clone()));
            }
        });
    }
}
