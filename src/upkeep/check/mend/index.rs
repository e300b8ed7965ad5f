//! The entries of index.json: what is wrong with them is put right in one commit.

use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::super::finding::Finding;
use super::history::sync_blobs;
use super::{At, Done, Work, there};
use crate::layout::inherit::Purpose;
use crate::layout::journal::{self, Record};
use crate::layout::readers::Readers;
use crate::layout::{self, Dir, IndexFile, Stamp, durable, is_regular, path, read_all, size_of};
use crate::oci::{
    Change, Descriptor, Digest, Index, Kind, MAX_MANIFEST, Manifest, ManifestError, REF_NAME, Tag,
    What, tag_of_ref_name,
};
use crate::upkeep::check::Rule;

/// What this part of a repair sees to.
const RULES: [Rule; 7] = [
    Rule::IndexEntryUntyped,
    Rule::TagDoubled,
    Rule::ManifestMissing,
    Rule::ManifestSizeMismatch,
    Rule::ManifestMalformed,
    Rule::ManifestTypeMismatch,
    Rule::DescriptorDataMismatch,
];

/// What becomes of one entry.
struct Fate {
    /// As it is to be; `None` if it goes.
    entry: Option<Descriptor>,
    /// Why, and what is done: an entry may break several rules.
    deeds: Vec<(Rule, &'static str)>,
}

/// A new index.json, and what led to it.
struct Revision {
    index: Index,
    changes: Vec<Change>,
    deeds: Vec<(Rule, PathBuf, &'static str)>,
    /// Entries that go, as they were, and the rule for which they go.
    gone: Vec<(Rule, Descriptor)>,
}

impl Work<'_> {
    /// Puts right what can be put right in index.json.
    pub(super) fn index(&mut self, repo: &Dir, findings: &[Finding]) {
        let found = findings.iter().find(|finding| RULES.contains(&finding.rule));
        if let Some(finding) = found.filter(|_| !self.is_shut()) {
            let done = self.revise(repo);
            self.outcome(finding.rule, &finding.path, done);
        }
    }

    fn revise(&mut self, repo: &Dir) -> Done {
        let Some(last) = there(IndexFile::read(repo))?.flatten() else { return Ok(()) };
        let revision = self.revision(repo, &last.index)?;
        // An index.json that its owner keeps to himself is not published by the one who rewrites it.
        if revision.deeds.is_empty() || last.readers != Readers::Everybody {
            return Ok(());
        }
        let at = PathBuf::from(self.repository).join(path::INDEX);
        let at = at.to_string_lossy().into_owned();
        let mut kept = None;
        if !self.is_dry() {
            let tree = self.mender.tree()?;
            let _turn = self.turn(Some(repo))?;
            let Some(now) = there(IndexFile::read(repo))?.flatten() else { return Ok(()) };
            if now.stamp != last.stamp || !are_gone(repo, &revision.gone)? {
                return Ok(());
            }
            let rule = revision.deeds[0].0.id();
            let quarantine = self.mender.quarantine()?;
            for (rule, entry) in &revision.gone {
                let entry = serde_json::to_value(entry).unwrap_or_default();
                quarantine.list(&at, rule.id(), &entry)?;
            }
            kept = Some(quarantine.copy(repo, path::INDEX, &at, rule)?);
            let bytes = revision.index.to_bytes();
            let stamp = Stamp::of(&bytes);
            let record =
                |change: &Change| Record::now(change.clone(), None, None, last.stamp, stamp);
            let records: Vec<Record> = revision.changes.iter().map(record).collect();
            if !records.is_empty() {
                journal::append(&*tree.disk, repo, &records)?;
            }
            sync_blobs(&tree, repo)?;
            tree.disk.sync_dir(repo)?;
            durable::replace(&*tree.disk, repo, path::INDEX, &bytes, Purpose::Public)?;
            tree.disk.sync_dir(repo)?;
        }
        for (rule, path, deed) in revision.deeds {
            let path = PathBuf::from(self.repository).join(path);
            self.say(At { rule, path: &path, within: "" }, deed, kept.clone());
        }
        Ok(())
    }

