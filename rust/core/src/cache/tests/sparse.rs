//! Selected attention against attention over the very tokens that were read, in float64.

use proptest::prelude::*;

use super::rotary::{assert_near, ids, query, reference, rotary, rotated};
use super::*;
use crate::attend::{Inline, Pool};
use crate::cache::{Bias, Mask, Selection};
use crate::rotary::Rotary;
use crate::score::{BLOCK_TOKENS, Budget, Guard};

pub(super) const PAGE_TOKENS: usize = 32;

pub(super) fn selection(blocks: usize, trained_tokens: usize) -> Selection {
    let guard = Guard { unread: 1.0, growth: 1.0 };
    Selection {
        budget: Budget { blocks, sinks: 1, window: 2, critical: 1.0, guard },
        recent: 0,
        dense_below: 0,
        dense_prefill_below: usize::MAX,
        trained_tokens,
        sketches: true,
    }
}

pub(super) fn cache(rotary: &Rotary, store: Store, selection: Option<Selection>) -> KvCache {
    let mut cache = KvCache::new(store, rotated(config(1, PAGE_TOKENS), rotary)).unwrap();
    cache.select(selection).unwrap();
    cache
}

/// Tokens that the last step read for the one row and head.
fn read_tokens(cache: &KvCache, length: usize) -> Vec<usize> {
    let blocks = cache.read_blocks(0).unwrap().unwrap().next().unwrap();
    let tokens = |block: &u32| {
        let first = *block as usize * BLOCK_TOKENS;
        first..(first + BLOCK_TOKENS).min(length)
    };
    blocks[0].iter().flat_map(tokens).collect()
}

fn part(tensor: &Tensor, tokens: &[usize]) -> Tensor {
    let Extent { batch, heads, dim, dtype, .. } = tensor.extent;
    Tensor::new(batch, heads, tokens.len(), dim, dtype).filled(|b, h, t, d| tensor.at(b, h, tokens[t], d))
}

/// Hides, from each of the last `new` tokens, those after it and those that are not read: (T, tokens).
fn later(length: usize, new: usize, tokens: &[usize], read: &[usize]) -> Vec<f32> {
    let is_seen = |query: usize, token: &usize| *token <= query && read.contains(token);
    let hidden = |seen| if seen { 0.0 } else { f32::NEG_INFINITY };
    let row = |query| tokens.iter().map(move |token| hidden(is_seen(query, token)));
    (length - new..length).flat_map(row).collect()
}

/// (T, tokens) as a mask takes it.
fn per_token(values: &[f32], new: usize) -> Bias<'_> {
    let tokens = values.len() / new;
    Bias { values, shape: [1, new, tokens], batch_stride: 0, token_stride: tokens }
}

/// One step that has one selection, and what it should give by definition.
fn check(cache: &mut KvCache, rotary: &Rotary, row: &[u32], shape: [usize; 3], new: usize, compact: bool) {
    let (length, [_, dk, dv]) = (row.len(), shape);
    let (keys, values) = tensors(0, &[row.to_vec()], 0, shape, DType::F32);
    let query = query(1, 2, new, dk);
    let mut out = Tensor::new(1, 2, new, dv, DType::F32);
    let all: Vec<usize> = (0..length).collect();
    let later = later(length, new, &all, &all);
    // A few tokens have one selection where only a bias says what they must not see.
    let is_shared = (2..=32).contains(&new);
    let mask = Mask { causal: !is_shared, bias: if is_shared { Some(per_token(&later, new)) } else { None } };
    cache.attend(0, &query, &mut out, 0.3, &mask, &Pool::new(2)).unwrap();
    let tokens = read_tokens(cache, length);
    // Compact, what is read is all there is; else the rest is there and hidden.
    let there = if compact { &tokens } else { &all };
    let hidden = self::later(length, new, there, &tokens);
    let hides = Mask { causal: false, bias: Some(per_token(&hidden, new)) };
    let (keys, values) = (part(&keys, there), part(&values, there));
    let expected = reference(rotary, &query, &keys, &values, 0.3, &hides);
    assert_near(&out, &expected, DType::F32);
    let mut again = out.clone();
    cache.attend(0, &query, &mut again, 0.3, &mask, &Inline).unwrap();
    assert_eq!(out, again, "threads change no bit");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn equals_attention_over_what_is_read(
        length in PAGE_TOKENS..900,
        crop in PAGE_TOKENS..900,
        blocks in 4_usize..12,
        pairs in 1_usize..5,
        rest in 0_usize..4,
        dv in 1_usize..7,
        new in 1_usize..5,
        interleaved in any::<bool>(),
        compact in any::<bool>(),
    ) {
        let (rotary, shape) = (rotary(pairs, interleaved), [1, 2 * pairs + rest, dv]);
        let trained = if compact { blocks * BLOCK_TOKENS } else { 10_000 };
        let mut cache = cache(&rotary, store(), Some(selection(blocks, trained)));
        let mut row = ids(length, 3);
        feed(&mut cache, std::slice::from_ref(&row), shape, DType::F32);
        check(&mut cache, &rotary, &row, shape, new, row.len() > trained);
        prop_assert!(read_tokens(&cache, length).len() <= (blocks + 2) * BLOCK_TOKENS);
        let mut fork = cache.fork().unwrap();
        cache.crop(crop);
        row.truncate(crop);
        let fresh = ids(40, 8);
        feed(&mut cache, std::slice::from_ref(&fresh), shape, DType::F32);
        let kept = row.len();
        row.extend(&fresh);
        check(&mut cache, &rotary, &row, shape, new, row.len() > trained);
        feed(&mut fork, &[ids(50, 1)], shape, DType::F32);
        prop_assert!(kept <= crop);
    }
}

