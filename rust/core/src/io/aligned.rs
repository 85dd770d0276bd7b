//! Heap buffers that start on an [`ALIGN`] boundary, as direct I/O demands.
#![expect(unsafe_code, reason = "the allocator's aligned entry points have no safe form")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::num::NonZero;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use super::{ALIGN, ReadBuf, WriteBuf};

const ALIGN_NONZERO: NonZero<usize> = NonZero::new(ALIGN).unwrap();

/// An owned, zero-initialised buffer: starts on an [`ALIGN`] boundary, and its length
/// is a multiple of it. Its address does not change while the value moves.
pub struct AlignedBuf {
    start: NonNull<u8>,
    len_bytes: usize,
}

// SAFETY: the buffer is owned and not shared: the pointer is a Box in all but alignment.
unsafe impl Send for AlignedBuf {}
// SAFETY: shared access only reads.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// Allocates `len_bytes` zeros.
    ///
    /// # Panics
    /// If `len_bytes` is not a multiple of [`ALIGN`], or is beyond `isize::MAX`.
    pub fn zeroed(len_bytes: usize) -> Self {
        assert!(len_bytes.is_multiple_of(ALIGN), "{len_bytes} bytes are not a multiple of {ALIGN}");
        if len_bytes == 0 {
            // Nothing is allocated, and yet the address is aligned.
            return Self { start: NonNull::without_provenance(ALIGN_NONZERO), len_bytes };
        }
        let layout = Self::layout(len_bytes);
        // SAFETY: the layout has a size other than zero.
        let raw = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(raw) else { handle_alloc_error(layout) };
        Self { start, len_bytes }
    }

    /// A buffer that begins with `bytes`, zero-padded to the next multiple of [`ALIGN`].
    pub fn padded(bytes: &[u8]) -> Self {
        let mut buf = Self::zeroed(bytes.len().next_multiple_of(ALIGN));
        buf[..bytes.len()].copy_from_slice(bytes);
        buf
    }

    fn layout(len_bytes: usize) -> Layout {
        let layout = Layout::from_size_align(len_bytes, ALIGN);
        layout.unwrap_or_else(|_| panic!("{len_bytes} bytes are more than memory can hold"))
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        if self.len_bytes > 0 {
            // SAFETY: allocated in `zeroed` with this very layout, and freed only here.
            unsafe { dealloc(self.start.as_ptr(), Self::layout(self.len_bytes)) };
        }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` is valid for `len_bytes` initialised bytes while `self` lives.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len_bytes) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len_bytes) }
    }
}

impl ReadBuf for AlignedBuf {
    fn bytes_mut(&mut self) -> &mut [u8] {
        self
    }

    fn into_any(self: Box<Self>) -> Box<dyn std::any::Any + Send> {
        self
    }
}

impl WriteBuf for AlignedBuf {
    fn bytes(&self) -> &[u8] {
        self
    }
}

impl std::fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.len_bytes)
    }
}

/// Whether `bytes` may be handed to direct I/O as they are.
pub(crate) fn is_aligned(bytes: &[u8]) -> bool {
    bytes.len().is_multiple_of(ALIGN) && bytes.as_ptr().addr().is_multiple_of(ALIGN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_on_the_boundary_at_every_size() {
        for pages in [0, 1, 3, 257] {
            let mut buf = AlignedBuf::zeroed(pages * ALIGN);
            assert!(is_aligned(&buf), "{pages} pages");
            assert!(buf.iter().all(|&byte| byte == 0));
            buf.fill(7);
            let moved = Box::new(buf);
            assert!(moved.iter().all(|&byte| byte == 7));
        }
    }

    #[test]
    fn padding_is_zero() {
        let buf = AlignedBuf::padded(&[9; 5000]);
        assert_eq!(buf.len(), 8192);
        assert!(buf[..5000].iter().all(|&byte| byte == 9) && buf[5000..].iter().all(|&byte| byte == 0));
    }

    #[test]
    #[should_panic(expected = "not a multiple")]
    fn refuses_a_ragged_length() {
        let _ = AlignedBuf::zeroed(100);
    }
}
