//! The names in a directory of blobs, which may have a million.

use crate::layout::{Dir, Result};
use crate::oci::{Algorithm, Digest};

/// Names in order: digests packed into half their digits, and whatever else lies there.
#[derive(Debug)]
pub(super) struct Names {
    algorithm: Algorithm,
    digests: Vec<u8>,
    others: Vec<String>,
}

/// One of them.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Name {
    /// The digits of a digest.
    Of(Digest),
    /// Anything else that is not hidden.
    Other(String),
}

impl Names {
    /// Reads a directory. Hidden names are left out: they are temporary, or somebody else's.
    pub(super) fn read(dir: &Dir, algorithm: Algorithm) -> Result<Names> {
        let mut names = Names { algorithm, digests: Vec::new(), others: Vec::new() };
        dir.each_name(|name, _| names.take(name))?;
        match algorithm {
            Algorithm::Sha256 => names.digests.as_chunks_mut::<32>().0.sort_unstable(),
            Algorithm::Sha512 => names.digests.as_chunks_mut::<64>().0.sort_unstable(),
        }
        names.others.sort_unstable();
        Ok(names)
    }

    fn take(&mut self, name: &str) {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        if name.starts_with('.') {
            return;
        }
        let mut packed = [0; 64];
        let (pairs, _) = name.as_bytes().as_chunks::<2>();
        let all = name.len() == self.algorithm.hex_len()
            && packed.iter_mut().zip(pairs).all(|(byte, [high, low])| {
                let digits = digit(*high).zip(digit(*low));
                digits.is_some_and(|(high, low)| {
                    *byte = high << 4 | low;
                    true
                })
            });
        if all {
            self.digests.extend_from_slice(&packed[..pairs.len()]);
        } else {
            self.others.push(name.to_owned());
        }
    }

    /// All of them, in the order of the names.
    pub(super) fn iter(&self) -> impl Iterator<Item = Name> {
        self.whole().into_iter()
    }

    /// All of them as one part.
    pub(super) fn whole(&self) -> Part<'_> {
        Part { algorithm: self.algorithm, digests: &self.digests, others: &self.others }
    }

    /// Which of the digests, in their order, one is.
    pub(super) fn position(&self, digest: &Digest) -> Option<usize> {
        match self.algorithm {
            Algorithm::Sha256 => {
                self.digests.as_chunks::<32>().0.binary_search(&digest.hash()?).ok()
            }
            Algorithm::Sha512 => {
                self.digests.as_chunks::<64>().0.binary_search(&digest.hash()?).ok()
            }
        }
    }

    /// All of them in parts of at most so many digests, in the order of the names.
    pub(super) fn parts(&self, most: usize) -> Vec<Part<'_>> {
        let algorithm = self.algorithm;
        let mut others = self.others.as_slice();
        let mut chunks = self.digests.chunks(most * algorithm.hex_len() / 2).peekable();
        let mut parts = Vec::new();
        while let Some(digests) = chunks.next() {
            let next = chunks.peek().and_then(|next| next.get(..algorithm.hex_len() / 2));
            let next = next.and_then(|next| Digest::of_hash(algorithm, next));
            let before =
                |next: &Digest| others.partition_point(|other| other.as_str() < next.hex());
            let (own, rest) = others.split_at(next.as_ref().map_or(others.len(), before));
            parts.push(Part { algorithm, digests, others: own });
            others = rest;
        }
        if !others.is_empty() {
            parts.push(Part { algorithm, digests: &[], others });
        }
        parts
    }
}

/// Names that follow each other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part<'a> {
    algorithm: Algorithm,
    digests: &'a [u8],
    others: &'a [String],
}

impl<'a> Part<'a> {
    /// In their order.
    pub(super) fn into_iter(self) -> impl Iterator<Item = Name> + use<'a> {
        let mut digests = self.digests.chunks_exact(self.algorithm.hex_len() / 2).peekable();
        let mut others = self.others.iter().peekable();
        std::iter::from_fn(move || {
            let digest = digests.peek().and_then(|packed| Digest::of_hash(self.algorithm, packed));
            let before = |other: &&String| digest.as_ref().is_none_or(|d| other.as_str() < d.hex());
            if others.peek().is_some_and(before) {
                return others.next().cloned().map(Name::Other);
            }
            digests.next();
            digest.map(Name::Of)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_and_other_names_come_in_one_order() {
        for algorithm in Algorithm::ALL {
            let temp = tempfile::tempdir().unwrap();
            let whole = |digit: &str| digit.repeat(algorithm.hex_len());
            let short = whole("b")[1..].to_owned();
            let upper = whole("A");
            let other = [short.as_str(), upper.as_str(), "README", "zz", ".hidden"];
            let mut wanted = vec![whole("0"), whole("a"), whole("f")];
            wanted.extend(other.iter().map(|name| (*name).to_owned()));
            wanted.iter().for_each(|name| std::fs::write(temp.path().join(name), "").unwrap());
            wanted.retain(|name| !name.starts_with('.'));
            wanted.sort();
            let dir = Dir::open_root(temp.path()).unwrap();
            let names = Names::read(&dir, algorithm).unwrap();
            let text = |name: Name| match name {
                Name::Of(digest) => digest.hex().to_owned(),
                Name::Other(other) => other,
            };
            assert_eq!(names.iter().map(text).collect::<Vec<_>>(), wanted);
            for most in 1..5 {
                let parts = names.parts(most);
                assert_eq!(parts.len(), 3usize.div_ceil(most));
                let all = parts.into_iter().flat_map(Part::into_iter).map(text);
                assert_eq!(all.collect::<Vec<_>>(), wanted, "{most}");
            }
            let digests = names.iter().filter(|name| matches!(name, Name::Of(_)));
            assert_eq!(digests.count(), 3);
            let digest = |hex: &str| Digest::parse(&format!("{algorithm}:{hex}")).unwrap();
            let found = ["0", "a", "f", "7"].map(|digit| names.position(&digest(&whole(digit))));
            assert_eq!(found, [Some(0), Some(1), Some(2), None]);
        }
    }
}
