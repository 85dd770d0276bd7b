//! The store as its callers see it, over a disk in memory and over the real one.

use std::sync::Arc;

use super::*;
use crate::io::EngineKind;
use crate::session::{LayerShape, RowImage, SessionImage};
use crate::testing::MemoryDisk;

const PAGE: usize = 8192;

fn config(ram_pages: u64) -> StoreConfig {
    StoreConfig { free_floor_bytes: 0, ..StoreConfig::in_memory((ram_pages * PAGE as u64).max(1 << 16)) }
}

fn open(disk: &MemoryDisk, ram_pages: u64) -> Store {
    Store::open_on(&config(ram_pages), Arc::new(disk.clone()), open_engine(EngineKind::Pool)).unwrap()
}

fn key(number: u64) -> PageKey {
    let mut bytes = [7; 16];
    bytes[..8].copy_from_slice(&number.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
    bytes[8..].copy_from_slice(&number.to_le_bytes());
    PageKey(bytes)
}

fn put(store: &Store, number: u64, lifetime: Lifetime) {
    let mut page = store.allocate(PAGE).unwrap();
    page.fill(number as u8);
    store.seal(key(number), page, lifetime).unwrap();
}

fn get(store: &Store, number: u64) -> Option<Vec<u8>> {
    store.request(&[key(number)]).wait().unwrap().remove(0).map(|page| page.to_vec())
}

fn check(store: &Store, numbers: std::ops::Range<u64>) {
    for number in numbers {
        assert_eq!(get(store, number), Some(vec![number as u8; PAGE]), "page {number}");
    }
}

#[test]
fn pages_beyond_ram_come_back_from_disk() {
    for lifetime in [Lifetime::Durable, Lifetime::Private] {
        let disk = MemoryDisk::new();
        let store = open(&disk, 16);
        for number in 0..200 {
            put(&store, number, lifetime);
        }
        check(&store, 0..200);
        check(&store, 0..200);
        let stats = store.stats();
        assert!(stats.ram_used_bytes <= stats.ram_limit_bytes);
        assert!(stats.counters.reads > 0);
        assert_eq!(stats.counters.corrupt_pages, 0);
    }
}

#[test]
fn pages_that_are_let_go_leave_ram_where_nothing_is_lost_by_it() {
    let disk = MemoryDisk::new();
    let store = open(&disk, 32);
    (0..4).for_each(|number| put(&store, number, Lifetime::Durable));
    store.flush().unwrap();
    put(&store, 4, Lifetime::Private);
    let held = store.request(&[key(1)]).wait().unwrap();
    let used = |store: &Store| store.stats().ram_used_bytes;
    let before = used(&store);
    // One that is held, one that is only in RAM, one twice, and one that there is not.
    store.let_go(&[key(0), key(1), key(2), key(2), key(4), key(9)]);
    assert_eq!(used(&store), before - 2 * PAGE as u64);
    let misses = store.stats().counters.misses;
    check(&store, 0..5);
    assert_eq!(store.stats().counters.misses, misses + 2);
    drop(held);
    let memory = Store::open(&config(32)).unwrap();
    put(&memory, 1, Lifetime::Durable);
    memory.let_go(&[key(1)]);
    check(&memory, 1..2);
}

#[test]
fn archival_pages_leave_ram_first_and_come_back() {
    let disk = MemoryDisk::new();
    let store = open(&disk, 16);
    // The usual pages are the older ones, and would go first by age.
    for number in 0..6 {
        put(&store, number, Lifetime::Durable);
    }
    for number in 6..12 {
        let mut page = store.allocate(PAGE).unwrap();
        page.fill(number as u8);
        store.renew(key(number), page).unwrap();
    }
    store.flush().unwrap();
    let fresh: Vec<_> = (0..10).map(|_| store.allocate(PAGE).unwrap()).collect();
    drop(fresh);
    check(&store, 0..6);
    assert_eq!(store.stats().counters.misses, 0, "no page of the usual kind had left");
    check(&store, 6..12);
    assert_eq!(store.stats().counters.misses, 6);
}

#[test]
fn a_full_ram_limit_without_a_directory_is_an_error() {
    let store = Store::open(&config(16)).unwrap();
    for number in 0..16 {
        put(&store, number, Lifetime::Private);
    }
    let error = store.allocate(PAGE).err().unwrap();
    assert!(matches!(error, Error::RamFull { .. }), "{error}");
    store.release(&[key(3)]);
    store.allocate(PAGE).unwrap();
    assert_eq!(get(&store, 3), None);
}

#[test]
fn durable_pages_survive_a_reopening_and_private_ones_do_not() {
    let directory = tempfile::tempdir().unwrap();
    let config = StoreConfig { free_floor_bytes: 0, ..StoreConfig::on_disk(1 << 20, directory.path()) };
    let store = Store::open(&config).unwrap();
    for number in 0..300 {
        put(&store, number, if number % 3 == 0 { Lifetime::Private } else { Lifetime::Durable });
    }
    store.flush().unwrap();
    drop(store);
    let store = Store::open(&config).unwrap();
    assert_eq!(store.recovery_report(), [] as [String; 0]);
    for number in 0..300 {
        let expected = (number % 3 != 0).then(|| vec![number as u8; PAGE]);
        assert_eq!(get(&store, number), expected, "page {number}");
    }
}

#[test]
fn a_second_writer_is_refused_and_a_reader_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let config = StoreConfig { free_floor_bytes: 0, ..StoreConfig::on_disk(1 << 20, directory.path()) };
    let store = Store::open(&config).unwrap();
    put(&store, 1, Lifetime::Durable);
    store.flush().unwrap();
    assert!(matches!(Store::open(&config), Err(Error::Locked { .. })));
    let reader = Store::open(&StoreConfig { read_only: true, ..config.clone() }).unwrap();
    check(&reader, 1..2);
    assert!(matches!(reader.gc(), Err(Error::ReadOnly { .. })));
    drop(store);
    Store::open(&config).unwrap();
}

