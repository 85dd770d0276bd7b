//! Random operations, checked against rows of token ids: every value follows from the ids.

use proptest::prelude::*;

use super::*;
use crate::attend::{Inline, Pool};
use crate::cache::{Bias, Mask};

#[derive(Clone, Debug)]
enum Op {
    /// Appends so many tokens; `note` tells their ids.
    Append {
        tokens: usize,
        note: bool,
    },
    Crop(usize),
    Reorder(Vec<usize>),
    /// Goes on with a fork and keeps the other to be compared at the end.
    Fork,
    Gather {
        start: usize,
        len: usize,
    },
    Attend {
        tokens: usize,
        causal: bool,
        bias: usize,
    },
    Prefetch,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0_usize..25, prop::bool::weighted(0.9)).prop_map(|(tokens, note)| Op::Append { tokens, note }),
        1 => (0_usize..60).prop_map(Op::Crop),
        1 => prop::collection::vec(0_usize..4, 1..5).prop_map(Op::Reorder),
        1 => Just(Op::Fork),
        2 => (0_usize..60, 0_usize..60).prop_map(|(start, len)| Op::Gather { start, len }),
        3 => (1_usize..5, any::<bool>(), 0_usize..4)
            .prop_map(|(tokens, causal, bias)| Op::Attend { tokens, causal, bias }),
        1 => Just(Op::Prefetch),
    ]
}

/// The ids of every row: all that the naive cache has to remember.
#[derive(Clone)]
struct Naive {
    rows: Vec<Vec<u32>>,
    shape: [usize; 3],
    dtype: DType,
}

impl Naive {
    fn len(&self) -> usize {
        self.rows[0].len()
    }

    fn check(&self, cache: &mut KvCache, layer: usize) {
        assert_eq!(cache.length(layer).unwrap(), self.len());
        if self.len() == 0 {
            return;
        }
        let expected = tensors(layer, &self.rows, 0, self.shape, self.dtype);
        assert_eq!(contents(cache, layer, self.shape, self.dtype), expected);
    }

    fn attend(
        &self,
        cache: &mut KvCache,
        layer: usize,
        tokens: usize,
        causal: bool,
        bias: usize,
        pool: &Pool,
    ) {
        let (rows, length) = (self.rows.len(), self.len());
        let [heads, dk, dv] = self.shape;
        let query_heads = heads * 2;
        let causal = causal && tokens <= length;
        let query = Tensor::new(rows, query_heads, tokens, dk, DType::F32)
            .filled(|b, h, t, d| ((b * 3 + h * 11 + t * 5 + d * 7) % 13) as f32 / 8.0 - 0.75);
        let bias_shape = [[1, 1, length], [rows, 1, length], [rows, tokens, length]];
        let numbers: Vec<f32> = (0..rows * tokens * length)
            .map(|i| if i % 7 == 3 { f32::NEG_INFINITY } else { (i % 5) as f32 / 4.0 })
            .collect();
        let bias = bias_shape.get(bias).map(|shape| Bias {
            values: &numbers,
            shape: *shape,
            batch_stride: if shape[0] == 1 { 0 } else { shape[1] * length },
            token_stride: if shape[1] == 1 { 0 } else { length },
        });
        let mask = Mask { bias, causal };
        let mut out = Tensor::new(rows, query_heads, tokens, dv, DType::F32);
        cache.attend(layer, &query, &mut out, 0.5, &mask, &Inline).unwrap();
        let (keys, values) = tensors(layer, &self.rows, 0, self.shape, self.dtype);
        for b in 0..rows {
            for h in 0..query_heads {
                for t in 0..tokens {
                    let score = |s: usize| {
                        let hidden = causal && s + tokens > length + t;
                        let added = bias.map_or(0.0, |bias| bias.slice(b.min(bias.shape[0] - 1), t, s, 1)[0]);
                        let dot: f64 = (0..dk)
                            .map(|d| f64::from(query.at(b, h, t, d)) * f64::from(keys.at(b, h / 2, s, d)))
                            .sum();
                        if hidden { f64::NEG_INFINITY } else { dot * 0.5 + f64::from(added) }
                    };
                    let scores: Vec<f64> = (0..length).map(score).collect();
                    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
                    let sum: f64 = weights.iter().sum();
                    for d in 0..dv {
                        let expected: f64 = weights
                            .iter()
                            .enumerate()
                            .map(|(s, weight)| weight * f64::from(values.at(b, h / 2, s, d)))
                            .sum::<f64>();
                        let expected = if max == f64::NEG_INFINITY { 0.0 } else { expected / sum };
                        let found = f64::from(out.at(b, h, t, d));
                        assert!((found - expected).abs() < 1e-5, "{found} instead of {expected}");
                    }
                }
            }
        }
        // Threads change no bit.
        let mut again = Tensor::new(rows, query_heads, tokens, dv, DType::F32);
        cache.attend(layer, &query, &mut again, 0.5, &mask, pool).unwrap();
        assert_eq!(out, again);
    }
}

