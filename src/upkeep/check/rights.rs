//! The rules about permissions inside a repository.

use std::collections::BTreeMap;
use std::path::Path;

use rustix::fs::{FileType, Stat};

use super::finding::Findings;
use super::probe;
use super::rule::Rule;
use crate::layout::acl::{self, Acl, AclEntry, AclTag};
use crate::layout::{At as _, Dir, path, views};
use crate::oci::Algorithm;

/// Checks the directories, the lock and the journal of a repository.
pub(super) fn check(repo: &Dir, findings: &mut Findings) {
    let stat = match repo.stat() {
        Ok(stat) => stat,
        Err(error) => return probe::unreadable(&error, findings),
    };
    inner(repo, &stat, findings);
    lock(repo, &stat, findings);
    journal(repo, &stat, findings);
}

fn inner(repo: &Dir, outer: &Stat, findings: &mut Findings) {
    let everybody = (outer.st_mode & 0o7) as u8;
    let given = Holders::of(repo, outer, repo.path(), findings);
    let narrow = |dir: &Dir, name: &str, findings: &mut Findings| {
        // Other types, and what cannot be opened, are reported where the directory is read.
        let Some(inner) = probe::look(dir.dir(name), findings) else { return };
        let Some(stat) = probe::look(inner.stat(), findings) else { return };
        let at = inner.path();
        if stat.st_mode & !outer.st_mode & 0o007 != 0 {
            let (inner, outer) = (stat.st_mode & 0o777, outer.st_mode & 0o777);
            let message = format!("has mode {inner:o}, wider than the repository's {outer:o}");
            return findings.add(Rule::InnerWider, at, message);
        }
        let has = Holders::of(&inner, &stat, at, findings);
        if let Some((who, bits)) = has.beyond(&given, everybody) {
            let bits = letters(bits);
            let message = format!("gives {who} {bits}, which the repository's directory does not");
            findings.add(Rule::InnerWider, at, message);
        }
    };
    narrow(repo, path::BLOBS, findings);
    narrow(repo, path::REFERRERS, findings);
    for dir in views::dirs() {
        narrow(repo, &dir, findings);
    }
    if let Some(blobs) = probe::look(repo.dir(path::BLOBS), findings) {
        for algorithm in Algorithm::ALL {
            narrow(&blobs, algorithm.as_str(), findings);
        }
    }
}

/// Bits as `ls -l` shows them.
fn letters(bits: u8) -> String {
    let letter = |bit, letter| if bits & bit == 0 { '-' } else { letter };
    [letter(4, 'r'), letter(2, 'w'), letter(1, 'x')].into_iter().collect()
}

fn lock(repo: &Dir, outer: &Stat, findings: &mut Findings) {
    let Some(stat) = probe::status(repo, path::LOCK, FileType::RegularFile, findings).there()
    else {
        return;
    };
    let at = repo.at(path::LOCK);
    if stat.st_mode & 0o007 != 0 {
        let message =
            format!("has mode {:o}: everybody can hold it for ever", stat.st_mode & 0o777);
        return findings.add(Rule::LockOpen, &at, message);
    }
    let may_write = Holders::of(repo, outer, repo.path(), findings);
    // A lock that this account cannot open is closed at any rate; its mode has the last word then.
    let may_open = match &probe::look(repo.file(path::LOCK), findings) {
        Some(file) => Holders::of(file, &stat, &at, findings),
        None => Holders::of_mode(&stat),
    };
    let writers: Vec<_> = may_write.with(0o2).collect();
    if let Some(who) = may_open.with(0o6).find(|who| !writers.contains(who)) {
        let message = format!("{who} can open it, and may not write to the repository");
        findings.add(Rule::LockOpen, &at, message);
    }
}

fn journal(repo: &Dir, outer: &Stat, findings: &mut Findings) {
    let found = probe::status(repo, path::JOURNAL, FileType::RegularFile, findings);
    let Some(stat) = found.there() else { return };
    let open = stat.st_mode & 0o007 != 0;
    let written = stat.st_mode & 0o020 != 0 && outer.st_mode & 0o020 == 0;
    if open || written {
        let message = format!("has mode {:o}, wider than 640", stat.st_mode & 0o777);
        findings.add(Rule::JournalOpen, &repo.at(path::JOURNAL), message);
    }
}

/// Somebody besides owner and others whom a mode or an ACL gives permissions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    User(u32),
    Group(u32),
}

impl std::fmt::Display for Who {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Who::User(id) => write!(f, "user {id}"),
            Who::Group(id) => write!(f, "group {id}"),
        }
    }
}

/// Who, besides the owner and everybody, has which permissions.
struct Holders(BTreeMap<Who, u8>);

impl Holders {
    fn of(
        file: impl std::os::fd::AsFd,
        stat: &Stat,
        at: &Path,
        findings: &mut Findings,
    ) -> Holders {
        let read = acl::read(file, acl::ACCESS).at(|| at.to_owned());
        match probe::look(read, findings).flatten().as_deref().and_then(Acl::parse) {
            Some(acl) => Holders::of_acl(acl, stat.st_gid),
            None => Holders::of_mode(stat),
        }
    }

    fn of_mode(stat: &Stat) -> Holders {
        Holders(BTreeMap::from([(Who::Group(stat.st_gid), (stat.st_mode >> 3 & 0o7) as u8)]))
    }

    /// The mask limits all that are held here.
    fn of_acl(acl: Acl, group: u32) -> Holders {
        let mask = acl.entries.iter().find(|entry| entry.tag == AclTag::Mask);
        let mask = mask.map_or(0o7, |mask| mask.bits);
        let mut holders = Holders(BTreeMap::new());
        for AclEntry { tag, bits } in acl.entries {
            let who = match tag {
                AclTag::User(uid) => Who::User(uid),
                AclTag::OwningGroup => Who::Group(group),
                AclTag::Group(gid) => Who::Group(gid),
                AclTag::Owner | AclTag::Mask | AclTag::Other => continue,
            };
            *holders.0.entry(who).or_default() |= bits & mask;
        }
        holders
    }

    /// The first who has what neither they nor everybody has there.
    fn beyond(&self, there: &Holders, everybody: u8) -> Option<(Who, u8)> {
        let given = |who| there.0.get(who).copied().unwrap_or(0) | everybody;
        let mut more = self.0.iter().map(|(who, has)| (*who, has & !given(who)));
        more.find(|(_, bits)| *bits != 0)
    }

    /// Those who have one of `bits`.
    fn with(&self, bits: u8) -> impl Iterator<Item = Who> {
        self.0.iter().filter(move |(_, has)| *has & bits != 0).map(|(who, _)| *who)
    }
}

/// Whether a file has an ACL beyond its mode.
pub(super) fn has_acl(file: impl std::os::fd::AsFd, at: &Path, findings: &mut Findings) -> bool {
    let read = acl::read(file, acl::ACCESS).at(|| at.to_owned());
    probe::look(read, findings).flatten().is_some()
}
