//! What would let somebody: the one command line, and what else would.
//!
//! A change is made on values first and judged like everything else, so no command is printed that
//! would not do. Nobody but who was asked about gets more by it.

use std::sync::Arc;

use super::words::{Case, acl_is_off, letters, low, mask};
use super::{permissions, shell};
use crate::auth::{
    Entry, Judgement, Names, Permissions, READ, Reason, Right, SEARCH, User, WRITE, Who, Whom,
    judge, wanted,
};
use crate::layout::rights::Level;

/// How somebody could be given what they asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// A command line for a POSIX shell, to be run by root or by the directories' owner.
    pub command: String,
    /// Other commands that would do, each with what else it does.
    pub alternatives: Vec<Alternative>,
}

/// Another way, which gives more than was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alternative {
    /// The command line.
    pub command: String,
    /// What it does besides.
    pub effect: String,
}

/// The command that turns a refusal into a yes; `None` where no permission would: the repository is
/// absent, the mount is read-only, anonymous may not.
pub fn grant(case: &Case<'_>, judgement: &Judgement) -> Option<Grant> {
    let by_level = matches!(judgement.reason, Reason::Level { .. });
    if judgement.right != Right::No || !by_level {
        return None;
    }
    let lacking = lacking(case);
    let changes: Vec<Change> = lacking.iter().map(|at| change(case, *at)).collect::<Option<_>>()?;
    let command = tried(case, case.who, &changes)?;
    let mut alternatives = groups(case, &lacking);
    alternatives.extend(masks(case, &lacking).filter(|other| other.command != command));
    Some(Grant { command, alternatives })
}

/// The command that gives an account bits of a directory, whatever it has of it already.
pub(super) fn for_user(names: Names, level: &Level, uid: u32, bits: u8) -> String {
    let set = Set::for_user(&permissions(level), uid, bits);
    set.command(names, level)
}

/// The levels that refuse something which is wanted of them.
fn lacking(case: &Case<'_>) -> Vec<usize> {
    let way = super::way(case.way);
    let refused = wanted(&way, case.action)
        .filter(|(at, bits)| !case.policy.allows(case.who, &way.levels[*at], *bits));
    let mut levels: Vec<usize> = refused.map(|(at, _)| at).collect();
    levels.dedup();
    levels
}

/// What is to be set at one level.
struct Change {
    at: usize,
    set: Set,
}

/// What chmod(1) or setfacl(1) is to set of a directory.
enum Set {
    /// `chmod u+`
    Owner(u8),
    /// `chmod o+`
    Other(u8),
    /// `setfacl -m`; without a mask among the entries, setfacl makes it what all of them need.
    Acl(Vec<Entry>),
}

fn change(case: &Case<'_>, at: usize) -> Option<Change> {
    let found = permissions(&case.way.levels[at]);
    let needed = case.needed(at);
    let bits = if needed & WRITE != 0 { READ | WRITE | SEARCH } else { needed };
    let set = match case.who.account() {
        None => Set::Other(bits),
        Some(user) => {
            let has = [READ, WRITE, SEARCH].into_iter();
            let has = has.filter(|bit| case.policy.allows(case.who, &found, *bit));
            Set::for_user(&found, user.uid, has.fold(bits, |all, bit| all | bit))
        }
    };
    Some(Change { at, set })
}

impl Set {
    fn for_user(found: &Permissions, uid: u32, bits: u8) -> Set {
        if uid == found.owner {
            return Set::Owner(bits);
        }
        let own = Entry { whom: Whom::User(uid), bits };
        let kept = narrowed(found, own);
        let has =
            found.acl.iter().flatten().any(|entry| {
                entry.whom == own.whom && bits & !entry.bits == 0 && !acl_is_off(found)
            });
        // Where the entry is there already, only the mask is in its way.
        if has && kept.is_empty() {
            return Set::Acl(vec![Entry { whom: Whom::Mask, bits: mask(found) | bits }]);
        }
        Set::Acl([vec![own], kept].concat())
    }

    /// What the directory has afterwards.
    fn apply(&self, found: &mut Permissions) {
        let class = |found: &mut Permissions, whom, shift: u8, bits: u8| {
            found.mode |= u16::from(bits) << shift;
            let entry = found.acl.iter_mut().flatten().find(|entry| entry.whom == whom);
            if let Some(entry) = entry {
                entry.bits |= bits;
            }
        };
        match self {
            Set::Owner(bits) => class(found, Whom::Owner, 6, *bits),
            Set::Other(bits) => class(found, Whom::Other, 0, *bits),
            Set::Acl(entries) => set_acl(found, entries),
        }
    }

    fn command(&self, names: Names, level: &Level) -> String {
        let path = shell::quote(&level.path);
        let short = |bits| letters(bits).replace('-', "");
        match self {
            Set::Owner(bits) => format!("chmod u+{} {path}", short(*bits)),
            Set::Other(bits) => format!("chmod o+{} {path}", short(*bits)),
            Set::Acl(entries) => {
                let entries: Vec<_> = entries.iter().map(|entry| spell(names, entry)).collect();
                format!("setfacl -m {} {path}", entries.join(","))
            }
        }
    }
}

/// `u:anna:rwx`, as setfacl(1) takes it.
fn spell(names: Names, entry: &Entry) -> String {
    let bits = letters(entry.bits);
    match entry.whom {
        Whom::Owner => format!("u::{bits}"),
        Whom::User(uid) => format!("u:{}:{bits}", shell::name(names.user(uid), uid)),
        Whom::OwningGroup => format!("g::{bits}"),
        Whom::Group(gid) => format!("g:{}:{bits}", shell::name(names.group(gid), gid)),
        Whom::Mask => format!("m::{bits}"),
        Whom::Other => format!("o::{bits}"),
    }
}

