//! Promises to pushers, and collection's notes of what it has seen unreferenced.
//!
//! A blob is promised when a pusher uploaded it, mounted it, was told that it exists, or refers to
//! it in a manifest. Collection removes a blob only while holding the repository's lock and while
//! its own note is there, blob first and note second. So whoever promises looks at the note first
//! and at the blob last; if there is a note, the lock comes in between (PROTOCOL.md, "Promises and
//! collection").

use std::time::SystemTime;

use rustix::fs::{FileType, Mode};
use rustix::io::Errno;

use super::dir::{self, Dir};
use super::error::{OrAbsent, Result};
use super::path;
use super::tree::Tree;
use crate::oci::{Digest, RepoName};

/// Whether collection has seen the blob unreferenced, so that a promise needs the lock.
pub fn is_noted(tree: &Tree, name: &RepoName, digest: &Digest) -> Result<bool> {
    // Nobody but the server makes names in the room.
    Ok(tree.room.stat_path(&format!("{}/{digest}", path::notes(name)))?.is_some())
}

/// Makes sure that collection takes none of `digests` from the repository: to be called by whoever
/// holds the repository's lock, **before** the last look at the blobs.
pub fn promise<'a>(
    tree: &Tree,
    name: &RepoName,
    digests: impl IntoIterator<Item = &'a Digest>,
) -> Result<()> {
    let Some(notes) = Notes::of(tree, name)? else {
        return Ok(());
    };
    digests.into_iter().try_for_each(|digest| notes.forget(tree, digest))
}

/// The notes of one repository. Removing one is always safe: it only delays.
#[derive(Debug)]
pub struct Notes {
    dir: Dir,
}

impl Notes {
    /// A repository's notes; `None` if there never were any.
    pub fn of(tree: &Tree, name: &RepoName) -> Result<Option<Notes>> {
        Ok(tree.room.dir(&path::notes(name)).or_absent()?.map(|dir| Notes { dir }))
    }

    /// The same, made when they are missing.
    pub fn made(tree: &Tree, name: &RepoName) -> Result<Notes> {
        Ok(Notes { dir: tree.make_in_room(&path::notes(name))? })
    }

    /// Since when collection has seen a blob unreferenced; `None` if it has not, or if the blob was
    /// promised to somebody since.
    pub fn since(&self, digest: &Digest) -> Result<Option<SystemTime>> {
        Ok(self.dir.stat_name(digest.as_str())?.map(|stat| dir::modified(&stat)))
    }

    /// Notes that a blob is unreferenced, from now on. A note that is there stays as old as it is.
    /// Nothing is synced: a note that a crash takes begins anew.
    pub fn note(&self, tree: &Tree, digest: &Digest) -> Result<()> {
        match tree.disk.create(&self.dir, digest.as_str(), Mode::RUSR | Mode::WUSR) {
            Err(error) if error.errno() == Some(Errno::EXIST) => Ok(()),
            made => made.map(|_| ()),
        }
    }

    /// Removes all notes of a repository that is not there any more, and their directory, unless there
    /// are nested repositories' beneath.
    pub fn clear(tree: &Tree, name: &RepoName) -> Result<()> {
        let Some(notes) = Notes::of(tree, name)? else {
            return Ok(());
        };
        notes.each()?.try_for_each(|digest| notes.forget(tree, &digest?))?;
        let path = path::notes(name);
        let (above, last) = path.rsplit_once('/').unwrap_or_default();
        match tree.disk.remove_dir(&tree.room.dir(above)?, last).or_absent() {
            Err(error) if error.errno() == Some(Errno::NOTEMPTY) => Ok(()),
            removed => removed.map(|_| ()),
        }
    }

    /// Removes a note, if there is one.
    pub fn forget(&self, tree: &Tree, digest: &Digest) -> Result<()> {
        tree.disk.unlink(&self.dir, digest.as_str()).or_absent().map(|_| ())
    }

    /// What is noted, one digest at a time. Whatever else lies there is left out.
    pub fn each(&self) -> Result<impl Iterator<Item = Result<Digest>>> {
        let digest = |entry: Result<(String, FileType)>| match entry {
            Ok((name, FileType::RegularFile)) => Digest::parse(&name).ok().map(Ok),
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        };
        Ok(self.dir.entries()?.filter_map(digest))
    }
}
