//! The passes backward: gradients of what [`super::forward`] computes. Letters as in [`super`].

#![expect(unsafe_code, reason = "loads and stores through pointers into slices that were checked")]
#![expect(clippy::inline_always, reason = "what is not inlined is compiled without the instructions")]
#![expect(clippy::needless_range_loop, reason = "indices below constants unroll into registers")]

use super::kernel::{NUMBERS_MAX, numbers_of};
use super::sinkhorn::{self, Lane, Trail};
use super::{Arriving, BLOCK, Form, Kept, Parameters, Sums};
use crate::simd::{Element, Simd};

#[inline(always)]
pub(super) fn write_backward_part<V: Simd, E: Element, const S: usize>(
    simd: V,
    width: usize,
    y: &[u8],
    post: &[f32],
    arriving: &[u8],
    to_y: &mut [u8],
    to_post: &mut [f32],
) {
    let row = width * E::SIZE;
    let tokens = to_y.len() / row;
    for t in 0..tokens {
        let y = &y[t * row..][..row];
        let post = &post[t * S..][..S];
        let arriving = &arriving[t * S * row..][..S * row];
        let to_y = &mut to_y[t * row..][..row];
        let mut sums = [simd.splat(0.0); S];
        let mut at = 0;
        while at < width {
            // SAFETY: `width` elements, a multiple of LANES.
            let branch = unsafe { E::load(simd, y.as_ptr().add(at * E::SIZE)) };
            let mut grad = simd.splat(0.0);
            for k in 0..S {
                // SAFETY: S rows of `width` elements.
                let value = unsafe { E::load(simd, arriving.as_ptr().add((k * width + at) * E::SIZE)) };
                grad = simd.fma(value, simd.splat(post[k]), grad);
                sums[k] = simd.fma(value, branch, sums[k]);
            }
            // SAFETY: `width` elements.
            unsafe { E::store(simd, to_y.as_mut_ptr().add(at * E::SIZE), grad) };
            at += V::LANES;
        }
        for k in 0..S {
            to_post[t * S + k] = simd.reduce_add(sums[k]);
        }
    }
}

/// What a block's gradients of the streams are made of.
struct Coefficients<const S: usize> {
    pre: [Lane; S],
    comb: [[Lane; S]; S],
    /// Gradients of the products, before the norm: (BLOCK, M).
    products: [[f32; NUMBERS_MAX]; BLOCK],
    /// What the norm takes back, times the streams.
    norm: Lane,
}

#[inline(always)]
pub(super) fn read_backward_part<V: Simd, E: Element, const S: usize>(
    simd: V,
    width: usize,
    form: Form,
    p: Parameters<'_>,
    x: &[u8],
    kept: Kept<'_>,
    arriving: Arriving<'_>,
    to_x: &mut [u8],
    sums: &mut Sums,
) {
    let (features, row) = (S * width, width * E::SIZE);
    let mut trail = Trail::<S>::new(form);
    let tokens = kept.inverse_rms.len();
    let mut start = 0;
    while start < tokens {
        let len = BLOCK.min(tokens - start);
        let block = Block {
            width,
            len,
            x: &x[start * S * row..][..len * S * row],
            input: &arriving.input[start * row..][..len * row],
            mixed: &arriving.mixed[start * S * row..][..len * S * row],
        };
        let (mut to_pre, mut to_comb) = block.products_with_gradients::<V, E, S>(simd);
        let mut to_post = [[0.0; BLOCK]; S];
        for t in 0..len {
            for j in 0..S {
                to_post[j][t] = arriving.post[(start + t) * S + j];
                if !arriving.pre.is_empty() {
                    to_pre[j][t] += arriving.pre[(start + t) * S + j];
                }
                for k in 0..S {
                    if !arriving.comb.is_empty() {
                        to_comb[j][k][t] += arriving.comb[((start + t) * S + j) * S + k];
                    }
                }
            }
        }
        let kept = Kept {
            numbers: &kept.numbers[start * numbers_of(S)..][..len * numbers_of(S)],
            inverse_rms: &kept.inverse_rms[start..start + len],
        };
        let gradients = (to_pre, to_post, to_comb);
        let made = coefficients::<V, S>(simd, features, form, p, kept, gradients, &mut trail, sums);
        let to_x = &mut to_x[start * S * row..][..len * S * row];
        // Two vectors of 8 are as wide as the narrowest multiple of a width.
        if V::LANES * 2 <= super::WIDTH_MULTIPLE {
            block.streams_gradient::<V, E, S, 2, 4>(simd, p.weight, &made, to_x);
            block.weight_gradient::<V, E, S, 2>(simd, &made, &mut sums.weight);
        } else {
            block.streams_gradient::<V, E, S, 1, 8>(simd, p.weight, &made, to_x);
            block.weight_gradient::<V, E, S, 1>(simd, &made, &mut sums.weight);
        }
        start += len;
    }
}

