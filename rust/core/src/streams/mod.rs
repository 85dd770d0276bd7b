//! Residual streams of manifold-constrained hyper-connections: forward and backward.
//!
//! A connection reads its streams once (`read`: norm, projection, Sinkhorn, weighted sum),
//! a branch runs elsewhere, and its output is written back (`write`: mix the streams, add).
//! Each kernel passes over a block of tokens while that is in the cache, so that the bytes
//! moved are little more than the streams themselves.
//!
//! What is recomputed rather than kept for the backward pass: everything but the projected
//! numbers (M floats per token) and the mappings.
//!
//! What it is not: it knows no tensors and no graph; that `read`'s backward pass takes the
//! gradient of the *mixed* streams is explained at [`read_backward`].
//!
//! Letters: N tokens, S streams, C width, M = (2 + S) S numbers per token (S pre, S post,
//! S * S mixing logits, row by row: `[j, k]` is what stream j gives to stream k).
//!
//! Source: mHC (arXiv 2512.24880); `python/stratakv/nn/mappings.py` is the slow reference.

mod backward;
mod forward;
mod kernel;
mod sinkhorn;

use crate::attend::Parallel;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::simd::SimdLevel;
use crate::sync::Mutex;

/// Widths are multiples of this: whole vectors of every instruction set.
pub const WIDTH_MULTIPLE: usize = 16;
/// Streams that there are kernels for.
pub const STREAMS: std::ops::RangeInclusive<usize> = 2..=4;
/// Tokens that are worked on together.
pub(crate) const BLOCK: usize = 16;
/// Parts of a pass per thread: one that is held up loses only a fraction of its share.
const PARTS_PER_THREAD: usize = 2;

/// Sizes of one pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// N.
    pub tokens: usize,
    /// S.
    pub streams: usize,
    /// C.
    pub width: usize,
    /// Of the streams, the branch's input and output, and their gradients.
    pub dtype: DType,
}

impl Shape {
    /// M.
    pub const fn numbers(self) -> usize {
        kernel::numbers_of(self.streams)
    }

    const fn row_bytes(self) -> usize {
        self.width * self.dtype.size()
    }

    const fn token_bytes(self) -> usize {
        self.streams * self.row_bytes()
    }

    /// Whether this machine has kernels for these sizes.
    pub fn is_supported(self) -> bool {
        STREAMS.contains(&self.streams)
            && self.width != 0
            && self.width.is_multiple_of(WIDTH_MULTIPLE)
            && SimdLevel::detect() != SimdLevel::Scalar
    }

    fn check(self) -> Result<()> {
        if self.is_supported() {
            return Ok(());
        }
        Err(Error::Invalid(format!(
            "no kernel for {} streams of width {} here: streams {STREAMS:?}, widths that are multiples of \
             {WIDTH_MULTIPLE}, and vector instructions are needed",
            self.streams, self.width
        )))
    }
}

/// What is constant in a connection.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    /// Sweeps of Sinkhorn's algorithm, at least 1.
    pub sinkhorn_iters: usize,
    /// Of the root mean square over a token's S * C values.
    pub norm_eps: f32,
    /// Added to the pre mapping, and inside Sinkhorn's algorithm.
    pub eps: f32,
}

/// A connection's parameters.
#[derive(Clone, Copy, Debug)]
pub struct Parameters<'a> {
    /// (M, S * C).
    pub weight: &'a [f32],
    /// (M).
    pub bias: &'a [f32],
    /// Factors of the pre, post and mixing numbers.
    pub scale: &'a [f32],
}

impl Parameters<'_> {
    fn check(&self, shape: Shape) {
        assert!(
            self.weight.len() == shape.numbers() * shape.streams * shape.width
                && self.bias.len() == shape.numbers()
                && self.scale.len() == 3,
            "parameters of {shape:?}"
        );
    }
}

