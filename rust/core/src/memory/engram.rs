//! The directory of memories: who is in it, and who may write it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::directory::{self, agree, prepare};
use super::memory::{Draft, Memory, When};
use super::nearest::Progress;
use super::retention::Retention;
use super::scope::Scope;
use super::search::{Hit, Query};
use super::user::{Home, User};
use crate::error::{Error, Result};
use crate::io::{Disk, Mode, OsDisk};
use crate::sync::Mutex;
use crate::tier::lock::DirectoryLock;

/// How memories are opened.
#[derive(Clone, Debug)]
pub struct EngramConfig {
    /// Identity and dimension of what makes the vectors; `None` for text alone.
    pub embedder: Option<(String, usize)>,
    /// Whether a call that remembers comes back only when it is durable. Otherwise the
    /// operating system writes when it pleases, or at [`Engram::flush`].
    pub durable: bool,
    /// From how many records on what is derived from a user's log is written down, so that
    /// opening need not read the log.
    pub checkpoint_after: u64,
    /// Up to how many memories of a scope every vector is looked at; beyond, the graph is
    /// asked where [`Engram::optimize`] has built one.
    pub exact_rows_max: usize,
}

impl Default for EngramConfig {
    fn default() -> Self {
        Self { embedder: None, durable: true, checkpoint_after: 4096, exact_rows_max: 20_000 }
    }
}

/// What a directory holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Memories that the scope covers, past versions included.
    pub memories: u64,
    /// Of these, present ones.
    pub present: u64,
    /// Of these, with a vector.
    pub vectors: u64,
    /// Bytes of the user's log, whatever the scope covers of it.
    pub log_bytes: u64,
    /// Damaged stretches of the log that were stepped over, and records that did not hold
    /// when they were read.
    pub damaged: u64,
}

/// Long-term memory in a directory. Calls may come from any thread; those for one user wait
/// for each other.
pub struct Engram {
    disk: Arc<dyn Disk>,
    config: EngramConfig,
    /// Of which embedding the vectors are.
    revision: u32,
    users: Mutex<HashMap<String, Arc<Mutex<User>>>>,
    lock: Mutex<Option<DirectoryLock>>,
    closed: std::sync::atomic::AtomicBool,
    process: u32,
}

impl Engram {
    /// Opens a directory for this process alone, creating it where it is missing.
    ///
    /// # Errors
    /// `Locked` where another process has it; `EmbedderMismatch`; `Invalid`; `Corrupt`; `Io`.
    pub fn open(directory: impl Into<PathBuf>, config: EngramConfig) -> Result<Self> {
        let path = directory.into();
        let disk = OsDisk::create(&path, Mode::Buffered).map_err(|error| Error::io("open", &path, error))?;
        let lock = DirectoryLock::take(&path)?;
        let engram = Self::open_on(Arc::new(disk), config)?;
        *engram.lock.lock() = Some(lock);
        Ok(engram)
    }

    /// Opens a disk that nobody else writes.
    ///
    /// # Errors
    /// As [`Engram::open`].
    pub fn open_on(disk: Arc<dyn Disk>, config: EngramConfig) -> Result<Self> {
        let mut config = config;
        prepare(&*disk)?;
        let embedding = agree(&*disk, config.embedder.as_ref())?;
        // Memories with vectors that are opened without an embedder keep what they have.
        config.embedder = embedding.embedder.map(|(name, dimension)| (name, dimension as usize));
        Ok(Self {
            disk,
            config,
            revision: embedding.revision,
            users: Mutex::default(),
            lock: Mutex::new(None),
            closed: false.into(),
            process: std::process::id(),
        })
    }

    /// Identity and dimension of what made the vectors.
    pub fn embedder(&self) -> Option<(&str, usize)> {
        self.config.embedder.as_ref().map(|(identity, dimension)| (identity.as_str(), *dimension))
    }

    /// Remembers, in the order given; the numbers. Durable when it comes back, unless the
    /// configuration says otherwise; a batch shares one sync.
    ///
    /// # Errors
    /// `Invalid`, or `NoMemory` for one to supersede, and nothing is kept; `Io`, and what
    /// was kept is found by [`Engram::list`].
    pub fn remember(&self, scope: &Scope, drafts: &[Draft]) -> Result<Vec<u64>> {
        self.with(scope, |user| user.remember(scope, drafts, now()))
    }

    /// The best memories for a query, the best first.
    ///
    /// # Errors
    /// `Invalid`, `Io`.
    pub fn recall(&self, scope: &Scope, query: &Query) -> Result<Vec<Hit>> {
        self.with(scope, |user| user.recall(scope, query, now()))
    }

    /// One memory, past or present.
    ///
    /// # Errors
    /// `NoMemory`; `Corrupt` where its record is damaged; `Io`.
    pub fn get(&self, scope: &Scope, id: u64) -> Result<Memory> {
        self.with(scope, |user| user.get(scope, id))
    }

    /// Memories whose numbers are larger than `after`, `limit` at most, in order; those that
    /// are true now unless `when` says otherwise.
    ///
    /// # Errors
    /// `Io`.
    pub fn list(&self, scope: &Scope, when: Option<When>, after: u64, limit: usize) -> Result<Vec<Memory>> {
        let now = now();
        self.with(scope, |user| user.list(scope, &when.unwrap_or_else(|| When::now(now)), after, limit, now))
    }

