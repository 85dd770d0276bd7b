//! Every level against the scalar twin, and the twin against what a summary stands for.

use proptest::prelude::*;

use super::*;
use crate::simd::SimdLevel;

/// A small generator, so that a case is named by its seed.
struct Random(u64);

impl Random {
    /// Uniform in [-1, 1].
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    }

    fn values(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.next()).collect()
    }
}

fn estimated(
    level: SimdLevel,
    summary: &Summary,
    query: &[f32],
    rows: usize,
    blocks: &[u8],
) -> (Vec<f32>, Vec<f32>) {
    let count = blocks.len() / summary.len_bytes();
    let (mut at, mut sum) = (vec![f32::NAN; rows * count], vec![f32::NAN; rows * count]);
    let mut queries = Queries::default();
    summary.arrange(&query[..rows * summary.key_dim()], &mut queries);
    let blocks: Vec<_> = blocks.chunks_exact(summary.len_bytes()).collect();
    estimate_at(level, summary, &queries, &blocks, &mut Masses { at: &mut at, sum: &mut sum, stride: count });
    (at, sum)
}

/// ln of the estimated mass of one block for one query.
fn log_mass(summary: &Summary, query: &[f32], block: &[u8]) -> f64 {
    let (at, sum) = estimated(SimdLevel::Scalar, summary, query, 1, block);
    f64::from(at[0]) + f64::from(sum[0]).ln()
}

/// Summaries of blocks of keys at random.
fn encoded(summary: &Summary, count: usize, random: &mut Random) -> Vec<u8> {
    let mut blocks = vec![0; count * summary.len_bytes()];
    for block in blocks.chunks_exact_mut(summary.len_bytes()) {
        summary.encode(&random.values(BLOCK_TOKENS * summary.key_dim()), block);
    }
    blocks
}

fn sketched(sketch: Sketch, summary: &Summary, directions: &[f32], blocks: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; sketch.len_bytes()];
    sketch.encode(summary, directions, blocks, &mut bytes);
    bytes
}

/// The keys, (16, D), that a summary of all elements stands for.
fn kept_keys(summary: &Summary, block: &[u8]) -> Vec<f32> {
    let dim = summary.key_dim();
    let mut mean = vec![0.0; dim];
    summary.decode_mean(block, &mut mean);
    let mut rows = summary.decode_residuals(block);
    let padded = rows.len() / BLOCK_TOKENS;
    let key = |row: &mut [f32]| {
        super::residuals::turn(row);
        mean.iter().zip(row).map(|(mean, x)| mean + *x).collect::<Vec<f32>>()
    };
    rows.chunks_exact_mut(padded).flat_map(key).collect()
}

/// ln of the sum of e^(query . key) over a block, in float64.
fn true_log_mass(query: &[f32], keys: &[f32]) -> f64 {
    let dot = |key: &[f32]| key.iter().zip(query).map(|(k, q)| f64::from(*k) * f64::from(*q)).sum::<f64>();
    keys.chunks_exact(query.len()).map(|key| dot(key).exp()).sum::<f64>().ln()
}

