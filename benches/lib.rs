//! What the benchmarks share: rows in planes, and tensors that caches read and write.

use stratakv_core::cache::{Extent, ReadRows, WriteRows};
use stratakv_core::codec::planes::{RowShape, decode_rows_at, encode_rows_at, restore_rows_at};
use stratakv_core::dtype::DType;
use stratakv_core::simd::SimdLevel;

/// Rows of head dim 128, like keys, and their planes.
#[derive(Debug)]
pub struct Rows {
    /// 128 elements of the type.
    pub shape: RowShape,
    /// (N, 128) elements.
    pub elements: Vec<u8>,
    /// (N) bytes.
    pub scales: Vec<u8>,
    /// (N, 128) bytes.
    pub codes: Vec<u8>,
    /// (N, residual bytes).
    pub residual: Vec<u8>,
}

impl Rows {
    /// `count` rows of values that are more often small, encoded.
    ///
    /// # Panics
    /// When a SIMD level disagrees with the scalar codec about the first rows.
    pub fn new(dtype: DType, count: usize) -> Self {
        let shape = RowShape { dim: 128, dtype };
        let mut elements = vec![0; count * shape.row_bytes()];
        let mut state = 7_u64;
        for index in 0..count * shape.dim {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let uniform = (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0;
            dtype.write(&mut elements, index, uniform * uniform * uniform * 3.0);
        }
        let mut rows = Self {
            shape,
            elements,
            scales: vec![0; count],
            codes: vec![0; count * shape.code_bytes()],
            residual: vec![0; count * shape.residual_bytes()],
        };
        let Self { elements, scales, codes, residual, .. } = &mut rows;
        encode_rows_at(SimdLevel::detect(), shape, elements, scales, codes, residual);
        rows.assert_correct(count.min(100));
        rows
    }

    fn assert_correct(&self, count: usize) {
        let shape = self.shape;
        let elements = &self.elements[..count * shape.row_bytes()];
        let mut scales = vec![0; count];
        let mut codes = vec![0; count * shape.code_bytes()];
        let mut residual = vec![0; count * shape.residual_bytes()];
        encode_rows_at(SimdLevel::Scalar, shape, elements, &mut scales, &mut codes, &mut residual);
        assert!(scales == self.scales[..count] && codes == self.codes[..codes.len()], "codes");
        assert!(residual == self.residual[..residual.len()], "residuals");
        let (mut truth, mut out) = (vec![0; elements.len()], vec![1; elements.len()]);
        decode_rows_at(SimdLevel::Scalar, shape.dim, &scales, &codes, shape.dtype, &mut truth);
        decode_rows_at(SimdLevel::detect(), shape.dim, &scales, &codes, shape.dtype, &mut out);
        assert!(truth == out, "decoded values");
        restore_rows_at(SimdLevel::Scalar, shape, &scales, &codes, &residual, shape.dtype, &mut truth);
        restore_rows_at(SimdLevel::detect(), shape, &scales, &codes, &residual, shape.dtype, &mut out);
        assert!(truth == out, "restored values");
    }
}

/// A (1, H, T, D) tensor, as caches read and write them.
#[derive(Debug)]
pub struct Tensor {
    /// Its shape.
    pub extent: Extent,
    /// Row-major elements.
    pub bytes: Vec<u8>,
}

impl Tensor {
    /// Zeros.
    pub fn new(heads: usize, tokens: usize, dim: usize, dtype: DType) -> Self {
        let extent = Extent { batch: 1, heads, tokens, dim, dtype };
        Self { extent, bytes: vec![0; heads * tokens * extent.row_bytes()] }
    }

    fn start(&self, head: usize, token: usize) -> usize {
        (head * self.extent.tokens + token) * self.extent.row_bytes()
    }
}

impl ReadRows for Tensor {
    fn extent(&self) -> Extent {
        self.extent
    }
    fn read(&self, _: usize, head: usize, token: usize, into: &mut [u8]) {
        into.copy_from_slice(&self.bytes[self.start(head, token)..][..into.len()]);
    }
}

impl WriteRows for Tensor {
    fn extent(&self) -> Extent {
        self.extent
    }
    fn write(&mut self, _: usize, head: usize, token: usize, from: &[u8]) {
        let start = self.start(head, token);
        self.bytes[start..start + from.len()].copy_from_slice(from);
    }
}
