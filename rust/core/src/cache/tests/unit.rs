//! Single behaviours: errors, sharing, copies that must not happen.

use super::*;
use crate::Error;
use crate::attend::Inline;
use crate::cache::Mask;

const SHAPE: [usize; 3] = [2, 4, 4];

fn ids(range: std::ops::Range<u32>) -> Vec<u32> {
    range.collect()
}

/// A cache whose pages are gone with it.
fn private(num_layers: usize) -> CacheConfig {
    CacheConfig { identity: None, ..config(num_layers, 4) }
}

#[test]
fn equal_prefixes_share_pages_and_other_salts_do_not() {
    let store = store();
    let pages = |salt: &[u8], identity: &[u8]| {
        let mut config = config(1, 4);
        config.identity = Some(identity.to_vec());
        let mut cache = KvCache::new(store.clone(), config).unwrap();
        cache.note_tokens(&[&ids(0..8)], &[salt]).unwrap();
        let (keys, values) = tensors(0, &[ids(0..8)], 0, SHAPE, DType::Bf16);
        cache.append(0, &keys, &values).unwrap();
        (store.stats().ram_pages, cache)
    };
    let (first, _a) = pages(b"", b"m");
    let (same, _b) = pages(b"", b"m");
    let (salted, _c) = pages(b"image", b"m");
    let (other, _d) = pages(b"", b"n");
    assert_eq!([first, same, salted, other], [2, 2, 4, 6]);
}

#[test]
fn unnoted_tokens_keep_later_pages_private_until_they_are_cropped() {
    let store = store();
    let mut cache = KvCache::new(store.clone(), config(1, 4)).unwrap();
    feed(&mut cache, &[ids(0..4)], SHAPE, DType::F32);
    let (keys, values) = tensors(0, &[ids(4..8)], 4, SHAPE, DType::F32);
    cache.append(0, &keys, &values).unwrap();
    assert_eq!(cache.token_ids(0).unwrap(), None);
    // These come after a gap, so they can't count.
    feed(&mut cache, &[ids(8..12)], SHAPE, DType::F32);
    assert_eq!(cache.token_ids(0).unwrap(), None);
    assert!(matches!(cache.save("s", "m", b""), Err(Error::Invalid(_))));
    cache.crop(6);
    cache.crop(3);
    feed(&mut cache, &[ids(3..8)], SHAPE, DType::F32);
    assert_eq!(cache.token_ids(0).unwrap(), Some(ids(0..8)));
    drop(cache);
    let mut next = KvCache::new(store, config(1, 4)).unwrap();
    // A store in RAM only forgets unreferenced durable pages at will; it may also keep them.
    assert!(next.match_prefix(&ids(0..9), b"").unwrap() <= 8);
}

#[test]
fn notes_for_tokens_that_never_came_are_replaced() {
    let mut cache = KvCache::new(store(), config(1, 4)).unwrap();
    cache.note_tokens(&[&ids(50..60)], &[b""]).unwrap();
    feed(&mut cache, &[ids(0..6)], SHAPE, DType::F32);
    assert_eq!(cache.token_ids(0).unwrap(), Some(ids(0..6)));
}

#[test]
fn rows_that_only_permute_copy_nothing() {
    let store = store();
    let mut cache = KvCache::new(store.clone(), private(1)).unwrap();
    feed(&mut cache, &[ids(0..6), ids(10..16)], SHAPE, DType::F32);
    let before = store.stats().ram_used_bytes;
    cache.reorder(&[1, 0]).unwrap();
    feed(&mut cache, &[vec![1], vec![2]], SHAPE, DType::F32);
    assert_eq!(store.stats().ram_used_bytes, before);
    cache.reorder(&[1, 1]).unwrap();
    assert_eq!(store.stats().ram_used_bytes, before - 2 * 4096, "row 0's pages are gone");
    feed(&mut cache, &[vec![1], vec![2]], SHAPE, DType::F32);
    assert_eq!(store.stats().ram_used_bytes, before - 4096, "one sealed page, two open ones");
}

#[test]
fn a_failed_append_leaves_the_layer_as_it_was() {
    let store = Store::open(&StoreConfig::in_memory(64 << 10)).unwrap();
    let mut cache = KvCache::new(store, config(1, 4)).unwrap();
    let rows = [ids(0..6), ids(100..106)];
    feed(&mut cache, &rows, SHAPE, DType::F32);
    let (keys, values) = tensors(0, &[ids(0..400), ids(0..400)], 6, SHAPE, DType::F32);
    assert!(matches!(cache.append(0, &keys, &values), Err(Error::RamFull { .. })));
    assert_eq!(cache.length(0).unwrap(), 6);
    assert_eq!(contents(&mut cache, 0, SHAPE, DType::F32), tensors(0, &rows, 0, SHAPE, DType::F32));
    let more = [ids(6..9), ids(106..109)];
    feed(&mut cache, &more, SHAPE, DType::F32);
    let all = [ids(0..9), ids(100..109)];
    assert_eq!(contents(&mut cache, 0, SHAPE, DType::F32), tensors(0, &all, 0, SHAPE, DType::F32));
}

#[test]
fn messages_name_what_was_given_and_what_is_accepted() {
    let mut cache = KvCache::new(store(), config(2, 4)).unwrap();
    feed(&mut cache, &[ids(0..6)], SHAPE, DType::F32);
    let text = |error: Error| error.to_string();
    let (keys, values) = tensors(0, &[ids(0..1)], 6, [2, 4, 5], DType::F32);
    let message = text(cache.append(0, &keys, &values).unwrap_err());
    assert!(message.contains("(1, 2, 1, 5)") && message.contains("(1, 2, 1, 4)"), "{message}");
    let message = text(cache.append(7, &keys, &values).unwrap_err());
    assert!(message.contains("layer 7 of 2"), "{message}");
    let query = Tensor::new(1, 3, 1, 4, DType::F32);
    let mut out = query.clone();
    let mask = Mask::default();
    let message = text(cache.attend(0, &query, &mut out, 1.0, &mask, &Inline).unwrap_err());
    assert!(message.contains("3 heads") && message.contains("multiple of 2"), "{message}");
    assert!(cache.reorder(&[1]).is_err());
    assert!(cache.reorder(&[]).is_err());
    assert!(cache.match_prefix(&[1], b"").is_err());
    assert!(cache.note_tokens(&[&[1], &[2]], &[b"", b""]).is_err());
    assert!(KvCache::new(store(), config(0, 4)).is_err());
    assert!(KvCache::new(store(), config(1, 0)).is_err());
    let mut empty = KvCache::new(store(), config(1, 4)).unwrap();
    assert!(empty.attend(0, &query, &mut out, 1.0, &mask, &Inline).is_err());
}

#[test]
fn reset_gives_every_page_back_and_takes_other_shapes() {
    let store = store();
    let mut cache = KvCache::new(store.clone(), private(2)).unwrap();
    feed(&mut cache, &[ids(0..30), ids(0..30)], SHAPE, DType::F32);
    cache.reset();
    assert_eq!((cache.num_rows(), store.stats().ram_pages), (0, 0));
    feed(&mut cache, &[ids(0..3)], [1, 8, 8], DType::Bf16);
    assert_eq!((cache.num_rows(), cache.length(1).unwrap()), (1, 3));
}
