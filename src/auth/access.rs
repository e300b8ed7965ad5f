//! The one place that decides who may do what to a repository.
//!
//! Pure: what it needs to know comes as values. The permissions of directories will come the same
//! way, as what `layout` read of the owner, mode and ACL of every level, one more argument of
//! [`may`].

use std::sync::Arc;

use super::user::User;
use crate::oci::RepoName;

/// Who is asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// Nobody who said who they are.
    Anonymous,
    /// Someone whose password was checked, now or when their token was issued.
    User(Arc<User>),
    /// Everyone, where no login is asked for: they act as the account that runs the server.
    Server(Arc<User>),
}

impl Who {
    /// The account's name; `None` for anonymous. Owns upload sessions, and stands in the journal.
    pub fn name(&self) -> Option<&str> {
        match self {
            Who::Anonymous => None,
            Who::User(user) | Who::Server(user) => Some(&user.name),
        }
    }
}

/// What can be done to a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Read manifests, tags and blobs.
    Pull,
    /// Write manifests, tags and blobs; create the repository.
    Push,
    /// Remove manifests, tags and blobs.
    Delete,
}

/// What those may do who did not log in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anonymous {
    /// Pull, and never more.
    Pull,
    /// Nothing.
    Nothing,
}

/// What holds for every repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// What those may do who did not log in.
    pub anonymous: Anonymous,
}

/// Whether `who` may do `action` to `repo`: who logged in may do everything, anonymous at most pull.
pub fn may(policy: &Policy, who: &Who, repo: &RepoName, action: Action) -> bool {
    // The directories of the repository are what decides in the end; until then all are alike.
    let _ = repo;
    match who {
        Who::Anonymous => policy.anonymous == Anonymous::Pull && action == Action::Pull,
        Who::User(_) | Who::Server(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anonymous_never_writes() {
        let repo = RepoName::parse("a/b").expect("a name");
        let anna = User { name: "anna".into(), uid: 1000, gid: 1000, groups: vec![1000] };
        let anna = Arc::new(anna);
        for (anonymous, pulls) in [(Anonymous::Pull, true), (Anonymous::Nothing, false)] {
            let policy = Policy { anonymous };
            for (action, allowed) in
                [(Action::Pull, pulls), (Action::Push, false), (Action::Delete, false)]
            {
                assert_eq!(may(&policy, &Who::Anonymous, &repo, action), allowed, "{action:?}");
                assert!(may(&policy, &Who::User(Arc::clone(&anna)), &repo, action));
                assert!(may(&policy, &Who::Server(Arc::clone(&anna)), &repo, action));
            }
        }
    }
}
