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
    /// With how many texts were given out last; `None` once closed.
    reembedding: Mutex<Option<(memory::Reembedding, usize)>>,
}

impl Reembedding {
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        call: impl FnOnce(&mut memory::Reembedding, &mut usize) -> stratakv_core::Result<T> + Send,
    ) -> PyResult<T> {
        enter(py, || {
            let mut reembedding = self.reembedding.lock();
            let closed = || stratakv_core::Error::Invalid("these memories are closed".into());
            let (reembedding, asked) = reembedding.as_mut().ok_or_else(closed)?;
            call(reembedding, asked)
        })
    }
}

#[pymethods]
impl Reembedding {
    #[new]
    #[pyo3(signature = (directory, *, embedder))]
    fn new(py: Python<'_>, directory: PathBuf, embedder: (String, usize)) -> PyResult<Self> {
        let reembedding = enter(py, move || memory::Reembedding::open(directory, &embedder))?;
        Ok(Self { reembedding: Mutex::new(Some((reembedding, 0))) })
    }

    fn progress(&self, py: Python<'_>) -> PyResult<(u64, u64)> {
        self.with(py, |reembedding, _| Ok(reembedding.progress()))
            .map(|progress| (progress.done, progress.total))
    }

    fn texts(&self, py: Python<'_>, limit: usize) -> PyResult<Vec<String>> {
        self.with(py, |reembedding, asked| {
            let texts = reembedding.texts(limit)?;
            *asked = texts.len();
            Ok(texts)
        })
    }

    fn give(&self, py: Python<'_>, vectors: &Bound<'_, PyAny>) -> PyResult<()> {
        let asked = self.with(py, |_, asked| Ok(*asked))?;
        if asked == 0 {
            return Err(PyValueError::new_err("vectors for no texts: ask for texts first"));
        }
        let rows = rows_of(vectors, asked)?;
        self.with(py, |reembedding, asked| {
            reembedding.give(rows)?;
            *asked = 0;
            Ok(())
        })
    }

    fn finish(&self, py: Python<'_>) -> PyResult<bool> {
        self.with(py, |reembedding, _| reembedding.finish()).map(|()| true)
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| *self.reembedding.lock() = None);
    }
}
