//! Which blob refers to which.

mod marks;
pub mod views;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub use marks::{Cause, INDEX, Marks};

use crate::layout::facts::{self, Fact, Position};
use crate::layout::readers::Readers;
use crate::layout::{
    Account, Blob, Dir, Error, IndexFile, Result, Stamp, Tree, blobs, lock, path, read_all,
};
use crate::oci::{Descriptor, Digest, Index, Kind, MAX_MANIFEST, Manifest};

/// Reads a manifest's bytes from a repository; `None` if they are not there.
///
/// # Errors
/// Bytes that do not have the digest are damage, never an answer.
pub fn read_manifest_bytes(repo: &Dir, digest: &Digest) -> Result<Option<Vec<u8>>> {
    let Some((file, _)) = blobs::open(repo, digest)? else {
        return Ok(None);
    };
    bytes_of(&file, digest, &repo.at(&path::blob(digest))).map(Some)
}

/// Reads a manifest's bytes on behalf of an account; `None` if they are not there, or not for it.
///
/// # Errors
/// As above.
pub fn manifest_bytes_for(
    tree: &Tree,
    repo: &Dir,
    digest: &Digest,
    reader: &Account,
) -> Result<Option<Vec<u8>>> {
    let mut tries = TRIES;
    loop {
        let Some(blob) = Blob::open(tree, repo, digest, reader)? else { return Ok(None) };
        match bytes_of(blob.file(), digest, blob.path()) {
            Err(Error::Damaged { .. }) if tries > 0 && may_be_half_written(&blob) => {
                tries -= 1;
                // Nobody tells when the other tool is done.
                std::thread::sleep(AGAIN);
            }
            read => return read.map(Some),
        }
    }
}

/// So often, and after so long, a manifest is read again that was written to a moment ago: skopeo cuts one
/// that is there to nothing and writes it anew, in place.
const TRIES: usize = 25;
const AGAIN: Duration = Duration::from_millis(20);

/// What is longer than any manifest does not become one.
fn may_be_half_written(blob: &Blob) -> bool {
    blob.size() <= MAX_MANIFEST as u64 && blob.was_just_written()
}

fn bytes_of(file: &File, digest: &Digest, path: &Path) -> Result<Vec<u8>> {
    let bytes = read_all(file, MAX_MANIFEST as u64, || path.to_owned())?;
    if Digest::of(digest.algorithm(), &bytes) != *digest {
        return Err(Error::damaged(path, "the manifest's bytes do not have the digest"));
    }
    Ok(bytes)
}

/// Reads and parses what a descriptor names; `None` if it is not there, or is no manifest but a
/// plain blob, as in BuildKit's caches. What has no type is a manifest if it has the shape of one.
///
/// # Errors
/// What is called a manifest and cannot be read as one is damage, never a plain blob.
pub fn read_manifest(repo: &Dir, descriptor: &Descriptor) -> Result<Option<(Manifest, u64)>> {
    if is_plain(descriptor) {
        return Ok(None);
    }
    match read_manifest_bytes(repo, &descriptor.digest)? {
        Some(bytes) => parse(repo, descriptor, &bytes),
        None => Ok(None),
    }
}

/// Whether what a descriptor names cannot be a manifest.
fn is_plain(descriptor: &Descriptor) -> bool {
    match descriptor.media_type.as_str() {
        "" => descriptor.size > MAX_MANIFEST as u64,
        media_type => Kind::of_media_type(media_type).is_none(),
    }
}

fn parse(repo: &Dir, descriptor: &Descriptor, bytes: &[u8]) -> Result<Option<(Manifest, u64)>> {
    let media_type = descriptor.media_type.as_str();
    if media_type.is_empty() {
        // The content is what the digest says: if it has no manifest's shape, it refers to nothing.
        let manifest = Manifest::parse_untyped(bytes).ok();
        return Ok(manifest.map(|manifest| (manifest, bytes.len() as u64)));
    }
    let manifest = Manifest::parse(bytes, Some(media_type))
        .map_err(|error| Error::damaged(repo.at(&path::blob(&descriptor.digest)), error))?;
    Ok(Some((manifest, bytes.len() as u64)))
}

