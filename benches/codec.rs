//! The codecs on one core: FP8 codes to bfloat16, in cache and from memory; rows encoded,
//! and restored from both planes.
//!
//! First every level is compared with the scalar twin. The published figure comes from
//! `codec_figures.rs`, which measures the memory's own rate beside it.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};
use stratakv_bench::Rows;
use stratakv_core::codec::{decode_rows, encode_rows, restore_rows};
use stratakv_core::dtype::DType;

/// Rows whose codes and bfloat16 values fit a level-2 cache: 64 KiB and 128 KiB.
const CACHED: usize = 512;
/// Rows that fit no cache: 64 MiB and 128 MiB.
const FROM_MEMORY: usize = 512 << 10;

fn codes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("codec");
    group.sample_size(20).measurement_time(Duration::from_secs(1)).warm_up_time(Duration::from_millis(300));
    for (place, count) in [("cached", CACHED), ("memory", FROM_MEMORY)] {
        let rows = Rows::new(DType::Bf16, count);
        let mut out = vec![0; rows.elements.len()];
        group.throughput(Throughput::Elements(rows.codes.len() as u64));
        group.bench_function(BenchmarkId::new("decode to bfloat16", place), |bencher| {
            bencher.iter(|| {
                decode_rows(rows.shape.dim, &rows.scales, &rows.codes, DType::Bf16, black_box(&mut out));
            });
        });
    }
    for dtype in [DType::Bf16, DType::F16] {
        let mut rows = Rows::new(dtype, CACHED);
        let mut out = vec![0; rows.elements.len()];
        group.throughput(Throughput::Elements(rows.codes.len() as u64));
        group.bench_function(BenchmarkId::new("restore", dtype), |bencher| {
            let Rows { shape, scales, codes, residual, .. } = &rows;
            bencher.iter(|| restore_rows(*shape, scales, codes, residual, dtype, black_box(&mut out)));
        });
        group.bench_function(BenchmarkId::new("encode", dtype), |bencher| {
            let Rows { shape, elements, scales, codes, residual } = &mut rows;
            bencher.iter(|| encode_rows(*shape, black_box(elements), scales, codes, residual));
        });
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    codes(&mut criterion);
    criterion.final_summary();
}