/// Takes a block's gradients of the mappings back to those of the products, and adds those
/// of biases and scales up.
#[inline(always)]
fn coefficients<V: Simd, const S: usize>(
    simd: V,
    features: usize,
    form: Form,
    p: Parameters<'_>,
    kept: Kept<'_>,
    (to_pre, to_post, mut to_comb): ([Lane; S], [Lane; S], [[Lane; S]; S]),
    trail: &mut Trail<S>,
    sums: &mut Sums,
) -> Coefficients<S> {
    let size = numbers_of(S);
    let len = kept.inverse_rms.len();
    let mut numbers = [[0.0; BLOCK]; NUMBERS_MAX];
    let mut inverse = [0.0; BLOCK];
    for t in 0..len {
        inverse[t] = kept.inverse_rms[t];
        for m in 0..size {
            numbers[m][t] = kept.numbers[t * size + m];
        }
    }
    let made = sinkhorn::forward::<V, S>(simd, form, p.scale, p.bias, &numbers[..size], Some(&mut *trail));
    sinkhorn::backward(trail, &mut to_comb);
    let mut logits = [[0.0; BLOCK]; NUMBERS_MAX];
    for j in 0..S {
        for t in 0..BLOCK {
            logits[j][t] = to_pre[j][t] * made.pre[j][t] * (1.0 - made.pre[j][t]);
            logits[S + j][t] = 2.0 * to_post[j][t] * made.half_post[j][t] * (1.0 - made.half_post[j][t]);
        }
        for k in 0..S {
            logits[2 * S + j * S + k] = to_comb[j][k];
        }
    }
    let mut along = [0.0; BLOCK];
    let mut products = [[0.0; NUMBERS_MAX]; BLOCK];
    for m in 0..size {
        let which = if m < S {
            0
        } else if m < 2 * S {
            1
        } else {
            2
        };
        let (mut bias, mut scale) = (0.0, 0.0);
        for t in 0..len {
            bias += logits[m][t];
            scale += logits[m][t] * numbers[m][t];
            let number = logits[m][t] * p.scale[which];
            along[t] += number * numbers[m][t];
            products[t][m] = number * inverse[t];
        }
        sums.bias[m] += bias;
        sums.scale[which] += scale;
    }
    let mut norm = [0.0; BLOCK];
    let mut pre = [[0.0; BLOCK]; S];
    for t in 0..BLOCK {
        norm[t] = -along[t] * inverse[t] * inverse[t] / features as f32;
        for j in 0..S {
            pre[j][t] = made.pre[j][t] + form.eps;
        }
    }
    Coefficients { pre, comb: made.comb, products, norm }
}

/// A block of the backward pass.
struct Block<'a> {
    width: usize,
    len: usize,
    /// (len, S, C).
    x: &'a [u8],
    /// (len, C): the gradient of the branch's input.
    input: &'a [u8],
    /// (len, S, C): the gradient of the mixed streams.
    mixed: &'a [u8],
}

