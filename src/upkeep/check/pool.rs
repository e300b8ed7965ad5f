//! The pool: content, inodes, and the hints of who got what.

use std::path::PathBuf;

use rustix::fs::{FileType, Stat};

use super::finding::Findings;
use super::names::{Name, Names};
use super::probe::{self, Seen};
use super::rule::Rule;
use super::{Look, hands, lines, rights};
use crate::layout::holders::Hint;
use crate::layout::{Dir, Inode, Result, acl, path, size_of};
use crate::oci::{Algorithm, Digest};

/// Checks pool and hints; afterwards the pool's inodes need not be hashed in the repositories. Gives
/// how many names the pool has.
pub(super) fn check(look: &Look<'_>, room: &Dir, findings: &mut Findings) -> Result<u64> {
    // What could not be read before a repair, or was wrong, may be sound by now.
    let suspects = look.hashes.suspect_none();
    let pool = Pool { look, room, owner: room.stat()?.st_uid };
    let mut count = 0;
    if let Some(dir) = probe::dir(room, path::POOL, findings).there() {
        for algorithm in Algorithm::ALL {
            if let Some(dir) = probe::dir(&dir, algorithm.as_str(), findings).there() {
                count += pool.shelves(&dir, algorithm, findings);
            }
        }
    }
    // Unless it could not be looked at this time.
    if findings.as_slice().iter().any(|finding| finding.rule == Rule::Unreadable) {
        suspects.into_iter().for_each(|inode| look.hashes.suspect(inode));
    }
    look.hashes.trust_pool(room.clone());
    hints(look, room, findings);
    Ok(count)
}

struct Pool<'a> {
    look: &'a Look<'a>,
    room: &'a Dir,
    owner: u32,
}

fn malformed(dir: &Dir, name: &str, why: &str, findings: &mut Findings) {
    findings.add(Rule::PoolNameMalformed, &dir.at(name), why);
}

fn is_hex(text: &str, len: usize) -> bool {
    let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    text.len() == len && text.bytes().all(digit)
}

