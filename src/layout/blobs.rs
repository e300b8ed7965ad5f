//! Blobs: how content comes into a repository and into the pool, and is shared from there.
//!
//! Only inodes that the server wrote and hashed itself are shared, and a mount links the pool's
//! name, never the source repository's: whoever may write a directory can rename its files, so a
//! name in a repository proves nothing (PROTOCOL.md, "Blobs and the pool").

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rustix::fs::Stat;
use rustix::io::Errno;

use super::account::Account;
use super::blob::Blob;
use super::dir::{self, Dir, Inode};
use super::error::{At, Error, OrAbsent, Result};
use super::holders::Holders;
use super::incoming::Incoming;
use super::path;
use super::tree::Tree;
use super::verified::Verdict;
use crate::oci::{Digest, Hasher, RepoName};

/// A repository to put blobs into.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// Its name, for the hints.
    pub name: &'a RepoName,
    /// Its directory.
    pub dir: &'a Dir,
}

/// What a repository has under a digest's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Nothing, or something of another length.
    Absent,
    /// An inode that the server wrote and hashed itself.
    Ours,
    /// A file that somebody else put there, or one of ours that nobody has looked at since the start,
    /// or that has another digest's name: to be adopted before anything relies on it.
    Foreign,
}

/// What lies in a repository under a digest's name, judged by its status alone.
pub fn presence(tree: &Tree, repo: &Dir, digest: &Digest, size: u64) -> Result<Presence> {
    let Some(stat) = stat(repo, digest)? else {
        return Ok(Presence::Absent);
    };
    if !dir::is_regular(&stat) || dir::size_of(&stat) != size {
        return Ok(Presence::Absent);
    }
    let known = tree.is_ours(&stat) && verdict(tree, digest, &stat)? == Some(Verdict::Right);
    Ok(if known { Presence::Ours } else { Presence::Foreign })
}

/// What is known, without reading it, of an inode under this digest's name.
pub(super) fn verdict(tree: &Tree, digest: &Digest, stat: &Stat) -> Result<Option<Verdict>> {
    if let Some(known) = tree.known(digest, stat) {
        return Ok(Some(known));
    }
    if !tree.is_ours(stat) || !is_pooled(stat, pool_stat(tree, digest)?.as_ref()) {
        return Ok(None);
    }
    tree.verified.remember_sealed(digest, stat);
    Ok(Some(Verdict::Right))
}

fn is_pooled(stat: &Stat, pool: Option<&Stat>) -> bool {
    pool.is_some_and(|pool| Inode::of(pool) == Inode::of(stat))
}

/// The status of a repository's blob, symlinks not followed.
pub fn stat(repo: &Dir, digest: &Digest) -> Result<Option<Stat>> {
    match repo.stat_beneath(&path::blob(digest)) {
        // It is a symlink itself, or something on the way is.
        Err(error) if error.errno() == Some(Errno::LOOP) => {
            repo.dir(&path::blobs(digest.algorithm()))?.stat_name(digest.hex())
        }
        looked => looked,
    }
}

/// The status of a repository's blob that is the server's own, if the kernel has it in memory.
pub fn stat_at_hand(tree: &Tree, repo: &Dir, digest: &Digest) -> Option<Stat> {
    repo.stat_at_hand(&path::blob(digest)).filter(|stat| tree.is_ours(stat))
}

/// Opens a repository's blob for reading, for the server itself.
pub fn open(repo: &Dir, digest: &Digest) -> Result<Option<(File, Stat)>> {
    repo.file_stat(&path::blob(digest)).or_absent()
}

/// Puts content whose digest was computed while it arrived into a repository and into the pool.
///
/// Content that the pool has is linked from there and not stored twice. On return the repository's
/// name leads to the content; it is durable once `blobs/<alg>/` has been synced, which the commit
/// does. Idempotent. The incoming file keeps its own name, if it has one.
pub fn admit(
    tree: &Tree,
    holders: &Holders,
    target: Target<'_>,
    incoming: &Incoming,
    digest: &Digest,
    size: u64,
) -> Result<()> {
    if has_pooled(tree, target.dir, digest, size)? {
        return Ok(());
    }
    let blobs = tree.make_inner(target.dir, &path::blobs(digest.algorithm()))?;
    let pooled = pool_stat(tree, digest)?.is_some_and(|stat| dir::size_of(&stat) == size)
        && link_from_pool(tree, &blobs, digest)?;
    if !pooled {
        incoming.seal(tree, size)?;
        place(tree, &blobs, digest, |to, name| tree.disk.link_file(&incoming.file, to, name))
            .or_else(|error| copy_instead(tree, &incoming.file, &blobs, digest, size, error))?;
        remember(tree, incoming, digest)?;
        pool_file(tree, &incoming.file, digest);
    }
    holders.note(tree, digest, size, target.name);
    Ok(())
}

