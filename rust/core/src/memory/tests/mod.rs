//! The whole room against plain models, on disks in memory.

mod clues;
mod elsewhere;
mod erased;
mod graph;
mod model;
mod reembed;
mod retention;
mod scopes;
mod time;
mod torn;
mod unit;

use std::sync::Arc;

use super::*;
use crate::testing::MemoryDisk;

/// Elements of the vectors here.
const DIMENSION: usize = 8;

fn config() -> EngramConfig {
    EngramConfig { embedder: Some(("test".into(), DIMENSION)), ..EngramConfig::default() }
}

fn open(disk: &MemoryDisk) -> Engram {
    Engram::open_on(Arc::new(disk.clone()), config()).unwrap()
}

fn scope(user: &str) -> Scope {
    Scope::user(user).unwrap()
}

fn names(project: Option<&str>, session: Option<&str>) -> Names {
    Names { agent: None, project: project.map(Into::into), session: session.map(Into::into) }
}

fn texts(memories: &[Memory]) -> Vec<&str> {
    memories.iter().map(|memory| memory.text.as_str()).collect()
}

fn found(hits: &[Hit]) -> Vec<&str> {
    hits.iter().map(|hit| hit.memory.text.as_str()).collect()
}

/// A direction that is mostly along one axis.
fn along(axis: usize) -> Vec<f32> {
    (0..DIMENSION).map(|at| if at == axis % DIMENSION { 1.0 } else { 0.05 * at as f32 }).collect()
}

fn with_vector(text: &str, axis: usize) -> Draft {
    Draft { vector: Some(along(axis)), ..Draft::new(text) }
}
