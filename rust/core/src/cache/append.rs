//! Appending: open pages fill up, full ones are sealed.

use std::sync::Arc;

use super::feed::{Batch, PageRef, Source};
use super::layout::{Layout, PageBytes};
use super::table::{SealedKeys, SealedPage, Table};
use super::{Extent, KvCache, ReadRows};
use crate::error::{Error, Result};
use crate::interrupt::Poll;
use crate::session::LayerShape;
use crate::store::{Lifetime, Planes, Store};
use crate::tier::ram::{Page, PageMut};

impl KvCache {
    /// Adds (B, H, T, Dk) keys and (B, H, T, Dv) values to a layer. The first append fixes
    /// B for the cache, and H, Dk, Dv and the element type for the layer.
    ///
    /// A failed append leaves the layer as it was; only a failure to seal, after which
    /// nothing can be stored any more, may cost the tokens of the open page.
    ///
    /// # Errors
    /// `Invalid` for shapes that do not fit; `RamFull`, `DiskFull`, `Io`, `Poisoned` from the
    /// store; `PagesLost` when a page that was cropped into is gone; `Interrupted`.
    pub fn append(&mut self, layer: usize, keys: &dyn ReadRows, values: &dyn ReadRows) -> Result<()> {
        self.check_layer(layer)?;
        let shape = self.accept(layer, &keys.extent(), &values.extent())?;
        let layout = self.layout_of(&shape);
        let before = self.layers[layer].len;
        let result = self.fill(layer, &layout, keys, values);
        if result.is_err() {
            self.layers[layer].truncate(before, self.config.page_tokens);
        }
        result
    }

    /// Checks a call's shapes, and adopts them on a first append.
    fn accept(&mut self, layer: usize, keys: &Extent, values: &Extent) -> Result<LayerShape> {
        values.expect("values", &Extent { dim: values.dim, ..*keys })?;
        if let Some(turns) = &self.turns {
            turns.check_dim(keys.dim)?;
        }
        let shape = LayerShape {
            kv_heads: keys.heads as u32,
            key_dim: keys.dim as u32,
            value_dim: values.dim as u32,
            dtype: keys.dtype,
        };
        if let Some(known) = self.layers[layer].shape {
            let (batch, heads, tokens) = (self.rows, known.kv_heads as usize, keys.tokens);
            let (dim, dtype) = (known.key_dim as usize, known.dtype);
            keys.expect("keys", &Extent { batch, heads, tokens, dim, dtype })?;
            let dim = known.value_dim as usize;
            values.expect("values", &Extent { batch, heads, tokens, dim, dtype })?;
            return Ok(known);
        }
        if keys.batch == 0 || keys.heads == 0 || keys.dim == 0 || values.dim == 0 {
            return Err(Error::Invalid(format!(
                "keys {keys} and values {values}: every size but T is 1 or more"
            )));
        }
        let rows = if self.rows == 0 { self.notes.len() } else { self.rows };
        if rows != 0 && rows != keys.batch {
            return Err(Error::Invalid(format!("keys have {} batch rows, the cache has {rows}", keys.batch)));
        }
        self.rows = keys.batch;
        if self.notes.is_empty() {
            self.notes = vec![self.empty_notes(); self.rows];
        }
        let layer = &mut self.layers[layer];
        layer.tables.resize_with(self.rows, Table::default);
        layer.shape = Some(shape);
        Ok(shape)
    }

    /// Page by page, all rows of a page together, so that rows never differ in length.
    fn fill(
        &mut self,
        layer: usize,
        layout: &Layout,
        keys: &dyn ReadRows,
        values: &dyn ReadRows,
    ) -> Result<()> {
        let (total, page_tokens) = (keys.extent().tokens, layout.page_tokens);
        let mut poll = Poll::default();
        let mut done = 0;
        while done < total {
            poll.check()?;
            let at = self.layers[layer].len;
            let (page, within) = (at / page_tokens, at % page_tokens);
            let tokens = (page_tokens - within).min(total - done);
            for (row, table) in self.layers[layer].tables.iter_mut().enumerate() {
                let open = writable(&self.store, table, page, layout)?;
                for head in 0..layout.heads {
                    let fresh = &mut open[layout.keys(head, within, tokens)];
                    keys.read(row, head, done, fresh);
                    if let Some(turns) = &self.turns {
                        let extent = keys.extent();
                        turns.store(within, fresh, extent.dim, extent.dtype);
                    }
                    values.read(row, head, done, &mut open[layout.values(head, within, tokens)]);
                }
            }
            done += tokens;
            self.layers[layer].len = at + tokens;
            if within + tokens == page_tokens {
                self.seal(layer, page, layout)?;
            }
        }
        Ok(())
    }

