//! The rules about permissions inside a repository.

use std::collections::BTreeMap;
use std::fs::File;

use rustix::fs::{FileType, Stat};

use super::finding::Findings;
use super::probe;
use super::rule::Rule;
use crate::layout::{Dir, inherit, path};
use crate::oci::Algorithm;

/// Checks the directories, the lock and the journal of a repository.
pub(super) fn check(repo: &Dir, findings: &mut Findings) {
    let stat = match repo.stat() {
        Ok(stat) => stat,
        Err(error) => return probe::unreadable(&error, findings),
    };
    inner(repo, &stat, findings);
    lock(repo, findings);
    journal(repo, &stat, findings);
}

fn inner(repo: &Dir, outer: &Stat, findings: &mut Findings) {
    let narrow = |dir: &Dir, name: &str, findings: &mut Findings| {
        // Other types are reported where the directory is read.
        let Ok(Some(stat)) = dir.stat_name(name) else {
            return;
        };
        let wider = stat.st_mode & !outer.st_mode & 0o077;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory && wider != 0 {
            let (inner, outer) = (stat.st_mode & 0o777, outer.st_mode & 0o777);
            let message = format!("has mode {inner:o}, wider than the repository's {outer:o}");
            findings.add(Rule::InnerWider, &dir.at(name), message);
        }
    };
    narrow(repo, path::BLOBS, findings);
    narrow(repo, path::REFERRERS, findings);
    if let Ok(blobs) = repo.dir(path::BLOBS) {
        for algorithm in Algorithm::ALL {
            narrow(&blobs, algorithm.as_str(), findings);
        }
    }
}

fn lock(repo: &Dir, findings: &mut Findings) {
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
    let may_write = Holders::of(repo, repo.stat().map_or(0, |stat| stat.st_mode));
    // A lock that this account cannot open is closed at any rate; its mode has the last word then.
    let acl = repo.file(path::LOCK).ok();
    let may_open = match &acl {
        Some(file) => Holders::of(file, stat.st_mode),
        None => Holders::of_mode(stat.st_mode),
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
    Group,
    NamedUser(u32),
    NamedGroup(u32),
}

impl std::fmt::Display for Who {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Who::Group => f.write_str("its group"),
            Who::NamedUser(id) => write!(f, "user {id}"),
            Who::NamedGroup(id) => write!(f, "group {id}"),
        }
    }
}

/// Who has which permissions.
struct Holders(BTreeMap<Who, u16>);

impl Holders {
    fn of(file: impl std::os::fd::AsFd, mode: u32) -> Holders {
        match inherit::read_acl(file) {
            Ok(Some(acl)) => Holders::of_acl(&acl),
            _ => Holders::of_mode(mode),
        }
    }

    fn of_mode(mode: u32) -> Holders {
        let bits = u16::try_from(mode >> 3 & 0o7).unwrap_or(0);
        Holders(BTreeMap::from([(Who::Group, bits)]))
    }

    /// acl(5), include/uapi/linux/posix_acl_xattr.h; the mask limits all that are held here.
    fn of_acl(acl: &[u8]) -> Holders {
        let mut holders = BTreeMap::new();
        let mut mask = 0o7;
        for entry in acl.get(4..).unwrap_or_default().chunks_exact(8) {
            let bits = u16::from_le_bytes([entry[2], entry[3]]);
            let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
            match u16::from_le_bytes([entry[0], entry[1]]) {
                0x02 => holders.insert(Who::NamedUser(id), bits),
                0x04 => holders.insert(Who::Group, bits),
                0x08 => holders.insert(Who::NamedGroup(id), bits),
                0x10 => {
                    mask = bits;
                    None
                }
                _ => None,
            };
        }
        holders.values_mut().for_each(|bits| *bits &= mask);
        Holders(holders)
    }

    /// Those who have one of `bits`.
    fn with(&self, bits: u16) -> impl Iterator<Item = Who> {
        self.0.iter().filter(move |(_, has)| *has & bits != 0).map(|(who, _)| *who)
    }
}

/// Whether a file has an ACL beyond its mode.
pub(super) fn has_acl(file: &File) -> bool {
    matches!(inherit::read_acl(file), Ok(Some(_)))
}
