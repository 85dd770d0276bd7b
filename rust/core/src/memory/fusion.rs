//! How the signals of a memory become one score. Everything that can be tuned is here.

// The constants were found on conversations, see docs/memory.md.

/// BM25's saturation of repeated words.
pub const BM25_K1: f32 = 0.9;
/// How far BM25 counts a long text's words for less.
pub const BM25_B: f32 = 0.4;

/// What a memory counts in a window by its distance from the middle: in halves, as whole
/// numbers, of which the memory itself counts the first.
pub const WINDOW: [u32; 4] = [WINDOW_UNIT, 4, 2, 1];
/// What the memory itself counts in its window.
pub(super) const WINDOW_UNIT: u32 = 8;

/// The signals of one memory, each by itself.
///
/// The *window* of a memory is itself with three before and three after it in its session,
/// each counting half of the one nearer: an answer often stands beside the words that the
/// question has.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Signals {
    /// BM25 of the memory's words.
    pub bm25: f32,
    /// BM25 of its window's words.
    pub bm25_window: f32,
    /// Cosine of its vector and the query's; 0 where one has none.
    pub cosine: f32,
    /// Cosine of the query and the sum of the window's directions.
    pub cosine_window: f32,
    /// 1 where the query names one author alone, and it is the memory's.
    pub author: f32,
    /// Which share of the month, year and day that the query names is the memory's `valid_from`.
    pub date: f32,
    /// 1 where the text ends with a question.
    pub asks: f32,
    /// 1 where the memory before it in its session has a question.
    pub answers: f32,
    /// 1 where the query asks when, and the text says when.
    pub when: f32,
}

impl Signals {
    /// For callers: what is unknown, not a number in here, counts as nothing.
    pub(super) fn told(self) -> Self {
        let known = |value: f32| if value.is_nan() { 0.0 } else { value };
        Self { cosine: known(self.cosine), cosine_window: known(self.cosine_window), ..self }
    }
}

/// What each signal counts at its best among the memories that are rated; a field each as in
/// [`Signals`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weights {
    /// Of [`Signals::bm25`].
    pub bm25: f32,
    /// Of [`Signals::bm25_window`].
    pub bm25_window: f32,
    /// Of [`Signals::cosine`].
    pub cosine: f32,
    /// Of [`Signals::cosine_window`].
    pub cosine_window: f32,
    /// Of [`Signals::author`].
    pub author: f32,
    /// Of [`Signals::date`].
    pub date: f32,
    /// Of [`Signals::asks`].
    pub asks: f32,
    /// Of [`Signals::answers`].
    pub answers: f32,
    /// Of [`Signals::when`].
    pub when: f32,
}

impl Default for Weights {
    fn default() -> Self {
        Self {
            bm25: 0.0,
            bm25_window: 1.0,
            cosine: 0.0,
            cosine_window: 0.55,
            author: 0.15,
            date: 0.8,
            asks: -0.2,
            answers: 0.15,
            when: 0.4,
        }
    }
}

impl Weights {
    /// Nothing counts.
    pub const NOTHING: Self = Self {
        bm25: 0.0,
        bm25_window: 0.0,
        cosine: 0.0,
        cosine_window: 0.0,
        author: 0.0,
        date: 0.0,
        asks: 0.0,
        answers: 0.0,
        when: 0.0,
    };

    /// Whether all are finite, and one is not nothing.
    pub(super) fn are_usable(&self) -> bool {
        let Self { bm25, bm25_window, cosine, cosine_window, author, date, asks, answers, when } = *self;
        let all = [bm25, bm25_window, cosine, cosine_window, author, date, asks, answers, when];
        all.iter().all(|weight| weight.is_finite()) && all.iter().any(|weight| *weight != 0.0)
    }
}

/// The values of one signal among the memories that are rated.
#[derive(Clone, Copy, Debug)]
struct Range {
    least: f32,
    most: f32,
}

impl Range {
    const NOTHING: Self = Self { least: f32::INFINITY, most: f32::NEG_INFINITY };

    fn add(&mut self, value: f32) {
        // What is not known, a NaN, is neither.
        self.least = self.least.min(value);
        self.most = self.most.max(value);
    }

    /// Where a value is from the least, 0, to the most, 1; 0 for one that is not known.
    fn place(self, value: f32) -> f32 {
        let width = self.most - self.least;
        if width > 0.0 && !value.is_nan() { (value - self.least) / width } else { 0.0 }
    }
}

/// The ranges of all signals.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ranges {
    bm25: Range,
    bm25_window: Range,
    cosine: Range,
    cosine_window: Range,
}

impl Ranges {
    /// Those of the memories that are rated.
    pub(super) fn of(all: &[Signals]) -> Self {
        let nothing = Range::NOTHING;
        // A memory without the words has a BM25 of 0, whether it is rated or not.
        let words = Range { least: 0.0, ..nothing };
        let mut ranges = Self { bm25: words, bm25_window: words, cosine: nothing, cosine_window: nothing };
        for signals in all {
            ranges.bm25.add(signals.bm25);
            ranges.bm25_window.add(signals.bm25_window);
            ranges.cosine.add(signals.cosine);
            ranges.cosine_window.add(signals.cosine_window);
        }
        ranges
    }

    /// The score: the weighted sum of where each signal is in its range.
    pub(super) fn score(&self, signals: &Signals, weights: &Weights) -> f32 {
        weights.bm25 * self.bm25.place(signals.bm25)
            + weights.bm25_window * self.bm25_window.place(signals.bm25_window)
            + weights.cosine * self.cosine.place(signals.cosine)
            + weights.cosine_window * self.cosine_window.place(signals.cosine_window)
            + weights.author * signals.author
            + weights.date * signals.date
            + weights.asks * signals.asks
            + weights.answers * signals.answers
            + weights.when * signals.when
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_in_ranges() {
        let signals =
            |bm25_window, cosine_window| Signals { bm25_window, cosine_window, ..Signals::default() };
        let all = [signals(2.0, 0.5), signals(4.0, -0.5), signals(0.0, f32::NAN)];
        let ranges = Ranges::of(&all);
        let scores = all.map(|one| ranges.score(&one, &Weights::default()));
        let expected: [f32; 3] = [0.5 + 0.55, 1.0, 0.0];
        assert!(scores.iter().zip(expected).all(|(score, one)| (score - one).abs() < 1e-6), "{scores:?}");
        let alone = Ranges::of(&all[..1]).score(&all[0], &Weights::default());
        assert!((alone - 1.0).abs() < 1e-6, "one cosine alone tells nothing");
    }

    #[test]
    fn weights_that_rank_nothing_are_not_usable() {
        assert!(!Weights::NOTHING.are_usable());
        assert!(!Weights { cosine: f32::NAN, ..Weights::default() }.are_usable());
        assert!(Weights { cosine: 1.0, ..Weights::NOTHING }.are_usable());
    }
}
