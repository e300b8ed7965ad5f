//! Pulling and pushing manifests.

use std::collections::HashSet;

use bytes::Bytes;

use super::commit::{Deed, Refusal};
use super::indexes::Meanwhile;
use super::{Actor, Destination, Error, Inner, Registry, Result};
use crate::graph;
use crate::layout::blobs::{self, Presence, Target};
use crate::layout::facts::Fact;
use crate::layout::{self, Account, Dir, IndexFile, path};
use crate::oci::{Algorithm, Change, Descriptor, Digest, Manifest, Reference, RepoName, Tag};

/// A manifest as it was pushed, byte for byte.
#[derive(Clone, Debug)]
pub struct StoredManifest {
    /// Its digest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Its bytes.
    pub bytes: Bytes,
}

/// A manifest to be pushed.
#[derive(Clone, Debug)]
pub struct Push {
    /// Where to: a tag, or its own digest.
    pub reference: Reference,
    /// More tags that are to name it.
    pub tags: Vec<Tag>,
    /// The request's media type.
    pub content_type: Option<String>,
    /// The bytes.
    pub bytes: Bytes,
}

/// A manifest that was pushed: durable, and named by every tag asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Pushed {
    /// Its digest.
    pub digest: Digest,
    /// The manifest that it refers to.
    pub subject: Option<Digest>,
    /// The additional tags.
    pub tags: Vec<Tag>,
    /// What that changed in the repository: nothing, if all was so before.
    pub changes: Vec<Change>,
}

/// How often a push or a pull begins again because files vanished or changed under it.
const TRIES: usize = 5;

impl Registry {
    /// A manifest by tag or digest ("Pulling manifests") that `reader` may read.
    pub async fn manifest(
        &self,
        repo: &RepoName,
        reference: &Reference,
        reader: &Account,
    ) -> Result<StoredManifest> {
        if let Some(known) = self.inner.known_manifest(repo, reference, reader) {
            return Ok(known);
        }
        let (repo, reference, reader) = (repo.clone(), reference.clone(), reader.clone());
        self.blocking(move |inner| inner.manifest(&repo, &reference, &reader)).await
    }

    /// Stores a manifest and makes its tags name it ("Pushing manifests").
    ///
    /// When this returns, manifest and tags survive a power cut, with all that the manifest refers
    /// to. On an error no reader sees anything of it.
    pub async fn put_manifest(&self, repo: &RepoName, push: Push, actor: &Actor) -> Result<Pushed> {
        let (name, pusher) = (repo.clone(), actor.clone());
        let first = self.blocking(move |inner| {
            // A manifest of 4 MiB takes a while to read and to hash.
            let mut put = Put::of(&push)?;
            let to = Destination::new(&name, &put.descriptor.digest, &pusher);
            put.bad = inner.store(&to, &put, &push.bytes)?;
            Ok((put, push))
        });
        let (mut put, push) = first.await?;
        for again in 0..TRIES {
            if again > 0 {
                put.bad = self.store(repo, &put, &push.bytes, actor).await?;
            }
            match self.commit(repo, Deed::Put(Box::new(put.clone())), actor).await {
                Ok(changes) => {
                    let Put { descriptor, fact, .. } = put;
                    let (digest, subject) = (descriptor.digest, fact.subject);
                    return Ok(Pushed { digest, subject, tags: push.tags, changes });
                }
                // Collected, replaced or dropped in between the look and the lock: look again.
                Err(Refusal::LookAgain) => {}
                Err(Refusal::Error(error)) => return Err(error),
            }
        }
        Err(Error::Moved(repo.clone()))
    }

    async fn store(
        &self,
        repo: &RepoName,
        put: &Put,
        bytes: &Bytes,
        actor: &Actor,
    ) -> Result<HashSet<Digest>> {
        let (put, bytes) = (put.clone(), bytes.clone());
        let to = Destination::new(repo, &put.descriptor.digest, actor);
        self.blocking(move |inner| inner.store(&to, &put, &bytes)).await
    }
}

/// What a push of a manifest asks the commit for.
#[derive(Clone, Debug)]
pub(super) struct Put {
    pub(super) descriptor: Descriptor,
    pub(super) fact: Fact,
    pub(super) required: Vec<Descriptor>,
    pub(super) tags: Vec<Tag>,
    /// Files under the names of required blobs whose content was found to be something else, or
    /// nothing that the pusher may read: they count as absent.
    pub(super) bad: HashSet<Digest>,
}

