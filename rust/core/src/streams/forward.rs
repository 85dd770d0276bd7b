//! The passes forward: reading streams, and writing a branch's output. Letters as in [`super`].

#![expect(unsafe_code, reason = "loads and stores through pointers into slices that were checked")]
#![expect(clippy::inline_always, reason = "what is not inlined is compiled without the instructions")]
#![expect(clippy::needless_range_loop, reason = "indices below constants unroll into registers")]

use super::kernel::{NUMBERS_MAX, numbers_of};
use super::sinkhorn::{self, Lane};
use super::{BLOCK, Form, Parameters, Reading};
use crate::simd::{Element, Simd};

/// Tokens whose products with rows of the weight are summed together.
const DOT_TOKENS: usize = 4;

#[inline(always)]
pub(super) fn read_part<V: Simd, E: Element, const S: usize>(
    simd: V,
    width: usize,
    form: Form,
    p: Parameters<'_>,
    x: &[u8],
    out: &mut Reading<'_>,
) {
    let (features, size) = (S * width, numbers_of(S));
    let tokens = out.inverse_rms.len();
    let mut start = 0;
    while start < tokens {
        let len = BLOCK.min(tokens - start);
        let x = &x[start * features * E::SIZE..][..len * features * E::SIZE];
        let mut numbers = [[0.0; BLOCK]; NUMBERS_MAX];
        project::<V, E>(simd, features, p.weight, x, len, &mut numbers[..size]);
        for t in 0..len {
            let mean = square_sum::<V, E>(simd, features, &x[t * features * E::SIZE..]) / features as f32;
            let inverse = 1.0 / (mean + form.norm_eps).sqrt();
            out.inverse_rms[start + t] = inverse;
            for m in 0..size {
                numbers[m][t] *= inverse;
                out.numbers[(start + t) * size + m] = numbers[m][t];
            }
        }
        let made = sinkhorn::forward::<V, S>(simd, form, p.scale, p.bias, &numbers[..size], None);
        for t in 0..len {
            let token = start + t;
            let mut pre = [0.0; S];
            for j in 0..S {
                pre[j] = made.pre[j][t] + form.eps;
                out.post[token * S + j] = 2.0 * made.half_post[j][t];
                for k in 0..S {
                    out.comb[(token * S + j) * S + k] = made.comb[j][k][t];
                }
            }
            let row = width * E::SIZE;
            let input = &mut out.input[token * row..][..row];
            weighted_sum::<V, E, S>(simd, width, &x[t * S * row..][..S * row], &pre, input);
        }
        start += len;
    }
}

/// Products of a block's tokens with every row of the weight, before the norm.
#[inline(always)]
fn project<V: Simd, E: Element>(
    simd: V,
    features: usize,
    weight: &[f32],
    x: &[u8],
    len: usize,
    numbers: &mut [Lane],
) {
    // Twelve sums and four tokens' values fill 16 registers.
    let most = if V::SUMS >= 24 { 6 } else { 3 };
    let mut t = 0;
    while t < len {
        let mut m = 0;
        while m < numbers.len() {
            let x = &x[..len * features * E::SIZE];
            let weight = &weight[m * features..];
            m += match most.min(numbers.len() - m) {
                6 => dots::<V, E, 6>(simd, features, weight, x, t, len, &mut numbers[m..]),
                3.. => dots::<V, E, 3>(simd, features, weight, x, t, len, &mut numbers[m..]),
                2 => dots::<V, E, 2>(simd, features, weight, x, t, len, &mut numbers[m..]),
                _ => dots::<V, E, 1>(simd, features, weight, x, t, len, &mut numbers[m..]),
            };
        }
        t += DOT_TOKENS;
    }
}

