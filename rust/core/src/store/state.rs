//! What the store knows, under its one lock. Nothing here does I/O or waits.

use std::collections::VecDeque;
use std::sync::Arc;

use super::Lifetime;
use super::request::Waiter;
use crate::key::PageKey;
use crate::policy::{KeyMap, Policy};
use crate::tier::disk::{Location, Segments};
use crate::tier::ram::Page;

/// Whether a page in RAM has a copy on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Copy {
    /// No copy, none under way.
    None,
    /// In the queue of the writer, or being written.
    Writing,
    /// The index says where.
    Stored,
}

/// A page that is in RAM, on its way there, or referenced.
pub(super) struct Held {
    pub(super) page: Option<Page>,
    pub(super) refs: u32,
    pub(super) copy: Copy,
    pub(super) lifetime: Lifetime,
    /// In RAM for the requests that asked for it only: the policy did not admit it.
    pub(super) transient: bool,
    /// Requests that wait for the read under way; `None` where no read is.
    pub(super) waiters: Option<Vec<Waiter>>,
}

impl Held {
    fn new(lifetime: Lifetime) -> Self {
        Self { page: None, refs: 0, copy: Copy::None, lifetime, transient: false, waiters: None }
    }

    fn is_idle(&self) -> bool {
        self.page.is_none() && self.refs == 0 && self.waiters.is_none()
    }

    /// Bytes that would be lost if the page left RAM now, and that nobody writes yet.
    fn unwritten_bytes(&self) -> u64 {
        let page = self.page.as_ref().filter(|_| self.copy == Copy::None && self.refs > 0);
        page.map_or(0, |page| page.padded_len() as u64)
    }
}

/// Counters since opening.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requested pages that were in RAM.
    pub hits: u64,
    /// Requested pages that were not.
    pub misses: u64,
    /// Pages read from disk.
    pub reads: u64,
    /// Bytes of those.
    pub read_bytes: u64,
    /// Groups written.
    pub writes: u64,
    /// Bytes of those.
    pub written_bytes: u64,
    /// Pages that failed their checksum.
    pub corrupt_pages: u64,
    /// Sessions evicted for the disk limit.
    pub evicted_sessions: u64,
    /// Times that a caller had to wait for the disk.
    pub waits: u64,
    /// Microseconds of those.
    pub wait_us: u64,
}

/// Everything under the store's lock.
pub(super) struct State {
    pub(super) pages: KeyMap<Held>,
    pub(super) index: KeyMap<Location>,
    pub(super) segments: Option<Segments>,
    pub(super) policy: Box<dyn Policy>,
    pub(super) transients: VecDeque<PageKey>,
    /// Durable pages in the order they were sealed, waiting for the writer.
    pub(super) queue: VecDeque<PageKey>,
    pub(super) queued_bytes: u64,
    /// Private pages in the order they were sealed; some may be written, or gone, by now.
    unwritten: VecDeque<PageKey>,
    /// Bytes of referenced pages in RAM that have no copy and that nobody writes yet.
    pub(super) unwritten_bytes: u64,
    pub(super) writes_in_flight: u32,
    pub(super) reads_in_flight: u32,
    /// Callers that wait for RAM to become free.
    pub(super) starving: u32,
    pub(super) flushes_asked: u64,
    pub(super) flushes_done: u64,
    /// All up to this one left everything durable that was sealed before them.
    pub(super) flushes_succeeded: u64,
    /// Why the last flush that failed did.
    pub(super) flush_error: Option<Arc<crate::Error>>,
    /// Why the writer rests; taken by the first who hears of it.
    pub(super) write_error: Option<Arc<crate::Error>>,
    pub(super) poisoned: Option<String>,
    pub(super) closing: bool,
    pub(super) ram_pages: u64,
    /// Sessions that live caches go on with: never evicted.
    pub(super) open_sessions: Vec<String>,
    /// Bytes of session files.
    pub(super) session_bytes: u64,
    /// Bytes that somebody is about to write to the directory.
    pub(super) reserved_bytes: u64,
    pub(super) counters: Counters,
}

impl State {
    pub(super) fn new(policy: Box<dyn Policy>, segments: Option<Segments>, index: KeyMap<Location>) -> Self {
        Self {
            pages: KeyMap::default(),
            index,
            segments,
            policy,
            transients: VecDeque::new(),
            queue: VecDeque::new(),
            queued_bytes: 0,
            unwritten: VecDeque::new(),
            unwritten_bytes: 0,
            writes_in_flight: 0,
            reads_in_flight: 0,
            starving: 0,
            flushes_asked: 0,
            flushes_done: 0,
            flushes_succeeded: 0,
            flush_error: None,
            write_error: None,
            poisoned: None,
            closing: false,
            ram_pages: 0,
            open_sessions: Vec::new(),
            session_bytes: 0,
            reserved_bytes: 0,
            counters: Counters::default(),
        }
    }

    /// Whether the index has a copy that is known to be whole.
    pub(super) fn is_stored(&self, key: PageKey) -> bool {
        self.index.get(&key).is_some_and(|location| location.verified)
    }

    pub(super) fn held(&mut self, key: PageKey, lifetime: Lifetime) -> &mut Held {
        self.pages.entry(key).or_insert_with(|| Held::new(lifetime))
    }

    /// Changes what is known of a page, and the sum of unwritten bytes with it.
    fn change<R>(&mut self, key: PageKey, change: impl FnOnce(&mut Held) -> R) -> Option<R> {
        let held = self.pages.get_mut(&key)?;
        self.unwritten_bytes -= held.unwritten_bytes();
        let result = change(held);
        self.unwritten_bytes += held.unwritten_bytes();
        Some(result)
    }

