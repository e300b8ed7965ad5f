//! Files that not all may read who may read their repository, and files that are also others.

use std::fs::File;
use std::path::Path;

use rustix::fs::{FileType, Stat};

use super::finding::Findings;
use super::probe;
use super::rule::Rule;
use crate::layout::acl::AclTag;
use crate::layout::readers::Readers;
use crate::layout::rights::Level;
use crate::layout::{Dir, account, path};

/// Checks index.json and `oci-layout`, and that what is written in place is no other file.
pub(super) fn check(repo: &Dir, findings: &mut Findings) {
    if let Some(level) = probe::look(Level::of(repo), findings) {
        for name in [path::INDEX, path::OCI_LAYOUT] {
            // What cannot be opened is reported where it is read.
            if let Some((file, stat)) = probe::look(repo.file_stat(name), findings) {
                readers(&level, &file, &stat, &repo.at(name), findings);
            }
        }
    }
    for name in [path::INDEX, path::LOCK, path::JOURNAL] {
        alone(repo, name, findings);
    }
    if let Some(referrers) = probe::look(repo.dir(path::REFERRERS), findings) {
        alone(&referrers, path::FACTS, findings);
    }
}

fn alone(dir: &Dir, name: &str, findings: &mut Findings) {
    let Some(stat) = probe::look(dir.stat_name(name), findings).flatten() else { return };
    if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_nlink > 1 {
        let message = format!("is one of {} names of its file", stat.st_nlink);
        findings.add(Rule::FileLinked, &dir.at(name), message);
    }
}

/// Checks that a file lets everybody read whom the repository's directory lets.
pub(super) fn readers(
    repo: &Level,
    file: &File,
    stat: &Stat,
    path: &Path,
    findings: &mut Findings,
) {
    let looked = probe::look(Readers::of(file, stat, path), findings);
    let Some(Readers::Of(level)) = looked else { return };
    if let Some(who) = named(repo).into_iter().find(|who| reads(repo, *who) && !reads(&level, *who))
    {
        let message = format!(
            "{} may read the repository, and not this file: uid {}, gid {}, mode {:o}",
            word(who),
            level.uid,
            level.gid,
            level.mode & 0o777
        );
        findings.add(Rule::FileClosed, path, message);
    }
}

/// Whom a directory's rights speak of, besides its owner.
fn named(level: &Level) -> Vec<AclTag> {
    let mut named = vec![AclTag::Group(level.gid)];
    let entries = level.acl.iter().flat_map(|acl| &acl.entries).map(|entry| entry.tag);
    named.extend(entries.filter(|tag| matches!(tag, AclTag::User(_) | AclTag::Group(_))));
    named.push(AclTag::Other);
    named
}

/// Whether somebody of whom nothing else is known may read (acl(5), "Access check algorithm").
fn reads(level: &Level, who: AclTag) -> bool {
    let reads = |bits: u16| bits & u16::from(account::READ) != 0;
    if who == AclTag::User(level.uid) {
        return reads(level.mode >> 6);
    }
    let entries = level.acl.as_ref().map(|acl| &acl.entries[..]).unwrap_or_default();
    let found = |wanted| entries.iter().find(|entry| entry.tag == wanted);
    // With an ACL the group's bits of the mode are the mask.
    let of = |tag, bits: u16| found(tag).map_or(bits, |entry| bits & u16::from(entry.bits));
    let mask = level.mode >> 3;
    let own = (who == AclTag::Group(level.gid)).then(|| of(AclTag::OwningGroup, mask));
    let other = found(who).filter(|_| who != AclTag::Other);
    let other = other.map(|entry| mask & u16::from(entry.bits));
    match (own, other) {
        (None, None) => reads(level.mode),
        (own, other) => own.is_some_and(reads) || other.is_some_and(reads),
    }
}

fn word(who: AclTag) -> String {
    match who {
        AclTag::User(id) => format!("user {id}"),
        AclTag::Group(id) => format!("group {id}"),
        _ => "everybody".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Inode;
    use crate::layout::acl::{Acl, AclEntry};

    fn level(uid: u32, gid: u32, mode: u16, more: &[(AclTag, u8)]) -> Level {
        let entry = |(tag, bits): &(AclTag, u8)| AclEntry { tag: *tag, bits: *bits };
        let acl = (!more.is_empty()).then(|| Acl { entries: more.iter().map(entry).collect() });
        let inode = Inode { dev: 0, ino: 0 };
        Level { path: Path::new("").to_owned(), inode, uid, gid, mode, acl }
    }

    #[test]
    fn who_reads_the_directory_reads_the_file_or_not() {
        let team = [(AclTag::OwningGroup, 5), (AclTag::User(7), 5), (AclTag::Mask, 5)];
        let shut_out = |repo: &Level, file: &Level| {
            named(repo).into_iter().find(|who| reads(repo, *who) && !reads(file, *who))
        };
        let public = level(0, 0, 0o755, &[]);
        let private = level(0, 50, 0o750, &[]);
        let shared = level(0, 50, 0o750, &team);
        for (repo, file, who) in [
            (&public, level(9, 0, 0o600, &[]), Some(AclTag::Group(0))),
            (&public, level(9, 9, 0o640, &[]), Some(AclTag::Group(0))),
            (&public, level(9, 0, 0o640, &[]), Some(AclTag::Other)),
            (&public, level(9, 9, 0o604, &[]), None),
            (&private, level(9, 50, 0o640, &[]), None),
            (&private, level(9, 9, 0o640, &[]), Some(AclTag::Group(50))),
            (&private, level(9, 50, 0o604, &[]), Some(AclTag::Group(50))),
            (&shared, level(9, 50, 0o640, &[]), Some(AclTag::User(7))),
            (&shared, level(7, 50, 0o640, &[]), None),
            (&shared, level(9, 50, 0o640, &team), None),
            (&shared, level(9, 50, 0o600, &team), Some(AclTag::Group(50))),
            (&private, level(9, 9, 0o640, &[(AclTag::Group(50), 4)]), None),
        ] {
            assert_eq!(shut_out(repo, &file), who, "{file:?} in {repo:?}");
        }
    }
}
