//! Bringing pages to RAM: which are there, which have to be read, and waiting for those.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::state::{Copy, State};
use super::{Inner, Lifetime};
use crate::error::{Error, Result};
use crate::io::{IoOp, ReadBuf};
use crate::key::PageKey;
use crate::sync::{Mutex, MutexGuard};
use crate::tier::disk::{Location, segment_name};
use crate::tier::ram::{Page, PageMut};

/// Where one page of a request stands.
#[derive(Clone)]
enum Slot {
    /// Not asked for yet: there was no memory to read it into.
    Deferred,
    /// A read is under way.
    Reading,
    Ready(Page),
    /// No tier holds it, or what it holds is damaged.
    Missing,
    /// The disk failed.
    Failed(Arc<io::Error>, u64),
}

/// What a request and the reads for it share.
pub(super) struct Slots {
    slots: Mutex<Vec<Slot>>,
}

/// A request's place for one page.
pub(super) struct Waiter {
    slots: Arc<Slots>,
    index: usize,
}

impl Waiter {
    fn give(&self, slot: Slot) {
        self.slots.slots.lock()[self.index] = slot;
    }
}

/// Pages on their way to RAM. They stay there until the request, and every page taken out
/// of it, is dropped.
pub struct Request {
    inner: Arc<Inner>,
    keys: Vec<PageKey>,
    slots: Arc<Slots>,
}

impl Request {
    pub(super) fn start(inner: &Arc<Inner>, keys: &[PageKey]) -> Self {
        let slots = Arc::new(Slots { slots: Mutex::new(vec![Slot::Deferred; keys.len()]) });
        let request = Self { inner: inner.clone(), keys: keys.to_vec(), slots };
        if inner.is_forked() {
            return request; // waiting for it says why
        }
        let mut reads = Vec::new();
        let mut state = inner.state.lock();
        for index in 0..keys.len() {
            if !request.ask(&mut state, index, &mut reads) {
                break;
            }
        }
        drop(state);
        inner.submit(reads);
        request
    }

    /// Finds page `index` or queues a read for it; false where there is no memory to read into.
    fn ask(&self, state: &mut State, index: usize, reads: &mut Vec<IoOp>) -> bool {
        let key = self.keys[index];
        let waiter = Waiter { slots: self.slots.clone(), index };
        if let Some(held) = state.pages.get_mut(&key) {
            if let Some(page) = &held.page {
                let (page, transient) = (page.clone(), held.transient);
                state.counters.hits += 1;
                if !transient {
                    state.policy.touch(key);
                }
                waiter.give(Slot::Ready(page));
                return true;
            }
            if let Some(waiters) = &mut held.waiters {
                waiters.push(waiter);
                self.slots.slots.lock()[index] = Slot::Reading;
                return true;
            }
        }
        let Some(location) = state.index.get(&key).copied() else {
            state.counters.misses += 1;
            waiter.give(Slot::Missing);
            return true;
        };
        let Some(page) = self.inner.memory_without_waiting(state, location.entry.len as usize) else {
            return false;
        };
        state.counters.misses += 1;
        self.slots.slots.lock()[index] = Slot::Reading;
        match self.inner.read_op(state, location, page) {
            Ok(op) => {
                state.held(key, Lifetime::Durable).waiters = Some(vec![waiter]);
                state.reads_in_flight += 1;
                reads.push(op);
            }
            // A writer beside this reader deleted it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => waiter.give(Slot::Missing),
            Err(error) => waiter.give(Slot::Failed(Arc::new(error), location.segment)),
        }
        true
    }

    /// Waits, and gives the pages in the order asked for; `None` is a page that no tier
    /// holds or that failed its checksum.
    ///
    /// # Errors
    /// `RamFull` when the limit cannot hold the request; `Io` when the disk fails;
    /// `Interrupted`; `Forked`.
    pub fn wait(self) -> Result<Vec<Option<Page>>> {
        if self.inner.is_forked() {
            self.inner.check()?;
        }
        let started = Instant::now();
        let mut waited = false;
        let mut state = self.inner.state.lock();
        loop {
            let (reading, deferred) = self.progress();
            if !reading && deferred.is_none() {
                break;
            }
            if let Some(index) = deferred {
                state = self.ask_blocking(state, index)?;
                continue;
            }
            waited = true;
            state = self.inner.wait(state)?;
        }
        if waited {
            state.counters.waits += 1;
            state.counters.wait_us += started.elapsed().as_micros() as u64;
        }
        drop(state);
        self.take()
    }

    /// Whether a read is under way, and the first page not asked for.
    fn progress(&self) -> (bool, Option<usize>) {
        let slots = self.slots.slots.lock();
        let reading = slots.iter().any(|slot| matches!(slot, Slot::Reading));
        (reading, slots.iter().position(|slot| matches!(slot, Slot::Deferred)))
    }

