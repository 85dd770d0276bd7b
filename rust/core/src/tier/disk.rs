//! The cold tier's files: which segments there are, where the next group goes, and which
//! bytes are known to be durable. Pure bookkeeping over a [`Disk`]; the store decides
//! what is written when, and an engine moves the bytes.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;

use crate::format::{
    ENTRY_BYTES, GroupHeader, PageEntry, SEGMENT_HEADER_BYTES, SegmentHeader, TRAILER_BYTES, Trailer,
    encode_contents,
};
use crate::io::{Access, AlignedBuf, Disk, DiskFile, Usage};

/// Files kept open at once: well under the 1,024 descriptors that a process usually may have,
/// whatever the size of the directory.
const OPEN_FILES_MAX: usize = 256;

/// Directory of the segment files.
pub const SEGMENTS_DIR: &str = "segments";

/// Where one page lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// Number of its segment.
    pub segment: u64,
    /// Its place there.
    pub entry: PageEntry,
    /// False for a page that a crash may have torn: it counts as stored only once it was
    /// read back whole.
    pub verified: bool,
}

impl Location {
    /// Whether both name the same bytes, whatever is known of them.
    pub fn is_at(&self, other: &Self) -> bool {
        (self.segment, self.entry) == (other.segment, other.entry)
    }
}

/// One segment file.
pub struct Segment {
    /// The open file, unless it was closed to spare descriptors; see [`Segments::file`].
    file: Option<Arc<dyn DiskFile>>,
    /// Deleted when the store closes.
    pub temporary: bool,
    /// Bytes that are written or promised to a writer.
    pub len: u64,
    /// Everything before this offset is durable.
    pub durable_until: u64,
    /// No group is added any more.
    pub finished: bool,
    /// Deleted when no page of it is used: false where a part of it could not be read.
    pub removable: bool,
    /// Groups on their way to the file.
    pub writes: u32,
    /// Pages that its table of contents will list.
    num_pages: u64,
    /// Pages of the segment that the store's index points to.
    pub live_pages: u64,
    /// What the table of contents will list; empty once finished.
    pub entries: Vec<PageEntry>,
}

impl Segment {
    fn new(len: u64) -> Self {
        Self {
            file: None,
            temporary: false,
            len,
            durable_until: 0,
            finished: false,
            removable: true,
            writes: 0,
            num_pages: 0,
            live_pages: 0,
            entries: Vec::new(),
        }
    }

    /// Whether the file may be closed and opened again for reading when it is needed.
    fn is_at_rest(&self) -> bool {
        self.finished && self.writes == 0 && (self.temporary || self.durable_until == self.len)
    }
}

/// A place for one group.
pub struct Placement {
    /// Number of the segment.
    pub segment: u64,
    /// Its file.
    pub file: Arc<dyn DiskFile>,
    /// The header, its entries' blocks filled in.
    pub header: GroupHeader,
}

/// All segments of a directory.
pub struct Segments {
    disk: Arc<dyn Disk>,
    files: BTreeMap<u64, Segment>,
    active: [Option<u64>; 2],
    next_id: u64,
    segment_bytes: u64,
    total_bytes: u64,
    /// Segments whose files are open, the longest open first.
    opened: VecDeque<u64>,
}

/// Path of a segment.
pub fn segment_name(id: u64) -> String {
    format!("{SEGMENTS_DIR}/{id:016x}.seg")
}

/// The number in a segment's file name.
pub fn segment_id(name: &str) -> Option<u64> {
    let digits = name.strip_prefix(SEGMENTS_DIR)?.strip_prefix('/')?.strip_suffix(".seg")?;
    let id = u64::from_str_radix(digits, 16).ok()?;
    // Spelled as this crate spells it, and with room for later numbers.
    (segment_name(id) == name && id < u64::MAX / 2).then_some(id)
}

impl Segments {
    /// No segments yet; new ones grow to about `segment_bytes` and are numbered from `next_id`.
    pub fn new(disk: Arc<dyn Disk>, segment_bytes: u64, next_id: u64) -> Self {
        let (files, opened) = (BTreeMap::new(), VecDeque::new());
        Self { disk, files, active: [None; 2], next_id, segment_bytes, total_bytes: 0, opened }
    }

    /// Keeps a number from being given to a new segment.
    pub fn reserve_id(&mut self, id: u64) {
        self.next_id = self.next_id.max(id.saturating_add(1));
    }

