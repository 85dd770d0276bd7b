//! Many threads on one store, and stores that end while they are used.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use stratakv_core::io::EngineKind;
use stratakv_core::store::{Lifetime, Store, StoreConfig};
use stratakv_core::testing::{MemoryDisk, Seeded};
use stratakv_core::{Error, Result};

use crate::common::{body, config, effort, get, image, key, missing, open, save, seal, watched};

/// Limits may refuse, and a session may be evicted; nothing else may fail.
fn limited<T>(outcome: Result<T>) -> Option<T> {
    match outcome {
        Ok(value) => Some(value),
        Err(Error::RamFull { .. } | Error::DiskFull { .. } | Error::NotFound { .. }) => None,
        Err(error) => panic!("{error}"),
    }
}

fn hammer(store: &Store, thread: u64, steps: u64) {
    let mut random = Seeded::new(thread);
    let mut held = Vec::new();
    for step in 0..steps {
        match random.below(100) {
            0..30 => {
                // Half of the pages are shared with the other threads.
                let number = if random.one_in(2) { random.below(60) } else { (thread << 32) + step };
                let lifetime = if number < 60 { Lifetime::Durable } else { Lifetime::Private };
                if limited(seal(store, key(number), 9000, lifetime)).is_some() {
                    held.push(number);
                }
            }
            30..70 if !held.is_empty() => {
                let numbers: Vec<_> =
                    (0..4).map(|_| held[random.below(held.len() as u64) as usize]).collect();
                let keys: Vec<_> = numbers.iter().map(|number| key(*number)).collect();
                let request = store.request(&keys);
                if random.one_in(4) {
                    continue; // dropped while it reads
                }
                for (number, page) in numbers.iter().zip(limited(request.wait()).unwrap_or_default()) {
                    let page = page.unwrap_or_else(|| panic!("page {number} is lost"));
                    assert!(page[..] == body(key(*number), 9000)[..], "page {number} is wrong");
                }
            }
            70..92 if !held.is_empty() => {
                let number = held.swap_remove(random.below(held.len() as u64) as usize);
                store.release(&[key(number)]);
            }
            92..94 => drop(limited(store.flush())),
            94..96 => drop(limited(store.gc())),
            96..99 => {
                let name = format!("session {thread}");
                let image = image(&name, random.below(3) as u32, 1 + random.below(3) as u32);
                store.set_session_open(&name, true);
                if limited(save(store, &image)).is_some() {
                    let lost = limited(missing(store, &image));
                    assert_eq!(lost.unwrap_or(0), 0, "{name} lacks pages");
                }
                store.set_session_open(&name, false);
            }
            _ => drop(store.stats()),
        }
        let stats = store.stats();
        assert!(stats.ram_used_bytes <= stats.ram_limit_bytes);
        assert!(stats.disk_limit_bytes.is_none_or(|limit| stats.disk_used_bytes <= limit), "{stats:?}");
    }
    store.release(&held.into_iter().map(key).collect::<Vec<_>>());
}

fn hammered(engine: EngineKind, disk_limit_bytes: Option<u64>) {
    watched("hammering", move || {
        let config = StoreConfig { disk_limit_bytes, ..config(1 << 20) };
        let disk = MemoryDisk::new();
        let store = open(&config, &disk, engine).unwrap();
        std::thread::scope(|scope| {
            for thread in 1..7 {
                let store = &store;
                scope.spawn(move || hammer(store, thread, 400 * effort()));
            }
        });
        assert_eq!(store.stats().counters.corrupt_pages, 0);
        store.close().unwrap();
        drop(store);
        let store = open(&config, &disk, engine).unwrap();
        assert_eq!(store.recovery_report(), [] as [String; 0]);
        for session in store.sessions().unwrap() {
            let image = store.load_session(&session.head.name).unwrap();
            assert_eq!(missing(&store, &image).unwrap(), 0);
        }
    });
}

