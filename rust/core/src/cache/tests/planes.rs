//! Pages in planes: against attention over what the codecs keep, and against a cache without them.

use proptest::prelude::*;

use super::rotary::{assert_near, query, reference, rotary, rotated};
use super::*;
use crate::Error;
use crate::attend::{Inline, Pool};
use crate::cache::{Bias, Mask, Plane, Selection};
use crate::codec::{RowShape, decode_rows, encode_rows, restore_rows};
use crate::rotary::{Rotary, Turns};
use crate::score::{BLOCK_TOKENS, Budget, Choice, Guard};

const PAGE_TOKENS: usize = 32;

fn in_planes(rotary: &Rotary) -> CacheConfig {
    CacheConfig { planes: true, ..rotated(config(2, PAGE_TOKENS), rotary) }
}

fn selection(blocks: usize, critical: f32) -> Selection {
    let guard = Guard { unread: 1.0, growth: 1.0 };
    let budget = Budget { blocks, sinks: 1, window: 2, critical, guard };
    Selection {
        budget,
        recent: 0,
        dense_below: 0,
        dense_prefill_below: usize::MAX,
        trained_tokens: 100_000,
        sketches: true,
    }
}

/// Rows whose magnitudes differ from token to token, so that a wrong scale shows.
fn uneven(tokens: std::ops::Range<usize>, layer: usize, dim: usize, heads: usize, dtype: DType) -> Tensor {
    let first = tokens.start;
    Tensor::new(1, heads, tokens.len(), dim, dtype).filled(|_, h, t, d| {
        let token = first + t;
        value(layer, token as u32 % 50, token, h, d) * 0.0625 * (1 << (token * 5 % 7 + h)) as f32
    })
}

fn grow(cache: &mut KvCache, tokens: std::ops::Range<usize>, shape: [usize; 3], dtype: DType) {
    let [heads, dk, dv] = shape;
    let noted: Vec<u32> = tokens.clone().map(|token| token as u32 % 50).collect();
    cache.note_tokens(&[&noted], &[b""]).unwrap();
    for layer in 0..2 {
        let keys = uneven(tokens.clone(), layer, dk, heads, dtype);
        let values = uneven(tokens.clone(), layer + 1, dv, heads, dtype);
        cache.append(layer, &keys, &values).unwrap();
    }
}

/// How precisely a token is read.
#[derive(Clone, Copy, PartialEq)]
enum Precision {
    Elements,
    Codes,
    Planes,
}

/// A row as the cache gives it to its kernel, in float32 and without its turn.
fn kept(turns: Option<&Turns>, tensor: &Tensor, h: usize, token: usize, precision: Precision) -> Vec<f32> {
    let (dim, dtype) = (tensor.extent.dim, tensor.extent.dtype);
    let mut row = vec![0; tensor.extent.row_bytes()];
    tensor.read(0, h, token, &mut row);
    if let Some(turns) = turns {
        turns.store(token % PAGE_TOKENS, &mut row, dim, dtype);
    }
    let shape = RowShape { dim, dtype };
    let (mut scale, mut codes, mut residual) = ([0], vec![0; dim], vec![0; shape.residual_bytes()]);
    encode_rows(shape, &row, &mut scale, &mut codes, &mut residual);
    let mut out = vec![0; dim * 4];
    match precision {
        Precision::Elements => (0..dim).for_each(|d| DType::F32.write(&mut out, d, dtype.read(&row, d))),
        Precision::Codes => decode_rows(dim, &scale, &codes, DType::F32, &mut out),
        Precision::Planes => restore_rows(shape, &scale, &codes, &residual, DType::F32, &mut out),
    }
    if let Some(turns) = turns {
        turns.unstore(token % PAGE_TOKENS, &mut out, dim, DType::F32);
    }
    (0..dim).map(|d| DType::F32.read(&out, d)).collect()
}

/// One head of a tensor as it is kept.
fn kept_head(
    turns: Option<&Turns>,
    tensor: &Tensor,
    h: usize,
    precision: &dyn Fn(usize) -> Precision,
) -> Tensor {
    let rows: Vec<Vec<f32>> =
        (0..tensor.extent.tokens).map(|token| kept(turns, tensor, h, token, precision(token))).collect();
    Tensor::new(1, 1, rows.len(), tensor.extent.dim, DType::F32).filled(|_, _, t, d| rows[t][d])
}

