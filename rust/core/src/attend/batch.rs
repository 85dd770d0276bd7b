//! A whole decode step: every sequence and KV head, on the threads that were handed in.

use std::sync::{Mutex, PoisonError};

use super::{Parallel, Plan, Running, SimdLevel, Tile, attend_tile_at};
use crate::dtype::DType;

/// Shape of one decode step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchShape {
    /// Sequences of the batch.
    pub sequences: usize,
    /// KV heads per sequence.
    pub kv_heads: usize,
    /// R: query rows per KV head (query group times query tokens).
    pub rows: usize,
    /// Head dim of queries and keys.
    pub dk: usize,
    /// Head dim of values and outputs.
    pub dv: usize,
}

/// Where the tiles of a step come from.
pub trait Pages: Sync {
    /// One KV head's slice of one page of one sequence, with its mask where it has one.
    /// Called once per tile and step, from many threads.
    fn tile(&self, sequence: usize, head: usize, page: usize) -> Tile<'_>;
}

/// Attends every query row to every page of its sequence and KV head.
///
/// `q` is (sequences, kv_heads, R, Dk), already multiplied by the softmax scale; `out` is
/// (sequences, kv_heads, R, Dv) of `out_dtype`. `scratch` grows to what the plan needs and
/// is worth keeping between steps. A row without any unmasked token gives zeros.
///
/// # Panics
/// When `q` or `out` do not have their shape's size, or the plan names a sequence or head
/// that the shape does not have.
pub fn attend_batch(
    plan: &Plan,
    shape: &BatchShape,
    q: &[f32],
    pages: &dyn Pages,
    parallel: &dyn Parallel,
    scratch: &mut Vec<f32>,
    out: &mut [u8],
    out_dtype: DType,
) {
    let BatchShape { sequences, kv_heads, rows, dk, dv } = *shape;
    assert_eq!(q.len(), sequences * kv_heads * rows * dk, "q of {shape:?}");
    assert_eq!(out.len(), sequences * kv_heads * rows * dv * out_dtype.size(), "out of {shape:?}");
    let state_len = Running::len_f32(rows, dv);
    // A row of no pages has no span, and zeros are its answer.
    out.fill(0);
    if state_len == 0 || plan.spans().is_empty() {
        return;
    }
    if scratch.len() < plan.spans().len() * state_len {
        scratch.resize(plan.spans().len() * state_len, 0.0);
    }

    // Each part owns its spans' states; the lock is never contended, it only proves so.
    let mut rest = &mut scratch[..plan.spans().len() * state_len];
    let states: Vec<Mutex<&mut [f32]>> = (0..plan.num_parts())
        .map(|part| {
            let (own, others) = std::mem::take(&mut rest).split_at_mut(plan.part(part).len() * state_len);
            rest = others;
            Mutex::new(own)
        })
        .collect();
    let level = SimdLevel::detect();
    parallel.run(plan.num_parts(), &|part| {
        let mut states = states[part].lock().unwrap_or_else(PoisonError::into_inner);
        let spans = &plan.spans()[plan.part(part)];
        let mut tiles = spans
            .iter()
            .flat_map(|span| span.pages.clone().map(|page| pages.tile(span.sequence, span.head, page)))
            .peekable();
        for (span, buffer) in spans.iter().zip(states.chunks_exact_mut(state_len)) {
            let pair = span.sequence * kv_heads + span.head;
            let q = &q[pair * rows * dk..(pair + 1) * rows * dk];
            let mut state = Running::in_buffer(buffer, rows, dv);
            state.reset();
            for _ in 0..span.pages.len() {
                let Some(tile) = tiles.next() else { break };
                attend_tile_at(level, q, rows, &tile, tiles.peek(), &mut state, None);
            }
        }
    });
    drop(states);

    let out_len = rows * dv * out_dtype.size();
    let mut buffers = scratch.chunks_exact_mut(state_len).take(plan.spans().len());
    let mut spans = plan.spans().iter().peekable();
    while let (Some(span), Some(buffer)) = (spans.next(), buffers.next()) {
        let mut state = Running::in_buffer(buffer, rows, dv);
        while spans.next_if(|next| (next.sequence, next.head) == (span.sequence, span.head)).is_some() {
            let Some(buffer) = buffers.next() else { break };
            state.merge(&Running::in_buffer(buffer, rows, dv));
        }
        let pair = span.sequence * kv_heads + span.head;
        state.finish(&mut out[pair * out_len..(pair + 1) * out_len], out_dtype);
    }
}
