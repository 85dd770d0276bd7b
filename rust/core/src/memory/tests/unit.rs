use super::*;
use crate::Error;

#[test]
fn what_is_remembered_is_found_by_words_and_by_meaning() {
    let disk = MemoryDisk::new();
    let ana = scope("ana");
    {
        let engram = open(&disk);
        let drafts = [
            with_vector("We chose Postgres because of JSONB", 0),
            with_vector("The cat is called Miez", 1),
            with_vector("Deployments happen on Tuesdays", 2),
        ];
        assert_eq!(engram.remember(&ana, &drafts).unwrap(), [1, 2, 3]);
        assert_eq!(
            found(&engram.recall(&ana, &Query::new("choosing postgres", 1)).unwrap()),
            ["We chose Postgres because of JSONB"]
        );
        engram.close().unwrap();
    }
    let engram = open(&disk);
    assert_eq!(
        found(&engram.recall(&ana, &Query::new("deployment", 5)).unwrap()),
        ["Deployments happen on Tuesdays"]
    );
    let query = Query { text: None, vector: Some(along(1)), ..Query::new("", 3) };
    let hits = engram.recall(&ana, &query).unwrap();
    assert_eq!(hits.len(), 3, "as many as there are come back for a vector");
    assert_eq!(hits[0].memory.text, "The cat is called Miez");
    assert!(hits[0].signals.cosine > 0.99 && hits[0].signals.bm25 == 0.0, "{:?}", hits[0].signals);
    assert_eq!(hits[0].memory.vector, along(1));
}

#[test]
fn neighbours_of_a_match_are_found_beside_it() {
    let engram = open(&MemoryDisk::new());
    let session = Scope::new("ana", names(None, Some("monday"))).unwrap();
    for text in ["Where shall we eat?", "Thai would be lovely", "I prefer Italian restaurants", "Fine"] {
        engram.remember(&session, &[Draft::new(text)]).unwrap();
    }
    engram.remember(&scope("ana"), &[Draft::new("Unrelated")]).unwrap();
    let hits = engram.recall(&scope("ana"), &Query::new("restaurant", 5)).unwrap();
    assert_eq!(found(&hits)[0], "I prefer Italian restaurants");
    assert_eq!(hits.len(), 4, "its session, and nothing else");
    assert!(hits[1].signals.bm25 == 0.0 && hits[1].signals.bm25_window > 0.0, "{:?}", hits[1].signals);
}

#[test]
fn what_is_not_accepted() {
    let engram = open(&MemoryDisk::new());
    let ana = scope("ana");
    let refused = |draft: Draft, message: &str| {
        let error = engram.remember(&ana, &[Draft::new("good"), draft]).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    };
    refused(Draft::new(""), "text has 0 bytes, accepted are 1 to 1048576");
    refused(Draft { vector: Some(vec![1.0]), ..Draft::new("x") }, "1 elements, this store's have 8");
    refused(Draft { vector: Some(vec![0.0; 8]), ..Draft::new("x") }, "needs a direction");
    refused(Draft { vector: Some(vec![f32::NAN; 8]), ..Draft::new("x") }, "needs a direction");
    refused(Draft { metadata: "x".repeat(65_537), ..Draft::new("x") }, "metadata has 65537 bytes");
    refused(Draft { valid_from: Some(5), valid_to: Some(5), ..Draft::new("x") }, "valid_to=5 is not after");
    refused(Draft { supersedes: Some(9), ..Draft::new("x") }, "no memory 9 in this scope of \"ana\"");
    assert!(engram.list(&ana, None, 0, 10).unwrap().is_empty(), "nothing of a refused batch is kept");
    for k in [0, RECALL_MAX + 1] {
        let error = engram.recall(&ana, &Query::new("x", k)).unwrap_err().to_string();
        assert!(error.contains("accepted are 1 to 10000"), "{error}");
    }
    let neither = Query { text: None, ..Query::new("", 1) };
    assert!(engram.recall(&ana, &neither).unwrap_err().to_string().contains("a text, a vector, or both"));
}

