//! Repository names, which are paths beneath ROOT.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// Path components that an OCI layout uses itself, so that no repository may be called so.
pub const RESERVED: [&str; 3] = ["blobs", "index.json", "oci-layout"];

/// The longest name: with a host before it, clients allow 255 characters in all.
const MAX: usize = 255;

/// A repository's name as the distribution specification has it ("Pulling manifests", `<name>`).
///
/// Every component begins and ends with a letter or digit, so a name can never climb out of ROOT,
/// reach `.stillage` or meet a derived view, whose names begin with `_`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepoName(Box<str>);

/// Why a text is not a repository name.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum NameError {
    /// Nothing at all.
    #[error("the repository name is empty")]
    Empty,
    /// More than 255 bytes.
    #[error("the repository name has {0} bytes: {MAX} is the most")]
    Long(usize),
    /// A component that the specification's pattern does not allow.
    #[error(
        "repository name component {0:?} is malformed: use a-z and 0-9, joined by single '.', '_', '__' or dashes"
    )]
    Component(String),
    /// A component that the layout needs itself.
    #[error("repository name component {0:?} is reserved: an image layout uses that name itself")]
    Reserved(String),
}

impl RepoName {
    /// Parses a whole name, `team/app`.
    pub fn parse(text: &str) -> Result<RepoName, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.len() > MAX {
            return Err(NameError::Long(text.len()));
        }
        for component in text.split('/') {
            if !is_component(component) {
                return Err(NameError::Component(component.to_owned()));
            }
            if RESERVED.contains(&component) {
                return Err(NameError::Reserved(component.to_owned()));
            }
        }
        Ok(RepoName(text.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The directories on the way, outermost first.
    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(text: &str) -> bool {
    let bytes = text.as_bytes();
    let alnum = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    if !alnum(first) || !alnum(last) {
        return false;
    }
    bytes
        .split(alnum)
        .all(|joint| matches!(joint, b"" | b"." | b"_" | b"__") || joint.iter().all(|b| *b == b'-'))
}

impl fmt::Display for RepoName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RepoName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for RepoName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        RepoName::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_follow_the_pattern() {
        for good in ["a", "a/b", "test/this", "a-b", "a--b", "a.b", "a_b", "a__b", "0/1/2"] {
            assert!(RepoName::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "A", "a//b", "/a", "a/", ".a", "a.", "a..b", "a___b", "-a", "a._b", "a/../b", "_a",
            "a b", "a\0b", "ä",
        ] {
            assert!(matches!(RepoName::parse(bad), Err(NameError::Component(_))), "{bad}");
        }
        assert_eq!(RepoName::parse(""), Err(NameError::Empty));
        assert_eq!(RepoName::parse(&"a".repeat(256)), Err(NameError::Long(256)));
        assert!(RepoName::parse(&"a".repeat(255)).is_ok());
    }

    #[test]
    fn reserved_components_are_refused_wherever_they_stand() {
        for bad in ["blobs", "a/blobs/b", "index.json", "a/oci-layout"] {
            assert!(matches!(RepoName::parse(bad), Err(NameError::Reserved(_))), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn whatever_parses_stays_beneath_the_root(text in "[a-zA-Z0-9._/-]{0,40}") {
            if let Ok(name) = RepoName::parse(&text) {
                for part in name.components() {
                    prop_assert!(!part.is_empty() && !part.starts_with(['.', '_', '-']));
                }
            }
        }
    }
}
