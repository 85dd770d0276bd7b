//! The exception classes, and which one an error of the engine becomes.

use pyo3::exceptions::{
    PyException, PyKeyError, PyLookupError, PyMemoryError, PyOSError, PyRuntimeError, PyValueError,
};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple, PyType};
use stratakv_core::Error;

use crate::enter;

/// The classes of the stub.
struct Classes {
    strata: Py<PyType>,
    ram_full: Py<PyType>,
    disk_full: Py<PyType>,
    locked: Py<PyType>,
    corrupt: Py<PyType>,
    settings_mismatch: Py<PyType>,
    session_not_found: Py<PyType>,
    pages_lost: Py<PyType>,
    memory_not_found: Py<PyType>,
}

static CLASSES: PyOnceLock<Classes> = PyOnceLock::new();

fn classes(py: Python<'_>) -> PyResult<&Classes> {
    CLASSES.get_or_try_init(py, || {
        let strata =
            class(py, "StrataError", &[py.get_type::<PyException>()], "Base of the engine's own errors.")?;
        let derive = |name: &str, builtin: Bound<'_, PyType>, doc: &str| {
            class(py, name, &[strata.bind(py).clone(), builtin], doc)
        };
        Ok(Classes {
            ram_full: derive(
                "RamFullError",
                py.get_type::<PyMemoryError>(),
                "The RAM limit cannot hold what one step needs.",
            )?,
            disk_full: derive(
                "DiskFullError",
                py.get_type::<PyOSError>(),
                "The disk limit or the free-space floor is reached and nothing is left to evict.",
            )?,
            locked: derive(
                "LockedError",
                py.get_type::<PyOSError>(),
                "Another process writes the directory.",
            )?,
            corrupt: derive(
                "CorruptError",
                py.get_type::<PyValueError>(),
                "Bytes on disk that are not what the format says.",
            )?,
            settings_mismatch: derive(
                "SettingsMismatchError",
                py.get_type::<PyValueError>(),
                "A session of another model, or of other settings.",
            )?,
            session_not_found: derive(
                "SessionNotFoundError",
                py.get_type::<PyKeyError>(),
                "No session of that name.",
            )?,
            pages_lost: derive(
                "PagesLostError",
                py.get_type::<PyLookupError>(),
                "Pages that a sequence needs are in no tier any more.",
            )?,
            memory_not_found: derive(
                "MemoryNotFoundError",
                py.get_type::<PyKeyError>(),
                "No memory of that number in that scope.",
            )?,
            strata,
        })
    })
}

/// `type(name, bases, namespace)`: real multiple inheritance, so that `except OSError` works too.
fn class(py: Python<'_>, name: &str, bases: &[Bound<'_, PyType>], doc: &str) -> PyResult<Py<PyType>> {
    let namespace = PyDict::new(py);
    namespace.set_item("__module__", "stratakv._native")?;
    namespace.set_item("__doc__", doc)?;
    // KeyError shows the repr of its message, which is a sentence here.
    namespace.set_item("__str__", py.get_type::<PyException>().getattr("__str__")?)?;
    let made = py.get_type::<PyType>().call1((name, PyTuple::new(py, bases)?, namespace))?;
    Ok(made.cast_into::<PyType>()?.unbind())
}

/// Adds the classes to the module.
pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    let classes = classes(py)?;
    for class in [
        &classes.strata,
        &classes.ram_full,
        &classes.disk_full,
        &classes.locked,
        &classes.corrupt,
        &classes.settings_mismatch,
        &classes.session_not_found,
        &classes.pages_lost,
        &classes.memory_not_found,
    ] {
        let class = class.bind(py);
        module.add(class.name()?, class)?;
    }
    Ok(())
}

/// What Python raises for an error of the engine.
pub(crate) fn raise(py: Python<'_>, error: &Error) -> PyErr {
    let classes = match classes(py) {
        Ok(classes) => classes,
        Err(error) => return error,
    };
    let message = error.to_string();
    let of = |class: &Py<PyType>| PyErr::from_type(class.bind(py).clone(), message.clone());
    match error {
        Error::Io { action, path, source } => match source.raw_os_error() {
            // With its number, OSError becomes FileNotFoundError, PermissionError and the like.
            Some(errno) => PyOSError::new_err((errno, format!("{action}: {source}"), path.clone())),
            None => PyOSError::new_err(message),
        },
        Error::Interrupted => enter::pending_signal(py),
        Error::RamFull { .. } => of(&classes.ram_full),
        Error::DiskFull { .. } => of(&classes.disk_full),
        Error::Locked { .. } => of(&classes.locked),
        Error::Corrupt { .. } | Error::Foreign { .. } => of(&classes.corrupt),
        Error::SettingsMismatch { .. } | Error::EmbedderMismatch { .. } => of(&classes.settings_mismatch),
        Error::NoMemory { .. } => of(&classes.memory_not_found),
        Error::NotFound { .. } => of(&classes.session_not_found),
        Error::PagesLost { .. } => of(&classes.pages_lost),
        Error::Invalid(_) => PyValueError::new_err(message),
        Error::Forked { .. } => PyRuntimeError::new_err(message),
        _ => of(&classes.strata),
    }
}
