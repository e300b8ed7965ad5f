//! The one place that decides who may do what to a repository: by the permissions of its directory
//! and of those above it, as the kernel would decide for somebody with a shell.
//!
//! Pure: what it needs to know comes as values. It says yes or no and why, so that what is logged
//! and what `stillage access` explains is what was decided.

use std::sync::Arc;

use super::permissions::{Credentials, Permissions, READ, Ruling, SEARCH, WRITE};
use super::user::User;

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
        self.account().map(|user| user.name.as_str())
    }

    /// The account; `None` for anonymous.
    pub fn account(&self) -> Option<&User> {
        match self {
            Who::Anonymous => None,
            Who::User(user) | Who::Server(user) => Some(user),
        }
    }

    /// What the kernel would know of them.
    pub fn credentials(&self) -> Credentials<'_> {
        match self.account() {
            None => Credentials { uid: None, groups: &[] },
            Some(user) => Credentials { uid: Some(user.uid), groups: &user.groups },
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
    /// Pull what the permissions give to others, and never more.
    Pull,
    /// Nothing.
    Nothing,
}

/// What holds for every repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// What those may do who did not log in.
    pub anonymous: Anonymous,
    /// The group whose members may do everything, by number.
    pub admins: Option<u32>,
}

/// What lies on the way from ROOT to a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// From ROOT to the deepest directory that is there and could be looked at; never empty.
    pub levels: Vec<Permissions>,
    /// The repository's own directory is there: it is the last level.
    pub whole: bool,
    /// The last level takes no writes from anybody.
    pub read_only: bool,
    /// What lies beneath the last level could not be looked at.
    pub stopped: bool,
}

/// A yes or no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    /// They may.
    Yes,
    /// They may not.
    No,
    /// Nobody can tell: they are let through as far as the server can look, and no further.
    Untold,
}

/// A yes or no, and what it rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Judgement {
    /// Yes or no.
    pub right: Right,
    /// Why.
    pub reason: Reason,
}

/// What a judgement rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// A member of the admin group, or uid 0.
    Administrator,
    /// Who did not log in may do nothing here.
    NoAnonymous,
    /// Who did not log in may never write.
    AnonymousWrite,
    /// A directory's permissions.
    Level {
        /// Which, counted from ROOT.
        at: usize,
        /// What was wanted of it.
        wanted: u8,
        /// What it says.
        ruling: Ruling,
    },
    /// Only administrators may write here.
    NotAdministrator,
    /// There is no such repository.
    Absent,
    /// The last level is on a read-only mount.
    ReadOnly,
    /// The server itself cannot look beneath the last level.
    Stopped,
}

impl Policy {
    /// Whether somebody may do everything: a member of the admin group, or uid 0, which the kernel
    /// lets pass everywhere.
    pub fn is_administrator(&self, who: &Who) -> bool {
        who.account().is_some_and(|user| {
            user.uid == 0 || self.admins.is_some_and(|group| user.groups.contains(&group))
        })
    }

    /// Whether somebody gets all of the `wanted` bits of one directory or file.
    pub fn allows(&self, who: &Who, permissions: &Permissions, wanted: u8) -> bool {
        self.is_administrator(who) || permissions.rule(who.credentials(), wanted).allowed
    }
}

/// Whether `who` may do `action` to the repository at the end of `way`, and why.
///
/// Every directory on the way must let them search it. To pull, the repository's own must let them
/// read it; to push and delete, write to it; to create it, write to the nearest one that is there.
pub fn judge(policy: &Policy, who: &Who, way: &Way, action: Action) -> Judgement {
    let no = |reason| Judgement { right: Right::No, reason };
    if *who == Who::Anonymous && action != Action::Pull {
        return no(Reason::AnonymousWrite);
    }
    if *who == Who::Anonymous && policy.anonymous == Anonymous::Nothing {
        return no(Reason::NoAnonymous);
    }
    let mut reason = Reason::Administrator;
    if !policy.is_administrator(who) {
        for (at, wanted) in wanted(way, action) {
            let ruling = way.levels[at].rule(who.credentials(), wanted);
            reason = Reason::Level { at, wanted, ruling };
            if !ruling.allowed {
                return no(reason);
            }
        }
    }
    if way.stopped {
        return Judgement { right: Right::Untold, reason: Reason::Stopped };
    }
    match action {
        Action::Pull if !way.whole => no(Reason::Absent),
        Action::Push | Action::Delete if way.read_only => no(Reason::ReadOnly),
        _ => Judgement { right: Right::Yes, reason },
    }
}

