//! Eviction policies: hit rates against the optimum, then the cost of a call.
//!
//! `cargo bench -p stratakv-bench --bench policy` asserts the hit rates that the default
//! is chosen for, writes `results/policy_hit_rates.json` and the table in
//! `docs/policies.md`, and measures calls per second. The hit rates are the same on every
//! machine; the speeds are criterion's to report.

use std::fmt::Write as _;
use std::hint::black_box;
use std::path::Path;
use std::{fs, io};

use criterion::{Criterion, Throughput, criterion_group};
use stratakv_core::policy::trace::{self, Trace, hit_rate, optimal_hit_rate, page_key};
use stratakv_core::policy::{PolicyKind, new_policy};

const SEED: u64 = 7;
const CAPACITY_PERCENTS: [usize; 3] = [10, 25, 50];

/// The table in the page lies between these lines; the rest of it is written by hand.
const TABLE_BEGIN: &str = "<!-- hit rates: written by benches/policy.rs -->\n";
const TABLE_END: &str = "<!-- end -->\n";

struct Row {
    trace: &'static str,
    pages: u32,
    reads: usize,
    percent: usize,
    optimum: f64,
    reached: Vec<(PolicyKind, f64)>,
}

fn rows() -> Vec<Row> {
    let row = |trace: &Trace, percent: usize| {
        let capacity = trace.num_pages as usize * percent / 100;
        let reached = PolicyKind::ALL
            .map(|kind| (kind, hit_rate(new_policy(kind, capacity).as_mut(), trace, capacity)))
            .to_vec();
        let reads = trace.accesses.iter().filter(|access| matches!(access, trace::Access::Read(_))).count();
        let optimum = optimal_hit_rate(trace, capacity);
        Row { trace: trace.name, pages: trace.num_pages, reads, percent, optimum, reached }
    };
    let traces = trace::all(SEED);
    traces.iter().flat_map(|trace| CAPACITY_PERCENTS.map(|percent| row(trace, percent))).collect()
}

fn json(rows: &[Row]) -> String {
    let lines: Vec<_> = rows
        .iter()
        .map(|row| {
            let mut line = format!(
                "    {{\"trace\": \"{}\", \"pages\": {}, \"reads\": {}, \"capacity_percent\": {}, \
                 \"optimum\": {:.4}",
                row.trace, row.pages, row.reads, row.percent, row.optimum
            );
            for (kind, rate) in &row.reached {
                let _ = write!(line, ", \"{kind}\": {rate:.4}");
            }
            line + "}"
        })
        .collect();
    format!(
        "{{\n  \"version\": \"{}\",\n  \"seed\": {SEED},\n  \"default\": \"{}\",\n  \"rows\": [\n{}\n  ]\n}}\n",
        env!("CARGO_PKG_VERSION"),
        PolicyKind::default(),
        lines.join(",\n")
    )
}

fn markdown(rows: &[Row]) -> String {
    let mut table = String::from("| trace | capacity |");
    for kind in PolicyKind::ALL {
        let _ = write!(table, " {kind} |");
    }
    table += " optimum |\n|---|--:|";
    table += &"--:|".repeat(PolicyKind::ALL.len() + 1);
    for row in rows {
        let best = row.reached.iter().map(|(_, rate)| *rate).fold(0.0, f64::max);
        let _ = write!(table, "\n| {} | {} % |", row.trace, row.percent);
        for (_, rate) in &row.reached {
            // All that print like the best are bold.
            let bold = if format!("{rate:.3}") == format!("{best:.3}") { "**" } else { "" };
            let _ = write!(table, " {bold}{rate:.3}{bold} |");
        }
        let _ = write!(table, " {:.3} |", row.optimum);
    }
    table + "\n"
}

fn write_report() -> io::Result<()> {
    let rows = rows();
    for row in rows.iter().filter(|row| row.trace == "cyclic") {
        let reached = row.reached.iter().find(|(kind, _)| *kind == PolicyKind::default());
        assert!(
            reached.is_some_and(|(_, rate)| *rate >= 0.99 * row.optimum),
            "the default falls short of the optimum {} on the cyclic scan: {reached:?}",
            row.optimum
        );
    }
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs::create_dir_all(here.join("results"))?;
    fs::write(here.join("results/policy_hit_rates.json"), json(&rows))?;
    let page = here.join("../docs/policies.md");
    let text = fs::read_to_string(&page)?;
    let parts = text
        .split_once(TABLE_BEGIN)
        .and_then(|(head, rest)| rest.split_once(TABLE_END).map(|(_, tail)| (head, tail)));
    let Some((head, tail)) = parts else {
        return Err(io::Error::other(format!("{} has no place for the table", page.display())));
    };
    fs::write(&page, format!("{head}{TABLE_BEGIN}\n{}\n{TABLE_END}{tail}", markdown(&rows)))
}

/// Calls of resident pages: the path that every hit takes.
fn touches(criterion: &mut Criterion) {
    const PAGES: u32 = 100_000;
    let keys: Vec<_> = (0..PAGES).map(page_key).collect();
    let mut group = criterion.benchmark_group("policy/touch");
    group.throughput(Throughput::Elements(1));
    for kind in PolicyKind::ALL {
        let mut policy = new_policy(kind, keys.len());
        for &key in &keys {
            policy.insert(key, 1);
        }
        let mut order = keys.iter().cycle();
        group.bench_function(kind.name(), |bencher| {
            bencher.iter(|| order.next().into_iter().for_each(|&key| policy.touch(black_box(key))));
        });
    }
    group.finish();
}

/// Replays whole traces at a quarter of their pages: hits, misses and evictions as they come.
fn replays(criterion: &mut Criterion) {
    for trace in [trace::cyclic(2000, 10), trace::sparse(SEED)] {
        let capacity = trace.num_pages as usize / 4;
        let mut group = criterion.benchmark_group(format!("policy/{}", trace.name));
        group.throughput(Throughput::Elements(trace.accesses.len() as u64));
        group.sample_size(10);
        for kind in PolicyKind::ALL {
            group.bench_function(kind.name(), |bencher| {
                bencher.iter(|| hit_rate(new_policy(kind, capacity).as_mut(), black_box(&trace), capacity));
            });
        }
        group.finish();
    }
}

criterion_group!(benches, touches, replays);

fn main() -> io::Result<()> {
    write_report()?;
    benches();
    Criterion::default().configure_from_args().final_summary();
    Ok(())
}
