#!/usr/bin/env bash
# Builds the fuzz targets on the stable toolchain and runs each for its share of SECONDS.
#   rust/fuzz/run.sh [SECONDS=60]
# Inputs that fail are left in fuzz/artifacts; the corpora grow in fuzz/corpus.
set -euo pipefail
seconds=${1:-60}
cd "$(dirname "$0")/../.."

export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/fuzz
# Only with a --target do the flags spare build scripts and procedural macros.
host=$(rustc -vV | sed -n 's/^host: //p')
coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares"
RUSTFLAGS="$coverage -Ccodegen-units=1 -Cdebug-assertions --cfg fuzzing" \
    cargo build --locked --quiet --release --target "$host" -p stratakv-fuzz \
    --config profile.release.lto=false \
    --bin fuzz_segment --bin fuzz_session --bin fuzz_recovery --bin fuzz_memory
# The seeds need no instrumentation, and their program has no fuzzer to feed it.
cargo run --locked --quiet -p stratakv-fuzz --bin fuzz_seeds -- fuzz/corpus

targets=(fuzz_segment fuzz_session fuzz_recovery fuzz_memory)
for target in "${targets[@]}"; do
    mkdir -p fuzz/artifacts fuzz/corpus/"$target"
    echo "$target: $((seconds / ${#targets[@]})) s" >&2
    "$CARGO_TARGET_DIR/$host/release/$target" fuzz/corpus/"$target" \
        -max_total_time=$((seconds / ${#targets[@]})) -artifact_prefix=fuzz/artifacts/"$target"- \
        -max_len=65536 -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 -verbosity=0
done
