//! Everybody whom the directories on the way to a repository name, and what they may do.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::Serialize;

use super::permissions;
use super::report::{Named, State, View, named_group, named_user};
use crate::auth::{self, Action, User, Who, Whom};
use crate::layout::rights::Way;

/// Somebody, or all of a kind.
#[derive(Debug, Serialize)]
pub struct Principal {
    /// Who.
    pub kind: Kind,
    /// The user or group; null for the other kinds.
    #[serde(flatten)]
    pub named: Option<Named>,
    /// May pull; null where the server cannot look far enough to tell.
    pub pull: Option<bool>,
    /// May push and delete, or create the repository where it is absent.
    pub push: Option<bool>,
    /// Why not, or why.
    pub reason: String,
    /// A group's members, each with all of their groups.
    pub members: Vec<Member>,
}

/// What a [`Principal`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Members of the admin group.
    Administrators,
    /// The owner of a directory on the way, or a user whom an ACL names.
    User,
    /// A directory's group, or one that an ACL names: whoever is in no other.
    Group,
    /// Whoever logs in and is in none of these groups.
    Other,
    /// Whoever does not log in.
    Anonymous,
}

/// A member of a group.
#[derive(Debug, Serialize)]
pub struct Member {
    /// The account's name.
    pub name: String,
    /// May pull.
    pub pull: Option<bool>,
    /// May push and delete.
    pub push: Option<bool>,
}

/// So many members of a group are looked up and listed.
const MOST_MEMBERS: usize = 200;

pub(super) fn everybody(view: &View) -> Vec<Principal> {
    let (users, groups) = named(&view.way);
    let mut found = Vec::new();
    if let Some(gid) = view.policy.admins {
        let admin = synthetic(&view.way, &[gid]);
        found.push(principal(view, Kind::Administrators, Some(named_group(gid)), &admin));
    }
    for uid in users {
        let account = User::with_uid(uid).ok().flatten();
        let nameless = || User { name: uid.to_string(), uid, gid: uid, groups: vec![] };
        let who = Who::User(Arc::new(account.unwrap_or_else(nameless)));
        found.push(principal(view, Kind::User, Some(named_user(uid)), &who));
    }
    let other = principal(view, Kind::Other, None, &everybody_else(&view.way));
    for gid in groups {
        let member = synthetic(&view.way, &[gid]);
        let group = principal(view, Kind::Group, Some(named_group(gid)), &member);
        // root's group on the levels above is everywhere, and gives what everybody has.
        if gid != 0 || (group.pull, group.push) != (other.pull, other.push) {
            found.push(group);
        }
    }
    found.push(other);
    found.push(principal(view, Kind::Anonymous, None, &Who::Anonymous));
    found
}

/// Somebody whom nothing on the way names.
pub(super) fn everybody_else(way: &Way) -> Who {
    synthetic(way, &[])
}

/// Somebody who is in these groups and whom nothing on the way names.
fn synthetic(way: &Way, groups: &[u32]) -> Who {
    let (users, _) = named(way);
    let uid = (1..u32::MAX - 1).rev().find(|uid| !users.contains(uid)).unwrap_or(1);
    let groups = groups.to_vec();
    Who::User(Arc::new(User { name: uid.to_string(), uid, gid: uid, groups }))
}

/// The users and groups that the levels name, as owners or in ACLs.
fn named(way: &Way) -> (BTreeSet<u32>, BTreeSet<u32>) {
    let (mut users, mut groups) = (BTreeSet::new(), BTreeSet::new());
    for level in &way.levels {
        users.insert(level.uid);
        groups.insert(level.gid);
        for entry in permissions(level).acl.iter().flatten() {
            match entry.whom {
                Whom::User(uid) => drop(users.insert(uid)),
                Whom::Group(gid) => drop(groups.insert(gid)),
                _ => {}
            }
        }
    }
    (users, groups)
}

fn principal(view: &View, kind: Kind, named: Option<Named>, who: &Who) -> Principal {
    let called = match (kind, &named) {
        (Kind::Group | Kind::Administrators, Some(group)) => {
            Some(format!("a member of {}", group.name))
        }
        (Kind::Other, _) => Some("whoever is named nowhere".to_owned()),
        _ => None,
    };
    let [pull, push] =
        [Action::Pull, Action::Push].map(|action| view.answer(who, called.as_deref(), action));
    // That nothing can be pulled where nothing is needs no saying.
    let pulls = pull.allowed == Some(true) || view.state != State::Repository;
    let reason = if pulls { push.reason } else { pull.reason };
    let in_group = match (kind, &named) {
        (Kind::Group | Kind::Administrators, Some(group)) => members(view, group.id),
        _ => Vec::new(),
    };
    Principal { kind, named, pull: pull.allowed, push: push.allowed, reason, members: in_group }
}

fn members(view: &View, gid: u32) -> Vec<Member> {
    let names = auth::members(gid).into_iter().take(MOST_MEMBERS);
    let member = |name: String| {
        let user = User::find(&name).ok().flatten()?;
        let who = Who::User(Arc::new(user));
        let allowed = |action| view.answer(&who, None, action).allowed;
        let (pull, push) = (allowed(Action::Pull), allowed(Action::Push));
        Some(Member { name: super::words::plain(&name), pull, push })
    };
    names.filter_map(member).collect()
}
