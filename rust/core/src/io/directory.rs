//! [`OsDisk`]: a real directory.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::file::{OsFile, is_refusal};
use super::mmap::MappedFile;
use super::names::{check_dir, check_name};
use super::{Access, Disk, DiskFile, Entry, Usage, platform};

/// How the files of page bodies are accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Past the page cache (`O_DIRECT`, `F_NOCACHE`); buffered where that is refused, or where
    /// the system has no such thing.
    Direct,
    /// Reads copy out of a mapping, writes go through the page cache.
    Mmap,
    /// Through the page cache.
    Buffered,
}

/// A private directory of the operating system: files 0600, directories 0700.
///
/// It holds the root open: on Unix it follows the directory when that is renamed. No
/// symbolic link below the root is followed, whether at the end of a name or on the way.
pub struct OsDisk {
    root: platform::Root,
    path: PathBuf,
    mode: Mode,
    direct_refused: Arc<AtomicBool>,
}

impl OsDisk {
    /// Opens an existing directory.
    ///
    /// # Errors
    /// `NotFound`, `NotADirectory`, or what the file system says.
    pub fn open(path: impl AsRef<Path>, mode: Mode) -> io::Result<Self> {
        let path = path.as_ref();
        Ok(Self::from_root(platform::Root::open(path)?, path, mode))
    }

    /// Opens a directory, creating it (and its parents) with mode 0700 where it is missing.
    /// The permissions of one that exists are left as they are.
    ///
    /// # Errors
    /// What the file system says.
    pub fn create(path: impl AsRef<Path>, mode: Mode) -> io::Result<Self> {
        let path = path.as_ref();
        Ok(Self::from_root(platform::Root::create(path)?, path, mode))
    }

    fn from_root(root: platform::Root, path: &Path, mode: Mode) -> Self {
        let mode = if mode == Mode::Direct && !platform::HAS_DIRECT { Mode::Buffered } else { mode };
        Self { root, path: path.to_path_buf(), mode, direct_refused: Arc::default() }
    }

    /// The directory, as it was named when opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The mode that page files really have: [`Mode::Buffered`] instead of
    /// [`Mode::Direct`] once the file system has refused direct I/O on one of them.
    pub fn effective_mode(&self) -> Mode {
        if self.mode == Mode::Direct && self.direct_refused.load(Ordering::Relaxed) {
            Mode::Buffered
        } else {
            self.mode
        }
    }

    fn open_direct(&self, name: &str, access: Access) -> io::Result<OsFile> {
        match self.root.open_file(name, access, true) {
            Ok(file) => Ok(OsFile::new(file, true, Arc::clone(&self.direct_refused))),
            Err(error) if is_refusal(&error) => {
                // An open that is refused for its flags may have created the file.
                let access = if access == Access::Create
                    && self.root.open_file(name, Access::Read, false).is_ok_and(|file| is_empty(&file))
                {
                    Access::Write
                } else {
                    access
                };
                let file = self.root.open_file(name, access, false)?;
                self.direct_refused.store(true, Ordering::Relaxed);
                Ok(OsFile::new(file, false, Arc::clone(&self.direct_refused)))
            }
            Err(error) => Err(error),
        }
    }

    fn open_buffered(&self, name: &str, access: Access) -> io::Result<OsFile> {
        let file = self.root.open_file(name, access, false)?;
        Ok(OsFile::new(file, false, Arc::clone(&self.direct_refused)))
    }
}

fn is_empty(file: &std::fs::File) -> bool {
    file.metadata().is_ok_and(|metadata| metadata.len() == 0)
}

impl Disk for OsDisk {
    fn describe(&self) -> String {
        self.path.display().to_string()
    }

    fn open(&self, name: &str, access: Access, usage: Usage) -> io::Result<Arc<dyn DiskFile>> {
        check_name(name)?;
        let mode = match usage {
            Usage::Metadata => return Ok(Arc::new(self.open_buffered(name, access)?)),
            Usage::Pages => self.mode,
        };
        Ok(match mode {
            Mode::Direct => Arc::new(self.open_direct(name, access)?),
            Mode::Mmap => Arc::new(MappedFile::new(self.open_buffered(name, access)?)),
            Mode::Buffered => {
                let file = self.open_buffered(name, access)?;
                // Pages are fetched at random and whole: reading ahead wastes the disk.
                platform::advise_random(file.file());
                Arc::new(file)
            }
        })
    }

    fn list(&self, dir: &str) -> io::Result<Vec<Entry>> {
        check_dir(dir)?;
        let mut entries = self.root.list(dir)?;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn create_dir(&self, dir: &str) -> io::Result<()> {
        check_name(dir)?;
        self.root.create_dir(dir)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        check_name(from)?;
        check_name(to)?;
        self.root.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        check_name(name)?;
        self.root.remove(name)
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        check_dir(dir)?;
        self.root.sync_dir(dir)
    }

    fn touch(&self, name: &str) -> io::Result<()> {
        check_name(name)?;
        self.root.touch(name)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.root.free_bytes()
    }
}
