//! `DirectoryLock`: a directory for one process, over `stratakv_core::tier::lock`.

use std::path::PathBuf;

use pyo3::prelude::*;
use stratakv_core::sync::Mutex;
use stratakv_core::tier::lock;

use crate::enter::enter;

/// A directory that no other process has.
#[pyclass(frozen, module = "stratakv._native")]
pub(crate) struct DirectoryLock {
    lock: Mutex<Option<lock::DirectoryLock>>,
}

#[pymethods]
impl DirectoryLock {
    #[new]
    fn new(py: Python<'_>, directory: PathBuf) -> PyResult<Self> {
        let lock = enter(py, move || lock::DirectoryLock::take(&directory))?;
        Ok(Self { lock: Mutex::new(Some(lock)) })
    }

    fn release(&self, py: Python<'_>) {
        py.detach(|| *self.lock.lock() = None);
    }
}
