//! Every byte of a small directory goes wrong in turn, and every file ends early.

use stratakv_core::io::{Access, Disk, EngineKind, Usage};
use stratakv_core::session::{SessionImage, SessionPage};
use stratakv_core::store::{Store, StoreConfig};
use stratakv_core::testing::{MemoryDisk, Seeded};

use crate::common::{body, config, effort, image, open, save};

fn small(base: u32, name: &str) -> SessionImage {
    // Pages of one block, so that flipping every byte takes seconds.
    let mut image = image(name, base, 2);
    image.layers.truncate(1);
    image
}

/// Two sessions in one segment, closed well or not.
fn directory(closed: bool) -> (MemoryDisk, Vec<SessionImage>) {
    let disk = MemoryDisk::new();
    let images = vec![small(1, "one"), small(2, "two")];
    let store = open(&config(1 << 17), &disk, EngineKind::Inline).unwrap();
    for image in &images {
        save(&store, image).unwrap();
    }
    if !closed {
        disk.power_off_after(None, 0);
        disk.list("").unwrap_err();
    }
    drop(store);
    disk.clear_faults();
    (disk, images)
}

/// Where each page lies, found by its bytes.
fn places(disk: &MemoryDisk, images: &[SessionImage], segment: &str) -> Vec<(SessionPage, usize)> {
    let bytes = disk.content(segment).unwrap();
    let pages = images.iter().flat_map(SessionImage::page_keys);
    pages
        .map(|page| {
            let body = body(page.key, page.bytes);
            let at = (0..bytes.len()).step_by(4096).find(|at| bytes[*at..].starts_with(&body));
            (page, at.unwrap())
        })
        .collect()
}

/// The block of the group header before a page.
fn group_of(bytes: &[u8], page_at: usize) -> std::ops::Range<usize> {
    let at = (0..page_at).step_by(4096).rfind(|at| bytes[*at..].starts_with(b"STRATGRP")).unwrap();
    at..at + 4096
}

fn reader(disk: &MemoryDisk) -> Store {
    // No writer thread: this is opened a hundred thousand times.
    let config = StoreConfig { read_only: true, ..config(1 << 17) };
    open(&config, disk, EngineKind::Inline).unwrap()
}

/// Whether each page is there; a page that is there is right.
fn present(store: &Store, pages: &[(SessionPage, usize)]) -> Vec<bool> {
    let keys: Vec<_> = pages.iter().map(|(page, _)| page.key).collect();
    let found = store.request(&keys).wait().unwrap();
    let right = |(page, found): (&(SessionPage, usize), _)| {
        let found: Option<stratakv_core::tier::ram::Page> = found;
        found.is_some_and(|found| {
            assert!(found[..] == body(page.0.key, page.0.bytes)[..], "wrong bytes");
            true
        })
    };
    pages.iter().zip(found).map(right).collect()
}

#[test]
fn every_byte_of_a_segment_is_flipped() {
    for closed in [true, false] {
        let (disk, images) = directory(closed);
        let segment = disk.list("segments").unwrap().remove(0);
        let pages = places(&disk, &images, &segment.name);
        let bytes = disk.content(&segment.name).unwrap();
        let mut random = Seeded::new(7);
        for byte in 0..bytes.len() {
            for _ in 0..effort().min(4) {
                let bit = byte as u64 * 8 + random.below(8);
                disk.rot(&segment.name, bit).unwrap();
                let store = reader(&disk);
                let there = present(&store, &pages);
                for ((page, at), there) in pages.iter().zip(there) {
                    // An unfinished segment knows its pages from their group's header alone.
                    let header = if closed { 0..0 } else { group_of(&bytes, *at) };
                    let hit = (*at..at + page.bytes).contains(&byte) || header.contains(&byte);
                    let told = store.stats().counters.corrupt_pages + store.recovery_report().len() as u64;
                    assert!(
                        there != hit || (!there && told > 0),
                        "byte {byte}: page at {at} is there: {there}"
                    );
                }
                disk.rot(&segment.name, bit).unwrap();
            }
        }
    }
}

#[test]
fn every_byte_of_a_session_file_is_flipped() {
    let (disk, images) = directory(true);
    let files = disk.list("sessions").unwrap();
    for (file, image) in files.iter().zip(&images) {
        for bit in 0..file.len * 8 {
            disk.rot(&file.name, bit).unwrap();
            let store = reader(&disk);
            if let Ok(found) = store.load_session(&image.name) {
                assert_eq!(&found, image, "bit {bit}");
            }
            let other = images.iter().find(|other| other.name != image.name).unwrap();
            assert_eq!(&store.load_session(&other.name).unwrap(), other);
            assert!(
                store
                    .sessions()
                    .unwrap()
                    .iter()
                    .all(|info| images.iter().any(|one| one.name == info.head.name))
            );
            disk.rot(&file.name, bit).unwrap();
        }
    }
}

/// The same files, one of them cut off.
fn cut(disk: &MemoryDisk, name: &str, len: usize) -> MemoryDisk {
    let copy = MemoryDisk::new();
    for dir in ["segments", "sessions"] {
        copy.create_dir(dir).unwrap();
        for entry in disk.list(dir).unwrap() {
            let mut bytes = disk.content(&entry.name).unwrap();
            if entry.name == name {
                bytes.truncate(len);
            }
            let file = copy.open(&entry.name, Access::Create, Usage::Metadata).unwrap();
            file.write_at(&[&bytes], 0).unwrap();
        }
    }
    copy
}

#[test]
fn files_end_early() {
    let mut random = Seeded::new(11);
    for closed in [true, false] {
        let (disk, images) = directory(closed);
        for file in disk.list("segments").unwrap().iter().chain(&disk.list("sessions").unwrap()) {
            let blocks = (0..file.len).step_by(4096);
            let lens: Vec<_> = blocks.chain((0..60).map(|_| random.below(file.len))).collect();
            for len in lens {
                let copy = cut(&disk, &file.name, len as usize);
                let is_segment = file.name.starts_with("segments");
                let pages = if is_segment { places(&disk, &images, &file.name) } else { Vec::new() };
                let store = reader(&copy);
                for image in &images {
                    let cut = file.name.contains(&image.name);
                    assert_eq!(store.load_session(&image.name).is_err(), cut, "{} cut at {len}", file.name);
                }
                for ((page, at), there) in pages.iter().zip(present(&store, &pages)) {
                    assert_eq!(there, (at + page.bytes) as u64 <= len, "cut at {len}: page at {at}");
                }
                // A writer takes the same directory, and leaves what can be used.
                let store = open(&config(1 << 17), &copy, EngineKind::Inline).unwrap();
                store.gc().unwrap();
                for ((page, at), there) in pages.iter().zip(present(&store, &pages)) {
                    assert_eq!(
                        there,
                        (at + page.bytes) as u64 <= len,
                        "after gc, cut at {len}: page at {at}"
                    );
                }
            }
        }
    }
}
