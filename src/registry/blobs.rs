//! Pulling blobs.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};

use tokio::sync::{Mutex as Turn, OwnedMutexGuard, Semaphore};

use super::{Actor, Error, Inner, Registry, Result, locked};
use crate::layout::{
    self, Account, Blob, Dir, Inode, Verdict, Version, blobs, notes, path, size_of,
};
use crate::oci::{Digest, RepoName};

/// What is told of a blob that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobInfo {
    /// Its length in bytes.
    pub size: u64,
}

/// A blob that is being pulled: when it was opened, its content had the digest.
#[derive(Debug)]
pub struct OpenBlob {
    /// The open file; whoever removes the blob meanwhile does not disturb the pull.
    pub file: File,
    /// Its length in bytes.
    pub size: u64,
    /// What it was opened as, for messages.
    pub path: PathBuf,
    /// The state that the file must stay in, where others could change it.
    state: Option<Version>,
}

impl OpenBlob {
    /// A file that nobody else can change.
    #[cfg(test)]
    pub(crate) fn sealed(file: File, size: u64) -> OpenBlob {
        OpenBlob { file, size, path: PathBuf::new(), state: None }
    }

    /// A file that others could change.
    #[cfg(test)]
    pub(crate) fn shared(file: File, size: u64) -> OpenBlob {
        let state = rustix::fs::fstat(&file).ok().map(|stat| Version::of(&stat));
        OpenBlob { file, size, path: PathBuf::new(), state }
    }

    /// Whether only the server could change it.
    pub fn is_sealed(&self) -> bool {
        self.state.is_none()
    }

    /// Whether the content still is what was found when it was opened. To be asked after each read,
    /// before its bytes go out.
    pub fn is_unchanged(&self) -> io::Result<bool> {
        match self.state {
            None => Ok(true),
            Some(state) => Ok(Version::of(&rustix::fs::fstat(&self.file)?) == state),
        }
    }
}

/// Whose turn it is to hash an inode: whoever else asks for it meanwhile waits, and holds no thread.
#[derive(Debug)]
pub(super) struct Turns {
    turns: Mutex<HashMap<Inode, Weak<Turn<()>>>>,
    /// Hashing holds a thread and a core for as long as the file is large: so many at once.
    places: Arc<Semaphore>,
}

/// How many files are hashed at once because somebody pulls them.
const HASHED_AT_ONCE: usize = 4;

impl Default for Turns {
    fn default() -> Turns {
        Turns { turns: Mutex::default(), places: Arc::new(Semaphore::new(HASHED_AT_ONCE)) }
    }
}

impl Turns {
    async fn of(&self, inode: Inode) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = locked(&self.turns);
            turns.retain(|_, turn| turn.strong_count() > 0);
            match turns.get(&inode).and_then(Weak::upgrade) {
                Some(turn) => turn,
                None => {
                    let turn = Arc::new(Turn::new(()));
                    turns.insert(inode, Arc::downgrade(&turn));
                    turn
                }
            }
        };
        turn.lock_owned().await
    }
}

impl Registry {
    /// Whether a repository has a blob (distribution specification, "Checking if content exists")
    /// that `reader` may read.
    ///
    /// With a `pusher` the caller may push here, and collection will not take what he is told of. A
    /// damaged blob is absent for him: what he then uploads takes its place.
    pub async fn stat_blob(
        &self,
        repo: &RepoName,
        digest: &Digest,
        reader: &Account,
        pusher: Option<&Actor>,
    ) -> Result<BlobInfo> {
        let look = |promises: bool| {
            let (repo, digest, reader) = (repo.clone(), digest.clone(), reader.clone());
            self.blocking(move |inner| {
                // The note first, the blob last.
                if promises && notes::is_noted(&inner.tree, &repo, &digest)? {
                    return Ok(None);
                }
                inner.stat_blob(&repo, &digest, &reader).map(Some)
            })
        };
        let mut looked = look(pusher.is_some()).await;
        if let (Ok(None), Some(pusher)) = (&looked, pusher) {
            self.promise_noted(repo, digest, pusher).await?;
            looked = look(false).await;
        }
        let unknown = || Error::BlobUnknown { repo: repo.clone(), digest: digest.clone() };
        match looked {
            Err(Error::Layout(error @ layout::Error::Damaged { .. })) if pusher.is_some() => {
                tracing::error!(cause = ?error.to_string(), "a blob is damaged: push it again");
                Err(unknown())
            }
            looked => looked?.ok_or_else(unknown),
        }
    }

