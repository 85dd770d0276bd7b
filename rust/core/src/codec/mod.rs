//! FP8 codes, and the two planes of a sealed page's rows.
//!
//! [`fp8`]: OCP e4m3 (`float8_e4m3fn`) as PyTorch casts to and from it. [`planes`]: a row,
//! one token of one head, as a scale, a plane of FP8 codes that is usable alone, and a
//! residual plane that together with the codes gives the 16-bit values back. What it is
//! not: it knows no pages, tokens or tensors, only rows of a given length.
//!
//! Invariant: every SIMD level gives the bits of the scalar twin.
//!
//! Sources: OCP 8-bit Floating Point Specification 1.0 (e4m3); OCP Microscaling Formats 1.0
//! (e8m0 scales); the layout of codes and power-of-two scales, DeepSeek's FlashMLA. That
//! rounding to nearest with ties away leaves the value's own low bits as the residual is
//! this module's.

mod coded;
pub mod fp8;
mod kernel;
pub mod planes;
mod scalar;

pub(crate) use coded::{Coded, Codes, With4, With8};
pub use fp8::{decode_fp8, encode_fp8, f32_to_fp8, fp8_to_f32};
pub use planes::{RowShape, decode_rows, encode_rows, restore_rows, scale_factor};
pub(crate) use scalar::{decoded, restored};

#[cfg(test)]
mod tests;
