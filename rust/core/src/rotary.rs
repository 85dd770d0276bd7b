//! Rotary positions of pages whose keys are stored relative to their page.
//!
//! A key at offset `o` of its page is stored as `R(o) k`, where `R(x)` turns every pair of
//! elements by `x` times the pair's frequency. Positions are applied when a page is read, to
//! the query: with `p` the page's first position and `m` the query's,
//! `<R(m - p) q, R(o) k> = <R(m) q, R(p + o) k>`. So no key is turned at read time, and a page
//! can be read as if it stood elsewhere.
//!
//! What it is not: it scales nothing. A model that scales its cosines (`YaRN`) has that in its
//! softmax scale.
//!
//! Invariant: angles are computed in float64 and products in float32, so the error of a turn
//! does not grow with the position.
//!
//! Source: Su et al., "RoFormer", 2021 (arXiv:2104.09864).

use std::sync::Arc;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::score::BLOCK_TOKENS;

/// Frequencies of a rotary embedding, and which elements of a head they turn.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotary {
    /// Radians per position of each pair. The first two elements per frequency are turned, the
    /// rest of a head is left alone.
    pub inv_freq: Vec<f64>,
    /// Pairs are neighbours, (0, 1), (2, 3), ...; otherwise element `i` is paired with
    /// element `i` plus the number of frequencies.
    pub interleaved: bool,
}

impl Rotary {
    /// Elements of a head that are turned.
    pub fn dims(&self) -> usize {
        2 * self.inv_freq.len()
    }

    /// Checks the frequencies.
    ///
    /// # Errors
    /// `Invalid` for none at all, or one that is no number.
    pub fn check(&self) -> Result<()> {
        if self.inv_freq.is_empty() {
            return Err(Error::Invalid("a rotary has at least one frequency".into()));
        }
        match self.inv_freq.iter().find(|frequency| !frequency.is_finite()) {
            Some(frequency) => {
                Err(Error::Invalid(format!("a rotary's frequencies are finite numbers, not {frequency}")))
            }
            None => Ok(()),
        }
    }

    /// Appends the turn to `position`: all cosines, then all sines.
    pub fn push_turn(&self, position: f64, into: &mut Vec<f32>) {
        into.extend(self.inv_freq.iter().map(|frequency| (position * frequency).cos() as f32));
        into.extend(self.inv_freq.iter().map(|frequency| (position * frequency).sin() as f32));
    }

    /// Turns one head of one token in place.
    ///
    /// # Panics
    /// When the turn is not one of this rotary's, or the row is shorter than its dims.
    #[inline]
    pub fn apply(&self, turn: &[f32], row: &mut [f32]) {
        self.apply_signed(turn, 1.0, row);
    }

    /// By -1 a turn is taken back.
    #[inline]
    fn apply_signed(&self, turn: &[f32], sign: f32, row: &mut [f32]) {
        let (cos, sin) = turn.split_at(self.inv_freq.len());
        let sin = sin.iter().map(|sin| sin * sign);
        let row = &mut row[..2 * cos.len()];
        if self.interleaved {
            for ((pair, cos), sin) in row.chunks_exact_mut(2).zip(cos).zip(sin) {
                (pair[0], pair[1]) = (pair[0] * cos - pair[1] * sin, pair[1] * cos + pair[0] * sin);
            }
        } else {
            let (first, second) = row.split_at_mut(cos.len());
            for (((x, y), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                (*x, *y) = (*x * cos - *y * sin, *y * cos + *x * sin);
            }
        }
    }

    /// Turns stored rows of `dim` elements, each by its own turn, and rounds each once.
    fn apply_to_rows<'a>(
        &self,
        turns: impl Iterator<Item = &'a [f32]>,
        sign: f32,
        rows: &mut [u8],
        dim: usize,
        dtype: DType,
    ) {
        let mut row = vec![0.0; self.dims()];
        for (bytes, turn) in rows.chunks_exact_mut(dim * dtype.size()).zip(turns) {
            widen(dtype, bytes, &mut row);
            self.apply_signed(turn, sign, &mut row);
            narrow(dtype, &row, bytes);
        }
    }
}

/// As many elements as `into` takes. The constants let the compiler see one conversion per loop.
fn widen(dtype: DType, bytes: &[u8], into: &mut [f32]) {
    let each = into.iter_mut().enumerate();
    match dtype {
        DType::F32 => each.for_each(|(i, x)| *x = DType::F32.read(bytes, i)),
        DType::Bf16 => each.for_each(|(i, x)| *x = DType::Bf16.read(bytes, i)),
        DType::F16 => each.for_each(|(i, x)| *x = DType::F16.read(bytes, i)),
    }
}

