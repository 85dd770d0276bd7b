//! What the fault tests share: sessions whose pages say what they hold, and a watchdog.

use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use stratakv_core::dtype::DType;
use stratakv_core::io::{Disk, EngineKind, open_engine};
use stratakv_core::key::PageKey;
use stratakv_core::session::{LayerShape, RowImage, SessionImage};
use stratakv_core::store::{Lifetime, Store, StoreConfig};
use stratakv_core::testing::Seeded;
use stratakv_core::{Error, Result};

/// Tokens in a page of the sessions here.
pub(crate) const PAGE_TOKENS: u32 = 16;

/// How often the random parts run, relative to the default suite.
pub(crate) fn effort() -> u64 {
    std::env::var("STRATAKV_TEST_EFFORT").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// What the page of a key holds, in every store and for ever.
pub(crate) fn body(key: PageKey, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    Seeded::new(key.low64()).fill(&mut bytes);
    bytes
}

pub(crate) fn key(number: u64) -> PageKey {
    let mut bytes = [3; 16];
    bytes[..8].copy_from_slice(&number.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
    bytes[8..].copy_from_slice(&number.to_le_bytes());
    PageKey(bytes)
}

pub(crate) fn config(ram_bytes: u64) -> StoreConfig {
    StoreConfig { free_floor_bytes: 0, ..StoreConfig::in_memory(ram_bytes) }
}

pub(crate) fn open(
    config: &StoreConfig,
    disk: &(impl Disk + Clone + 'static),
    engine: EngineKind,
) -> Result<Store> {
    Store::open_on(config, Arc::new(disk.clone()), open_engine(engine))
}

/// A session of pages of 4096 and 13440 bytes; those with the same `base` share a prefix.
pub(crate) fn image(name: &str, base: u32, pages: u32) -> SessionImage {
    let shape =
        |kv_heads, key_dim, value_dim| Some(LayerShape { kv_heads, key_dim, value_dim, dtype: DType::F32 });
    let tokens = (0..pages * PAGE_TOKENS + 3).map(|token| base * 100_000 + token).collect();
    SessionImage {
        name: name.into(),
        model: "tiny".into(),
        identity: b"tiny".to_vec(),
        settings: BTreeMap::new(),
        page_tokens: PAGE_TOKENS,
        layers: vec![shape(1, 32, 32), None, shape(3, 40, 30)],
        rows: vec![RowImage { tokens, tails: vec![vec![7; 30]], ..RowImage::default() }],
        extra: vec![1, 2, 3],
        directions: vec![vec![5; 4]],
        created: 1,
    }
}

pub(crate) fn seal(store: &Store, key: PageKey, len: usize, lifetime: Lifetime) -> Result<()> {
    let mut page = store.allocate(len)?;
    page.copy_from_slice(&body(key, len));
    store.seal(key, page, lifetime).map(drop)
}

/// Seals, flushes and saves, as a live cache does; its references are given back either way.
pub(crate) fn save(store: &Store, image: &SessionImage) -> Result<()> {
    let mut sealed = Vec::new();
    let outcome = image
        .page_keys()
        .iter()
        .try_for_each(|page| {
            seal(store, page.key, page.bytes, Lifetime::Durable)?;
            sealed.push(page.key);
            Ok(())
        })
        .and_then(|()| store.flush())
        .and_then(|()| store.save_session(image));
    store.release(&sealed);
    outcome
}

/// A page as the store gives it; panics where it is not what was sealed.
pub(crate) fn get(store: &Store, key: PageKey, len: usize) -> Result<bool> {
    let found = store.request(&[key]).wait()?.remove(0);
    if let Some(page) = &found {
        assert!(page[..] == body(key, len)[..], "wrong bytes for {key:?}");
    }
    Ok(found.is_some())
}

/// Pages of a session that the store does not have.
pub(crate) fn missing(store: &Store, image: &SessionImage) -> Result<usize> {
    let mut missing = 0;
    for page in image.page_keys() {
        missing += usize::from(!get(store, page.key, page.bytes)?);
    }
    Ok(missing)
}

/// The session of a name, if there is one; panics where it lacks a page.
pub(crate) fn whole(store: &Store, name: &str) -> Option<SessionImage> {
    match store.load_session(name) {
        Ok(image) => {
            assert_eq!(missing(store, &image).unwrap(), 0, "pages of {name} are missing");
            Some(image)
        }
        Err(Error::NotFound { .. }) => None,
        Err(error) => panic!("{name}: {error}"),
    }
}

/// Bytes of all files of the store.
pub(crate) fn file_bytes(disk: &dyn Disk) -> u64 {
    let dirs = ["segments", "sessions"];
    dirs.iter().flat_map(|dir| disk.list(dir).unwrap()).map(|entry| entry.len).sum()
}

/// Runs `f`, and fails the test where it has not ended in time.
pub(crate) fn watched<T: Send + 'static>(what: &str, f: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let _ = sender.send(f());
    });
    match receiver.recv_timeout(Duration::from_secs(60)) {
        Ok(result) => result,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("{what} hangs"),
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            let cause = thread.join().unwrap_err();
            let text = cause.downcast_ref::<String>().cloned();
            let text = text.or_else(|| cause.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            panic!("{what}: {}", text.unwrap_or_default());
        }
    }
}
