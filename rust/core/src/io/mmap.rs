//! Files whose reads copy out of a mapping.
//!
//! Nothing outside this file sees the mapped memory: reads copy, writes go through
//! `pwrite` (coherent with the mapping, both being the page cache). The file MUST NOT be
//! truncated while it is mapped; nothing in the crate does. If another program does so
//! between the length check and the copy, or if the device fails under a mapped page, the
//! kernel ends the process with SIGBUS: that is the price of this mode, and the reason
//! that it is never chosen unasked.
#![expect(unsafe_code, reason = "copying out of memory that other processes may change")]

use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use memmap2::{MmapOptions, MmapRaw};

use super::DiskFile;
use super::file::{OsFile, short_file};

/// Address space is mapped in steps of this many bytes, ahead of the file's end, so that
/// a growing file is seldom remapped. A page past the end is mapped but never touched.
const STEP_BYTES: u64 = 256 << 20;

/// From this length on the kernel is told of the whole range before the copy faults it
/// in: one large read instead of a chain of small ones.
#[cfg(unix)]
const ADVISE_BYTES: usize = 16 << 10;

/// A file with a mapping for its reads.
pub(crate) struct MappedFile {
    file: OsFile,
    map: RwLock<Option<Arc<MmapRaw>>>,
}

impl MappedFile {
    pub(crate) fn new(file: OsFile) -> Self {
        Self { file, map: RwLock::new(None) }
    }

    /// A mapping of at least `end` bytes of a file that is `len` bytes long, `len >= end`.
    fn mapping(&self, end: u64, len: u64) -> io::Result<Arc<MmapRaw>> {
        let covers = |map: &&Arc<MmapRaw>| map.len() as u64 >= end;
        if let Some(map) = self.map.read().unwrap_or_else(PoisonError::into_inner).as_ref().filter(covers) {
            return Ok(Arc::clone(map));
        }
        let mut slot = self.map.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(map) = slot.as_ref().filter(covers) {
            return Ok(Arc::clone(map));
        }
        // Elsewhere a mapping longer than the file is an error, or grows the file.
        let target = if cfg!(unix) { len.next_multiple_of(STEP_BYTES) } else { len };
        let length = usize::try_from(target).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        let map = Arc::new(MmapOptions::new().len(length).map_raw_read_only(self.file.file())?);
        *slot = Some(Arc::clone(&map));
        Ok(map)
    }
}

impl DiskFile for MappedFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let len = self.file.len()?;
        let end = offset.checked_add(buf.len() as u64).filter(|&end| end <= len);
        let Some(end) = end else {
            let found = len.saturating_sub(offset).min(buf.len() as u64);
            return Err(short_file(buf.len(), offset, found as usize));
        };
        if buf.is_empty() {
            return Ok(());
        }
        let map = self.mapping(end, len)?;
        let start = offset as usize;
        #[cfg(unix)]
        if buf.len() >= ADVISE_BYTES {
            // Advice only: without it the same pages arrive one fault at a time.
            let _ = map.advise_range(memmap2::Advice::WillNeed, start, buf.len());
        }
        // SAFETY: `start + buf.len() == end`, which is within the mapping and, as checked
        // just now, within the file. The mapping is held by `map` for the whole copy. Its
        // bytes are only read through raw pointers, never as a slice, since other threads
        // may write the file; `buf` is exclusive, and no mapping of this file is writable.
        unsafe { std::ptr::copy_nonoverlapping(map.as_ptr().add(start), buf.as_mut_ptr(), buf.len()) };
        Ok(())
    }

    fn write_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()> {
        self.file.write_at(parts, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }
}
