//! Tables of rows in files: reading ahead.

use std::path::PathBuf;

use pyo3::prelude::*;
use stratakv_core::io;

use crate::buffer::Dense;
use crate::enter::enter;

/// A file of rows that somebody has mapped.
#[pyclass(frozen, module = "stratakv._native")]
pub(crate) struct RowFile {
    file: io::RowFile,
}

#[pymethods]
impl RowFile {
    #[new]
    #[pyo3(signature = (path, row_bytes, *, part=None))]
    fn new(py: Python<'_>, path: PathBuf, row_bytes: u64, part: Option<(u64, u64)>) -> PyResult<Self> {
        enter(py, move || {
            let file = match part {
                None => io::RowFile::open(&path, row_bytes)?,
                Some((offset, num_rows)) => io::RowFile::open_part(&path, row_bytes, offset, num_rows)?,
            };
            Ok(Self { file })
        })
    }

    #[getter]
    fn num_rows(&self) -> u64 {
        self.file.num_rows()
    }

    fn prefetch(&self, py: Python<'_>, rows: &Bound<'_, PyAny>) -> PyResult<usize> {
        let rows = Dense::indices("rows", rows)?;
        enter(py, || self.file.prefetch(rows.as_indices()))
    }
}
