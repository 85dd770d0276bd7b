//! Finding the largest of very many shares, in the order of their blocks and without sorting.

#![expect(unsafe_code, reason = "loads through pointers into slices whose lengths were checked")]
#![expect(clippy::inline_always, reason = "what is not inlined is compiled without the instructions")]

use super::choose::{block_of, ranked};
use crate::simd::{Bytes, SimdLevel, dispatch};

/// Groups of blocks for each one that is picked, if there are as many blocks: their maxima tell well what the
/// least share of those picked can be.
const GROUPS_PER_PICK: usize = 3;
/// Blocks of a group, at most.
const GROUP_MAX: usize = 16;

/// Finds the largest of many shares. Its memory is worth keeping.
#[derive(Debug, Default)]
pub struct Picker {
    /// The largest share of each group.
    tops: Vec<f32>,
    /// Blocks that may be among the largest, ascending; and the same without order.
    likely: Vec<u64>,
    unsorted: Vec<u64>,
    /// Shares without those that are no numbers, where there are any.
    known: Vec<f32>,
}

dispatch! {
    fn raise_vectors(tops: &mut [f32], shares: &[f32]) -> f32 => raise_tops;
}

dispatch! {
    fn list_vectors(shares: &[f32], least: f32, first: usize, into: &mut Vec<u64>) -> () => list_blocks;
}

impl Picker {
    /// The `sinks` first of some blocks and the `count` others of the largest shares, ascending. A share
    /// that is no number counts as the largest.
    pub fn pick(&mut self, shares: &[f32], sinks: usize, count: usize, into: &mut Vec<u32>) {
        self.pick_at(SimdLevel::detect(), shares, sinks, count, into);
    }

    /// [`Picker::pick`] with the instructions of `level`, or of the best one below it.
    pub fn pick_at(
        &mut self,
        level: SimdLevel,
        shares: &[f32],
        sinks: usize,
        count: usize,
        into: &mut Vec<u32>,
    ) {
        let (level, sinks) = (level.available(), sinks.min(shares.len()));
        let Self { tops, likely, unsorted, known } = self;
        let mut rest = &shares[sinks..];
        if raise(level, tops, rest, count).is_nan() {
            known.clear();
            known.extend(rest.iter().map(|share| if share.is_nan() { f32::INFINITY } else { *share }));
            rest = known;
            raise(level, tops, rest, count);
        }
        // As many groups have a share of at least `least`, so that many blocks have one.
        let least = match tops.len().checked_sub(count) {
            Some(below) if count > 0 => *tops.select_nth_unstable_by(below, f32::total_cmp).1,
            _ => 0.0,
        };
        likely.clear();
        if list_vectors(level, rest, least, sinks, likely).is_none() {
            list_plainly(rest, least, sinks, likely);
        }
        if count < likely.len() {
            unsorted.clone_from(likely);
            let (_, after, _) = unsorted.select_nth_unstable(count);
            likely.retain(|block| block < after);
        }
        into.clear();
        into.extend(0..sinks as u32);
        into.extend(likely.iter().map(|block| block_of(*block)));
    }
}

/// Groups shares and finds the largest of each group; gives the sum of all: no number where one is none.
fn raise(level: SimdLevel, tops: &mut Vec<f32>, shares: &[f32], count: usize) -> f32 {
    // The blocks of a group are far from each other: neighbours, which are alike, belong to different
    // groups, and the maxima of many groups are found side by side.
    let group = (shares.len() / (GROUPS_PER_PICK * count).max(1)).clamp(1, GROUP_MAX);
    let width = shares.len().div_ceil(group).max(1);
    tops.clear();
    tops.resize(width.min(shares.len()), 0.0);
    let parts = shares.chunks(width);
    parts.map(|part| raise_vectors(level, tops, part).unwrap_or_else(|| raise_plainly(tops, part))).sum()
}

fn raise_plainly(tops: &mut [f32], shares: &[f32]) -> f32 {
    tops.iter_mut().zip(shares).for_each(|(top, share)| *top = share.max(*top));
    shares.iter().sum()
}

#[inline(always)]
fn raise_tops<S: Bytes>(simd: S, tops: &mut [f32], shares: &[f32]) -> f32 {
    let whole = shares.len() - shares.len() % S::LANES;
    assert!(whole <= tops.len(), "shares of more groups");
    let mut sum = simd.splat(0.0);
    let mut i = 0;
    while i < whole {
        // SAFETY: the vector ends inside both slices.
        unsafe {
            let (share, at) = (simd.load_f32(shares.as_ptr().add(i).cast()), tops.as_mut_ptr().add(i));
            sum = simd.add(sum, share);
            simd.store(at, simd.max(share, simd.load_f32(at.cast())));
        }
        i += S::LANES;
    }
    simd.reduce_add(sum) + raise_plainly(&mut tops[whole..], &shares[whole..])
}

fn list_plainly(shares: &[f32], least: f32, first: usize, into: &mut Vec<u64>) {
    let likely = (first..).zip(shares).filter(|(_, share)| **share >= least);
    into.extend(likely.map(|(block, share)| ranked(*share, block)));
}

#[inline(always)]
fn list_blocks<S: Bytes>(simd: S, shares: &[f32], least: f32, first: usize, into: &mut Vec<u64>) {
    let whole = shares.len() - shares.len() % S::LANES;
    let mut i = 0;
    while i < whole {
        // SAFETY: the vector ends inside the slice.
        let share = unsafe { simd.load_f32(shares.as_ptr().add(i).cast()) };
        let mut lanes = simd.at_least(share, simd.splat(least));
        while lanes != 0 {
            let block = i + lanes.trailing_zeros() as usize;
            into.push(ranked(shares[block], first + block));
            lanes &= lanes - 1;
        }
        i += S::LANES;
    }
    list_plainly(&shares[whole..], least, first + whole, into);
}
