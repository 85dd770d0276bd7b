//! What this machine has, for bug reports and `stratakv doctor`.

use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use stratakv_core::io::{ALIGN, Access, AlignedBuf, Disk as _, EngineKind, Mode, OsDisk, Usage, open_engine};
use stratakv_core::simd::SimdLevel;

use crate::enter::enter;
use crate::threads;

/// The SIMD level that kernels use, in lower case without punctuation.
#[pyfunction]
pub(crate) fn simd_level() -> String {
    let name = SimdLevel::detect().name();
    name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

/// Looks at the machine, and at the file system of `directory`.
#[pyfunction]
#[pyo3(signature = (directory=None))]
pub(crate) fn doctor(py: Python<'_>, directory: Option<PathBuf>) -> PyResult<Bound<'_, PyDict>> {
    let (num_threads, direct_io, engine) = enter(py, || {
        let directory = directory.unwrap_or_else(std::env::temp_dir);
        // A directory that nothing can be written to has no direct I/O either.
        let direct_io = takes_direct_io(directory).unwrap_or(false);
        Ok((threads::current().threads(), direct_io, open_engine(EngineKind::Auto).name()))
    })?;
    let dict = PyDict::new(py);
    dict.set_item("simd", simd_level())?;
    dict.set_item("threads", num_threads)?;
    dict.set_item("direct_io", direct_io)?;
    dict.set_item("io_uring", engine.contains("uring"))?;
    dict.set_item("page_size", ALIGN)?;
    Ok(dict)
}

/// Whether a file of `directory` can be written past the page cache: tried on one that is
/// removed again, since file systems tell in no other way.
fn takes_direct_io(directory: PathBuf) -> std::io::Result<bool> {
    let disk = OsDisk::open(directory, Mode::Direct)?;
    let name = format!("stratakv-doctor-{}.tmp", std::process::id());
    let file = disk.open(&name, Access::Create, Usage::Pages)?;
    let block = AlignedBuf::zeroed(ALIGN);
    let written = file.write_at(&[&*block], 0);
    drop(file);
    disk.remove(&name)?;
    written.map(|()| disk.effective_mode() == Mode::Direct)
}
