//! Keeping the directory under its limit: pages that no session uses go first, then whole
//! sessions, the longest unused first. What a live cache refers to never goes.

use std::collections::BTreeMap;
use std::io;

use super::state::{Copy, State};
use super::{Inner, Store};
use crate::error::{Error, Result};
use crate::io::{AlignedBuf, DiskFile};
use crate::key::PageKey;
use crate::policy::KeySet;
use crate::sync::MutexGuard;
use crate::tier::disk::{Location, SEGMENTS_DIR, Segments, group_bytes, segment_name};

/// What a collection freed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Freed {
    /// Bytes that the directory shrank by.
    pub bytes: u64,
    /// Pages that no session used.
    pub pages: u64,
    /// Pages that were moved out of segments to be deleted.
    pub moved_pages: u64,
}

/// A share of the disk limit, kept for a write until its bytes are counted themselves.
/// MUST NOT be dropped under the state's lock.
pub(super) struct Reserved<'a> {
    inner: &'a Inner,
    bytes: u64,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.inner.state.lock().reserved_bytes -= self.bytes;
    }
}

/// One segment as a collection sees it.
struct Candidate {
    segment: u64,
    len: u64,
    live: Vec<Location>,
    dead: Vec<PageKey>,
}

impl Inner {
    /// Bytes of the files in the directory.
    pub(super) fn disk_used(state: &State) -> u64 {
        state.segments.as_ref().map_or(0, Segments::total_bytes) + state.session_bytes
    }

    /// Bytes that the directory holds or will hold, and the most that it may hold now: the
    /// user's limit, or what the floor of free space leaves.
    fn disk_budget(&self) -> Result<(MutexGuard<'_, State>, u64, u64)> {
        let free = match &self.disk {
            Some(disk) => disk.free_bytes().map_err(|error| Error::io("look at", disk.describe(), error))?,
            None => u64::MAX,
        };
        let state = self.state.lock();
        let promised = state.segments.as_ref().map_or(0, Segments::promised_bytes);
        let used = Self::disk_used(&state) + promised + state.reserved_bytes;
        let by_floor = used.saturating_add(free.saturating_sub(self.config.free_floor_bytes));
        let limit = self.config.disk_limit_bytes.map_or(by_floor, |limit| limit.min(by_floor));
        Ok((state, used, limit))
    }

