//! The names of full blocks: a keyed chain over everything that came before.
//!
//! Keys and values of a block depend on all tokens up to its end, so its name is a digest of its parent's name and its
//! tokens, and the chain of a request begins at its salt. SipHash-2-4 with 128 bits of output under a key drawn at
//! start: whoever does not know the key cannot look for two prefixes with one name, so tokens are not compared.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use siphasher::sip128::{Hasher128, SipHasher24};

/// The name of a full block, or the salt a chain begins with.
pub(crate) type Name = u128;

#[derive(Clone)]
pub(crate) struct Namer {
    keyed: SipHasher24,
}

impl Namer {
    pub fn new(key: &[u8; 16]) -> Self {
        Self { keyed: SipHasher24::new_with_key(key) }
    }

    /// Where the chain of a request begins. `private` keeps a request apart from every other.
    pub fn root(&self, salt: u64, private: Option<u64>) -> Name {
        let mut hasher = self.keyed;
        hasher.write_u8(u8::from(private.is_some()));
        hasher.write_u64(salt);
        hasher.write_u64(private.unwrap_or(0));
        hasher.finish128().as_u128()
    }

    pub fn next(&self, parent: Name, tokens: &[u32]) -> Name {
        let mut hasher = self.keyed;
        hasher.write_u128(parent);
        tokens.iter().for_each(|token| hasher.write_u32(*token));
        hasher.finish128().as_u128()
    }
}

/// Names are digests already: half of one is as good a hash as any.
#[derive(Default)]
pub(crate) struct Half(u64);

impl Hasher for Half {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("bug: names hash as one u128");
    }

    fn write_u128(&mut self, name: u128) {
        self.0 = name as u64;
    }
}

/// Which block holds the keys and values of that name.
pub(crate) type Index = HashMap<Name, u32, BuildHasherDefault<Half>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_depends_on_the_key_the_salt_the_parent_and_every_token() {
        let (one, two) = (Namer::new(&[1; 16]), Namer::new(&[2; 16]));
        let root = one.root(0, None);
        let name = one.next(root, &[1, 2, 3, 4]);
        assert_eq!(name, one.next(one.root(0, None), &[1, 2, 3, 4]));
        let others = [
            two.next(two.root(0, None), &[1, 2, 3, 4]),
            one.next(one.root(1, None), &[1, 2, 3, 4]),
            one.next(one.root(0, Some(0)), &[1, 2, 3, 4]),
            one.next(name, &[1, 2, 3, 4]),
            one.next(root, &[1, 2, 3, 5]),
            one.next(root, &[1, 2, 4, 3]),
            one.next(root, &[1, 2, 3]),
        ];
        assert!(others.iter().all(|other| *other != name), "{others:x?}");
    }
}
