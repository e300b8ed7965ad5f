//! The content of one repository: names and digests.

use std::collections::HashSet;

use rustix::fs::{FileType, Stat};

use super::finding::Findings;
use super::probe::{self, Seen};
use super::rule::Rule;
use super::{Run, closed};
use crate::layout::rights::Level;
use crate::layout::{Dir, Inode, path};
use crate::oci::{Algorithm, Digest};

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Blobs {
    /// Names whose content is wrong, or could not be read: nothing is concluded from it.
    pub(super) bad: HashSet<Digest>,
    /// How many there are.
    pub(super) count: u64,
}

/// Checks every name in `blobs/`.
pub(super) fn check(run: &mut Run<'_>, repo: &Dir, findings: &mut Findings) -> Blobs {
    let mut blobs = Blobs::default();
    let Some(dir) = probe::dir(repo, path::BLOBS, findings).there() else {
        return blobs;
    };
    let mut shared = HashSet::new();
    let level = Level::of(repo).ok();
    for algorithm in Algorithm::ALL {
        if let Some(dir) = probe::dir(&dir, algorithm.as_str(), findings).there() {
            let place = Place { dir: &dir, algorithm, repo: level.as_ref() };
            of_algorithm(run, place, &mut blobs, &mut shared, findings);
        }
    }
    for (name, kind) in probe::names(&dir, findings) {
        let known = Algorithm::ALL.iter().any(|algorithm| algorithm.as_str() == name);
        if kind == FileType::Directory && !known && !probe::is_hidden(&name) {
            let message = "is no algorithm that is served: sha256 and sha512 are";
            findings.add(Rule::AlgorithmUnknown, &dir.at(&name), message);
        }
    }
    blobs
}

/// Where blobs of one algorithm lie, and whom the repository lets read.
#[derive(Clone, Copy)]
struct Place<'a> {
    dir: &'a Dir,
    algorithm: Algorithm,
    repo: Option<&'a Level>,
}

fn of_algorithm(
    run: &mut Run<'_>,
    place: Place<'_>,
    blobs: &mut Blobs,
    shared: &mut HashSet<Inode>,
    findings: &mut Findings,
) {
    let Place { dir, algorithm, .. } = place;
    for (name, _) in probe::names(dir, findings) {
        if probe::is_hidden(&name) {
            continue;
        }
        let Ok(digest) = Digest::parse(&format!("{algorithm}:{name}")) else {
            let message = format!("is not the digits of a {algorithm} digest");
            findings.add(Rule::BlobNameMalformed, &dir.at(&name), message);
            continue;
        };
        blobs.count += 1;
        match content(run, place, &digest, findings) {
            Seen::There(stat) => two_algorithms(dir, &digest, &stat, shared, findings),
            Seen::Bad => {
                blobs.bad.insert(digest);
            }
            // Gone since the names were read.
            Seen::Absent => blobs.count -= 1,
        }
    }
}

/// Hashes one blob. A file that changes meanwhile is read again: it may be just being copied.
fn content(
    run: &mut Run<'_>,
    place: Place<'_>,
    digest: &Digest,
    findings: &mut Findings,
) -> Seen<Stat> {
    let dir = place.dir;
    for attempt in 1.. {
        let (file, stat) = match probe::file(dir, digest.hex(), findings) {
            Seen::There(found) => found,
            Seen::Absent => return Seen::Absent,
            Seen::Bad => return Seen::Bad,
        };
        let before = run.hashes.bytes;
        let agrees = run.hashes.agrees(&file, &stat, digest);
        run.summary.bytes_hashed += run.hashes.bytes - before;
        match agrees {
            Ok(true) => {
                if let Some(repo) = place.repo {
                    closed::readers(repo, &file, &stat, &dir.at(digest.hex()), findings);
                }
                return Seen::There(stat);
            }
            Ok(false) if attempt < 3 && moved(dir, digest, &stat) => {}
            Ok(false) => {
                let message = format!("its content does not have the digest {digest}");
                findings.add(Rule::BlobDigestMismatch, &dir.at(digest.hex()), message);
                return Seen::Bad;
            }
            Err(error) => {
                let message = format!("cannot be read: {error}");
                findings.add(Rule::Unreadable, &dir.at(digest.hex()), message);
                return Seen::Bad;
            }
        }
    }
    Seen::Bad
}

fn moved(dir: &Dir, digest: &Digest, before: &Stat) -> bool {
    let key = |stat: &Stat| (Inode::of(stat), stat.st_size, stat.st_mtime, stat.st_mtime_nsec);
    match dir.stat_name(digest.hex()) {
        Ok(Some(now)) => key(&now) != key(before),
        Ok(None) => true,
        Err(_) => false,
    }
}

/// sha256 comes first: its inodes with several names are remembered for sha512.
fn two_algorithms(
    dir: &Dir,
    digest: &Digest,
    stat: &Stat,
    shared: &mut HashSet<Inode>,
    findings: &mut Findings,
) {
    if stat.st_nlink < 2 {
        return;
    }
    if digest.algorithm() == Algorithm::Sha256 {
        shared.insert(Inode::of(stat));
    } else if shared.contains(&Inode::of(stat)) {
        let message = "its inode has a name under sha256 too";
        findings.add(Rule::InodeTwoAlgorithms, &dir.at(digest.hex()), message);
    }
}
