//! The warm tier's memory: page slots in slabs, under a byte limit that is never exceeded.
//!
//! A [`PageMut`] owns one slot and frees it when dropped; [`Page`] is a shared, immutable
//! page (`Arc<PageMut>`), so "pinned" means no more than "somebody holds a clone", and
//! memory that is being read can't be reused. The arena knows no keys and evicts nothing.
#![expect(unsafe_code, reason = "slots are disjoint ranges of mappings that outlive them")]

use std::any::Any;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

use memmap2::MmapMut;

use crate::error::{Error, Result};
use crate::io::{ALIGN, ReadBuf, WriteBuf};
use crate::sync::Mutex;

/// Slabs are about this large: few mappings, and little is stranded by a size that is no longer used. Also the
/// size of a huge page, which a slab is wherever it can be: where a step reads here and there in many gigabytes,
/// half of its time would go into finding out where pages of 4 KiB are.
const SLAB_BYTES: usize = 2 << 20;
/// A slab that is a huge page may have one byte in so many that is in no slot.
const WASTE_ONE_IN: usize = 64;
/// Small limits get smaller ones: pages of one size must not take all of RAM from the others.
const SLABS_MIN: u64 = 16;

/// A sealed page in RAM: shared and immutable. Holding a clone keeps its slot.
pub type Page = Arc<PageMut>;

/// Page slots under a byte limit.
#[derive(Clone)]
pub struct Arena {
    shared: Arc<Shared>,
}

struct Shared {
    limit_bytes: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Bytes of all slabs: what counts against the limit.
    committed_bytes: u64,
    /// Bytes of the slots that are handed out.
    used_bytes: u64,
    slabs: Vec<Option<Slab>>,
}

struct Slab {
    /// Never read through: it only keeps the mapping alive, slots point into it.
    _map: MmapMut,
    base: NonNull<u8>,
    slot_bytes: usize,
    free: Vec<u32>,
    slots: u32,
    /// What is mapped.
    bytes: u64,
}

// SAFETY: `base` points into `_map`, which moves with the slab and is itself Send.
unsafe impl Send for Slab {}

impl Slab {
    /// A mapping of `bytes`, at least those of its slots.
    fn new(slot_bytes: usize, slots: u32, bytes: usize) -> Option<Self> {
        assert!(bytes >= slot_bytes * slots as usize, "slots past their slab");
        let mut map = MmapMut::map_anon(bytes).ok()?;
        #[cfg(target_os = "linux")]
        if bytes >= SLAB_BYTES {
            // Only a wish.
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        let base = NonNull::new(map.as_mut_ptr())?;
        let free = (0..slots).rev().collect();
        Some(Self { _map: map, base, slot_bytes, free, slots, bytes: bytes as u64 })
    }

    fn is_unused(&self) -> bool {
        self.free.len() == self.slots as usize
    }
}

/// What an arena holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArenaUsage {
    /// The limit in bytes.
    pub limit_bytes: u64,
    /// Bytes of memory that the arena has mapped; never more than the limit.
    pub committed_bytes: u64,
    /// Bytes in slots that are handed out.
    pub used_bytes: u64,
}

impl Arena {
    /// An empty arena; memory is mapped as slots are asked for.
    pub fn new(limit_bytes: u64) -> Self {
        Self { shared: Arc::new(Shared { limit_bytes, state: Mutex::new(State::default()) }) }
    }

    /// A slot of `len` bytes, or `None` where the limit leaves no room for one.
    ///
    /// The slot takes `len` rounded up to [`ALIGN`]; its contents are whatever was there.
    ///
    /// # Errors
    /// `Invalid` for a length of zero.
    pub fn allocate(&self, len: usize) -> Result<Option<PageMut>> {
        if len == 0 {
            return Err(Error::Invalid("a page has at least one byte".into()));
        }
        let slot_bytes = len.next_multiple_of(ALIGN);
        let mut state = self.shared.state.lock();
        let Some(slab_index) = state.slab_with_room(slot_bytes, self.shared.limit_bytes) else {
            return Ok(None);
        };
        let Some(slab) = state.slabs[slab_index].as_mut() else {
            return Ok(None);
        };
        let Some(slot) = slab.free.pop() else {
            return Ok(None);
        };
        // SAFETY: slot < slots, so the offset stays inside the mapping.
        let start = unsafe { slab.base.add(slot as usize * slot_bytes) };
        state.used_bytes += slot_bytes as u64;
        drop(state);
        Ok(Some(PageMut {
            start,
            len,
            slot_bytes,
            slab: slab_index as u32,
            slot,
            arena: self.shared.clone(),
        }))
    }

