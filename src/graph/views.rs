//! What the views of a repository show: all of it, or what a commit changed.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;

use super::{Delta, Knowledge, read_manifest, referrer};
use crate::layout::facts::Fact;
use crate::layout::readers::Readers;
use crate::layout::rights::Way;
use crate::layout::views::{self, Origin, Step};
use crate::layout::{
    Dir, Error, IndexFile, MAX_INDEX, OrAbsent, Result, Stamp, Tree, blobs, path, read_all, size_of,
};
use crate::oci::{
    Change, Descriptor, Digest, Index, Kind, RepoName, What, referrer_list, tag_list,
};

/// Of so many images all parts are looked for.
const MOST_READ: usize = 1000;

/// A repository, open.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// What it is called.
    pub name: &'a RepoName,
    /// Its directory.
    pub dir: &'a Dir,
    /// Whether everybody may enter it and list it, from ROOT on. A web server that may only enter it
    /// would serve the views to all the world: then it has none.
    pub open: bool,
}

/// What a commit made of an index.json.
#[derive(Debug)]
pub struct Commit<'a> {
    /// Which one it was; [`Stamp::nothing`] if there was none.
    pub before: Stamp,
    /// Which one it is.
    pub now: &'a IndexFile,
    /// The changes, in their order.
    pub changes: &'a [&'a Change],
    /// What the manifests say that came in.
    pub facts: &'a [&'a Fact],
}

impl Commit<'_> {
    /// Whether its changes alone say what changes in the views: nothing went that may still be in an
    /// index, every kind is known, and so are all manifests in an index that came in.
    pub fn is_simple(&self) -> bool {
        let index = &self.now.index;
        let plain = |change: &Change| {
            let known =
                |entry: &Option<Descriptor>| entry.as_ref().is_none_or(|e| with_kind(e).is_some());
            change.what != What::Delete && known(&change.before) && known(&change.after)
        };
        // One that has no entry may say more than this index does of it: what it lists, what it refers to.
        let known =
            |child: &Descriptor| with_kind(child).is_none() || index.contains(&child.digest);
        self.changes.iter().copied().all(plain)
            && self.facts.iter().all(|fact| fact.children.iter().all(known))
    }
}

