//! The codecs on tensors; shapes are checked here, meaning is in `stratakv_core::codec`.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use stratakv_core::codec;
use stratakv_core::codec::RowShape;
use stratakv_core::dtype::DType;

use crate::buffer::Dense;
use crate::enter::enter;

/// Writes the FP8 codes of `values * inverse_scale`.
#[pyfunction]
#[pyo3(signature = (values, codes, *, inverse_scale=1.0))]
pub(crate) fn fp8_encode(
    py: Python<'_>,
    values: &Bound<'_, PyAny>,
    codes: &Bound<'_, PyAny>,
    inverse_scale: f32,
) -> PyResult<()> {
    let (values, dtype) = Dense::elements("values", values)?;
    let mut codes = Dense::bytes("codes", codes)?;
    codes.expect_shape(values.shape())?;
    Dense::expect_apart(&[&values, &codes])?;
    enter(py, || {
        codec::encode_fp8(dtype, values.as_slice(), inverse_scale, codes.as_mut_slice());
        Ok(())
    })
}

/// Writes `codes * scale` as elements of `out`.
#[pyfunction]
#[pyo3(signature = (codes, out, *, scale=1.0))]
pub(crate) fn fp8_decode(
    py: Python<'_>,
    codes: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
    scale: f32,
) -> PyResult<()> {
    let codes = Dense::bytes("codes", codes)?;
    let (mut out, dtype) = Dense::elements("out", out)?;
    out.expect_shape(codes.shape())?;
    Dense::expect_apart(&[&codes, &out])?;
    enter(py, || {
        codec::decode_fp8(codes.as_slice(), scale, dtype, out.as_mut_slice());
        Ok(())
    })
}

/// Encodes rows into a scale, codes and residuals each.
#[pyfunction]
pub(crate) fn encode_rows(
    py: Python<'_>,
    rows: &Bound<'_, PyAny>,
    scales: &Bound<'_, PyAny>,
    codes: &Bound<'_, PyAny>,
    residual: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let (rows, dtype) = Dense::elements("rows", rows)?;
    let (count, dim) = rows.rows()?;
    let shape = RowShape { dim, dtype };
    let mut scales = Dense::bytes("scales", scales)?;
    let mut codes = Dense::bytes("codes", codes)?;
    let mut residual = Dense::bytes("residual", residual)?;
    scales.expect_shape(&[count])?;
    codes.expect_shape(&[count, dim])?;
    residual.expect_shape(&[count, shape.residual_bytes()])?;
    Dense::expect_apart(&[&rows, &scales, &codes, &residual])?;
    enter(py, || {
        let (codes, residual) = (codes.as_mut_slice(), residual.as_mut_slice());
        codec::encode_rows(shape, rows.as_slice(), scales.as_mut_slice(), codes, residual);
        Ok(())
    })
}

/// Decodes rows from their codes alone.
#[pyfunction]
pub(crate) fn decode_rows(
    py: Python<'_>,
    scales: &Bound<'_, PyAny>,
    codes: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let (mut out, dtype) = Dense::elements("out", out)?;
    let (count, dim) = out.rows()?;
    let scales = Dense::bytes("scales", scales)?;
    let codes = Dense::bytes("codes", codes)?;
    scales.expect_shape(&[count])?;
    codes.expect_shape(&[count, dim])?;
    Dense::expect_apart(&[&scales, &codes, &out])?;
    enter(py, || {
        codec::decode_rows(dim, scales.as_slice(), codes.as_slice(), dtype, out.as_mut_slice());
        Ok(())
    })
}

/// Restores rows of `dtype` from both planes.
#[pyfunction]
pub(crate) fn restore_rows(
    py: Python<'_>,
    dtype: &str,
    scales: &Bound<'_, PyAny>,
    codes: &Bound<'_, PyAny>,
    residual: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let encoded: DType =
        dtype.parse().map_err(|error: stratakv_core::Error| PyValueError::new_err(error.to_string()))?;
    let (mut out, dtype) = Dense::elements("out", out)?;
    let (count, dim) = out.rows()?;
    let shape = RowShape { dim, dtype: encoded };
    let scales = Dense::bytes("scales", scales)?;
    let codes = Dense::bytes("codes", codes)?;
    let residual = Dense::bytes("residual", residual)?;
    scales.expect_shape(&[count])?;
    codes.expect_shape(&[count, dim])?;
    residual.expect_shape(&[count, shape.residual_bytes()])?;
    Dense::expect_apart(&[&scales, &codes, &residual, &out])?;
    enter(py, || {
        let (codes, residual) = (codes.as_slice(), residual.as_slice());
        codec::restore_rows(shape, scales.as_slice(), codes, residual, dtype, out.as_mut_slice());
        Ok(())
    })
}

/// Adds the functions to the module.
pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(fp8_encode, module)?)?;
    module.add_function(wrap_pyfunction!(fp8_decode, module)?)?;
    module.add_function(wrap_pyfunction!(encode_rows, module)?)?;
    module.add_function(wrap_pyfunction!(decode_rows, module)?)?;
    module.add_function(wrap_pyfunction!(restore_rows, module)?)
}
