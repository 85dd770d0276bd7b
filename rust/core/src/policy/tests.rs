//! What every policy owes, checked against a plain set under random calls.

use std::collections::HashSet;

use proptest::prelude::*;

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