/// Finds the manifest of a repository that refers to `digest`; `None` if nothing does.
///
/// # Errors
/// It fails closed: a manifest that cannot be read might refer to anything.
pub fn referrer_of_blob(repo: &Dir, index: &Index, digest: &Digest) -> Result<Option<Digest>> {
    let mut seen: HashSet<(Digest, String)> = HashSet::new();
    let mut next: Vec<Descriptor> = index.entries().cloned().collect();
    while let Some(descriptor) = next.pop() {
        if descriptor.digest == *digest {
            return Ok(Some(descriptor.digest));
        }
        // One content may be listed as a blob here and as a manifest there.
        if !seen.insert((descriptor.digest.clone(), descriptor.media_type.clone())) {
            continue;
        }
        // Sparse indexes name manifests that are not here.
        let Some((manifest, _)) = read_manifest(repo, &descriptor)? else {
            continue;
        };
        if manifest.references().any(|reference| reference.digest == *digest) {
            return Ok(Some(descriptor.digest));
        }
        next.extend(manifest.manifests);
    }
    Ok(None)
}

/// So many facts of manifests that are gone are no matter.
const FEW: usize = 64;

/// What is known of a repository's manifests: who refers to whom, and what indexes contain.
///
/// It is brought up to date with an index.json by reading the facts on the disk, and only those
/// manifests that no fact tells of.
#[derive(Debug, Default)]
pub struct Knowledge {
    facts: HashMap<Digest, Arc<Fact>>,
    /// Whose files not everybody may read: what they say is for those who may, and not written down.
    closed: HashSet<Digest>,
    position: Option<Position>,
    /// The index.json that what follows is true of.
    stamp: Option<Stamp>,
    by_subject: HashMap<Digest, Vec<Digest>>,
    contained: HashMap<Digest, Descriptor>,
    weight: usize,
}

impl Knowledge {
    /// Brings it up to date with an index.json as it was read.
    pub fn refresh(&mut self, tree: &Tree, repo: &Dir, index: &IndexFile) -> Result<()> {
        if self.stamp == Some(index.stamp) {
            return Ok(());
        }
        let found = self.learn(repo, &index.index)?;
        self.stamp = Some(index.stamp);
        self.weight = self.facts.values().map(|fact| 2 * fact.weight()).sum();
        if !found.is_empty() {
            remember(tree, repo, &found);
        }
        Ok(())
    }

    /// What there is to know of a repository's manifests; nothing is written down.
    pub fn of(repo: &Dir, index: &Index) -> Result<Knowledge> {
        let mut known = Knowledge::default();
        known.learn(repo, index)?;
        Ok(known)
    }

    /// Reads the facts that came, and the manifests of which none tells; gives what those say.
    fn learn(&mut self, repo: &Dir, index: &Index) -> Result<Vec<Arc<Fact>>> {
        self.position = facts::read(repo, self.position, &mut self.facts)?;
        self.reconcile(repo, index)
    }

    /// The manifests whose `subject` is this digest (distribution specification, "Listing
    /// Referrers"), in the order of their digests.
    pub fn referrers(&self, subject: &Digest) -> impl Iterator<Item = &Arc<Fact>> {
        let referrers = self.by_subject.get(subject).into_iter().flatten();
        referrers.filter_map(|digest| self.facts.get(digest))
    }

    /// Whether the manifest's file was not for everybody when it was read: then ask the file.
    pub fn is_closed(&self, manifest: &Digest) -> bool {
        self.closed.contains(manifest)
    }

    /// The descriptor by which an index of the repository lists a manifest.
    pub fn contained(&self, digest: &Digest) -> Option<&Descriptor> {
        self.contained.get(digest)
    }

    /// All manifests that anything refers to by its `subject`, in no order.
    pub fn subjects(&self) -> impl Iterator<Item = &Digest> {
        self.by_subject.keys()
    }

    /// What indexes contain, each once, in no order.
    pub fn all_contained(&self) -> impl Iterator<Item = &Descriptor> {
        self.contained.values()
    }

    /// What kind of manifest a descriptor names, if it names one.
    pub fn kind(&self, descriptor: &Descriptor) -> Option<Kind> {
        match descriptor.media_type.as_str() {
            "" => Kind::of_media_type(&self.facts.get(&descriptor.digest)?.media_type),
            media_type => Kind::of_media_type(media_type),
        }
    }

    /// About how much memory it takes, in bytes.
    pub fn weight(&self) -> usize {
        self.weight
    }

