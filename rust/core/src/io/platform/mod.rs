//! The calls that differ between operating systems, behind one set of names:
//! `Root` (the open directory) and functions on open files.

#[cfg(not(unix))]
mod portable;
#[cfg(unix)]
mod unix;

#[cfg(not(unix))]
pub(super) use portable::{
    HAS_DIRECT, Root, advise_random, read_some_at, set_direct, will_need, write_some_at,
};
#[cfg(unix)]
pub(super) use unix::{HAS_DIRECT, Root, advise_random, read_some_at, set_direct, will_need, write_some_at};
