//! Sessions: named token sequences with everything needed to go on with them.
//!
//! A session holds no page table. The keys of its pages follow from its identity, its
//! settings and its token ids ([`RowImage::page_keys`]), so a fork copies no page and two
//! sessions with a common prefix share pages without knowing of each other.

use std::collections::BTreeMap;

use crate::codec::RowShape;
use crate::dtype::DType;
use crate::key::{Chain, PageKey};

/// The setting, and its value, of a cache whose sealed pages are kept in planes.
pub const PLANES: (&str, &str) = ("planes", "e4m3");

/// Pages of a chapter of summaries: 32 KiB or so, much more than a slot is rounded up by.
pub const CHAPTER_PAGES: usize = 16;

/// Geometry of one layer's keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LayerShape {
    /// Key/value heads.
    pub kv_heads: u32,
    /// Head dimension of the keys.
    pub key_dim: u32,
    /// Head dimension of the values.
    pub value_dim: u32,
    /// Element type.
    pub dtype: DType,
}

impl LayerShape {
    /// Bytes of `tokens` tokens.
    pub fn bytes(&self, tokens: usize) -> usize {
        self.codes_bytes(tokens) * self.dtype.size()
    }

    /// Bytes of the codes of `tokens` tokens.
    pub fn codes_bytes(&self, tokens: usize) -> usize {
        tokens * self.kv_heads as usize * (self.key_dim + self.value_dim) as usize
    }

    /// Bytes of the scales and residuals of `tokens` tokens.
    pub fn residual_bytes(&self, tokens: usize) -> usize {
        let row = |dim: u32| 1 + RowShape { dim: dim as usize, dtype: self.dtype }.residual_bytes();
        tokens * self.kv_heads as usize * (row(self.key_dim) + row(self.value_dim))
    }
}

/// Something besides token ids that determined the values from a position on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Salt {
    /// First token that it belongs to.
    pub position: u64,
    /// Hash of it (image bytes, a padding mask).
    pub digest: [u8; 32],
}

/// One batch row of a session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RowImage {
    /// Token ids so far.
    pub tokens: Vec<u32>,
    /// In order of position.
    pub salts: Vec<Salt>,
    /// Per layer: the open page's bytes, each head's keys then values, rows packed.
    pub tails: Vec<Vec<u8>>,
}

/// The chain over whole pages of a token sequence: item `i` is the state after page `i`.
pub fn chain_pages(
    root: Chain,
    tokens: &[u32],
    salts: &[Salt],
    page_tokens: usize,
) -> impl Iterator<Item = Chain> {
    let mut chain = root;
    let mut salts = salts.iter().peekable();
    tokens.chunks_exact(page_tokens).enumerate().map(move |(index, page)| {
        let end = ((index + 1) * page_tokens) as u64;
        let mut salt = Vec::new();
        while let Some(next) = salts.next_if(|next| next.position < end) {
            salt.extend_from_slice(&next.position.to_le_bytes());
            salt.extend_from_slice(&next.digest);
        }
        chain = chain.extend(page, &salt);
        chain
    })
}

/// A session as it is saved and loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionImage {
    /// Its name, as the user typed it.
    pub name: String,
    /// The model, for people.
    pub model: String,
    /// The model's fingerprint: what makes its pages its own.
    pub identity: Vec<u8>,
    /// Settings that change values, by name.
    pub settings: BTreeMap<String, String>,
    /// Tokens in a page.
    pub page_tokens: u32,
    /// Geometry per layer; `None` for layers that hold nothing here.
    pub layers: Vec<Option<LayerShape>>,
    /// The batch.
    pub rows: Vec<RowImage>,
    /// What the binding keeps beside the pages (state of layers that are not paged).
    pub extra: Vec<u8>,
    /// Per layer, the directions of its queries as float32; empty where they are not known.
    pub directions: Vec<Vec<u8>>,
    /// Seconds since 1970.
    pub created: u64,
}

impl SessionImage {
    /// Root of the rows' chains.
    pub fn root(&self) -> Chain {
        chain_root(&self.identity, &self.settings, self.page_tokens)
    }

    /// Keys of every sealed page of the session (of both planes, where it has them) with their lengths in bytes and first
    /// token, rows and layers interleaved as they were sealed.
    pub fn page_keys(&self) -> Vec<SessionPage> {
        let mut pages = Vec::new();
        let page_tokens = self.page_tokens as usize;
        let in_planes = self.settings.contains_key(PLANES.0);
        for row in &self.rows {
            for (index, chain) in chain_pages(self.root(), &row.tokens, &row.salts, page_tokens).enumerate() {
                for (layer, shape) in self.layers.iter().enumerate() {
                    let Some(shape) = shape else { continue };
                    let first_token = (index * page_tokens) as u64;
                    let mut push = |key, bytes| pages.push(SessionPage { key, bytes, first_token });
                    if in_planes {
                        push(chain.page(layer as u32), shape.codes_bytes(page_tokens));
                        push(chain.residual(layer as u32), shape.residual_bytes(page_tokens));
                    } else {
                        push(chain.page(layer as u32), shape.bytes(page_tokens));
                    }
                }
            }
        }
        pages
    }

    /// Keys of the chapters of summaries that may be stored beside the pages. What is not there is made
    /// again from the pages.
    pub fn chapter_keys(&self) -> Vec<PageKey> {
        let known = self.directions.iter().enumerate().filter(|(_, known)| !known.is_empty());
        let known: Vec<_> =
            known.map(|(layer, known)| (layer as u32, *blake3::hash(known).as_bytes())).collect();
        let mut keys = Vec::new();
        for row in &self.rows {
            let chain = chain_pages(self.root(), &row.tokens, &row.salts, self.page_tokens as usize);
            for end in chain.skip(CHAPTER_PAGES - 1).step_by(CHAPTER_PAGES) {
                keys.extend(known.iter().map(|(layer, directions)| end.chapter(*layer, directions)));
            }
        }
        keys
    }
}

/// What a listing shows of a session without reading its token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionHead {
    /// Its name, as the user typed it.
    pub name: String,
    /// The model, for people.
    pub model: String,
    /// The model's fingerprint.
    pub identity: Vec<u8>,
    /// Settings that change values, by name.
    pub settings: BTreeMap<String, String>,
    /// Tokens in a page.
    pub page_tokens: u32,
    /// Geometry per layer.
    pub layers: Vec<Option<LayerShape>>,
    /// Tokens of each row.
    pub row_tokens: Vec<u64>,
    /// Seconds since 1970.
    pub created: u64,
}

/// One sealed page of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionPage {
    /// Its identity.
    pub key: PageKey,
    /// Its length in bytes.
    pub bytes: usize,
    /// First token that it covers.
    pub first_token: u64,
}

/// The root of all chains of a model under some settings.
pub fn chain_root(identity: &[u8], settings: &BTreeMap<String, String>, page_tokens: u32) -> Chain {
    let mut canonical = Vec::new();
    canonical.extend_from_slice(&page_tokens.to_le_bytes());
    for (name, value) in settings {
        for text in [name, value] {
            canonical.extend_from_slice(&(text.len() as u64).to_le_bytes());
            canonical.extend_from_slice(text.as_bytes());
        }
    }
    Chain::root(identity, &canonical)
}