/// What [`read`] writes.
#[derive(Debug)]
pub struct Reading<'a> {
    /// (N, C) of the shape's dtype: the branch's input.
    pub input: &'a mut [u8],
    /// (N, S).
    pub post: &'a mut [f32],
    /// (N, S, S).
    pub comb: &'a mut [f32],
    /// (N, M): projected numbers, normalised, before scales and biases.
    pub numbers: &'a mut [f32],
    /// (N): the inverse root mean square.
    pub inverse_rms: &'a mut [f32],
}

/// What a [`read`] left for its backward pass.
#[derive(Clone, Copy, Debug)]
pub struct Kept<'a> {
    /// (N, M).
    pub numbers: &'a [f32],
    /// (N).
    pub inverse_rms: &'a [f32],
}

/// Gradients that reach a [`read`].
#[derive(Clone, Copy, Debug)]
pub struct Arriving<'a> {
    /// (N, C): of the branch's input.
    pub input: &'a [u8],
    /// (N, S, C): of the mixed streams.
    pub mixed: &'a [u8],
    /// (N, S): of the pre mapping beyond what it does to the branch's input; or empty.
    pub pre: &'a [f32],
    /// (N, S).
    pub post: &'a [f32],
    /// (N, S, S): of the mixing matrix beyond what it does to the mixed streams; or empty.
    pub comb: &'a [f32],
}

/// Gradients that leave a [`read`].
#[derive(Debug)]
pub struct Leaving<'a> {
    /// (N, S, C).
    pub streams: &'a mut [u8],
    /// (M, S * C).
    pub weight: &'a mut [f32],
    /// (M).
    pub bias: &'a mut [f32],
    /// (3).
    pub scale: &'a mut [f32],
}

/// Reads the streams: mappings, and the branch's input.
///
/// # Errors
/// `Invalid` where there is no kernel ([`Shape::is_supported`]).
///
/// # Panics
/// When a slice is not of its shape.
pub fn read(
    threads: &dyn Parallel,
    shape: Shape,
    form: Form,
    parameters: Parameters<'_>,
    streams: &[u8],
    out: Reading<'_>,
) -> Result<()> {
    shape.check()?;
    parameters.check(shape);
    let Shape { streams: s, .. } = shape;
    let mut rest = Split::new(shape, threads);
    let mut parts = Vec::new();
    let mut out = out;
    check(streams.len(), shape.tokens * shape.token_bytes());
    check(out.input.len(), shape.tokens * shape.row_bytes());
    check(out.post.len(), shape.tokens * s);
    check(out.comb.len(), shape.tokens * s * s);
    check(out.numbers.len(), shape.tokens * shape.numbers());
    check(out.inverse_rms.len(), shape.tokens);
    while let Some((start, tokens)) = rest.next() {
        let part = Reading {
            input: take(&mut out.input, tokens * shape.row_bytes()),
            post: take(&mut out.post, tokens * s),
            comb: take(&mut out.comb, tokens * s * s),
            numbers: take(&mut out.numbers, tokens * shape.numbers()),
            inverse_rms: take(&mut out.inverse_rms, tokens),
        };
        parts.push(Mutex::new((
            &streams[start * shape.token_bytes()..][..tokens * shape.token_bytes()],
            part,
        )));
    }
    threads.run(parts.len(), &|index| {
        let (x, part) = &mut *parts[index].lock();
        run(kernel::read(SimdLevel::detect(), shape, form, parameters, x, part));
    });
    Ok(())
}

