//! What the keys of a block differ by from their mean, in two bits per element.
//!
//! ```text
//! words      L / 16 x 16 words of 4 bytes: a token's next 16 codes, bits 8 j + 2 k the code 4 k + j
//! halves     where L is no multiple of 16, 16 words of 2 bytes: bits 2 e the code e
//! scales     16 nibbles: byte t holds tokens t (low) and t + 8 (high), each less 1
//! ```
//!
//! A row is turned by normalised Hadamard matrices, so that no element carries most of it, and each turned
//! element becomes one of four levels, -1.5 to 1.5, of its row's scale. That keeps what sets one token apart
//! from its neighbours, which a few directions common to them do not (docs/selection.md).
//!
//! Source: Hadamard turns before quantisation, QuaRot (arXiv:2404.00456); the levels are Max's for a
//! normal distribution.

use super::BLOCK_TOKENS;

/// Rows are padded to this.
pub(super) const ROW_PAD: usize = 8;
/// Codes of one word.
const WORD: usize = 16;
/// Codes of a quad.
pub(super) const QUAD: usize = 4;
/// What is between two levels, over the root mean square of a row.
const STEP: f32 = 0.996;
/// Steps of the largest of the rows' scales.
pub(super) const SCALE_STEPS: f32 = 16.0;

/// Rows of L elements, L padded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Residuals {
    len: usize,
}

/// The parts of the codes of a block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts {
    /// Groups of 16 words of 4 bytes.
    pub(super) words: usize,
    /// Whether words of 2 bytes follow.
    pub(super) half: bool,
    /// Where the scales are, in bytes from the start of the codes.
    pub(super) scales: usize,
}

impl Residuals {
    pub(super) fn new(len: usize) -> Self {
        Self { len: len.max(1).next_multiple_of(ROW_PAD) }
    }

    /// L with its padding.
    pub(super) fn len(self) -> usize {
        self.len
    }

    pub(super) fn parts(self) -> Parts {
        let (words, half) = (self.len / WORD, !self.len.is_multiple_of(WORD));
        Parts { words, half, scales: BLOCK_TOKENS * (4 * words + if half { 2 } else { 0 }) }
    }

    /// Bytes of a block.
    pub(super) fn len_bytes(self) -> usize {
        self.parts().scales + BLOCK_TOKENS / 2
    }

    /// Encodes (16, L) turned rows; gives the scale of their scales, as it will be read.
    pub(super) fn encode(self, rows: &[f32], as_read: impl Fn(f32) -> f32, out: &mut [u8]) -> f32 {
        let (mut fitted, mut levels) = ([0.0_f32; BLOCK_TOKENS], vec![0_u8; rows.len()]);
        for ((row, levels), fitted) in
            rows.chunks_exact(self.len).zip(levels.chunks_exact_mut(self.len)).zip(&mut fitted)
        {
            *fitted = encode_row(row, levels);
        }
        let scale = as_read(fitted.iter().copied().fold(0.0, f32::max) / SCALE_STEPS);
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        out.fill(0);
        let parts = self.parts();
        for (token, (levels, fitted)) in levels.chunks_exact(self.len).zip(fitted).enumerate() {
            for (element, level) in levels.iter().enumerate() {
                let (byte, shift) = parts.place(token, element);
                out[byte] |= level << shift;
            }
            let nibble = ((fitted * inverse).round().clamp(1.0, SCALE_STEPS) - 1.0) as u8;
            out[parts.scales + token % 8] |= nibble << (token / 8 * 4);
        }
        scale
    }

    /// The turned rows, (16, L), of some codes.
    pub(super) fn decode(self, codes: &[u8], scale: f32, into: &mut [f32]) {
        let parts = self.parts();
        for (token, row) in into.chunks_exact_mut(self.len).enumerate() {
            let scale = scale * parts.scale_steps(codes, token);
            for (element, into) in row.iter_mut().enumerate() {
                let (byte, shift) = parts.place(token, element);
                *into = (f32::from(codes[byte] >> shift & 3) - 1.5) * scale;
            }
        }
    }
}

impl Parts {
    /// The byte that has a code, and where in it.
    fn place(&self, token: usize, element: usize) -> (usize, usize) {
        let (group, within) = (element / WORD, element % WORD);
        if group < self.words {
            let (k, j) = (within / QUAD, within % QUAD);
            return ((group * BLOCK_TOKENS + token) * 4 + j, 2 * k);
        }
        (self.words * BLOCK_TOKENS * 4 + token * 2 + within / 4, within % 4 * 2)
    }

    /// The elements of each quad of a row, in the order in which a kernel meets them.
    pub(super) fn quads(&self) -> impl Iterator<Item = [usize; QUAD]> {
        let words = (0..self.words * WORD).step_by(QUAD).map(|first| [0, 1, 2, 3].map(|j| first + j));
        let half = self.words * WORD;
        let halves =
            (0..if self.half { 2 } else { 0 }).map(move |k| [k, k + 4, k + 2, k + 6].map(|e| half + e));
        words.chain(halves)
    }

    /// A token's scale, in units of the block's.
    pub(super) fn scale_steps(&self, codes: &[u8], token: usize) -> f32 {
        f32::from(codes[self.scales + token % 8] >> (token / 8 * 4) & 15) + 1.0
    }

    /// A code, 0 to 3.
    pub(super) fn code(&self, codes: &[u8], token: usize, element: usize) -> i32 {
        let (byte, shift) = self.place(token, element);
        i32::from(codes[byte] >> shift & 3)
    }
}

/// Levels of a row, 0 to 3, and the scale that fits them best.
fn encode_row(row: &[f32], levels: &mut [u8]) -> f32 {
    let squares: f32 = row.iter().map(|x| x * x).sum();
    let step = STEP * (squares / row.len() as f32).sqrt();
    let inverse = if step > 0.0 && step.is_finite() { 1.0 / step } else { 0.0 };
    let (mut along, mut norm) = (0.0, 0.0);
    for (x, level) in row.iter().zip(levels) {
        *level = (x * inverse + 1.5).round().clamp(0.0, 3.0) as u8;
        let value = f32::from(*level) - 1.5;
        along += x * value;
        norm += value * value;
    }
    if norm > 0.0 { along / norm } else { 0.0 }
}

/// Turns a row of L elements; twice is as it was.
pub(super) fn turn(mut row: &mut [f32]) {
    while !row.is_empty() {
        // The largest power of two that is left.
        let (part, rest) = row.split_at_mut(1 << row.len().ilog2());
        hadamard(part);
        row = rest;
    }
}

/// The Walsh-Hadamard transform of 2^n elements, normalised.
fn hadamard(row: &mut [f32]) {
    let mut half = 1;
    while half < row.len() {
        for pair in row.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
    let norm = 1.0 / (row.len() as f32).sqrt();
    for x in row {
        *x *= norm;
    }
}
