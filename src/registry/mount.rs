//! Mounting: a blob of one repository becomes a blob of another by a link.

use super::{Actor, Destination, Inner, MayRead, Registry, Result};
use crate::layout::blobs::{self, Target};
use crate::layout::{self, Account, Dir, path, size_of};
use crate::oci::{Digest, RepoName};

/// Where a mount takes the blob from.
#[derive(Clone)]
pub enum MountFrom {
    /// A repository that the caller may pull from, and the account that was let through there.
    Repo(RepoName, Account),
    /// Any repository that the caller may pull from.
    Anywhere(MayRead),
}

/// More repositories than this are not tried for one mount that names no source.
const MOST_SOURCES: usize = 1000;

impl Registry {
    /// Mounts a blob ("Mounting a blob from another repository"): one link(2), whatever its size.
    /// `false` if no source has it: the client uploads it instead.
    pub async fn mount(
        &self,
        repo: &RepoName,
        digest: &Digest,
        from: MountFrom,
        actor: &Actor,
    ) -> Result<bool> {
        self.promise(repo, digest, actor).await?;
        let to = Destination::new(repo, digest, actor);
        self.blocking(move |inner| match from {
            MountFrom::Repo(source, reader) => inner.mount(&to, &source, &reader),
            MountFrom::Anywhere(may_read) => inner.mount_anywhere(&to, &may_read),
        })
        .await
    }
}

impl Inner {
    /// A source that cannot be read has nothing to give: it is logged, and the client is not told.
    fn mount(&self, to: &Destination, source: &RepoName, reader: &Account) -> Result<bool> {
        match self.source(source, &to.digest, reader) {
            Ok(Some(dir)) => self.mount_from(to, &dir, reader),
            Ok(None) => Ok(false),
            Err(error) => Ok(passed_over(&error)),
        }
    }

    /// The source's directory, if the blob is there.
    fn source(
        &self,
        name: &RepoName,
        digest: &Digest,
        reader: &Account,
    ) -> layout::Result<Option<Dir>> {
        let Some(dir) = self.tree.repository_for(name, reader)? else {
            return Ok(None);
        };
        let Some(stat) = blobs::stat(&dir, digest)? else {
            return Ok(None);
        };
        // Somebody else's file is copied.
        if !self.tree.is_ours(&stat) {
            self.space.check_size(size_of(&stat))?;
        }
        Ok(Some(dir))
    }

    fn mount_anywhere(&self, to: &Destination, may_read: &MayRead) -> Result<bool> {
        let sources = self.holders.of(&self.tree, &to.digest)?;
        // One of which nobody knows whether it may be read gives nothing: the client uploads.
        let readable = sources.iter().filter_map(|name| Some((name, may_read(name).ok()??)));
        for (source, reader) in readable.take(MOST_SOURCES) {
            if self.mount(to, source, &reader)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn mount_from(&self, to: &Destination, source: &Dir, reader: &Account) -> Result<bool> {
        let dir = self.tree.make_repository(&to.repo, &to.account)?;
        let target = Target { name: &to.repo, dir: &dir };
        match blobs::mount(&self.tree, &self.holders, target, source, &to.digest, reader) {
            Err(error) if is_of(source, &error) => Ok(passed_over(&error)),
            done => Ok(done?),
        }
    }
}

/// Whether it was the source's blob that could not be read.
fn is_of(source: &Dir, error: &layout::Error) -> bool {
    error.path().starts_with(source.at(path::BLOBS))
}

fn passed_over(error: &layout::Error) -> bool {
    tracing::warn!(%error, "a mount's source cannot be read and is passed over");
    false
}
