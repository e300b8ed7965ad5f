//! A decision in words: for the log, and for whoever asks why.

use std::path::PathBuf;

use rustix::io::Errno;

use super::{grant, permissions, shell};
use crate::auth::{
    self, Action, By, Entry, Judgement, Names, Permissions, Policy, READ, Reason, Ruling, SEARCH,
    WRITE, Who, Whom,
};
use crate::layout::rights::{Level, Way};
use crate::oci::RepoName;

/// What was asked of whom, with all that the decision rests on.
#[derive(Clone, Copy, Debug)]
pub struct Case<'a> {
    /// How users and groups are called.
    pub names: Names,
    /// What holds for every repository.
    pub policy: &'a Policy,
    /// Who wants to.
    pub who: &'a Who,
    /// What they are called, where they stand for many.
    pub called: Option<&'a str>,
    /// With which repository.
    pub repo: &'a RepoName,
    /// What lies on the way to it.
    pub way: &'a Way,
    /// What they want to do.
    pub action: Action,
    /// The server's own account.
    pub server: u32,
}

/// Why somebody may or may not, in one line of printable characters: which directory says so, what
/// it says to whom, and what was wanted of it.
pub fn why(case: &Case<'_>, judgement: &Judgement) -> String {
    let text = match judgement.reason {
        Reason::Administrator => administrator(case),
        Reason::NoAnonymous => {
            "nothing is allowed without a login here (--anonymous none)".to_owned()
        }
        Reason::NotAdministrator => "with --auth basic only administrators write".to_owned(),
        Reason::AnonymousWrite => format!("{} takes a login", doing(case)),
        Reason::Level { at, ruling, .. } => level(case, at, ruling),
        Reason::Absent if case.way.whole => {
            format!("{} holds no repository", case.path().display())
        }
        Reason::Absent => format!("there is no {}", case.path().display()),
        Reason::ReadOnly => {
            let path = last(case.way).path.display();
            format!("{path} is read-only: its mount or its file system takes no writes")
        }
        Reason::Stopped => stopped(case),
    };
    plain(&text)
}

impl Case<'_> {
    /// Where the repository's directory is or would be.
    pub(super) fn path(&self) -> PathBuf {
        self.way.levels[0].path.join(self.repo.as_str())
    }

    /// What a level has to give, over all questions that are asked of it.
    pub(super) fn needed(&self, at: usize) -> u8 {
        let way = super::way(self.way);
        let of_level = auth::wanted(&way, self.action).filter(|(level, _)| *level == at);
        of_level.fold(0, |all, (_, bits)| all | bits)
    }
}

fn last(way: &Way) -> &Level {
    &way.levels[way.levels.len() - 1]
}

/// `anna (uid 1001)`
fn person(case: &Case<'_>) -> String {
    match (case.called, case.who.account()) {
        (Some(called), _) => called.to_owned(),
        (None, Some(user)) => format!("{} (uid {})", user.name, user.uid),
        (None, None) => "anonymous".to_owned(),
    }
}

fn doing(case: &Case<'_>) -> String {
    match case.action {
        Action::Pull => "pulling".to_owned(),
        Action::Push if !case.way.whole => format!("creating {}", case.repo),
        Action::Push => "pushing".to_owned(),
        Action::Delete => "deleting".to_owned(),
    }
}

fn administrator(case: &Case<'_>) -> String {
    let who = person(case);
    match (case.who.account(), case.policy.admins) {
        (Some(user), Some(gid)) if user.uid != 0 => {
            format!(
                "{who} is in the admin group {}, which may do everything",
                case.names.group(gid)
            )
        }
        _ => format!("{who} may do everything"),
    }
}

/// `anna (uid 1001) gets r-x of /srv/reg/app (root:team 2775) as other; pushing takes wx`
fn level(case: &Case<'_>, at: usize, ruling: Ruling) -> String {
    let level = &case.way.levels[at];
    let found = permissions(level);
    let needed = case.needed(at);
    let (bits, how) = deciding(case, &found, ruling, needed);
    // Two groups may give reading and searching, each by a call of its own.
    let bits = if ruling.allowed { bits | needed } else { bits };
    let (who, what) = (person(case), directory(case.names, level));
    let takes = letters(needed).replace('-', "");
    format!("{who} gets {} of {what} {how}; {} takes {takes}", letters(bits), doing(case))
}

