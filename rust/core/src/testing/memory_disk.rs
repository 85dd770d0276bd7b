//! [`MemoryDisk`]: a disk in memory that crashes, tears, fails and fills up on demand.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use super::faults::{Effect, Fault, Faults, OpKind, Verdict};
use super::inode::Content;
use super::names::{Inode, Names, Node};
use super::random::Seeded;
use crate::io::names::{check_dir, check_name, split};
use crate::io::{Access, Disk, DiskFile, Entry, Usage};

/// A [`Disk`] in memory with two images of everything: *live*, which its users see, and
/// *durable*, which power loss leaves.
///
/// - [`DiskFile::sync`] makes a file's bytes durable, [`Disk::sync_dir`] the names in a
///   directory (not those below it). Neither does the other's work: a file that was synced
///   under a name that was not is not found after a crash.
/// - [`MemoryDisk::crash`] gives the disk that a machine would find after power loss: of
///   each write that was not synced nothing, all or some 512-byte sectors; of the name
///   changes that were not synced any subset, each whole. Drawn from a seed.
/// - [`MemoryDisk::power_off_after`] stops everything at the n-th operation, which is the
///   one that is under way when the power fails: a write or a change of names may leave
///   traces, a sync has done nothing.
/// - [`MemoryDisk::plan`] makes a chosen operation fail, end short, lie or flip a bit.
/// - [`MemoryDisk::set_capacity`] makes the disk full after so many bytes.
///
/// Clones share the disk. A sweep runs its scenario once, reads [`MemoryDisk::count`],
/// then repeats it with a fault at every number below.
#[derive(Clone)]
pub struct MemoryDisk {
    state: Arc<Mutex<State>>,
}

struct State {
    names: Names,
    faults: Faults,
    capacity_bytes: Option<u64>,
}

impl Default for MemoryDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryDisk {
    /// An empty disk without limits or faults.
    pub fn new() -> Self {
        Self::with_names(Names::default())
    }

    fn with_names(names: Names) -> Self {
        let state = State { names, faults: Faults::default(), capacity_bytes: None };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The disk after power loss now: no faults, no limit, counters at zero. This one goes
    /// on as it was, so that one moment can be crashed with many seeds.
    #[must_use]
    pub fn crash(&self, seed: u64) -> Self {
        Self::with_names(self.lock().names.after_crash(&mut Seeded::new(seed)))
    }

    /// The first `count` operations (of `kind`, or of all kinds) from now on succeed; the
    /// next one and everything after it fail.
    pub fn power_off_after(&self, kind: Option<OpKind>, count: u64) {
        self.lock().faults.power_off_after(kind, count);
    }

    /// Whether the power has failed.
    pub fn is_off(&self) -> bool {
        self.lock().faults.is_off()
    }

    /// Adds a fault. Of several that hit one operation, the first that was planned wins.
    pub fn plan(&self, fault: Fault) {
        self.lock().faults.plan(fault);
    }

    /// Removes all faults and switches the power on again.
    pub fn clear_faults(&self) {
        self.lock().faults.clear();
    }

    /// From now on the files hold at most this many bytes in all; `None` lifts the limit.
    pub fn set_capacity(&self, capacity_bytes: Option<u64>) {
        self.lock().capacity_bytes = capacity_bytes;
    }

    /// Operations so far, of one kind or of all, failed ones included, those after the
    /// power failed excluded.
    pub fn count(&self, kind: Option<OpKind>) -> u64 {
        self.lock().faults.count(kind)
    }

    /// Flips one bit of a file, in both images: a medium that rots. Nothing happens beyond
    /// the end of the file. Not counted as an operation.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn rot(&self, name: &str, bit: u64) -> io::Result<()> {
        self.lock().names.file(name)?.lock().flip_bit(bit);
        Ok(())
    }