    /// What is mapped and used now.
    pub fn usage(&self) -> ArenaUsage {
        let state = self.shared.state.lock();
        ArenaUsage {
            limit_bytes: self.shared.limit_bytes,
            committed_bytes: state.committed_bytes,
            used_bytes: state.used_bytes,
        }
    }
}

impl State {
    /// Finds or maps a slab with a free slot of exactly this size.
    fn slab_with_room(&mut self, slot_bytes: usize, limit_bytes: u64) -> Option<usize> {
        let fits = |slab: &Option<Slab>| {
            slab.as_ref().is_some_and(|slab| slab.slot_bytes == slot_bytes && !slab.free.is_empty())
        };
        // The last slabs are the likeliest to have room; a few hundred at most either way.
        if let Some(index) = self.slabs.iter().rposition(fits) {
            return Some(index);
        }
        if self.committed_bytes + slot_bytes as u64 > limit_bytes {
            self.release_unused();
        }
        let room = usize::try_from(limit_bytes.saturating_sub(self.committed_bytes)).unwrap_or(usize::MAX);
        let share = usize::try_from(limit_bytes / SLABS_MIN).unwrap_or(usize::MAX);
        let slots = (SLAB_BYTES.min(share) / slot_bytes).max(1).min(room / slot_bytes);
        if slots == 0 {
            return None;
        }
        let slab = Slab::new(slot_bytes, slots as u32, slab_bytes(slots * slot_bytes, room))?;
        self.committed_bytes += slab.bytes;
        if let Some(index) = self.slabs.iter().position(Option::is_none) {
            self.slabs[index] = Some(slab);
            return Some(index);
        }
        self.slabs.push(Some(slab));
        Some(self.slabs.len() - 1)
    }

    /// Unmaps slabs that no slot uses, so that another slot size can have their bytes.
    fn release_unused(&mut self) {
        for slab in &mut self.slabs {
            if slab.as_ref().is_some_and(Slab::is_unused) {
                self.committed_bytes -= slab.take().map_or(0, |slab| slab.bytes);
            }
        }
    }
}

/// What is mapped for so many bytes of slots: a huge page where they nearly fill one and there is room for it.
fn slab_bytes(of_slots: usize, room: usize) -> usize {
    let is_huge =
        of_slots <= SLAB_BYTES && SLAB_BYTES - of_slots <= SLAB_BYTES / WASTE_ONE_IN && SLAB_BYTES <= room;
    if is_huge { SLAB_BYTES } else { of_slots }
}

/// One slot, owned: writable until it is shared as a [`Page`].
pub struct PageMut {
    start: NonNull<u8>,
    len: usize,
    slot_bytes: usize,
    slab: u32,
    slot: u32,
    arena: Arc<Shared>,
}

// SAFETY: the slot is a range that no other PageMut covers, and the mapping lives as long
// as `arena`, because a slab is unmapped only when all of its slots are free.
unsafe impl Send for PageMut {}
// SAFETY: as above; a shared PageMut is only read.
unsafe impl Sync for PageMut {}

impl PageMut {
    /// The slot's whole length: `len` rounded up to [`ALIGN`], as it goes to disk.
    pub fn padded_len(&self) -> usize {
        self.slot_bytes
    }

    /// The page with its padding.
    pub fn padded(&self) -> &[u8] {
        // SAFETY: the slot spans slot_bytes, and `&self` excludes writers.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.slot_bytes) }
    }

    /// The page with its padding, writable.
    pub fn padded_mut(&mut self) -> &mut [u8] {
        // SAFETY: the slot spans slot_bytes, and `&mut self` excludes everybody else.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.slot_bytes) }
    }

