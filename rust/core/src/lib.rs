//! The engine of StrataKV: pages, tiers, policies, sessions and kernels, without Python.
//!
//! What it is not: it knows nothing of models, tokenizers or tensors. A page is bytes
//! with a key; a kernel takes slices. The invariant of the whole crate: **a cache may
//! forget, it never lies.** A page that fails its checksum is a counted miss.

pub mod attend;
pub mod cache;
pub mod codec;
pub mod dtype;
pub mod error;
pub mod format;
pub mod interrupt;
pub mod io;
pub mod key;
pub mod memory;
pub mod policy;
pub mod recovery;
pub mod rotary;
pub mod score;
pub mod session;
pub mod simd;
pub mod store;
pub mod streams;
pub mod sync;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod tier;

pub use error::{Error, Result};
