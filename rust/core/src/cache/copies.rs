//! Copies for a device that keeps pages and attends by itself: names of whole pages, their planes, and the
//! summaries of their blocks.
//!
//! What it is not: it chooses nothing and knows no device. A page's planes are copied in one form: per KV
//! head the scale bytes of its keys, of its values, then the rows of its keys and of its values.

use super::feed::{Batch, PageRef, Source, stream};
use super::layout::{Layout, PageBytes};
use super::sparse::Selecting;
use super::{KvCache, digest};
use crate::attend::Parallel;
use crate::error::{Error, Result};
use crate::key::PageKey;

/// Which of a page's planes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plane {
    /// FP8 codes.
    Codes,
    /// What with the codes gives 16 bits.
    Residuals,
}

impl KvCache {
    /// The identities of whole pages, (row, page) each. Pages of one identity hold equal values.
    ///
    /// # Errors
    /// `Invalid` for a page that is not whole, or not there.
    pub fn page_keys(&self, layer: usize, pages: &[(u32, u32)]) -> Result<Vec<PageKey>> {
        self.check_whole(layer, pages)?;
        let tables = &self.layers[layer].tables;
        let key = |(row, page): &(u32, u32)| tables[*row as usize].sealed[*page as usize].page.key();
        Ok(pages.iter().map(key).collect())
    }

    /// Bytes of one page's plane, as [`KvCache::copy_planes`] writes it.
    ///
    /// # Errors
    /// `Invalid` for an empty layer, and a cache that does not keep planes.
    pub fn plane_bytes(&self, layer: usize, plane: Plane) -> Result<usize> {
        Ok(bytes_of(&self.in_planes(layer)?, plane))
    }

    /// Copies one plane of whole pages, (row, page) each, one after the other. Codes need no residuals in RAM
    /// where the pages are summarised.
    ///
    /// # Errors
    /// `Invalid` as [`KvCache::plane_bytes`], for pages that are not whole, and for `out` of another length;
    /// `PagesLost`; `RamFull`, `Io` from the store; `Interrupted`. What `out` holds then is unspecified.
    pub fn copy_planes(
        &mut self,
        layer: usize,
        pages: &[(u32, u32)],
        plane: Plane,
        out: &mut [u8],
    ) -> Result<()> {
        let layout = self.in_planes(layer)?;
        self.check_whole(layer, pages)?;
        let page_bytes = bytes_of(&layout, plane);
        check_len(out, pages.len() * page_bytes)?;
        let (shape, _) = self.filled(layer)?;
        let digest = self.digest_layout(layer, &shape)?;
        self.prefetched = None;
        let mut scratch = std::mem::take(&mut self.scratch);
        let tables = &self.layers[layer].tables;
        scratch.order.clear();
        scratch.order.extend(pages.iter().map(|&(row, page)| {
            let is_summarised = (page as usize) < tables[row as usize].digest.pages();
            PageRef { row, page, whole: plane == Plane::Residuals || !is_summarised }
        }));
        let source = Source { store: &self.store, tables, layout: &layout };
        let mut places = out.chunks_exact_mut(page_bytes.max(1));
        let mut copy = |batch: &Batch| {
            for (index, place) in (0..batch.entries.len()).zip(&mut places) {
                copy_plane(&source, &digest, batch, index, plane, place);
            }
            Ok(())
        };
        let result = stream(&source, &scratch.order, None, &mut scratch.batches, || (), &mut copy);
        scratch.release();
        self.scratch = scratch;
        result
    }

    /// The shape of the summaries of so many pages: rows, KV heads, blocks, bytes of one.
    ///
    /// # Errors
    /// `Invalid` for an empty layer, and one without a rotary.
    pub fn summaries_shape(&mut self, layer: usize, pages: usize) -> Result<[usize; 4]> {
        let (shape, layout) = self.filled(layer)?;
        let digest = self.digest_layout(layer, &shape)?;
        Ok([self.rows, layout.heads, pages * digest.blocks_per_page, digest.summary.len_bytes()])
    }