/// What assisted decoding relies on: guessed tokens get what they would get one by one.
#[test]
fn the_tokens_of_a_step_get_what_they_get_one_by_one() {
    let (rotary, shape) = (rotary(4, false), [2, 8, 6]);
    // On both sides of a page's end, of the trained window's and of the length that is read whole.
    for (length, trained, dense_below) in [(704, 700, 0), (704, 96, 701), (710, 10_000, 0)] {
        let rows = [ids(length, 3), ids(length, 5)];
        let selection = Selection { dense_below, ..selection(6, trained) };
        let mut cache = cache(&rotary, store(), Some(selection));
        feed(&mut cache, &rows, shape, DType::Bf16);
        let new = 7;
        let queries = query(2, 4, new, 8);
        // The second row is padded.
        let hidden: Vec<f32> = (0..2 * length)
            .map(|at| if (length..length + 9).contains(&at) { f32::NEG_INFINITY } else { 0.0 })
            .collect();
        let padding =
            |len: usize| Bias { values: &hidden, shape: [2, 1, len], batch_stride: length, token_stride: 0 };
        let mut together = Tensor::new(2, 4, new, 6, DType::F32);
        let mask = Mask { causal: true, bias: Some(padding(length)) };
        cache.attend(0, &queries, &mut together, 0.5, &mask, &Pool::new(2)).unwrap();
        for token in 0..new {
            let mut fork = cache.fork().unwrap();
            fork.crop(length - new + 1 + token);
            let mut alone = Tensor::new(2, 4, 1, 6, DType::F32);
            let mask = Mask { causal: true, bias: Some(padding(length - new + 1 + token)) };
            fork.attend(0, &part(&queries, &[token]), &mut alone, 0.5, &mask, &Pool::new(2)).unwrap();
            let together = part(&together, &[token]);
            if length - new + 1 + token > dense_below {
                assert_eq!(together, alone, "token {token} of {length}, trained {trained}");
            }
            for index in 0..2 * 4 * 6 {
                let [a, b] = [&together, &alone].map(|out| DType::F32.read(&out.bytes, index));
                assert!((a - b).abs() < 1e-5, "token {token} of {length}, trained {trained}: {a} {b}");
            }
        }
    }
}

fn prefilling(blocks: usize, trained_tokens: usize) -> Selection {
    Selection { dense_prefill_below: 0, ..selection(blocks, trained_tokens) }
}

#[test]
fn a_part_of_a_prefill_equals_attention_over_what_it_reads() {
    let (rotary, shape) = (rotary(4, false), [1, 9, 5]);
    for (compact, new) in [(false, 64), (true, 64), (false, 40), (true, 33)] {
        let trained = if compact { (6 + 4) * BLOCK_TOKENS } else { 10_000 };
        let mut cache = cache(&rotary, store(), Some(prefilling(6, trained)));
        let row = ids(704, 3);
        feed(&mut cache, std::slice::from_ref(&row), shape, DType::F32);
        check(&mut cache, &rotary, &row, shape, new, compact);
        // The tokens' own blocks come on top of the budget.
        assert_eq!(read_tokens(&cache, 704).len(), (6 + new.div_ceil(16)) * BLOCK_TOKENS);
    }
}

