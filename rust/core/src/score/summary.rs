//! The bytes that stand for one block of one KV head.
//!
//! ```text
//! mean key       D as signed bytes, padded to 16
//! basis          RANK x L nibbles: byte j holds element j (low) and j + L/2 (high), each plus 8
//! coefficients   RANK x 16 nibbles: byte t of a pair of ranks holds token t of both, each plus 8
//! scales         float16: mean key, RANK x (basis times coefficient)
//! ```
//!
//! A key of the block is about `mean + sum_r c[t][r] * basis[r]`. What is not finite makes its
//! scale a NaN, and every estimate that needs it with it.

use super::{BLOCK_TOKENS, RANK};
use crate::dtype::{f16_to_f32, f32_to_f16};
use crate::rotary::Rotary;

/// Elements of one vector row are padded to this, so that every vector length divides it.
const BYTES_PAD: usize = 16;
/// Steps of the power iteration; the gap between eigenvalues decides how close it gets, and
/// a basis a little off costs a little accuracy, nothing else.
const POWER_STEPS: usize = 8;
/// Keys of few elements get the low-rank part over all of them.
const FEW_ELEMENTS: usize = 32;

/// The elements of a key that get the low-rank part: the half that turns slowest, ascending.
/// The fast half differs between the tokens of a block in too many directions for a few of
/// them to help (docs/selection.md).
pub fn slow_elements(rotary: &Rotary, key_dim: usize) -> Vec<usize> {
    let pairs = rotary.inv_freq.len();
    let frequency = |element: usize| {
        let pair = if rotary.interleaved { element / 2 } else { element % pairs };
        if element >= 2 * pairs { 0.0 } else { rotary.inv_freq[pair].abs() }
    };
    let mut elements: Vec<usize> = (0..key_dim).collect();
    elements.sort_by(|a, b| frequency(*a).total_cmp(&frequency(*b)));
    elements.truncate((key_dim / 2).max(FEW_ELEMENTS));
    elements.sort_unstable();
    elements
}

/// How blocks of one geometry are summarised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    key_dim: usize,
    slow: Vec<usize>,
}

/// Where the parts are, in bytes from the start of a summary.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    pub(super) basis: usize,
    pub(super) coefficients: usize,
    pub(super) scales: usize,
    pub(super) len: usize,
}

impl Summary {
    /// For keys of `key_dim` elements, of which the `slow` ones get the low-rank part.
    ///
    /// # Panics
    /// When an element is not one of a key.
    pub fn new(key_dim: usize, slow: Vec<usize>) -> Self {
        assert!(slow.iter().all(|element| *element < key_dim), "elements {slow:?} of {key_dim}");
        Self { key_dim, slow }
    }

    /// D.
    pub fn key_dim(&self) -> usize {
        self.key_dim
    }

    /// D with its padding.
    pub fn key_padded(&self) -> usize {
        self.key_dim.next_multiple_of(BYTES_PAD)
    }

    /// L with its padding.
    pub fn slow_padded(&self) -> usize {
        self.slow.len().next_multiple_of(2 * BYTES_PAD)
    }

    pub(super) fn places(&self) -> Places {
        let basis = self.key_padded();
        let coefficients = basis + RANK * self.slow_padded() / 2;
        let scales = coefficients + RANK.div_ceil(2) * BLOCK_TOKENS;
        Places { basis, coefficients, scales, len: scales + 2 * (RANK + 1) }
    }

    /// Bytes of one summary.
    pub fn len_bytes(&self) -> usize {
        self.places().len
    }

    /// Floats of one query row as [`super::estimate`] wants it.
    pub fn query_floats(&self) -> usize {
        self.key_padded() + self.slow_padded()
    }

    /// Writes one query row, (D), as (D padded, then L padded): its elements, then the slow ones again.
    ///
    /// # Panics
    /// When `into` is not [`Summary::query_floats`] long, or `query` shorter than D.
    pub fn arrange_query(&self, query: &[f32], into: &mut [f32]) {
        let (whole, slow) = into.split_at_mut(self.key_padded());
        whole[..self.key_dim].copy_from_slice(&query[..self.key_dim]);
        whole[self.key_dim..].fill(0.0);
        for (into, element) in slow.iter_mut().zip(&self.slow) {
            *into = query[*element];
        }
        slow[self.slow.len()..].fill(0.0);
    }

