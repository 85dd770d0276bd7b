//! How kernels get threads: handed in, never taken.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Threads that somebody owns.
///
/// Implementations MUST call `f` exactly once for each of `0..n`, on any thread and in any
/// order, MUST NOT return before all calls have, MUST carry a panic of `f` over to the
/// caller (the indices not yet begun may then be left out), and MUST NOT deadlock when
/// `run` is nested or called from two threads.
pub trait Parallel: Send + Sync {
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

/// One `run` in progress: threads take the next index until there is none.
pub(super) struct Job<'a> {
    f: &'a (dyn Fn(usize) + Sync),
    n: usize,
    next: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl<'a> Job<'a> {
    pub(super) fn new(n: usize, f: &'a (dyn Fn(usize) + Sync)) -> Self {
        Self { f, n, next: AtomicUsize::new(0), panic: Mutex::new(None) }
    }

    /// Works until no index is left. Never unwinds: the first panic is kept, and what has
    /// not begun is given up.
    pub(super) fn work(&self) {
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= self.n {
                return;
            }
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (self.f)(index))) {
                self.next.store(self.n, Ordering::Relaxed);
                self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
            }
        }
    }

    /// Ends the job on the caller's thread, with the panic that a call ended with.
    pub(super) fn finish(self) {
        if let Some(panic) = self.panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
            resume_unwind(panic);
        }
    }
}
