//! Session files: written whole beside their place and moved there, so that a name always
//! has either the old or the new contents.

use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use super::room::read_whole;
use super::state::State;
use super::{Inner, Store};
use crate::error::{Error, Result};
use crate::format::{decode_session, decode_session_head, encode_session, is_newer_session};
use crate::interrupt;
use crate::io::{Access, Disk, Entry, Usage};
use crate::key::random_bytes;
use crate::policy::KeySet;
use crate::session::{SessionHead, SessionImage, SessionPage};
use crate::tier::disk::segment_name;

/// Directory of the session files.
const SESSIONS_DIR: &str = "sessions";
const SUFFIX: &str = ".session";
/// Of a file that is about to be moved to its place.
const BESIDE: &str = ".beside";
/// Bytes of a session file that are read for a listing: more than the head of any model has.
const HEAD_BYTES: u64 = 64 << 10;
/// File systems take names of 255 bytes; the suffix needs some.
const NAME_BYTES_MAX: usize = 200;

/// A session in a listing.
#[derive(Clone, Debug)]
pub struct SessionInfo {
    /// What its file says.
    pub head: SessionHead,
    /// Bytes of its sealed pages, of their summaries, and of its file.
    pub bytes: u64,
    /// Bytes of those pages that other sessions use too.
    pub shared_bytes: u64,
    /// Last save or load, seconds since 1970.
    pub last_used: u64,
}

/// Sessions with their directory entries, and what is wrong with the others.
type Images = (Vec<(Entry, SessionImage)>, Vec<Error>);

/// What reading every page found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verification {
    /// Pages read and found whole.
    pub pages: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// Pages that failed their checksum.
    pub corrupt: u64,
    /// Pages that no file holds.
    pub missing: u64,
    /// One sentence for each session or file with a problem.
    pub problems: Vec<String>,
}

/// Bytes of all session files; what can't be read is reported. A half-written file is removed.
pub(super) fn survey(disk: &dyn Disk, read_only: bool, report: &mut Vec<String>) -> Result<u64> {
    if !read_only {
        disk.create_dir(SESSIONS_DIR).map_err(|error| Error::io("create", SESSIONS_DIR, error))?;
        // What is in a directory whose own name is lost is lost with it.
        disk.sync_dir("").map_err(|error| Error::io("sync", disk.describe(), error))?;
    }
    let mut bytes = 0;
    for entry in entries(disk)? {
        let Some(name) = session_name(&entry.name).filter(|_| entry.is_file) else {
            if entry.name.ends_with(BESIDE) && entry.is_file && !read_only {
                disk.remove(&entry.name).map_err(|error| Error::io("remove", &entry.name, error))?;
            } else {
                bytes += entry.len;
                report.push(format!("{} is not a session; left alone", entry.name));
            }
            continue;
        };
        bytes += entry.len;
        if let Err(error) = read_head(disk, &entry.name) {
            report.push(format!("session {name:?} can't be used: {error}"));
        }
    }
    Ok(bytes)
}

fn entries(disk: &dyn Disk) -> Result<Vec<Entry>> {
    match disk.list(SESSIONS_DIR) {
        Ok(entries) => Ok(entries),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(Error::io("list", SESSIONS_DIR, error)),
    }
}

/// Path of a session's file: every byte that is not plainly safe in a file name is escaped.
fn path_of(name: &str) -> Result<String> {
    if name.is_empty() {
        return Err(Error::Invalid("a session needs a name".into()));
    }
    let mut path = format!("{SESSIONS_DIR}/");
    for (index, byte) in name.bytes().enumerate() {
        let plain = byte.is_ascii_alphanumeric() || b"-_ ".contains(&byte) || (byte == b'.' && index > 0);
        if plain {
            path.push(byte as char);
        } else {
            path.push('%');
            path.extend([byte >> 4, byte & 15].map(|digit| b"0123456789abcdef"[digit as usize] as char));
        }
    }
    if path.len() > NAME_BYTES_MAX {
        return Err(Error::Invalid(format!(
            "the session name {name:?} is too long: {NAME_BYTES_MAX} bytes at most"
        )));
    }
    path.push_str(SUFFIX);
    Ok(path)
}

/// The session name that a file name stands for.
fn session_name(path: &str) -> Option<String> {
    let escaped = path.strip_prefix(SESSIONS_DIR)?.strip_prefix('/')?.strip_suffix(SUFFIX)?;
    let (mut bytes, mut rest) = (Vec::new(), escaped.bytes());
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = [rest.next()?, rest.next()?];
        bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
    }
    String::from_utf8(bytes).ok().filter(|name| !name.is_empty())
}

