//! `Reembedding`: vectors made anew, over `stratakv_core::memory`.

use std::path::PathBuf;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use stratakv_core::memory;
use stratakv_core::sync::Mutex;

use crate::engram::rows_of;
use crate::enter::enter;

/// A directory of memories whose vectors are being made anew.
#[pyclass(frozen, module = "stratakv._native")]
pub(crate) struct Reembedding {
    /// `None` once closed.
    reembedding: Mutex<Option<memory::Reembedding>>,
}

impl Reembedding {
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        call: impl FnOnce(&mut memory::Reembedding) -> stratakv_core::Result<T> + Send,
    ) -> PyResult<T> {
        enter(py, || {
            let mut reembedding = self.reembedding.lock();
            let closed = || stratakv_core::Error::Invalid("these memories are closed".into());
            call(reembedding.as_mut().ok_or_else(closed)?)
        })
    }
}

#[pymethods]
impl Reembedding {
    #[new]
    #[pyo3(signature = (directory, *, embedder))]
    fn new(py: Python<'_>, directory: PathBuf, embedder: (String, usize)) -> PyResult<Self> {
        let reembedding = enter(py, move || memory::Reembedding::open(directory, &embedder))?;
        Ok(Self { reembedding: Mutex::new(Some(reembedding)) })
    }

    fn progress(&self, py: Python<'_>) -> PyResult<(u64, u64)> {
        self.with(py, |reembedding| Ok(reembedding.progress()))
            .map(|progress| (progress.done, progress.total))
    }

    fn texts(&self, py: Python<'_>, limit: usize) -> PyResult<Vec<String>> {
        self.with(py, |reembedding| reembedding.texts(limit))
    }

    fn give(&self, py: Python<'_>, vectors: &Bound<'_, PyAny>) -> PyResult<()> {
        let asked = self.with(py, |reembedding| Ok(reembedding.asked()))?;
        if asked == 0 {
            return Err(PyValueError::new_err("vectors for no texts: ask for texts first"));
        }
        let rows = rows_of(vectors, asked)?;
        self.with(py, |reembedding| reembedding.give(rows))
    }

    fn finish(&self, py: Python<'_>) -> PyResult<bool> {
        self.with(py, memory::Reembedding::finish).map(|()| true)
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| *self.reembedding.lock() = None);
    }
}