impl Block<'_> {
    /// Gradients of the pre mapping and of the mixing matrix: products of streams with gradients.
    #[inline(always)]
    fn products_with_gradients<V: Simd, E: Element, const S: usize>(
        &self,
        simd: V,
    ) -> ([Lane; S], [[Lane; S]; S]) {
        let row = self.width * E::SIZE;
        let mut to_pre = [[0.0; BLOCK]; S];
        let mut to_comb = [[[0.0; BLOCK]; S]; S];
        for t in 0..self.len {
            let x = &self.x[t * S * row..][..S * row];
            let mixed = &self.mixed[t * S * row..][..S * row];
            let mut k = 0;
            while k + 2 <= S {
                let sums = cross::<V, E, S, 2>(simd, self.width, x, &mixed[k * row..]);
                for j in 0..S {
                    to_comb[j][k][t] = sums[0][j];
                    to_comb[j][k + 1][t] = sums[1][j];
                }
                k += 2;
            }
            if k < S {
                let sums = cross::<V, E, S, 1>(simd, self.width, x, &mixed[k * row..]);
                for j in 0..S {
                    to_comb[j][k][t] = sums[0][j];
                }
            }
            let sums = cross::<V, E, S, 1>(simd, self.width, x, &self.input[t * row..]);
            for j in 0..S {
                to_pre[j][t] = sums[0][j];
            }
        }
        (to_pre, to_comb)
    }

    /// The gradient of the streams; N vectors by T tokens at a time.
    #[inline(always)]
    fn streams_gradient<V: Simd, E: Element, const S: usize, const N: usize, const T: usize>(
        &self,
        simd: V,
        weight: &[f32],
        made: &Coefficients<S>,
        to_x: &mut [u8],
    ) {
        let (width, features, size) = (self.width, S * self.width, numbers_of(S));
        assert!(weight.len() == size * features && to_x.len() == self.len * features * E::SIZE);
        assert!(self.x.len() == to_x.len() && self.mixed.len() == to_x.len());
        assert!(self.input.len() == self.len * width * E::SIZE);
        for j in 0..S {
            let mut at = 0;
            while at < width {
                let mut tile = [[simd.splat(0.0); N]; NUMBERS_MAX];
                for m in 0..size {
                    for v in 0..N {
                        let index = m * features + j * width + at + v * V::LANES;
                        // SAFETY: inside row m of the weight; N vectors divide a width.
                        tile[m][v] = unsafe { simd.load_f32(weight.as_ptr().add(index).cast()) };
                    }
                }
                let mut first = 0;
                while first < self.len {
                    let mut sums = [[simd.splat(0.0); N]; T];
                    for i in 0..T {
                        let t = if first + i < self.len { first + i } else { self.len - 1 };
                        for v in 0..N {
                            let c = at + v * V::LANES;
                            let own = t * features + j * width + c;
                            // SAFETY: token t < len of the streams, below its features.
                            let own = unsafe { E::load(simd, self.x.as_ptr().add(own * E::SIZE)) };
                            let mut sum = simd.mul(own, simd.splat(made.norm[t]));
                            let input = self.input.as_ptr();
                            // SAFETY: token t < len of the branch's input, below its width.
                            let input = unsafe { E::load(simd, input.add((t * width + c) * E::SIZE)) };
                            sum = simd.fma(input, simd.splat(made.pre[j][t]), sum);
                            for k in 0..S {
                                let mixed = t * features + k * width + c;
                                // SAFETY: as for the streams.
                                let mixed =
                                    unsafe { E::load(simd, self.mixed.as_ptr().add(mixed * E::SIZE)) };
                                sum = simd.fma(mixed, simd.splat(made.comb[j][k][t]), sum);
                            }
                            sums[i][v] = sum;
                        }
                    }
                    for m in 0..size {
                        for i in 0..T {
                            let t = if first + i < self.len { first + i } else { self.len - 1 };
                            let factor = simd.splat(made.products[t][m]);
                            for v in 0..N {
                                sums[i][v] = simd.fma(tile[m][v], factor, sums[i][v]);
                            }
                        }
                    }
                    for i in 0..T {
                        if first + i < self.len {
                            for v in 0..N {
                                let index = (first + i) * features + j * width + at + v * V::LANES;
                                // SAFETY: elements of token first + i < len.
                                unsafe { E::store(simd, to_x.as_mut_ptr().add(index * E::SIZE), sums[i][v]) };
                            }
                        }
                    }
                    first += T;
                }
                at += N * V::LANES;
            }
        }
    }

    /// Adds the gradient of the weight.
    #[inline(always)]
    fn weight_gradient<V: Simd, E: Element, const S: usize, const N: usize>(
        &self,
        simd: V,
        made: &Coefficients<S>,
        sums: &mut [f32],
    ) {
        let (features, size) = (S * self.width, numbers_of(S));
        assert!(sums.len() == size * features && self.x.len() == self.len * features * E::SIZE);
        let mut at = 0;
        while at < features {
            let mut tile = [[simd.splat(0.0); N]; BLOCK];
            for t in 0..self.len {
                for v in 0..N {
                    let index = t * features + at + v * V::LANES;
                    // SAFETY: token t < len, below its features, which N vectors divide.
                    tile[t][v] = unsafe { E::load(simd, self.x.as_ptr().add(index * E::SIZE)) };
                }
            }
            let mut m = 0;
            while m < size {
                let rows = &mut sums[m * features..];
                m += match size - m {
                    6.. => add_products::<V, N, 6>(simd, features, at, &tile, &made.products, m, rows),
                    3.. => add_products::<V, N, 3>(simd, features, at, &tile, &made.products, m, rows),
                    2 => add_products::<V, N, 2>(simd, features, at, &tile, &made.products, m, rows),
                    _ => add_products::<V, N, 1>(simd, features, at, &tile, &made.products, m, rows),
                };
            }
            at += N * V::LANES;
        }
    }
}

