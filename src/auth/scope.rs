//! Scopes: what a client asks a token for, what a token holds, and how a challenge says it.
//!
//! The grammar is the distribution project's: `type:name:action,action`, where the name may itself
//! contain colons.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::access::Action;
use crate::oci::RepoName;

/// How many different resources one token may name; further ones are left out.
pub const MAX_SCOPES: usize = 32;

/// What a scope is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resource {
    /// A repository, which need not exist.
    Repository(RepoName),
    /// The list of all repositories.
    Catalog,
}

/// A set of actions on a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Actions {
    /// Read manifests, tags and blobs.
    pub pull: bool,
    /// Write manifests, tags and blobs.
    pub push: bool,
    /// Remove manifests, tags and blobs.
    pub delete: bool,
}

/// A resource and what may be done to it. Shown as a scope: `repository:a/b:pull,push`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Entry", try_from = "Entry")]
pub struct Access {
    /// What it is about.
    pub resource: Resource,
    /// What may be done. Of no meaning for the catalogue, which is only read.
    pub actions: Actions,
}

impl Actions {
    /// Nothing.
    pub const NONE: Actions = Actions { pull: false, push: false, delete: false };
    /// Read alone.
    pub const PULL: Actions = Actions { pull: true, push: false, delete: false };
    /// What a push needs: clients look before they write.
    pub const PUSH: Actions = Actions { pull: true, push: true, delete: false };
    /// Remove alone.
    pub const DELETE: Actions = Actions { pull: false, push: false, delete: true };
    /// Everything.
    pub const ALL: Actions = Actions { pull: true, push: true, delete: true };

    /// Whether the set holds an action.
    pub fn has(self, action: Action) -> bool {
        match action {
            Action::Pull => self.pull,
            Action::Push => self.push,
            Action::Delete => self.delete,
        }
    }

    /// Whether the set is empty.
    pub fn is_empty(self) -> bool {
        self == Actions::NONE
    }

    /// What is in either set.
    pub fn union(self, other: Actions) -> Actions {
        Actions {
            pull: self.pull || other.pull,
            push: self.push || other.push,
            delete: self.delete || other.delete,
        }
    }

    /// The actions of this set for which `keep` says yes.
    pub fn filter(self, mut keep: impl FnMut(Action) -> bool) -> Actions {
        Actions {
            pull: self.pull && keep(Action::Pull),
            push: self.push && keep(Action::Push),
            delete: self.delete && keep(Action::Delete),
        }
    }

    /// Unknown words are left out; `*` is everything.
    fn from_words<'a>(words: impl Iterator<Item = &'a str>) -> Actions {
        words.fold(Actions::NONE, |set, word| {
            set.union(match word {
                "pull" => Actions::PULL,
                "push" => Actions { push: true, ..Actions::NONE },
                "delete" => Actions::DELETE,
                "*" => Actions::ALL,
                _ => Actions::NONE,
            })
        })
    }

    fn words(self) -> Vec<&'static str> {
        [("pull", self.pull), ("push", self.push), ("delete", self.delete)]
            .into_iter()
            .filter_map(|(word, present)| present.then_some(word))
            .collect()
    }
}

impl Access {
    /// Actions on one repository.
    pub fn repository(name: RepoName, actions: Actions) -> Access {
        Access { resource: Resource::Repository(name), actions }
    }

    /// Reading the catalogue.
    pub fn catalog() -> Access {
        Access { resource: Resource::Catalog, actions: Actions::ALL }
    }

    /// As much of it as reads; `None` where that is nothing.
    pub fn reading(&self) -> Option<Access> {
        let actions = self.actions.filter(|action| action == Action::Pull);
        (!actions.is_empty()).then(|| Access { resource: self.resource.clone(), actions })
    }

    /// One scope; `None` for a type, name or actions that mean nothing here.
    fn parse(scope: &str) -> Option<Access> {
        let (kind, rest) = scope.split_once(':')?;
        let (name, actions) = rest.rsplit_once(':')?;
        Access::from_parts(kind, name, actions.split(','))
    }

    fn from_parts<'a>(
        kind: &str,
        name: &str,
        actions: impl Iterator<Item = &'a str>,
    ) -> Option<Access> {
        let actions = Actions::from_words(actions);
        match (kind, name) {
            _ if actions.is_empty() => None,
            // `repository(plugin)`, a class that old clients name, is an ordinary repository.
            ("repository" | "repository(plugin)", name) => {
                Some(Access::repository(RepoName::parse(name).ok()?, actions))
            }
            ("registry", "catalog") => Some(Access::catalog()),
            _ => None,
        }
    }

    fn parts(&self) -> (&'static str, &str, Vec<&'static str>) {
        match &self.resource {
            Resource::Repository(name) => ("repository", name.as_str(), self.actions.words()),
            Resource::Catalog => ("registry", "catalog", vec!["*"]),
        }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, name, actions) = self.parts();
        write!(f, "{kind}:{name}:{}", actions.join(","))
    }
}

/// Reads every `scope` parameter of a request, each a list divided by spaces.
///
/// What means nothing here is left out, as the token specification wants: a client that asks for
/// too much gets less, not an error. A resource named twice is one, with the actions of both.
pub fn parse_scopes<'a>(scopes: impl IntoIterator<Item = &'a str>) -> Vec<Access> {
    let mut asked: Vec<Access> = Vec::new();
    for access in scopes.into_iter().flat_map(|list| list.split(' ')).filter_map(Access::parse) {
        match asked.iter().position(|known| known.resource == access.resource) {
            Some(known) => asked[known].actions = asked[known].actions.union(access.actions),
            None if asked.len() < MAX_SCOPES => asked.push(access),
            None => {}
        }
    }
    asked
}

