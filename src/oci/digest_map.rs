//! Values by digest, for very many of them: a million take 80 MB, not 200.

use std::collections::HashMap;

use super::{Algorithm, Digest};

/// A map from digests that keeps their bytes alone.
#[derive(Clone, Debug)]
pub struct DigestMap<V> {
    sha256: HashMap<[u8; 32], V>,
    sha512: HashMap<[u8; 64], V>,
}

impl<V> Default for DigestMap<V> {
    fn default() -> Self {
        DigestMap { sha256: HashMap::new(), sha512: HashMap::new() }
    }
}

impl<V> DigestMap<V> {
    /// Puts a value, unless the digest has one already; whether it was put.
    pub fn put_new(&mut self, digest: &Digest, value: V) -> bool {
        fn put<const N: usize, V>(
            map: &mut HashMap<[u8; N], V>,
            digest: &Digest,
            value: V,
        ) -> bool {
            let Some(key) = digest.hash() else { return false };
            let mut new = false;
            map.entry(key).or_insert_with(|| {
                new = true;
                value
            });
            new
        }
        match digest.algorithm() {
            Algorithm::Sha256 => put(&mut self.sha256, digest, value),
            Algorithm::Sha512 => put(&mut self.sha512, digest, value),
        }
    }

    /// Puts a value, instead of the one that the digest has.
    pub fn put(&mut self, digest: &Digest, value: V) {
        let put = match digest.algorithm() {
            Algorithm::Sha256 => digest.hash().map(|key| drop(self.sha256.insert(key, value))),
            Algorithm::Sha512 => digest.hash().map(|key| drop(self.sha512.insert(key, value))),
        };
        debug_assert!(put.is_some(), "a digest has as many bytes as its algorithm says");
    }

    /// Forgets all values, and keeps the room that they took.
    pub fn clear(&mut self) {
        self.sha256.clear();
        self.sha512.clear();
    }

    /// The value of a digest.
    pub fn get(&self, digest: &Digest) -> Option<&V> {
        match digest.algorithm() {
            Algorithm::Sha256 => self.sha256.get(&digest.hash()?),
            Algorithm::Sha512 => self.sha512.get(&digest.hash()?),
        }
    }

    /// Whether the digest has a value.
    pub fn contains(&self, digest: &Digest) -> bool {
        self.get(digest).is_some()
    }

    /// Keeps the values of those digests alone that `which` picks.
    pub fn retain(&mut self, which: impl Fn(&Digest) -> bool) {
        fn picked(algorithm: Algorithm, hash: &[u8], which: impl Fn(&Digest) -> bool) -> bool {
            Digest::of_hash(algorithm, hash).is_some_and(|digest| which(&digest))
        }
        self.sha256.retain(|hash, _| picked(Algorithm::Sha256, hash, &which));
        self.sha512.retain(|hash, _| picked(Algorithm::Sha512, hash, &which));
    }

    /// All digests that have one, with it, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (Digest, &V)> {
        fn named<V>(algorithm: Algorithm, hash: &[u8], value: V) -> Option<(Digest, V)> {
            Some((Digest::of_hash(algorithm, hash)?, value))
        }
        let short = self.sha256.iter().filter_map(|(h, v)| named(Algorithm::Sha256, h, v));
        let long = self.sha512.iter().filter_map(|(h, v)| named(Algorithm::Sha512, h, v));
        short.chain(long)
    }

    /// How many digests have one.
    pub fn len(&self) -> usize {
        self.sha256.len() + self.sha512.len()
    }

    /// How many there is room for in the tables as they are.
    #[cfg(test)]
    pub fn room(&self) -> usize {
        self.sha256.capacity() + self.sha512.capacity()
    }

    /// Whether none has.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_value_counts_and_algorithms_are_kept_apart() {
        let mut map = DigestMap::default();
        let all: Vec<_> = Algorithm::ALL
            .into_iter()
            .flat_map(|algorithm| (0..200u8).map(move |n| Digest::of(algorithm, &[n])))
            .collect();
        for (n, digest) in all.iter().enumerate() {
            assert!(!map.contains(digest));
            assert!(map.put_new(digest, n));
            assert!(!map.put_new(digest, usize::MAX));
        }
        assert_eq!(map.len(), 400);
        for (n, digest) in all.iter().enumerate() {
            assert_eq!(map.get(digest), Some(&n), "{digest}");
        }
        let listed: HashMap<Digest, usize> = map.iter().map(|(digest, n)| (digest, *n)).collect();
        assert_eq!(listed, all.iter().cloned().zip(0..).collect());
        map.retain(|digest| all[100..300].contains(digest));
        for (n, digest) in all.iter().enumerate() {
            assert_eq!(map.contains(digest), (100..300).contains(&n), "{digest}");
        }
    }

    #[test]
    fn the_value_that_is_put_last_counts_and_clear_forgets_all_but_the_room() {
        let mut map = DigestMap::default();
        let all = Algorithm::ALL.map(|algorithm| Digest::of(algorithm, b"x"));
        for digest in &all {
            map.put(digest, 1);
            map.put(digest, 2);
            assert_eq!(map.get(digest), Some(&2), "{digest}");
        }
        let room = map.room();
        assert!(map.len() == 2 && room >= 2);
        map.clear();
        assert!(map.is_empty() && all.iter().all(|digest| !map.contains(digest)));
        assert_eq!(map.room(), room);
    }
}