#[test]
fn the_chunks_of_a_prefill_change_no_bit() {
    let (rotary, shape, row) = (rotary(4, false), [2, 8, 6], ids(1024, 2));
    let prefill = |chunk: usize, dense_prefill_below: usize| {
        let selection = Selection { dense_prefill_below, ..prefilling(8, 300) };
        let mut cache = cache(&rotary, store(), Some(selection));
        let mut rows: Vec<Vec<u8>> = vec![Vec::new(); 4];
        for start in (0..row.len()).step_by(chunk) {
            feed(&mut cache, &[row[start..start + chunk].to_vec()], shape, DType::Bf16);
            let all = query(1, 4, row.len(), 8);
            let part: Vec<usize> = (start..start + chunk).collect();
            let mut out = Tensor::new(1, 4, chunk, 6, DType::F32);
            let causal = Mask { causal: true, bias: None };
            cache
                .attend(0, &super::sparse::part(&all, &part), &mut out, 0.5, &causal, &Pool::new(2))
                .unwrap();
            let head_bytes = chunk * out.extent.row_bytes();
            rows.iter_mut().zip(out.bytes.chunks_exact(head_bytes)).for_each(|(row, new)| row.extend(new));
        }
        rows.concat()
    };
    let expected = prefill(64, 0);
    for chunk in [128, 256, 1024] {
        assert!(prefill(chunk, 0) == expected, "{chunk}");
    }
    assert!(prefill(64, usize::MAX) != expected);
    // What is short enough is read whole: all but the last part.
    let (dense, selected) = (prefill(1024, 1024), prefill(1024, 1023));
    for head in 0..4 {
        for index in head * 1024 * 6..(head * 1024 + 960) * 6 {
            let (dense, selected) = (DType::F32.read(&dense, index), DType::F32.read(&selected, index));
            assert!((dense - selected).abs() < 1e-5, "{head} {index}: {selected} instead of {dense}");
        }
    }
}

#[test]
fn a_budget_of_everything_is_dense_attention() {
    let (rotary, shape, row) = (rotary(4, false), [2, 8, 6], ids(700, 2));
    let attend = |selection| {
        let mut cache = cache(&rotary, store(), selection);
        feed(&mut cache, &[row.clone(), ids(700, 9)], shape, DType::Bf16);
        let mut out = Tensor::new(2, 4, 3, 6, DType::F32);
        let causal = Mask { causal: true, bias: None };
        cache.attend(0, &query(2, 4, 3, 8), &mut out, 0.5, &causal, &Pool::new(2)).unwrap();
        (out, cache.selected(0).unwrap())
    };
    let (dense, nothing) = attend(None);
    assert_eq!(nothing, None);
    let (found, selected) = attend(Some(selection(1000, 10_000)));
    for index in 0..2 * 4 * 3 * 6 {
        let (found, dense) = (DType::F32.read(&found.bytes, index), DType::F32.read(&dense.bytes, index));
        assert!((found - dense).abs() < 1e-5, "{found} {dense}");
    }
    let selected = selected.unwrap();
    assert!((selected.tokens - 700.0).abs() < 1e-3 && selected.unread == 0.0, "{selected:?}");
}

/// Past the trained window the last tokens come first, but not where a focus or a prefill says what is read.
#[test]
fn a_step_past_the_trained_window_reads_mostly_what_is_recent() {
    let (rotary, shape, row) = (rotary(4, false), [1, 8, 6], ids(704, 3));
    let recent: Vec<usize> = (704 - 12 * BLOCK_TOKENS..704).collect();
    for (trained, new, is_focused, expected) in
        [(500, 1, false, true), (500, 64, false, false), (500, 1, true, false), (1000, 1, false, false)]
    {
        let selection = Selection { recent: 12, ..prefilling(16, trained) };
        let mut cache = cache(&rotary, store(), Some(selection));
        feed(&mut cache, std::slice::from_ref(&row), shape, DType::F32);
        if is_focused {
            cache.focus(vec![vec![5, 6]], 3, None).unwrap();
        }
        check(&mut cache, &rotary, &row, shape, new, trained < 704);
        let read = read_tokens(&cache, 704);
        assert_eq!(read.ends_with(&recent), expected, "{trained} {new} {is_focused}");
        assert!(is_focused || new > 1 || read.len() == 16 * BLOCK_TOKENS);
    }
}

