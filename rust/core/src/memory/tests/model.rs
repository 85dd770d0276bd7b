//! Recall against a plain loop over all memories.

use proptest::prelude::*;

use super::*;
use crate::memory::vectors::direction;
use crate::memory::words::Words;

/// BM25 and cosines of every memory, by the book, in float64.
fn by_the_book(memories: &[Memory], text: &str, vector: &[f32]) -> Vec<(u64, [f64; 4])> {
    let words = Words::default();
    let counts: Vec<_> = memories.iter().map(|memory| words.count(&memory.text)).collect();
    let windows: Vec<Window> = (0..memories.len()).map(|at| window(memories, at)).collect();
    let length = |at: usize| counts[at].values().sum::<u32>() as f64;
    let lengths = |group: &Window| -> f64 { group.iter().map(|(at, weight)| weight * length(*at)).sum() };
    let alone: Vec<Window> = (0..memories.len()).map(|at| vec![(at, 1.0)]).collect();
    let bm25 = |groups: &[Window]| -> Vec<f64> {
        let mean = (groups.iter().map(&lengths).sum::<f64>() / groups.len() as f64).max(1.0);
        let mut scores = vec![0.0; groups.len()];
        for (word, times) in words.count(text) {
            let count_in = |at: usize| f64::from(*counts[at].get(&word).unwrap_or(&0));
            let count =
                |group: &Window| -> f64 { group.iter().map(|(at, weight)| weight * count_in(*at)).sum() };
            let with_word = alone.iter().filter(|group| count(group) > 0.0).count() as f64;
            let rarity = (1.0 + (groups.len() as f64 - with_word + 0.5) / (with_word + 0.5)).ln();
            for (group, score) in groups.iter().zip(&mut scores) {
                let count = count(group);
                let length = 0.6 + 0.4 * lengths(group) / mean;
                *score += f64::from(times) * rarity * count * 1.9 / (count + 0.9 * length);
            }
        }
        scores
    };
    let query = direction(vector);
    let directions: Vec<_> = memories.iter().map(|memory| direction(&memory.vector)).collect();
    let cosine = |group: &Window| -> f64 {
        let mut sum = vec![0.0; query.len()];
        for (at, weight) in group {
            for (sum, value) in sum.iter_mut().zip(&directions[*at]) {
                *sum += weight * f64::from(*value);
            }
        }
        let product: f64 = sum.iter().zip(&query).map(|(a, b)| a * f64::from(*b)).sum();
        product / sum.iter().map(|value| value * value).sum::<f64>().sqrt()
    };
    let (turn, near) = (bm25(&alone), bm25(&windows));
    (0..memories.len())
        .map(|at| (memories[at].id, [turn[at], near[at], cosine(&alone[at]), cosine(&windows[at])]))
        .collect()
}

/// Members with what they count.
type Window = Vec<(usize, f64)>;

/// A memory with three before and three after it in its session.
fn window(memories: &[Memory], at: usize) -> Window {
    let names = &memories[at].names;
    if names.session.is_none() {
        return vec![(at, 1.0)];
    }
    let session: Vec<usize> = (0..memories.len()).filter(|other| &memories[*other].names == names).collect();
    let place = session.iter().position(|other| *other == at).unwrap();
    let members = session.iter().enumerate().filter(|(other, _)| other.abs_diff(place) <= 3);
    members.map(|(other, row)| (*row, 0.5_f64.powf(other.abs_diff(place) as f64))).collect()
}

/// The score of one memory among all.
fn score(all: &[(u64, [f64; 4])], signals: &[f64; 4]) -> f64 {
    let values = |signal: usize| all.iter().map(move |(_, signals)| signals[signal]);
    let words = values(1).fold(0.0, f64::max);
    let (least, most) = (values(3).fold(f64::MAX, f64::min), values(3).fold(f64::MIN, f64::max));
    let share = |value: f64, width: f64| if width > 0.0 { value / width } else { 0.0 };
    share(signals[1], words) + 0.55 * share(signals[3] - least, most - least)
}

const WORDS: [&str; 8] = ["red", "doors", "green", "grass", "cats", "running", "databases", "moon"];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn signals_and_scores_are_those_of_a_plain_loop(
        facts in prop::collection::vec(
            (prop::collection::vec(0_usize..8, 1..6), 0_usize..3, prop::collection::vec(-1.0_f32..1.0, 8)), 2..30,
        ),
        asked in prop::collection::vec(0_usize..8, 1..4),
        direction in prop::collection::vec(0.1_f32..1.0, 8),
    ) {
        let disk = MemoryDisk::new();
        let engram = open(&disk);
        for (number, (words, session, mut vector)) in facts.into_iter().enumerate() {
            let text: Vec<_> = words.iter().map(|word| WORDS[*word]).collect();
            let session = ["a", "b"].get(session).copied();
            let scope = Scope::new("ana", names(None, session)).unwrap();
            vector[0] += 2.0; // never all zeros
            let draft = Draft { vector: Some(vector), ..Draft::new(format!("{} n{number}", text.join(" "))) };
            engram.remember(&scope, &[draft]).unwrap();
        }
        let text: Vec<_> = asked.iter().map(|word| WORDS[*word]).collect();
        let text = text.join(" and ");
        let all = engram.list(&scope("ana"), None, 0, 1000).unwrap();
        let expected = by_the_book(&all, &text, &direction);
        let query = Query { vector: Some(direction), ..Query::new(text, 1000) };
        // As it was built up, and as it is read back.
        for engram in [&engram, &open(&disk)] {
            let hits = engram.recall(&scope("ana"), &query).unwrap();
            prop_assert_eq!(hits.len(), expected.len());
            for hit in &hits {
                let (_, signals) = expected.iter().find(|(id, _)| *id == hit.memory.id).unwrap();
                let Signals { bm25, bm25_window, cosine, cosine_window, .. } = hit.signals;
                for (found, expected) in [bm25, bm25_window, cosine, cosine_window].into_iter().zip(signals) {
                    prop_assert!((f64::from(found) - expected).abs() < 2e-3, "{:?}, not {signals:?}", hit.signals);
                }
                let score = score(&expected, signals);
                prop_assert!((f64::from(hit.score) - score).abs() < 0.05, "{} not {score}", hit.score);
            }
            prop_assert!(hits.is_sorted_by(|a, b| a.score >= b.score));
        }
    }
}
