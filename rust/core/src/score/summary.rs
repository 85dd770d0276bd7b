//! The bytes that stand for one block of one KV head.
//!
//! ```text
//! mean key     D nibbles: byte j holds element j (low) and j + D/2 (high), each plus 8; D padded to 32
//! residuals    what the slow elements differ by from the mean: see [`super::residuals`]
//! scales       float16: mean key, residuals
//! ```
//!
//! What is not finite makes its scale a NaN, and every estimate that needs it with it.

use super::BLOCK_TOKENS;
use super::residuals::{Parts, QUAD, Residuals, turn};
use crate::dtype::{f16_to_f32, f32_to_f16};
use crate::rotary::Rotary;

/// Elements of a mean are padded to this, so that every vector length divides half of it.
const MEAN_PAD: usize = 32;
/// Steps of the power iteration; the gap between eigenvalues decides how close it gets, and
/// a direction a little off costs a little accuracy, nothing else.
const POWER_STEPS: usize = 8;
/// Keys of few elements get residuals over all of them.
const FEW_ELEMENTS: usize = 24;
/// Scales of a summary.
const SCALES: usize = 2;

/// The elements of a key whose residuals are kept: the three eighths that turn slowest, ascending.
/// The others tell less for their bytes (docs/selection.md).
pub fn slow_elements(rotary: &Rotary, key_dim: usize) -> Vec<usize> {
    let pairs = rotary.inv_freq.len();
    let frequency = |element: usize| {
        let pair = if rotary.interleaved { element / 2 } else { element % pairs };
        if element >= 2 * pairs { 0.0 } else { rotary.inv_freq[pair].abs() }
    };
    let mut elements: Vec<usize> = (0..key_dim).collect();
    elements.sort_by(|a, b| frequency(*a).total_cmp(&frequency(*b)));
    elements.truncate((key_dim * 3 / 8).max(FEW_ELEMENTS));
    elements.sort_unstable();
    elements
}

/// How blocks of one geometry are summarised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    key_dim: usize,
    slow: Vec<usize>,
    residuals: Residuals,
}

/// Where the parts are, in bytes from the start of a summary.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    pub(super) residuals: usize,
    pub(super) parts: Parts,
    pub(super) scales: usize,
    pub(super) len: usize,
}

/// Query rows as [`super::estimate`] takes them.
#[derive(Debug, Default)]
pub struct Queries {
    /// (R, D padded).
    pub(super) whole: Vec<f32>,
    /// (R, L / 4): four signed bytes of the turned slow elements each, in the order of the quads.
    pub(super) quads: Vec<i32>,
    /// (R).
    pub(super) frames: Vec<Frame>,
    /// (L): the turned slow elements of the row at hand.
    slow: Vec<f32>,
}

/// What the sums of a query row's products with codes stand for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    /// One unit of the bytes.
    pub(super) step: f32,
    /// The sum with the middle of the codes, in units.
    pub(super) middle: f32,
    /// The most that a sum can be about it, in units.
    pub(super) reach: f32,
}

impl Queries {
    /// R.
    pub fn rows(&self) -> usize {
        self.frames.len()
    }
}

impl Summary {
    /// For keys of `key_dim` elements, of which the `slow` ones get residuals.
    ///
    /// # Panics
    /// When an element is not one of a key.
    pub fn new(key_dim: usize, slow: Vec<usize>) -> Self {
        assert!(slow.iter().all(|element| *element < key_dim), "elements {slow:?} of {key_dim}");
        let residuals = Residuals::new(slow.len());
        Self { key_dim, slow, residuals }
    }

    /// D.
    pub fn key_dim(&self) -> usize {
        self.key_dim
    }

    /// D with its padding.
    pub(super) fn key_padded(&self) -> usize {
        self.key_dim.next_multiple_of(MEAN_PAD)
    }

    /// Quads of a query row.
    pub(super) fn quads(&self) -> usize {
        self.residuals.len() / QUAD
    }

    pub(super) fn places(&self) -> Places {
        let residuals = self.key_padded() / 2;
        let scales = residuals + self.residuals.len_bytes();
        Places { residuals, parts: self.residuals.parts(), scales, len: scales + 2 * SCALES }
    }

    /// Bytes of one summary.
    pub fn len_bytes(&self) -> usize {
        self.places().len
    }

    /// Brings query rows, (R, D), into the form that [`super::estimate`] takes.
    ///
    /// # Panics
    /// When `queries` is not whole rows.
    pub fn arrange(&self, queries: &[f32], into: &mut Queries) {
        let dim = self.key_dim.max(1);
        assert!(queries.len().is_multiple_of(dim), "{} elements of rows of {dim}", queries.len());
        into.whole.clear();
        into.quads.clear();
        into.frames.clear();
        for query in queries.chunks_exact(dim) {
            into.whole.extend_from_slice(query);
            into.whole.resize(into.whole.len().next_multiple_of(self.key_padded()), 0.0);
            into.slow.clear();
            into.slow.extend(self.slow.iter().map(|element| query[*element]));
            into.slow.resize(self.residuals.len(), 0.0);
            turn(&mut into.slow);
            into.frames.push(self.arrange_slow(&into.slow, &mut into.quads));
        }
    }

