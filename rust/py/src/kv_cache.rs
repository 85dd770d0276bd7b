//! `KvCache`: tensors in, tensors out, over `stratakv_core::cache`.
#![expect(clippy::needless_pass_by_value, reason = "the binding macro hands extracted arguments over")]

use std::collections::BTreeMap;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyAny, PyBytes, PyDict};
use stratakv_core::cache::{self, CacheConfig, KeyTurn, Mask, Plane, Selection};
use stratakv_core::rotary::Rotary;
use stratakv_core::score::{Budget, Guard};
use stratakv_core::sync::Mutex;
use stratakv_core::{Error, Result};

use crate::buffer::{BiasTensor, Dense, Tensor};
use crate::enter::enter;
use crate::store::Store;
use crate::threads;

/// Page tables of one sequence batch: every layer's keys and values, by row.
#[pyclass(frozen, module = "stratakv._native")]
pub(crate) struct KvCache {
    /// `None` once closed. Locked without the interpreter's lock only.
    cache: Mutex<Option<cache::KvCache>>,
    page_tokens: usize,
}

impl KvCache {
    fn wrap(cache: cache::KvCache) -> Self {
        Self { page_tokens: cache.page_tokens(), cache: Mutex::new(Some(cache)) }
    }

    /// One call on the cache, outside the interpreter.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        call: impl FnOnce(&mut cache::KvCache) -> Result<T> + Send,
    ) -> PyResult<T> {
        enter(py, || match &mut *self.cache.lock() {
            Some(cache) => call(cache),
            None => Err(Error::Invalid("the cache is closed".into())),
        })
    }
}

/// One salt for all rows, or one per row.
enum Salts {
    Shared(Vec<u8>),
    PerRow(Vec<Vec<u8>>),
}

impl Salts {
    fn extract(salt: Option<&Bound<'_, PyAny>>) -> PyResult<Self> {
        let Some(salt) = salt else { return Ok(Self::Shared(Vec::new())) };
        if let Ok(bytes) = salt.cast::<PyBytes>() {
            return Ok(Self::Shared(bytes.as_bytes().to_vec()));
        }
        salt.extract().map(Self::PerRow).map_err(|_| {
            let found = salt.get_type();
            PyTypeError::new_err(format!("salt is a {found}, expected bytes or a list of bytes"))
        })
    }

    fn slices(&self, rows: usize) -> Vec<&[u8]> {
        match self {
            Self::Shared(salt) => vec![salt; rows],
            Self::PerRow(salts) => salts.iter().map(Vec::as_slice).collect(),
        }
    }
}

fn turn_named(name: &str) -> PyResult<KeyTurn> {
    match name {
        "appended" => Ok(KeyTurn::Appended),
        "stored" => Ok(KeyTurn::Stored),
        "placed" => Ok(KeyTurn::Placed),
        _ => Err(PyValueError::new_err(format!(
            "turn={name:?}: accepted are \"appended\", \"stored\" and \"placed\""
        ))),
    }
}

#[pymethods]
impl KvCache {
    #[new]
    #[pyo3(signature = (store, *, num_layers, page_tokens=64, identity=None, settings=None, rotary=None, planes=false))]
    fn new(
        py: Python<'_>,
        store: &Store,
        num_layers: usize,
        page_tokens: usize,
        identity: Option<Vec<u8>>,
        settings: Option<BTreeMap<String, String>>,
        rotary: Option<(Vec<f64>, bool)>,
        planes: bool,
    ) -> PyResult<Self> {
        let settings = settings.unwrap_or_default();
        let rotary = rotary.map(|(inv_freq, interleaved)| Rotary { inv_freq, interleaved });
        let config = CacheConfig { num_layers, page_tokens, identity, settings, rotary, planes };
        let store = store.engine();
        enter(py, || cache::KvCache::new(store, config)).map(Self::wrap)
    }

    #[getter]
    fn page_tokens(&self) -> usize {
        self.page_tokens
    }

    #[getter]
    fn num_rows(&self, py: Python<'_>) -> PyResult<usize> {
        self.with(py, |cache| Ok(cache.num_rows()))
    }

    fn length(&self, py: Python<'_>, layer: usize) -> PyResult<usize> {
        self.with(py, |cache| cache.length(layer))
    }

