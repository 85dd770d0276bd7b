//! The vectors of a user's memories: read when they are first asked for, and the graph that
//! finds near ones among very many.

use super::derived::{DIRECTIONS, GRAPH};
use super::graph::Graph;
use super::user::User;
use super::vectors::Vectors;
use crate::error::Result;
use crate::format::{VectorsHead, VectorsKind};

/// Rows that one step of building a graph adds, while which other calls wait.
const STEP_ROWS: usize = 256;

/// How far the index of a user's vectors is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Memories that the graph covers.
    pub done: u64,
    /// Memories that there are; `done` where no graph is needed.
    pub total: u64,
}

impl User {
    /// Reads the rows' vectors, from their file as far as it goes and then from the log.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn load_vectors(&mut self, dimension: usize) -> Result<()> {
        if self.vectors.is_some() {
            return Ok(());
        }
        let mut vectors = self.saved_directions(dimension)?.unwrap_or_else(|| Vectors::new(dimension));
        self.saved_vectors = vectors.len();
        for row in vectors.len()..self.rows.len() {
            let row = self.rows.row(row as u32);
            let stored = if row.has_vector() { self.record(row)? } else { None };
            let vector = stored.as_ref().map_or(&[][..], |memory| &memory.vector);
            vectors.push(&self.rows, if vector.len() == dimension { vector } else { &[] });
        }
        self.graph = self.saved_graph()?;
        self.vectors = Some(vectors);
        Ok(())
    }

    fn saved_directions(&self, dimension: usize) -> Result<Option<Vectors>> {
        let Some(generation) = self.generation() else { return Ok(None) };
        let Some((head, data)) = self.home.read_vectors(DIRECTIONS, generation)? else { return Ok(None) };
        if head.kind != VectorsKind::Directions || !self.is_prefix(&head) {
            return Ok(None);
        }
        Ok(Vectors::decode(dimension, head.rows as usize, &data))
    }

    fn saved_graph(&self) -> Result<Option<Graph>> {
        let Some(generation) = self.generation() else { return Ok(None) };
        let Some((head, data)) = self.home.read_vectors(GRAPH, generation)? else { return Ok(None) };
        if !self.is_prefix(&head) {
            return Ok(None);
        }
        // What the library refuses although its checksum holds is of another build of it.
        Ok(Graph::decode(&head, &data).ok().flatten())
    }

    /// Whether the first rows are those that the file has: a record that was damaged since
    /// would shift all behind it.
    fn is_prefix(&self, head: &VectorsHead) -> bool {
        let last = (head.rows as usize).checked_sub(1).and_then(|row| self.rows.get(row as u32));
        last.is_some_and(|row| row.id == head.last_id)
    }

    /// Adds some rows to the graph, where there are enough for one; how far it is. Saved when
    /// it has all.
    ///
    /// # Errors
    /// `Index`, `Io`.
    pub(super) fn optimize(&mut self) -> Result<Progress> {
        let total = self.rows.len() as u64;
        let all = Progress { done: total, total };
        let Some(dimension) = self.home.dimension.filter(|_| self.rows.len() > self.home.exact_rows_max)
        else {
            return Ok(all);
        };
        self.load_vectors(dimension)?;
        let (Some(vectors), graph) = (&self.vectors, &mut self.graph) else { return Ok(all) };
        let graph = match graph {
            Some(graph) => graph,
            None => graph.insert(Graph::new(dimension)?),
        };
        let before = graph.rows();
        if before < self.rows.len() {
            graph.extend(&self.rows, vectors, STEP_ROWS)?;
        }
        let done = graph.rows();
        self.unsaved_graph |= done > before;
        if done == self.rows.len() && self.unsaved_graph {
            self.save_graph()?;
        }
        Ok(Progress { done: done as u64, total })
    }

    fn save_graph(&mut self) -> Result<()> {
        self.save_directions()?;
        let (Some(generation), Some(graph)) = (self.generation(), &self.graph) else { return Ok(()) };
        let last = self.rows.row(graph.rows() as u32 - 1).id;
        let (head, data) = graph.encode(generation, last)?;
        self.home.write_vectors(GRAPH, &head, &data)?;
        self.unsaved_graph = false;
        Ok(())
    }

    /// Writes the vectors down where a reader would otherwise read a good part of the log.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn save_directions_if_due(&mut self) -> Result<()> {
        let unsaved = self.vectors.as_ref().map_or(0, |vectors| vectors.len() - self.saved_vectors);
        if unsaved as u64 >= self.home.checkpoint_after.max(self.rows.len() as u64 / 4) {
            self.save_directions()?;
        }
        Ok(())
    }

    fn save_directions(&mut self) -> Result<()> {
        // What is derived from the log is not to be more durable than the log.
        self.flush()?;
        let (Some(generation), Some(vectors), Some(dimension)) =
            (self.generation(), &self.vectors, self.home.dimension)
        else {
            return Ok(());
        };
        let Some(last) = self.rows.all().last() else { return Ok(()) };
        let head = VectorsHead {
            generation,
            rows: vectors.len() as u64,
            last_id: last.id,
            dimension: dimension as u32,
            kind: VectorsKind::Directions,
        };
        let data = vectors.encode();
        self.home.write_vectors(DIRECTIONS, &head.encode(&[&data]), &data)?;
        self.saved_vectors = vectors.len();
        Ok(())
    }
}
