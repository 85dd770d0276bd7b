//! What memories in a database take from the engine, over `stratakv_core::memory`'s doors for it.

use std::collections::{BTreeMap, HashMap};

use pyo3::prelude::*;
use pyo3::types::PyDict;
use stratakv_core::memory::{self, BM25_B, BM25_K1, FOREVER, Found, HAS_VECTOR, Prepared, Query, WINDOW};

use crate::engram::{DraftParts, ScopeParts, drafts_of, rows_of, scope_of, tell_signals, weights_of};
use crate::enter::enter;

/// Valid from, valid to, recorded, words with their counts, traits, bytes.
type PreparedParts = (i64, i64, i64, HashMap<String, u32>, u32, u64);
/// BM25 of itself and of its window, cosines of both, author, valid from, traits, traits of the one before.
type FoundParts = (f32, f32, Option<f32>, Option<f32>, Option<String>, i64, u32, u32);

/// A query, for those who find memories themselves.
#[pyclass(frozen, module = "stratakv._native")]
pub(crate) struct Question {
    question: memory::Question,
}

#[pymethods]
impl Question {
    #[classattr]
    const BM25_K1: f32 = BM25_K1;
    #[classattr]
    const BM25_B: f32 = BM25_B;
    #[classattr]
    const WINDOW: [u32; 4] = WINDOW;
    #[classattr]
    const HAS_VECTOR: u32 = HAS_VECTOR;

    #[new]
    #[pyo3(signature = (*, text=None, vector=None, k, weights=None, authors, dimension=None))]
    fn new(
        py: Python<'_>,
        text: Option<String>,
        vector: Option<&Bound<'_, PyAny>>,
        k: usize,
        weights: Option<BTreeMap<String, f32>>,
        authors: Vec<String>,
        dimension: Option<usize>,
    ) -> PyResult<Self> {
        let vector = vector.map(|vector| rows_of(vector, 1).map(|mut rows| rows.remove(0))).transpose()?;
        let weights = weights_of(weights.unwrap_or_default())?;
        let query = Query { text, vector, k, when: None, weights };
        enter(py, move || memory::Question::new(&query, &authors, dimension))
            .map(|question| Self { question })
    }

    #[getter]
    fn words(&self) -> HashMap<String, u32> {
        self.question.words().clone()
    }

    #[getter]
    fn pool(&self) -> usize {
        self.question.pool()
    }

    fn rank<'py>(
        &self,
        py: Python<'py>,
        found: Vec<FoundParts>,
    ) -> PyResult<Vec<(usize, f32, Bound<'py, PyDict>)>> {
        let ranked = enter(py, || {
            let found: Vec<Found> = found.into_iter().map(found_of).collect();
            Ok(self.question.rank(&found))
        })?;
        ranked.iter().map(|one| Ok((one.index, one.score, tell_signals(py, &one.signals)?))).collect()
    }
}

fn found_of(parts: FoundParts) -> Found {
    let (bm25, bm25_window, cosine, cosine_window, author, valid_from, traits, traits_before) = parts;
    Found { bm25, bm25_window, cosine, cosine_window, author, valid_from, traits, traits_before }
}

/// Raises for names that are none.
#[pyfunction]
fn check_scope(py: Python<'_>, scope: ScopeParts) -> PyResult<()> {
    enter(py, || scope_of(scope).map(drop))
}

/// Checks drafts as `Engram.remember` does, and tells what is stored and found of each.
#[pyfunction]
#[pyo3(signature = (scope, drafts, vectors=None, *, now, dimension=None))]
fn prepare_memories(
    py: Python<'_>,
    scope: ScopeParts,
    drafts: Vec<DraftParts>,
    vectors: Option<&Bound<'_, PyAny>>,
    now: i64,
    dimension: Option<usize>,
) -> PyResult<Vec<PreparedParts>> {
    let drafts = drafts_of(drafts, vectors)?;
    let prepared = enter(py, || memory::prepare(&scope_of(scope)?, &drafts, now, dimension))?;
    Ok(prepared.into_iter().map(parts_of).collect())
}

fn parts_of(prepared: Prepared) -> PreparedParts {
    let Prepared { stored, words, traits, bytes } = prepared;
    (stored.valid_from, stored.valid_to, stored.recorded, words, traits, bytes)
}

/// Adds them to the module.
pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("FOREVER", FOREVER)?;
    module.add_class::<Question>()?;
    module.add_function(wrap_pyfunction!(check_scope, module)?)?;
    module.add_function(wrap_pyfunction!(prepare_memories, module)?)?;
    Ok(())
}
