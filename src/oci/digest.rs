//! Digests: the names of content.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Digest as _;
use thiserror::Error;

use super::json::Text;

/// A hash algorithm that a digest may name (image-spec, descriptor.md, "Registered Algorithms").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256, the one everybody uses.
    Sha256,
    /// SHA-512, the other one that the specification registers for wide use.
    Sha512,
}

impl Algorithm {
    /// Every algorithm, in the order in which layouts list them.
    pub const ALL: [Algorithm; 2] = [Algorithm::Sha256, Algorithm::Sha512];

    /// The algorithm as digests and directories spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    /// How many hexadecimal digits its digests have.
    pub fn hex_len(self) -> usize {
        match self {
            Algorithm::Sha256 => 64,
            Algorithm::Sha512 => 128,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Algorithm {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        match text {
            "sha256" => Ok(Algorithm::Sha256),
            "sha512" => Ok(Algorithm::Sha512),
            other => Err(DigestError::Algorithm(clip(other))),
        }
    }
}

/// `algorithm:hex`, known to be well-formed.
///
/// Only [`Digest::parse`], [`Digest::of_hash`], [`Hasher::finish`] and [`DigestBytes`] make one,
/// deserialising included; so a `Digest` is always safe as part of a path.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    /// The whole text: `sha256:` and the digits.
    text: Box<str>,
}

/// A digest's bytes, for where very many digests are kept: 40 bytes in place of some 110, and `sha512`'s,
/// which are rare, elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DigestBytes {
    /// Of SHA-256.
    Sha256([u8; 32]),
    /// Of SHA-512.
    Sha512(Box<[u8; 64]>),
}

impl From<&Digest> for DigestBytes {
    fn from(digest: &Digest) -> DigestBytes {
        match digest.algorithm {
            Algorithm::Sha256 => DigestBytes::Sha256(digest.bytes()),
            Algorithm::Sha512 => DigestBytes::Sha512(Box::new(digest.bytes())),
        }
    }
}

impl From<&DigestBytes> for Digest {
    fn from(bytes: &DigestBytes) -> Digest {
        match bytes {
            DigestBytes::Sha256(bytes) => Digest::spelled(Algorithm::Sha256, bytes),
            DigestBytes::Sha512(bytes) => Digest::spelled(Algorithm::Sha512, &bytes[..]),
        }
    }
}

/// Why a text is not a digest.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DigestError {
    /// There is no colon between algorithm and digits.
    #[error("digest {0:?} has no algorithm: expected sha256:<64 hex digits>")]
    Form(String),
    /// The algorithm is not one that Stillage knows.
    #[error("digest algorithm {0:?} is not supported: use sha256 or sha512")]
    Algorithm(String),
    /// The digits are too few, too many, or not lower-case hexadecimal.
    #[error("digest {text:?} is malformed: {algorithm} needs {} lower-case hex digits", .algorithm.hex_len())]
    Hex {
        /// The algorithm that was named.
        algorithm: Algorithm,
        /// What was given, cut short when it is long.
        text: String,
    },
}

/// Error messages repeat what was sent, but never megabytes of it.
fn clip(text: &str) -> String {
    text.chars().take(160).collect()
}

impl Digest {
    /// Parses `algorithm:hex`; upper-case digits, other lengths and other algorithms are errors.
    pub fn parse(text: &str) -> Result<Digest, DigestError> {
        let (name, hex) = text.split_once(':').ok_or_else(|| DigestError::Form(clip(text)))?;
        let algorithm: Algorithm = name.parse()?;
        let digits = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if hex.len() != algorithm.hex_len() || !hex.bytes().all(digits) {
            return Err(DigestError::Hex { algorithm, text: clip(text) });
        }
        Ok(Digest { algorithm, text: text.into() })
    }

    /// The digest of bytes at hand.
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Digest {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    /// The digest that has these bytes; `None` if the algorithm's have another length.
    pub fn of_hash(algorithm: Algorithm, bytes: &[u8]) -> Option<Digest> {
        (bytes.len() * 2 == algorithm.hex_len()).then(|| Digest::spelled(algorithm, bytes))
    }

    fn spelled(algorithm: Algorithm, bytes: &[u8]) -> Digest {
        let mut text = String::with_capacity(algorithm.as_str().len() + 1 + bytes.len() * 2);
        text.push_str(algorithm.as_str());
        text.push(':');
        for byte in bytes {
            text.push(char::from(b"0123456789abcdef"[usize::from(byte >> 4)]));
            text.push(char::from(b"0123456789abcdef"[usize::from(byte & 15)]));
        }
        Digest { algorithm, text: text.into() }
    }

    /// Every digest that stands anywhere in a text, of whatever form the text is.
    pub fn all_in(text: &[u8]) -> impl Iterator<Item = Digest> + '_ {
        Algorithm::ALL.into_iter().flat_map(move |algorithm| {
            let begin = format!("{algorithm}:").into_bytes();
            let len = begin.len() + algorithm.hex_len();
            text.windows(len).filter_map(move |found| {
                let found = found.starts_with(&begin).then(|| std::str::from_utf8(found).ok());
                found.flatten().and_then(|found| Digest::parse(found).ok())
            })
        })
    }