/// How a token is read, if it is.
fn precision_of(choice: &Choice, length: usize, token: usize) -> Option<Precision> {
    if token >= length / PAGE_TOKENS * PAGE_TOKENS {
        return Some(Precision::Elements);
    }
    let place = choice.blocks.iter().position(|block| *block as usize == token / BLOCK_TOKENS)?;
    Some(if choice.critical[place] { Precision::Planes } else { Precision::Codes })
}

/// One step over what was read, head by head, in float64.
fn check(cache: &mut KvCache, rotary: &Rotary, shape: [usize; 3], dtype: DType) {
    let ([heads, dk, dv], length) = (shape, cache.length(1).unwrap());
    let (keys, values) = (uneven(0..length, 1, dk, heads, dtype), uneven(0..length, 2, dv, heads, dtype));
    let query = query(1, 2 * heads, 1, dk);
    let mut out = Tensor::new(1, 2 * heads, 1, dv, DType::F32);
    let causal = Mask { causal: true, bias: None };
    cache.attend(1, &query, &mut out, 0.3, &causal, &Pool::new(2)).unwrap();
    let turns = Turns::new(rotary.clone(), PAGE_TOKENS).unwrap();
    for (h, choice) in cache.scratch.selection.choices().iter().enumerate() {
        let read = |token| precision_of(choice, length, token);
        let precision = |token| read(token).unwrap_or(Precision::Elements);
        let keys = kept_head(Some(&turns), &keys, h, &precision);
        let values = kept_head(None, &values, h, &precision);
        let hidden: Vec<f32> =
            (0..length).map(|token| if read(token).is_some() { 0.0 } else { f32::NEG_INFINITY }).collect();
        let bias = Bias { values: &hidden, shape: [1, 1, length], batch_stride: 0, token_stride: 0 };
        let group = |tensor: &Tensor, dim| {
            Tensor::new(1, 2, 1, dim, DType::F32).filled(|_, g, t, d| tensor.at(0, 2 * h + g, t, d))
        };
        let mask = Mask { causal: true, bias: Some(bias) };
        let expected = reference(rotary, &group(&query, dk), &keys, &values, 0.3, &mask);
        assert_near(&group(&out, dv), &expected, DType::F32);
    }
    let mut again = out.clone();
    cache.attend(1, &query, &mut again, 0.3, &causal, &Inline).unwrap();
    assert_eq!(out, again, "threads change no bit");
}

fn dtypes() -> impl Strategy<Value = DType> {
    prop_oneof![Just(DType::Bf16), Just(DType::F16), Just(DType::F32)]
}

/// A store whose RAM holds a small part of the pages.
fn small_store(directory: &tempfile::TempDir) -> Store {
    Store::open(&StoreConfig::on_disk(512 << 10, directory.path())).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn a_step_equals_attention_over_what_the_codecs_keep(
        length in PAGE_TOKENS..500,
        crop in PAGE_TOKENS..500,
        blocks in 4_usize..12,
        critical in prop_oneof![Just(0.0_f32), Just(0.3), Just(1.0)],
        heads in 1_usize..3,
        pairs in 1_usize..5,
        rest in 0_usize..4,
        dv in 1_usize..9,
        dtype in dtypes(),
    ) {
        let (rotary, shape) = (rotary(pairs, false), [heads, 2 * pairs + rest, dv]);
        let mut cache = KvCache::new(store(), in_planes(&rotary)).unwrap();
        cache.select(Some(selection(blocks, critical))).unwrap();
        grow(&mut cache, 0..length, shape, dtype);
        check(&mut cache, &rotary, shape, dtype);
        let mut fork = cache.fork().unwrap();
        cache.crop(crop);
        let at = cache.length(0).unwrap();
        // Whole pages only: what is cropped into is restored and encoded again.
        cache.crop(at / PAGE_TOKENS * PAGE_TOKENS);
        let at = cache.length(0).unwrap();
        grow(&mut cache, at..at + 40, shape, dtype);
        check(&mut cache, &rotary, shape, dtype);
        grow(&mut fork, length..length + 9, shape, dtype);
        check(&mut fork, &rotary, shape, dtype);
    }

    /// Dense reading, gathering, cropping into pages: as a cache of elements, from files.
    #[test]
    fn in_16_bits_it_equals_a_cache_of_elements(
        steps in prop::collection::vec((1_usize..90, 0_usize..300), 1..6),
        dims in (1_usize..5, 1_usize..9),
        is_half in any::<bool>(),
    ) {
        let (rotary, shape) = (rotary(dims.0, true), [2, 2 * dims.0 + 1, dims.1]);
        let dtype = if is_half { DType::F16 } else { DType::Bf16 };
        let directory = tempfile::tempdir().unwrap();
        let mut coded = KvCache::new(small_store(&directory), in_planes(&rotary)).unwrap();
        let mut plain = KvCache::new(store(), rotated(config(2, PAGE_TOKENS), &rotary)).unwrap();
        for (tokens, crop) in steps {
            for cache in [&mut coded, &mut plain] {
                let at = cache.length(0).unwrap();
                grow(cache, at..at + tokens, shape, dtype);
                cache.crop(crop.max(1));
            }
            let (keys, values) = contents(&mut coded, 1, shape, dtype);
            let (plain_keys, plain_values) = contents(&mut plain, 1, shape, dtype);
            assert_close(&keys, &plain_keys);
            assert_close(&values, &plain_values);
            let attend = |cache: &mut KvCache| {
                let mut out = Tensor::new(1, 4, 1, shape[2], DType::F32);
                cache.attend(1, &query(1, 4, 1, shape[1]), &mut out, 0.3, &Mask::default(), &Inline).unwrap();
                out
            };
            assert_close(&attend(&mut coded), &attend(&mut plain));
        }
    }
}

