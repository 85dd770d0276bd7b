//! Vectors made anew: all or none, whoever stops and whatever happens meanwhile.

use proptest::prelude::*;

use super::*;
use crate::error::Error;
use crate::io::Disk;

/// Elements of the other embedder's vectors.
const OTHER: usize = 5;

fn other() -> (String, usize) {
    ("other".into(), OTHER)
}

/// The other embedder: a direction that tells texts apart.
fn embedded(text: &str) -> Vec<f32> {
    (0..OTHER)
        .map(|at| 1.0 + text.bytes().map(|byte| usize::from(byte) * (at + 1) % 7).sum::<usize>() as f32)
        .collect()
}

fn begin(disk: &MemoryDisk, embedder: &(String, usize)) -> Result<Reembedding, Error> {
    Reembedding::open_on(Arc::new(disk.clone()), embedder)
}

/// Goes on for so many calls; whether all memories have their vectors.
fn advance(reembedding: &mut Reembedding, calls: usize, limit: usize) -> Result<bool, Error> {
    for _ in 0..calls {
        let texts = reembedding.texts(limit)?;
        if texts.is_empty() {
            return Ok(true);
        }
        reembedding.give(texts.iter().map(|text| embedded(text)).collect())?;
    }
    Ok(false)
}

fn reembed(disk: &MemoryDisk, calls: usize) -> Result<bool, Error> {
    let mut reembedding = begin(disk, &other())?;
    let whole = advance(&mut reembedding, calls, 2)?;
    if whole {
        reembedding.finish()?;
    }
    Ok(whole)
}

fn open_as(disk: &MemoryDisk, embedder: (String, usize)) -> Result<Engram, Error> {
    let config = EngramConfig { embedder: Some(embedder), checkpoint_after: 3, ..config() };
    Engram::open_on(Arc::new(disk.clone()), config)
}

fn all(engram: &Engram, user: &str) -> Vec<Memory> {
    let any = When { any: true, ..When::now(FOREVER - 1) };
    engram.list(&scope(user), Some(any), 0, 999).unwrap()
}

/// The same but for the vectors.
fn without_vectors(memories: Vec<Memory>) -> Vec<Memory> {
    memories.into_iter().map(|memory| Memory { vector: Vec::new(), ..memory }).collect()
}

fn renewed_files(disk: &MemoryDisk) -> usize {
    disk.list("users").unwrap().iter().filter(|entry| is_kind(&entry.name, "next")).count()
}

/// Two users, with versions, an end, and one memory without a vector.
fn filled(disk: &MemoryDisk) -> Engram {
    let engram = open_as(disk, ("test".into(), DIMENSION)).unwrap();
    let (ana, bob) = (scope("ana"), scope("bob"));
    let drafts: Vec<Draft> = (0..5).map(|at| with_vector(&format!("fact {at}"), at)).collect();
    engram.remember(&ana, &drafts).unwrap();
    engram.remember(&ana, &[Draft { supersedes: Some(2), ..with_vector("newer", 3) }]).unwrap();
    engram.end(&ana, 4, FOREVER - 5).unwrap();
    engram.remember(&bob, &[with_vector("bob's", 1), Draft::new("bob's words")]).unwrap();
    engram
}

#[test]
fn everything_but_the_vectors_stays() {
    let disk = MemoryDisk::new();
    let before = filled(&disk);
    let memories = ["ana", "bob"].map(|user| without_vectors(all(&before, user)));
    before.close().unwrap();
    assert!(!reembed(&disk, 2).unwrap());
    let mut again = begin(&disk, &other()).unwrap();
    assert_eq!(again.progress(), Progress { done: 4, total: 8 });
    assert!(again.finish().unwrap_err().to_string().contains("4 of 8"));
    assert!(again.give(vec![embedded("x"); 9]).unwrap_err().to_string().contains("9 vectors for"));
    assert!(again.give(vec![vec![1.0; DIMENSION]]).is_err(), "of another dimension");
    assert!(advance(&mut again, 99, 3).unwrap());
    again.finish().unwrap();
    drop(again);
    let error = open_as(&disk, ("test".into(), DIMENSION)).err().unwrap().to_string();
    assert!(error.contains("\"other\" (5 elements)") && error.contains("reembed"), "{error}");
    let after = open_as(&disk, other()).unwrap();
    for (user, memories) in ["ana", "bob"].into_iter().zip(memories) {
        for memory in all(&after, user) {
            assert_eq!(memory.vector, embedded(&memory.text));
        }
        assert_eq!(without_vectors(all(&after, user)), memories);
        assert_eq!(after.stats(&scope(user)).unwrap().damaged, 0);
    }
    let query = Query { text: None, vector: Some(embedded("fact 3")), ..Query::new("", 1) };
    assert_eq!(found(&after.recall(&scope("ana"), &query).unwrap()), ["fact 3"]);
    assert_eq!(renewed_files(&disk), 0);
    // And there is nothing left to do.
    after.close().unwrap();
    assert_eq!(begin(&disk, &other()).unwrap().progress(), Progress { done: 0, total: 0 });
}

