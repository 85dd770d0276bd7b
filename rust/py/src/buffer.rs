//! PyTorch CPU tensors as checked, strided memory. The only unsafe file of the binding.
//!
//! A tensor is asked once for its address, shape, strides, element type and device; all
//! of it is checked, so that the engine's copies stay inside its memory. The Python
//! object is kept as long as the view, which keeps the memory. What cannot be checked:
//! nobody else may resize the tensor, or write to it, while a call runs (PyTorch's own
//! operators rely on the same).
#![expect(unsafe_code, reason = "tensor memory is reached through the address that PyTorch gives")]

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyTuple;
use stratakv_core::cache::{Bias, Extent, ReadRows, WriteRows};
use stratakv_core::dtype::DType;

/// What PyTorch says of a tensor with `N` dimensions; strides in elements.
struct Described<const N: usize> {
    address: usize,
    shape: [usize; N],
    strides: [usize; N],
    dtype: DType,
}

/// A (B, H, T, D) tensor whose last dimension is contiguous.
pub(crate) struct Tensor {
    _owner: Py<PyAny>,
    address: usize,
    extent: Extent,
    /// Bytes from one batch row, head and token to the next.
    strides: [usize; 3],
}

/// A float32 (B or 1, T or 1, S) tensor whose last dimension is contiguous.
pub(crate) struct BiasTensor {
    _owner: Py<PyAny>,
    address: usize,
    shape: [usize; 3],
    strides: [usize; 2],
}

/// A contiguous tensor of any shape, as the bytes of its elements.
pub(crate) struct Dense {
    _owner: Py<PyAny>,
    name: &'static str,
    address: usize,
    shape: Vec<usize>,
    len_bytes: usize,
}

impl Dense {
    /// A tensor of float32, bfloat16 or float16.
    pub(crate) fn elements(name: &'static str, tensor: &Bound<'_, PyAny>) -> PyResult<(Self, DType)> {
        let dtype =
            tensor.getattr(intern!(tensor.py(), "dtype")).map_err(|_| not_a_tensor(name, "", tensor))?;
        let dtype = dtype_of(name, &dtype)?;
        Ok((Self::new(name, tensor, dtype.size())?, dtype))
    }

    /// A tensor of uint8.
    pub(crate) fn bytes(name: &'static str, tensor: &Bound<'_, PyAny>) -> PyResult<Self> {
        static UINT8: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        Self::of_dtype(name, tensor, &UINT8, ("uint8", "view"), 1)
    }

    /// A tensor of int64.
    pub(crate) fn indices(name: &'static str, tensor: &Bound<'_, PyAny>) -> PyResult<Self> {
        static INT64: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        Self::of_dtype(name, tensor, &INT64, ("int64", "to"), size_of::<i64>())
    }

    fn of_dtype(
        name: &'static str,
        tensor: &Bound<'_, PyAny>,
        known: &'static PyOnceLock<Py<PyAny>>,
        (dtype, how): (&'static str, &'static str),
        size: usize,
    ) -> PyResult<Self> {
        let py = tensor.py();
        let found = tensor.getattr(intern!(py, "dtype")).map_err(|_| not_a_tensor(name, "", tensor))?;
        let expected =
            known.get_or_try_init(py, || Ok::<_, PyErr>(py.import("torch")?.getattr(dtype)?.unbind()))?;
        if !expected.is(&found) {
            return Err(PyValueError::new_err(format!(
                "{name} is {found}, expected torch.{dtype}; call .{how}(torch.{dtype})"
            )));
        }
        Self::new(name, tensor, size)
    }

    fn new(name: &'static str, tensor: &Bound<'_, PyAny>, size: usize) -> PyResult<Self> {
        let py = tensor.py();
        expect_cpu(name, tensor)?;
        if !tensor.call_method0(intern!(py, "is_contiguous"))?.is_truthy()? {
            return Err(PyValueError::new_err(format!("{name} is not contiguous; call .contiguous()")));
        }
        let shape: Vec<usize> = tensor.getattr(intern!(py, "shape"))?.extract()?;
        let len_bytes = shape.iter().product::<usize>() * size;
        let address = tensor.call_method0(intern!(py, "data_ptr"))?.extract()?;
        Ok(Self { _owner: tensor.clone().unbind(), name, address, shape, len_bytes })
    }