/// What was asked, and what was said since, stays in view however long the answer gets; as far as it fits.
#[test]
fn a_focus_reads_what_comes_after_it() {
    let (rotary, shape, trained) = (rotary(4, false), [1, 8, 6], 20 * BLOCK_TOKENS);
    let mut cache = cache(&rotary, store(), Some(selection(6, trained)));
    feed(&mut cache, &[ids(640, 3)], shape, DType::F32);
    cache.focus(vec![vec![5, 6]], 1, Some(38)).unwrap();
    for length in (640..1200).step_by(48) {
        let mut out = Tensor::new(1, 2, 1, 6, DType::F32);
        cache.attend(0, &query(1, 2, 1, 8), &mut out, 0.5, &Mask::default(), &Inline).unwrap();
        let read = read_tokens(&cache, length);
        let room = trained - 4 * BLOCK_TOKENS;
        let since = (38 * BLOCK_TOKENS).max(length.saturating_sub(room).next_multiple_of(BLOCK_TOKENS));
        let expected: Vec<usize> = (since..length).collect();
        assert!(read.ends_with(&expected), "{length}: {read:?}");
        assert_eq!(
            read.len(),
            expected.len() + 4 * BLOCK_TOKENS,
            "a sink, two, and one of its own: {length}"
        );
        assert!(read.len() <= trained);
        feed(&mut cache, &[ids(48, length as u32)], shape, DType::F32);
    }
}

/// The model knows no numbers beyond its trained window, whatever the budget and its guard ask for.
#[test]
fn what_is_read_of_a_longer_context_fits_the_trained_window() {
    let (rotary, shape, trained) = (rotary(4, false), [1, 8, 6], 20 * BLOCK_TOKENS);
    for (blocks, growth, fewest) in [(5, 1.0, 5), (5, 3.0, 15), (15, 8.0, 20), (1000, 2.0, 20)] {
        for new in [1, 64] {
            let mut selection = prefilling(blocks, trained);
            selection.budget.guard = Guard { unread: 0.0, growth };
            let mut cache = cache(&rotary, store(), Some(selection));
            let row = ids(704, 3);
            feed(&mut cache, std::slice::from_ref(&row), shape, DType::F32);
            check(&mut cache, &rotary, &row, shape, new, true);
            let read = read_tokens(&cache, 704).len();
            assert!(read <= trained, "{read} tokens of {blocks} blocks, grown by {growth}, for {new}");
            assert!(new > 1 || read == fewest * BLOCK_TOKENS, "{read} tokens of {blocks} blocks");
        }
    }
}

#[test]
fn a_block_that_answers_the_query_is_read() {
    let (rotary, length) = (rotary(8, false), 2000);
    let mut cache = cache(&rotary, store(), Some(selection(8, 10_000)));
    // One token looks like the query, all others like nothing much.
    let needle = 777;
    let keys = Tensor::new(1, 1, length, 16, DType::F32).filled(|_, _, t, d| {
        if t == needle && d % 8 == 7 { 6.0 } else { ((t * 7 + d * 3) % 11) as f32 / 20.0 - 0.25 }
    });
    let values =
        Tensor::new(1, 1, length, 4, DType::F32).filled(|_, _, t, _| if t == needle { 1.0 } else { 0.0 });
    cache.append(0, &keys, &values).unwrap();
    let query = Tensor::new(1, 2, 1, 16, DType::F32).filled(|_, _, _, d| if d % 8 == 7 { 6.0 } else { 0.1 });
    let mut out = Tensor::new(1, 2, 1, 4, DType::F32);
    cache.attend(0, &query, &mut out, 0.25, &Mask::default(), &Inline).unwrap();
    assert!(out.at(0, 0, 0, 0) > 0.9, "{}", out.at(0, 0, 0, 0));
    let selected = cache.selected(0).unwrap().unwrap();
    assert!(selected.tokens <= 8.0 * 16.0 && selected.unread < 0.3, "{selected:?}");
}

/// Tokens of a context whose far blocks are told from sketches.
pub(super) const LONG: usize = 3000;

