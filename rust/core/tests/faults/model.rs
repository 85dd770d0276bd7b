//! Random operations, against a dictionary that never forgets.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;
use stratakv_core::io::EngineKind;
use stratakv_core::key::PageKey;
use stratakv_core::policy::PolicyKind;
use stratakv_core::session::SessionImage;
use stratakv_core::store::{Lifetime, Store, StoreConfig};
use stratakv_core::testing::MemoryDisk;
use stratakv_core::{Error, Result};

use crate::common::{body, config, effort, file_bytes, image, key, missing, open, save, watched};

const NUM_PAGES: u64 = 40;
/// Private pages are numbered from here: no number is used twice.
const PRIVATE: u64 = 1 << 32;

#[derive(Clone, Debug)]
enum Op {
    Seal(u64),
    SealPrivate,
    Release(usize),
    Retain(u64),
    Request(Vec<u64>, bool),
    Flush,
    Save(u8, u8, u8),
    Load(u8),
    Fork(u8, u8),
    Remove(u8),
    Gc,
    Verify,
    Reopen,
    Crash(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => (0..NUM_PAGES).prop_map(Op::Seal),
        8 => Just(Op::SealPrivate),
        8 => any::<usize>().prop_map(Op::Release),
        4 => (0..NUM_PAGES).prop_map(Op::Retain),
        12 => (prop::collection::vec(0..NUM_PAGES, 1..6), any::<bool>())
            .prop_map(|(numbers, dropped)| Op::Request(numbers, dropped)),
        3 => Just(Op::Flush),
        5 => (0..4_u8, 0..3_u8, 1..6_u8).prop_map(|(name, base, pages)| Op::Save(name, base, pages)),
        3 => (0..4_u8).prop_map(Op::Load),
        2 => (0..4_u8, 0..4_u8).prop_map(|(from, to)| Op::Fork(from, to)),
        2 => (0..4_u8).prop_map(Op::Remove),
        2 => Just(Op::Gc),
        1 => Just(Op::Verify),
        1 => Just(Op::Reopen),
        1 => any::<u64>().prop_map(Op::Crash),
    ]
}

/// Several page sizes in one store.
fn len_of(number: u64) -> usize {
    [4000, 9000, 20_000][(number % 3) as usize]
}

struct World {
    disk: MemoryDisk,
    config: StoreConfig,
    engine: EngineKind,
    store: Option<Store>,
    /// References per page, in the order they were taken.
    held: Vec<u64>,
    /// Pages that were sealed while referenced, and are still.
    alive: HashMap<u64, u32>,
    sessions: BTreeMap<String, SessionImage>,
    evicted: u64,
    next_private: u64,
    /// A crash may bring back files that were deleted: the limit holds from the next write on.
    over_limit: bool,
    /// What a crash tore is reported for as long as its segment is there.
    crashed: bool,
}

/// Limits may refuse; nothing else may fail.
fn limited<T>(outcome: Result<T>) -> Option<T> {
    match outcome {
        Ok(value) => Some(value),
        Err(Error::RamFull { .. } | Error::DiskFull { .. }) => None,
        Err(error) => panic!("{error}"),
    }
}

impl World {
    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    fn name(number: u8) -> String {
        format!("session {number}")
    }

    fn seal(&mut self, number: u64, lifetime: Lifetime) {
        let store = self.store();
        let len = len_of(number);
        let Some(mut page) = limited(store.allocate(len)) else { return };
        page.copy_from_slice(&body(key(number), len));
        store.seal(key(number), page, lifetime).unwrap();
        self.held.push(number);
        *self.alive.entry(number).or_insert(0) += 1;
    }

    fn release(&mut self, number: u64) {
        if let Some(refs) = self.alive.get_mut(&number) {
            *refs -= 1;
            if *refs == 0 {
                self.alive.remove(&number);
            }
        }
    }

