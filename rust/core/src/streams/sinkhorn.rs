//! From projected numbers to mappings, and back, for a block of tokens at once.
//!
//! Tokens lie side by side, so that plain loops over [`Lane`]s become vectors; these
//! functions are inlined into kernels that enable the instructions. Tokens past the end of
//! a block hold zeros, which are harmless numbers.

#![expect(unsafe_code, reason = "loads and stores of whole lanes")]
#![expect(clippy::inline_always, reason = "what is not inlined is compiled without the instructions")]
#![expect(clippy::needless_range_loop, reason = "indices below constants unroll into registers")]

use super::{BLOCK, Form};
use crate::simd::{Simd, exp_vector};

/// One number of each token of a block.
pub(super) type Lane = [f32; BLOCK];
/// A matrix of each token.
pub(super) type Matrix<const S: usize> = [[Lane; S]; S];

/// The mappings of a block.
pub(super) struct Mappings<const S: usize> {
    /// Without the `eps`.
    pub(super) pre: [Lane; S],
    /// Half of it: the sigmoid.
    pub(super) half_post: [Lane; S],
    pub(super) comb: Matrix<S>,
}

/// What the backward pass goes back through.
pub(super) struct Trail<const S: usize> {
    /// The softmax, then each normalised matrix.
    matrices: Vec<Matrix<S>>,
    /// Inverse sums of each normalisation.
    inverse: Vec<[Lane; S]>,
}

impl<const S: usize> Trail<S> {
    pub(super) fn new(form: Form) -> Self {
        let steps = 2 * form.sinkhorn_iters - 1;
        Self { matrices: vec![[[[0.0; BLOCK]; S]; S]; steps + 1], inverse: vec![[[0.0; BLOCK]; S]; steps] }
    }
}

/// `e^x` of every lane, for `x <= 0`.
#[inline(always)]
fn exp_lane<V: Simd>(simd: V, x: &mut Lane) {
    let mut at = 0;
    while at < BLOCK {
        // SAFETY: a block is whole vectors long.
        unsafe {
            let value = exp_vector(simd, simd.load_f32(x.as_ptr().add(at).cast()));
            simd.store(x.as_mut_ptr().add(at), value);
        }
        at += V::LANES;
    }
}

/// The sigmoid, from `e^-|x|` alone so that nothing overflows.
#[inline(always)]
fn sigmoid_lane<V: Simd>(simd: V, x: &Lane) -> Lane {
    let mut small = [0.0; BLOCK];
    for t in 0..BLOCK {
        small[t] = -x[t].abs();
    }
    exp_lane(simd, &mut small);
    let mut out = [0.0; BLOCK];
    for t in 0..BLOCK {
        let top = if x[t] >= 0.0 { 1.0 } else { small[t] };
        out[t] = top / (1.0 + small[t]);
    }
    out
}

/// Divides the columns of `m` (sums over j), or its rows, by their sums plus `eps`.
#[inline(always)]
fn normalize<const S: usize>(m: &mut Matrix<S>, columns: bool, eps: f32) -> [Lane; S] {
    let mut inverse = [[0.0; BLOCK]; S];
    for a in 0..S {
        let mut sum = [0.0; BLOCK];
        for b in 0..S {
            let entry = if columns { &m[b][a] } else { &m[a][b] };
            for t in 0..BLOCK {
                sum[t] += entry[t];
            }
        }
        for t in 0..BLOCK {
            inverse[a][t] = 1.0 / (sum[t] + eps);
        }
        for b in 0..S {
            let entry = if columns { &mut m[b][a] } else { &mut m[a][b] };
            for t in 0..BLOCK {
                entry[t] *= inverse[a][t];
            }
        }
    }
    inverse
}

#[inline(always)]
fn logit(numbers: &Lane, scale: f32, bias: f32) -> Lane {
    let mut out = [0.0; BLOCK];
    for t in 0..BLOCK {
        out[t] = numbers[t] * scale + bias;
    }
    out
}

/// The mappings of numbers (M lanes), keeping a trail where one is given.
#[inline(always)]
pub(super) fn forward<V: Simd, const S: usize>(
    simd: V,
    form: Form,
    scale: &[f32],
    bias: &[f32],
    numbers: &[Lane],
    mut trail: Option<&mut Trail<S>>,
) -> Mappings<S> {
    let mut pre = [[0.0; BLOCK]; S];
    let mut half_post = [[0.0; BLOCK]; S];
    let mut comb = [[[0.0; BLOCK]; S]; S];
    for s in 0..S {
        pre[s] = sigmoid_lane(simd, &logit(&numbers[s], scale[0], bias[s]));
        half_post[s] = sigmoid_lane(simd, &logit(&numbers[S + s], scale[1], bias[S + s]));
    }
    for j in 0..S {
        let mut largest = [f32::NEG_INFINITY; BLOCK];
        for k in 0..S {
            let m = 2 * S + j * S + k;
            comb[j][k] = logit(&numbers[m], scale[2], bias[m]);
            for t in 0..BLOCK {
                largest[t] = if comb[j][k][t] > largest[t] { comb[j][k][t] } else { largest[t] };
            }
        }
        for k in 0..S {
            for t in 0..BLOCK {
                comb[j][k][t] -= largest[t];
            }
            exp_lane(simd, &mut comb[j][k]);
        }
    }
    normalize(&mut comb, false, 0.0);
    if let Some(trail) = trail.as_deref_mut() {
        trail.matrices[0] = comb;
    }
    for j in 0..S {
        for k in 0..S {
            for t in 0..BLOCK {
                comb[j][k][t] += form.eps;
            }
        }
    }
    for step in 0..2 * form.sinkhorn_iters - 1 {
        let inverse = normalize(&mut comb, step % 2 == 0, form.eps);
        if let Some(trail) = trail.as_deref_mut() {
            trail.inverse[step] = inverse;
            trail.matrices[step + 1] = comb;
        }
    }
    Mappings { pre, half_post, comb }
}

/// Takes the gradient of the mixing matrix back to that of its logits, along the trail.
#[inline(always)]
pub(super) fn backward<const S: usize>(trail: &Trail<S>, grad: &mut Matrix<S>) {
    for step in (0..trail.inverse.len()).rev() {
        back_through(grad, &trail.matrices[step + 1], Some(&trail.inverse[step]), step % 2 == 0);
    }
    // The softmax: as a normalisation of exponentials, times them.
    let softmax = &trail.matrices[0];
    back_through(grad, softmax, None, false);
    for j in 0..S {
        for k in 0..S {
            for t in 0..BLOCK {
                grad[j][k][t] *= softmax[j][k][t];
            }
        }
    }
}

/// Of `y = m / sum(m)`: `dm = (dy - sum(dy y)) / sum(m)`.
#[inline(always)]
fn back_through<const S: usize>(
    grad: &mut Matrix<S>,
    normalized: &Matrix<S>,
    inverse: Option<&[Lane; S]>,
    columns: bool,
) {
    for a in 0..S {
        let mut dot = [0.0; BLOCK];
        for b in 0..S {
            let (j, k) = if columns { (b, a) } else { (a, b) };
            for t in 0..BLOCK {
                dot[t] += grad[j][k][t] * normalized[j][k][t];
            }
        }
        for b in 0..S {
            let (j, k) = if columns { (b, a) } else { (a, b) };
            for t in 0..BLOCK {
                let factor = match inverse {
                    Some(inverse) => inverse[a][t],
                    None => 1.0,
                };
                grad[j][k][t] = (grad[j][k][t] - dot[t]) * factor;
            }
        }
    }
}
