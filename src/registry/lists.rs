//! Lists: tags, referrers, the catalogue.

use std::sync::{Arc, Mutex};

use super::indexes::Meanwhile;
use super::{Error, Inner, MayRead, Registry, Result, locked};
use crate::graph::Knowledge;
use crate::layout::Walk;
use crate::oci::{Descriptor, Digest, RepoName, Tag};

/// Part of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// The items, in their order.
    pub items: Vec<T>,
    /// Whether more follow.
    pub more: bool,
}

impl<T> Page<T> {
    /// Takes `n` items; one more is looked at, to know whether it is the end.
    fn of(n: usize, items: impl Iterator<Item = T>) -> Page<T> {
        let mut items: Vec<T> = items.take(n.saturating_add(1)).collect();
        let more = n > 0 && items.len() > n;
        items.truncate(n);
        Page { items, more }
    }
}

/// Knowledge is kept for this many repositories.
const MOST_KNOWN: usize = 64;

impl Registry {
    /// A repository's tags after `last`, in lexical order ("Listing Tags").
    pub async fn tags(&self, repo: &RepoName, last: Option<&str>, n: usize) -> Result<Page<Tag>> {
        let (repo, last) = (repo.clone(), last.map(str::to_owned));
        self.blocking(move |inner| inner.tags(&repo, last.as_deref(), n)).await
    }

    /// The manifests that refer to `subject`, of one artifact type or of all ("Listing
    /// Referrers"). For what is unknown the list is empty.
    pub async fn referrers(
        &self,
        repo: &RepoName,
        subject: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>> {
        let (repo, subject) = (repo.clone(), subject.clone());
        let artifact_type = artifact_type.map(str::to_owned);
        self.blocking(move |inner| inner.referrers(&repo, &subject, artifact_type.as_deref())).await
    }

    /// The repositories after `last` that the caller may pull from, in the order of their names.
    pub async fn catalog(
        &self,
        last: Option<&str>,
        n: usize,
        may_read: MayRead,
    ) -> Result<Page<RepoName>> {
        let last = last.map(str::to_owned);
        self.blocking(move |inner| inner.catalog(last.as_deref(), n, &may_read)).await
    }
}

impl Inner {
    fn tags(&self, repo: &RepoName, last: Option<&str>, n: usize) -> Result<Page<Tag>> {
        let dir = self.repository(repo)?;
        match self.index(repo, &dir, Meanwhile::LastGood)? {
            Some(file) if !file.index.is_empty() => {
                Ok(Page::of(n, file.index.tags_after(last).cloned()))
            }
            _ => Err(Error::NameUnknown(repo.clone())),
        }
    }

    fn referrers(
        &self,
        repo: &RepoName,
        subject: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>> {
        let Some(dir) = self.tree.repository(repo)? else {
            return Ok(Vec::new());
        };
        let Some(index) = self.index(repo, &dir, Meanwhile::LastGood)? else {
            return Ok(Vec::new());
        };
        let knowledge = self.knowledge(repo);
        let mut knowledge = locked(&knowledge);
        knowledge.refresh(&self.tree, &dir, &index)?;
        let wanted = |fact: &&Arc<crate::layout::facts::Fact>| {
            artifact_type.is_none() || fact.artifact_type.as_deref() == artifact_type
        };
        Ok(knowledge.referrers(subject).filter(wanted).map(|fact| fact.descriptor()).collect())
    }

    /// What is known of a repository's manifests; one at a time brings it up to date.
    pub(super) fn knowledge(&self, repo: &RepoName) -> Arc<Mutex<Knowledge>> {
        let mut known = locked(&self.knowledge);
        if known.len() >= MOST_KNOWN && !known.contains_key(repo) {
            known.clear();
        }
        Arc::clone(known.entry(repo.clone()).or_default())
    }

    fn catalog(&self, last: Option<&str>, n: usize, may_read: &MayRead) -> Result<Page<RepoName>> {
        let walk = Walk::after(&self.tree.root, last)?;
        let names = walk.filter_map(|found| match found {
            Ok((name, dir)) => (may_read(&name) && self.has_entries(&name, &dir)).then_some(name),
            Err(error) => {
                tracing::warn!(%error, "a directory is left out of the catalogue");
                None
            }
        });
        Ok(Page::of(n, names))
    }

    /// Whether an index.json has an entry. One that cannot be read is listed: whoever asks for the
    /// repository then learns that it is damaged.
    fn has_entries(&self, name: &RepoName, dir: &crate::layout::Dir) -> bool {
        match self.index(name, dir, Meanwhile::LastGood) {
            Ok(file) => file.is_some_and(|file| !file.index.is_empty()),
            Err(error) => {
                tracing::error!(%error, "a repository cannot be read");
                true
            }
        }
    }
}
