//! Systems without descriptors relative to a directory (Windows): plain paths, and a
//! check of every component for links before it is used.
#![expect(unsafe_code, reason = "the standard library has no call for free disk space")]

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::windows::ffi::OsStrExt;
use std::os::windows::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::io::names::join;
use crate::io::{Access, Entry};

#[link(name = "kernel32")]
unsafe extern "system" {
    fn GetDiskFreeSpaceExW(
        directory: *const u16,
        free_to_caller: *mut u64,
        total: *mut u64,
        total_free: *mut u64,
    ) -> i32;
}

/// Windows has such a mode, but an open file can't leave it when it has to.
pub(in crate::io) const HAS_DIRECT: bool = false;

/// A directory; names are resolved below it.
pub(in crate::io) struct Root {
    path: PathBuf,
}

impl Root {
    pub(in crate::io) fn open(path: &Path) -> io::Result<Self> {
        if !fs::metadata(path)?.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(Self { path: path.canonicalize()? })
    }

    pub(in crate::io) fn create(path: &Path) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        Self::open(path)
    }

    /// The full path of `name`, none of whose existing components is a link.
    fn resolve(&self, name: &str) -> io::Result<PathBuf> {
        let mut path = self.path.clone();
        for part in name.split('/').filter(|part| !part.is_empty()) {
            path.push(part);
            if fs::symlink_metadata(&path).is_ok_and(|found| found.file_type().is_symlink()) {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("{} is a symbolic link", path.display()),
                ));
            }
        }
        Ok(path)
    }

    pub(in crate::io) fn open_file(&self, name: &str, access: Access, _direct: bool) -> io::Result<File> {
        let path = self.resolve(name)?;
        let mut options = OpenOptions::new();
        match access {
            Access::Read => options.read(true),
            Access::Write => options.read(true).write(true),
            Access::Create => options.read(true).write(true).create_new(true),
        };
        options.open(path)
    }

    pub(in crate::io) fn list(&self, dir: &str) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for found in fs::read_dir(self.resolve(dir)?)? {
            let found = found?;
            // Not the entry's own: a directory may be told of a file's length only when the
            // file is closed, and an empty segment is deleted.
            let metadata = match fs::symlink_metadata(found.path()) {
                // Removed between the listing and here.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            let leaf = found.file_name();
            entries.push(Entry {
                name: join(dir, &leaf.to_string_lossy()),
                len: metadata.len(),
                modified: metadata.modified()?,
                is_file: metadata.is_file() && leaf.to_str().is_some(),
            });
        }
        Ok(entries)
    }

    pub(in crate::io) fn create_dir(&self, dir: &str) -> io::Result<()> {
        let path = self.resolve(dir)?;
        match fs::create_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            other => other,
        }
    }

    pub(in crate::io) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.resolve(from)?, self.resolve(to)?)
    }

    pub(in crate::io) fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.resolve(name)?)
    }

    /// The file system journals names by itself; a directory cannot be flushed here.
    pub(in crate::io) fn sync_dir(&self, dir: &str) -> io::Result<()> {
        fs::metadata(self.resolve(dir)?).map(drop)
    }

    pub(in crate::io) fn touch(&self, name: &str) -> io::Result<()> {
        self.open_file(name, Access::Write, false)?.set_modified(SystemTime::now())
    }

    pub(in crate::io) fn free_bytes(&self) -> io::Result<u64> {
        let wide: Vec<u16> = self.path.as_os_str().encode_wide().chain(Some(0)).collect();
        let mut free = 0_u64;
        // SAFETY: the path ends with a NUL, `free` outlives the call, and the two
        // results that are not wanted may be null.
        let done = unsafe {
            GetDiskFreeSpaceExW(wide.as_ptr(), &raw mut free, std::ptr::null_mut(), std::ptr::null_mut())
        };
        if done == 0 { Err(io::Error::last_os_error()) } else { Ok(free) }
    }
}

pub(in crate::io) fn read_some_at(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    file.seek_read(buf, offset)
}

pub(in crate::io) fn write_some_at(file: &File, parts: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
    let first = parts.iter().find(|part| !part.is_empty());
    first.map_or(Ok(0), |part| file.seek_write(part, offset))
}

pub(in crate::io) fn set_direct(_file: &File, _direct: bool) -> io::Result<()> {
    Ok(())
}

pub(in crate::io) fn advise_random(_file: &File) {}

pub(in crate::io) fn will_need(_file: &File, _offset: u64, _len: u64) {}