    #[pyo3(signature = (token_ids, salt=None), text_signature = "($self, token_ids, salt=b'')")]
    fn note_tokens(
        &self,
        py: Python<'_>,
        token_ids: Vec<Vec<u32>>,
        salt: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let salts = Salts::extract(salt)?;
        self.with(py, |cache| {
            let rows: Vec<&[u32]> = token_ids.iter().map(Vec::as_slice).collect();
            cache.note_tokens(&rows, &salts.slices(rows.len()))
        })
    }

    #[pyo3(signature = (row=0))]
    fn token_ids(&self, py: Python<'_>, row: usize) -> PyResult<Option<Vec<u32>>> {
        self.with(py, |cache| cache.token_ids(row))
    }

    fn append(
        &self,
        py: Python<'_>,
        layer: usize,
        keys: &Bound<'_, PyAny>,
        values: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let (keys, values) = (Tensor::source("keys", keys)?, Tensor::source("values", values)?);
        self.with(py, |cache| cache.append(layer, &keys, &values))
    }

    #[pyo3(signature = (layer, query, out, scale, bias=None, causal=false))]
    fn attend(
        &self,
        py: Python<'_>,
        layer: usize,
        query: &Bound<'_, PyAny>,
        out: &Bound<'_, PyAny>,
        scale: f32,
        bias: Option<&Bound<'_, PyAny>>,
        causal: bool,
    ) -> PyResult<()> {
        let query = Tensor::source("query", query)?;
        let mut out = Tensor::destination("out", out)?;
        let bias = bias.map(BiasTensor::new).transpose()?;
        self.with(py, |cache| {
            let mask = Mask { bias: bias.as_ref().map(BiasTensor::view), causal };
            cache.attend(layer, &query, &mut out, scale, &mask, &*threads::current())
        })
    }

    #[pyo3(signature = (layer, start, stop, keys, values, turn="appended"), text_signature = "($self, layer, start, stop, keys, values, turn='appended')")]
    fn gather(
        &self,
        py: Python<'_>,
        layer: usize,
        start: usize,
        stop: usize,
        keys: &Bound<'_, PyAny>,
        values: &Bound<'_, PyAny>,
        turn: &str,
    ) -> PyResult<()> {
        let mut keys = Tensor::destination("keys", keys)?;
        let mut values = Tensor::destination("values", values)?;
        let turn = turn_named(turn)?;
        self.with(py, |cache| cache.gather(layer, start, stop, &mut keys, &mut values, turn))
    }