    fn revision(&mut self, repo: &Dir, index: &Index) -> layout::Result<Revision> {
        let mut tags = BTreeSet::new();
        let mut entries = Vec::new();
        let (mut deeds, mut gone, mut revised) = (Vec::new(), Vec::new(), Vec::new());
        for entry in index.entries() {
            let mut fate = self.fate(repo, &entry)?;
            let tag = entry.annotations.get(REF_NAME).and_then(|name| tag_of_ref_name(name));
            // Of several entries with one tag the first counts.
            if let (Some(kept), Some(tag)) = (&mut fate.entry, tag)
                && !tags.insert(tag)
            {
                kept.annotations.remove(REF_NAME);
                fate.deeds.push((Rule::TagDoubled, "taken off all entries but the first"));
            }
            deeds.extend(fate.deeds.iter().map(|(rule, deed)| {
                let index = [Rule::TagDoubled, Rule::IndexEntryUntyped].contains(rule);
                let blob = path::blob(&entry.digest);
                let path = if index { path::INDEX.to_owned() } else { blob };
                (*rule, PathBuf::from(path), *deed)
            }));
            match fate.entry {
                Some(now) => {
                    if now != entry {
                        revised.push((entry.clone(), now.clone()));
                    }
                    entries.push(now);
                }
                None => {
                    let rule = fate.deeds.first().map_or(Rule::ManifestMissing, |deed| deed.0);
                    gone.push((rule, entry.clone()));
                }
            }
        }
        drop_spare(&mut entries);
        let changes = changes(&entries, &gone, &revised);
        let index = index.with_entries(entries);
        Ok(Revision { index, changes, deeds, gone })
    }

