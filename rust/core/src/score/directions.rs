//! The few directions that the queries of a KV head lie in.
//!
//! A head asks much the same of every text: most of what its queries, before they are turned to their
//! positions, have in common with a key lies in a space of few dimensions, which the first tokens
//! show (docs/selection.md). Projected onto it, a key has [`DIRECTIONS`] elements.

/// Directions that are kept of each KV head.
pub const DIRECTIONS: usize = 8;
/// Query tokens that they are learned from.
const LEARN_TOKENS: usize = 64;
/// Steps of the iteration. It need not converge: directions whose order is open matter equally.
const STEPS: usize = 32;

/// Learns the directions of a layer's KV heads from the first queries that it sees, and keeps
/// them from then on.
#[derive(Clone, Debug, Default)]
pub struct Directions {
    /// Tokens seen while learning.
    tokens: usize,
    /// (H, D, D): sums of products of the queries' elements; empty once learned.
    moments: Vec<f64>,
    /// (H, [`DIRECTIONS`], D), orthonormal or zero; empty until learned.
    known: Vec<f32>,
}

impl Directions {
    /// Takes up what a session kept: what [`Directions::known`] gave.
    pub fn of_known(known: Vec<f32>) -> Self {
        Self { known, ..Self::default() }
    }

    /// (H, [`DIRECTIONS`], D), or nothing yet.
    pub fn known(&self) -> &[f32] {
        &self.known
    }

    /// Sees queries (B, H, G, T, D) without positions; those of the first tokens are learned from.
    /// A row that has an element that is no number teaches nothing.
    ///
    /// # Panics
    /// When the queries are not whole heads, or D is another than before.
    pub fn learn(&mut self, queries: &[f32], heads: usize, group: usize, tokens: usize, dim: usize) {
        if !self.known.is_empty() || queries.is_empty() || dim == 0 {
            return;
        }
        assert!(queries.len().is_multiple_of(heads * group * tokens * dim), "queries of whole heads");
        self.moments.resize(heads * dim * dim, 0.0);
        let seen = tokens.min(LEARN_TOKENS - self.tokens);
        for (index, of_query_head) in queries.chunks_exact(tokens * dim).enumerate() {
            let head = index / group % heads;
            let moments = &mut self.moments[head * dim * dim..][..dim * dim];
            for query in of_query_head.chunks_exact(dim).take(seen) {
                add_products(query, moments);
            }
        }
        self.tokens += seen;
        if self.tokens == LEARN_TOKENS {
            let moments = std::mem::take(&mut self.moments);
            self.known = moments.chunks_exact(dim * dim).flat_map(|one| leading(one, dim)).collect();
        }
    }
}

fn add_products(query: &[f32], moments: &mut [f64]) {
    if query.iter().any(|x| !x.is_finite()) {
        return;
    }
    for (a, row) in query.iter().zip(moments.chunks_exact_mut(query.len())) {
        row.iter_mut().zip(query).for_each(|(sum, b)| *sum += f64::from(*a) * f64::from(*b));
    }
}

/// The leading eigenvectors of a symmetric (D, D) matrix without negative eigenvalues, as
/// ([`DIRECTIONS`], D); those past its rank are zero. By orthogonal iteration.
fn leading(matrix: &[f64], dim: usize) -> Vec<f32> {
    // Any start does that is not orthogonal to an answer; its own rows span all there is.
    let mut vectors: Vec<f64> = (0..DIRECTIONS * dim).map(|index| scattered(index as u64)).collect();
    for _ in 0..STEPS {
        let mut next = vec![0.0; vectors.len()];
        for (next, vector) in next.chunks_exact_mut(dim).zip(vectors.chunks_exact(dim)) {
            for (x, row) in next.iter_mut().zip(matrix.chunks_exact(dim)) {
                *x = row.iter().zip(vector).map(|(a, b)| a * b).sum();
            }
        }
        orthonormalise(&mut next, dim);
        vectors = next;
    }
    vectors.iter().map(|x| *x as f32).collect()
}

/// Gram and Schmidt's, each vector less what those before it have of it, twice for precision.
fn orthonormalise(vectors: &mut [f64], dim: usize) {
    for index in 0..vectors.len() / dim {
        let (before, rest) = vectors.split_at_mut(index * dim);
        let vector = &mut rest[..dim];
        let length = |vector: &[f64]| vector.iter().map(|x| x * x).sum::<f64>().sqrt();
        let whole = length(vector);
        for _ in 0..2 {
            for earlier in before.chunks_exact(dim) {
                let along: f64 = earlier.iter().zip(&*vector).map(|(a, b)| a * b).sum();
                vector.iter_mut().zip(earlier).for_each(|(x, a)| *x -= along * a);
            }
        }
        let left = length(vector);
        // What is left of a dependent vector is rounding.
        let factor = if left > 1e-9 * whole { 1.0 / left } else { 0.0 };
        for x in vector.iter_mut() {
            *x *= factor;
        }
    }
}

