//! Measures memories from below, for `benches/bench_engram.py`: prints one JSON line.
//!
//! `engram-figures fill DIRECTORY COUNT USERS`  durable memories per second, in batches of 1,000
//! `engram-figures open DIRECTORY`              seconds to open and find something by words
//! `engram-figures recall DIRECTORY USERS`      milliseconds of recalls by words and vector, one by one
//! `engram-figures index DIRECTORY`             seconds to build the graph, and its recall of the exact ten
#![expect(clippy::print_stdout, reason = "its output is its purpose")]

use std::path::Path;
use std::time::Instant;

use stratakv_core::memory::{Draft, Engram, EngramConfig, Progress, Query, Scope, Weights};
use stratakv_core::testing::Seeded;
use stratakv_core::{Error, Result};

/// That of the offline embedder.
const DIMENSION: usize = 384;
const BATCH: usize = 1000;
/// Words of the made-up language. The n-th is as rare as in a text (Zipf) of which the stop words,
/// the most frequent hundred, are gone.
const WORDS: u64 = 20_000;
const STOP_WORDS: u64 = 100;
const WORDS_PER_TEXT: u64 = 14;
/// Memories are about so many things: vectors of one thing are near each other.
const TOPICS: u64 = 500;
const QUERIES: u64 = 200;
const SESSION_TURNS: u64 = 20;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize| arguments.get(at).and_then(|text| text.parse().ok()).unwrap_or(1_u64);
    let [what, directory, ..] = &arguments[..] else {
        return Err(Error::Invalid("what and a directory are needed".into()));
    };
    let directory = Path::new(directory);
    let line = match what.as_str() {
        "fill" => fill(directory, number(2) as usize, number(3))?,
        "open" => open_time(directory)?,
        "recall" => recall(directory, number(2))?,
        "index" => index(directory)?,
        other => return Err(Error::Invalid(format!("{other:?} is none of fill, open, recall, index"))),
    };
    println!("{line}");
    Ok(())
}

fn open(directory: &Path, exact_rows_max: Option<usize>) -> Result<Engram> {
    let mut config =
        EngramConfig { embedder: Some(("figures".into(), DIMENSION)), ..EngramConfig::default() };
    config.exact_rows_max = exact_rows_max.unwrap_or(config.exact_rows_max);
    Engram::open(directory, config)
}

fn scope(user: u64) -> Result<Scope> {
    Scope::user(format!("user {user}"))
}

/// A word's number; the logarithm of its rank, stop words included, is even.
fn word(random: &mut Seeded) -> u64 {
    let even = random.below(1 << 20) as f64 / f64::from(1 << 20);
    let (first, last) = (STOP_WORDS as f64, (STOP_WORDS + WORDS) as f64);
    (first * (last / first).powf(even)) as u64 - STOP_WORDS
}

fn text(random: &mut Seeded, words: u64) -> String {
    let words: Vec<String> = (0..words).map(|_| format!("w{}x", word(random))).collect();
    words.join(" ")
}

/// A direction near that of its topic.
fn vector(random: &mut Seeded) -> Vec<f32> {
    let mut topic = Seeded::new(random.below(TOPICS));
    let even = |random: &mut Seeded| random.below(2001) as f32 / 1000.0 - 1.0;
    (0..DIMENSION).map(|_| even(&mut topic) + 1.2 * even(random)).collect()
}

fn fill(directory: &Path, count: usize, users: u64) -> Result<String> {
    let engram = open(directory, None)?;
    let mut random = Seeded::new(1);
    let (mut stored, mut seconds) = (0, 0.0);
    while stored < count {
        let size = BATCH.min(count - stored);
        let drafts: Vec<Draft> = (0..size)
            .map(|_| Draft {
                vector: Some(vector(&mut random)),
                ..Draft::new(text(&mut random, WORDS_PER_TEXT))
            })
            .collect();
        let user = (stored / BATCH) as u64 % users;
        let session = format!("s{}", stored as u64 / BATCH as u64 / SESSION_TURNS);
        let names = stratakv_core::memory::Names { session: Some(session), ..Default::default() };
        let scope = Scope::new(format!("user {user}"), names)?;
        let start = Instant::now();
        engram.remember(&scope, &drafts)?;
        seconds += start.elapsed().as_secs_f64();
        stored += size;
    }
    engram.close()?;
    Ok(format!("{{\"sample\": {}}}", count as f64 / seconds))
}

fn open_time(directory: &Path) -> Result<String> {
    let start = Instant::now();
    let engram = open(directory, None)?;
    let hits = engram.recall(&scope(0)?, &Query::new("w7x w80x", 5))?;
    let seconds = start.elapsed().as_secs_f64();
    if hits.len() < 5 {
        return Err(Error::Invalid(format!("{} memories were found, expected 5", hits.len())));
    }
    Ok(format!("{{\"sample\": {seconds}}}"))
}

fn query(random: &mut Seeded, k: usize) -> Query {
    Query { vector: Some(vector(random)), ..Query::new(text(random, 6), k) }
}

fn recall(directory: &Path, users: u64) -> Result<String> {
    let engram = open(directory, None)?;
    let mut random = Seeded::new(2);
    let mut times = Vec::new();
    for number in 0..users + QUERIES {
        let (scope, query) = (scope(number % users)?, query(&mut random, 10));
        let start = Instant::now();
        let hits = engram.recall(&scope, &query)?;
        let millis = start.elapsed().as_secs_f64() * 1e3;
        if hits.len() < 10 {
            return Err(Error::Invalid(format!("{} memories were found, expected 10", hits.len())));
        }
        // The first call of a user reads the memories.
        if number >= users {
            times.push(millis);
        }
    }
    Ok(format!("{{\"samples\": {times:?}}}"))
}

fn index(directory: &Path) -> Result<String> {
    let start = Instant::now();
    let engram = open(directory, None)?;
    let scope = scope(0)?;
    while let Progress { done, total } = engram.optimize(&scope)?
        && done < total
    {}
    let seconds = start.elapsed().as_secs_f64();
    let nearest = |engram: &Engram| -> Result<Vec<Vec<u64>>> {
        let mut random = Seeded::new(3);
        let weights = Weights { cosine_window: 1.0, ..Weights::NOTHING };
        (0..QUERIES / 2)
            .map(|_| {
                let query = Query { text: None, weights, ..query(&mut random, 10) };
                Ok(engram.recall(&scope, &query)?.iter().map(|hit| hit.memory.id).collect())
            })
            .collect()
    };
    let found = nearest(&engram)?;
    engram.close()?;
    drop(engram);
    let exact = nearest(&open(directory, Some(usize::MAX))?)?;
    let common =
        |(found, exact): (&Vec<u64>, &Vec<u64>)| exact.iter().filter(|id| found.contains(id)).count();
    let total: usize = exact.iter().map(Vec::len).sum();
    let recall = found.iter().zip(&exact).map(common).sum::<usize>() as f64 / total as f64;
    Ok(format!("{{\"sample\": {recall}, \"build_seconds\": {seconds:.1}}}"))
}
