//! Batched page reads: engines and modes against one `pread` loop on the same file.
//!
//! Each measurement drops the file from the page cache first, so that modes through the
//! page cache read the disk as well. What a virtual machine's host caches is beyond reach.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use stratakv_core::io::{
    Access, AlignedBuf, Disk, DiskFile, EngineKind, IoEngine, IoOp, Mode, OsDisk, ReadBuf, ReadDone, Usage,
    open_engine,
};
use stratakv_core::testing::Seeded;

const FILE_BYTES: usize = 256 << 20;
const BATCH_COUNT: usize = 32;

/// One batch of `BATCH_COUNT` reads at random offsets; the buffers come back.
fn read_batch(
    engine: &dyn IoEngine,
    file: &Arc<dyn DiskFile>,
    offsets: &[u64],
    bufs: Vec<Box<dyn ReadBuf>>,
) -> Vec<(u64, Box<dyn ReadBuf>)> {
    let (sender, receiver) = channel();
    let ops = offsets.iter().zip(bufs).map(|(&offset, buf)| {
        let sender = sender.clone();
        let done: ReadDone = Box::new(move |buf, outcome| {
            let _ = sender.send((offset, buf, outcome));
        });
        IoOp::Read { file: Arc::clone(file), offset, buf, done }
    });
    engine.submit(ops.collect());
    drop(sender);
    let finished = receiver.iter().map(|(offset, buf, outcome)| {
        assert!(outcome.is_ok(), "{outcome:?} at {offset}");
        (offset, buf)
    });
    finished.collect()
}

/// The bytes at `offset`, which every page carries at its start.
fn stamp(offset: u64) -> [u8; 8] {
    offset.to_le_bytes()
}

fn create(disk: &OsDisk) -> std::io::Result<()> {
    let file = disk.open("pages", Access::Create, Usage::Pages)?;
    let mut random = Seeded::new(1);
    let mut chunk = AlignedBuf::zeroed(1 << 20);
    for start in (0..FILE_BYTES).step_by(chunk.len()) {
        random.fill(&mut chunk);
        for at in (0..chunk.len()).step_by(64 << 10) {
            chunk[at..at + 8].copy_from_slice(&stamp((start + at) as u64));
        }
        file.write_at(&[&chunk], start as u64)?;
    }
    file.sync()
}

/// Forgets what the page cache holds of the file.
fn evict(file: &std::fs::File) {
    #[cfg(target_os = "linux")]
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
    #[cfg(not(target_os = "linux"))]
    let _ = file;
}

fn batch_reads(c: &mut Criterion) {
    // Beside the build, since the system's temporary directory may be memory.
    let Ok(directory) = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")) else { return };
    let setup = OsDisk::open(directory.path(), Mode::Direct).and_then(|disk| create(&disk));
    assert!(setup.is_ok(), "{setup:?}");
    let Ok(plain) = std::fs::File::open(directory.path().join("pages")) else { return };

    let modes = [
        ("direct", Mode::Direct, EngineKind::Uring),
        ("direct", Mode::Direct, EngineKind::Pool),
        ("direct", Mode::Direct, EngineKind::Inline),
        ("buffered", Mode::Buffered, EngineKind::Uring),
        ("buffered", Mode::Buffered, EngineKind::Pool),
        ("mmap", Mode::Mmap, EngineKind::Pool),
    ];
    for read_bytes in [64 << 10, 1 << 20] {
        let mut group = c.benchmark_group(format!("batch_reads_{}KiB", read_bytes >> 10));
        group.throughput(Throughput::Bytes((BATCH_COUNT * read_bytes) as u64));
        group.sample_size(10).measurement_time(Duration::from_secs(3));
        for (name, mode, kind) in modes {
            let engine = open_engine(kind);
            let file = OsDisk::open(directory.path(), mode)
                .and_then(|disk| disk.open("pages", Access::Read, Usage::Pages));
            let Ok(file) = file else { return };
            let mut random = Seeded::new(2);
            group.bench_function(BenchmarkId::new(name, engine.name()), |bencher| {
                bencher.iter_custom(|rounds| {
                    let mut spent = Duration::ZERO;
                    let mut bufs: Vec<Box<dyn ReadBuf>> =
                        (0..BATCH_COUNT).map(|_| Box::new(AlignedBuf::zeroed(read_bytes)) as _).collect();
                    for _ in 0..rounds {
                        let num_slots = (FILE_BYTES / read_bytes) as u64;
                        let offsets: Vec<u64> =
                            (0..BATCH_COUNT).map(|_| random.below(num_slots) * read_bytes as u64).collect();
                        evict(&plain);
                        let started = Instant::now();
                        let read = read_batch(&*engine, &file, &offsets, std::mem::take(&mut bufs));
                        spent += started.elapsed();
                        assert_eq!(read.len(), BATCH_COUNT);
                        for (offset, mut buf) in read {
                            assert_eq!(buf.bytes_mut()[..8], stamp(offset), "wrong page at {offset}");
                            bufs.push(buf);
                        }
                    }
                    spent
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, batch_reads);
criterion_main!(benches);
