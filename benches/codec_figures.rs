//! Measures FP8 decoding on one core, for `benches/figures.py`: prints one JSON line.
//!
//! `cached_geps` and `memory_geps`: 10^9 elements/s from codes to bfloat16, of rows that fit
//! a level-2 cache and of rows that fit none; `decode_gb_per_s`: the latter as bytes read
//! and written. Beside it, on the same core, what the memory gives: `copy_gb_per_s`, bytes
//! read and written by copying as large a buffer as the values, and `read_gb_per_s`.
#![expect(clippy::print_stdout, reason = "its output is its purpose")]

use std::hint::black_box;
use std::time::Instant;

use stratakv_bench::Rows;
use stratakv_core::codec::decode_rows;
use stratakv_core::dtype::DType;

/// 64 KiB of codes and 128 KiB of values.
const CACHED: usize = 512;
/// 64 MiB of codes and 128 MiB of values.
const FROM_MEMORY: usize = 512 << 10;

fn main() {
    let cached = decode(&Rows::new(DType::Bf16, CACHED), 2000);
    let rows = Rows::new(DType::Bf16, FROM_MEMORY);
    let memory = decode(&rows, 5);
    let mut copied = vec![1_u8; rows.elements.len()];
    let bytes = copied.len() as f64;
    let copy = fastest(5, || black_box(&mut copied).copy_from_slice(black_box(&rows.elements)));
    let words: Vec<u64> = vec![1; rows.elements.len() / 8];
    let read = fastest(5, || {
        black_box(black_box(&words).iter().fold(0_u64, |sum, word| sum.wrapping_add(*word)));
    });
    println!(
        "{{\"cached_geps\": {}, \"memory_geps\": {}, \"decode_gb_per_s\": {}, \"copy_gb_per_s\": {}, \
         \"read_gb_per_s\": {}}}",
        cached / 1e9,
        memory / 1e9,
        memory * 3.0 / 1e9,
        2.0 * bytes / copy / 1e9,
        bytes / read / 1e9,
    );
}

/// Elements/s of the fastest of `rounds`.
fn decode(rows: &Rows, rounds: usize) -> f64 {
    let mut out = vec![1; rows.elements.len()];
    let seconds = fastest(rounds, || {
        decode_rows(rows.shape.dim, &rows.scales, &rows.codes, DType::Bf16, black_box(&mut out));
    });
    rows.codes.len() as f64 / seconds
}

/// Seconds of the fastest of `rounds`.
fn fastest(rounds: usize, mut work: impl FnMut()) -> f64 {
    work();
    let mut best = f64::INFINITY;
    for _ in 0..rounds {
        let started = Instant::now();
        work();
        best = best.min(started.elapsed().as_secs_f64());
    }
    best
}
