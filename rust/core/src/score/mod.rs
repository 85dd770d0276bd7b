//! Which blocks of a context matter to a query, told from a few bytes per block.
//!
//! [`Summary`]: a block of one KV head as a mean key and, in two bits an element, what its keys
//! differ by. [`estimate`]: the attention mass that a query would give the block. [`Choice`]:
//! the blocks that are read within a budget. What it is not: it reads no page, knows no
//! store, and rotates nothing. Of very many blocks, a [`Sketch`] along the [`Directions`] of the
//! head's queries says which of them are worth the estimate.
//!
//! Letters: R query rows that share a KV head, N blocks, D head dim of keys, L elements of a
//! key whose residuals are kept.
//!
//! Source: page scores by the log-sum-exp of a page summary, LOCKS (2026). Differs: residuals of every
//! token, of the slowly turning elements only, in place of a few common directions (docs/selection.md).

mod choose;
mod directions;
mod kernel;
mod picker;
mod residuals;
mod scalar;
mod sketch;
mod summary;
#[cfg(test)]
mod tests;

pub use choose::{Budget, Choice, Guard};
pub use directions::{DIRECTIONS, Directions};
pub use kernel::{
    Masses, add_up, add_up_at, estimate, estimate_at, largest, largest_at, weigh, weigh_at, weigh_scores,
    weigh_scores_at,
};
pub use picker::Picker;
pub use sketch::{SKETCH_BLOCKS, Sketch};
pub use summary::{Queries, Summary, slow_elements};

/// Tokens of a block: the unit of selection.
pub const BLOCK_TOKENS: usize = 16;
