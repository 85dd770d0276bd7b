//! One open file of the operating system: buffered or direct, positional, vectored.
//!
//! Direct I/O is a wish. Where the file system refuses it (`EINVAL`, when the file is
//! opened or at its first transfer) the file becomes a buffered one, for good, and says so.

use std::fs::File;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::aligned::{AlignedBuf, is_aligned};
use super::{ALIGN, DiskFile, platform};

/// The largest piece that goes through a bounce buffer at once, in bytes.
const BOUNCE_BYTES: usize = 1 << 20;

/// A file whose transfers go to the operating system.
pub(crate) struct OsFile {
    file: File,
    direct: AtomicBool,
    /// Shared with the disk: set once any of its files had to leave direct mode.
    refused: Arc<AtomicBool>,
}

impl OsFile {
    pub(crate) fn new(file: File, direct: bool, refused: Arc<AtomicBool>) -> Self {
        Self { file, direct: AtomicBool::new(direct), refused }
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    fn is_direct(&self) -> bool {
        self.direct.load(Ordering::Relaxed)
    }

    /// From now on through the page cache.
    fn leave_direct(&self) -> io::Result<()> {
        platform::set_direct(&self.file, false)?;
        self.direct.store(false, Ordering::Relaxed);
        self.refused.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Reads until `buf` is full or the file ends; the number of bytes read.
    fn read_up_to(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buf.len() {
            let at = offset + filled as u64;
            let rest = &mut buf[filled..];
            if self.is_direct() && !(is_aligned(rest) && at.is_multiple_of(ALIGN as u64)) {
                return Ok(filled + self.read_through_bounce(rest, at)?);
            }
            match platform::read_some_at(&self.file, rest, at) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if self.is_direct() && is_refusal(&error) => self.leave_direct()?,
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    /// Reads the aligned blocks that cover the range, and copies the range out of them.
    fn read_through_bounce(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buf.len() {
            let at = offset + filled as u64;
            let lead = (at % ALIGN as u64) as usize;
            let want = (buf.len() - filled).min(BOUNCE_BYTES);
            let mut bounce = AlignedBuf::zeroed((lead + want).next_multiple_of(ALIGN));
            let found = self.read_blocks(&mut bounce, at - lead as u64)?.saturating_sub(lead).min(want);
            buf[filled..filled + found].copy_from_slice(&bounce[lead..lead + found]);
            filled += found;
            if found < want {
                break;
            }
        }
        Ok(filled)
    }

    /// One aligned read, as far as the file goes. A short count is the end of the file:
    /// a direct read cannot be continued from the middle of a block.
    fn read_blocks(&self, bounce: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < bounce.len() {
            match platform::read_some_at(&self.file, &mut bounce[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => {
                    filled += count;
                    if !count.is_multiple_of(ALIGN) && self.is_direct() {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if self.is_direct() && is_refusal(&error) => self.leave_direct()?,
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn write_all(&self, slices: &mut [IoSlice<'_>], mut offset: u64) -> io::Result<()> {
        let mut rest = slices;
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            match platform::write_some_at(&self.file, rest, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    offset += count as u64;
                    IoSlice::advance_slices(&mut rest, count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if self.is_direct() && is_refusal(&error) => self.leave_direct()?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Direct writes of whole blocks out of memory that is not aligned.
    fn write_through_bounce(&self, parts: &[&[u8]], mut offset: u64) -> io::Result<()> {
        let mut bounce = AlignedBuf::zeroed(BOUNCE_BYTES);
        let mut filled = 0;
        for part in parts {
            let mut rest = *part;
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(rest.len().min(BOUNCE_BYTES - filled));
                bounce[filled..filled + piece.len()].copy_from_slice(piece);
                filled += piece.len();
                rest = after;
                if filled == BOUNCE_BYTES {
                    self.write_all(&mut [IoSlice::new(&bounce)], offset)?;
                    offset += filled as u64;
                    filled = 0;
                }
            }
        }
        self.write_all(&mut [IoSlice::new(&bounce[..filled])], offset)
    }
}

impl DiskFile for OsFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let wanted = buf.len();
        let found = self.read_up_to(buf, offset)?;
        if found == wanted { Ok(()) } else { Err(short_file(wanted, offset, found)) }
    }

    fn write_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()> {
        if self.is_direct() {
            let total: usize = parts.iter().map(|part| part.len()).sum();
            if !(offset.is_multiple_of(ALIGN as u64) && total.is_multiple_of(ALIGN)) {
                // Part of a block cannot be written directly without rewriting its
                // neighbours, which another thread may be doing just now.
                self.leave_direct()?;
            } else if !parts.iter().all(|part| is_aligned(part)) {
                return self.write_through_bounce(parts, offset);
            }
        }
        let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        self.write_all(&mut slices, offset)
    }

    fn sync(&self) -> io::Result<()> {
        // Data and the length, which is what reading back takes; not the times.
        self.file.sync_data()
    }

    #[cfg(unix)]
    fn raw_fd(&self) -> Option<i32> {
        Some(std::os::fd::AsRawFd::as_raw_fd(&self.file))
    }
}

/// The error for a read that goes past the end of the file.
pub(crate) fn short_file(wanted: usize, offset: u64, found: usize) -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        format!("the file ends {found} bytes after offset {offset}, where {wanted} bytes were expected"),
    )
}

/// `EINVAL`: how a file system says that it has no direct I/O, or wants other alignment.
pub(crate) fn is_refusal(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidInput
}
