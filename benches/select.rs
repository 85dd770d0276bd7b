//! A decode step after very many tokens: how long one layer takes to choose its blocks and to read them.
//!
//! A few layers in the demo model's shape, in planes, all in RAM; what one layer leaves in the processor's caches
//! is driven out before the next one is timed, as a model of 30 layers does. Before that the outputs on all
//! threads are compared with those on one. Prints, for lengths up to a million tokens, the median wall and
//! CPU time of a step of one layer, beside a plain read of the bytes of its sketches, and a sum of all that was
//! chosen and computed, to compare builds by. Variables change the sizes: LAYERS, TOKENS, BUDGET, THREADS, ROUNDS.

#![expect(clippy::print_stdout, reason = "a benchmark reports")]
#![expect(clippy::expect_used, reason = "a benchmark that can't run ends")]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Instant;

use stratakv_bench::Tensor;
use stratakv_core::attend::{Inline, Parallel, Pool};
use stratakv_core::cache::{CacheConfig, KvCache, Mask, Selection};
use stratakv_core::dtype::DType;
use stratakv_core::rotary::Rotary;
use stratakv_core::score::{Budget, Guard};
use stratakv_core::store::{Store, StoreConfig};

const KV_HEADS: usize = 3;
const GROUP: usize = 3;
const DIM: usize = 64;
/// Dimensions of the space that most of a query lies in.
const RANK: usize = 6;
/// Tokens that are appended at a time.
const PIECE: usize = 4096;
/// Bytes that drive others out of the processor's caches.
const CROWD: usize = 64 << 20;

/// Numbers without order, about normally distributed.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let bits = self.0 ^ self.0 >> 29;
        let sum: u64 = (0..4).map(|part| bits >> (16 * part) & 0xffff).sum();
        (sum as f32 / 65_536.0 - 2.0) * 1.732
    }
}

/// Zeros (1, H, T, [`DIM`]).
fn zeros(heads: usize, tokens: usize, dtype: DType) -> Tensor {
    Tensor::new(heads, tokens, DIM, dtype)
}

/// Noise, and `along` as much of the space that queries lie in.
fn fill(tensor: &mut Tensor, noise: &mut Noise, scale: f32, along: f32) {
    let (dtype, row_bytes) = (tensor.extent.dtype, tensor.extent.row_bytes());
    for row in tensor.bytes.chunks_exact_mut(row_bytes) {
        let weights: [f32; RANK] = std::array::from_fn(|_| along * noise.next());
        for d in 0..DIM {
            // Each dimension of the space is spread over some elements.
            let of_space = weights[d % RANK] * if (d / RANK).is_multiple_of(2) { 1.0 } else { -1.0 };
            dtype.write(row, d, scale * noise.next() + of_space);
        }
    }
}

fn selection(tokens: usize) -> Selection {
    let guard = Guard { unread: 0.1, growth: 2.0 };
    let budget = Budget { blocks: tokens / 16, sinks: 1, window: 8, critical: 0.05, guard };
    Selection {
        budget,
        recent: 0,
        dense_below: 2 * tokens,
        dense_prefill_below: 8192,
        trained_tokens: 8192,
        sketches: true,
    }
}

struct Context {
    cache: KvCache,
    layers: usize,
    noise: Noise,
    query: Tensor,
    out: Tensor,
    crowd: Vec<u64>,
}

impl Context {
    fn new(layers: usize, tokens: usize, budget: usize) -> Self {
        let ram = (layers * tokens * KV_HEADS * DIM * 2 * 2) as u64 + (256 << 20);
        let store = Store::open(&StoreConfig::in_memory(ram)).expect("a store in RAM");
        let inv_freq = (0..DIM / 2).map(|pair| 1e5_f64.powf(-(pair as f64) / (DIM as f64 / 2.0))).collect();
        let config = CacheConfig {
            num_layers: layers,
            page_tokens: 64,
            identity: None,
            settings: BTreeMap::new(),
            rotary: Some(Rotary { inv_freq, interleaved: false }),
            planes: true,
        };
        let mut cache = KvCache::new(store, config).expect("a cache");
        cache.select(Some(selection(budget))).expect("a selection");
        let new = || zeros(KV_HEADS * GROUP, 1, DType::Bf16);
        let crowd = vec![1; CROWD / 8];
        let mut context = Self { cache, layers, noise: Noise(1), query: new(), out: new(), crowd };
        context.grow(64);
        // The first queries say in which directions sketches are made.
        let mut queries = zeros(KV_HEADS * GROUP, 64, DType::Bf16);
        fill(&mut queries, &mut context.noise, 0.4, 1.2);
        let mut out = zeros(KV_HEADS * GROUP, 64, DType::Bf16);
        let mask = Mask { causal: true, ..Mask::default() };
        for layer in 0..layers {
            context.cache.attend(layer, &queries, &mut out, 0.125, &mask, &Inline).expect("a first pass");
        }
        context
    }