impl Put {
    fn of(push: &Push) -> Result<Put> {
        let manifest = Manifest::parse(&push.bytes, push.content_type.as_deref())?;
        let digest = digest_of(push)?;
        let mut tags = push.tags.clone();
        if let Reference::Tag(tag) = &push.reference {
            tags.push(tag.clone());
        }
        let size = push.bytes.len() as u64;
        Ok(Put {
            descriptor: describe(&manifest, digest.clone(), size),
            fact: Fact::of(digest, size, &manifest),
            required: manifest.required().cloned().collect(),
            tags,
            bad: HashSet::new(),
        })
    }
}

/// The digest under which the manifest is stored: the one it was pushed by.
fn digest_of(push: &Push) -> Result<Digest> {
    match &push.reference {
        Reference::Tag(_) => Ok(Digest::of(Algorithm::Sha256, &push.bytes)),
        Reference::Digest(expected) => {
            let actual = Digest::of(expected.algorithm(), &push.bytes);
            if actual == *expected {
                Ok(actual)
            } else {
                Err(Error::DigestMismatch { expected: expected.clone(), actual })
            }
        }
    }
}

fn describe(manifest: &Manifest, digest: Digest, size: u64) -> Descriptor {
    let artifact_type = match &manifest.config {
        // A plain image is no artifact: its config's type would say nothing.
        Some(config) if manifest.artifact_type.as_ref() == Some(&config.media_type) => None,
        _ => manifest.artifact_type.clone(),
    };
    Descriptor { artifact_type, ..Descriptor::new(manifest.kind.media_type(), digest, size) }
}

impl Inner {
    /// A manifest of which everything is known, validated by three looks at what the kernel has in
    /// memory: no thread is needed for that, which may have to wait for a disk. `None` if anything has to
    /// be read, or is not as it should be.
    fn known_manifest(
        &self,
        repo: &RepoName,
        reference: &Reference,
        reader: &Account,
    ) -> Option<StoredManifest> {
        let (file, dir) = (self.known_index(repo, reader)?, reader.seen(repo)?);
        let entry = match reference {
            Reference::Tag(tag) => file.index.tagged(tag),
            Reference::Digest(digest) => file.index.find(digest),
        };
        let Descriptor { digest, media_type, .. } = entry.filter(|e| !e.media_type.is_empty())?;
        let stat = blobs::stat_at_hand(&self.tree, &dir, &digest)?;
        let bytes = self.contents.get(&digest, &stat)?;
        Some(StoredManifest { digest, media_type, bytes })
    }

    /// A tag's manifest may be deleted with its content, or lose the tag, after index.json was read: where
    /// it is not there, it is looked for again. It is missing if index.json is the same by then.
    fn manifest(
        &self,
        repo: &RepoName,
        reference: &Reference,
        reader: &Account,
    ) -> Result<StoredManifest> {
        let unknown =
            || Error::ManifestUnknown { repo: repo.clone(), reference: reference.clone() };
        let dir = self.looked_up(repo, reader)?.ok_or_else(unknown)?;
        let mut missed = None;
        for _ in 0..TRIES {
            if missed.is_some() {
                // What index.json said before another tool began to write it does not do any more.
                self.index(repo, &dir, Meanwhile::Wait)?;
            }
            let index = self.index_for(repo, &dir, reader)?.ok_or_else(unknown)?;
            let descriptor = self.resolve(repo, &dir, &index, reference)?.ok_or_else(unknown)?;
            if let Some(manifest) = self.stored(&dir, &descriptor, reader)? {
                return Ok(manifest);
            }
            // The child of a sparse index is simply absent.
            if let Reference::Digest(_) = reference {
                return Err(unknown());
            }
            let digest = descriptor.digest;
            if missed.replace(index.stamp) == Some(index.stamp) {
                let is_there = blobs::stat(&dir, &digest)?.is_some();
                let missing = || layout::Error::damaged(dir.at(&path::blob(&digest)), "is missing");
                // What the reader may not read is not told of.
                return Err(if is_there { unknown() } else { missing().into() });
            }
        }
        Err(Error::Busy { path: dir.at(path::INDEX) })
    }

