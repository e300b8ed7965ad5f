//! What another tool took back by writing index.json without the repository's lock.

use std::collections::HashSet;
use std::os::unix::fs::FileExt;

use super::dir::{self, Dir};
use super::error::{At, OrAbsent, Result};
use super::index_file::IndexFile;
use super::journal::Record;
use super::path;
use crate::oci::{Digest, Tag, What};

/// So much of the journal's end is looked at: who overwrites a change has read index.json shortly
/// before it.
const TAIL: u64 = 64 * 1024;

/// The tags that an index.json which another tool wrote has as they were before their last change, of
/// those that changed lately: whoever wrote it had read it before. `None` if no other tool wrote it, as
/// far as the journal's last lines tell. A tool that took such a change back on purpose cannot be told
/// from one that never saw it.
pub fn overwritten(repo: &Dir, index: &IndexFile) -> Result<Option<Vec<Tag>>> {
    let records = last_records(repo)?;
    let is_known = |record: &Record| record.stamp == index.stamp || record.base == index.stamp;
    if records.is_empty() || records.iter().any(is_known) {
        return Ok(None);
    }
    let mut seen = HashSet::new();
    let mut back = Vec::new();
    for record in records.iter().rev() {
        let tag = record.tag.as_deref().filter(|_| matches!(record.what, What::Tag | What::Untag));
        let Some(tag) = tag.and_then(|tag| Tag::parse(tag).ok()) else { continue };
        if !seen.insert(tag.clone()) {
            continue;
        }
        let digest = |entry: &Option<_>| entry.as_ref().map(digest_of);
        let now = index.index.tagged(&tag).map(|entry| entry.digest);
        if now == digest(&record.before) && now != digest(&record.after) {
            back.push(tag);
        }
    }
    back.sort_unstable();
    Ok(Some(back))
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
        let tags = overwritten(&dir, &index).unwrap()?;
        Some(tags.iter().map(Tag::to_string).collect())
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
        assert_eq!(overwritten(&dir, &index).unwrap(), None, "without a journal");
        assert_eq!(after(&[]), None, "the base of a commit that was not made");
    }
}
