//! An engine on Linux's io_uring: one thread that owns the ring, many operations in flight.
//!
//! The invariant that its unsafe code rests on: from the moment an entry is pushed until
//! its completion is reaped, its `Flight` sits in its slot, and with it the buffers, the
//! file and the array of parts that the kernel may touch. What cannot go through the ring
//! (files without a descriptor, transfers that the kernel refuses) goes through a small
//! pool of threads instead.
#![expect(unsafe_code, reason = "the kernel reads and writes the buffers that entries name")]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use io_uring::{IoUring, Probe, opcode, squeue, types};

use super::blocking::{enter_worker, fail, finish_read, finish_write, forked, is_worker};
use super::file::short_file;
use super::pool::{PoolConfig, PoolEngine, join_others};
use super::{DiskFile, IoEngine, IoOp, ReadBuf, ReadDone, WriteBuf, WriteDone};

/// The completion of the poll on the wake-up descriptor; slots count from zero.
const WAKE: u64 = u64::MAX;
/// The largest transfer of one entry, in bytes: lengths are 32 bits wide, and the kernel
/// stops just short of 2 GiB anyway.
const ENTRY_BYTES_MAX: usize = 1 << 30;
/// The most parts that the kernel takes in one vectored write (`IOV_MAX`).
const PARTS_COUNT_MAX: usize = 1024;

/// Sizes of a [`UringEngine`].
#[derive(Clone, Copy, Debug)]
pub struct UringConfig {
    /// Operations in flight.
    pub depth: u32,
    /// Operations that wait before `submit` blocks.
    pub queue_count_max: usize,
}

impl Default for UringConfig {
    fn default() -> Self {
        Self { depth: 64, queue_count_max: 1024 }
    }
}

struct Shared {
    queue: Mutex<Queue>,
    emptied: Condvar,
    count_max: usize,
    /// Written to when there is something new in the queue.
    wake: OwnedFd,
}

#[derive(Default)]
struct Queue {
    ops: VecDeque<IoOp>,
    closing: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // It fails only when the counter is full, and then the wake-up is on its way.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

/// Operations through io_uring.
pub struct UringEngine {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    fallback: Option<Arc<PoolEngine>>,
    process_id: u32,
}

impl UringEngine {
    /// Sets a ring up and starts its thread.
    ///
    /// # Errors
    /// When the kernel has no io_uring, does not allow it (containers often do not), or
    /// lacks an operation that is needed: the caller takes the pool then.
    pub fn new(config: UringConfig) -> io::Result<Self> {
        use rustix::event::{EventfdFlags, eventfd};

        let pool = PoolConfig { num_readers: 2, num_writers: 1, queue_count_max: config.queue_count_max };
        let fallback = Arc::new(PoolEngine::new(pool)?);
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            emptied: Condvar::new(),
            count_max: config.queue_count_max.max(1),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        });
        let (started, starts) = channel();
        let (theirs, their_pool) = (Arc::clone(&shared), Arc::clone(&fallback));
        let depth = config.depth.clamp(1, 4096);
        let thread = std::thread::Builder::new()
            .name("strata-uring".to_owned())
            .spawn(move || run(&theirs, their_pool, depth, &started))?;
        starts.recv().unwrap_or_else(|_| Err(io::Error::other("the ring's thread ended at once")))?;
        let process_id = std::process::id();
        Ok(Self { shared, thread: Some(thread), fallback: Some(fallback), process_id })
    }
}

impl IoEngine for UringEngine {
    fn name(&self) -> &'static str {
        "io_uring"
    }

    fn submit(&self, batch: Vec<IoOp>) {
        if std::process::id() != self.process_id {
            for op in batch {
                fail(op, forked());
            }
            return;
        }
        let mut elsewhere = Vec::new();
        let patient = !is_worker();
        let mut queue = self.shared.lock();
        for op in batch {
            if descriptor(&op).is_none() {
                elsewhere.push(op);
                continue;
            }
            while patient && queue.ops.len() >= self.shared.count_max {
                self.shared.wake();
                queue = self.shared.emptied.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
            queue.ops.push_back(op);
        }
        drop(queue);
        self.shared.wake();
        if let Some(fallback) = &self.fallback
            && !elsewhere.is_empty()
        {
            fallback.submit(elsewhere);
        }
    }
}

