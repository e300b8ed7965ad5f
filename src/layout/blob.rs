//! A blob that is open for somebody: whether he may read it, and whether it is what its name says.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::Stat;

use super::account::Account;
use super::blobs;
use super::dir::{self, Dir, Inode};
use super::error::{At, Error, Result};
use super::path;
use super::readers::{self, Readers};
use super::tree::Tree;
use super::verified::Verdict;
use super::version::Version;
use crate::oci::Digest;

/// A file under a digest's name, open for reading.
#[derive(Debug)]
pub struct Blob {
    file: File,
    stat: Stat,
    path: PathBuf,
    digest: Digest,
}

/// A file that is written to while it is hashed is hashed so often.
const TRIES: usize = 3;

/// So long after a change the next one shows in a file's times; see [`Version`].
const TICKS: Duration = Duration::from_millis(12);

impl Blob {
    /// Opens a repository's blob on behalf of an account; `None` if there is none, or none for
    /// `reader`: what the server did not seal itself has rights of its own.
    pub fn open(
        tree: &Tree,
        repo: &Dir,
        digest: &Digest,
        reader: &Account,
    ) -> Result<Option<Blob>> {
        let Some((file, stat)) = blobs::open(repo, digest)? else {
            return Ok(None);
        };
        let path = repo.at(&path::blob(digest));
        let blob = Blob { file, stat, path, digest: digest.clone() };
        if blob.is_ours(tree) || blob.readers()?.include(reader) {
            return Ok(Some(blob));
        }
        readers::passed_over(&blob.path);
        Ok(None)
    }

    /// Opens a blob that the server sealed, if the kernel has all that this takes in memory.
    pub fn at_hand(tree: &Tree, repo: &Dir, digest: &Digest) -> Option<Blob> {
        let (file, stat) = repo.file_at_hand(&path::blob(digest))?;
        let path = repo.at(&path::blob(digest));
        let blob = Blob { file, stat, path, digest: digest.clone() };
        blob.is_ours(tree).then_some(blob)
    }

    /// Who may read the file by its own rights.
    pub fn readers(&self) -> Result<Readers> {
        Readers::of(&self.file, &self.stat, &self.path)
    }

    /// Whether only the server could have changed it.
    pub fn is_ours(&self, tree: &Tree) -> bool {
        tree.is_ours(&self.stat)
    }

    /// What is known of its content without reading it.
    pub fn verdict(&self, tree: &Tree) -> Result<Option<Verdict>> {
        blobs::verdict(tree, &self.digest, &self.stat)
    }

    /// Reads all of it to find out, and remembers what came out.
    ///
    /// # Errors
    /// A file that others change all the time has no content that could be compared.
    pub fn verify(&mut self, tree: &Tree) -> Result<Verdict> {
        for _ in 0..TRIES {
            let begun = self.settle()?;
            let at = || self.path.clone();
            let right = blobs::read_hashed(&self.file, &self.digest, at, |_, _| Ok(()))?.is_some();
            self.stat = dir::stat_file(&self.file, at)?;
            let ours = self.is_ours(tree);
            // A link that somebody makes meanwhile changes what is sealed as little as it.
            if Version::of(&self.stat) != begun && !(ours && right) {
                continue;
            }
            let verdict = if right { Verdict::Right } else { Verdict::Wrong };
            if ours && right {
                tree.verified.remember_sealed(&self.digest, &self.stat);
            } else if begun.settled() && !tree.is_remote() {
                tree.verified.remember_exact(&self.digest, &self.stat, verdict);
            }
            return Ok(verdict);
        }
        Err(Error::damaged(&self.path, "is being changed while it is read"))
    }

    /// Waits, for a moment at most, until whatever happens to the file from now on must show.
    fn settle(&mut self) -> Result<Version> {
        for _ in 0..TRIES {
            self.stat = dir::stat_file(&self.file, || self.path.clone())?;
            let version = Version::of(&self.stat);
            if version.settled() || version.is_coarse() {
                return Ok(version);
            }
            // There is nothing to be woken by: it is a clock that has to tick.
            std::thread::sleep(TICKS);
        }
        Ok(Version::of(&self.stat))
    }

    /// Makes the content durable. If that fails, this process does not believe the file again.
    pub fn sync(&self, tree: &Tree) -> Result<()> {
        let synced = tree.disk.sync(&self.file).at(|| self.path.clone());
        if synced.is_err() {
            tree.verified.distrust(&self.digest, &self.stat);
        }
        synced
    }

    /// Whether somebody wrote to it in the last two seconds: then it may be half-written.
    pub fn was_just_written(&self) -> bool {
        let written = self.file.metadata().and_then(|meta| meta.modified());
        let age = written.ok().and_then(|written| SystemTime::now().duration_since(written).ok());
        age.is_some_and(|age| age < Duration::from_secs(2))
    }

    /// The error for content that does not have the digest.
    pub fn wrong(&self) -> Error {
        Error::damaged(&self.path, format!("its content does not have the digest {}", self.digest))
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Its length in bytes.
    pub fn size(&self) -> u64 {
        dir::size_of(&self.stat)
    }

    /// Its status when it was opened.
    pub fn stat(&self) -> &Stat {
        &self.stat
    }

    /// Which file it is.
    pub fn inode(&self) -> Inode {
        Inode::of(&self.stat)
    }

    /// The path it was opened by, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file, and the state in which it has to stay while it is read: `None` where only the
    /// server could change it.
    pub fn into_file(self, tree: &Tree) -> (File, Option<Version>) {
        let state = (!self.is_ours(tree)).then(|| Version::of(&self.stat));
        (self.file, state)
    }
}
