//! The store and the memories under everything that goes wrong: what was saved is there, what is
//! returned is right, and nothing hangs.
//!
//! `STRATAKV_TEST_EFFORT=10` repeats the random parts ten times as often.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests, and seeds")]

mod common;
mod crash;
mod directory;
mod engram;
mod engram_kill;
mod flips;
mod io_errors;
mod kill;
mod model;
mod threads;
