//! Unix: everything relative to a descriptor of the root, one component at a time, so
//! that no symbolic link on the way is ever followed.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};

use crate::io::names::{join, split};
use crate::io::{Access, Entry};

const PRIVATE_FILE: Mode = Mode::RUSR.union(Mode::WUSR);
const PRIVATE_DIR: Mode = Mode::RWXU;
const OPEN_DIR: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Whether the page cache can be passed by at all.
pub(in crate::io) const HAS_DIRECT: bool = cfg!(any(target_os = "linux", target_vendor = "apple"));

/// An open directory; names are resolved below it.
pub(in crate::io) struct Root {
    fd: OwnedFd,
}

impl Root {
    pub(in crate::io) fn open(path: &Path) -> io::Result<Self> {
        // The root itself may be a link: where the store lives is the user's choice.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { fd: rustix::fs::open(path, flags, Mode::empty())? })
    }

    pub(in crate::io) fn create(path: &Path) -> io::Result<Self> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        Self::open(path)
    }

    /// Runs `f` with the directory that holds `name`, and the last part of `name`.
    fn with_parent<T>(
        &self,
        name: &str,
        f: impl FnOnce(BorrowedFd<'_>, &str) -> rustix::io::Result<T>,
    ) -> io::Result<T> {
        let (dir, leaf) = split(name);
        let parent = self.dir(dir)?;
        Ok(f(parent.as_ref().map_or(self.fd.as_fd(), AsFd::as_fd), leaf)?)
    }

    /// Opens `dir`; `None` is the root.
    fn dir(&self, dir: &str) -> io::Result<Option<OwnedFd>> {
        let mut here: Option<OwnedFd> = None;
        for part in dir.split('/').filter(|part| !part.is_empty()) {
            let from = here.as_ref().map_or(self.fd.as_fd(), AsFd::as_fd);
            here = Some(rustix::fs::openat(from, part, OPEN_DIR, Mode::empty())?);
        }
        Ok(here)
    }

    pub(in crate::io) fn open_file(&self, name: &str, access: Access, direct: bool) -> io::Result<File> {
        let mut flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
        flags |= match access {
            Access::Read => OFlags::RDONLY,
            Access::Write => OFlags::RDWR,
            Access::Create => OFlags::RDWR | OFlags::CREATE | OFlags::EXCL,
        };
        #[cfg(target_os = "linux")]
        if direct {
            flags |= OFlags::DIRECT;
        }
        let fd = self.with_parent(name, |parent, leaf| {
            let fd = rustix::fs::openat(parent, leaf, flags, PRIVATE_FILE)?;
            let kind = FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode);
            if kind.is_file() { Ok(fd) } else { Err(rustix::io::Errno::INVAL) }
        })?;
        let file = File::from(fd);
        #[cfg(target_vendor = "apple")]
        if direct {
            set_direct(&file, true)?;
        }
        #[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
        let _ = direct;
        Ok(file)
    }

    pub(in crate::io) fn list(&self, dir: &str) -> io::Result<Vec<Entry>> {
        let opened = self.dir(dir)?;
        let fd = opened.as_ref().map_or(self.fd.as_fd(), AsFd::as_fd);
        let mut entries = Vec::new();
        for found in rustix::fs::Dir::read_from(fd)? {
            let found = found?;
            let leaf = found.file_name();
            if leaf == c"." || leaf == c".." {
                continue;
            }
            let stat = match rustix::fs::statat(fd, leaf, AtFlags::SYMLINK_NOFOLLOW) {
                // Removed between the listing and here.
                Err(rustix::io::Errno::NOENT) => continue,
                other => other?,
            };
            let is_file = FileType::from_raw_mode(stat.st_mode).is_file();
            entries.push(Entry {
                name: join(dir, &leaf.to_string_lossy()),
                len: u64::try_from(stat.st_size).unwrap_or(0),
                modified: modified(&stat),
                // A name that is not UTF-8 is none of ours and cannot be opened here.
                is_file: is_file && leaf.to_str().is_ok(),
            });
        }
        Ok(entries)
    }

    pub(in crate::io) fn create_dir(&self, dir: &str) -> io::Result<()> {
        self.with_parent(dir, |parent, leaf| match rustix::fs::mkdirat(parent, leaf, PRIVATE_DIR) {
            Err(rustix::io::Errno::EXIST) => {
                // Something else of that name is an error, a directory is not.
                rustix::fs::openat(parent, leaf, OPEN_DIR, Mode::empty()).map(drop)
            }
            other => other,
        })
    }

    pub(in crate::io) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (from_dir, from_leaf) = split(from);
        let from_parent = self.dir(from_dir)?;
        let from_fd = from_parent.as_ref().map_or(self.fd.as_fd(), AsFd::as_fd);
        self.with_parent(to, |parent, leaf| rustix::fs::renameat(from_fd, from_leaf, parent, leaf))
    }

    pub(in crate::io) fn remove(&self, name: &str) -> io::Result<()> {
        self.with_parent(name, |parent, leaf| rustix::fs::unlinkat(parent, leaf, AtFlags::empty()))
    }

    pub(in crate::io) fn sync_dir(&self, dir: &str) -> io::Result<()> {
        let opened = self.dir(dir)?;
        let fd = opened.as_ref().map_or(self.fd.as_fd(), AsFd::as_fd);
        Ok(rustix::fs::fsync(fd)?)
    }

    pub(in crate::io) fn touch(&self, name: &str) -> io::Result<()> {
        self.open_file(name, Access::Read, false)?.set_modified(SystemTime::now())
    }

    pub(in crate::io) fn free_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::fstatvfs(&self.fd)?;
        // `bavail`, not `bfree`: what is kept for root is not ours.
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

