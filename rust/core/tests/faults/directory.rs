//! Directories as users leave them: in use elsewhere, with strange files, with links.
#![cfg(unix)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use stratakv_core::Error;
use stratakv_core::session::SessionImage;
use stratakv_core::store::{Store, StoreConfig};

use crate::common::{image, save, whole};

fn config(directory: &Path) -> StoreConfig {
    StoreConfig { free_floor_bytes: 0, ..StoreConfig::on_disk(1 << 20, directory) }
}

/// A directory with one session, closed.
fn directory() -> (tempfile::TempDir, SessionImage) {
    let directory = tempfile::tempdir().unwrap();
    let kept = image("kept", 1, 3);
    let store = Store::open(&config(directory.path())).unwrap();
    save(&store, &kept).unwrap();
    (directory, kept)
}

#[test]
fn a_second_writer_is_told_who_the_first_is_and_a_stale_lock_is_taken_over() {
    let (directory, kept) = directory();
    let store = Store::open(&config(directory.path())).unwrap();
    let error = Store::open(&config(directory.path())).err().unwrap();
    assert!(matches!(error, Error::Locked { .. }));
    let text = error.to_string();
    assert!(
        text.contains(&format!("process {}", std::process::id())) && text.contains("read-only"),
        "{text}"
    );
    drop(store);
    fs::write(directory.path().join("LOCK"), "process 999999\n").unwrap();
    let store = Store::open(&config(directory.path())).unwrap();
    assert_eq!(whole(&store, "kept"), Some(kept));
}

#[test]
fn strange_files_are_reported_and_left_alone() {
    let (directory, kept) = directory();
    let segments = directory.path().join("segments");
    let sessions = directory.path().join("sessions");
    let mut newer = fs::read(segments.join("0000000000000001.seg")).unwrap();
    newer[8] = 99;
    let strange: [(&Path, &str, &[u8]); 9] = [
        (&segments, "notes.txt", b"not a segment"),
        (&segments, "00000000000000aa.seg", b"SQLite format 3\0 and so on"),
        (&segments, "00000000000000ab.seg", &newer[..4096]),
        (&segments, "ffffffffffffffff.seg", &[9; 5000]),
        (&segments, "+000000000000001.seg", &[9; 5000]),
        (&segments, "00000000000000AC.seg", &[]),
        (&sessions, "notes.txt", b"not a session"),
        (&sessions, "empty.session", b""),
        (&sessions, "text.session", b"this is text, and longer than any preamble of a session would be"),
    ];
    for (dir, name, bytes) in strange {
        fs::write(dir.join(name), bytes).unwrap();
    }
    fs::create_dir(segments.join("00000000000000ad.seg")).unwrap();
    symlink("/etc/passwd", segments.join("00000000000000ae.seg")).unwrap();
    symlink("/etc/passwd", sessions.join("link.session")).unwrap();
    let store = Store::open(&config(directory.path())).unwrap();
    let report = store.recovery_report().join("\n");
    for (_, name, _) in strange {
        assert!(report.contains(name.trim_end_matches(".session")), "{name} is not in the report:\n{report}");
    }
    for name in ["00000000000000ad.seg", "00000000000000ae.seg", "link"] {
        assert!(report.contains(name), "{name} is not in the report:\n{report}");
    }
    assert!(report.contains("format version 99"), "{report}");
    assert_eq!(whole(&store, "kept"), Some(kept.clone()));
    assert_eq!(store.sessions().unwrap().len(), 1);
    let later = image("later", 2, 3);
    save(&store, &later).unwrap();
    store.gc().unwrap();
    drop(store);
    for (dir, name, bytes) in strange {
        assert_eq!(fs::read(dir.join(name)).unwrap(), bytes, "{name}");
    }
    let store = Store::open(&config(directory.path())).unwrap();
    assert_eq!((whole(&store, "kept"), whole(&store, "later")), (Some(kept), Some(later)));
}

#[test]
fn an_unreadable_segment_costs_its_pages_only() {
    let (directory, kept) = directory();
    let store = Store::open(&config(directory.path())).unwrap();
    save(&store, &image("other", 2, 3)).unwrap();
    drop(store);
    let segment = directory.path().join("segments/0000000000000001.seg");
    let aside = directory.path().join("aside");
    fs::rename(&segment, &aside).unwrap();
    fs::create_dir(&segment).unwrap();
    let store = Store::open(&config(directory.path())).unwrap();
    assert!(store.recovery_report()[0].contains("0000000000000001.seg"), "{:?}", store.recovery_report());
    assert!(store.missing_pages("kept").unwrap() > 0);
    whole(&store, "other").unwrap();
    drop(store);
    fs::remove_dir(&segment).unwrap();
    fs::rename(&aside, &segment).unwrap();
    let store = Store::open(&config(directory.path())).unwrap();
    assert_eq!(whole(&store, "kept"), Some(kept));
}

/// What a session of a newer build uses is unknown, so nothing may be deleted beside it.
#[test]
fn nothing_is_collected_beside_a_session_of_a_newer_version() {
    let (directory, kept) = directory();
    let path = directory.path().join("sessions/kept.session");
    let bytes = fs::read(&path).unwrap();
    let mut newer = bytes.clone();
    newer[8] = 2;
    fs::write(&path, &newer).unwrap();
    let store = Store::open(&config(directory.path())).unwrap();
    assert!(store.recovery_report()[0].contains("format version 2"), "{:?}", store.recovery_report());
    let error = store.gc().unwrap_err();
    assert!(error.to_string().contains("kept.session"), "{error}");
    drop(store);
    fs::write(&path, &bytes).unwrap();
    let store = Store::open(&config(directory.path())).unwrap();
    assert_eq!(whole(&store, "kept"), Some(kept));
}

#[test]
fn a_copied_session_file_is_a_session_of_its_own() {
    let (directory, kept) = directory();
    let sessions = directory.path().join("sessions");
    fs::copy(sessions.join("kept.session"), sessions.join("copy.session")).unwrap();
    let store = Store::open(&config(directory.path())).unwrap();
    assert_eq!(whole(&store, "copy").unwrap().name, "copy");
    store.remove_session("copy").unwrap();
    store.gc().unwrap();
    assert_eq!(whole(&store, "kept"), Some(kept));
}

#[test]
fn places_that_cannot_be_are_refused_by_name() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("file");
    fs::write(&file, "text").unwrap();
    let refused = |directory: &Path, what: &str| {
        let error = Store::open(&config(directory)).err().unwrap().to_string();
        assert!(error.contains(what), "{error}");
    };
    refused(&file, "file");
    let missing = StoreConfig { read_only: true, ..config(&root.path().join("missing")) };
    assert!(Store::open(&missing).err().unwrap().to_string().contains("missing"));
    // A link where a directory of ours should be leads nowhere.
    let linked = root.path().join("linked");
    fs::create_dir(&linked).unwrap();
    symlink(root.path(), linked.join("segments")).unwrap();
    refused(&linked, "segments");
    let locked = root.path().join("locked");
    fs::create_dir_all(locked.join("LOCK")).unwrap();
    refused(&locked, "LOCK");
    // Root may write anywhere, so this says something to other users only.
    let closed = root.path().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o500)).unwrap();
    if fs::write(closed.join("probe"), "").is_err() {
        refused(&closed, "LOCK");
    }
}
