//! What a directory of segments holds, found without reading page bodies.
//!
//! A finished segment is known from its table of contents, an unfinished or damaged one
//! from its group headers. Nothing that can still be read is given up: past damage the
//! walk goes on at the next intact group, and everything dropped is reported.

use std::io;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::format::{
    GroupHeader, PageEntry, SEGMENT_HEADER_BYTES, SegmentHeader, TRAILER_BYTES, Trailer, decode_contents,
};
use crate::io::{ALIGN, Access, AlignedBuf, Disk, DiskFile, Usage};
use crate::policy::KeyMap;
use crate::tier::disk::{Location, SEGMENTS_DIR, Segments, segment_id};

/// Bytes read at once while looking for the next intact group behind damage.
const SCAN_BYTES: usize = 1 << 20;
/// Threads that read segments side by side; a disk answers several small reads as fast as one.
const SCAN_THREADS: usize = 8;

/// What was found.
pub struct Recovered {
    /// The segment files.
    pub segments: Segments,
    /// Every page.
    pub index: KeyMap<Location>,
    /// What was dropped or odd, one sentence each.
    pub report: Vec<String>,
}

/// One segment, read.
struct Found {
    id: u64,
    name: String,
    file: Option<Arc<dyn DiskFile>>,
    len: u64,
    temporary: bool,
    pages: Vec<(PageEntry, bool)>,
    flaws: Vec<String>,
}

/// Reads the segments of `disk`. With `read_only` nothing is deleted.
///
/// # Errors
/// `Io` where the directory itself can't be read or made; a bad file is reported instead.
pub fn recover(disk: &Arc<dyn Disk>, segment_bytes: u64, read_only: bool) -> Result<Recovered> {
    if !read_only {
        disk.create_dir(SEGMENTS_DIR).map_err(|error| Error::io("create", SEGMENTS_DIR, error))?;
    }
    let mut recovered = Recovered {
        segments: Segments::new(disk.clone(), segment_bytes, 1),
        index: KeyMap::default(),
        report: Vec::new(),
    };
    let entries = match disk.list(SEGMENTS_DIR) {
        Ok(entries) => entries,
        Err(error) if read_only && error.kind() == io::ErrorKind::NotFound => return Ok(recovered),
        Err(error) => return Err(Error::io("list", SEGMENTS_DIR, error)),
    };
    let mut segments = Vec::new();
    for entry in entries {
        match segment_id(&entry.name) {
            // Created, and then the machine stopped.
            Some(_) if entry.is_file && entry.len == 0 && !read_only => {
                disk.remove(&entry.name).map_err(|error| Error::io("remove", &entry.name, error))?;
            }
            Some(id) if entry.is_file => {
                recovered.segments.reserve_id(id);
                segments.push((id, entry.name));
            }
            _ => recovered.report.push(format!("{} is not a segment; left alone", entry.name)),
        }
    }
    for found in read_all(disk.as_ref(), &segments) {
        recovered.add(disk.as_ref(), found, read_only);
    }
    Ok(recovered)
}

/// Reads all segments, several at a time, in the order given.
fn read_all(disk: &dyn Disk, segments: &[(u64, String)]) -> Vec<Found> {
    let share = segments.len().div_ceil(SCAN_THREADS).max(4);
    if segments.len() <= share {
        return segments.iter().map(|(id, name)| read_segment(disk, *id, name)).collect();
    }
    std::thread::scope(|scope| {
        let read_chunk = |chunk: &[(u64, String)]| -> Vec<Found> {
            chunk.iter().map(|(id, name)| read_segment(disk, *id, name)).collect()
        };
        let threads: Vec<_> =
            segments.chunks(share).map(|chunk| scope.spawn(move || read_chunk(chunk))).collect();
        let joined = threads.into_iter().zip(segments.chunks(share));
        joined.flat_map(|(thread, chunk)| thread.join().unwrap_or_else(|_| read_chunk(chunk))).collect()
    })
}

impl Recovered {
    fn add(&mut self, disk: &dyn Disk, found: Found, read_only: bool) {
        let Found { id, name, file, len, temporary, pages, flaws } = found;
        self.report.extend(flaws.into_iter().map(|flaw| format!("{name} {flaw}")));
        let Some(file) = file else { return };
        if temporary {
            // Left by a process that died: its private pages mean nothing to anybody.
            if !read_only && let Err(error) = disk.remove(&name) {
                self.report.push(format!("{name} is left over and can't be deleted: {error}"));
            }
            return;
        }
        self.segments.adopt(id, file, len);
        for (entry, verified) in pages {
            self.insert(id, entry, verified);
        }
    }

    fn insert(&mut self, segment: u64, entry: PageEntry, verified: bool) {
        let location = Location { segment, entry, verified };
        if let Some(old) = self.index.get_mut(&entry.key) {
            if old.verified && !verified {
                return;
            }
            let old = std::mem::replace(old, location);
            self.segments.count_page(&old, false);
        } else {
            self.index.insert(entry.key, location);
        }
        self.segments.count_page(&location, true);
    }
}

