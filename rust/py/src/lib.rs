//! `stratakv._native`: the one doorway between Python and the engine.
//!
//! Thin by design: tensors and strings become checked engine types, the interpreter's lock
//! is let go of, errors become exceptions. What something means is said in the engine and,
//! for users, in `_native.pyi`.

mod buffer;
mod codec;
mod doctor;
mod elsewhere;
mod engram;
mod enter;
mod error;
mod kv_cache;
mod lock;
mod policy;
mod reembed;
mod rows;
mod store;
mod streams;
mod threads;

use pyo3::prelude::*;

/// Upper bound of the threads that one attend uses.
#[pyfunction]
fn set_num_threads(count: usize) {
    threads::set_limit(count);
}

/// The engine of StrataKV. Private: use the `stratakv` package.
#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    enter::install_interrupts();
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<store::Store>()?;
    module.add_class::<kv_cache::KvCache>()?;
    module.add_class::<policy::Policy>()?;
    module.add_class::<engram::Engram>()?;
    module.add_class::<reembed::Reembedding>()?;
    module.add_class::<rows::RowFile>()?;
    module.add_class::<lock::DirectoryLock>()?;
    error::register(module)?;
    codec::register(module)?;
    streams::register(module)?;
    elsewhere::register(module)?;
    module.add_function(wrap_pyfunction!(set_num_threads, module)?)?;
    module.add_function(wrap_pyfunction!(doctor::simd_level, module)?)?;
    module.add_function(wrap_pyfunction!(doctor::doctor, module)?)?;
    Ok(())
}
