//! The vector kernels: a part of a pass, block by block of tokens, by instructions, element type and
//! number of streams. Letters as in [`super`].
//!
//! Matrix products are written out because what they multiply is in the cache already: a
//! product by a library would read the streams from memory once more each time. Rows of
//! power-of-two widths fall into the same sets of the cache, so tiles that are used again
//! are copied to the stack.

// Nothing has to be detected on ARM, so there nothing is unsafe.
#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "calls of what is compiled for instructions that were detected")
)]
#![expect(clippy::inline_always, reason = "what is not inlined is compiled without the instructions")]

use super::backward::{read_backward_part, write_backward_part};
use super::forward::{read_part, write_part};
use super::{Arriving, Form, Kept, Parameters, Reading, Shape, Sums};
use crate::dtype::DType;
use crate::simd::{Bf16, F16, F32, Simd, dispatch};

dispatch! {
    /// See [`super::read`].
    pub(super) fn read(
        shape: Shape, form: Form, parameters: Parameters<'_>, x: &[u8], out: &mut Reading<'_>,
    ) -> () => read_any;
}
dispatch! {
    /// See [`super::write`].
    pub(super) fn write(
        shape: Shape, x: &[u8], y: &[u8], post: &[f32], comb: &[f32], out: &mut [u8],
    ) -> () => write_any;
}
dispatch! {
    /// See [`super::write_backward`].
    pub(super) fn write_backward(
        shape: Shape, y: &[u8], post: &[f32], arriving: &[u8], to_y: &mut [u8], to_post: &mut [f32],
    ) -> () => write_backward_any;
}
dispatch! {
    /// See [`super::read_backward`].
    pub(super) fn read_backward(
        shape: Shape,
        form: Form,
        parameters: Parameters<'_>,
        x: &[u8],
        kept: Kept<'_>,
        arriving: Arriving<'_>,
        to_x: &mut [u8],
        sums: &mut Sums,
    ) -> () => read_backward_any;
}

/// The greatest M, of four streams.
pub(super) const NUMBERS_MAX: usize = numbers_of(4);

/// M.
pub(super) const fn numbers_of(streams: usize) -> usize {
    (2 + streams) * streams
}

/// Calls a kernel of element type and number of streams. The lengths of all slices were
/// compared with the shape in [`super`], which everything unsafe below relies on.
macro_rules! by_type {
    ($shape:expr, $kernel:ident::<$simd:ident>($($argument:expr),*)) => {
        match ($shape.dtype, $shape.streams) {
            (DType::F32, 2) => $kernel::<$simd, F32, 2>($($argument),*),
            (DType::F32, 3) => $kernel::<$simd, F32, 3>($($argument),*),
            (DType::F32, _) => $kernel::<$simd, F32, 4>($($argument),*),
            (DType::Bf16, 2) => $kernel::<$simd, Bf16, 2>($($argument),*),
            (DType::Bf16, 3) => $kernel::<$simd, Bf16, 3>($($argument),*),
            (DType::Bf16, _) => $kernel::<$simd, Bf16, 4>($($argument),*),
            (DType::F16, 2) => $kernel::<$simd, F16, 2>($($argument),*),
            (DType::F16, 3) => $kernel::<$simd, F16, 3>($($argument),*),
            (DType::F16, _) => $kernel::<$simd, F16, 4>($($argument),*),
        }
    };
}

#[inline(always)]
fn read_any<V: Simd>(simd: V, shape: Shape, form: Form, p: Parameters<'_>, x: &[u8], out: &mut Reading<'_>) {
    by_type!(shape, read_part::<V>(simd, shape.width, form, p, x, out));
}

#[inline(always)]
fn write_any<V: Simd>(simd: V, shape: Shape, x: &[u8], y: &[u8], post: &[f32], comb: &[f32], out: &mut [u8]) {
    by_type!(shape, write_part::<V>(simd, shape.width, x, y, post, comb, out));
}

#[inline(always)]
fn write_backward_any<V: Simd>(
    simd: V,
    shape: Shape,
    y: &[u8],
    post: &[f32],
    arriving: &[u8],
    to_y: &mut [u8],
    to_post: &mut [f32],
) {
    by_type!(shape, write_backward_part::<V>(simd, shape.width, y, post, arriving, to_y, to_post));
}

#[inline(always)]
fn read_backward_any<V: Simd>(
    simd: V,
    shape: Shape,
    form: Form,
    p: Parameters<'_>,
    x: &[u8],
    kept: Kept<'_>,
    arriving: Arriving<'_>,
    to_x: &mut [u8],
    sums: &mut Sums,
) {
    by_type!(shape, read_backward_part::<V>(simd, shape.width, form, p, x, kept, arriving, to_x, sums));
}
