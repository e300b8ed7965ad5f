//! The content of one repository: names and digests.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FileType, Stat};

use super::finding::Findings;
use super::hands;
use super::mend::Mender;
use super::names::{Name, Names, Part};
use super::probe::{self, Seen};
use super::rule::Rule;
use super::{Look, closed, rights};
use crate::layout::rights::Level;
use crate::layout::{Dir, Inode, path, size_of};
use crate::oci::{Algorithm, Digest};

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Blobs {
    /// Names whose content is wrong, or could not be read: nothing is concluded from it.
    pub(super) bad: HashSet<Digest>,
    /// How many there are.
    pub(super) count: u64,
    /// How many sound ones the pool had lost and has again, or would have.
    pub(super) pooled: u64,
    /// Of each algorithm, how long the files are: [`UNKNOWN`] is what is none.
    sizes: Vec<(Names, Vec<u64>)>,
}

/// No file is so long.
const UNKNOWN: u64 = u64::MAX;

impl Blobs {
    fn append(&mut self, more: Blobs) {
        self.bad.extend(more.bad);
        self.count += more.count;
        self.pooled += more.pooled;
        self.sizes.extend(more.sizes);
    }

    /// How long a blob was a moment ago; `None` if that is not known. Where content is hashed nothing
    /// is, for that takes longer than a moment.
    pub(super) fn size(&self, digest: &Digest) -> Option<u64> {
        let found = |(names, sizes): &(Names, Vec<u64>)| {
            names.position(digest).and_then(|at| sizes.get(at).copied())
        };
        self.sizes.iter().find_map(found).filter(|size| *size != UNKNOWN)
    }
}

/// So many names one thread looks at without asking what the others do.
const PART: usize = 1 << 12;

