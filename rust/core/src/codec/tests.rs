//! Codes and planes against what their definitions say, searched for by brute force, and
//! every level against the scalar twin.

#![expect(clippy::float_cmp, reason = "what is asserted equal is exact")]

use std::sync::LazyLock;

use proptest::prelude::*;

use super::fp8::{decode_fp8_at, encode_fp8_at};
use super::planes::{NOT_FINITE, decode_rows_at, encode_rows_at, restore_rows_at};
use super::*;
use crate::dtype::{DType, bf16_to_f32, f32_to_bf16};
use crate::simd::SimdLevel;

const DTYPES: [DType; 3] = [DType::F32, DType::Bf16, DType::F16];

/// The magnitude that code 0..=0x7f stands for, by the format's definition, were 0x7f a number.
fn magnitude(code: u8) -> f64 {
    static MAGNITUDES: LazyLock<Vec<f64>> = LazyLock::new(|| (0..=0x7f).map(define).collect());
    MAGNITUDES[usize::from(code)]
}

fn define(code: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(code >> 3), f64::from(code & 7));
    if exponent == 0 { mantissa * 2_f64.powi(-9) } else { (1.0 + mantissa / 8.0) * 2_f64.powi(exponent - 7) }
}

/// The nearest code, ties to even, saturated, found by looking at all.
fn nearest(value: f32) -> u8 {
    let sign = u8::from(value.is_sign_negative()) << 7;
    if value.is_nan() {
        return 0x7f | sign;
    }
    let target = f64::from(value).abs().min(448.0);
    let distance = |code: u8| (magnitude(code) - target).abs();
    let best = (0..=0x7e).map(distance).fold(f64::INFINITY, f64::min);
    let ties: Vec<u8> = (0..=0x7e).filter(|code| distance(*code) == best).collect();
    ties.iter().copied().find(|code| ties.len() == 1 || code % 2 == 0).unwrap() | sign
}

