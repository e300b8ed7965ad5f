//! index.json: the one truth about a repository (image-spec, image-layout.md).

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

use super::descriptor::once;
use super::digest_set::DigestSet;
use super::json::Text;
use super::pieces::Pieces;
use super::sorted::Sorted;
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
///
/// Entries are kept as they are written: what one asks for is read from its text, and to write an
/// index that was changed, the texts of the others are not made again. A copy shares with its original
/// what they have in common.
#[derive(Clone, Debug)]
pub struct Index {
    head: Arc<Head>,
    entries: Pieces,
    by_tag: Sorted<(Tag, usize)>,
    /// Each with whether it has no name at all.
    by_digest: DigestSet<(usize, bool)>,
}

impl Default for Index {
    fn default() -> Self {
        Index::of(Head::default(), Entries::default())
    }
}

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
    entries: Entries,
}

/// Entries, and where each is to be found.
#[derive(Default)]
struct Entries {
    pieces: Pieces,
    by_tag: Vec<(Tag, usize)>,
    by_digest: Vec<(Digest, (usize, bool))>,
}

impl Entries {
    fn append(&mut self, entry: &Descriptor) {
        let slot = self.pieces.push(entry);
        self.by_tag.extend(tag_of(entry).map(|tag| (tag, slot)));
        self.by_digest.push((entry.digest.clone(), (slot, is_nameless(entry))));
    }
}

/// One after another, so that no more than one is in memory as what it says.
impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;

        impl<'de> Visitor<'de> for All {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("descriptors")
            }

            fn visit_unit<E>(self) -> Result<Entries, E> {
                Ok(Entries::default())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Entries, A::Error> {
                let mut entries = Entries::default();
                while let Some(entry) = seq.next_element()? {
                    entries.append(&entry);
                }
                Ok(entries)
            }
        }

        deserializer.deserialize_any(All)
    }
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
                "manifests" => once(&mut manifests, "manifests", map.next_value()?)?,
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
        Ok(Document { head, entries: manifests.unwrap_or_default() })
    }
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

fn is_nameless(descriptor: &Descriptor) -> bool {
    !descriptor.annotations.contains_key(REF_NAME)
}

impl Index {
    /// Reads an index.json.
    pub fn parse(bytes: &[u8]) -> Result<Index, IndexError> {
        let document: Document = serde_json::from_slice(bytes)?;
        if document.head.schema_version != 2 {
            return Err(IndexError::SchemaVersion(document.head.schema_version));
        }
        Ok(Index::of(document.head, document.entries))
    }

    fn of(head: Head, entries: Entries) -> Index {
        let Entries { pieces, by_tag, by_digest } = entries;
        Index {
            head: Arc::new(head),
            entries: pieces,
            by_tag: Sorted::of(by_tag),
            by_digest: DigestSet::of(by_digest),
        }
    }

    /// The bytes to write, in few parts. Reading them gives an equal index.
    pub fn parts(&self) -> Vec<Cow<'_, [u8]>> {
        let mut head = serde_json::to_vec(&*self.head).unwrap_or_else(|error| {
            // Strings, numbers and maps with string keys cannot fail to serialise.
            unreachable!("an index serialises: {error}")
        });
        // There is a version, at least, for the comma to come after.
        head.pop();
        head.extend_from_slice(br#","manifests":["#);
        let entries = self.entries.parts().map(Cow::Borrowed);
        let end = Cow::Borrowed(&b"]}"[..]);
        std::iter::once(Cow::Owned(head)).chain(entries).chain([end]).collect()
    }

