//! Lists: tags, referrers, the catalogue.

use std::sync::{Arc, Mutex};

use rustix::io::Errno;

use super::{Error, Inner, MayRead, Registry, Result, locked};
use crate::graph::{self, Knowledge};
use crate::layout::facts::Fact;
use crate::layout::{Account, Blob, Dir, IndexFile, Walk};
use crate::oci::{Descriptor, Digest, MAX_MANIFEST, RepoName, Tag};

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

/// Knowledge is kept for this many repositories, and for as many bytes in all.
const MOST_KNOWN: usize = 64;
const MOST_KNOWN_BYTES: usize = 64 * 1024 * 1024;

impl Registry {
    /// A repository's tags after `last`, in lexical order ("Listing Tags").
    pub async fn tags(
        &self,
        repo: &RepoName,
        last: Option<&str>,
        n: usize,
        reader: &Account,
    ) -> Result<Page<Tag>> {
        if let Some(file) = self.inner.known_index(repo, reader)
            && !file.index.is_empty()
        {
            return Ok(Page::of(n, file.index.tags_after(last).cloned()));
        }
        let (repo, last, reader) = (repo.clone(), last.map(str::to_owned), reader.clone());
        self.blocking(move |inner| inner.tags(&repo, last.as_deref(), n, &reader)).await
    }

    /// The manifests after `last` that refer to `subject`, of one artifact type or of all ("Listing
    /// Referrers"), in the order of their digests. For what is unknown the list is empty. It ends
    /// one descriptor after the first that makes it longer than a manifest may be.
    pub async fn referrers(
        &self,
        repo: &RepoName,
        subject: &Digest,
        artifact_type: Option<&str>,
        last: Option<&Digest>,
        reader: &Account,
    ) -> Result<Vec<Descriptor>> {
        let (repo, subject, last) = (repo.clone(), subject.clone(), last.cloned());
        let reader = reader.clone();
        let artifact_type = artifact_type.map(str::to_owned);
        self.blocking(move |inner| {
            inner.referrers(&repo, &subject, artifact_type.as_deref(), last.as_ref(), &reader)
        })
        .await
    }

    /// The repositories after `last` that the caller may pull from, in the order of their names.
    pub async fn catalog(
        &self,
        last: Option<&str>,
        n: usize,
        may_read: MayRead,
        reader: &Account,
    ) -> Result<Page<RepoName>> {
        let (last, reader) = (last.map(str::to_owned), reader.clone());
        self.blocking(move |inner| inner.catalog(last.as_deref(), n, &may_read, &reader)).await
    }
}

impl Inner {
    fn tags(
        &self,
        repo: &RepoName,
        last: Option<&str>,
        n: usize,
        reader: &Account,
    ) -> Result<Page<Tag>> {
        let unknown = || Error::NameUnknown(repo.clone());
        let dir = self.looked_up(repo, reader)?.ok_or_else(unknown)?;
        match self.index_for(repo, &dir, reader)? {
            Some(file) if !file.index.is_empty() => {
                Ok(Page::of(n, file.index.tags_after(last).cloned()))
            }
            _ => Err(unknown()),
        }
    }

    fn referrers(
        &self,
        repo: &RepoName,
        subject: &Digest,
        artifact_type: Option<&str>,
        last: Option<&Digest>,
        reader: &Account,
    ) -> Result<Vec<Descriptor>> {
        let Some(dir) = self.tree.repository_for(repo, reader)? else {
            return Ok(Vec::new());
        };
        let Some(index) = self.index_for(repo, &dir, reader)? else {
            return Ok(Vec::new());
        };
        let wanted = |fact: &Fact| {
            let unsaid = fact.more && fact.artifact_type.is_none();
            artifact_type.is_none() || unsaid || fact.artifact_type.as_deref() == artifact_type
        };
        let facts: Vec<(Arc<Fact>, bool)> = self.with_knowledge(repo, &dir, &index, |known| {
            let after = known.referrers(subject).filter(|f| last.is_none_or(|l| f.digest > *l));
            let wanted = after.filter(|fact| wanted(fact));
            wanted.map(|fact| (Arc::clone(fact), known.is_closed(&fact.digest))).collect()
        })?;
        // What is known of them is known for everybody who asks; they themselves may not be.
        let may = |fact: &Fact| {
            let opened = Blob::open(&self.tree, &dir, &fact.digest, reader);
            opened.map(|opened| opened.is_some()).unwrap_or_else(left_out)
        };
        let facts = facts.iter().filter(|(fact, closed)| !closed || may(fact));
        let found = facts.filter_map(|(fact, _)| listed(&dir, fact));
        Ok(cut(found
            .filter(|d| artifact_type.is_none() || d.artifact_type.as_deref() == artifact_type)))
    }