/// All inputs of a 16-bit type; for float32, all bfloat16 values and the neighbours of
/// every rounding boundary.
fn inputs(dtype: DType) -> Vec<u8> {
    if dtype != DType::F32 {
        return (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    }
    let mut values: Vec<f32> = (0..=u16::MAX).map(bf16_to_f32).collect();
    for code in 0..0x7e {
        let middle = f64::midpoint(magnitude(code), magnitude(code + 1)) as f32;
        values.extend([middle, middle.next_up(), middle.next_down(), -middle, -middle.next_up()]);
    }
    values.extend([448.0, 464.0, 465.0, 480.0, f32::MAX, f32::from_bits(0xff80_0001)]);
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[test]
fn codes_are_the_nearest_for_all_inputs() {
    for dtype in DTYPES {
        let values = inputs(dtype);
        for index in 0..values.len() / dtype.size() {
            let value = dtype.read(&values, index);
            assert_eq!(f32_to_fp8(value), nearest(value), "{value:e}");
        }
    }
}

#[test]
fn values_of_codes_are_those_of_the_format() {
    for code in 0..=u8::MAX {
        let value = f64::from(fp8_to_f32(code));
        if code & 0x7f == 0x7f {
            assert!(value.is_nan());
        } else {
            assert_eq!(value.abs(), magnitude(code & 0x7f));
            assert_eq!(value.is_sign_negative(), code > 0x7f);
            assert_eq!(f32_to_fp8(value as f32), code);
        }
    }
}

#[test]
fn every_level_encodes_slices_as_the_scalar_twin() {
    for dtype in DTYPES {
        let all = inputs(dtype);
        let size = dtype.size();
        for scale in [1.0, 0.37, 2.0_f32.powi(-20), -3e20] {
            let mut truth = vec![0; all.len() / size];
            encode_fp8_at(SimdLevel::Scalar, dtype, &all, scale, &mut truth);
            for level in SimdLevel::supported() {
                for skip in [0, 1, 7, 13, truth.len() - 3] {
                    let mut codes = vec![0; truth.len() - skip];
                    encode_fp8_at(level, dtype, &all[skip * size..], scale, &mut codes);
                    assert_eq!(codes, truth[skip..], "{level} {dtype} {scale}");
                }
            }
        }
    }
}

#[test]
fn every_level_decodes_slices_as_the_scalar_twin() {
    let all: Vec<u8> = (0..=u8::MAX).collect();
    for dtype in DTYPES {
        let size = dtype.size();
        for scale in [1.0, 0.37, -2.0_f32.powi(-127), 1e-40, 1e37, 3e38, f32::NAN] {
            let mut truth = vec![0; 256 * size];
            decode_fp8_at(SimdLevel::Scalar, &all, scale, dtype, &mut truth);
            for level in SimdLevel::supported() {
                for skip in [0, 1, 7, 13, 253] {
                    let mut out = vec![0; (256 - skip) * size];
                    decode_fp8_at(level, &all[skip..], scale, dtype, &mut out);
                    for index in 0..256 - skip {
                        let (out, truth) = (dtype.read(&out, index), dtype.read(&truth, skip + index));
                        assert!(same(out, truth), "{level} {dtype} {scale}: {out:e}, not {truth:e}");
                    }
                }
            }
        }
    }
}

fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
}

struct Encoded {
    shape: RowShape,
    scales: Vec<u8>,
    codes: Vec<u8>,
    residual: Vec<u8>,
}

fn encode(level: SimdLevel, shape: RowShape, rows: &[u8]) -> Encoded {
    let count = rows.len() / shape.row_bytes();
    let mut scales = vec![9; count];
    let mut codes = vec![9; count * shape.code_bytes()];
    let mut residual = vec![9; count * shape.residual_bytes()];
    encode_rows_at(level, shape, rows, &mut scales, &mut codes, &mut residual);
    Encoded { shape, scales, codes, residual }
}

impl Encoded {
    fn decode(&self, level: SimdLevel, dtype: DType) -> Vec<u8> {
        let mut out = vec![9; self.codes.len() * dtype.size()];
        decode_rows_at(level, self.shape.dim, &self.scales, &self.codes, dtype, &mut out);
        out
    }

    fn restore(&self, level: SimdLevel, dtype: DType) -> Vec<u8> {
        let mut out = vec![9; self.codes.len() * dtype.size()];
        restore_rows_at(level, self.shape, &self.scales, &self.codes, &self.residual, dtype, &mut out);
        out
    }
}

/// The type of 16 bits that rows of `dtype` are restored to.
fn kept(dtype: DType) -> DType {
    if dtype == DType::F16 { DType::F16 } else { DType::Bf16 }
}

fn row_of(dtype: DType, values: &[f32]) -> Vec<u8> {
    let mut row = vec![0; values.len() * dtype.size()];
    for (index, value) in values.iter().enumerate() {
        dtype.write(&mut row, index, *value);
    }
    row
}

/// Checks one finite row against the promises of [`planes`].
fn check_row(level: SimdLevel, dtype: DType, values: &[f32]) {
    let shape = RowShape { dim: values.len(), dtype };
    let encoded = encode(level, shape, &row_of(dtype, values));
    let scale = 2_f64.powi(i32::from(encoded.scales[0]) - 127);
    let largest = values.iter().fold(0.0_f64, |largest, value| largest.max(f64::from(value.abs())));
    assert!(largest <= 448.0 * scale, "{largest:e} is too large for {scale:e}");
    assert!(largest > 224.0 * scale || encoded.scales[0] == 0, "{largest:e} is too small for {scale:e}");
    let decoded = encoded.decode(level, DType::F32);
    let restored = encoded.restore(level, kept(dtype));
    let (bits, step) = if dtype == DType::F16 { (10, 2_f64.powi(-17)) } else { (7, 2_f64.powi(-14)) };
    for (index, &value) in values.iter().enumerate() {
        let exact = f64::from(value);
        let restored = kept(dtype).read(&restored, index);
        let decoded = DType::F32.read(&decoded, index);
        let context = format!("{level} {dtype}: {value:e} over {scale:e}");
        assert_eq!(restored.is_sign_negative(), value.is_sign_negative(), "{context}");
        assert_eq!(decoded.is_sign_negative(), value.is_sign_negative(), "{context}");
        let code = encoded.codes[index] & 0x7f;
        assert_ne!(code, 0x7f, "{context}");
        let error = (magnitude(code) * scale - exact.abs()).abs();
        if exact.abs() >= scale / 64.0 {
            assert_eq!(restored.to_bits(), value.to_bits(), "{context}");
            // The nearest of all codes; of two, the larger.
            let next = (magnitude(code + 1) * scale - exact.abs()).abs();
            let last = (magnitude(code - 1) * scale - exact.abs()).abs();
            assert!(error <= last && (error < next || code == 0x7e), "{context}: code {code}");
            assert!(error <= exact.abs() / 16.0, "{context}: code {code}");
        } else {
            let lost = (f64::from(restored) - exact).abs();
            assert!(lost <= step * scale, "{context}: restored {restored:e}, of {bits} bits");
            assert!(error <= (2_f64.powi(-10) + step) * scale, "{context}: code {code}");
        }
        if decoded.is_finite() {
            assert_eq!(f64::from(decoded).abs(), magnitude(code) * scale, "{context}");
        } else {
            assert!(exact.abs() >= 1.9375 * 2_f64.powi(127), "{context}");
        }
    }
}

#[test]
fn all_16_bit_values_keep_the_promises() {
    for dtype in [DType::Bf16, DType::F16] {
        // Positive finite values in ascending order: a row of all up to some largest one.
        let all = inputs(dtype);
        let values = (0..0x8000).map(|index| dtype.read(&all, index));
        let values: Vec<f32> = values.filter(|value| value.is_finite()).collect();
        let (bits, every) = if dtype == DType::F16 { (10, 1) } else { (7, 10) };
        for exponent in (0..values.len() >> bits).step_by(every) {
            // Up to either side of where the scale doubles, and of where a code would be 480's.
            for offset in [0, (3 << bits >> 2), (3 << bits >> 2) + 1, (1 << bits) - 1] {
                let mut row: Vec<f32> = values[..=(exponent << bits) + offset].to_vec();
                for value in row.iter_mut().step_by(2) {
                    *value = -*value;
                }
                check_row(SimdLevel::detect(), dtype, &row);
            }
        }
    }
}

#[test]
fn rows_that_are_not_finite_decode_to_nan() {
    for dtype in DTYPES {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -f32::NAN] {
            for (dim, position) in [(1, 0), (3, 2), (40, 17), (64, 63)] {
                let mut values = vec![1.5; dim];
                values[position] = bad;
                for level in SimdLevel::supported() {
                    let encoded = encode(level, RowShape { dim, dtype }, &row_of(dtype, &values));
                    assert_eq!(encoded.scales, [NOT_FINITE]);
                    assert!(encoded.codes.iter().chain(&encoded.residual).all(|byte| *byte == 0));
                    for out in [encoded.decode(level, dtype), encoded.restore(level, dtype)] {
                        assert!((0..dim).all(|index| dtype.read(&out, index).is_nan()), "{level} {dtype}");
                    }
                }
            }
        }
    }
    // Rounded to bfloat16, this float32 is infinite.
    let encoded = encode(
        SimdLevel::detect(),
        RowShape { dim: 2, dtype: DType::F32 },
        &row_of(DType::F32, &[f32::MAX, 1.0]),
    );
    assert_eq!(encoded.scales, [NOT_FINITE]);
}

