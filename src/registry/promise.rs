//! Promises: what a pusher relies on, collection leaves alone (PROTOCOL.md, "Promises and
//! collection").

use super::commit::{Deed, Refusal};
use super::{Actor, Error, Inner, Registry, Result};
use crate::layout::notes;
use crate::oci::{Digest, RepoName};

impl Registry {
    /// Makes sure that collection does not take a blob: to be called **before** the last look at it.
    ///
    /// Almost always there is no note of collection's, and this is one look. Where there is one, it
    /// is removed under the repository's lock, which is waited for in the commit's queue: one waiter
    /// for a repository, however many ask.
    pub(super) async fn promise(
        &self,
        repo: &RepoName,
        digest: &Digest,
        actor: &Actor,
    ) -> Result<()> {
        let (name, wanted) = (repo.clone(), digest.clone());
        if !self.blocking(move |inner| Ok(notes::is_noted(&inner.tree, &name, &wanted)?)).await? {
            return Ok(());
        }
        self.promise_noted(repo, digest, actor).await
    }

    /// The same where there is a note.
    pub(super) async fn promise_noted(
        &self,
        repo: &RepoName,
        digest: &Digest,
        actor: &Actor,
    ) -> Result<()> {
        match self.commit(repo, Deed::Promise(digest.clone()), actor).await {
            Ok(_) => Ok(()),
            // A repository that is not there any more has nothing that could be taken; but the blob
            // that begins it anew must not come in under the note of the one before.
            Err(Refusal::Error(Error::NameUnknown(_))) => {
                let (name, wanted) = (repo.clone(), digest.clone());
                let forget =
                    move |inner: &Inner| Ok(notes::promise(&inner.tree, &name, [&wanted])?);
                self.blocking(forget).await
            }
            Err(Refusal::Error(error)) => Err(error),
            Err(Refusal::LookAgain) => Err(Error::Moved(repo.clone())),
        }
    }
}