/// A number in -1..1 for an index, without order.
fn scattered(index: u64) -> f64 {
    let mixed = (index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ mixed >> 31).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (mixed >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Queries (1, 1, 1, T, D) in the space of a few vectors.
    fn queries(tokens: usize, dim: usize, rank: usize) -> Vec<f32> {
        let basis = |r: usize, d: usize| scattered((r * dim + d) as u64 + 1000) as f32;
        (0..tokens)
            .flat_map(|t| {
                let weight =
                    move |r: usize| scattered((t * rank + r) as u64 + 5000) as f32 * (rank - r) as f32;
                (0..dim).map(move |d| (0..rank).map(|r| weight(r) * basis(r, d)).sum::<f32>())
            })
            .collect()
    }

    fn projected(directions: &[f32], row: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; row.len()];
        for direction in directions.chunks_exact(row.len()) {
            let along: f32 = direction.iter().zip(row).map(|(a, b)| a * b).sum();
            out.iter_mut().zip(direction).for_each(|(x, a)| *x += along * a);
        }
        out
    }

    #[test]
    fn queries_of_few_dimensions_lie_in_the_directions_that_they_teach() {
        for (dim, rank) in [(64, 8), (64, 3), (5, 5), (128, 8), (1, 1)] {
            let queries = queries(LEARN_TOKENS, dim, rank);
            let mut directions = Directions::default();
            directions.learn(&queries, 1, 1, LEARN_TOKENS, dim);
            assert_eq!(directions.known().len(), DIRECTIONS * dim);
            for row in queries.chunks_exact(dim) {
                for (found, expected) in projected(directions.known(), row).iter().zip(row) {
                    assert!((found - expected).abs() < 1e-3, "{dim} {rank}: {found} {expected}");
                }
            }
        }
    }

    #[test]
    fn pieces_teach_what_the_whole_does_and_later_tokens_nothing() {
        let (dim, tokens) = (6, LEARN_TOKENS + 9);
        let all = queries(tokens, dim, 6);
        let mut whole = Directions::default();
        whole.learn(&all, 1, 1, tokens, dim);
        let mut pieces = Directions::default();
        for piece in all.chunks(7 * dim) {
            assert!(pieces.known().is_empty() || pieces.tokens == LEARN_TOKENS);
            pieces.learn(piece, 1, 1, piece.len() / dim, dim);
        }
        assert_eq!(whole.known(), pieces.known());
        assert_eq!(Directions::of_known(whole.known().to_vec()).known(), whole.known());
    }

    #[test]
    fn each_head_has_directions_of_its_own_and_rows_teach_together() {
        let (dim, tokens) = (4, LEARN_TOKENS);
        // Two rows, two heads of two query heads: head 0 looks along element 1, head 1 along 3.
        let element = |index: usize| (index / (2 * tokens * dim)) % 2 * 2 + 1;
        let queries: Vec<f32> =
            (0..2 * 2 * 2 * tokens * dim).map(|i| if i % dim == element(i) { 2.0 } else { 0.0 }).collect();
        let mut directions = Directions::default();
        directions.learn(&queries, 2, 2, tokens, dim);
        let of_head = |head: usize| &directions.known()[head * DIRECTIONS * dim..][..dim];
        let expected = [[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]];
        for (head, expected) in expected.iter().enumerate() {
            for (found, expected) in of_head(head).iter().zip(expected) {
                assert!((found.abs() - expected).abs() < 1e-6, "{head}: {found} {expected}");
            }
        }
        assert!(directions.known()[dim..DIRECTIONS * dim].iter().all(|x| *x == 0.0), "past the rank");
    }

    #[test]
    fn what_is_no_number_teaches_nothing() {
        let mut queries = queries(LEARN_TOKENS, 4, 2);
        let mut expected = Directions::default();
        let clean: Vec<f32> = queries.clone();
        queries[9] = f32::NAN;
        let mut found = Directions::default();
        found.learn(&queries, 1, 1, LEARN_TOKENS, 4);
        expected.learn(&clean, 1, 1, LEARN_TOKENS, 4);
        assert!(found.known().iter().all(|x| x.is_finite()));
        assert_ne!(found.known(), expected.known());
    }
}
