//! The directory itself: made ready, and what all of its users share.

use std::path::PathBuf;

use super::log::{path_of, remove_if_there, user_of};
use super::memory::DIMENSION_MAX;
use super::scope::NAME_BYTES_MAX;
use crate::error::{Error, Result};
use crate::format::{Embedding, MemorySettings};
use crate::io::{Access, Disk, Usage};

/// What made the vectors, in a file of this name.
const SETTINGS: &str = "settings";

/// Makes the directory of users, and removes what a crash left of files that were being made.
pub(super) fn prepare(disk: &dyn Disk) -> Result<()> {
    let failed = |action, error| Error::io(action, path_of(disk, super::USERS), error);
    disk.create_dir(super::USERS).map_err(|error| failed("create", error))?;
    disk.sync_dir("").map_err(|error| failed("sync", error))?;
    for entry in disk.list(super::USERS).map_err(|error| failed("list", error))? {
        if super::is_kind(&entry.name, "tmp") {
            disk.remove(&entry.name).map_err(|error| failed("remove", error))?;
        }
    }
    // A process that was killed may have left names that a power cut would undo, and with
    // them whatever is written to those files from now on.
    disk.sync_dir(super::USERS).map_err(|error| failed("sync", error))
}

/// What is there and what is asked for, as one; stored where it is new.
///
/// # Errors
/// `EmbedderMismatch`; `Invalid`, `Corrupt`, `Io`.
pub(super) fn agree(disk: &dyn Disk, given: Option<&(String, usize)>) -> Result<Embedding> {
    let mut settings = read_settings(disk)?;
    let Some(given) = given else { return Ok(settings.now) };
    let wanted = Some(checked(given)?);
    if settings.now.embedder.is_none() {
        settings.now.embedder = wanted;
        write_settings(disk, &settings)?;
    } else if settings.now.embedder != wanted {
        let named = |embedder: &Option<(String, u32)>| {
            embedder.as_ref().map_or_else(String::new, |(name, size)| format!("{name:?} ({size} elements)"))
        };
        return Err(Error::EmbedderMismatch {
            path: PathBuf::from(disk.describe()),
            stored: named(&settings.now.embedder),
            given: named(&wanted),
        });
    }
    Ok(settings.now)
}

/// An embedder's identity and dimension, as they are stored.
///
/// # Errors
/// `Invalid` for one that is not accepted.
pub(super) fn checked((identity, dimension): &(String, usize)) -> Result<(String, u32)> {
    if identity.is_empty() || identity.len() > NAME_BYTES_MAX || !(1..=DIMENSION_MAX).contains(dimension) {
        return Err(Error::Invalid(format!(
            "an embedder has an identity of 1 to {NAME_BYTES_MAX} bytes and a dimension of 1 to {DIMENSION_MAX}, \
             not {dimension}"
        )));
    }
    Ok((identity.clone(), *dimension as u32))
}

/// The settings; the default where none were stored.
///
/// # Errors
/// `Corrupt`, `Io`.
pub(super) fn read_settings(disk: &dyn Disk) -> Result<MemorySettings> {
    let path = path_of(disk, SETTINGS);
    let failed = |error| Error::io("read", &path, error);
    let file = match disk.open(SETTINGS, Access::Read, Usage::Metadata) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(MemorySettings::default()),
        other => other.map_err(failed)?,
    };
    let mut bytes = vec![0; file.len().map_err(failed)?.min(1 << 20) as usize];
    file.read_at(&mut bytes, 0).map_err(failed)?;
    MemorySettings::decode(&bytes).map_err(|what| Error::Corrupt { path, what, offset: 0 })
}

/// Replaces the settings, durably.
///
/// # Errors
/// `Io`; those before may have stayed, or not.
pub(super) fn write_settings(disk: &dyn Disk, settings: &MemorySettings) -> Result<()> {
    let beside = format!("{SETTINGS}.tmp");
    let written = remove_if_there(disk, &beside).and_then(|()| {
        let file = disk.open(&beside, Access::Create, Usage::Metadata)?;
        file.write_at(&[&settings.encode()], 0)?;
        file.sync()?;
        disk.rename(&beside, SETTINGS)?;
        disk.sync_dir("")
    });
    written.map_err(|error| Error::io("write", path_of(disk, SETTINGS), error))
}

/// Everybody who has memories here, sorted. A log whose head is damaged is left out.
///
/// # Errors
/// `Io`.
pub(super) fn users(disk: &dyn Disk) -> Result<Vec<String>> {
    let listed = disk.list(super::USERS);
    let listed = listed.map_err(|error| Error::io("list", path_of(disk, super::USERS), error))?;
    let mut users = Vec::new();
    for entry in listed.iter().filter(|entry| entry.is_file && super::is_kind(&entry.name, "log")) {
        match user_of(disk, &entry.name) {
            Ok(user) => users.extend(user),
            Err(Error::Corrupt { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    users.sort();
    Ok(users)
}