    /// Makes sure that `bytes` more fit, deleting what is least valuable where they don't.
    pub(super) fn make_room(&self, bytes: u64) -> Result<Reserved<'_>> {
        if let Some(reserved) = self.reserve(bytes)? {
            return Ok(reserved);
        }
        let _one_at_a_time = self.room.lock();
        loop {
            if let Some(reserved) = self.reserve(bytes)? {
                return Ok(reserved);
            }
            if self.collect()?.bytes > 0 || self.evict_session()? {
                continue;
            }
            return Err(self.disk_full(bytes)?);
        }
    }

    /// Keeps `bytes` of the limit for the caller, if so many are left.
    fn reserve(&self, bytes: u64) -> Result<Option<Reserved<'_>>> {
        let (mut state, used, limit) = self.disk_budget()?;
        if used + bytes > limit {
            return Ok(None);
        }
        state.reserved_bytes += bytes;
        drop(state);
        Ok(Some(Reserved { inner: self, bytes }))
    }

    fn disk_full(&self, needed_bytes: u64) -> Result<Error> {
        let (state, used_bytes, limit_bytes) = self.disk_budget()?;
        drop(state);
        let by_floor = self.config.disk_limit_bytes.is_none_or(|limit| limit > limit_bytes);
        let hint = if by_floor {
            format!(
                "free some space, or lower the floor of {} bytes that stay free",
                self.config.free_floor_bytes
            )
        } else {
            "what is left belongs to sessions in use: raise disk_limit=..., or remove sessions".into()
        };
        Ok(Error::DiskFull { used_bytes, limit_bytes, needed_bytes, hint })
    }

    /// Deletes the least valuable session that nobody has open; false where there is none.
    fn evict_session(&self) -> Result<bool> {
        let (images, _) = self.session_images()?;
        let open = self.state.lock().open_sessions.clone();
        let Some((_, image)) = images.into_iter().find(|(_, image)| !open.contains(&image.name)) else {
            return Ok(false);
        };
        self.delete_session(&image.name)?;
        self.state.lock().counters.evicted_sessions += 1;
        Ok(true)
    }

    /// Deletes pages that neither a session nor a live cache uses, as far as there is room
    /// for moving the others. The caller holds `room`.
    pub(super) fn collect(&self) -> Result<Freed> {
        let mut used_by_sessions = KeySet::default();
        let (images, unreadable) = self.session_images()?;
        // What a damaged session used nobody can say; of others it can be said later.
        let known = |error: &Error| matches!(error, Error::Corrupt { .. });
        if let Some(error) = unreadable.into_iter().find(|error| !known(error)) {
            return Err(error);
        }
        for (_, image) in images {
            used_by_sessions.extend(image.page_keys().iter().map(|page| page.key));
            used_by_sessions.extend(image.chapter_keys());
        }
        let mut freed = Freed::default();
        for candidate in self.candidates(&used_by_sessions) {
            self.delete_segment(&candidate, &mut freed)?;
        }
        Ok(freed)
    }

    /// How many of a candidate's pages are moved at once.
    fn pages_at_once(&self, candidate: &Candidate) -> usize {
        let page_bytes = candidate.live.iter().map(|location| location.entry.padded_len()).max();
        page_bytes.map_or(1, |bytes| (self.config.group_bytes() / bytes).max(1) as usize)
    }

    /// Segments with dead pages, those with the least to move first.
    fn candidates(&self, used_by_sessions: &KeySet) -> Vec<Candidate> {
        let mut state = self.state.lock();
        let state = &mut *state;
        let Some(segments) = &state.segments else { return Vec::new() };
        let mut candidates: BTreeMap<u64, Candidate> = segments
            .iter()
            .filter(|(_, segment)| segment.removable && segment.writes == 0)
            // Private pages are never moved: their segment goes when the last of them is gone.
            .filter(|(_, segment)| !segment.temporary || segment.live_pages == 0)
            .map(|(id, segment)| {
                (id, Candidate { segment: id, len: segment.len, live: Vec::new(), dead: Vec::new() })
            })
            .collect();
        for (key, location) in &state.index {
            let Some(candidate) = candidates.get_mut(&location.segment) else { continue };
            if used_by_sessions.contains(key) || state.is_referenced(*key) {
                candidate.live.push(*location);
            } else {
                candidate.dead.push(*key);
            }
        }
        // Pages of the group table that the index does not point to are dead weight too.
        let mut candidates: Vec<_> = candidates
            .into_values()
            .filter(|candidate| candidate.live.is_empty() || !candidate.dead.is_empty())
            .collect();
        candidates.sort_by_key(|candidate| candidate.live.len());
        if let Some(segments) = &mut state.segments {
            for candidate in &candidates {
                // Nothing may be moved into what is about to be deleted.
                segments.finish(candidate.segment);
            }
        }
        candidates
    }

    fn delete_segment(&self, candidate: &Candidate, freed: &mut Freed) -> Result<()> {
        let batches = candidate.live.chunks(self.pages_at_once(candidate));
        let needed = batches.map(|batch| group_bytes(batch.iter().map(|page| page.entry.padded_len()))).sum();
        let Some(reserved) = self.reserve(needed)? else { return Ok(()) };
        let moved = self.move_pages(candidate)?;
        drop(reserved);
        let mut state = self.state.lock();
        if candidate.dead.iter().any(|key| state.is_referenced(*key)) {
            return Ok(()); // somebody came to need it meanwhile
        }
        for key in &candidate.dead {
            if state.index.get(key).is_some_and(|location| location.segment == candidate.segment) {
                state.unindex(*key);
                state.set_copy(*key, Copy::None);
                freed.pages += 1;
            }
        }
        let segment = state.segments.as_ref().and_then(|segments| segments.get(candidate.segment));
        if segment.is_none_or(|segment| segment.live_pages > 0) {
            return Ok(());
        }
        drop(state);
        // Nothing points to the file any more. It counts until it is gone.
        let name = segment_name(candidate.segment);
        let Some(disk) = &self.disk else { return Ok(()) };
        match disk.remove(&name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("remove", name, error));
            }
            _ => {}
        }
        if let Some(segments) = &mut self.state.lock().segments {
            segments.take(candidate.segment);
        }
        freed.moved_pages += moved.0;
        freed.bytes += candidate.len.saturating_sub(moved.1);
        Ok(())
    }

    /// Copies the live pages of a segment to the end of another, durably. Gives their number
    /// and the bytes that they take there.
    fn move_pages(&self, candidate: &Candidate) -> Result<(u64, u64)> {
        let (mut moved, mut moved_bytes) = (0, 0);
        if candidate.live.is_empty() {
            return Ok((moved, moved_bytes));
        }
        let file = match &mut self.state.lock().segments {
            Some(segments) => segments.file(candidate.segment),
            None => return Ok((moved, moved_bytes)),
        };
        let file = file.map_err(|error| Error::io("open", segment_name(candidate.segment), error))?;
        for locations in candidate.live.chunks(self.pages_at_once(candidate)) {
            let mut pages = Vec::new();
            for location in locations {
                match read_whole(file.as_ref(), location)? {
                    Some(page) => pages.push((*location, page)),
                    None => self.drop_corrupt(&mut self.state.lock(), location),
                }
            }
            if pages.is_empty() {
                continue;
            }
            moved += pages.len() as u64;
            moved_bytes += self.write_moved(&pages)?;
        }
        Ok((moved, moved_bytes))
    }

    fn write_moved(&self, pages: &[(Location, AlignedBuf)]) -> Result<u64> {
        let entries: Vec<_> = pages.iter().map(|(location, _)| location.entry).collect();
        let placed = match &mut self.state.lock().segments {
            Some(segments) => segments.place(false, entries),
            None => return Ok(0),
        };
        let placement = placed.map_err(|error| Error::io("create a segment in", SEGMENTS_DIR, error))?;
        let header = AlignedBuf::padded(&placement.header.encode());
        let mut parts: Vec<&[u8]> = vec![&header];
        parts.extend(pages.iter().map(|(_, page)| &**page));
        let written = placement.file.write_at(&parts, placement.header.offset);
        // Durable before the old copy goes, under a name that is.
        let synced = written.and_then(|()| placement.file.sync()).and_then(|()| match &self.disk {
            Some(disk) => disk.sync_dir(SEGMENTS_DIR),
            None => Ok(()),
        });
        let mut state = self.state.lock();
        if let Some(segments) = &mut state.segments {
            segments.wrote(&placement.header, synced.is_ok());
        }
        synced.map_err(|error| Error::io("write", segment_name(placement.segment), error))?;
        for ((old, _), entry) in pages.iter().zip(&placement.header.entries) {
            if state.index.get(&entry.key).is_some_and(|known| known.is_at(old)) {
                state.index(Location { segment: placement.segment, entry: *entry, verified: true });
            }
        }
        Ok(placement.header.end() - placement.header.offset)
    }
}