    /// Opens a blob for a pull ("Pulling blobs") by `reader`.
    ///
    /// # Guarantee
    /// The content has the digest: an inode of which that is not known is read first. Everything
    /// else is damage.
    pub async fn open_blob(
        &self,
        repo: &RepoName,
        digest: &Digest,
        reader: &Account,
    ) -> Result<OpenBlob> {
        if let Some(known) = self.inner.known_blob(repo, digest, reader) {
            return Ok(known);
        }
        let (name, wanted, reader) = (repo.clone(), digest.clone(), reader.clone());
        let opened = self.blocking(move |inner| inner.open_blob(&name, &wanted, &reader)).await?;
        match opened {
            (blob, Some(verdict)) => self.inner.pulled(blob, verdict),
            (blob, None) => {
                let turn = self.inner.turns.of(blob.inode()).await;
                // Nobody closes it.
                let place = Arc::clone(&self.inner.turns.places).acquire_owned().await;
                self.blocking(move |inner| {
                    // Whoever asked may go away; what was begun is finished before another begins.
                    let _turn = (turn, place);
                    inner.hash(blob)
                })
                .await
            }
        }
    }
}

impl Inner {
    fn stat_blob(&self, repo: &RepoName, digest: &Digest, reader: &Account) -> Result<BlobInfo> {
        let unknown = || Error::BlobUnknown { repo: repo.clone(), digest: digest.clone() };
        let dir = self.looked_up(repo, reader)?.ok_or_else(unknown)?;
        let stat = blobs::stat(&dir, digest)?.ok_or_else(unknown)?;
        if !layout::is_regular(&stat) {
            let path = dir.at(&path::blob(digest));
            return Err(layout::Error::damaged(path, "is not a regular file").into());
        }
        let size = size_of(&stat);
        if self.tree.is_ours(&stat) {
            self.check_length(&dir, digest, size)?;
        }
        // Nothing is read here; but what a pull would refuse is not vouched for.
        if !self.tree.is_ours(&stat) || self.tree.known(digest, &stat) == Some(Verdict::Wrong) {
            let blob = Blob::open(&self.tree, &dir, digest, reader)?.ok_or_else(unknown)?;
            if blob.verdict(&self.tree)? == Some(Verdict::Wrong) {
                return Err(blob.wrong().into());
            }
        }
        Ok(BlobInfo { size })
    }

    /// A blob of which everything is known, opened with what the kernel has in memory: no thread is needed
    /// for that, which may have to wait for a disk. `None` if anything has to be read, or is not as it
    /// should be.
    fn known_blob(&self, repo: &RepoName, digest: &Digest, reader: &Account) -> Option<OpenBlob> {
        let blob = Blob::at_hand(&self.tree, &reader.seen(repo)?, digest)?;
        let length = self.holders.remembered(digest)?;
        if length.is_some_and(|length| length != blob.size()) {
            return None;
        }
        let verdict = self.tree.known(digest, blob.stat())?;
        self.pulled(blob, verdict).ok()
    }

    fn open_blob(
        &self,
        repo: &RepoName,
        digest: &Digest,
        reader: &Account,
    ) -> Result<(Blob, Option<Verdict>)> {
        let unknown = || Error::BlobUnknown { repo: repo.clone(), digest: digest.clone() };
        let dir = self.tree.repository_for(repo, reader)?.ok_or_else(unknown)?;
        let blob = Blob::open(&self.tree, &dir, digest, reader)?.ok_or_else(unknown)?;
        if blob.is_ours(&self.tree) {
            self.check_length(&dir, digest, blob.size())?;
        }
        let verdict = blob.verdict(&self.tree)?;
        Ok((blob, verdict))
    }

    /// Finds out what a blob holds, unless somebody else just did.
    fn hash(&self, mut blob: Blob) -> Result<OpenBlob> {
        let verdict = match blob.verdict(&self.tree)? {
            Some(known) => known,
            None => blob.verify(&self.tree)?,
        };
        self.pulled(blob, verdict)
    }

    fn pulled(&self, blob: Blob, verdict: Verdict) -> Result<OpenBlob> {
        if verdict == Verdict::Wrong {
            return Err(blob.wrong().into());
        }
        let (size, path) = (blob.size(), blob.path().to_owned());
        let (file, state) = blob.into_file(&self.tree);
        Ok(OpenBlob { file, size, path, state })
    }

    /// A blob of ours that was cut short on the disk is damage, not a shorter answer. Of others' files
    /// it is not asked: the answer would tell whether anybody has the content.
    fn check_length(&self, dir: &Dir, digest: &Digest, size: u64) -> Result<()> {
        match self.holders.length(&self.tree, digest) {
            Some(length) if length != size => {
                let why = format!("has {size} bytes, but {length} were stored");
                Err(layout::Error::damaged(dir.at(&path::blob(digest)), why).into())
            }
            _ => Ok(()),
        }
    }
}
