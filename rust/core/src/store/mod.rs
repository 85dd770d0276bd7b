//! The store: pages by key, in whichever tier holds them.
//!
//! Callers see keys, pages and requests. What is behind them (which pages stay in RAM,
//! when they are written, where on disk they are) is decided here and nowhere else.

mod config;

use std::sync::Arc;

pub use config::StoreConfig;

use crate::error::Result;
use crate::key::PageKey;
use crate::tier::ram::{Page, PageMut};

/// A store of pages. Cheap to clone; all clones are one store.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {}

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
    /// `Locked`, `Foreign`, `Io`, `Invalid`.
    pub fn open(config: &StoreConfig) -> Result<Self> {
        todo!("{config:?}")
    }

    /// A slot for a page of `len` bytes, moving others out where the limit needs it. May wait for writes.
    ///
    /// # Errors
    /// `RamFull` when nothing can be moved out; `DiskFull`; `Io`.
    pub fn allocate(&self, len: usize) -> Result<PageMut> {
        todo!("{len}")
    }

    /// Makes a filled page known under its key, with one reference for the caller.
    /// Where the key is known already the given page is dropped and the present one gets the reference.
    ///
    /// # Errors
    /// `ReadOnly`, `Poisoned`.
    pub fn seal(&self, key: PageKey, page: PageMut, lifetime: Lifetime) -> Result<()> {
        todo!("{key:?} {lifetime:?} {}", page.len())
    }

    /// One more reference to each page; unknown keys are remembered too, as missing.
    pub fn retain(&self, keys: &[PageKey]) {
        todo!("{keys:?}")
    }

    /// Gives references back. Private pages without references are gone.
    pub fn release(&self, keys: &[PageKey]) {
        todo!("{keys:?}")
    }

    /// Whether some tier holds the page.
    pub fn contains(&self, key: PageKey) -> bool {
        todo!("{key:?}")
    }

    /// How many pages of `page_bytes` one request should ask for at most, so that the next
    /// request can be under way while this one is used.
    pub fn request_pages(&self, page_bytes: usize) -> usize {
        todo!("{page_bytes}")
    }

    /// Starts bringing pages to RAM. Pages of a request stay there until it (and every
    /// page taken out of it) is dropped.
    pub fn request(&self, keys: &[PageKey]) -> Request {
        todo!("{keys:?}")
    }
}

/// Pages on their way to RAM.
pub struct Request {}

impl Request {
    /// Waits, and gives the pages in the order asked for; `None` is a page that no tier
    /// holds or that failed its checksum.
    ///
    /// # Errors
    /// `RamFull` when the limit cannot hold the request; `Io` when the disk fails.
    pub fn wait(self) -> Result<Vec<Option<Page>>> {
        todo!()
    }
}