impl<'a> Place<'a> {
    /// A repository in a tree, by what lies on the way to it now.
    pub fn on(way: &Way, name: &'a RepoName, dir: &'a Dir) -> Result<Place<'a>> {
        Ok(Place { name, dir, open: way.is_open() && way.ends_at(dir.inode()?) })
    }

    /// Whether there are views of an index.json: it and its directory are for everybody to read.
    pub fn shows(&self, index: &IndexFile) -> bool {
        self.open && index.readers == Readers::Everybody
    }

    /// Whether the views say that they were made from an index.json. Where there are to be none,
    /// nothing has to say so.
    pub fn has_views_of(&self, index: &IndexFile) -> Result<bool> {
        Ok(!self.shows(index) || self.are_of(index.stamp)?)
    }

    /// Whether what index.json names is there, with what the first [`MOST_READ`] of its images are made
    /// of: while somebody copies a repository here, its blobs may come last.
    pub fn is_whole(&self, index: &Index) -> Result<bool> {
        for entry in index.entries() {
            if !self.has(&entry)? {
                return Ok(false);
            }
        }
        for entry in index.entries().take(MOST_READ) {
            match read_manifest(self.dir, &entry) {
                // What an index lists may be elsewhere.
                Ok(Some((manifest, _))) if manifest.manifests.is_empty() => {
                    for part in manifest.required() {
                        if !self.has(part)? {
                            return Ok(false);
                        }
                    }
                }
                Ok(_) => {}
                Err(Error::Damaged { .. }) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn has(&self, entry: &Descriptor) -> Result<bool> {
        let stat = blobs::stat(self.dir, &entry.digest)?;
        Ok(stat.is_some_and(|stat| size_of(&stat) >= entry.size))
    }

    /// Whether the views say, in this boot, what they were made from.
    pub fn say(&self) -> Result<bool> {
        Ok(Origin::read(self.dir)?.is_some())
    }

    /// Whether the views say that they are those of index.json as it is, without an understanding of
    /// it; also where there is no index.json.
    pub fn are_current(&self) -> Result<bool> {
        let Some(file) = self.dir.file(path::INDEX).or_absent()? else { return Ok(true) };
        let bytes = read_all(&file, MAX_INDEX, || self.dir.at(path::INDEX))?;
        self.are_of(Stamp::of(&bytes))
    }

    fn are_of(&self, stamp: Stamp) -> Result<bool> {
        Ok(Origin::read(self.dir)?.is_some_and(|origin| origin == Origin::new(self.name, stamp)))
    }

    /// What makes the views those of an index.json. What is not for everybody to read has none.
    pub fn difference(&self, index: &IndexFile, known: &Knowledge) -> Result<Vec<Step>> {
        if !self.shows(index) {
            return views::difference(self.dir, [], [], []);
        }
        let tags = index.index.tags_after(None).filter_map(|tag| {
            let entry = index.index.tagged(tag)?;
            Some(Step::tag(tag, &entry.digest, known.kind(&entry)?))
        });
        let tag_list = Step::tag_list(self.tag_list(&index.index));
        let lists = known.subjects().filter_map(|subject| {
            self.list(subject, known).map(|list| Some(Step::referrers(subject, list?))).transpose()
        });
        let tags = tags.chain([tag_list]).map(Ok);
        // Made when the tags are done.
        let manifests = std::iter::once_with(|| manifests(&index.index, known)).flatten();
        let manifests = manifests.map(|(digest, kind)| Ok(Step::manifest(&digest, kind)));
        views::difference(self.dir, tags, manifests, lists)
    }

    /// Makes the views those of an index.json, by what is different; call it under the repository's
    /// lock.
    pub fn renew(&self, tree: &Tree, index: &IndexFile, known: &Knowledge) -> Result<()> {
        if !self.shows(index) {
            return views::remove(tree, self.dir);
        }
        let steps = self.difference(index, known)?;
        views::change(tree, self.dir, &steps, &Origin::new(self.name, index.stamp))
    }

    /// Makes the views follow a commit, by what it changed; `false` if that does not suffice, and they
    /// have to be renewed. Call it under the repository's lock.
    pub fn follow(&self, tree: &Tree, commit: &Commit<'_>) -> Result<bool> {
        let Some(begins) = self.follows(commit)? else { return Ok(false) };
        if !commit.is_simple() {
            return Ok(false);
        }
        let Some(lists) = self.lists_with(commit.facts)? else { return Ok(false) };
        // What an index lists has an entry of its own here, and by that its view: the list may call it
        // something else.
        let mut steps = Vec::new();
        for change in commit.changes {
            let [before, after] =
                [&change.before, &change.after].map(|entry| entry.as_ref().and_then(with_kind));
            match (&change.tag, after) {
                (Some(tag), Some((entry, kind))) => {
                    steps.push(Step::tag(tag, &entry.digest, kind));
                    let other = before.filter(|(_, before)| *before != kind);
                    steps.extend(other.map(|(_, before)| Step::untag(tag, before)));
                }
                (Some(tag), None) => {
                    steps.extend(before.map(|(_, before)| Step::untag(tag, before)));
                }
                (None, Some((entry, kind))) => steps.push(Step::manifest(&entry.digest, kind)),
                (None, None) => {}
            }
        }
        if begins || commit.changes.iter().any(|change| changes_tags(change)) {
            steps.push(Step::tag_list(self.tag_list(&commit.now.index)));
        }
        let list =
            |(subject, list): (&Digest, Vec<_>)| Step::referrers(subject, referrer_list(&list));
        steps.extend(lists.into_iter().map(list));
        views::change(tree, self.dir, &steps, &Origin::new(self.name, commit.now.stamp))?;
        Ok(true)
    }

    /// The same by what the commit changed of what is known.
    pub fn follow_known(
        &self,
        tree: &Tree,
        commit: &Commit<'_>,
        known: &Knowledge,
        delta: &Delta,
    ) -> Result<bool> {
        let Some(begins) = self.follows(commit)? else { return Ok(false) };
        let index = &commit.now.index;
        let kind = |digest: &Digest| {
            let entry = index.find(digest);
            entry.as_ref().or_else(|| known.contained(digest)).and_then(|entry| known.kind(entry))
        };
        let come = |digest| Some(Step::manifest(digest, kind(digest)?));
        let mut steps: Vec<Step> = delta.manifests.iter().filter_map(come).collect();
        let mut gone = Vec::new();
        for (digest, before) in &delta.before {
            gone.extend(
                (kind(digest) != Some(*before)).then(|| Step::no_manifest(digest, *before)),
            );
        }
        for change in commit.changes {
            let Some(tag) = &change.tag else { continue };
            let now = index.tagged(tag);
            let now = now.and_then(|entry| Some((known.kind(&entry)?, entry.digest)));
            steps.extend(now.as_ref().map(|(kind, digest)| Step::tag(tag, digest, *kind)));
            let before = change.before.as_ref().and_then(|entry| known.kind(entry));
            let other = before.filter(|before| now.as_ref().is_none_or(|(kind, _)| kind != before));
            gone.extend(other.map(|before| Step::untag(tag, before)));
        }
        if begins || commit.changes.iter().any(|change| changes_tags(change)) {
            steps.push(Step::tag_list(self.tag_list(index)));
        }
        for subject in &delta.subjects {
            match self.list(subject, known)? {
                Some(list) => steps.push(Step::referrers(subject, list)),
                None => gone.push(Step::no_referrers(subject)),
            }
        }
        steps.append(&mut gone);
        views::change(tree, self.dir, &steps, &Origin::new(self.name, commit.now.stamp))?;
        Ok(true)
    }

    /// Whether the views are those of what a commit changed, and so can follow it; then, whether they
    /// begin with it.
    fn follows(&self, commit: &Commit<'_>) -> Result<Option<bool>> {
        let begins = commit.before == Stamp::nothing() && !views::are_there(self.dir)?;
        let follows = begins || self.are_of(commit.before)?;
        Ok((follows && commit.now.readers == Readers::Everybody).then_some(begins))
    }

    fn tag_list(&self, index: &Index) -> Vec<u8> {
        tag_list(self.name.as_str(), index.tags_after(None))
    }

    /// The list of a manifest's referrers, without those that are not for everybody; `None` if there
    /// are no others.
    fn list(&self, subject: &Digest, known: &Knowledge) -> Result<Option<Vec<u8>>> {
        let open = known.referrers(subject).filter(|fact| !known.is_closed(&fact.digest));
        let mut list = Vec::new();
        for fact in open {
            match referrer(self.dir, fact) {
                Ok(found) => list.extend(found),
                // As for those who ask the server: one broken manifest must not hide the others.
                Err(error @ Error::Damaged { .. }) => {
                    tracing::error!(%error, "a manifest cannot be read and is left out");
                }
                Err(error) => return Err(error),
            }
        }
        Ok((!list.is_empty()).then(|| referrer_list(&list)))
    }

    /// The lists of referrers as they are with these manifests besides; `None` if one that is there is
    /// none.
    fn lists_with<'f>(
        &self,
        facts: &[&'f Fact],
    ) -> Result<Option<BTreeMap<&'f Digest, Vec<Descriptor>>>> {
        let mut lists: BTreeMap<&Digest, Vec<Descriptor>> = BTreeMap::new();
        for fact in facts {
            let Some(subject) = &fact.subject else { continue };
            let Some(entry) = referrer(self.dir, fact)? else { return Ok(None) };
            if !lists.contains_key(subject) {
                let there = match views::referrers(self.dir, subject)? {
                    None => Vec::new(),
                    Some(bytes) => match serde_json::from_slice::<List>(&bytes) {
                        Ok(list) => list.manifests,
                        Err(_) => return Ok(None),
                    },
                };
                lists.insert(subject, there);
            }
            let list = lists.entry(subject).or_default();
            if let Err(at) = list.binary_search_by(|there| there.digest.cmp(&entry.digest)) {
                list.insert(at, entry);
            }
        }
        Ok(Some(lists))
    }
}

/// A list of referrers, of which nothing else matters.
#[derive(Deserialize)]
struct List {
    manifests: Vec<Descriptor>,
}

/// All manifests that can be pulled by digest, each with its kind.
fn manifests(index: &Index, known: &Knowledge) -> HashMap<Digest, Kind> {
    let entries = index.digests().filter_map(|digest| index.find(&digest));
    // What index.json says counts before what an index in it says.
    let all = known.all_contained().cloned().chain(entries);
    let with_kind = |entry: Descriptor| known.kind(&entry).map(|kind| (entry.digest, kind));
    all.filter_map(with_kind).collect()
}

fn with_kind(entry: &Descriptor) -> Option<(&Descriptor, Kind)> {
    Some((entry, Kind::of_media_type(&entry.media_type)?))
}

/// Whether the list of tags is another one: a tag came or went.
fn changes_tags(change: &Change) -> bool {
    change.tag.is_some() && (change.before.is_none() || change.after.is_none())
}
