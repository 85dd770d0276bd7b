//! How kernels get threads: handed in, never taken.

/// Threads that somebody owns.
///
/// Implementations MUST call `f` exactly once for each of `0..n`, on any thread and in any
/// order, MUST NOT return before all calls have, and MUST carry a panic of `f` over to the
/// caller. Callers MUST NOT nest `run` on the same object.
pub trait Parallel: Sync {
    /// Threads that work at once, the caller included; at least 1.
    fn threads(&self) -> usize;

    /// Runs `f(0)` to `f(n - 1)`; returns when all are done.
    fn run(&self, n: usize, f: &(dyn Fn(usize) + Sync));

    /// Name for reports.
    fn name(&self) -> &'static str;
}

/// The calling thread alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Inline;

impl Parallel for Inline {
    fn threads(&self) -> usize {
        1
    }

    fn run(&self, n: usize, f: &(dyn Fn(usize) + Sync)) {
        (0..n).for_each(f);
    }

    fn name(&self) -> &'static str {
        "inline"
    }
}