/// Those entries, without what the mask takes from them now, that would get more by the mask that
/// setfacl(1) makes for a new entry.
fn narrowed(found: &Permissions, own: Entry) -> Vec<Entry> {
    let now = mask(found);
    let others = entries(found).into_iter().filter(|entry| is_masked(entry.whom));
    let others: Vec<Entry> = others.filter(|entry| entry.whom != own.whom).collect();
    let then = others.iter().fold(own.bits, |all, entry| all | entry.bits);
    let wider = others.into_iter().filter(|entry| entry.bits & then & !now != 0);
    wider.map(|entry| Entry { bits: entry.bits & now, ..entry }).collect()
}

fn is_masked(whom: Whom) -> bool {
    matches!(whom, Whom::User(_) | Whom::OwningGroup | Whom::Group(_))
}

/// The entries of the ACL, or those that the mode stands for.
fn entries(found: &Permissions) -> Vec<Entry> {
    let of_mode = || {
        [(Whom::Owner, 6), (Whom::OwningGroup, 3), (Whom::Other, 0)]
            .map(|(whom, shift)| Entry { whom, bits: low(found.mode >> shift) })
            .to_vec()
    };
    found.acl.clone().unwrap_or_else(of_mode)
}

/// As setfacl(1) does it.
fn set_acl(found: &mut Permissions, set: &[Entry]) {
    let replaced = |entry: &Entry| set.iter().any(|new| new.whom == entry.whom);
    let mut all: Vec<Entry> = entries(found);
    all.retain(|entry| !replaced(entry));
    all.extend_from_slice(set);
    if !set.iter().any(|entry| entry.whom == Whom::Mask) {
        all.retain(|entry| entry.whom != Whom::Mask);
        let masked = all.iter().filter(|entry| is_masked(entry.whom));
        let bits = masked.fold(0, |all, entry| all | entry.bits);
        all.push(Entry { whom: Whom::Mask, bits });
    }
    all.sort_by_key(|entry| match entry.whom {
        Whom::Owner => (0, 0),
        Whom::User(uid) => (1, uid),
        Whom::OwningGroup => (2, 0),
        Whom::Group(gid) => (3, gid),
        Whom::Mask => (4, 0),
        Whom::Other => (5, 0),
    });
    found.acl = Some(all);
    found.mode = found.mode & !0o070 | u16::from(mask(found)) << 3;
}

/// The command line of some changes, if they would do for `who`.
fn tried(case: &Case<'_>, who: &Who, changes: &[Change]) -> Option<String> {
    let mut way = super::way(case.way);
    let mut commands = Vec::new();
    for Change { at, set } in changes {
        set.apply(&mut way.levels[*at]);
        commands.push(set.command(case.names, &case.way.levels[*at]));
    }
    let would_do = judge(case.policy, who, &way, case.action).right != Right::No;
    would_do.then(|| commands.join(" && "))
}

/// Groups that have what is wanted already.
fn groups(case: &Case<'_>, lacking: &[usize]) -> Vec<Alternative> {
    let Who::User(user) = case.who else { return Vec::new() };
    let levels = lacking.iter().map(|at| permissions(&case.way.levels[*at]));
    let mut groups: Vec<u32> = levels.flat_map(|found| groups_of(&found)).collect();
    groups.sort_unstable();
    groups.dedup();
    // Whoever is in root's group gets more than a registry.
    groups.retain(|gid| *gid != 0 && !user.groups.contains(gid));
    let would_do = |gid: &u32| {
        let mut member = User::clone(user);
        member.groups.push(*gid);
        tried(case, &Who::User(Arc::new(member)), &[]).is_some()
    };
    let named = groups.into_iter().filter(would_do).filter_map(|gid| {
        let group = shell::name(case.names.group(gid), gid);
        let name = shell::name(user.name.clone(), user.uid);
        let both_named = group != gid.to_string() && name != user.uid.to_string();
        both_named.then(|| Alternative {
            command: format!("usermod -aG {group} {name}"),
            effect: format!("{name} gets whatever else group {group} has"),
        })
    });
    named.collect()
}

fn groups_of(found: &Permissions) -> Vec<u32> {
    let named = found.acl.iter().flatten().filter_map(|entry| match entry.whom {
        Whom::Group(gid) => Some(gid),
        _ => None,
    });
    named.chain([found.group]).collect()
}

/// Where nothing but masks is in the way: wider ones.
fn masks(case: &Case<'_>, lacking: &[usize]) -> impl Iterator<Item = Alternative> {
    let wider = |at: &usize| {
        let found = permissions(&case.way.levels[*at]);
        let bits = mask(&found) | case.needed(*at);
        let has_mask = found.acl.iter().flatten().any(|entry| entry.whom == Whom::Mask);
        let set = Set::Acl(vec![Entry { whom: Whom::Mask, bits }]);
        has_mask.then_some(Change { at: *at, set })
    };
    let changes: Option<Vec<Change>> = lacking.iter().map(wider).collect();
    let command = changes.and_then(|changes| tried(case, case.who, &changes));
    let effect = "whoever else has an entry in the ACL gets what it says".to_owned();
    command.map(|command| Alternative { command, effect }).into_iter()
}