    /// The bytes to write, in one piece.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.parts().concat()
    }

    /// About how much memory it takes, in bytes.
    pub fn weight(&self) -> usize {
        // A tag is a text of its own; a short one, mostly.
        self.entries.weight() + 64 * self.by_tag.len() + self.by_digest.weight()
    }

    /// Every entry, in order.
    pub fn entries(&self) -> impl Iterator<Item = Descriptor> {
        self.entries.entries()
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.by_digest.len()
    }

    /// Whether no manifest is left: such a repository is not listed.
    pub fn is_empty(&self) -> bool {
        self.by_digest.is_empty()
    }

    /// The manifest that a tag names.
    pub fn tagged(&self, tag: &Tag) -> Option<Descriptor> {
        self.entries.entry(self.slots_of_tag(tag).next()?)
    }

    /// An entry for a manifest.
    pub fn find(&self, digest: &Digest) -> Option<Descriptor> {
        let (slot, _) = self.by_digest.values(digest).next()?;
        self.entries.entry(slot)
    }

    /// Whether a manifest has an entry.
    pub fn contains(&self, digest: &Digest) -> bool {
        self.by_digest.values(digest).next().is_some()
    }

    /// The manifests, each once, in no order.
    pub fn digests(&self) -> impl Iterator<Item = Digest> {
        self.by_digest.keys()
    }

    /// The tags after `last`, in lexical order.
    pub fn tags_after<'a>(&'a self, last: Option<&str>) -> impl Iterator<Item = &'a Tag> + use<'a> {
        let before = |(tag, _): &(Tag, usize)| last.is_some_and(|last| tag.as_str() <= last);
        let mut given = None;
        let tags = self.by_tag.from(before).map(|(tag, _)| tag);
        tags.filter(move |tag| given.replace(*tag) != Some(*tag))
    }

    /// Tags that stand on more than one entry: only the first of each counts.
    pub fn doubled_tags(&self) -> impl Iterator<Item = &Tag> {
        let mut met = (None, 0);
        let tags = self.by_tag.from(|_| false).map(|(tag, _)| tag);
        tags.filter(move |tag| {
            met = (Some(*tag), if met.0 == Some(*tag) { met.1 + 1 } else { 1 });
            met.1 == 2
        })
    }

    /// Fails if the content is listed already as something else: who pulls it by its digest could
    /// be told either. An entry without a type agrees with any.
    pub fn agrees(&self, pushed: &Descriptor) -> Result<(), ManifestError> {
        // So each entry begins that has the very type: there may be as many as there are tags.
        let same = serde_json::to_vec(&pushed.media_type).unwrap_or_default();
        let same = [&br#"{"mediaType":"#[..], &same, b","].concat();
        let wanted = essence(&pushed.media_type);
        for (slot, _) in self.by_digest.values(&pushed.digest) {
            if self.entries.get(slot).is_none_or(|text| text.starts_with(&same)) {
                continue;
            }
            let there = self.entries.entry(slot).map(|entry| entry.media_type).unwrap_or_default();
            if !there.is_empty() && essence(&there) != wanted {
                let pushed = pushed.media_type.clone();
                return Err(ManifestError::OtherType { there, pushed });
            }
        }
        Ok(())
    }

    /// Adds a manifest, and lets every tag of `tags` name it. Gives the changes; none when all
    /// was so already. A manifest that loses its last tag stays, untagged.
    pub fn put(&mut self, descriptor: &Descriptor, tags: &[Tag]) -> Vec<Change> {
        let mut changes = Vec::new();
        self.close_holes();
        if !self.contains(&descriptor.digest) {
            self.append(descriptor);
            changes.push(change(What::Push, None, None, Some(descriptor.clone())));
        }
        for tag in tags {
            changes.extend(self.tag(descriptor, tag));
        }
        changes
    }

    fn tag(&mut self, descriptor: &Descriptor, tag: &Tag) -> Option<Change> {
        let before = self.tagged(tag);
        let slots = self.slots_of_tag(tag).take(2).count();
        if slots == 1 && before.as_ref().is_some_and(|old| old.digest == descriptor.digest) {
            return None;
        }
        let mut entry =
            self.take_untagged(&descriptor.digest).unwrap_or_else(|| descriptor.clone());
        entry.annotations.insert(REF_NAME.to_owned(), tag.to_string());
        self.drop_tag(tag, Some(&descriptor.digest));
        self.append(&entry);
        Some(change(What::Tag, Some(tag.clone()), before, Some(entry)))
    }

    /// Removes a tag; the manifest stays. `None` if there is no such tag.
    pub fn untag(&mut self, tag: &Tag) -> Option<Change> {
        let before = self.tagged(tag)?;
        self.drop_tag(tag, None);
        Some(change(What::Untag, Some(tag.clone()), Some(before), None))
    }

    /// Removes a manifest with all its tags. No change if it is not there.
    pub fn remove(&mut self, digest: &Digest) -> Vec<Change> {
        let mut changes = Vec::new();
        let Some(first) = self.find(digest) else {
            return changes;
        };
        let slots: Vec<usize> = self.by_digest.values(digest).map(|(slot, _)| slot).collect();
        for slot in slots {
            if let Some(entry) = self.vacate(slot)
                && let Some(tag) = tag_of(&entry)
            {
                changes.push(change(What::Untag, Some(tag), Some(entry), None));
            }
        }
        changes.push(change(What::Delete, None, Some(first), None));
        changes
    }

    /// The same document with other entries.
    pub fn with_entries(&self, entries: impl IntoIterator<Item = Descriptor>) -> Index {
        let mut all = Entries::default();
        entries.into_iter().for_each(|entry| all.append(&entry));
        Index { head: Arc::clone(&self.head), ..Index::of(Head::default(), all) }
    }

    /// Replaces the first entry of the same manifest that `which` picks, where it stands; `false`
    /// if there is none.
    pub fn revise(&mut self, which: impl Fn(&Descriptor) -> bool, now: &Descriptor) -> bool {
        let picked = |slot: &usize| self.entries.entry(*slot).is_some_and(|entry| which(&entry));
        let slot = self.by_digest.values(&now.digest).map(|(slot, _)| slot).find(picked);
        let Some(slot) = slot else { return false };
        self.vacate(slot);
        self.entries.fill(slot, now);
        self.register(slot, now);
        true
    }

    /// The slots that a tag stands on, the first one first.
    fn slots_of_tag<'a>(&'a self, tag: &'a Tag) -> impl Iterator<Item = usize> + 'a {
        let from = self.by_tag.from(|(other, _)| other < tag);
        from.take_while(move |(other, _)| other == tag).map(|(_, slot)| *slot)
    }

    fn append(&mut self, descriptor: &Descriptor) {
        let slot = self.entries.push(descriptor);
        self.register(slot, descriptor);
    }

    fn register(&mut self, slot: usize, descriptor: &Descriptor) {
        if let Some(tag) = tag_of(descriptor) {
            self.by_tag.insert((tag, slot));
        }
        self.by_digest.insert(&descriptor.digest, (slot, is_nameless(descriptor)));
    }

    fn close_holes(&mut self) {
        if let Some(now) = self.entries.close_holes() {
            self.by_tag.change_all(|(_, slot)| *slot = now[*slot]);
            self.by_digest.change_all(|(slot, _)| *slot = now[*slot]);
        }
    }

    /// Empties a slot.
    fn vacate(&mut self, slot: usize) -> Option<Descriptor> {
        let entry = self.entries.take(slot)?;
        if let Some(tag) = tag_of(&entry) {
            self.by_tag.remove(&(tag, slot));
        }
        self.by_digest.remove(&entry.digest, &(slot, is_nameless(&entry)));
        Some(entry)
    }

    /// Takes out the entry of a manifest that has no name at all, if there is one.
    fn take_untagged(&mut self, digest: &Digest) -> Option<Descriptor> {
        let (slot, _) = self.by_digest.values(digest).find(|(_, nameless)| *nameless)?;
        self.vacate(slot)
    }

    /// Removes every entry with the tag. A manifest that would vanish with it stays, untagged,
    /// unless it is `except`, which is about to be added again.
    fn drop_tag(&mut self, tag: &Tag, except: Option<&Digest>) {
        let slots: Vec<usize> = self.slots_of_tag(tag).collect();
        for slot in slots {
            let Some(mut entry) = self.vacate(slot) else {
                continue;
            };
            if !self.contains(&entry.digest) && Some(&entry.digest) != except {
                entry.annotations.remove(REF_NAME);
                self.append(&entry);
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
