//! Tags.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// A tag: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}` (distribution specification, "Pulling manifests").
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(Box<str>);

/// Why a text is not a tag.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "tag {0:?} is malformed: at most 128 of a-z A-Z 0-9 _ . and -, beginning with neither . nor -"
)]
pub struct TagError(pub String);

impl Tag {
    /// Parses a tag.
    pub fn parse(text: &str) -> Result<Tag, TagError> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let bytes = text.as_bytes();
        let good = bytes.len() <= 128
            && bytes.first().is_some_and(|b| plain(*b))
            && bytes.iter().all(|b| plain(*b) || matches!(b, b'.' | b'-'));
        if good { Ok(Tag(text.into())) } else { Err(TagError(text.chars().take(160).collect())) }
    }

    /// The tag as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Tag {
    type Err = TagError;

    fn from_str(text: &str) -> Result<Self, TagError> {
        Tag::parse(text)
    }
}

impl std::borrow::Borrow<str> for Tag {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_follow_the_pattern() {
        for good in ["a", "_", "1.8", "mytag1.8", "A-b_c.d", &"x".repeat(128)] {
            assert!(Tag::parse(good).is_ok(), "{good}");
        }
        for bad in ["", ".a", "-a", "a/b", "a:b", "a b", "ä", "a\n", &"x".repeat(129)] {
            assert!(Tag::parse(bad).is_err(), "{bad}");
        }
    }
}
