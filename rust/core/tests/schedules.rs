//! The store's locks under every schedule that `shuttle` can think of.
//!
//! Under its scheduler no wait ever times out, so a wake-up that is lost is a deadlock, and
//! found: `cargo test -p stratakv-core --features testing,shuttle --test schedules`.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::io::ErrorKind;
use std::sync::Arc;

use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, Runner, thread};
use stratakv_core::dtype::DType;
use stratakv_core::io::{EngineKind, open_engine};
use stratakv_core::key::PageKey;
use stratakv_core::session::{LayerShape, RowImage, SessionImage};
use stratakv_core::store::{Lifetime, Store, StoreConfig};
use stratakv_core::testing::{Fault, MemoryDisk, OpKind};
use stratakv_core::{Error, Result};

const PAGE: usize = 4096;

/// Runs `f` under many schedules, at random and with few preemptions.
fn explore(f: impl Fn() + Send + Sync + Clone + 'static) {
    let effort: usize =
        std::env::var("STRATAKV_TEST_EFFORT").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let mut config = Config::new();
    config.stack_size = 1 << 20;
    Runner::new(RandomScheduler::new(1000 * effort), config.clone()).run(f.clone());
    Runner::new(PctScheduler::new(3, 1000 * effort), config).run(f);
}

fn open(disk: &MemoryDisk) -> Store {
    let config = StoreConfig { free_floor_bytes: 0, ..StoreConfig::in_memory(1 << 16) };
    Store::open_on(&config, Arc::new(disk.clone()), open_engine(EngineKind::Inline)).unwrap()
}

fn key(number: u8) -> PageKey {
    PageKey([number; 16])
}

fn seal(store: &Store, number: u8, lifetime: Lifetime) -> Result<()> {
    let mut page = store.allocate(PAGE)?;
    page.fill(number);
    store.seal(key(number), page, lifetime).map(drop)
}

fn get(store: &Store, number: u8) -> Result<Option<u8>> {
    let page = store.request(&[key(number)]).wait()?.remove(0);
    Ok(page.map(|page| page[PAGE - 1]))
}

/// Runs the closures at once, each with the store, and gives the store back.
fn together(store: Store, works: Vec<Box<dyn FnOnce(Store) + Send>>) -> Store {
    let spawn = |work: Box<dyn FnOnce(Store) + Send>| {
        let store = store.clone();
        thread::spawn(move || work(store))
    };
    let threads: Vec<_> = works.into_iter().map(spawn).collect();
    for thread in threads {
        thread.join().unwrap();
    }
    store
}

#[test]
fn flushes_at_once() {
    explore(|| {
        let disk = MemoryDisk::new();
        let work = |from: u8| -> Box<dyn FnOnce(Store) + Send> {
            Box::new(move |store| {
                for number in from..from + 3 {
                    seal(&store, number, Lifetime::Durable).unwrap();
                }
                store.flush().unwrap();
                assert_eq!(get(&store, from).unwrap(), Some(from));
            })
        };
        drop(together(open(&disk), vec![work(10), work(20)]));
        let store = open(&disk.crash(1));
        for number in [10, 11, 12, 20, 21, 22] {
            assert_eq!(get(&store, number).unwrap(), Some(number));
        }
    });
}

#[test]
fn more_than_ram_holds() {
    explore(|| {
        let work = |from: u8, lifetime| -> Box<dyn FnOnce(Store) + Send> {
            Box::new(move |store| {
                for number in from..from + 12 {
                    seal(&store, number, lifetime).unwrap();
                }
                for number in from..from + 12 {
                    assert_eq!(get(&store, number).unwrap(), Some(number));
                }
                store.release(&(from..from + 12).map(key).collect::<Vec<_>>());
            })
        };
        let works = vec![work(10, Lifetime::Private), work(30, Lifetime::Durable)];
        let store = together(open(&MemoryDisk::new()), works);
        assert!(store.stats().ram_used_bytes <= 1 << 16);
    });
}