fn narrow(dtype: DType, row: &[f32], into: &mut [u8]) {
    let each = row.iter().copied().enumerate();
    match dtype {
        DType::F32 => each.for_each(|(i, x)| DType::F32.write(into, i, x)),
        DType::Bf16 => each.for_each(|(i, x)| DType::Bf16.write(into, i, x)),
        DType::F16 => each.for_each(|(i, x)| DType::F16.write(into, i, x)),
    }
}

/// First position of the page at a place of the sequence: the one function that says how places
/// become positions.
fn position(place: usize, page_tokens: usize) -> f64 {
    (place * page_tokens) as f64
}

/// The turns that a cache needs again and again. Cloning shares them.
#[derive(Clone)]
pub(crate) struct Turns {
    rotary: Arc<Rotary>,
    page_tokens: usize,
    /// To every offset of a page.
    offsets: Arc<Vec<f32>>,
    /// Back from the first position of every page so far.
    pages: Arc<Vec<f32>>,
    /// Back by multiples of a block, from one page ahead on; see [`Turns::grow_blocks`].
    blocks: Arc<Vec<f32>>,
}

impl Turns {
    pub(crate) fn new(rotary: Rotary, page_tokens: usize) -> Result<Self> {
        rotary.check()?;
        let mut offsets = Vec::with_capacity(page_tokens * rotary.dims());
        (0..page_tokens).for_each(|offset| rotary.push_turn(offset as f64, &mut offsets));
        Ok(Self {
            rotary: Arc::new(rotary),
            page_tokens,
            offsets: Arc::new(offsets),
            pages: Arc::default(),
            blocks: Arc::default(),
        })
    }

    /// Refuses keys that are shorter than what is turned.
    pub(crate) fn check_dim(&self, key_dim: usize) -> Result<()> {
        if key_dim >= self.rotary.dims() {
            return Ok(());
        }
        Err(Error::Invalid(format!(
            "keys have {key_dim} elements per head, and the rotary turns {} of them",
            self.rotary.dims()
        )))
    }

    /// Makes the turns of `places` pages.
    pub(crate) fn grow(&mut self, places: usize) {
        let dims = self.rotary.dims();
        let known = self.pages.len() / dims;
        if known < places {
            let pages = Arc::make_mut(&mut self.pages);
            // In steps of many pages: a shared table is copied when it grows.
            for place in known..places.next_multiple_of(64) {
                self.rotary.push_turn(-position(place, self.page_tokens), pages);
            }
        }
    }

    /// Turns stored rows of a page (`first` is the offset of the first one) as they are appended.
    pub(crate) fn store(&self, first: usize, rows: &mut [u8], dim: usize, dtype: DType) {
        self.rotary.apply_to_rows(self.offsets_from(first), 1.0, rows, dim, dtype);
    }

    /// Takes stored rows back to what was appended.
    pub(crate) fn unstore(&self, first: usize, rows: &mut [u8], dim: usize, dtype: DType) {
        self.rotary.apply_to_rows(self.offsets_from(first), -1.0, rows, dim, dtype);
    }

    /// Takes stored rows to the positions of the page at `place`, which [`Turns::grow`] must have seen.
    pub(crate) fn place(&self, place: usize, rows: &mut [u8], dim: usize, dtype: DType) {
        self.rotary.apply_to_rows(std::iter::repeat(self.back_from(place)), -1.0, rows, dim, dtype);
    }

    fn offsets_from(&self, first: usize) -> impl Iterator<Item = &[f32]> {
        self.offsets.chunks_exact(self.rotary.dims()).skip(first)
    }

    fn back_from(&self, place: usize) -> &[f32] {
        &self.pages[place * self.rotary.dims()..][..self.rotary.dims()]
    }

    /// The rotary itself.
    pub(crate) fn rotary(&self) -> &Rotary {
        &self.rotary
    }

    /// Makes the turns that [`Turns::relative_to_block`] takes for places below `places`.
    pub(crate) fn grow_blocks(&mut self, places: usize) {
        let (dims, ahead) = (self.rotary.dims(), self.page_tokens / BLOCK_TOKENS);
        let known = self.blocks.len() / dims;
        if known < places + ahead {
            let blocks = Arc::make_mut(&mut self.blocks);
            for index in known..(places + ahead).next_multiple_of(64) {
                let steps = ahead as f64 - index as f64;
                self.rotary.push_turn(steps * BLOCK_TOKENS as f64, blocks);
            }
        }
    }

    /// Turns placed queries (R, Dk) to be relative to the page of a block that is read as if it
    /// stood at place `place` among blocks, and is the `within`-th of its page.
    pub(crate) fn relative_to_block(
        &self,
        place: usize,
        within: usize,
        query: &[f32],
        dim: usize,
        into: &mut Vec<f32>,
    ) {
        let (dims, ahead) = (self.rotary.dims(), self.page_tokens / BLOCK_TOKENS);
        self.turned(&self.blocks[(place + ahead - within) * dims..][..dims], query, dim, into);
    }