/// Equal but for what the planes do not keep: the last bits of values that are tiny beside their row,
/// which may also round the other way once they are turned.
fn assert_close(found: &Tensor, expected: &Tensor) {
    let count = found.bytes.len() / found.extent.dtype.size();
    for index in 0..count {
        let read = |tensor: &Tensor| tensor.extent.dtype.read(&tensor.bytes, index);
        let (found, expected) = (read(found), read(expected));
        let allowed = expected.abs() / 128.0 + 2e-5;
        assert!((found - expected).abs() <= allowed, "{index}: {found} instead of {expected}");
    }
}

#[test]
fn a_session_in_planes_comes_back_and_is_told_from_others() {
    let directory = tempfile::tempdir().unwrap();
    let (rotary, shape) = (rotary(4, false), [2, 8, 6]);
    let attend = |cache: &mut KvCache| {
        let mut out = Tensor::new(1, 4, 2, 6, DType::F32);
        cache.attend(1, &query(1, 4, 2, 8), &mut out, 0.5, &Mask::default(), &Inline).unwrap();
        out
    };
    let open = |planes| {
        let config = CacheConfig { planes, ..rotated(config(2, PAGE_TOKENS), &rotary) };
        let mut cache = KvCache::new(small_store(&directory), config).unwrap();
        cache.select(Some(selection(8, 0.3))).unwrap();
        cache
    };
    let expected = {
        let mut cache = open(true);
        grow(&mut cache, 0..333, shape, DType::Bf16);
        let out = attend(&mut cache);
        cache.save("s", "a model", b"").unwrap();
        let report = cache.store().verify(Some("s")).unwrap();
        assert_eq!((report.pages, report.missing), (2 * 2 * (333 / 32), 0), "{report:?}");
        out
    };
    {
        let mut cache = open(true);
        cache.load("s").unwrap();
        assert_eq!(attend(&mut cache), expected);
    }
    let prompt: Vec<u32> = (0..200).map(|token| token % 50).collect();
    assert_eq!(open(true).match_prefix(&prompt, b"").unwrap(), 192);
    assert_eq!(open(false).match_prefix(&prompt, b"").unwrap(), 0);
    let error = open(false).load("s").unwrap_err();
    assert!(matches!(&error, Error::SettingsMismatch { .. }), "{error}");
    assert!(error.to_string().contains("planes"), "{error}");
}

#[test]
fn ram_may_hold_the_codes_alone() {
    let directory = tempfile::tempdir().unwrap();
    let (rotary, shape) = (rotary(32, false), [2, 64, 64]);
    let mut cache = KvCache::new(small_store(&directory), in_planes(&rotary)).unwrap();
    // Two layers of 1,024 tokens: 1 MiB as elements, half a MiB as codes.
    cache.select(Some(selection(8, 0.0))).unwrap();
    grow(&mut cache, 0..1024, shape, DType::Bf16);
    check(&mut cache, &rotary, shape, DType::Bf16);
    assert!(cache.store().stats().ram_used_bytes <= 512 << 10);
}

#[test]
fn planes_without_a_rotary_are_refused() {
    let refused = |config| KvCache::new(store(), config).map(|_| ()).unwrap_err().to_string();
    let plain = CacheConfig { planes: true, ..config(1, 32) };
    assert!(refused(plain).contains("without positions"));
    let odd = CacheConfig { page_tokens: 40, ..in_planes(&rotary(4, false)) };
    assert!(refused(odd).contains("multiple of 16"));
}

