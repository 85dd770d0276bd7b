//! Which operation fails, and how.

use std::collections::BTreeMap;
use std::io;

/// The operations of a disk and its files, as faults and counters name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OpKind {
    /// `Disk::open` with `Access::Read` or `Access::Write`.
    Open,
    /// `Disk::open` with `Access::Create`.
    Create,
    /// `Disk::list`.
    List,
    /// `Disk::create_dir`.
    CreateDir,
    /// `Disk::rename`.
    Rename,
    /// `Disk::remove`.
    Remove,
    /// `Disk::sync_dir`.
    SyncDir,
    /// `Disk::touch`.
    Touch,
    /// `Disk::free_bytes`.
    FreeBytes,
    /// `DiskFile::len`.
    Len,
    /// `DiskFile::read_at`.
    Read,
    /// `DiskFile::write_at`.
    Write,
    /// `DiskFile::sync`.
    Sync,
}

/// What a faulty operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing happens on the disk, and this error is returned.
    Fail(io::ErrorKind),
    /// A read that fills this many bytes, or a write that writes this many, and then
    /// returns the error. Other operations: as `Fail`.
    Short(usize, io::ErrorKind),
    /// A read that succeeds with one bit wrong: this one, counted from the start of the
    /// buffer. The file keeps its content. Other operations are not harmed.
    FlipBit(u64),
    /// A write or a sync that claims success and does nothing, as a lying disk does.
    /// Other operations are not harmed.
    Ignore,
}

/// A planned fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which operations count; `None` is all of them.
    pub kind: Option<OpKind>,
    /// The first operation that is hit: 0 is the next one of that kind.
    pub after: u64,
    /// Whether every later one of that kind is hit as well.
    pub repeats: bool,
    /// What happens then.
    pub effect: Effect,
}

impl Fault {
    /// The `after`-th next operation of `kind` fails, once.
    pub fn once(kind: OpKind, after: u64, error: io::ErrorKind) -> Self {
        Self { kind: Some(kind), after, repeats: false, effect: Effect::Fail(error) }
    }

    /// The `after`-th next operation of `kind` and all later ones fail.
    pub fn from_then_on(kind: OpKind, after: u64, error: io::ErrorKind) -> Self {
        Self { kind: Some(kind), after, repeats: true, effect: Effect::Fail(error) }
    }
}

/// What an operation is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Proceed,
    /// Misbehave as the fault says.
    Misbehave(Effect),
    /// The power fails during this operation: it may leave traces, and returns an error.
    LastTraces,
    /// The power is off.
    Off,
}

/// Counters, planned faults, and the moment at which the power fails.
#[derive(Default)]
pub(super) struct Faults {
    counts: BTreeMap<OpKind, u64>,
    planned: Vec<Fault>,
    /// (kind or all, operations that still succeed)
    power: Option<(Option<OpKind>, u64)>,
    off: bool,
}

impl Faults {
    pub(super) fn count(&self, kind: Option<OpKind>) -> u64 {
        kind.map_or_else(|| self.counts.values().sum(), |kind| self.counts.get(&kind).copied().unwrap_or(0))
    }

    pub(super) fn plan(&mut self, fault: Fault) {
        self.planned.push(fault);
    }

    pub(super) fn clear(&mut self) {
        self.planned.clear();
        self.power = None;
        self.off = false;
    }

    pub(super) fn power_off_after(&mut self, kind: Option<OpKind>, count: u64) {
        self.power = Some((kind, count));
    }

    pub(super) fn is_off(&self) -> bool {
        self.off
    }

    /// Counts an operation and says what becomes of it.
    pub(super) fn judge(&mut self, kind: OpKind) -> Verdict {
        if self.off {
            return Verdict::Off;
        }
        *self.counts.entry(kind).or_insert(0) += 1;
        if let Some((of, left)) = &mut self.power
            && of.is_none_or(|of| of == kind)
        {
            if *left == 0 {
                self.off = true;
                return Verdict::LastTraces;
            }
            *left -= 1;
        }
        let mut verdict = Verdict::Proceed;
        self.planned.retain_mut(|fault| {
            if fault.kind.is_some_and(|of| of != kind) {
                return true;
            }
            if fault.after > 0 {
                fault.after -= 1;
                return true;
            }
            // The fault that was planned first wins; the others keep their turn.
            if verdict != Verdict::Proceed {
                return true;
            }
            verdict = Verdict::Misbehave(fault.effect);
            fault.repeats
        });
        verdict
    }
}
