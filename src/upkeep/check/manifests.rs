//! index.json and everything that it reaches.

use std::collections::HashSet;
use std::hash::{BuildHasher, Hash, RandomState};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustix::fs::Stat;

use super::blobs::Blobs;
use super::finding::Findings;
use super::probe::{self, Seen};
use super::rule::Rule;
use crate::layout::{self, Dir, path, size_of};
use crate::oci::{
    Algorithm, Descriptor, Digest, Index, Kind, MAX_MANIFEST, Manifest, ManifestError, REF_NAME,
    tag_of_ref_name,
};

/// Checks the entries of an index.json, the manifests that they name, and what those need. Gives
/// how many manifests there are.
pub(super) fn check(
    repo: &Dir,
    index: &Index,
    blobs: &Blobs,
    sparse: bool,
    findings: &mut Findings,
) -> u64 {
    let mut unknown = false;
    let dirs = Algorithm::ALL.map(|algorithm| {
        let dir = repo.dir(&path::blobs(algorithm));
        unknown |= dir.as_ref().is_err_and(probe::is_trouble);
        probe::look(dir, findings)
    });
    if unknown {
        // Nothing can be said to be missing.
        return 0;
    }
    let mut graph = Graph {
        repo,
        dirs,
        blobs,
        sparse,
        findings,
        asked: Marks::default(),
        read: Marks::default(),
        todo: Vec::new(),
    };
    graph.entries(index);
    graph.read.seen.len() as u64
}

/// What was met before, in 16 bytes each: there may be millions. Nobody who writes a manifest can
/// find two that are taken for one, for the hashes have a key of their own in each run.
#[derive(Default)]
struct Marks {
    keys: (RandomState, RandomState),
    seen: HashSet<(u64, u64)>,
}

impl Marks {
    /// Whether it is met the first time.
    fn insert(&mut self, what: impl Hash) -> bool {
        self.seen.insert((self.keys.0.hash_one(&what), self.keys.1.hash_one(&what)))
    }
}

struct Graph<'a> {
    repo: &'a Dir,
    /// The directories of blobs, as they were when this began.
    dirs: [Option<Dir>; 2],
    blobs: &'a Blobs,
    sparse: bool,
    findings: &'a mut Findings,
    /// Descriptors that were compared with what is there: many entries may say the same.
    asked: Marks,
    /// Manifests that were read.
    read: Marks,
    /// Descriptors of manifests beneath an entry that are there and were not read yet.
    todo: Vec<Descriptor>,
}

/// Where a descriptor stands, for messages.
enum Place<'a> {
    Index,
    Manifest(&'a Digest),
}

impl std::fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Index => f.write_str("index.json"),
            Place::Manifest(digest) => write!(f, "manifest {digest}"),
        }
    }
}