    /// Walks from the entries to all that indexes contain; gives the facts that were not known.
    fn reconcile(&mut self, repo: &Dir, index: &Index) -> Result<Vec<Arc<Fact>>> {
        self.by_subject.clear();
        self.contained.clear();
        let mut found = Vec::new();
        let mut seen = HashSet::new();
        let mut next: Vec<Descriptor> = index.entries().cloned().collect();
        while let Some(descriptor) = next.pop() {
            if !seen.insert(descriptor.digest.clone()) {
                continue;
            }
            let Some(fact) = self.fact(repo, &descriptor, &mut found)? else {
                continue;
            };
            if let Some(subject) = &fact.subject {
                let referrers = self.by_subject.entry(subject.clone()).or_default();
                referrers.push(fact.digest.clone());
            }
            for child in &fact.children {
                self.contained.insert(child.digest.clone(), child.clone());
                next.push(child.clone());
            }
        }
        self.by_subject.values_mut().for_each(|referrers| referrers.sort_unstable());
        self.forget_all_but(&seen);
        Ok(found)
    }

    /// Where most facts are of manifests that are gone, they go too: a repository whose images come and
    /// go has no more of them than it needs. One that comes back is read again.
    fn forget_all_but(&mut self, needed: &HashSet<Digest>) {
        if self.facts.len() > 2 * needed.len() + FEW {
            self.facts.retain(|digest, _| needed.contains(digest));
            self.closed.retain(|digest| needed.contains(digest));
        }
    }

    fn fact(
        &mut self,
        repo: &Dir,
        descriptor: &Descriptor,
        found: &mut Vec<Arc<Fact>>,
    ) -> Result<Option<Arc<Fact>>> {
        if let Some(fact) = self.facts.get(&descriptor.digest) {
            return Ok(Some(Arc::clone(fact)));
        }
        let (manifest, size, readers) = match read_with_readers(repo, descriptor) {
            Ok(Some(read)) => read,
            Ok(None) => return Ok(None),
            Err(error @ Error::Damaged { .. }) => {
                // One broken manifest must not hide the others' referrers; `check` reports it.
                tracing::error!(%error, "a manifest cannot be read and is left out");
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let fact = Arc::new(Fact::of(descriptor.digest.clone(), size, &manifest));
        self.facts.insert(fact.digest.clone(), Arc::clone(&fact));
        if readers == Readers::Everybody {
            found.push(Arc::clone(&fact));
        } else {
            self.closed.insert(fact.digest.clone());
        }
        Ok(Some(fact))
    }
}

/// Reads what a descriptor names, as [`read_manifest`] does, and who may read it.
fn read_with_readers(
    repo: &Dir,
    descriptor: &Descriptor,
) -> Result<Option<(Manifest, u64, Readers)>> {
    if is_plain(descriptor) {
        return Ok(None);
    }
    let digest = &descriptor.digest;
    let Some((file, stat)) = blobs::open(repo, digest)? else {
        return Ok(None);
    };
    let at = repo.at(&path::blob(digest));
    let bytes = bytes_of(&file, digest, &at)?;
    let read = parse(repo, descriptor, &bytes)?;
    let readers = Readers::of(&file, &stat, &at)?;
    Ok(read.map(|(manifest, size)| (manifest, size, readers)))
}

/// The entry that the referrers API lists for a manifest, with what its fact leaves out.
///
/// # Errors
/// The manifest cannot be read; a plain `None` means that it is gone.
pub fn referrer(repo: &Dir, fact: &Fact) -> Result<Option<Descriptor>> {
    let descriptor = fact.descriptor();
    if !fact.more {
        return Ok(Some(descriptor));
    }
    let Some((manifest, _)) = read_manifest(repo, &descriptor)? else {
        return Ok(None);
    };
    let Manifest { artifact_type, annotations, .. } = manifest;
    Ok(Some(Descriptor { artifact_type, annotations, ..descriptor }))
}

/// Writes down what had to be read from manifests that another tool put there. If somebody holds
/// the lock, or the tree is read-only, it is read again by the next process.
fn remember(tree: &Tree, repo: &Dir, found: &[Arc<Fact>]) {
    if tree.is_read_only() {
        return;
    }
    let written = lock::exclusive_within(repo, path::LOCK, Duration::ZERO).and_then(|held| {
        held.map(|_held| facts::append(tree, repo, found.iter().map(|f| &**f))).transpose()
    });
    if let Err(error) = written {
        tracing::debug!(%error, "facts of manifests were not written down");
    }
}
