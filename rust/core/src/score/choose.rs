//! Which blocks a query group reads: the first, the last, and those of the largest mass.

use crate::error::{Error, Result};

/// How much one (KV head, step) reads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budget {
    /// Blocks that are read, the sinks and the window included; at least those.
    pub blocks: usize,
    /// The first blocks, always read.
    pub sinks: usize,
    /// The last blocks, always read.
    pub window: usize,
    /// Share of the blocks that are read in 16 bits, those of the largest mass; the others
    /// in FP8.
    pub critical: f32,
    /// When to read more.
    pub guard: Guard,
}

/// Reads more where the estimate says that too much is left out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guard {
    /// Share of the mass that may stay unread.
    pub unread: f32,
    /// The budget grows to this many times its blocks, at most.
    pub growth: f32,
}

impl Budget {
    /// Blocks that are read at most, where the guard asks for more.
    pub fn most_blocks(&self) -> usize {
        (self.blocks as f32 * self.guard.growth) as usize + self.sinks + self.window
    }

    /// Checks what can be wrong.
    ///
    /// # Errors
    /// `Invalid`, naming the field and what is accepted.
    pub fn check(&self) -> Result<()> {
        let refuse = |message: String| Err(Error::Invalid(message));
        if self.blocks == 0 || self.blocks < self.sinks + self.window {
            return refuse(format!(
                "a budget of {} blocks, expected at least 1 and the {} sinks and {} of the window",
                self.blocks, self.sinks, self.window
            ));
        }
        if !(0.0..=1.0).contains(&self.critical) {
            return refuse(format!("critical is {}, expected 0 to 1", self.critical));
        }
        if !(0.0..=1.0).contains(&self.guard.unread) {
            return refuse(format!("the guard's threshold is {}, expected 0 to 1", self.guard.unread));
        }
        if self.guard.growth < 1.0 || !self.guard.growth.is_finite() {
            return refuse(format!("the guard's growth is {}, expected at least 1", self.guard.growth));
        }
        Ok(())
    }
}

/// The blocks that one (row, KV head) reads. Its memory is worth keeping.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    /// Ascending.
    pub blocks: Vec<u32>,
    /// One per block: whether it is read in 16 bits.
    pub critical: Vec<bool>,
    /// One per block: its share of the mass, as it was given.
    pub shares: Vec<f32>,
    /// Estimated share of the mass of all blocks that is not read.
    pub unread: f32,
    order: Vec<u64>,
}

/// A block with its share as one number: the larger the share, the smaller the number; equal
/// shares in the order of their blocks. What is no number comes first.
pub(super) fn ranked(share: f32, block: usize) -> u64 {
    let share = if share.is_nan() { f32::INFINITY } else { share };
    (u64::from(!share.to_bits()) << 32) | block as u64
}

fn share_of(ranked: u64) -> f32 {
    f32::from_bits(!((ranked >> 32) as u32))
}

pub(super) fn block_of(ranked: u64) -> u32 {
    ranked as u32
}

impl Choice {
    /// Chooses among N blocks by their `shares` of the mass, which with the `rest`, that of blocks
    /// which are out of the question, add up to 1. A share that is no number counts as the
    /// largest: what can't be estimated is read. The blocks of `focus`, ascending, are read
    /// whatever their shares.
    pub fn pick(&mut self, shares: &[f32], rest: f32, budget: &Budget, focus: &[u32]) {
        let count = shares.len();
        let sinks = budget.sinks.min(count);
        let window = budget.window.min(count - sinks);
        let below = |end: usize| focus.partition_point(|block| (*block as usize) < end);
        let focus = &focus[below(sinks)..below(count - window).max(below(sinks))];
        let order = &mut self.order;
        order.clear();
        let mut kept = focus.iter().peekable();
        let others = (sinks..count - window).filter(|block| kept.next_if_eq(&&(*block as u32)).is_none());
        order.extend(others.map(|block| ranked(shares[block], block)));
        let forced: f32 = shares[..sinks].iter().chain(&shares[count - window..]).sum();
        let forced = forced + focus.iter().map(|block| shares[*block as usize]).sum::<f32>();
        let total = rest + forced + order.iter().map(|block| share_of(*block)).sum::<f32>();
        // The best `wanted`, then as many more as the guard asks for, best first.
        let always = sinks + window + focus.len();
        let wanted = budget.blocks.saturating_sub(always).min(order.len());
        let most = ((budget.blocks as f32 * budget.guard.growth) as usize)
            .saturating_sub(always)
            .clamp(wanted, order.len());
        if wanted > 0 && wanted < order.len() {
            order.select_nth_unstable(wanted - 1);
        }
        let mut read = forced + order[..wanted].iter().map(|block| share_of(*block)).sum::<f32>();
        let mut taken = wanted;
        if total - read > budget.guard.unread * total && taken < most {
            if most < order.len() {
                order[taken..].select_nth_unstable(most - taken);
            }
            order[taken..most].sort_unstable();
            while taken < most && total - read > budget.guard.unread * total {
                read += share_of(order[taken]);
                taken += 1;
            }
        }
        self.unread = if total > 0.0 && total.is_finite() { ((total - read) / total).max(0.0) } else { 0.0 };
        self.blocks.clear();
        self.blocks.extend(0..sinks as u32);
        self.blocks.extend(order[..taken].iter().map(|block| block_of(*block)));
        self.blocks.extend_from_slice(focus);
        self.blocks.extend((count - window) as u32..count as u32);
        self.blocks.sort_unstable();
        self.shares.clear();
        self.shares.extend(self.blocks.iter().map(|block| shares[*block as usize]));
        self.mark_critical(budget.critical, shares);
    }

    /// Marks the blocks of the largest shares.
    fn mark_critical(&mut self, fraction: f32, shares: &[f32]) {
        let count = self.blocks.len();
        let critical = ((count as f32 * fraction).ceil() as usize).min(count);
        self.critical.clear();
        self.critical.resize(count, critical == count);
        if critical == 0 || critical == count {
            return;
        }
        let places = self.blocks.iter().enumerate();
        self.order.clear();
        self.order.extend(places.map(|(place, block)| ranked(shares[*block as usize], place)));
        self.order.select_nth_unstable(critical - 1);
        for place in &self.order[..critical] {
            self.critical[block_of(*place) as usize] = true;
        }
    }
}