    fn fate(&mut self, repo: &Dir, entry: &Descriptor) -> layout::Result<Fate> {
        let mut fate = Fate { entry: Some(entry.clone()), deeds: Vec::new() };
        if let Some(now) = &mut fate.entry
            && has_wrong_data(now)
        {
            now.extra.remove("data");
            fate.deeds.push((Rule::DescriptorDataMismatch, "`data` taken off the entry"));
        }
        let untyped = entry.media_type.is_empty();
        if !untyped && Kind::of_media_type(&entry.media_type).is_none() {
            return Ok(fate);
        }
        let digest = &entry.digest;
        let go = |rule| Fate { entry: None, deeds: vec![(rule, "entry taken to quarantine")] };
        let Some(stat) = layout::blobs::stat(repo, digest)? else {
            // In a dry run nothing was linked before this; after an error nothing may have been.
            let found = self.find(repo, digest, None)?.is_some();
            return Ok(if found { fate } else { go(Rule::ManifestMissing) });
        };
        let Some(bytes) = sound_bytes(repo, digest, &stat)? else { return Ok(fate) };
        let Some(now) = &mut fate.entry else { return Ok(fate) };
        if now.size != bytes.len() as u64 {
            now.size = bytes.len() as u64;
            fate.deeds.push((Rule::ManifestSizeMismatch, "size set"));
        }
        if untyped {
            if let Ok(manifest) = Manifest::parse_untyped(&bytes) {
                now.media_type = manifest.kind.media_type().to_owned();
                fate.deeds.push((Rule::IndexEntryUntyped, "type set"));
            }
            return Ok(fate);
        }
        match Manifest::parse(&bytes, Some(&entry.media_type)) {
            Ok(_) => {}
            Err(ManifestError::Disagree { media_type, .. }) => {
                match Manifest::parse(&bytes, Some(&media_type)) {
                    Ok(manifest) => {
                        now.media_type = manifest.kind.media_type().to_owned();
                        fate.deeds.push((Rule::ManifestTypeMismatch, "type set"));
                    }
                    Err(_) => return Ok(go(Rule::ManifestTypeMismatch)),
                }
            }
            Err(_) => return Ok(go(Rule::ManifestMalformed)),
        }
        Ok(fate)
    }
}

/// An entry that lost its tag goes where its manifest has another entry.
fn drop_spare(entries: &mut Vec<Descriptor>) {
    let named = |entry: &Descriptor| entry.annotations.contains_key(REF_NAME);
    let tagged: HashSet<Digest> =
        entries.iter().filter(|e| named(e)).map(|e| e.digest.clone()).collect();
    let mut untagged = HashSet::new();
    entries.retain(|entry| {
        named(entry) || !tagged.contains(&entry.digest) && untagged.insert(entry.digest.clone())
    });
}

/// Whether what goes because it is missing is missing still.
fn are_gone(repo: &Dir, gone: &[(Rule, Descriptor)]) -> layout::Result<bool> {
    for (rule, entry) in gone {
        let missing = *rule == Rule::ManifestMissing;
        if missing && layout::blobs::stat(repo, &entry.digest)?.is_some() {
            return Ok(false);
        }
    }
    Ok(true)
}

fn has_wrong_data(entry: &Descriptor) -> bool {
    let Some(data) = entry.extra.get("data").filter(|data| !data.is_null()) else { return false };
    let bytes = data.as_str().and_then(|text| BASE64.decode(text).ok());
    bytes.is_none_or(|bytes| {
        bytes.len() as u64 != entry.size
            || Digest::of(entry.digest.algorithm(), &bytes) != entry.digest
    })
}

/// A manifest's bytes, if they have the digest and are not too many.
fn sound_bytes(
    repo: &Dir,
    digest: &Digest,
    stat: &rustix::fs::Stat,
) -> layout::Result<Option<Vec<u8>>> {
    if !is_regular(stat) || size_of(stat) > MAX_MANIFEST as u64 {
        return Ok(None);
    }
    let name = path::blob(digest);
    let file = repo.file(&name)?;
    let bytes = read_all(&file, MAX_MANIFEST as u64, || repo.at(&name))?;
    Ok((Digest::of(digest.algorithm(), &bytes) == *digest).then_some(bytes))
}

/// The journal's lines for it: an entry that is put right is tagged, or pushed, anew.
fn changes(
    entries: &[Descriptor],
    gone: &[(Rule, Descriptor)],
    revised: &[(Descriptor, Descriptor)],
) -> Vec<Change> {
    let tag_of =
        |entry: &Descriptor| -> Option<Tag> { tag_of_ref_name(entry.annotations.get(REF_NAME)?) };
    let change = |what, tag, before: Option<&Descriptor>, after: Option<&Descriptor>| Change {
        what,
        tag,
        before: before.cloned(),
        after: after.cloned(),
    };
    let mut changes = Vec::new();
    for (before, after) in revised {
        changes.push(match (tag_of(before), tag_of(after)) {
            (Some(_), Some(tag)) => change(What::Tag, Some(tag), Some(before), Some(after)),
            // The tag stands on an earlier entry too: it names what it named.
            (Some(tag), None) => {
                let first = entries.iter().find(|entry| tag_of(entry).as_ref() == Some(&tag));
                change(What::Tag, Some(tag), first, first)
            }
            (None, _) => change(What::Push, None, None, Some(after)),
        });
    }
    let mut deleted = HashSet::new();
    for (_, before) in gone {
        if let Some(tag) = tag_of(before)
            && !entries.iter().any(|entry| tag_of(entry).as_ref() == Some(&tag))
        {
            changes.push(change(What::Untag, Some(tag), Some(before), None));
        }
    }
    for (_, before) in gone {
        let stays = entries.iter().any(|entry| entry.digest == before.digest);
        if !stays && deleted.insert(&before.digest) {
            changes.push(change(What::Delete, None, Some(before), None));
        }
    }
    changes
}