#[test]
fn vectors_of_two_embedders_do_not_meet() {
    let disk = MemoryDisk::new();
    let open_with = |embedder: Option<(&str, usize)>| {
        let embedder = embedder.map(|(name, dimension)| (name.to_owned(), dimension));
        Engram::open_on(Arc::new(disk.clone()), EngramConfig { embedder, ..EngramConfig::default() })
    };
    let plain = open_with(None).unwrap();
    plain.remember(&scope("ana"), &[Draft::new("before there was an embedder")]).unwrap();
    let error = plain.remember(&scope("ana"), &[with_vector("x", 0)]).unwrap_err().to_string();
    assert!(error.contains("without an embedder"), "{error}");
    drop(plain);
    let first = open_with(Some(("first", DIMENSION))).unwrap();
    first.remember(&scope("ana"), &[with_vector("with one", 0)]).unwrap();
    let query = Query { text: None, vector: Some(along(0)), ..Query::new("", 5) };
    assert_eq!(found(&first.recall(&scope("ana"), &query).unwrap()), ["with one"]);
    drop(first);
    for other in [("second", DIMENSION), ("first", 9)] {
        let Err(error) = open_with(Some(other)) else { panic!("{other:?} was accepted") };
        assert!(matches!(error, Error::EmbedderMismatch { .. }), "{error}");
        assert!(error.to_string().contains("\"first\" (8 elements)"), "{error}");
    }
    let again = open_with(None).unwrap();
    assert_eq!(again.embedder(), Some(("first", DIMENSION)));
}

#[test]
fn a_closed_store_says_so() {
    let engram = open(&MemoryDisk::new());
    engram.close().unwrap();
    engram.close().unwrap();
    let error = engram.recall(&scope("ana"), &Query::new("x", 1)).unwrap_err().to_string();
    assert!(error.contains("closed"), "{error}");
}

#[test]
fn a_second_owner_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let first = Engram::open(directory.path(), config()).unwrap();
    first.remember(&scope("ana"), &[Draft::new("kept")]).unwrap();
    assert!(matches!(Engram::open(directory.path(), config()), Err(Error::Locked { .. })));
    first.close().unwrap();
    let second = Engram::open(directory.path(), config()).unwrap();
    assert_eq!(texts(&second.list(&scope("ana"), None, 0, 9).unwrap()), ["kept"]);
}

#[cfg(unix)]
#[test]
fn files_are_the_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("memory");
    let engram = Engram::open(&root, config()).unwrap();
    engram.remember(&scope("ana"), &[Draft::new("private")]).unwrap();
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&root), mode(&root.join("users"))), (0o700, 0o700));
    for entry in std::fs::read_dir(root.join("users")).unwrap() {
        assert_eq!(mode(&entry.unwrap().path()), 0o600);
    }
    assert_eq!(mode(&root.join("settings")), 0o600);
}

#[test]
fn users_are_told_to_the_owner() {
    let engram = open(&MemoryDisk::new());
    for user in ["zoe", "ana"] {
        engram.remember(&scope(user), &[Draft::new("x")]).unwrap();
    }
    // Asking leaves no trace.
    engram.list(&scope("nobody"), None, 0, 1).unwrap();
    assert_eq!(engram.users().unwrap(), ["ana", "zoe"]);
    assert_eq!(engram.stats(&scope("ana")).unwrap().memories, 1);
}

#[test]
fn a_batch_shares_one_sync() {
    use crate::testing::OpKind;
    let disk = MemoryDisk::new();
    let engram = open(&disk);
    engram.remember(&scope("ana"), &[Draft::new("the file is made")]).unwrap();
    let before = disk.count(Some(OpKind::Sync));
    let drafts: Vec<_> = (0..1000).map(|number| Draft::new(format!("fact {number}"))).collect();
    engram.remember(&scope("ana"), &drafts).unwrap();
    assert_eq!(disk.count(Some(OpKind::Sync)) - before, 1);
    let config = EngramConfig { durable: false, ..config() };
    drop(engram);
    let lazy = Engram::open_on(Arc::new(disk.clone()), config).unwrap();
    let before = disk.count(Some(OpKind::Sync));
    lazy.remember(&scope("ana"), &drafts).unwrap();
    assert_eq!(disk.count(Some(OpKind::Sync)), before);
    lazy.flush().unwrap();
    assert_eq!(disk.count(Some(OpKind::Sync)) - before, 1);
}

