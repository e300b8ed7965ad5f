//! Marks: what a repository needs, and why.

use serde::Deserialize;
use serde_json::Value;

use super::{is_plain, parse, read_manifest_bytes};
use crate::layout::{Dir, Error, Result, path};
use crate::oci::{Descriptor, Digest, DigestMap, Index, MAX_MANIFEST};

/// Why something is kept: 0 is index.json, the other numbers are the caller's.
pub type Cause = u32;

/// What index.json reaches.
pub const INDEX: Cause = 0;

/// Everything that is to be kept in a repository. It only grows.
#[derive(Debug, Default)]
pub struct Marks {
    kept: DigestMap<Cause>,
    /// Manifests whose references are among what is kept.
    read: DigestMap<()>,
}

/// What it means that a manifest is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Missing {
    /// Damage: it might have referred to anything.
    Damage,
    /// Nothing: it was removed, or never came.
    Nothing,
}

impl Marks {
    /// Marks all that an index.json reaches: whatever an index lists, of any type, and what that
    /// refers to. Costs little for what was marked before.
    ///
    /// # Errors
    /// It fails closed: an entry whose manifest is missing, or a manifest that cannot be read, might
    /// refer to anything. The child of a sparse index may be missing.
    pub fn index(&mut self, repo: &Dir, index: &Index, without: &DigestMap<()>) -> Result<()> {
        let kept = index.entries().filter(|entry| !without.contains(&entry.digest));
        kept.into_iter().try_for_each(|entry| self.reach(repo, &entry, INDEX, Missing::Damage))
    }

    /// Marks a descriptor from the journal, and what it reaches. A manifest that is gone is nothing.
    ///
    /// # Errors
    /// As above, of a manifest that is there.
    pub fn remembered(&mut self, repo: &Dir, descriptor: &Descriptor, cause: Cause) -> Result<()> {
        self.reach(repo, descriptor, cause, Missing::Nothing)
    }

    /// Marks a digest alone.
    pub fn digest(&mut self, digest: &Digest, cause: Cause) {
        self.kept.put_new(digest, cause);
    }

    /// Why a digest is kept; `None` if nothing needs it.
    pub fn cause(&self, digest: &Digest) -> Option<Cause> {
        self.kept.get(digest).copied()
    }

    /// How many manifests were read.
    pub fn manifests(&self) -> usize {
        self.read.len()
    }

    fn reach(
        &mut self,
        repo: &Dir,
        first: &Descriptor,
        cause: Cause,
        missing: Missing,
    ) -> Result<()> {
        self.kept.put_new(&first.digest, cause);
        let mut next = self.look(repo, first, cause, missing)?;
        while let Some(descriptor) = next.pop() {
            next.extend(self.look(repo, &descriptor, cause, Missing::Nothing)?);
        }
        Ok(())
    }

    /// Marks what a descriptor's content refers to, and gives what that may refer to.
    fn look(
        &mut self,
        repo: &Dir,
        descriptor: &Descriptor,
        cause: Cause,
        missing: Missing,
    ) -> Result<Vec<Descriptor>> {
        let digest = &descriptor.digest;
        if self.read.contains(digest) {
            return Ok(Vec::new());
        }
        if is_plain(descriptor) {
            return self.unknown(repo, descriptor, cause);
        }
        let Some(bytes) = read_manifest_bytes(repo, digest)? else {
            return match missing {
                Missing::Nothing => Ok(Vec::new()),
                Missing::Damage => {
                    let why = "is missing, and index.json names it";
                    Err(Error::damaged(repo.at(&path::blob(digest)), why))
                }
            };
        };
        let Some((manifest, _)) = parse(repo, descriptor, &bytes)? else {
            return Ok(Vec::new());
        };
        self.read.put_new(digest, ());
        for reference in manifest.references() {
            self.kept.put_new(&reference.digest, cause);
        }
        Ok(manifest.manifests)
    }

    /// What has a type that nobody here knows, but is JSON by its name, may be a manifest of another
    /// kind (ORAS's artifact manifests, Docker's schema 1) or an index of one: every digest that it spells
    /// is kept, and what has a descriptor in it may refer to more.
    fn unknown(
        &mut self,
        repo: &Dir,
        descriptor: &Descriptor,
        cause: Cause,
    ) -> Result<Vec<Descriptor>> {
        let media_type = descriptor.media_type.to_ascii_lowercase();
        let json = media_type.contains("json") || media_type.ends_with("jws");
        if json
            && descriptor.size <= MAX_MANIFEST as u64
            && let Some(bytes) = read_manifest_bytes(repo, &descriptor.digest)?
        {
            self.read.put_new(&descriptor.digest, ());
            Digest::all_in(&bytes).for_each(|digest| self.digest(&digest, cause));
            return Ok(descriptors(&bytes));
        }
        Ok(Vec::new())
    }
}

/// Whatever has a descriptor's shape, anywhere in a JSON document.
fn descriptors(bytes: &[u8]) -> Vec<Descriptor> {
    let mut found = Vec::new();
    let mut todo: Vec<Value> = serde_json::from_slice(bytes).into_iter().collect();
    while let Some(value) = todo.pop() {
        if value.is_object() {
            found.extend(Descriptor::deserialize(&value));
        }
        match value {
            Value::Array(values) => todo.extend(values),
            Value::Object(fields) => todo.extend(fields.into_iter().map(|(_, value)| value)),
            _ => {}
        }
    }
    found
}
