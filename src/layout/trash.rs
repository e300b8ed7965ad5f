//! The trash: what was removed on purpose, for the undo window.
//!
//! It lies in a directory for each hour, `.stillage/trash/20261126T13/`, under the names that it had
//! beneath ROOT. Nothing is served from there. A blob there keeps its inode's link, so that the pool
//! keeps the content too.

use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;
use time::{Date, OffsetDateTime};

use super::dir::{self, Dir};
use super::error::{OrAbsent, Result};
use super::path;
use super::tree::Tree;
use crate::oci::{Algorithm, Digest, RepoName};

const HOUR: Duration = Duration::from_secs(60 * 60);

/// Moves a repository's blob out of sight; `false` if it is not there. Where that is impossible (no
/// space, another file system, a directory of somebody else's), the name just goes.
///
/// Only a file is a blob: whoever may write the directory can put anything under its name at any
/// time, so that what came into the trash is looked at there, and given back if it is something else.
///
/// To be called by whoever holds gc.lock and the repository's. `blobs` is to be synced afterwards.
pub fn discard_blob(tree: &Tree, repo: &RepoName, blobs: &Dir, digest: &Digest) -> Result<bool> {
    let hour = format!("{}/{}", path::TRASH, hour_name(SystemTime::now()));
    let to = format!("{hour}/{repo}/{}", path::blobs(digest.algorithm()));
    let moved = tree.make_in_room(&to).and_then(|to| {
        tree.disk.rename_new(blobs, digest.hex(), &to, digest.hex())?;
        Ok(to)
    });
    match moved {
        Ok(to) if to.stat_name(digest.hex())?.is_none_or(|stat| dir::is_regular(&stat)) => Ok(true),
        Ok(to) => give_back(tree, &to, blobs, digest).map(|()| false),
        // The same content was deleted within the hour already, or it is not there, or it cannot be
        // kept.
        Err(_) => match tree.disk.unlink(blobs, digest.hex()).or_absent() {
            Err(error) if error.errno() == Some(Errno::ISDIR) => Ok(false),
            gone => Ok(gone?.is_some()),
        },
    }
}

/// What is no blob goes back to where it lay. If its name is taken by now it stays in the trash, where
/// nothing empties it.
fn give_back(tree: &Tree, trash: &Dir, blobs: &Dir, digest: &Digest) -> Result<()> {
    if let Err(error) = tree.disk.rename_new(trash, digest.hex(), blobs, digest.hex()) {
        let kept = trash.at(digest.hex());
        tracing::warn!(
            ?kept,
            cause = ?error.to_string(),
            "what lay under a blob's name is none, and cannot be put back"
        );
    }
    tree.disk.sync_dir(blobs)
}

/// `20261126T13`
pub fn hour_name(time: SystemTime) -> String {
    let time = OffsetDateTime::from(time);
    let (year, month, day) = time.to_calendar_date();
    format!("{year:04}{:02}{day:02}T{:02}", u8::from(month), time.hour())
}

/// When all of the hour that a name means was over; `None` if it means none.
pub fn hour_end(name: &str) -> Option<SystemTime> {
    let digits = |range: std::ops::Range<usize>| {
        let part = name.get(range)?;
        part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse::<u16>().ok())?
    };
    if name.len() != 11 || name.get(8..9) != Some("T") {
        return None;
    }
    let small = |range| u8::try_from(digits(range)?).ok();
    let month = time::Month::try_from(small(4..6)?).ok()?;
    let date = Date::from_calendar_date(digits(0..4)?.into(), month, small(6..8)?).ok()?;
    let begin = date.with_hms(small(9..11)?, 0, 0).ok()?.assume_utc();
    SystemTime::from(begin).checked_add(HOUR)
}

/// The hours that something lies in the trash of, by their names.
pub fn hours(tree: &Tree) -> Result<Vec<String>> {
    let Some(trash) = tree.room.dir(path::TRASH).or_absent()? else {
        return Ok(Vec::new());
    };
    let hours = trash.names()?.into_iter().filter_map(|(name, kind)| {
        (kind == FileType::Directory && hour_end(&name).is_some()).then_some(name)
    });
    let mut hours: Vec<String> = hours.collect();
    hours.sort_unstable();
    Ok(hours)
}