impl Drop for UringEngine {
    fn drop(&mut self) {
        if std::process::id() != self.process_id {
            // The thread lives in the parent only, and so does whoever holds the lock.
            std::mem::forget((self.thread.take(), self.fallback.take()));
            return;
        }
        self.shared.lock().closing = true;
        self.shared.wake();
        // The ring first: it may still hand operations to the pool.
        join_others(self.thread.take().into_iter().collect());
    }
}

fn descriptor(op: &IoOp) -> Option<i32> {
    match op {
        IoOp::Read { file, .. } | IoOp::Write { file, .. } => file.raw_fd(),
    }
}

/// The thread: sets the ring up, reports, and serves until closed and empty.
fn run(shared: &Shared, pool: Arc<PoolEngine>, depth: u32, started: &Sender<io::Result<()>>) {
    enter_worker();
    // One entry more than operations, for the poll on the wake-up.
    match open_ring(depth + 1) {
        Err(error) => _ = started.send(Err(error)),
        Ok(ring) => {
            let _ = started.send(Ok(()));
            let slots = Slots { flights: (0..depth).map(|_| None).collect(), free: (0..depth).collect() };
            Worker { ring, slots, pool, polling: false }.serve(shared);
        }
    }
}

fn open_ring(entries: u32) -> io::Result<IoUring> {
    // The ring's memory is not for a forked child. One thread submits, so completions
    // need no interrupts either; kernels before 6.1 do not know that and say EINVAL.
    let mut modern = IoUring::builder();
    modern.dontfork().setup_clamp().setup_single_issuer().setup_coop_taskrun().setup_defer_taskrun();
    let ring =
        modern.build(entries).or_else(|_| IoUring::builder().dontfork().setup_clamp().build(entries))?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let needed = [opcode::Read::CODE, opcode::Write::CODE, opcode::Writev::CODE, opcode::PollAdd::CODE];
    if needed.iter().all(|&code| probe.is_supported(code)) {
        Ok(ring)
    } else {
        Err(io::Error::new(io::ErrorKind::Unsupported, "this kernel's io_uring cannot read and write"))
    }
}

/// One operation in the kernel's hands.
struct Flight {
    file: Arc<dyn DiskFile>,
    fd: types::Fd,
    offset: u64,
    /// Bytes that earlier completions have transferred.
    moved: usize,
    total: usize,
    body: Body,
}

enum Body {
    Read {
        buf: Box<dyn ReadBuf>,
        start: *mut u8,
        done: ReadDone,
    },
    Write {
        parts: Vec<Arc<dyn WriteBuf>>,
        /// What is left of `parts`; entries before `next` are done with.
        vectors: Box<[libc::iovec]>,
        next: usize,
        done: WriteDone,
    },
}

impl Flight {
    fn new(op: IoOp, fd: i32) -> Self {
        let fd = types::Fd(fd);
        match op {
            IoOp::Read { file, offset, mut buf, done } => {
                let bytes = buf.bytes_mut();
                let (start, total) = (bytes.as_mut_ptr(), bytes.len());
                Self { file, fd, offset, moved: 0, total, body: Body::Read { buf, start, done } }
            }
            IoOp::Write { file, offset, parts, done } => {
                let vectors: Box<[libc::iovec]> = parts
                    .iter()
                    .map(|part| part.bytes())
                    .filter(|bytes| !bytes.is_empty())
                    .map(|bytes| libc::iovec {
                        iov_base: bytes.as_ptr().cast_mut().cast(),
                        iov_len: bytes.len(),
                    })
                    .collect();
                let total = vectors.iter().map(|vector| vector.iov_len).sum();
                let body = Body::Write { parts, vectors, next: 0, done };
                Self { file, fd, offset, moved: 0, total, body }
            }
        }
    }

