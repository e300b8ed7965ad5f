//! Deleting.

use std::time::Duration;

use super::commit::{Deed, Refusal};
use super::indexes::Meanwhile;
use super::{Actor, Error, Inner, Registry, Result};
use crate::graph;
use crate::layout::{Account, Dir, Stamp, blobs, lock, path};
use crate::oci::{Change, Digest, Index, Reference, RepoName};

/// How long a request waits for whoever copies or collects the tree.
const GC_LOCK_WAIT: Duration = Duration::from_secs(2);

impl Registry {
    /// Removes a tag, or a manifest with all its tags ("Deleting tags", "Deleting Manifests").
    /// When this returns, the changes survive a power cut.
    pub async fn delete_manifest(
        &self,
        repo: &RepoName,
        reference: &Reference,
        actor: &Actor,
    ) -> Result<Vec<Change>> {
        let deed = match reference {
            Reference::Tag(tag) => Deed::Untag(tag.clone()),
            Reference::Digest(digest) => Deed::Remove(digest.clone()),
        };
        self.delete(repo, deed, actor).await
    }

    /// Takes manifests that have no tag out of a repository's index.json, by one commit, on nobody's
    /// behalf. `false` if index.json is another one than that with the stamp by now.
    pub async fn take_out(
        &self,
        repo: &RepoName,
        looked: Stamp,
        digests: Vec<Digest>,
    ) -> Result<bool> {
        match self.commit(repo, Deed::TakeOut(digests, looked), &Actor::default()).await {
            Ok(_) => Ok(true),
            Err(Refusal::LookAgain) => Ok(false),
            Err(Refusal::Error(error)) => Err(error),
        }
    }

    /// Removes a blob that no manifest of the repository refers to ("Deleting Blobs"). The trash
    /// keeps the content for the undo window.
    pub async fn delete_blob(&self, repo: &RepoName, digest: &Digest, actor: &Actor) -> Result<()> {
        let (name, wanted, account) = (repo.clone(), digest.clone(), actor.account.clone());
        let looked = self.blocking(move |inner| inner.unreferenced(&name, &wanted, &account));
        let (looked, _gc) = looked.await?;
        self.delete(repo, Deed::Unlink(digest.clone(), looked), actor).await.map(|_| ())
    }

    async fn delete(&self, repo: &RepoName, deed: Deed, actor: &Actor) -> Result<Vec<Change>> {
        match self.commit(repo, deed, actor).await {
            Ok(changes) => Ok(changes),
            Err(Refusal::Error(error)) => Err(error),
            Err(Refusal::LookAgain) => Err(Error::Moved(repo.clone())),
        }
    }
}

impl Inner {
    /// Makes sure that nothing refers to a blob, then takes gc.lock, which comes before the
    /// repository's. Reading all manifests may take a while and needs no lock: whoever commits looks
    /// again if index.json is another one by then.
    fn unreferenced(
        &self,
        repo: &RepoName,
        digest: &Digest,
        account: &Account,
    ) -> Result<(Option<Stamp>, lock::Held)> {
        let unknown = || Error::BlobUnknown { repo: repo.clone(), digest: digest.clone() };
        let dir = self.tree.repository_for(repo, account)?.ok_or_else(unknown)?;
        if blobs::stat(&dir, digest)?.is_none() {
            return Err(unknown());
        }
        let file = self.index(repo, &dir, Meanwhile::Wait)?;
        if let Some(file) = &file {
            self.refuse_referenced(&dir, &file.index, digest)?;
        }
        match lock::exclusive_within(&self.tree.room, path::GC_LOCK, GC_LOCK_WAIT)? {
            Some(held) => Ok((file.map(|file| file.stamp), held)),
            None => Err(Error::Busy { path: self.tree.room.at(path::GC_LOCK) }),
        }
    }

    /// Fails if a manifest that an index names, or contains, refers to the blob.
    pub(super) fn refuse_referenced(
        &self,
        dir: &Dir,
        index: &Index,
        digest: &Digest,
    ) -> Result<()> {
        match graph::referrer_of_blob(dir, index, digest)? {
            Some(by) => Err(Error::BlobInUse { digest: digest.clone(), by }),
            None => Ok(()),
        }
    }
}
