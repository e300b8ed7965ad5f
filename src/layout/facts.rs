//! What is known of manifests, so that nobody needs to read them again.
//!
//! Everything here follows from a manifest's content alone, and the digest names the content: a
//! fact never goes stale. The file may be torn, short or gone; what is missing is read anew.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use rustix::fs::Mode;
use serde::{Deserialize, Serialize};

use super::dir::{self, Dir, Inode};
use super::error::{At, OrAbsent, Result};
use super::inherit::{self, Purpose};
use super::tree::Tree;
use super::{durable, path};
use crate::oci::{Annotations, Descriptor, Digest, Manifest};

/// Annotations that take more bytes than this as JSON, and artifact types that are longer, are left
/// in their manifest: a repository may have 100,000 manifests of 4 MiB each.
const MOST_KEPT: usize = 4096;

/// Longer lines are passed over. The facts of the largest index, which may list tens of thousands of
/// manifests, are not longer than that index.
const MAX_LINE: u64 = 8 * 1024 * 1024;

/// What one manifest says of itself and of others: a line of `_referrers/facts.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fact {
    /// Which manifest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Its length in bytes.
    pub size: u64,
    /// The manifest that it refers to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Digest>,
    /// Whether annotations or artifact type are so long that they are not kept here: ask the
    /// manifest.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
    /// The type of the artifact; only kept where there is a subject.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The annotations; only kept where there is a subject.
    #[serde(default, skip_serializing_if = "Annotations::is_empty")]
    pub annotations: Annotations,
    /// The manifests that an index lists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub children: Vec<Descriptor>,
}

impl Fact {
    /// What a manifest's content says.
    pub fn of(digest: Digest, size: u64, manifest: &Manifest) -> Fact {
        let subject = manifest.subject.as_ref().map(|subject| subject.digest.clone());
        let refers = subject.is_some();
        let bare = |child: &Descriptor| {
            Descriptor::new(&child.media_type, child.digest.clone(), child.size)
        };
        let fact = Fact {
            digest,
            media_type: manifest.kind.media_type().to_owned(),
            size,
            subject,
            more: false,
            artifact_type: manifest.artifact_type.clone().filter(|_| refers),
            annotations: if refers { manifest.annotations.clone() } else { Annotations::new() },
            children: manifest.children().map(bare).collect(),
        };
        fact.shortened()
    }

    /// Reads one line of the file, without its newline; `None` if it does not parse.
    pub fn parse(line: &[u8]) -> Option<Fact> {
        serde_json::from_slice::<Fact>(line).ok().map(Fact::shortened)
    }

    fn shortened(mut self) -> Fact {
        if self.artifact_type.as_ref().is_some_and(|text| text.len() > MOST_KEPT) {
            self.artifact_type = None;
            self.more = true;
        }
        if serde_json::to_vec(&self.annotations).map_or(0, |json| json.len()) > MOST_KEPT {
            self.annotations = Annotations::new();
            self.more = true;
        }
        self
    }

    /// About how much memory it takes, in bytes.
    pub fn weight(&self) -> usize {
        let notes = self.annotations.iter().map(|(key, value)| key.len() + value.len() + 64);
        let children = self.children.iter().map(|child| child.media_type.len() + 160);
        let own = self.media_type.len() + self.artifact_type.as_ref().map_or(0, String::len);
        let children: usize = children.map(|text| text + size_of::<Descriptor>()).sum();
        size_of::<Fact>() + 320 + own + notes.sum::<usize>() + children
    }

    /// The entry that the referrers API lists for this manifest (distribution specification,
    /// "Listing Referrers"); where there is `more`, it lacks that.
    pub fn descriptor(&self) -> Descriptor {
        Descriptor {
            artifact_type: self.artifact_type.clone(),
            annotations: self.annotations.clone(),
            ..Descriptor::new(&self.media_type, self.digest.clone(), self.size)
        }
    }
}

/// How much of the file has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    inode: Inode,
    end: u64,
}

