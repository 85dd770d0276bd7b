//! Page-rotated keys against attention over keys at their positions, all in float64.

use proptest::prelude::*;

use super::*;
use crate::attend::{Inline, Pool};
use crate::cache::{Bias, KeyTurn, Mask};
use crate::rotary::Rotary;

pub(super) fn rotary(pairs: usize, interleaved: bool) -> Rotary {
    let inv_freq = (0..pairs).map(|pair| 500_f64.powf(-(pair as f64) / pairs as f64)).collect();
    Rotary { inv_freq, interleaved }
}

pub(super) fn rotated(config: CacheConfig, rotary: &Rotary) -> CacheConfig {
    CacheConfig { rotary: Some(rotary.clone()), ..config }
}

/// `row` at a position, by definition.
fn at_position(rotary: &Rotary, position: usize, row: &[f64]) -> Vec<f64> {
    let count = rotary.inv_freq.len();
    let mut out = row.to_vec();
    for (pair, frequency) in rotary.inv_freq.iter().enumerate() {
        let (x, y) = if rotary.interleaved { (2 * pair, 2 * pair + 1) } else { (pair, pair + count) };
        let (sin, cos) = (position as f64 * frequency).sin_cos();
        (out[x], out[y]) = (row[x] * cos - row[y] * sin, row[x] * sin + row[y] * cos);
    }
    out
}

pub(super) fn row_of(tensor: &Tensor, b: usize, h: usize, t: usize) -> Vec<f64> {
    (0..tensor.extent.dim).map(|d| f64::from(tensor.at(b, h, t, d))).collect()
}

/// (B, Q, T, Dv) of the last T tokens' queries, in float64, over keys and values of all tokens.
pub(super) fn reference(
    rotary: &Rotary,
    query: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    scale: f64,
    mask: &Mask<'_>,
) -> Vec<f64> {
    let Extent { batch, heads, tokens, .. } = query.extent;
    let (length, group) = (keys.extent.tokens, heads / keys.extent.heads);
    let mut out = Vec::new();
    for b in 0..batch {
        for h in 0..heads {
            for t in 0..tokens {
                let turned = at_position(rotary, length - tokens + t, &row_of(query, b, h, t));
                let score = |s: usize| {
                    let key = at_position(rotary, s, &row_of(keys, b, h / group, s));
                    let added =
                        mask.bias.map_or(0.0, |bias| bias.slice(b.min(bias.shape[0] - 1), t, s, 1)[0]);
                    let dot: f64 = turned.iter().zip(key).map(|(q, k)| q * k).sum();
                    let hidden = mask.causal && s + tokens > length + t;
                    if hidden { f64::NEG_INFINITY } else { dot * scale + f64::from(added) }
                };
                let scores: Vec<f64> = (0..length).map(score).collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
                let sum: f64 = weights.iter().sum();
                for d in 0..values.extent.dim {
                    let weighted = weights.iter().enumerate();
                    let total: f64 =
                        weighted.map(|(s, w)| w * f64::from(values.at(b, h / group, s, d))).sum();
                    out.push(if max == f64::NEG_INFINITY { 0.0 } else { total / sum });
                }
            }
        }
    }
    out
}

pub(super) fn query(batch: usize, heads: usize, tokens: usize, dim: usize) -> Tensor {
    Tensor::new(batch, heads, tokens, dim, DType::F32)
        .filled(|b, h, t, d| ((b * 3 + h * 11 + t * 5 + d * 7) % 13) as f32 / 8.0 - 0.75)
}

/// Values are of order one; a 16-bit key is off by half a unit in its last place.
pub(super) fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 2e-5,
        DType::F16 => 4e-3,
        DType::Bf16 => 3e-2,
    }
}

pub(super) fn assert_near(found: &Tensor, expected: &[f64], dtype: DType) {
    for (index, expected) in expected.iter().enumerate() {
        let found = f64::from(found.extent.dtype.read(&found.bytes, index));
        assert!((found - expected).abs() < tolerance(dtype), "{index}: {found} instead of {expected}");
    }
}

/// Checks attention and all kinds of gathering against what was appended.
fn check(
    cache: &mut KvCache,
    rotary: &Rotary,
    rows: &[Vec<u32>],
    shape: [usize; 3],
    dtype: DType,
    new: usize,
) {
    let (length, [heads, dk, dv]) = (rows[0].len(), shape);
    let (keys, values) = tensors(0, rows, 0, shape, dtype);
    let new = new.min(length);
    let numbers: Vec<f32> = (0..rows.len() * new * length)
        .map(|i| if i % 7 == 3 { f32::NEG_INFINITY } else { (i % 5) as f32 / 4.0 })
        .collect();
    let bias = Bias {
        values: &numbers,
        shape: [rows.len(), new, length],
        batch_stride: new * length,
        token_stride: length,
    };
    let query = query(rows.len(), heads * 2, new, dk);
    for mask in [Mask::default(), Mask { causal: true, bias: None }, Mask { causal: true, bias: Some(bias) }]
    {
        let mut out = Tensor::new(rows.len(), heads * 2, new, dv, DType::F32);
        cache.attend(0, &query, &mut out, 0.3, &mask, &Inline).unwrap();
        assert_near(&out, &reference(rotary, &query, &keys, &values, 0.3, &mask), dtype);
        let mut again = out.clone();
        cache.attend(0, &query, &mut again, 0.3, &mask, &Pool::new(2)).unwrap();
        assert_eq!(out, again, "threads change no bit");
    }
    for turn in [KeyTurn::Appended, KeyTurn::Stored, KeyTurn::Placed] {
        let start = length / 3;
        let mut found = Tensor::new(rows.len(), heads, length - start, dk, dtype);
        let mut same = Tensor::new(rows.len(), heads, length - start, dv, dtype);
        cache.gather(0, start, length, &mut found, &mut same, turn).unwrap();
        for b in 0..rows.len() {
            for h in 0..heads {
                for s in start..length {
                    let row = row_of(&keys, b, h, s);
                    let expected = match turn {
                        KeyTurn::Appended => row,
                        KeyTurn::Stored => at_position(rotary, s % cache.page_tokens(), &row),
                        KeyTurn::Placed => at_position(rotary, s, &row),
                    };
                    for (d, expected) in expected.iter().enumerate() {
                        let found = f64::from(found.at(b, h, s - start, d));
                        assert!((found - expected).abs() < tolerance(dtype), "{found} {expected}");
                    }
                    assert_eq!(row_of(&same, b, h, s - start), row_of(&values, b, h, s));
                }
            }
        }
    }
}

