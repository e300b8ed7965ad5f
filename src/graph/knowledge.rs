//! What is known of a repository's manifests: who refers to whom, and what indexes contain.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::views::Commit;
use super::{bytes_of, is_plain, parse};
use crate::layout::facts::{self, Fact, Position};
use crate::layout::readers::Readers;
use crate::layout::{Dir, Error, IndexFile, Result, Stamp, Tree, blobs, lock, path};
use crate::oci::{Descriptor, Digest, DigestMap, Index, Kind, Manifest, What};

/// So many facts of manifests that are gone are no matter.
const FEW: usize = 64;

/// So many manifests that are not there are looked for at each commit.
const FEW_ABSENT: usize = 16;

/// What is known of a repository's manifests: who refers to whom, and what indexes contain.
///
/// It is brought up to date with an index.json by reading the facts on the disk, and only those
/// manifests that no fact tells of; or, after a commit, by what that changed.
#[derive(Debug, Default)]
pub struct Knowledge {
    /// Those that refer to another or contain some, each with whether that counts now.
    facts: HashMap<Digest, (Arc<Fact>, bool)>,
    /// What the others are, which is all that is to be known of them.
    plain: DigestMap<Kind>,
    /// Whose files not everybody may read: what they say is for those who may, and not written down.
    closed: HashSet<Digest>,
    position: Option<Position>,
    /// The index.json that what follows is true of.
    stamp: Option<Stamp>,
    by_subject: HashMap<Digest, BTreeSet<Digest>>,
    /// What indexes contain, as the first of them describes it, and how many do.
    contained: HashMap<Digest, (Descriptor, usize)>,
    /// What is named, and is not there or cannot be read.
    absent: HashMap<Digest, Descriptor>,
    /// Two indexes describe one manifest in two ways.
    ambiguous: bool,
    /// Something went of which nothing is known: what it referred to may be listed still.
    unknown_gone: bool,
    weight: usize,
}

/// What a commit changed of what is known.
#[derive(Debug, Default)]
pub struct Delta {
    /// Manifests that came, went, or may be another kind now.
    pub manifests: BTreeSet<Digest>,
    /// As which kinds some of them were known before.
    pub before: BTreeSet<(Digest, Kind)>,
    /// Those that other manifests refer to than before.
    pub subjects: BTreeSet<Digest>,
}

/// Manifests that were read because no fact told of them.
type Found = Vec<Arc<Fact>>;

impl Knowledge {
    /// Brings it up to date with an index.json as it was read.
    pub fn refresh(&mut self, tree: &Tree, repo: &Dir, index: &IndexFile) -> Result<()> {
        if self.stamp == Some(index.stamp) {
            return Ok(());
        }
        let found = self.learn(repo, &index.index)?;
        self.stamp = Some(index.stamp);
        if !found.is_empty() {
            remember(tree, repo, &found);
        }
        Ok(())
    }

    /// Which index.json it is true of.
    pub fn stamp(&self) -> Option<Stamp> {
        self.stamp
    }

    /// What there is to know of a repository's manifests; nothing is written down.
    pub fn of(repo: &Dir, index: &Index) -> Result<Knowledge> {
        let mut known = Knowledge::default();
        known.learn(repo, index)?;
        Ok(known)
    }

    /// Brings it up to date with what a commit made of the index.json that it is true of, by what that
    /// changed, and says what that was; `None` if it has to be brought up to date by all. Call it under
    /// the repository's lock.
    pub fn follow(&mut self, repo: &Dir, commit: &Commit<'_>) -> Result<Option<Delta>> {
        let Commit { now, changes, facts, .. } = *commit;
        // Whatever fails in between leaves what is true of no index.json.
        self.stamp = None;
        let mut delta = Delta::default();
        let mut found = Found::default();
        for fact in facts {
            self.absent.remove(&fact.digest);
            self.take((*fact).clone());
        }
        for change in changes {
            match (change.what, &change.before, &change.after) {
                (What::Push, _, Some(entry)) => {
                    let kind = self.contained(&entry.digest).and_then(|known| self.kind(known));
                    delta.before.extend(kind.map(|kind| (entry.digest.clone(), kind)));
                    self.count(repo, entry.clone(), &mut found, &mut delta)?;
                }
                (What::Delete, Some(entry), _) => self.discount(entry, &now.index, &mut delta),
                _ => {}
            }
        }
        for absent in self.absent.values().cloned().collect::<Vec<_>>() {
            self.count(repo, absent, &mut found, &mut delta)?;
        }
        let unknown_gone = std::mem::take(&mut self.unknown_gone);
        if self.ambiguous || unknown_gone || self.absent.len() > FEW_ABSENT {
            return Ok(None);
        }
        self.forget(&now.index);
        self.stamp = Some(now.stamp);
        Ok(Some(delta))
    }

