//! What every policy owes, checked against a plain set under random calls.

use std::collections::HashSet;

use proptest::prelude::*;

use super::trace::{self, Trace, hit_rate, optimal_hit_rate};
use super::{Policy, PolicyKind, new_policy};
use crate::key::PageKey;

#[derive(Clone, Debug)]
enum Op {
    Insert(u8),
    Touch(u8),
    Remove(u8),
    Admit(u8),
    /// Ask for a victim among the pages whose number is not a multiple of this, and
    /// demote it if the flag says so.
    Victim(u8, bool),
}

fn op() -> impl Strategy<Value = Op> {
    let page = 0_u8..48;
    prop_oneof![
        4 => page.clone().prop_map(Op::Insert),
        4 => page.clone().prop_map(Op::Touch),
        1 => page.clone().prop_map(Op::Remove),
        4 => page.prop_map(Op::Admit),
        3 => (1_u8..5, any::<bool>()).prop_map(|(step, demote)| Op::Victim(step, demote)),
    ]
}

fn key(page: u8) -> PageKey {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&blake3::hash(&[page]).as_bytes()[..16]);
    PageKey(bytes)
}

fn check(policy: &mut dyn Policy, ops: &[Op]) {
    let mut model = HashSet::new();
    let number = |wanted: PageKey| (0_u8..48).find(|&page| key(page) == wanted).unwrap();
    for op in ops {
        match *op {
            Op::Insert(page) => {
                policy.insert(key(page), 100);
                model.insert(page);
            }
            Op::Touch(page) => policy.touch(key(page)),
            Op::Remove(page) => {
                policy.remove(key(page));
                model.remove(&page);
            }
            Op::Admit(page) => {
                policy.admit(key(page));
            }
            Op::Victim(step, demote) => {
                let mut asked = 0_usize;
                let victim = policy.victim(&mut |key| {
                    asked += 1;
                    let page = number(key);
                    assert!(model.contains(&page), "asked about page {page}, which is not resident");
                    page % step != 0 || step == 1
                });
                assert!(asked <= 2 * model.len(), "{asked} questions about {} pages", model.len());
                let possible = model.iter().any(|page| page % step != 0 || step == 1);
                assert_eq!(victim.is_some(), possible, "a victim exactly if a page is evictable");
                if let Some(victim) = victim {
                    let page = number(victim);
                    assert!(model.contains(&page) && (page % step != 0 || step == 1));
                    if demote {
                        policy.remove(victim);
                        model.remove(&page);
                    }
                }
            }
        }
        assert_eq!(policy.len(), model.len());
        assert_eq!(policy.is_empty(), model.is_empty());
    }
    // Everything leaves, each page once.
    while let Some(victim) = policy.victim(&mut |_| true) {
        assert!(model.remove(&number(victim)));
        policy.remove(victim);
    }
    assert!(model.is_empty() && policy.is_empty());
}

proptest! {
    #[test]
    fn policies_track_what_the_model_tracks(
        ops in prop::collection::vec(op(), 0..300), hint in 0_usize..40,
    ) {
        for kind in PolicyKind::ALL {
            check(new_policy(kind, hint).as_mut(), &ops);
        }
    }
}

#[test]
fn names_round_trip_and_a_wrong_one_lists_the_right_ones() {
    for kind in PolicyKind::ALL {
        assert_eq!(kind.to_string().parse::<PolicyKind>().unwrap(), kind);
        assert_eq!(new_policy(kind, 8).name(), kind.name());
    }
    let message = "belady".parse::<PolicyKind>().unwrap_err().to_string();
    assert!(message.contains("\"belady\"") && message.contains("lru"), "{message}");
}

#[test]
fn lru_evicts_the_longest_untouched_and_skips_the_pinned() {
    let mut lru = new_policy(PolicyKind::Lru, 4);
    for page in 0..4 {
        lru.insert(key(page), 1);
    }
    lru.touch(key(0));
    lru.insert(key(1), 1);
    assert_eq!(lru.victim(&mut |_| true), Some(key(2)));
    assert_eq!(lru.victim(&mut |page| page != key(2)), Some(key(3)));
    assert_eq!(lru.victim(&mut |_| false), None);
}

