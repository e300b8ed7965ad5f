//! The content of one repository: names and digests.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::Path;

use rustix::fs::{FileType, Stat};

use super::finding::Findings;
use super::names::{Name, Names};
use super::probe::{self, Seen};
use super::rule::Rule;
use super::{Run, closed, rights};
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
    let mut shared = Shared::of(&dir, findings);
    let level = probe::look(Level::of(repo), findings);
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
    shared: &mut Shared,
    findings: &mut Findings,
) {
    let Place { dir, algorithm, .. } = place;
    let names = probe::blobs(dir, algorithm, findings);
    for name in names.iter().flat_map(Names::iter) {
        let digest = match name {
            Name::Of(digest) => digest,
            Name::Other(name) => {
                let message = format!("is not the digits of a {algorithm} digest");
                findings.add(Rule::BlobNameMalformed, &dir.at(&name), message);
                continue;
            }
        };
        run.options.progress.named();
        blobs.count += 1;
        match content(run, place, &digest, findings) {
            Seen::There((file, stat)) => {
                let twice = shared.meet(dir, &digest, &stat, findings);
                if let Some(file) = file.filter(|_| !twice && !run.hashes.are_blind()) {
                    pool(run, &file, &stat, (&digest, &dir.at(digest.hex())), findings);
                }
            }
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
    run: &Run<'_>,
    place: Place<'_>,
    digest: &Digest,
    findings: &mut Findings,
) -> Seen<(Option<File>, Stat)> {
    let dir = place.dir;
    if run.hashes.are_blind() {
        // What the checker sealed itself it can read.
        match probe::status(dir, digest.hex(), FileType::RegularFile, findings) {
            Seen::There(stat) if is_sealed(&stat) => return Seen::There((None, stat)),
            Seen::There(_) => {}
            Seen::Absent => return Seen::Absent,
            Seen::Bad => return Seen::Bad,
        }
    }
    for attempt in 1.. {
        let (file, stat) = match probe::file(dir, digest.hex(), findings) {
            Seen::There(found) => found,
            Seen::Absent => return Seen::Absent,
            Seen::Bad => return Seen::Bad,
        };
        let known = run.is_known(&dir.at(digest.hex()));
        match if known { Ok(true) } else { run.hashes.agrees(&file, &stat, digest) } {
            Ok(true) => {
                if let Some(repo) = place.repo {
                    closed::readers(repo, &file, &stat, &dir.at(digest.hex()), findings);
                }
                return Seen::There((Some(file), stat));
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

/// Gives a repair a sound blob that the pool may have lost.
fn pool(
    run: &mut Run<'_>,
    file: &File,
    stat: &Stat,
    (digest, at): (&Digest, &Path),
    findings: &mut Findings,
) {
    let Some(mender) = &mut run.mender else { return };
    let is_sealed = is_sealed(stat) && stat.st_mode & 0o222 == 0;
    let is_ours = is_sealed && !rights::has_acl(file, at, findings);
    if is_ours && mender.pool(file, stat, digest) {
        run.summary.pooled_again += 1;
    }
}

/// Whether it is a file of this account's that everybody may read.
fn is_sealed(stat: &Stat) -> bool {
    stat.st_mode & 0o444 == 0o444 && stat.st_uid == rustix::process::geteuid().as_raw()
}

fn moved(dir: &Dir, digest: &Digest, before: &Stat) -> bool {
    let key = |stat: &Stat| (Inode::of(stat), stat.st_size, stat.st_mtime, stat.st_mtime_nsec);
    match dir.stat_name(digest.hex()) {
        Ok(Some(now)) => key(&now) != key(before),
        Ok(None) => true,
        Err(_) => false,
    }
}

/// Inodes with a name under sha512, of which there are few if any; whether they have met one under
/// sha256.
struct Shared {
    inodes: HashMap<Inode, bool>,
}

impl Shared {
    fn of(blobs: &Dir, findings: &mut Findings) -> Shared {
        let mut inodes = HashMap::new();
        if let Some(dir) = probe::look(blobs.dir(Algorithm::Sha512.as_str()), findings) {
            let names = probe::look(Names::read(&dir, Algorithm::Sha512), findings);
            for name in names.iter().flat_map(Names::iter) {
                if let Name::Of(digest) = name
                    && let Some(Some(stat)) = probe::look(dir.stat_name(digest.hex()), findings)
                    && stat.st_nlink > 1
                {
                    inodes.insert(Inode::of(&stat), false);
                }
            }
        }
        Shared { inodes }
    }

    /// sha256 comes first. Gives whether it is a second name, under sha512.
    fn meet(&mut self, dir: &Dir, digest: &Digest, stat: &Stat, findings: &mut Findings) -> bool {
        let Some(met) = self.inodes.get_mut(&Inode::of(stat)) else { return false };
        if digest.algorithm() == Algorithm::Sha256 {
            *met = true;
            return false;
        }
        if *met {
            let message = "its inode has a name under sha256 too";
            findings.add(Rule::InodeTwoAlgorithms, &dir.at(digest.hex()), message);
        }
        *met
    }
}