    fn grow(&mut self, tokens: usize) {
        let (mut keys, mut values) =
            (zeros(KV_HEADS, tokens, DType::Bf16), zeros(KV_HEADS, tokens, DType::Bf16));
        for layer in 0..self.layers {
            fill(&mut keys, &mut self.noise, 0.7, 0.5);
            fill(&mut values, &mut self.noise, 1.0, 0.0);
            self.cache.append(layer, &keys, &values).expect("room for the context");
        }
    }

    fn grow_to(&mut self, tokens: usize) {
        while self.len() < tokens {
            self.grow(PIECE.min(tokens - self.len()));
        }
        // Sketches are made when they are needed first.
        (0..self.layers).for_each(|layer| self.step(layer, &Inline));
    }

    fn len(&self) -> usize {
        self.cache.length(0).expect("it has a layer")
    }

    fn step(&mut self, layer: usize, parallel: &dyn Parallel) {
        let Self { cache, query, out, .. } = self;
        cache.attend(layer, query, out, 0.125, &Mask::default(), parallel).expect("all pages are in RAM");
    }

    fn drive_out(&mut self) {
        self.crowd.iter_mut().for_each(|x| *x = x.wrapping_add(1));
        black_box(&self.crowd);
    }

    /// Wall and CPU seconds of one layer's step; folds what it gave and chose into `sum`.
    fn timed(&mut self, layer: usize, parallel: &dyn Parallel, sum: &mut u64) -> (f64, f64) {
        fill(&mut self.query, &mut self.noise, 0.4, 1.2);
        self.drive_out();
        let (start, cpu) = (Instant::now(), cpu_seconds());
        self.step(layer, parallel);
        let seconds = (start.elapsed().as_secs_f64(), cpu_seconds() - cpu);
        let mut add = |number: u64| *sum = sum.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(number);
        for head in self.cache.read_blocks(layer).expect("a layer").into_iter().flatten().flatten() {
            for block in head {
                add(u64::from(*block));
            }
        }
        for byte in &self.out.bytes {
            add(u64::from(*byte));
        }
        seconds
    }
}

/// CPU seconds of this process so far.
#[cfg(target_os = "linux")]
fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

#[cfg(not(target_os = "linux"))]
fn cpu_seconds() -> f64 {
    f64::NAN
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn report(context: &mut Context, pool: &dyn Parallel, rounds: usize) {
    let (mut wall, mut cpu, mut read, mut sum) = (Vec::new(), Vec::new(), Vec::new(), 0);
    // The same queries on one thread and on all.
    let state = context.noise.0;
    let mut alone = 0;
    for layer in 0..context.layers {
        context.timed(layer, &Inline, &mut alone);
    }
    context.noise.0 = state;
    for layer in 0..context.layers {
        context.timed(layer, pool, &mut sum);
    }
    assert_eq!(alone, sum, "threads change what is read or its sum");
    for _ in 0..rounds {
        for layer in 0..context.layers {
            let seconds = context.timed(layer, pool, &mut sum);
            wall.push(seconds.0);
            cpu.push(seconds.1);
        }
        // As many bytes as a layer's sketches have: 16 and a share of the frames a block and head.
        let count = (context.len() / 16 * KV_HEADS * 35 / 2 / 8).min(context.crowd.len() / 2);
        context.drive_out();
        let start = Instant::now();
        let total: u64 = context.crowd[..count].iter().fold(0, |sum, x| sum.wrapping_add(*x));
        black_box(total);
        read.push(start.elapsed().as_secs_f64());
    }
    let read_tokens = context.cache.selected(0).expect("a layer").map_or(0.0, |selected| selected.tokens);
    println!(
        "{:>9} tokens {:>8.0} us wall {:>8.0} us CPU {:>6.0} us to read its sketches on one thread; {read_tokens} tokens read, sum {sum:016x}",
        context.len(),
        median(wall) * 1e6,
        median(cpu) * 1e6,
        median(read) * 1e6,
    );
}

fn main() {
    let number = |name: &str, otherwise: usize| {
        std::env::var(name).map_or(otherwise, |text| text.parse().expect("a number"))
    };
    // `cargo test --benches` only checks that it works.
    let is_short = !std::env::args().any(|argument| argument == "--bench");
    let (layers, tokens) =
        if is_short { (1, 40_000) } else { (number("LAYERS", 3), number("TOKENS", 1 << 20)) };
    let pool = Pool::new(number("THREADS", 2));
    let mut context = Context::new(layers, tokens, number("BUDGET", 2048));
    for length in [16 << 10, 64 << 10, 256 << 10, 1 << 20] {
        if length <= tokens {
            // A tail and a chapter that is not full, as there usually are.
            context.grow_to(length - 300);
            report(&mut context, &pool, if is_short { 1 } else { number("ROUNDS", 30) });
        }
    }
}
