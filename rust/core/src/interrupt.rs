//! Ctrl-C: how long waits and long loops notice it, without knowing who asks.
//!
//! The binding installs one hook per process, because signals are per process; without a
//! hook nothing ever interrupts. The hook may take the interpreter's lock, so it MUST be
//! called with no lock of the engine held.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// How long a wait may last before it asks again.
pub const POLL: Duration = Duration::from_millis(100);

static HOOK: OnceLock<fn() -> bool> = OnceLock::new();

/// Installs the question "does the user want out?"; the first one stays.
pub fn install(hook: fn() -> bool) {
    // A second import of the binding brings the same function.
    let _ = HOOK.set(hook);
}

/// Asks the hook.
///
/// # Errors
/// `Interrupted` when the user wants out.
pub fn check() -> Result<()> {
    match HOOK.get() {
        Some(hook) if hook() => Err(Error::Interrupted),
        _ => Ok(()),
    }
}

/// Asks at most once per [`POLL`], for loops whose steps are short.
#[derive(Debug)]
pub struct Poll {
    asked: Instant,
}

impl Default for Poll {
    fn default() -> Self {
        Self { asked: Instant::now() }
    }
}

impl Poll {
    /// Asks the hook if the last time is long enough ago.
    ///
    /// # Errors
    /// `Interrupted` when the user wants out.
    pub fn check(&mut self) -> Result<()> {
        if self.asked.elapsed() < POLL {
            return Ok(());
        }
        self.asked = Instant::now();
        check()
    }
}
