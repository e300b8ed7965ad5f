//! What a repository that is left reaches: where the pool has the last copy of it, a repair links it from
//! there.

use std::os::unix::fs::FileExt as _;
use std::time::SystemTime;

use super::Run;
use super::repository::read_index;
use crate::layout::history::Recent;
use crate::layout::{Dir, path, read_all, size_of};
use crate::oci::{Digest, DigestMap, MAX_MANIFEST};

impl Run<'_> {
    /// Keeps the pool from giving back what a repository's index.json reaches, through documents that the
    /// repository has or only the pool has still. Whatever cannot be read is passed over: a repair cannot
    /// read it either.
    pub(super) fn spare(&mut self, repo: &Dir) {
        let mut todo = entries(repo);
        let mut seen = DigestMap::default();
        while let Some(digest) = todo.pop() {
            if !seen.put_new(&digest, ()) {
                continue;
            }
            self.spared.put_new(&digest, ());
            todo.extend(spelled(repo, &path::blob(&digest), false));
            todo.extend(spelled(&self.tree.room, &path::pool(&digest), true));
        }
    }
}

/// What index.json names; or the journal, from which a repair makes index.json anew where that is gone.
fn entries(repo: &Dir) -> Vec<Digest> {
    if let Ok(Some(file)) = read_index(repo) {
        return file.index.entries().map(|entry| entry.digest).collect();
    }
    let all = Recent::read(repo, Some(SystemTime::UNIX_EPOCH)).unwrap_or_default();
    let named = all.named.into_iter().map(|named| named.descriptor.digest);
    named.chain(all.spelled).collect()
}

/// The digests that a file spells, if it may be a document of JSON and a manifest, whatever its type; where
/// that matters, only if no other name has its content.
fn spelled(base: &Dir, name: &str, alone: bool) -> Vec<Digest> {
    let Ok((file, stat)) = base.file_stat(name) else { return Vec::new() };
    if alone && stat.st_nlink > 1 {
        return Vec::new();
    }
    let mut first = [0];
    let begun = file.read_at(&mut first, 0).is_ok_and(|read| read == 1 && first == *b"{");
    if !begun || size_of(&stat) > MAX_MANIFEST as u64 {
        return Vec::new();
    }
    let bytes = read_all(&file, MAX_MANIFEST as u64, || base.at(name)).unwrap_or_default();
    Digest::all_in(&bytes).collect()
}