/// Lets a cache that holds `length` tokens see queries that look like `query` does.
pub(super) fn ask_often(cache: &mut KvCache, query: &Tensor) {
    let extent = Extent { tokens: 70, ..query.extent };
    let queries = Tensor::new(extent.batch, extent.heads, 70, extent.dim, extent.dtype)
        .filled(|b, h, t, d| query.at(b, h, 0, d) + ((t * 5 + d * 3 + h) % 7) as f32 / 20.0);
    let mut out = Tensor::new(extent.batch, extent.heads, 70, 4, DType::F32);
    cache.attend(0, &queries, &mut out, 0.25, &Mask { causal: true, bias: None }, &Inline).unwrap();
}

#[test]
fn a_far_block_that_answers_the_query_is_read_without_an_estimate_of_every_block() {
    let rotary = rotary(8, false);
    for needle in [500, 1777, 2040] {
        let mut cache = cache(&rotary, store(), Some(selection(5, 100)));
        let keys = Tensor::new(1, 1, LONG, 16, DType::F32).filled(|_, _, t, d| {
            if t == needle && d % 8 == 7 { 6.0 } else { ((t * 7 + d * 3) % 11) as f32 / 20.0 - 0.25 }
        });
        let values =
            Tensor::new(1, 1, LONG, 4, DType::F32).filled(|_, _, t, _| if t == needle { 1.0 } else { 0.0 });
        cache.append(0, &keys, &values).unwrap();
        let query =
            Tensor::new(1, 2, 1, 16, DType::F32).filled(|_, _, _, d| if d % 8 == 7 { 6.0 } else { 0.1 });
        let read = |cache: &mut KvCache| {
            let mut out = Tensor::new(1, 2, 1, 4, DType::F32);
            cache.attend(0, &query, &mut out, 0.25, &Mask::default(), &Inline).unwrap();
            assert!(out.at(0, 0, 0, 0) > 0.9, "{needle}: {}", out.at(0, 0, 0, 0));
            cache.selected(0).unwrap().unwrap()
        };
        let whole = read(&mut cache);
        assert_eq!(cache.sketched(0), 0, "nothing is known of the queries yet");
        ask_often(&mut cache, &query);
        let sketched = read(&mut cache);
        assert!(cache.sketched(0) * 32 > 2 * (4 * 8 + 1), "{} chapters", cache.sketched(0));
        assert!((whole.tokens - sketched.tokens).abs() < 0.5, "{whole:?} {sketched:?}");
        assert!((whole.unread - sketched.unread).abs() < 0.1, "{whole:?} {sketched:?}");
    }
}

/// What every head of every row read in the last step.
pub(super) fn all_read(cache: &KvCache) -> Vec<Vec<u32>> {
    cache.read_blocks(0).unwrap().unwrap().flatten().cloned().collect()
}

#[test]
fn a_focus_is_read_by_all_heads_instead_of_a_budget() {
    let (rotary, shape) = (rotary(4, false), [2, 8, 4]);
    let asked = query(2, 4, 1, 8);
    // With sketches, with all blocks estimated, and with true positions.
    for (trained, sketches) in [(100, true), (100, false), (10_000, true)] {
        let selection = Selection { sketches, ..selection(9, trained) };
        let mut cache = cache(&rotary, store(), Some(selection));
        feed(&mut cache, &[ids(LONG, 2), ids(LONG, 5)], shape, DType::Bf16);
        ask_often(&mut cache, &asked);
        let attend = |cache: &mut KvCache| {
            let mut out = Tensor::new(2, 4, 1, 4, DType::F32);
            cache.attend(0, &asked, &mut out, 0.5, &Mask::default(), &Pool::new(2)).unwrap();
            (out, all_read(cache))
        };
        let free = attend(&mut cache);
        // Far, near, among the sinks, in the window, and past the end.
        let focus = [vec![0, 77, 78, 40, 78, 150], vec![120, 3, 186, 5000]];
        cache.focus(focus.to_vec(), 2, None).unwrap();
        let held = attend(&mut cache);
        for (head, read) in held.1.iter().enumerate() {
            let wanted = focus[head / 2].iter().filter(|block| **block < 5000);
            assert!(wanted.clone().all(|block| read.contains(block)), "{head}: {read:?}");
            // One sink, two blocks of the tail, as many as the longest focus has, and two.
            assert_eq!(read.len(), 10, "{trained} {sketches} {head}: {read:?}");
        }
        assert!(cache.sketched(0) * 32 > 2 * (4 * 12 + 1), "enough for the sketches to be asked");
        // A fork has it too; other rows take theirs along; what is cropped away is not looked for.
        let mut fork = cache.fork().unwrap();
        assert_eq!(attend(&mut fork), held);
        fork.reorder(&[1, 0]).unwrap();
        let swapped = attend(&mut fork).1;
        assert!([3, 120].iter().all(|block| swapped[0].contains(block)), "{swapped:?}");
        fork.crop(77 * BLOCK_TOKENS);
        feed(&mut fork, &[ids(LONG, 6), ids(LONG, 7)], shape, DType::Bf16);
        assert!(attend(&mut fork).1[0].contains(&3) && !fork.focus.rows[0].contains(&120));
        // More than the budget is read all the same.
        cache.focus(vec![(30..60).collect(), (30..60).collect()], 0, None).unwrap();
        let all = attend(&mut cache).1;
        assert!(all.iter().all(|read| (30..60).all(|block| read.contains(&block))), "{all:?}");
        cache.focus(Vec::new(), 0, None).unwrap();
        assert_eq!(attend(&mut cache), free);
    }
}

