//! Stamps: which index.json was it?

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// The length and a fast 128-bit hash (XXH3) of an index.json's bytes. It tells versions of one
/// file apart; it proves nothing against somebody who means harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stamp {
    len: u64,
    hash: u128,
}

impl Stamp {
    /// The stamp of these bytes.
    pub fn of(bytes: &[u8]) -> Stamp {
        Stamp { len: bytes.len() as u64, hash: xxh3_128(bytes) }
    }

    /// The stamp of bytes that come in parts.
    pub fn of_parts(parts: &[impl AsRef<[u8]>]) -> Stamp {
        let mut hasher = Xxh3::new();
        let mut len = 0;
        for part in parts.iter().map(AsRef::as_ref) {
            hasher.update(part);
            len += part.len() as u64;
        }
        Stamp { len, hash: hasher.digest128() }
    }

    /// How many bytes they were.
    pub fn len_of(self) -> u64 {
        self.len
    }

    /// The stamp of a repository that has no index.json yet.
    pub fn nothing() -> Stamp {
        Stamp::of(b"")
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:032x}", self.len, self.hash)
    }
}

impl FromStr for Stamp {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (len, hash) = text.split_once('-')?;
            let hash = (hash.len() == 32).then(|| u128::from_str_radix(hash, 16).ok())??;
            Some(Stamp { len: len.parse().ok()?, hash })
        };
        parse().ok_or("a stamp is <length>-<32 hex digits>")
    }
}

impl Serialize for Stamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Stamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_reads_back() {
        let stamp = Stamp::of(b"hello");
        assert_eq!(stamp.to_string().parse(), Ok(stamp));
        assert_ne!(stamp, Stamp::of(b"hellp"));
        assert_eq!(Stamp::of_parts(&["he", "", "llo"]), stamp);
        let long = vec![b'x'; 70_000];
        let parts: Vec<&[u8]> = long.chunks(777).collect();
        assert_eq!(Stamp::of_parts(&parts), Stamp::of(&long));
        assert!("5-xyz".parse::<Stamp>().is_err());
        assert_eq!(Stamp::nothing().to_string(), "0-99aa06d3014798d86001c324468d497f");
    }
}
