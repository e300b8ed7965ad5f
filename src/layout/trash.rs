//! The trash: what was removed on purpose, for the undo window.
//!
//! It lies in a directory for each hour, `.stillage/trash/20261126T13/`, under the names that it had
//! beneath ROOT. Nothing is served from there. A blob there keeps its inode's link, so that the pool
//! keeps the content too.

use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{FileType, Stat};
use time::{Date, OffsetDateTime};

use super::dir::Dir;
use super::error::{OrAbsent, Result};
use super::path;
use super::tree::Tree;
use crate::oci::{Digest, RepoName};

const HOUR: Duration = Duration::from_secs(60 * 60);

/// Moves a repository's blob out of sight; `false` if it is not there. Where that is impossible (no
/// space, another file system, a directory of somebody else's), the name just goes.
///
/// To be called by whoever holds gc.lock and the repository's. `blobs` is to be synced afterwards.
pub fn discard_blob(tree: &Tree, repo: &RepoName, blobs: &Dir, digest: &Digest) -> Result<bool> {
    let hour = format!("{}/{}", path::TRASH, hour_name(SystemTime::now()));
    let to = format!("{hour}/{repo}/{}", path::blobs(digest.algorithm()));
    let moved = tree
        .make_in_room(&to)
        .and_then(|to| tree.disk.rename_new(blobs, digest.hex(), &to, digest.hex()));
    match moved {
        Ok(()) => Ok(true),
        // The same content was deleted within the hour already, or it is not there, or it cannot be
        // kept.
        Err(_) => Ok(tree.disk.unlink(blobs, digest.hex()).or_absent()?.is_some()),
    }
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

/// Removes some of what lies in an hour, and its directories once they are empty, for so long. Of
/// one repository if it is named: what is nested in that one stays. `true` once nothing is left.
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
        None => emptying.directory(&trash, hour),
        Some(repo) => match trash.dir(&format!("{hour}/{repo}")).or_absent()? {
            Some(dir) => emptying.content(&dir, true),
            None => Ok(true),
        },
    }
}

struct Emptying<'a> {
    tree: &'a Tree,
    until: Option<Instant>,
    removed: &'a mut Removed,
    freed: &'a mut dyn FnMut(&Stat) -> u64,
}

impl Emptying<'_> {
    /// Whether the directory is gone.
    fn directory(&mut self, parent: &Dir, name: &str) -> Result<bool> {
        let Some(dir) = parent.dir(name).or_absent()? else {
            return Ok(true);
        };
        let whole = self.content(&dir, false)?;
        if whole && self.until.is_some() {
            self.tree.disk.remove_dir(parent, name).or_absent()?;
        }
        Ok(whole)
    }

    fn content(&mut self, dir: &Dir, own: bool) -> Result<bool> {
        for entry in dir.entries()? {
            let (name, kind) = entry?;
            let nested = kind == FileType::Directory && RepoName::parse(&name).is_ok();
            if own && nested {
                continue;
            }
            if self.until.is_some_and(|until| Instant::now() >= until) {
                return Ok(false);
            }
            match kind {
                FileType::Directory if !self.directory(dir, &name)? => return Ok(false),
                FileType::Directory => {}
                _ => self.file(dir, &name)?,
            }
        }
        Ok(true)
    }

    fn file(&mut self, dir: &Dir, name: &str) -> Result<()> {
        let Some(stat) = dir.stat_name(name)? else {
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
    use super::*;

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