/// What each level has to give, each as one question to the kernel: it lists a directory and opens
/// a file in it by two calls, and creates a file by one that wants both bits of it.
pub fn wanted(way: &Way, action: Action) -> impl Iterator<Item = (usize, u8)> {
    let last = way.levels.len().saturating_sub(1);
    let of_last: &[u8] = match action {
        _ if way.stopped => &[SEARCH],
        Action::Pull if way.whole => &[SEARCH, READ],
        Action::Pull => &[SEARCH],
        Action::Push | Action::Delete => &[WRITE | SEARCH],
    };
    let above = (0..last).map(|at| (at, SEARCH));
    above.chain(of_last.iter().map(move |bits| (last, *bits)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(mode: u16) -> Permissions {
        Permissions { owner: 0, group: 100, mode, acl: None }
    }

    fn way(modes: &[u16]) -> Way {
        let levels = modes.iter().map(|mode| directory(*mode)).collect();
        Way { levels, whole: true, read_only: false, stopped: false }
    }

    fn user(groups: &[u32]) -> Who {
        let groups = groups.to_vec();
        Who::User(Arc::new(User { name: "anna".into(), uid: 1000, gid: 1000, groups }))
    }

    const OPEN: Policy = Policy { anonymous: Anonymous::Pull, admins: Some(7) };

    fn may(who: &Who, way: &Way) -> [Right; 3] {
        [Action::Pull, Action::Push, Action::Delete]
            .map(|action| judge(&OPEN, who, way, action).right)
    }

    #[test]
    fn the_repository_says_what_and_those_above_say_whether() {
        use Right::{No, Yes};
        let (member, stranger) = (user(&[100]), user(&[1000]));
        assert_eq!(may(&member, &way(&[0o755, 0o2775])), [Yes; 3]);
        assert_eq!(may(&stranger, &way(&[0o755, 0o2775])), [Yes, No, No]);
        assert_eq!(may(&stranger, &way(&[0o755, 0o2770])), [No; 3]);
        assert_eq!(may(&member, &way(&[0o700, 0o2775])), [No; 3]);
        assert_eq!(may(&member, &way(&[0o755, 0o730])), [No, Yes, Yes], "a drop box");
        let without_search = judge(&OPEN, &stranger, &way(&[0o754, 0o777]), Action::Pull);
        let expected = |reason| matches!(reason, Reason::Level { at: 0, wanted: SEARCH, .. });
        assert!(expected(without_search.reason), "{without_search:?}");
    }

    #[test]
    fn anonymous_is_other_and_never_writes() {
        use Right::{No, Yes};
        assert_eq!(may(&Who::Anonymous, &way(&[0o755, 0o777])), [Yes, No, No]);
        assert_eq!(may(&Who::Anonymous, &way(&[0o755, 0o770])), [No; 3]);
        let closed = Policy { anonymous: Anonymous::Nothing, admins: None };
        let judged = judge(&closed, &Who::Anonymous, &way(&[0o755, 0o755]), Action::Pull);
        assert_eq!(judged, Judgement { right: No, reason: Reason::NoAnonymous });
    }

    #[test]
    fn administrators_may_do_everything_that_can_be_done() {
        use Right::{No, Untold, Yes};
        let admin = user(&[7]);
        assert_eq!(may(&admin, &way(&[0o700, 0o700])), [Yes; 3]);
        assert_eq!(may(&admin, &Way { read_only: true, ..way(&[0o755]) }), [Yes, No, No]);
        assert_eq!(may(&admin, &Way { stopped: true, ..way(&[0o755]) }), [Untold; 3]);
        let root = Arc::new(User { name: "root".into(), uid: 0, gid: 0, groups: vec![0] });
        assert_eq!(may(&Who::Server(root), &way(&[0o700, 0o000])), [Yes; 3]);
        assert_eq!(may(&user(&[1000]), &Way { stopped: true, ..way(&[0o750]) }), [No; 3]);
    }

    #[test]
    fn what_is_absent_is_created_by_who_may_write_above() {
        use Right::{No, Yes};
        let absent = Way { whole: false, ..way(&[0o755, 0o775]) };
        assert_eq!(may(&user(&[100]), &absent), [No, Yes, Yes]);
        assert_eq!(may(&user(&[1000]), &absent), [No; 3]);
        let judged = judge(&OPEN, &user(&[1000]), &absent, Action::Pull);
        assert_eq!(judged.reason, Reason::Absent);
    }
}
