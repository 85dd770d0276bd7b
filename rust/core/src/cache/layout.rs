//! Where keys and values are in a page, and its two forms: elements, and planes.
//!
//! An open page holds elements. A sealed one holds them too, or, in a cache that keeps planes,
//! FP8 codes; its scales and residuals are then a page of their own, so that RAM may hold the
//! codes alone.

use std::ops::Range;

use super::table::Table;
use crate::attend::{Kind, Rows, Tile};
use crate::codec::{RowShape, encode_rows, restore_rows};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::session::LayerShape;
use crate::tier::ram::PageMut;

/// Per KV head keys of all tokens, then values.
#[derive(Clone, Copy, Debug)]
struct Places {
    page_tokens: usize,
    /// Bytes of a head before its keys.
    lead: usize,
    key_row: usize,
    value_row: usize,
}

impl Places {
    fn head_bytes(&self) -> usize {
        self.lead + self.page_tokens * (self.key_row + self.value_row)
    }

    fn keys(&self, head: usize, first: usize, tokens: usize) -> Range<usize> {
        let start = head * self.head_bytes() + self.lead + first * self.key_row;
        start..start + tokens * self.key_row
    }

    fn values(&self, head: usize, first: usize, tokens: usize) -> Range<usize> {
        let values = self.lead + self.page_tokens * self.key_row;
        let start = head * self.head_bytes() + values + first * self.value_row;
        start..start + tokens * self.value_row
    }
}

/// The pages of a layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub(super) page_tokens: usize,
    pub(super) heads: usize,
    shape: LayerShape,
    elements: Places,
    planes: Option<PlanePlaces>,
}

#[derive(Clone, Copy, Debug)]
struct PlanePlaces {
    codes: Places,
    /// Each head starts with the scales of its keys, then of its values.
    residual: Places,
}

/// The bytes of a page, as they are in RAM.
#[derive(Clone, Copy)]
pub(super) enum PageBytes<'a> {
    /// An open page, or a sealed one of a cache without planes.
    Elements(&'a [u8]),
    /// A sealed page's codes, and where they were asked for its scales and residuals.
    Planes { codes: &'a [u8], residual: Option<&'a [u8]> },
}

/// Scale bytes of all tokens of a page, of one head.
#[derive(Clone, Copy)]
pub(super) struct Scales<'a> {
    pub(super) keys: &'a [u8],
    pub(super) values: &'a [u8],
}

/// Consecutive tokens of a page, of one head.
#[derive(Clone, Copy)]
pub(super) struct Slice {
    pub(super) head: usize,
    pub(super) first: usize,
    pub(super) tokens: usize,
}

impl Layout {
    pub(super) fn new(shape: &LayerShape, page_tokens: usize, in_planes: bool) -> Self {
        let (key_dim, value_dim) = (shape.key_dim as usize, shape.value_dim as usize);
        let places = |lead, row: &dyn Fn(RowShape) -> usize| Places {
            page_tokens,
            lead,
            key_row: row(RowShape { dim: key_dim, dtype: shape.dtype }),
            value_row: row(RowShape { dim: value_dim, dtype: shape.dtype }),
        };
        Self {
            page_tokens,
            heads: shape.kv_heads as usize,
            shape: *shape,
            elements: places(0, &RowShape::row_bytes),
            planes: in_planes.then(|| PlanePlaces {
                codes: places(0, &RowShape::code_bytes),
                residual: places(2 * page_tokens, &RowShape::residual_bytes),
            }),
        }
    }

    /// Whether sealed pages are kept in planes.
    pub(super) fn has_planes(&self) -> bool {
        self.planes.is_some()
    }

    /// Bytes of a page of elements.
    pub(super) fn page_bytes(&self) -> usize {
        self.heads * self.elements.head_bytes()
    }