    /// The entry for what is left to transfer.
    fn entry(&self) -> squeue::Entry {
        let offset = self.offset + self.moved as u64;
        match &self.body {
            Body::Read { start, .. } => {
                let len = (self.total - self.moved).min(ENTRY_BYTES_MAX) as u32;
                // In range: `moved < total`, the length of the buffer at `start`.
                let at = start.wrapping_add(self.moved);
                opcode::Read::new(self.fd, at, len).offset(offset).build()
            }
            Body::Write { vectors, next, .. } => match &vectors[*next..] {
                [only] => {
                    let len = only.iov_len.min(ENTRY_BYTES_MAX) as u32;
                    opcode::Write::new(self.fd, only.iov_base.cast(), len).offset(offset).build()
                }
                rest => {
                    let count = rest.len().min(PARTS_COUNT_MAX) as u32;
                    opcode::Writev::new(self.fd, rest.as_ptr(), count).offset(offset).build()
                }
            },
        }
    }

    /// Takes note of `count` more bytes transferred.
    fn advance(&mut self, count: usize) {
        self.moved += count;
        if let Body::Write { vectors, next, .. } = &mut self.body {
            let mut left = count;
            while let Some(vector) = vectors.get_mut(*next).filter(|_| left > 0) {
                let taken = left.min(vector.iov_len);
                vector.iov_base = vector.iov_base.cast::<u8>().wrapping_add(taken).cast();
                vector.iov_len -= taken;
                left -= taken;
                *next += usize::from(vector.iov_len == 0);
            }
        }
    }

    fn finish(self, outcome: io::Result<()>) {
        drop(self.file);
        match self.body {
            Body::Read { buf, done, .. } => finish_read(done, buf, outcome),
            Body::Write { parts, done, .. } => {
                drop(parts);
                finish_write(done, outcome);
            }
        }
    }

    /// The whole operation again, for another engine. What was transferred is so twice.
    fn into_op(self) -> IoOp {
        let Self { file, offset, .. } = self;
        match self.body {
            Body::Read { buf, done, .. } => IoOp::Read { file, offset, buf, done },
            Body::Write { parts, done, .. } => IoOp::Write { file, offset, parts, done },
        }
    }
}

/// Where operations stay while the kernel has them.
struct Slots {
    flights: Vec<Option<Flight>>,
    free: Vec<u32>,
}

impl Drop for Slots {
    fn drop(&mut self) {
        // Empty, unless the thread unwinds: then the kernel may still write to the
        // buffers, and they must never be freed.
        for flight in self.flights.iter_mut().filter_map(Option::take) {
            std::mem::forget(flight);
        }
    }
}

struct Worker {
    ring: IoUring,
    slots: Slots,
    pool: Arc<PoolEngine>,
    polling: bool,
}

impl Worker {
    fn serve(&mut self, shared: &Shared) {
        let mut completions = Vec::new();
        loop {
            let (ops, closing) = self.take(shared);
            for op in ops {
                self.start(op);
            }
            let idle = self.slots.free.len() == self.slots.flights.len();
            if idle && closing {
                return;
            }
            if !self.polling {
                let poll =
                    opcode::PollAdd::new(types::Fd(shared.wake.as_fd().as_raw_fd()), libc::POLLIN as u32);
                self.push(&poll.build().user_data(WAKE));
                self.polling = true;
            }
            if let Err(error) = self.ring.submit_and_wait(1)
                && error.kind() != io::ErrorKind::Interrupted
            {
                // Short of memory or of room for completions: reap, and try again. There
                // is no giving up while the kernel holds buffers.
                std::thread::sleep(Duration::from_millis(1));
            }
            completions.extend(self.ring.completion().map(|entry| (entry.user_data(), entry.result())));
            for (user_data, result) in completions.drain(..) {
                if user_data == WAKE {
                    self.polling = false;
                    // Sets the counter to zero; if it is zero already there is no harm.
                    let _ = rustix::io::read(&shared.wake, &mut [0; 8]);
                } else {
                    self.complete(user_data as u32, result);
                }
            }
        }
    }

    /// As many operations as there are free slots; and whether nothing is to come.
    fn take(&self, shared: &Shared) -> (Vec<IoOp>, bool) {
        let mut queue = shared.lock();
        let count = queue.ops.len().min(self.slots.free.len());
        let ops: Vec<IoOp> = queue.ops.drain(..count).collect();
        let closing = queue.closing && queue.ops.is_empty();
        drop(queue);
        if !ops.is_empty() {
            shared.emptied.notify_all();
        }
        (ops, closing)
    }