    /// A file's live content. Not counted as an operation.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn content(&self, name: &str) -> io::Result<Vec<u8>> {
        Ok(self.lock().names.file(name)?.lock().live.clone())
    }

    /// Runs an operation that changes no file content.
    fn run<T>(&self, kind: OpKind, f: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.lock();
        match state.faults.judge(kind) {
            Verdict::Proceed | Verdict::Misbehave(Effect::FlipBit(_) | Effect::Ignore) => f(&mut state),
            Verdict::Misbehave(Effect::Fail(error) | Effect::Short(_, error)) => Err(planned(error)),
            Verdict::LastTraces => {
                // A sync that was cut off has made nothing durable; a change of names is
                // pending like any other, so that a crash may or may not show it.
                if kind != OpKind::SyncDir {
                    f(&mut state)?;
                }
                Err(no_power())
            }
            Verdict::Off => Err(no_power()),
        }
    }
}

fn no_power() -> io::Error {
    io::Error::other("the power is off")
}

fn planned(kind: io::ErrorKind) -> io::Error {
    io::Error::new(kind, format!("planned fault: {kind}"))
}

impl State {
    fn used_bytes(&self) -> u64 {
        self.names.files().map(|inode| inode.lock().live.len() as u64).sum()
    }

    /// How many of `len` bytes at `offset` of a file of `file_len` bytes still fit.
    fn fitting(&self, file_len: usize, offset: usize, len: usize) -> usize {
        let Some(capacity) = self.capacity_bytes else { return len };
        let free = capacity.saturating_sub(self.used_bytes());
        let end_max = (file_len as u64).saturating_add(free);
        len.min(end_max.saturating_sub(offset as u64) as usize)
    }
}

impl Disk for MemoryDisk {
    fn describe(&self) -> String {
        "memory".to_owned()
    }

    fn open(&self, name: &str, access: Access, _usage: Usage) -> io::Result<Arc<dyn DiskFile>> {
        check_name(name)?;
        let kind = if access == Access::Create { OpKind::Create } else { OpKind::Open };
        let inode = self.run(kind, |state| {
            if access != Access::Create {
                return state.names.file(name).cloned();
            }
            state.names.require_dir(split(name).0)?;
            if state.names.get(name).is_some() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            let inode = Inode::new(Content::empty());
            state.names.set(name, Node::File(Arc::clone(&inode)));
            Ok(inode)
        })?;
        Ok(Arc::new(MemoryFile { disk: self.clone(), inode, writable: access != Access::Read }))
    }

    fn list(&self, dir: &str) -> io::Result<Vec<Entry>> {
        check_dir(dir)?;
        self.run(OpKind::List, |state| {
            state.names.require_dir(dir)?;
            let entries = state.names.inside(dir).map(|(name, node)| match node {
                Node::Dir => {
                    Entry { name: name.clone(), len: 0, modified: SystemTime::UNIX_EPOCH, is_file: false }
                }
                Node::File(inode) => {
                    let content = inode.lock();
                    let len = content.live.len() as u64;
                    Entry { name: name.clone(), len, modified: content.modified, is_file: true }
                }
            });
            Ok(entries.collect())
        })
    }