    /// Adds a segment that recovery found; its bytes are durable. It takes no more groups.
    pub fn adopt(&mut self, id: u64, len: u64, removable: bool) {
        self.total_bytes += len;
        self.reserve_id(id);
        let segment = Segment { durable_until: len, finished: true, removable, ..Segment::new(len) };
        self.files.insert(id, segment);
    }

    /// The segment's file, opened again where it had been closed.
    ///
    /// # Errors
    /// `NotFound` for an unknown segment or a file that is gone; else what the file system says.
    pub fn file(&mut self, id: u64) -> io::Result<Arc<dyn DiskFile>> {
        let segment = self.files.get_mut(&id).ok_or(io::ErrorKind::NotFound)?;
        if let Some(file) = &segment.file {
            return Ok(file.clone());
        }
        let file = self.disk.open(&segment_name(id), Access::Read, Usage::Pages)?;
        segment.file = Some(file.clone());
        self.note_opened(id);
        Ok(file)
    }

    /// Closes what was open longest where there is too much; a read under way keeps its file.
    fn note_opened(&mut self, id: u64) {
        self.opened.push_back(id);
        for _ in 0..self.opened.len().saturating_sub(OPEN_FILES_MAX) {
            let Some(oldest) = self.opened.pop_front() else { return };
            match self.files.get_mut(&oldest) {
                Some(segment) if segment.is_at_rest() => segment.file = None,
                Some(_) => self.opened.push_back(oldest),
                None => {}
            }
        }
    }

    /// Bytes of all segment files.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// Bytes that tables of contents will add.
    pub fn promised_bytes(&self) -> u64 {
        let open = |segment: &&Segment| !segment.finished && !segment.temporary;
        self.files.values().filter(open).map(|segment| tail_bytes(segment.num_pages)).sum()
    }

    /// A segment by number.
    pub fn get(&self, id: u64) -> Option<&Segment> {
        self.files.get(&id)
    }

    /// A segment by number, to account for it.
    pub fn get_mut(&mut self, id: u64) -> Option<&mut Segment> {
        self.files.get_mut(&id)
    }

    /// The index points to one page more of a segment, or one fewer.
    pub fn count_page(&mut self, location: &Location, more: bool) {
        let Some(segment) = self.files.get_mut(&location.segment) else { return };
        if more {
            segment.live_pages += 1;
        } else {
            segment.live_pages -= 1;
        }
    }