    /// The manifest that a descriptor names; `None` if it is not there, or not for the reader.
    fn stored(
        &self,
        dir: &Dir,
        descriptor: &Descriptor,
        reader: &Account,
    ) -> Result<Option<StoredManifest>> {
        let digest = descriptor.digest.clone();
        let read = graph::manifest_bytes_for(&self.tree, dir, &digest, reader)?;
        let Some((bytes, blob)) = read else { return Ok(None) };
        let bytes = Bytes::from(bytes);
        if blob.is_ours(&self.tree) {
            self.contents.put(&digest, blob.stat(), &bytes);
        }
        let media_type = match descriptor.media_type.as_str() {
            "" => untyped(dir, &digest, &bytes)?,
            known => known.to_owned(),
        };
        Ok(Some(StoredManifest { digest, media_type, bytes }))
    }

    /// What index.json names, or an index there contains; and nothing else that lies in blobs/.
    fn resolve(
        &self,
        repo: &RepoName,
        dir: &Dir,
        index: &IndexFile,
        reference: &Reference,
    ) -> Result<Option<Descriptor>> {
        let digest = match reference {
            Reference::Tag(tag) => return Ok(index.index.tagged(tag)),
            Reference::Digest(digest) => digest,
        };
        if let Some(found) = index.index.find(digest) {
            return Ok(Some(found));
        }
        if blobs::stat(dir, digest)?.is_none() {
            return Ok(None);
        }
        self.with_knowledge(repo, dir, index, |known| known.contained(digest).cloned())
    }

    /// Makes sure that all a manifest needs is there, and stores the manifest's own bytes. Gives
    /// what lies there under a wrong name.
    fn store(&self, to: &Destination, put: &Put, bytes: &[u8]) -> Result<HashSet<Digest>> {
        let Destination { repo, digest, account } = to;
        let mut bad = HashSet::new();
        if let Some(dir) = self.tree.repository_for(repo, account)? {
            let target = Target { name: repo, dir: &dir };
            let absent = self.absent(target, &put.required, account, &mut bad)?;
            self.refuse_absent(absent)?;
        } else {
            self.refuse_absent(put.required.iter().map(|r| r.digest.clone()).collect())?;
        }
        let dir = self.tree.make_repository(repo, account)?;
        let target = Target { name: repo, dir: &dir };
        blobs::admit_bytes(&self.tree, &self.holders, target, bytes, digest)?;
        Ok(bad)
    }

    /// Which of the references the repository does not have. Foreign files are adopted on the way;
    /// those that are not what their name says, or nothing that the pusher may read, are absent, and
    /// `bad`.
    fn absent(
        &self,
        target: Target<'_>,
        required: &[Descriptor],
        pusher: &Account,
        bad: &mut HashSet<Digest>,
    ) -> Result<Vec<Digest>> {
        let mut absent = Vec::new();
        // Each once, in the order of the manifest; there may be tens of thousands.
        let mut seen = HashSet::new();
        for Descriptor { digest, size, .. } in required {
            let there = match blobs::presence(&self.tree, target.dir, digest, *size)? {
                Presence::Ours => true,
                Presence::Absent => false,
                Presence::Foreign if bad.contains(digest) => false,
                Presence::Foreign => {
                    if !blobs::stat(target.dir, digest)?.is_some_and(|s| self.tree.is_ours(&s)) {
                        self.space.check_size(*size)?;
                    }
                    let adopted = blobs::adopt(&self.tree, &self.holders, target, digest, pusher)?;
                    if !adopted {
                        bad.insert(digest.clone());
                    }
                    adopted
                }
            };
            if !there && seen.insert(digest.clone()) {
                absent.push(digest.clone());
            }
        }
        Ok(absent)
    }

    /// Fails if anything is absent, unless sparse manifests are taken.
    pub(super) fn refuse_absent(&self, absent: Vec<Digest>) -> Result<()> {
        if absent.is_empty() || self.settings.allow_sparse {
            return Ok(());
        }
        Err(Error::ManifestBlobUnknown(absent))
    }
}

/// The type of a manifest that index.json lists without one.
fn untyped(dir: &Dir, digest: &Digest, bytes: &[u8]) -> Result<String> {
    match Manifest::parse_untyped(bytes) {
        Ok(manifest) => Ok(manifest.kind.media_type().to_owned()),
        Err(error) => Err(layout::Error::damaged(dir.at(&path::blob(digest)), error).into()),
    }
}