/// What was removed for good.
#[derive(Clone, Copy, Debug, Default)]
pub struct Removed {
    /// How many names of files.
    pub files: u64,
    /// How many bytes that gave back.
    pub bytes: u64,
}

/// Removes blobs that lie in an hour, and their directories once they are empty, for so long. Of one
/// repository if it is named: what is nested in that one stays. `true` once none is left. What is
/// not a blob, or not where one would be, is left alone.
///
/// To be called by whoever holds gc.lock. Without a time it only counts, all of it. `freed` says what
/// goes with one name of an inode.
pub fn empty(
    tree: &Tree,
    hour: &str,
    only: Option<&RepoName>,
    until: Option<Instant>,
    removed: &mut Removed,
    freed: &mut dyn FnMut(&Stat) -> u64,
) -> Result<bool> {
    let Some(trash) = tree.room.dir(path::TRASH).or_absent()? else {
        return Ok(true);
    };
    let mut emptying = Emptying { tree, until, removed, freed };
    match only {
        None => emptying.directory(&trash, hour, Place::Repository { nested: true }),
        Some(repo) => match open(&trash, &format!("{hour}/{repo}"))? {
            Some(dir) => emptying.content(&dir, Place::Repository { nested: false }),
            None => Ok(true),
        },
    }
}

/// A directory; `None` if there is none, or something else is mounted there.
fn open(parent: &Dir, relative: &str) -> Result<Option<Dir>> {
    match parent.dir_of_this_mount(relative).or_absent() {
        Err(error) if error.errno() == Some(Errno::XDEV) => Ok(None),
        opened => opened,
    }
}

/// What a directory in the trash is.
#[derive(Clone, Copy)]
enum Place {
    /// A repository, or an hour, or on the way to a repository. Those beneath it are emptied too, or
    /// not.
    Repository { nested: bool },
    /// `blobs`
    Blobs,
    /// `blobs/sha256`
    Algorithm(Algorithm),
}

impl Place {
    /// What a directory in it is; `None` if it is none of ours.
    fn beneath(self, name: &str) -> Option<Place> {
        match self {
            Place::Repository { .. } if name == path::BLOBS => Some(Place::Blobs),
            Place::Repository { nested } => {
                (nested && RepoName::parse(name).is_ok()).then_some(self)
            }
            Place::Blobs => {
                let known = Algorithm::ALL.into_iter().find(|known| known.as_str() == name);
                known.map(Place::Algorithm)
            }
            Place::Algorithm(_) => None,
        }
    }

    fn is_blob(self, name: &str) -> bool {
        match self {
            Place::Algorithm(algorithm) => Digest::parse(&format!("{algorithm}:{name}")).is_ok(),
            _ => false,
        }
    }
}

struct Emptying<'a> {
    tree: &'a Tree,
    until: Option<Instant>,
    removed: &'a mut Removed,
    freed: &'a mut dyn FnMut(&Stat) -> u64,
}