/// Puts a small blob that is at hand into a repository.
pub fn admit_bytes(
    tree: &Tree,
    holders: &Holders,
    target: Target<'_>,
    bytes: &[u8],
    digest: &Digest,
) -> Result<()> {
    let size = bytes.len() as u64;
    if has_pooled(tree, target.dir, digest, size)? {
        return Ok(());
    }
    let incoming = Incoming::create(tree)?;
    incoming.write(tree, bytes)?;
    admit(tree, holders, target, &incoming, digest, size)
}

/// Puts a blob of another repository into this one, whatever its size, by one link(2).
/// `false` if the source does not have it.
///
/// # Guarantee
/// What the target gets has the digest: the source's name is believed only if it is the pool's own
/// inode; otherwise its content is hashed. And it is nothing that `reader` may not read.
pub fn mount(
    tree: &Tree,
    holders: &Holders,
    target: Target<'_>,
    source: &Dir,
    digest: &Digest,
    reader: &Account,
) -> Result<bool> {
    let Some(found) = stat(source, digest)? else {
        return Ok(false);
    };
    if !dir::is_regular(&found) {
        return Ok(false);
    }
    let size = dir::size_of(&found);
    let pool = pool_stat(tree, digest)?;
    if is_pooled(&found, pool.as_ref()) {
        if has_pooled(tree, target.dir, digest, size)? {
            return Ok(true);
        }
        let blobs = tree.make_inner(target.dir, &path::blobs(digest.algorithm()))?;
        if link_from_pool(tree, &blobs, digest)? {
            holders.note(tree, digest, size, target.name);
            return Ok(true);
        }
    }
    match Blob::open(tree, source, digest, reader)? {
        Some(blob) => copy_from(tree, holders, target, blob, digest),
        None => Ok(false),
    }
}

/// Makes sure that a repository's file has the digest, and that it is an inode of the server's own: a
/// foreign one is replaced by a copy. `false` if the content does not have the digest, or is nothing
/// that `reader` may read: a copy would be open to all who may read the repository.
pub fn adopt(
    tree: &Tree,
    holders: &Holders,
    target: Target<'_>,
    digest: &Digest,
    reader: &Account,
) -> Result<bool> {
    let Some(mut blob) = Blob::open(tree, target.dir, digest, reader)? else {
        return Ok(false);
    };
    if !blob.is_ours(tree) {
        return copy_from(tree, holders, target, blob, digest);
    }
    // A copy that was restored, one of before the pool was lost, or one on a file system without
    // links.
    let known = blob.verdict(tree)?;
    if known.map_or_else(|| blob.verify(tree), Ok)? == Verdict::Wrong {
        return Ok(false);
    }
    blob.sync(tree)?;
    pool_file(tree, blob.file(), digest);
    Ok(true)
}

/// This process knows from now on what the inode holds.
pub(super) fn remember(tree: &Tree, incoming: &Incoming, digest: &Digest) -> Result<()> {
    let stat = dir::stat_file(incoming.file(), || incoming.path(tree))?;
    tree.verified.remember_sealed(digest, &stat);
    Ok(())
}

/// Copies what has the digest, and hashes it while it does: somebody may still be writing. It was
/// read once before, for what is wrong must take no space: a file that is one large hole is easily
/// made. Reflink is not worth its own path here, for every byte is read anyway.
fn copy_from(
    tree: &Tree,
    holders: &Holders,
    target: Target<'_>,
    mut blob: Blob,
    digest: &Digest,
) -> Result<bool> {
    let known = blob.verdict(tree)?;
    if known.map_or_else(|| blob.verify(tree), Ok)? == Verdict::Wrong {
        return Ok(false);
    }
    let incoming = Incoming::create(tree)?;
    let at = || blob.path().to_owned();
    let copy = |piece: &[u8], offset| {
        tree.disk.write(&incoming.file, piece, offset).at(|| incoming.path(tree))
    };
    match read_hashed(blob.file(), digest, at, copy)? {
        Some(size) => admit(tree, holders, target, &incoming, digest, size).map(|()| true),
        None => Ok(false),
    }
}

/// Reads a file to its end, hands on every piece, and gives the length if the bytes have the digest.
pub(super) fn read_hashed(
    file: &File,
    digest: &Digest,
    at: impl Fn() -> PathBuf,
    mut take: impl FnMut(&[u8], u64) -> Result<()>,
) -> Result<Option<u64>> {
    let mut hasher = Hasher::new(digest.algorithm());
    let mut buffer = vec![0u8; 256 * 1024];
    let mut offset = 0;
    loop {
        let read = file.read_at(&mut buffer, offset).at(&at)?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
        take(&buffer[..read], offset)?;
        offset += read as u64;
    }
    Ok((hasher.finish() == *digest).then_some(offset))
}

/// Whether the repository's name already is the pool's inode, with the right length: then the
/// content is there, for the pool's names are the server's alone.
fn has_pooled(tree: &Tree, repo: &Dir, digest: &Digest, size: u64) -> Result<bool> {
    let Some(found) = stat(repo, digest)? else {
        return Ok(false);
    };
    let pool = pool_stat(tree, digest)?;
    Ok(is_pooled(&found, pool.as_ref()) && dir::size_of(&found) == size)
}