/// Why a token that came with a request did not do, in the words of RFC 6750.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChallengeError {
    /// Not believed: forged, expired, for another service.
    InvalidToken,
    /// Believed, but not granted for this.
    InsufficientScope,
}

/// The value of `WWW-Authenticate`. Every value is quoted: some clients read no other.
pub(super) fn challenge(
    realm: &str,
    service: &str,
    scope: &[Access],
    error: Option<ChallengeError>,
) -> String {
    let mut value = format!("Bearer realm={},service={}", quoted(realm), quoted(service));
    if !scope.is_empty() {
        let scopes: Vec<String> = scope.iter().map(Access::to_string).collect();
        value.push_str(&format!(",scope={}", quoted(&scopes.join(" "))));
    }
    match error {
        None => {}
        Some(ChallengeError::InvalidToken) => value.push_str(r#",error="invalid_token""#),
        Some(ChallengeError::InsufficientScope) => value.push_str(r#",error="insufficient_scope""#),
    }
    value
}

/// A quoted-string of RFC 9110. What no header may hold is left out.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars().filter(|c| matches!(c, ' '..='~')) {
        if matches!(character, '"' | '\\') {
            quoted.push('\\');
        }
        quoted.push(character);
    }
    quoted.push('"');
    quoted
}

/// One element of a token's `access`, as the distribution project writes it.
#[derive(Serialize, Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    name: String,
    actions: Vec<String>,
}

impl From<Access> for Entry {
    fn from(access: Access) -> Entry {
        let (kind, name, actions) = access.parts();
        Entry {
            kind: kind.to_owned(),
            name: name.to_owned(),
            actions: actions.into_iter().map(str::to_owned).collect(),
        }
    }
}

impl TryFrom<Entry> for Access {
    type Error = &'static str;

    fn try_from(entry: Entry) -> Result<Access, &'static str> {
        Access::from_parts(&entry.kind, &entry.name, entry.actions.iter().map(String::as_str))
            .ok_or("an access that no token of this service holds")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(scopes: &[&str]) -> Vec<String> {
        parse_scopes(scopes.iter().copied()).iter().map(Access::to_string).collect()
    }

    #[test]
    fn what_clients_send_is_read() {
        assert_eq!(shown(&["repository:a/b:pull,push"]), ["repository:a/b:pull,push"]);
        assert_eq!(shown(&["repository:a:push,pull"]), ["repository:a:pull,push"]);
        assert_eq!(shown(&["repository:a:*"]), ["repository:a:pull,push,delete"]);
        assert_eq!(shown(&["registry:catalog:*"]), ["registry:catalog:*"]);
        assert_eq!(
            shown(&["repository:a:pull repository:b:push", "repository:c:delete"]),
            ["repository:a:pull", "repository:b:push", "repository:c:delete"]
        );
        assert_eq!(shown(&["repository:a:pull", "repository:a:push"]), ["repository:a:pull,push"]);
        assert_eq!(shown(&["repository(plugin):a:pull"]), ["repository:a:pull"]);
    }

    #[test]
    fn what_means_nothing_is_left_out() {
        for nothing in [
            "",
            " ",
            "repository",
            "repository:a",
            "repository:a:",
            "repository::pull",
            "repository:A:pull",
            "repository:../x:pull",
            "repository:localhost:5000/a:pull",
            "repository:blobs:pull",
            "repository:a:fly",
            "registry:other:*",
            "volume:a:pull",
            "offline_access",
        ] {
            assert_eq!(shown(&[nothing]), Vec::<String>::new(), "{nothing:?}");
        }
        assert_eq!(shown(&["repository:a:fly,pull"]), ["repository:a:pull"]);
    }

    #[test]
    fn the_number_of_scopes_is_bounded() {
        let many: Vec<String> = (0..1000).map(|n| format!("repository:r{n}:pull")).collect();
        let asked = parse_scopes(many.iter().map(String::as_str));
        assert_eq!(asked.len(), MAX_SCOPES);
    }

    #[test]
    fn challenges_are_quoted() {
        let scope = parse_scopes(["repository:a/b:pull,push"]);
        assert_eq!(
            challenge(
                "https://h/token",
                "stillage",
                &scope,
                Some(ChallengeError::InsufficientScope)
            ),
            r#"Bearer realm="https://h/token",service="stillage",scope="repository:a/b:pull,push",error="insufficient_scope""#
        );
        assert_eq!(
            challenge("http://h/token", "s", &[], None),
            r#"Bearer realm="http://h/token",service="s""#
        );
        assert_eq!(
            challenge("a\"b\\c\r\nd\u{e4}", "s", &[], Some(ChallengeError::InvalidToken)),
            r#"Bearer realm="a\"b\\cd",service="s",error="invalid_token""#
        );
    }

    proptest! {
        #[test]
        fn no_scope_makes_the_parser_panic(text in ".{0,300}") {
            parse_scopes([text.as_str()]);
        }

        #[test]
        fn what_is_shown_reads_back(
            name in "[a-z0-9]{1,8}(/[a-z0-9]{1,8}){0,3}",
            (pull, push, delete) in any::<(bool, bool, bool)>(),
        ) {
            let actions = Actions { pull, push, delete };
            let access = Access::repository(RepoName::parse(&name).expect("a name"), actions);
            let back = parse_scopes([access.to_string().as_str()]);
            if actions.is_empty() {
                prop_assert!(back.is_empty());
            } else {
                prop_assert_eq!(back, vec![access]);
            }
        }
    }
}
