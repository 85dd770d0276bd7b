//! What a user picks, and what it means.

use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::Arc;

use super::inline::InlineEngine;
use super::pool::{PoolConfig, PoolEngine};
use super::{IoEngine, Mode};

/// Which engine carries out the operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineKind {
    /// The best that the system has.
    #[default]
    Auto,
    /// Linux's io_uring; the pool where the kernel does not have or allow it.
    Uring,
    /// Threads.
    Pool,
    /// The caller's thread, in order, inside `submit`: for tests and crash sweeps.
    Inline,
}

/// Starts an engine. Always succeeds: an engine that cannot be had is replaced by the next
/// simpler one, and [`IoEngine::name`] tells which it became.
pub fn open_engine(kind: EngineKind) -> Arc<dyn IoEngine> {
    if kind == EngineKind::Inline {
        return Arc::new(InlineEngine);
    }
    #[cfg(target_os = "linux")]
    if kind != EngineKind::Pool
        && let Ok(engine) = super::uring::UringEngine::new(super::uring::UringConfig::default())
    {
        return Arc::new(engine);
    }
    match PoolEngine::new(PoolConfig::default()) {
        Ok(engine) => Arc::new(engine),
        Err(_) => Arc::new(InlineEngine),
    }
}

/// The back end by the name that a user gives it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// The fastest that is safe.
    #[default]
    Auto,
    /// Past the page cache.
    Direct,
    /// Mapped files.
    Mmap,
    /// Through the page cache.
    Buffered,
}

/// A back end, resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoConfig {
    /// For [`super::OsDisk`].
    pub mode: Mode,
    /// For [`open_engine`].
    pub engine: EngineKind,
}

impl Backend {
    /// Every back end, in the order of their names' documentation.
    pub const ALL: [Self; 4] = [Self::Auto, Self::Direct, Self::Mmap, Self::Buffered];

    /// The name that users type.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Direct => "direct",
            Self::Mmap => "mmap",
            Self::Buffered => "buffered",
        }
    }

    /// The mode and the engine that go with this back end.
    pub fn config(self) -> IoConfig {
        match self {
            Self::Auto | Self::Direct => IoConfig { mode: Mode::Direct, engine: EngineKind::Auto },
            // A mapping is read by copying, which takes threads.
            Self::Mmap => IoConfig { mode: Mode::Mmap, engine: EngineKind::Pool },
            Self::Buffered => IoConfig { mode: Mode::Buffered, engine: EngineKind::Auto },
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Backend {
    type Err = io::Error;

    fn from_str(text: &str) -> io::Result<Self> {
        Self::ALL.into_iter().find(|backend| backend.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("unknown back end {text:?}; accepted: {names}"),
            )
        })
    }
}
