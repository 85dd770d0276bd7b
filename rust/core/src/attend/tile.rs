//! What a kernel is given: keys and values of one KV head, as elements or as planes.

use super::{Mass, Running};
use crate::codec::RowShape;
use crate::dtype::DType;

/// Additive mask of a tile; `-inf` excludes a token.
#[derive(Clone, Copy, Debug)]
pub enum Bias<'a> {
    /// One value per token, the same for every row: (T).
    Shared(&'a [f32]),
    /// One value per row and token: (R, T).
    PerRow(&'a [f32]),
}

impl Bias<'_> {
    /// The mask of `row` for tokens `start..start + len`, of a tile of `tokens`.
    #[inline]
    pub(super) fn of_row(&self, row: usize, tokens: usize, start: usize, len: usize) -> &[f32] {
        match self {
            Self::Shared(values) => &values[start..start + len],
            Self::PerRow(values) => &values[row * tokens + start..row * tokens + start + len],
        }
    }
}

/// What the bytes of rows mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Elements, little-endian.
    Elements(DType),
    /// FP8 codes alone, with a scale per row.
    Codes,
    /// Codes with the residuals of rows of that type, from which those are restored.
    Planes(DType),
}

impl Kind {
    /// Bytes of a row's elements or codes.
    pub(super) fn row_bytes(self, dim: usize) -> usize {
        match self {
            Self::Elements(dtype) => dim * dtype.size(),
            Self::Codes | Self::Planes(_) => dim,
        }
    }

    /// Bytes of a row's residuals.
    pub(super) fn residual_bytes(self, dim: usize) -> usize {
        match self {
            Self::Elements(_) | Self::Codes => 0,
            Self::Planes(dtype) => RowShape { dim, dtype }.residual_bytes(),
        }
    }

    fn scale_bytes(self) -> usize {
        usize::from(!matches!(self, Self::Elements(_)))
    }
}

/// Keys or values of consecutive tokens. What a kind does not have is empty; a slice may be
/// longer than the tokens, and the rest is not read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rows<'a> {
    /// (T, D) elements or codes.
    pub bytes: &'a [u8],
    /// (T, [`RowShape::residual_bytes`]).
    pub residual: &'a [u8],
    /// (T): scale bytes, see [`crate::codec::planes`].
    pub scales: &'a [u8],
}

impl<'a> Rows<'a> {
    /// Rows of elements.
    pub fn elements(bytes: &'a [u8]) -> Self {
        Self { bytes, ..Self::default() }
    }

    fn check(&self, what: &str, kind: Kind, tokens: usize, dim: usize) {
        let parts = [
            ("elements", self.bytes.len(), kind.row_bytes(dim)),
            ("residuals", self.residual.len(), kind.residual_bytes(dim)),
            ("scales", self.scales.len(), kind.scale_bytes()),
        ];
        for (part, len, row) in parts {
            assert!(len >= tokens * row, "{what} have {len} bytes of {part}, {tokens} x {row} need more");
        }
    }
}

/// Keys and values of one KV head for some consecutive tokens.
#[derive(Clone, Copy, Debug)]
pub struct Tile<'a> {
    /// (T, Dk).
    pub keys: Rows<'a>,
    /// (T, Dv).
    pub values: Rows<'a>,
    /// What both are.
    pub kind: Kind,
    /// T: valid rows.
    pub tokens: usize,
    /// Head dim of the keys.
    pub dk: usize,
    /// Head dim of the values.
    pub dv: usize,
    /// Additive mask, or none.
    pub bias: Option<Bias<'a>>,
}

impl<'a> Tile<'a> {
    /// One KV head's slice of a page: keys of `page_tokens` tokens, then their values, of
    /// which the first `tokens` rows of each are valid.
    ///
    /// # Panics
    /// When `tokens` exceeds `page_tokens`, or the slice is shorter than a page.
    pub fn of_page(
        slice: &'a [u8],
        page_tokens: usize,
        tokens: usize,
        dk: usize,
        dv: usize,
        dtype: DType,
    ) -> Self {
        assert!(tokens <= page_tokens, "{tokens} tokens in a page of {page_tokens}");
        let (keys, values) = slice.split_at(page_tokens * dk * dtype.size());
        let (keys, values) = (Rows::elements(keys), Rows::elements(values));
        Self { keys, values, kind: Kind::Elements(dtype), tokens, dk, dv, bias: None }
    }

    /// The same tile under an additive mask.
    #[must_use]
    pub fn with_bias(self, bias: Bias<'a>) -> Self {
        Self { bias: Some(bias), ..self }
    }

    /// Everything that the kernels rely on instead of checking again.
    pub(super) fn check(&self, q: &[f32], rows: usize, state: &Running<'_>, mass: Option<&Mass<'_>>) {
        let (tokens, dk, dv) = (self.tokens, self.dk, self.dv);
        assert!(q.len() >= rows * dk, "q has {} values, {rows} rows of {dk} need more", q.len());
        self.keys.check("keys", self.kind, tokens, dk);
        self.values.check("values", self.kind, tokens, dv);
        assert!(
            state.max.len() == rows && state.sum.len() == rows && state.acc.len() == rows * dv,
            "state holds {} rows and {} values, not {rows} rows of {dv}",
            state.max.len(),
            state.acc.len()
        );
        match self.bias {
            None => {}
            Some(Bias::Shared(bias)) => {
                assert!(bias.len() >= tokens, "{} biases for {tokens} tokens", bias.len());
            }
            Some(Bias::PerRow(bias)) => {
                assert!(bias.len() >= rows * tokens, "{} biases for {rows} x {tokens}", bias.len());
            }
        }
        if let Some(mass) = mass {
            assert!(
                mass.reference.len() >= rows && mass.sum.len() >= rows,
                "mass holds fewer than {rows} rows"
            );
        }
    }
}
