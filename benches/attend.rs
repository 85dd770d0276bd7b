//! Decode attention over pages: bytes per second beside a plain read of the same bytes.
//!
//! First every case is compared with a plain softmax in float64. Then a table: for each
//! case the median time of a step, the bytes of keys and values per second, and their
//! ratio to one pass that only adds the same bytes up, on the same threads. Criterion
//! follows with the cases worth watching between commits.

#![expect(unsafe_code, reason = "the read that sets the ceiling uses wide vectors as the kernels do")]
#![expect(clippy::print_stdout, reason = "a benchmark reports")]
#![expect(clippy::expect_used, reason = "a benchmark that can't run ends")]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use stratakv_bench::Tensor;
use stratakv_core::attend::{Inline, Parallel, Pool};
use stratakv_core::cache::{CacheConfig, Extent, KvCache, Mask};
use stratakv_core::dtype::DType;
use stratakv_core::simd::SimdLevel;
use stratakv_core::store::{Store, StoreConfig};

const PAGE_TOKENS: usize = 64;
const KV_HEADS: usize = 2;

#[derive(Clone, Copy)]
struct Case {
    dtype: DType,
    dim: usize,
    group: usize,
    tokens: usize,
}

impl Case {
    fn name(&self) -> String {
        let Self { dtype, dim, group, tokens } = self;
        format!("{dtype}/D{dim}/group{group}/{}K", tokens >> 10)
    }

    /// Bytes of keys and values.
    fn bytes(&self) -> usize {
        self.tokens * KV_HEADS * 2 * self.dim * self.dtype.size()
    }
}

/// Of a shape, with a few thousand different values: what is measured does not depend on them.
fn filled(mut tensor: Tensor, scale: f32, seed: u64) -> Tensor {
    let mut state = seed;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0) * scale
    };
    let dtype = tensor.extent.dtype;
    let mut pattern = vec![0; 4093 * dtype.size()];
    for index in 0..4093 {
        dtype.write(&mut pattern, index, random());
    }
    for part in tensor.bytes.chunks_mut(pattern.len()) {
        part.copy_from_slice(&pattern[..part.len()]);
    }
    tensor
}

fn element(tensor: &Tensor, head: usize, token: usize, d: usize) -> f64 {
    let Extent { tokens, dim, dtype, .. } = tensor.extent;
    f64::from(dtype.read(&tensor.bytes, (head * tokens + token) * dim + d))
}

/// A cache of one layer with a context in RAM.
struct Context {
    case: Case,
    cache: KvCache,
    keys: Tensor,
    values: Tensor,
    query: Tensor,
    out: Tensor,
}

impl Context {
    fn new(case: Case) -> Self {
        let Case { dtype, dim, tokens, .. } = case;
        let ram = case.bytes() as u64 * 9 / 8 + (16 << 20);
        let store = Store::open(&StoreConfig::in_memory(ram)).expect("a store in RAM");
        let config = CacheConfig {
            num_layers: 1,
            page_tokens: PAGE_TOKENS,
            identity: None,
            settings: BTreeMap::new(),
            rotary: None,
            planes: false,
        };
        let mut cache = KvCache::new(store, config).expect("a cache");
        let keys = filled(Tensor::new(KV_HEADS, tokens, dim, dtype), 1.7, 7);
        let values = filled(Tensor::new(KV_HEADS, tokens, dim, dtype), 1.7, 11);
        cache.append(0, &keys, &values).expect("room for the context");
        let mut context = Self {
            case,
            cache,
            keys,
            values,
            query: Tensor::new(0, 1, dim, DType::F32),
            out: Tensor::new(0, 1, dim, DType::F32),
        };
        context.set_group(case.group);
        context
    }

    /// Query heads per KV head.
    fn set_group(&mut self, group: usize) {
        self.case.group = group;
        let new = || Tensor::new(KV_HEADS * group, 1, self.case.dim, DType::F32);
        (self.query, self.out) = (filled(new(), 1.7, 13), new());
    }

    fn scale(&self) -> f32 {
        1.0 / (self.case.dim as f32).sqrt()
    }

    /// Attention of one token, as a decode step calls it.
    fn step(&mut self, parallel: &dyn Parallel) {
        let scale = self.scale();
        let Self { cache, query, out, .. } = self;
        cache.attend(0, query, out, scale, &Mask::default(), parallel).expect("all pages are in RAM");
    }

    /// Adds as many bytes up as integers, each thread a few runs of its own.
    fn read(&self, parallel: &dyn Parallel) {
        let parts = parallel.threads() * 4;
        let part_len = self.keys.bytes.len() * 2 / parts;
        parallel.run(parts, &|part| {
            let (from, part) =
                if part < parts / 2 { (&self.keys, part) } else { (&self.values, part - parts / 2) };
            black_box(add_up(&from.bytes[part * part_len..(part + 1) * part_len]));
        });
    }

    fn assert_correct(&mut self) {
        let Case { dim, group, tokens, .. } = self.case;
        let scale = f64::from(self.scale());
        self.step(&Inline);
        for head in 0..KV_HEADS * group {
            let (mut sum, mut acc) = (0.0_f64, vec![(0.0_f64, 0.0_f64); dim]);
            for token in 0..tokens {
                let score: f64 = (0..dim)
                    .map(|d| element(&self.query, head, 0, d) * element(&self.keys, head / group, token, d))
                    .sum();
                let weight = (score * scale).exp();
                sum += weight;
                for (d, (value, size)) in acc.iter_mut().enumerate() {
                    let term = weight * element(&self.values, head / group, token, d);
                    *value += term;
                    *size += term.abs();
                }
            }
            for (d, (value, size)) in acc.iter().enumerate() {
                let error = (element(&self.out, head, 0, d) - value / sum).abs();
                assert!(error <= 2e-6 * size / sum, "{}: off by {error} of {}", self.case.name(), size / sum);
            }
        }
    }
}

