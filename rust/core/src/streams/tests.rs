//! The kernels against the equations, sum by sum in float64, and their gradients against
//! differences of those.

use super::*;
use crate::attend::{Inline, Pool};
use crate::testing::Seeded;

const FORM: Form = Form { sinkhorn_iters: 20, norm_eps: 1e-6, eps: 1e-6 };

/// Numbers between -1 and 1.
fn numbers(seed: &mut Seeded, count: usize) -> Vec<f32> {
    (0..count).map(|_| (seed.next_u64() >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    (0..bytes.len() / 4).map(|index| DType::F32.read(bytes, index)).collect()
}

/// One connection and its inputs.
struct Case {
    shape: Shape,
    weight: Vec<f32>,
    bias: Vec<f32>,
    scale: Vec<f32>,
    x: Vec<f32>,
    y: Vec<f32>,
}

/// Mappings, input and output of all tokens.
struct Outcome {
    input: Vec<f64>,
    post: Vec<f64>,
    comb: Vec<f64>,
    out: Vec<f64>,
}

impl Case {
    fn new(seed: u64, tokens: usize, streams: usize, width: usize) -> Self {
        let shape = Shape { tokens, streams, width, dtype: DType::F32 };
        let seed = &mut Seeded::new(seed);
        Self {
            shape,
            weight: numbers(seed, shape.numbers() * streams * width),
            bias: numbers(seed, shape.numbers()),
            scale: numbers(seed, 3),
            x: numbers(seed, tokens * streams * width),
            y: numbers(seed, tokens * width),
        }
    }

    fn parameters(&self) -> Parameters<'_> {
        Parameters { weight: &self.weight, bias: &self.bias, scale: &self.scale }
    }

    /// Streams, branch output, weight, bias, scale.
    fn argument(&mut self, which: usize) -> &mut [f32] {
        match which {
            0 => &mut self.x,
            1 => &mut self.y,
            2 => &mut self.weight,
            3 => &mut self.bias,
            _ => &mut self.scale,
        }
    }

    /// The equations.
    fn expected(&self) -> Outcome {
        let Shape { tokens, streams: s, width: c, .. } = self.shape;
        let mut made = Outcome { input: vec![], post: vec![], comb: vec![], out: vec![] };
        for t in 0..tokens {
            let x: Vec<f64> = self.x[t * s * c..][..s * c].iter().map(|v| f64::from(*v)).collect();
            let mean = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
            let logits: Vec<f64> = (0..self.shape.numbers())
                .map(|m| {
                    let row = &self.weight[m * s * c..][..s * c];
                    let dot: f64 = row.iter().zip(&x).map(|(w, v)| f64::from(*w) * v).sum();
                    let scale = self.scale[if m < s { 0 } else { 1 + usize::from(m >= 2 * s) }];
                    dot / (mean + f64::from(FORM.norm_eps)).sqrt() * f64::from(scale)
                        + f64::from(self.bias[m])
                })
                .collect();
            let eps = f64::from(FORM.eps);
            let sigmoid = |v: f64| 1.0 / (1.0 + (-v).exp());
            let pre: Vec<f64> = logits[..s].iter().map(|v| sigmoid(*v) + eps).collect();
            let post: Vec<f64> = logits[s..2 * s].iter().map(|v| 2.0 * sigmoid(*v)).collect();
            let comb = sinkhorn(s, &logits[2 * s..], eps);
            for i in 0..c {
                made.input.push((0..s).map(|j| pre[j] * x[j * c + i]).sum());
            }
            for k in 0..s {
                for i in 0..c {
                    let mixed: f64 = (0..s).map(|j| comb[j * s + k] * x[j * c + i]).sum();
                    made.out.push(mixed + post[k] * f64::from(self.y[t * c + i]));
                }
            }
            made.post.extend(post);
            made.comb.extend(comb);
        }
        made
    }

    /// What the kernels make: input, post, comb, numbers, inverse root mean squares and output.
    fn made(&self, threads: &dyn Parallel) -> [Vec<f32>; 6] {
        let Shape { tokens, streams, width, .. } = self.shape;
        let x = bytes(&self.x);
        let (mut input, mut out) = (vec![0; tokens * width * 4], vec![0; x.len()]);
        let mut post = vec![0.0; tokens * streams];
        let mut comb = vec![0.0; tokens * streams * streams];
        let mut kept = vec![0.0; tokens * self.shape.numbers()];
        let mut rms = vec![0.0; tokens];
        let reading = Reading {
            input: &mut input,
            post: &mut post,
            comb: &mut comb,
            numbers: &mut kept,
            inverse_rms: &mut rms,
        };
        read(threads, self.shape, FORM, self.parameters(), &x, reading).unwrap();
        write(threads, self.shape, &x, &bytes(&self.y), &post, &comb, &mut out).unwrap();
        [floats(&input), post, comb, kept, rms, floats(&out)]
    }

    /// A number that depends on all outcomes, for gradients.
    fn loss(&self, weights: &Outcome) -> f64 {
        let made = self.expected();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        dot(&made.input, &weights.input) + dot(&made.out, &weights.out)
    }
}

fn sinkhorn(s: usize, logits: &[f64], eps: f64) -> Vec<f64> {
    let mut comb: Vec<f64> = logits.iter().map(|v| v.exp()).collect();
    for row in comb.chunks_mut(s) {
        let sum: f64 = row.iter().sum();
        for v in row.iter_mut() {
            *v = *v / sum + eps;
        }
    }
    for step in 0..2 * FORM.sinkhorn_iters - 1 {
        for a in 0..s {
            let at = |b: usize| if step % 2 == 0 { b * s + a } else { a * s + b };
            let sum: f64 = (0..s).map(|b| comb[at(b)]).sum();
            (0..s).for_each(|b| comb[at(b)] /= sum + eps);
        }
    }
    comb
}

fn assert_near(found: &[f32], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let difference = (f64::from(*found) - expected).abs();
        assert!(difference <= 2e-5 + 2e-5 * expected.abs(), "{what}[{index}]: {found}, expected {expected}");
    }
}

