//! Hyper-connections on tensors; shapes are checked here, meaning is in `stratakv_core::streams`.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use stratakv_core::dtype::DType;
use stratakv_core::streams::{self, Arriving, Form, Kept, Leaving, Parameters, Reading, Shape};

use crate::buffer::Dense;
use crate::enter::enter;
use crate::threads;

/// Whether `streams_read` and its like have kernels for these sizes on this machine.
#[pyfunction]
pub(crate) fn streams_supported(streams: usize, width: usize) -> bool {
    Shape { tokens: 0, streams, width, dtype: DType::F32 }.is_supported()
}

/// A (N, S, C) tensor, and its sizes.
fn streams_of(name: &'static str, tensor: &Bound<'_, PyAny>) -> PyResult<(Dense, Shape)> {
    let (dense, dtype) = Dense::elements(name, tensor)?;
    match *dense.shape() {
        [tokens, streams, width] => Ok((dense, Shape { tokens, streams, width, dtype })),
        ref shape => Err(PyValueError::new_err(format!("{name} has shape {shape:?}, expected (N, S, C)"))),
    }
}

/// A tensor of the streams' dtype.
fn elements(
    name: &'static str,
    tensor: &Bound<'_, PyAny>,
    expected: Shape,
    shape: &[usize],
) -> PyResult<Dense> {
    let (dense, dtype) = Dense::elements(name, tensor)?;
    if dtype != expected.dtype {
        return Err(PyValueError::new_err(format!("{name} is {dtype}, the streams are {}", expected.dtype)));
    }
    dense.expect_shape(shape)?;
    Ok(dense)
}

/// The parameters of one connection.
struct Tensors {
    weight: Dense,
    bias: Dense,
    scale: Dense,
}

impl Tensors {
    fn new(
        weight: &Bound<'_, PyAny>,
        bias: &Bound<'_, PyAny>,
        scale: &Bound<'_, PyAny>,
        shape: Shape,
    ) -> PyResult<Self> {
        Ok(Self {
            weight: Dense::floats("weight", weight, &[shape.numbers(), shape.streams * shape.width])?,
            bias: Dense::floats("bias", bias, &[shape.numbers()])?,
            scale: Dense::floats("scale", scale, &[3])?,
        })
    }

    fn view(&self) -> Parameters<'_> {
        let Self { weight, bias, scale } = self;
        Parameters { weight: weight.as_floats(), bias: bias.as_floats(), scale: scale.as_floats() }
    }
}

fn form(sinkhorn_iters: usize, norm_eps: f32, eps: f32) -> PyResult<Form> {
    if sinkhorn_iters == 0 {
        return Err(PyValueError::new_err("sinkhorn_iters must be at least 1"));
    }
    Ok(Form { sinkhorn_iters, norm_eps, eps })
}

/// Reads streams: writes the branch's input, the mappings, and what the backward pass needs.
#[pyfunction]
#[pyo3(signature = (x, weight, bias, scale, *, sinkhorn_iters, norm_eps, eps, input, post, comb, numbers, inverse_rms))]
pub(crate) fn streams_read(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    weight: &Bound<'_, PyAny>,
    bias: &Bound<'_, PyAny>,
    scale: &Bound<'_, PyAny>,
    sinkhorn_iters: usize,
    norm_eps: f32,
    eps: f32,
    input: &Bound<'_, PyAny>,
    post: &Bound<'_, PyAny>,
    comb: &Bound<'_, PyAny>,
    numbers: &Bound<'_, PyAny>,
    inverse_rms: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let (x, shape) = streams_of("x", x)?;
    let Shape { tokens, streams, width, .. } = shape;
    let parameters = Tensors::new(weight, bias, scale, shape)?;
    let form = form(sinkhorn_iters, norm_eps, eps)?;
    let mut input = elements("input", input, shape, &[tokens, width])?;
    let mut post = Dense::floats("post", post, &[tokens, streams])?;
    let mut comb = Dense::floats("comb", comb, &[tokens, streams, streams])?;
    let mut numbers = Dense::floats("numbers", numbers, &[tokens, shape.numbers()])?;
    let mut inverse_rms = Dense::floats("inverse_rms", inverse_rms, &[tokens])?;
    let Tensors { weight, bias, scale } = &parameters;
    Dense::expect_apart(&[&x, weight, bias, scale, &input, &post, &comb, &numbers, &inverse_rms])?;
    let threads = threads::current();
    enter(py, || {
        let out = Reading {
            input: input.as_mut_slice(),
            post: post.as_mut_floats(),
            comb: comb.as_mut_floats(),
            numbers: numbers.as_mut_floats(),
            inverse_rms: inverse_rms.as_mut_floats(),
        };
        streams::read(&*threads, shape, form, parameters.view(), x.as_slice(), out)
    })
}

/// Writes the streams after a branch.
#[pyfunction]
pub(crate) fn streams_write(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    y: &Bound<'_, PyAny>,
    post: &Bound<'_, PyAny>,
    comb: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let (x, shape) = streams_of("x", x)?;
    let Shape { tokens, streams, width, .. } = shape;
    let y = elements("y", y, shape, &[tokens, width])?;
    let post = Dense::floats("post", post, &[tokens, streams])?;
    let comb = Dense::floats("comb", comb, &[tokens, streams, streams])?;
    let mut out = elements("out", out, shape, &[tokens, streams, width])?;
    Dense::expect_apart(&[&x, &y, &post, &comb, &out])?;
    let threads = threads::current();
    enter(py, || {
        let (post, comb) = (post.as_floats(), comb.as_floats());
        streams::write(&*threads, shape, x.as_slice(), y.as_slice(), post, comb, out.as_mut_slice())
    })
}

