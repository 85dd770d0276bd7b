//! Identities: what a page is (a hash chain over everything that determines its
//! values), and the random names of what has no such identity.

use std::fmt;

use crate::{Error, Result};

/// Identity of one sealed page: which model, settings, tokens and layer it holds.
///
/// Two pages with the same key hold interchangeable values, so sessions with a common
/// prefix share them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageKey(pub [u8; 16]);

impl PageKey {
    /// The first eight bytes, for sketches and shard choice: keys are already uniform.
    pub fn low64(self) -> u64 {
        let mut low = [0_u8; 8];
        low.copy_from_slice(&self.0[..8]);
        u64::from_le_bytes(low)
    }
}

impl fmt::Debug for PageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// State of the hash chain after some whole pages of tokens.
///
/// Source: the prefix-block hashing that paged servers use (vLLM's block hash chain),
/// here over 256-bit BLAKE3 states, so that a key is never forged by accident.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Chain([u8; 32]);

impl Chain {
    /// The chain's root: everything besides tokens that changes a page's values.
    ///
    /// `fingerprint` names model and weights, `settings` dtype, page size and the like.
    pub fn root(fingerprint: &[u8], settings: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("stratakv 2026 page chain root");
        hasher.update(&(fingerprint.len() as u64).to_le_bytes());
        hasher.update(fingerprint);
        hasher.update(settings);
        Self(*hasher.finalize().as_bytes())
    }

    /// A root that nothing else shares, for sequences whose token ids are unknown.
    ///
    /// # Errors
    /// `Invalid` when the operating system gives no random bytes.
    pub fn anonymous() -> Result<Self> {
        Ok(Self(random_bytes()?))
    }

    /// Extends the chain by one page's token ids (and whatever else determined its values).
    #[must_use]
    pub fn extend(&self, tokens: &[u32], salt: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&(tokens.len() as u64).to_le_bytes());
        for token in tokens {
            hasher.update(&token.to_le_bytes());
        }
        hasher.update(salt);
        Self(*hasher.finalize().as_bytes())
    }

    /// Key of the page of `layer` that ends at this point of the chain.
    pub fn page(&self, layer: u32) -> PageKey {
        self.named(b"page", layer)
    }

    /// Key of that page's residual plane, where it is kept in planes.
    pub fn residual(&self, layer: u32) -> PageKey {
        self.named(b"residual", layer)
    }

    /// Key of the chapter of summaries that ends with that page, sketched along the directions of
    /// this hash.
    pub fn chapter(&self, layer: u32, directions: &[u8; 32]) -> PageKey {
        self.named(&[b"chapter 1", &directions[..]].concat(), layer)
    }

    fn named(&self, what: &[u8], layer: u32) -> PageKey {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(what);
        hasher.update(&layer.to_le_bytes());
        let mut key = [0_u8; 16];
        key.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        PageKey(key)
    }
}

/// `N` bytes from the operating system's random generator.
pub(crate) fn random_bytes<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0_u8; N];
    getrandom::fill(&mut bytes)
        .map_err(|error| Error::Invalid(format!("the system's random generator failed: {error}")))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_depends_on_everything_that_changes_values() {
        let root = Chain::root(b"model", b"bf16");
        let base = root.extend(&[1, 2, 3], b"");
        assert_eq!(base, Chain::root(b"model", b"bf16").extend(&[1, 2, 3], b""));
        assert_ne!(base, Chain::root(b"modelb", b"f16").extend(&[1, 2, 3], b""));
        assert_ne!(base, Chain::root(b"model", b"f32").extend(&[1, 2, 3], b""));
        assert_ne!(base, root.extend(&[1, 2], b"").extend(&[3], b""));
        assert_ne!(base, root.extend(&[1, 2, 3], b"image"));
        assert_ne!(base.page(0), base.page(1));
        assert_ne!(base.page(0), base.residual(0));
        assert_ne!(base.chapter(0, &[1; 32]), base.chapter(0, &[2; 32]));
        assert_ne!(Chain::anonymous().unwrap(), Chain::anonymous().unwrap());
    }
}