    fn create_dir(&self, dir: &str) -> io::Result<()> {
        check_name(dir)?;
        self.run(OpKind::CreateDir, |state| {
            state.names.require_dir(split(dir).0)?;
            match state.names.get(dir) {
                Some(Node::Dir) => {}
                Some(Node::File(_)) => return Err(io::ErrorKind::NotADirectory.into()),
                None => state.names.set(dir, Node::Dir),
            }
            Ok(())
        })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        check_name(from)?;
        check_name(to)?;
        self.run(OpKind::Rename, |state| {
            let inode = Arc::clone(state.names.file(from)?);
            state.names.require_dir(split(to).0)?;
            if matches!(state.names.get(to), Some(Node::Dir)) {
                return Err(io::ErrorKind::IsADirectory.into());
            }
            if from != to {
                state.names.rename(from, to, Node::File(inode));
            }
            Ok(())
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        check_name(name)?;
        self.run(OpKind::Remove, |state| {
            state.names.file(name)?;
            state.names.unset(name);
            Ok(())
        })
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        check_dir(dir)?;
        let mut state = self.lock();
        if state.faults.judge_sync(OpKind::SyncDir)? {
            state.names.require_dir(dir)?;
            state.names.sync_dir(dir);
        }
        Ok(())
    }

    fn touch(&self, name: &str) -> io::Result<()> {
        check_name(name)?;
        self.run(OpKind::Touch, |state| {
            let mut content = state.names.file(name)?.lock();
            // Two touches in one tick of the clock still differ.
            content.modified = SystemTime::now().max(content.modified + Duration::from_nanos(1));
            Ok(())
        })
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.run(OpKind::FreeBytes, |state| {
            // Without a limit: more than any test asks for, and far from overflowing sums.
            let capacity = state.capacity_bytes.unwrap_or(1 << 50);
            Ok(capacity.saturating_sub(state.used_bytes()))
        })
    }
}

/// An open file. It outlives its name, as on Unix.
struct MemoryFile {
    disk: MemoryDisk,
    inode: Arc<Inode>,
    writable: bool,
}

impl DiskFile for MemoryFile {
    fn len(&self) -> io::Result<u64> {
        self.disk.run(OpKind::Len, |_| Ok(self.inode.lock().live.len() as u64))
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let verdict = self.disk.lock().faults.judge(OpKind::Read);
        let content = self.inode.lock();
        let available = content.live.get(offset as usize..).unwrap_or(&[]);
        let wanted = match verdict {
            Verdict::Off | Verdict::LastTraces => return Err(no_power()),
            Verdict::Misbehave(Effect::Fail(error)) => return Err(planned(error)),
            Verdict::Misbehave(Effect::Short(count, _)) => count.min(buf.len()),
            _ => buf.len(),
        };
        let found = wanted.min(available.len());
        buf[..found].copy_from_slice(&available[..found]);
        match verdict {
            Verdict::Misbehave(Effect::Short(_, error)) => Err(planned(error)),
            _ if found < buf.len() => Err(io::ErrorKind::UnexpectedEof.into()),
            Verdict::Misbehave(Effect::FlipBit(bit)) => {
                if let Some(byte) = buf.get_mut((bit / 8) as usize) {
                    *byte ^= 1 << (bit % 8);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn write_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()> {
        if !self.writable {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let mut bytes = parts.concat();
        let offset = offset as usize;
        let mut state = self.disk.lock();
        let mut outcome = Ok(());
        match state.faults.judge(OpKind::Write) {
            Verdict::Proceed | Verdict::Misbehave(Effect::FlipBit(_)) => {}
            Verdict::Misbehave(Effect::Fail(error)) => return Err(planned(error)),
            Verdict::Misbehave(Effect::Ignore) => return Ok(()),
            Verdict::Misbehave(Effect::Short(count, error)) => {
                bytes.truncate(count);
                outcome = Err(planned(error));
            }
            Verdict::LastTraces => outcome = Err(no_power()),
            Verdict::Off => return Err(no_power()),
        }
        let file_len = self.inode.lock().live.len();
        let fitting = state.fitting(file_len, offset, bytes.len());
        if fitting < bytes.len() {
            // As a real disk does: what fits is written, and then there is no more room.
            bytes.truncate(fitting);
            outcome = outcome.and(Err(planned(io::ErrorKind::StorageFull)));
        }
        self.inode.lock().write(bytes, offset);
        drop(state);
        outcome
    }

    fn sync(&self) -> io::Result<()> {
        // As Windows has it, so that tests on any system notice.
        if !self.writable {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let mut state = self.disk.lock();
        if state.faults.judge_sync(OpKind::Sync)? {
            self.inode.lock().sync();
        }
        Ok(())
    }
}

impl Faults {
    /// For syncs: whether to do the work. `Ignore` says no, and claims success.
    fn judge_sync(&mut self, kind: OpKind) -> io::Result<bool> {
        match self.judge(kind) {
            Verdict::Proceed | Verdict::Misbehave(Effect::FlipBit(_)) => Ok(true),
            Verdict::Misbehave(Effect::Ignore) => Ok(false),
            Verdict::Misbehave(Effect::Fail(error) | Effect::Short(_, error)) => Err(planned(error)),
            Verdict::LastTraces | Verdict::Off => Err(no_power()),
        }
    }
}
