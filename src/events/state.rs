//! What a repository has, as far as somebody was told: its manifests and tags.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::oci::{Change, Descriptor, Digest, Index, Tag, What};

/// What is told of a manifest besides its digest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    /// Its media type, as index.json has it.
    pub media_type: Box<str>,
    /// Its length in bytes.
    pub size: u64,
}

impl From<&Descriptor> for Manifest {
    fn from(of: &Descriptor) -> Manifest {
        Manifest { media_type: of.media_type.as_str().into(), size: of.size }
    }
}

/// The manifests and the tags of a repository at some moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    manifests: BTreeMap<Digest, Manifest>,
    tags: BTreeMap<Tag, Digest>,
}

impl State {
    /// What an index.json says.
    pub fn of(index: &Index) -> State {
        let mut manifests = BTreeMap::new();
        for entry in index.entries() {
            // Of several entries for one manifest the first counts.
            manifests.entry(entry.digest.clone()).or_insert_with(|| (&entry).into());
        }
        let tag = |tag: &Tag| Some((tag.clone(), index.tagged(tag)?.digest));
        State { manifests, tags: index.tags_after(None).filter_map(tag).collect() }
    }

    /// Whether nothing is there.
    pub fn is_empty(&self) -> bool {
        self.manifests.is_empty() && self.tags.is_empty()
    }

    /// What a tag names.
    pub(super) fn tagged(&self, tag: &Tag) -> Option<&Digest> {
        self.tags.get(tag)
    }

    /// Whether a manifest is there.
    pub(super) fn has(&self, digest: &Digest) -> bool {
        self.manifests.contains_key(digest)
    }

    /// Makes a change that was told.
    pub(super) fn apply(&mut self, what: What, tag: Option<&Tag>, of: &Descriptor) {
        match (what, tag) {
            (What::Push, _) => {
                self.manifests.insert(of.digest.clone(), of.into());
            }
            (What::Tag, Some(tag)) => {
                self.manifests.entry(of.digest.clone()).or_insert_with(|| of.into());
                self.tags.insert(tag.clone(), of.digest.clone());
            }
            (What::Untag, Some(tag)) => {
                self.tags.remove(tag);
            }
            (What::Delete, _) => {
                self.manifests.remove(&of.digest);
            }
            (What::Tag | What::Untag, None) => {}
        }
    }

    /// What has to happen for this to become `now`: manifests come first and go last, so that no tag
    /// ever names what is not there.
    pub(super) fn difference(&self, now: &State) -> Vec<Change> {
        let describe = |state: &State, digest: &Digest| {
            let known = state.manifests.get(digest).cloned().unwrap_or_default();
            Descriptor::new(&known.media_type, digest.clone(), known.size)
        };
        let mut changes = Vec::new();
        for digest in now.manifests.keys().filter(|digest| !self.has(digest)) {
            changes.push(change(What::Push, None, None, Some(describe(now, digest))));
        }
        for (tag, digest) in now.tags.iter().filter(|(tag, to)| self.tagged(tag) != Some(to)) {
            let before = self.tagged(tag).map(|before| describe(self, before));
            changes.push(change(What::Tag, Some(tag), before, Some(describe(now, digest))));
        }
        for (tag, digest) in self.tags.iter().filter(|(tag, _)| now.tagged(tag).is_none()) {
            changes.push(change(What::Untag, Some(tag), Some(describe(self, digest)), None));
        }
        for digest in self.manifests.keys().filter(|digest| !now.has(digest)) {
            changes.push(change(What::Delete, None, Some(describe(self, digest)), None));
        }
        changes
    }
}

fn change(
    what: What,
    tag: Option<&Tag>,
    before: Option<Descriptor>,
    after: Option<Descriptor>,
) -> Change {
    Change { what, tag: tag.cloned(), before, after }
}

/// As it is kept in a file.
#[derive(Serialize, Deserialize)]
struct Kept {
    manifests: Vec<(Digest, Box<str>, u64)>,
    tags: Vec<(String, Digest)>,
}

impl Serialize for State {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let manifest =
            |(digest, of): (&Digest, &Manifest)| (digest.clone(), of.media_type.clone(), of.size);
        let tag = |(tag, digest): (&Tag, &Digest)| (tag.to_string(), digest.clone());
        let manifests = self.manifests.iter().map(manifest).collect();
        Kept { manifests, tags: self.tags.iter().map(tag).collect() }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for State {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<State, D::Error> {
        let Kept { manifests, tags } = Kept::deserialize(deserializer)?;
        let manifest = |(digest, media_type, size)| (digest, Manifest { media_type, size });
        let tag = |(tag, digest): (String, Digest)| Some((Tag::parse(&tag).ok()?, digest));
        Ok(State {
            manifests: manifests.into_iter().map(manifest).collect(),
            tags: tags.into_iter().filter_map(tag).collect(),
        })
    }
}