    /// Summarises a block of (16, D) keys.
    ///
    /// # Panics
    /// When a slice does not have its size.
    pub fn encode(&self, keys: &[f32], out: &mut [u8]) {
        let places = self.places();
        assert_eq!(keys.len(), BLOCK_TOKENS * self.key_dim, "keys of a block");
        assert_eq!(out.len(), places.len, "bytes of a summary");
        out.fill(0);
        let mut scales = [0.0_f32; RANK + 1];
        let mean = mean_row(keys, self.key_dim);
        let steps = quantise::<127>(&mean, &mut scales[0]);
        for (byte, step) in out.iter_mut().zip(&steps) {
            *byte = (*step as i8).cast_unsigned();
        }
        self.encode_low_rank(keys, &mean, &places, &mut scales[1..=RANK], out);
        for (bytes, scale) in out[places.scales..].chunks_exact_mut(2).zip(scales) {
            bytes.copy_from_slice(&f32_to_f16(scale).to_le_bytes());
        }
    }

    /// The mean key, (D), of a summary.
    pub(super) fn decode_mean(&self, bytes: &[u8], into: &mut [f32]) {
        let scale = Self::scales(&self.places(), bytes)[0];
        for (into, byte) in into.iter_mut().zip(bytes) {
            *into = f32::from(byte.cast_signed()) * scale;
        }
    }

    /// The root mean square, (D), of what the keys of a summary differ by along the first of its basis.
    pub(super) fn decode_spread(&self, bytes: &[u8], into: &mut [f32]) {
        let (places, half) = (self.places(), self.slow_padded() / 2);
        let coefficients = &bytes[places.coefficients..][..BLOCK_TOKENS];
        let squares: f32 = coefficients.iter().map(|byte| low_half(*byte).powi(2)).sum();
        let scale = Self::scales(&places, bytes)[1] * (squares / BLOCK_TOKENS as f32).sqrt();
        into.fill(0.0);
        for (index, element) in self.slow.iter().enumerate() {
            let byte = bytes[places.basis + index % half];
            let step = if index < half { low_half(byte) } else { low_half(byte >> 4) };
            into[*element] = step * scale;
        }
    }

    fn encode_low_rank(
        &self,
        keys: &[f32],
        mean: &[f32],
        places: &Places,
        scales: &mut [f32],
        out: &mut [u8],
    ) {
        let mut rest: Vec<f32> = Vec::with_capacity(BLOCK_TOKENS * self.slow.len());
        for row in keys.chunks_exact(self.key_dim) {
            rest.extend(self.slow.iter().map(|element| row[*element] - mean[*element]));
        }
        let half = self.slow_padded() / 2;
        out[places.coefficients..places.scales].fill(0x88);
        for (rank, into) in scales.iter_mut().enumerate() {
            let (basis, coefficients, scale) = leading_part(&mut rest, self.slow.len());
            *into = scale;
            let start = places.basis + rank * half;
            pack_row(&basis, &mut out[start..start + half]);
            let pair = places.coefficients + rank / 2 * BLOCK_TOKENS;
            for (byte, coefficient) in out[pair..pair + BLOCK_TOKENS].iter_mut().zip(coefficients) {
                let nibble = (coefficient + 8) as u8;
                *byte = if rank % 2 == 0 { *byte & 0xf0 | nibble } else { *byte & 0x0f | nibble << 4 };
            }
        }
    }

    /// The scales of one summary: mean key, each rank.
    #[inline]
    pub(super) fn scales(places: &Places, summary: &[u8]) -> [f32; RANK + 1] {
        let mut scales = [0.0; RANK + 1];
        for (scale, bytes) in scales.iter_mut().zip(summary[places.scales..].chunks_exact(2)) {
            *scale = f16_to_f32(u16::from_le_bytes([bytes[0], bytes[1]]));
        }
        scales
    }
}

fn low_half(byte: u8) -> f32 {
    f32::from(byte & 15) - 8.0
}

fn mean_row(rows: &[f32], dim: usize) -> Vec<f32> {
    let mut mean = vec![0.0_f32; dim];
    for row in rows.chunks_exact(dim.max(1)) {
        mean.iter_mut().zip(row).for_each(|(mean, element)| *mean += element);
    }
    for mean in &mut mean {
        *mean /= BLOCK_TOKENS as f32;
    }
    mean
}