/// What the class or entry that decided gives, and its name.
fn deciding(case: &Case<'_>, found: &Permissions, ruling: Ruling, needed: u8) -> (u8, String) {
    let names = case.names;
    let class = |shift: u8| low(found.mode >> shift);
    let off = if acl_is_off(found) { " (its mask is empty: its ACL is off)" } else { "" };
    let group = || format!("as a member of its group {}{off}", names.group(found.group));
    let with_mask = |entry: &Entry| entry.bits & mask(found);
    let by = |entry: &Entry| {
        let (mask, entry_text) = (mask(found), spell(names, entry));
        match entry.bits & !mask {
            0 => format!("by the entry {entry_text}"),
            _ => format!("by the entry {entry_text} under the mask {}", letters(mask)),
        }
    };
    let named = |whom| found.acl.iter().flatten().find(|entry| entry.whom == whom);
    let by_entry = |whom| {
        let entry = named(whom).copied().unwrap_or(Entry { whom, bits: 0 });
        (with_mask(&entry), by(&entry))
    };
    match ruling.by {
        By::Owner => (class(6), "as its owner".to_owned()),
        By::Other => (low(found.mode), format!("as other{off}")),
        By::User(uid) => by_entry(Whom::User(uid)),
        By::Group(gid) => by_entry(Whom::Group(gid)),
        By::OwningGroup => match named(Whom::OwningGroup) {
            Some(entry) if off.is_empty() => (with_mask(entry), group()),
            _ => (class(3), group()),
        },
        By::Mask => match masked(case, found, needed) {
            Some(entry) => (with_mask(&entry), by(&entry)),
            None => (0, "under its mask".to_owned()),
        },
        By::Malformed => (0, "because its ACL is malformed".to_owned()),
    }
}

/// The entry that would give what was wanted, were it not for the mask.
fn masked(case: &Case<'_>, found: &Permissions, needed: u8) -> Option<Entry> {
    let who = case.who.credentials();
    let fits = |whom: Whom| match whom {
        Whom::User(uid) => who.uid == Some(uid),
        Whom::OwningGroup => who.groups.contains(&found.group),
        Whom::Group(gid) => who.groups.contains(&gid),
        Whom::Owner | Whom::Mask | Whom::Other => false,
    };
    let of_user = |entry: &&Entry| matches!(entry.whom, Whom::User(_));
    let mut fitting = found.acl.iter().flatten().filter(|entry| fits(entry.whom));
    let user = fitting.clone().find(of_user);
    user.or_else(|| fitting.find(|entry| needed & !entry.bits & !mask(found) == 0)).copied()
}

/// Whether an ACL is not looked at, because the mode shows no bit of its mask (fs/posix_acl.c).
pub(super) fn acl_is_off(found: &Permissions) -> bool {
    found.acl.is_some() && found.mode & 0o070 == 0
}

/// The most that an ACL's named entries and owning group give.
pub(super) fn mask(found: &Permissions) -> u8 {
    let mask = found.acl.iter().flatten().find(|entry| entry.whom == Whom::Mask);
    mask.map_or(READ | WRITE | SEARCH, |entry| entry.bits)
}

/// The server's own account may not look further; or what comes next is no directory.
fn stopped(case: &Case<'_>) -> String {
    match &case.way.stopped {
        Some(error) if matches!(error.errno(), Some(Errno::ACCESS | Errno::PERM)) => {
            let level = last(case.way);
            let mend = grant::for_user(case.names, level, case.server, READ | WRITE | SEARCH);
            format!(
                "the server's own account ({}) may not search {}: {mend}",
                case.names.user(case.server),
                directory(case.names, level)
            )
        }
        Some(error) => error.to_string(),
        None => format!("{} is as far as the server can look", last(case.way).path.display()),
    }
}

/// `/srv/reg/team (root:team 2775)`, with a `+` where there is an ACL, as `ls -l` has it.
pub(super) fn directory(names: Names, level: &Level) -> String {
    format!("{} ({} {})", level.path.display(), ownership(names, level), mode(level))
}

/// `root:team`
pub(super) fn ownership(names: Names, level: &Level) -> String {
    format!("{}:{}", names.user(level.uid), names.group(level.gid))
}

/// `2775+`
pub(super) fn mode(level: &Level) -> String {
    let acl = if level.acl.is_some() { "+" } else { "" };
    format!("{:03o}{acl}", level.mode)
}

/// `user:anna:r-x`, as getfacl(1) has it.
pub(super) fn spell(names: Names, entry: &Entry) -> String {
    let whom = match entry.whom {
        Whom::Owner => "user:".to_owned(),
        Whom::User(uid) => format!("user:{}", names.user(uid)),
        Whom::OwningGroup => "group:".to_owned(),
        Whom::Group(gid) => format!("group:{}", names.group(gid)),
        Whom::Mask => "mask:".to_owned(),
        Whom::Other => "other:".to_owned(),
    };
    format!("{whom}:{}", letters(entry.bits))
}

/// `r-x`
pub(super) fn letters(bits: u8) -> String {
    let letter = |bit, letter| if bits & bit != 0 { letter } else { '-' };
    [letter(READ, 'r'), letter(WRITE, 'w'), letter(SEARCH, 'x')].into_iter().collect()
}

pub(super) fn low(bits: u16) -> u8 {
    (bits & 0o7) as u8
}

/// Whatever could begin a line or hide one is written as an escape: names of directories are made
/// by people with a shell, those of users by whoever runs the name service.
pub(super) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            c if shell::unprintable(c) => plain.extend(c.escape_unicode()),
            c => plain.push(c),
        }
    }
    plain
}

#[cfg(test)]
#[path = "words_tests.rs"]
mod tests;
