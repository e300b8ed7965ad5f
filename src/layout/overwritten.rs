//! What another tool took back by writing index.json without the repository's lock.

use std::collections::{BTreeMap, HashSet};
use std::os::unix::fs::FileExt;

use super::dir::{self, Dir};
use super::error::{At, OrAbsent, Result};
use super::index_file::IndexFile;
use super::journal::Record;
use super::path;
use super::stamp::Stamp;
use crate::oci::{Digest, Tag, What};

/// So much of the journal's end is looked at: who overwrites a change has read index.json shortly
/// before it.
const TAIL: u64 = 64 * 1024;

/// What an index.json lacks of what was committed.
#[derive(Debug, PartialEq, Eq)]
pub enum Overwritten {
    /// Another tool wrote it: these tags are as they were before their last change, of those that changed
    /// lately. Whoever wrote it had read it before. A tool that took such a change back on purpose cannot
    /// be told from one that never saw it.
    Before(Vec<Tag>),
    /// It is one of before, put back.
    Older(Older),
}

/// What changed since an index.json that was put back.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Older {
    /// The tags that are not what they had become.
    pub tags: Vec<Tag>,
    /// How many manifests that had come in are not named.
    pub manifests: usize,
}

/// What an index.json, which others wrote, lacks, as far as the journal's last lines tell; `None` if it is
/// the last one that they know. `seen` is one that stood there before: without it, an index.json that is
/// the `base` of the last lines may be all that there was, and what they say was never done.
pub fn overwritten(
    repo: &Dir,
    index: &IndexFile,
    seen: Option<Stamp>,
) -> Result<Option<Overwritten>> {
    let records = last_records(repo)?;
    let is_known = |record: &Record| record.stamp == index.stamp || record.base == index.stamp;
    Ok(match records.iter().any(is_known) {
        _ if records.is_empty() => None,
        false => Some(Overwritten::Before(before(&records, index))),
        true => seen.and_then(|seen| older(&records, index, seen)).map(Overwritten::Older),
    })
}

fn before(records: &[Record], index: &IndexFile) -> Vec<Tag> {
    let mut back = Vec::new();
    for (tag, record) in last_changes(records.iter()) {
        let digest = |entry: &Option<_>| entry.as_ref().map(digest_of);
        let now = index.index.tagged(&tag).map(digest_of);
        if now == digest(&record.before) && now != digest(&record.after) {
            back.push(tag);
        }
    }
    back
}

/// What is not there of the changes up to the index.json that was seen, if that came later.
fn older(records: &[Record], index: &IndexFile, seen: Stamp) -> Option<Older> {
    let now = index.stamp;
    let made = records.iter().rposition(|record| record.stamp == now).map(|at| at + 1);
    let begin = made.or_else(|| records.iter().position(|record| record.base == now))?;
    let since = &records[begin..];
    since.iter().find(|record| record.stamp == seen)?;
    // What a later one was made from, or somebody saw, was done.
    let done: HashSet<Stamp> = since.iter().map(|record| record.base).chain([seen]).collect();
    let since = || since.iter().filter(|record| done.contains(&record.stamp));
    let mut older = Older::default();
    for (tag, record) in last_changes(since()) {
        if index.index.tagged(&tag).map(digest_of) != record.after.as_ref().map(digest_of) {
            older.tags.push(tag);
        }
    }
    let pushed = since().filter(|record| record.what == What::Push);
    let pushed: HashSet<Digest> =
        pushed.filter_map(|record| record.after.as_ref().map(digest_of)).collect();
    older.manifests = pushed.iter().filter(|digest| index.index.find(digest).is_none()).count();
    Some(older)
}

/// Each tag that changed, in lexical order, with its last change.
fn last_changes<'a>(records: impl Iterator<Item = &'a Record>) -> BTreeMap<Tag, &'a Record> {
    let mut last = BTreeMap::new();
    for record in records.filter(|record| matches!(record.what, What::Tag | What::Untag)) {
        if let Some(tag) = record.tag.as_deref().and_then(|tag| Tag::parse(tag).ok()) {
            last.insert(tag, record);
        }
    }
    last
}

fn digest_of(entry: &crate::oci::Descriptor) -> Digest {
    entry.digest.clone()
}

