//! Engines in a forked child: no threads there, so nothing to wait for, and no hang.
#![expect(unsafe_code, reason = "fork, and leaving the child without running the parent's exit code")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::*;

/// Runs `f` in a forked child; the exit code, or `None` if it hangs.
fn in_child(f: impl FnOnce() -> bool) -> Option<i32> {
    // SAFETY: the child allocates and takes its own locks only (the allocator's are made
    // usable by the C library), and leaves through `_exit` on every path: a panic aborts,
    // because the guard below is dropped.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "{}", io::Error::last_os_error());
    if pid == 0 {
        struct Leave;
        impl Drop for Leave {
            fn drop(&mut self) {
                // SAFETY: ends the process, runs nothing.
                unsafe { libc::_exit(99) };
            }
        }
        let leave = Leave;
        let code = i32::from(!f());
        std::mem::forget(leave);
        // SAFETY: as above.
        unsafe { libc::_exit(code) };
    }
    let deadline = Instant::now() + PATIENCE;
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    while unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) } == 0 {
        if Instant::now() > deadline {
            // SAFETY: our own child, not yet reaped.
            unsafe { libc::kill(pid, libc::SIGKILL) };
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Some(libc::WEXITSTATUS(status))
}

#[test]
fn a_forked_child_drops_an_engine_without_waiting() {
    for engine in engines() {
        let mut engine = Some(engine);
        let code = in_child(|| {
            drop(engine.take());
            true
        });
        assert_eq!(code, Some(0), "{}", engine.as_ref().unwrap().name());
        // The parent's is as good as before.
        let tame: Arc<dyn DiskFile> = Arc::new(Scripted(|_, _| Ok(())));
        read(&**engine.as_ref().unwrap(), &tame, 0, ALIGN).1.unwrap();
    }
}

#[test]
fn a_forked_child_gets_errors_not_silence() {
    let tame: Arc<dyn DiskFile> = Arc::new(Scripted(|_, _| Ok(())));
    for engine in engines().into_iter().filter(|engine| engine.name() != "inline") {
        let code = in_child(|| {
            let failed = Arc::new(AtomicUsize::new(0));
            let (on_read, on_write) = (Arc::clone(&failed), Arc::clone(&failed));
            let count = |counter: &AtomicUsize, outcome: io::Result<()>| {
                counter.fetch_add(usize::from(outcome.is_err()), Ordering::SeqCst);
            };
            let file = Arc::clone(&tame);
            let read_done: ReadDone = Box::new(move |_, outcome| count(&on_read, outcome));
            let write_done: WriteDone = Box::new(move |outcome| count(&on_write, outcome));
            let buf = Box::new(AlignedBuf::zeroed(ALIGN));
            engine.submit(vec![
                IoOp::Read { file: Arc::clone(&file), offset: 0, buf, done: read_done },
                IoOp::Write { file, offset: 0, parts: Vec::new(), done: write_done },
            ]);
            failed.load(Ordering::SeqCst) == 2
        });
        assert_eq!(code, Some(0), "{}", engine.name());
    }
}
