//! Keeping the directory under its limit: pages that no session uses go first, then whole
//! sessions, the longest unused first. What a live cache refers to never goes.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::state::{Copy, State};
use super::{Inner, Store};
use crate::error::{Error, Result};
use crate::format::GroupHeader;
use crate::io::{AlignedBuf, DiskFile};
use crate::key::PageKey;
use crate::policy::KeySet;
use crate::tier::disk::{Location, Segments, segment_name};

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

/// One segment as a collection sees it.
struct Candidate {
    segment: u64,
    file: Arc<dyn DiskFile>,
    len: u64,
    live: Vec<Location>,
    dead: Vec<PageKey>,
}

impl Inner {
    /// Bytes of the files in the directory.
    pub(super) fn disk_used(state: &State) -> u64 {
        state.segments.as_ref().map_or(0, Segments::total_bytes) + state.session_bytes
    }

    /// The most that the directory may hold now: the user's limit, or what the floor of free space leaves.
    fn disk_limit(&self, used_bytes: u64) -> Result<u64> {
        let Some(disk) = &self.disk else { return Ok(u64::MAX) };
        let free = disk.free_bytes().map_err(|error| Error::io("look at", disk.describe(), error))?;
        let by_floor = used_bytes.saturating_add(free.saturating_sub(self.config.free_floor_bytes));
        Ok(self.config.disk_limit_bytes.map_or(by_floor, |limit| limit.min(by_floor)))
    }

    /// Makes sure that `bytes` more fit, deleting what is least valuable where they don't.
    pub(super) fn make_room(&self, bytes: u64) -> Result<()> {
        // A segment's header, and the table of contents that it will end with.
        let needed_bytes = bytes + bytes / 64 + 4 * crate::io::ALIGN as u64;
        if self.fits(needed_bytes)? {
            return Ok(());
        }
        let _one_at_a_time = self.room.lock();
        loop {
            if self.fits(needed_bytes)? {
                return Ok(());
            }
            if self.collect(true)?.bytes > 0 || self.evict_session()? {
                continue;
            }
            return Err(self.disk_full(needed_bytes)?);
        }
    }

    fn fits(&self, bytes: u64) -> Result<bool> {
        let used = Self::disk_used(&self.state.lock());
        Ok(used + bytes <= self.disk_limit(used)?)
    }

    fn disk_full(&self, needed_bytes: u64) -> Result<Error> {
        let used_bytes = Self::disk_used(&self.state.lock());
        let limit_bytes = self.disk_limit(used_bytes)?;
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
        let open = self.state.lock().open_sessions.clone();
        let Some((_, image)) =
            self.session_images()?.into_iter().find(|(_, image)| !open.contains(&image.name))
        else {
            return Ok(false);
        };
        self.delete_session(&image.name)?;
        self.state.lock().counters.evicted_sessions += 1;
        Ok(true)
    }

    /// Deletes pages that neither a session nor a live cache uses. `sparing` moves no page
    /// where there is no room for the move.
    pub(super) fn collect(&self, sparing: bool) -> Result<Freed> {
        let mut used_by_sessions = KeySet::default();
        for (_, image) in self.session_images()? {
            used_by_sessions.extend(image.page_keys().iter().map(|page| page.key));
        }
        let mut freed = Freed::default();
        for candidate in self.candidates(&used_by_sessions) {
            let live_bytes: u64 = candidate.live.iter().map(|location| location.entry.padded_len()).sum();
            let header = GroupHeader::encoded_len(candidate.live.len()) as u64;
            if !candidate.live.is_empty() && sparing && !self.fits(live_bytes + header)? {
                continue;
            }
            self.delete_segment(&candidate, &mut freed)?;
        }
        Ok(freed)
    }

