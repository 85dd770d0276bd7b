//! Exact decode attention on the CPU: few query rows over many pages, softmax streamed.
//!
//! What it is: [`attend_tile`] folds one slice of a page of one KV head, elements or
//! planes, into a [`Running`] softmax; [`Running::merge`] joins states that were computed apart;
//! [`Running::finish`] divides. A [`Parallel`] is what a caller shares its tiles among.
//! What it is not: it selects nothing, rotates nothing, and knows no store.
//!
//! Letters: R query rows that share a KV head (query group times query tokens), T tokens
//! of a tile, Dk and Dv head dims of keys and values. All matrices are row-major.
//!
//! Invariant: products and sums are float32 whatever the elements are; widening is exact,
//! and neither queries nor probabilities are ever rounded to 16 bits. A tile in which
//! everything is masked changes nothing, and never makes a NaN; a NaN or an infinite
//! score that comes in goes out as NaN.
//!
//! Sources: streaming softmax, Milakov and Gimelshein 2018 (arXiv:1805.02867); tiling,
//! FlashAttention (arXiv:2205.14135); splits over the context and their merge,
//! Flash-Decoding (Dao, Haziza, Massa, Sizov 2023).

mod kernel;
#[cfg(target_os = "linux")]
mod openmp;
mod parallel;
mod pool;
mod running;
mod scalar;
mod tile;
mod walk;

#[cfg(target_os = "linux")]
pub use openmp::OpenMp;
pub use parallel::{Inline, Parallel};
pub use pool::Pool;
pub use running::{Mass, Running};
pub use tile::{Bias, Kind, Rows, Tile};

use crate::simd::SimdLevel;

/// Tokens that one inner step scores before it touches values; bounds the stack scratch.
const CHUNK_TOKENS: usize = 64;

/// Folds `tile` into `state`, with the best instructions that the machine has.
///
/// `q` is (R, Dk), already multiplied by the softmax scale. With `mass`, also tells how
/// much attention the tile received, per row. Allocates nothing.
///
/// # Panics
/// When a slice is shorter than its shape says.
pub fn attend_tile(
    q: &[f32],
    rows: usize,
    tile: &Tile<'_>,
    state: &mut Running<'_>,
    mass: Option<&mut Mass<'_>>,
) {
    attend_tile_at(SimdLevel::detect(), q, rows, tile, None, state, mass);
}

/// [`attend_tile`] with the instructions of `level`, or of the best one below it that the
/// machine has, while the memory of `next`, the tile to follow, is already asked for.
///
/// # Panics
/// As [`attend_tile`].
pub fn attend_tile_at(
    level: SimdLevel,
    q: &[f32],
    rows: usize,
    tile: &Tile<'_>,
    next: Option<&Tile<'_>>,
    state: &mut Running<'_>,
    mass: Option<&mut Mass<'_>>,
) {
    tile.check(q, rows, state, mass.as_deref());
    let mut empty = Mass { reference: &mut [], sum: &mut [] };
    let mass = match mass {
        Some(mass) => {
            mass.reference[..rows].fill(f32::NEG_INFINITY);
            mass.sum[..rows].fill(0.0);
            mass
        }
        None => &mut empty,
    };
    if kernel::attend(level.available(), q, rows, tile, next, state, mass).is_none() {
        scalar::attend(q, rows, tile, state, mass);
    }
}

/// The threads that suit this process: the OpenMP team that PyTorch's operators run on,
/// once it is loaded, else a [`Pool`] over all processors.
///
/// The team comes first because its workers spin between operators: taking turns with a
/// small matrix product, a step over 8K tokens (3 KV heads of 3 rows, D 64, two cores)
/// took 111 us on the team, 169 us on one thread and 200 us on a pool beside the team.
pub fn host_threads() -> Box<dyn Parallel> {
    #[cfg(target_os = "linux")]
    if let Some(team) = OpenMp::find() {
        return Box::new(team);
    }
    Box::new(Pool::new(std::thread::available_parallelism().map_or(1, std::num::NonZero::get)))
}

#[cfg(test)]
mod parallel_tests;
#[cfg(test)]
mod tests;
