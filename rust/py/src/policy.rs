//! `Policy`: which pages of a tier stay, over `stratakv_core::policy`; keys and sizes only.
#![expect(clippy::needless_pass_by_value, reason = "the binding macro hands extracted arguments over")]

use std::collections::HashSet;

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use stratakv_core::key::PageKey;
use stratakv_core::policy::{Policy as EnginePolicy, new_policy};
use stratakv_core::sync::Mutex;

use crate::enter::enter;
use crate::store::policy_named;

type Key = [u8; 16];

/// An eviction policy for a tier that is not the engine's.
#[pyclass(frozen, module = "stratakv._native")]
pub(crate) struct Policy {
    /// Locked without the interpreter's lock only.
    policy: Mutex<Box<dyn EnginePolicy>>,
}

impl Policy {
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        call: impl FnOnce(&mut dyn EnginePolicy) -> T + Send,
    ) -> PyResult<T> {
        enter(py, || Ok(call(&mut **self.policy.lock())))
    }

    fn each(&self, py: Python<'_>, keys: &[Key], call: fn(&mut dyn EnginePolicy, PageKey)) -> PyResult<()> {
        self.with(py, |policy| keys.iter().for_each(|key| call(policy, PageKey(*key))))
    }
}

#[pymethods]
impl Policy {
    #[new]
    #[pyo3(signature = (name="auto", *, capacity_pages))]
    fn new(py: Python<'_>, name: &str, capacity_pages: usize) -> PyResult<Self> {
        let policy = enter(py, || Ok(new_policy(policy_named(name)?, capacity_pages)))?;
        Ok(Self { policy: Mutex::new(policy) })
    }

    #[getter]
    fn name(&self, py: Python<'_>) -> PyResult<&'static str> {
        self.with(py, |policy| policy.name())
    }

    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        self.with(py, |policy| policy.len())
    }

    fn insert(&self, py: Python<'_>, keys: Vec<Key>, page_bytes: u64) -> PyResult<()> {
        self.with(py, |policy| keys.iter().for_each(|key| policy.insert(PageKey(*key), page_bytes)))
    }

    fn touch(&self, py: Python<'_>, keys: Vec<Key>) -> PyResult<()> {
        self.each(py, &keys, |policy, key| policy.touch(key))
    }

    fn remove(&self, py: Python<'_>, keys: Vec<Key>) -> PyResult<()> {
        self.each(py, &keys, |policy, key| policy.remove(key))
    }

    fn admit(&self, py: Python<'_>, keys: Vec<Key>) -> PyResult<Vec<bool>> {
        self.with(py, |policy| keys.iter().map(|key| policy.admit(PageKey(*key))).collect())
    }

    fn evict<'py>(
        &self,
        py: Python<'py>,
        count: usize,
        keep: Vec<Key>,
    ) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        let keep: HashSet<Key> = keep.into_iter().collect();
        let evicted = self.with(py, |policy| {
            let mut evicted = Vec::new();
            while evicted.len() < count {
                let Some(key) = policy.victim(&mut |key| !keep.contains(&key.0)) else { break };
                policy.remove(key);
                evicted.push(key);
            }
            evicted
        })?;
        Ok(evicted.iter().map(|key| PyBytes::new(py, &key.0)).collect())
    }
}