    pub(crate) fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// A tensor of float32 of this shape.
    pub(crate) fn floats(name: &'static str, tensor: &Bound<'_, PyAny>, shape: &[usize]) -> PyResult<Self> {
        let (this, dtype) = Self::elements(name, tensor)?;
        if dtype != DType::F32 {
            return Err(PyValueError::new_err(format!("{name} is {dtype}, expected float32")));
        }
        if this.address % align_of::<f32>() != 0 {
            return Err(PyValueError::new_err(format!("{name} is not aligned to its elements")));
        }
        this.expect_shape(shape)?;
        Ok(this)
    }

    /// The shape as (N, D).
    pub(crate) fn rows(&self) -> PyResult<(usize, usize)> {
        match self.shape[..] {
            [count, dim] => Ok((count, dim)),
            _ => Err(PyValueError::new_err(format!(
                "{} has shape {:?}, expected (N, D)",
                self.name, self.shape
            ))),
        }
    }

    pub(crate) fn expect_shape(&self, shape: &[usize]) -> PyResult<()> {
        if self.shape != shape {
            let Self { name, shape: found, .. } = self;
            return Err(PyValueError::new_err(format!("{name} has shape {found:?}, expected {shape:?}")));
        }
        Ok(())
    }

    /// Refuses tensors of which two share memory.
    pub(crate) fn expect_apart(tensors: &[&Self]) -> PyResult<()> {
        for (index, a) in tensors.iter().enumerate() {
            for b in &tensors[..index] {
                if a.address < b.address + b.len_bytes && b.address < a.address + a.len_bytes {
                    return Err(PyValueError::new_err(format!("{} and {} share memory", b.name, a.name)));
                }
            }
        }
        Ok(())
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        if self.len_bytes == 0 {
            return &[];
        }
        // SAFETY: a contiguous tensor's elements are `len_bytes` from its address on.
        unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance(self.address), self.len_bytes) }
    }

    /// The elements of a tensor that [`Dense::floats`] made.
    pub(crate) fn as_floats(&self) -> &[f32] {
        assert!(self.address.is_multiple_of(align_of::<f32>()), "{} was made by floats()", self.name);
        let bytes = self.as_slice();
        if bytes.is_empty() {
            return &[];
        }
        // SAFETY: aligned, and any four bytes are a float32.
        unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / size_of::<f32>()) }
    }

    /// The elements of a tensor that [`Dense::indices`] made.
    pub(crate) fn as_indices(&self) -> impl Iterator<Item = i64> + '_ {
        let (elements, _) = self.as_slice().as_chunks();
        elements.iter().map(|element| i64::from_ne_bytes(*element))
    }

    /// [`Dense::as_floats`], under the condition of [`Dense::as_mut_slice`].
    pub(crate) fn as_mut_floats(&mut self) -> &mut [f32] {
        assert!(self.address.is_multiple_of(align_of::<f32>()), "{} was made by floats()", self.name);
        let bytes = self.as_mut_slice();
        if bytes.is_empty() {
            return &mut [];
        }
        // SAFETY: as in `as_floats`, for as long as the borrow of the bytes.
        unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), bytes.len() / size_of::<f32>()) }
    }

    /// Only for a tensor that shares no memory with another in use: see `expect_apart`.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        if self.len_bytes == 0 {
            return &mut [];
        }
        let address = std::ptr::with_exposed_provenance_mut(self.address);
        // SAFETY: as in `as_slice`; no two elements of a contiguous tensor share memory.
        unsafe { std::slice::from_raw_parts_mut(address, self.len_bytes) }
    }
}

