//! Where what `layout` reads of directories meets what `auth` decides on it.
//!
//! The two never see each other: here the one's values become the other's, an account of the tree
//! gets its answers, and a decision is put into words.

mod grant;
mod people;
mod report;
mod server;
mod shell;
mod start;
mod text;
mod words;

pub use grant::{Alternative, Grant, grant};
pub use people::{Kind, Member, Principal};
pub use report::{
    ANONYMOUS, Answer, Answers, LevelRow, Named, Other, Question, Report, ReportError, State,
    Subject, report,
};
pub use server::{Problem, Server, first_closed};
pub use shell::quote;
pub use start::{Start, renamers, start};
pub use words::{Case, why};

use crate::auth::{self, Entry, Permissions, Policy, Who, Whom};
use crate::layout::acl::{Acl, AclTag};
use crate::layout::rights::{Level, Way};
use crate::layout::{Account, account};

/// What lies on the way to a repository, for the deciding function.
pub fn way(way: &Way) -> auth::Way {
    auth::Way {
        levels: way.levels.iter().map(|level| permissions(level)).collect(),
        whole: way.whole,
        read_only: way.read_only,
        stopped: way.stopped.is_some(),
    }
}

/// A directory's or a file's permissions, for the deciding function.
pub fn permissions(level: &Level) -> Permissions {
    let acl = level.acl.as_ref().map(entries);
    Permissions { owner: level.uid, group: level.gid, mode: level.mode, acl }
}

/// An ACL's entries, for the deciding function.
pub fn entries(acl: &Acl) -> Vec<Entry> {
    let entry = |whom, bits| Entry { whom, bits };
    let entries = acl.entries.iter().map(|found| match found.tag {
        AclTag::Owner => entry(Whom::Owner, found.bits),
        AclTag::User(uid) => entry(Whom::User(uid), found.bits),
        AclTag::OwningGroup => entry(Whom::OwningGroup, found.bits),
        AclTag::Group(gid) => entry(Whom::Group(gid), found.bits),
        AclTag::Mask => entry(Whom::Mask, found.bits),
        AclTag::Other => entry(Whom::Other, found.bits),
    });
    entries.collect()
}

/// Somebody as the account on whose behalf files are read and directories made. Administrators need
/// no entry in what is made for them, nor does the server.
pub fn account(policy: Policy, who: &Who) -> Account {
    let uid = match who {
        Who::User(user) if !policy.is_administrator(who) => Some(user.uid),
        Who::User(_) | Who::Server(_) | Who::Anonymous => None,
    };
    let who = who.clone();
    Account::new(uid, move |level, bits| policy.allows(&who, &permissions(level), bits))
}

// The two rooms spell the bits alike.
const _: () = assert!(account::READ == auth::READ);
const _: () = assert!(account::WRITE == auth::WRITE);
const _: () = assert!(account::SEARCH == auth::SEARCH);
