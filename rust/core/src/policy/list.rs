//! Doubly linked lists of pages over one slab, with an index by key.
//!
//! Every policy is a few queues between which pages move. Here a page has one slot in a
//! slab, the links are slot numbers, and a slot is in exactly one of `LISTS` lists, so
//! moving a page is a few writes and no allocation. The front of a list is its newest
//! end, the back its oldest.

use super::hash::KeyMap;
use crate::key::PageKey;
use crate::simd::prefetch_near;

/// No slot: the end of a list.
const NIL: u32 = u32::MAX;

/// Slots reserved up front at most: a hint may be a user's over-generous limit.
const RESERVED_SLOTS_MAX: usize = 1 << 20;

/// Number of a page's slot, valid until that page is removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Slot(u32);

#[derive(Clone, Debug)]
struct Node<M> {
    key: PageKey,
    newer: u32,
    older: u32,
    list: u8,
    meta: M,
}

#[derive(Clone, Copy, Debug)]
struct Ends {
    newest: u32,
    oldest: u32,
    len: usize,
}

/// `LISTS` lists of pages, each page with an `M` of the policy's own.
#[derive(Clone, Debug)]
pub(super) struct Lists<M, const LISTS: usize> {
    index: KeyMap<u32>,
    nodes: Vec<Node<M>>,
    free: Vec<u32>,
    ends: [Ends; LISTS],
}

impl<M: Copy, const LISTS: usize> Lists<M, LISTS> {
    pub(super) fn new(capacity_hint_pages: usize) -> Self {
        let reserved = capacity_hint_pages.min(RESERVED_SLOTS_MAX);
        let mut index = KeyMap::default();
        index.reserve(reserved);
        Self {
            index,
            nodes: Vec::with_capacity(reserved),
            free: Vec::new(),
            ends: [Ends { newest: NIL, oldest: NIL, len: 0 }; LISTS],
        }
    }

    /// Pages in all lists.
    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    pub(super) fn list_len(&self, list: usize) -> usize {
        self.ends[list].len
    }

    pub(super) fn slot(&self, key: PageKey) -> Option<Slot> {
        self.index.get(&key).copied().map(Slot)
    }

    pub(super) fn key(&self, slot: Slot) -> PageKey {
        self.nodes[slot.0 as usize].key
    }

    pub(super) fn list_of(&self, slot: Slot) -> usize {
        usize::from(self.nodes[slot.0 as usize].list)
    }

    pub(super) fn meta(&self, slot: Slot) -> M {
        self.nodes[slot.0 as usize].meta
    }

    pub(super) fn meta_mut(&mut self, slot: Slot) -> &mut M {
        &mut self.nodes[slot.0 as usize].meta
    }

    /// Asks for the memory of a page's slot, which is read soon.
    pub(super) fn prefetch(&self, slot: Slot) {
        prefetch_near(std::slice::from_ref(&self.nodes[slot.0 as usize]));
    }

    /// The same of the slots before and after it.
    pub(super) fn prefetch_neighbours(&self, slot: Slot) {
        let Node { newer, older, .. } = &self.nodes[slot.0 as usize];
        [newer, older].into_iter().filter(|slot| **slot != NIL).for_each(|slot| self.prefetch(Slot(*slot)));
    }

    /// The oldest page of a list.
    pub(super) fn oldest(&self, list: usize) -> Option<Slot> {
        Some(Slot(self.ends[list].oldest)).filter(|slot| slot.0 != NIL)
    }

    /// The page after `slot`, towards the newest end of its list.
    pub(super) fn newer(&self, slot: Slot) -> Option<Slot> {
        Some(Slot(self.nodes[slot.0 as usize].newer)).filter(|slot| slot.0 != NIL)
    }

    /// Puts a page that is in no list at the newest end of one.
    pub(super) fn push_newest(&mut self, list: usize, key: PageKey, meta: M) {
        let node = Node { key, newer: NIL, older: NIL, list: list as u8, meta };
        let slot = if let Some(slot) = self.free.pop() {
            self.nodes[slot as usize] = node;
            slot
        } else {
            assert!(self.nodes.len() < NIL as usize, "more than {NIL} pages in one policy");
            self.nodes.push(node);
            (self.nodes.len() - 1) as u32
        };
        let earlier = self.index.insert(key, slot);
        assert!(earlier.is_none(), "{key:?} is in a list already");
        self.link_newest(slot, list);
    }

    /// Moves a page to the newest end of a list, its own or another.
    pub(super) fn move_newest(&mut self, slot: Slot, list: usize) {
        self.unlink(slot.0);
        self.link_newest(slot.0, list);
    }

    /// Takes a page out; gives back its list and what the policy kept with it.
    pub(super) fn remove(&mut self, key: PageKey) -> Option<(usize, M)> {
        let slot = self.index.remove(&key)?;
        self.unlink(slot);
        self.free.push(slot);
        let node = &self.nodes[slot as usize];
        Some((usize::from(node.list), node.meta))
    }

    /// The oldest page of a list for which `wanted` holds.
    pub(super) fn find_oldest(&self, list: usize, wanted: &mut dyn FnMut(PageKey) -> bool) -> Option<Slot> {
        let mut next = self.oldest(list);
        while let Some(slot) = next {
            if wanted(self.key(slot)) {
                return Some(slot);
            }
            next = self.newer(slot);
        }
        None
    }

    fn link_newest(&mut self, slot: u32, list: usize) {
        let newest = self.ends[list].newest;
        let node = &mut self.nodes[slot as usize];
        node.list = list as u8;
        node.newer = NIL;
        node.older = newest;
        if newest == NIL {
            self.ends[list].oldest = slot;
        } else {
            self.nodes[newest as usize].newer = slot;
        }
        self.ends[list].newest = slot;
        self.ends[list].len += 1;
    }

    fn unlink(&mut self, slot: u32) {
        let Node { newer, older, list, .. } = self.nodes[slot as usize];
        let list = usize::from(list);
        if newer == NIL {
            self.ends[list].newest = older;
        } else {
            self.nodes[newer as usize].older = older;
        }
        if older == NIL {
            self.ends[list].oldest = newer;
        } else {
            self.nodes[older as usize].newer = newer;
        }
        self.ends[list].len -= 1;
    }
}
