//! Cutting a batch into near-equal shares.
//!
//! All pages of all (sequence, KV head) pairs are put in one line, and the line is cut into
//! parts of equal length: every part has the same bytes to within one page, however few
//! or uneven the heads are, and at most `parts - 1` of the pairs' pages are split. Split
//! pairs are merged afterwards (Flash-Decoding), in page order, so a result depends on
//! the plan alone and never on the timing of threads.

use std::ops::Range;

/// Parts per thread: a thread that is held up loses only a fraction of its share to
/// the others, and each further part costs one merge.
const PARTS_PER_THREAD: usize = 4;
/// A part smaller than this many pages costs more to hand out than to compute.
const PART_PAGES_MIN: usize = 4;

/// Consecutive pages of one KV head of one sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Row of the batch.
    pub sequence: usize,
    /// KV head.
    pub head: usize,
    /// Pages of that sequence.
    pub pages: Range<usize>,
}

/// A division of a batch into parts, each a run of spans.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    spans: Vec<Span>,
    /// For each part, its spans.
    parts: Vec<Range<usize>>,
}

impl Plan {
    /// Divides `pages[sequence]` pages per KV head of each sequence among `threads`.
    ///
    /// Sequences without pages get no span. Pages count as equal: they are, but for the
    /// last of a sequence.
    pub fn new(pages: &[usize], kv_heads: usize, threads: usize) -> Self {
        let total = pages.iter().sum::<usize>() * kv_heads;
        let num_parts = match threads {
            0 | 1 => 1,
            _ => (threads * PARTS_PER_THREAD).min(total.div_ceil(PART_PAGES_MIN)).max(1),
        };
        let mut plan = Self::default();
        let mut pairs = pages
            .iter()
            .enumerate()
            .flat_map(|(sequence, &pages)| (0..kv_heads).map(move |head| (sequence, head, pages)))
            .filter(|(_, _, pages)| *pages > 0);
        let Some(mut pair) = pairs.next() else { return plan };
        let mut first_page = 0;
        for part in 0..num_parts {
            let first_span = plan.spans.len();
            let mut left = (part + 1) * total / num_parts - part * total / num_parts;
            while left > 0 {
                let (sequence, head, pages) = pair;
                let taken = left.min(pages - first_page);
                plan.spans.push(Span { sequence, head, pages: first_page..first_page + taken });
                left -= taken;
                first_page += taken;
                if first_page == pages {
                    first_page = 0;
                    // The line ends exactly where the last part does.
                    let Some(next) = pairs.next() else { break };
                    pair = next;
                }
            }
            plan.parts.push(first_span..plan.spans.len());
        }
        plan
    }

    /// Number of parts: the `n` of [`super::Parallel::run`].
    pub fn num_parts(&self) -> usize {
        self.parts.len()
    }

    /// All spans, in the order (sequence, head, page); each has a state of its own.
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// Indices of the spans of `part`.
    ///
    /// # Panics
    /// When there is no such part.
    pub fn part(&self, part: usize) -> Range<usize> {
        self.parts[part].clone()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_page_is_in_exactly_one_part_and_parts_are_equal(
            pages in prop::collection::vec(0_usize..300, 0..5),
            kv_heads in 1_usize..9,
            threads in 1_usize..17,
        ) {
            let plan = Plan::new(&pages, kv_heads, threads);
            let mut seen = Vec::new();
            let mut sizes = Vec::new();
            for part in 0..plan.num_parts() {
                let spans = &plan.spans()[plan.part(part)];
                sizes.push(spans.iter().map(|span| span.pages.len()).sum::<usize>());
                for span in spans {
                    prop_assert!(!span.pages.is_empty());
                    seen.extend(span.pages.clone().map(|page| (span.sequence, span.head, page)));
                }
            }
            let mut expected = Vec::new();
            for (sequence, &pages) in pages.iter().enumerate() {
                for head in 0..kv_heads {
                    expected.extend((0..pages).map(|page| (sequence, head, page)));
                }
            }
            prop_assert_eq!(seen, expected);
            if let (Some(max), Some(min)) = (sizes.iter().max(), sizes.iter().min()) {
                prop_assert!(max - min <= 1);
            }
        }
    }

    #[test]
    fn three_heads_on_two_threads_are_shared_evenly() {
        let plan = Plan::new(&[128], 3, 2);
        assert_eq!(plan.num_parts(), 8);
        assert!((0..8).all(|part| {
            plan.spans()[plan.part(part)].iter().map(|span| span.pages.len()).sum::<usize>() == 48
        }));
    }
}
