//! Nothing of what is forgotten is in any file: no text, no word, no vector, no note of it.

use super::*;
use crate::dtype::f32_to_f16;
use crate::format::{LOG_RECORDS_AT, Record};
use crate::io::Disk;
use crate::memory::vectors::direction;

/// Contents of all files.
fn contents(disk: &MemoryDisk) -> Vec<(String, Vec<u8>)> {
    let entries = ["", "users"].into_iter().flat_map(|dir| disk.list(dir).unwrap());
    let files = entries.filter(|entry| entry.is_file);
    files.map(|entry| (entry.name.clone(), disk.content(&entry.name).unwrap())).collect()
}

/// The files that have these bytes.
fn holders(disk: &MemoryDisk, bytes: &[u8]) -> Vec<String> {
    let has = |content: &[u8]| content.windows(bytes.len()).any(|some| some == bytes);
    contents(disk).into_iter().filter(|(_, content)| has(content)).map(|(name, _)| name).collect()
}

/// A vector that no other memory has, as it is stored.
fn secret_vector() -> Vec<f32> {
    (0..DIMENSION).map(|at| 0.3 + 0.17 * at as f32).collect()
}

fn stored_vector() -> Vec<u8> {
    secret_vector().iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn stored_direction() -> Vec<u8> {
    direction(&secret_vector()).iter().flat_map(|value| f32_to_f16(*value).to_le_bytes()).collect()
}

/// Thirty memories, one of them secret and ended, with a checkpoint, vectors and a graph.
fn filled(disk: &MemoryDisk) -> (Engram, Scope, u64) {
    let config = EngramConfig { checkpoint_after: 5, exact_rows_max: 10, ..config() };
    let engram = Engram::open_on(Arc::new(disk.clone()), config).unwrap();
    let ana = scope("ana");
    let others: Vec<Draft> = (0..29).map(|number| with_vector(&format!("fact {number}"), number)).collect();
    engram.remember(&ana, &others).unwrap();
    let secret = Draft {
        vector: Some(secret_vector()),
        metadata: "marimba".into(),
        source: Some("vibraphone".into()),
        author: Some("Celesta".into()),
        ..Draft::new("the xylophone is hidden")
    };
    let id = engram.remember(&ana, &[secret]).unwrap()[0];
    engram.end(&ana, id, FOREVER - 1).unwrap();
    while let Progress { done, total } = engram.optimize(&ana).unwrap()
        && done < total
    {}
    (engram, ana, id)
}

#[test]
fn no_file_has_a_byte_of_it() {
    let disk = MemoryDisk::new();
    let (engram, ana, id) = filled(&disk);
    let secrets: [Vec<u8>; 7] = [
        b"xylophon".to_vec(), // its stem is in the checkpoint
        b"marimba".to_vec(),
        b"vibraphone".to_vec(),
        b"Celesta".to_vec(),
        stored_vector(),
        stored_direction(),
        b"hidden".to_vec(),
    ];
    for secret in &secrets {
        assert!(!holders(&disk, secret).is_empty(), "what is looked for was there: {secret:?}");
    }
    assert!(holders(&disk, &stored_direction()).len() > 1, "in the file of vectors and in the graph");
    engram.forget(&ana, &[id]).unwrap();
    // And after everything that is derived was made again.
    let rebuilt = |engram: &Engram| {
        let query = Query { vector: Some(along(1)), ..Query::new("fact", 5) };
        engram.recall(&ana, &query).unwrap();
        while let Progress { done, total } = engram.optimize(&ana).unwrap()
            && done < total
        {}
        engram.close().unwrap();
    };
    for rebuild in [false, true] {
        if rebuild {
            rebuilt(&engram);
        }
        for secret in &secrets {
            assert_eq!(holders(&disk, secret), [""; 0], "{:?}", String::from_utf8_lossy(secret));
        }
        assert!(!contents(&disk).iter().any(|(name, _)| is_kind(name, "tmp")));
    }
}

/// The log is that of the memories that are left: no note tells that there was another.
#[test]
fn no_note_tells_of_it() {
    let disk = MemoryDisk::new();
    let (engram, ana, id) = filled(&disk);
    engram.forget(&ana, &[id]).unwrap();
    let left = engram.list(&ana, None, 0, 99).unwrap();
    assert_eq!(left.len(), 29);
    let (_, log) = contents(&disk).into_iter().find(|(name, _)| is_kind(name, "log")).unwrap();
    let size = |memory: &Memory| {
        let draft = Draft { vector: Some(memory.vector.clone()), ..Draft::new(&memory.text) };
        let stored = draft.stored(&memory.names, 0, Some(DIMENSION)).unwrap();
        Record::Memory { id: memory.id, stored }.encode(0, 0).len()
    };
    assert_eq!(log.len(), LOG_RECORDS_AT as usize + left.iter().map(size).sum::<usize>());
    // Its number is not given again: who kept it is told that there is nothing.
    assert_eq!(engram.remember(&ana, &[Draft::new("new")]).unwrap(), [id + 1]);
    let error = engram.get(&ana, id).unwrap_err().to_string();
    assert!(error.contains("\"ana\"") && !error.contains("xylophone"), "{error}");
}

/// A record that a scan steps over is in no row, and goes with the next rewrite all the same.
#[test]
fn what_was_damaged_goes_with_it() {
    let disk = MemoryDisk::new();
    let (engram, ana, id) = filled(&disk);
    let place = {
        let (_, log) = contents(&disk).into_iter().find(|(name, _)| is_kind(name, "log")).unwrap();
        log.windows(9).position(|some| some == b"xylophone").unwrap()
    };
    let log = disk.list("users").unwrap().into_iter().find(|entry| is_kind(&entry.name, "log")).unwrap();
    drop(engram);
    for end in ["idx", "vec", "graph"] {
        let name = log.name.replace("log", end);
        disk.remove(&name).unwrap();
    }
    // The last letter, so that the rest would be found.
    disk.rot(&log.name, (place as u64 + 8) * 8).unwrap();
    let engram = open(&disk);
    assert!(engram.get(&ana, id).is_err());
    assert_eq!(holders(&disk, b"xylophon").len(), 1);
    engram.forget(&ana, &[1]).unwrap();
    assert_eq!(holders(&disk, b"xylophon"), [""; 0]);
}