/// Writes a branch's output: mixes the streams, and gives each its share.
///
/// `branch` is (N, C), `post` (N, S), `comb` (N, S, S), `out` (N, S, C).
///
/// # Errors
/// As [`read`].
///
/// # Panics
/// When a slice is not of its shape.
pub fn write(
    threads: &dyn Parallel,
    shape: Shape,
    streams: &[u8],
    branch: &[u8],
    post: &[f32],
    comb: &[f32],
    mut out: &mut [u8],
) -> Result<()> {
    shape.check()?;
    let s = shape.streams;
    check(streams.len(), shape.tokens * shape.token_bytes());
    check(branch.len(), shape.tokens * shape.row_bytes());
    check(post.len(), shape.tokens * s);
    check(comb.len(), shape.tokens * s * s);
    check(out.len(), shape.tokens * shape.token_bytes());
    let mut rest = Split::new(shape, threads);
    let mut parts = Vec::new();
    while let Some((start, tokens)) = rest.next() {
        parts.push(Mutex::new((start, tokens, take(&mut out, tokens * shape.token_bytes()))));
    }
    threads.run(parts.len(), &|index| {
        let (start, tokens, out) = &mut *parts[index].lock();
        let of = |unit: usize| *start * unit..(*start + *tokens) * unit;
        run(kernel::write(
            SimdLevel::detect(),
            shape,
            &streams[of(shape.token_bytes())],
            &branch[of(shape.row_bytes())],
            &post[of(s)],
            &comb[of(s * s)],
            out,
        ));
    });
    Ok(())
}

/// Gradients of [`write`] with respect to the branch's output (N, C) and `post` (N, S).
///
/// That with respect to the mixed streams is `arriving` (N, S, C) itself.
///
/// # Errors
/// As [`read`].
///
/// # Panics
/// When a slice is not of its shape.
pub fn write_backward(
    threads: &dyn Parallel,
    shape: Shape,
    branch: &[u8],
    post: &[f32],
    arriving: &[u8],
    mut to_branch: &mut [u8],
    mut to_post: &mut [f32],
) -> Result<()> {
    shape.check()?;
    let s = shape.streams;
    check(branch.len(), shape.tokens * shape.row_bytes());
    check(post.len(), shape.tokens * s);
    check(arriving.len(), shape.tokens * shape.token_bytes());
    check(to_branch.len(), shape.tokens * shape.row_bytes());
    check(to_post.len(), shape.tokens * s);
    let mut rest = Split::new(shape, threads);
    let mut parts = Vec::new();
    while let Some((start, tokens)) = rest.next() {
        let to_branch = take(&mut to_branch, tokens * shape.row_bytes());
        parts.push(Mutex::new((start, tokens, to_branch, take(&mut to_post, tokens * s))));
    }
    threads.run(parts.len(), &|index| {
        let (start, tokens, to_branch, to_post) = &mut *parts[index].lock();
        let of = |unit: usize| *start * unit..(*start + *tokens) * unit;
        run(kernel::write_backward(
            SimdLevel::detect(),
            shape,
            &branch[of(shape.row_bytes())],
            &post[of(s)],
            &arriving[of(shape.token_bytes())],
            to_branch,
            to_post,
        ));
    });
    Ok(())
}