#[test]
fn numbers_are_never_given_again() {
    let disk = MemoryDisk::new();
    let engram = open(&disk);
    let ana = scope("ana");
    engram.remember(&ana, &[Draft::new("one"), Draft::new("two")]).unwrap();
    assert_eq!(engram.forget(&ana, &[2]).unwrap(), 1);
    assert_eq!(engram.remember(&ana, &[Draft::new("three")]).unwrap(), [3]);
    engram.forget(&ana, &[3]).unwrap();
    drop(engram);
    assert_eq!(open(&disk).remember(&ana, &[Draft::new("four")]).unwrap(), [4]);
}

/// All bytes of all files, one file after the other.
fn everything_on(disk: &MemoryDisk) -> Vec<u8> {
    use crate::io::Disk;
    let dirs = ["", "users"];
    let entries = dirs.iter().flat_map(|dir| disk.list(dir).unwrap()).filter(|entry| entry.is_file);
    entries.flat_map(|entry| disk.content(&entry.name).unwrap()).collect()
}

fn holds(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[test]
fn what_is_forgotten_is_in_no_file() {
    let disk = MemoryDisk::new();
    let engram = open(&disk);
    let ana = scope("ana");
    let secret = Draft {
        metadata: "{\"where\": \"locker\"}".into(),
        source: Some("whispered".into()),
        ..with_vector("The combination is xylophone zebra", 3)
    };
    engram.remember(&ana, &[with_vector("keep me", 0), secret.clone(), with_vector("and me", 1)]).unwrap();
    engram.remember(&scope("bob"), &[with_vector("bob's own", 2)]).unwrap();
    let query = Query { vector: Some(along(3)), ..Query::new("xylophone", 3) };
    assert_eq!(engram.recall(&ana, &query).unwrap()[0].memory.id, 2);
    let vector: Vec<u8> = along(3).iter().flat_map(|value| value.to_le_bytes()).collect();
    let secrets: [&[u8]; 5] = [b"xylophone", b"zebra", b"locker", b"whispered", &vector];
    assert!(secrets.iter().all(|secret| holds(&everything_on(&disk), secret)));

    assert_eq!(engram.forget(&ana, &[2]).unwrap(), 1);
    let bytes = everything_on(&disk);
    for secret in secrets {
        assert!(!holds(&bytes, secret), "{}", String::from_utf8_lossy(secret));
    }
    for engram in [&engram, &open(&disk)] {
        assert_eq!(texts(&engram.list(&ana, None, 0, 9).unwrap()), ["keep me", "and me"]);
        assert!(engram.recall(&ana, &Query::new("xylophone", 3)).unwrap().is_empty());
        assert!(matches!(engram.get(&ana, 2), Err(Error::NoMemory { id: 2, .. })));
        let hits = engram.recall(&ana, &query).unwrap();
        assert_eq!(hits.len(), 2);
    }
    // And a whole user, with the name.
    assert!(holds(&everything_on(&disk), b"ana"));
    assert_eq!(engram.forget_all(&ana).unwrap(), 2);
    assert!(!holds(&everything_on(&disk), b"ana"));
    assert_eq!(engram.users().unwrap(), ["bob"]);
    assert_eq!(texts(&engram.list(&scope("bob"), None, 0, 9).unwrap()), ["bob's own"]);
}

#[test]
fn a_user_is_erased_with_what_is_damaged() {
    use crate::io::Disk;
    let disk = MemoryDisk::new();
    let ana = scope("ana");
    open(&disk).remember(&ana, &[Draft::new("the xylophone")]).unwrap();
    let log = disk.list("users").unwrap().remove(0).name;
    disk.rot(&log, (crate::format::LOG_RECORDS_AT + 20) * 8).unwrap();
    let engram = open(&disk);
    assert!(engram.list(&ana, None, 0, 9).unwrap().is_empty());
    engram.forget_all(&ana).unwrap();
    assert!(!holds(&everything_on(&disk), b"xylophone"));
}

#[test]
fn what_a_crash_left_of_a_rewrite_is_removed() {
    use crate::io::{Access, Disk, Usage};
    let disk = MemoryDisk::new();
    drop(open(&disk));
    let file = disk.open("users/00.log.tmp", Access::Create, Usage::Metadata).unwrap();
    file.write_at(&[b"half a log"], 0).unwrap();
    drop(open(&disk));
    assert!(disk.list("users").unwrap().is_empty());
}