proptest! {
    #[test]
    fn every_level_estimates_what_the_scalar_twin_does(
        seed in any::<u64>(),
        // Of many elements the queries' bytes are smaller, or their sums would not fit.
        dim in prop_oneof![1_usize..140, Just(512)],
        rows in 1_usize..9,
        count in 0_usize..9,
        slow in 0_usize..140,
    ) {
        let mut random = Random(seed);
        let summary = Summary::new(dim, (0..dim).skip(slow.min(dim)).collect());
        let blocks = encoded(&summary, count, &mut random);
        let query = random.values(rows * dim);
        let expected = estimated(SimdLevel::Scalar, &summary, &query, rows, &blocks);
        for level in SimdLevel::supported() {
            let found = estimated(level, &summary, &query, rows, &blocks);
            for (found, expected) in found.0.iter().zip(&expected.0).chain(found.1.iter().zip(&expected.1)) {
                prop_assert!((found - expected).abs() <= 1e-4 * (1.0 + expected.abs()), "{level:?} {found} {expected}");
            }
        }
    }

    #[test]
    fn every_level_weighs_and_compares_as_the_scalar_twin_does(
        seed in any::<u64>(),
        count in 0_usize..70,
        unknown in prop::option::of(0_usize..70),
    ) {
        let mut random = Random(seed);
        let mut at: Vec<f32> = random.values(count).iter().map(|x| x * 40.0).collect();
        let sum: Vec<f32> = random.values(count).iter().map(|x| x.abs() * 16.0).collect();
        if let Some(at) = unknown.and_then(|index| at.get_mut(index)) {
            *at = f32::NAN;
        }
        let reference = largest_at(SimdLevel::Scalar, &at);
        let expected = at.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        prop_assert_eq!(reference.to_bits(), expected.to_bits());
        let mut expected = sum.clone();
        let total = weigh_at(SimdLevel::Scalar, &at, &mut expected, reference);
        for level in SimdLevel::supported() {
            prop_assert_eq!(largest_at(level, &at).to_bits(), reference.to_bits(), "{:?}", level);
            let mut found = sum.clone();
            let theirs = weigh_at(level, &at, &mut found, reference);
            for (found, expected) in found.iter().zip(&expected) {
                let same = found.to_bits() == expected.to_bits() || (found.is_nan() && expected.is_nan());
                prop_assert!(same, "{level:?} {found} {expected}");
            }
            prop_assert_eq!(theirs.is_nan(), total.is_nan());
            prop_assert!(total.is_nan() || (theirs - total).abs() <= 1e-5 * (1.0 + total), "{theirs} {total}");
        }
    }

    #[test]
    fn a_row_that_is_turned_twice_is_as_it_was(seed in any::<u64>(), eights in 1_usize..20) {
        let row = Random(seed).values(eights * 8);
        let mut turned = row.clone();
        super::residuals::turn(&mut turned);
        let norm = |row: &[f32]| row.iter().map(|x| x * x).sum::<f32>();
        prop_assert!((norm(&turned) - norm(&row)).abs() < 1e-3 * norm(&row));
        super::residuals::turn(&mut turned);
        prop_assert!(turned.iter().zip(&row).all(|(a, b)| (a - b).abs() < 1e-5));
    }

    /// What is estimated is the mass of the keys as the summary keeps them, but for the query's rounding to
    /// 8 bits.
    #[test]
    fn the_estimate_is_of_the_keys_that_are_kept(seed in any::<u64>(), dim in 1_usize..80) {
        let mut random = Random(seed);
        let summary = Summary::new(dim, (0..dim).collect());
        let block = encoded(&summary, 1, &mut random);
        let query: Vec<f32> = random.values(dim).iter().map(|x| x * 2.0 / (dim as f32).sqrt()).collect();
        let found = log_mass(&summary, &query, &block);
        let expected = true_log_mass(&query, &kept_keys(&summary, &block));
        prop_assert!((found - expected).abs() < 0.05, "{found} {expected}");
    }

    #[test]
    fn every_level_scores_sketches_as_the_scalar_twin_does(
        seed in any::<u64>(),
        dim in 1_usize..80,
        rows in 1_usize..9,
        sixteens in 1_usize..4,
    ) {
        let mut random = Random(seed);
        let summary = Summary::new(dim, (0..dim).skip(dim / 2).collect());
        let (sketch, count) = (Sketch::new(sixteens * SKETCH_BLOCKS), sixteens * SKETCH_BLOCKS);
        let [bytes, others] = [(); 2].map(|()| {
            let directions = random.values(DIRECTIONS * dim);
            sketched(sketch, &summary, &directions, &encoded(&summary, count, &mut random))
        });
        let query: Vec<f32> = random.values(rows * DIRECTIONS).iter().map(|x| x * 9.0).collect();
        let stride = 2 * count + 3;
        let score = |level| {
            let (mut scores, mut most) = (vec![f32::NAN; rows * stride], vec![-1.0; rows]);
            sketch.score_at(level, &[bytes.as_slice(), &others].concat(), &query, &mut scores, stride, &mut most);
            for (most, scores) in most.iter().zip(scores.chunks_exact(stride)) {
                let expected = scores.iter().copied().fold(-1.0, f32::max);
                assert_eq!(most.to_bits(), expected.to_bits(), "{level:?}");
            }
            scores
        };
        let expected = score(SimdLevel::Scalar);
        for level in SimdLevel::supported() {
            for (index, (found, expected)) in score(level).iter().zip(&expected).enumerate() {
                let padding = index % stride >= 2 * count;
                let near = (found - expected).abs() <= 1e-4 * (1.0 + expected.abs());
                prop_assert!(found.is_nan() == padding && (padding || near), "{level:?} {found} {expected}");
            }
        }
    }

    /// Along the directions a block's mean is as in its summary, but for the rounding to 8 bits.
    #[test]
    fn a_sketch_is_of_the_mean_along_the_directions_and_of_the_spread(seed in any::<u64>(), dim in 8_usize..70) {
        let mut random = Random(seed);
        let summary = Summary::new(dim, (0..dim).collect());
        let mut directions = vec![0.0; DIRECTIONS * dim];
        (0..DIRECTIONS).for_each(|index| directions[index * dim + index] = 1.0);
        let blocks = encoded(&summary, 16, &mut random);
        let sketch = Sketch::new(16);
        let bytes = sketched(sketch, &summary, &directions, &blocks);
        let along = random.values(DIRECTIONS);
        let mut scores = [0.0; 16];
        sketch.score_at(SimdLevel::Scalar, &bytes, &along, &mut scores, 16, &mut [0.0]);
        let (mut mean, mut spread) = (vec![0.0; dim], vec![0.0; dim]);
        for (block, found) in blocks.chunks_exact(summary.len_bytes()).zip(scores) {
            summary.decode_mean(block, &mut mean);
            summary.decode_spread(block, &mut spread);
            let dot = |a: &[f32]| a.iter().zip(&along).map(|(a, b)| a * b).sum::<f32>();
            let expected = dot(&mean) + 0.5 * dot(&spread).powi(2);
            prop_assert!((found - expected).abs() < 0.05, "{found} {expected}");
        }
    }

    #[test]
    fn scores_become_weights_and_rows_are_added_up_at_every_level(
        seed in any::<u64>(),
        rows in 1_usize..5,
        count in 0_usize..70,
        unknown in prop::option::of(0_usize..70),
    ) {
        let mut random = Random(seed);
        let mut scores: Vec<f32> = random.values(count).iter().map(|x| x * 30.0 - 30.0).collect();
        if let Some(score) = unknown.and_then(|index| scores.get_mut(index)) {
            *score = f32::NAN;
        }
        let (all, factors) = (random.values(rows * count), random.values(rows));
        for level in SimdLevel::supported() {
            // As the masses of blocks of one key each.
            let (mut found, mut expected) = (scores.clone(), vec![1.0; count]);
            let total = weigh_scores_at(level, &mut found, 0.5);
            let truth = weigh_at(level, &scores, &mut expected, 0.5);
            let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&found), bits(&expected), "{:?}", level);
            prop_assert_eq!(total.to_bits(), truth.to_bits(), "{:?}", level);
            let mut sums = vec![f32::NAN; count];
            add_up_at(level, &all, &factors, &mut sums);
            for (index, sum) in sums.iter().enumerate() {
                let each = factors.iter().enumerate();
                let truth = each.fold(0.0, |sum, (row, factor)| sum + all[row * count + index] * factor);
                prop_assert_eq!(sum.to_bits(), truth.to_bits(), "{:?}", level);
            }
        }
    }

    /// The same as sorting all of them, equal ones in the order of their blocks.
    #[test]
    fn the_largest_are_picked_with_the_sinks(
        seed in any::<u64>(),
        count in 0_usize..900,
        sinks in 0_usize..4,
        wanted in 0_usize..99,
        steps in prop::option::of(1_u32..9),
        unknown in prop::option::of(0_usize..900),
    ) {
        let mut shares: Vec<f32> = Random(seed).values(count).iter().map(|x| x.abs()).collect();
        if let Some(steps) = steps {
            for share in &mut shares {
                *share = (*share * steps as f32).floor();
            }
        }
        if let Some(share) = unknown.and_then(|index| shares.get_mut(index)) {
            *share = f32::NAN;
        }
        let mut order: Vec<usize> = (sinks.min(count)..count).collect();
        order.sort_by(|a, b| shares[*b].abs().total_cmp(&shares[*a].abs()));
        order.truncate(wanted);
        order.extend(0..sinks.min(count));
        order.sort_unstable();
        for level in SimdLevel::supported() {
            let mut picked = Vec::new();
            Picker::default().pick_at(level, &shares, sinks, wanted, &mut picked);
            let picked: Vec<usize> = picked.iter().map(|block| *block as usize).collect();
            prop_assert_eq!(&picked, &order, "{:?}", level);
        }
    }

    #[test]
    fn a_choice_keeps_to_its_budget(
        seed in any::<u64>(),
        count in 0_usize..200,
        blocks in 1_usize..100,
        sinks in 0_usize..4,
        window in 0_usize..8,
        critical in 0.0_f32..=1.0,
        focus in proptest::collection::btree_set(0_u32..200, 0..30),
    ) {
        let focus: Vec<u32> = focus.into_iter().filter(|block| (*block as usize) < count).collect();
        let mut random = Random(seed);
        let mut shares: Vec<f32> = random.values(count).iter().map(|x| x.abs()).collect();
        let total: f32 = shares.iter().sum();
        for share in &mut shares {
            *share /= total;
        }
        let guard = Guard { unread: 1.0, growth: 1.0 };
        let budget = Budget { blocks: blocks.max(sinks + window), sinks, window, critical, guard };
        prop_assert!(budget.check().is_ok());
        let mut choice = Choice::default();
        choice.pick(&shares, 0.0, &budget, &focus);
        let chosen = &choice.blocks;
        prop_assert!(chosen.is_sorted_by(|a, b| a < b));
        let forced =
            |block: usize| block < sinks || block + window >= count || focus.contains(&(block as u32));
        let always = (0..count).filter(|block| forced(*block)).count();
        prop_assert_eq!(chosen.len(), budget.blocks.max(always).min(count));
        prop_assert!((0..count).filter(|block| forced(*block)).all(|block| chosen.contains(&(block as u32))));
        let is_read = |block: &usize| chosen.contains(&(*block as u32));
        let least = (0..count).filter(|b| is_read(b) && !forced(*b)).map(|b| shares[b]).fold(2.0, f32::min);
        let most = (0..count).filter(|b| !is_read(b)).map(|b| shares[b]).fold(0.0, f32::max);
        prop_assert!(least >= most);
        let unread: f32 = (0..count).filter(|b| !is_read(b)).map(|b| shares[b]).sum();
        prop_assert!((unread - choice.unread).abs() < 1e-4);
        let wanted = (chosen.len() as f32 * critical).ceil() as usize;
        prop_assert_eq!(choice.critical.iter().filter(|critical| **critical).count(), wanted);
    }
}

