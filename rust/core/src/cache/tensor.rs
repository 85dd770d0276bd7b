//! What the cache needs to know of a caller's tensor: its extent, and how to move rows.

use crate::dtype::DType;
use crate::error::{Error, Result};

/// Shape and element type of a (B, H, T, D) tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// B: batch rows.
    pub batch: usize,
    /// H: heads.
    pub heads: usize,
    /// T: tokens.
    pub tokens: usize,
    /// D: elements of one token of one head.
    pub dim: usize,
    /// Element type.
    pub dtype: DType,
}

impl Extent {
    /// Bytes of one token of one head.
    pub fn row_bytes(&self) -> usize {
        self.dim * self.dtype.size()
    }

    /// Compares with what is needed, naming the tensor and every number.
    pub(super) fn expect(&self, name: &str, expected: &Self) -> Result<()> {
        if self == expected {
            return Ok(());
        }
        Err(Error::Invalid(format!("{name} is {self}, expected {expected}")))
    }
}

impl std::fmt::Display for Extent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { batch, heads, tokens, dim, dtype } = self;
        write!(f, "({batch}, {heads}, {tokens}, {dim}) {dtype}")
    }
}

/// A tensor that is read.
pub trait ReadRows {
    /// Its shape and element type.
    fn extent(&self) -> Extent;

    /// Copies whole tokens of one head, from `token` on, until `into` is full.
    /// Callers stay inside the extent; `into` holds whole rows.
    fn read(&self, batch: usize, head: usize, token: usize, into: &mut [u8]);
}

/// A tensor that is written.
pub trait WriteRows {
    /// Its shape and element type.
    fn extent(&self) -> Extent;

    /// Overwrites whole tokens of one head, from `token` on, with `from`.
    /// Callers stay inside the extent; `from` holds whole rows.
    fn write(&mut self, batch: usize, head: usize, token: usize, from: &[u8]);
}

/// Some consecutive tokens of a tensor.
pub(super) struct Part<'a> {
    pub(super) whole: &'a dyn ReadRows,
    pub(super) first: usize,
    pub(super) tokens: usize,
}

impl ReadRows for Part<'_> {
    fn extent(&self) -> Extent {
        Extent { tokens: self.tokens, ..self.whole.extent() }
    }
    fn read(&self, batch: usize, head: usize, token: usize, into: &mut [u8]) {
        self.whole.read(batch, head, self.first + token, into);
    }
}

/// Some consecutive tokens of a tensor that is written.
pub(super) struct PartMut<'a> {
    pub(super) whole: &'a mut dyn WriteRows,
    pub(super) first: usize,
    pub(super) tokens: usize,
}

impl WriteRows for PartMut<'_> {
    fn extent(&self) -> Extent {
        Extent { tokens: self.tokens, ..self.whole.extent() }
    }
    fn write(&mut self, batch: usize, head: usize, token: usize, from: &[u8]) {
        self.whole.write(batch, head, self.first + token, from);
    }
}

/// Additive float32 scores of shape (B or 1, T or 1, S), as strides over a slice; a
/// dimension of size 1 has stride 0.
#[derive(Clone, Copy, Debug)]
pub struct Bias<'a> {
    /// The elements that the strides lead to.
    pub values: &'a [f32],
    /// (B or 1, T or 1, S).
    pub shape: [usize; 3],
    /// Elements from one batch row to the next; 0 where there is one for all.
    pub batch_stride: usize,
    /// Elements from one query token to the next; 0 where there is one for all.
    pub token_stride: usize,
}

impl Bias<'_> {
    /// The biases of `len` consecutive tokens of the context, for one query token.
    #[inline]
    pub(super) fn slice(&self, batch: usize, token: usize, start: usize, len: usize) -> &[f32] {
        let first = batch * self.batch_stride + token * self.token_stride + start;
        &self.values[first..first + len]
    }

    /// The biases of the query tokens from this one on.
    pub(super) fn skip(self, first: usize) -> Self {
        let [b, t, s] = self.shape;
        let values = &self.values[first * self.token_stride..];
        Self { values, shape: [b, if t == 1 { 1 } else { t - first }, s], ..self }
    }

    /// Checks the shape against B, T and S.
    pub(super) fn expect(&self, batch: usize, tokens: usize, length: usize) -> Result<()> {
        let [b, t, s] = self.shape;
        if (b == batch || b == 1) && (t == tokens || t == 1) && s == length {
            return Ok(());
        }
        Err(Error::Invalid(format!(
            "bias is ({b}, {t}, {s}), expected ({batch} or 1, {tokens} or 1, {length})"
        )))
    }
}
