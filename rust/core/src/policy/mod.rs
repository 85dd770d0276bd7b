//! Which pages stay in RAM. A policy sees keys and sizes only, never bytes or files.
//!
//! What it is not: it owns no page, starts no I/O and takes no lock. The store calls it
//! under its own lock, from one thread at a time, and carries its decisions out. The
//! invariant: a policy tracks exactly the pages that were inserted and not yet removed,
//! so a victim is always resident.

use std::fmt;
use std::str::FromStr;

use crate::key::PageKey;
use crate::{Error, Result};

mod capacity;
mod hash;
mod history;
mod lfu;
mod lirs;
mod list;
mod lru;
mod s3fifo;
mod sketch;
#[cfg(test)]
mod tests;
mod tiny_lirs;
#[cfg(any(test, feature = "testing"))]
pub mod trace;
mod wtinylfu;

pub use hash::{KeyHasher, KeyMap, KeySet};
pub use lfu::Lfu;
pub use lirs::Lirs;
pub use lru::Lru;
pub use s3fifo::S3Fifo;
pub use tiny_lirs::TinyLirs;
pub use wtinylfu::WTinyLfu;

/// Chooses the pages that stay in RAM, and the order in which the others leave.
///
/// Contract of the caller:
/// - It MUST call [`insert`](Policy::insert) once a page is resident and
///   [`remove`](Policy::remove) once it no longer is, whatever the reason.
/// - It MUST call [`touch`](Policy::touch) for each read that found the page in RAM, and
///   [`admit`](Policy::admit) for each read that did not, once per read.
/// - It MUST NOT call the policy from inside `evictable`.
///
/// Contract of a policy:
/// - It MUST track exactly the pages that were inserted and not removed.
/// - It MUST ignore the touch or removal of a page that it does not track, and treat a
///   second insertion as a touch: the store may report one page from two paths.
/// - It MUST NOT allocate per call once it has grown to its working size.
pub trait Policy: Send {
    /// The name that users write in settings, as [`PolicyKind`] prints it.
    fn name(&self) -> &'static str;

    /// The page is now resident: just sealed, or read back. `bytes` is its size in RAM.
    fn insert(&mut self, key: PageKey, bytes: u64);

    /// A resident page was read.
    fn touch(&mut self, key: PageKey);

    /// As [`touch`](Policy::touch) for each of the keys, in their order.
    fn touch_all(&mut self, keys: &[PageKey]) {
        for key in keys {
            self.touch(*key);
        }
    }

    /// The page left RAM or died.
    fn remove(&mut self, key: PageKey);

    /// Whether a page that was just read from disk should stay resident, although the
    /// page that [`victim`](Policy::victim) would name leaves for it.
    ///
    /// The miss is recorded in the history here, so this MUST be called once per miss
    /// even where the answer does not matter. It MUST NOT start tracking the page: that
    /// is `insert`'s, which follows when the store agrees.
    fn admit(&mut self, candidate: PageKey) -> bool;

    /// The next page to demote, among those for which `evictable` holds: not pinned, and
    /// already written.
    ///
    /// The caller asks only to make room in full RAM, or to empty it.
    ///
    /// It MUST NOT remove the page: `remove` follows when the demotion happened. It MUST
    /// return `None` only if no tracked page is evictable, and MUST take time in
    /// proportion to the number of non-evictable pages skipped (amortised over calls).
    fn victim(&mut self, evictable: &mut dyn FnMut(PageKey) -> bool) -> Option<PageKey>;

    /// Pages tracked.
    fn len(&self) -> usize;

    /// Whether no page is tracked.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The policies there are, by the names that users write.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
#[non_exhaustive]
pub enum PolicyKind {
    /// Least recently used leaves first.
    Lru,
    /// Least frequently used leaves first; counts age.
    Lfu,
    /// Three queues, first in first out.
    S3Fifo,
    /// Admission by approximate frequency.
    WTinyLfu,
    /// Admission by the interval between reads.
    Lirs,
    /// W-TinyLFU's regions with LIRS's admission.
    #[default]
    TinyLirs,
}

impl PolicyKind {
    /// Every kind, for tables and error messages.
    pub const ALL: [Self; 6] =
        [Self::Lru, Self::Lfu, Self::S3Fifo, Self::WTinyLfu, Self::Lirs, Self::TinyLirs];

    /// The name that users write.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lru => "lru",
            Self::Lfu => "lfu",
            Self::S3Fifo => "s3-fifo",
            Self::WTinyLfu => "w-tinylfu",
            Self::Lirs => "lirs",
            Self::TinyLirs => "tiny-lirs",
        }
    }
}

impl fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for PolicyKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == text).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|kind| kind.name()).collect();
            Error::Invalid(format!("{text:?} is no eviction policy; choose one of {}", names.join(", ")))
        })
    }
}

/// A policy for about `capacity_hint_pages` resident pages.
///
/// The hint sizes tables and histories and is no limit: a policy keeps what it is told
/// to, and learns the true capacity when a victim is first asked for. Where the limit of
/// RAM is raised later, a new policy serves better than the old one.
pub fn new_policy(kind: PolicyKind, capacity_hint_pages: usize) -> Box<dyn Policy> {
    match kind {
        PolicyKind::Lru => Box::new(Lru::new(capacity_hint_pages)),
        PolicyKind::Lfu => Box::new(Lfu::new(capacity_hint_pages)),
        PolicyKind::S3Fifo => Box::new(S3Fifo::new(capacity_hint_pages)),
        PolicyKind::WTinyLfu => Box::new(WTinyLfu::new(capacity_hint_pages)),
        PolicyKind::Lirs => Box::new(Lirs::new(capacity_hint_pages)),
        PolicyKind::TinyLirs => Box::new(TinyLirs::new(capacity_hint_pages)),
    }
}
