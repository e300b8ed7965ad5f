//! Hints: which repository got which blob, and how long the blob is.
//!
//! They answer a mount that names no source without a walk over all repositories, and they tell
//! when a blob was cut short on the disk. Each hint is checked before it is believed; all of them
//! may be deleted.

use std::sync::{Mutex, PoisonError};

use rustix::fs::Mode;

use super::dir;
use super::error::{At, OrAbsent, Result};
use super::inherit::Purpose;
use super::tree::Tree;
use super::{durable, facts, path};
use crate::oci::{Algorithm, Digest, DigestMap, RepoName};

/// One generation of lengths, of which there are two, has so many: what a table of 32,768 places (1.6 MB,
/// 2.7 for `sha512`, which is rare) takes before it doubles. So many are known for certain, and twice as many
/// at most; of others a file of hints is read.
const GENERATION: usize = (1 << 15) / 8 * 7;

/// A file of hints has 1/4096 of all blobs: this is enough for some 80 million links.
const MAX_FILE: u64 = 2 * 1024 * 1024;

/// The hints of a tree, and a memory of the lengths.
#[derive(Debug, Default)]
pub struct Holders {
    lengths: Mutex<Lengths>,
}

/// What was not asked for while a whole generation of others was, is forgotten. The tables are used again:
/// a server that has run for long takes no more than one that has run for a day.
#[derive(Debug, Default)]
struct Lengths {
    young: DigestMap<Option<u64>>,
    old: DigestMap<Option<u64>>,
}

impl Lengths {
    fn get(&mut self, digest: &Digest) -> Option<Option<u64>> {
        if let Some(length) = self.young.get(digest) {
            return Some(*length);
        }
        let length = *self.old.get(digest)?;
        self.put(digest, length);
        Some(length)
    }

    fn put(&mut self, digest: &Digest, length: Option<u64>) {
        if self.young.len() >= GENERATION {
            std::mem::swap(&mut self.young, &mut self.old);
            self.young.clear();
        }
        self.young.put(digest, length);
    }
}

impl Holders {
    /// Notes that a repository has a blob now. A failure is logged and costs a hint only.
    pub fn note(&self, tree: &Tree, digest: &Digest, size: u64, repo: &RepoName) {
        self.remember(digest, Some(size));
        if let Err(error) = append(tree, digest, size, repo) {
            tracing::warn!(%error, "a hint of who holds a blob was not written");
        }
    }

    /// The blob's true length, if the server ever hashed it.
    pub fn length(&self, tree: &Tree, digest: &Digest) -> Option<u64> {
        if let Some(known) = self.remembered(digest) {
            return known;
        }
        // What could not be read now is asked for again.
        let hints = read(tree, digest).ok()?;
        let length = hints.last().map(|(size, _)| *size);
        self.remember(digest, length);
        length
    }

    /// The same, where no file has to be read for it.
    pub fn remembered(&self, digest: &Digest) -> Option<Option<u64>> {
        self.lengths.lock().unwrap_or_else(PoisonError::into_inner).get(digest)
    }

    /// The repositories that got the blob, latest first. They may have lost it since.
    pub fn of(&self, tree: &Tree, digest: &Digest) -> Result<Vec<RepoName>> {
        let hints = read(tree, digest)?;
        let mut seen = std::collections::HashSet::new();
        let names = hints.into_iter().rev().map(|(_, name)| name);
        Ok(names.filter(|name| seen.insert(name.clone())).collect())
    }

    fn remember(&self, digest: &Digest, length: Option<u64>) {
        self.lengths.lock().unwrap_or_else(PoisonError::into_inner).put(digest, length);
    }
}

fn append(tree: &Tree, digest: &Digest, size: u64, repo: &RepoName) -> Result<()> {
    let dir = tree.make_in_room(&path::holders_dir(digest.algorithm()))?;
    let name = path::holders_name(digest);
    let (file, _) = tree.disk.open_append(&dir, name, Mode::RUSR | Mode::WUSR)?;
    let end = dir::size_of(&dir::stat_file(&file, || dir.at(name))?);
    if end > MAX_FILE {
        return Ok(());
    }
    // A line that a crash has torn must not take this one with it.
    let torn = facts::is_torn(&file, end).at(|| dir.at(name))?;
    let begin = if torn { "\n" } else { "" };
    let line = format!("{begin}{} {size} {repo}\n", digest.hex());
    tree.disk.write(&file, line.as_bytes(), end).at(|| dir.at(name))
}

fn read(tree: &Tree, digest: &Digest) -> Result<Vec<(u64, RepoName)>> {
    let name = format!("{}/{}", path::holders_dir(digest.algorithm()), path::holders_name(digest));
    let Some(file) = tree.room.file(&name).or_absent()? else {
        return Ok(Vec::new());
    };
    let bytes = dir::read_all(&file, 2 * MAX_FILE, || tree.room.at(&name))?;
    let text = String::from_utf8_lossy(&bytes);
    Ok(text.lines().filter_map(|line| parse(line, digest)).collect())
}