    /// Zeroes the padding, so that what reaches the disk is determined.
    pub fn zero_padding(&mut self) {
        let len = self.len;
        self.padded_mut()[len..].fill(0);
    }
}

impl Deref for PageMut {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.padded()[..self.len]
    }
}

impl DerefMut for PageMut {
    fn deref_mut(&mut self) -> &mut [u8] {
        let len = self.len;
        &mut self.padded_mut()[..len]
    }
}

impl Drop for PageMut {
    fn drop(&mut self) {
        let mut state = self.arena.state.lock();
        state.used_bytes -= self.slot_bytes as u64;
        if let Some(slab) = state.slabs[self.slab as usize].as_mut() {
            slab.free.push(self.slot);
        }
    }
}

impl ReadBuf for PageMut {
    fn bytes_mut(&mut self) -> &mut [u8] {
        self.padded_mut()
    }
    fn into_any(self: Box<Self>) -> Box<dyn Any + Send> {
        self
    }
}

impl WriteBuf for PageMut {
    fn bytes(&self) -> &[u8] {
        self.padded()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_freed_slot_is_used_again_and_the_limit_holds() {
        let arena = Arena::new(10 * ALIGN as u64);
        let pages: Vec<_> = (0..10).map(|_| arena.allocate(100).unwrap().unwrap()).collect();
        assert!(arena.allocate(1).unwrap().is_none());
        drop(pages);
        assert_eq!(arena.usage().used_bytes, 0);
        // Another size takes over the bytes of the unused slabs.
        let big = arena.allocate(9 * ALIGN + 1).unwrap().unwrap();
        assert_eq!(big.padded_len(), 10 * ALIGN);
        assert_eq!(big.as_ptr() as usize % ALIGN, 0);
        assert!(arena.allocate(1).unwrap().is_none());
    }

    #[test]
    fn a_slab_is_a_huge_page_where_little_is_wasted_and_counts_whole() {
        for (len, committed) in [(24 << 10, SLAB_BYTES), (36 << 10, SLAB_BYTES), (1_200_000, 1_200_128)] {
            let arena = Arena::new(64 << 20);
            let page = arena.allocate(len).unwrap().unwrap();
            assert_eq!(arena.usage().committed_bytes, committed.next_multiple_of(ALIGN) as u64, "{len}");
            drop(page);
        }
        // No room for a whole one, and then not for another slot.
        let arena = Arena::new(SLAB_BYTES as u64 - 1);
        let pages: Vec<_> = std::iter::from_fn(|| arena.allocate(24 << 10).unwrap()).collect();
        assert_eq!(pages.len(), (SLAB_BYTES - 1) / (24 << 10));
        assert!(arena.usage().committed_bytes < SLAB_BYTES as u64);
    }

    #[test]
    fn zero_bytes_are_refused() {
        assert!(matches!(Arena::new(1 << 20).allocate(0), Err(Error::Invalid(_))));
    }

    proptest! {
        /// Slots never overlap, never exceed the limit, and come back whole.
        #[test]
        fn slots_are_disjoint(ops in prop::collection::vec((0_usize..3, 0_usize..40), 1..200)) {
            let limit = 4 << 20;
            let arena = Arena::new(limit);
            let mut held: Vec<(PageMut, u8)> = Vec::new();
            for (step, (size, drop_at)) in ops.into_iter().enumerate() {
                let len = [3_000, 70_000, 1_500_000][size];
                if let Some(mut page) = arena.allocate(len).unwrap() {
                    let mark = (step % 251) as u8;
                    let last = page.len() - 1;
                    page[0] = mark;
                    page[last] = mark;
                    held.push((page, mark));
                } else if !held.is_empty() {
                    held.swap_remove(drop_at % held.len());
                }
                prop_assert!(arena.usage().committed_bytes <= limit);
                for (page, mark) in &held {
                    prop_assert!(page[0] == *mark && page[page.len() - 1] == *mark);
                }
            }
            drop(held);
            prop_assert_eq!(arena.usage().used_bytes, 0);
        }
    }
}
