//! A process that remembers is killed at random instants; nothing acknowledged is lost.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use stratakv_core::memory::{Draft, Engram, EngramConfig, Scope, When};
use stratakv_core::testing::Seeded;

use crate::common::effort;

const DIRECTORY: &str = "STRATAKV_TEST_ENGRAM_DIRECTORY";
const ROUND: &str = "STRATAKV_TEST_ENGRAM_ROUND";

fn open(directory: &Path) -> Engram {
    let config =
        EngramConfig { embedder: Some(("test".into(), 16)), checkpoint_after: 50, ..EngramConfig::default() };
    Engram::open(directory, config).unwrap()
}

fn scope() -> Scope {
    Scope::user("ana").unwrap()
}

/// Not a test of its own: what the killed process does.
#[test]
fn child_process() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    let round = std::env::var(ROUND).unwrap();
    let engram = open(Path::new(&directory));
    let mut out = std::io::stdout();
    writeln!(out).unwrap(); // ends what the test harness began
    for step in 0.. {
        let texts: Vec<String> = (0..=step % 4).map(|part| format!("r{round}s{step}p{part}")).collect();
        let draft = |text: &String| Draft { vector: Some(vec![1.5; 16]), ..Draft::new(text) };
        let ids = engram.remember(&scope(), &texts.iter().map(draft).collect::<Vec<_>>()).unwrap();
        for (id, text) in ids.iter().zip(&texts) {
            writeln!(out, "has {id} {text}").unwrap();
        }
        if step % 9 == 8 {
            writeln!(out, "forgets {} -", ids[0]).unwrap();
            engram.forget(&scope(), &ids[..1]).unwrap();
            writeln!(out, "forgot {} -", ids[0]).unwrap();
        }
    }
}

#[test]
fn killed_at_random_instants() {
    let seed = std::env::var("STRATAKV_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
    println!("STRATAKV_TEST_SEED={seed}");
    let mut random = Seeded::new(seed);
    let directory = tempfile::tempdir().unwrap();
    let mut acknowledged: BTreeMap<u64, String> = BTreeMap::new();
    let mut total = 0;
    for round in 0..30 * effort() {
        let said = killed(directory.path(), round, &mut random);
        let mut uncertain = Vec::new();
        for line in said.lines() {
            let words: Vec<_> = line.split(' ').collect();
            let [verb, id, text] = words[..] else { continue };
            let Ok(id) = id.parse() else { continue };
            match verb {
                "has" => drop(acknowledged.insert(id, text.to_owned())),
                "forgets" => uncertain.push(id),
                "forgot" => drop(acknowledged.remove(&id)),
                _ => {}
            }
        }
        let engram = open(directory.path());
        let anything = Some(When { as_of: None, known_at: 0, any: true });
        let found = engram.list(&scope(), anything, 0, usize::MAX).unwrap();
        let found: BTreeMap<u64, String> = found.into_iter().map(|memory| (memory.id, memory.text)).collect();
        for (id, text) in &acknowledged {
            let there = found.get(id);
            assert!(
                there == Some(text) || (there.is_none() && uncertain.contains(id)),
                "round {round}: {id} is {there:?}"
            );
        }
        total = total.max(acknowledged.len());
        acknowledged = found;
        engram.close().unwrap();
    }
    assert!(total > 10, "only {total} memories");
}

/// What a child said before it was killed, whole lines only.
fn killed(directory: &Path, round: u64, random: &mut Seeded) -> String {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["engram_kill::child_process", "--exact", "--nocapture"])
        .env(DIRECTORY, directory)
        .env(ROUND, round.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(20 + random.below(130)));
    child.kill().unwrap();
    child.wait().unwrap();
    let (mut said, mut complained) = (String::new(), String::new());
    child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut complained).unwrap();
    assert!(!complained.contains("panicked"), "round {round}: {complained}");
    said.truncate(said.rfind('\n').unwrap_or(0));
    said
}
