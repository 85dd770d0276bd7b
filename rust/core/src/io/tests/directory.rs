//! The real directory: what it creates, refuses and reports.

use super::*;

fn disk(mode: Mode) -> (tempfile::TempDir, OsDisk) {
    let directory = tempfile::tempdir().unwrap();
    let disk = OsDisk::create(directory.path().join("store"), mode).unwrap();
    (directory, disk)
}

#[test]
fn names_lists_renames_and_removals() {
    let (_directory, disk) = disk(Mode::Buffered);
    disk.create_dir("sub").unwrap();
    disk.create_dir("sub").unwrap();
    for name in ["b", "a", "sub/c"] {
        let file = disk.open(name, Access::Create, Usage::Metadata).unwrap();
        file.write_at(&[name.as_bytes(), b"!"], 0).unwrap();
        file.sync().unwrap();
    }
    let names = |dir| disk.list(dir).unwrap().into_iter().map(|found| (found.name, found.len, found.is_file));
    assert!(names("sub").eq([("sub/c".to_owned(), 6, true)]));
    let found: Vec<_> = names("").map(|(name, _, is_file)| (name, is_file)).collect();
    assert_eq!(found, [("a".to_owned(), true), ("b".to_owned(), true), ("sub".to_owned(), false)]);

    disk.rename("a", "sub/c").unwrap();
    disk.sync_dir("").unwrap();
    disk.sync_dir("sub").unwrap();
    let mut moved = [0; 2];
    disk.open("sub/c", Access::Read, Usage::Metadata).unwrap().read_at(&mut moved, 0).unwrap();
    assert_eq!(&moved, b"a!");
    disk.remove("b").unwrap();
    assert!(names("").eq([("sub".to_owned(), disk.list("").unwrap()[0].len, false)]));
    assert!(disk.free_bytes().unwrap() > 0);
}

#[test]
fn errors_have_their_kinds() {
    let (_directory, disk) = disk(Mode::Direct);
    let kind = |outcome: io::Result<Arc<dyn DiskFile>>| outcome.err().unwrap().kind();
    for usage in [Usage::Pages, Usage::Metadata] {
        assert_eq!(kind(disk.open("none", Access::Read, usage)), io::ErrorKind::NotFound);
        assert_eq!(kind(disk.open("none", Access::Write, usage)), io::ErrorKind::NotFound);
        assert_eq!(kind(disk.open("none/x", Access::Create, usage)), io::ErrorKind::NotFound);
        assert_eq!(kind(disk.open("../x", Access::Create, usage)), io::ErrorKind::InvalidInput);
    }
    drop(disk.open("once", Access::Create, Usage::Pages).unwrap());
    assert_eq!(kind(disk.open("once", Access::Create, Usage::Pages)), io::ErrorKind::AlreadyExists);
    assert_eq!(disk.rename("none", "other").unwrap_err().kind(), io::ErrorKind::NotFound);
    assert_eq!(disk.rename("once", "/other").unwrap_err().kind(), io::ErrorKind::InvalidInput);
    assert_eq!(disk.remove("none").unwrap_err().kind(), io::ErrorKind::NotFound);
    assert_eq!(disk.list("none").unwrap_err().kind(), io::ErrorKind::NotFound);
    assert_eq!(disk.touch("none").unwrap_err().kind(), io::ErrorKind::NotFound);
    assert!(disk.create_dir("once").is_err());
    // A directory is no file.
    disk.create_dir("dir").unwrap();
    assert!(disk.open("dir", Access::Read, Usage::Pages).is_err());
    let missing = OsDisk::open("/nowhere/at/all", Mode::Direct).err().unwrap();
    assert_eq!(missing.kind(), io::ErrorKind::NotFound);
}

#[test]
fn a_reader_cannot_write() {
    let (_directory, disk) = disk(Mode::Buffered);
    disk.open("a", Access::Create, Usage::Metadata).unwrap().write_at(&[b"old"], 0).unwrap();
    let reader = disk.open("a", Access::Read, Usage::Metadata).unwrap();
    assert!(reader.write_at(&[b"new"], 0).is_err());
    assert_eq!(reader.len().unwrap(), 3);
}

#[test]
fn touch_moves_the_modification_time() {
    let (directory, disk) = disk(Mode::Buffered);
    drop(disk.open("a", Access::Create, Usage::Metadata).unwrap());
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let file = std::fs::File::options().write(true).open(directory.path().join("store/a")).unwrap();
    file.set_modified(long_ago).unwrap();
    assert_eq!(disk.list("").unwrap()[0].modified, long_ago);
    disk.touch("a").unwrap();
    let age = disk.list("").unwrap()[0].modified.elapsed().unwrap_or_default();
    assert!(age < Duration::from_secs(3600), "{age:?}");
}

#[test]
fn unaligned_transfers_on_a_direct_file() {
    let (_directory, disk) = disk(Mode::Direct);
    let file = disk.open("a", Access::Create, Usage::Pages).unwrap();
    let bytes = pattern(3 << 20, 1);
    // Whole blocks out of memory that is not aligned, in ragged parts.
    let mut shifted = vec![0; bytes.len() + 1];
    shifted[1..].copy_from_slice(&bytes);
    let (first, second) = shifted[1..].split_at(1_234_567);
    file.write_at(&[first, second], 0).unwrap();
    for (offset, len) in [(0, 1), (4095, 2), (100, 2_500_000), (3 << 20, 0), ((3 << 20) - 5, 5)] {
        let mut back = vec![0; len + 3];
        file.read_at(&mut back[3..], offset as u64).unwrap();
        assert!(back[3..] == bytes[offset..offset + len], "{len} bytes at {offset}");
    }
    let mut past = [0; 6];
    let error = file.read_at(&mut past, (3 << 20) - 5).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);

    // Part of a block: neighbours stay, and the file is a buffered one from here on.
    file.write_at(&[b"hello"], 4090).unwrap();
    assert_eq!(disk.effective_mode(), Mode::Buffered);
    let mut back = vec![0; 3 << 20];
    file.read_at(&mut back, 0).unwrap();
    let mut expected = bytes.to_vec();
    expected[4090..4095].copy_from_slice(b"hello");
    assert!(back == expected);
    assert_eq!(file.len().unwrap(), 3 << 20);
}

