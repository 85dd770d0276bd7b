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
    /// It is ours, as far as can be told: it counts, and may be deleted.
    ours: bool,
    len: u64,
    temporary: bool,
    pages: Vec<(PageEntry, bool)>,
    flaws: Vec<String>,
    /// Some of it the disk refused to read, now.
    unread: bool,
}

/// Why something was not found where it should be.
struct Miss {
    what: String,
    /// The disk failed: what is there is unknown, not damaged.
    unread: bool,
}

impl From<String> for Miss {
    fn from(what: String) -> Self {
        Self { what, unread: false }
    }
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
            Some(id) => {
                recovered.segments.reserve_id(id);
                recovered.report.push(format!("{} is not a file; left alone", entry.name));
            }
            None => recovered.report.push(format!("{} is not a segment; left alone", entry.name)),
        }
    }
    let found = read_all(disk.as_ref(), &segments);
    if !read_only {
        make_durable(disk.as_ref(), &found)?;
    }
    for found in found {
        recovered.add(disk.as_ref(), found, read_only);
    }
    Ok(recovered)
}

/// Pages that a killed process wrote last are read and trusted from now on, so they must
/// outlive a power cut from now on, as those do that were flushed.
fn make_durable(disk: &dyn Disk, found: &[Found]) -> Result<()> {
    let unsynced = |found: &&Found| !found.temporary && found.pages.iter().any(|(_, verified)| !verified);
    let mut synced = false;
    for found in found.iter().filter(unsynced) {
        // Nothing is written; but some systems flush only what may be written.
        let synced_file = disk.open(&found.name, Access::Write, Usage::Pages).and_then(|file| file.sync());
        synced_file.map_err(|error| Error::io("sync", &found.name, error))?;
        synced = true;
    }
    if synced {
        disk.sync_dir(SEGMENTS_DIR).map_err(|error| Error::io("sync", SEGMENTS_DIR, error))?;
    }
    Ok(())
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
        let Found { id, name, ours, len, temporary, pages, flaws, unread } = found;
        self.report.extend(flaws.into_iter().map(|flaw| format!("{name} {flaw}")));
        if !ours {
            return;
        }
        if temporary {
            // Left by a process that died: its private pages mean nothing to anybody.
            if !read_only && let Err(error) = disk.remove(&name) {
                self.report.push(format!("{name} is left over and can't be deleted: {error}"));
            }
            return;
        }
        self.segments.adopt(id, len, !unread);
        for (entry, verified) in pages {
            self.insert(id, entry, verified);
        }
    }

    fn insert(&mut self, segment: u64, entry: PageEntry, verified: bool) {
        let location = Location { segment, entry, verified };
        if let Some(old) = self.index.get(&entry.key).copied() {
            // Of two copies that a crash may have torn, one was durable before the other was begun.
            let (torn_new, torn_old) = (!verified, !old.verified);
            if torn_new && (!torn_old || self.is_whole(&old)) {
                return;
            }
            self.segments.count_page(&old, false);
        }
        self.index.insert(entry.key, location);
        self.segments.count_page(&location, true);
    }

    fn is_whole(&mut self, location: &Location) -> bool {
        let mut body = AlignedBuf::zeroed(location.entry.padded_len() as usize);
        let file = self.segments.file(location.segment);
        let read = file.and_then(|file| file.read_at(&mut body, location.entry.offset()));
        read.is_ok() && crc32c::crc32c(&body) == location.entry.crc
    }
}