impl Tensor {
    /// A tensor that is read.
    pub(crate) fn source(name: &str, tensor: &Bound<'_, PyAny>) -> PyResult<Self> {
        let Described { address, shape, strides, dtype } = describe::<4>(name, "(B, H, T, D)", tensor)?;
        let [batch, heads, tokens, dim] = shape;
        let size = dtype.size();
        Ok(Self {
            _owner: tensor.clone().unbind(),
            address,
            extent: Extent { batch, heads, tokens, dim, dtype },
            strides: [strides[0] * size, strides[1] * size, strides[2] * size],
        })
    }

    /// A tensor that is written: no two of its elements may share memory.
    pub(crate) fn destination(name: &str, tensor: &Bound<'_, PyAny>) -> PyResult<Self> {
        let this = Self::source(name, tensor)?;
        let Extent { batch, heads, tokens, .. } = this.extent;
        let mut steps: Vec<_> = [batch, heads, tokens].into_iter().zip(this.strides).collect();
        steps.retain(|(size, _)| *size > 1);
        steps.sort_by_key(|(_, stride)| *stride);
        let mut reach = this.extent.row_bytes();
        for (size, stride) in steps {
            if stride < reach {
                return Err(PyValueError::new_err(format!(
                    "{name}: elements share memory (an expanded tensor?); give a tensor of its own memory"
                )));
            }
            reach += (size - 1) * stride;
        }
        Ok(this)
    }

    /// Address and count of the tokens from `token` on that `bytes` hold.
    fn locate(&self, batch: usize, head: usize, token: usize, bytes: usize) -> (*mut u8, usize) {
        let Extent { batch: batches, heads, tokens, .. } = self.extent;
        let row = self.extent.row_bytes();
        let count = bytes / row;
        assert!(
            batch < batches && head < heads && token + count <= tokens && count * row == bytes,
            "rows [{token}, {token} + {bytes} bytes) of ({batch}, {head}) outside {}",
            self.extent
        );
        let [batch_stride, head_stride, token_stride] = self.strides;
        let offset = batch * batch_stride + head * head_stride + token * token_stride;
        (std::ptr::with_exposed_provenance_mut(self.address + offset), count)
    }
}

impl ReadRows for Tensor {
    fn extent(&self) -> Extent {
        self.extent
    }

    fn read(&self, batch: usize, head: usize, token: usize, into: &mut [u8]) {
        if into.is_empty() {
            return;
        }
        let (from, count) = self.locate(batch, head, token, into.len());
        let (row, stride) = (self.extent.row_bytes(), self.strides[2]);
        if stride == row || count == 1 {
            // SAFETY: `locate` checked that these rows lie inside the tensor, back to back.
            unsafe { std::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) };
            return;
        }
        for (index, to) in into.chunks_exact_mut(row).enumerate() {
            // SAFETY: row `token + index` lies inside the tensor, as `locate` checked.
            unsafe { std::ptr::copy_nonoverlapping(from.add(index * stride), to.as_mut_ptr(), row) };
        }
    }
}

impl WriteRows for Tensor {
    fn extent(&self) -> Extent {
        self.extent
    }

    fn write(&mut self, batch: usize, head: usize, token: usize, from: &[u8]) {
        if from.is_empty() {
            return;
        }
        let (into, count) = self.locate(batch, head, token, from.len());
        let (row, stride) = (self.extent.row_bytes(), self.strides[2]);
        if stride == row || count == 1 {
            // SAFETY: `locate` checked that these rows lie inside the tensor, back to back.
            unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), into, from.len()) };
            return;
        }
        for (index, from) in from.chunks_exact(row).enumerate() {
            // SAFETY: row `token + index` lies inside the tensor, as `locate` checked.
            unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), into.add(index * stride), row) };
        }
    }
}

impl BiasTensor {
    pub(crate) fn new(tensor: &Bound<'_, PyAny>) -> PyResult<Self> {
        let Described { address, shape, strides, dtype } =
            describe::<3>("bias", "(B or 1, T or 1, S)", tensor)?;
        if dtype != DType::F32 {
            return Err(PyValueError::new_err(format!("bias is {dtype}, expected float32")));
        }
        if address % align_of::<f32>() != 0 {
            return Err(PyValueError::new_err("bias is not aligned to its elements"));
        }
        let stride = |dim: usize| if shape[dim] == 1 { 0 } else { strides[dim] };
        Ok(Self { _owner: tensor.clone().unbind(), address, shape, strides: [stride(0), stride(1)] })
    }