fn image(name: &str, tokens: std::ops::Range<u32>) -> SessionImage {
    let shape = LayerShape { kv_heads: 1, key_dim: 16, value_dim: 16, dtype: crate::dtype::DType::F32 };
    SessionImage {
        name: name.into(),
        model: "tiny".into(),
        identity: b"tiny".to_vec(),
        settings: std::collections::BTreeMap::new(),
        page_tokens: 64,
        layers: vec![Some(shape)],
        rows: vec![RowImage { tokens: tokens.collect(), ..RowImage::default() }],
        extra: Vec::new(),
        directions: Vec::new(),
        created: 1,
    }
}

/// Seals and saves a session of as many pages as its tokens fill.
fn save(store: &Store, image: &SessionImage) {
    let pages = image.page_keys();
    for page in &pages {
        let mut body = store.allocate(page.bytes).unwrap();
        body.fill(page.key.0[0]);
        store.seal(page.key, body, Lifetime::Durable).unwrap();
    }
    store.flush().unwrap();
    store.save_session(image).unwrap();
    store.release(&pages.iter().map(|page| page.key).collect::<Vec<_>>());
}

fn is_whole(store: &Store, image: &SessionImage) -> bool {
    image.page_keys().iter().all(|page| {
        let found = store.request(&[page.key]).wait().unwrap().remove(0);
        found.is_some_and(|body| body.iter().all(|byte| *byte == page.key.0[0]))
    })
}

#[test]
fn sessions_share_pages_and_gc_takes_only_what_none_uses() {
    let disk = MemoryDisk::new();
    let store = open(&disk, 64);
    let (long, short) = (image("long", 0..6400), image("short", 0..3200));
    save(&store, &long);
    save(&store, &short);
    let infos = store.sessions().unwrap();
    assert_eq!(infos.len(), 2);
    assert_eq!(infos.iter().map(|info| info.shared_bytes).collect::<Vec<_>>(), [50 * PAGE as u64; 2]);
    store.fork_session("short", "twin").unwrap();
    assert!(store.fork_session("short", "twin").is_err());
    store.remove_session("long").unwrap();
    assert!(matches!(store.load_session("long"), Err(Error::NotFound { .. })));
    let freed = store.gc().unwrap();
    assert_eq!(freed.pages, 50);
    assert!(freed.bytes >= 50 * PAGE as u64, "{freed:?}");
    assert!(is_whole(&store, &store.load_session("short").unwrap()));
    let verification = store.verify(None).unwrap();
    assert_eq!((verification.pages, verification.corrupt, verification.missing), (50, 0, 0));
    drop(store);
    let store = open(&disk, 64);
    assert!(is_whole(&store, &store.load_session("twin").unwrap()));
}

