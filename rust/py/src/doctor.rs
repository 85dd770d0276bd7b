//! What this machine has, for bug reports and `stratakv doctor`.

use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use stratakv_core::attend::SimdLevel;
use stratakv_core::io::{EngineKind, Mode, OsDisk, open_engine};

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
        // A directory that can't be opened has no direct I/O either.
        let disk = OsDisk::open(directory, Mode::Direct);
        let direct_io = disk.is_ok_and(|disk| disk.effective_mode() == Mode::Direct);
        Ok((threads::current().threads(), direct_io, open_engine(EngineKind::Auto).name()))
    })?;
    let dict = PyDict::new(py);
    dict.set_item("simd", simd_level())?;
    dict.set_item("threads", num_threads)?;
    dict.set_item("direct_io", direct_io)?;
    dict.set_item("io_uring", engine.contains("uring"))?;
    dict.set_item("page_size", stratakv_core::io::ALIGN)?;
    Ok(dict)
}
