//! `Engram`: long-term memory, over `stratakv_core::memory`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use stratakv_core::Result;
use stratakv_core::memory::{
    self, Draft, EngramConfig, FOREVER, Memory, Names, Query, Retention, Scope, Signals, Weights, When,
};

use crate::enter::enter;

/// User, agent, project, session.
pub(crate) type ScopeParts = (String, Option<String>, Option<String>, Option<String>);
/// Text, metadata, source, author, valid from, valid to, recorded, superseded.
pub(crate) type DraftParts =
    (String, String, Option<String>, Option<String>, Option<i64>, Option<i64>, Option<i64>, Option<u64>);
/// As of, known at (milliseconds since 1970), whatever was recorded.
type WhenParts = (Option<i64>, Option<i64>, bool);

/// Long-term memory in a directory, for one process.
#[pyclass(frozen, module = "stratakv._native")]
pub(crate) struct Engram {
    engram: memory::Engram,
}

pub(crate) fn scope_of((user, agent, project, session): ScopeParts) -> Result<Scope> {
    Scope::new(user, Names { agent, project, session })
}

/// The signals by name, in the order of [`values_of`] and [`weights_of`].
const SIGNALS: [&str; 9] =
    ["bm25", "bm25_window", "cosine", "cosine_window", "author", "date", "asks", "answers", "when"];

fn values_of(signals: &Signals) -> [f32; 9] {
    let Signals { bm25, bm25_window, cosine, cosine_window, author, date, asks, answers, when } = *signals;
    [bm25, bm25_window, cosine, cosine_window, author, date, asks, answers, when]
}

/// The engine's weights, where they are not given by name.
pub(crate) fn weights_of(given: BTreeMap<String, f32>) -> PyResult<Weights> {
    let mut weights = Weights::default();
    for (name, value) in given {
        let weight = match name.as_str() {
            "bm25" => &mut weights.bm25,
            "bm25_window" => &mut weights.bm25_window,
            "cosine" => &mut weights.cosine,
            "cosine_window" => &mut weights.cosine_window,
            "author" => &mut weights.author,
            "date" => &mut weights.date,
            "asks" => &mut weights.asks,
            "answers" => &mut weights.answers,
            "when" => &mut weights.when,
            _ => {
                return Err(PyValueError::new_err(format!(
                    "weight {name:?}: accepted are {}",
                    SIGNALS.join(", ")
                )));
            }
        };
        *weight = value;
    }
    Ok(weights)
}

fn when_of(when: Option<WhenParts>) -> Option<When> {
    let (as_of, known_at, any) = when?;
    if as_of.is_none() && known_at.is_none() && !any {
        return None;
    }
    // Known until ever, but not what never becomes known.
    Some(When { as_of, known_at: known_at.unwrap_or(FOREVER - 1), any })
}

/// Rows of a C-contiguous float32 buffer of this shape.
pub(crate) fn rows_of(vectors: &Bound<'_, PyAny>, count: usize) -> PyResult<Vec<Vec<f32>>> {
    let buffer = PyBuffer::<f32>::get(vectors)
        .map_err(|error| PyValueError::new_err(format!("vectors must be a float32 array: {error}")))?;
    let shape = buffer.shape();
    let [found, dimension] = *shape else {
        return Err(PyValueError::new_err(format!("vectors has shape {shape:?}, expected ({count}, D)")));
    };
    if found != count || dimension == 0 {
        return Err(PyValueError::new_err(format!("vectors has shape {shape:?}, expected ({count}, D)")));
    }
    let values = buffer.to_vec(vectors.py())?;
    Ok(values.chunks_exact(dimension).map(<[f32]>::to_vec).collect())
}

#[pymethods]
impl Engram {
    #[new]
    #[pyo3(signature = (directory, *, embedder=None, durable=true))]
    fn new(
        py: Python<'_>,
        directory: PathBuf,
        embedder: Option<(String, usize)>,
        durable: bool,
    ) -> PyResult<Self> {
        let config = EngramConfig { embedder, durable, ..EngramConfig::default() };
        enter(py, || memory::Engram::open(directory, config)).map(|engram| Self { engram })
    }

    #[getter]
    fn embedder(&self) -> Option<(&str, usize)> {
        self.engram.embedder()
    }

