//! Filled pages become known under their keys.
//!
//! Equal keys mean interchangeable values, not equal bytes: another order of summing makes others. So what
//! is read together is kept or replaced together: the two planes of a page are no use but with each other.

use std::sync::Arc;

use super::state::{Copy, State};
use super::{Inner, Lifetime, Store};
use crate::error::{Error, Result};
use crate::key::PageKey;
use crate::tier::ram::{Page, PageMut};

/// What the store has under a key, compared with a page.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Known {
    Nothing,
    Same,
    Other,
}

/// The codes and the residuals of a page, under keys that the caller has references to.
pub struct Planes {
    /// Their keys.
    pub keys: [PageKey; 2],
    /// What the store holds under them.
    pub pages: [Page; 2],
}

impl Store {
    /// Makes a filled page known under its key, with one reference for the caller.
    /// Where the key is in RAM already the given page is dropped and the present one gets the
    /// reference. Returns the page that is kept.
    ///
    /// # Errors
    /// `Poisoned` after a failed sync; `Forked`.
    pub fn seal(&self, key: PageKey, page: PageMut, lifetime: Lifetime) -> Result<Page> {
        self.inner.check()?;
        let page = finished(page);
        let mut state = self.inner.state.lock();
        state.check_poisoned()?;
        Ok(self.inner.insert(&mut state, key, page, lifetime, false))
    }

    /// Makes the codes and the residuals of a page known, with one reference each. Where the store has a page
    /// under these keys already, that one is kept, both planes of it, be it read from disk; half a page is
    /// replaced. Where somebody uses the half, ours become private pages under the `spare` keys.
    ///
    /// Residuals leave RAM before all others once they are written: few will ask for them.
    ///
    /// # Errors
    /// `Poisoned` after a failed sync; `RamFull`, `Io` where a known page has to be read; `Interrupted`; `Forked`.
    pub fn seal_planes(
        &self,
        keys: [PageKey; 2],
        planes: [PageMut; 2],
        lifetime: Lifetime,
        spare: [PageKey; 2],
    ) -> Result<Planes> {
        self.inner.check()?;
        let planes = planes.map(finished);
        // Known pages that turn out damaged are known no longer: then half a page is left, or nothing.
        for _ in 0..=keys.len() {
            let mut state = self.inner.state.lock();
            state.check_poisoned()?;
            let known = [0, 1].map(|plane| state.compare(keys[plane], &planes[plane]));
            if known.contains(&Known::Other) && !known.contains(&Known::Nothing) {
                for key in keys {
                    state.retain(key, lifetime);
                }
                drop(state);
                if let Some(pages) = self.both(keys)? {
                    return Ok(Planes { keys, pages });
                }
                continue;
            }
            // The half of a page, if there is one.
            let is_free =
                keys.iter().zip(known).all(|(key, known)| known != Known::Other || state.forget(*key));
            let (keys, lifetime) = if is_free { (keys, lifetime) } else { (spare, Lifetime::Private) };
            return Ok(self.inner.insert_planes(&mut state, keys, planes, lifetime));
        }
        let mut state = self.inner.state.lock();
        Ok(self.inner.insert_planes(&mut state, spare, planes, Lifetime::Private))
    }

    /// Two known pages that the caller has references to; without both, these are given back.
    fn both(&self, keys: [PageKey; 2]) -> Result<Option<[Page; 2]>> {
        let found = self.request(&keys).wait().inspect_err(|_| self.release(&keys))?;
        let mut found = found.into_iter();
        if let (Some(Some(codes)), Some(Some(residual))) = (found.next(), found.next()) {
            return Ok(Some([codes, residual]));
        }
        self.release(&keys);
        Ok(None)
    }

    /// Makes a filled page known for later, in place of any other that is known under its key, and lets it
    /// leave RAM before all others once it is written. Nobody gets a reference.
    ///
    /// # Errors
    /// `Poisoned` after a failed sync; `Forked`.
    pub fn renew(&self, key: PageKey, page: PageMut) -> Result<()> {
        self.inner.check()?;
        let page = finished(page);
        let mut state = self.inner.state.lock();
        state.check_poisoned()?;
        let known = state.compare(key, &page);
        if known == Known::Nothing || known == Known::Other && state.forget(key) {
            self.inner.insert(&mut state, key, page, Lifetime::Durable, true);
            state.release(key);
        }
        Ok(())
    }
}

/// A page as it is to be stored.
fn finished(mut page: PageMut) -> Page {
    page.zero_padding();
    Arc::new(page)
}

impl Inner {
    /// Puts a page into RAM unless it is there, takes a reference, and sees to its being written.
    fn insert(
        &self,
        state: &mut State,
        key: PageKey,
        page: Page,
        lifetime: Lifetime,
        transient: bool,
    ) -> Page {
        let stored = state.is_stored(key);
        let fresh = state.insert_page(key, page.clone(), lifetime, transient);
        state.retain(key, lifetime);
        let kept = state.held(key, lifetime).page.clone().unwrap_or(page);
        if fresh && stored {
            state.set_copy(key, Copy::Stored);
        }
        self.queue_unwritten(state, key);
        if self.has_work(state) {
            self.work.notify_one();
        }
        kept
    }

    fn insert_planes(
        &self,
        state: &mut State,
        keys: [PageKey; 2],
        [codes, residual]: [Page; 2],
        lifetime: Lifetime,
    ) -> Planes {
        let residual = self.insert(state, keys[1], residual, lifetime, true);
        let codes = self.insert(state, keys[0], codes, lifetime, false);
        Planes { keys, pages: [codes, residual] }
    }
}

impl State {
    fn check_poisoned(&self) -> Result<()> {
        self.poisoned.as_ref().map_or(Ok(()), |cause| Err(Error::Poisoned(cause.clone())))
    }

    /// Whether a key is known, and with the bytes of `page`.
    fn compare(&self, key: PageKey, page: &Page) -> Known {
        let held = self.pages.get(&key).and_then(|held| held.page.as_ref());
        let is_same = match (held, self.index.get(&key)) {
            (Some(held), _) => held.padded() == page.padded(),
            (None, Some(location)) => {
                location.entry.len as usize == page.len()
                    && location.entry.crc == crc32c::crc32c(page.padded())
            }
            (None, None) => return Known::Nothing,
        };
        if is_same { Known::Same } else { Known::Other }
    }

    /// Forgets what is known under a key, unless somebody uses, reads or writes it; false then.
    fn forget(&mut self, key: PageKey) -> bool {
        if self.is_referenced(key) {
            return false;
        }
        self.unindex(key);
        self.drop_page(key);
        true
    }
}
