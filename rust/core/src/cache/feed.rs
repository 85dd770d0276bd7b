//! Bringing pages to where they can be read: pinned while they are used, the next batch
//! on its way meanwhile, and never more at once than the store says it can hold.

use super::layout::{Layout, PageBytes, open_page};
use super::table::{HeldPage, SealedPage, Table};
use crate::error::{Error, Result};
use crate::interrupt::Poll;
use crate::key::PageKey;
use crate::simd::prefetch_near;
use crate::store::{Request, Store};
use crate::tier::ram::Page;

/// A page of a row of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PageRef {
    pub(super) row: u32,
    pub(super) page: u32,
    /// In 16 bits: with the residuals of its codes, where it is kept in planes.
    pub(super) whole: bool,
}

impl PageRef {
    /// The page in 16 bits.
    pub(super) fn whole(row: u32, page: u32) -> Self {
        Self { row, page, whole: true }
    }

    fn sealed(self, tables: &[Table]) -> Option<&SealedPage> {
        tables[self.row as usize].sealed.get(self.page as usize).map(std::convert::AsRef::as_ref)
    }

    /// What of it is to be in RAM: the page or its codes; its residuals.
    fn parts(self, tables: &[Table]) -> [Option<&HeldPage>; PARTS] {
        let Some(sealed) = self.sealed(tables) else { return [None; PARTS] };
        [Some(&sealed.page), sealed.residual.as_ref().filter(|_| self.whole)]
    }
}

/// Pages from the one that is pinned to the one that is asked for.
const AHEAD: usize = 8;

/// Parts that the store may hold of a page; the second one is its residuals.
const PARTS: usize = 2;

/// The tables of one layer, and where its pages are kept.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) store: &'a Store,
    pub(super) tables: &'a [Table],
    pub(super) layout: &'a Layout,
}

/// Pages that are pinned, or on their way. Its memory is worth keeping between uses.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) entries: Vec<PageRef>,
    /// The parts of each entry; `None` is one that it does not have (an open page belongs to its
    /// table), or that is still missing.
    pins: Vec<[Option<Page>; PARTS]>,
    /// Entry and part.
    missing: Vec<(usize, usize)>,
    keys: Vec<PageKey>,
    request: Option<Request>,
}

impl Batch {
    /// Lets go of all pages, keeping the memory.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.pins.clear();
        self.missing.clear();
        self.keys.clear();
        self.request = None;
    }

    /// Pins those of `entries` that are in RAM; tells whether that is all of them.
    pub(super) fn pin(&mut self, source: &Source<'_>, entries: &[PageRef]) -> bool {
        self.clear();
        self.entries.extend_from_slice(entries);
        for (index, entry) in entries.iter().enumerate() {
            // Tables and pages are all over memory: the next ones are asked for early, step by step.
            if let Some(sealed) = entries.get(index + 2 * AHEAD).and_then(|entry| entry.sealed(source.tables))
            {
                prefetch_near(std::slice::from_ref(sealed));
            }
            if let Some(entry) = entries.get(index + AHEAD) {
                entry.parts(source.tables).into_iter().flatten().for_each(HeldPage::prefetch);
            }
            let held = entry.parts(source.tables);
            let pins = held.map(|held| held.and_then(HeldPage::pin));
            for part in 0..PARTS {
                if let (Some(held), None) = (held[part], &pins[part]) {
                    self.missing.push((index, part));
                    self.keys.push(held.key());
                }
            }
            self.pins.push(pins);
        }
        self.missing.is_empty()
    }

    /// Pins what is in RAM and starts reading the rest.
    pub(super) fn start(&mut self, source: &Source<'_>, entries: &[PageRef]) {
        if !self.pin(source, entries) {
            self.request = Some(source.store.request(&self.keys));
        }
        self.touch(source, 1);
    }

    /// Reports the pages that were pinned without asking the store.
    pub(super) fn touch(&self, source: &Source<'_>, times: u64) {
        let mut keys = Vec::with_capacity(PARTS * self.entries.len());
        for (entry, pins) in self.entries.iter().zip(&self.pins) {
            let held = entry.parts(source.tables).into_iter().zip(pins);
            keys.extend(held.filter_map(|(held, pin)| Some(held.filter(|_| pin.is_some())?.key())));
        }
        source.store.touch(&keys, times);
    }

    /// Waits for what was started.
    pub(super) fn settle(&mut self, source: &Source<'_>) -> Result<()> {
        let Some(request) = self.request.take() else { return Ok(()) };
        let pages = request.wait()?;
        for ((index, part), page) in self.missing.drain(..).zip(pages) {
            let entry = self.entries[index];
            let Some(page) = page else { return Err(lost(source, entry)) };
            source.layout.check_sealed(&page, part > 0)?;
            if let Some(held) = entry.parts(source.tables)[part] {
                held.seen(&page);
            }
            self.pins[index][part] = Some(page);
        }
        Ok(())
    }

    /// The bytes of entry `index`, after [`Batch::settle`].
    pub(super) fn page<'a>(&'a self, index: usize, source: &Source<'a>) -> PageBytes<'a> {
        match &self.pins[index] {
            // Only the open page has no pin.
            [None, _] => open_page(&source.tables[self.entries[index].row as usize]),
            [Some(page), _] if !source.layout.has_planes() => PageBytes::Elements(page),
            [Some(codes), residual] => {
                PageBytes::Planes { codes, residual: residual.as_ref().map(|page| &page[..]) }
            }
        }
    }
}