    fn arrange_slow(&self, slow: &[f32], quads: &mut Vec<i32>) -> Frame {
        // Sums of products with codes of up to 3 are of 16 bits, in two halves.
        let most = (f32::from(i16::MAX) / (2.0 * 3.0 * self.quads() as f32)).floor().min(127.0);
        let largest = slow.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
        let is_finite = slow.iter().all(|x| x.is_finite());
        let step = if is_finite { largest / most } else { f32::NAN };
        let inverse = if step > 0.0 { 1.0 / step } else { 0.0 };
        let byte = |element: usize| (slow[element] * inverse).round() as i8;
        let (mut sum, mut absolute) = (0.0, 0.0);
        for elements in self.residuals.parts().quads() {
            let bytes = elements.map(byte);
            quads.push(i32::from_le_bytes(bytes.map(i8::cast_unsigned)));
            sum += bytes.iter().map(|byte| f32::from(*byte)).sum::<f32>();
            absolute += bytes.iter().map(|byte| f32::from(*byte).abs()).sum::<f32>();
        }
        Frame { step, middle: 1.5 * sum, reach: 1.5 * absolute }
    }

    /// Summarises a block of (16, D) keys.
    ///
    /// # Panics
    /// When a slice does not have its size.
    pub fn encode(&self, keys: &[f32], out: &mut [u8]) {
        let places = self.places();
        assert_eq!(keys.len(), BLOCK_TOKENS * self.key_dim, "keys of a block");
        assert_eq!(out.len(), places.len, "bytes of a summary");
        let mut scales = [0.0_f32; SCALES];
        let mut mean = mean_row(keys, self.key_dim);
        let steps = quantise::<7>(&mean, &mut scales[0]);
        pack_row(&steps, &mut out[..places.residuals]);
        mean.iter_mut().zip(&steps).for_each(|(mean, step)| *mean = *step as f32 * scales[0]);
        let mut rows = vec![0.0; BLOCK_TOKENS * self.residuals.len()];
        for (row, key) in
            rows.chunks_exact_mut(self.residuals.len()).zip(keys.chunks_exact(self.key_dim.max(1)))
        {
            row.iter_mut().zip(&self.slow).for_each(|(x, element)| *x = key[*element] - mean[*element]);
            turn(row);
        }
        let codes = &mut out[places.residuals..places.scales];
        let is_finite = rows.iter().all(|x| x.is_finite());
        scales[1] = self.residuals.encode(&rows, |scale| f16_to_f32(f32_to_f16(scale)), codes);
        if !is_finite || !scales[1].is_finite() {
            scales[1] = f32::NAN;
        }
        for (bytes, scale) in out[places.scales..].chunks_exact_mut(2).zip(scales) {
            bytes.copy_from_slice(&f32_to_f16(scale).to_le_bytes());
        }
    }

    /// The mean key, (D), of a summary.
    pub(super) fn decode_mean(&self, bytes: &[u8], into: &mut [f32]) {
        let scale = Self::scales(&self.places(), bytes)[0];
        let half = self.key_padded() / 2;
        for (index, into) in into.iter_mut().enumerate() {
            let byte = bytes[index % half] >> (index / half * 4);
            *into = (f32::from(byte & 15) - 8.0) * scale;
        }
    }

    /// The root mean square, (D), of what the keys of a summary differ by along their main direction.
    pub(super) fn decode_spread(&self, bytes: &[u8], into: &mut [f32]) {
        let (rows, len) = (self.decode_residuals(bytes), self.residuals.len());
        let weights = leading_token_direction(&rows, len);
        let mut spread = vec![0.0_f32; len];
        for (row, weight) in rows.chunks_exact(len).zip(weights) {
            spread.iter_mut().zip(row).for_each(|(spread, x)| *spread += weight * x);
        }
        turn(&mut spread);
        into.fill(0.0);
        for (x, element) in spread.iter().zip(&self.slow) {
            into[*element] = x / (BLOCK_TOKENS as f32).sqrt();
        }
    }

    /// What the slow elements of a summary's keys differ by from its mean, turned: (16, L padded).
    pub(super) fn decode_residuals(&self, bytes: &[u8]) -> Vec<f32> {
        let places = self.places();
        let mut rows = vec![0.0; BLOCK_TOKENS * self.residuals.len()];
        let scale = Self::scales(&places, bytes)[1];
        self.residuals.decode(&bytes[places.residuals..places.scales], scale, &mut rows);
        rows
    }

    /// The scales of one summary: mean key, residuals.
    #[inline]
    pub(super) fn scales(places: &Places, summary: &[u8]) -> [f32; SCALES] {
        let mut scales = [0.0; SCALES];
        for (scale, bytes) in scales.iter_mut().zip(summary[places.scales..].chunks_exact(2)) {
            *scale = f16_to_f32(u16::from_le_bytes([bytes[0], bytes[1]]));
        }
        scales
    }
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
