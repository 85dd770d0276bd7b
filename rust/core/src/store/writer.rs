//! The background thread that writes: sealed durable pages in groups, private pages when
//! RAM runs short, tables of contents of full segments, and the syncs of a flush.

use std::io;
use std::sync::Arc;

use super::memory::as_error;
use super::state::{Copy, State};
use super::{Inner, closed};
use crate::error::{Error, Result};
use crate::format::{EntryKind, GroupHeader, PageEntry};
use crate::io::{AlignedBuf, IoOp, WriteBuf};
use crate::key::PageKey;
use crate::sync::{MutexGuard, thread};
use crate::tier::disk::{Location, SEGMENTS_DIR, Segments, group_bytes, segment_name};
use crate::tier::ram::{Page, PageMut};

/// Groups on their way to the disk at once: enough to keep its queue filled while the next
/// is checksummed.
const GROUPS_IN_FLIGHT: u32 = 4;

/// A shared page as a part of a write.
struct PagePart(Page);

impl WriteBuf for PagePart {
    fn bytes(&self) -> &[u8] {
        PageMut::padded(&self.0)
    }
}

/// Pages to be written together.
struct Group {
    temporary: bool,
    /// The newest flush that had been asked for when the group was taken up.
    flush: u64,
    pages: Vec<(PageKey, Page)>,
}

impl Inner {
    pub(super) fn start_writer(self: &Arc<Self>) -> Result<()> {
        let inner = self.clone();
        let thread = thread::Builder::new().name("stratakv-writer".into()).spawn(move || inner.write_loop());
        let thread = thread.map_err(|error| Error::io("start a thread for", SEGMENTS_DIR, error))?;
        *self.writer.lock() = Some(thread);
        Ok(())
    }

    pub(super) fn stop_writer(&self) {
        self.state.lock().closing = true;
        self.work.notify_all();
        self.changed.notify_all();
        let thread = self.writer.lock().take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }

    /// Whether the writer should not wait any longer.
    pub(super) fn has_work(&self, state: &State) -> bool {
        // After a failure nothing is tried again before somebody was told and asks anew.
        if state.writes_in_flight >= GROUPS_IN_FLIGHT || state.write_error.is_some() {
            return false;
        }
        let pressed = state.starving > 0 || state.flushes_asked > state.flushes_done;
        state.queued_bytes >= self.config.group_bytes()
            || (pressed && !state.queue.is_empty())
            || (state.unwritten_bytes > 0 && (state.starving > 0 || self.is_above_watermark(state)))
            || (state.flushes_asked > state.flushes_done && state.writes_in_flight == 0)
    }

    /// So much of RAM has no copy that the next pages would have to wait for one.
    fn is_above_watermark(&self, state: &State) -> bool {
        self.can_write() && state.unwritten_bytes > self.config.ram_bytes / 8 * 6
    }

    fn write_loop(self: &Arc<Self>) {
        loop {
            let mut state = self.state.lock();
            while !self.has_work(&state) && !state.closing {
                state = self.work.wait(state);
            }
            if state.closing {
                // What is in flight comes back before the thread goes.
                while state.writes_in_flight > 0 {
                    state = self.changed.wait_for(state, super::TICK);
                }
                return;
            }
            match self.next_group(&mut state) {
                Some(group) => self.write_group(state, group),
                None if state.writes_in_flight == 0 && state.flushes_asked > state.flushes_done => {
                    self.finish_flush(state);
                }
                None => {
                    // Pressed, and nothing to write: those who wait have to hear of it.
                    drop(self.changed_soon(state));
                }
            }
        }
    }