    /// Seals the full open page of every row.
    fn seal(&mut self, index: usize, page: usize, layout: &Layout) -> Result<()> {
        for row in 0..self.rows {
            let (keys, lifetime) = self.next_keys(index, row, page);
            let spare = self.private_keys(index);
            let layer = &mut self.layers[index];
            // Writing made it this row's own.
            let open = layer.tables[row].open.take().and_then(Arc::into_inner).ok_or_else(still_shared);
            match open.and_then(|open| seal_page(&self.store, layout, keys, open, lifetime, spare)) {
                Ok((sealed, page, residual)) => {
                    layer.tables[row].push_sealed(sealed);
                    let bytes = match &residual {
                        None => PageBytes::Elements(&page),
                        Some(residual) => PageBytes::Planes { codes: &page, residual: Some(residual) },
                    };
                    self.summarise_sealed(index, row, layout, bytes);
                }
                Err(error) => {
                    // The page went with the failure: only what precedes it is whole in all rows.
                    layer.truncate(page * self.config.page_tokens, self.config.page_tokens);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// The identity of a full page: its place in the row's chain, or a name of its own.
    fn next_keys(&mut self, layer: usize, row: usize, page: usize) -> (SealedKeys, Lifetime) {
        match self.notes.get(row).and_then(|notes| notes.chain(page)) {
            Some(chain) => (SealedKeys::of(&chain, layer as u32, self.config.planes), Lifetime::Durable),
            None => (self.private_keys(layer), Lifetime::Private),
        }
    }

    /// Keys that nothing else has.
    fn private_keys(&mut self, layer: usize) -> SealedKeys {
        self.private_count += 1;
        let count = self.private_count;
        let chain = self.private.extend(&[count as u32, (count >> 32) as u32], b"");
        SealedKeys::of(&chain, layer as u32, self.config.planes)
    }
}

/// Hands a full page over to the store: as it is, or in planes. Gives what the store holds, for as
/// long as it is at hand.
fn seal_page(
    store: &Store,
    layout: &Layout,
    keys: SealedKeys,
    open: PageMut,
    lifetime: Lifetime,
    spare: SealedKeys,
) -> Result<(Arc<SealedPage>, Page, Option<Page>)> {
    let (Some(keys), Some(spare)) = (keys.planes(), spare.planes()) else {
        let page = store.seal(keys.page, open, lifetime)?;
        let sealed = SealedPage::adopt(store, keys);
        sealed.page.seen(&page);
        return Ok((sealed, page, None));
    };
    let mut codes = store.allocate(layout.sealed_bytes(false))?;
    let mut residual = store.allocate(layout.sealed_bytes(true))?;
    layout.encode(&open, &mut codes, &mut residual);
    drop(open);
    let Planes { keys: [page, residual_key], pages: [codes, residual] } =
        store.seal_planes(keys, [codes, residual], lifetime, spare)?;
    let sealed = SealedPage::adopt(store, SealedKeys { page, residual: Some(residual_key) });
    layout.check_sealed(&codes, false)?;
    layout.check_sealed(&residual, true)?;
    sealed.page.seen(&codes);
    sealed.residual.iter().for_each(|held| held.seen(&residual));
    Ok((sealed, codes, Some(residual)))
}

/// The open page of a row, made this row's own: allocated, copied from the row that it is
/// shared with, or copied from the sealed page that was cropped into.
pub(super) fn writable<'a>(
    store: &Store,
    table: &'a mut Table,
    page: usize,
    layout: &Layout,
) -> Result<&'a mut PageMut> {
    let shared = match &mut table.open {
        Some(open) => Arc::get_mut(open).is_none(),
        None => false,
    };
    if shared || table.open.is_none() {
        let mut fresh = store.allocate(layout.page_bytes())?;
        if let Some(open) = &table.open {
            fresh.copy_from_slice(open);
        } else if page < table.sealed.len() {
            let source = Source { store, tables: std::slice::from_ref(table), layout };
            let mut batch = Batch::default();
            batch.start(&source, &[PageRef::whole(0, page as u32)]);
            batch.settle(&source)?;
            layout.restore(batch.page(0, &source), &mut fresh);
            drop(batch);
            table.pop_sealed();
        }
        table.open = Some(Arc::new(fresh));
    }
    let open = table.open.as_mut().and_then(Arc::get_mut);
    open.ok_or_else(still_shared)
}

fn still_shared() -> Error {
    Error::Invalid("an open page is shared while it is written".into())
}
