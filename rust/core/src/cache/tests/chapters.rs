//! Summaries that outlive the cache: a resumed session selects without reading its pages.

use super::rotary::{ids, query, rotary, rotated};
use super::sparse::{LONG, PAGE_TOKENS, all_read, ask_often, cache, selection};
use super::*;
use crate::attend::Pool;
use crate::cache::{Mask, Selection};
use crate::session::CHAPTER_PAGES;

const SHAPE: [usize; 3] = [2, 8, 4];
const ROWS: usize = 2;
const PAGES: usize = ROWS * (LONG / PAGE_TOKENS);
const CHAPTERS: usize = ROWS * (LONG / PAGE_TOKENS / CHAPTER_PAGES);

fn on_disk(directory: &tempfile::TempDir) -> Store {
    Store::open(&StoreConfig::on_disk(8 << 20, directory.path())).unwrap()
}

/// One step, what its heads read, and how many pages came from disk for it.
fn step(cache: &mut KvCache, store: &Store) -> (Tensor, Vec<Vec<u32>>, u64) {
    let before = store.stats().counters.reads;
    let mut out = Tensor::new(ROWS, 4, 1, 4, DType::F32);
    cache.attend(0, &query(ROWS, 4, 1, 8), &mut out, 0.5, &Mask::default(), &Pool::new(2)).unwrap();
    (out, all_read(cache), store.stats().counters.reads - before)
}

/// A session of two rows that was asked often enough to be sketched, and what a step reads of it.
fn saved(directory: &tempfile::TempDir, selection: Selection) -> (Tensor, Vec<Vec<u32>>) {
    let store = on_disk(directory);
    let mut cache = cache(&rotary(4, false), store.clone(), Some(selection));
    feed(&mut cache, &[ids(LONG, 2), ids(LONG, 5)], SHAPE, DType::Bf16);
    ask_often(&mut cache, &query(ROWS, 4, 1, 8));
    let (out, read, _) = step(&mut cache, &store);
    assert_eq!(cache.sketched(0) * ROWS, CHAPTERS);
    cache.save("s", "a model", b"").unwrap();
    (out, read)
}

fn resumed(store: &Store, selection: Selection) -> KvCache {
    let mut cache = cache(&rotary(4, false), store.clone(), Some(selection));
    cache.load("s").unwrap();
    cache
}

#[test]
fn a_resumed_session_reads_its_summaries_and_not_its_pages() {
    let directory = tempfile::tempdir().unwrap();
    let (out, read) = saved(&directory, selection(9, 100));
    let store = on_disk(&directory);
    let mut cache = resumed(&store, selection(9, 100));
    let (again, same, reads) = step(&mut cache, &store);
    assert_eq!((&again, &same), (&out, &read), "to the last bit");
    assert!((reads as usize) < PAGES / 2, "{reads} of {PAGES} pages and {CHAPTERS} chapters");
    // It goes on as one that never stopped: the last chapter fills up, and a fork has its own.
    let mut fork = cache.fork().unwrap();
    for cache in [&mut cache, &mut fork] {
        feed(cache, &[ids(600, 7), ids(600, 8)], SHAPE, DType::Bf16);
        step(cache, &store);
        assert_eq!(cache.sketched(0), (LONG + 600) / PAGE_TOKENS / CHAPTER_PAGES);
    }
    cache.crop(LONG - 900);
    feed(&mut cache, &[ids(600, 1), ids(600, 2)], SHAPE, DType::Bf16);
    step(&mut cache, &store);
}

/// While one layer's chapters are used, those of the next are on their way.
#[test]
fn layer_after_layer() {
    let (rotary, directory) = (rotary(4, false), tempfile::tempdir().unwrap());
    let fresh = |store: &Store| {
        let mut cache = KvCache::new(store.clone(), rotated(config(3, PAGE_TOKENS), &rotary)).unwrap();
        cache.select(Some(selection(9, 100))).unwrap();
        cache
    };
    let steps = |cache: &mut KvCache, tokens: usize| -> Vec<Tensor> {
        let attend = |layer| {
            let mut out = Tensor::new(ROWS, 4, tokens, 4, DType::F32);
            let mask = Mask { causal: tokens > 1, bias: None };
            cache.attend(layer, &query(ROWS, 4, tokens, 8), &mut out, 0.5, &mask, &Pool::new(2)).unwrap();
            out
        };
        (0..3).map(attend).collect()
    };
    let expected = {
        let mut cache = fresh(&on_disk(&directory));
        feed(&mut cache, &[ids(LONG, 2), ids(LONG, 5)], SHAPE, DType::Bf16);
        steps(&mut cache, 70);
        let expected = steps(&mut cache, 1);
        cache.save("s", "a model", b"").unwrap();
        expected
    };
    let store = on_disk(&directory);
    let mut cache = fresh(&store);
    cache.load("s").unwrap();
    assert_eq!(steps(&mut cache, 1), expected);
    let reads = store.stats().counters.reads as usize;
    assert!(reads < 3 * PAGES / 2, "{reads} of {} pages", 3 * PAGES);
    // What is on its way when another session comes is of no use, and does no harm.
    let mut cache = fresh(&store);
    cache.load("s").unwrap();
    let mut out = Tensor::new(ROWS, 4, 1, 4, DType::F32);
    cache.attend(0, &query(ROWS, 4, 1, 8), &mut out, 0.5, &Mask::default(), &Pool::new(2)).unwrap();
    cache.crop(LONG / 2);
    feed(&mut cache, &[ids(LONG, 8), ids(LONG, 9)], SHAPE, DType::Bf16);
    steps(&mut cache, 1);
}

#[test]
fn summaries_for_another_place_are_made_of_the_pages() {
    let directory = tempfile::tempdir().unwrap();
    saved(&directory, selection(9, 100));
    let other = selection(9, 1000);
    let store = on_disk(&directory);
    let found = step(&mut resumed(&store, other), &store);
    assert!(found.2 as usize >= PAGES, "{} reads of {PAGES} pages", found.2);
    let fresh = tempfile::tempdir().unwrap();
    assert_eq!((found.0, found.1), saved(&fresh, other));
}

#[test]
fn summaries_stay_with_their_session_and_go_with_it() {
    let directory = tempfile::tempdir().unwrap();
    saved(&directory, selection(9, 100));
    let store = on_disk(&directory);
    store.gc().unwrap();
    let listed = store.sessions().unwrap()[0].bytes;
    let (_, _, reads) = step(&mut resumed(&store, selection(9, 100)), &store);
    assert!((reads as usize) < PAGES / 2, "{reads} of {PAGES} pages");
    let image = store.load_session("s").unwrap();
    let chapters = image.chapter_keys();
    assert_eq!(chapters.len(), CHAPTERS);
    assert!(chapters.iter().all(|key| store.contains(*key)));
    let pages: usize = image.page_keys().iter().map(|page| page.bytes).sum();
    assert!(listed as usize > pages, "{listed} of {pages} bytes of pages");
    drop(image);
    store.remove_session("s").unwrap();
    store.gc().unwrap();
    let store = {
        drop(store);
        on_disk(&directory)
    };
    assert!(!chapters.iter().any(|key| store.contains(*key)));
}
