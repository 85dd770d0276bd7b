//! `stratakv._native`: the one doorway between Python and the engine.

use pyo3::prelude::*;

/// The engine of StrataKV. Private: use the `stratakv` package.
#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    Ok(())
}