#[test]
fn copies_of_planes_have_the_scales_that_both_planes_share() {
    let mut cache = KvCache::new(store(), in_planes(&rotary(4, false))).unwrap();
    grow(&mut cache, 0..100, [2, 16, 8], DType::Bf16);
    let pages = [(0, 2), (0, 0)];
    let copy = |cache: &mut KvCache, plane| {
        let mut out = vec![0; pages.len() * cache.plane_bytes(0, plane).unwrap()];
        cache.copy_planes(0, &pages, plane, &mut out).unwrap();
        out
    };
    let from_residuals = copy(&mut cache, Plane::Codes);
    cache.select(Some(selection(4, 0.5))).unwrap();
    let mut summaries = vec![0; cache.summaries_shape(0, 3).unwrap().iter().product()];
    cache.copy_summaries(0, 0, 3, &mut summaries, &Inline).unwrap();
    assert!(summaries.iter().any(|byte| *byte != 0));
    let codes = copy(&mut cache, Plane::Codes);
    assert_eq!(codes, from_residuals, "a chapter has the scales of its pages");
    let residuals = copy(&mut cache, Plane::Residuals);
    let heads = |plane: &[u8]| plane.chunks_exact(plane.len() / 4).map(<[u8]>::to_vec).collect::<Vec<_>>();
    for (codes, residuals) in heads(&codes).iter().zip(heads(&residuals)) {
        assert_eq!(codes[..2 * PAGE_TOKENS], residuals[..2 * PAGE_TOKENS]);
        assert_eq!(codes.len(), PAGE_TOKENS * (2 + 16 + 8));
    }
}

#[test]
fn copies_of_what_is_not_there_are_refused() {
    let mut cache = KvCache::new(store(), in_planes(&rotary(4, false))).unwrap();
    grow(&mut cache, 0..100, [1, 8, 8], DType::Bf16);
    let message = |result: crate::Result<()>| result.unwrap_err().to_string();
    let mut page = vec![0; cache.plane_bytes(0, Plane::Codes).unwrap()];
    assert!(message(cache.copy_planes(0, &[(0, 3)], Plane::Codes, &mut page)).contains("3 whole ones"));
    assert!(message(cache.copy_planes(0, &[(0, 0)], Plane::Residuals, &mut page)).contains("expected"));
    assert!(message(cache.copy_summaries(0, 0, 3, &mut [], &Inline)).contains("select"));
    assert!(cache.page_keys(0, &[(1, 0)]).is_err());
}

/// The same tokens computed in another order give other values. What a page's identity is known with is
/// what is read of it, whatever of it is in RAM, and never one plane of this and one of that.
#[test]
fn a_page_that_is_known_with_other_values_is_kept_whole() {
    let (rotary, shape, length) = (rotary(4, false), [2, 8, 6], 3 * PAGE_TOKENS);
    for gone in [[false, false], [true, false], [false, true], [true, true]] {
        let directory = tempfile::tempdir().unwrap();
        let store = small_store(&directory);
        let mut cache = KvCache::new(store.clone(), in_planes(&rotary)).unwrap();
        grow(&mut cache, 0..length, shape, DType::Bf16);
        store.flush().unwrap();
        let expected = contents(&mut cache, 1, shape, DType::Bf16);
        for sealed in cache.layers.iter().flat_map(|layer| layer.tables[0].sealed.iter()) {
            for (held, _) in sealed.parts().zip(gone).filter(|(_, gone)| *gone) {
                store.let_go(&[held.key()]);
            }
        }
        let mut again = KvCache::new(store.clone(), in_planes(&rotary)).unwrap();
        let noted: Vec<u32> = (0..length).map(|token| token as u32 % 50).collect();
        again.note_tokens(&[&noted], &[b""]).unwrap();
        for layer in 0..2 {
            // Other scales, and other codes.
            let other = |dim, layer| {
                let plain = uneven(0..length, layer, dim, shape[0], DType::Bf16);
                plain.clone().filled(|b, h, t, d| plain.at(b, h, t, d) * -37.5)
            };
            again.append(layer, &other(shape[1], layer), &other(shape[2], layer + 1)).unwrap();
        }
        assert_eq!(contents(&mut again, 1, shape, DType::Bf16), expected, "{gone:?}");
        again.select(Some(selection(7, 0.0))).unwrap();
        check(&mut again, &rotary, shape, DType::Bf16);
    }
}