/// Heads that choose nothing have nothing to estimate but what they read, however long the context is.
#[test]
fn a_focus_alone_is_read_with_sinks_and_window() {
    let (rotary, shape) = (rotary(4, false), [1, 8, 4]);
    for length in [LONG, LONG - 5, LONG / 16 / 128 * 16 * 128] {
        for tokens in [1, 3, 20] {
            let asked = query(1, 4, tokens, 8);
            let mut cache = cache(&rotary, store(), Some(selection(9, 100)));
            feed(&mut cache, &[ids(length, 2)], shape, DType::Bf16);
            ask_often(&mut cache, &query(1, 4, 1, 8));
            let mut attend = |focus: &[u32]| {
                cache.focus(vec![focus.to_vec()], 0, None).unwrap();
                let mut out = Tensor::new(1, 4, tokens, 4, DType::F32);
                cache
                    .attend(0, &asked, &mut out, 0.5, &Mask { causal: true, bias: None }, &Pool::new(2))
                    .unwrap();
                (
                    all_read(&cache),
                    cache.read_shares(0).unwrap().unwrap().flatten().cloned().collect::<Vec<_>>(),
                )
            };
            let none = attend(&[]).0;
            let (read, shares) = attend(&[40, 41, 110]);
            for ((read, shares), none) in read.iter().zip(&shares).zip(&none) {
                let mut expected: Vec<u32> = none.iter().copied().chain([40, 41, 110]).collect();
                expected.sort_unstable();
                assert_eq!(*read, expected, "{length} {tokens}");
                assert!(shares.iter().all(|share| (0.0..=1.0).contains(share)), "{shares:?}");
                let focused: f32 =
                    [40, 41, 110].iter().map(|block| shares[read.binary_search(block).unwrap()]).sum();
                assert!(focused > 0.0 && shares.iter().sum::<f32>() < 1.0 + 1e-4, "{shares:?}");
            }
        }
    }
}

#[test]
fn a_focus_needs_a_list_for_each_row() {
    let mut cache = cache(&rotary(4, false), store(), Some(selection(8, 100)));
    feed(&mut cache, &[ids(200, 2)], [1, 8, 4], DType::F32);
    let message = cache.focus(vec![vec![1], vec![2]], 1, None).unwrap_err().to_string();
    assert!(message.contains("2 rows for a cache of 1"), "{message}");
}

#[test]
fn without_sketches_every_block_is_estimated() {
    let rotary = rotary(8, false);
    let asked = query(1, 2, 1, 16);
    let read = |sketches: bool, is_known: bool| {
        let selection = Selection { sketches, ..selection(5, 100) };
        let mut cache = cache(&rotary, store(), Some(selection));
        feed(&mut cache, &[ids(LONG, 2)], [1, 16, 4], DType::F32);
        if is_known {
            ask_often(&mut cache, &asked);
        }
        let mut out = Tensor::new(1, 2, 1, 4, DType::F32);
        cache.attend(0, &asked, &mut out, 0.25, &Mask::default(), &Inline).unwrap();
        (out, cache.read_shares(0).unwrap().unwrap().next().unwrap().to_vec())
    };
    // The directions of queries say nothing then.
    assert_eq!(read(false, true), read(false, false));
    assert_ne!(read(true, true), read(false, true));
}

