//! Cosines of a query and the memories that a scope covers.

use super::fusion::WINDOW_UNIT;
use super::rows::{Row, Rows};
use super::vectors::Vectors;

/// Cosines with one query.
pub(super) struct Cosines<'a> {
    rows: &'a Rows,
    vectors: &'a Vectors,
    query: Vec<f32>,
    /// Of each leaf, whether the scope covers it.
    covered: &'a [bool],
    /// Of all rows, NaN for none; `None` where they are taken as they are needed.
    values: Option<Vec<f32>>,
}

impl<'a> Cosines<'a> {
    /// Taken as they are needed.
    pub(super) fn new(rows: &'a Rows, vectors: &'a Vectors, query: &[f32], covered: &'a [bool]) -> Self {
        Self { rows, vectors, query: vectors.query(query), covered, values: None }
    }

    /// All of them, at once.
    pub(super) fn all(mut self) -> Self {
        let rows = self.rows.len();
        let mut values = vec![f32::NAN; rows];
        let mut first = 0;
        while first < rows {
            let run = (first..rows).take_while(|row| self.counts(self.rows.row(*row as u32))).count();
            self.vectors.cosines(&self.query, first, &mut values[first..first + run]);
            first += run + 1;
        }
        self.values = Some(values);
        self
    }

    pub(super) const fn are_all(&self) -> bool {
        self.values.is_some()
    }

    /// The query's direction, padded.
    pub(super) fn query(&self) -> &[f32] {
        &self.query
    }

    fn counts(&self, row: &Row) -> bool {
        row.has_vector() && self.covered[row.leaf as usize]
    }

    /// That of a row, if it is covered and has a vector.
    pub(super) fn of(&self, row: u32) -> Option<f32> {
        if let Some(values) = &self.values {
            return values.get(row as usize).copied().filter(|cosine| !cosine.is_nan());
        }
        let mut cosine = [0.0];
        self.counts(self.rows.row(row)).then(|| {
            self.vectors.cosines(&self.query, row as usize, &mut cosine);
            cosine[0]
        })
    }

    /// That of the window's sum, for rows that have a vector themselves.
    pub(super) fn of_window(&self, row: u32) -> Option<f32> {
        self.of(row)?;
        let products = self.rows.window(row);
        let products = products.map(|(member, units)| units as f32 * self.of(member).unwrap_or(0.0));
        Some(products.sum::<f32>() / WINDOW_UNIT as f32 / self.vectors.window_length(row))
    }

    /// The nearest visible rows from `first` on.
    pub(super) fn nearest(&self, first: usize, count: usize, visible: impl Fn(u32) -> bool) -> Vec<u32> {
        let rows = (first as u32..self.rows.len() as u32).filter(|row| visible(*row));
        let mut near: Vec<(f32, u32)> = rows.filter_map(|row| Some((self.of_window(row)?, row))).collect();
        if near.len() > count {
            near.select_nth_unstable_by(count, |a, b| b.0.total_cmp(&a.0));
            near.truncate(count);
        }
        near.into_iter().map(|(_, row)| row).collect()
    }
}
