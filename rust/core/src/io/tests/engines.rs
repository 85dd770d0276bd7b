//! Every engine over every mode equals a plain vector, and keeps its promises about `done`.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Sender;

use proptest::prelude::*;

use super::*;
use crate::testing::MemoryDisk;

const MODES: [Mode; 3] = [Mode::Direct, Mode::Mmap, Mode::Buffered];
const BLOCKS: u64 = 64;

#[derive(Clone, Debug)]
enum Step {
    /// First block, blocks of each part.
    Write(u64, Vec<u8>),
    /// First block, number of blocks; together with the reads that follow it one batch.
    Read(u64, u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..BLOCKS, prop::collection::vec(0_u8..4, 1..6)).prop_map(|(at, parts)| Step::Write(at, parts)),
        (0..BLOCKS + 8, 1_u64..12).prop_map(|(at, count)| Step::Read(at, count)),
        (0..BLOCKS + 8, 1_u64..12).prop_map(|(at, count)| Step::Read(at, count)),
    ]
}

/// Reads since the last write, submitted as one batch, against the model.
fn check_reads(engine: &dyn IoEngine, file: &Arc<dyn DiskFile>, reads: &mut Vec<(u64, u64)>, model: &[u8]) {
    let mut batch = Vec::new();
    let mut waiting = Vec::new();
    for (first, count) in reads.drain(..) {
        let (op, receiver) = read_op(file, first * ALIGN as u64, count as usize * ALIGN);
        batch.push(op);
        waiting.push((first as usize * ALIGN, count as usize * ALIGN, receiver));
    }
    engine.submit(batch);
    for (start, len, receiver) in waiting {
        let (buf, outcome) = receiver.recv_timeout(PATIENCE).unwrap();
        match model.get(start..start + len) {
            Some(expected) => {
                outcome.unwrap();
                assert!(&buf[..] == expected, "{len} bytes at {start} differ");
            }
            None => assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::UnexpectedEof),
        }
    }
}

fn check(engine: &dyn IoEngine, disk: &dyn Disk, steps: &[Step]) {
    let file = disk.open("pages", Access::Create, Usage::Pages).unwrap();
    let mut model: Vec<u8> = Vec::new();
    let mut reads = Vec::new();
    for (seed, step) in steps.iter().enumerate() {
        match step {
            Step::Read(first, count) => reads.push((*first, *count)),
            Step::Write(first, parts) => {
                check_reads(engine, &file, &mut reads, &model);
                let bufs: Vec<AlignedBuf> =
                    parts.iter().map(|&blocks| pattern(usize::from(blocks) * ALIGN, seed as u64)).collect();
                let bytes: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
                let start = *first as usize * ALIGN;
                if !bytes.is_empty() {
                    model.resize(model.len().max(start + bytes.len()), 0);
                    model[start..start + bytes.len()].copy_from_slice(&bytes);
                }
                let parts = bufs.into_iter().map(|buf| Arc::new(buf) as Arc<dyn WriteBuf>).collect();
                write(engine, &file, start as u64, parts).unwrap();
            }
        }
    }
    check_reads(engine, &file, &mut reads, &model);
    assert_eq!(file.len().unwrap(), model.len() as u64);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_engine_and_mode_equals_a_vector(steps in prop::collection::vec(step(), 1..30)) {
        for engine in engines() {
            for mode in MODES {
                let directory = tempfile::tempdir().unwrap();
                check(&*engine, &OsDisk::open(directory.path(), mode).unwrap(), &steps);
            }
            check(&*engine, &MemoryDisk::new(), &steps);
        }
    }
}

#[test]
fn a_write_of_more_parts_than_the_kernel_takes_at_once() {
    for engine in engines() {
        let directory = tempfile::tempdir().unwrap();
        let disk = OsDisk::open(directory.path(), Mode::Direct).unwrap();
        let file = disk.open("pages", Access::Create, Usage::Pages).unwrap();
        let parts: Vec<Arc<AlignedBuf>> = (0..2500).map(|seed| Arc::new(pattern(ALIGN, seed))).collect();
        let given = parts.iter().map(|part| Arc::clone(part) as Arc<dyn WriteBuf>).collect();
        write(&*engine, &file, 0, given).unwrap();
        let (buf, outcome) = read(&*engine, &file, 0, 2500 * ALIGN);
        outcome.unwrap();
        for (index, part) in parts.iter().enumerate() {
            assert!(buf[index * ALIGN..][..ALIGN] == part[..], "{} part {index}", engine.name());
        }
    }
}