impl Graph<'_> {
    fn entries(&mut self, index: &Index) {
        let at = self.repo.at(path::INDEX);
        for tag in index.doubled_tags() {
            let message = format!("the tag {tag} stands on several entries: the first counts");
            self.findings.add(Rule::TagDoubled, &at, message);
        }
        for entry in index.entries() {
            if let Some(name) = entry.annotations.get(REF_NAME)
                && tag_of_ref_name(name).is_none()
            {
                let message = format!("{name:?} on {} is no tag", entry.digest);
                self.findings.add(Rule::TagMalformed, &at, message);
            }
            self.entry(entry);
            while let Some(descriptor) = self.todo.pop() {
                self.manifest(&descriptor);
            }
        }
    }

    fn entry(&mut self, entry: &Descriptor) {
        let at = self.repo.at(path::INDEX);
        if entry.media_type.is_empty() {
            let message = format!("the entry of {} has no mediaType", entry.digest);
            self.findings.add(Rule::IndexEntryUntyped, &at, message);
        } else if Kind::of_media_type(&entry.media_type).is_none() {
            let message = format!("{} is a {:?}, no manifest", entry.digest, entry.media_type);
            self.findings.add(Rule::EntryNotAManifest, &at, message);
            return self.blob(entry, &Place::Index, false);
        }
        self.child(entry, &Place::Index, true);
    }

    /// A descriptor of a manifest.
    fn child(&mut self, descriptor: &Descriptor, place: &Place<'_>, required: bool) {
        if !self.first_asked(descriptor) {
            return;
        }
        self.data(descriptor, place);
        let at = self.at(&descriptor.digest);
        match self.stat(&descriptor.digest) {
            Seen::Absent if required => {
                let message = format!("is missing, and named by {place}");
                self.findings.add(Rule::ManifestMissing, &at, message);
            }
            // A name that is no regular file was reported with the blobs.
            Seen::There(stat) if !layout::is_regular(&stat) => {}
            Seen::Absent | Seen::Bad => {}
            Seen::There(stat) => {
                self.size(Rule::ManifestSizeMismatch, descriptor, &stat, place);
                self.todo.push(descriptor.clone());
            }
        }
    }

    /// A descriptor of anything else.
    fn blob(&mut self, descriptor: &Descriptor, place: &Place<'_>, required: bool) {
        if !self.first_asked(descriptor) {
            return;
        }
        self.data(descriptor, place);
        match self.stat(&descriptor.digest) {
            Seen::Absent if required => {
                let message = format!("is missing, and needed by {place}");
                let at = self.at(&descriptor.digest);
                self.findings.add(Rule::BlobMissing, &at, message);
            }
            Seen::There(stat) if !layout::is_regular(&stat) => {}
            Seen::Absent | Seen::Bad => {}
            Seen::There(stat) => self.size(Rule::BlobSizeMismatch, descriptor, &stat, place),
        }
    }

    fn manifest(&mut self, descriptor: &Descriptor) {
        let digest = &descriptor.digest;
        if self.blobs.bad.contains(digest) {
            return;
        }
        let at = self.at(digest);
        let bytes = match self.bytes(digest) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => {
                let message = "has more than 4 MiB: what it needs was not checked";
                return self.findings.add(Rule::ManifestOversized, &at, message);
            }
            Err(error) if error.is_absent() => return,
            Err(error) => return probe::unreadable(&error, self.findings),
        };
        let said = Some(descriptor.media_type.as_str()).filter(|said| !said.is_empty());
        let manifest = match Manifest::parse(&bytes, said) {
            Ok(manifest) => manifest,
            Err(error @ ManifestError::Disagree { .. }) => {
                let message = error.to_string().replace("Content-Type", "the descriptor's type");
                self.findings.add(Rule::ManifestTypeMismatch, &at, message);
                return;
            }
            Err(error) => {
                return self.findings.add(Rule::ManifestMalformed, &at, error.to_string());
            }
        };
        if self.read.insert(digest) {
            self.needs(digest, &manifest);
        }
    }

    fn needs(&mut self, digest: &Digest, manifest: &Manifest) {
        let place = Place::Manifest(digest);
        let required = !self.sparse;
        for child in manifest.children() {
            self.child(child, &place, required);
        }
        let plain = |entry: &&Descriptor| {
            !manifest.kind.is_index() || Kind::of_media_type(&entry.media_type).is_none()
        };
        for blob in manifest.references().filter(plain) {
            self.blob(blob, &place, required && blob.urls.is_empty());
        }
        if let Some(subject) = &manifest.subject {
            self.data(subject, &place);
        }
    }

    fn size(&mut self, rule: Rule, descriptor: &Descriptor, stat: &Stat, place: &Place<'_>) {
        if size_of(stat) != descriptor.size {
            let (is, said) = (size_of(stat), descriptor.size);
            let message = format!("has {is} bytes, and {said} according to {place}");
            let at = self.at(&descriptor.digest);
            self.findings.add(rule, &at, message);
        }
    }

    /// `data` holds the content itself (image-spec, descriptor.md, "Embedded Content").
    fn data(&mut self, descriptor: &Descriptor, place: &Place<'_>) {
        let Some(data) = descriptor.extra.get("data").filter(|data| !data.is_null()) else {
            return;
        };
        let bytes = data.as_str().and_then(|text| BASE64.decode(text).ok());
        let sound = bytes.is_some_and(|bytes| {
            bytes.len() as u64 == descriptor.size
                && Digest::of(descriptor.digest.algorithm(), &bytes) == descriptor.digest
        });
        if !sound {
            let message = format!("{place} embeds other content under this digest");
            let at = self.at(&descriptor.digest);
            self.findings.add(Rule::DescriptorDataMismatch, &at, message);
        }
    }

    fn first_asked(&mut self, descriptor: &Descriptor) -> bool {
        let Descriptor { digest, size, media_type, .. } = descriptor;
        self.asked.insert((digest, size, media_type))
    }

    fn dir(&self, digest: &Digest) -> Option<&Dir> {
        let at = Algorithm::ALL.iter().position(|known| *known == digest.algorithm())?;
        self.dirs[at].as_ref()
    }

    /// What has the digest's name.
    fn stat(&mut self, digest: &Digest) -> Seen<Stat> {
        let Some(dir) = self.dir(digest) else { return Seen::Absent };
        match dir.stat_name(digest.hex()) {
            Ok(Some(stat)) => Seen::There(stat),
            Err(error) if probe::is_trouble(&error) => {
                probe::unreadable(&error, self.findings);
                Seen::Bad
            }
            Ok(None) | Err(_) => Seen::Absent,
        }
    }

    /// A manifest's bytes, unless there are too many.
    fn bytes(&self, digest: &Digest) -> layout::Result<Option<Vec<u8>>> {
        let name = path::blob(digest);
        let (file, stat) = match self.dir(digest) {
            Some(dir) => dir.file_stat(digest.hex())?,
            None => self.repo.file_stat(&name)?,
        };
        if size_of(&stat) > MAX_MANIFEST as u64 {
            return Ok(None);
        }
        layout::read_all(&file, MAX_MANIFEST as u64, || self.repo.at(&name)).map(Some)
    }

    fn at(&self, digest: &Digest) -> std::path::PathBuf {
        self.repo.at(&path::blob(digest))
    }
}
