//! Pulling blobs.

use std::fs::File;

use super::{Actor, Error, Inner, Registry, Result};
use crate::layout::{self, Dir, blobs, path, size_of, stat_file};
use crate::oci::{Digest, RepoName};

/// What is told of a blob that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobInfo {
    /// Its length in bytes.
    pub size: u64,
}

/// A blob that is being pulled.
#[derive(Debug)]
pub struct OpenBlob {
    /// The open file; whoever removes the blob meanwhile does not disturb the pull.
    pub file: File,
    /// Its length in bytes.
    pub size: u64,
}

impl Registry {
    /// Whether a repository has a blob (distribution specification, "Checking if content exists").
    ///
    /// With a `pusher` the caller may push here, and collection will not take what he is told of.
    pub async fn stat_blob(
        &self,
        repo: &RepoName,
        digest: &Digest,
        pusher: Option<&Actor>,
    ) -> Result<BlobInfo> {
        if let Some(pusher) = pusher {
            self.promise(repo, digest, pusher).await?;
        }
        let (repo, digest) = (repo.clone(), digest.clone());
        self.blocking(move |inner| inner.stat_blob(&repo, &digest)).await
    }

    /// Opens a blob for a pull ("Pulling blobs").
    pub async fn open_blob(&self, repo: &RepoName, digest: &Digest) -> Result<OpenBlob> {
        let (repo, digest) = (repo.clone(), digest.clone());
        self.blocking(move |inner| inner.open_blob(&repo, &digest)).await
    }
}

impl Inner {
    fn stat_blob(&self, repo: &RepoName, digest: &Digest) -> Result<BlobInfo> {
        let unknown = || Error::BlobUnknown { repo: repo.clone(), digest: digest.clone() };
        let dir = self.tree.repository(repo)?.ok_or_else(unknown)?;
        let stat = blobs::stat(&dir, digest)?.ok_or_else(unknown)?;
        if !layout::is_regular(&stat) {
            let path = dir.at(&path::blob(digest));
            return Err(layout::Error::damaged(path, "is not a regular file").into());
        }
        let size = size_of(&stat);
        self.check_length(&dir, digest, size)?;
        Ok(BlobInfo { size })
    }

    fn open_blob(&self, repo: &RepoName, digest: &Digest) -> Result<OpenBlob> {
        let unknown = || Error::BlobUnknown { repo: repo.clone(), digest: digest.clone() };
        let dir = self.tree.repository(repo)?.ok_or_else(unknown)?;
        let file = blobs::open(&dir, digest)?.ok_or_else(unknown)?;
        let size = size_of(&stat_file(&file, || dir.at(&path::blob(digest)))?);
        self.check_length(&dir, digest, size)?;
        Ok(OpenBlob { file, size })
    }

    /// A blob that was cut short on the disk is damage, not a shorter answer.
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