fn run(store: &Store, config: CacheConfig, ops: Vec<Op>, rows: usize, shape: [usize; 3]) {
    let (page_tokens, layers) = (config.page_tokens, config.num_layers);
    let dtype = [DType::F32, DType::Bf16, DType::F16][page_tokens % 3];
    let mut cache = KvCache::new(store.clone(), config).unwrap();
    let mut naive = Naive { rows: vec![Vec::new(); rows], shape, dtype };
    let mut others = Vec::new();
    let pool = Pool::new(2);
    let mut next = 0_u32;
    let mut started = false;
    for op in ops {
        match op {
            Op::Append { tokens, note } => {
                let fresh: Vec<Vec<u32>> = (0..naive.rows.len())
                    .map(|row| (0..tokens as u32).map(|t| (next + t + row as u32 * (t % 2)) % 50).collect())
                    .collect();
                next += tokens as u32;
                let start = naive.len();
                if note {
                    let slices: Vec<&[u32]> = fresh.iter().map(Vec::as_slice).collect();
                    cache.note_tokens(&slices, &vec![&b""[..]; slices.len()]).unwrap();
                }
                for layer in 0..layers {
                    let (keys, values) = tensors(layer, &fresh, start, shape, dtype);
                    cache.append(layer, &keys, &values).unwrap();
                }
                naive.rows.iter_mut().zip(fresh).for_each(|(row, fresh)| row.extend(fresh));
                started = true;
            }
            Op::Crop(length) => {
                cache.crop(length);
                naive.rows.iter_mut().for_each(|row| row.truncate(length));
            }
            Op::Reorder(order) if started => {
                let order: Vec<usize> = order.into_iter().map(|row| row % naive.rows.len()).collect();
                cache.reorder(&order).unwrap();
                naive.rows = order.iter().map(|row| naive.rows[*row].clone()).collect();
            }
            Op::Fork if others.len() < 3 => {
                let fork = cache.fork().unwrap();
                others.push((std::mem::replace(&mut cache, fork), naive.clone()));
            }
            Op::Gather { start, len } if naive.len() > 0 => {
                let start = start % naive.len();
                let stop = (start + len).min(naive.len());
                let (rows, [heads, dk, dv]) = (naive.rows.len(), shape);
                let mut keys = Tensor::new(rows, heads, stop - start, dk, dtype);
                let mut values = Tensor::new(rows, heads, stop - start, dv, dtype);
                cache
                    .gather(layers - 1, start, stop, &mut keys, &mut values, crate::cache::KeyTurn::Appended)
                    .unwrap();
                let part: Vec<Vec<u32>> = naive.rows.iter().map(|row| row[start..stop].to_vec()).collect();
                assert_eq!((keys, values), tensors(layers - 1, &part, start, shape, dtype));
            }
            Op::Attend { tokens, causal, bias } if naive.len() > 0 => {
                for layer in 0..layers {
                    naive.attend(&mut cache, layer, tokens, causal, bias, &pool);
                }
            }
            Op::Prefetch => cache.prefetch(layers - 1).unwrap(),
            _ => {}
        }
    }
    others.push((cache, naive));
    for (mut cache, naive) in others {
        for layer in 0..layers {
            naive.check(&mut cache, layer);
        }
        for row in 0..cache.num_rows() {
            let ids = cache.token_ids(row).unwrap();
            assert!(ids.is_none_or(|ids| ids == naive.rows[row]));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn equals_the_naive_cache(
        ops in prop::collection::vec(op(), 1..30),
        rows in 1_usize..4,
        page_tokens in 1_usize..9,
        layers in 1_usize..4,
        heads in 1_usize..3,
        dims in (1_usize..9, 1_usize..9),
        private in any::<bool>(),
    ) {
        let store = store();
        let mut config = config(layers, page_tokens);
        if private {
            config.identity = None;
        }
        run(&store, config, ops, rows, [heads, dims.0, dims.1]);
        // A page with an identity may serve somebody else later; a private one is gone.
        prop_assert!(!private || store.stats().ram_pages == 0, "all references were given back");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, ..ProptestConfig::default() })]

    /// The same where RAM holds a few pages, so that most reads come from files.
    #[test]
    fn equals_the_naive_cache_from_disk(
        ops in prop::collection::vec(op(), 1..20),
        rows in 1_usize..3,
        page_tokens in 1_usize..5,
        layers in 1_usize..3,
    ) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&StoreConfig::on_disk(256 << 10, directory.path())).unwrap();
        run(&store, config(layers, page_tokens), ops, rows, [2, 8, 4]);
    }
}