#[test]
fn every_failed_flush_says_so() {
    explore(|| {
        let disk = MemoryDisk::new();
        let store = open(&disk);
        disk.plan(Fault::from_then_on(OpKind::Write, 1, ErrorKind::Other));
        for number in 0..4 {
            seal(&store, number, Lifetime::Durable).unwrap();
        }
        let fails = || -> Box<dyn FnOnce(Store) + Send> { Box::new(|store| assert!(store.flush().is_err())) };
        let store = together(store, vec![fails(), fails(), fails()]);
        disk.clear_faults();
        // A write that was under way before may fail only now: this flush tries it again.
        store.flush().unwrap();
    });
}

/// What a failed sync lost can't be known: no flush that was waiting for it may succeed by a second one.
#[test]
fn a_failed_sync_ends_every_flush_that_waits() {
    explore(|| {
        let disk = MemoryDisk::new();
        let store = open(&disk);
        disk.plan(Fault::once(OpKind::Sync, 0, ErrorKind::Other));
        let fails = |number| -> Box<dyn FnOnce(Store) + Send> {
            Box::new(move |store| {
                // Refused where the sync has failed already.
                let sealed = seal(&store, number, Lifetime::Durable);
                assert!(sealed.and_then(|()| store.flush()).is_err());
            })
        };
        let store = together(store, vec![fails(1), fails(2), fails(3)]);
        assert!(store.flush().is_err());
    });
}

#[test]
fn closing_ends_waits() {
    explore(|| {
        let seals = |from: u8| -> Box<dyn FnOnce(Store) + Send> {
            Box::new(move |store| {
                for number in from..from + 20 {
                    if seal(&store, number, Lifetime::Durable).is_err() {
                        return;
                    }
                }
                let _ = store.flush();
            })
        };
        let closes: Box<dyn FnOnce(Store) + Send> = Box::new(|store| store.close().unwrap());
        drop(together(open(&MemoryDisk::new()), vec![seals(10), seals(50), closes]));
    });
}

fn image(tokens: u32) -> SessionImage {
    let shape = LayerShape { kv_heads: 1, key_dim: 32, value_dim: 32, dtype: DType::F32 };
    SessionImage {
        name: "mine".into(),
        model: "tiny".into(),
        identity: b"tiny".to_vec(),
        settings: std::collections::BTreeMap::new(),
        page_tokens: 16,
        layers: vec![Some(shape)],
        rows: vec![RowImage { tokens: (0..tokens).collect(), ..RowImage::default() }],
        extra: Vec::new(),
        directions: Vec::new(),
        created: 1,
    }
}

#[test]
fn a_collection_during_a_save() {
    explore(|| {
        let saves: Box<dyn FnOnce(Store) + Send> = Box::new(|store| {
            let image = image(48);
            let keys: Vec<_> = image.page_keys().iter().map(|page| page.key).collect();
            for key in &keys {
                let mut page = store.allocate(PAGE).unwrap();
                page.fill(key.0[0]);
                store.seal(*key, page, Lifetime::Durable).unwrap();
            }
            store.flush().unwrap();
            store.save_session(&image).unwrap();
            store.release(&keys);
            for key in keys {
                let page = store.request(&[key]).wait().unwrap().remove(0);
                assert_eq!(page.map(|page| page[7]), Some(key.0[0]));
            }
        });
        let collects: Box<dyn FnOnce(Store) + Send> = Box::new(|store| {
            seal(&store, 200, Lifetime::Durable).unwrap();
            store.flush().unwrap();
            store.release(&[key(200)]);
            store.gc().unwrap();
            // Gone, or not yet; never something else.
            assert!(matches!(get(&store, 200), Ok(None | Some(200)) | Err(Error::RamFull { .. })));
        });
        let store = together(open(&MemoryDisk::new()), vec![saves, collects]);
        assert_eq!(store.missing_pages("mine").unwrap(), 0);
    });
}
