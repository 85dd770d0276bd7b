//! A few threads of our own, for processes that have none to lend.
//!
//! Workers wait for a short while spinning, then park. A job is open from when it is
//! published until the caller has run out of indices; a worker that wakes up later finds
//! it closed, so nobody waits for a thread that is slow to wake.

#![expect(unsafe_code, reason = "workers outlive the borrow of the job, which the caller outwaits")]

use std::hint::spin_loop;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::parallel::{Job, Parallel};

/// Turns of waiting before a thread parks: some tens of microseconds, about the time
/// between two layers' attention when little lies between.
const SPINS: usize = 1 << 12;

/// Persistent worker threads; the caller of [`Parallel::run`] works with them.
///
/// In a forked child, which has no workers, and while another thread's job is running,
/// `run` works on the calling thread alone.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held during `run`, so that there is one job at a time.
    running: Mutex<()>,
    /// The process whose threads these are.
    process: u32,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Mirrors `State::epoch`, for spinning on.
    epoch: AtomicU64,
    /// Workers inside the job; raised only under `state`, while the job is open.
    active: AtomicUsize,
    wake: Condvar,
    done: Condvar,
}

#[derive(Debug)]
struct State {
    /// Jobs published so far.
    epoch: u64,
    job: Option<JobRef>,
    stop: bool,
}

/// A job, its borrow erased.
#[derive(Clone, Copy, Debug)]
struct JobRef(*const Job<'static>);

// SAFETY: a `Job` is shared between threads: its closure is `Sync`, the rest are atomics and
// a mutex. That it is still there is what `run` guarantees.
unsafe impl Send for JobRef {}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self) {
        let mut seen = 0;
        loop {
            for _ in 0..SPINS {
                if self.epoch.load(Ordering::Relaxed) != seen {
                    break;
                }
                spin_loop();
            }
            let mut state = self.lock();
            while state.epoch == seen && !state.stop {
                state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.stop {
                return;
            }
            seen = state.epoch;
            let Some(job) = state.job else { continue };
            self.active.fetch_add(1, Ordering::Relaxed);
            drop(state);
            // SAFETY: the job was open under the lock and `active` has counted this thread
            // since: `run` does not return, and the job lives, until it is counted out.
            unsafe { (*job.0).work() };
            let state = self.lock();
            self.active.fetch_sub(1, Ordering::Release);
            drop(state);
            self.done.notify_one();
        }
    }
}

impl Pool {
    /// `threads` threads, the caller included; fewer where the system refuses to start one.
    pub fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::new(State { epoch: 0, job: None, stop: false }),
            epoch: AtomicU64::new(0),
            active: AtomicUsize::new(0),
            wake: Condvar::new(),
            done: Condvar::new(),
        });
        let workers = (1..threads)
            .map_while(|index| {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new()
                    .name(format!("stratakv-{index}"))
                    .spawn(move || shared.serve())
                    .ok()
            })
            .collect();
        Self { shared, workers, running: Mutex::new(()), process: std::process::id() }
    }

    fn is_forked(&self) -> bool {
        self.process != std::process::id()
    }
}

impl Parallel for Pool {
    fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    fn run(&self, n: usize, f: &(dyn Fn(usize) + Sync)) {
        // A fork may have happened while a lock was held, so its child touches none.
        if n <= 1 || self.workers.is_empty() || self.is_forked() {
            return (0..n).for_each(f);
        }
        let _running = match self.running.try_lock() {
            Ok(running) => running,
            Err(std::sync::TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(std::sync::TryLockError::WouldBlock) => return (0..n).for_each(f),
        };
        let shared = &*self.shared;
        let job = Job::new(n, f);
        let mut state = shared.lock();
        state.job = Some(JobRef((&raw const job).cast()));
        state.epoch += 1;
        shared.epoch.store(state.epoch, Ordering::Relaxed);
        drop(state);
        shared.wake.notify_all();

        // Does not unwind, so the workers are always waited for.
        job.work();
        shared.lock().job = None;
        for _ in 0..SPINS {
            if shared.active.load(Ordering::Acquire) == 0 {
                break;
            }
            spin_loop();
        }
        let mut state = shared.lock();
        while shared.active.load(Ordering::Acquire) > 0 {
            state = shared.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        job.finish();
    }

    fn name(&self) -> &'static str {
        "pool"
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if self.is_forked() {
            // The threads were never here: joining them would wait for ever.
            std::mem::take(&mut self.workers).into_iter().for_each(std::mem::forget);
            return;
        }
        self.shared.lock().stop = true;
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}