/// Writes the gradients of a branch's output and of `post`.
#[pyfunction]
pub(crate) fn streams_write_backward(
    py: Python<'_>,
    y: &Bound<'_, PyAny>,
    post: &Bound<'_, PyAny>,
    arriving: &Bound<'_, PyAny>,
    to_y: &Bound<'_, PyAny>,
    to_post: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let (arriving, shape) = streams_of("arriving", arriving)?;
    let Shape { tokens, streams, width, .. } = shape;
    let y = elements("y", y, shape, &[tokens, width])?;
    let post = Dense::floats("post", post, &[tokens, streams])?;
    let mut to_y = elements("to_y", to_y, shape, &[tokens, width])?;
    let mut to_post = Dense::floats("to_post", to_post, &[tokens, streams])?;
    Dense::expect_apart(&[&y, &post, &arriving, &to_y, &to_post])?;
    let threads = threads::current();
    enter(py, || {
        let (to_y, to_post) = (to_y.as_mut_slice(), to_post.as_mut_floats());
        let (y, arriving) = (y.as_slice(), arriving.as_slice());
        streams::write_backward(&*threads, shape, y, post.as_floats(), arriving, to_y, to_post)
    })
}

/// Writes the gradients of streams and parameters.
#[pyfunction]
#[pyo3(signature = (
    x, weight, bias, scale, *, sinkhorn_iters, norm_eps, eps, numbers, inverse_rms,
    input_grad, mixed_grad, pre_grad, post_grad, comb_grad, to_x, to_weight, to_bias, to_scale
))]
pub(crate) fn streams_read_backward(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    weight: &Bound<'_, PyAny>,
    bias: &Bound<'_, PyAny>,
    scale: &Bound<'_, PyAny>,
    sinkhorn_iters: usize,
    norm_eps: f32,
    eps: f32,
    numbers: &Bound<'_, PyAny>,
    inverse_rms: &Bound<'_, PyAny>,
    input_grad: &Bound<'_, PyAny>,
    mixed_grad: &Bound<'_, PyAny>,
    pre_grad: Option<&Bound<'_, PyAny>>,
    post_grad: &Bound<'_, PyAny>,
    comb_grad: Option<&Bound<'_, PyAny>>,
    to_x: &Bound<'_, PyAny>,
    to_weight: &Bound<'_, PyAny>,
    to_bias: &Bound<'_, PyAny>,
    to_scale: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let (x, shape) = streams_of("x", x)?;
    let Shape { tokens, streams, width, .. } = shape;
    let parameters = Tensors::new(weight, bias, scale, shape)?;
    let form = form(sinkhorn_iters, norm_eps, eps)?;
    let numbers = Dense::floats("numbers", numbers, &[tokens, shape.numbers()])?;
    let inverse_rms = Dense::floats("inverse_rms", inverse_rms, &[tokens])?;
    let input = elements("input_grad", input_grad, shape, &[tokens, width])?;
    let mixed = elements("mixed_grad", mixed_grad, shape, &[tokens, streams, width])?;
    let pre = pre_grad.map(|pre| Dense::floats("pre_grad", pre, &[tokens, streams])).transpose()?;
    let post = Dense::floats("post_grad", post_grad, &[tokens, streams])?;
    let comb =
        comb_grad.map(|comb| Dense::floats("comb_grad", comb, &[tokens, streams, streams])).transpose()?;
    let mut to_x = elements("to_x", to_x, shape, &[tokens, streams, width])?;
    let mut to = Tensors::new(to_weight, to_bias, to_scale, shape)?;
    let written = [&to_x, &to.weight, &to.bias, &to.scale];
    let read = [&x, &parameters.weight, &parameters.bias, &parameters.scale, &numbers, &inverse_rms];
    let all: Vec<&Dense> =
        written.into_iter().chain(read).chain([&input, &mixed, &post]).chain(&pre).chain(&comb).collect();
    Dense::expect_apart(&all)?;
    let threads = threads::current();
    enter(py, || {
        let kept = Kept { numbers: numbers.as_floats(), inverse_rms: inverse_rms.as_floats() };
        let arriving = Arriving {
            input: input.as_slice(),
            mixed: mixed.as_slice(),
            pre: pre.as_ref().map_or(&[], Dense::as_floats),
            post: post.as_floats(),
            comb: comb.as_ref().map_or(&[], Dense::as_floats),
        };
        let leaving = Leaving {
            streams: to_x.as_mut_slice(),
            weight: to.weight.as_mut_floats(),
            bias: to.bias.as_mut_floats(),
            scale: to.scale.as_mut_floats(),
        };
        streams::read_backward(
            &*threads,
            shape,
            form,
            parameters.view(),
            x.as_slice(),
            kept,
            arriving,
            leaving,
        )
    })
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(streams_supported, module)?)?;
    module.add_function(wrap_pyfunction!(streams_read, module)?)?;
    module.add_function(wrap_pyfunction!(streams_write, module)?)?;
    module.add_function(wrap_pyfunction!(streams_write_backward, module)?)?;
    module.add_function(wrap_pyfunction!(streams_read_backward, module)?)?;
    Ok(())
}
