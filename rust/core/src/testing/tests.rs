//! The faulty disk is as faulty as it says, and no more.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::sync::Arc;

use super::*;
use crate::io::{Access, Disk, DiskFile, Usage};

fn create(disk: &MemoryDisk, name: &str) -> Arc<dyn DiskFile> {
    disk.open(name, Access::Create, Usage::Pages).unwrap()
}

/// A disk with one durable file of `len` sevens.
fn with_file(len: usize) -> (MemoryDisk, Arc<dyn DiskFile>) {
    let disk = MemoryDisk::new();
    let file = create(&disk, "a");
    file.write_at(&[&vec![7; len]], 0).unwrap();
    file.sync().unwrap();
    disk.sync_dir("").unwrap();
    (disk, file)
}

/// The contents of `a` over many crashes; `None` where the name is lost.
fn outcomes(disk: &MemoryDisk) -> BTreeSet<Option<Vec<u8>>> {
    (0..400).map(|seed| disk.crash(seed).content("a").ok()).collect()
}

#[test]
fn what_was_synced_survives_and_its_clone_is_the_same_disk() {
    let (disk, _file) = with_file(2000);
    assert_eq!(outcomes(&disk.clone()), BTreeSet::from([Some(vec![7; 2000])]));
}

#[test]
fn a_name_is_lost_without_sync_dir_and_bytes_without_sync() {
    let disk = MemoryDisk::new();
    let file = create(&disk, "a");
    file.write_at(&[&[1; 100]], 0).unwrap();
    file.sync().unwrap();
    assert_eq!(outcomes(&disk), BTreeSet::from([None, Some(vec![1; 100])]));

    let disk = MemoryDisk::new();
    let file = create(&disk, "a");
    disk.sync_dir("").unwrap();
    file.write_at(&[&[1; 100]], 0).unwrap();
    // One sector: nothing, all, or the length without the bytes.
    assert_eq!(outcomes(&disk), BTreeSet::from([Some(vec![]), Some(vec![0; 100]), Some(vec![1; 100])]));
}

#[test]
fn a_crash_is_replayed_by_its_seed_and_leaves_the_disk_alone() {
    let (disk, file) = with_file(4096);
    file.write_at(&[&[9; 8192]], 0).unwrap();
    for seed in 0..50 {
        assert_eq!(disk.crash(seed).content("a").unwrap(), disk.crash(seed).content("a").unwrap());
    }
    assert_eq!(disk.content("a").unwrap(), vec![9; 8192]);
    // What a crash has left is durable: a second crash changes nothing.
    let once = disk.crash(3);
    assert_eq!(once.crash(4).content("a").unwrap(), once.content("a").unwrap());
}

#[test]
fn writes_tear_at_sectors_and_only_there() {
    let (disk, file) = with_file(4096);
    file.write_at(&[&[9; 2048]], 256).unwrap();
    let mut torn = 0;
    for found in outcomes(&disk) {
        let found = found.unwrap();
        assert_eq!(found.len(), 4096);
        assert!(found[..256].iter().chain(&found[256 + 2048..]).all(|&byte| byte == 7));
        let written = &found[256..256 + 2048];
        for sector in [&written[..256], &written[256..768], &written[768..1280], &written[1792..]] {
            assert!(sector.iter().all(|byte| *byte == sector[0]), "torn inside a sector");
        }
        torn += usize::from(written.contains(&7) && written.contains(&9));
    }
    assert!(torn > 10, "{torn}");
}

#[test]
fn a_later_write_may_survive_an_earlier_one() {
    let (disk, file) = with_file(1024);
    file.write_at(&[&[1; 512]], 0).unwrap();
    file.write_at(&[&[2; 512]], 512).unwrap();
    let seen: BTreeSet<(u8, u8)> =
        outcomes(&disk).into_iter().map(Option::unwrap).map(|found| (found[0], found[512])).collect();
    assert_eq!(seen, BTreeSet::from([(7, 7), (1, 7), (7, 2), (1, 2)]));
}