#[test]
fn threads_share_a_store() {
    for engine in [EngineKind::Pool, EngineKind::Inline] {
        hammered(engine, None);
        hammered(engine, Some(4 << 20));
    }
}

/// A save and a collection at once: the session is whole, whoever was first.
#[test]
fn a_collection_does_not_take_what_is_being_saved() {
    watched("saving and collecting", || {
        let store = open(&config(4 << 20), &MemoryDisk::new(), EngineKind::Pool).unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    store.gc().unwrap();
                }
            });
            for round in 0..100 * effort() as u32 {
                let image = image("mine", round % 4, 4);
                save(&store, &image).unwrap();
                assert_eq!(missing(&store, &image).unwrap(), 0, "round {round}");
                let twin = format!("twin {round}");
                store.fork_session("mine", &twin).unwrap();
                store.remove_session("mine").unwrap();
                assert_eq!(missing(&store, &store.load_session(&twin).unwrap()).unwrap(), 0, "round {round}");
                store.remove_session(&twin).unwrap();
            }
            stop.store(true, Ordering::Relaxed);
        });
    });
}

/// Whoever waits when the store is closed hears of it.
#[test]
fn closing_ends_all_waits() {
    for round in 0..10 {
        watched("closing", move || {
            let store = open(&config(1 << 17), &MemoryDisk::new(), EngineKind::Pool).unwrap();
            std::thread::scope(|scope| {
                for thread in 0..4_u64 {
                    let store = &store;
                    scope.spawn(move || {
                        for step in 0.. {
                            let number = (thread << 32) + step;
                            let lifetime =
                                if thread % 2 == 0 { Lifetime::Durable } else { Lifetime::Private };
                            let sealed = seal(store, key(number), 9000, lifetime);
                            if step % 5 == 0 && store.flush().is_err() {
                                return;
                            }
                            if let Err(error) = sealed
                                && !matches!(error, Error::RamFull { .. })
                            {
                                return;
                            }
                            if thread % 2 == 0 {
                                store.release(&[key(number)]);
                            }
                        }
                    });
                }
                std::thread::sleep(Duration::from_millis(5 * round));
                let _ = store.close();
            });
        });
    }
}

/// Dropping the last clone ends the writer's thread and gives everything back.
#[test]
fn a_dropped_store_is_gone() {
    let engine = stratakv_core::io::open_engine(EngineKind::Pool);
    let store = Store::open_on(&config(1 << 20), Arc::new(MemoryDisk::new()), engine.clone()).unwrap();
    seal(&store, key(1), 9000, Lifetime::Durable).unwrap();
    let request = store.request(&[key(1)]);
    let clone = store.clone();
    drop(store);
    assert!(get(&clone, key(1), 9000).unwrap());
    drop(clone);
    // A request outlives its store, and holds what it has.
    assert!(request.wait().unwrap()[0].is_some());
    assert_eq!(Arc::strong_count(&engine), 1, "something still holds the store");
}

/// RAM is full of pages that are all in use: an error, not a wait without end.
#[test]
fn pages_in_use_fill_ram() {
    watched("a full RAM", || {
        let store = open(&config(1 << 17), &MemoryDisk::new(), EngineKind::Pool).unwrap();
        let mut pages = Vec::new();
        let error = loop {
            let number = pages.len() as u64;
            match seal(&store, key(number), 9000, Lifetime::Durable) {
                Ok(()) => pages.push(store.request(&[key(number)]).wait().unwrap().remove(0).unwrap()),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, Error::RamFull { .. }), "{error}");
        // Nobody but their readers needs them: their copies are collected, they are not.
        store.release(&(0..pages.len() as u64).map(key).collect::<Vec<_>>());
        store.gc().unwrap();
        assert!(matches!(store.allocate(9000).err().unwrap(), Error::RamFull { .. }));
        drop(pages);
        store.allocate(9000).unwrap();
    });
}
