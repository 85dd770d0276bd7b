//! The store: pages by key, in whichever tier holds them.
//!
//! Callers see keys, pages and requests. What is behind them (which pages stay in RAM,
//! when they are written, where on disk they are) is decided here and nowhere else.
//!
//! One lock guards the bookkeeping (`state.rs`); no I/O happens under it but the creation
//! of a segment file. A background thread writes (`writer.rs`), an I/O engine's threads
//! complete reads (`request.rs`), and memory is freed by whoever needs some (`memory.rs`).

mod config;
mod memory;
mod request;
mod room;
mod seal;
mod sessions;
mod state;
mod stats;
#[cfg(test)]
mod tests;
mod writer;

use std::sync::Arc;
use std::time::{Duration, Instant};

pub use config::StoreConfig;
pub use request::Request;
pub use room::Freed;
pub use seal::Planes;
pub use sessions::{SessionInfo, Verification};
pub use state::Counters;
pub use stats::Stats;

use self::state::{Copy, State};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::io::{ALIGN, Disk, IoEngine, IoOp, OsDisk, open_engine};
use crate::key::PageKey;
use crate::policy::{KeyMap, new_policy};
use crate::recovery::{Recovered, recover};
use crate::sync::thread::JoinHandle;
use crate::sync::{AtomicBool, Condvar, Mutex, MutexGuard, Ordering};
use crate::tier::lock::DirectoryLock;
use crate::tier::ram::{Arena, PageMut};

/// How often a wait looks for Ctrl-C.
const TICK: Duration = Duration::from_millis(50);

/// A store of pages. Cheap to clone; all clones are one store, closed with the last.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
    /// Ends the writer when the last clone goes.
    _closer: Arc<Closer>,
}

struct Closer(Arc<Inner>);

impl Drop for Closer {
    fn drop(&mut self) {
        let _ = self.0.close();
    }
}

pub(crate) struct Inner {
    config: StoreConfig,
    arena: Arena,
    state: Mutex<State>,
    changed: Condvar,
    /// For the writer only.
    work: Condvar,
    disk: Option<Arc<dyn Disk>>,
    engine: Arc<dyn IoEngine>,
    writer: Mutex<Option<JoinHandle<()>>>,
    lock: Mutex<Option<DirectoryLock>>,
    /// Held while files are deleted to make room.
    room: Mutex<()>,
    closed: AtomicBool,
    owner: u32,
    report: Vec<String>,
}

/// How long a page's values can be of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// Its key is an identity: it is written to disk and may serve any later session.
    Durable,
    /// Its key means something only to the caches that hold it: it is written only to
    /// make room, and gone with its last reference.
    Private,
}

impl Store {
    /// Opens the store that `config` describes.
    ///
    /// # Errors
    /// `Locked` when another process writes the directory; `Io`.
    pub fn open(config: &StoreConfig) -> Result<Self> {
        let io = config.backend.config();
        let Some(directory) = &config.directory else {
            return Self::assemble(config, None, open_engine(io.engine), None);
        };
        let opened = if config.read_only {
            OsDisk::open(directory, io.mode)
        } else {
            OsDisk::create(directory, io.mode)
        };
        let disk = opened.map_err(|error| Error::io("open", directory, error))?;
        let lock = if config.read_only { None } else { Some(DirectoryLock::take(directory)?) };
        Self::assemble(config, Some(Arc::new(disk)), open_engine(io.engine), lock)
    }

