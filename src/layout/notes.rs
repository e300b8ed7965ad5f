//! Promises to pushers, and collection's notes of what it has seen unreferenced.
//!
//! A blob is promised when a pusher uploaded it, mounted it, was told that it exists, or refers to
//! it in a manifest. Collection removes a blob only while holding the repository's lock and while
//! its own note is there, blob first and note second. So whoever promises looks at the note first
//! and at the blob last; if there is a note, the lock comes in between (PROTOCOL.md, "Promises and
//! collection").

use super::dir::Dir;
use super::error::{OrAbsent, Result};
use super::path;
use super::tree::Tree;
use crate::oci::{Digest, RepoName};

/// Whether collection has seen the blob unreferenced, so that a promise needs the lock.
pub fn is_noted(tree: &Tree, name: &RepoName, digest: &Digest) -> Result<bool> {
    match tree.room.dir(&path::notes(name)).or_absent()? {
        Some(notes) => Ok(notes.stat_name(digest.as_str())?.is_some()),
        None => Ok(false),
    }
}

/// Makes sure that collection takes none of `digests` from the repository: to be called by whoever
/// holds the repository's lock, **before** the last look at the blobs.
pub fn promise<'a>(
    tree: &Tree,
    name: &RepoName,
    digests: impl IntoIterator<Item = &'a Digest>,
) -> Result<()> {
    let Some(notes) = tree.room.dir(&path::notes(name)).or_absent()? else {
        return Ok(());
    };
    digests.into_iter().try_for_each(|digest| forget(tree, &notes, digest))
}

fn forget(tree: &Tree, notes: &Dir, digest: &Digest) -> Result<()> {
    tree.disk.unlink(notes, digest.as_str()).or_absent().map(|_| ())
}