#[test]
fn the_same_embedder_makes_what_is_missing() {
    let disk = MemoryDisk::new();
    let before = filled(&disk);
    let vectors: Vec<_> = all(&before, "ana").into_iter().map(|memory| memory.vector).collect();
    let mut missing = begin(&disk, &("test".into(), DIMENSION)).unwrap();
    assert_eq!(missing.progress(), Progress { done: 0, total: 1 });
    assert_eq!(missing.texts(9).unwrap(), ["bob's words"]);
    missing.give(vec![along(6)]).unwrap();
    missing.finish().unwrap();
    let after = open_as(&disk, ("test".into(), DIMENSION)).unwrap();
    assert_eq!(all(&after, "ana").into_iter().map(|memory| memory.vector).collect::<Vec<_>>(), vectors);
    assert_eq!(all(&after, "bob")[1].vector, along(6));
}

#[test]
fn who_changes_back_finds_nothing_changed() {
    let disk = MemoryDisk::new();
    let engram = filled(&disk);
    engram.remember(&scope("ana"), &[with_vector("last", 1)]).unwrap();
    let bob = all(&engram, "bob");
    engram.forget(&scope("bob"), &[2]).unwrap();
    reembed(&disk, 2).unwrap();
    assert!(renewed_files(&disk) > 0);
    assert_eq!(begin(&disk, &("test".into(), DIMENSION)).unwrap().progress().total, 0);
    assert_eq!(renewed_files(&disk), 0);
    assert_eq!(all(&open(&disk), "bob"), bob[..1]);
    // A third embedder does not take the vectors of the one before it.
    reembed(&disk, 2).unwrap();
    let mut third = begin(&disk, &("third".into(), OTHER)).unwrap();
    assert_eq!(third.progress().done, 0);
    while let texts = third.texts(3).unwrap()
        && !texts.is_empty()
    {
        third.give(vec![vec![0.5; OTHER]; texts.len()]).unwrap();
    }
    third.finish().unwrap();
    let after = open_as(&disk, ("third".into(), OTHER)).unwrap();
    assert!(all(&after, "ana").iter().all(|memory| memory.vector == [0.5; OTHER]));
}

#[test]
fn what_is_forgotten_meanwhile_is_in_no_file() {
    for forget_all in [false, true] {
        let disk = MemoryDisk::new();
        let ana = scope("ana");
        let secret = {
            let engram = filled(&disk);
            engram.remember(&ana, &[with_vector("the xylophone", 2)]).unwrap()[0]
        };
        reembed(&disk, 5).unwrap();
        let has = |what: &[u8]| {
            let names = disk.list("users").unwrap().into_iter().map(|entry| entry.name);
            let holds =
                |name: &String| disk.content(name).unwrap().windows(what.len()).any(|some| some == what);
            names.filter(holds).count()
        };
        assert!(has(b"xylophone") >= 2, "in the log and in the one beside it");
        let engram = open(&disk);
        if forget_all { engram.forget_all(&ana) } else { engram.forget(&ana, &[secret]) }.unwrap();
        assert_eq!(has(b"xylophone"), 0);
        drop(engram);
        assert!(reembed(&disk, 99).unwrap());
        assert_eq!(has(b"xylophone"), 0);
    }
}

#[test]
fn a_log_that_came_back_from_elsewhere_is_embedded_anew() {
    let disk = MemoryDisk::new();
    filled(&disk).close().unwrap();
    let logs: Vec<_> =
        disk.list("users").unwrap().into_iter().filter(|entry| is_kind(&entry.name, "log")).collect();
    let old: Vec<_> = logs.iter().map(|entry| disk.content(&entry.name).unwrap()).collect();
    assert!(reembed(&disk, 99).unwrap());
    for (entry, bytes) in logs.iter().zip(&old) {
        let file = disk.open(&entry.name, crate::io::Access::Write, crate::io::Usage::Metadata).unwrap();
        file.write_at(&[bytes], 0).unwrap();
    }
    let error = open_as(&disk, other()).unwrap().stats(&scope("ana")).unwrap_err().to_string();
    assert!(error.contains("reembed"), "{error}");
    assert!(reembed(&disk, 99).unwrap());
    let after = open_as(&disk, other()).unwrap();
    assert!(all(&after, "ana").iter().all(|memory| memory.vector == embedded(&memory.text)));
}