    /// Opens a store over any disk and engine, without a lock: for tests.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_on(config: &StoreConfig, disk: Arc<dyn Disk>, engine: Arc<dyn IoEngine>) -> Result<Self> {
        Self::assemble(config, Some(disk), engine, None)
    }

    fn assemble(
        config: &StoreConfig,
        disk: Option<Arc<dyn Disk>>,
        engine: Arc<dyn IoEngine>,
        lock: Option<DirectoryLock>,
    ) -> Result<Self> {
        config.check()?;
        let (mut segments, mut index, mut report) = (None, KeyMap::default(), Vec::new());
        if let Some(disk) = &disk {
            let recovered = recover(disk, config.segment_bytes(), config.read_only)?;
            let Recovered { segments: found, index: pages, report: flaws } = recovered;
            (segments, index, report) = (Some(found), pages, flaws);
        }
        let policy = new_policy(config.policy, config.expected_pages());
        let mut state = State::new(policy, segments, index);
        if let Some(disk) = &disk {
            state.session_bytes = sessions::survey(disk.as_ref(), config.read_only, &mut report)?;
        }
        let inner = Arc::new(Inner {
            config: config.clone(),
            arena: Arena::new(config.ram_bytes),
            state: Mutex::new(state),
            changed: Condvar::new(),
            work: Condvar::new(),
            disk,
            engine,
            writer: Mutex::new(None),
            lock: Mutex::new(lock),
            room: Mutex::new(()),
            closed: AtomicBool::new(false),
            owner: std::process::id(),
            report,
        });
        if inner.can_write() {
            inner.start_writer()?;
        }
        Ok(Self { _closer: Arc::new(Closer(inner.clone())), inner })
    }

    /// How the store was opened.
    pub fn config(&self) -> &StoreConfig {
        &self.inner.config
    }

    /// What opening found and dropped, one sentence each; empty when all was well.
    pub fn recovery_report(&self) -> &[String] {
        &self.inner.report
    }

    /// A slot for a page of `len` bytes, moving others out where the limit needs it. May wait for writes.
    ///
    /// # Errors
    /// `RamFull` when nothing can be moved out; `DiskFull`; `Io`; `Interrupted`.
    pub fn allocate(&self, len: usize) -> Result<PageMut> {
        self.inner.check()?;
        self.inner.allocate(len)
    }

    /// One more reference to each page; unknown keys are remembered too, as missing.
    pub fn retain(&self, keys: &[PageKey]) {
        if self.inner.is_forked() {
            return;
        }
        let mut state = self.inner.state.lock();
        for key in keys {
            state.retain(*key, Lifetime::Durable);
            self.inner.queue_unwritten(&mut state, *key);
        }
    }

    /// Gives references back. Private pages without references are gone.
    pub fn release(&self, keys: &[PageKey]) {
        if self.inner.is_forked() {
            return;
        }
        let mut state = self.inner.state.lock();
        for key in keys {
            state.release(*key);
        }
    }

    /// Tells that pages were read through clones that the caller kept, `times` times each:
    /// the policy as one read, the counters as so many.
    pub fn touch(&self, keys: &[PageKey], times: u64) {
        if self.inner.is_forked() {
            return;
        }
        let mut state = self.inner.state.lock();
        state.counters.hits += keys.len() as u64 * times;
        state.policy.touch_all(keys);
    }

    /// Takes pages out of RAM that nobody holds and that are on disk: they were read once, and their
    /// memory is better used for what is read again.
    pub fn let_go(&self, keys: &[PageKey]) {
        if self.inner.is_forked() {
            return;
        }
        let mut state = self.inner.state.lock();
        for key in keys {
            state.let_go(*key);
        }
    }

    /// Whether what is sealed is written to disk.
    pub fn is_writable(&self) -> bool {
        self.inner.can_write()
    }

    /// Whether some tier holds the page.
    pub fn contains(&self, key: PageKey) -> bool {
        if self.inner.is_forked() {
            return false;
        }
        let state = self.inner.state.lock();
        state.index.contains_key(&key) || state.pages.get(&key).is_some_and(|held| held.page.is_some())
    }

    /// How many pages of `page_bytes` one request should ask for at most, so that the next
    /// request can be under way while this one is used.
    pub fn request_pages(&self, page_bytes: usize) -> usize {
        let share = self.inner.config.ram_bytes / 8;
        let slot_bytes = page_bytes.max(1).next_multiple_of(ALIGN) as u64;
        usize::try_from(share / slot_bytes).unwrap_or(usize::MAX).max(1)
    }

    /// Starts bringing pages to RAM. Pages of a request stay there until it (and every
    /// page taken out of it) is dropped.
    pub fn request(&self, keys: &[PageKey]) -> Request {
        Request::start(&self.inner, keys)
    }

    /// Writes everything durable that has no copy yet, and makes it survive a power cut.
    ///
    /// # Errors
    /// `DiskFull`, `Io`, `Poisoned`, `Interrupted`. What failed stays in RAM, to be tried again.
    pub fn flush(&self) -> Result<()> {
        self.inner.check()?;
        self.inner.flush()
    }

    /// Flushes, ends the background thread and gives the directory free. A second call does nothing.
    ///
    /// # Errors
    /// As [`Store::flush`]; the store is closed all the same.
    pub fn close(&self) -> Result<()> {
        self.inner.close()
    }
}

fn closed() -> Error {
    Error::Invalid("the store is closed".into())
}

impl Inner {
    /// Whether there is a disk tier to write to.
    fn can_write(&self) -> bool {
        self.disk.is_some() && !self.config.read_only
    }

    /// Whether this is a forked child, where locks may be held by threads that do not exist.
    fn is_forked(&self) -> bool {
        std::process::id() != self.owner
    }

    /// Refuses calls in a forked child and after close.
    fn check(&self) -> Result<()> {
        if self.is_forked() {
            return Err(Error::Forked { owner: self.owner, here: std::process::id() });
        }
        if self.closed.load(Ordering::Acquire) {
            return Err(closed());
        }
        Ok(())
    }

    /// Releases the lock, waits for a change, and takes it again.
    fn wait<'a>(&'a self, state: MutexGuard<'a, State>) -> Result<MutexGuard<'a, State>> {
        let started = Instant::now();
        let state = self.changed.wait_for(state, TICK);
        if started.elapsed() < TICK {
            return Ok(state);
        }
        // The question may take the interpreter's lock, so it is asked with none of ours.
        drop(state);
        interrupt::check()?;
        Ok(self.state.lock())
    }

    /// A durable page without a copy goes to the writer, a private one where it waits for need.
    fn queue_unwritten(&self, state: &mut State, key: PageKey) {
        let unwritten = |held: &&state::Held| held.copy == Copy::None && held.page.is_some();
        let Some(held) = state.pages.get(&key).filter(unwritten).filter(|_| self.can_write()) else { return };
        if held.lifetime == Lifetime::Private {
            state.queue_private(key, false);
            return;
        }
        state.set_copy(key, Copy::Writing);
        state.queued_bytes += state.bytes_in_ram(key);
        state.queue.push_back(key);
    }

    fn submit(&self, batch: Vec<IoOp>) {
        if !batch.is_empty() {
            self.engine.submit(batch);
        }
    }

    fn close(&self) -> Result<()> {
        if self.is_forked() || self.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let flushed = if self.can_write() { self.flush() } else { Ok(()) };
        if self.can_write() && flushed.is_ok() {
            // Not worth a failure: without its table a segment is read by its group headers.
            let _ = self.write_contents(true);
        }
        self.stop_writer();
        self.delete_temporaries();
        self.lock.lock().take();
        flushed
    }
}