/// Gradients of [`read`].
///
/// The mixed streams are treated as one of its outputs, which [`write`] computes on its way
/// and never stores: so `write` has nothing to pass back for the streams but the gradient
/// that it was given, and the streams' gradient is written once instead of three times.
///
/// The sums over tokens depend on the number of threads, not on their timing.
///
/// # Errors
/// As [`read`].
///
/// # Panics
/// When a slice is not of its shape.
pub fn read_backward(
    threads: &dyn Parallel,
    shape: Shape,
    form: Form,
    parameters: Parameters<'_>,
    streams: &[u8],
    kept: Kept<'_>,
    arriving: Arriving<'_>,
    leaving: Leaving<'_>,
) -> Result<()> {
    shape.check()?;
    parameters.check(shape);
    let s = shape.streams;
    check(streams.len(), shape.tokens * shape.token_bytes());
    check(kept.numbers.len(), shape.tokens * shape.numbers());
    check(kept.inverse_rms.len(), shape.tokens);
    check(arriving.input.len(), shape.tokens * shape.row_bytes());
    check(arriving.mixed.len(), shape.tokens * shape.token_bytes());
    check(arriving.post.len(), shape.tokens * s);
    assert!(arriving.pre.is_empty() || arriving.pre.len() == shape.tokens * s, "pre");
    assert!(arriving.comb.is_empty() || arriving.comb.len() == shape.tokens * s * s, "comb");
    let Leaving { streams: mut to_streams, weight, bias, scale } = leaving;
    check(to_streams.len(), shape.tokens * shape.token_bytes());
    check(weight.len(), parameters.weight.len());
    check(bias.len(), shape.numbers());
    check(scale.len(), 3);
    let mut rest = Split::new(shape, threads);
    let mut parts = Vec::new();
    while let Some((start, tokens)) = rest.next() {
        let to_streams = take(&mut to_streams, tokens * shape.token_bytes());
        parts.push(Mutex::new((start, tokens, to_streams, Sums::new(shape))));
    }
    threads.run(parts.len(), &|index| {
        let (start, tokens, to_streams, sums) = &mut *parts[index].lock();
        let of = |unit: usize| *start * unit..(*start + *tokens) * unit;
        let kept =
            Kept { numbers: &kept.numbers[of(shape.numbers())], inverse_rms: &kept.inverse_rms[of(1)] };
        let arriving = Arriving {
            input: &arriving.input[of(shape.row_bytes())],
            mixed: &arriving.mixed[of(shape.token_bytes())],
            pre: if arriving.pre.is_empty() { &[] } else { &arriving.pre[of(s)] },
            post: &arriving.post[of(s)],
            comb: if arriving.comb.is_empty() { &[] } else { &arriving.comb[of(s * s)] },
        };
        let x = &streams[of(shape.token_bytes())];
        run(kernel::read_backward(
            SimdLevel::detect(),
            shape,
            form,
            parameters,
            x,
            kept,
            arriving,
            to_streams,
            sums,
        ));
    });
    weight.fill(0.0);
    let mut small = vec![0.0_f64; shape.numbers() + 3];
    for part in &parts {
        let (_, _, _, sums) = &*part.lock();
        for (total, sum) in weight.iter_mut().zip(&sums.weight) {
            *total += sum;
        }
        for (total, sum) in small.iter_mut().zip(sums.bias.iter().chain(&sums.scale)) {
            *total += f64::from(*sum);
        }
    }
    for (total, sum) in bias.iter_mut().chain(scale).zip(small) {
        *total = sum as f32;
    }
    Ok(())
}

/// Sums over the tokens of one part.
pub(crate) struct Sums {
    pub(crate) weight: Vec<f32>,
    pub(crate) bias: Vec<f32>,
    pub(crate) scale: [f32; 3],
}

impl Sums {
    fn new(shape: Shape) -> Self {
        let numbers = shape.numbers();
        Self {
            weight: vec![0.0; numbers * shape.streams * shape.width],
            bias: vec![0.0; numbers],
            scale: [0.0; 3],
        }
    }
}

/// Consecutive runs of whole blocks, a few for each thread.
struct Split {
    tokens: usize,
    size: usize,
    at: usize,
}

impl Split {
    fn new(shape: Shape, threads: &dyn Parallel) -> Self {
        let num_parts = match threads.threads() {
            1 => 1,
            threads => threads * PARTS_PER_THREAD,
        };
        let blocks = shape.tokens.div_ceil(BLOCK).div_ceil(num_parts).max(1);
        Self { tokens: shape.tokens, size: blocks * BLOCK, at: 0 }
    }

    /// First token and number of tokens of the next part.
    fn next(&mut self) -> Option<(usize, usize)> {
        let tokens = self.size.min(self.tokens - self.at);
        let start = self.at;
        self.at += tokens;
        (tokens != 0).then_some((start, tokens))
    }
}

/// Cuts the first `len` elements off.
#[expect(clippy::mut_mut, reason = "the slice becomes its rest")]
fn take<'a, T>(from: &mut &'a mut [T], len: usize) -> &'a mut [T] {
    let (head, tail) = std::mem::take(from).split_at_mut(len);
    *from = tail;
    head
}

fn check(found: usize, expected: usize) {
    assert!(found == expected, "a slice of {found}, expected {expected}");
}

/// A kernel that [`Shape::check`] said is there.
fn run(ran: Option<()>) {
    assert!(ran.is_some(), "the machine's best level has a kernel");
}

#[cfg(test)]
mod tests;
