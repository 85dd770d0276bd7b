//! An engine without threads: `submit` performs the batch, in order, before it returns.
//!
//! For crash sweeps and for reproducing failures: the same calls give the same sequence
//! of operations. Every `done` runs inside `submit`, so the caller must hold no lock that
//! a `done` takes.

use std::cell::RefCell;
use std::collections::VecDeque;

use super::blocking::carry_out;
use super::{IoEngine, IoOp};

thread_local! {
    /// What `done`s submitted while a batch was under way; `None` outside of one.
    static LATER: RefCell<Option<VecDeque<IoOp>>> = const { RefCell::new(None) };
}

/// Performs every operation in `submit`.
#[derive(Debug, Default)]
pub struct InlineEngine;

impl IoEngine for InlineEngine {
    fn name(&self) -> &'static str {
        "inline"
    }

    fn submit(&self, batch: Vec<IoOp>) {
        let nested = LATER.with_borrow_mut(|later| {
            let nested = later.is_some();
            later.get_or_insert_default().extend(batch);
            nested
        });
        if nested {
            // The outer `submit` on this thread performs it: a chain of `done`s that
            // submit needs no stack.
            return;
        }
        while let Some(op) = LATER.with_borrow_mut(|later| later.as_mut().and_then(VecDeque::pop_front)) {
            carry_out(op);
        }
        LATER.set(None);
    }
}
