//! index.json: the one truth about a repository (image-spec, image-layout.md).

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

use super::descriptor::once;
use super::json::Text;
use super::{Descriptor, Digest, Kind, ManifestError, Tag, essence};

/// The annotation that makes a descriptor of index.json a tag.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Why bytes are not an index.json.
#[derive(Debug, Error)]
pub enum IndexError {
    /// Not JSON, or not of the right shape.
    #[error("not an image index: {0}")]
    Shape(#[from] serde_json::Error),
    /// `schemaVersion` is not 2.
    #[error("schemaVersion is {0}, must be 2")]
    SchemaVersion(u64),
}

/// A repository's manifests, tagged or not, with what is needed to find and change them.
///
/// A manifest with several tags has several entries; one without a tag has one entry without the
/// annotation. Of several entries with one tag the first counts. What other tools wrote there and
/// Stillage does not know is kept.
#[derive(Clone, Debug, Default)]
pub struct Index {
    head: Head,
    /// Entries in their order; a removed one leaves a hole, so that positions stay true.
    slots: Vec<Option<Arc<Descriptor>>>,
    /// How many are no holes.
    full: usize,
    by_tag: BTreeMap<Tag, Vec<usize>>,
    by_digest: HashMap<Digest, Vec<usize>>,
}

/// So many holes are no matter.
const FEW_HOLES: usize = 64;

/// The document's fields other than `manifests`.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    schema_version: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    media_type: Option<String>,
    #[serde(flatten)]
    extra: Map<String, Value>,
}

impl Default for Head {
    fn default() -> Self {
        let media_type = Some(Kind::OciIndex.media_type().to_owned());
        Head { schema_version: 2, media_type, extra: Map::new() }
    }
}

struct Document {
    head: Head,
    manifests: Vec<Descriptor>,
}

/// Read by hand, so that a key that stands twice is refused whether Stillage knows it or not.
impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Fields)
    }
}

struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = Document;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an image index")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Document, A::Error> {
        let (mut schema_version, mut media_type, mut manifests) = (None, None, None);
        let mut extra = Map::new();
        while let Some(Text(key)) = map.next_key()? {
            match key.as_ref() {
                "schemaVersion" => once(&mut schema_version, "schemaVersion", map.next_value()?)?,
                "mediaType" => once(&mut media_type, "mediaType", map.next_value::<Option<_>>()?)?,
                "manifests" => once(&mut manifests, "manifests", map.next_value::<Option<_>>()?)?,
                _ => {
                    let value = map.next_value()?;
                    if extra.insert(key.clone().into_owned(), value).is_some() {
                        return Err(A::Error::custom(format!("duplicate field {key:?}")));
                    }
                }
            }
        }
        let schema_version =
            schema_version.ok_or_else(|| A::Error::missing_field("schemaVersion"))?;
        let head = Head { schema_version, media_type: media_type.flatten(), extra };
        Ok(Document { head, manifests: manifests.flatten().unwrap_or_default() })
    }
}

#[derive(Serialize)]
struct DocumentRef<'a> {
    #[serde(flatten)]
    head: &'a Head,
    manifests: Vec<&'a Descriptor>,
}

/// One change of a tag or a manifest: a line of the journal.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// What happened.
    pub what: What,
    /// The tag it happened to, if any.
    pub tag: Option<Tag>,
    /// The whole descriptor before.
    pub before: Option<Descriptor>,
    /// The whole descriptor after.
    pub after: Option<Descriptor>,
}

/// What can happen to a tag or a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// A manifest came into the repository.
    Push,
    /// A tag names a manifest, anew or instead of another.
    Tag,
    /// A tag is gone.
    Untag,
    /// A manifest is gone.
    Delete,
}

/// The tag that an `org.opencontainers.image.ref.name` means: the bare name, or the tag of a full
/// reference (`docker.io/library/alpine:3.18`) that another tool left there.
pub fn tag_of_ref_name(name: &str) -> Option<Tag> {
    if let Ok(tag) = Tag::parse(name) {
        return Some(tag);
    }
    let name = name.split_once('@').map_or(name, |(name, _)| name);
    let last = name.rsplit('/').next()?;
    Tag::parse(last.split_once(':')?.1).ok()
}

fn tag_of(descriptor: &Descriptor) -> Option<Tag> {
    tag_of_ref_name(descriptor.annotations.get(REF_NAME)?)
}

impl Index {
    /// Reads an index.json.
    pub fn parse(bytes: &[u8]) -> Result<Index, IndexError> {
        let document: Document = serde_json::from_slice(bytes)?;
        if document.head.schema_version != 2 {
            return Err(IndexError::SchemaVersion(document.head.schema_version));
        }
        let mut index = Index { head: document.head, ..Index::default() };
        for descriptor in document.manifests {
            index.append(descriptor);
        }
        Ok(index)
    }

