//! The nearest-neighbour graph of large scopes, over `usearch`.
//!
//! It only proposes: what it finds is rated by the exact vectors. Products are taken with this
//! engine's instructions: the library leaves its own for float16 to another one that takes
//! minutes to compile. Its file has no checksum, and a damaged one ends the process, so its bytes
//! travel in a file of ours. One call at a time: the user's lock sees to it.

#![expect(unsafe_code, reason = "the library gives pointers to the vectors that are to be compared")]

use std::sync::OnceLock;

use usearch::{Distance, Index, IndexOptions, MetricKind, ScalarKind, f16};

use super::scan::{Half, PADDING, product_at};
use super::vectors::{Vectors, direction};
use crate::dtype::f32_to_f16;
use crate::error::{Error, Result};
use crate::format::{VectorsHead, VectorsKind};
use crate::simd::SimdLevel;

/// Neighbours of a vector, and how many are looked at to find them and to search: 0.98 of the
/// exact ten and more, see docs/memory.md.
const CONNECTIVITY: usize = 16;
const EXPANSION_ADD: usize = 128;
const EXPANSION_SEARCH: usize = 192;

/// A graph over the windows of the first rows.
pub(super) struct Graph {
    index: Index,
    dimension: usize,
    rows: usize,
}

impl Graph {
    /// A graph of nothing.
    ///
    /// # Errors
    /// What the library says.
    pub(super) fn new(dimension: usize) -> Result<Self> {
        let mut index = empty(dimension)?;
        index.change_metric::<f16>(distance(dimension));
        Ok(Self { index, dimension, rows: 0 })
    }

    /// Rows that it covers, from the first on, also those without a vector.
    pub(super) const fn rows(&self) -> usize {
        self.rows
    }

    /// Adds the next `count` rows.
    ///
    /// # Errors
    /// What the library says; the rows that were added stay.
    pub(super) fn extend(&mut self, rows: &super::rows::Rows, vectors: &Vectors, count: usize) -> Result<()> {
        let end = (self.rows + count).min(rows.len());
        if end > self.index.capacity() {
            // In large steps, since the library moves everything.
            let capacity = end.max(self.index.capacity() * 3 / 2);
            self.index.reserve_capacity_and_threads(capacity, 1).map_err(|error| failed(&error))?;
        }
        for row in self.rows..end {
            if rows.row(row as u32).has_vector() {
                let window = halves(&direction(&vectors.window(rows, row as u32)));
                self.index.add(row as u64, f16::from_i16s(&window)).map_err(|error| failed(&error))?;
            }
            self.rows = row + 1;
        }
        Ok(())
    }

    /// About the `count` nearest rows to a query of [`Vectors::query`] that `visible` lets through.
    ///
    /// # Errors
    /// What the library says.
    pub(super) fn nearest(
        &self,
        query: &[f32],
        count: usize,
        visible: impl Fn(u32) -> bool,
    ) -> Result<Vec<u32>> {
        let query = halves(query);
        let found = self.index.filtered_search(f16::from_i16s(&query), count, |key| visible(key as u32));
        Ok(found.map_err(|error| failed(&error))?.keys.into_iter().map(|key| key as u32).collect())
    }

    /// The head and the data of its file.
    ///
    /// # Errors
    /// What the library says.
    pub(super) fn encode(&self, generation: u64, last_id: u64) -> Result<(Vec<u8>, Vec<u8>)> {
        let mut data = vec![0; self.index.serialized_length()];
        self.index.save_to_buffer(&mut data).map_err(|error| failed(&error))?;
        let head = VectorsHead {
            generation,
            rows: self.rows as u64,
            last_id,
            dimension: self.dimension as u32,
            kind: VectorsKind::Graph { library: library() },
        };
        Ok((head.encode(&[&data]), data))
    }

    /// The graph of a file whose checksum holds; `None` for another version's.
    ///
    /// # Errors
    /// What the library says.
    pub(super) fn decode(head: &VectorsHead, data: &[u8]) -> Result<Option<Self>> {
        if head.kind != (VectorsKind::Graph { library: library() }) {
            return Ok(None);
        }
        let dimension = head.dimension as usize;
        let mut index = empty(dimension)?;
        index.load_from_buffer(data).map_err(|error| failed(&error))?;
        // A file says of what dimension and type its vectors are, and the metric relies on it.
        if index.dimensions() != dimension.next_multiple_of(PADDING) || index.scalar_kind() != ScalarKind::F16
        {
            return Ok(None);
        }
        index.reserve_capacity_and_threads(index.size(), 1).map_err(|error| failed(&error))?;
        index.change_expansion_search(EXPANSION_SEARCH);
        index.change_expansion_add(EXPANSION_ADD);
        // Reading took the metric of the file's own kind.
        index.change_metric::<f16>(distance(dimension));
        Ok(Some(Self { index, dimension, rows: head.rows as usize }))
    }
}

/// An index of nothing, with the library's own metric still.
fn empty(dimension: usize) -> Result<Index> {
    let options = IndexOptions {
        dimensions: dimension.next_multiple_of(PADDING),
        metric: MetricKind::IP,
        quantization: ScalarKind::F16,
        connectivity: CONNECTIVITY,
        expansion_add: EXPANSION_ADD,
        expansion_search: EXPANSION_SEARCH,
        multi: false,
    };
    Index::new(&options).map_err(|error| failed(&error))
}

/// How far two directions are from each other: 1 less their cosine.
fn distance(dimension: usize) -> Box<dyn Fn(*const f16, *const f16) -> Distance + Send + Sync> {
    let (level, padded) = (SimdLevel::detect(), dimension.next_multiple_of(PADDING));
    Box::new(move |a, b| {
        // SAFETY: an index that `empty` made, or whose file was of this dimension and type, calls
        // this with vectors of its own and with what `halves` made, all of so many elements of two
        // bytes; bytes may lie anywhere.
        let (a, b): (&[Half], &[Half]) = unsafe {
            (std::slice::from_raw_parts(a.cast(), padded), std::slice::from_raw_parts(b.cast(), padded))
        };
        1.0 - product_at(level, a, b)
    })
}

/// Float16 as the library takes them: by their bits.
fn halves(padded: &[f32]) -> Vec<i16> {
    padded.iter().map(|value| f32_to_f16(*value).cast_signed()).collect()
}

fn failed(error: &impl std::fmt::Display) -> Error {
    Error::Index(error.to_string())
}

/// The library's version as one number of three bytes: its format may change with it.
fn library() -> u32 {
    static VERSION: OnceLock<u32> = OnceLock::new();
    *VERSION.get_or_init(|| {
        let parts = usearch::version().split('.').map(|part| part.parse::<u32>().unwrap_or(0));
        parts.take(3).fold(0, |number, part| number << 8 | (part & 0xff))
    })
}
