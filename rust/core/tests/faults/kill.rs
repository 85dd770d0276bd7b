//! A writing process is killed at random instants; the next one finds what was saved.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use stratakv_core::session::SessionImage;
use stratakv_core::store::{Store, StoreConfig};
use stratakv_core::testing::Seeded;

use crate::common::{effort, image, missing, save};

const DIRECTORY: &str = "STRATAKV_TEST_KILL_DIRECTORY";
const ROUND: &str = "STRATAKV_TEST_KILL_ROUND";

fn config(directory: &Path) -> StoreConfig {
    StoreConfig { free_floor_bytes: 0, ..StoreConfig::on_disk(1 << 20, directory) }
}

/// Not a test of its own: what the killed process does.
#[test]
fn child_process() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    let round: u32 = std::env::var(ROUND).unwrap().parse().unwrap();
    let store = Store::open(&config(Path::new(&directory))).unwrap();
    let mut out = std::io::stdout();
    writeln!(out).unwrap(); // ends what the test harness began
    for step in 0.. {
        let name = format!("s{}", step % 5);
        let base = (round * 37 + step / 5) % 1000;
        let pages = 1 + step % 7;
        writeln!(out, "save {name} {base} {pages}").unwrap();
        save(&store, &image(&name, base, pages)).unwrap();
        writeln!(out, "saved {name} {base} {pages}").unwrap();
        if step % 6 == 5 {
            let gone = format!("s{}", step % 4);
            writeln!(out, "remove {gone} 0 0").unwrap();
            if store.remove_session(&gone).is_ok() {
                writeln!(out, "removed {gone} 0 0").unwrap();
            }
            store.gc().unwrap();
        }
    }
}

/// Applies one line of the child's to what each name may stand for.
fn follow(allowed: &mut BTreeMap<String, Vec<Option<SessionImage>>>, line: &str) {
    let words: Vec<_> = line.split(' ').collect();
    let [verb, name, base, pages] = words[..] else { return };
    let states = allowed.entry(name.to_owned()).or_insert_with(|| vec![None]);
    let meant = image(name, base.parse().unwrap(), pages.parse().unwrap());
    match verb {
        "save" => states.push(Some(meant)),
        "saved" => *states = vec![Some(meant)],
        "remove" => states.push(None),
        "removed" => *states = vec![None],
        _ => {}
    }
}

#[test]
fn killed_at_random_instants() {
    let seed = std::env::var("STRATAKV_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
    println!("STRATAKV_TEST_SEED={seed}");
    let mut random = Seeded::new(seed);
    let directory = tempfile::tempdir().unwrap();
    let mut allowed = BTreeMap::new();
    let mut saves = 0;
    for round in 0..100 * effort() {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["kill::child_process", "--exact", "--nocapture"])
            .env(DIRECTORY, directory.path())
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
        // The last line may be cut off; then the one before says what was begun.
        let whole = said.rfind('\n').map_or("", |end| &said[..end]);
        for line in whole.lines() {
            follow(&mut allowed, line);
            saves += u64::from(line.starts_with("saved"));
        }
        let store = Store::open(&config(directory.path())).unwrap();
        for (name, states) in &mut allowed {
            let found = store.load_session(name).ok();
            assert!(states.contains(&found), "round {round}: {name} is none of {} states", states.len());
            if let Some(found) = &found {
                assert_eq!(missing(&store, found).unwrap(), 0, "round {round}: {name} lacks pages");
            }
            *states = vec![found];
        }
    }
    assert!(saves > 10, "only {saves} saves");
}