    /// All segments by number.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Segment)> {
        self.files.iter().map(|(id, segment)| (*id, segment))
    }

    /// Reserves the place for a group; `entries` have no blocks yet. Starts a new segment where needed.
    ///
    /// # Errors
    /// What the file system says to creating a segment.
    pub fn place(&mut self, temporary: bool, mut entries: Vec<PageEntry>) -> io::Result<Placement> {
        let id = self.writable(temporary)?;
        let file = self.file(id)?;
        let Some(segment) = self.files.get_mut(&id) else {
            return Err(io::Error::other("the active segment vanished"));
        };
        let offset = segment.len;
        let mut at = offset + GroupHeader::encoded_len(entries.len()) as u64;
        let bodies = at;
        for entry in &mut entries {
            entry.block = u32::try_from(at / crate::io::ALIGN as u64)
                .map_err(|_| io::Error::other("a segment outgrew its 16 TiB"))?;
            at += entry.padded_len();
        }
        let durable_until = segment.durable_until;
        let header = GroupHeader { segment: id, offset, durable_until, body_bytes: at - bodies, entries };
        self.total_bytes += at - segment.len;
        segment.len = at;
        segment.writes += 1;
        segment.num_pages += header.entries.len() as u64;
        Ok(Placement { segment: id, file, header })
    }

    /// The active segment, or a new one when there is none or it is full.
    fn writable(&mut self, temporary: bool) -> io::Result<u64> {
        let slot = usize::from(temporary);
        if let Some(id) = self.active[slot] {
            match self.files.get(&id) {
                Some(segment) if segment.len < self.segment_bytes && !segment.finished => return Ok(id),
                _ => self.active[slot] = None,
            }
        }
        let id = self.next_id;
        self.next_id += 1;
        let name = segment_name(id);
        let file = self.disk.open(&name, Access::Create, Usage::Pages)?;
        let header = AlignedBuf::padded(&SegmentHeader { id, temporary }.encode());
        if let Err(error) = file.write_at(&[&header], 0) {
            // Half a header is of no use; the next open deletes what can't be deleted now.
            let _ = self.disk.remove(&name);
            return Err(error);
        }
        self.total_bytes += SEGMENT_HEADER_BYTES as u64;
        let segment = Segment { file: Some(file), temporary, ..Segment::new(SEGMENT_HEADER_BYTES as u64) };
        self.files.insert(id, segment);
        self.note_opened(id);
        self.active[slot] = Some(id);
        Ok(id)
    }

    /// No group is added to the segment any more.
    pub fn finish(&mut self, id: u64) {
        if let Some(segment) = self.files.get_mut(&id) {
            segment.finished = true;
        }
    }

    /// A write ended: well, or so that nothing more may be appended behind it.
    pub fn wrote(&mut self, header: &GroupHeader, well: bool) {
        let Some(segment) = self.files.get_mut(&header.segment) else { return };
        segment.writes -= 1;
        if well {
            segment.entries.extend_from_slice(&header.entries);
        } else {
            segment.finished = true;
        }
    }

    /// Segments that have bytes to be made durable, and up to where they are once synced: a
    /// group that is being moved there just now is not in the file yet.
    pub fn unsynced(&self) -> Vec<(u64, Arc<dyn DiskFile>, u64)> {
        let until = |segment: &Segment| if segment.writes == 0 { segment.len } else { segment.durable_until };
        self.files
            .iter()
            .filter(|(_, segment)| !segment.temporary && segment.durable_until < segment.len)
            .filter_map(|(id, segment)| Some((*id, segment.file.clone()?, until(segment))))
            .collect()
    }

    /// Full segments whose table of contents is not written yet, with that table.
    pub fn unfinished_full(&mut self, all: bool) -> Vec<Closing> {
        let full = |segment: &Segment| {
            let active = !segment.temporary && !segment.finished && segment.writes == 0;
            active && !segment.entries.is_empty() && (all || segment.len >= self.segment_bytes)
        };
        let ids: Vec<u64> =
            self.files.iter().filter(|(_, segment)| full(segment)).map(|(id, _)| *id).collect();
        ids.into_iter().filter_map(|id| self.close(id)).collect()
    }

    fn close(&mut self, id: u64) -> Option<Closing> {
        let segment = self.files.get_mut(&id)?;
        let file = segment.file.clone()?;
        segment.finished = true;
        let contents = encode_contents(&segment.entries);
        let trailer = Trailer {
            segment: id,
            contents_offset: segment.len,
            num_entries: segment.entries.len() as u64,
            contents_crc: contents.crc,
        };
        segment.entries = Vec::new();
        let mut tail = contents.bytes;
        tail.extend_from_slice(&trailer.encode());
        let offset = segment.len;
        segment.len += tail.len() as u64;
        self.total_bytes += tail.len() as u64;
        Some(Closing { file, offset, tail: AlignedBuf::padded(&tail) })
    }

    /// Takes a segment out; its file is then the caller's to delete.
    pub fn take(&mut self, id: u64) -> Option<Segment> {
        let segment = self.files.remove(&id)?;
        self.total_bytes -= segment.len;
        for active in &mut self.active {
            if *active == Some(id) {
                *active = None;
            }
        }
        Some(segment)
    }
}

/// Bytes that a group of pages (their padded lengths) adds at most: with the header of a new
/// segment and the group's share of a table of contents.
pub fn group_bytes(padded_lens: impl ExactSizeIterator<Item = u64>) -> u64 {
    let count = padded_lens.len();
    let headers = GroupHeader::encoded_len(count) + SEGMENT_HEADER_BYTES;
    headers as u64 + tail_bytes(count as u64) + padded_lens.sum::<u64>()
}

/// Bytes of a table of contents with its trailer.
fn tail_bytes(num_pages: u64) -> u64 {
    (num_pages * ENTRY_BYTES as u64).next_multiple_of(crate::io::ALIGN as u64) + TRAILER_BYTES as u64
}

/// The table of contents of a segment that takes no more groups.
pub struct Closing {
    file: Arc<dyn DiskFile>,
    offset: u64,
    tail: AlignedBuf,
}

impl Closing {
    /// Writes it. Losing it costs a scan of the group headers, nothing else.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self) -> io::Result<()> {
        self.file.write_at(&[&self.tail], self.offset)
    }
}