#[allow(clippy::unnecessary_cast, reason = "the fields' types differ between systems")]
fn modified(stat: &rustix::fs::Stat) -> SystemTime {
    let nanos = Duration::from_nanos(stat.st_mtime_nsec as u64);
    match u64::try_from(stat.st_mtime as i64) {
        Ok(seconds) => SystemTime::UNIX_EPOCH + Duration::from_secs(seconds) + nanos,
        Err(_) => SystemTime::UNIX_EPOCH,
    }
}

pub(in crate::io) fn read_some_at(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    file.read_at(buf, offset)
}

/// Writes a prefix of `parts` (rustix keeps to the kernel's limit on their number).
pub(in crate::io) fn write_some_at(file: &File, parts: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
    Ok(rustix::io::pwritev(file, parts, offset)?)
}

/// Turns the page cache off or on for an open file. A no-op where there is no such switch.
pub(in crate::io) fn set_direct(file: &File, direct: bool) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        let mut flags = rustix::fs::fcntl_getfl(file)?;
        flags.set(OFlags::DIRECT, direct);
        rustix::fs::fcntl_setfl(file, flags)?;
    }
    #[cfg(target_vendor = "apple")]
    rustix::fs::fcntl_nocache(file, direct)?;
    #[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
    let _ = (file, direct);
    Ok(())
}

/// Says that reads are at random, so that the kernel does not read ahead. Best effort.
pub(in crate::io) fn advise_random(file: &File) {
    #[cfg(target_os = "linux")]
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::Random);
    #[cfg(not(target_os = "linux"))]
    let _ = file;
}

/// Asks for a range to be read into the page cache, and does not wait. Best effort.
pub(in crate::io) fn will_need(file: &File, offset: u64, len: u64) {
    #[cfg(target_os = "linux")]
    let _ = rustix::fs::fadvise(file, offset, std::num::NonZeroU64::new(len), rustix::fs::Advice::WillNeed);
    #[cfg(target_vendor = "apple")]
    let _ = rustix::fs::fcntl_rdadvise(file, offset, len);
    #[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
    let _ = (file, offset, len);
}