/// Of what keys differ by from their mean, two bits keep about seven eighths, also where they differ along
/// one direction and err alike. One draw in a thousand keeps less: these draws are always the same.
#[test]
fn little_of_the_keys_is_lost() {
    for is_flat in [false, true] {
        let (mut lost, mut all) = (0.0_f32, 0.0_f32);
        for seed in 0..100 {
            let (mut random, dim) = (Random(seed), 24 + seed as usize % 50);
            let summary = Summary::new(dim, (0..dim).collect());
            let (middle, basis) = (random.values(dim), random.values(dim));
            let along = random.values(BLOCK_TOKENS);
            let flat = along.iter().flat_map(|c| middle.iter().zip(&basis).map(move |(m, b)| m + c * b));
            let keys = if is_flat { flat.collect() } else { random.values(BLOCK_TOKENS * dim) };
            let (mut block, mut mean) = (vec![0; summary.len_bytes()], vec![0.0; dim]);
            summary.encode(&keys, &mut block);
            summary.decode_mean(&block, &mut mean);
            for (index, (key, kept)) in keys.iter().zip(kept_keys(&summary, &block)).enumerate() {
                lost += (key - kept).powi(2);
                all += (key - mean[index % dim]).powi(2);
            }
        }
        assert!(lost < 0.15 * all, "{lost} of {all}");
    }
}