    /// Bytes of what the store holds of a sealed page: the page, or its codes; and its residuals.
    pub(super) fn sealed_bytes(&self, is_residual: bool) -> usize {
        match (&self.planes, is_residual) {
            (None, _) => self.page_bytes(),
            (Some(planes), false) => self.heads * planes.codes.head_bytes(),
            (Some(planes), true) => self.heads * planes.residual.head_bytes(),
        }
    }

    /// Refuses a page of another geometry, such as a prefix that was adopted by key alone.
    pub(super) fn check_sealed(&self, page: &PageMut, is_residual: bool) -> Result<()> {
        let expected = self.sealed_bytes(is_residual);
        if page.len() == expected {
            return Ok(());
        }
        Err(Error::Invalid(format!(
            "a stored page has {} bytes, expected {expected}: the identity does not tell the two geometries apart",
            page.len()
        )))
    }

    /// Bytes of a key's elements and of a value's.
    pub(super) fn row_bytes(&self) -> (usize, usize) {
        (self.elements.key_row, self.elements.value_row)
    }

    /// Elements of the keys of `tokens` tokens from `first` on, in a page of elements.
    pub(super) fn keys(&self, head: usize, first: usize, tokens: usize) -> Range<usize> {
        self.elements.keys(head, first, tokens)
    }

    /// Elements of the values of `tokens` tokens from `first` on, in a page of elements.
    pub(super) fn values(&self, head: usize, first: usize, tokens: usize) -> Range<usize> {
        self.elements.values(head, first, tokens)
    }

    fn key_shape(&self) -> RowShape {
        RowShape { dim: self.shape.key_dim as usize, dtype: self.shape.dtype }
    }

    fn value_shape(&self) -> RowShape {
        RowShape { dim: self.shape.value_dim as usize, dtype: self.shape.dtype }
    }

    /// Encodes a whole page of elements. Does nothing in a cache without planes.
    pub(super) fn encode(&self, elements: &[u8], codes: &mut [u8], residual: &mut [u8]) {
        let Some(planes) = &self.planes else { return };
        let tokens = self.page_tokens;
        for head in 0..self.heads {
            let rest = &mut residual[head * planes.residual.head_bytes()..][..planes.residual.head_bytes()];
            let (scales, rest) = rest.split_at_mut(2 * tokens);
            let (key_scales, value_scales) = scales.split_at_mut(tokens);
            let (key_rest, value_rest) = rest.split_at_mut(tokens * planes.residual.key_row);
            let keys = &mut codes[planes.codes.keys(head, 0, tokens)];
            encode_rows(self.key_shape(), &elements[self.keys(head, 0, tokens)], key_scales, keys, key_rest);
            let values = &mut codes[planes.codes.values(head, 0, tokens)];
            let rows = &elements[self.values(head, 0, tokens)];
            encode_rows(self.value_shape(), rows, value_scales, values, value_rest);
        }
    }