/// R rows of the weight with four tokens from `t` on; tokens past the last are the last again.
#[inline(always)]
fn dots<V: Simd, E: Element, const R: usize>(
    simd: V,
    features: usize,
    weight: &[f32],
    x: &[u8],
    t: usize,
    len: usize,
    numbers: &mut [Lane],
) -> usize {
    assert!(
        weight.len() >= R * features && x.len() == len * features * E::SIZE && numbers.len() >= R && t < len
    );
    let mut sums = [[simd.splat(0.0); DOT_TOKENS]; R];
    let mut at = 0;
    while at < features {
        let mut values = [simd.splat(0.0); DOT_TOKENS];
        for i in 0..DOT_TOKENS {
            let token = if t + i < len { t + i } else { len - 1 };
            // SAFETY: `features` is a multiple of LANES, and token `len - 1` the last of `x`.
            values[i] = unsafe { E::load(simd, x.as_ptr().add((token * features + at) * E::SIZE)) };
        }
        for r in 0..R {
            // SAFETY: R rows of `features` lie in the weight.
            let row = unsafe { simd.load_f32(weight.as_ptr().add(r * features + at).cast()) };
            for i in 0..DOT_TOKENS {
                sums[r][i] = simd.fma(row, values[i], sums[r][i]);
            }
        }
        at += V::LANES;
    }
    for r in 0..R {
        let mut four = [0.0; DOT_TOKENS];
        // SAFETY: room for four.
        unsafe { simd.store_sums(four.as_mut_ptr(), sums[r]) };
        for i in 0..DOT_TOKENS {
            if t + i < len {
                numbers[r][t + i] = four[i];
            }
        }
    }
    R
}

#[inline(always)]
fn square_sum<V: Simd, E: Element>(simd: V, features: usize, x: &[u8]) -> f32 {
    assert!(x.len() >= features * E::SIZE);
    let mut sums = [simd.splat(0.0); 4];
    let mut at = 0;
    while at < features {
        // SAFETY: `features` elements, a multiple of LANES.
        let value = unsafe { E::load(simd, x.as_ptr().add(at * E::SIZE)) };
        // In turns, so that an addition need not wait for the one before.
        let turn = (at / V::LANES) % 4;
        sums[turn] = simd.fma(value, value, sums[turn]);
        at += V::LANES;
    }
    simd.reduce_add(simd.add(simd.add(sums[0], sums[1]), simd.add(sums[2], sums[3])))
}

/// The sum of S rows times their factors.
#[inline(always)]
fn weighted_sum<V: Simd, E: Element, const S: usize>(
    simd: V,
    width: usize,
    rows: &[u8],
    factors: &[f32; S],
    out: &mut [u8],
) {
    assert!(rows.len() == S * width * E::SIZE && out.len() == width * E::SIZE);
    let mut at = 0;
    while at < width {
        let mut sum = simd.splat(0.0);
        for s in 0..S {
            // SAFETY: S rows of `width` elements, a multiple of LANES.
            let value = unsafe { E::load(simd, rows.as_ptr().add((s * width + at) * E::SIZE)) };
            sum = simd.fma(value, simd.splat(factors[s]), sum);
        }
        // SAFETY: `width` elements.
        unsafe { E::store(simd, out.as_mut_ptr().add(at * E::SIZE), sum) };
        at += V::LANES;
    }
}

#[inline(always)]
pub(super) fn write_part<V: Simd, E: Element, const S: usize>(
    simd: V,
    width: usize,
    x: &[u8],
    y: &[u8],
    post: &[f32],
    comb: &[f32],
    out: &mut [u8],
) {
    let row = width * E::SIZE;
    let tokens = out.len() / (S * row);
    for t in 0..tokens {
        let x = &x[t * S * row..][..S * row];
        let y = &y[t * row..][..row];
        let post = &post[t * S..][..S];
        let comb = &comb[t * S * S..][..S * S];
        let out = &mut out[t * S * row..][..S * row];
        let mut at = 0;
        while at < width {
            let mut values = [simd.splat(0.0); S];
            for j in 0..S {
                // SAFETY: S rows of `width` elements, a multiple of LANES.
                values[j] = unsafe { E::load(simd, x.as_ptr().add((j * width + at) * E::SIZE)) };
            }
            // SAFETY: `width` elements.
            let branch = unsafe { E::load(simd, y.as_ptr().add(at * E::SIZE)) };
            for k in 0..S {
                let mut sum = simd.mul(branch, simd.splat(post[k]));
                for j in 0..S {
                    sum = simd.fma(values[j], simd.splat(comb[j * S + k]), sum);
                }
                // SAFETY: S rows of `width` elements.
                unsafe { E::store(simd, out.as_mut_ptr().add((k * width + at) * E::SIZE), sum) };
            }
            at += V::LANES;
        }
    }
}
