//! Marks: what a repository needs, and why.

use serde::Deserialize;
use serde_json::Value;

use super::{is_plain, parse, read_manifest_bytes};
use crate::layout::{Dir, Result};
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
    /// What those, index.json or the journal name and what was not there: it may come.
    absent: DigestMap<Cause>,
}

impl Marks {
    /// Marks all that an index.json reaches: whatever an index lists, of any type, and what that
    /// refers to. Costs little for what was marked before.
    ///
    /// Gives the first entry whose manifest is not there: it might have referred to anything. Where it was
    /// taken out in the meantime, the next index.json is to be marked as well. The child of a sparse index
    /// may be missing; each call looks for it again, which takes a microsecond.
    ///
    /// # Errors
    /// It fails closed: a manifest that cannot be read might refer to anything. These marks are of no use
    /// after that.
    pub fn index(
        &mut self,
        repo: &Dir,
        index: &Index,
        without: &DigestMap<()>,
    ) -> Result<Option<Digest>> {
        self.again(repo)?;
        let mut missing = None;
        for entry in index.entries().filter(|entry| !without.contains(&entry.digest)) {
            if !self.reach(repo, &entry, INDEX)? && !is_plain(&entry) {
                missing.get_or_insert(entry.digest);
            }
        }
        Ok(missing)
    }

    /// Marks what has come of that which was named and not there. Of that all digests are kept which it
    /// spells.
    ///
    /// # Errors
    /// As above.
    pub fn again(&mut self, repo: &Dir) -> Result<()> {
        for (digest, cause) in std::mem::take(&mut self.absent).iter() {
            // What is said of it elsewhere does not matter: this keeps at least as much.
            self.reach(repo, &Descriptor::new("application/json", digest, 0), *cause)?;
        }
        Ok(())
    }

    /// How much [`Marks::again`] looks for.
    pub fn absent(&self) -> usize {
        self.absent.len()
    }

    /// Marks a descriptor from the journal, and what it reaches. A manifest that is gone is nothing, unless
    /// it comes again.
    ///
    /// # Errors
    /// As above.
    pub fn remembered(&mut self, repo: &Dir, descriptor: &Descriptor, cause: Cause) -> Result<()> {
        self.reach(repo, descriptor, cause).map(|_there| ())
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

    /// Whether the first itself is there, if that matters.
    fn reach(&mut self, repo: &Dir, first: &Descriptor, cause: Cause) -> Result<bool> {
        self.kept.put_new(&first.digest, cause);
        let Some(mut next) = self.look(repo, first, cause)? else {
            self.absent.put_new(&first.digest, cause);
            return Ok(false);
        };
        while let Some(descriptor) = next.pop() {
            match self.look(repo, &descriptor, cause)? {
                Some(more) => next.extend(more),
                None => {
                    self.absent.put_new(&descriptor.digest, cause);
                }
            }
        }
        Ok(true)
    }

    /// Marks what a descriptor's content refers to, and gives what that may refer to; `None` of what
    /// might refer to anything, and is not there.
    fn look(
        &mut self,
        repo: &Dir,
        descriptor: &Descriptor,
        cause: Cause,
    ) -> Result<Option<Vec<Descriptor>>> {
        let digest = &descriptor.digest;
        if self.read.contains(digest) {
            return Ok(Some(Vec::new()));
        }
        if is_plain(descriptor) {
            return self.unknown(repo, descriptor, cause);
        }
        let Some(bytes) = read_manifest_bytes(repo, digest)? else { return Ok(None) };
        let Some((manifest, _)) = parse(repo, descriptor, &bytes)? else {
            return Ok(Some(Vec::new()));
        };
        self.read.put_new(digest, ());
        for reference in manifest.references() {
            self.kept.put_new(&reference.digest, cause);
        }
        Ok(Some(manifest.manifests))
    }

    /// What has a type that nobody here knows, but is JSON by its name, may be a manifest of another
    /// kind (ORAS's artifact manifests, Docker's schema 1) or an index of one: every digest that it spells
    /// is kept, and what has a descriptor in it may refer to more.
    fn unknown(
        &mut self,
        repo: &Dir,
        descriptor: &Descriptor,
        cause: Cause,
    ) -> Result<Option<Vec<Descriptor>>> {
        let media_type = descriptor.media_type.to_ascii_lowercase();
        let json = media_type.contains("json") || media_type.ends_with("jws");
        if !json || descriptor.size > MAX_MANIFEST as u64 {
            return Ok(Some(Vec::new()));
        }
        let Some(bytes) = read_manifest_bytes(repo, &descriptor.digest)? else { return Ok(None) };
        self.read.put_new(&descriptor.digest, ());
        Digest::all_in(&bytes).for_each(|digest| self.digest(&digest, cause));
        Ok(Some(descriptors(&bytes)))
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
