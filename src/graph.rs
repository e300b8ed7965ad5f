//! Which blob refers to which.

mod knowledge;
mod marks;
pub mod views;

use std::collections::HashSet;
use std::fs::File;
use std::path::Path;
use std::time::Duration;

pub use knowledge::{Delta, Knowledge};
pub use marks::{Cause, INDEX, Marks};

use crate::layout::facts::Fact;
use crate::layout::{Account, Blob, Dir, Error, Result, Tree, blobs, path, read_all};
use crate::oci::{Descriptor, Digest, Index, Kind, MAX_MANIFEST, Manifest};

/// Reads a manifest's bytes from a repository; `None` if they are not there.
///
/// # Errors
/// Bytes that do not have the digest are damage, never an answer.
pub fn read_manifest_bytes(repo: &Dir, digest: &Digest) -> Result<Option<Vec<u8>>> {
    let Some((file, _)) = blobs::open(repo, digest)? else {
        return Ok(None);
    };
    bytes_of(&file, digest, &repo.at(&path::blob(digest))).map(Some)
}

/// Reads a manifest's bytes on behalf of an account, from which file is told too; `None` if they are not
/// there, or not for it.
///
/// # Errors
/// As above.
pub fn manifest_bytes_for(
    tree: &Tree,
    repo: &Dir,
    digest: &Digest,
    reader: &Account,
) -> Result<Option<(Vec<u8>, Blob)>> {
    let mut tries = TRIES;
    loop {
        let Some(blob) = Blob::open(tree, repo, digest, reader)? else { return Ok(None) };
        match bytes_of(blob.file(), digest, blob.path()) {
            Err(Error::Damaged { .. }) if tries > 0 && may_be_half_written(&blob) => {
                tries -= 1;
                // Nobody tells when the other tool is done.
                std::thread::sleep(AGAIN);
            }
            read => return read.map(|bytes| Some((bytes, blob))),
        }
    }
}

/// So often, and after so long, a manifest is read again that was written to a moment ago: skopeo cuts one
/// that is there to nothing and writes it anew, in place.
const TRIES: usize = 25;
const AGAIN: Duration = Duration::from_millis(20);

/// What is longer than any manifest does not become one.
fn may_be_half_written(blob: &Blob) -> bool {
    blob.size() <= MAX_MANIFEST as u64 && blob.was_just_written()
}

fn bytes_of(file: &File, digest: &Digest, path: &Path) -> Result<Vec<u8>> {
    let bytes = read_all(file, MAX_MANIFEST as u64, || path.to_owned())?;
    if Digest::of(digest.algorithm(), &bytes) != *digest {
        return Err(Error::damaged(path, "the manifest's bytes do not have the digest"));
    }
    Ok(bytes)
}

/// Reads and parses what a descriptor names; `None` if it is not there, or is no manifest but a
/// plain blob, as in BuildKit's caches. What has no type is a manifest if it has the shape of one.
///
/// # Errors
/// What is called a manifest and cannot be read as one is damage, never a plain blob.
pub fn read_manifest(repo: &Dir, descriptor: &Descriptor) -> Result<Option<(Manifest, u64)>> {
    if is_plain(descriptor) {
        return Ok(None);
    }
    match read_manifest_bytes(repo, &descriptor.digest)? {
        Some(bytes) => parse(repo, descriptor, &bytes),
        None => Ok(None),
    }
}

/// Whether what a descriptor names cannot be a manifest.
fn is_plain(descriptor: &Descriptor) -> bool {
    match descriptor.media_type.as_str() {
        "" => descriptor.size > MAX_MANIFEST as u64,
        media_type => Kind::of_media_type(media_type).is_none(),
    }
}

fn parse(repo: &Dir, descriptor: &Descriptor, bytes: &[u8]) -> Result<Option<(Manifest, u64)>> {
    let media_type = descriptor.media_type.as_str();
    if media_type.is_empty() {
        // The content is what the digest says: if it has no manifest's shape, it refers to nothing.
        let manifest = Manifest::parse_untyped(bytes).ok();
        return Ok(manifest.map(|manifest| (manifest, bytes.len() as u64)));
    }
    let manifest = Manifest::parse(bytes, Some(media_type))
        .map_err(|error| Error::damaged(repo.at(&path::blob(&descriptor.digest)), error))?;
    Ok(Some((manifest, bytes.len() as u64)))
}

/// Finds the manifest of a repository that refers to `digest`; `None` if nothing does.
///
/// # Errors
/// It fails closed: a manifest that cannot be read might refer to anything.
pub fn referrer_of_blob(repo: &Dir, index: &Index, digest: &Digest) -> Result<Option<Digest>> {
    let mut seen: HashSet<(Digest, String)> = HashSet::new();
    let mut next: Vec<Descriptor> = index.entries().collect();
    while let Some(descriptor) = next.pop() {
        if descriptor.digest == *digest {
            return Ok(Some(descriptor.digest));
        }
        // One content may be listed as a blob here and as a manifest there.
        if !seen.insert((descriptor.digest.clone(), descriptor.media_type.clone())) {
            continue;
        }
        // Sparse indexes name manifests that are not here.
        let Some((manifest, _)) = read_manifest(repo, &descriptor)? else {
            continue;
        };
        if manifest.references().any(|reference| reference.digest == *digest) {
            return Ok(Some(descriptor.digest));
        }
        next.extend(manifest.manifests);
    }
    Ok(None)
}

/// The entry that the referrers API lists for a manifest, with what its fact leaves out.
///
/// # Errors
/// The manifest cannot be read; a plain `None` means that it is gone.
pub fn referrer(repo: &Dir, fact: &Fact) -> Result<Option<Descriptor>> {
    let descriptor = fact.descriptor();
    if !fact.more {
        return Ok(Some(descriptor));
    }
    let Some((manifest, _)) = read_manifest(repo, &descriptor)? else {
        return Ok(None);
    };
    let Manifest { artifact_type, annotations, .. } = manifest;
    Ok(Some(Descriptor { artifact_type, annotations, ..descriptor }))
}
