//! An engine of plain threads that call `read_at` and `write_at`: works with every file,
//! on every system.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::blocking::{carry_out, enter_worker, fail, forked, is_worker};
use super::{IoEngine, IoOp};

/// Sizes of a [`PoolEngine`].
#[derive(Clone, Copy, Debug)]
pub struct PoolConfig {
    /// Threads that read: the number of reads in flight.
    pub num_readers: usize,
    /// Threads that write. They are apart from the readers, so that a large write never
    /// stands in front of a read that a token waits for.
    pub num_writers: usize,
    /// Operations that wait before `submit` blocks, for reads and for writes each.
    pub queue_count_max: usize,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self { num_readers: 8, num_writers: 2, queue_count_max: 1024 }
    }
}

/// A queue and the threads that empty it.
struct Lane {
    queue: Mutex<Queue>,
    filled: Condvar,
    emptied: Condvar,
    count_max: usize,
}

#[derive(Default)]
struct Queue {
    ops: VecDeque<IoOp>,
    closing: bool,
}

impl Lane {
    fn new(count_max: usize) -> Self {
        Self { queue: Mutex::default(), filled: Condvar::new(), emptied: Condvar::new(), count_max }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, ops: Vec<IoOp>) {
        if ops.is_empty() {
            return;
        }
        let patient = !is_worker();
        let mut queue = self.lock();
        for op in ops {
            while patient && queue.ops.len() >= self.count_max {
                queue = self.emptied.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
            queue.ops.push_back(op);
            self.filled.notify_one();
        }
    }

    /// A worker's life: until the lane is closing and nothing is left.
    fn work(&self) {
        enter_worker();
        let mut queue = self.lock();
        loop {
            if let Some(op) = queue.ops.pop_front() {
                drop(queue);
                self.emptied.notify_one();
                carry_out(op);
                queue = self.lock();
            } else if queue.closing {
                return;
            } else {
                queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    fn close(&self) {
        self.lock().closing = true;
        self.filled.notify_all();
    }
}

/// Threads for reads and threads for writes, each with its queue.
pub struct PoolEngine {
    reads: Arc<Lane>,
    writes: Arc<Lane>,
    threads: Vec<JoinHandle<()>>,
    process_id: u32,
}

impl PoolEngine {
    /// Starts the threads.
    ///
    /// # Errors
    /// When the system has no more threads to give.
    pub fn new(config: PoolConfig) -> io::Result<Self> {
        let mut engine = Self {
            reads: Arc::new(Lane::new(config.queue_count_max.max(1))),
            writes: Arc::new(Lane::new(config.queue_count_max.max(1))),
            threads: Vec::new(),
            process_id: std::process::id(),
        };
        // On failure the drop of `engine` stops those that did start.
        let lanes =
            [(&engine.reads, config.num_readers, "read"), (&engine.writes, config.num_writers, "write")];
        let mut threads = Vec::new();
        let mut failure = None;
        'spawning: for (lane, count, what) in lanes {
            for index in 0..count.max(1) {
                let lane = Arc::clone(lane);
                let builder = std::thread::Builder::new().name(format!("strata-{what}-{index}"));
                match builder.spawn(move || lane.work()) {
                    Ok(thread) => threads.push(thread),
                    Err(error) => {
                        failure = Some(error);
                        break 'spawning;
                    }
                }
            }
        }
        engine.threads = threads;
        failure.map_or(Ok(engine), Err)
    }
}

impl IoEngine for PoolEngine {
    fn name(&self) -> &'static str {
        "pread"
    }

    fn submit(&self, batch: Vec<IoOp>) {
        if std::process::id() != self.process_id {
            // Not even the locks can be trusted: a thread may have held one at the fork.
            for op in batch {
                fail(op, forked());
            }
            return;
        }
        let (reads, writes): (Vec<_>, Vec<_>) =
            batch.into_iter().partition(|op| matches!(op, IoOp::Read { .. }));
        self.reads.push(reads);
        self.writes.push(writes);
    }
}

impl Drop for PoolEngine {
    fn drop(&mut self) {
        let threads = std::mem::take(&mut self.threads);
        if std::process::id() != self.process_id {
            // The threads exist in the parent only; waiting for them would be for ever.
            std::mem::forget(threads);
            return;
        }
        self.reads.close();
        self.writes.close();
        join_others(threads);
    }
}

/// Joins all but the calling thread: the last handle of an engine may be dropped in a
/// `done`, on one of its own threads, which then ends by itself.
pub(crate) fn join_others(threads: Vec<JoinHandle<()>>) {
    let here = std::thread::current().id();
    for thread in threads {
        if thread.thread().id() != here {
            // Workers do not unwind; an error here could only repeat a reported panic.
            let _ = thread.join();
        }
    }
}