fn read_segment(disk: &dyn Disk, id: u64, name: &str) -> Found {
    let mut found = Found {
        id,
        name: name.to_owned(),
        ours: false,
        len: 0,
        temporary: false,
        pages: Vec::new(),
        flaws: Vec::new(),
        unread: false,
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
    let mut ours = true;
    let first = read_range(file.as_ref(), 0, len.min(ALIGN as u64) as usize, len);
    match first.map(|block| (SegmentHeader::decode(&block), block)) {
        Ok((Ok(header), _)) => {
            found.temporary = header.temporary;
            segment = header.id;
            if len < SEGMENT_HEADER_BYTES as u64 {
                found.flaws.push("is cut off inside its header".into());
            }
        }
        Ok((Err(flaw), block)) => {
            // Nothing but zeros is what a crash leaves of a header.
            ours = block.iter().all(|byte| *byte == 0);
            found.flaws.push(flaw);
        }
        Err(miss) => {
            ours = miss.unread;
            found.flaw(&miss, "");
        }
    }
    if !found.temporary {
        found.read_pages(file.as_ref(), segment);
    }
    // Where it is not ours as far as can be told, it is not counted, and never deleted.
    found.ours = ours || !found.pages.is_empty();
    found
}

/// One block.
fn read_block(file: &dyn DiskFile, offset: u64, len: u64) -> Result<AlignedBuf, Miss> {
    read_range(file, offset, ALIGN, len)
}

fn read_range(file: &dyn DiskFile, offset: u64, bytes: usize, len: u64) -> Result<AlignedBuf, Miss> {
    if offset.checked_add(bytes as u64).is_none_or(|end| end > len) {
        return Err(format!("ends at {len}, inside what starts at offset {offset}").into());
    }
    let mut buf = AlignedBuf::zeroed(bytes.next_multiple_of(ALIGN));
    file.read_at(&mut buf[..bytes], offset).map_err(|error| Miss {
        what: format!("can't be read at offset {offset}: {error}"),
        unread: error.kind() != io::ErrorKind::UnexpectedEof,
    })?;
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
            Err(miss) => {
                self.flaw(&miss, "");
                self.walk(file, segment);
            }
        }
    }

    fn flaw(&mut self, miss: &Miss, consequence: &str) {
        self.unread |= miss.unread;
        self.flaws.push(format!("{}{consequence}", miss.what));
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
        while offset.saturating_add(ALIGN as u64) <= self.len {
            match read_group(file, segment, offset, self.len) {
                Ok(group) => {
                    durable_until = durable_until.max(group.durable_until);
                    offset = group.end();
                    groups.push(group);
                }
                Err(miss) => {
                    let (next, unread) = next_group(file, segment, offset + ALIGN as u64, self.len);
                    self.unread |= unread;
                    let until = next.unwrap_or(self.len);
                    self.flaw(&miss, &format!(" at offset {offset}: {} bytes are skipped", until - offset));
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
fn read_contents(file: &dyn DiskFile, segment: u64, len: u64) -> Result<Option<Vec<PageEntry>>, Miss> {
    let least = (SEGMENT_HEADER_BYTES + TRAILER_BYTES) as u64;
    if len < least || !len.is_multiple_of(ALIGN as u64) {
        return Ok(None);
    }
    let Ok(trailer) = Trailer::decode(&read_block(file, len - TRAILER_BYTES as u64, len)?, segment) else {
        return Ok(None);
    };
    let end = len - TRAILER_BYTES as u64;
    let table_bytes = end.checked_sub(trailer.contents_offset).filter(|bytes| *bytes <= end);
    let table_bytes = table_bytes.ok_or_else(|| "has a trailer that points behind itself".to_owned())?;
    let table = read_range(file, trailer.contents_offset, table_bytes as usize, len)?;
    Ok(Some(decode_contents(&table, &trailer)?))
}

fn read_group(file: &dyn DiskFile, segment: u64, offset: u64, len: u64) -> Result<GroupHeader, Miss> {
    let first = read_block(file, offset, len)?;
    let announced = GroupHeader::announced_len(&first)?;
    if announced <= ALIGN {
        return Ok(GroupHeader::decode(&first, segment, offset)?);
    }
    Ok(GroupHeader::decode(&read_range(file, offset, announced, len)?, segment, offset)?)
}

/// Offset of the next intact group at or after `from`, and whether the disk refused to
/// read something before it.
fn next_group(file: &dyn DiskFile, segment: u64, from: u64, len: u64) -> (Option<u64>, bool) {
    let (mut start, mut unread) = (from, false);
    while start + ALIGN as u64 <= len {
        let bytes =
            usize::try_from(len - start).map_or(SCAN_BYTES, |left| left.min(SCAN_BYTES)) / ALIGN * ALIGN;
        // A region that can't be read is stepped over like any other damage.
        match read_range(file, start, bytes, len) {
            Ok(chunk) => {
                for (index, block) in chunk.chunks_exact(ALIGN).enumerate() {
                    let offset = start + (index * ALIGN) as u64;
                    let is_group = GroupHeader::announced_len(block).is_ok();
                    if is_group && read_group(file, segment, offset, len).is_ok() {
                        return (Some(offset), unread);
                    }
                }
            }
            Err(miss) => unread |= miss.unread,
        }
        start += bytes as u64;
    }
    (None, unread)
}