    /// Reads the facts that came, and the manifests of which none tells; gives what those say.
    fn learn(&mut self, repo: &Dir, index: &Index) -> Result<Found> {
        self.stamp = None;
        self.position = facts::read(repo, self.position, |fact| self.take(fact))?;
        self.by_subject.clear();
        self.contained.clear();
        self.absent.clear();
        self.ambiguous = false;
        self.facts.values_mut().for_each(|(_, counts)| *counts = false);
        let (mut found, mut delta) = (Found::default(), Delta::default());
        for entry in index.entries() {
            self.count(repo, entry, &mut found, &mut delta)?;
        }
        self.forget(index);
        Ok(found)
    }

    /// The manifests whose `subject` is this digest (distribution specification, "Listing
    /// Referrers"), in the order of their digests.
    pub fn referrers(&self, subject: &Digest) -> impl Iterator<Item = &Arc<Fact>> {
        let referrers = self.by_subject.get(subject).into_iter().flatten();
        referrers.filter_map(|digest| self.facts.get(digest).map(|(fact, _)| fact))
    }

    /// Whether the manifest's file was not for everybody when it was read: then ask the file.
    pub fn is_closed(&self, manifest: &Digest) -> bool {
        self.closed.contains(manifest)
    }

    /// The descriptor by which an index of the repository lists a manifest.
    pub fn contained(&self, digest: &Digest) -> Option<&Descriptor> {
        self.contained.get(digest).map(|(descriptor, _)| descriptor)
    }

    /// All manifests that anything refers to by its `subject`, in no order.
    pub fn subjects(&self) -> impl Iterator<Item = &Digest> {
        self.by_subject.keys()
    }

    /// What indexes contain, each once, in no order.
    pub fn all_contained(&self) -> impl Iterator<Item = &Descriptor> {
        self.contained.values().map(|(descriptor, _)| descriptor)
    }

    /// What kind of manifest a descriptor names, if it names one.
    pub fn kind(&self, descriptor: &Descriptor) -> Option<Kind> {
        match descriptor.media_type.as_str() {
            "" => self.kind_by_content(&descriptor.digest),
            media_type => Kind::of_media_type(media_type),
        }
    }

    fn kind_by_content(&self, digest: &Digest) -> Option<Kind> {
        match self.facts.get(digest) {
            Some((fact, _)) => Kind::of_media_type(&fact.media_type),
            None => self.plain.get(digest).copied(),
        }
    }

    /// About how much memory it takes, in bytes.
    pub fn weight(&self) -> usize {
        const CONTAINED: usize = 2 * size_of::<Descriptor>() + 256;
        self.weight + 80 * self.plain.len() + CONTAINED * self.contained.len()
    }

    /// Knows a fact from now on; what is known already stays.
    fn take(&mut self, fact: Fact) {
        let kind = Kind::of_media_type(&fact.media_type);
        match kind.filter(|_| fact.subject.is_none() && fact.children.is_empty()) {
            Some(kind) => {
                self.plain.put_new(&fact.digest, kind);
            }
            None if self.facts.contains_key(&fact.digest) => {}
            None => {
                self.weight += 2 * fact.weight();
                self.facts.insert(fact.digest.clone(), (Arc::new(fact), false));
            }
        }
    }

    /// What a descriptor names can be pulled now, and so can all that it contains.
    fn count(
        &mut self,
        repo: &Dir,
        first: Descriptor,
        found: &mut Found,
        delta: &mut Delta,
    ) -> Result<()> {
        let mut next = vec![first];
        while let Some(descriptor) = next.pop() {
            let digest = &descriptor.digest;
            delta.manifests.insert(digest.clone());
            if !self.is_known(digest) && !self.read(repo, &descriptor, found)? {
                continue;
            }
            let Some((fact, counts)) = self.facts.get_mut(digest) else { continue };
            if std::mem::replace(counts, true) {
                continue;
            }
            let fact = Arc::clone(fact);
            if let Some(subject) = &fact.subject {
                self.by_subject.entry(subject.clone()).or_default().insert(fact.digest.clone());
                delta.subjects.insert(subject.clone());
            }
            for child in children(&fact) {
                let new = || (child.clone(), 0);
                let (known, times) = self.contained.entry(child.digest.clone()).or_insert_with(new);
                self.ambiguous |= known.media_type != child.media_type;
                *times += 1;
                next.push(child.clone());
            }
        }
        Ok(())
    }