/// What sets one token apart is kept, whatever direction it lies in: heads that retrieve look for that.
#[test]
fn a_token_that_stands_out_is_estimated() {
    for seed in 0..300 {
        let (mut random, dim) = (Random(seed), [24, 32, 64][seed as usize % 3]);
        let summary = Summary::new(dim, (0..dim).collect());
        let mut keys = random.values(BLOCK_TOKENS * dim);
        let direction = random.values(dim);
        let squares: f32 = direction.iter().map(|x| x * x).sum();
        let needle = seed as usize % BLOCK_TOKENS;
        for (x, along) in keys[needle * dim..][..dim].iter_mut().zip(&direction) {
            *x = 3.0 * along;
        }
        // Its score is 9; those of the others are of order 2.
        let query: Vec<f32> = direction.iter().map(|x| x * 3.0 / squares).collect();
        let mut block = vec![0; summary.len_bytes()];
        summary.encode(&keys, &mut block);
        let (found, expected) = (log_mass(&summary, &query, &block), true_log_mass(&query, &keys));
        assert!((found - expected).abs() < 2.0, "{seed}: {found} {expected}");
    }
}

#[test]
fn the_guard_reads_as_much_more_as_it_needs_and_not_more() {
    let shares: Vec<f32> = (0..100).map(|_| 0.01).collect();
    let budget = |unread, growth| Budget {
        blocks: 20,
        sinks: 1,
        window: 2,
        critical: 0.5,
        guard: Guard { unread, growth },
    };
    let mut choice = Choice::default();
    choice.pick(&shares, 0.0, &budget(0.5, 4.0), &[]);
    assert!((49..=51).contains(&choice.blocks.len()), "{}", choice.blocks.len());
    assert!(choice.unread <= 0.51);
    choice.pick(&shares, 0.0, &budget(0.5, 2.0), &[]);
    assert_eq!(choice.blocks.len(), 40);
    choice.pick(&shares, 0.0, &budget(1.0, 4.0), &[]);
    assert_eq!(choice.blocks.len(), 20);
}