/// What the directory has now, by the embedder that opens it; all vectors are that one's.
fn check_whole(disk: &MemoryDisk, memories: &[Vec<Memory>; 2]) {
    let (engram, is_other) = match open_as(disk, other()) {
        Ok(engram) => (engram, true),
        Err(Error::EmbedderMismatch { .. }) => (open(disk), false),
        Err(error) => panic!("{error}"),
    };
    for (user, memories) in ["ana", "bob"].into_iter().zip(memories) {
        let found = all(&engram, user);
        for (found, memory) in found.iter().zip(memories) {
            let expected = if is_other { embedded(&found.text) } else { memory.vector.clone() };
            assert_eq!(found.vector, expected);
        }
        assert_eq!(without_vectors(found), without_vectors(memories.clone()));
    }
}

/// Power fails at every write there is, and what is left is either embedder's, whole.
#[test]
fn power_may_fail_at_any_step() {
    let full = MemoryDisk::new();
    let memories = {
        let engram = filled(&full);
        engram.close().unwrap();
        ["ana", "bob"].map(|user| all(&engram_again(&full), user))
    };
    let before = full.count(None);
    assert!(reembed(&full, 99).unwrap());
    let steps = full.count(None) - before;
    assert!(steps > 30, "{steps}");
    for step in 0..steps {
        for seed in 0..4 {
            let disk = MemoryDisk::new();
            filled(&disk).close().unwrap();
            // Times of recording differ from run to run: these are of this disk.
            let memories_here = ["ana", "bob"].map(|user| all(&engram_again(&disk), user));
            assert_eq!(memories_here.each_ref().map(Vec::len), memories.each_ref().map(Vec::len));
            disk.power_off_after(None, step);
            let _ = reembed(&disk, 99);
            let disk = disk.crash(seed);
            check_whole(&disk, &memories_here);
            assert!(reembed(&disk, 99).unwrap());
            check_whole(&disk, &memories_here);
            assert!(open_as(&disk, other()).is_ok(), "step {step}");
        }
    }
}

fn engram_again(disk: &MemoryDisk) -> Engram {
    open(disk)
}

#[derive(Clone, Debug)]
enum Step {
    Remember(bool, u8),
    Forget(u8),
    End(u8),
    Reembed(usize),
    Rot(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (any::<bool>(), any::<u8>()).prop_map(|(vector, text)| Step::Remember(vector, text)),
        any::<u8>().prop_map(Step::Forget),
        any::<u8>().prop_map(Step::End),
        (0_usize..4).prop_map(Step::Reembed),
        any::<u8>().prop_map(Step::Rot),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Whatever the first embedder's owner does between two attempts.
    #[test]
    fn what_happens_between_attempts_is_kept(steps in prop::collection::vec(step(), 1..20)) {
        let disk = MemoryDisk::new();
        let ana = scope("ana");
        for step in steps {
            if let Step::Reembed(calls) = step {
                let mut reembedding = begin(&disk, &other()).unwrap();
                advance(&mut reembedding, calls, 2).unwrap();
                continue;
            }
            let engram = open_as(&disk, ("test".into(), DIMENSION)).unwrap();
            let ids: Vec<u64> = all(&engram, "ana").iter().map(|memory| memory.id).collect();
            let pick = |at: u8| ids.get(usize::from(at) % ids.len().max(1)).copied();
            match step {
                Step::Remember(true, text) => drop(engram.remember(&ana, &[with_vector(&format!("t{text}"), 1)])),
                Step::Remember(false, text) => drop(engram.remember(&ana, &[Draft::new(format!("t{text}"))])),
                Step::Forget(at) => drop(pick(at).map(|id| engram.forget(&ana, &[id]).unwrap())),
                Step::End(at) => drop(pick(at).map(|id| engram.end(&ana, id, FOREVER - 1 - i64::from(at)))),
                // A copy that is damaged is made anew.
                Step::Rot(at) => {
                    let names = disk.list("users").unwrap();
                    if let Some(entry) = names.iter().find(|entry| is_kind(&entry.name, "next")) {
                        let bits = disk.content(&entry.name).unwrap().len() as u64 * 8;
                        disk.rot(&entry.name, bits * u64::from(at) / 256).unwrap();
                    }
                }
                Step::Reembed(_) => {}
            }
        }
        let before = without_vectors(all(&open(&disk), "ana"));
        assert!(reembed(&disk, 999).unwrap());
        let after = all(&open_as(&disk, other()).unwrap(), "ana");
        for memory in &after {
            prop_assert_eq!(&memory.vector, &embedded(&memory.text));
        }
        prop_assert_eq!(without_vectors(after), before);
    }
}