/// Adds G rows' products to the gradient of the weight; tokens past the last are zeros.
#[inline(always)]
fn add_products<V: Simd, const N: usize, const G: usize>(
    simd: V,
    features: usize,
    at: usize,
    tile: &[[V::Floats; N]; BLOCK],
    products: &[[f32; NUMBERS_MAX]; BLOCK],
    m: usize,
    rows: &mut [f32],
) -> usize {
    assert!(rows.len() >= G * features && at + N * V::LANES <= features && m + G <= NUMBERS_MAX);
    let mut sums = [[simd.splat(0.0); N]; G];
    for t in 0..BLOCK {
        for g in 0..G {
            let factor = simd.splat(products[t][m + g]);
            for v in 0..N {
                sums[g][v] = simd.fma(tile[t][v], factor, sums[g][v]);
            }
        }
    }
    for g in 0..G {
        for v in 0..N {
            // SAFETY: G rows of `features`, and N vectors from `at` on inside a row.
            unsafe {
                let into = rows.as_mut_ptr().add(g * features + at + v * V::LANES);
                simd.store(into, simd.add(simd.load_f32(into.cast()), sums[g][v]));
            }
        }
    }
    G
}

/// Products of each of S rows with each of K rows.
#[inline(always)]
fn cross<V: Simd, E: Element, const S: usize, const K: usize>(
    simd: V,
    width: usize,
    x: &[u8],
    rows: &[u8],
) -> [[f32; S]; K] {
    assert!(x.len() >= S * width * E::SIZE && rows.len() >= K * width * E::SIZE);
    let mut sums = [[simd.splat(0.0); S]; K];
    let mut at = 0;
    while at < width {
        let mut values = [simd.splat(0.0); S];
        for j in 0..S {
            // SAFETY: S rows of `width` elements, a multiple of LANES.
            values[j] = unsafe { E::load(simd, x.as_ptr().add((j * width + at) * E::SIZE)) };
        }
        for k in 0..K {
            // SAFETY: K rows of `width` elements.
            let row = unsafe { E::load(simd, rows.as_ptr().add((k * width + at) * E::SIZE)) };
            for j in 0..S {
                sums[k][j] = simd.fma(values[j], row, sums[k][j]);
            }
        }
        at += V::LANES;
    }
    let mut out = [[0.0; S]; K];
    for k in 0..K {
        for j in 0..S {
            out[k][j] = simd.reduce_add(sums[k][j]);
        }
    }
    out
}
