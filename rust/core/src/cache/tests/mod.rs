//! The cache against a model that keeps every value in plain vectors.

mod chapters;
mod model;
mod persist;
mod planes;
mod rotary;
mod sparse;
mod unit;

use std::collections::BTreeMap;

use super::{CacheConfig, Extent, KvCache, ReadRows, WriteRows};
use crate::dtype::DType;
use crate::store::{Store, StoreConfig};

/// A (B, H, T, D) tensor of its own memory.
#[derive(Clone, Debug, PartialEq)]
struct Tensor {
    extent: Extent,
    bytes: Vec<u8>,
}

impl Tensor {
    fn new(batch: usize, heads: usize, tokens: usize, dim: usize, dtype: DType) -> Self {
        let extent = Extent { batch, heads, tokens, dim, dtype };
        Self { extent, bytes: vec![0xff; batch * heads * tokens * extent.row_bytes()] }
    }

    fn filled(self, mut value: impl FnMut(usize, usize, usize, usize) -> f32) -> Self {
        let mut this = self;
        let Extent { batch, heads, tokens, dim, dtype } = this.extent;
        let mut index = 0;
        for b in 0..batch {
            for h in 0..heads {
                for t in 0..tokens {
                    for d in 0..dim {
                        dtype.write(&mut this.bytes, index, value(b, h, t, d));
                        index += 1;
                    }
                }
            }
        }
        this
    }

    fn at(&self, b: usize, h: usize, t: usize, d: usize) -> f32 {
        let Extent { heads, tokens, dim, dtype, .. } = self.extent;
        dtype.read(&self.bytes, ((b * heads + h) * tokens + t) * dim + d)
    }

    fn start(&self, batch: usize, head: usize, token: usize) -> usize {
        ((batch * self.extent.heads + head) * self.extent.tokens + token) * self.extent.row_bytes()
    }
}

impl ReadRows for Tensor {
    fn extent(&self) -> Extent {
        self.extent
    }
    fn read(&self, batch: usize, head: usize, token: usize, into: &mut [u8]) {
        let start = self.start(batch, head, token);
        into.copy_from_slice(&self.bytes[start..start + into.len()]);
    }
}

impl WriteRows for Tensor {
    fn extent(&self) -> Extent {
        self.extent
    }
    fn write(&mut self, batch: usize, head: usize, token: usize, from: &[u8]) {
        let start = self.start(batch, head, token);
        self.bytes[start..start + from.len()].copy_from_slice(from);
    }
}

fn store() -> Store {
    Store::open(&StoreConfig::in_memory(64 << 20)).unwrap()
}

fn config(num_layers: usize, page_tokens: usize) -> CacheConfig {
    CacheConfig {
        num_layers,
        page_tokens,
        identity: Some(b"a model".to_vec()),
        settings: BTreeMap::from([("dtype".into(), "bfloat16".into())]),
        rotary: None,
        planes: false,
    }
}

/// A value that tells layer, row content, position and place; never repeats nearby.
fn value(layer: usize, token: u32, position: usize, h: usize, d: usize) -> f32 {
    let mixed = (layer * 7 + token as usize * 13 + position * 29 + h * 5 + d * 3) % 97;
    (mixed as f32 - 48.0) / 32.0
}

/// Keys and values of some tokens, as a model with these ids would compute them.
fn tensors(
    layer: usize,
    rows: &[Vec<u32>],
    start: usize,
    shape: [usize; 3],
    dtype: DType,
) -> (Tensor, Tensor) {
    let [heads, dk, dv] = shape;
    let tokens = rows[0].len();
    let keys = Tensor::new(rows.len(), heads, tokens, dk, dtype)
        .filled(|b, h, t, d| value(layer, rows[b][t], start + t, h, d));
    let values = Tensor::new(rows.len(), heads, tokens, dv, dtype)
        .filled(|b, h, t, d| value(layer + 1, rows[b][t] + 1, start + t, h, d));
    (keys, values)
}

/// Notes and appends the same number of tokens to all layers.
fn feed(cache: &mut KvCache, rows: &[Vec<u32>], shape: [usize; 3], dtype: DType) {
    let start = cache.length(0).unwrap();
    let slices: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
    cache.note_tokens(&slices, &vec![&b""[..]; rows.len()]).unwrap();
    for layer in 0..cache.num_layers() {
        let (keys, values) = tensors(layer, rows, start, shape, dtype);
        cache.append(layer, &keys, &values).unwrap();
    }
}

/// Everything that a layer holds.
fn contents(cache: &mut KvCache, layer: usize, shape: [usize; 3], dtype: DType) -> (Tensor, Tensor) {
    let (rows, length) = (cache.num_rows(), cache.length(layer).unwrap());
    let mut keys = Tensor::new(rows, shape[0], length, shape[1], dtype);
    let mut values = Tensor::new(rows, shape[0], length, shape[2], dtype);
    cache.gather(layer, 0, length, &mut keys, &mut values, crate::cache::KeyTurn::Appended).unwrap();
    (keys, values)
}
