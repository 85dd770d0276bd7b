//! Copying a range of tokens out, page by page.

use super::feed::{Batch, PageRef, Source, stream};
use super::layout::Slice;
use super::{Extent, KvCache, WriteRows};
use crate::error::{Error, Result};

/// How a copy's keys are turned, in a cache with a rotary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyTurn {
    /// As they were appended, without positions; rounded once more.
    Appended,
    /// As they are stored, by their offset in their page.
    Stored,
    /// To their positions; rounded once more.
    Placed,
}

impl KvCache {
    /// Copies tokens [start, stop) into (B, H, stop - start, Dk) and (B, H, stop - start, Dv), the keys
    /// turned as asked.
    ///
    /// # Errors
    /// `Invalid` for a range or shapes that do not fit; `PagesLost`; `RamFull`, `Io` from the
    /// store; `Interrupted`. What the destinations hold then is unspecified.
    pub fn gather(
        &mut self,
        layer: usize,
        start: usize,
        stop: usize,
        keys: &mut dyn WriteRows,
        values: &mut dyn WriteRows,
        turn: KeyTurn,
    ) -> Result<()> {
        let (shape, layout) = self.filled(layer)?;
        if let Some(turns) = &mut self.turns {
            turns.grow(stop.div_ceil(layout.page_tokens));
        }
        let held = &self.layers[layer];
        if start > stop || stop > held.len {
            return Err(Error::Invalid(format!("tokens [{start}, {stop}) of {} in layer {layer}", held.len)));
        }
        let (batch, heads) = (self.rows, layout.heads);
        let expected =
            |dim: u32| Extent { batch, heads, tokens: stop - start, dim: dim as usize, dtype: shape.dtype };
        keys.extent().expect("keys", &expected(shape.key_dim))?;
        values.extent().expect("values", &expected(shape.value_dim))?;
        if start == stop {
            return Ok(());
        }
        let source = Source { store: &self.store, tables: &held.tables, layout: &layout };
        self.prefetched = None;
        let page_tokens = layout.page_tokens;
        let pages = (start / page_tokens) as u32..stop.div_ceil(page_tokens) as u32;
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.order.clear();
        let rows = 0..self.rows as u32;
        scratch.order.extend(rows.flat_map(|row| pages.clone().map(move |page| PageRef::whole(row, page))));
        let turns = self.turns.as_ref();
        let (key_row, value_row) = layout.row_bytes();
        let mut rows = Vec::new();
        let mut copy = |batch: &Batch| {
            for (index, entry) in batch.entries.iter().enumerate() {
                let first = entry.page as usize * page_tokens;
                let (from, to) = (start.max(first), stop.min(first + page_tokens));
                let (page, row) = (batch.page(index, &source), entry.row as usize);
                for head in 0..heads {
                    let slice = Slice { head, first: from - first, tokens: to - from };
                    rows.resize(slice.tokens * key_row, 0);
                    layout.read_keys(page, slice, shape.dtype, &mut rows);
                    if let Some(turns) = turns {
                        let dim = shape.key_dim as usize;
                        match turn {
                            KeyTurn::Appended => turns.unstore(slice.first, &mut rows, dim, shape.dtype),
                            KeyTurn::Stored => {}
                            KeyTurn::Placed => turns.place(entry.page as usize, &mut rows, dim, shape.dtype),
                        }
                    }
                    keys.write(row, head, from - start, &rows);
                    rows.resize(slice.tokens * value_row, 0);
                    layout.read_values(page, slice, shape.dtype, &mut rows);
                    values.write(row, head, from - start, &rows);
                }
            }
            Ok(())
        };
        let result = stream(&source, &scratch.order, None, &mut scratch.batches, || (), &mut copy);
        scratch.release();
        self.scratch = scratch;
        result
    }
}
