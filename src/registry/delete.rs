//! Deleting.

use std::time::Duration;

use super::commit::{Deed, Refusal};
use super::indexes::Meanwhile;
use super::{Actor, Error, Inner, Registry, Result};
use crate::graph;
use crate::layout::{Dir, OrAbsent, Stamp, blobs, lock, path};
use crate::oci::{Digest, Reference, RepoName};

/// How long a request waits for whoever copies or collects the tree.
const GC_LOCK_WAIT: Duration = Duration::from_secs(2);

impl Registry {
    /// Removes a tag, or a manifest with all its tags ("Deleting tags", "Deleting Manifests").
    /// When this returns, the change survives a power cut.
    pub async fn delete_manifest(
        &self,
        repo: &RepoName,
        reference: &Reference,
        actor: &Actor,
    ) -> Result<()> {
        let deed = match reference {
            Reference::Tag(tag) => Deed::Untag(tag.clone()),
            Reference::Digest(digest) => Deed::Remove(digest.clone()),
        };
        match self.commit(repo, deed, actor).await {
            Ok(()) => Ok(()),
            Err(Refusal::Error(error)) => Err(error),
            Err(Refusal::LookAgain) => Err(Error::Moved(repo.clone())),
        }
    }

    /// Removes a blob that no manifest of the repository refers to ("Deleting Blobs"). The pool
    /// keeps the content for the undo window.
    pub async fn delete_blob(&self, repo: &RepoName, digest: &Digest, actor: &Actor) -> Result<()> {
        let (repo, digest, actor) = (repo.clone(), digest.clone(), actor.clone());
        self.blocking(move |inner| inner.delete_blob(&repo, &digest, &actor)).await
    }
}

impl Inner {
    fn delete_blob(&self, repo: &RepoName, digest: &Digest, actor: &Actor) -> Result<()> {
        let unknown = || Error::BlobUnknown { repo: repo.clone(), digest: digest.clone() };
        let dir = self.tree.repository(repo)?.ok_or_else(unknown)?;
        if blobs::stat(&dir, digest)?.is_none() {
            return Err(unknown());
        }
        // Reading all manifests may take a while: the locks are taken afterwards, and it is read again
        // only if index.json changed meanwhile.
        let looked = self.refuse_referenced(repo, &dir, digest, None)?;
        let gc = lock::exclusive_within(&self.tree.room, path::GC_LOCK, GC_LOCK_WAIT)?;
        let Some(_gc) = gc else {
            return Err(Error::Busy { path: self.tree.room.at(path::GC_LOCK) });
        };
        let Some(_held) = lock::exclusive_within(&dir, path::LOCK, lock::REQUEST_WAIT)? else {
            return Err(Error::Busy { path: dir.at(path::LOCK) });
        };
        self.refuse_referenced(repo, &dir, digest, looked)?;
        let blobs = dir.dir(&path::blobs(digest.algorithm()))?;
        self.tree.disk.unlink(&blobs, digest.hex()).or_absent()?.ok_or_else(unknown)?;
        self.tree.disk.sync_dir(&blobs)?;
        tracing::debug!(%repo, %digest, who = actor.who, "blob removed");
        Ok(())
    }

    /// Fails if a manifest refers to the blob. Gives the index.json that was looked at; one that is
    /// `known` already is not looked at again.
    fn refuse_referenced(
        &self,
        repo: &RepoName,
        dir: &Dir,
        digest: &Digest,
        known: Option<Stamp>,
    ) -> Result<Option<Stamp>> {
        let Some(file) = self.index(repo, dir, Meanwhile::Wait)? else { return Ok(None) };
        if known == Some(file.stamp) {
            return Ok(known);
        }
        match graph::referrer_of_blob(dir, &file.index, digest)? {
            Some(by) => Err(Error::BlobInUse { digest: digest.clone(), by }),
            None => Ok(Some(file.stamp)),
        }
    }
}