    fn changed_soon<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.notify_all();
        self.work.wait_for(state, super::TICK)
    }

    /// Takes the next pages to write out of the queues.
    fn next_group(&self, state: &mut State) -> Option<Group> {
        let limit = self.config.group_bytes();
        let (mut keys, mut bytes) = (Vec::new(), 0);
        while bytes < limit
            && let Some(key) = state.queue.pop_front()
        {
            let page_bytes = state.bytes_in_ram(key);
            state.queued_bytes = state.queued_bytes.saturating_sub(page_bytes);
            bytes += page_bytes;
            keys.push(key);
        }
        let temporary = keys.is_empty();
        if temporary && (state.starving > 0 || self.is_above_watermark(state)) {
            keys = state.next_unwritten(limit);
        }
        if state.queue.is_empty() {
            state.queued_bytes = 0;
        }
        let page_of = |key: &PageKey| Some((*key, state.pages.get(key)?.page.clone()?));
        let pages: Vec<_> = keys.iter().filter_map(page_of).collect();
        (!pages.is_empty()).then_some(Group { temporary, flush: state.flushes_asked, pages })
    }

    fn write_group(self: &Arc<Self>, mut state: MutexGuard<'_, State>, group: Group) {
        // From here on the group counts as under way: it is in no queue any more, and whoever
        // waits for memory must not take that for "nothing will become free".
        state.writes_in_flight += 1;
        drop(state);
        // Checksums take a while: outside the lock.
        let entries: Vec<_> = group.pages.iter().map(|(key, page)| entry_of(*key, page)).collect();
        let reserved = match self.make_room(group_bytes(entries.iter().map(PageEntry::padded_len))) {
            Ok(reserved) => reserved,
            Err(error) => {
                self.give_up(&group, error);
                return;
            }
        };
        let mut state = self.state.lock();
        let Some(segments) = &mut state.segments else {
            state.writes_in_flight -= 1;
            return;
        };
        let placed = segments.place(group.temporary, entries);
        let placement = match placed {
            Ok(placement) => placement,
            Err(error) => {
                drop(state);
                drop(reserved);
                self.give_up(&group, Error::io("create a segment in", SEGMENTS_DIR, error));
                return;
            }
        };
        drop(state);
        drop(reserved);
        let mut parts: Vec<Arc<dyn WriteBuf>> =
            vec![Arc::new(AlignedBuf::padded(&placement.header.encode()))];
        parts.extend(
            group.pages.iter().map(|(_, page)| Arc::new(PagePart(page.clone())) as Arc<dyn WriteBuf>),
        );
        let (inner, header) = (self.clone(), placement.header);
        let offset = header.offset;
        let done = move |outcome| inner.write_done(&header, group, outcome);
        self.engine.submit(vec![IoOp::Write { file: placement.file, offset, parts, done: Box::new(done) }]);
    }

    fn write_done(&self, header: &GroupHeader, group: Group, outcome: io::Result<()>) {
        let mut state = self.state.lock();
        if let Some(segments) = &mut state.segments {
            segments.wrote(header, outcome.is_ok());
        }
        if let Err(error) = outcome {
            drop(state);
            self.give_up(&group, Error::io("write", segment_name(header.segment), error));
            return;
        }
        state.writes_in_flight -= 1;
        state.counters.writes += 1;
        state.counters.written_bytes += header.body_bytes;
        for (entry, (_, page)) in header.entries.iter().zip(&group.pages) {
            let location = Location { segment: header.segment, entry: *entry, verified: true };
            if group.temporary && !state.holds(entry.key, page) {
                continue; // released while it was being written, and maybe another since
            }
            state.index(location);
            state.set_copy(entry.key, Copy::Stored);
        }
        drop(group);
        drop(state);
        self.changed.notify_all();
        self.work.notify_one();
    }

    /// A group could not be written: its pages stay in RAM, and whoever waits hears why.
    fn give_up(&self, group: &Group, error: Error) {
        let mut state = self.state.lock();
        state.writes_in_flight -= 1;
        for (key, page) in group.pages.iter().rev() {
            if !state.holds(*key, page) {
                continue;
            }
            if group.temporary {
                state.set_copy(*key, Copy::None);
                state.queue_private(*key, true);
            } else {
                state.queue.push_front(*key);
                state.queued_bytes += page.padded_len() as u64;
            }
        }
        // The flushes that wait for this write end here, with the error; one asked since tries again.
        state.fail_flushes(group.flush, error);
        drop(state);
        self.changed.notify_all();
    }

    /// Everything is written: makes it durable, then says so.
    fn finish_flush(&self, state: MutexGuard<'_, State>) {
        let asked = state.flushes_asked;
        let unsynced = state.segments.as_ref().map(Segments::unsynced).unwrap_or_default();
        drop(state);
        let synced = self.sync_segments(&unsynced);
        let mut state = self.state.lock();
        match synced {
            Ok(()) => {
                state.flushes_succeeded = asked;
                state.flushes_done = asked;
                if let Some(segments) = &mut state.segments {
                    for (id, _, len) in unsynced {
                        if let Some(segment) = segments.get_mut(id) {
                            segment.durable_until = len;
                        }
                    }
                }
            }
            Err(error) => {
                // What a failed sync lost can't be known: nothing written since counts as stored.
                for (id, _, _) in &unsynced {
                    state.distrust(*id);
                }
                state.poisoned = Some(error.to_string());
                // Nor can a flush asked meanwhile succeed any more.
                let asked = state.flushes_asked;
                state.fail_flushes(asked, error);
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    fn sync_segments(&self, unsynced: &[(u64, Arc<dyn crate::io::DiskFile>, u64)]) -> Result<()> {
        for (id, file, _) in unsynced {
            file.sync().map_err(|error| Error::io("sync", segment_name(*id), error))?;
        }
        // Not worth a failure: without its table a segment is read by its group headers.
        let _ = self.write_contents(false);
        let Some(disk) = self.disk.as_ref().filter(|_| !unsynced.is_empty()) else { return Ok(()) };
        disk.sync_dir(SEGMENTS_DIR).map_err(|error| Error::io("sync", SEGMENTS_DIR, error))
    }

    /// Writes the tables of contents of full segments (of all, at close). Their pages are durable already.
    pub(super) fn write_contents(&self, all: bool) -> Result<()> {
        let closing = match &mut self.state.lock().segments {
            Some(segments) => segments.unfinished_full(all),
            None => Vec::new(),
        };
        for segment in closing {
            segment.write().map_err(|error| Error::io("finish", SEGMENTS_DIR, error))?;
        }
        Ok(())
    }

    pub(super) fn flush(&self) -> Result<()> {
        if !self.can_write() {
            return Ok(());
        }
        let mut state = self.state.lock();
        if let Some(cause) = &state.poisoned {
            return Err(Error::Poisoned(cause.clone()));
        }
        state.write_error = None;
        state.flushes_asked += 1;
        let mine = state.flushes_asked;
        while state.flushes_done < mine {
            if state.closing {
                return Err(closed());
            }
            self.work.notify_one();
            state = self.wait(state)?;
        }
        // Every flush that a failure ended hears of it, whoever else does, unless a later one made up for it.
        match state.flush_error.clone() {
            Some(error) if state.flushes_succeeded < mine => {
                state.write_error = None;
                Err(as_error(&error))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn delete_temporaries(&self) {
        let Some(disk) = self.disk.as_ref().filter(|_| self.can_write()) else { return };
        let mut state = self.state.lock();
        let Some(segments) = &mut state.segments else { return };
        let temporary: Vec<u64> =
            segments.iter().filter(|(_, segment)| segment.temporary).map(|(id, _)| id).collect();
        for id in temporary {
            segments.take(id);
            // The next open deletes what can't be deleted now.
            let _ = disk.remove(&segment_name(id));
        }
    }
}

impl State {
    /// Ends the flushes up to `number` with an error, and lets the writer rest unless a later one waits.
    fn fail_flushes(&mut self, number: u64, error: Error) {
        let error = Arc::new(error);
        self.flush_error = Some(error.clone());
        self.flushes_done = self.flushes_done.max(number);
        if self.flushes_done == self.flushes_asked {
            self.write_error = Some(error);
        }
    }

    /// Pages of a segment no longer count as stored.
    fn distrust(&mut self, segment: u64) {
        let durable_until = self
            .segments
            .as_ref()
            .and_then(|segments| segments.get(segment))
            .map_or(0, |segment| segment.durable_until);
        for location in self.index.values_mut() {
            if location.segment == segment && location.entry.offset() >= durable_until {
                location.verified = false;
            }
        }
    }
}

fn entry_of(key: PageKey, page: &Page) -> PageEntry {
    let crc = crc32c::crc32c(page.padded());
    PageEntry { key, block: 0, len: page.len() as u32, crc, kind: EntryKind::Raw }
}