#[test]
fn a_rename_is_atomic() {
    let (disk, _old) = with_file(10);
    let new = create(&disk, "a.new");
    new.write_at(&[&[8; 20]], 0).unwrap();
    new.sync().unwrap();
    disk.rename("a.new", "a").unwrap();
    assert_eq!(outcomes(&disk), BTreeSet::from([Some(vec![7; 10]), Some(vec![8; 20])]));
    disk.sync_dir("").unwrap();
    assert_eq!(outcomes(&disk), BTreeSet::from([Some(vec![8; 20])]));
    assert!((0..50).all(|seed| disk.crash(seed).list("").unwrap().len() == 1));
}

#[test]
fn a_lost_directory_takes_its_files_along() {
    let disk = MemoryDisk::new();
    disk.create_dir("d").unwrap();
    create(&disk, "d/a").sync().unwrap();
    disk.sync_dir("d").unwrap();
    let names = |disk: MemoryDisk| disk.list("d").map_err(|error| error.kind()).map(|found| found.len());
    let seen: BTreeSet<_> = (0..50).map(|seed| names(disk.crash(seed))).collect();
    assert_eq!(seen, BTreeSet::from([Err(ErrorKind::NotFound), Ok(1)]));
    disk.sync_dir("").unwrap();
    assert!((0..50).all(|seed| names(disk.crash(seed)) == Ok(1)));
}

#[test]
fn a_removal_may_be_undone_and_open_files_outlive_it() {
    let (disk, file) = with_file(10);
    disk.remove("a").unwrap();
    let mut back = [0; 10];
    file.read_at(&mut back, 0).unwrap();
    assert_eq!(back, [7; 10]);
    assert_eq!(outcomes(&disk), BTreeSet::from([None, Some(vec![7; 10])]));
}

#[test]
fn the_power_fails_at_the_chosen_operation() {
    let (disk, file) = with_file(512);
    disk.power_off_after(Some(OpKind::Write), 1);
    file.write_at(&[&[1; 512]], 512).unwrap();
    file.sync().unwrap();
    assert!(!disk.is_off());
    let before = disk.count(None);
    assert!(file.write_at(&[&[2; 512]], 0).is_err());
    assert!(disk.is_off());
    let mut buf = [0; 1];
    assert!(file.read_at(&mut buf, 0).is_err() && file.sync().is_err() && file.len().is_err());
    assert!(disk.list("").is_err() && disk.sync_dir("").is_err());
    assert!(disk.open("a", Access::Read, Usage::Pages).is_err());
    // The dead operations do not count, the one that died does.
    assert_eq!(disk.count(None), before + 1);
    // The write that was under way may have reached the disk.
    let seen: BTreeSet<u8> = outcomes(&disk).into_iter().map(|found| found.unwrap()[0]).collect();
    assert_eq!(seen, BTreeSet::from([7, 2]));
    disk.clear_faults();
    file.sync().unwrap();
}

#[test]
fn a_sync_that_the_power_cut_off_has_done_nothing() {
    let (disk, file) = with_file(512);
    file.write_at(&[&[1; 512]], 0).unwrap();
    disk.power_off_after(Some(OpKind::Sync), 0);
    assert!(file.sync().is_err());
    let seen: BTreeSet<u8> = outcomes(&disk).into_iter().map(|found| found.unwrap()[0]).collect();
    assert_eq!(seen, BTreeSet::from([7, 1]));
}

#[test]
fn a_rename_that_the_power_cut_off_may_have_happened() {
    let (disk, _file) = with_file(10);
    disk.power_off_after(None, 0);
    assert!(disk.rename("a", "b").is_err());
    let seen: BTreeSet<bool> = (0..50).map(|seed| disk.crash(seed).content("b").is_ok()).collect();
    assert_eq!(seen, BTreeSet::from([false, true]));
}