    /// Looks at what is known of a repository's manifests, brought up to date with its index.json;
    /// one at a time does that.
    pub(super) fn with_knowledge<T>(
        &self,
        repo: &RepoName,
        dir: &Dir,
        index: &IndexFile,
        look: impl FnOnce(&Knowledge) -> T,
    ) -> Result<T> {
        let knowledge = self.knowledge(repo);
        let mut known = locked(&knowledge);
        known.refresh(&self.tree, dir, index)?;
        let seen = look(&known);
        drop(known);
        self.forget_too_much();
        Ok(seen)
    }

    pub(super) fn knowledge(&self, repo: &RepoName) -> Arc<Mutex<Knowledge>> {
        let mut known = locked(&self.knowledge);
        if known.len() >= MOST_KNOWN && !known.contains_key(repo) {
            known.clear();
        }
        Arc::clone(known.entry(repo.clone()).or_default())
    }

    /// Whoever is busy with theirs comes here afterwards, and it counts then.
    pub(super) fn forget_too_much(&self) {
        let mut known = locked(&self.knowledge);
        let weights = known.values().filter_map(|one| one.try_lock().ok().map(|k| k.weight()));
        if weights.sum::<usize>() > MOST_KNOWN_BYTES {
            known.clear();
        }
    }

    fn catalog(
        &self,
        last: Option<&str>,
        n: usize,
        may_read: &MayRead,
        reader: &Account,
    ) -> Result<Page<RepoName>> {
        let walk = Walk::after(&self.tree.root, last)?;
        let listed = |(name, dir): (RepoName, Dir)| -> Result<Option<RepoName>> {
            let listed = may_read(&name)?.is_some() && self.has_entries(&name, &dir, reader);
            Ok(listed.then_some(name))
        };
        let names = walk.filter_map(|found| match found.map_err(Error::from).and_then(listed) {
            Err(error) if !is_short(&error) => {
                tracing::warn!(%error, "a directory is left out of the catalogue");
                None
            }
            found => found.transpose(),
        });
        // One more is looked at, as for every page.
        let names: Vec<RepoName> = names.take(n.saturating_add(1)).collect::<Result<_>>()?;
        Ok(Page::of(n, names.into_iter()))
    }

    /// Whether an index.json has an entry. One that cannot be read is listed: whoever asks for the
    /// repository then learns that it is damaged.
    fn has_entries(&self, name: &RepoName, dir: &Dir, reader: &Account) -> bool {
        match self.index_for(name, dir, reader) {
            Ok(file) => file.is_some_and(|file| !file.index.is_empty()),
            Err(error) => {
                tracing::error!(%error, "a repository cannot be read");
                true
            }
        }
    }
}

/// Whether the machine was out of something: then nothing is known of the directory, and a list without
/// it would be a lie.
fn is_short(error: &Error) -> bool {
    let Error::Layout(error) = error else { return false };
    matches!(error.errno(), Some(Errno::NOMEM | Errno::MFILE | Errno::NFILE))
}

/// One broken manifest must not hide the others; `check` reports it.
fn listed(dir: &Dir, fact: &Fact) -> Option<Descriptor> {
    graph::referrer(dir, fact).unwrap_or_else(left_out)
}

fn left_out<T: Default>(error: crate::layout::Error) -> T {
    tracing::error!(%error, "a manifest cannot be read and is left out");
    T::default()
}

/// Takes what one answer can hold and one more, so that it shows whether that was all.
fn cut(found: impl Iterator<Item = Descriptor>) -> Vec<Descriptor> {
    let mut items = Vec::new();
    let (mut size, mut full) = (0, false);
    for descriptor in found {
        size += serde_json::to_vec(&descriptor).map_or(0, |json| json.len());
        items.push(descriptor);
        if full {
            break;
        }
        full = size > MAX_MANIFEST;
    }
    items
}
