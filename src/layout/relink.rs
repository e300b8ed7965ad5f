//! How a repair gives a name the content that belongs there.

use std::fs::File;

use rustix::fs::Stat;
use rustix::io::Errno;

use super::blobs::{copy_content, copy_instead, place, pool_file, read_hashed, remember};
use super::dir::{self, Dir};
use super::error::{At, Error, Result};
use super::incoming::Incoming;
use super::path;
use super::tree::Tree;
use crate::oci::Digest;

/// Content that is to be linked or copied into a repository: open, and hashed by the caller.
#[derive(Debug)]
pub struct Source {
    /// The open file.
    pub file: File,
    /// Its status when it was hashed.
    pub stat: Stat,
}

/// Content that has been prepared: only a link is missing.
#[derive(Debug)]
pub enum Ready {
    /// An inode of the owner's own that is shared.
    Ours(Source),
    /// A copy of somebody else's.
    Copied(Incoming, u64),
}

/// Prepares content for [`supply`], without any lock: somebody else's is copied, and hashed on the
/// way. `None` if it does not have the digest after all.
pub fn prepare(tree: &Tree, source: Source, digest: &Digest) -> Result<Option<Ready>> {
    if tree.is_ours(&source.stat) {
        return Ok(Some(Ready::Ours(source)));
    }
    tree.make_in_room(path::UPLOADS)?;
    let incoming = Incoming::create(tree)?;
    let to = || incoming.path(tree);
    let copy = |piece: &[u8], offset| tree.disk.write(incoming.file(), piece, offset).at(to);
    let from = || dir::path_of(&source.file);
    let Some(size) = read_hashed(&source.file, digest, from, copy)? else {
        return Ok(None);
    };
    incoming.seal(tree, size)?;
    remember(tree, &incoming, digest)?;
    Ok(Some(Ready::Copied(incoming, size)))
}

/// Gives `blobs/<alg>/<hex>` of a repository this content, over whatever has the name; durable on
/// return.
pub fn supply(tree: &Tree, repo: &Dir, digest: &Digest, ready: &Ready) -> Result<()> {
    let blobs = tree.make_inner_durable(repo, &path::blobs(digest.algorithm()))?;
    let (file, size) = match ready {
        Ready::Ours(source) => (&source.file, dir::size_of(&source.stat)),
        Ready::Copied(incoming, size) => (incoming.file(), *size),
    };
    tree.make_in_room(path::UPLOADS)?;
    place(tree, &blobs, digest, |to, name| tree.disk.link_file(file, to, name))
        .or_else(|error| copy_instead(tree, file, &blobs, digest, size, error))?;
    tree.disk.sync_dir(&blobs)?;
    // A tree that has no pool, as a copy, does not get one by the way.
    if matches!(ready, Ready::Copied(..)) && tree.room.dir(path::POOL).is_ok() {
        pool_file(tree, file, digest);
    }
    Ok(())
}

/// Links a repository's own sound blob into the pool, where that lost its name; whether it did.
/// Nothing is there on file systems that know no links, or that have none to give.
pub fn pool(tree: &Tree, file: &File, digest: &Digest) -> Result<bool> {
    let shelf = tree.make_in_room(&path::pool_dir(digest))?;
    match tree.disk.link_file(file, &shelf, digest.hex()) {
        Ok(()) => Ok(true),
        Err(error) if spared(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

fn spared(error: &Error) -> bool {
    let kinds = [Errno::EXIST, Errno::XDEV, Errno::PERM, Errno::NOTSUP, Errno::MLINK, Errno::NOSYS];
    error.errno().is_some_and(|errno| kinds.contains(&errno))
}

/// Gives a name in `dir` an inode of its own with the same content; durable on return.
pub fn separate(tree: &Tree, dir: &Dir, digest: &Digest) -> Result<()> {
    let (file, stat) = dir.file_stat(digest.hex())?;
    let copy = Incoming::beside(tree, dir)?;
    copy_content(tree, &file, &copy, digest, dir::size_of(&stat))?;
    copy.rename_to(tree, digest.hex())?;
    tree.disk.sync_dir(dir)
}