    fn request(&self, numbers: &[u64]) {
        let keys: Vec<PageKey> = numbers.iter().map(|number| key(*number)).collect();
        let Some(found) = limited(self.store().request(&keys).wait()) else { return };
        for (number, page) in numbers.iter().zip(found) {
            match page {
                Some(page) => {
                    assert!(page[..] == body(key(*number), len_of(*number))[..], "page {number} is wrong");
                }
                None => assert!(!self.alive.contains_key(number), "page {number} is lost"),
            }
        }
    }

    /// Sessions may have been evicted, and the store says so; the others are whole.
    fn follow_evictions(&mut self) {
        let listed: Vec<_> =
            self.store().sessions().unwrap().into_iter().map(|info| info.head.name).collect();
        let before = self.sessions.len() as u64;
        self.sessions.retain(|name, _| listed.contains(name));
        assert!(listed.iter().all(|name| self.sessions.contains_key(name)), "{listed:?}");
        // One that was evicted may be there again by now.
        let evicted = self.store().stats().counters.evicted_sessions;
        assert!(evicted - self.evicted >= before - self.sessions.len() as u64, "a session vanished");
        self.evicted = evicted;
    }

    fn load(&mut self, name: &str) {
        self.store().set_session_open(name, true);
        match self.store().load_session(name) {
            Ok(found) => {
                let expected = &self.sessions[name];
                assert_eq!(found.rows, expected.rows);
                assert_eq!(limited(missing(self.store(), &found)).unwrap_or(0), 0, "{name} lacks pages");
            }
            Err(Error::NotFound { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        self.store().set_session_open(name, false);
        // Reading needs RAM, which needs disk, which may cost other sessions.
        self.follow_evictions();
    }

    fn reopen(&mut self, crash: Option<u64>) {
        match crash {
            None => {
                limited(self.store().flush());
                self.follow_evictions();
                limited(self.store().close());
            }
            Some(_) => self.disk.power_off_after(None, 0),
        }
        self.store = None;
        if let Some(seed) = crash {
            self.disk = self.disk.crash(seed);
            self.over_limit = true;
            self.crashed = true;
        }
        self.disk.clear_faults();
        let store = open(&self.config, &self.disk, self.engine).unwrap();
        if !self.crashed {
            assert_eq!(store.recovery_report(), [] as [String; 0]);
        }
        self.store = Some(store);
        self.held.clear();
        self.alive.clear();
        self.evicted = 0;
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Seal(number) => self.seal(number, Lifetime::Durable),
            Op::SealPrivate => {
                self.next_private += 1;
                self.seal(PRIVATE + self.next_private, Lifetime::Private);
            }
            Op::Release(at) if !self.held.is_empty() => {
                let number = self.held.swap_remove(at % self.held.len());
                self.store().release(&[key(number)]);
                self.release(number);
            }
            Op::Release(_) => {}
            Op::Retain(number) => {
                self.store().retain(&[key(number)]);
                self.held.push(number);
                // A page that is there from now on stays. One that a crash tore is found out when it is read.
                let read = || limited(self.store().request(&[key(number)]).wait());
                let whole = || read().is_some_and(|mut found| found.remove(0).is_some());
                let there = self.store().contains(key(number)) && (!self.crashed || whole());
                if there || self.alive.contains_key(&number) {
                    *self.alive.entry(number).or_insert(0) += 1;
                } else {
                    self.held.pop();
                    self.store().release(&[key(number)]);
                }
            }
            Op::Request(mut numbers, dropped) => {
                // Of the private pages, those that were sealed last.
                let last = PRIVATE + self.next_private;
                numbers.iter_mut().skip(3).for_each(|number| *number = last - (*number % 8));
                if dropped {
                    let keys: Vec<_> = numbers.iter().map(|number| key(*number)).collect();
                    drop(self.store().request(&keys));
                } else {
                    self.request(&numbers);
                }
            }
            Op::Flush => drop(limited(self.store().flush())),
            Op::Save(name, base, pages) => {
                let image = image(&Self::name(name), u32::from(base), u32::from(pages));
                if limited(save(self.store(), &image)).is_some() {
                    self.sessions.insert(image.name.clone(), image);
                }
            }
            Op::Load(name) => self.load(&Self::name(name)),
            Op::Fork(from, to) => {
                let (from, to) = (Self::name(from), Self::name(to));
                match self.store().fork_session(&from, &to) {
                    Ok(()) => {
                        let image = self.sessions[&from].clone();
                        self.sessions.insert(to, image);
                    }
                    Err(Error::NotFound { .. }) => assert!(!self.sessions.contains_key(&from)),
                    Err(Error::Invalid(_)) => assert!(self.sessions.contains_key(&to)),
                    Err(error) => drop(limited::<()>(Err(error))),
                }
            }
            Op::Remove(name) => {
                let name = Self::name(name);
                match self.store().remove_session(&name) {
                    Ok(()) => assert!(self.sessions.remove(&name).is_some()),
                    Err(error) => assert!(matches!(error, Error::NotFound { .. }), "{error}"),
                }
            }
            Op::Gc => drop(limited(self.store().gc())),
            Op::Verify => {
                if let Some(found) = limited(self.store().verify(None)) {
                    assert_eq!((found.corrupt, found.missing), (0, 0), "{:?}", found.problems);
                }
            }
            Op::Reopen => self.reopen(None),
            Op::Crash(seed) => self.reopen(Some(seed)),
        }
    }

    fn check(&mut self) {
        self.follow_evictions();
        let (stats, bytes) = (self.store().stats(), file_bytes(&self.disk));
        assert!(stats.ram_used_bytes <= stats.ram_limit_bytes, "{stats:?}");
        assert!(self.crashed || stats.counters.corrupt_pages == 0, "{stats:?}");
        if let Some(limit) = stats.disk_limit_bytes {
            self.over_limit &= bytes > limit;
            assert!(self.over_limit || bytes <= limit, "{bytes} bytes on disk of {limit}: {stats:?}");
        }
    }

    fn finish(&mut self) {
        let numbers: Vec<_> = self.alive.keys().copied().collect();
        for number in numbers {
            self.request(&[number]);
        }
        let names: Vec<_> = self.sessions.keys().cloned().collect();
        for name in &names {
            self.load(name);
        }
        self.reopen(None);
        self.follow_evictions();
        let names: Vec<_> = self.sessions.keys().cloned().collect();
        for name in &names {
            self.load(name);
        }
        // Without sessions and references nothing is worth keeping.
        for name in names {
            self.store().remove_session(&name).unwrap();
        }
        self.store().gc().unwrap();
        let stats = self.store().stats();
        assert_eq!((stats.disk_used_bytes, stats.disk_pages), (0, 0), "{stats:?}");
        assert_eq!(file_bytes(&self.disk), 0);
    }
}

fn play(ops: Vec<Op>, policy: PolicyKind, engine: EngineKind, limits: (u64, Option<u64>)) {
    let config = StoreConfig { policy, disk_limit_bytes: limits.1, ..config(limits.0) };
    let disk = MemoryDisk::new();
    let store = open(&config, &disk, engine).unwrap();
    let mut world = World {
        disk,
        config,
        engine,
        store: Some(store),
        held: Vec::new(),
        alive: HashMap::new(),
        sessions: BTreeMap::new(),
        evicted: 0,
        next_private: 8,
        over_limit: false,
        crashed: false,
    };
    for op in ops {
        world.run(op);
        world.check();
    }
    world.finish();
}

fn policies() -> impl Strategy<Value = PolicyKind> {
    prop::sample::select(PolicyKind::ALL.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 150 * effort() as u32, failure_persistence: None, max_shrink_iters: 400, ..ProptestConfig::default()
    })]

    #[test]
    fn the_store_is_a_dictionary_that_may_forget(
        ops in prop::collection::vec(op(), 1..120),
        policy in policies(),
        pool in prop::bool::weighted(0.2),
        ram_bytes in prop::sample::select(vec![160_u64 << 10, 512 << 10]),
        disk_limit in prop::sample::select(vec![None, Some(600_u64 << 10), Some(3 << 20)]),
    ) {
        let engine = if pool { EngineKind::Pool } else { EngineKind::Inline };
        let asked = ops.clone();
        watched("the model", move || play(asked, policy, engine, (ram_bytes, disk_limit)));
    }
}