/// Gives the facts that came after `position` (all of them if the file is another one now) to `take`.
/// Lines that do not parse are passed over.
pub fn read(
    repo: &Dir,
    position: Option<Position>,
    mut take: impl FnMut(Fact),
) -> Result<Option<Position>> {
    let name = format!("{}/{}", path::REFERRERS, path::FACTS);
    let Some(file) = repo.file(&name).or_absent()? else {
        return Ok(None);
    };
    let stat = dir::stat_file(&file, || repo.at(&name))?;
    let (inode, len) = (Inode::of(&stat), dir::size_of(&stat));
    let begin = match position {
        Some(Position { inode: old, end }) if old == inode && end <= len => end,
        _ => 0,
    };
    let end = each_line(&file, begin, len, |line| {
        if let Some(fact) = Fact::parse(line) {
            take(fact);
        }
    });
    Ok(Some(Position { inode, end: end.at(|| repo.at(&name))? }))
}

/// Gives each whole line between two offsets to `each`, without its newline; gives the end of the
/// last one. A last line without its newline is still being written.
fn each_line(
    mut file: &File,
    begin: u64,
    end: u64,
    mut each: impl FnMut(&[u8]),
) -> io::Result<u64> {
    file.seek(SeekFrom::Start(begin))?;
    let mut reader = BufReader::with_capacity(1 << 16, file.take(end.saturating_sub(begin)));
    let mut line = Vec::new();
    let mut at = begin;
    loop {
        line.clear();
        let mut read = (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line)? as u64;
        if line.last() == Some(&b'\n') {
            each(&line[..line.len() - 1]);
        } else if read < MAX_LINE {
            return Ok(at);
        } else {
            read += reader.skip_until(b'\n')? as u64;
        }
        at += read;
    }
}

/// Whether a file that ends at `end` ends in the middle of a line, as after a crash.
pub(super) fn is_torn(file: &File, end: u64) -> io::Result<bool> {
    let mut last = [b'\n'];
    if end > 0 {
        file.read_exact_at(&mut last, end - 1)?;
    }
    Ok(last != *b"\n")
}

/// The file, open for appending, and its length. One that has another name too, anywhere, is not
/// written to: another takes the name here.
fn open_alone(tree: &Tree, dir: &Dir) -> Result<(File, u64)> {
    loop {
        let (file, made) = tree.disk.open_append(dir, path::FACTS, Mode::RUSR | Mode::WUSR)?;
        if made && let Err(error) = inherit::apply(dir, &file, Purpose::Public) {
            // Whoever finds it would not give it its rights any more.
            let _ = tree.disk.unlink(dir, path::FACTS);
            return Err(error);
        }
        let stat = dir::stat_file(&file, || dir.at(path::FACTS))?;
        if stat.st_nlink == 1 {
            return Ok((file, dir::size_of(&stat)));
        }
        tree.disk.unlink(dir, path::FACTS)?;
    }
}

/// Appends facts; call it under the repository's lock. Nothing is synced: what a crash takes is
/// read anew from the manifests.
pub fn append<'a>(
    tree: &Tree,
    repo: &Dir,
    facts: impl IntoIterator<Item = &'a Fact>,
) -> Result<()> {
    let dir = tree.make_inner(repo, path::REFERRERS)?;
    let at = || dir.at(path::FACTS);
    let (file, end) = open_alone(tree, &dir)?;
    let mut lines = Vec::new();
    if is_torn(&file, end).at(at)? {
        // An empty line, if the crash left a whole one without its newline, is passed over.
        lines.push(b'\n');
    }
    for fact in facts {
        serde_json::to_writer(&mut lines, fact).map_err(io::Error::from).at(at)?;
        lines.push(b'\n');
    }
    tree.disk.write(&file, &lines, end).at(at)
}