/// The pool's inode for a digest. One that somebody made writable (`chmod -R u+w` of a repository
/// reaches it) may have been changed: it counts as absent, and the next content takes its name.
fn pool_stat(tree: &Tree, digest: &Digest) -> Result<Option<Stat>> {
    match tree.room.dir(&path::pool_dir(digest)).or_absent()? {
        Some(pool) => Ok(pool.stat_name(digest.hex())?.filter(|stat| tree.is_ours(stat))),
        None => Ok(None),
    }
}

/// Links the pool's inode into a repository; `false` if the pool lost its name meanwhile.
///
/// Where the inode has no link left, or the repository lies on another file system, a copy is made:
/// renamed over the pool's name in the first case, so that later links go to the new inode.
fn link_from_pool(tree: &Tree, blobs: &Dir, digest: &Digest) -> Result<bool> {
    let Some(pool) = tree.room.dir(&path::pool_dir(digest)).or_absent()? else {
        return Ok(false);
    };
    let hex = digest.hex();
    let linked = place(tree, blobs, digest, |to, name| tree.disk.link(&pool, hex, to, name));
    match linked {
        Ok(()) => Ok(true),
        Err(error) if error.is_absent() => Ok(false),
        Err(error) if !error.wants_copy() => Err(error),
        Err(error) => {
            let Some(file) = pool.file(hex).or_absent()? else {
                return Ok(false);
            };
            let size = dir::size_of(&dir::stat_file(&file, || pool.at(hex))?);
            copy_instead(tree, &file, blobs, digest, size, error)?;
            Ok(true)
        }
    }
}

/// Gives `blobs/<hex>` the inode that `link` links: right away where the name is free, otherwise
/// beside it and renamed over.
pub(super) fn place(
    tree: &Tree,
    blobs: &Dir,
    digest: &Digest,
    link: impl Fn(&Dir, &str) -> Result<()>,
) -> Result<()> {
    match link(blobs, digest.hex()) {
        Err(error) if error.errno() == Some(Errno::EXIST) => {}
        done => return done,
    }
    let beside = path::temporary("blob");
    link(blobs, &beside)?;
    rename_over(tree, blobs, &beside, digest.hex())
}

/// rename(2) does nothing when both names are one inode already: the name beside goes either way.
fn rename_over(tree: &Tree, dir: &Dir, beside: &str, name: &str) -> Result<()> {
    let renamed = tree.disk.rename(dir, beside, dir, name);
    let _ = tree.disk.unlink(dir, beside);
    renamed
}

/// A copy takes the place of a link that the file system refused with `refused`.
pub(super) fn copy_instead(
    tree: &Tree,
    file: &File,
    blobs: &Dir,
    digest: &Digest,
    size: u64,
    refused: Error,
) -> Result<()> {
    if !refused.wants_copy() {
        return Err(refused);
    }
    if refused.errno() == Some(Errno::MLINK) {
        let incoming = Incoming::create(tree)?;
        copy_content(tree, file, &incoming, digest, size)?;
        pool_file(tree, &incoming.file, digest);
        return place(tree, blobs, digest, |to, name| {
            tree.disk.link_file(&incoming.file, to, name)
        });
    }
    let incoming = Incoming::beside(tree, blobs)?;
    copy_content(tree, file, &incoming, digest, size)?;
    incoming.rename_to(tree, digest.hex())
}

/// Reflink where the file system can, else the bytes; sealed either way.
pub(super) fn copy_content(
    tree: &Tree,
    from: &File,
    to: &Incoming,
    digest: &Digest,
    size: u64,
) -> Result<()> {
    if tree.disk.clone_content(from, &to.file).is_err() {
        let mut buffer = vec![0u8; 256 * 1024];
        let mut offset = 0;
        while offset < size {
            let read = from.read_at(&mut buffer, offset).at(|| dir::path_of(from))?;
            if read == 0 {
                let short = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
                return Err(short).at(|| dir::path_of(from));
            }
            tree.disk.write(&to.file, &buffer[..read], offset).at(|| to.path(tree))?;
            offset += read as u64;
        }
    }
    to.seal(tree, size)?;
    remember(tree, to, digest)
}

/// Gives the pool one more link to a sealed file, over whatever has the name. The pool is only an
/// index: a failure costs deduplication and is logged.
pub(super) fn pool_file(tree: &Tree, file: &File, digest: &Digest) {
    let pooled = tree.make_in_room(&path::pool_dir(digest)).and_then(|pool| {
        place(tree, &pool, digest, |to, name| tree.disk.link_file(file, to, name))
    });
    match pooled {
        Ok(()) => {}
        // Silently, where the file system knows no links at all.
        Err(error) if error.wants_copy() => tracing::debug!(%error, "not pooled"),
        Err(error) => tracing::warn!(%error, "a blob was not pooled"),
    }
}

#[cfg(test)]
#[path = "blobs_tests.rs"]
mod tests;
