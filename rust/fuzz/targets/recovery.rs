//! Opening a store over an arbitrary segment file, and reading all that it claims to have.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use stratakv_core::io::{Access, Disk, Usage};
use stratakv_core::recovery::recover;
use stratakv_core::testing::MemoryDisk;

fuzz_target!(|data: &[u8]| {
    let memory = MemoryDisk::new();
    let written = memory.create_dir("segments").and_then(|()| {
        let file = memory.open("segments/0000000000000001.seg", Access::Create, Usage::Pages)?;
        file.write_at(&[data], 0)
    });
    let disk: Arc<dyn Disk> = Arc::new(memory);
    assert!(written.is_ok());
    for read_only in [true, false] {
        let Ok(found) = recover(&disk, 1 << 20, read_only) else { return };
        for location in found.index.values() {
            let segment = found.segments.get(location.segment);
            let entry = location.entry;
            assert!(segment.is_some_and(|segment| entry.offset() + entry.padded_len() <= segment.len));
        }
    }
});
