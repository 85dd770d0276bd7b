//! The graph of vectors, where every vector is looked at only up to a few memories.

use super::*;
use crate::io::Disk;
use crate::testing::Seeded;

fn open_small(disk: &MemoryDisk) -> Engram {
    let config = EngramConfig { exact_rows_max: 10, checkpoint_after: 20, ..config() };
    Engram::open_on(Arc::new(disk.clone()), config).unwrap()
}

fn fill(engram: &Engram, scope: &Scope, count: usize, seed: u64) {
    let mut random = Seeded::new(seed);
    let mut value = || (random.below(2001) as f32 - 1000.0) / 1000.0;
    let drafts: Vec<Draft> = (0..count)
        .map(|number| {
            let vector = (0..DIMENSION).map(|_| value()).collect();
            Draft { vector: Some(vector), ..Draft::new(format!("fact {number} of seed {seed}")) }
        })
        .collect();
    engram.remember(scope, &drafts).unwrap();
}

fn build(engram: &Engram, scope: &Scope) {
    while let Progress { done, total } = engram.optimize(scope).unwrap()
        && done < total
    {}
}

fn query(seed: u64, k: usize) -> Query {
    let mut random = Seeded::new(seed);
    let vector = (0..DIMENSION).map(|_| random.below(2001) as f32 - 1000.0).collect();
    Query { text: None, vector: Some(vector), ..Query::new("", k) }
}

fn ids(hits: &[Hit]) -> Vec<u64> {
    hits.iter().map(|hit| hit.memory.id).collect()
}

/// How many of the exact ten the graph finds, over some queries.
fn recall_of(exact: &Engram, graph: &Engram, scope: &Scope) -> f64 {
    let mut found = 0;
    for seed in 0..50 {
        let expected = ids(&exact.recall(scope, &query(seed, 10)).unwrap());
        let got = ids(&graph.recall(scope, &query(seed, 10)).unwrap());
        assert_eq!(got.len(), 10);
        found += expected.iter().filter(|id| got.contains(id)).count();
    }
    f64::from(found as u32) / 500.0
}

#[test]
fn the_graph_finds_what_the_scan_finds() {
    let (disk, ana) = (MemoryDisk::new(), scope("ana"));
    let engram = open_small(&disk);
    fill(&engram, &ana, 2000, 1);
    let exact = open(&disk);
    build(&engram, &ana);
    assert!(recall_of(&exact, &engram, &ana) > 0.97);
    drop(engram);
    // As it is read back, with memories that came later.
    let engram = open_small(&disk);
    fill(&engram, &ana, 7, 2);
    let exact = open(&disk);
    assert!(recall_of(&exact, &engram, &ana) > 0.97);
    let last = exact.get(&ana, 2007).unwrap();
    let own = Query { vector: Some(last.vector), ..query(0, 1) };
    assert_eq!(ids(&engram.recall(&ana, &own).unwrap()), [2007]);
    // Words find what is not near.
    let query = Query { text: Some("fact 77".into()), ..query(3, 1) };
    assert_eq!(ids(&engram.recall(&ana, &query).unwrap()), ids(&exact.recall(&ana, &query).unwrap()));
}

#[test]
fn filters_come_before_ranking() {
    let (disk, ana) = (MemoryDisk::new(), scope("ana"));
    let engram = open_small(&disk);
    fill(&engram, &ana, 600, 1);
    let shop = Scope::new("ana", names(Some("shop"), None)).unwrap();
    fill(&engram, &shop, 15, 2);
    for id in 1..=590 {
        engram.end(&ana, id, FOREVER - 1).unwrap();
    }
    build(&engram, &ana);
    let hits = engram.recall(&shop, &query(5, 12)).unwrap();
    assert_eq!(hits.len(), 12, "as many as are asked for, since there are so many");
    assert!(hits.iter().all(|hit| hit.memory.names == *shop.names()));
    assert_eq!(engram.recall(&ana, &query(5, 100)).unwrap().len(), 100);
}

#[test]
fn the_files_of_vectors_outlive_no_memory() {
    let (disk, ana) = (MemoryDisk::new(), scope("ana"));
    let engram = open_small(&disk);
    fill(&engram, &ana, 100, 1);
    build(&engram, &ana);
    let files = |end: &str| {
        let all = disk.list("users").unwrap();
        all.into_iter().map(|entry| entry.name).filter(|name| name.ends_with(end)).collect::<Vec<_>>()
    };
    assert_eq!((files(".graph").len(), files(".vec").len(), files(".idx").len()), (1, 1, 1));
    engram.forget(&ana, &[50]).unwrap();
    assert_eq!((files(".graph").len(), files(".vec").len(), files(".idx").len()), (0, 0, 0));
    assert_eq!(engram.recall(&ana, &query(1, 10)).unwrap().len(), 10);
}

/// A damaged file of vectors would crash the library, or rank wrongly: it is not used.
#[test]
fn damaged_files_of_vectors_are_not_used() {
    let (disk, ana) = (MemoryDisk::new(), scope("ana"));
    let engram = open_small(&disk);
    fill(&engram, &ana, 60, 1);
    build(&engram, &ana);
    engram.close().unwrap();
    let expected = open(&disk).recall(&ana, &query(1, 10)).unwrap();
    let mut random = Seeded::new(9);
    for entry in disk.list("users").unwrap() {
        if is_kind(&entry.name, "log") {
            continue;
        }
        for _ in 0..200 {
            let disk = disk.crash(0);
            disk.rot(&entry.name, random.below(entry.len * 8)).unwrap();
            let hits = open_small(&disk).recall(&ana, &query(1, 10)).unwrap();
            assert_eq!(ids(&hits), ids(&expected), "{}", entry.name);
        }
    }
}

/// A record that is lost shifts the rows behind it: saved vectors are not theirs any more.
#[test]
fn saved_vectors_follow_their_memories() {
    let (disk, ana) = (MemoryDisk::new(), scope("ana"));
    let engram = open_small(&disk);
    fill(&engram, &ana, 60, 1);
    build(&engram, &ana);
    engram.close().unwrap();
    let names: Vec<_> = disk.list("users").unwrap().into_iter().map(|entry| entry.name).collect();
    let name = |end: &str| names.iter().find(|name| name.ends_with(end)).unwrap();
    disk.rot(name(".log"), (crate::format::LOG_RECORDS_AT + 40) * 8).unwrap();
    disk.remove(name(".idx")).unwrap();
    let engram = open_small(&disk);
    fill(&engram, &ana, 1, 2);
    let memory = engram.get(&ana, 30).unwrap();
    let own = Query { vector: Some(memory.vector), ..query(0, 1) };
    assert_eq!(ids(&engram.recall(&ana, &own).unwrap()), [30]);
}