/// Memory that starts one byte after a boundary.
struct Shifted(Vec<u8>);

impl ReadBuf for Shifted {
    fn bytes_mut(&mut self) -> &mut [u8] {
        let lead = (ALIGN + 1 - self.0.as_ptr().addr() % ALIGN) % ALIGN;
        &mut self.0[lead..lead + ALIGN]
    }
    fn into_any(self: Box<Self>) -> Box<dyn std::any::Any + Send> {
        self
    }
}

/// The kernel refuses such a transfer on a direct file; the file's own methods do not.
#[test]
fn a_misaligned_read_still_arrives() {
    for engine in engines() {
        let directory = tempfile::tempdir().unwrap();
        let disk = OsDisk::open(directory.path(), Mode::Direct).unwrap();
        let file = disk.open("pages", Access::Create, Usage::Pages).unwrap();
        let bytes = pattern(4 * ALIGN, 5);
        file.write_at(&[&bytes], 0).unwrap();
        for offset in [0, ALIGN, 512 + 1] {
            let (sender, receiver) = channel();
            let done: ReadDone = Box::new(move |buf, outcome| sender.send((buf, outcome)).unwrap());
            let buf = Box::new(Shifted(vec![0; 2 * ALIGN]));
            engine.submit(vec![IoOp::Read { file: Arc::clone(&file), offset: offset as u64, buf, done }]);
            let (mut buf, outcome) = receiver.recv_timeout(PATIENCE).unwrap();
            outcome.unwrap();
            assert!(buf.bytes_mut() == &bytes[offset..offset + ALIGN], "{} at {offset}", engine.name());
        }
    }
}

#[test]
fn a_short_file_is_unexpected_eof_and_the_buffer_comes_back() {
    for engine in engines() {
        for mode in MODES {
            let directory = tempfile::tempdir().unwrap();
            // Not a whole number of blocks, as a torn append leaves it.
            std::fs::write(directory.path().join("pages"), vec![7_u8; 3 * ALIGN + 100]).unwrap();
            let disk = OsDisk::open(directory.path(), mode).unwrap();
            let file = disk.open("pages", Access::Read, Usage::Pages).unwrap();
            for (offset, blocks) in [(0, 4), (2, 2), (3, 1), (4, 1), (1000, 3)] {
                let (buf, outcome) = read(&*engine, &file, offset * ALIGN as u64, blocks * ALIGN);
                let error = outcome.unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{} {mode:?}: {error}", engine.name());
                assert_eq!(buf.len(), blocks * ALIGN);
            }
            let (buf, outcome) = read(&*engine, &file, 0, 3 * ALIGN);
            outcome.unwrap();
            assert!(buf.iter().all(|&byte| byte == 7));
        }
    }
}

#[test]
fn drop_waits_for_everything_that_was_submitted() {
    for engine in engines() {
        let slow: Arc<dyn DiskFile> = Arc::new(Scripted(|_, _| {
            std::thread::sleep(Duration::from_millis(1));
            Ok(())
        }));
        let count = Arc::new(AtomicUsize::new(0));
        let mut batch = Vec::new();
        for index in 0..40_u64 {
            let count = Arc::clone(&count);
            batch.push(if index % 3 == 0 {
                let done: WriteDone = Box::new(move |_| _ = count.fetch_add(1, Ordering::SeqCst));
                IoOp::Write { file: Arc::clone(&slow), offset: 0, parts: Vec::new(), done }
            } else {
                let done: ReadDone = Box::new(move |_, _| _ = count.fetch_add(1, Ordering::SeqCst));
                let buf = Box::new(AlignedBuf::zeroed(ALIGN));
                IoOp::Read { file: Arc::clone(&slow), offset: 0, buf, done }
            });
        }
        engine.submit(batch);
        drop(engine);
        assert_eq!(count.load(Ordering::SeqCst), 40);
    }
}

#[test]
fn panics_in_done_and_in_files_do_not_stop_an_engine() {
    for engine in engines() {
        let wild: Arc<dyn DiskFile> = Arc::new(Scripted(|what, _| panic!("planned panic in {what}")));
        for _ in 0..20 {
            let (buf, outcome) = read(&*engine, &wild, 0, ALIGN);
            assert_eq!((buf.len(), outcome.unwrap_err().kind()), (ALIGN, io::ErrorKind::Other));
            assert!(write(&*engine, &wild, 0, Vec::new()).is_err());
            let done: WriteDone = Box::new(|_| panic!("planned panic in done"));
            engine.submit(vec![IoOp::Write { file: Arc::clone(&wild), offset: 0, parts: Vec::new(), done }]);
        }
        let tame: Arc<dyn DiskFile> = Arc::new(Scripted(|_, _| Ok(())));
        read(&*engine, &tame, 0, ALIGN).1.unwrap();
    }
}