#[test]
fn a_mapped_file_sees_what_is_written_after_it_was_mapped() {
    let (_directory, disk) = disk(Mode::Mmap);
    let file = disk.open("a", Access::Create, Usage::Pages).unwrap();
    let mut back = AlignedBuf::zeroed(ALIGN);
    for round in 0..5 {
        let bytes = pattern(ALIGN, round);
        file.write_at(&[&bytes], round * ALIGN as u64).unwrap();
        file.read_at(&mut back, round * ALIGN as u64).unwrap();
        assert!(back[..] == bytes[..]);
        let again = pattern(ALIGN, round + 100);
        file.write_at(&[&again], 0).unwrap();
        file.read_at(&mut back, 0).unwrap();
        assert!(back[..] == again[..]);
        assert_eq!(
            file.read_at(&mut back, (round + 1) * ALIGN as u64).unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
    }
    // Far beyond what was mapped first, with a hole between.
    file.write_at(&[b"far"], 700 << 20).unwrap();
    let mut far = [1; 5];
    file.read_at(&mut far, (700 << 20) - 2).unwrap();
    assert_eq!(&far, b"\0\0far");
    assert!(file.read_at(&mut far, u64::MAX - 2).is_err());
}

/// The process file system has no direct I/O and says so at `open`.
#[cfg(target_os = "linux")]
#[test]
fn a_refused_direct_open_becomes_a_buffered_one_and_is_reported() {
    let disk = OsDisk::open("/proc/self", Mode::Direct).unwrap();
    assert_eq!(disk.effective_mode(), Mode::Direct);
    let file = disk.open("status", Access::Read, Usage::Pages).unwrap();
    let mut start = [0; 5];
    file.read_at(&mut start, 0).unwrap();
    assert_eq!(&start, b"Name:");
    assert_eq!(disk.effective_mode(), Mode::Buffered);
    // Metadata never asks for it.
    let disk = OsDisk::open("/proc/self", Mode::Direct).unwrap();
    drop(disk.open("status", Access::Read, Usage::Metadata).unwrap());
    assert_eq!(disk.effective_mode(), Mode::Direct);
}

#[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
#[test]
fn a_system_without_direct_io_says_so_before_a_file_is_opened() {
    assert_eq!(disk(Mode::Direct).1.effective_mode(), Mode::Buffered);
}

#[test]
fn back_ends_are_parsed_by_the_names_they_print() {
    for backend in Backend::ALL {
        assert_eq!(backend.to_string().parse::<Backend>().unwrap(), backend);
    }
    let error = "Direct".parse::<Backend>().unwrap_err().to_string();
    assert!(error.contains("auto, direct, mmap, buffered"), "{error}");
    assert_eq!(Backend::Mmap.config(), IoConfig { mode: Mode::Mmap, engine: EngineKind::Pool });
    assert_eq!(open_engine(EngineKind::Pool).name(), "pread");
    assert_eq!(open_engine(EngineKind::Inline).name(), "inline");
}

#[cfg(unix)]
mod unix {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn everything_is_private() {
        let (directory, disk) = disk(Mode::Direct);
        disk.create_dir("sub").unwrap();
        drop(disk.open("sub/pages", Access::Create, Usage::Pages).unwrap());
        drop(disk.open("sub/meta", Access::Create, Usage::Metadata).unwrap());
        let mode = |name| {
            let path = directory.path().join("store").join(name);
            std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
        };
        assert_eq!([mode(""), mode("sub")], [0o700; 2]);
        assert_eq!([mode("sub/pages"), mode("sub/meta")], [0o600; 2]);
    }

    #[test]
    fn links_are_not_followed() {
        let (directory, disk) = disk(Mode::Direct);
        let outside = directory.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("secret"), b"untouched").unwrap();
        let store = directory.path().join("store");
        symlink(outside.join("secret"), store.join("file")).unwrap();
        symlink(outside.join("new"), store.join("dangling")).unwrap();
        symlink(&outside, store.join("dir")).unwrap();

        for usage in [Usage::Pages, Usage::Metadata] {
            for access in [Access::Read, Access::Write, Access::Create] {
                for name in ["file", "dangling", "dir/secret", "dir/new"] {
                    assert!(disk.open(name, access, usage).is_err(), "{name} {access:?} {usage:?}");
                }
            }
        }
        assert!(disk.touch("file").is_err());
        assert!(disk.create_dir("dir/sub").is_err());
        assert!(disk.create_dir("dir").is_err());
        assert!(disk.list("dir").is_err());
        assert!(disk.remove("dir/secret").is_err());
        assert!(disk.rename("file", "dir/secret").is_err());
        assert!(disk.list("").unwrap().iter().all(|found| !found.is_file));
        assert_eq!(std::fs::read(outside.join("secret")).unwrap(), b"untouched");
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
    }
}