#[test]
fn the_disk_limit_evicts_the_longest_unused_session_first() {
    let disk = MemoryDisk::new();
    let limit = 3 << 20;
    let config = StoreConfig { disk_limit_bytes: Some(limit), ..config(64) };
    let store = Store::open_on(&config, Arc::new(disk.clone()), open_engine(EngineKind::Pool)).unwrap();
    let images: Vec<_> = (0..6).map(|n| image(&format!("s{n}"), n * 100_000..n * 100_000 + 6400)).collect();
    for image in &images {
        save(&store, image);
        std::thread::sleep(Duration::from_millis(5));
        assert!(store.stats().disk_used_bytes <= limit);
    }
    let names: Vec<_> = store.sessions().unwrap().into_iter().map(|info| info.head.name).collect();
    assert!(names.contains(&"s5".to_owned()) && !names.contains(&"s0".to_owned()), "{names:?}");
    for name in &names {
        assert!(is_whole(&store, &store.load_session(name).unwrap()), "{name}");
    }
    assert_eq!(store.stats().counters.evicted_sessions, 6 - names.len() as u64);
    // One session alone that can't fit is an error that says so, and what is there stays.
    let huge = image("huge", 0..64 * 1000);
    let mut failure = None;
    for page in huge.page_keys() {
        match store.allocate(page.bytes) {
            Ok(body) => drop(store.seal(page.key, body, Lifetime::Durable).unwrap()),
            Err(error) => {
                failure = Some(error);
                break;
            }
        }
    }
    let failure = failure.or_else(|| store.flush().err()).unwrap();
    assert!(matches!(failure, Error::DiskFull { .. }), "{failure}");
    assert!(store.stats().disk_used_bytes <= limit);
}

/// Counts the files of a disk that are open.
struct CountingDisk {
    disk: MemoryDisk,
    open: Arc<std::sync::atomic::AtomicUsize>,
}

struct CountedFile {
    file: Arc<dyn crate::io::DiskFile>,
    open: Arc<std::sync::atomic::AtomicUsize>,
}

impl Drop for CountedFile {
    fn drop(&mut self) {
        self.open.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
    }
}

impl crate::io::DiskFile for CountedFile {
    fn len(&self) -> std::io::Result<u64> {
        self.file.len()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.file.read_at(buf, offset)
    }
    fn write_at(&self, parts: &[&[u8]], offset: u64) -> std::io::Result<()> {
        self.file.write_at(parts, offset)
    }
    fn sync(&self) -> std::io::Result<()> {
        self.file.sync()
    }
}

impl Disk for CountingDisk {
    fn describe(&self) -> String {
        self.disk.describe()
    }
    fn open(
        &self,
        name: &str,
        access: crate::io::Access,
        usage: crate::io::Usage,
    ) -> std::io::Result<Arc<dyn crate::io::DiskFile>> {
        let file = self.disk.open(name, access, usage)?;
        self.open.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        Ok(Arc::new(CountedFile { file, open: self.open.clone() }))
    }
    fn list(&self, dir: &str) -> std::io::Result<Vec<crate::io::Entry>> {
        self.disk.list(dir)
    }
    fn create_dir(&self, dir: &str) -> std::io::Result<()> {
        self.disk.create_dir(dir)
    }
    fn rename(&self, from: &str, to: &str) -> std::io::Result<()> {
        self.disk.rename(from, to)
    }
    fn remove(&self, name: &str) -> std::io::Result<()> {
        self.disk.remove(name)
    }
    fn sync_dir(&self, dir: &str) -> std::io::Result<()> {
        self.disk.sync_dir(dir)
    }
    fn touch(&self, name: &str) -> std::io::Result<()> {
        self.disk.touch(name)
    }
    fn free_bytes(&self) -> std::io::Result<u64> {
        self.disk.free_bytes()
    }
}

#[test]
fn a_directory_of_many_segments_needs_few_descriptors() {
    // A month of short runs: each opening starts a segment of its own.
    let disk = MemoryDisk::new();
    let runs = 400_u64;
    for run in 0..runs {
        let store = open(&disk, 16);
        put(&store, run, Lifetime::Durable);
        store.close().unwrap();
    }
    let open = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counting = Arc::new(CountingDisk { disk, open: open.clone() });
    let store = Store::open_on(&config(16), counting, open_engine(EngineKind::Inline)).unwrap();
    assert_eq!(open.load(std::sync::atomic::Ordering::SeqCst), 0);
    for _ in 0..2 {
        check(&store, 0..runs);
        assert!(open.load(std::sync::atomic::Ordering::SeqCst) <= 256);
    }
}