/// Checks every name in `blobs/`. A repair gives the sound ones to the pool meanwhile.
pub(super) fn check(
    look: &Look<'_>,
    mut mender: Option<&mut Mender>,
    repo: &Dir,
    findings: &mut Findings,
) -> Blobs {
    let mut blobs = Blobs::default();
    let Some(dir) = probe::dir(repo, path::BLOBS, findings).there() else {
        return blobs;
    };
    let shared = Shared::of(&dir, findings);
    let level = probe::look(Level::of(repo), findings);
    let own = rustix::process::geteuid().as_raw();
    for algorithm in Algorithm::ALL {
        if let Some(dir) = probe::dir(&dir, algorithm.as_str(), findings).there() {
            let place = Place { dir: &dir, algorithm, repo: level.as_ref(), shared: &shared, own };
            // A name that could not be looked at may be an inode's other one: none is pooled then.
            let sure = algorithm == Algorithm::Sha256 || !findings.any(Rule::Unreadable);
            let mender = mender.as_deref_mut().filter(|_| sure);
            blobs.append(place.check(look, mender, findings));
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
    shared: &'a Shared,
    /// This account.
    own: u32,
}

impl Place<'_> {
    /// Checks all names here. Only one thread can repair meanwhile.
    fn check(self, look: &Look<'_>, mender: Option<&mut Mender>, findings: &mut Findings) -> Blobs {
        let Some(names) = probe::blobs(self.dir, self.algorithm, findings) else {
            return Blobs::default();
        };
        if mender.is_some() && !look.hashes.are_blind() {
            return self.part(look, mender, names.whole(), &mut Vec::new(), findings);
        }
        let done = hands::each(look.hands, &names.parts(PART), |part| {
            let (mut found, mut sizes) = (findings.fresh(), Vec::new());
            (self.part(look, None, *part, &mut sizes, &mut found), sizes, found)
        });
        let (mut blobs, mut sizes) = (Blobs::default(), Vec::new());
        for (more, some, found) in done {
            blobs.append(more);
            sizes.extend(some);
            findings.append(found);
        }
        if look.hashes.are_blind() {
            blobs.sizes.push((names, sizes));
        }
        blobs
    }

    fn part(
        self,
        look: &Look<'_>,
        mut mender: Option<&mut Mender>,
        part: Part<'_>,
        sizes: &mut Vec<u64>,
        findings: &mut Findings,
    ) -> Blobs {
        let mut blobs = Blobs::default();
        for name in part.into_iter() {
            let digest = match name {
                Name::Of(digest) => digest,
                Name::Other(name) => {
                    let message = format!("is not the digits of a {} digest", self.algorithm);
                    findings.add(Rule::BlobNameMalformed, &self.dir.at(&name), message);
                    continue;
                }
            };
            look.options.progress.named();
            let seen = content(look, self, &digest, findings);
            sizes.push(match &seen {
                Seen::There((_, stat)) => size_of(stat),
                Seen::Absent | Seen::Bad => UNKNOWN,
            });
            match seen {
                Seen::There((file, stat)) => {
                    blobs.count += 1;
                    let twice = self.shared.meet(self.dir, &digest, &stat, findings);
                    if let (Some(file), Some(mender), false) = (file, mender.as_deref_mut(), twice)
                        && self.is_poolable(&file, &stat, &digest, findings)
                        && mender.pool(&file, &stat, &digest)
                    {
                        blobs.pooled += 1;
                    }
                }
                Seen::Bad => {
                    blobs.count += 1;
                    blobs.bad.insert(digest);
                }
                // Gone since the names were read.
                Seen::Absent => {}
            }
        }
        blobs
    }

    /// Whether it is a file of this account's that everybody may read.
    fn is_sealed(&self, stat: &Stat) -> bool {
        stat.st_mode & 0o444 == 0o444 && stat.st_uid == self.own
    }

    /// Whether a sound blob may go into the pool.
    fn is_poolable(
        &self,
        file: &File,
        stat: &Stat,
        digest: &Digest,
        findings: &mut Findings,
    ) -> bool {
        self.is_sealed(stat)
            && stat.st_mode & 0o222 == 0
            && !rights::has_acl(file, &self.dir.at(digest.hex()), findings)
    }
}

/// Hashes one blob. A file that changes meanwhile is read again: it may be just being copied.
fn content(
    look: &Look<'_>,
    place: Place<'_>,
    digest: &Digest,
    findings: &mut Findings,
) -> Seen<(Option<File>, Stat)> {
    let dir = place.dir;
    match probe::status(dir, digest.hex(), FileType::RegularFile, findings) {
        // What this account sealed itself it can read, and so can everybody. What was hashed in the
        // pool is not opened again, nor does the pool lack it.
        Seen::There(stat) if place.is_sealed(&stat) => {
            if look.hashes.are_blind() || look.hashes.is_pooled(&stat, digest) {
                return Seen::There((None, stat));
            }
        }
        Seen::There(_) => {}
        Seen::Absent => return Seen::Absent,
        Seen::Bad => return Seen::Bad,
    }
    for attempt in 1.. {
        let (file, stat) = match probe::file(dir, digest.hex(), findings) {
            Seen::There(found) => found,
            Seen::Absent => return Seen::Absent,
            Seen::Bad => return Seen::Bad,
        };
        let known = look.is_known(&stat, || dir.at(digest.hex()));
        match if known { Ok(true) } else { look.hashes.agrees(&file, &stat, digest) } {
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
    inodes: HashMap<Inode, AtomicBool>,
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
                    inodes.insert(Inode::of(&stat), AtomicBool::new(false));
                }
            }
        }
        Shared { inodes }
    }

    /// sha256 comes first. Gives whether it is a second name, under sha512.
    fn meet(&self, dir: &Dir, digest: &Digest, stat: &Stat, findings: &mut Findings) -> bool {
        let Some(met) = self.inodes.get(&Inode::of(stat)) else { return false };
        if digest.algorithm() == Algorithm::Sha256 {
            met.store(true, Ordering::Relaxed);
            return false;
        }
        let met = met.load(Ordering::Relaxed);
        if met {
            let message = "its inode has a name under sha256 too";
            findings.add(Rule::InodeTwoAlgorithms, &dir.at(digest.hex()), message);
        }
        met
    }
}