    /// All versions of a memory, the oldest first.
    ///
    /// # Errors
    /// `NoMemory`, `Io`.
    pub fn history(&self, scope: &Scope, id: u64) -> Result<Vec<Memory>> {
        self.with(scope, |user| user.history(scope, id))
    }

    /// Notes that a memory is true until `valid_to` only, in milliseconds since 1970.
    ///
    /// # Errors
    /// `NoMemory`, `Invalid`, `Io`.
    pub fn end(&self, scope: &Scope, id: u64, valid_to: i64) -> Result<()> {
        self.with(scope, |user| user.end(scope, id, valid_to, now()))
    }

    /// Erases memories with all their versions from every file; how many records went. Costs
    /// a rewrite of the user's log, whatever the number.
    ///
    /// # Errors
    /// `NoMemory`, and nothing is erased; `Io`, and call again.
    pub fn forget(&self, scope: &Scope, ids: &[u64]) -> Result<u64> {
        self.with(scope, |user| user.forget(scope, ids))
    }

    /// Erases everything that the scope covers; how many records went.
    ///
    /// # Errors
    /// `Io`, and call again.
    pub fn forget_all(&self, scope: &Scope) -> Result<u64> {
        self.with(scope, |user| user.forget_all(scope))
    }

    /// Erases what is beyond the limits in a scope, the oldest first; how many records went.
    ///
    /// # Errors
    /// `Invalid` without a limit; `Io`, and call again.
    pub fn retain(&self, scope: &Scope, retention: &Retention) -> Result<u64> {
        self.with(scope, |user| user.retain(scope, retention, now()))
    }

    /// Takes a step of building the index of a user's vectors, for all of the user's scopes;
    /// how far it is. Call it until it is done; it may be left at any step, and other calls
    /// go on between two. Memories that come later are looked at one by one until the next
    /// call. Forgetting drops the index.
    ///
    /// # Errors
    /// `Index`, `Io`.
    pub fn optimize(&self, scope: &Scope) -> Result<Progress> {
        self.with(scope, User::optimize)
    }

    /// What the scope covers.
    ///
    /// # Errors
    /// `Io`.
    pub fn stats(&self, scope: &Scope) -> Result<Stats> {
        self.with(scope, |user| Ok(user.stats(scope, now())))
    }

    /// Everybody who has memories here, sorted: for the directory's owner, not for a user.
    ///
    /// # Errors
    /// `Io`. A log whose head is damaged is left out.
    pub fn users(&self) -> Result<Vec<String>> {
        self.check_open()?;
        directory::users(&*self.disk)
    }

    /// Makes everything durable that a configuration without `durable` has not.
    ///
    /// # Errors
    /// `Io`.
    pub fn flush(&self) -> Result<()> {
        self.check_open()?;
        let users: Vec<_> = self.users.lock().values().cloned().collect();
        users.iter().try_for_each(|user| user.lock().flush())
    }

    /// Flushes and gives the directory back. Closing twice is no error.
    ///
    /// # Errors
    /// `Io`; it is closed all the same.
    pub fn close(&self) -> Result<()> {
        if self.closed.load(std::sync::atomic::Ordering::Acquire) {
            return Ok(());
        }
        self.check_open()?;
        let users: Vec<_> = self.users.lock().values().cloned().collect();
        let flushed = users.iter().try_for_each(|user| user.lock().close());
        self.closed.store(true, std::sync::atomic::Ordering::Release);
        self.users.lock().clear();
        *self.lock.lock() = None;
        flushed
    }

    fn check_open(&self) -> Result<()> {
        let here = std::process::id();
        if here != self.process {
            return Err(Error::Forked { owner: self.process, here });
        }
        if self.closed.load(std::sync::atomic::Ordering::Acquire) {
            return Err(Error::Invalid("these memories are closed".into()));
        }
        Ok(())
    }

    /// Runs a call on the memories of a scope's user, and on nothing else.
    fn with<T>(&self, scope: &Scope, call: impl FnOnce(&mut User) -> Result<T>) -> Result<T> {
        self.check_open()?;
        let user = self.user(scope.user_name())?;
        let mut user = user.lock();
        if user.is_broken() {
            *user = User::reload(user.home.clone())?;
        }
        call(&mut user)
    }

    fn user(&self, name: &str) -> Result<Arc<Mutex<User>>> {
        if let Some(user) = self.users.lock().get(name) {
            return Ok(Arc::clone(user));
        }
        // Read without the lock on all of them; of two threads that do, the first stays.
        let loaded = Arc::new(Mutex::new(User::load(self.home(name))?));
        Ok(Arc::clone(self.users.lock().entry(name.to_owned()).or_insert(loaded)))
    }

    fn home(&self, user: &str) -> Home {
        Home {
            disk: Arc::clone(&self.disk),
            user: user.to_owned(),
            dimension: self.config.embedder.as_ref().map(|(_, dimension)| *dimension),
            revision: self.revision,
            sync: self.config.durable,
            checkpoint_after: self.config.checkpoint_after,
            exact_rows_max: self.config.exact_rows_max,
        }
    }
}

/// Milliseconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
