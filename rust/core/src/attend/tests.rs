//! Every level against an oracle in float64, over odd shapes.

use proptest::prelude::*;

use super::*;
use crate::codec::{RowShape, decode_rows, encode_rows, restore_rows};
use crate::dtype::DType;

/// A small generator, so that a case is named by its seed.
struct Random(u64);

impl Random {
    /// Uniform in [-1.7, 1.7]: unit variance.
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 40) as f32 / (1_u64 << 23) as f32 - 1.0) * 1.7
    }

    fn values(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.next()).collect()
    }

    fn elements(&mut self, len: usize, dtype: DType) -> Vec<u8> {
        let mut bytes = vec![0; len * dtype.size()];
        for index in 0..len {
            dtype.write(&mut bytes, index, self.next());
        }
        bytes
    }
}

#[derive(Clone, Debug)]
struct Case {
    seed: u64,
    rows: usize,
    page_tokens: usize,
    tokens: usize,
    dk: usize,
    dv: usize,
    dtype: DType,
    /// 0 none, 1 shared, 2 per row.
    bias: u8,
    /// 0 elements, 1 codes, 2 both planes.
    kept: u8,
}

fn cases() -> impl Strategy<Value = Case> {
    let dims = || prop_oneof![Just(64_usize), Just(80), Just(96), Just(128), 1_usize..150];
    let dtypes = prop_oneof![Just(DType::F32), Just(DType::Bf16), Just(DType::F16)];
    (any::<u64>(), 1_usize..20, 1_usize..80, 0_usize..300, dims(), dims(), dtypes, 0_u8..3, 0_u8..3).prop_map(
        |(seed, rows, page_tokens, tokens, dk, dv, dtype, bias, kept)| Case {
            seed,
            rows,
            page_tokens,
            tokens,
            dk,
            dv,
            dtype,
            bias,
            kept,
        },
    )
}

struct Inputs {
    q: Vec<f32>,
    pages: Vec<Page>,
    bias: Vec<f32>,
}

/// Keys and values of a page, as they are kept and as what they stand for.
struct Page {
    elements: Vec<u8>,
    keys: Coded,
    values: Coded,
    truth: Vec<f32>,
}

struct Coded {
    scales: Vec<u8>,
    codes: Vec<u8>,
    residual: Vec<u8>,
}

impl Coded {
    fn rows(&self, kept: u8) -> Rows<'_> {
        let residual = if kept == 2 { &self.residual[..] } else { &[] };
        Rows { bytes: &self.codes, residual, scales: &self.scales }
    }
}

impl Page {
    fn new(case: &Case, random: &mut Random) -> Self {
        let elements = random.elements(case.page_tokens * (case.dk + case.dv), case.dtype);
        let (keys, values) = elements.split_at(case.page_tokens * case.dk * case.dtype.size());
        let mut truth = Vec::new();
        let keys = coded(case, keys, case.dk, &mut truth);
        let values = coded(case, values, case.dv, &mut truth);
        Self { elements, keys, values, truth }
    }

    fn tile<'a>(&'a self, case: &Case, tokens: usize) -> Tile<'a> {
        let tile = Tile::of_page(&self.elements, case.page_tokens, tokens, case.dk, case.dv, case.dtype);
        let kind = match case.kept {
            0 => return tile,
            1 => Kind::Codes,
            _ => Kind::Planes(case.dtype),
        };
        Tile { keys: self.keys.rows(case.kept), values: self.values.rows(case.kept), kind, ..tile }
    }
}

/// The planes of some rows; adds what they stand for to `truth`.
fn coded(case: &Case, rows: &[u8], dim: usize, truth: &mut Vec<f32>) -> Coded {
    let shape = RowShape { dim, dtype: case.dtype };
    let (count, size) = (case.page_tokens, case.dtype.size());
    let mut coded = Coded {
        scales: vec![0; count],
        codes: vec![0; count * dim],
        residual: vec![0; count * shape.residual_bytes()],
    };
    encode_rows(shape, rows, &mut coded.scales, &mut coded.codes, &mut coded.residual);
    let mut out = vec![0; count * dim * 4];
    match case.kept {
        0 => truth.extend((0..rows.len() / size).map(|index| case.dtype.read(rows, index))),
        1 => decode_rows(dim, &coded.scales, &coded.codes, DType::F32, &mut out),
        _ => restore_rows(shape, &coded.scales, &coded.codes, &coded.residual, DType::F32, &mut out),
    }
    if case.kept > 0 {
        truth.extend((0..count * dim).map(|index| DType::F32.read(&out, index)));
    }
    coded
}