    pub(crate) fn view(&self) -> Bias<'_> {
        let [batch, tokens, length] = self.shape;
        let [batch_stride, token_stride] = self.strides;
        let values: &[f32] = if batch * tokens * length == 0 {
            &[]
        } else {
            let reach = (batch - 1) * batch_stride + (tokens - 1) * token_stride + length;
            // SAFETY: aligned, and from the first element to the last one that the strides
            // reach, all of it inside the tensor's memory; gaps are other elements of it.
            unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance(self.address), reach) }
        };
        Bias { values, shape: self.shape, batch_stride, token_stride }
    }
}

/// Asks a tensor for all that matters, and refuses what can't be used.
fn describe<const N: usize>(name: &str, letters: &str, tensor: &Bound<'_, PyAny>) -> PyResult<Described<N>> {
    let py = tensor.py();
    let dtype = tensor.getattr(intern!(py, "dtype")).map_err(|_| not_a_tensor(name, letters, tensor))?;
    expect_cpu(name, tensor)?;
    let shape = sizes::<N>(name, letters, &tensor.getattr(intern!(py, "shape"))?)?;
    let strides = sizes::<N>(name, letters, &tensor.call_method0(intern!(py, "stride"))?)?;
    if shape[N - 1] > 1 && strides[N - 1] != 1 {
        return Err(PyValueError::new_err(format!(
            "{name} has stride {} in its last dimension, expected 1; call .contiguous()",
            strides[N - 1]
        )));
    }
    let dtype = dtype_of(name, &dtype)?;
    let address = tensor.call_method0(intern!(py, "data_ptr"))?.extract()?;
    Ok(Described { address, shape, strides, dtype })
}

fn not_a_tensor(name: &str, letters: &str, tensor: &Bound<'_, PyAny>) -> PyErr {
    let found = tensor.get_type().name().map_or_else(|_| "?".into(), |name| name.to_string());
    let expected = format!("a torch.Tensor {letters}");
    PyTypeError::new_err(format!("{name} is a {found}, expected {}", expected.trim_end()))
}

fn expect_cpu(name: &str, tensor: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = tensor.py();
    let is_cpu = tensor.getattr(intern!(py, "is_cpu")).map_err(|_| not_a_tensor(name, "", tensor))?;
    if !is_cpu.is_truthy()? {
        let device = tensor.getattr(intern!(py, "device"))?;
        return Err(PyValueError::new_err(format!("{name} is on {device}, expected a CPU tensor")));
    }
    Ok(())
}

fn sizes<const N: usize>(name: &str, letters: &str, tuple: &Bound<'_, PyAny>) -> PyResult<[usize; N]> {
    let tuple = tuple.cast::<PyTuple>()?;
    if tuple.len() != N {
        return Err(PyValueError::new_err(format!(
            "{name} has {} dimensions, expected {letters}",
            tuple.len()
        )));
    }
    let mut sizes = [0; N];
    for (index, size) in sizes.iter_mut().enumerate() {
        *size = tuple.get_item(index)?.extract()?;
    }
    Ok(sizes)
}

/// The element type, by identity with PyTorch's own objects.
fn dtype_of(name: &str, dtype: &Bound<'_, PyAny>) -> PyResult<DType> {
    static KNOWN: PyOnceLock<Vec<(Py<PyAny>, DType)>> = PyOnceLock::new();
    let py = dtype.py();
    let known = KNOWN.get_or_try_init(py, || {
        let torch = py.import("torch")?;
        [DType::F32, DType::Bf16, DType::F16]
            .into_iter()
            .map(|dtype| Ok((torch.getattr(dtype.name())?.unbind(), dtype)))
            .collect::<PyResult<_>>()
    })?;
    let found = known.iter().find(|(object, _)| object.is(dtype)).map(|(_, dtype)| *dtype);
    found.ok_or_else(|| {
        PyValueError::new_err(format!("{name} is {dtype}, expected torch.float32, bfloat16 or float16"))
    })
}
