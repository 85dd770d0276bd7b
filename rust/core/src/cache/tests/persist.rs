//! Prefixes and sessions.

use super::*;
use crate::Error;

const SHAPE: [usize; 3] = [2, 4, 6];

fn ids(range: std::ops::Range<u32>) -> Vec<u32> {
    range.collect()
}

fn on_disk(directory: &tempfile::TempDir) -> Store {
    Store::open(&StoreConfig::on_disk(1 << 20, directory.path())).unwrap()
}

#[test]
fn a_session_comes_back_after_reopening_with_rows_and_tails() {
    let directory = tempfile::tempdir().unwrap();
    let rows = [ids(0..11), ids(20..31)];
    {
        let store = on_disk(&directory);
        let mut cache = KvCache::new(store, config(3, 4)).unwrap();
        feed(&mut cache, &rows, SHAPE, DType::Bf16);
        cache.save("tale", "a model", b"extra").unwrap();
    }
    let mut cache = KvCache::new(on_disk(&directory), config(3, 4)).unwrap();
    assert_eq!(cache.load("tale").unwrap(), b"extra");
    for layer in 0..3 {
        assert_eq!(
            contents(&mut cache, layer, SHAPE, DType::Bf16),
            tensors(layer, &rows, 0, SHAPE, DType::Bf16)
        );
    }
    assert_eq!(cache.token_ids(1).unwrap(), Some(rows[1].clone()));
    // It goes on as if it had never stopped.
    feed(&mut cache, &[ids(11..15), ids(31..35)], SHAPE, DType::Bf16);
    let all = [ids(0..15), ids(20..35)];
    assert_eq!(contents(&mut cache, 2, SHAPE, DType::Bf16), tensors(2, &all, 0, SHAPE, DType::Bf16));
}

#[test]
fn a_cache_cropped_into_a_sealed_page_saves_its_part() {
    let directory = tempfile::tempdir().unwrap();
    let store = on_disk(&directory);
    let mut cache = KvCache::new(store.clone(), config(2, 4)).unwrap();
    feed(&mut cache, &[ids(0..12)], SHAPE, DType::F32);
    cache.crop(6);
    cache.save("cut", "a model", b"").unwrap();
    let mut next = KvCache::new(store, config(2, 4)).unwrap();
    next.load("cut").unwrap();
    let expected = tensors(1, &[ids(0..6)], 0, SHAPE, DType::F32);
    assert_eq!(contents(&mut next, 1, SHAPE, DType::F32), expected);
}

#[test]
fn a_stored_prefix_is_adopted_in_whole_pages() {
    let directory = tempfile::tempdir().unwrap();
    let store = on_disk(&directory);
    let mut cache = KvCache::new(store.clone(), config(2, 4)).unwrap();
    feed(&mut cache, &[ids(0..15)], SHAPE, DType::F32);
    drop(cache);
    let mut cache = KvCache::new(store.clone(), config(2, 4)).unwrap();
    let mut prompt = ids(0..9);
    prompt.extend([99, 98, 97, 96]);
    assert_eq!(cache.match_prefix(&prompt, b"").unwrap(), 8);
    assert_eq!((cache.num_rows(), cache.length(1).unwrap()), (1, 8));
    feed(&mut cache, &[prompt[8..].to_vec()], SHAPE, DType::F32);
    assert_eq!(contents(&mut cache, 1, SHAPE, DType::F32), tensors(1, &[prompt], 0, SHAPE, DType::F32));
    let mut salted = KvCache::new(store, config(2, 4)).unwrap();
    assert_eq!(salted.match_prefix(&ids(0..9), b"other").unwrap(), 0);
    assert_eq!(salted.num_rows(), 0);
}

#[test]
fn other_settings_are_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let store = on_disk(&directory);
    let mut cache = KvCache::new(store.clone(), config(2, 4)).unwrap();
    feed(&mut cache, &[ids(0..6)], SHAPE, DType::F32);
    cache.save("s", "a model", b"").unwrap();
    let mut other = config(3, 8);
    other.identity = Some(b"another".to_vec());
    other.settings.insert("rope".into(), "none".into());
    let mut next = KvCache::new(store.clone(), other).unwrap();
    let error = next.load("s").unwrap_err();
    assert!(matches!(error, Error::SettingsMismatch { .. }));
    let message = error.to_string();
    for field in ["model identity", "page_tokens", "num_layers", "rope"] {
        assert!(message.contains(field), "{field} in {message}");
    }
    let mut narrow = KvCache::new(store.clone(), config(2, 4)).unwrap();
    feed(&mut narrow, &[ids(0..1)], [1, 4, 6], DType::Bf16);
    narrow.crop(0);
    let message = narrow.load("s").unwrap_err().to_string();
    assert!(message.contains("layer 0 dtype") && message.contains("kv_heads"), "{message}");
    assert!(matches!(next.load("none"), Err(Error::NotFound { .. })));
    let mut anonymous = config(2, 4);
    anonymous.identity = None;
    let mut anonymous = KvCache::new(store, anonymous).unwrap();
    feed(&mut anonymous, &[ids(0..6)], SHAPE, DType::F32);
    assert!(anonymous.save("t", "m", b"").unwrap_err().to_string().contains("identity"));
    assert_eq!(anonymous.token_ids(0).unwrap(), Some(ids(0..6)));
}

#[test]
fn what_precedes_a_loss_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    {
        let store = on_disk(&directory);
        let mut first = KvCache::new(store.clone(), config(1, 4)).unwrap();
        feed(&mut first, &[ids(0..8)], SHAPE, DType::F32);
        store.flush().unwrap();
        store.close().unwrap();
        drop(first);
        let store = on_disk(&directory);
        let mut second = KvCache::new(store, config(1, 4)).unwrap();
        assert_eq!(second.match_prefix(&ids(0..8), b"").unwrap(), 8);
        feed(&mut second, &[ids(8..19)], SHAPE, DType::F32);
        second.save("s", "a model", b"").unwrap();
    }
    // The second run's segment is the last file.
    let mut segments: Vec<_> = walk(directory.path());
    segments.retain(|path| path.extension().is_none_or(|kind| kind != "session" && kind != "lock"));
    segments.sort();
    std::fs::remove_file(segments.last().unwrap()).unwrap();
    let mut cache = KvCache::new(on_disk(&directory), config(1, 4)).unwrap();
    let error = cache.load("s").unwrap_err();
    assert!(matches!(error, Error::PagesLost { missing: 2, total: 4, first_token: 8 }), "{error}");
    assert_eq!(cache.length(0).unwrap(), 8);
    let kept = tensors(0, &[ids(0..8)], 0, SHAPE, DType::F32);
    assert_eq!(contents(&mut cache, 0, SHAPE, DType::F32), kept);
}

fn walk(directory: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(walk(&path)) } else { files.push(path) }
    }
    files
}