#[test]
fn what_is_read_by_sketches_depends_on_the_tokens_alone() {
    let (rotary, shape) = (rotary(4, false), [2, 8, 6]);
    let row = ids(LONG, 2);
    let asked = query(1, 4, 1, 8);
    let read = |cache: &mut KvCache| {
        let mut out = Tensor::new(1, 4, 1, 6, DType::F32);
        cache.attend(0, &asked, &mut out, 0.5, &Mask::default(), &Pool::new(2)).unwrap();
        assert!(cache.sketched(0) >= 3, "{} chapters", cache.sketched(0));
        (out, cache.read_blocks(0).unwrap().unwrap().map(<[Vec<u32>]>::to_vec).collect::<Vec<_>>())
    };
    let filled = |tokens: &[u32]| {
        let mut cache = cache(&rotary, store(), Some(selection(5, 100)));
        feed(&mut cache, &[tokens[..100].to_vec()], shape, DType::Bf16);
        let mut out = Tensor::new(1, 4, 64, 6, DType::F32);
        let causal = Mask { causal: true, bias: None };
        cache.attend(0, &query(1, 4, 64, 8), &mut out, 0.5, &causal, &Inline).unwrap();
        feed(&mut cache, &[tokens[100..].to_vec()], shape, DType::Bf16);
        cache
    };
    let mut straight = filled(&row);
    let expected = read(&mut straight);
    // Cut back within a sketched chapter and filled again, beside a fork that goes on elsewhere.
    let mut detour = filled(&[&row[..1300], &ids(LONG - 1300, 7)].concat());
    let other = read(&mut detour);
    let mut fork = detour.fork().unwrap();
    detour.crop(1300);
    feed(&mut detour, &[row[1300..].to_vec()], shape, DType::Bf16);
    assert_eq!(read(&mut detour), expected);
    assert_eq!(read(&mut fork), other);
    // Another far place asks for other sketches, and back.
    fork.select(Some(selection(5, 1000))).unwrap();
    read(&mut fork);
    fork.select(Some(selection(5, 100))).unwrap();
    assert_eq!(read(&mut fork), other);
}

#[test]
fn tiers_and_sessions_change_no_bit() {
    let directory = tempfile::tempdir().unwrap();
    let (rotary, shape, row) = (rotary(4, false), [2, 8, 6], ids(LONG, 2));
    let attend = |cache: &mut KvCache| {
        let mut out = Tensor::new(1, 4, 2, 6, DType::F32);
        cache.attend(0, &query(1, 4, 2, 8), &mut out, 0.5, &Mask::default(), &Pool::new(2)).unwrap();
        out
    };
    // Far blocks are told from sketches.
    let selecting = || Some(selection(5, 100));
    let asked_often = |cache: &mut KvCache| {
        let mut out = Tensor::new(1, 4, 70, 6, DType::F32);
        let causal = Mask { causal: true, bias: None };
        cache.attend(0, &query(1, 4, 70, 8), &mut out, 0.5, &causal, &Inline).unwrap();
    };
    let mut warm = cache(&rotary, store(), selecting());
    feed(&mut warm, std::slice::from_ref(&row), shape, DType::Bf16);
    asked_often(&mut warm);
    let expected = attend(&mut warm);
    let open = || Store::open(&StoreConfig::on_disk(1 << 20, directory.path())).unwrap();
    {
        let mut cold = cache(&rotary, open(), selecting());
        feed(&mut cold, std::slice::from_ref(&row), shape, DType::Bf16);
        asked_often(&mut cold);
        assert_eq!(attend(&mut cold), expected);
        cold.save("s", "a model", b"").unwrap();
    }
    let mut resumed = cache(&rotary, open(), selecting());
    resumed.load("s").unwrap();
    assert_eq!(attend(&mut resumed), expected);
    assert!(warm.sketched(0) >= 3 && warm.sketched(0) == resumed.sketched(0));
}

#[test]
fn what_cannot_select_says_why() {
    let mut plain = KvCache::new(store(), config(1, PAGE_TOKENS)).unwrap();
    assert!(plain.select(Some(selection(8, 100))).unwrap_err().to_string().contains("rotary"));
    let mut odd = KvCache::new(store(), rotated(config(1, 40), &rotary(4, false))).unwrap();
    assert!(odd.select(Some(selection(8, 100))).unwrap_err().to_string().contains("multiple of 16"));
    let mut cache = cache(&rotary(4, false), store(), None);
    assert!(cache.select(Some(selection(2, 100))).unwrap_err().to_string().contains("budget of 2"));
}