    /// A copy of queries (R, Dk), all by the same turn.
    fn turned(&self, turn: &[f32], query: &[f32], dim: usize, into: &mut Vec<f32>) {
        into.clear();
        into.extend_from_slice(query);
        for row in into.chunks_exact_mut(dim) {
            self.rotary.apply(turn, row);
        }
    }

    /// Turns queries (N, T, Dk) of the last T of `length` tokens to their positions.
    pub(crate) fn place_queries(&self, query: &mut [f32], tokens: usize, dim: usize, length: usize) {
        let mut turns = Vec::new();
        for token in 0..tokens {
            self.rotary.push_turn(length as f64 - tokens as f64 + token as f64, &mut turns);
        }
        for head in query.chunks_exact_mut(tokens * dim) {
            for (row, turn) in head.chunks_exact_mut(dim).zip(turns.chunks_exact(self.rotary.dims())) {
                self.rotary.apply(turn, row);
            }
        }
    }

    /// Turns rows (N, Dk) all to the same position.
    pub(crate) fn place_all(&self, rows: &mut [f32], dim: usize, position: usize) {
        let mut turn = Vec::new();
        self.rotary.push_turn(position as f64, &mut turn);
        rows.chunks_exact_mut(dim).for_each(|row| self.rotary.apply(&turn, row));
    }

    /// Turns placed queries (R, Dk) to be relative to the page at `place`, which
    /// [`Turns::grow`] must have seen.
    pub(crate) fn relative_to(&self, place: usize, query: &[f32], dim: usize, into: &mut Vec<f32>) {
        self.turned(self.back_from(place), query, dim, into);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By complex numbers in float64.
    fn reference(rotary: &Rotary, position: f64, row: &[f64]) -> Vec<f64> {
        let count = rotary.inv_freq.len();
        let mut out = row.to_vec();
        for (pair, frequency) in rotary.inv_freq.iter().enumerate() {
            let (x, y) = if rotary.interleaved { (2 * pair, 2 * pair + 1) } else { (pair, pair + count) };
            let (sin, cos) = (position * frequency).sin_cos();
            out[x] = row[x] * cos - row[y] * sin;
            out[y] = row[x] * sin + row[y] * cos;
        }
        out
    }

    fn rotary(pairs: usize, interleaved: bool) -> Rotary {
        Rotary {
            inv_freq: (0..pairs).map(|i| 10_000_f64.powf(-(i as f64) / pairs as f64)).collect(),
            interleaved,
        }
    }

    #[test]
    fn a_turn_equals_complex_numbers_and_leaves_the_rest_alone() {
        for interleaved in [false, true] {
            for (pairs, dim) in [(1, 2), (1, 3), (3, 6), (3, 9), (16, 33), (32, 64)] {
                let rotary = rotary(pairs, interleaved);
                let row: Vec<f32> = (0..dim).map(|i| ((i * 7 + 3) % 11) as f32 / 4.0 - 1.0).collect();
                for position in [0.0, 1.0, 63.0, -64.0, 4_096.0, 1_000_003.0] {
                    let mut turn = Vec::new();
                    rotary.push_turn(position, &mut turn);
                    let mut found = row.clone();
                    rotary.apply(&turn, &mut found);
                    let wide: Vec<f64> = row.iter().copied().map(f64::from).collect();
                    for (found, expected) in found.iter().zip(reference(&rotary, position, &wide)) {
                        assert!((f64::from(*found) - expected).abs() < 1e-6, "{found} {expected}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_far_page_is_as_exact_as_a_near_one() {
        // Float32 angles would be off by 0.03 radians here.
        let mut turns = Turns::new(rotary(8, false), 64).unwrap();
        let place = 1_000_000 / 64;
        turns.grow(place + 1);
        let length = place * 64 + 1;
        let mut query: Vec<f32> = (0..16).map(|i| i as f32 / 8.0 - 1.0).collect();
        let before = query.clone();
        turns.place_queries(&mut query, 1, 16, length);
        let mut relative = Vec::new();
        turns.relative_to(place, &query, 16, &mut relative);
        for (found, expected) in relative.iter().zip(before) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
    }

    #[test]
    fn no_frequency_and_no_number_are_refused_by_name() {
        let message =
            |inv_freq: Vec<f64>| Rotary { inv_freq, interleaved: false }.check().unwrap_err().to_string();
        assert!(message(Vec::new()).contains("at least one"));
        assert!(message(vec![1.0, f64::NAN]).contains("NaN"));
        let message = Turns::new(rotary(4, true), 8).unwrap().check_dim(7).unwrap_err().to_string();
        assert!(message.contains('7') && message.contains('8'), "{message}");
    }
}