/// The error for a page that did not come back: how many are gone, and from where on.
fn lost(source: &Source<'_>, entry: PageRef) -> Error {
    let mut missing = 0;
    let (mut total, mut first) = (0, entry.page as usize);
    for table in source.tables {
        total += table.sealed.len() as u64;
        for (page, sealed) in table.sealed.iter().enumerate() {
            if !sealed.parts().all(|held| source.store.contains(held.key())) {
                missing += 1;
                first = first.min(page);
            }
        }
    }
    let first_token = (first * source.layout.page_tokens) as u64;
    Error::PagesLost { missing: missing.max(1), total, first_token }
}

/// A batch of a layer that was started ahead of its use.
pub(super) struct Prefetch {
    pub(super) layer: usize,
    /// The chunk size that its order was made for.
    pub(super) chunk_pages: usize,
    pub(super) batch: Batch,
}

/// Feeds `order` to `each` in batches of at most `limit` pages, one batch ahead.
///
/// `first` is a batch that is under way already: the first entries of `order`. `last` is
/// called when the last batch is about to be used and nothing else is on its way.
pub(super) fn stream(
    source: &Source<'_>,
    order: &[PageRef],
    first: Option<Batch>,
    batches: &mut [Batch; 2],
    last: impl FnOnce(),
    mut each: impl FnMut(&Batch) -> Result<()>,
) -> Result<()> {
    let limit = source.store.request_pages(source.layout.page_bytes()).max(1);
    let [current, ahead] = batches;
    let mut next = if let Some(first) = first {
        *current = first;
        current.entries.len()
    } else {
        let end = limit.min(order.len());
        current.start(source, &order[..end]);
        end
    };
    let mut poll = Poll::default();
    let mut last = Some(last);
    loop {
        poll.check()?;
        let end = (next + limit).min(order.len());
        let more = next < end;
        current.settle(source)?;
        if more {
            ahead.start(source, &order[next..end]);
        } else if let Some(last) = last.take() {
            last();
        }
        each(current)?;
        current.clear();
        if !more {
            return Ok(());
        }
        next = end;
        std::mem::swap(current, ahead);
    }
}

/// How many consecutive pages of a row are summed in one go: about 512 tokens, and more
/// where a row has very many pages. It depends on nothing but the page count, so results
/// have the same bits whatever the tiers and the threads.
pub(super) fn chunk_pages(num_pages: usize, page_tokens: usize) -> usize {
    (512_usize.div_ceil(page_tokens)).max(num_pages.next_power_of_two() / 256)
}

/// Fills `order` with all pages of all rows: `first`, then chunks that are wholly in RAM
/// (so that they are used before something pushes them out), then the others. Pages of
/// a chunk stay in their order. Returns where the cold ones start.
pub(super) fn arrange(
    source: &Source<'_>,
    num_pages: usize,
    chunk_pages: usize,
    first: &[PageRef],
    order: &mut Vec<PageRef>,
) -> usize {
    order.clear();
    order.extend_from_slice(first);
    let chunks = num_pages.div_ceil(chunk_pages);
    let pages = |chunk: usize| chunk * chunk_pages..((chunk + 1) * chunk_pages).min(num_pages);
    let mut taken = vec![0; chunks * source.tables.len()];
    for entry in first {
        taken[entry.row as usize * chunks + entry.page as usize / chunk_pages] += 1;
    }
    let mut cold = Vec::new();
    // What `first` began goes on before chunks that it has nothing of.
    for is_begun in [true, false] {
        for (row, table) in source.tables.iter().enumerate() {
            for chunk in 0..chunks {
                let begun = taken[row * chunks + chunk];
                if (begun > 0) != is_begun {
                    continue;
                }
                let sealed = table.sealed.get(pages(chunk).start..pages(chunk).end.min(table.sealed.len()));
                let mut parts = sealed.unwrap_or_default().iter().flat_map(|sealed| sealed.parts());
                let is_warm = is_begun || parts.all(|held| held.pin().is_some());
                let into = if is_warm { &mut *order } else { &mut cold };
                let rest = pages(chunk).skip(begun);
                into.extend(rest.map(|page| PageRef::whole(row as u32, page as u32)));
            }
        }
    }
    let start = order.len();
    order.append(&mut cold);
    start
}
