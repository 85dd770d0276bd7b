//! Decode attention over pages: bytes per second beside a plain read of the same bytes.
//!
//! First every case is compared with a plain softmax in float64. Then a table: for each
//! case the median time of a step, the bytes of keys and values per second, and their
//! ratio to one pass that only adds the same bytes up, on the same threads. Criterion
//! follows with the cases worth watching between commits.

#![expect(unsafe_code, reason = "the read that sets the ceiling uses wide vectors as the kernels do")]
#![expect(clippy::print_stdout, reason = "a benchmark reports")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use stratakv_core::attend::{BatchShape, Inline, Pages, Parallel, Plan, Pool, Tile, attend_batch};
use stratakv_core::dtype::DType;
use stratakv_core::simd::SimdLevel;

const PAGE_TOKENS: usize = 64;
const KV_HEADS: usize = 2;
const GROUP_MAX: usize = 8;

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

    fn slice_bytes(&self) -> usize {
        PAGE_TOKENS * 2 * self.dim * self.dtype.size()
    }

    fn shape(&self) -> BatchShape {
        BatchShape { sequences: 1, kv_heads: KV_HEADS, rows: self.group, dk: self.dim, dv: self.dim }
    }
}

/// Pages one after the other, each holding its heads' slices.
struct Context {
    case: Case,
    bytes: Vec<u8>,
    q: Vec<f32>,
}

impl Context {
    fn new(case: Case) -> Self {
        let mut seed = 7_u64;
        let mut random = move || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((seed >> 40) as f32 / (1_u64 << 23) as f32 - 1.0) * 1.7
        };
        // A few thousand different values do: what is measured does not depend on them.
        let mut pattern = vec![0; 4093 * case.dtype.size()];
        for index in 0..4093 {
            case.dtype.write(&mut pattern, index, random());
        }
        let len = case.tokens / PAGE_TOKENS * KV_HEADS * case.slice_bytes();
        let mut bytes = Vec::with_capacity(len + pattern.len());
        while bytes.len() < len {
            bytes.extend_from_slice(&pattern);
        }
        bytes.truncate(len);
        let q = (0..KV_HEADS * case.group * case.dim).map(|_| random() / (case.dim as f32).sqrt()).collect();
        Self { case, bytes, q }
    }

    fn step(&self, plan: &Plan, parallel: &dyn Parallel, scratch: &mut Vec<f32>, out: &mut [u8]) {
        let q = &self.q[..KV_HEADS * self.case.group * self.case.dim];
        attend_batch(plan, &self.case.shape(), q, self, parallel, scratch, out, DType::F32);
    }

    fn plan(&self, threads: usize) -> Plan {
        Plan::new(&[self.case.tokens / PAGE_TOKENS], KV_HEADS, threads)
    }

    fn out(&self) -> Vec<u8> {
        vec![0; KV_HEADS * self.case.group * self.case.dim * 4]
    }

    /// Adds all bytes up as integers, each thread a few runs of its own.
    fn read(&self, parallel: &dyn Parallel) {
        let parts = parallel.threads() * 4;
        let part_len = self.bytes.len() / parts;
        parallel.run(parts, &|part| {
            black_box(add_up(&self.bytes[part * part_len..(part + 1) * part_len]));
        });
    }

    fn assert_correct(&self) {
        let Case { dtype, dim, group, tokens } = self.case;
        let mut out = self.out();
        self.step(&self.plan(2), &Inline, &mut Vec::new(), &mut out);
        for pair in 0..KV_HEADS * group {
            let q = &self.q[pair * dim..(pair + 1) * dim];
            let (mut sum, mut acc) = (0.0_f64, vec![(0.0_f64, 0.0_f64); dim]);
            for token in 0..tokens {
                let tile = self.tile(0, pair / group, token / PAGE_TOKENS);
                let first = token % PAGE_TOKENS * dim;
                let score: f64 = (0..dim)
                    .map(|d| f64::from(q[d]) * f64::from(dtype.read(tile.keys.bytes, first + d)))
                    .sum();
                let weight = score.exp();
                sum += weight;
                for (d, (value, scale)) in acc.iter_mut().enumerate() {
                    let term = weight * f64::from(dtype.read(tile.values.bytes, first + d));
                    *value += term;
                    *scale += term.abs();
                }
            }
            for (d, (value, scale)) in acc.iter().enumerate() {
                let error = (f64::from(DType::F32.read(&out, pair * dim + d)) - value / sum).abs();
                assert!(
                    error <= 2e-6 * scale / sum,
                    "{}: off by {error} of {}",
                    self.case.name(),
                    scale / sum
                );
            }
        }
    }
}

