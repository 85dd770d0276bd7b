//! How the signals of a memory become one score. Everything that can be tuned is here.

// The constants were found on conversations, see docs/memory.md: the window alone, of seven
// memories, beats every sum in which the memory itself counts once more.

/// BM25's saturation of repeated words.
pub(super) const BM25_K1: f32 = 0.9;
/// How far BM25 counts a long text's words for less.
pub(super) const BM25_B: f32 = 0.4;

/// What a memory counts in a window by its distance from the middle: in halves, as whole
/// numbers of [`WINDOW_UNIT`].
pub(super) const WINDOW: [u32; 4] = [WINDOW_UNIT, 4, 2, 1];
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
}

impl Signals {
    /// For callers: what is unknown, not a number in here, counts as nothing.
    pub(super) fn told(self) -> Self {
        let known = |value: f32| if value.is_nan() { 0.0 } else { value };
        Self { cosine: known(self.cosine), cosine_window: known(self.cosine_window), ..self }
    }
}

/// What each signal counts, in standard deviations.
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
}

impl Default for Weights {
    fn default() -> Self {
        Self { bm25: 0.0, bm25_window: 1.0, cosine: 0.0, cosine_window: 1.0 }
    }
}

impl Weights {
    /// Whether all are finite, none is negative, and one is more than nothing.
    pub(super) fn are_usable(&self) -> bool {
        let all = [self.bm25, self.bm25_window, self.cosine, self.cosine_window];
        all.iter().all(|weight| weight.is_finite() && *weight >= 0.0)
            && all.iter().any(|weight| *weight > 0.0)
    }
}

/// Mean and deviation of one signal over the memories that a scope covers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spread {
    count: f64,
    sum: f64,
    squares: f64,
}

impl Spread {
    /// One more memory with this value.
    pub(super) fn add(&mut self, value: f32) {
        self.count += 1.0;
        self.sum += f64::from(value);
        self.squares += f64::from(value) * f64::from(value);
    }

    /// Counts memories of value 0 up to `count` in all.
    pub(super) fn fill_up_to(&mut self, count: u64) {
        self.count = self.count.max(count as f64);
    }

    /// By how many deviations a value is above the mean; 0 where all values are one, and for
    /// one that is not known (a NaN).
    pub(super) fn z(&self, value: f32) -> f32 {
        if self.count < 1.0 || value.is_nan() {
            return 0.0;
        }
        let mean = self.sum / self.count;
        let variance = (self.squares / self.count - mean * mean).max(0.0);
        // Below this, what differs is rounding.
        if variance < 1e-12 {
            return 0.0;
        }
        ((f64::from(value) - mean) / variance.sqrt()) as f32
    }
}

/// The spreads of all signals.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spreads {
    pub(super) bm25: Spread,
    pub(super) bm25_window: Spread,
    pub(super) cosine: Spread,
    pub(super) cosine_window: Spread,
}

impl Spreads {
    /// The score: the weighted sum of what each signal is above its mean, in deviations.
    pub(super) fn score(&self, signals: &Signals, weights: &Weights) -> f32 {
        weights.bm25 * self.bm25.z(signals.bm25)
            + weights.bm25_window * self.bm25_window.z(signals.bm25_window)
            + weights.cosine * self.cosine.z(signals.cosine)
            + weights.cosine_window * self.cosine_window.z(signals.cosine_window)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deviations_from_the_mean() {
        let mut spread = Spread::default();
        spread.add(2.0);
        spread.add(2.0);
        spread.fill_up_to(4);
        assert!((spread.z(2.0) - 1.0).abs() < 1e-6 && (spread.z(0.0) + 1.0).abs() < 1e-6);
        let mut same = Spread::default();
        same.add(0.7);
        same.add(0.7);
        assert!(same.z(0.7).abs() < 1e-6);
        assert!(Spread::default().z(1.0).abs() < 1e-6);
    }

    #[test]
    fn weights_that_rank_nothing_are_not_usable() {
        let none = Weights { bm25: 0.0, bm25_window: 0.0, cosine: 0.0, cosine_window: 0.0 };
        assert!(!none.are_usable());
        assert!(!Weights { cosine: -1.0, ..Weights::default() }.are_usable());
        assert!(!Weights { cosine: f32::NAN, ..Weights::default() }.are_usable());
        assert!(Weights { cosine: 1.0, ..none }.are_usable());
    }
}