fn inputs(case: &Case) -> Inputs {
    let mut random = Random(case.seed);
    let mut q = random.values(case.rows * case.dk);
    for q in &mut q {
        *q /= (case.dk as f32).sqrt();
    }
    let pages = (0..case.tokens.div_ceil(case.page_tokens)).map(|_| Page::new(case, &mut random)).collect();
    let mut bias = random.values(case.rows * case.tokens);
    for bias in &mut bias {
        if *bias > 1.0 {
            *bias = f32::NEG_INFINITY;
        }
    }
    // The first row is masked throughout.
    if case.bias == 2 {
        bias[..case.tokens].fill(f32::NEG_INFINITY);
    }
    Inputs { q, pages, bias }
}

/// Calls `visit` with each page's tile, its mask included.
fn for_each_tile(case: &Case, inputs: &Inputs, mut visit: impl FnMut(Tile<'_>)) {
    for (index, page) in inputs.pages.iter().enumerate() {
        let first = index * case.page_tokens;
        let tokens = case.page_tokens.min(case.tokens - first);
        let tile = page.tile(case, tokens);
        let per_row: Vec<f32> = (0..case.rows)
            .flat_map(|row| inputs.bias[row * case.tokens + first..][..tokens].iter().copied())
            .collect();
        match case.bias {
            0 => visit(tile),
            1 => visit(tile.with_bias(Bias::Shared(&inputs.bias[first..first + tokens]))),
            _ => visit(tile.with_bias(Bias::PerRow(&per_row))),
        }
    }
}

fn bias_at(case: &Case, inputs: &Inputs, row: usize, token: usize) -> f64 {
    match case.bias {
        0 => 0.0,
        1 => f64::from(inputs.bias[token]),
        _ => f64::from(inputs.bias[row * case.tokens + token]),
    }
}

/// Softmax attention in float64: outputs, and for each the sum of weighted magnitudes that
/// a relative error refers to.
fn oracle(case: &Case, inputs: &Inputs) -> (Vec<f64>, Vec<f64>) {
    let (mut out, mut scale) = (vec![0.0; case.rows * case.dv], vec![0.0; case.rows * case.dv]);
    let at = |token: usize, offset: usize| f64::from(inputs.pages[token / case.page_tokens].truth[offset]);
    for row in 0..case.rows {
        let scores: Vec<f64> = (0..case.tokens)
            .map(|token| {
                let first = token % case.page_tokens * case.dk;
                let dot: f64 =
                    (0..case.dk).map(|d| f64::from(inputs.q[row * case.dk + d]) * at(token, first + d)).sum();
                dot + bias_at(case, inputs, row, token)
            })
            .collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if max == f64::NEG_INFINITY {
            continue;
        }
        let sum: f64 = scores.iter().map(|score| (score - max).exp()).sum();
        for (token, score) in scores.iter().enumerate() {
            let weight = (score - max).exp() / sum;
            let first = case.page_tokens * case.dk + token % case.page_tokens * case.dv;
            for d in 0..case.dv {
                let value = weight * at(token, first + d);
                out[row * case.dv + d] += value;
                scale[row * case.dv + d] += value.abs();
            }
        }
    }
    (out, scale)
}

fn run(level: SimdLevel, case: &Case, inputs: &Inputs) -> Vec<f32> {
    let mut buffer = vec![f32::NAN; Running::len_f32(case.rows, case.dv)];
    let mut state = Running::in_buffer(&mut buffer, case.rows, case.dv);
    state.reset();
    for_each_tile(case, inputs, |tile| {
        attend_tile_at(level, &inputs.q, case.rows, &tile, None, &mut state, None);
    });
    finish(&state)
}

fn finish(state: &Running<'_>) -> Vec<f32> {
    let mut out = vec![0; state.acc.len() * 4];
    state.finish(&mut out, DType::F32);
    (0..state.acc.len()).map(|index| DType::F32.read(&out, index)).collect()
}

fn assert_close(out: &[f32], (truth, scale): &(Vec<f64>, Vec<f64>), tolerance: f64, what: &str) {
    for (index, out) in out.iter().enumerate() {
        let error = (f64::from(*out) - truth[index]).abs();
        assert!(
            error <= tolerance * scale[index] + 1e-30,
            "{what}: output {index} is {out}, expected {}, {} of its magnitude",
            truth[index],
            error / scale[index]
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_level_agrees_with_float64(case in cases()) {
        let inputs = inputs(&case);
        let truth = oracle(&case, &inputs);
        for level in SimdLevel::supported() {
            assert_close(&run(level, &case, &inputs), &truth, 2e-6, level.name());
        }
    }

    #[test]
    fn a_split_merges_to_the_whole(case in cases(), parts in 1_usize..5) {
        let inputs = inputs(&case);
        let len = Running::len_f32(case.rows, case.dv);
        let mut buffers = vec![vec![f32::NAN; len]; parts];
        for buffer in &mut buffers {
            Running::in_buffer(buffer, case.rows, case.dv).reset();
        }
        let mut page = 0;
        for_each_tile(&case, &inputs, |tile| {
            let mut state = Running::in_buffer(&mut buffers[page * parts / inputs.pages.len()], case.rows, case.dv);
            attend_tile(&inputs.q, case.rows, &tile, &mut state, None);
            page += 1;
        });
        let mut rest = buffers.split_off(1);
        let mut whole = Running::in_buffer(&mut buffers[0], case.rows, case.dv);
        for buffer in &mut rest {
            whole.merge(&Running::in_buffer(buffer, case.rows, case.dv));
        }
        assert_close(&finish(&whole), &oracle(&case, &inputs), 2e-6, "merged");
    }

    #[test]
    fn masses_of_tiles_add_up_to_the_sum(case in cases()) {
        let inputs = inputs(&case);
        for level in SimdLevel::supported() {
            let mut buffer = vec![0.0; Running::len_f32(case.rows, case.dv)];
            let mut state = Running::in_buffer(&mut buffer, case.rows, case.dv);
            state.reset();
            let mut masses = Vec::new();
            for_each_tile(&case, &inputs, |tile| {
                let (mut reference, mut sum) = (vec![f32::NAN; case.rows], vec![f32::NAN; case.rows]);
                let mut mass = Mass { reference: &mut reference, sum: &mut sum };
                attend_tile_at(level, &inputs.q, case.rows, &tile, None, &mut state, Some(&mut mass));
                masses.push((reference, sum));
            });
            for row in 0..case.rows {
                let total: f64 = masses
                    .iter()
                    .filter(|(reference, _)| reference[row] > f32::NEG_INFINITY)
                    .map(|(reference, sum)| f64::from(sum[row]) * f64::from(reference[row] - state.max[row]).exp())
                    .sum();
                prop_assert!((total - f64::from(state.sum[row])).abs() <= 1e-5 * total);
            }
        }
    }
}

#[test]
fn what_is_masked_throughout_gives_zeros_and_no_nan() {
    for level in SimdLevel::supported() {
        let case = Case {
            seed: 1,
            rows: 5,
            page_tokens: 9,
            tokens: 9,
            dk: 33,
            dv: 17,
            dtype: DType::Bf16,
            bias: 1,
            kept: 0,
        };
        let mut inputs = inputs(&case);
        inputs.bias.fill(f32::NEG_INFINITY);
        assert!(run(level, &case, &inputs).iter().all(|out| out.to_bits() == 0), "{level}");
    }
}

#[test]
fn a_nan_among_the_keys_comes_out_as_nan() {
    for level in SimdLevel::supported() {
        for position in [0, 7, 40] {
            let case = Case {
                seed: 2,
                rows: 3,
                page_tokens: 64,
                tokens: 41,
                dk: 64,
                dv: 64,
                dtype: DType::F32,
                bias: 0,
                kept: 0,
            };
            let mut inputs = inputs(&case);
            DType::F32.write(&mut inputs.pages[0].elements, position * 64 + 5, f32::NAN);
            assert!(run(level, &case, &inputs).iter().all(|out| out.is_nan()), "{level} {position}");
        }
    }
}

#[test]
fn outputs_are_rounded_to_nearest() {
    let (mut max, mut sum, mut acc) = ([0.0, f32::NEG_INFINITY], [3.0, 0.0], [1.0, 3.0, 0.0, 0.0]);
    let state = Running { max: &mut max, sum: &mut sum, acc: &mut acc };
    for dtype in [DType::Bf16, DType::F16] {
        let mut out = [0xff; 8];
        state.finish(&mut out, dtype);
        let third = if dtype == DType::Bf16 { 0x3eab } else { 0x3555 };
        assert_eq!(u16::from_le_bytes([out[0], out[1]]), third);
        assert_eq!(dtype.read(&out, 1).to_bits(), 1.0_f32.to_bits());
        assert_eq!(out[4..], [0; 4]);
    }
}
