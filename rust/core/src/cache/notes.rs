//! Token ids of one batch row, and the hash chain that they give its pages.
//!
//! Whole pages of ids are shared between rows (a beam differs in its last page only), so
//! reordering rows and noting one more token cost nothing that grows with the context.

use std::sync::Arc;

use crate::key::Chain;
use crate::session::{RowImage, Salt, chain_pages};

/// Ids of one whole page.
struct NotedPage {
    tokens: Box<[u32]>,
    /// State after this page; `None` in a cache without identity.
    chain: Option<Chain>,
}

/// The noted tokens of one row, from position 0 on without a gap.
#[derive(Clone)]
pub(super) struct Notes {
    page_tokens: usize,
    root: Option<Chain>,
    pages: Arc<Vec<Arc<NotedPage>>>,
    tail: Vec<u32>,
    salts: Vec<Salt>,
}

impl Notes {
    pub(super) fn new(page_tokens: usize, root: Option<Chain>) -> Self {
        Self { page_tokens, root, pages: Arc::default(), tail: Vec::new(), salts: Vec::new() }
    }

    /// Tokens noted so far.
    pub(super) fn len(&self) -> usize {
        self.pages.len() * self.page_tokens + self.tail.len()
    }

    /// The chain after page `index`, where its tokens were noted and the cache has an identity.
    pub(super) fn chain(&self, index: usize) -> Option<Chain> {
        self.pages.get(index)?.chain
    }

    /// Appends tokens; `salt`, if not empty, determined their values besides the ids.
    pub(super) fn extend(&mut self, tokens: &[u32], salt: &[u8]) {
        if tokens.is_empty() {
            return;
        }
        if !salt.is_empty() {
            let digest = *blake3::hash(salt).as_bytes();
            self.salts.push(Salt { position: self.len() as u64, digest });
        }
        let mut rest = tokens;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(self.page_tokens - self.tail.len()));
            self.tail.extend_from_slice(now);
            rest = later;
            if self.tail.len() == self.page_tokens {
                self.close_page();
            }
        }
    }

    /// A whole page of ids becomes one link of the chain.
    fn close_page(&mut self) {
        let index = self.pages.len();
        let before = match index {
            0 => self.root,
            _ => self.chain(index - 1),
        };
        let tokens: Box<[u32]> = self.tail.drain(..).collect();
        let start = (index * self.page_tokens) as u64;
        // Salts of this page, at the positions that they have inside it.
        let first = self.salts.partition_point(|salt| salt.position < start);
        let chain = before.map(|before| extend_at(before, &tokens, &self.salts[first..], start));
        Arc::make_mut(&mut self.pages).push(Arc::new(NotedPage { tokens, chain }));
    }

    /// Forgets tokens from `length` on.
    pub(super) fn truncate(&mut self, length: usize) {
        if length >= self.len() {
            return;
        }
        let whole = length / self.page_tokens;
        if whole < self.pages.len() {
            self.tail = self.pages[whole].tokens.to_vec();
            Arc::make_mut(&mut self.pages).truncate(whole);
        }
        self.tail.truncate(length - whole * self.page_tokens);
        self.salts.retain(|salt| salt.position < length as u64);
    }

    /// The first `length` ids.
    pub(super) fn tokens(&self, length: usize) -> Vec<u32> {
        let pages = self.pages.iter().flat_map(|page| page.tokens.iter());
        pages.chain(&self.tail).take(length).copied().collect()
    }

    /// The salts before position `length`.
    pub(super) fn salts(&self, length: usize) -> Vec<Salt> {
        self.salts.iter().copied().filter(|salt| salt.position < length as u64).collect()
    }

    /// The notes of a saved row.
    pub(super) fn of_image(row: &RowImage, page_tokens: usize, root: Chain) -> Self {
        let chains = chain_pages(root, &row.tokens, &row.salts, page_tokens);
        let pages = row.tokens.chunks_exact(page_tokens).zip(chains);
        let pages: Vec<_> = pages
            .map(|(tokens, chain)| Arc::new(NotedPage { tokens: tokens.into(), chain: Some(chain) }))
            .collect();
        let tail = row.tokens[pages.len() * page_tokens..].to_vec();
        Self { page_tokens, root: Some(root), pages: Arc::new(pages), tail, salts: row.salts.clone() }
    }
}

/// One step of [`chain_pages`] from the middle of a sequence.
fn extend_at(before: Chain, tokens: &[u32], salts: &[Salt], start: u64) -> Chain {
    let mut salt = Vec::new();
    for next in salts.iter().take_while(|next| next.position < start + tokens.len() as u64) {
        salt.extend_from_slice(&next.position.to_le_bytes());
        salt.extend_from_slice(&next.digest);
    }
    before.extend(tokens, &salt)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Noting in any pieces, with crops between, gives the chain of the saved session.
        #[test]
        fn chains_equal_those_of_a_session(
            steps in prop::collection::vec(
                (prop::collection::vec(0_u32..4, 0..20), 0_usize..3, 0_usize..50), 1..12),
            page_tokens in 1_usize..8,
        ) {
            let root = Chain::root(b"model", b"");
            let mut notes = Notes::new(page_tokens, Some(root));
            let mut model = Vec::new();
            for (tokens, salt, crop) in steps {
                notes.extend(&tokens, &b"ab"[..salt]);
                model.extend_from_slice(&tokens);
                if crop < 20 {
                    notes.truncate(crop);
                    model.truncate(crop);
                }
                prop_assert_eq!(notes.len(), model.len());
            }
            prop_assert_eq!(&notes.tokens(model.len()), &model);
            let row = RowImage {
                tokens: model.clone(), salts: notes.salts(model.len()), tails: Vec::new(),
            };
            let chains: Vec<_> = chain_pages(root, &row.tokens, &row.salts, page_tokens).collect();
            let reloaded = Notes::of_image(&row, page_tokens, root);
            for (index, chain) in chains.iter().enumerate() {
                prop_assert_eq!(notes.chain(index), Some(*chain));
                prop_assert_eq!(reloaded.chain(index), Some(*chain));
            }
            prop_assert!(notes.chain(chains.len()).is_none());
            prop_assert_eq!(reloaded.tokens(model.len()), model);
        }
    }
}