fn read_segment(disk: &dyn Disk, id: u64, name: &str) -> Found {
    let mut found = Found {
        id,
        name: name.to_owned(),
        file: None,
        len: 0,
        temporary: false,
        pages: Vec::new(),
        flaws: Vec::new(),
    };
    let opened = disk.open(name, Access::Read, Usage::Pages).and_then(|file| Ok((file.len()?, file)));
    let (len, file) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            found.flaws.push(format!("can't be read: {error}; its pages are missing"));
            return found;
        }
    };
    found.len = len;
    let mut segment = id;
    match read_block(file.as_ref(), 0, len).and_then(|block| SegmentHeader::decode(&block)) {
        Ok(header) => {
            found.temporary = header.temporary;
            segment = header.id;
        }
        Err(flaw) => found.flaws.push(flaw),
    }
    if !found.temporary {
        found.read_pages(file.as_ref(), segment);
    }
    found.file = Some(file);
    if found.pages.is_empty() && !found.flaws.is_empty() {
        // Not ours as far as can be told: it is not counted, and never deleted.
        found.file = None;
    }
    found
}

/// One block, as a flaw where it can't be had.
fn read_block(file: &dyn DiskFile, offset: u64, len: u64) -> Result<AlignedBuf, String> {
    read_range(file, offset, ALIGN, len)
}

fn read_range(file: &dyn DiskFile, offset: u64, bytes: usize, len: u64) -> Result<AlignedBuf, String> {
    if offset + bytes as u64 > len {
        return Err(format!("ends at {len}, inside what starts at offset {offset}"));
    }
    let mut buf = AlignedBuf::zeroed(bytes.next_multiple_of(ALIGN));
    file.read_at(&mut buf, offset).map_err(|error| format!("can't be read at offset {offset}: {error}"))?;
    Ok(buf)
}

impl Found {
    fn read_pages(&mut self, file: &dyn DiskFile, segment: u64) {
        match read_contents(file, segment, self.len) {
            Ok(Some(entries)) => {
                for entry in entries {
                    self.keep(entry, true);
                }
            }
            Ok(None) => self.walk(file, segment),
            Err(flaw) => {
                self.flaws.push(flaw);
                self.walk(file, segment);
            }
        }
    }

    /// Keeps an entry whose body the file is long enough for.
    fn keep(&mut self, entry: PageEntry, verified: bool) -> bool {
        let whole = entry.offset() + entry.padded_len() <= self.len;
        if whole {
            self.pages.push((entry, verified));
        }
        whole
    }

    fn walk(&mut self, file: &dyn DiskFile, segment: u64) {
        let (mut offset, mut durable_until) = (SEGMENT_HEADER_BYTES as u64, 0);
        let (mut cut_off, mut groups) = (0_u64, Vec::new());
        while offset + ALIGN as u64 <= self.len {
            match read_group(file, segment, offset, self.len) {
                Ok(group) => {
                    durable_until = durable_until.max(group.durable_until);
                    offset = group.end();
                    groups.push(group);
                }
                Err(flaw) => {
                    let next = next_group(file, segment, offset + ALIGN as u64, self.len);
                    let until = next.unwrap_or(self.len);
                    self.flaws
                        .push(format!("{flaw} at offset {offset}: {} bytes are skipped", until - offset));
                    offset = until;
                }
            }
        }
        for entry in groups.into_iter().flat_map(|group| group.entries) {
            let verified = entry.offset() + entry.padded_len() <= durable_until;
            cut_off += u64::from(!self.keep(entry, verified));
        }
        if cut_off > 0 {
            self.flaws.push(format!("is cut off at {} bytes: {cut_off} pages are missing", self.len));
        }
    }
}

/// The table of contents; `None` where the segment was never finished.
fn read_contents(file: &dyn DiskFile, segment: u64, len: u64) -> Result<Option<Vec<PageEntry>>, String> {
    let least = (SEGMENT_HEADER_BYTES + TRAILER_BYTES) as u64;
    if len < least || !len.is_multiple_of(ALIGN as u64) {
        return Ok(None);
    }
    let Ok(trailer) = Trailer::decode(&read_block(file, len - TRAILER_BYTES as u64, len)?, segment) else {
        return Ok(None);
    };
    let end = len - TRAILER_BYTES as u64;
    let table_bytes = end.checked_sub(trailer.contents_offset).filter(|bytes| *bytes <= end);
    let table_bytes = table_bytes.ok_or("has a trailer that points behind itself")?;
    let table = read_range(file, trailer.contents_offset, table_bytes as usize, len)?;
    decode_contents(&table, &trailer).map(Some)
}

fn read_group(file: &dyn DiskFile, segment: u64, offset: u64, len: u64) -> Result<GroupHeader, String> {
    let first = read_block(file, offset, len)?;
    let announced = GroupHeader::announced_len(&first)?;
    if announced <= ALIGN {
        return GroupHeader::decode(&first, segment, offset);
    }
    GroupHeader::decode(&read_range(file, offset, announced, len)?, segment, offset)
}

/// Offset of the next intact group at or after `from`.
fn next_group(file: &dyn DiskFile, segment: u64, from: u64, len: u64) -> Option<u64> {
    let mut start = from;
    while start + ALIGN as u64 <= len {
        let bytes =
            usize::try_from(len - start).map_or(SCAN_BYTES, |left| left.min(SCAN_BYTES)) / ALIGN * ALIGN;
        // A region that can't be read is stepped over like any other damage.
        if let Ok(chunk) = read_range(file, start, bytes, len) {
            for (index, block) in chunk.chunks_exact(ALIGN).enumerate() {
                let offset = start + (index * ALIGN) as u64;
                if GroupHeader::announced_len(block).is_ok() && read_group(file, segment, offset, len).is_ok()
                {
                    return Some(offset);
                }
            }
        }
        start += bytes as u64;
    }
    None
}