    /// The bytes of the hash; `None` if those are not so many.
    pub fn hash<const N: usize>(&self) -> Option<[u8; N]> {
        (self.algorithm.hex_len() == 2 * N).then(|| self.bytes())
    }

    /// The first bytes of the hash.
    fn bytes<const N: usize>(&self) -> [u8; N] {
        let digit = |character: u8| match character {
            b'0'..=b'9' => character - b'0',
            _ => character - b'a' + 10,
        };
        let (pairs, _) = self.hex().as_bytes().as_chunks::<2>();
        let mut bytes = [0; N];
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
            *byte = digit(*high) << 4 | digit(*low);
        }
        bytes
    }

    /// The algorithm.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The digits alone: the file's name in a layout.
    pub fn hex(&self) -> &str {
        &self.text[self.algorithm.as_str().len() + 1..]
    }

    /// The whole text, `algorithm:hex`.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        Digest::parse(text)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Text(text) = Text::deserialize(deserializer)?;
        Digest::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// A digest in the making.
#[derive(Clone)]
pub enum Hasher {
    /// Hashing with SHA-256.
    Sha256(sha2::Sha256),
    /// Hashing with SHA-512.
    Sha512(sha2::Sha512),
}

impl Hasher {
    /// A hasher that has seen nothing yet.
    pub fn new(algorithm: Algorithm) -> Hasher {
        match algorithm {
            Algorithm::Sha256 => Hasher::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => Hasher::Sha512(sha2::Sha512::new()),
        }
    }

    /// The algorithm it hashes with.
    pub fn algorithm(&self) -> Algorithm {
        match self {
            Hasher::Sha256(_) => Algorithm::Sha256,
            Hasher::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(state) => state.update(bytes),
            Hasher::Sha512(state) => state.update(bytes),
        }
    }

    /// The digest of all bytes taken.
    pub fn finish(self) -> Digest {
        match self {
            Hasher::Sha256(state) => Digest::spelled(Algorithm::Sha256, &state.finalize()),
            Hasher::Sha512(state) => Digest::spelled(Algorithm::Sha512, &state.finalize()),
        }
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hasher({})", self.algorithm())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn hashing_gives_what_parsing_takes() {
        let digest = Digest::of(Algorithm::Sha256, b"");
        assert_eq!(digest.as_str(), EMPTY);
        assert_eq!(Digest::parse(EMPTY), Ok(digest));
        let long = Digest::of(Algorithm::Sha512, b"x");
        assert_eq!(Digest::parse(long.as_str()), Ok(long.clone()));
        assert_eq!(long.hex().len(), 128);
    }

    #[test]
    fn the_bytes_are_the_digest() {
        for algorithm in Algorithm::ALL {
            let digest = Digest::of(algorithm, b"x");
            assert_eq!(Digest::from(&DigestBytes::from(&digest)), digest);
            assert_eq!(digest.hash::<32>().is_some(), algorithm == Algorithm::Sha256);
            assert_eq!(digest.hash::<64>().is_some(), algorithm == Algorithm::Sha512);
            assert_eq!(digest.hash::<20>(), None);
        }
    }

    #[test]
    fn wrong_forms_are_named() {
        assert!(matches!(Digest::parse("abc"), Err(DigestError::Form(_))));
        assert!(matches!(Digest::parse("md5:abc"), Err(DigestError::Algorithm(_))));
        assert!(matches!(Digest::parse("SHA256:abc"), Err(DigestError::Algorithm(_))));
        assert!(matches!(Digest::parse("sha256:abc"), Err(DigestError::Hex { .. })));
        assert!(matches!(Digest::parse(&EMPTY.to_uppercase()), Err(DigestError::Algorithm(_))));
        let traversal = format!("sha256:../{}", "a".repeat(61));
        assert!(matches!(Digest::parse(&traversal), Err(DigestError::Hex { .. })));
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_keeps_the_text(text in "\\PC{0,200}") {
            if let Ok(digest) = Digest::parse(&text) {
                prop_assert_eq!(digest.as_str(), text);
            }
        }
    }
}