    fn start(&mut self, op: IoOp) {
        let Some(fd) = descriptor(&op) else {
            self.pool.submit(vec![op]);
            return;
        };
        let flight = Flight::new(op, fd);
        if flight.total == 0 {
            flight.finish(Ok(()));
        } else if let Some(slot) = self.slots.free.pop() {
            self.fly(slot, flight);
        } else {
            // `take` gives no more operations than there are free slots.
            self.pool.submit(vec![flight.into_op()]);
        }
    }

    fn fly(&mut self, slot: u32, flight: Flight) {
        let entry = flight.entry().user_data(u64::from(slot));
        self.slots.flights[slot as usize] = Some(flight);
        self.push(&entry);
    }

    fn push(&mut self, entry: &squeue::Entry) {
        loop {
            // SAFETY: what the entry points to (the buffer, or the parts and the array
            // that lists them) belongs to the `Flight` in the slot that the entry names,
            // at addresses that do not change while it moves, and it stays there until
            // the completion is reaped; the descriptor is kept open by the flight's file.
            // The poll points to nothing, and its descriptor outlives the ring.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return;
            }
            // More entries than slots cannot be; a full queue empties when submitted.
            let _ = self.ring.submit();
        }
    }

    fn complete(&mut self, slot: u32, result: i32) {
        let Some(mut flight) = self.slots.flights.get_mut(slot as usize).and_then(Option::take) else {
            return;
        };
        match usize::try_from(result) {
            Ok(count) if count > 0 && flight.moved + count < flight.total => {
                flight.advance(count);
                self.fly(slot, flight);
                return;
            }
            Err(_) if -result == libc::EINTR => {
                self.fly(slot, flight);
                return;
            }
            _ => {}
        }
        self.slots.free.push(slot);
        match usize::try_from(result) {
            Ok(0) => {
                let outcome = match flight.body {
                    Body::Read { .. } => short_file(flight.total, flight.offset, flight.moved),
                    Body::Write { .. } => io::ErrorKind::WriteZero.into(),
                };
                flight.finish(Err(outcome));
            }
            Ok(_) => flight.finish(Ok(())),
            // Refused as it stands (direct I/O, alignment, a kind of file): the file's own
            // methods know how to go on.
            Err(_) if [libc::EINVAL, libc::EOPNOTSUPP, libc::EAGAIN].contains(&-result) => {
                self.pool.submit(vec![flight.into_op()]);
            }
            Err(_) => flight.finish(Err(io::Error::from_raw_os_error(-result))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{ALIGN, AlignedBuf};

    /// Short writes of every kind: inside a part, at its end, across several.
    #[test]
    fn a_short_write_goes_on_where_it_stopped() {
        let disk = crate::testing::MemoryDisk::new();
        let open =
            |name| crate::io::Disk::open(&disk, name, crate::io::Access::Create, crate::io::Usage::Pages);
        let parts: Vec<Arc<dyn WriteBuf>> =
            [1, 0, 2, 1].iter().map(|&pages| Arc::new(AlignedBuf::zeroed(pages * ALIGN)) as _).collect();
        let starts: Vec<usize> = parts.iter().map(|part| part.bytes().as_ptr().addr()).collect();
        let op = IoOp::Write { file: open("a").unwrap(), offset: 0, parts, done: Box::new(|_| {}) };
        let mut flight = Flight::new(op, -1);
        assert_eq!(flight.total, 4 * ALIGN);
        let mut left = |count: usize| {
            flight.advance(count);
            let Body::Write { vectors, next, .. } = &flight.body else { panic!("a write became a read") };
            let rest = vectors[*next..].iter().map(|vector| (vector.iov_base.addr(), vector.iov_len));
            (flight.moved, rest.collect::<Vec<_>>())
        };
        // The empty part is never named.
        let whole = [(starts[2], 2 * ALIGN), (starts[3], ALIGN)];
        assert_eq!(left(100), (100, [&[(starts[0] + 100, ALIGN - 100)], &whole[..]].concat()));
        assert_eq!(left(ALIGN - 100), (ALIGN, whole.to_vec()));
        assert_eq!(left(2 * ALIGN + 7), (3 * ALIGN + 7, vec![(starts[3] + 7, ALIGN - 7)]));
        assert_eq!(left(ALIGN - 7), (4 * ALIGN, Vec::new()));
    }
}