#[test]
fn zeros_keep_their_signs_and_have_the_smallest_scale() {
    for dtype in DTYPES {
        for level in SimdLevel::supported() {
            let values: Vec<f32> = (0..37).map(|index| if index % 3 == 0 { -0.0 } else { 0.0 }).collect();
            let row = row_of(dtype, &values);
            let encoded = encode(level, RowShape { dim: 37, dtype }, &row);
            assert_eq!(encoded.scales, [0]);
            assert_eq!(encoded.restore(level, dtype), row);
            assert_eq!(encoded.decode(level, dtype), row);
        }
    }
}

#[test]
fn the_largest_bfloat16_is_restored_and_overflows_from_its_code_alone() {
    let largest = bf16_to_f32(0x7f7f);
    for level in SimdLevel::supported() {
        let row = row_of(DType::Bf16, &[largest, -1.0, 2.0_f32.powi(120), -largest]);
        let encoded = encode(level, RowShape { dim: 4, dtype: DType::Bf16 }, &row);
        assert_eq!(encoded.scales, [247]);
        let restored = encoded.restore(level, DType::Bf16);
        assert_eq!(DType::Bf16.read(&restored, 0), largest);
        assert_eq!(DType::Bf16.read(&restored, 2), 2.0_f32.powi(120));
        assert_eq!(DType::Bf16.read(&restored, 3), -largest);
        assert_eq!(DType::Bf16.read(&encoded.decode(level, DType::Bf16), 0), f32::INFINITY);
        check_row(level, DType::Bf16, &[largest, -1.0, 2.0_f32.powi(120)]);
    }
}