/// Rewrites the file without the facts of manifests that are gone, if those are more than half of it;
/// whether they are. Call it under the repository's lock, or without `really` to know whether that is
/// worth while. The new file's name is not synced: after a crash the old one is as true.
pub fn compact(
    tree: &Tree,
    repo: &Dir,
    really: bool,
    mut is_gone: impl FnMut(&Digest) -> Result<bool>,
) -> Result<bool> {
    let Some(dir) = repo.dir(path::REFERRERS).or_absent()? else {
        return Ok(false);
    };
    let Some((file, stat)) = dir.file_stat(path::FACTS).or_absent()? else {
        return Ok(false);
    };
    let (mut all, mut kept, mut failed) = (0u64, 0u64, Ok(()));
    let mut lines = Vec::new();
    let read = each_line(&file, 0, dir::size_of(&stat), |line| {
        all += 1;
        match Fact::parse(line).map(|fact| is_gone(&fact.digest)) {
            Some(Ok(false)) => {
                kept += 1;
                if really {
                    lines.extend_from_slice(line);
                    lines.push(b'\n');
                }
            }
            Some(Ok(true)) | None => {}
            Some(Err(error)) => failed = Err(error),
        }
    });
    read.at(|| dir.at(path::FACTS))?;
    failed?;
    let worth = 2 * kept < all;
    if worth && really {
        durable::replace(&*tree.disk, &dir, path::FACTS, &lines, Purpose::Public)?;
    }
    Ok(worth)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn fact(notes: usize, artifact_type: usize) -> Fact {
        let digest = Digest::of(crate::oci::Algorithm::Sha256, b"");
        let mut annotations = Annotations::new();
        annotations.insert("k".to_owned(), "v".repeat(notes));
        let fact = Fact {
            digest: digest.clone(),
            media_type: "m".to_owned(),
            size: 1,
            subject: Some(digest),
            more: false,
            artifact_type: Some("a".repeat(artifact_type)),
            annotations,
            children: Vec::new(),
        };
        Fact::parse(&serde_json::to_vec(&fact).unwrap()).unwrap()
    }

    #[test]
    fn long_texts_are_left_in_their_manifest() {
        let short = fact(4000, 4000);
        assert!(!short.more && short.annotations.len() == 1 && short.artifact_type.is_some());
        assert!(short.weight() > 8000);
        let noted = fact(4096, 1);
        assert!(noted.more && noted.annotations.is_empty() && noted.artifact_type.is_some());
        let typed = fact(1, 4097);
        assert!(typed.more && typed.annotations.len() == 1 && typed.artifact_type.is_none());
        let line = String::from_utf8(serde_json::to_vec(&noted).unwrap()).unwrap();
        assert!(line.contains(r#""more":true"#), "{line}");
    }

    #[test]
    fn a_file_that_is_also_another_one_is_not_written_to() {
        let temp = tempfile::tempdir().unwrap();
        let tree =
            Tree::open(temp.path(), Arc::new(crate::layout::RealDisk)).expect("a tree of our own");
        let other = temp.path().join("crontab");
        std::fs::write(&other, "theirs").unwrap();
        std::fs::create_dir_all(temp.path().join("a/_referrers")).unwrap();
        let own = temp.path().join("a/_referrers/facts.jsonl");
        std::fs::hard_link(&other, &own).unwrap();
        append(&tree, &tree.root.dir("a").unwrap(), [&fact(1, 1)]).unwrap();
        assert_eq!(std::fs::read(&other).unwrap(), b"theirs");
        assert!(Fact::parse(std::fs::read(&own).unwrap().trim_ascii_end()).is_some());
    }

    #[test]
    fn lines_are_read_from_anywhere_and_endless_ones_are_passed_over() {
        let temp = tempfile::NamedTempFile::new().unwrap();
        let read = |bytes: &[u8], begin: u64| {
            std::fs::write(temp.path(), bytes).unwrap();
            let file = File::open(temp.path()).unwrap();
            let mut lines = Vec::new();
            let len = bytes.len() as u64;
            let end = each_line(&file, begin, len, |line| lines.push(line.to_vec())).unwrap();
            (lines, end)
        };
        assert_eq!(read(b"", 0), (vec![], 0));
        assert_eq!(read(b"ab\n\ntorn", 0), (vec![b"ab".to_vec(), vec![]], 4));
        assert_eq!(read(b"ab\nc\n", 3), (vec![b"c".to_vec()], 5));
        let mut long = vec![b'x'; 9 << 20];
        assert_eq!(read(&long, 0).0, Vec::<Vec<u8>>::new());
        long.extend(b"\nz\n");
        assert_eq!(read(&long, 0), (vec![b"z".to_vec()], long.len() as u64));
    }
}
