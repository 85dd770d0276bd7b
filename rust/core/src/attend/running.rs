//! The state that is carried from tile to tile, and how two of them join.

use crate::dtype::DType;
use crate::simd::exp;

/// Running softmax state of R query rows against one KV head.
///
/// A row that has seen no unmasked token has `max` at `-inf` and everything else at 0.
#[derive(Debug)]
pub struct Running<'a> {
    /// (R): largest score so far.
    pub max: &'a mut [f32],
    /// (R): sum of `e^(score - max)`.
    pub sum: &'a mut [f32],
    /// (R, Dv): sum of `e^(score - max) * value`.
    pub acc: &'a mut [f32],
}

impl<'a> Running<'a> {
    /// Floats that a state needs.
    pub const fn len_f32(rows: usize, dv: usize) -> usize {
        rows * (2 + dv)
    }

    /// A state in `buffer`, holding whatever the buffer holds: call [`Running::reset`], or
    /// continue from what an earlier one left there.
    ///
    /// # Panics
    /// When `buffer` is not [`Running::len_f32`] long.
    pub fn in_buffer(buffer: &'a mut [f32], rows: usize, dv: usize) -> Self {
        assert_eq!(buffer.len(), Self::len_f32(rows, dv), "buffer of a state of {rows} rows of {dv}");
        let (max, rest) = buffer.split_at_mut(rows);
        let (sum, acc) = rest.split_at_mut(rows);
        Self { max, sum, acc }
    }

    /// Forgets everything: no token seen.
    pub fn reset(&mut self) {
        self.max.fill(f32::NEG_INFINITY);
        self.sum.fill(0.0);
        self.acc.fill(0.0);
    }

    /// Adds what `from` has seen, as if its tokens had been folded in here.
    ///
    /// # Panics
    /// When the shapes differ.
    pub fn merge(&mut self, from: &Running<'_>) {
        assert!(
            self.max.len() == from.max.len() && self.acc.len() == from.acc.len(),
            "states of {} and {} rows cannot merge",
            self.max.len(),
            from.max.len()
        );
        let rows = self.max.len();
        if rows == 0 {
            return;
        }
        let dv = self.acc.len() / rows;
        for row in 0..rows {
            let max = if from.max[row] > self.max[row] { from.max[row] } else { self.max[row] };
            // Two rows that saw nothing stay as they are: -inf less -inf would be a NaN.
            let reference = if max == f32::NEG_INFINITY { 0.0 } else { max };
            let (ours, theirs) = (exp(self.max[row] - reference), exp(from.max[row] - reference));
            self.max[row] = max;
            self.sum[row] = self.sum[row] * ours + from.sum[row] * theirs;
            let others = &from.acc[row * dv..(row + 1) * dv];
            for (acc, other) in self.acc[row * dv..(row + 1) * dv].iter_mut().zip(others) {
                *acc = *acc * ours + other * theirs;
            }
        }
    }

    /// Writes the attention output, (R, Dv) of `dtype`, rounded to nearest, ties to even.
    /// A row that saw no unmasked token gives zeros, where a plain softmax would give NaN.
    ///
    /// # Panics
    /// When `out` does not have exactly that size.
    pub fn finish(&self, out: &mut [u8], dtype: DType) {
        assert_eq!(out.len(), self.acc.len() * dtype.size(), "bytes of {} outputs", self.acc.len());
        let rows = self.max.len();
        if rows == 0 {
            return;
        }
        let dv = self.acc.len() / rows;
        for row in 0..rows {
            let sum = self.sum[row];
            for index in row * dv..(row + 1) * dv {
                let value = if sum == 0.0 { 0.0 } else { self.acc[index] / sum };
                dtype.write(out, index, value);
            }
        }
    }
}

/// How much attention one tile received, per row: `sum * e^reference`, un-normalised.
///
/// The reference is the running maximum at the time, so masses of tiles compare after
/// scaling by `e^(reference - final maximum)`, and divided by the final sum they are shares.
#[derive(Debug)]
pub struct Mass<'a> {
    /// (R): the exponent that `sum` is relative to; `-inf` where all was masked.
    pub reference: &'a mut [f32],
    /// (R): sum of `e^(score - reference)` over the tile.
    pub sum: &'a mut [f32],
}

impl Mass<'_> {
    /// Adds a chunk's `sum` at the new `reference`, the older part being scaled by `shrink`.
    #[inline]
    pub(super) fn add(&mut self, row: usize, reference: f32, shrink: f32, sum: f32) {
        if let (Some(at), Some(total)) = (self.reference.get_mut(row), self.sum.get_mut(row)) {
            *at = reference;
            *total = *total * shrink + sum;
        }
    }
}