/// A `done` that submits the next read, 300 deep, from a queue that holds four.
#[test]
fn a_done_may_submit() {
    fn chain(engine: &Arc<dyn IoEngine>, file: Arc<dyn DiskFile>, left: usize, end: Sender<()>) {
        let (next_engine, next_file) = (Arc::clone(engine), Arc::clone(&file));
        let done: ReadDone = Box::new(move |_, outcome| {
            outcome.unwrap();
            if left == 0 { end.send(()).unwrap() } else { chain(&next_engine, next_file, left - 1, end) }
        });
        let buf = Box::new(AlignedBuf::zeroed(ALIGN));
        engine.submit(vec![IoOp::Read { file, offset: 0, buf, done }]);
    }
    for engine in engines() {
        let tame: Arc<dyn DiskFile> = Arc::new(Scripted(|_, _| Ok(())));
        let (end, ends) = channel();
        for _ in 0..20 {
            chain(&engine, Arc::clone(&tame), 300, end.clone());
        }
        for _ in 0..20 {
            ends.recv_timeout(PATIENCE).unwrap();
        }
    }
}

#[test]
fn the_last_handle_may_be_dropped_in_a_done() {
    for engine in engines() {
        let tame: Arc<dyn DiskFile> = Arc::new(Scripted(|_, _| Ok(())));
        let (sender, receiver) = channel();
        let slot: Arc<Mutex<Option<Arc<dyn IoEngine>>>> = Arc::new(Mutex::new(None));
        let taken = Arc::clone(&slot);
        let done: WriteDone = Box::new(move |_| {
            // Only once the test has let go of its own handle.
            while taken.lock().unwrap().is_none() {
                std::thread::sleep(Duration::from_millis(1));
            }
            drop(taken.lock().unwrap().take());
            sender.send(()).unwrap();
        });
        let op = IoOp::Write { file: tame, offset: 0, parts: Vec::new(), done };
        if engine.name() == "inline" {
            continue; // Its `done` runs while the caller still borrows the engine.
        }
        engine.submit(vec![op]);
        *slot.lock().unwrap() = Some(engine);
        receiver.recv_timeout(PATIENCE).unwrap();
    }
}

#[test]
fn the_inline_engine_keeps_the_order() {
    let log = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&log);
    let file: Arc<dyn DiskFile> = Arc::new(Scripted(move |what, offset| {
        seen.lock().unwrap().push((what, offset));
        Ok(())
    }));
    let (first, _first) = write_op(&file, 1, Vec::new());
    let (second, _second) = read_op(&file, 2, ALIGN);
    let (third, _third) = write_op(&file, 3, Vec::new());
    InlineEngine.submit(vec![first, second, third]);
    assert_eq!(peek(&log), [("write", 1), ("read", 2), ("write", 3)]);
}

#[test]
fn a_full_queue_blocks_the_submitter_and_then_lets_it_go() {
    let gate = Arc::new(Mutex::new(()));
    let closed = gate.lock().unwrap();
    let inside = Arc::clone(&gate);
    let file: Arc<dyn DiskFile> = Arc::new(Scripted(move |_, _| {
        drop(inside.lock().unwrap());
        Ok(())
    }));
    let config = PoolConfig { num_readers: 1, num_writers: 1, queue_count_max: 2 };
    let engine = Arc::new(PoolEngine::new(config).unwrap());
    let (submitted, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let worker = {
        let (engine, submitted, done) = (Arc::clone(&engine), Arc::clone(&submitted), Arc::clone(&done));
        std::thread::spawn(move || {
            for _ in 0..10 {
                let done = Arc::clone(&done);
                let then: ReadDone = Box::new(move |_, _| _ = done.fetch_add(1, Ordering::SeqCst));
                let buf = Box::new(AlignedBuf::zeroed(ALIGN));
                engine.submit(vec![IoOp::Read { file: Arc::clone(&file), offset: 0, buf, done: then }]);
                submitted.fetch_add(1, Ordering::SeqCst);
            }
        })
    };
    std::thread::sleep(Duration::from_millis(100));
    // One in the worker's hands and two in the queue.
    assert_eq!((submitted.load(Ordering::SeqCst), done.load(Ordering::SeqCst)), (3, 0));
    drop(closed);
    worker.join().unwrap();
    drop(engine);
    assert_eq!(done.load(Ordering::SeqCst), 10);
}