#[test]
fn outcomes_equal_the_equations() {
    if SimdLevel::detect() == SimdLevel::Scalar {
        return;
    }
    let pool = Pool::new(3);
    for streams in STREAMS {
        for tokens in [0, 1, 3, 4, 16, 17, 70] {
            for width in [16, 32, 48] {
                let case = Case::new(7, tokens, streams, width);
                let expected = case.expected();
                for threads in [&Inline as &dyn Parallel, &pool] {
                    let [input, post, comb, _, _, out] = case.made(threads);
                    assert_near(&input, &expected.input, "input");
                    assert_near(&post, &expected.post, "post");
                    assert_near(&comb, &expected.comb, "comb");
                    assert_near(&out, &expected.out, "out");
                }
            }
        }
    }
}

#[test]
fn gradients_equal_differences() {
    if SimdLevel::detect() == SimdLevel::Scalar {
        return;
    }
    for (streams, tokens) in [(2, 5), (3, 17), (4, 19)] {
        let width = 16;
        let mut case = Case::new(11, tokens, streams, width);
        let shape = case.shape;
        let seed = &mut Seeded::new(5);
        let input = numbers(seed, tokens * width);
        let mixed = numbers(seed, tokens * streams * width);
        let weights = Outcome {
            input: input.iter().map(|v| f64::from(*v)).collect(),
            out: mixed.iter().map(|v| f64::from(*v)).collect(),
            post: vec![],
            comb: vec![],
        };
        let pool = Pool::new(2);
        let [_, post, _, kept, rms, _] = case.made(&pool);
        let (mut to_y, mut to_post) = (vec![0; tokens * width * 4], vec![0.0; post.len()]);
        let arriving = bytes(&mixed);
        write_backward(&pool, shape, &bytes(&case.y), &post, &arriving, &mut to_y, &mut to_post).unwrap();
        let mut to_x = vec![0; case.x.len() * 4];
        let mut to_weight = vec![0.0; case.weight.len()];
        let (mut to_bias, mut to_scale) = (vec![0.0; case.bias.len()], vec![0.0; 3]);
        read_backward(
            &pool,
            shape,
            FORM,
            case.parameters(),
            &bytes(&case.x),
            Kept { numbers: &kept, inverse_rms: &rms },
            Arriving { input: &bytes(&input), mixed: &arriving, pre: &[], post: &to_post, comb: &[] },
            Leaving { streams: &mut to_x, weight: &mut to_weight, bias: &mut to_bias, scale: &mut to_scale },
        )
        .unwrap();
        let found = [floats(&to_x), floats(&to_y), to_weight, to_bias, to_scale];
        for (which, gradient) in found.iter().enumerate() {
            for _ in 0..12 {
                let index = seed.below(gradient.len() as u64) as usize;
                let slope = slope(&mut case, which, index, &weights);
                let difference = (f64::from(gradient[index]) - slope).abs();
                assert!(
                    difference < 2e-3 + 2e-3 * slope.abs(),
                    "argument {which}, element {index}: {}, expected {slope}",
                    gradient[index]
                );
            }
        }
    }
}

/// The loss's slope along one element of one argument, by a central difference.
fn slope(case: &mut Case, which: usize, index: usize, weights: &Outcome) -> f64 {
    let before = case.argument(which)[index];
    let mut at = |step: f32| {
        case.argument(which)[index] = before + step;
        let moved = f64::from(case.argument(which)[index]) - f64::from(before);
        let loss = case.loss(weights);
        case.argument(which)[index] = before;
        (loss, moved)
    };
    let (up, above) = at(1.0 / 512.0);
    let (down, below) = at(-1.0 / 512.0);
    (up - down) / (above - below)
}

#[test]
fn what_has_no_kernel_is_refused() {
    for (streams, width) in [(1, 16), (5, 16), (4, 24), (4, 0)] {
        let case = Case::new(1, 1, streams, width);
        assert!(!case.shape.is_supported());
        let (post, comb) = (vec![0.0; streams], vec![0.0; streams * streams]);
        let error = write(&Inline, case.shape, &bytes(&case.x), &bytes(&case.y), &post, &comb, &mut []);
        assert!(matches!(error, Err(Error::Invalid(_))));
    }
}
