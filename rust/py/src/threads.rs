//! Which threads the kernels run on.

use std::sync::Arc;

use stratakv_core::attend::{Inline, Parallel, Pool, host_threads};
use stratakv_core::sync::Mutex;

/// What was asked for, and the threads that were found for it.
struct Choice {
    limit: Option<usize>,
    threads: Option<Arc<dyn Parallel>>,
}

static CHOICE: std::sync::LazyLock<Mutex<Choice>> =
    std::sync::LazyLock::new(|| Mutex::new(Choice { limit: None, threads: None }));

/// Uses at most `count` threads from now on.
pub(crate) fn set_limit(count: usize) {
    *CHOICE.lock() = Choice { limit: Some(count.max(1)), threads: None };
}

/// The threads for one call. They are found at the first one, when PyTorch is loaded.
pub(crate) fn current() -> Arc<dyn Parallel> {
    let mut choice = CHOICE.lock();
    let limit = choice.limit;
    choice.threads.get_or_insert_with(|| find(limit)).clone()
}

/// PyTorch's own team where that is small enough, otherwise threads of our own.
fn find(limit: Option<usize>) -> Arc<dyn Parallel> {
    if limit == Some(1) {
        return Arc::new(Inline);
    }
    let host = host_threads();
    match limit.filter(|limit| *limit < host.threads()) {
        Some(limit) => Arc::new(Pool::new(limit)),
        None => host.into(),
    }
}