fn rate(kind: PolicyKind, trace: &Trace, capacity: usize) -> f64 {
    hit_rate(new_policy(kind, capacity).as_mut(), trace, capacity)
}

fn capacities(trace: &Trace) -> [usize; 3] {
    [10, 25, 50].map(|percent| trace.num_pages as usize * percent / 100)
}

#[test]
fn no_policy_beats_the_optimum() {
    for trace in trace::all(7) {
        for capacity in capacities(&trace) {
            let optimum = optimal_hit_rate(&trace, capacity);
            for kind in PolicyKind::ALL {
                let reached = rate(kind, &trace, capacity);
                assert!(reached <= optimum, "{kind} on {}: {reached} > {optimum}", trace.name);
            }
        }
    }
}

#[test]
fn a_cyclic_scan_keeps_a_fixed_subset_by_default_and_nothing_under_lru() {
    let trace = trace::cyclic(3000, 20);
    // The smallest is so far below the scan that its history does not reach round once.
    for capacity in [30, 300, 750, 1500, 2700] {
        let best = capacity as f64 / 3000.0;
        let reached = rate(PolicyKind::default(), &trace, capacity);
        assert!(reached >= 0.99 * best, "{reached} of {best} at {capacity}");
        assert!(rate(PolicyKind::Lru, &trace, capacity) < 0.01);
    }
    assert!(rate(PolicyKind::default(), &trace, 3000) > 0.999, "all fits");
}

#[test]
fn the_default_stays_at_its_optimum_while_the_scan_grows() {
    let trace = trace::growing(1000, 2000, 30);
    for capacity in capacities(&trace) {
        let reached = rate(PolicyKind::default(), &trace, capacity);
        assert!(reached >= 0.98 * optimal_hit_rate(&trace, capacity), "{reached} at {capacity}");
    }
}

#[test]
fn the_default_beats_lru_on_sparse_decoding_and_survives_a_prefill() {
    for seed in 0..3 {
        for (trace, margin) in [(trace::sparse(seed), 0.01), (trace::polluted(seed), 0.0)] {
            for capacity in capacities(&trace) {
                let lru = rate(PolicyKind::Lru, &trace, capacity);
                let reached = rate(PolicyKind::default(), &trace, capacity);
                assert!(reached > lru + margin, "{}, {capacity} pages: {reached}, LRU {lru}", trace.name);
            }
        }
    }
}

#[test]
fn the_default_adapts_when_sessions_switch() {
    for seed in 0..3 {
        let trace = trace::switching(seed);
        let [small, middle, large] = capacities(&trace);
        // Each session's set fits only the largest: there LRU is nearly optimal, and the
        // default pays a few passes per switch; below, LRU has nothing.
        assert!(rate(PolicyKind::default(), &trace, large) > rate(PolicyKind::Lru, &trace, large) - 0.10);
        for capacity in [small, middle] {
            let reached = rate(PolicyKind::default(), &trace, capacity);
            assert!(reached > 0.5 * optimal_hit_rate(&trace, capacity), "{reached} at {capacity}");
            assert!(rate(PolicyKind::Lru, &trace, capacity) < 0.02);
        }
    }
}

#[test]
fn ram_fills_again_after_it_was_emptied() {
    for kind in PolicyKind::ALL {
        // The hint is ten times too high, and the true capacity is learned.
        let mut policy = new_policy(kind, 400);
        hit_rate(policy.as_mut(), &trace::cyclic(200, 3), 40);
        while let Some(victim) = policy.victim(&mut |_| true) {
            policy.remove(victim);
        }
        for page in 0..40 {
            assert!(policy.admit(trace::page_key(page)), "{kind} refuses page {page} though RAM is empty");
            policy.insert(trace::page_key(page), 1);
        }
    }
}