    /// Segments with dead pages, those with the least to move first.
    fn candidates(&self, used_by_sessions: &KeySet) -> Vec<Candidate> {
        let mut state = self.state.lock();
        let state = &mut *state;
        let Some(segments) = &state.segments else { return Vec::new() };
        let mut candidates: BTreeMap<u64, Candidate> = segments
            .iter()
            .filter(|(_, segment)| !segment.temporary && segment.writes == 0)
            .map(|(id, segment)| {
                let (file, len) = (segment.file.clone(), segment.len);
                (id, Candidate { segment: id, file, len, live: Vec::new(), dead: Vec::new() })
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
        let moved = self.move_pages(candidate)?;
        let mut state = self.state.lock();
        let newly_used = candidate.dead.iter().any(|key| state.is_referenced(*key));
        let writes = state.segments.as_ref().and_then(|segments| segments.get(candidate.segment));
        if newly_used || writes.is_none_or(|segment| segment.writes > 0) {
            return Ok(()); // somebody came to need it meanwhile
        }
        for key in &candidate.dead {
            if state.index.get(key).is_some_and(|location| location.segment == candidate.segment) {
                state.unindex(*key);
                state.set_copy(*key, Copy::None);
                freed.pages += 1;
            }
        }
        if let Some(segments) = &mut state.segments {
            segments.take(candidate.segment);
        }
        drop(state);
        freed.moved_pages += moved.0;
        freed.bytes += candidate.len.saturating_sub(moved.1);
        let name = segment_name(candidate.segment);
        let Some(disk) = &self.disk else { return Ok(()) };
        match disk.remove(&name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", name, error)),
            _ => Ok(()),
        }
    }

    /// Copies the live pages of a segment to the end of another, durably. Gives their number
    /// and the bytes that they take there.
    fn move_pages(&self, candidate: &Candidate) -> Result<(u64, u64)> {
        let (mut moved, mut moved_bytes) = (0, 0);
        let group_pages =
            |location: &Location| (self.config.group_bytes() / location.entry.padded_len()).max(1);
        let batch = candidate.live.first().map_or(1, group_pages) as usize;
        for locations in candidate.live.chunks(batch) {
            let mut pages = Vec::new();
            for location in locations {
                match candidate.read(location)? {
                    Some(page) => pages.push((*location, page)),
                    None => self.drop_corrupt(location),
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

    fn drop_corrupt(&self, location: &Location) {
        let mut state = self.state.lock();
        if state.index.get(&location.entry.key) == Some(location) {
            state.counters.corrupt_pages += 1;
            state.unindex(location.entry.key);
        }
    }

    fn write_moved(&self, pages: &[(Location, AlignedBuf)]) -> Result<u64> {
        let entries: Vec<_> = pages.iter().map(|(location, _)| location.entry).collect();
        let placed = match &mut self.state.lock().segments {
            Some(segments) => segments.place(false, entries),
            None => return Ok(0),
        };
        let placement = placed.map_err(|error| Error::io("create a segment in", "segments", error))?;
        let header = AlignedBuf::padded(&placement.header.encode());
        let mut parts: Vec<&[u8]> = vec![&header];
        parts.extend(pages.iter().map(|(_, page)| &**page));
        let written = placement.file.write_at(&parts, placement.header.offset);
        // Durable before the old copy goes.
        let synced = written.and_then(|()| placement.file.sync());
        let mut state = self.state.lock();
        if let Some(segments) = &mut state.segments {
            segments.wrote(&placement.header, synced.is_ok());
        }
        synced.map_err(|error| Error::io("write", segment_name(placement.segment), error))?;
        for ((old, _), entry) in pages.iter().zip(&placement.header.entries) {
            if state.index.get(&entry.key) == Some(old) {
                state.index(Location { segment: placement.segment, entry: *entry, verified: true });
            }
        }
        Ok(placement.header.end() - placement.header.offset)
    }
}

impl Candidate {
    /// A live page's body; `None` where it is damaged.
    fn read(&self, location: &Location) -> Result<Option<AlignedBuf>> {
        let mut page = AlignedBuf::zeroed(location.entry.padded_len() as usize);
        match self.file.read_at(&mut page, location.entry.offset()) {
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
                Err(Error::io("read", segment_name(self.segment), error))
            }
            Err(_) => Ok(None),
            Ok(()) => Ok((crc32c::crc32c(&page) == location.entry.crc).then_some(page)),
        }
    }
}

impl State {
    fn is_referenced(&self, key: PageKey) -> bool {
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
        self.inner.collect(false)
    }
}