    /// One reference more, to a page that may be unknown.
    pub(super) fn retain(&mut self, key: PageKey, lifetime: Lifetime) {
        self.held(key, lifetime);
        self.change(key, |held| held.refs += 1);
    }

    /// Puts a filled page into RAM; true where the page was not there yet.
    pub(super) fn insert_page(
        &mut self,
        key: PageKey,
        page: Page,
        lifetime: Lifetime,
        transient: bool,
    ) -> bool {
        let bytes = page.padded_len() as u64;
        if self.held(key, lifetime).page.is_some() {
            return false;
        }
        self.change(key, |held| {
            held.page = Some(page);
            held.transient = transient;
        });
        self.ram_pages += 1;
        if transient {
            self.transients.push_back(key);
        } else {
            self.policy.insert(key, bytes);
        }
        true
    }

    /// Takes a page out of RAM; its memory is free once nobody holds it.
    pub(super) fn drop_page(&mut self, key: PageKey) {
        let Some((page, transient)) = self.change(key, |held| (held.page.take(), held.transient)) else {
            return;
        };
        if page.is_some() {
            self.ram_pages -= 1;
            if !transient {
                self.policy.remove(key);
            }
        }
        self.forget_idle(key);
    }

    /// Forgets a page that is neither in RAM nor on its way there nor referenced.
    pub(super) fn forget_idle(&mut self, key: PageKey) {
        if self.pages.get(&key).is_some_and(Held::is_idle) {
            self.pages.remove(&key);
        }
    }

    /// Frees the memory of one page that nobody holds and that is not lost by it.
    pub(super) fn evict_one(&mut self) -> bool {
        // Several passes over pinned transients would be pointless: each is looked at once.
        for _ in 0..self.transients.len() {
            let Some(key) = self.transients.pop_front() else { break };
            let transient = |held: &&Held| held.transient && held.page.is_some();
            let Some(held) = self.pages.get(&key).filter(transient) else { continue };
            if is_evictable(held) {
                self.drop_page(key);
                return true;
            }
            self.transients.push_back(key);
        }
        let pages = &self.pages;
        let victim = self.policy.victim(&mut |key| pages.get(&key).is_some_and(is_evictable));
        victim.inspect(|key| self.drop_page(*key)).is_some()
    }

    /// Takes a page out of RAM, if nobody holds it and it is not lost by it.
    pub(super) fn let_go(&mut self, key: PageKey) {
        if self.pages.get(&key).is_some_and(is_evictable) {
            self.drop_page(key);
        }
    }

    /// Whether `page` is what RAM holds under `key`.
    pub(super) fn holds(&self, key: PageKey, page: &Page) -> bool {
        let held = self.pages.get(&key).and_then(|held| held.page.as_ref());
        held.is_some_and(|held| Arc::ptr_eq(held, page))
    }

    pub(super) fn bytes_in_ram(&self, key: PageKey) -> u64 {
        let page = self.pages.get(&key).and_then(|held| held.page.as_ref());
        page.map_or(0, |page| page.padded_len() as u64)
    }

    /// Changes whether a page has a copy.
    pub(super) fn set_copy(&mut self, key: PageKey, copy: Copy) {
        self.change(key, |held| held.copy = copy);
    }

    /// Remembers a private page as one to be written when RAM runs short; `first` before all others.
    pub(super) fn queue_private(&mut self, key: PageKey, first: bool) {
        if self.unwritten.len() > 2 * self.pages.len() + 64 {
            let pages = &self.pages;
            self.unwritten.retain(|key| pages.get(key).is_some_and(|held| held.unwritten_bytes() > 0));
        }
        if first {
            self.unwritten.push_front(key);
        } else {
            self.unwritten.push_back(key);
        }
    }

    /// Private pages without a copy, for the writer to make one so that they can leave: the
    /// longest sealed first. The policy is not asked: it names pages that leave full RAM now.
    pub(super) fn next_unwritten(&mut self, bytes: u64) -> Vec<PageKey> {
        let (mut keys, mut sum) = (Vec::new(), 0);
        while sum < bytes
            && let Some(key) = self.unwritten.pop_front()
        {
            let page_bytes = self.pages.get(&key).map_or(0, Held::unwritten_bytes);
            if page_bytes > 0 {
                sum += page_bytes;
                self.set_copy(key, Copy::Writing);
                keys.push(key);
            }
        }
        keys
    }

    /// Forgets where a page lies on disk.
    pub(super) fn unindex(&mut self, key: PageKey) {
        let Some(location) = self.index.remove(&key) else { return };
        if let Some(segments) = &mut self.segments {
            segments.count_page(&location, false);
        }
    }

    /// Records where a page was written.
    pub(super) fn index(&mut self, location: Location) {
        self.unindex(location.entry.key);
        if let Some(segments) = &mut self.segments {
            segments.count_page(&location, true);
        }
        self.index.insert(location.entry.key, location);
    }

    /// One reference fewer. A private page without references is gone.
    pub(super) fn release(&mut self, key: PageKey) {
        self.change(key, |held| held.refs = held.refs.saturating_sub(1));
        let Some(held) = self.pages.get(&key).filter(|held| held.refs == 0) else { return };
        if held.lifetime == Lifetime::Private {
            // A read or write under way finds the entry gone and drops its page.
            if held.copy != Copy::Writing {
                self.unindex(key);
            }
            self.drop_page(key);
        } else if held.is_idle() {
            self.pages.remove(&key);
        }
    }
}

/// Nobody reads the page, and dropping it loses nothing that anybody could ask for.
fn is_evictable(held: &Held) -> bool {
    let unpinned = held.page.as_ref().is_some_and(|page| Arc::strong_count(page) == 1);
    unpinned && (held.copy == Copy::Stored || (held.copy == Copy::None && held.refs == 0))
}
