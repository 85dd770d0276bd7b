//! The doorway: every call that may take long goes through [`enter`].

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use pyo3::exceptions::{PyKeyboardInterrupt, PyRuntimeError};
use pyo3::prelude::*;
use stratakv_core::{Result, interrupt};

use crate::error;

thread_local! {
    /// What a signal handler raised while the engine was asked to stop.
    static PENDING: RefCell<Option<PyErr>> = const { RefCell::new(None) };
}

/// Lets the engine's waits notice signals. They ask with no lock of the engine held.
pub(crate) fn install_interrupts() {
    interrupt::install(|| {
        let mut raised = None;
        Python::try_attach(|py| raised = py.check_signals().err());
        let interrupted = raised.is_some();
        if interrupted {
            PENDING.set(raised);
        }
        interrupted
    });
}

/// The exception that an interrupted call raises.
pub(crate) fn pending_signal(_py: Python<'_>) -> PyErr {
    PENDING.take().unwrap_or_else(|| PyKeyboardInterrupt::new_err(()))
}

/// Runs `call` without the interpreter's lock; errors and panics become exceptions.
///
/// Locks of the engine are taken inside `call` only: a thread that waits for one must
/// not hold the interpreter.
pub(crate) fn enter<T: Send>(py: Python<'_>, call: impl FnOnce() -> Result<T> + Send) -> PyResult<T> {
    match py.detach(|| catch_unwind(AssertUnwindSafe(call))) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(failure)) => Err(error::raise(py, &failure)),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            Err(PyRuntimeError::new_err(format!("a bug in stratakv: {text}")))
        }
    }
}