    /// Copies the summaries of pages [start, stop) in the shape of [`KvCache::summaries_shape`]. Those that
    /// are not made yet are made of the pages.
    ///
    /// # Errors
    /// `Invalid` for a cache that selects nothing, pages that are not whole and `out` of another length;
    /// `PagesLost`; `RamFull`, `Io` from the store; `Interrupted`.
    pub fn copy_summaries(
        &mut self,
        layer: usize,
        start: usize,
        stop: usize,
        out: &mut [u8],
        parallel: &dyn Parallel,
    ) -> Result<()> {
        let (shape, layout) = self.filled(layer)?;
        let whole = self.layers[layer].len / layout.page_tokens;
        if start > stop || stop > whole {
            return Err(Error::Invalid(format!("pages [{start}, {stop}) of {whole} whole ones")));
        }
        let selection = self.selection.ok_or_else(|| {
            Error::Invalid("summaries are made for caches that select: give the cache a budget".into())
        })?;
        check_len(out, self.summaries_shape(layer, stop - start)?.iter().product())?;
        let digest = &*self.digest_layout(layer, &shape)?;
        let what = Selecting { layer, shape, layout: &layout, digest, selection: &selection, parallel };
        let mut scratch = std::mem::take(&mut self.scratch);
        let made = self.summarise(&what, &mut scratch);
        scratch.release();
        self.scratch = scratch;
        made?;
        let page_bytes = digest.blocks_per_page * digest.summary.len_bytes();
        let mut places = out.chunks_exact_mut(page_bytes);
        for table in &self.layers[layer].tables {
            for head in 0..layout.heads {
                for (page, place) in (start..stop).zip(&mut places) {
                    place.copy_from_slice(table.digest.blocks(digest, head, page, 1));
                }
            }
        }
        Ok(())
    }

    fn in_planes(&self, layer: usize) -> Result<Layout> {
        let (_, layout) = self.filled(layer)?;
        if layout.has_planes() {
            return Ok(layout);
        }
        Err(Error::Invalid("the pages of this cache are not kept in planes".into()))
    }

    fn check_whole(&self, layer: usize, pages: &[(u32, u32)]) -> Result<()> {
        self.check_layer(layer)?;
        let whole = self.layers[layer].len / self.config.page_tokens;
        match pages.iter().find(|(row, page)| *row as usize >= self.rows || *page as usize >= whole) {
            Some((row, page)) => {
                let rows = self.rows;
                Err(Error::Invalid(format!(
                    "page {page} of row {row}: there are {whole} whole ones of {rows} rows"
                )))
            }
            None => Ok(()),
        }
    }
}

fn check_len(out: &[u8], expected: usize) -> Result<()> {
    if out.len() == expected {
        return Ok(());
    }
    Err(Error::Invalid(format!("out has {} bytes, expected {expected}", out.len())))
}

fn bytes_of(layout: &Layout, plane: Plane) -> usize {
    match plane {
        Plane::Codes => layout.sealed_bytes(false) + layout.heads * 2 * layout.page_tokens,
        Plane::Residuals => layout.sealed_bytes(true),
    }
}

/// Writes one plane of entry `index`.
fn copy_plane(
    source: &Source<'_>,
    digest: &digest::DigestLayout,
    batch: &Batch,
    index: usize,
    plane: Plane,
    into: &mut [u8],
) {
    let layout = source.layout;
    let PageBytes::Planes { codes, residual } = batch.page(index, source) else {
        unreachable!("whole pages of a cache that keeps planes are in planes");
    };
    if plane == Plane::Residuals {
        return into.copy_from_slice(residual.unwrap_or(&[]));
    }
    let entry = batch.entries[index];
    let known = &source.tables[entry.row as usize].digest;
    let heads = into.chunks_exact_mut(into.len() / layout.heads);
    for ((head, into), codes) in heads.enumerate().zip(codes.chunks_exact(codes.len() / layout.heads)) {
        let scales = match residual {
            Some(residual) => layout.scales(residual, head),
            None => known.scales(digest, head, entry.page as usize),
        };
        let (keys, rest) = into.split_at_mut(scales.keys.len());
        let (values, rest) = rest.split_at_mut(scales.values.len());
        keys.copy_from_slice(scales.keys);
        values.copy_from_slice(scales.values);
        rest.copy_from_slice(codes);
    }
}