/// Rewrites the file of hints that a digest belongs to without those that are false by now.
///
/// No lock is taken: a hint that is added at this very moment may be lost, and is only a hint.
pub fn compact(tree: &Tree, digest: &Digest) -> Result<()> {
    let (algorithm, name) = (digest.algorithm(), path::holders_name(digest));
    let Some(dir) = tree.room.dir(&path::holders_dir(algorithm)).or_absent()? else {
        return Ok(());
    };
    let Some(file) = dir.file(name).or_absent()? else {
        return Ok(());
    };
    let bytes = dir::read_all(&file, 2 * MAX_FILE, || dir.at(name))?;
    let text = String::from_utf8_lossy(&bytes);
    let (mut kept, mut all, mut seen) = (String::new(), 0, std::collections::HashSet::new());
    // The last hint of each is the one that counts.
    for line in text.lines().rev() {
        all += 1;
        let Some(hint) = Hint::parse(line, algorithm) else { continue };
        let held = match tree.repository(&hint.repository)? {
            Some(repo) => super::blobs::stat(&repo, &hint.digest)?.is_some(),
            None => false,
        };
        if held && seen.insert((hint.digest, hint.repository)) {
            kept.insert_str(0, &format!("{line}\n"));
        }
    }
    let grown = dir::size_of(&dir::stat_file(&file, || dir.at(name))?) > bytes.len() as u64;
    if kept.lines().count() < all && !grown {
        durable::replace(&*tree.disk, &dir, name, kept.as_bytes(), Purpose::Lock)?;
    }
    Ok(())
}

fn parse(line: &str, digest: &Digest) -> Option<(u64, RepoName)> {
    let hint = Hint::parse(line, digest.algorithm())?;
    (hint.digest == *digest).then_some((hint.size, hint.repository))
}

/// One line of a file of hints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hint {
    /// Which blob.
    pub digest: Digest,
    /// Its true length.
    pub size: u64,
    /// Who got it.
    pub repository: RepoName,
}

impl Hint {
    /// Reads a line of an algorithm's file, without its newline; `None` if a crash has torn it.
    pub fn parse(line: &str, algorithm: Algorithm) -> Option<Hint> {
        let (hex, rest) = line.split_once(' ')?;
        let (size, repository) = rest.split_once(' ')?;
        Some(Hint {
            digest: Digest::parse(&format!("{algorithm}:{hex}")).ok()?,
            size: size.parse().ok()?,
            repository: RepoName::parse(repository).ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use super::super::disk::RealDisk;
    use super::*;

    #[test]
    fn a_torn_hint_does_not_take_the_next_one_with_it() {
        let temp = tempfile::tempdir().unwrap();
        let tree = Tree::open(temp.path(), Arc::new(RealDisk)).unwrap();
        let digest = Digest::of(Algorithm::Sha256, b"content");
        let note = |name: &str| {
            Holders::default().note(&tree, &digest, 7, &RepoName::parse(name).unwrap());
        };
        note("a");
        let file =
            format!("{}/{}", path::holders_dir(digest.algorithm()), path::holders_name(&digest));
        let file = temp.path().join(path::ROOM).join(file);
        let mut file = std::fs::File::options().append(true).open(file).unwrap();
        file.write_all(&digest.hex().as_bytes()[..20]).unwrap();
        note("b");
        let names = Holders::default().of(&tree, &digest).unwrap();
        assert_eq!(names.iter().map(RepoName::as_str).collect::<Vec<_>>(), ["b", "a"]);
    }

    #[test]
    fn lengths_are_remembered_of_so_many_and_of_those_that_are_asked_for() {
        let digest = |n: usize| Digest::of(Algorithm::Sha256, &n.to_le_bytes());
        let mut lengths = Lengths::default();
        lengths.put(&digest(0), None);
        lengths.put(&digest(1), Some(1));
        let all = 3 * GENERATION;
        for n in 2..all {
            lengths.put(&digest(n), Some(n as u64));
            if n % 1000 == 0 {
                assert_eq!(lengths.get(&digest(0)), Some(None), "after {n}");
                // Both tables were full: none is made anew.
                assert!(n < 2 * GENERATION || lengths.young.room() == GENERATION, "after {n}");
            }
        }
        assert_eq!(lengths.get(&digest(1)), None);
        for n in all - GENERATION + 1..all {
            assert_eq!(lengths.get(&digest(n)), Some(Some(n as u64)));
        }
        assert!(lengths.young.len() <= GENERATION && lengths.old.len() <= GENERATION);
        // Neither has doubled.
        assert_eq!([&lengths.young, &lengths.old].map(DigestMap::room), [GENERATION; 2]);
        // The latest counts, whichever generation the one before was in.
        lengths.put(&digest(0), Some(7));
        assert_eq!(lengths.get(&digest(0)), Some(Some(7)));
    }
}
