//! What is known of manifests, so that nobody needs to read them again.
//!
//! Everything here follows from a manifest's content alone, and the digest names the content: a
//! fact never goes stale. The file may be torn, short or gone; what is missing is read anew.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::Mode;
use serde::{Deserialize, Serialize};

use super::dir::{self, Dir, Inode};
use super::error::{At, OrAbsent, Result};
use super::inherit::{self, Purpose};
use super::path;
use super::tree::Tree;
use crate::oci::{Annotations, Descriptor, Digest, Manifest};

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
        Fact {
            digest,
            media_type: manifest.kind.media_type().to_owned(),
            size,
            subject,
            artifact_type: manifest.artifact_type.clone().filter(|_| refers),
            annotations: if refers { manifest.annotations.clone() } else { Annotations::new() },
            children: manifest.children().map(bare).collect(),
        }
    }

    /// The entry that the referrers API lists for this manifest (distribution specification,
    /// "Listing Referrers").
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

/// Reads the facts that came after `position` (all of them if the file is another one now) into
/// `known`. Lines that do not parse are passed over.
pub fn read(
    repo: &Dir,
    position: Option<Position>,
    known: &mut HashMap<Digest, Arc<Fact>>,
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
    let bytes = read_part(&file, begin, len).at(|| repo.at(&name))?;
    // A last line without its newline is still being written.
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    for line in bytes[..whole].split(|byte| *byte == b'\n') {
        if let Ok(fact) = serde_json::from_slice::<Fact>(line) {
            known.insert(fact.digest.clone(), Arc::new(fact));
        }
    }
    Ok(Some(Position { inode, end: begin + whole as u64 }))
}

fn read_part(file: &File, begin: u64, end: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0u8; usize::try_from(end - begin).map_err(std::io::Error::other)?];
    file.read_exact_at(&mut bytes, begin)?;
    Ok(bytes)
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
    let (file, made) = tree.disk.open_append(&dir, path::FACTS, Mode::RUSR | Mode::WUSR)?;
    if made {
        inherit::apply(&dir, &file, Purpose::Public)?;
    }
    let end = dir::size_of(&dir::stat_file(&file, at)?);
    let mut lines = Vec::new();
    if end > 0 {
        // Ends a line that a crash may have torn; an empty line is passed over.
        let mut last = [0u8; 1];
        file.read_exact_at(&mut last, end - 1).at(at)?;
        if last != *b"\n" {
            lines.push(b'\n');
        }
    }
    for fact in facts {
        serde_json::to_writer(&mut lines, fact).map_err(std::io::Error::from).at(at)?;
        lines.push(b'\n');
    }
    tree.disk.write(&file, &lines, end).at(at)
}
