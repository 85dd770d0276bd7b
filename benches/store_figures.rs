//! Measures the store from below, for `benches/figures.py`: prints one JSON line of samples.
//!
//! `store-figures open DIRECTORY`   milliseconds to open a directory of 100,000 pages
//! `store-figures write DIRECTORY`  bytes/s of sealing a session's pages and flushing them
//! `store-figures read DIRECTORY`   bytes/s of reading those pages in a new store
#![expect(clippy::print_stdout, reason = "its output is its purpose")]

use std::path::Path;
use std::time::Instant;

use stratakv_core::key::{Chain, PageKey};
use stratakv_core::store::{Lifetime, Store, StoreConfig};
use stratakv_core::{Error, Result};

/// A page of the demo's model in float32: 64 tokens, 3 heads, keys and values of 64.
const PAGE_BYTES: usize = 64 * 3 * 128 * 4;
const LAYERS: u32 = 30;
/// Pages of each layer in a session of 32,768 tokens.
const PAGES_PER_LAYER: u32 = 512;
/// Pages that a layer gains from one chunk of prefill: the order in which they are written.
const CHUNK_PAGES: u32 = 8;
const RAM_BYTES: u64 = 256 << 20;
const INDEX_PAGES: u32 = 100_000;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (what, directory) = (arguments.next().unwrap_or_default(), arguments.next().unwrap_or_default());
    let directory = Path::new(&directory);
    let sample = match what.as_str() {
        "open" => open(directory)?,
        "write" => write(directory)?,
        "read" => read(directory)?,
        other => return Err(Error::Invalid(format!("{other:?} is none of open, write, read"))),
    };
    println!("{{\"sample\": {sample}}}");
    Ok(())
}

fn keys() -> Vec<PageKey> {
    let mut chain = Chain::root(b"figures", b"");
    let mut states = Vec::new();
    for index in 0..PAGES_PER_LAYER {
        chain = chain.extend(&[index], b"");
        states.push(chain);
    }
    let chunk_pages = CHUNK_PAGES as usize;
    let chunk_keys = |chunk: &[Chain]| -> Vec<PageKey> {
        (0..LAYERS).flat_map(|layer| chunk.iter().map(move |state| state.page(layer))).collect()
    };
    states.chunks(chunk_pages).flat_map(chunk_keys).collect()
}

/// A page's worth of bytes that don't compress. Making them up is not the store's work, so it is done once.
fn noise() -> Vec<u8> {
    let mut state = 1_u64;
    let mut bytes = vec![0; PAGE_BYTES];
    for word in bytes.chunks_exact_mut(8) {
        state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
        word.copy_from_slice(&state.to_le_bytes());
    }
    bytes
}

/// The noise with the key on top: what an append costs, and different in every page.
fn fill(page: &mut [u8], noise: &[u8], key: PageKey) {
    page.copy_from_slice(noise);
    page[..16].copy_from_slice(&key.0);
}

fn write(directory: &Path) -> Result<f64> {
    let store = Store::open(&StoreConfig::on_disk(RAM_BYTES, directory))?;
    let (keys, noise) = (keys(), noise());
    let started = Instant::now();
    for key in &keys {
        let mut page = store.allocate(PAGE_BYTES)?;
        fill(&mut page, &noise, *key);
        store.seal(*key, page, Lifetime::Durable)?;
        store.release(&[*key]);
    }
    store.flush()?;
    let bytes = (keys.len() * PAGE_BYTES) as f64;
    Ok(bytes / started.elapsed().as_secs_f64())
}

fn read(directory: &Path) -> Result<f64> {
    let store = Store::open(&StoreConfig::on_disk(RAM_BYTES, directory))?;
    let (keys, noise) = (keys(), noise());
    let mut expected = vec![0; PAGE_BYTES];
    let started = Instant::now();
    let batch = store.request_pages(PAGE_BYTES);
    let mut batches = keys.chunks(batch);
    let mut under_way = batches.next().map(|keys| (keys, store.request(keys)));
    let mut checked = 0_usize;
    while let Some((keys, request)) = under_way {
        under_way = batches.next().map(|keys| (keys, store.request(keys)));
        for (key, page) in keys.iter().zip(request.wait()?) {
            let page = page.ok_or_else(|| Error::Invalid(format!("page {key:?} is lost")))?;
            if checked.is_multiple_of(97) {
                fill(&mut expected, &noise, *key);
                assert_eq!(page[..], expected[..], "page {key:?} has other bytes");
            }
            checked += 1;
        }
    }
    Ok((checked * PAGE_BYTES) as f64 / started.elapsed().as_secs_f64())
}

fn open(directory: &Path) -> Result<f64> {
    let config = StoreConfig::on_disk(RAM_BYTES, directory);
    if !directory.join("segments").exists() {
        let store = Store::open(&config)?;
        let mut chain = Chain::root(b"index", b"");
        for index in 0..INDEX_PAGES {
            chain = chain.extend(&[index], b"");
            let mut page = store.allocate(PAGE_BYTES)?;
            page[..8].copy_from_slice(&u64::from(index).to_le_bytes());
            store.seal(chain.page(0), page, Lifetime::Durable)?;
            store.release(&[chain.page(0)]);
        }
        store.close()?;
    }
    let started = Instant::now();
    let store = Store::open(&config)?;
    let elapsed_ms = started.elapsed().as_secs_f64() * 1e3;
    let pages = store.stats().disk_pages;
    assert_eq!(pages, u64::from(INDEX_PAGES), "pages in the index");
    Ok(elapsed_ms)
}