impl Emptying<'_> {
    /// Whether there was time for all of it. It goes if nothing is left in it.
    fn directory(&mut self, parent: &Dir, name: &str, place: Place) -> Result<bool> {
        let Some(dir) = open(parent, name)? else {
            return Ok(true);
        };
        let whole = self.content(&dir, place)?;
        if whole && self.until.is_some() {
            match self.tree.disk.remove_dir(parent, name).or_absent() {
                Err(error) if error.errno() == Some(Errno::NOTEMPTY) => {}
                removed => drop(removed?),
            }
        }
        Ok(whole)
    }

    fn content(&mut self, dir: &Dir, place: Place) -> Result<bool> {
        for entry in dir.entries()? {
            let (name, kind) = entry?;
            if self.until.is_some_and(|until| Instant::now() >= until) {
                return Ok(false);
            }
            match kind {
                FileType::Directory => {
                    if let Some(beneath) = place.beneath(&name)
                        && !self.directory(dir, &name, beneath)?
                    {
                        return Ok(false);
                    }
                }
                FileType::RegularFile if place.is_blob(&name) => self.file(dir, &name)?,
                _ => {}
            }
        }
        Ok(true)
    }

    fn file(&mut self, dir: &Dir, name: &str) -> Result<()> {
        let Some(stat) = dir.stat_name(name)?.filter(dir::is_regular) else {
            return Ok(());
        };
        if self.until.is_some() {
            self.tree.disk.unlink(dir, name).or_absent()?;
        }
        self.removed.files += 1;
        self.removed.bytes += (self.freed)(&stat);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use super::super::disk::RealDisk;
    use super::*;

    /// Whoever may write the repository puts a directory of somebody else's under the blob's name
    /// after it was looked at.
    #[test]
    fn only_files_are_discarded_and_only_blobs_are_emptied() {
        let temp = tempfile::tempdir().unwrap();
        let tree = Tree::open(temp.path(), Arc::new(RealDisk)).unwrap();
        let repo = RepoName::parse("a/b").unwrap();
        let [theirs, ours, taken] =
            [&b"theirs"[..], b"ours", b"taken"].map(|b| Digest::of(Algorithm::Sha256, b));
        let blobs = temp.path().join("a/b/blobs/sha256");
        fs::create_dir_all(blobs.join(theirs.hex()).join("blobs/sha256")).unwrap();
        let work = blobs.join(theirs.hex()).join("blobs/sha256").join(ours.hex());
        fs::write(&work, "work").unwrap();
        fs::write(blobs.join(ours.hex()), "ours").unwrap();
        let dir = tree.root.dir("a/b/blobs/sha256").unwrap();
        assert!(!discard_blob(&tree, &repo, &dir, &theirs).unwrap());
        assert_eq!(fs::read(&work).unwrap(), b"work");
        assert!(discard_blob(&tree, &repo, &dir, &ours).unwrap());
        assert!(!discard_blob(&tree, &repo, &dir, &ours).unwrap(), "it is gone");
        // Within the hour, where a name of the trash is taken.
        fs::create_dir(blobs.join(ours.hex())).unwrap();
        assert!(!discard_blob(&tree, &repo, &dir, &ours).unwrap());

        let hour = hours(&tree).unwrap().remove(0);
        let trash = temp.path().join(".stillage/trash").join(&hour);
        let kept = trash.join("a/b/blobs/sha256");
        assert!(kept.join(ours.hex()).is_file() && !kept.join(theirs.hex()).exists());
        let foreign = [
            kept.join(theirs.hex()).join("blobs/sha256").join(ours.hex()),
            kept.join("notes"),
            trash.join("a/b/blobs").join(ours.hex()),
            trash.join("a/b/blobs/md5/x"),
            trash.join("a").join(ours.hex()),
            trash.join("A/blobs/sha256").join(ours.hex()),
        ];
        for path in &foreign {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        std::os::unix::fs::symlink("/", kept.join(taken.hex())).unwrap();
        let gone = trash.join("gone/blobs/sha512");
        fs::create_dir_all(&gone).unwrap();
        fs::write(gone.join(Digest::of(Algorithm::Sha512, b"").hex()), "").unwrap();
        let mut removed = Removed::default();
        let until = Some(Instant::now() + HOUR);
        assert!(empty(&tree, &hour, None, until, &mut removed, &mut |_| 1).unwrap());
        assert_eq!((removed.files, removed.bytes), (2, 2));
        for path in &foreign {
            assert!(path.exists(), "{path:?}");
        }
        assert!(kept.join(taken.hex()).is_symlink() && !kept.join(ours.hex()).exists());
        assert!(!trash.join("gone").exists());
    }

    #[test]
    fn an_hour_is_over_when_its_name_says_so() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(hour_name(at(1_795_698_000)), "20261126T13");
        assert_eq!(hour_name(at(1_795_698_000 + 3599)), "20261126T13");
        assert_eq!(hour_end("20261126T13"), Some(at(1_795_698_000 + 3600)));
        let wrong = ["", "20261126", "20261126T1", "20261126T24", "20261326T13", "2026112６T1"];
        for name in wrong.into_iter().chain(["+0261126T13", "20261126t13", "20261126T130"]) {
            assert_eq!(hour_end(name), None, "{name}");
        }
    }
}
