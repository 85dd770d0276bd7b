//! The sketches of a row's chapters, side by side.
//!
//! Where a context is long, every step reads all sketches of a layer, and little else of its chapters: apart
//! from each other, as the chapters are, most of the time would be spent on finding them. A volume is
//! one slot of the warm tier with the sketches of [`VOLUME_CHAPTERS`] chapters, head by head. What it holds are
//! copies: chapters have the same, and are what is stored.
//!
//! Volumes are shared between forks until one of them writes to it.

use std::sync::Arc;

use super::digest::own;
use crate::error::Result;
use crate::score::Sketch;
use crate::store::Store;
use crate::tier::ram::PageMut;

/// Chapters of a volume.
pub(super) const VOLUME_CHAPTERS: usize = 16;

/// The sketches of one layer and row. Cloning shares them.
#[derive(Clone, Default)]
pub(super) struct Sketches {
    volumes: Arc<Vec<Arc<PageMut>>>,
    /// Chapters: always the first ones.
    count: usize,
}

impl Sketches {
    /// Chapters that are sketched.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Forgets all but the first `count`.
    pub(super) fn truncate(&mut self, count: usize) {
        if count < self.count {
            self.count = count;
            Arc::make_mut(&mut self.volumes).truncate(count.div_ceil(VOLUME_CHAPTERS));
        }
    }

    /// Takes a copy of the sketches, one per head, of the next chapter.
    pub(super) fn push(&mut self, store: &Store, sketch: Sketch, of_heads: &[u8]) -> Result<()> {
        let (volume, place) = (self.count / VOLUME_CHAPTERS, self.count % VOLUME_CHAPTERS);
        if volume == self.volumes.len() {
            let fresh = store.allocate(VOLUME_CHAPTERS * of_heads.len())?;
            Arc::make_mut(&mut self.volumes).push(Arc::new(fresh));
        }
        let len = sketch.len_bytes();
        let volume = own(&mut Arc::make_mut(&mut self.volumes)[volume], store)?;
        for (part, bytes) in volume.chunks_exact_mut(VOLUME_CHAPTERS * len).zip(of_heads.chunks_exact(len)) {
            part[place * len..][..len].copy_from_slice(bytes);
        }
        self.count += 1;
        Ok(())
    }

    /// Of one head, the sketches of the first `count` chapters of a volume.
    pub(super) fn of_volume(&self, sketch: Sketch, head: usize, volume: usize, count: usize) -> &[u8] {
        let len = sketch.len_bytes();
        &self.volumes[volume][head * VOLUME_CHAPTERS * len..][..count * len]
    }
}