/// Integers of at most `MAX` in magnitude, and the scale that takes them back; a NaN for
/// what is not finite or past float16.
fn quantise<const MAX: i32>(values: &[f32], scale: &mut f32) -> Vec<i32> {
    let largest = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    let is_finite = values.iter().all(|value| value.is_finite());
    // As it will be read, so that the steps fit it.
    let step = f16_to_f32(f32_to_f16(largest / MAX as f32));
    *scale = if is_finite && step.is_finite() { step } else { f32::NAN };
    let inverse = if step > 0.0 && scale.is_finite() { 1.0 / step } else { 0.0 };
    values.iter().map(|value| ((value * inverse).round() as i32).clamp(-MAX, MAX)).collect()
}

/// Puts element j of a row into the low half of byte j, and element j + half into the high one.
fn pack_row(row: &[i32], out: &mut [u8]) {
    let half = out.len();
    let nibble = |index: usize| (row.get(index).copied().unwrap_or(0) + 8) as u8;
    for (index, byte) in out.iter_mut().enumerate() {
        *byte = nibble(index) | nibble(index + half) << 4;
    }
}

/// Takes the leading rank-one part out of `rest`, (16, L): the quantised basis (L), the
/// quantised coefficients (16) and the product of their scales.
fn leading_part(rest: &mut [f32], dim: usize) -> (Vec<i32>, [i32; BLOCK_TOKENS], f32) {
    let left = leading_token_direction(rest, dim);
    let mut basis = vec![0.0_f32; dim];
    for (row, weight) in rest.chunks_exact(dim.max(1)).zip(left) {
        basis.iter_mut().zip(row).for_each(|(basis, element)| *basis += weight * element);
    }
    let mut basis_scale = 0.0;
    let steps = quantise::<7>(&basis, &mut basis_scale);
    // Coefficients are fitted to the basis as it will be read.
    let norm: f32 = steps.iter().map(|step| (step * step) as f32).sum();
    let along = |row: &[f32]| row.iter().zip(&steps).map(|(x, step)| x * *step as f32).sum::<f32>();
    let mut fitted = [0.0_f32; BLOCK_TOKENS];
    for (fitted, row) in fitted.iter_mut().zip(rest.chunks_exact(dim.max(1))) {
        *fitted = if norm > 0.0 { along(row) / norm } else { 0.0 };
    }
    let mut scale = 0.0;
    let coefficients: [i32; BLOCK_TOKENS] =
        quantise::<7>(&fitted, &mut scale).try_into().unwrap_or([0; BLOCK_TOKENS]);
    for (row, coefficient) in rest.chunks_exact_mut(dim.max(1)).zip(coefficients) {
        let weight = coefficient as f32 * scale;
        row.iter_mut().zip(&steps).for_each(|(x, step)| *x -= weight * *step as f32);
    }
    if basis_scale.is_nan() {
        scale = f32::NAN;
    }
    (steps, coefficients, scale)
}

/// The leading eigenvector of the tokens' Gram matrix, by power iteration.
fn leading_token_direction(rest: &[f32], dim: usize) -> [f32; BLOCK_TOKENS] {
    let mut gram = [[0.0_f32; BLOCK_TOKENS]; BLOCK_TOKENS];
    let row = |token: usize| &rest[token * dim..(token + 1) * dim];
    for (a, into) in gram.iter_mut().enumerate() {
        for (b, dot) in into.iter_mut().enumerate() {
            *dot = row(a).iter().zip(row(b)).map(|(x, y)| x * y).sum();
        }
    }
    // The row of the longest token: not orthogonal to the answer but by accident.
    let longest = (0..BLOCK_TOKENS).max_by(|a, b| gram[*a][*a].total_cmp(&gram[*b][*b])).unwrap_or(0);
    let mut vector = gram[longest];
    for _ in 0..POWER_STEPS {
        let norm = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
        if norm == 0.0 || !norm.is_finite() {
            break;
        }
        let unit = vector.map(|x| x / norm);
        for (x, row) in vector.iter_mut().zip(&gram) {
            *x = row.iter().zip(&unit).map(|(g, u)| g * u).sum();
        }
    }
    let norm = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    if norm > 0.0 { vector.map(|x| x / norm) } else { vector }
}
