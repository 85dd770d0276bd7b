//! Tests of the disks and engines together.

mod directory;
mod engines;
#[cfg(target_os = "linux")]
mod fork;

use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::*;

/// Longer than any operation takes, shorter than a hung test is noticed otherwise.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// Every engine that this system has.
pub(super) fn engines() -> Vec<Arc<dyn IoEngine>> {
    let small = PoolConfig { num_readers: 3, num_writers: 2, queue_count_max: 4 };
    let mut engines: Vec<Arc<dyn IoEngine>> = vec![
        Arc::new(InlineEngine),
        Arc::new(PoolEngine::new(small).unwrap()),
        open_engine(EngineKind::Pool),
    ];
    engines.extend(kernel_engines());
    engines
}

/// Containers may forbid it; then there is nothing to test.
#[cfg(target_os = "linux")]
fn kernel_engines() -> Vec<Arc<dyn IoEngine>> {
    let open = |(depth, queue_count_max)| UringEngine::new(UringConfig { depth, queue_count_max }).ok();
    let opened = [(64, 1024), (2, 3)].into_iter().filter_map(open);
    opened.map(|engine| Arc::new(engine) as Arc<dyn IoEngine>).collect()
}

#[cfg(not(target_os = "linux"))]
fn kernel_engines() -> Vec<Arc<dyn IoEngine>> {
    Vec::new()
}

pub(super) fn pattern(len_bytes: usize, seed: u64) -> AlignedBuf {
    let mut buf = AlignedBuf::zeroed(len_bytes);
    crate::testing::Seeded::new(seed).fill(&mut buf);
    buf
}

pub(super) type ReadOutcome = (AlignedBuf, io::Result<()>);

pub(super) fn read_op(file: &Arc<dyn DiskFile>, offset: u64, len: usize) -> (IoOp, Receiver<ReadOutcome>) {
    let (sender, receiver) = channel();
    let done: ReadDone = Box::new(move |buf, outcome| {
        let buf = *buf.into_any().downcast::<AlignedBuf>().unwrap();
        sender.send((buf, outcome)).unwrap();
    });
    let buf = Box::new(AlignedBuf::zeroed(len));
    (IoOp::Read { file: Arc::clone(file), offset, buf, done }, receiver)
}

pub(super) fn write_op(
    file: &Arc<dyn DiskFile>,
    offset: u64,
    parts: Vec<Arc<dyn WriteBuf>>,
) -> (IoOp, Receiver<io::Result<()>>) {
    let (sender, receiver) = channel();
    let done: WriteDone = Box::new(move |outcome| sender.send(outcome).unwrap());
    (IoOp::Write { file: Arc::clone(file), offset, parts, done }, receiver)
}

pub(super) fn read(engine: &dyn IoEngine, file: &Arc<dyn DiskFile>, offset: u64, len: usize) -> ReadOutcome {
    let (op, receiver) = read_op(file, offset, len);
    engine.submit(vec![op]);
    receiver.recv_timeout(PATIENCE).unwrap()
}

pub(super) fn write(
    engine: &dyn IoEngine,
    file: &Arc<dyn DiskFile>,
    offset: u64,
    parts: Vec<Arc<dyn WriteBuf>>,
) -> io::Result<()> {
    let (op, receiver) = write_op(file, offset, parts);
    engine.submit(vec![op]);
    receiver.recv_timeout(PATIENCE).unwrap()
}

/// A file that does what a test tells it to.
pub(super) struct Scripted<F>(pub(super) F);

impl<F: Fn(&'static str, u64) -> io::Result<()> + Send + Sync> DiskFile for Scripted<F> {
    fn len(&self) -> io::Result<u64> {
        Ok(u64::MAX)
    }
    fn read_at(&self, _buf: &mut [u8], offset: u64) -> io::Result<()> {
        (self.0)("read", offset)
    }
    fn write_at(&self, _parts: &[&[u8]], offset: u64) -> io::Result<()> {
        (self.0)("write", offset)
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Waits until `lock` can be had, and gives back what it holds.
pub(super) fn peek<T: Clone>(lock: &std::sync::Mutex<T>) -> T {
    lock.lock().unwrap_or_else(PoisonError::into_inner).clone()
}
