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
///
/// `auto` is direct I/O, through io_uring where the kernel allows it. Measured on ext4
/// with a cold page cache, while other work kept the processor busy, so a third more or
/// less either way: batches of 32 random reads of 64 KiB, 96 KiB and 16 of 1 MiB (MB/s,
/// median over three runs), then writes of 6 MiB with four in flight and a sync at the end
/// (one run), and the processor's time for 3.4 GiB of reads.
///
/// | mode, engine       | 64 KiB | 96 KiB | 1 MiB | write | processor |
/// |--------------------|-------:|-------:|------:|------:|----------:|
/// | direct, io_uring   |    612 |    677 |   961 |  1345 |     1.1 s |
/// | direct, threads    |    629 |    689 |   858 |  2255 |     1.3 s |
/// | direct, one thread |    388 |    451 |   617 |  1629 |         - |
/// | buffered, io_uring |    408 |    455 |   407 |   590 |     2.7 s |
/// | buffered, threads  |    478 |    564 |   602 |   767 |     3.4 s |
///
/// Direct I/O costs less than half the processor's time, since nothing is copied, and leaves the
/// page cache to others; the store has its own cache in RAM. io_uring and threads are
/// level in throughput; a single 64 KiB read takes 124 µs through the ring and 181 µs
/// through a thread. A mapping has no row: its pages stay in RAM while they are mapped, so
/// it cannot be read cold twice. Where everything fits in RAM anyway it is the fastest
/// (3635 MB/s at 64 KiB, against 2209 buffered).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// Direct, on the best engine that the system has.
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
