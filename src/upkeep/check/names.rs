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
        let begin = self.digests.len();
        let pairs = name.as_bytes().chunks_exact(2);
        let packed = pairs.map_while(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?));
        if name.len() == self.algorithm.hex_len() {
            self.digests.extend(packed);
        }
        if self.digests.len() - begin != self.algorithm.hex_len() / 2 {
            self.digests.truncate(begin);
            self.others.push(name.to_owned());
        }
    }

    /// All of them, in the order of the names.
    pub(super) fn iter(&self) -> impl Iterator<Item = Name> {
        let mut digests = self.digests.chunks_exact(self.algorithm.hex_len() / 2).peekable();
        let mut others = self.others.iter().peekable();
        std::iter::from_fn(move || {
            let digest = digests.peek().and_then(|packed| self.unpack(packed));
            let before = |other: &&String| digest.as_ref().is_none_or(|d| other.as_str() < d.hex());
            if others.peek().is_some_and(before) {
                return others.next().cloned().map(Name::Other);
            }
            digests.next();
            digest.map(Name::Of)
        })
    }

    fn unpack(&self, packed: &[u8]) -> Option<Digest> {
        let mut text = format!("{}:", self.algorithm);
        for byte in packed {
            text.push(char::from(b"0123456789abcdef"[usize::from(byte >> 4)]));
            text.push(char::from(b"0123456789abcdef"[usize::from(byte & 15)]));
        }
        Digest::parse(&text).ok()
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
            let digests = names.iter().filter(|name| matches!(name, Name::Of(_)));
            assert_eq!(digests.count(), 3);
        }
    }
}
