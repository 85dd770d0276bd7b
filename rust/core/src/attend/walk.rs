//! How the vector kernel walks over rows, whatever they are kept as.

#![expect(unsafe_code, reason = "loads through pointers that the kernel checked")]
#![expect(clippy::inline_always, reason = "what is not inlined is compiled without the instructions")]

use std::marker::PhantomData;
use std::ptr;

use super::Rows;
use crate::codec::Coded;
use crate::simd::{Element, F32, Simd, load_some, prefetch_at};

/// Where a row starts; null for none.
#[derive(Clone, Copy)]
pub(super) struct At {
    bytes: *const u8,
    residual: *const u8,
}

impl Default for At {
    fn default() -> Self {
        Self { bytes: ptr::null(), residual: ptr::null() }
    }
}

impl At {
    #[inline(always)]
    pub(super) fn is_null(self) -> bool {
        self.bytes.is_null()
    }
}

/// One kind of rows.
pub(super) trait Walk {
    /// Whether a factor of each row is left to the caller.
    const SCALED: bool;

    /// Bytes of a row of `dim`.
    fn row_bytes(dim: usize) -> usize;

    /// Bytes of its residuals.
    fn residual_bytes(dim: usize) -> usize;

    /// # Safety
    /// The row has `LANES` elements from `d` on, and `d` is a multiple of `LANES`.
    unsafe fn load<S: Simd>(simd: S, row: At, d: usize) -> S::Floats;

    /// `len` elements, fewer than a vector, followed by zeros.
    ///
    /// # Safety
    /// The row has `len` elements from `d` on, and `d` is a multiple of `LANES`.
    unsafe fn load_some<S: Simd>(simd: S, row: At, d: usize, len: usize) -> S::Floats;

    /// Where the row of `token` is.
    #[inline(always)]
    fn row(rows: &Rows<'_>, dim: usize, token: usize) -> At {
        Self::step(At { bytes: rows.bytes.as_ptr(), residual: rows.residual.as_ptr() }, dim, token)
    }

    /// The place `rows` rows further on.
    #[inline(always)]
    fn step(at: At, dim: usize, rows: usize) -> At {
        At {
            bytes: at.bytes.wrapping_add(rows * Self::row_bytes(dim)),
            residual: at.residual.wrapping_add(rows * Self::residual_bytes(dim)),
        }
    }

    /// Asks for the lines of `rows` rows from `row` on. Any address is allowed.
    #[inline(always)]
    fn prefetch<S: Simd>(simd: S, at: At, dim: usize, row: usize, rows: usize) {
        let at = Self::step(at, dim, row);
        prefetch(simd, at.bytes, rows * Self::row_bytes(dim), Self::SCALED);
        prefetch(simd, at.residual, rows * Self::residual_bytes(dim), Self::SCALED);
    }
}

/// Elements.
pub(super) struct Plain<E>(PhantomData<E>);

impl Plain<F32> {
    /// The first of some rows of floats.
    pub(super) fn floats(rows: &[f32]) -> At {
        At { bytes: rows.as_ptr().cast(), residual: ptr::null() }
    }
}

impl<E: Element> Walk for Plain<E> {
    const SCALED: bool = false;

    #[inline(always)]
    fn row_bytes(dim: usize) -> usize {
        dim * E::SIZE
    }
    #[inline(always)]
    fn residual_bytes(_: usize) -> usize {
        0
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, row: At, d: usize) -> S::Floats {
        // SAFETY: the caller's.
        unsafe { E::load(simd, row.bytes.add(d * E::SIZE)) }
    }
    #[inline(always)]
    unsafe fn load_some<S: Simd>(simd: S, row: At, d: usize, len: usize) -> S::Floats {
        // SAFETY: the caller's.
        unsafe { load_some::<S, E>(simd, row.bytes.add(d * E::SIZE), len) }
    }
}

/// Codes, with residuals or without, less the factor of their scale.
pub(super) struct Scaled<C>(PhantomData<C>);

impl<C: Coded> Walk for Scaled<C> {
    const SCALED: bool = true;

    #[inline(always)]
    fn row_bytes(dim: usize) -> usize {
        dim
    }
    #[inline(always)]
    fn residual_bytes(dim: usize) -> usize {
        C::residual_bytes(dim)
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, row: At, d: usize) -> S::Floats {
        // SAFETY: the caller's; `d` is even.
        unsafe { C::load(simd, row.bytes.add(d), row.residual.add(C::residual_bytes(d))) }
    }
    #[inline(always)]
    unsafe fn load_some<S: Simd>(simd: S, row: At, d: usize, len: usize) -> S::Floats {
        let (mut codes, mut residual) = ([0_u8; 16], [0_u8; 16]);
        // SAFETY: the caller's; `d` is even, and no vector has more than 16 lanes.
        unsafe {
            ptr::copy_nonoverlapping(row.bytes.add(d), codes.as_mut_ptr(), len);
            let from = row.residual.add(C::residual_bytes(d));
            ptr::copy_nonoverlapping(from, residual.as_mut_ptr(), C::residual_bytes(len));
            C::load(simd, codes.as_ptr(), residual.as_ptr())
        }
    }
}

/// Asks for `len` bytes. Any address is allowed. What is kept in planes is read a block here and a block there, of
/// which the processor foresees nothing: those are asked for into the first level.
#[inline(always)]
fn prefetch<S: Simd>(simd: S, at: *const u8, len: usize, is_scattered: bool) {
    let mut line = 0;
    while line < len {
        if is_scattered {
            prefetch_at(at.wrapping_add(line));
        } else {
            simd.prefetch(at.wrapping_add(line));
        }
        line += 64;
    }
}