pub(super) fn ids(length: usize, first: u32) -> Vec<u32> {
    (0..length as u32).map(|token| (first + token * 5) % 47).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Appended in pieces, cropped (also into sealed pages), reordered, gone on with.
    #[test]
    fn equals_attention_at_true_positions(
        pieces in prop::collection::vec(1_usize..30, 1..4),
        crop in 1_usize..60,
        page_tokens in 1_usize..9,
        pairs in 1_usize..5,
        rest in 0_usize..4,
        dv in 1_usize..7,
        interleaved in any::<bool>(),
        new in 1_usize..5,
        dtype in 0_usize..3,
    ) {
        let dtype = [DType::F32, DType::Bf16, DType::F16][dtype];
        let (rotary, shape) = (rotary(pairs, interleaved), [2, 2 * pairs + rest, dv]);
        let mut cache = KvCache::new(store(), rotated(config(1, page_tokens), &rotary)).unwrap();
        let mut rows = vec![Vec::new(), Vec::new()];
        for (index, piece) in pieces.into_iter().enumerate() {
            let fresh = [ids(piece, index as u32), ids(piece, index as u32 + 9)];
            feed(&mut cache, &fresh, shape, dtype);
            rows.iter_mut().zip(fresh).for_each(|(row, fresh): (&mut Vec<u32>, _)| row.extend(fresh));
            check(&mut cache, &rotary, &rows, shape, dtype, new);
            cache.crop(crop);
            cache.reorder(&[1, 0]).unwrap();
            rows.swap(0, 1);
            for row in &mut rows {
                row.truncate(crop);
            }
            check(&mut cache, &rotary, &rows, shape, dtype, new);
        }
        let mut fork = cache.fork().unwrap();
        feed(&mut cache, &[vec![3; 7], vec![4; 7]], shape, dtype);
        check(&mut fork, &rotary, &rows, shape, dtype, new);
    }
}

#[test]
fn tiers_and_sessions_change_no_bit() {
    let directory = tempfile::tempdir().unwrap();
    let (rotary, shape) = (rotary(4, false), [2, 8, 6]);
    let row = ids(301, 2);
    let attend = |cache: &mut KvCache| {
        let mut out = Tensor::new(1, 4, 3, 6, DType::F32);
        cache.attend(0, &query(1, 4, 3, 8), &mut out, 0.5, &Mask::default(), &Pool::new(2)).unwrap();
        out
    };
    let mut warm = KvCache::new(store(), rotated(config(1, 4), &rotary)).unwrap();
    feed(&mut warm, std::slice::from_ref(&row), shape, DType::Bf16);
    let expected = attend(&mut warm);
    {
        let store = Store::open(&StoreConfig::on_disk(96 << 10, directory.path())).unwrap();
        let mut cold = KvCache::new(store, rotated(config(1, 4), &rotary)).unwrap();
        feed(&mut cold, std::slice::from_ref(&row), shape, DType::Bf16);
        assert_eq!(attend(&mut cold), expected);
        cold.save("s", "a model", b"").unwrap();
    }
    let store = Store::open(&StoreConfig::on_disk(96 << 10, directory.path())).unwrap();
    let mut resumed = KvCache::new(store, rotated(config(1, 4), &rotary)).unwrap();
    resumed.load("s").unwrap();
    assert_eq!(attend(&mut resumed), expected);
    check(&mut resumed, &rotary, &[row], shape, DType::Bf16, 2);
}

#[test]
fn keys_shorter_than_what_is_turned_are_refused() {
    let mut cache = KvCache::new(store(), rotated(config(1, 4), &rotary(4, false))).unwrap();
    let (keys, values) = tensors(0, &[ids(3, 0)], 0, [1, 7, 4], DType::F32);
    let message = cache.append(0, &keys, &values).unwrap_err().to_string();
    assert!(message.contains("7 elements") && message.contains('8'), "{message}");
    let empty = Rotary { inv_freq: Vec::new(), interleaved: false };
    assert!(KvCache::new(store(), rotated(config(1, 4), &empty)).is_err());
}
