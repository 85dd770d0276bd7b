//! Hash maps over page keys. A key is a BLAKE3 output, uniform already and not under an
//! attacker's control bit by bit, so its first eight bytes are its hash.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

use crate::key::PageKey;

/// A map by page key that does not hash the key again.
pub type KeyMap<V> = HashMap<PageKey, V, BuildHasherDefault<KeyHasher>>;

/// A set of page keys that does not hash the keys again.
pub type KeySet = HashSet<PageKey, BuildHasherDefault<KeyHasher>>;

/// Takes the first eight bytes that it is given as the hash. For [`PageKey`]s only.
#[derive(Default, Clone, Copy, Debug)]
pub struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk::<8>() {
            self.0 = u64::from_le_bytes(*first);
        }
    }

    // The length prefix of the key's array: the same for all keys.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hash::BuildHasher;

    #[test]
    fn the_hash_of_a_key_is_its_first_half() {
        let key = PageKey([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3]);
        let map = KeyMap::<u8>::default();
        assert_eq!(map.hasher().hash_one(key), key.low64());
    }
}