    /// The bytes to write. Reading them gives an equal index.
    pub fn to_bytes(&self) -> Vec<u8> {
        let document = DocumentRef { head: &self.head, manifests: self.entries().collect() };
        serde_json::to_vec(&document).unwrap_or_else(|error| {
            // Strings, numbers and maps with string keys cannot fail to serialise.
            unreachable!("an index serialises: {error}")
        })
    }

    /// Every entry, in order.
    pub fn entries(&self) -> impl Iterator<Item = &Descriptor> {
        self.slots.iter().flatten().map(Arc::as_ref)
    }

    /// Whether no manifest is left: such a repository is not listed.
    pub fn is_empty(&self) -> bool {
        self.by_digest.is_empty()
    }

    /// The manifest that a tag names.
    pub fn tagged(&self, tag: &Tag) -> Option<&Descriptor> {
        self.at(*self.by_tag.get(tag)?.first()?)
    }

    /// An entry for a manifest.
    pub fn find(&self, digest: &Digest) -> Option<&Descriptor> {
        self.at(*self.by_digest.get(digest)?.first()?)
    }

    /// The manifests, each once, in no order.
    pub fn digests(&self) -> impl Iterator<Item = &Digest> {
        self.by_digest.keys()
    }

    /// The tags after `last`, in lexical order.
    pub fn tags_after<'a>(&'a self, last: Option<&str>) -> impl Iterator<Item = &'a Tag> + use<'a> {
        let after = last.map_or(Bound::Unbounded, Bound::Excluded);
        self.by_tag.range::<str, _>((after, Bound::Unbounded)).map(|(tag, _)| tag)
    }

    /// Tags that stand on more than one entry: only the first of each counts.
    pub fn doubled_tags(&self) -> impl Iterator<Item = &Tag> {
        self.by_tag.iter().filter(|(_, slots)| slots.len() > 1).map(|(tag, _)| tag)
    }

    /// Fails if the content is listed already as something else: who pulls it by its digest could
    /// be told either. An entry without a type agrees with any.
    pub fn agrees(&self, pushed: &Descriptor) -> Result<(), ManifestError> {
        let slots = self.by_digest.get(&pushed.digest).into_iter().flatten();
        let mut there = slots.filter_map(|slot| self.at(*slot)).map(|entry| &entry.media_type);
        let wanted = essence(&pushed.media_type);
        match there.find(|there| !there.is_empty() && essence(there) != wanted) {
            None => Ok(()),
            Some(there) => Err(ManifestError::OtherType {
                there: there.clone(),
                pushed: pushed.media_type.clone(),
            }),
        }
    }

    /// Adds a manifest, and lets every tag of `tags` name it. Gives the changes; none when all
    /// was so already. A manifest that loses its last tag stays, untagged.
    pub fn put(&mut self, descriptor: &Descriptor, tags: &[Tag]) -> Vec<Change> {
        let mut changes = Vec::new();
        self.close_holes();
        if self.find(&descriptor.digest).is_none() {
            self.append(descriptor.clone());
            changes.push(change(What::Push, None, None, Some(descriptor.clone())));
        }
        for tag in tags {
            changes.extend(self.tag(descriptor, tag));
        }
        changes
    }

    fn tag(&mut self, descriptor: &Descriptor, tag: &Tag) -> Option<Change> {
        let before = self.tagged(tag).cloned();
        let slots = self.by_tag.get(tag).map_or(0, Vec::len);
        if slots == 1 && before.as_ref().is_some_and(|old| old.digest == descriptor.digest) {
            return None;
        }
        let mut entry =
            self.take_untagged(&descriptor.digest).unwrap_or_else(|| descriptor.clone());
        entry.annotations.insert(REF_NAME.to_owned(), tag.to_string());
        self.drop_tag(tag, Some(&descriptor.digest));
        self.append(entry.clone());
        Some(change(What::Tag, Some(tag.clone()), before, Some(entry)))
    }

    /// Removes a tag; the manifest stays. `None` if there is no such tag.
    pub fn untag(&mut self, tag: &Tag) -> Option<Change> {
        let before = self.tagged(tag).cloned()?;
        self.drop_tag(tag, None);
        Some(change(What::Untag, Some(tag.clone()), Some(before), None))
    }

    /// Removes a manifest with all its tags. No change if it is not there.
    pub fn remove(&mut self, digest: &Digest) -> Vec<Change> {
        let mut changes = Vec::new();
        let Some(first) = self.find(digest).cloned() else {
            return changes;
        };
        for slot in self.by_digest.get(digest).cloned().unwrap_or_default() {
            if let Some(entry) = self.vacate(slot)
                && let Some(tag) = tag_of(&entry)
            {
                changes.push(change(What::Untag, Some(tag), Some(entry.as_ref().clone()), None));
            }
        }
        changes.push(change(What::Delete, None, Some(first), None));
        changes
    }

    /// The same document with other entries.
    pub fn with_entries(&self, entries: impl IntoIterator<Item = Descriptor>) -> Index {
        let mut index = Index { head: self.head.clone(), ..Index::default() };
        entries.into_iter().for_each(|entry| index.append(entry));
        index
    }

    /// Replaces the first entry of the same manifest that `which` picks, where it stands; `false`
    /// if there is none.
    pub fn revise(&mut self, which: impl Fn(&Descriptor) -> bool, now: &Descriptor) -> bool {
        let slots = self.by_digest.get(&now.digest).into_iter().flatten();
        let picked = |slot: &&usize| self.at(**slot).is_some_and(&which);
        let Some(slot) = slots.into_iter().find(picked).copied() else {
            return false;
        };
        self.vacate(slot);
        self.fill(slot, now.clone());
        true
    }

    fn at(&self, slot: usize) -> Option<&Descriptor> {
        self.slots.get(slot)?.as_deref()
    }

    fn append(&mut self, descriptor: Descriptor) {
        self.slots.push(None);
        self.fill(self.slots.len() - 1, descriptor);
    }

    /// Puts an entry into an empty slot.
    fn fill(&mut self, slot: usize, descriptor: Descriptor) {
        let insert = |slots: &mut Vec<usize>| {
            let at = slots.partition_point(|other| *other < slot);
            slots.insert(at, slot);
        };
        if let Some(tag) = tag_of(&descriptor) {
            insert(self.by_tag.entry(tag).or_default());
        }
        insert(self.by_digest.entry(descriptor.digest.clone()).or_default());
        if let Some(empty) = self.slots.get_mut(slot) {
            *empty = Some(Arc::new(descriptor));
            self.full += 1;
        }
    }

    /// An index is changed again and again and never read anew: holes do not outnumber entries.
    fn close_holes(&mut self) {
        if self.slots.len() <= 2 * self.full + FEW_HOLES {
            return;
        }
        let mut now = vec![0; self.slots.len()];
        let mut next = 0;
        for (slot, entry) in self.slots.iter().enumerate() {
            now[slot] = next;
            next += usize::from(entry.is_some());
        }
        self.slots.retain(Option::is_some);
        self.slots.shrink_to_fit();
        let all = self.by_tag.values_mut().chain(self.by_digest.values_mut());
        all.flatten().for_each(|slot| *slot = now[*slot]);
    }

    /// Empties a slot and takes it out of both maps.
    fn vacate(&mut self, slot: usize) -> Option<Arc<Descriptor>> {
        let entry = self.slots.get_mut(slot)?.take()?;
        self.full -= 1;
        if let Some(tag) = tag_of(&entry)
            && let Some(slots) = self.by_tag.get_mut(&tag)
        {
            slots.retain(|other| *other != slot);
            if slots.is_empty() {
                self.by_tag.remove(&tag);
            }
        }
        if let Some(slots) = self.by_digest.get_mut(&entry.digest) {
            slots.retain(|other| *other != slot);
            if slots.is_empty() {
                self.by_digest.remove(&entry.digest);
            }
        }
        Some(entry)
    }

    /// Takes out the entry of a manifest that has no name at all, if there is one.
    fn take_untagged(&mut self, digest: &Digest) -> Option<Descriptor> {
        let slots = self.by_digest.get(digest)?;
        let nameless =
            |slot: &&usize| self.at(**slot).is_some_and(|e| !e.annotations.contains_key(REF_NAME));
        let slot = *slots.iter().find(nameless)?;
        self.vacate(slot).map(|entry| entry.as_ref().clone())
    }

    /// Removes every entry with the tag. A manifest that would vanish with it stays, untagged,
    /// unless it is `except`, which is about to be added again.
    fn drop_tag(&mut self, tag: &Tag, except: Option<&Digest>) {
        for slot in self.by_tag.get(tag).cloned().unwrap_or_default() {
            let Some(entry) = self.vacate(slot) else {
                continue;
            };
            if self.find(&entry.digest).is_none() && Some(&entry.digest) != except {
                let mut entry = entry.as_ref().clone();
                entry.annotations.remove(REF_NAME);
                self.append(entry);
            }
        }
    }
}

fn change(
    what: What,
    tag: Option<Tag>,
    before: Option<Descriptor>,
    after: Option<Descriptor>,
) -> Change {
    Change { what, tag, before, after }
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