impl Pool<'_> {
    /// Checks the directories of one algorithm, each by one thread.
    fn shelves(&self, dir: &Dir, algorithm: Algorithm, findings: &mut Findings) -> u64 {
        let mut shelves = probe::names(dir, findings);
        shelves.retain(|(shelf, _)| !probe::is_hidden(shelf));
        let done = hands::each(self.look.hands, &shelves, |(shelf, _)| {
            let mut found = findings.fresh();
            (self.shelf(dir, shelf, algorithm, &mut found), found)
        });
        let mut count = 0;
        for (more, found) in done {
            count += more;
            findings.append(found);
        }
        count
    }

    fn shelf(&self, dir: &Dir, shelf: &str, algorithm: Algorithm, findings: &mut Findings) -> u64 {
        if !is_hex(shelf, 2) {
            malformed(dir, shelf, "is not two hexadecimal digits", findings);
            return 0;
        }
        let Some(dir) = probe::dir(dir, shelf, findings).there() else { return 0 };
        let mut count = 0;
        for name in probe::blobs(&dir, algorithm, findings).iter().flat_map(Names::iter) {
            match name {
                Name::Of(digest) if digest.hex().starts_with(shelf) => {
                    count += u64::from(self.blob(&dir, &digest, findings));
                }
                Name::Of(digest) => {
                    let why = "lies in another digest's directory";
                    malformed(&dir, digest.hex(), why, findings);
                }
                Name::Other(name) => {
                    let why = format!("is not the digits of a {algorithm} digest");
                    malformed(&dir, &name, &why, findings);
                }
            }
        }
        count
    }

    /// Whether there is a file.
    fn blob(&self, dir: &Dir, digest: &Digest, findings: &mut Findings) -> bool {
        let Look { hashes, options, .. } = self.look;
        let at = || dir.at(digest.hex());
        if hashes.are_blind() {
            let seen = probe::status(dir, digest.hex(), FileType::RegularFile, findings);
            let Seen::There(stat) = seen else { return false };
            options.progress.named();
            self.shared(&stat, acl::has_named(dir, digest.hex()), at, findings);
            return true;
        }
        let Seen::There((file, stat)) = probe::file(dir, digest.hex(), findings) else {
            return false;
        };
        options.progress.named();
        let has_acl = rights::has_acl(&file, &at(), findings);
        self.shared(&stat, has_acl, at, findings);
        if self.look.is_known(&stat, at) {
            return true;
        }
        match hashes.digest(&file, &stat, digest.algorithm()) {
            Ok(found) if found == *digest => {}
            Ok(found) => {
                hashes.suspect(Inode::of(&stat));
                let message = format!("its content has the digest {found}");
                findings.add(Rule::PoolDigestMismatch, &at(), message);
            }
            Err(error) => {
                hashes.suspect(Inode::of(&stat));
                findings.add(Rule::Unreadable, &at(), format!("cannot be read: {error}"));
            }
        }
        if digest.algorithm() == Algorithm::Sha512 && self.has_sha256(&file, &stat, findings) {
            let message = "its inode has a name under sha256 too";
            findings.add(Rule::InodeTwoAlgorithms, &at(), message);
        }
        true
    }

    /// Whether nobody but the owner can change what is shared.
    fn shared(
        &self,
        stat: &Stat,
        has_acl: bool,
        at: impl FnOnce() -> PathBuf,
        findings: &mut Findings,
    ) {
        if stat.st_uid != self.owner || stat.st_mode & 0o222 != 0 || has_acl {
            let (mode, uid) = (stat.st_mode & 0o7777, stat.st_uid);
            let message =
                format!("has mode {mode:o} and belongs to {uid}: others could write to it");
            findings.add(Rule::PoolInodeUnsafe, &at(), message);
        }
    }

    fn has_sha256(&self, file: &std::fs::File, stat: &Stat, findings: &mut Findings) -> bool {
        let digest = match self.look.hashes.digest(file, stat, Algorithm::Sha256) {
            Ok(digest) if stat.st_nlink > 1 => digest,
            _ => return false,
        };
        let other = self.room.dir(&path::pool_dir(&digest));
        let other = other.and_then(|dir| dir.stat_name(digest.hex()));
        matches!(probe::look(other, findings), Some(Some(other)) if Inode::of(&other) == Inode::of(stat))
    }
}

/// Hints of the length, against the pool's sound blobs.
fn hints(look: &Look<'_>, room: &Dir, findings: &mut Findings) {
    let Some(holders) = probe::dir(room, path::HOLDERS, findings).there() else {
        return;
    };
    for algorithm in Algorithm::ALL {
        let dir = probe::dir(&holders, algorithm.as_str(), findings);
        let Some(dir) = dir.there() else { continue };
        for (name, kind) in probe::names(&dir, findings) {
            if !is_hex(&name, 3) || kind == FileType::Directory {
                continue;
            }
            let Some((file, _)) = probe::file(&dir, &name, findings).there() else {
                continue;
            };
            let at = dir.at(&name);
            let read = lines::each(&file, |number, line| {
                if let Some((hint, size)) = contradicted(look, room, (algorithm, line), findings) {
                    let (said, digest) = (hint.size, hint.digest);
                    let message =
                        format!("line {number} gives {digest} {said} bytes; it has {size}");
                    findings.add(Rule::HolderSizeWrong, &at, message);
                }
            });
            if let Err(error) = read {
                findings.add(Rule::Unreadable, &at, format!("cannot be read: {error}"));
            }
        }
    }
}

/// A hint with another length than the pool's blob, and that blob's length.
fn contradicted(
    look: &Look<'_>,
    room: &Dir,
    (algorithm, line): (Algorithm, Option<&[u8]>),
    findings: &mut Findings,
) -> Option<(Hint, u64)> {
    let hint = Hint::parse(std::str::from_utf8(line?).ok()?, algorithm)?;
    let shelf = probe::look(room.dir(&path::pool_dir(&hint.digest)), findings)?;
    let stat = probe::look(shelf.stat_name(hint.digest.hex()), findings)??;
    let sound = crate::layout::is_regular(&stat) && !look.hashes.is_suspect(Inode::of(&stat));
    (sound && size_of(&stat) != hint.size).then(|| (hint, size_of(&stat)))
}