    /// Scale bytes of one head, in a page of scales and residuals.
    pub(super) fn scales<'a>(&self, residual: &'a [u8], head: usize) -> Scales<'a> {
        let head_bytes = self.planes.map_or(0, |planes| planes.residual.head_bytes());
        let scales = &residual[head * head_bytes..][..2 * self.page_tokens];
        let (keys, values) = scales.split_at(self.page_tokens);
        Scales { keys, values }
    }

    /// Keys of a slice as elements of `dtype`. Codes without their residuals give nothing.
    pub(super) fn read_keys(&self, page: PageBytes<'_>, slice: Slice, dtype: DType, out: &mut [u8]) {
        self.read(page, slice, self.key_shape(), Places::keys, key_scales, dtype, out);
    }

    /// Values of a slice as elements of `dtype`. Codes without their residuals give nothing.
    pub(super) fn read_values(&self, page: PageBytes<'_>, slice: Slice, dtype: DType, out: &mut [u8]) {
        self.read(page, slice, self.value_shape(), Places::values, value_scales, dtype, out);
    }

    /// One of the two: rows of `shape`, that are at `places` and have the scales that `of` names.
    fn read(
        &self,
        page: PageBytes<'_>,
        slice: Slice,
        shape: RowShape,
        places: impl Fn(&Places, usize, usize, usize) -> Range<usize>,
        of: impl for<'a> Fn(Scales<'a>) -> &'a [u8],
        dtype: DType,
        out: &mut [u8],
    ) {
        let Slice { head, first, tokens } = slice;
        match (page, &self.planes) {
            (PageBytes::Planes { codes, residual: Some(residual) }, Some(planes)) => restore_rows(
                shape,
                &of(self.scales(residual, head))[first..first + tokens],
                &codes[places(&planes.codes, head, first, tokens)],
                &residual[places(&planes.residual, head, first, tokens)],
                dtype,
                out,
            ),
            (PageBytes::Elements(bytes), _) => {
                convert(shape.dtype, &bytes[places(&self.elements, head, first, tokens)], dtype, out);
            }
            _ => {}
        }
    }

    /// Writes a whole page as elements of its own type.
    pub(super) fn restore(&self, page: PageBytes<'_>, out: &mut [u8]) {
        for head in 0..self.heads {
            let slice = Slice { head, first: 0, tokens: self.page_tokens };
            let (keys, values) =
                (self.keys(head, 0, self.page_tokens), self.values(head, 0, self.page_tokens));
            self.read_keys(page, slice, self.shape.dtype, &mut out[keys]);
            self.read_values(page, slice, self.shape.dtype, &mut out[values]);
        }
    }

    /// A slice for the kernel, with all the precision that the page has in RAM. `scales` are
    /// asked for where there are codes only.
    pub(super) fn tile<'a>(
        &self,
        page: PageBytes<'a>,
        slice: Slice,
        scales: impl FnOnce() -> Scales<'a>,
    ) -> Tile<'a> {
        let Slice { head, first, tokens } = slice;
        let rows = first..first + tokens;
        let (keys, values, kind) = match (page, &self.planes) {
            (PageBytes::Planes { codes, residual }, Some(planes)) => {
                let scales = residual.map_or_else(scales, |residual| self.scales(residual, head));
                let part = |places: Range<usize>| residual.map_or(&[][..], |residual| &residual[places]);
                let keys = Rows {
                    bytes: &codes[planes.codes.keys(head, first, tokens)],
                    residual: part(planes.residual.keys(head, first, tokens)),
                    scales: &scales.keys[rows.clone()],
                };
                let values = Rows {
                    bytes: &codes[planes.codes.values(head, first, tokens)],
                    residual: part(planes.residual.values(head, first, tokens)),
                    scales: &scales.values[rows],
                };
                let dtype = self.shape.dtype;
                (keys, values, if residual.is_some() { Kind::Planes(dtype) } else { Kind::Codes })
            }
            (PageBytes::Elements(bytes) | PageBytes::Planes { codes: bytes, .. }, _) => (
                Rows::elements(&bytes[self.keys(head, first, tokens)]),
                Rows::elements(&bytes[self.values(head, first, tokens)]),
                Kind::Elements(self.shape.dtype),
            ),
        };
        let (dk, dv) = (self.shape.key_dim as usize, self.shape.value_dim as usize);
        Tile { keys, values, kind, tokens, dk, dv, bias: None }
    }
}

/// The open page of a row.
pub(super) fn open_page(table: &Table) -> PageBytes<'_> {
    // An absent one would be a bug and has no bytes.
    PageBytes::Elements(table.open.as_deref().map_or(&[], |open| open))
}

fn key_scales(scales: Scales<'_>) -> &[u8] {
    scales.keys
}

fn value_scales(scales: Scales<'_>) -> &[u8] {
    scales.values
}

fn convert(from: DType, elements: &[u8], to: DType, out: &mut [u8]) {
    if from == to {
        return out.copy_from_slice(elements);
    }
    for index in 0..elements.len() / from.size() {
        to.write(out, index, from.read(elements, index));
    }
}
