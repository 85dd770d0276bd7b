//! Directions of a user's memories in float16, in RAM, for the exact scan.

use super::scan::{PADDING, dots};
use crate::dtype::f32_to_f16;

/// One direction per row; zeros for rows without a vector.
#[derive(Debug)]
pub(super) struct Vectors {
    padded: usize,
    halves: Vec<u16>,
}

impl Vectors {
    pub(super) fn new(dimension: usize) -> Self {
        Self { padded: dimension.next_multiple_of(PADDING), halves: Vec::new() }
    }

    /// Rows that it has.
    pub(super) fn len(&self) -> usize {
        self.halves.len() / self.padded
    }

    /// Adds the next row's vector, or nothing that a cosine could be taken with.
    pub(super) fn push(&mut self, vector: &[f32]) {
        let end = self.halves.len() + self.padded;
        self.halves.extend(direction(vector).into_iter().map(f32_to_f16));
        self.halves.resize(end, 0);
    }

    /// The direction of a query, padded.
    pub(super) fn query(&self, vector: &[f32]) -> Vec<f32> {
        let mut query = direction(vector);
        query.resize(self.padded, 0.0);
        query
    }

    /// Cosines of the rows from `first` on with a query of [`Vectors::query`].
    pub(super) fn cosines(&self, query: &[f32], first: usize, out: &mut [f32]) {
        let halves = &self.halves[first * self.padded..(first + out.len()) * self.padded];
        dots(query, halves, out);
    }
}

/// A vector scaled to length 1. The sum of squares is taken in float64: elements may be tiny.
pub(super) fn direction(vector: &[f32]) -> Vec<f32> {
    let norm = vector.iter().map(|value| f64::from(*value) * f64::from(*value)).sum::<f64>().sqrt();
    let scale = if norm > 0.0 { 1.0 / norm } else { 0.0 };
    vector.iter().map(|value| (f64::from(*value) * scale) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosines_of_any_length() {
        let mut vectors = Vectors::new(3);
        for vector in [&[3.0, 0.0, 4.0][..], &[], &[0.0, -2e-10, 0.0]] {
            vectors.push(vector);
        }
        assert_eq!(vectors.len(), 3);
        let mut cosines = [0.0; 3];
        vectors.cosines(&vectors.query(&[0.0, 7.0, 7.0]), 0, &mut cosines);
        let expected = [0.8 / 2_f32.sqrt(), 0.0, -1.0 / 2_f32.sqrt()];
        for (cosine, expected) in cosines.iter().zip(expected) {
            assert!((cosine - expected).abs() < 1e-3, "{cosines:?}");
        }
    }
}