impl Pages for Context {
    fn tile(&self, _: usize, head: usize, page: usize) -> Tile<'_> {
        let Case { dtype, dim, .. } = self.case;
        let len = self.case.slice_bytes();
        let slice = &self.bytes[(page * KV_HEADS + head) * len..][..len];
        Tile::of_page(slice, PAGE_TOKENS, PAGE_TOKENS, dim, dim, dtype)
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

/// Median seconds of two bodies that take turns, so that both see the same machine.
fn measure(mut first: impl FnMut(), mut second: impl FnMut()) -> (f64, f64) {
    let (mut firsts, mut seconds) = (Vec::new(), Vec::new());
    let begin = Instant::now();
    while firsts.len() < 7 || (begin.elapsed() < Duration::from_millis(150) && firsts.len() < 500) {
        for (body, times) in [(&mut first as &mut dyn FnMut(), &mut firsts), (&mut second, &mut seconds)] {
            let start = Instant::now();
            body();
            times.push(start.elapsed().as_secs_f64());
        }
    }
    let median = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    (median(&mut firsts), median(&mut seconds))
}

fn table(pools: &[&dyn Parallel]) {
    println!("kernel: {}", SimdLevel::detect());
    println!(
        "{:30} {:>7} {:>10} {:>8} {:>10} {:>6}",
        "case", "threads", "step", "GB/s", "read GB/s", "ratio"
    );
    for dtype in [DType::F32, DType::Bf16, DType::F16] {
        for dim in [64, 128] {
            for tokens in [8 << 10, 128 << 10] {
                let mut context = Context::new(Case { dtype, dim, group: GROUP_MAX, tokens });
                for group in [1, 3, 4, GROUP_MAX] {
                    context.case.group = group;
                    let (mut scratch, mut out) = (Vec::new(), context.out());
                    for pool in pools {
                        let plan = context.plan(pool.threads());
                        let (step, read) = measure(
                            || context.step(&plan, *pool, &mut scratch, &mut out),
                            || context.read(*pool),
                        );
                        let bytes = context.bytes.len() as f64;
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
    let bytes = context.bytes.len() as f64;
    let mut ratios = [Vec::new(), Vec::new()];
    let (mut read_rate, mut rate) = (0.0, 0.0);
    for _ in 0..5 {
        for (group, ratios) in [3, 1].into_iter().zip(&mut ratios) {
            context.case.group = group;
            let (mut scratch, mut out) = (Vec::new(), context.out());
            let plan = context.plan(pool.threads());
            let (step, read) =
                measure(|| context.step(&plan, pool, &mut scratch, &mut out), || context.read(pool));
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
            let context = Context::new(Case { dtype, dim: 128, group: rows, tokens: 8 << 10 });
            let (mut scratch, mut out) = (Vec::new(), context.out());
            let plan = context.plan(pool.threads());
            group.throughput(Throughput::Bytes(context.bytes.len() as u64));
            group.bench_function(BenchmarkId::new(context.case.name(), pool.threads()), |bencher| {
                bencher.iter(|| context.step(&plan, pool, &mut scratch, &mut out));
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