    fn page_keys<'py>(
        &self,
        py: Python<'py>,
        layer: usize,
        pages: Vec<(u32, u32)>,
    ) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        let keys = self.with(py, |cache| cache.page_keys(layer, &pages))?;
        Ok(keys.iter().map(|key| PyBytes::new(py, &key.0)).collect())
    }

    #[pyo3(signature = (layer, pages, out, *, residuals=false))]
    fn copy_planes(
        &self,
        py: Python<'_>,
        layer: usize,
        pages: Vec<(u32, u32)>,
        out: &Bound<'_, PyAny>,
        residuals: bool,
    ) -> PyResult<()> {
        let mut out = Dense::bytes("out", out)?;
        let plane = if residuals { Plane::Residuals } else { Plane::Codes };
        out.expect_shape(&[pages.len(), self.with(py, |cache| cache.plane_bytes(layer, plane))?])?;
        self.with(py, |cache| cache.copy_planes(layer, &pages, plane, out.as_mut_slice()))
    }

    fn copy_summaries(
        &self,
        py: Python<'_>,
        layer: usize,
        start: usize,
        stop: usize,
        out: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let mut out = Dense::bytes("out", out)?;
        out.expect_shape(&self.with(py, |cache| cache.summaries_shape(layer, stop.saturating_sub(start)))?)?;
        self.with(py, |cache| {
            cache.copy_summaries(layer, start, stop, out.as_mut_slice(), &*threads::current())
        })
    }

    #[pyo3(signature = (*, blocks, sinks, window, recent, unread, growth, critical, dense_below, dense_prefill_below, trained_tokens, sketches))]
    fn select(
        &self,
        py: Python<'_>,
        blocks: usize,
        sinks: usize,
        window: usize,
        recent: usize,
        unread: f32,
        growth: f32,
        critical: f32,
        dense_below: usize,
        dense_prefill_below: usize,
        trained_tokens: usize,
        sketches: bool,
    ) -> PyResult<()> {
        let guard = Guard { unread, growth };
        let budget = Budget { blocks, sinks, window, critical, guard };
        self.with(py, |cache| {
            cache.select(Some(Selection {
                budget,
                recent,
                dense_below,
                dense_prefill_below,
                trained_tokens,
                sketches,
            }))
        })
    }

    fn select_all(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, |cache| cache.select(None))
    }

    #[pyo3(signature = (rows, own, since=None))]
    fn focus(&self, py: Python<'_>, rows: Vec<Vec<u32>>, own: usize, since: Option<usize>) -> PyResult<()> {
        self.with(py, |cache| cache.focus(rows, own, since))
    }

    fn selected(&self, py: Python<'_>, layer: usize) -> PyResult<Option<(f32, f32)>> {
        let selected = self.with(py, |cache| cache.selected(layer))?;
        Ok(selected.map(|selected| (selected.tokens, selected.unread)))
    }

    fn read_blocks(&self, py: Python<'_>, layer: usize) -> PyResult<Option<Vec<Vec<Vec<u32>>>>> {
        self.with(py, |cache| Ok(cache.read_blocks(layer)?.map(|rows| rows.map(<[_]>::to_vec).collect())))
    }

    fn read_shares(&self, py: Python<'_>, layer: usize) -> PyResult<Option<Vec<Vec<Vec<f32>>>>> {
        self.with(py, |cache| Ok(cache.read_shares(layer)?.map(|rows| rows.map(<[_]>::to_vec).collect())))
    }

    fn prefetch(&self, py: Python<'_>, layer: usize) -> PyResult<()> {
        self.with(py, |cache| cache.prefetch(layer))
    }

    fn crop(&self, py: Python<'_>, length: usize) -> PyResult<()> {
        self.with(py, |cache| {
            cache.crop(length);
            Ok(())
        })
    }

    fn reorder(&self, py: Python<'_>, rows: Vec<usize>) -> PyResult<()> {
        self.with(py, |cache| cache.reorder(&rows))
    }

    fn reset(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, |cache| {
            cache.reset();
            Ok(())
        })
    }

    fn fork(&self, py: Python<'_>) -> PyResult<Self> {
        self.with(py, |cache| cache.fork()).map(Self::wrap)
    }

    /// `copy.copy` and `copy.deepcopy` are forks too: what is shared is never written.
    fn __copy__(&self, py: Python<'_>) -> PyResult<Self> {
        self.fork(py)
    }

    fn __deepcopy__(&self, py: Python<'_>, memo: &Bound<'_, PyDict>) -> PyResult<Self> {
        let _ = memo;
        self.fork(py)
    }

    #[pyo3(signature = (token_ids, salt=None), text_signature = "($self, token_ids, salt=b'')")]
    fn match_prefix(&self, py: Python<'_>, token_ids: Vec<u32>, salt: Option<Vec<u8>>) -> PyResult<usize> {
        self.with(py, |cache| cache.match_prefix(&token_ids, salt.as_deref().unwrap_or_default()))
    }

    #[pyo3(signature = (name, *, model, extra=None), text_signature = "($self, name, *, model, extra=b'')")]
    fn save(&self, py: Python<'_>, name: &str, model: &str, extra: Option<&[u8]>) -> PyResult<()> {
        self.with(py, |cache| cache.save(name, model, extra.unwrap_or_default()))
    }

    fn load<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyBytes>> {
        let extra = self.with(py, |cache| cache.load(name))?;
        Ok(PyBytes::new(py, &extra))
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        enter(py, || {
            let closed = self.cache.lock().take();
            drop(closed);
            Ok(())
        })
    }
}

impl Drop for KvCache {
    /// Many pages may be let go of: not while other Python threads wait.
    fn drop(&mut self) {
        let cache = self.cache.lock().take();
        Python::try_attach(|py| py.detach(|| drop(cache)));
    }
}