    #[pyo3(signature = (scope, drafts, vectors=None))]
    fn remember(
        &self,
        py: Python<'_>,
        scope: ScopeParts,
        drafts: Vec<DraftParts>,
        vectors: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Vec<u64>> {
        let drafts = drafts_of(drafts, vectors)?;
        enter(py, || self.engram.remember(&scope_of(scope)?, &drafts))
    }

    #[pyo3(signature = (scope, *, text=None, vector=None, k, when=None, weights=None))]
    fn recall<'py>(
        &self,
        py: Python<'py>,
        scope: ScopeParts,
        text: Option<String>,
        vector: Option<&Bound<'_, PyAny>>,
        k: usize,
        when: Option<WhenParts>,
        weights: Option<BTreeMap<String, f32>>,
    ) -> PyResult<Bound<'py, PyList>> {
        let vector = vector.map(|vector| rows_of(vector, 1).map(|mut rows| rows.remove(0))).transpose()?;
        let weights = weights_of(weights.unwrap_or_default())?;
        let query = Query { text, vector, k, when: when_of(when), weights };
        let user = scope.0.clone();
        let hits = enter(py, || self.engram.recall(&scope_of(scope)?, &query))?;
        let told = hits
            .iter()
            .map(|hit| Ok((tell(py, &user, &hit.memory)?, hit.score, tell_signals(py, &hit.signals)?)));
        PyList::new(py, told.collect::<PyResult<Vec<_>>>()?)
    }

    fn get<'py>(&self, py: Python<'py>, scope: ScopeParts, id: u64) -> PyResult<Bound<'py, PyDict>> {
        let user = scope.0.clone();
        let memory = enter(py, || self.engram.get(&scope_of(scope)?, id))?;
        tell(py, &user, &memory)
    }

    #[pyo3(signature = (scope, *, when=None, after=0, limit))]
    fn list<'py>(
        &self,
        py: Python<'py>,
        scope: ScopeParts,
        when: Option<WhenParts>,
        after: u64,
        limit: usize,
    ) -> PyResult<Bound<'py, PyList>> {
        let user = scope.0.clone();
        let memories = enter(py, || self.engram.list(&scope_of(scope)?, when_of(when), after, limit))?;
        tell_all(py, &user, &memories)
    }

    fn history<'py>(&self, py: Python<'py>, scope: ScopeParts, id: u64) -> PyResult<Bound<'py, PyList>> {
        let user = scope.0.clone();
        let memories = enter(py, || self.engram.history(&scope_of(scope)?, id))?;
        tell_all(py, &user, &memories)
    }

    fn end(&self, py: Python<'_>, scope: ScopeParts, id: u64, valid_to: i64) -> PyResult<()> {
        enter(py, || self.engram.end(&scope_of(scope)?, id, valid_to))
    }

    #[pyo3(signature = (scope, ids=None))]
    fn forget(&self, py: Python<'_>, scope: ScopeParts, ids: Option<Vec<u64>>) -> PyResult<u64> {
        enter(py, || {
            let scope = scope_of(scope)?;
            match ids {
                Some(ids) => self.engram.forget(&scope, &ids),
                None => self.engram.forget_all(&scope),
            }
        })
    }

    #[pyo3(signature = (scope, *, age_ms_max=None, count_max=None, bytes_max=None))]
    fn retain(
        &self,
        py: Python<'_>,
        scope: ScopeParts,
        age_ms_max: Option<u64>,
        count_max: Option<u64>,
        bytes_max: Option<u64>,
    ) -> PyResult<u64> {
        let retention = Retention { age_ms_max, count_max, bytes_max };
        enter(py, || self.engram.retain(&scope_of(scope)?, &retention))
    }

    fn optimize(&self, py: Python<'_>, scope: ScopeParts) -> PyResult<(u64, u64)> {
        let progress = enter(py, || self.engram.optimize(&scope_of(scope)?))?;
        Ok((progress.done, progress.total))
    }

    fn stats<'py>(&self, py: Python<'py>, scope: ScopeParts) -> PyResult<Bound<'py, PyDict>> {
        let stats = enter(py, || self.engram.stats(&scope_of(scope)?))?;
        let dict = PyDict::new(py);
        dict.set_item("memories", stats.memories)?;
        dict.set_item("present", stats.present)?;
        dict.set_item("vectors", stats.vectors)?;
        dict.set_item("log_bytes", stats.log_bytes)?;
        dict.set_item("damaged", stats.damaged)?;
        Ok(dict)
    }

    fn users(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        enter(py, || self.engram.users())
    }

    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        enter(py, || self.engram.flush())
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        enter(py, || self.engram.close())
    }
}

/// Drafts with their vectors, a row of the buffer for each.
pub(crate) fn drafts_of(drafts: Vec<DraftParts>, vectors: Option<&Bound<'_, PyAny>>) -> PyResult<Vec<Draft>> {
    let vectors = match vectors {
        Some(vectors) => rows_of(vectors, drafts.len())?.into_iter().map(Some).collect(),
        None => vec![None; drafts.len()],
    };
    Ok(drafts.into_iter().zip(vectors).map(|(parts, vector)| draft_of(parts, vector)).collect())
}

fn draft_of(parts: DraftParts, vector: Option<Vec<f32>>) -> Draft {
    let (text, metadata, source, author, valid_from, valid_to, recorded, supersedes) = parts;
    Draft { text, metadata, source, author, vector, valid_from, valid_to, recorded, supersedes }
}

fn tell_all<'py>(py: Python<'py>, user: &str, memories: &[Memory]) -> PyResult<Bound<'py, PyList>> {
    let told = memories.iter().map(|memory| tell(py, user, memory));
    PyList::new(py, told.collect::<PyResult<Vec<_>>>()?)
}

/// Signals by their names.
pub(crate) fn tell_signals<'py>(py: Python<'py>, signals: &Signals) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (name, value) in SIGNALS.iter().zip(values_of(signals)) {
        dict.set_item(name, value)?;
    }
    Ok(dict)
}

/// One memory without its vector.
fn tell<'py>(py: Python<'py>, user: &str, memory: &Memory) -> PyResult<Bound<'py, PyDict>> {
    let known = |time: i64| (time != FOREVER).then_some(time);
    let dict = PyDict::new(py);
    dict.set_item("id", memory.id)?;
    dict.set_item("text", &memory.text)?;
    dict.set_item("user", user)?;
    dict.set_item("agent", &memory.names.agent)?;
    dict.set_item("project", &memory.names.project)?;
    dict.set_item("session", &memory.names.session)?;
    dict.set_item("metadata", &memory.metadata)?;
    dict.set_item("source", &memory.source)?;
    dict.set_item("author", &memory.author)?;
    dict.set_item("valid_from", memory.valid_from)?;
    dict.set_item("valid_to", known(memory.valid_to))?;
    dict.set_item("recorded", memory.recorded)?;
    dict.set_item("closed", known(memory.closed))?;
    dict.set_item("supersedes", memory.supersedes)?;
    dict.set_item("superseded_by", memory.superseded_by)?;
    dict.set_item("has_vector", !memory.vector.is_empty())?;
    Ok(dict)
}