    /// An entry is gone; so is what only it contained.
    fn discount(&mut self, entry: &Descriptor, now: &Index, delta: &mut Delta) {
        delta.before.extend(self.kind(entry).map(|kind| (entry.digest.clone(), kind)));
        let mut next = vec![entry.digest.clone()];
        while let Some(digest) = next.pop() {
            delta.manifests.insert(digest.clone());
            if now.contains(&digest) || self.contained.contains_key(&digest) {
                continue;
            }
            self.unknown_gone |= self.absent.remove(&digest).is_some();
            let Some((fact, counts)) = self.facts.get_mut(&digest) else { continue };
            if !std::mem::replace(counts, false) {
                continue;
            }
            let fact = Arc::clone(fact);
            if let Some(subject) = &fact.subject {
                delta.subjects.insert(subject.clone());
                if let Some(referrers) = self.by_subject.get_mut(subject) {
                    referrers.remove(&digest);
                    if referrers.is_empty() {
                        self.by_subject.remove(subject);
                    }
                }
            }
            for child in children(&fact) {
                delta.before.extend(self.kind(child).map(|kind| (child.digest.clone(), kind)));
                if let Some((_, times)) = self.contained.get_mut(&child.digest) {
                    *times -= 1;
                    if *times == 0 {
                        self.contained.remove(&child.digest);
                    }
                }
                next.push(child.digest.clone());
            }
        }
    }

    fn is_known(&self, digest: &Digest) -> bool {
        self.plain.contains(digest) || self.facts.contains_key(digest)
    }

    /// Reads what a descriptor names; whether there is anything to know of it.
    fn read(&mut self, repo: &Dir, descriptor: &Descriptor, found: &mut Found) -> Result<bool> {
        if is_plain(descriptor) {
            return Ok(false);
        }
        let digest = &descriptor.digest;
        let (manifest, size, readers) = match read_with_readers(repo, descriptor) {
            Ok(Some(read)) => read,
            Ok(None) => {
                self.absent.insert(digest.clone(), descriptor.clone());
                return Ok(false);
            }
            Err(error @ Error::Damaged { .. }) => {
                // One broken manifest must not hide the others' referrers; `check` reports it.
                tracing::error!(%error, "a manifest cannot be read and is left out");
                self.absent.insert(digest.clone(), descriptor.clone());
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        self.absent.remove(digest);
        let fact = Fact::of(digest.clone(), size, &manifest);
        if readers == Readers::Everybody {
            found.push(Arc::new(fact.clone()));
        } else {
            self.closed.insert(digest.clone());
        }
        self.take(fact);
        Ok(true)
    }

    /// Where most facts are of manifests that are gone, they go too: a repository whose images come and
    /// go has no more of them than it needs. One that comes back is read again.
    fn forget(&mut self, now: &Index) {
        let most = 2 * (now.len() + self.contained.len()) + FEW;
        if self.facts.len() + self.plain.len() <= most {
            return;
        }
        let contained = &self.contained;
        let needed = |digest: &Digest| now.contains(digest) || contained.contains_key(digest);
        self.facts.retain(|digest, _| needed(digest));
        self.plain.retain(|digest| needed(digest));
        self.closed.retain(|digest| needed(digest));
        self.weight = self.facts.values().map(|(fact, _)| 2 * fact.weight()).sum();
    }
}

/// What an index lists, each once.
fn children(fact: &Fact) -> impl Iterator<Item = &Descriptor> {
    let mut seen = HashSet::new();
    fact.children.iter().filter(move |child| seen.insert(&child.digest))
}

/// Reads what a descriptor names, as [`read_manifest`](super::read_manifest) does, and who may read it.
fn read_with_readers(
    repo: &Dir,
    descriptor: &Descriptor,
) -> Result<Option<(Manifest, u64, Readers)>> {
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
