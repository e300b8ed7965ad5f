//! The model: what a tree must hold after what was done to it, kept in plain maps.
//!
//! It knows nothing of inodes, locks or journals' stamps; it knows names, promises and time. Time is
//! counted in hours that only the run lets pass.

mod collection;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use stillage::oci::Digest;

use super::contents::{Contents, Shape};
use super::face::{Referrer, Refused};

/// A digest in a repository.
pub type Place = (String, Digest);

#[derive(Clone, Debug)]
pub struct World {
    pub contents: Rc<Contents>,
    /// The hour.
    pub now: u64,
    /// Repositories that hold anything.
    pub repos: BTreeMap<String, Repo>,
    /// Directories, with all above them. Only outsiders remove any.
    pub dirs: BTreeSet<String>,
    /// What collection has seen unreferenced, and when first.
    pub notes: BTreeMap<Place, u64>,
    /// What pushers were promised, and when last.
    pub promises: BTreeMap<Place, u64>,
    /// Names that the server made itself: a mount that names no source finds them.
    pub hints: BTreeSet<Place>,
    /// Blobs that were deleted, and when.
    pub trash: Vec<(u64, String, Digest)>,
    pub sessions: Vec<Session>,
    /// Content that outsiders copied or wrote: how many inodes it has is not known.
    pub soiled: BTreeSet<Digest>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Repo {
    pub blobs: BTreeSet<Digest>,
    /// `None` until the first commit.
    pub index: Option<Index>,
    /// When which digests were named by a change.
    pub journal: Vec<(u64, BTreeSet<Digest>)>,
    /// An outsider wrote index.json, and nobody else since.
    pub is_foreign: bool,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Index {
    pub manifests: BTreeSet<Digest>,
    pub tags: BTreeMap<String, Digest>,
}

#[derive(Clone, Debug)]
pub struct Session {
    pub id: String,
    pub repo: String,
    /// What is to become of it.
    pub target: Digest,
    pub received: usize,
    pub touched: u64,
}

impl World {
    pub fn new(contents: Rc<Contents>) -> World {
        World {
            contents,
            now: 0,
            repos: BTreeMap::new(),
            dirs: BTreeSet::new(),
            notes: BTreeMap::new(),
            promises: BTreeMap::new(),
            hints: BTreeSet::new(),
            trash: Vec::new(),
            sessions: Vec::new(),
            soiled: BTreeSet::new(),
        }
    }

    pub fn repo(&self, repo: &str) -> Option<&Repo> {
        self.repos.get(repo)
    }

    pub fn index(&self, repo: &str) -> Option<&Index> {
        self.repos.get(repo)?.index.as_ref()
    }

    pub fn has(&self, repo: &str, digest: &Digest) -> bool {
        self.repos.get(repo).is_some_and(|repo| repo.blobs.contains(digest))
    }

    pub fn names(&self) -> Vec<String> {
        self.repos.keys().cloned().collect()
    }

    fn shape(&self, digest: &Digest) -> Option<&Shape> {
        self.contents.shape(digest)
    }

    /// Makes a repository's directory and all above it.
    pub fn make(&mut self, repo: &str) -> &mut Repo {
        for (end, _) in repo.match_indices('/') {
            self.dirs.insert(repo[..end].to_owned());
        }
        self.dirs.insert(repo.to_owned());
        self.repos.entry(repo.to_owned()).or_default()
    }

    // --- promises ---------------------------------------------------------------------------

    /// A pusher asked about a blob: collection begins anew with it.
    pub fn forget_note(&mut self, repo: &str, digest: &Digest) {
        self.notes.remove(&(repo.to_owned(), digest.clone()));
    }

    fn promise(&mut self, repo: &str, digest: &Digest) {
        self.forget_note(repo, digest);
        self.promises.insert((repo.to_owned(), digest.clone()), self.now);
    }

    /// What was promised within the grace and that nobody took away since.
    pub fn promised(&self, grace: u64) -> impl Iterator<Item = &Place> {
        let young = move |(_, at): &(&Place, &u64)| self.now - **at <= grace;
        self.promises.iter().filter(young).map(|(place, _)| place)
    }

    // --- blobs ------------------------------------------------------------------------------

    /// A blob was uploaded, or mounted, and acknowledged.
    pub fn admit(&mut self, repo: &str, digest: &Digest) {
        if self.make(repo).blobs.insert(digest.clone()) {
            self.hints.insert((repo.to_owned(), digest.clone()));
        }
        self.promise(repo, digest);
    }

    /// What HEAD says to somebody who may push.
    pub fn head(&mut self, repo: &str, digest: &Digest) -> Result<u64, Refused> {
        if self.repos.contains_key(repo) {
            self.forget_note(repo, digest);
        }
        if !self.has(repo, digest) {
            return Err(Refused::BlobUnknown);
        }
        self.promise(repo, digest);
        Ok(self.contents.size(digest))
    }

    /// What a mount says: `None` where both answers are right.
    pub fn mount(&self, digest: &Digest, from: Option<&str>) -> Option<bool> {
        let holders: Vec<&String> =
            self.repos.iter().filter(|(_, r)| r.blobs.contains(digest)).map(|(n, _)| n).collect();
        match from {
            Some(source) => Some(self.has(source, digest)),
            None if holders.is_empty() => Some(false),
            None => holders
                .iter()
                .any(|name| self.hints.contains(&((*name).clone(), digest.clone())))
                .then_some(true),
        }
    }

    pub fn delete_blob(&mut self, repo: &str, digest: &Digest) -> Result<(), Refused> {
        if !self.has(repo, digest) {
            return Err(Refused::BlobUnknown);
        }
        if self.reached(repo).contains(digest) {
            return Err(Refused::BlobInUse);
        }
        self.lose(repo, digest);
        self.trash.push((self.now, repo.to_owned(), digest.clone()));
        Ok(())
    }

    /// The name is gone, with all that was promised of it.
    pub fn lose(&mut self, repo: &str, digest: &Digest) {
        if let Some(there) = self.repos.get_mut(repo) {
            there.blobs.remove(digest);
        }
        let place = (repo.to_owned(), digest.clone());
        self.promises.remove(&place);
        self.hints.remove(&place);
    }

    // --- manifests --------------------------------------------------------------------------

    /// What a push of a manifest lacks.
    pub fn absent(&self, repo: &str, shape: &Shape) -> BTreeSet<Digest> {
        let there = |digest: &Digest, size: u64| {
            self.has(repo, digest) && self.contents.size(digest) == size
        };
        let required = shape.references.iter().filter(|reference| reference.is_required);
        let absent = required.filter(|r| !there(&r.digest, r.size));
        absent.map(|reference| reference.digest.clone()).collect()
    }

    /// A push of a manifest, as its tags or by its digest.
    pub fn put(&mut self, repo: &str, digest: &Digest, tags: &[String]) -> Result<(), Refused> {
        let contents = Rc::clone(&self.contents);
        let Some(shape) = contents.shape(digest) else {
            return Err(Refused::Other("no manifest".to_owned()));
        };
        let absent = self.absent(repo, shape);
        if !absent.is_empty() {
            return Err(Refused::BlobsAbsent(absent));
        }
        self.admit(repo, digest);
        for reference in shape.references.iter().filter(|reference| reference.is_required) {
            self.promise(repo, &reference.digest);
        }
        let now = self.now;
        let there = self.make(repo);
        let index = there.index.get_or_insert_default();
        let mut named = BTreeSet::new();
        if index.manifests.insert(digest.clone()) {
            named.insert(digest.clone());
        }
        for tag in tags {
            let before = index.tags.insert(tag.clone(), digest.clone());
            if before.as_ref() != Some(digest) {
                named.extend(before);
                named.insert(digest.clone());
            }
        }
        if !named.is_empty() {
            there.journal.push((now, named));
            there.is_foreign = false;
        }
        Ok(())
    }

    pub fn delete_tag(&mut self, repo: &str, tag: &str) -> Result<(), Refused> {
        self.change(repo, |index| {
            let before = index.tags.remove(tag)?;
            Some(BTreeSet::from([before]))
        })
    }

    pub fn delete_manifest(&mut self, repo: &str, digest: &Digest) -> Result<(), Refused> {
        self.change(repo, |index| {
            index.tags.retain(|_, of| of != digest);
            index.manifests.remove(digest).then(|| BTreeSet::from([digest.clone()]))
        })
    }

    fn change(
        &mut self,
        repo: &str,
        change: impl FnOnce(&mut Index) -> Option<BTreeSet<Digest>>,
    ) -> Result<(), Refused> {
        if !self.dirs.contains(repo) {
            return Err(Refused::NameUnknown);
        }
        let now = self.now;
        let there = self.repos.get_mut(repo).ok_or(Refused::ManifestUnknown)?;
        let index = there.index.as_mut().ok_or(Refused::ManifestUnknown)?;
        let named = change(index).ok_or(Refused::ManifestUnknown)?;
        there.journal.push((now, named));
        there.is_foreign = false;
        Ok(())
    }

    /// The digest of what a pull by tag or digest gives.
    pub fn pull(&self, repo: &str, reference: &str) -> Result<Digest, Refused> {
        let index = self.index(repo).ok_or(Refused::ManifestUnknown)?;
        match Digest::parse(reference) {
            Err(_) => {
                let digest = index.tags.get(reference).ok_or(Refused::ManifestUnknown)?;
                let damaged = || Err(Refused::Damaged);
                if self.has(repo, digest) { Ok(digest.clone()) } else { damaged() }
            }
            Ok(digest) => {
                let known =
                    index.manifests.contains(&digest) || self.contained(repo).contains(&digest);
                if known && self.has(repo, &digest) {
                    Ok(digest)
                } else {
                    Err(Refused::ManifestUnknown)
                }
            }
        }
    }

    /// The manifests that indexes of the repository list.
    pub fn contained(&self, repo: &str) -> BTreeSet<Digest> {
        let mut contained = BTreeSet::new();
        for digest in self.manifests(repo) {
            let children = self.shape(&digest).into_iter().flat_map(|shape| &shape.references);
            contained.extend(children.filter(|r| r.is_child).map(|r| r.digest.clone()));
        }
        contained
    }

    /// The manifests that index.json names, with all that indexes contain.
    fn manifests(&self, repo: &str) -> BTreeSet<Digest> {
        let entries = self.index(repo).into_iter().flat_map(|index| index.manifests.clone());
        self.walk(repo, entries).0
    }

    /// Everything that the repository's manifests need.
    pub fn reached(&self, repo: &str) -> BTreeSet<Digest> {
        let entries = self.index(repo).into_iter().flat_map(|index| index.manifests.clone());
        self.walk(repo, entries).1
    }

    /// The manifests among what some of them lead to, and all of it.
    fn walk(
        &self,
        repo: &str,
        from: impl IntoIterator<Item = Digest>,
    ) -> (BTreeSet<Digest>, BTreeSet<Digest>) {
        let (mut manifests, mut all) = (BTreeSet::new(), BTreeSet::new());
        let mut next: Vec<Digest> = from.into_iter().collect();
        while let Some(digest) = next.pop() {
            all.insert(digest.clone());
            if !self.has(repo, &digest) || !manifests.insert(digest.clone()) {
                continue;
            }
            for reference in self.shape(&digest).into_iter().flat_map(|shape| &shape.references) {
                all.insert(reference.digest.clone());
                if reference.is_child {
                    next.push(reference.digest.clone());
                }
            }
        }
        (manifests, all)
    }

    pub fn referrers(
        &self,
        repo: &str,
        subject: &Digest,
        artifact_type: Option<&str>,
    ) -> Vec<Referrer> {
        let refers = |digest: &Digest| {
            let shape = self.shape(digest)?;
            let wanted = artifact_type.is_none() || shape.artifact_type.as_deref() == artifact_type;
            (shape.subject.as_ref() == Some(subject) && wanted).then(|| Referrer {
                digest: digest.clone(),
                media_type: shape.media_type.to_owned(),
                size: self.contents.size(digest),
                artifact_type: shape.artifact_type.clone(),
                annotations: shape.annotations.clone(),
            })
        };
        self.manifests(repo).iter().filter_map(refers).collect()
    }

    pub fn tags(
        &self,
        repo: &str,
        last: Option<&str>,
        n: usize,
    ) -> Result<(Vec<String>, bool), Refused> {
        let index = self.index(repo).filter(|index| !index.manifests.is_empty());
        let index = index.ok_or(Refused::NameUnknown)?;
        Ok(page(index.tags.keys().cloned(), last, n))
    }

    pub fn catalog(&self, last: Option<&str>, n: usize) -> (Vec<String>, bool) {
        let has = |repo: &Repo| repo.index.as_ref().is_some_and(|i| !i.manifests.is_empty());
        let names = self.repos.iter().filter(|(_, repo)| has(repo)).map(|(name, _)| name.clone());
        page(names, last, n)
    }

    // --- what a tree lacks --------------------------------------------------------------------

    /// Whether an entry's own manifest is gone: collection must not touch the repository.
    pub fn is_unreadable(&self, repo: &str) -> bool {
        let index = self.index(repo);
        index.is_some_and(|index| index.manifests.iter().any(|digest| !self.has(repo, digest)))
    }

    /// What the repository's manifests need and outsiders took.
    pub fn missing(&self, repo: &str) -> BTreeSet<Digest> {
        let mut missing = BTreeSet::new();
        let entries = self.index(repo).into_iter().flat_map(|index| &index.manifests);
        missing.extend(entries.filter(|digest| !self.has(repo, digest)).cloned());
        for manifest in self.manifests(repo) {
            let needs = self.shape(&manifest).into_iter().flat_map(|shape| &shape.references);
            let needs = needs.filter(|r| r.is_required && !self.has(repo, &r.digest));
            missing.extend(needs.map(|reference| reference.digest.clone()));
        }
        missing
    }

    // --- outsiders --------------------------------------------------------------------------

    fn beneath(&self, dir: &str) -> Vec<String> {
        let within = |name: &&String| *name == dir || name.starts_with(&format!("{dir}/"));
        self.dirs.iter().filter(within).cloned().collect()
    }

    /// `rm -rf` of a directory.
    pub fn remove(&mut self, dir: &str) {
        for name in self.beneath(dir) {
            self.dirs.remove(&name);
            if let Some(repo) = self.repos.remove(&name) {
                for digest in &repo.blobs {
                    self.lose(&name, digest);
                }
            }
        }
    }

    /// `cp -a` of a directory to a name that is free.
    pub fn copy(&mut self, dir: &str, to: &str) {
        for name in self.beneath(dir) {
            let copy = format!("{to}{}", &name[dir.len()..]);
            let repo = self.repos.get(&name).cloned();
            let new = self.make(&copy);
            if let Some(repo) = repo {
                *new = repo;
                self.soiled.extend(self.repos[&name].blobs.clone());
            } else {
                self.repos.remove(&copy);
            }
        }
    }

    /// `mv` of a directory to a name that is free.
    pub fn rename(&mut self, dir: &str, to: &str) {
        let soiled = self.soiled.clone();
        self.copy(dir, to);
        self.remove(dir);
        self.soiled = soiled;
    }

    /// All digests that a file of the tree has as its name, or that a removed one had.
    pub fn digests(&self) -> BTreeSet<Digest> {
        let blobs = self.repos.values().flat_map(|repo| repo.blobs.iter().cloned());
        blobs.chain(self.trash.iter().map(|(_, _, digest)| digest.clone())).collect()
    }
}

fn page(names: impl Iterator<Item = String>, last: Option<&str>, n: usize) -> (Vec<String>, bool) {
    let mut names: Vec<String> =
        names.filter(|name| last.is_none_or(|last| name.as_str() > last)).take(n + 1).collect();
    let more = n > 0 && names.len() > n;
    names.truncate(n);
    (names, more)
}
