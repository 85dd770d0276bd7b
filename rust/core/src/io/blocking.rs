//! Carrying out one operation on the calling thread, whatever goes wrong in it.

use std::cell::Cell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{IoOp, ReadBuf, ReadDone, WriteDone};

thread_local! {
    static IS_WORKER: Cell<bool> = const { Cell::new(false) };
}

/// Marks the calling thread as one that empties an engine's queue.
pub(crate) fn enter_worker() {
    IS_WORKER.set(true);
}

/// Whether the calling thread empties a queue. Such a thread never waits for room in
/// one: if all workers did, in a `done` that submits, nobody would be left to make room.
pub(crate) fn is_worker() -> bool {
    IS_WORKER.get()
}

/// Performs `op` and calls its `done`. Never unwinds: a panic in the file becomes an
/// error, one in `done` ends there.
pub(crate) fn carry_out(op: IoOp) {
    match op {
        IoOp::Read { file, offset, mut buf, done } => {
            let outcome = guarded(|| file.read_at(buf.bytes_mut(), offset));
            drop(file);
            finish_read(done, buf, outcome);
        }
        IoOp::Write { file, offset, parts, done } => {
            let outcome = guarded(|| {
                let slices: Vec<&[u8]> = parts.iter().map(|part| part.bytes()).collect();
                file.write_at(&slices, offset)
            });
            drop((file, parts));
            finish_write(done, outcome);
        }
    }
}

/// Ends `op` with an error, without performing it.
pub(crate) fn fail(op: IoOp, error: io::Error) {
    match op {
        IoOp::Read { buf, done, .. } => finish_read(done, buf, Err(error)),
        IoOp::Write { done, .. } => finish_write(done, Err(error)),
    }
}

pub(crate) fn finish_read(done: ReadDone, buf: Box<dyn ReadBuf>, outcome: io::Result<()>) {
    // The panic hook has reported it; the engine's thread must live on.
    let _ = catch_unwind(AssertUnwindSafe(|| done(buf, outcome)));
}

pub(crate) fn finish_write(done: WriteDone, outcome: io::Result<()>) {
    let _ = catch_unwind(AssertUnwindSafe(|| done(outcome)));
}

fn guarded(f: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|_| Err(io::Error::other("the file's code panicked")))
}

/// The error for an engine that came over a `fork`, where its threads do not exist.
pub(crate) fn forked() -> io::Error {
    io::Error::other("this I/O engine belongs to the parent process; a forked child opens its own")
}
