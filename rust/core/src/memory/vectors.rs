//! Directions of a user's memories in float16, in RAM, for the exact scan.

use super::fusion::{WINDOW, WINDOW_UNIT};
use super::rows::{NONE, Rows};
use super::scan::{PADDING, dots};
use crate::dtype::{f16_to_f32, f32_to_f16};

/// One direction per row; zeros for rows without a vector.
#[derive(Debug)]
pub(super) struct Vectors {
    padded: usize,
    halves: Vec<u16>,
    /// Per row, the square of its window's sum of directions: what makes a cosine of the sum.
    squares: Vec<f32>,
}

impl Vectors {
    pub(super) fn new(dimension: usize) -> Self {
        Self { padded: dimension.next_multiple_of(PADDING), halves: Vec::new(), squares: Vec::new() }
    }

    /// Rows that it has.
    pub(super) fn len(&self) -> usize {
        self.squares.len()
    }

    /// Adds the next row's vector, or nothing that a cosine could be taken with. `rows` has the
    /// row already.
    pub(super) fn push(&mut self, rows: &Rows, vector: &[f32]) {
        let row = self.len();
        let end = self.halves.len() + self.padded;
        self.halves.extend(direction(vector).into_iter().map(f32_to_f16));
        self.halves.resize(end, 0);
        // Who is within twice the window's reach: the windows that the row joins end there.
        let mut chain = vec![row];
        while chain.len() < 2 * WINDOW.len() - 1
            && let previous = rows.turn(chain[chain.len() - 1] as u32).previous
            && previous != NONE
        {
            chain.push(previous as usize);
        }
        let products: Vec<f32> = chain.iter().map(|other| self.product(row, *other)).collect();
        let mut own = products[0];
        for (distance, member) in chain.iter().enumerate().take(WINDOW.len()).skip(1) {
            own += weight(distance) * 2.0 * products[distance]
                + weight(distance).powi(2) * self.product(*member, *member);
            for (nearer, other) in chain.iter().enumerate().take(distance).skip(1) {
                own += 2.0 * weight(distance) * weight(nearer) * self.product(*member, *other);
            }
            let joined: f32 = (1..chain.len()).map(|at| weight(at.abs_diff(distance)) * products[at]).sum();
            self.squares[*member] += weight(distance).powi(2) * products[0] + 2.0 * weight(distance) * joined;
        }
        self.squares.push(own);
    }

    fn product(&self, a: usize, b: usize) -> f32 {
        let row = |at: usize| &self.halves[at * self.padded..(at + 1) * self.padded];
        let a: Vec<f32> = row(a).iter().map(|half| f16_to_f32(*half)).collect();
        let mut product = [0.0];
        dots(&a, row(b), &mut product);
        product[0]
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

    /// The sum of a window's directions, padded.
    pub(super) fn window(&self, rows: &Rows, row: u32) -> Vec<f32> {
        let mut sum = vec![0.0; self.padded];
        for (member, units) in rows.window(row) {
            let weight = units as f32 / WINDOW_UNIT as f32;
            let start = member as usize * self.padded;
            for (sum, half) in sum.iter_mut().zip(&self.halves[start..start + self.padded]) {
                *sum += weight * f16_to_f32(*half);
            }
        }
        sum
    }

    /// The data of its file.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut data = Vec::with_capacity(self.squares.len() * 4 + self.halves.len() * 2);
        self.squares.iter().for_each(|square| data.extend_from_slice(&square.to_le_bytes()));
        self.halves.iter().for_each(|half| data.extend_from_slice(&half.to_le_bytes()));
        data
    }

    /// What [`Vectors::encode`] gave for so many rows; `None` for anything else.
    pub(super) fn decode(dimension: usize, rows: usize, data: &[u8]) -> Option<Self> {
        let padded = dimension.next_multiple_of(PADDING);
        let (squares, halves) = data.split_at_checked(rows.checked_mul(4)?)?;
        if halves.len() != rows.checked_mul(padded)?.checked_mul(2)? {
            return None;
        }
        let squares = squares.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let halves = halves.as_chunks::<2>().0.iter().map(|bytes| u16::from_le_bytes(*bytes)).collect();
        Some(Self { padded, halves, squares })
    }

    /// The length of the sum of a window's directions.
    pub(super) fn window_length(&self, row: u32) -> f32 {
        self.squares[row as usize].max(f32::MIN_POSITIVE).sqrt()
    }
}

/// What a member counts in a window, relative to the middle; 0 beyond its reach.
fn weight(distance: usize) -> f32 {
    WINDOW.get(distance).map_or(0.0, |units| *units as f32 / WINDOW_UNIT as f32)
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
    use crate::memory::log::Place;
    use crate::memory::memory::{Draft, FOREVER};
    use crate::memory::scope::Names;

    fn rows(count: u64, session: Option<&str>) -> Rows {
        let names = Names { session: session.map(Into::into), ..Names::default() };
        let stored = Draft::new("x").stored(&names, FOREVER - 1, None).unwrap();
        let mut rows = Rows::default();
        for id in 1..=count {
            rows.push(id, &stored, Place { offset: 0, bytes: 0 }, 1);
        }
        rows
    }

    #[test]
    fn cosines_of_any_length() {
        let (rows, mut vectors) = (rows(3, None), Vectors::new(3));
        for vector in [&[3.0, 0.0, 4.0][..], &[], &[0.0, -2e-10, 0.0]] {
            vectors.push(&rows, vector);
        }
        let mut cosines = [0.0; 3];
        vectors.cosines(&vectors.query(&[0.0, 7.0, 7.0]), 0, &mut cosines);
        let expected = [0.8 / 2_f32.sqrt(), 0.0, -1.0 / 2_f32.sqrt()];
        for (cosine, expected) in cosines.iter().zip(expected) {
            assert!((cosine - expected).abs() < 1e-3, "{cosines:?}");
        }
    }

    #[test]
    fn lengths_of_windows_are_those_of_their_sums() {
        let mut random = crate::testing::Seeded::new(3);
        let (rows, mut vectors) = (rows(12, Some("s")), Vectors::new(5));
        let given: Vec<Vec<f32>> =
            (0..12).map(|_| (0..5).map(|_| random.below(100) as f32 - 50.0).collect()).collect();
        for vector in &given {
            vectors.push(&rows, vector);
        }
        for row in 0..12_u32 {
            let mut sum = [0.0; 5];
            for (member, units) in rows.window(row) {
                for (sum, value) in sum.iter_mut().zip(direction(&given[member as usize])) {
                    *sum += value * units as f32 / 8.0;
                }
            }
            let expected = sum.iter().map(|value| value * value).sum::<f32>().sqrt();
            let found = vectors.window_length(row);
            assert!((found - expected).abs() < 5e-3, "row {row}: {found}, not {expected}");
        }
    }
}