/// A page's body; `None` where it is damaged.
pub(super) fn read_whole(file: &dyn DiskFile, location: &Location) -> Result<Option<AlignedBuf>> {
    let mut page = AlignedBuf::zeroed(location.entry.padded_len() as usize);
    match file.read_at(&mut page, location.entry.offset()) {
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
            Err(Error::io("read", segment_name(location.segment), error))
        }
        Err(_) => Ok(None),
        Ok(()) => Ok((crc32c::crc32c(&page) == location.entry.crc).then_some(page)),
    }
}

impl State {
    /// Whether somebody uses, reads or writes a page.
    pub(super) fn is_referenced(&self, key: PageKey) -> bool {
        self.pages
            .get(&key)
            .is_some_and(|held| held.refs > 0 || held.copy == Copy::Writing || held.waiters.is_some())
    }
}

impl Store {
    /// Deletes pages that no session and no live cache uses, moving others together.
    ///
    /// # Errors
    /// `ReadOnly`, `Io`.
    pub fn gc(&self) -> Result<Freed> {
        self.inner.check()?;
        if !self.inner.can_write() {
            return Err(Error::ReadOnly { action: "collecting garbage" });
        }
        self.inner.flush()?;
        let _one_at_a_time = self.inner.room.lock();
        self.inner.collect()
    }
}
