//! The contract of [`Parallel`], for each implementation.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Inline, Parallel, Pool};

/// Everything that the trait promises.
pub(super) fn check(parallel: &dyn Parallel) {
    assert!(parallel.threads() >= 1);
    for n in [0, 1, 2, 7, 1000] {
        for _ in 0..20 {
            let calls: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
            parallel.run(n, &|index| {
                calls[index].fetch_add(1, Ordering::Relaxed);
            });
            assert!(calls.iter().all(|calls| calls.load(Ordering::Relaxed) == 1), "{}", parallel.name());
        }
    }
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        parallel.run(100, &|index| assert!(index != 13, "thirteen"));
    }));
    assert_eq!(panic.unwrap_err().downcast_ref::<&str>(), Some(&"thirteen"));
    // It still works, nested and from two threads at once.
    let calls = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                parallel.run(10, &|_| {
                    parallel.run(10, &|_| {
                        calls.fetch_add(1, Ordering::Relaxed);
                    });
                });
            });
        }
    });
    assert_eq!(calls.load(Ordering::Relaxed), 200);
}

#[test]
fn inline_keeps_the_contract() {
    check(&Inline);
}

#[test]
fn pools_keep_the_contract() {
    for threads in 1..5 {
        let pool = Pool::new(threads);
        assert_eq!(pool.threads(), threads);
        check(&pool);
    }
}

#[test]
fn a_pool_wakes_up_after_it_has_parked() {
    let pool = Pool::new(3);
    for _ in 0..5 {
        std::thread::sleep(std::time::Duration::from_millis(5));
        let calls = AtomicUsize::new(0);
        pool.run(64, &|_| {
            calls.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(calls.load(Ordering::Relaxed), 64);
    }
}