fn add_up(bytes: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f")]
        fn avx512(bytes: &[u8]) -> u64 {
            add_up_plainly(bytes)
        }
        #[target_feature(enable = "avx2")]
        fn avx2(bytes: &[u8]) -> u64 {
            add_up_plainly(bytes)
        }
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: just detected.
            return unsafe { avx512(bytes) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: just detected.
            return unsafe { avx2(bytes) };
        }
    }
    add_up_plainly(bytes)
}

#[expect(clippy::inline_always, reason = "compiled for the instructions of its caller")]
#[inline(always)]
fn add_up_plainly(bytes: &[u8]) -> u64 {
    let mut sums = [0_u64; 64];
    for chunk in bytes.chunks_exact(512) {
        for (sum, bytes) in sums.iter_mut().zip(chunk.as_chunks::<8>().0) {
            *sum = sum.wrapping_add(u64::from_ne_bytes(*bytes));
        }
    }
    sums.iter().fold(0, |total, sum| total.wrapping_add(*sum))
}

/// Median seconds of a step and of a read, which take turns, so that both see the same machine.
fn measure(context: &mut Context, pool: &dyn Parallel) -> (f64, f64) {
    let (mut steps, mut reads) = (Vec::new(), Vec::new());
    let begin = Instant::now();
    while steps.len() < 7 || (begin.elapsed() < Duration::from_millis(150) && steps.len() < 500) {
        let start = Instant::now();
        context.step(pool);
        steps.push(start.elapsed().as_secs_f64());
        let start = Instant::now();
        context.read(pool);
        reads.push(start.elapsed().as_secs_f64());
    }
    let median = |mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    (median(steps), median(reads))
}

fn table(pools: &[&dyn Parallel]) {
    println!("kernel: {}", SimdLevel::detect());
    println!(
        "{:30} {:>7} {:>10} {:>8} {:>10} {:>6}",
        "case", "threads", "step", "GB/s", "read GB/s", "ratio"
    );
    for dtype in [DType::F32, DType::Bf16, DType::F16] {
        for dim in [64, 128] {
            for tokens in [1 << 10, 8 << 10, 128 << 10] {
                let mut context = Context::new(Case { dtype, dim, group: 1, tokens });
                for group in [1, 3, 4, 8] {
                    context.set_group(group);
                    for pool in pools {
                        let (step, read) = measure(&mut context, *pool);
                        let bytes = context.case.bytes() as f64;
                        println!(
                            "{:30} {:>7} {:>7.3} ms {:>8.1} {:>10.1} {:>5.0}%",
                            context.case.name(),
                            pool.threads(),
                            step * 1e3,
                            bytes / step / 1e9,
                            bytes / read / 1e9,
                            read / step * 100.0
                        );
                    }
                }
            }
        }
    }
}

/// One JSON line for `benches/figures.py`: a read of the bytes over a step, in the demo model's shape,
/// and with one query row per KV head.
fn figure(pool: &dyn Parallel) {
    let mut context = Context::new(Case { dtype: DType::Bf16, dim: 64, group: 3, tokens: 128 << 10 });
    let bytes = context.case.bytes() as f64;
    let mut ratios = [Vec::new(), Vec::new()];
    let (mut read_rate, mut rate) = (0.0, 0.0);
    for _ in 0..5 {
        for (group, ratios) in [3, 1].into_iter().zip(&mut ratios) {
            context.set_group(group);
            let (step, read) = measure(&mut context, pool);
            ratios.push(read / step);
            if group == 3 {
                (rate, read_rate) = (bytes / step / 1e9, bytes / read / 1e9);
            }
        }
    }
    let [group_3, group_1] = ratios;
    println!(
        "{{\"samples\": {group_3:?}, \"group_1\": {group_1:?}, \"gb_per_s\": {rate:.1}, \
         \"read_gb_per_s\": {read_rate:.1}}}"
    );
}

fn watch(criterion: &mut Criterion, pool: &dyn Parallel) {
    let mut group = criterion.benchmark_group("attend");
    group.sample_size(20).measurement_time(Duration::from_secs(2));
    for dtype in [DType::F32, DType::Bf16, DType::F16] {
        for rows in [1, 4] {
            let mut context = Context::new(Case { dtype, dim: 128, group: rows, tokens: 8 << 10 });
            group.throughput(Throughput::Bytes(context.case.bytes() as u64));
            group.bench_function(BenchmarkId::new(context.case.name(), pool.threads()), |bencher| {
                bencher.iter(|| context.step(pool));
            });
        }
    }
    group.finish();
}

fn main() {
    for dtype in [DType::F32, DType::Bf16, DType::F16] {
        for (dim, group) in [(64, 1), (64, 3), (80, 8), (128, 4)] {
            Context::new(Case { dtype, dim, group, tokens: 4096 }).assert_correct();
        }
    }
    let pool = Pool::new(2);
    if std::env::args().any(|argument| argument == "--figure") {
        return figure(&pool);
    }
    // `cargo test --benches` only checks that it works.
    if std::env::args().any(|argument| argument == "--bench") {
        table(&[&Inline, &pool]);
    }
    let mut criterion = Criterion::default().configure_from_args();
    watch(&mut criterion, &pool);
    criterion.final_summary();
}
