//! What is for the record: who changed what, and who was turned away (docs/log.md).
//!
//! One line for each fact, under the target [`AUDIT`]; logins are written by `auth`, beside this.
//! Strings are written as Debug writes them, with control characters as escapes, and names only of
//! those who proved them: nothing that a client sends can end a line or make another.

use std::fmt;
use std::net::IpAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::auth::{self, AUDIT, TokenError};
use crate::oci::{Change, Descriptor, Digest, RepoName, Tag, What};

/// Names a request in the log and to the client; never taken from the client. The first half is
/// drawn at the start of the process, the second counts.
#[derive(Clone, Debug)]
pub(super) struct RequestId(String);

impl RequestId {
    pub(super) fn next() -> RequestId {
        static START: OnceLock<u32> = OnceLock::new();
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let start = START.get_or_init(|| getrandom::u32().unwrap_or_else(|_| std::process::id()));
        RequestId(format!("{start:08x}{:08x}", COUNT.fetch_add(1, Ordering::Relaxed)))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A token that is not believed. Whom it names is not said: anybody could have written that.
pub(super) fn token_refused(client: IpAddr, request: &RequestId, why: TokenError) {
    let (request, why) = (request.as_str(), why.to_string());
    tracing::info!(
        target: AUDIT, event = "token-refused", who = "-", %client, request, why = why.as_str(),
    );
}

/// Somebody who is known may not do what they asked for; `why` names what decided it.
pub(super) fn denied(who: &Source, repo: &RepoName, right: auth::Action, why: &str) {
    let Source { who, client, request } = who;
    let (who, request, repo) = (name(who), request.as_str(), repo.as_str());
    tracing::info!(
        target: AUDIT, event = "denied", who, %client, request, repo, right = ?right, why,
    );
}

/// Who makes a request, and which.
#[derive(Clone, Debug)]
pub(super) struct Source {
    /// A name that was proved, or none.
    pub(super) who: Option<String>,
    pub(super) client: IpAddr,
    pub(super) request: RequestId,
}

fn name(who: &Option<String>) -> &str {
    who.as_deref().unwrap_or("-")
}

/// Manifests and tags of a repository that are another way now.
pub(super) fn changed(source: &Source, repo: &RepoName, changes: &[Change]) {
    for Change { what, tag, before, after } in changes {
        let event = match what {
            What::Push => "push",
            What::Tag => "tag",
            What::Untag => "untag",
            What::Delete => "delete",
        };
        let digest = |of: &Option<Descriptor>| of.as_ref().map(|of| of.digest.to_string());
        let (before, after) = (digest(before), digest(after));
        line(source, event, repo, tag.as_ref(), after.as_deref().or(before.as_deref()), {
            // What a tag named until now; elsewhere nothing is left out.
            before.as_deref().filter(|_| after.is_some())
        });
    }
}

/// A blob that has no name in the repository any more.
pub(super) fn blob_deleted(source: &Source, repo: &RepoName, digest: &Digest) {
    line(source, "delete-blob", repo, None, Some(digest.as_str()), None);
}

fn line(
    Source { who, client, request }: &Source,
    event: &str,
    repo: &RepoName,
    tag: Option<&Tag>,
    digest: Option<&str>,
    before: Option<&str>,
) {
    let (who, request, repo, tag) =
        (name(who), request.as_str(), repo.as_str(), tag.map(Tag::as_str));
    tracing::info!(target: AUDIT, event, who, %client, request, repo, tag, digest, before);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_requests_have_one_id() {
        let ids: std::collections::BTreeSet<_> =
            (0..1000).map(|_| RequestId::next().to_string()).collect();
        assert_eq!(ids.len(), 1000);
        assert!(ids.iter().all(|id| id.len() == 16));
    }
}