fn read(disk: &dyn Disk, path: &str, at_most: u64) -> Result<Vec<u8>> {
    let file =
        disk.open(path, Access::Read, Usage::Metadata).map_err(|error| Error::io("open", path, error))?;
    let len = file.len().map_err(|error| Error::io("read", path, error))?.min(at_most);
    let mut bytes = vec![0; len as usize];
    file.read_at(&mut bytes, 0).map_err(|error| Error::io("read", path, error))?;
    Ok(bytes)
}

fn read_head(disk: &dyn Disk, path: &str) -> Result<SessionHead> {
    let bytes = read(disk, path, HEAD_BYTES)?;
    decode_session_head(&bytes).map_err(|what| Error::Corrupt { path: path.into(), what, offset: 0 })
}

impl Inner {
    fn sessions_disk(&self) -> Result<&dyn Disk> {
        self.disk.as_deref().ok_or_else(|| {
            Error::Invalid("sessions need a directory; this store keeps everything in RAM".into())
        })
    }

    fn writable_disk(&self, action: &'static str) -> Result<&dyn Disk> {
        if self.config.read_only {
            return Err(Error::ReadOnly { action });
        }
        self.sessions_disk()
    }

    /// Reads a session.
    pub(super) fn read_session(&self, name: &str) -> Result<SessionImage> {
        let (disk, path) = (self.sessions_disk()?, path_of(name)?);
        let bytes = match read(disk, &path, u64::MAX) {
            Ok(bytes) => bytes,
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Err(self.no_session(name));
            }
            Err(error) => return Err(error),
        };
        let image = decode_session(&bytes).map_err(|what| {
            let path = path.into();
            if is_newer_session(&bytes) {
                return Error::Foreign { path, what };
            }
            Error::Corrupt { path, what, offset: 0 }
        })?;
        // A copied or renamed file is the session that its name says.
        Ok(SessionImage { name: name.into(), ..image })
    }

    fn no_session(&self, name: &str) -> Error {
        let names: Vec<String> = self
            .disk
            .as_deref()
            .and_then(|disk| entries(disk).ok())
            .unwrap_or_default()
            .iter()
            .filter_map(|entry| session_name(&entry.name))
            .collect();
        let known = if names.is_empty() {
            "there is none yet".into()
        } else {
            format!("there is {}", names.join(", "))
        };
        Error::NotFound { what: format!("no session is named {name:?}; {known}") }
    }

    /// Every session file with its entry, oldest use first, and what is wrong with the others.
    pub(super) fn session_images(&self) -> Result<Images> {
        let disk = self.sessions_disk()?;
        let (mut images, mut unreadable) = (Vec::new(), Vec::new());
        for entry in entries(disk)? {
            let Some(name) = session_name(&entry.name).filter(|_| entry.is_file) else { continue };
            match self.read_session(&name) {
                Ok(image) => images.push((entry, image)),
                Err(Error::NotFound { .. }) => {}
                Err(error) => unreadable.push(error),
            }
        }
        images.sort_by(|a, b| (a.0.modified, &a.0.name).cmp(&(b.0.modified, &b.0.name)));
        Ok((images, unreadable))
    }

    /// Writes a session's file if `still_right` says so once nobody else can change the sessions.
    fn write_session(&self, image: &SessionImage, still_right: impl Fn() -> Result<()>) -> Result<()> {
        let disk = self.writable_disk("saving a session")?;
        let path = path_of(&image.name)?;
        let bytes = encode_session(image);
        // Room is not made by evicting what is to be replaced: the save may yet fail.
        let _open = KeptOpen::new(self, &image.name);
        let _reserved = self.make_room(bytes.len() as u64)?;
        // A collection that is under way has not seen this session.
        let _one_at_a_time = self.room.lock();
        still_right()?;
        let suffix = u64::from_le_bytes(random_bytes()?);
        let beside = format!("{SESSIONS_DIR}/{suffix:016x}{BESIDE}");
        let written = write_beside(disk, &beside, &bytes).and_then(|()| disk.rename(&beside, &path));
        if let Err(error) = written.and_then(|()| disk.sync_dir(SESSIONS_DIR)) {
            // What was written beside is of no use; a leftover goes at the next open.
            let _ = disk.remove(&beside);
            let _ = self.recount_sessions(disk);
            return Err(Error::io("write", path, error));
        }
        self.recount_sessions(disk)
    }

    /// Takes the sizes of the session files anew.
    fn recount_sessions(&self, disk: &dyn Disk) -> Result<()> {
        let bytes = entries(disk)?.iter().map(|entry| entry.len).sum();
        self.state.lock().session_bytes = bytes;
        Ok(())
    }

    /// Deletes a session's file; its pages stay until room is needed. The caller holds `room`.
    pub(super) fn delete_session(&self, name: &str) -> Result<()> {
        let (disk, path) = (self.writable_disk("removing a session")?, path_of(name)?);
        match disk.remove(&path).and_then(|()| disk.sync_dir(SESSIONS_DIR)) {
            Ok(()) => self.recount_sessions(disk),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(self.no_session(name)),
            Err(error) => Err(Error::io("remove", path, error)),
        }
    }
}

