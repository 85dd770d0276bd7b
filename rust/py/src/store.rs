//! `Store`: tiers, sessions and their upkeep, over `stratakv_core::store`.

use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use stratakv_core::Error;
use stratakv_core::io::Backend;
use stratakv_core::policy::PolicyKind;
use stratakv_core::session::SessionHead;
use stratakv_core::store::{self, SessionInfo, StoreConfig};

use crate::enter::enter;

/// Bytes that stay free on the file system if nothing else is said.
const FREE_FLOOR_BYTES: u64 = 1 << 30;

/// Tiers of pages: RAM under a byte limit, and a directory of segment files.
#[pyclass(frozen, module = "stratakv._native")]
pub(crate) struct Store {
    store: store::Store,
}

impl Store {
    pub(crate) fn engine(&self) -> store::Store {
        self.store.clone()
    }
}

fn backend_named(name: &str) -> Result<Backend, Error> {
    name.parse().map_err(|error: std::io::Error| Error::Invalid(error.to_string()))
}

/// "auto" is the engine's choice; hyphens are optional.
pub(crate) fn policy_named(name: &str) -> Result<PolicyKind, Error> {
    if name == "auto" {
        return Ok(PolicyKind::default());
    }
    let plain = |name: &str| name.replace(['-', '_'], "");
    let known = PolicyKind::ALL.into_iter().find(|kind| plain(kind.name()) == plain(name));
    known.map_or_else(|| name.parse(), Ok)
}

#[pymethods]
impl Store {
    #[new]
    #[pyo3(signature = (
        directory=None, *, ram_bytes, disk_limit_bytes=None, free_floor_bytes=FREE_FLOOR_BYTES,
        io="auto", policy="auto", read_only=false,
    ))]
    fn new(
        py: Python<'_>,
        directory: Option<PathBuf>,
        ram_bytes: u64,
        disk_limit_bytes: Option<u64>,
        free_floor_bytes: u64,
        io: &str,
        policy: &str,
        read_only: bool,
    ) -> PyResult<Self> {
        let store = enter(py, || {
            let (backend, policy) = (backend_named(io)?, policy_named(policy)?);
            store::Store::open(&StoreConfig {
                directory,
                disk_limit_bytes,
                free_floor_bytes,
                read_only,
                backend,
                policy,
                ..StoreConfig::in_memory(ram_bytes)
            })
        })?;
        Ok(Self { store })
    }

    #[getter]
    fn directory(&self) -> Option<String> {
        self.store.config().directory.as_ref().map(|path| path.to_string_lossy().into_owned())
    }

    #[getter]
    fn read_only(&self) -> bool {
        self.store.config().read_only
    }

    fn recovery_report(&self) -> Vec<String> {
        self.store.recovery_report().to_vec()
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = enter(py, || Ok(self.store.stats()))?;
        let counters = &stats.counters;
        let ram = PyDict::new(py);
        ram.set_item("limit_bytes", stats.ram_limit_bytes)?;
        ram.set_item("used_bytes", stats.ram_used_bytes)?;
        ram.set_item("pages", stats.ram_pages)?;
        ram.set_item("hits", counters.hits)?;
        ram.set_item("misses", counters.misses)?;
        let disk = PyDict::new(py);
        disk.set_item("limit_bytes", stats.disk_limit_bytes)?;
        disk.set_item("used_bytes", stats.disk_used_bytes)?;
        disk.set_item("pages", stats.disk_pages)?;
        disk.set_item("reads", counters.reads)?;
        disk.set_item("read_bytes", counters.read_bytes)?;
        disk.set_item("writes", counters.writes)?;
        disk.set_item("written_bytes", counters.written_bytes)?;
        disk.set_item("corrupt_pages", counters.corrupt_pages)?;
        disk.set_item("evicted_sessions", counters.evicted_sessions)?;
        let waits = PyDict::new(py);
        waits.set_item("count", counters.waits)?;
        waits.set_item("seconds", counters.wait_us as f64 / 1e6)?;
        let all = PyDict::new(py);
        all.set_item("ram", ram)?;
        all.set_item("disk", disk)?;
        all.set_item("waits", waits)?;
        all.set_item("io", stats.io)?;
        all.set_item("policy", stats.policy)?;
        Ok(all)
    }

    fn sessions<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let sessions = enter(py, || self.store.sessions())?;
        let entries: Vec<_> = sessions.iter().map(|session| entry(py, session)).collect::<PyResult<_>>()?;
        PyList::new(py, entries)
    }

    fn session<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyDict>> {
        let (info, image, missing) = enter(py, || {
            let missing = self.store.missing_pages(name)?;
            let image = self.store.load_session(name)?;
            let info = self.store.sessions()?.into_iter().find(|info| info.head.name == name);
            let info = info.ok_or_else(|| Error::NotFound { what: format!("no session {name:?}") })?;
            Ok((info, image, missing))
        })?;
        let dict = entry(py, &info)?;
        let token_ids: Vec<&Vec<u32>> = image.rows.iter().map(|row| &row.tokens).collect();
        dict.set_item("token_ids", token_ids)?;
        dict.set_item("missing_pages", missing)?;
        Ok(dict)
    }

    fn session_head<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyDict>> {
        let head = enter(py, || self.store.session_head(name))?;
        let dict = PyDict::new(py);
        set_head(&dict, &head)?;
        Ok(dict)
    }

    fn fork_session(&self, py: Python<'_>, source: &str, target: &str) -> PyResult<()> {
        enter(py, || self.store.fork_session(source, target))
    }

    fn remove_session(&self, py: Python<'_>, name: &str) -> PyResult<()> {
        enter(py, || self.store.remove_session(name))
    }

    #[pyo3(signature = (name=None))]
    fn verify<'py>(&self, py: Python<'py>, name: Option<&str>) -> PyResult<Bound<'py, PyDict>> {
        let found = enter(py, || self.store.verify(name))?;
        let dict = PyDict::new(py);
        dict.set_item("pages", found.pages)?;
        dict.set_item("bytes", found.bytes)?;
        dict.set_item("corrupt", found.corrupt)?;
        dict.set_item("missing", found.missing)?;
        dict.set_item("problems", found.problems)?;
        Ok(dict)
    }

    fn gc<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let freed = enter(py, || self.store.gc())?;
        let dict = PyDict::new(py);
        dict.set_item("freed_bytes", freed.bytes)?;
        dict.set_item("freed_pages", freed.pages)?;
        dict.set_item("moved_pages", freed.moved_pages)?;
        Ok(dict)
    }

    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        enter(py, || self.store.flush())
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        enter(py, || self.store.close())
    }
}

/// One row of a listing.
fn entry<'py>(py: Python<'py>, session: &SessionInfo) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    set_head(&dict, &session.head)?;
    dict.set_item("bytes", session.bytes)?;
    dict.set_item("shared_bytes", session.shared_bytes)?;
    dict.set_item("last_used", session.last_used)?;
    Ok(dict)
}

fn set_head(dict: &Bound<'_, PyDict>, head: &SessionHead) -> PyResult<()> {
    dict.set_item("name", &head.name)?;
    dict.set_item("rows", head.row_tokens.len())?;
    dict.set_item("tokens", head.row_tokens.iter().copied().max().unwrap_or(0))?;
    dict.set_item("created", head.created)?;
    dict.set_item("model", &head.model)?;
    dict.set_item("settings", &head.settings)
}