/// Every operation of every kind can be made to fail, once or for ever.
#[test]
fn every_operation_can_fail() {
    use OpKind::{
        Create, CreateDir, FreeBytes, Len, List, Open, Read, Remove, Rename, Sync, SyncDir, Touch, Write,
    };
    let perform = |disk: &MemoryDisk, kind: OpKind, file: &dyn DiskFile| match kind {
        Open => disk.open("a", Access::Read, Usage::Pages).map(drop),
        Create => disk.open("new", Access::Create, Usage::Pages).map(drop),
        List => disk.list("").map(drop),
        CreateDir => disk.create_dir("d"),
        Rename => disk.rename("a", "a"),
        Remove => disk.remove("b"),
        SyncDir => disk.sync_dir(""),
        Touch => disk.touch("a"),
        FreeBytes => disk.free_bytes().map(drop),
        Len => file.len().map(drop),
        Read => file.read_at(&mut [0; 4], 0),
        Write => file.write_at(&[b"abcd"], 0),
        Sync => file.sync(),
    };
    for kind in
        [Open, Create, List, CreateDir, Rename, Remove, SyncDir, Touch, FreeBytes, Len, Read, Write, Sync]
    {
        let (disk, file) = with_file(10);
        create(&disk, "b");
        let before = disk.count(Some(kind));
        disk.plan(Fault::once(kind, 0, ErrorKind::StorageFull));
        let error = perform(&disk, kind, &*file).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageFull, "{kind:?}");
        assert_eq!(disk.content("a").unwrap(), [7; 10], "{kind:?} failed and yet wrote");
        perform(&disk, kind, &*file).unwrap();
        assert_eq!(disk.count(Some(kind)), before + 2);

        let (disk, file) = with_file(10);
        create(&disk, "b");
        disk.plan(Fault::from_then_on(kind, 0, ErrorKind::TimedOut));
        for _ in 0..3 {
            assert_eq!(perform(&disk, kind, &*file).unwrap_err().kind(), ErrorKind::TimedOut, "{kind:?}");
        }
        disk.clear_faults();
        perform(&disk, kind, &*file).unwrap();
    }
}

#[test]
fn a_fault_waits_for_its_turn() {
    let (disk, file) = with_file(10);
    disk.plan(Fault::once(OpKind::Read, 2, ErrorKind::Other));
    let fails = |_| file.read_at(&mut [0; 4], 0).is_err();
    assert_eq!((0..5).map(fails).collect::<Vec<_>>(), [false, false, true, false, false]);
    // Of all kinds.
    disk.plan(Fault { kind: None, after: 1, repeats: false, effect: Effect::Fail(ErrorKind::Other) });
    assert!(disk.list("").is_ok() && file.sync().is_err() && file.sync().is_ok());
}

#[test]
fn short_transfers_do_a_part_and_say_so() {
    let (disk, file) = with_file(10);
    let short = |kind, count| Fault {
        kind: Some(kind),
        after: 0,
        repeats: false,
        effect: Effect::Short(count, ErrorKind::Interrupted),
    };
    disk.plan(short(OpKind::Read, 3));
    let mut buf = [0; 6];
    assert_eq!(file.read_at(&mut buf, 0).unwrap_err().kind(), ErrorKind::Interrupted);
    assert_eq!(buf, [7, 7, 7, 0, 0, 0]);
    disk.plan(short(OpKind::Write, 3));
    assert_eq!(file.write_at(&[&[1, 2], &[3, 4]], 0).unwrap_err().kind(), ErrorKind::Interrupted);
    assert_eq!(disk.content("a").unwrap()[..5], [1, 2, 3, 7, 7]);
}

#[test]
fn bits_flip_on_the_way_or_for_good() {
    let (disk, file) = with_file(10);
    let flip = Fault { kind: Some(OpKind::Read), after: 0, repeats: false, effect: Effect::FlipBit(10) };
    disk.plan(flip);
    let mut buf = [0; 4];
    file.read_at(&mut buf, 0).unwrap();
    assert_eq!(buf, [7, 7 ^ 4, 7, 7]);
    file.read_at(&mut buf, 0).unwrap();
    assert_eq!(buf, [7; 4]);
    disk.rot("a", 10).unwrap();
    file.read_at(&mut buf, 0).unwrap();
    assert_eq!(buf, [7, 7 ^ 4, 7, 7]);
    assert_eq!(disk.crash(1).content("a").unwrap()[1], 7 ^ 4);
    disk.rot("a", 8000).unwrap();
}