/// Protects a session from eviction.
struct KeptOpen<'a> {
    inner: &'a Inner,
    name: &'a str,
}

impl<'a> KeptOpen<'a> {
    fn new(inner: &'a Inner, name: &'a str) -> Self {
        inner.state.lock().set_session_open(name, true);
        Self { inner, name }
    }
}

impl Drop for KeptOpen<'_> {
    fn drop(&mut self) {
        self.inner.state.lock().set_session_open(self.name, false);
    }
}

impl State {
    fn set_session_open(&mut self, name: &str, open: bool) {
        let position = self.open_sessions.iter().position(|known| known == name);
        match (open, position) {
            (true, _) => self.open_sessions.push(name.to_owned()),
            (false, Some(position)) => {
                self.open_sessions.swap_remove(position);
            }
            (false, None) => {}
        }
    }
}

fn write_beside(disk: &dyn Disk, path: &str, bytes: &[u8]) -> io::Result<()> {
    let file = disk.open(path, Access::Create, Usage::Metadata)?;
    file.write_at(&[bytes], 0)?;
    file.sync()
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Store {
    /// Saves a session under its name, replacing what had it. Its pages must be flushed before.
    ///
    /// # Errors
    /// `ReadOnly`, `DiskFull`, `Io`, `Invalid` for a name that can't be one.
    pub fn save_session(&self, image: &SessionImage) -> Result<()> {
        self.inner.check()?;
        self.inner.write_session(image, || Ok(()))
    }

    /// Reads a session and notes that it was used.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, `Io`.
    pub fn load_session(&self, name: &str) -> Result<SessionImage> {
        self.inner.check()?;
        let image = self.inner.read_session(name)?;
        if let Some(disk) = self.inner.disk.as_ref().filter(|_| self.inner.can_write()) {
            // Only the order of eviction depends on it.
            let _ = disk.touch(&path_of(name)?);
        }
        Ok(image)
    }

    /// What a listing shows of one session, without reading its token ids.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, `Io`.
    pub fn session_head(&self, name: &str) -> Result<SessionHead> {
        self.inner.check()?;
        let (disk, path) = (self.inner.sessions_disk()?, path_of(name)?);
        let head = match read_head(disk, &path) {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Err(self.inner.no_session(name));
            }
            read => read?,
        };
        // A copied or renamed file is the session that its name says.
        Ok(SessionHead { name: name.into(), ..head })
    }

    /// Protects a session from eviction while a cache goes on with it, or no longer.
    pub fn set_session_open(&self, name: &str, open: bool) {
        if !self.inner.is_forked() {
            self.inner.state.lock().set_session_open(name, open);
        }
    }

    /// Every readable session, the last used first.
    ///
    /// # Errors
    /// `Io`, `Invalid` for a store without a directory.
    pub fn sessions(&self) -> Result<Vec<SessionInfo>> {
        self.inner.check()?;
        let (images, _) = self.inner.session_images()?;
        let with_chapters = |image: &SessionImage| [image.page_keys(), self.stored_chapters(image)].concat();
        let pages: Vec<Vec<SessionPage>> = images.iter().map(|(_, image)| with_chapters(image)).collect();
        let (mut seen, mut shared) = (KeySet::default(), KeySet::default());
        for session in &pages {
            let own: KeySet = session.iter().map(|page| page.key).collect();
            shared.extend(own.iter().filter(|key| seen.contains(*key)));
            seen.extend(own);
        }
        let mut infos = Vec::new();
        for ((entry, image), pages) in images.into_iter().zip(pages) {
            let (mut own, mut bytes, mut shared_bytes) = (KeySet::default(), entry.len, 0);
            for page in pages.into_iter().filter(|page| own.insert(page.key)) {
                bytes += page.bytes as u64;
                shared_bytes += if shared.contains(&page.key) { page.bytes as u64 } else { 0 };
            }
            let row_tokens = image.rows.iter().map(|row| row.tokens.len() as u64).collect();
            let SessionImage { name, model, identity, settings, page_tokens, layers, created, .. } = image;
            let head =
                SessionHead { name, model, identity, settings, page_tokens, layers, row_tokens, created };
            infos.push(SessionInfo { head, bytes, shared_bytes, last_used: seconds(entry.modified) });
        }
        infos.reverse();
        Ok(infos)
    }

    /// Chapters of summaries that are on disk for a session.
    fn stored_chapters(&self, image: &SessionImage) -> Vec<SessionPage> {
        let keys = image.chapter_keys();
        let state = self.inner.state.lock();
        let found = keys.into_iter().filter_map(|key| Some((key, state.index.get(&key)?)));
        found
            .map(|(key, location)| SessionPage { key, bytes: location.entry.len as usize, first_token: 0 })
            .collect()
    }

    /// How many of a session's pages no tier holds.
    ///
    /// # Errors
    /// As [`Store::load_session`].
    pub fn missing_pages(&self, name: &str) -> Result<u64> {
        self.inner.check()?;
        let pages = self.inner.read_session(name)?.page_keys();
        Ok(pages.iter().filter(|page| !self.contains(page.key)).count() as u64)
    }

    /// Gives a session a second name; copies no page.
    ///
    /// # Errors
    /// As [`Store::load_session`] and [`Store::save_session`]; `Invalid` where the name is taken.
    pub fn fork_session(&self, source: &str, target: &str) -> Result<()> {
        self.inner.check()?;
        // Making room for the copy must not take the original.
        let _open = KeptOpen::new(&self.inner, source);
        let mut image = self.inner.read_session(source)?;
        target.clone_into(&mut image.name);
        image.created = seconds(SystemTime::now());
        self.inner.write_session(&image, || {
            let path = path_of(target)?;
            if entries(self.inner.sessions_disk()?)?.iter().any(|entry| entry.name == path) {
                return Err(Error::Invalid(format!("a session named {target:?} exists already")));
            }
            // Were the original gone by now, its pages might be.
            self.inner.read_session(source).map(drop)
        })
    }

    /// Removes a session. Its pages stay until [`Store::gc`] or until room is needed.
    ///
    /// # Errors
    /// `NotFound`, `ReadOnly`, `Io`.
    pub fn remove_session(&self, name: &str) -> Result<()> {
        self.inner.check()?;
        let _one_at_a_time = self.inner.room.lock();
        self.inner.delete_session(name)
    }

    /// Reads and checks every page of one session, or of all.
    ///
    /// # Errors
    /// `NotFound` for an unknown name; `Io`; `Interrupted`.
    pub fn verify(&self, name: Option<&str>) -> Result<Verification> {
        self.inner.check()?;
        self.inner.flush()?;
        let mut result = Verification::default();
        let images = if let Some(name) = name {
            vec![self.inner.read_session(name)?]
        } else {
            survey(self.inner.sessions_disk()?, true, &mut result.problems)?;
            self.inner.session_images()?.0.into_iter().map(|(_, image)| image).collect()
        };
        let mut checked = KeySet::default();
        for image in images {
            let pages = image.page_keys();
            let fresh: Vec<_> = pages.into_iter().filter(|page| checked.insert(page.key)).collect();
            let before = result.corrupt + result.missing;
            let mut poll = interrupt::Poll::default();
            for page in &fresh {
                poll.check()?;
                self.verify_page(page, &mut result)?;
            }
            let lost = result.corrupt + result.missing - before;
            if lost > 0 {
                result.problems.push(format!(
                    "session {:?} has lost {lost} of {} pages",
                    image.name,
                    fresh.len()
                ));
            }
        }
        Ok(result)
    }

    /// Reads pages past RAM: what counts is what would be there tomorrow.
    fn verify_page(&self, page: &SessionPage, result: &mut Verification) -> Result<()> {
        let mut state = self.inner.state.lock();
        let Some(location) = state.index.get(&page.key).copied() else {
            result.missing += 1;
            return Ok(());
        };
        let file = state.segments.as_mut().map(|segments| segments.file(location.segment));
        drop(state);
        let file = match file {
            Some(Ok(file)) => file,
            Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("open", segment_name(location.segment), error));
            }
            _ => {
                result.missing += 1;
                return Ok(());
            }
        };
        if read_whole(file.as_ref(), &location)?.is_some() {
            result.pages += 1;
            result.bytes += u64::from(location.entry.len);
        } else {
            result.corrupt += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_name_survives_its_file_name(name in "\\PC{1,15}") {
            let path = path_of(&name).unwrap();
            prop_assert!(!path[SESSIONS_DIR.len() + 1..].contains(['/', '\\', ':']));
            prop_assert_eq!(session_name(&path), Some(name));
        }
    }

    #[test]
    fn names_that_cannot_be_are_refused() {
        assert!(path_of("").is_err());
        assert!(path_of(&"x".repeat(500)).is_err());
        assert_eq!(session_name("sessions/%.session"), None);
        assert_eq!(session_name("elsewhere/a.session"), None);
    }
}