    /// Asks for a page that there was no memory for before, waiting until there is.
    fn ask_blocking<'a>(
        &'a self,
        state: MutexGuard<'a, State>,
        index: usize,
    ) -> Result<MutexGuard<'a, State>> {
        let mut state = state;
        let mut reads = Vec::new();
        if self.ask(&mut state, index, &mut reads) {
            drop(state);
            self.inner.submit(reads);
            return Ok(self.inner.state.lock());
        }
        let bytes = state.index.get(&self.keys[index]).map_or(0, |location| location.entry.padded_len());
        self.inner.wait_for_memory(state, bytes)
    }

    fn take(self) -> Result<Vec<Option<Page>>> {
        let slots = std::mem::take(&mut *self.slots.slots.lock());
        slots
            .into_iter()
            .map(|slot| match slot {
                Slot::Ready(page) => Ok(Some(page)),
                Slot::Missing | Slot::Deferred | Slot::Reading => Ok(None),
                Slot::Failed(error, segment) => {
                    let copy = io::Error::new(error.kind(), error.to_string());
                    Err(Error::io("read", segment_name(segment), copy))
                }
            })
            .collect()
    }
}

impl Inner {
    /// The operation that reads a page.
    fn read_op(self: &Arc<Self>, state: &mut State, location: Location, page: PageMut) -> io::Result<IoOp> {
        let segments = state.segments.as_mut().ok_or(io::ErrorKind::NotFound)?;
        let file = segments.file(location.segment)?;
        let inner = self.clone();
        Ok(IoOp::Read {
            file,
            offset: location.entry.offset(),
            buf: Box::new(page),
            done: Box::new(move |buf, outcome| inner.read_done(location, buf, outcome)),
        })
    }

    fn read_done(&self, location: Location, buf: Box<dyn ReadBuf>, outcome: io::Result<()>) {
        let key = location.entry.key;
        let page = buf.into_any().downcast::<PageMut>().ok();
        let page = page.map(|page| Arc::new(*page));
        // The checksum is computed here, on the engine's thread, before the lock is taken.
        let whole =
            page.filter(|page| outcome.is_ok() && crc32c::crc32c(page.padded()) == location.entry.crc);
        let mut state = self.state.lock();
        state.reads_in_flight -= 1;
        let waiters = state.pages.get_mut(&key).and_then(|held| held.waiters.take()).unwrap_or_default();
        let found = match (whole, outcome) {
            (Some(page), _) => {
                state.counters.reads += 1;
                state.counters.read_bytes += location.entry.padded_len();
                self.keep_read(&mut state, location, &page);
                Slot::Ready(page)
            }
            // A segment that ends early is damage like any other.
            (None, Err(error)) if error.kind() != io::ErrorKind::UnexpectedEof => {
                Slot::Failed(Arc::new(error), location.segment)
            }
            (None, _) => {
                self.drop_corrupt(&mut state, &location);
                Slot::Missing
            }
        };
        // Sealed meanwhile: what the disk says no longer matters.
        let sealed = state.pages.get(&key).and_then(|held| held.page.clone());
        let slot = sealed.map_or(found, Slot::Ready);
        for waiter in waiters {
            waiter.give(slot.clone());
        }
        state.forget_idle(key);
        // Before anybody looks for memory: a clone that is about to go would pin the page.
        drop(slot);
        drop(state);
        self.changed.notify_all();
    }

    /// The copy of a page on disk is damaged: it is counted and forgotten, and made anew
    /// where RAM still has the page.
    pub(super) fn drop_corrupt(&self, state: &mut State, location: &Location) {
        let key = location.entry.key;
        state.counters.corrupt_pages += 1;
        if !state.index.get(&key).is_some_and(|known| known.is_at(location)) {
            return;
        }
        state.unindex(key);
        if state.pages.get(&key).is_some_and(|held| held.copy == Copy::Stored) {
            state.set_copy(key, Copy::None);
            self.queue_unwritten(state, key);
        }
    }

    /// Decides whether a page that was read stays in RAM.
    fn keep_read(&self, state: &mut State, location: Location, page: &Page) {
        let key = location.entry.key;
        let known = state.index.get_mut(&key);
        let copy = if known.is_some() { Copy::Stored } else { Copy::None };
        if let Some(known) = known.filter(|known| known.is_at(&location)) {
            known.verified = true;
        }
        let Some(held) = state.pages.get(&key).filter(|held| held.page.is_none()) else { return };
        // A private page whose last reference went while it was being read.
        if held.refs == 0 && held.lifetime == Lifetime::Private {
            return;
        }
        let lifetime = held.lifetime;
        state.set_copy(key, copy);
        let usage = self.arena.usage();
        let has_room = usage.used_bytes + self.reserve_bytes() < usage.limit_bytes;
        let transient = !(state.policy.admit(key) || has_room);
        state.insert_page(key, page.clone(), lifetime, transient);
        self.queue_unwritten(state, key);
    }
}