#[test]
fn a_lying_disk_ignores_writes_and_syncs() {
    let (disk, file) = with_file(10);
    let lie = |kind| Fault { kind: Some(kind), after: 0, repeats: false, effect: Effect::Ignore };
    disk.plan(lie(OpKind::Write));
    file.write_at(&[&[1; 10]], 0).unwrap();
    assert_eq!(disk.content("a").unwrap(), [7; 10]);
    file.write_at(&[&[1; 10]], 0).unwrap();
    disk.plan(lie(OpKind::Sync));
    file.sync().unwrap();
    assert!(outcomes(&disk).contains(&Some(vec![7; 10])));
    disk.rename("a", "b").unwrap();
    disk.plan(lie(OpKind::SyncDir));
    disk.sync_dir("").unwrap();
    assert!((0..50).any(|seed| disk.crash(seed).content("a").is_ok()));
}

#[test]
fn a_full_disk_takes_what_fits() {
    let (disk, file) = with_file(100);
    disk.set_capacity(Some(150));
    assert_eq!(disk.free_bytes().unwrap(), 50);
    // Overwriting needs no room.
    file.write_at(&[&[8; 100]], 0).unwrap();
    assert_eq!(file.write_at(&[&[9; 100]], 100).unwrap_err().kind(), ErrorKind::StorageFull);
    assert_eq!((file.len().unwrap(), disk.free_bytes().unwrap()), (150, 0));
    let other = create(&disk, "b");
    assert_eq!(other.write_at(&[b"x"], 0).unwrap_err().kind(), ErrorKind::StorageFull);
    disk.remove("a").unwrap();
    other.write_at(&[b"x"], 0).unwrap();
    disk.set_capacity(None);
    other.write_at(&[&[1; 1000]], 0).unwrap();
}

#[test]
fn a_healthy_disk_is_an_ordinary_one() {
    let (disk, file) = with_file(10);
    let kind = |outcome: std::io::Result<Arc<dyn DiskFile>>| outcome.err().unwrap().kind();
    assert_eq!(kind(disk.open("a", Access::Create, Usage::Pages)), ErrorKind::AlreadyExists);
    assert_eq!(kind(disk.open("b", Access::Write, Usage::Pages)), ErrorKind::NotFound);
    assert_eq!(kind(disk.open("d/b", Access::Create, Usage::Pages)), ErrorKind::NotFound);
    assert_eq!(kind(disk.open("../b", Access::Create, Usage::Pages)), ErrorKind::InvalidInput);
    assert_eq!(disk.remove("b").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(disk.rename("b", "c").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(file.read_at(&mut [0; 11], 0).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    assert_eq!(file.read_at(&mut [0; 1], 1 << 40).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    let reader = disk.open("a", Access::Read, Usage::Pages).unwrap();
    assert_eq!(reader.write_at(&[b"x"], 0).unwrap_err().kind(), ErrorKind::PermissionDenied);
    assert_eq!(reader.sync().unwrap_err().kind(), ErrorKind::PermissionDenied);
    disk.create_dir("d").unwrap();
    disk.create_dir("d").unwrap();
    drop(create(&disk, "d/x"));
    let found: Vec<_> = disk.list("").unwrap().into_iter().map(|e| (e.name, e.len, e.is_file)).collect();
    assert_eq!(found, [("a".to_owned(), 10, true), ("d".to_owned(), 0, false)]);
    let before = disk.list("").unwrap()[0].modified;
    disk.touch("a").unwrap();
    assert!(disk.list("").unwrap()[0].modified > before);
}
