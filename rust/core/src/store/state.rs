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
    /// Bytes of pages in RAM that have no copy and that nobody writes yet.
    pub(super) unwritten_bytes: u64,
    pub(super) writes_in_flight: u32,
    pub(super) reads_in_flight: u32,
    /// Callers that wait for RAM to become free.
    pub(super) starving: u32,
    pub(super) flushes_asked: u64,
    pub(super) flushes_done: u64,
    /// Why the last flush failed; taken by the one who waits for it.
    pub(super) write_error: Option<Arc<crate::Error>>,
    pub(super) poisoned: Option<String>,
    pub(super) closing: bool,
    pub(super) ram_pages: u64,
    /// Sessions that live caches go on with: never evicted.
    pub(super) open_sessions: Vec<String>,
    /// Bytes of session files.
    pub(super) session_bytes: u64,
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
            unwritten_bytes: 0,
            writes_in_flight: 0,
            reads_in_flight: 0,
            starving: 0,
            flushes_asked: 0,
            flushes_done: 0,
            write_error: None,
            poisoned: None,
            closing: false,
            ram_pages: 0,
            open_sessions: Vec::new(),
            session_bytes: 0,
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

    /// Puts a filled page into RAM; true where the page was not there yet.
    pub(super) fn insert_page(
        &mut self,
        key: PageKey,
        page: Page,
        lifetime: Lifetime,
        transient: bool,
    ) -> bool {
        let bytes = page.padded_len() as u64;
        let held = self.held(key, lifetime);
        if held.page.is_some() {
            return false;
        }
        held.page = Some(page);
        held.transient = transient;
        let unwritten = held.copy == Copy::None;
        self.ram_pages += 1;
        if unwritten {
            self.unwritten_bytes += bytes;
        }
        if transient {
            self.transients.push_back(key);
        } else {
            self.policy.insert(key, bytes);
        }
        true
    }

    /// Takes a page out of RAM; its memory is free once nobody holds it.
    pub(super) fn drop_page(&mut self, key: PageKey) {
        let Some(held) = self.pages.get_mut(&key) else { return };
        if let Some(page) = held.page.take() {
            self.ram_pages -= 1;
            if held.copy == Copy::None {
                self.unwritten_bytes -= page.padded_len() as u64;
            }
            if !held.transient {
                self.policy.remove(key);
            }
        }
        if held.is_idle() {
            self.pages.remove(&key);
        }
    }

    /// Frees the memory of one page that nobody holds and that is not lost by it.
    pub(super) fn evict_one(&mut self) -> bool {
        // Several passes over pinned transients would be pointless: each is looked at once.
        for _ in 0..self.transients.len() {
            let Some(key) = self.transients.pop_front() else { break };
            let Some(held) = self.pages.get(&key).filter(|held| held.transient) else { continue };
            match &held.page {
                Some(page) if Arc::strong_count(page) > 1 => self.transients.push_back(key),
                Some(_) => {
                    self.drop_page(key);
                    return true;
                }
                None => {}
            }
        }
        let pages = &self.pages;
        let victim = self.policy.victim(&mut |key| pages.get(&key).is_some_and(is_evictable));
        victim.inspect(|key| self.drop_page(*key)).is_some()
    }

    pub(super) fn bytes_in_ram(&self, key: PageKey) -> u64 {
        let page = self.pages.get(&key).and_then(|held| held.page.as_ref());
        page.map_or(0, |page| page.padded_len() as u64)
    }

    /// Changes whether a page has a copy.
    pub(super) fn set_copy(&mut self, key: PageKey, copy: Copy) {
        let Some(held) = self.pages.get_mut(&key) else { return };
        let bytes = held.page.as_ref().map_or(0, |page| page.padded_len() as u64);
        match (held.copy, copy) {
            (Copy::None, Copy::Writing | Copy::Stored) => self.unwritten_bytes -= bytes,
            (Copy::Writing | Copy::Stored, Copy::None) => self.unwritten_bytes += bytes,
            _ => {}
        }
        held.copy = copy;
    }

    /// The next pages that have no copy, for the writer to make one so that they can leave.
    pub(super) fn unwritten_victims(&mut self, bytes: u64) -> Vec<PageKey> {
        let (mut victims, mut sum) = (Vec::new(), 0);
        while sum < bytes {
            let pages = &self.pages;
            let unwritten = |held: &Held| held.copy == Copy::None && held.refs > 0;
            let Some(key) = self.policy.victim(&mut |key| pages.get(&key).is_some_and(unwritten)) else {
                break;
            };
            sum += self.bytes_in_ram(key);
            self.set_copy(key, Copy::Writing);
            victims.push(key);
        }
        victims
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
        let Some(held) = self.pages.get_mut(&key) else { return };
        held.refs = held.refs.saturating_sub(1);
        if held.refs > 0 {
            return;
        }
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