#[test]
fn what_is_no_number_is_read() {
    let summary = Summary::new(8, (0..8).collect());
    let mut blocks = vec![0; 3 * summary.len_bytes()];
    let mut keys = vec![0.5; BLOCK_TOKENS * 8];
    for (index, block) in blocks.chunks_exact_mut(summary.len_bytes()).enumerate() {
        keys[5] = if index == 1 { f32::NAN } else { 0.5 };
        summary.encode(&keys, block);
    }
    for level in SimdLevel::supported() {
        let (at, _) = estimated(level, &summary, &[1.0; 8], 1, &blocks);
        assert!(at[1].is_nan() && !at[0].is_nan() && !at[2].is_nan(), "{level:?} {at:?}");
    }
    let guard = Guard { unread: 1.0, growth: 1.0 };
    let budget = Budget { blocks: 1, sinks: 0, window: 0, critical: 0.0, guard };
    let mut choice = Choice::default();
    choice.pick(&[0.9, f32::NAN, 0.1], 0.0, &budget, &[]);
    assert_eq!(choice.blocks, [1]);
}

#[test]
fn a_block_that_cannot_be_sketched_is_no_number_in_its_sketch() {
    let summary = Summary::new(8, (0..8).collect());
    let mut random = Random(3);
    let mut blocks = encoded(&summary, 32, &mut random);
    summary.encode(
        &[f32::INFINITY; BLOCK_TOKENS * 8],
        &mut blocks[5 * summary.len_bytes()..][..summary.len_bytes()],
    );
    let bytes = sketched(Sketch::new(32), &summary, &random.values(DIRECTIONS * 8), &blocks);
    for level in SimdLevel::supported() {
        let (mut scores, mut most) = ([0.0; 32], [f32::NEG_INFINITY]);
        Sketch::new(32).score_at(level, &bytes, &[1.0; DIRECTIONS], &mut scores, 32, &mut most);
        assert_eq!(most[0].to_bits(), f32::NEG_INFINITY.to_bits(), "{level:?}");
        assert!(scores.iter().all(|score| score.is_nan()), "{level:?} {scores:?}");
    }
}

#[test]
fn the_rest_counts_as_unread() {
    let guard = Guard { unread: 0.3, growth: 2.0 };
    let budget = Budget { blocks: 4, sinks: 1, window: 1, critical: 0.0, guard };
    let mut choice = Choice::default();
    choice.pick(&[0.1; 5], 0.5, &budget, &[]);
    assert_eq!(choice.blocks.len(), 5, "the guard reads what it can");
    assert!((choice.unread - 0.5).abs() < 1e-6, "{}", choice.unread);
}

#[test]
fn budgets_that_cannot_be_are_refused_by_name() {
    let guard = Guard { unread: 0.1, growth: 2.0 };
    let good = Budget { blocks: 8, sinks: 1, window: 4, critical: 0.5, guard };
    let message = |budget: Budget| budget.check().unwrap_err().to_string();
    assert!(message(Budget { blocks: 4, ..good }).contains("budget of 4 blocks"));
    assert!(message(Budget { critical: 1.5, ..good }).contains("critical is 1.5"));
    assert!(message(Budget { guard: Guard { unread: -1.0, ..guard }, ..good }).contains("threshold"));
    assert!(message(Budget { guard: Guard { growth: 0.5, ..guard }, ..good }).contains("growth"));
}