/// The records at the end of the journal, as far as they are whole.
fn last_records(repo: &Dir) -> Result<Vec<Record>> {
    let Some((file, stat)) = repo.file_stat(path::JOURNAL).or_absent()? else {
        return Ok(Vec::new());
    };
    let len = dir::size_of(&stat);
    let begin = len.saturating_sub(TAIL);
    let mut bytes = vec![0; usize::try_from(len - begin).unwrap_or(0)];
    let read = file.read_at(&mut bytes, begin).at(|| repo.at(path::JOURNAL))?;
    let mut lines = bytes[..read].split(|byte| *byte == b'\n');
    if begin > 0 {
        // The rest of a line.
        lines.next();
    }
    Ok(lines.filter_map(|line| serde_json::from_slice(line).ok()).collect())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::disk::RealDisk;
    use super::super::{Stamp, journal};
    use super::*;
    use crate::oci::{Algorithm, Change, Descriptor, Index};

    const EMPTY: &str = r#"{"schemaVersion":2,"manifests":[]}"#;

    fn entry(content: &str, tag: &str) -> Descriptor {
        let digest = Digest::of(Algorithm::Sha256, content.as_bytes());
        let mut entry = Descriptor::new("application/vnd.oci.image.manifest.v1+json", digest, 1);
        entry.annotations.insert(crate::oci::REF_NAME.to_owned(), tag.to_owned());
        entry
    }

    /// After a commit that moved `moved` from "old" to "new" and made `made`, another tool has written
    /// an index.json with these tags.
    fn after(tags: &[(&str, &str)]) -> Option<Vec<String>> {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open_root(temp.path()).unwrap();
        let change = |tag: &str, before: Option<&str>, after| Change {
            what: What::Tag,
            tag: Some(Tag::parse(tag).unwrap()),
            before: before.map(|content| entry(content, tag)),
            after: Some(entry(after, tag)),
        };
        let changes = [change("moved", Some("old"), "new"), change("made", None, "new")];
        let records = changes.map(|change| {
            Record::now(change, None, None, Stamp::of(EMPTY.as_bytes()), Stamp::of(b"committed"))
        });
        journal::append(&RealDisk, &dir, &records).unwrap();
        let entries: Vec<_> = tags.iter().map(|(tag, content)| entry(content, tag)).collect();
        let index = Index::parse(EMPTY.as_bytes()).unwrap().with_entries(entries);
        fs::write(temp.path().join("index.json"), index.to_bytes()).unwrap();
        let index = IndexFile::read(&dir).unwrap().unwrap();
        match overwritten(&dir, &index, None).unwrap()? {
            Overwritten::Before(tags) => Some(tags.iter().map(Tag::to_string).collect()),
            older @ Overwritten::Older(_) => panic!("{older:?}"),
        }
    }

    /// What is said of an index.json without entries, of which `before` was seen, after groups that each
    /// made a tag of their own: from which, to which index.json. "now" is the one that stands there.
    fn put_back(groups: &[(&str, &str)], before: &str) -> Option<Vec<String>> {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open_root(temp.path()).unwrap();
        let stamp = |name: &str| Stamp::of(if name == "now" { EMPTY } else { name }.as_bytes());
        for (from, to) in groups {
            let tag = format!("{from}-{to}");
            let change = Change {
                what: What::Tag,
                tag: Some(Tag::parse(&tag).unwrap()),
                before: None,
                after: Some(entry(&tag, &tag)),
            };
            let record = Record::now(change, None, None, stamp(from), stamp(to));
            journal::append(&RealDisk, &dir, &[record]).unwrap();
        }
        fs::write(temp.path().join("index.json"), EMPTY).unwrap();
        let index = IndexFile::read(&dir).unwrap().unwrap();
        match overwritten(&dir, &index, Some(stamp(before))).unwrap()? {
            Overwritten::Older(older) => Some(older.tags.iter().map(Tag::to_string).collect()),
            before @ Overwritten::Before(_) => panic!("{before:?}"),
        }
    }

    #[test]
    fn what_is_of_before_what_was_seen_was_put_back() {
        assert_eq!(put_back(&[("now", "1")], "1"), Some(vec!["now-1".to_owned()]));
        let all = ["1-2", "now-1"].map(str::to_owned).to_vec();
        assert_eq!(put_back(&[("now", "1"), ("1", "2")], "2"), Some(all.clone()));
        assert_eq!(put_back(&[("0", "now"), ("now", "1"), ("1", "2")], "2"), Some(all.clone()));
        // What was never done is not missed.
        let groups = [("now", "1"), ("1", "void"), ("1", "2"), ("2", "void-too")];
        assert_eq!(put_back(&groups, "2"), Some(all));
    }

    #[test]
    fn what_others_committed_and_what_was_not_done_was_not_put_back() {
        assert_eq!(put_back(&[("0", "1"), ("1", "now")], "1"), None, "another server's");
        assert_eq!(put_back(&[("0", "1"), ("1", "now"), ("now", "3")], "1"), None, "in the making");
        assert_eq!(put_back(&[("0", "now"), ("now", "1"), ("1", "now")], "1"), None, "as before");
        assert_eq!(put_back(&[("0", "now"), ("now", "void")], "0"), None, "never done");
    }

    #[test]
    fn what_is_as_before_the_last_change_is_told() {
        let told = |tags: &[(&str, &str)]| after(tags).expect("another tool's");
        assert_eq!(told(&[("moved", "old"), ("theirs", "x")]), ["made", "moved"]);
        assert_eq!(told(&[("moved", "new"), ("made", "new"), ("theirs", "x")]), [""; 0]);
        assert_eq!(told(&[("moved", "other"), ("made", "other")]), [""; 0]);
        assert_eq!(told(&[("moved", "old"), ("made", "new")]), ["moved"]);
    }

    #[test]
    fn what_the_journal_knows_was_no_other_tools() {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open_root(temp.path()).unwrap();
        fs::write(temp.path().join("index.json"), EMPTY).unwrap();
        let index = IndexFile::read(&dir).unwrap().unwrap();
        assert_eq!(overwritten(&dir, &index, None).unwrap(), None, "without a journal");
        assert_eq!(after(&[]), None, "the base of a commit that was not made");
    }
}
