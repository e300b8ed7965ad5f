//! What a run asks of a registry, in whichever way it is reached.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use stillage::oci::{Algorithm, Digest};

/// Why a deed was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    NameUnknown,
    BlobUnknown,
    ManifestUnknown,
    UploadUnknown,
    UploadRange,
    DigestMismatch,
    BlobsAbsent(BTreeSet<Digest>),
    BlobInUse,
    /// A file is not what it must be.
    Damaged,
    /// What no deed of a run may meet.
    Other(String),
}

pub type Answer<T> = Result<T, Refused>;

/// An entry of the referrers API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Referrer {
    pub digest: Digest,
    pub media_type: String,
    pub size: u64,
    pub artifact_type: Option<String>,
    pub annotations: BTreeMap<String, String>,
}

/// A manifest as it is pulled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    pub digest: Digest,
    pub media_type: String,
    pub bytes: Bytes,
}

/// What a collection is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collection {
    /// In hours of the model's clock; what lies between the model's hours is added by the face.
    pub grace: u64,
    pub undo_window: u64,
    /// `--now`, of all or of one repository.
    pub now: bool,
    pub only: Option<String>,
    pub dry_run: bool,
}

/// What a collection did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Repositories that were left as they are because something in them cannot be read.
    pub stopped: BTreeSet<String>,
    /// What it says that it unlinked in repositories.
    pub unlinked: BTreeSet<(String, Digest)>,
    /// What it says that it noted as unreferenced.
    pub noted: BTreeSet<(String, Digest)>,
    /// How many bytes it says that it freed.
    pub freed: u64,
}

/// What check found: the rule's name, whether it is damage, where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub rule: String,
    pub is_error: bool,
    pub repository: String,
    pub path: PathBuf,
}

/// A registry. What it is asked for in the wrong way is [`Refused::Other`].
pub trait Face {
    fn root(&self) -> &Path;
    /// Whether something writes without being asked: a server learns a second later what another tool
    /// put there, and writes it down.
    fn writes_by_itself(&self) -> bool;

    fn put_blob(&mut self, repo: &str, digest: &Digest, bytes: Bytes) -> Answer<()>;
    fn begin(&mut self, repo: &str, algorithm: Algorithm) -> Answer<String>;
    /// Appends, from `first` on if that is said; gives how much there is now.
    fn append(&mut self, repo: &str, id: &str, first: Option<u64>, bytes: Bytes) -> Answer<u64>;
    fn received(&mut self, repo: &str, id: &str) -> Answer<u64>;
    fn finish(&mut self, repo: &str, id: &str, bytes: Bytes, digest: &Digest) -> Answer<()>;
    fn cancel(&mut self, repo: &str, id: &str) -> Answer<()>;
    /// `false` if there was nothing to mount.
    fn mount(&mut self, repo: &str, digest: &Digest, from: Option<&str>) -> Answer<bool>;
    /// HEAD by somebody who may push: a promise. Gives the length.
    fn head(&mut self, repo: &str, digest: &Digest) -> Answer<u64>;
    fn blob(&mut self, repo: &str, digest: &Digest) -> Answer<Bytes>;
    fn delete_blob(&mut self, repo: &str, digest: &Digest) -> Answer<()>;

    fn put_manifest(
        &mut self,
        repo: &str,
        reference: &str,
        tags: &[String],
        media_type: &str,
        bytes: Bytes,
    ) -> Answer<(Digest, Option<Digest>)>;
    fn manifest(&mut self, repo: &str, reference: &str) -> Answer<Pulled>;
    fn delete_manifest(&mut self, repo: &str, reference: &str) -> Answer<()>;

    fn tags(&mut self, repo: &str, last: Option<&str>, n: usize) -> Answer<(Vec<String>, bool)>;
    fn referrers(
        &mut self,
        repo: &str,
        subject: &Digest,
        artifact_type: Option<&str>,
    ) -> Answer<Vec<Referrer>>;
    fn catalog(&mut self, last: Option<&str>, n: usize) -> Answer<(Vec<String>, bool)>;

    /// The same tree with another server.
    /// Gives after how many hours without a byte the new process has ended uploads, if it does.
    fn restart(&mut self) -> Option<u64>;
    fn check(&mut self) -> Vec<Found>;
    fn collect(&mut self, collection: &Collection) -> Result<Collected, String>;
}
