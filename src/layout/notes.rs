//! Promises to pushers, and collection's notes of what it has seen unreferenced.
//!
//! A blob is promised when a pusher uploaded it, mounted it, was told that it exists, or refers to
//! it in a manifest. Collection removes a blob only while holding the repository's lock and while
//! its own note is there, blob first and note second. So whoever promises looks at the note first
//! and at the blob last; if there is a note, the lock comes in between (PROTOCOL.md, "Promises and
//! collection").

use super::dir::Dir;
use super::error::{At, OrAbsent, Result};
use super::tree::Tree;
use super::{lock, path};
use crate::oci::{Digest, RepoName};

/// Makes sure that collection does not take `digest` from the repository: call it **before** the
/// last look at the blob. Takes the repository's lock only if there is a note.
///
/// # Errors
/// `WouldBlock` if somebody holds the lock for longer than a request waits.
pub fn promise(tree: &Tree, name: &RepoName, repo: &Dir, digest: &Digest) -> Result<()> {
    let Some(notes) = tree.room.dir(&path::notes(name)).or_absent()? else {
        return Ok(());
    };
    if notes.stat_name(digest.as_str())?.is_none() {
        return Ok(());
    }
    let Some(_held) = lock::exclusive_within(repo, path::LOCK, lock::REQUEST_WAIT)? else {
        let held = std::io::Error::from(std::io::ErrorKind::WouldBlock);
        return Err(held).at(|| repo.at(path::LOCK));
    };
    forget(tree, &notes, digest)
}

/// The same for somebody who holds the repository's lock already, for several blobs.
pub fn promise_locked<'a>(
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
