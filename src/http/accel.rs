//! Blobs that a web server in front sends itself (`--accel`): the answer names the file, in
//! `X-Accel-Redirect`, and has no body.
//!
//! Who may pull is decided here as ever; what the web server gets is a path. It gets one only where it
//! is named by `--trusted-proxy` and says for whom it asks, only for content that was checked and that
//! nobody but the server could change, and only if the directories let its account come to the file.
//! What clients say has no part in it: of a request's headers only those count that the web server in
//! front writes itself.

use std::fmt;
use std::str::FromStr;

use axum::response::Response;
use http::HeaderValue;
use http::header::{ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, HeaderName};
use thiserror::Error;

use super::blobs;
use super::reply::value;
use crate::access;
use crate::auth::{NameServiceError, User};
use crate::oci::{Digest, RepoName};
use crate::registry::{self, OpenBlob, Outside, Registry};

const ACCEL_REDIRECT: HeaderName = HeaderName::from_static("x-accel-redirect");

/// Accounts that web servers have where they are packaged.
const USUAL: [&str; 2] = ["www-data", "nginx"];

/// The beginning of the paths that the web server is given: its internal location.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix(String);

impl Prefix {
    /// `/_blobs`, without a slash at its end.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Prefix {
    type Err = String;

    /// Of characters that mean themselves in a URL, in nginx's configuration and in a header.
    fn from_str(text: &str) -> Result<Prefix, String> {
        let wrong = |why| Err(format!("{text:?} {why}: write a path such as /_blobs"));
        let bare = text.strip_suffix('/').unwrap_or(text);
        let Some(rest) = bare.strip_prefix('/') else {
            return wrong("does not begin with a slash");
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '~');
        let is_name = |part: &str| !matches!(part, "" | "." | "..") && part.chars().all(plain);
        if !rest.split('/').all(is_name) {
            return wrong("has a part that cannot stand in it");
        }
        let first = rest.split('/').next().unwrap_or_default();
        if matches!(first, "v2" | "token" | "healthz" | "readyz") {
            return wrong("begins as paths of the registry do");
        }
        Ok(Prefix(bare.to_owned()))
    }
}

/// Why blobs cannot be handed over.
#[derive(Debug, Error)]
pub enum AccelError {
    /// Whom the files must be open to is not known.
    #[error("--accel: which account does the web server run as? Say so with --accel-user NAME")]
    NoAccount,
    /// There is no such account.
    #[error("--accel-user: there is no account {0:?} on this host")]
    Unknown(String),
    /// Nobody can tell.
    #[error(transparent)]
    Untold(#[from] NameServiceError),
    /// Where the tree lies is not known.
    #[error("--accel: {0}")]
    Place(#[from] registry::Error),
}

/// What is needed to hand blobs over.
#[derive(Debug)]
pub struct Accel {
    prefix: Prefix,
    account: User,
    outside: Outside,
}

impl Accel {
    /// Handing blobs of a registry to a web server that runs as `account`, or as one of those that are
    /// usual. Its groups are those of now. Asks the name service: for the start.
    pub fn new(
        registry: &Registry,
        prefix: Prefix,
        account: Option<&str>,
    ) -> Result<Accel, AccelError> {
        let account = match account {
            Some(name) => User::find(name)?.ok_or_else(|| AccelError::Unknown(name.to_owned()))?,
            None => usual_account()?.ok_or(AccelError::NoAccount)?,
        };
        Ok(Accel { prefix, account, outside: Outside::of(registry)? })
    }

    /// The line for the start report; what is to be warned of besides.
    pub fn report(&self) -> registry::Result<(String, Option<String>)> {
        let Accel { prefix, account, outside } = self;
        let name = &account.name;
        let line = format!("what {name} can read is sent by the web server, as {prefix}/…");
        let closed = access::first_closed(account, &outside.way_to_root()?);
        let warning = closed.map(|path| {
            format!("{name} may not search {}: every blob is sent by this server", path.display())
        });
        Ok((line, warning))
    }

    /// The answer to a request for an open blob, if the web server can send it.
    pub(super) fn answer(
        &self,
        repo: &RepoName,
        digest: &Digest,
        blob: &OpenBlob,
    ) -> Option<Response> {
        let way = self.outside.way_to_blob(repo, digest, blob).unwrap_or_else(|error| {
            // The bytes are at hand.
            tracing::warn!(cause = ?error.to_string(), "a blob is not handed over");
            None
        });
        if access::first_closed(&self.account, &way?).is_some() {
            return None;
        }
        let mut response = blobs::described(digest);
        let headers = response.headers_mut();
        headers.insert(ACCEL_REDIRECT, self.path(repo, digest));
        headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        // The web server says itself which ranges it takes.
        headers.remove(ACCEPT_RANGES);
        // It would keep it for the errors that it comes upon, too, and not take it off again.
        headers.remove(CACHE_CONTROL);
        Some(response)
    }

    /// Names and digests have no character that a URL would have to escape.
    fn path(&self, repo: &RepoName, digest: &Digest) -> HeaderValue {
        let Accel { prefix, .. } = self;
        value(format!("{prefix}/{repo}/blobs/{}/{}", digest.algorithm(), digest.hex()))
    }
}

fn usual_account() -> Result<Option<User>, NameServiceError> {
    for name in USUAL {
        if let Some(user) = User::find(name)? {
            return Ok(Some(user));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn prefixes_are_plain_paths_of_their_own() {
        for (text, prefix) in
            [("/_blobs", "/_blobs"), ("/_blobs/", "/_blobs"), ("/a/b.~-", "/a/b.~-")]
        {
            assert_eq!(text.parse::<Prefix>().unwrap().as_str(), prefix);
        }
        for bad in [
            "",
            "/",
            "//",
            "a",
            "/a//b",
            "/../a",
            "/a/.",
            "/a b",
            "/a;",
            "/a{",
            "/$a",
            "/%41",
            "/ä",
            "/a?b",
            "/v2",
            "/v2/x",
            "/token/",
            "https://x/y",
            "/a\r\nb",
            "/a'",
        ] {
            assert!(bad.parse::<Prefix>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        /// Decoded as a URL, a path is what it was.
        #[test]
        fn names_need_no_escapes(name in "[a-z0-9]{1,9}((\\.|_|__|-{1,3}|/)[a-z0-9]{1,9}){0,9}") {
            let name = RepoName::parse(&name).unwrap();
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~/".contains(&b);
            prop_assert!(name.as_str().bytes().all(plain));
        }
    }
}