#[test]
fn factors_are_256_times_the_scale() {
    assert_eq!(scale_factor(127), 256.0);
    assert_eq!(scale_factor(0), 2.0_f32.powi(-119));
    assert_eq!(scale_factor(246), 2.0_f32.powi(127));
    assert_eq!(scale_factor(247), f32::INFINITY);
    assert!(scale_factor(255).is_nan());
}

fn rows() -> impl Strategy<Value = (RowShape, Vec<u8>)> {
    let shape = (1_usize..100, 0_usize..3).prop_map(|(dim, dtype)| RowShape { dim, dtype: DTYPES[dtype] });
    // Normal-like values of any size, or any bits at all.
    (shape, 1_usize..4, -130_i32..126, any::<u64>(), 0_u8..8).prop_map(
        |(shape, count, exponent, seed, wild)| {
            let mut state = seed | 1;
            let mut random = move || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 32) as u32
            };
            let exponent = if shape.dtype == DType::F16 { exponent.rem_euclid(36) - 24 } else { exponent };
            let mut bytes = vec![0; count * shape.row_bytes()];
            for index in 0..count * shape.dim {
                let value = if wild == 0 {
                    f32::from_bits(random())
                } else {
                    let uniform = f64::from(random().cast_signed()) / 2_f64.powi(31);
                    (uniform * uniform * uniform * 2_f64.powi(exponent)) as f32
                };
                shape.dtype.write(&mut bytes, index, value);
            }
            (shape, bytes)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn every_level_gives_the_planes_of_the_scalar_twin((shape, rows) in rows()) {
        let truth = encode(SimdLevel::Scalar, shape, &rows);
        for level in SimdLevel::supported() {
            let encoded = encode(level, shape, &rows);
            prop_assert_eq!(&encoded.scales, &truth.scales, "{}", level);
            prop_assert_eq!(&encoded.codes, &truth.codes, "{}", level);
            prop_assert_eq!(&encoded.residual, &truth.residual, "{}", level);
            for dtype in DTYPES {
                prop_assert!(agree(dtype, &encoded.decode(level, dtype), &truth.decode(SimdLevel::Scalar, dtype)));
                prop_assert!(agree(dtype, &encoded.restore(level, dtype), &truth.restore(SimdLevel::Scalar, dtype)));
            }
        }
    }

    #[test]
    fn finite_rows_keep_the_promises((shape, rows) in rows()) {
        for row in rows.chunks_exact(shape.row_bytes()) {
            // A float32 row promises what its bfloat16 row does.
            let round = |value: f32| if shape.dtype == DType::F32 { bf16_to_f32(f32_to_bf16(value)) } else { value };
            let values: Vec<f32> = (0..shape.dim).map(|index| round(shape.dtype.read(row, index))).collect();
            if values.iter().all(|value| value.is_finite()) {
                for level in SimdLevel::supported() {
                    check_row(level, shape.dtype, &values);
                }
            }
        }
    }
}

/// Equal, a NaN to any NaN.
fn agree(dtype: DType, a: &[u8], b: &[u8]) -> bool {
    (0..a.len() / dtype.size()).all(|index| same(dtype.read(a, index), dtype.read(b, index)))
}