/// Both planes of page `number`, of one content each.
fn put_planes(store: &Store, number: u64, content: u8) -> Planes {
    let planes = [content, content + 100].map(|content| {
        let mut page = store.allocate(PAGE).unwrap();
        page.fill(content);
        page
    });
    let keys = [key(number), key(number + 1000)];
    store.seal_planes(keys, planes, Lifetime::Durable, [key(number + 2000), key(number + 3000)]).unwrap()
}

/// What is in a pair: a content that both planes have, and whether they are under the page's own keys.
fn told(planes: &Planes, number: u64) -> (u8, bool) {
    let [codes, residual] = &planes.pages;
    assert!(codes.iter().all(|byte| *byte == codes[0]));
    assert!(residual.iter().all(|byte| *byte == codes[0] + 100), "two planes of one page");
    (codes[0], planes.keys == [key(number), key(number + 1000)])
}

#[test]
fn planes_are_kept_or_replaced_together() {
    // What has left RAM before others come under the same keys.
    for gone in [vec![], vec![0], vec![1], vec![0, 1]] {
        let disk = MemoryDisk::new();
        let store = open(&disk, 32);
        let first = put_planes(&store, 1, 1);
        assert_eq!(told(&first, 1), (1, true));
        let keys = first.keys;
        drop(first);
        store.flush().unwrap();
        let gone: Vec<_> = gone.into_iter().map(|plane| keys[plane]).collect();
        store.let_go(&gone);
        assert_eq!(told(&put_planes(&store, 1, 2), 1), (1, true), "{gone:?}");
        // All references given back, and the same again.
        (0..2).for_each(|_| store.release(&keys));
        store.let_go(&gone);
        assert_eq!(told(&put_planes(&store, 1, 3), 1), (1, true), "{gone:?}");
        drop(store);
        assert_eq!(told(&put_planes(&open(&disk, 32), 1, 4), 1), (1, true), "{gone:?}");
    }
}

#[test]
fn half_a_page_is_replaced_unless_somebody_uses_it() {
    for (lost, is_used) in [(0, false), (1, false), (0, true), (1, true)] {
        let disk = MemoryDisk::new();
        let store = open(&disk, 32);
        let keys = put_planes(&store, 1, 1).keys;
        store.flush().unwrap();
        store.let_go(&keys);
        store.inner.state.lock().unindex(keys[lost]);
        if !is_used {
            store.release(&keys);
        }
        let second = put_planes(&store, 1, 2);
        assert_eq!(told(&second, 1), (2, !is_used), "{lost}");
        drop(second);
        if is_used {
            assert_eq!(get(&store, if lost == 0 { 1001 } else { 1 }).unwrap()[0], [1, 101][1 - lost]);
            continue;
        }
        store.flush().unwrap();
        drop(store);
        assert_eq!(told(&put_planes(&open(&disk, 32), 1, 3), 1), (2, true), "{lost}");
    }
}

#[test]
fn damaged_planes_are_no_reason_to_mix() {
    for damaged in [vec![0], vec![1], vec![0, 1]] {
        let disk = MemoryDisk::new();
        let store = open(&disk, 32);
        let keys = put_planes(&store, 1, 1).keys;
        store.flush().unwrap();
        store.release(&keys);
        store.let_go(&keys);
        for plane in &damaged {
            // No body has this checksum.
            store.inner.state.lock().index.get_mut(&keys[*plane]).unwrap().entry.crc ^= 1;
        }
        assert_eq!(told(&put_planes(&store, 1, 2), 1), (2, true), "{damaged:?}");
        store.flush().unwrap();
        drop(store);
        assert_eq!(told(&put_planes(&open(&disk, 32), 1, 3), 1), (2, true), "{damaged:?}");
    }
}

#[test]
fn what_is_renewed_is_what_is_found() {
    let disk = MemoryDisk::new();
    let store = open(&disk, 32);
    let renew = |store: &Store, content: u8| {
        let mut page = store.allocate(PAGE).unwrap();
        page.fill(content);
        store.renew(key(1), page).unwrap();
        store.flush().unwrap();
    };
    for content in [1, 1, 2] {
        renew(&store, content);
        assert_eq!(get(&store, 1).unwrap()[0], content);
    }
    assert_eq!(store.stats().counters.writes, 2, "what is the same is not written again");
    drop(store);
    let store = open(&disk, 32);
    assert_eq!(get(&store, 1).unwrap()[0], 2);
    // Somebody uses it.
    store.retain(&[key(1)]);
    renew(&store, 3);
    assert_eq!(get(&store, 1).unwrap()[0], 2);
}
