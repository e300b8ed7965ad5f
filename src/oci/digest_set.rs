//! Values by digest, in their order, whose copies share what they have in common.

use super::sorted::Sorted;
use super::{Algorithm, Digest};

/// Values by digests, of which the bytes alone are kept. A digest may have several.
#[derive(Clone, Debug)]
pub(super) struct DigestSet<V> {
    sha256: Sorted<([u8; 32], V)>,
    sha512: Sorted<([u8; 64], V)>,
}

impl<V: Ord + Copy> DigestSet<V> {
    pub(super) fn of(all: Vec<(Digest, V)>) -> DigestSet<V> {
        fn some<const N: usize, V: Copy>(
            all: &[(Digest, V)],
            algorithm: Algorithm,
        ) -> Vec<([u8; N], V)> {
            let some = all.iter().filter(|(digest, _)| digest.algorithm() == algorithm);
            some.filter_map(|(digest, value)| Some((digest.hash()?, *value))).collect()
        }
        DigestSet {
            sha256: Sorted::of(some(&all, Algorithm::Sha256)),
            sha512: Sorted::of(some(&all, Algorithm::Sha512)),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many values there are.
    pub(super) fn len(&self) -> usize {
        self.sha256.len() + self.sha512.len()
    }

    /// About how much memory it takes, in bytes.
    pub(super) fn weight(&self) -> usize {
        let (short, long) = (size_of::<([u8; 32], V)>(), size_of::<([u8; 64], V)>());
        self.sha256.len() * short + self.sha512.len() * long
    }

    /// The values of a digest, in their order.
    pub(super) fn values(&self, digest: &Digest) -> impl Iterator<Item = V> {
        let (short, long) = match digest.algorithm() {
            Algorithm::Sha256 => (digest.hash().map(|hash| values(&self.sha256, hash)), None),
            Algorithm::Sha512 => (None, digest.hash().map(|hash| values(&self.sha512, hash))),
        };
        short.into_iter().flatten().chain(long.into_iter().flatten())
    }

    /// All digests that have a value, each once.
    pub(super) fn keys(&self) -> impl Iterator<Item = Digest> {
        keys(&self.sha256, Algorithm::Sha256).chain(keys(&self.sha512, Algorithm::Sha512))
    }

    pub(super) fn insert(&mut self, digest: &Digest, value: V) {
        match digest.algorithm() {
            Algorithm::Sha256 => digest.hash().map(|hash| self.sha256.insert((hash, value))),
            Algorithm::Sha512 => digest.hash().map(|hash| self.sha512.insert((hash, value))),
        };
    }

    pub(super) fn remove(&mut self, digest: &Digest, value: &V) {
        match digest.algorithm() {
            Algorithm::Sha256 => digest.hash().map(|hash| self.sha256.remove(&(hash, *value))),
            Algorithm::Sha512 => digest.hash().map(|hash| self.sha512.remove(&(hash, *value))),
        };
    }

    /// Changes all values, which must keep their order.
    pub(super) fn change_all(&mut self, change: impl Fn(&mut V)) {
        self.sha256.change_all(|(_, value)| change(value));
        self.sha512.change_all(|(_, value)| change(value));
    }
}

fn values<const N: usize, V: Ord + Copy>(
    set: &Sorted<([u8; N], V)>,
    hash: [u8; N],
) -> impl Iterator<Item = V> {
    let from = set.from(move |(other, _)| *other < hash);
    from.take_while(move |(other, _)| *other == hash).map(|(_, value)| *value)
}

fn keys<const N: usize, V: Ord + Copy>(
    set: &Sorted<([u8; N], V)>,
    algorithm: Algorithm,
) -> impl Iterator<Item = Digest> {
    let mut given = None;
    let hashes = set.from(|_| false).map(|(hash, _)| hash);
    let once = hashes.filter(move |hash| given.replace(*hash) != Some(hash));
    once.filter_map(move |hash| Digest::of_hash(algorithm, hash))
}
