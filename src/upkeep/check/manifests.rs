//! index.json and everything that it reaches.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hash, RandomState};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::blobs::Blobs;
use super::finding::Findings;
use super::rule::Rule;
use super::{Look, hands, probe};
use crate::layout::{self, Dir, path, size_of};
use crate::oci::{
    Algorithm, Descriptor, Digest, Index, Kind, MAX_MANIFEST, Manifest, ManifestError, REF_NAME,
    tag_of_ref_name,
};

/// So many manifests are read together, unless they have more bytes than that.
const TOGETHER: usize = 1 << 12;
const TOGETHER_BYTES: u64 = 4 << 20;

/// Fewer are read one by one.
const FEW: usize = 64;

/// Checks the entries of an index.json, the manifests that they name, and what those need. Gives
/// how many manifests there are.
pub(super) fn check(
    look: &Look<'_>,
    repo: &Dir,
    index: &Index,
    blobs: &Blobs,
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
        look,
        manifests: Manifests { repo, dirs },
        repo,
        blobs,
        findings,
        asked: Marks::default(),
        read: Marks::default(),
        ahead: HashMap::new(),
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
        self.seen.insert(self.mark(what))
    }

    fn has(&self, what: impl Hash) -> bool {
        self.seen.contains(&self.mark(what))
    }

    fn mark(&self, what: impl Hash) -> (u64, u64) {
        (self.keys.0.hash_one(&what), self.keys.1.hash_one(&what))
    }
}

/// A manifest by its digest and the type that was said.
type Called = (Digest, String);

/// The manifests of a repository, to be read by many threads.
struct Manifests<'a> {
    repo: &'a Dir,
    /// The directories of blobs, as they were when this began.
    dirs: [Option<Dir>; 2],
}

/// Why nothing is known of what a manifest needs.
enum Unknown {
    Oversized,
    Unreadable(layout::Error),
    Wrong(ManifestError),
}

impl Manifests<'_> {
    fn dir(&self, digest: &Digest) -> Option<&Dir> {
        let at = Algorithm::ALL.iter().position(|known| *known == digest.algorithm())?;
        self.dirs[at].as_ref()
    }

    /// Reads one that has so many bytes at most.
    fn read(&self, digest: &Digest, media_type: &str, most: u64) -> Result<Manifest, Unknown> {
        let bytes = self.bytes(digest, most).map_err(Unknown::Unreadable)?;
        let bytes = bytes.ok_or(Unknown::Oversized)?;
        let said = Some(media_type).filter(|said| !said.is_empty());
        Manifest::parse(&bytes, said).map_err(Unknown::Wrong)
    }

    /// A manifest's bytes, unless there are too many.
    fn bytes(&self, digest: &Digest, most: u64) -> layout::Result<Option<Vec<u8>>> {
        let name = path::blob(digest);
        let (file, stat) = match self.dir(digest) {
            Some(dir) => dir.file_stat(digest.hex())?,
            None => self.repo.file_stat(&name)?,
        };
        if size_of(&stat) > most {
            return Ok(None);
        }
        layout::read_known(&file, &stat, most, || self.repo.at(&name)).map(Some)
    }
}

struct Graph<'a> {
    look: &'a Look<'a>,
    manifests: Manifests<'a>,
    repo: &'a Dir,
    blobs: &'a Blobs,
    findings: &'a mut Findings,
    /// Descriptors that were compared with what is there: many entries may say the same.
    asked: Marks,
    /// Manifests that were read.
    read: Marks,
    /// What was read before it is asked for.
    ahead: HashMap<Called, Result<Manifest, Unknown>>,
    /// Descriptors of manifests beneath an entry that are there and were not read yet.
    todo: Vec<Descriptor>,
}

/// What has a digest's name.
enum There {
    Nothing,
    /// Something that is no file, or that cannot be looked at: it was reported.
    NoFile,
    /// Of so many bytes.
    File(u64),
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
        let entries: Vec<Descriptor> = index.entries().collect();
        let mut rest = entries.as_slice();
        while !rest.is_empty() {
            let some;
            (some, rest) = rest.split_at(self.read_ahead(rest));
            self.some(some);
            self.ahead.clear();
        }
    }

    /// Reads the manifests of the next entries, on all cores. Gives how many entries those are.
    fn read_ahead(&mut self, entries: &[Descriptor]) -> usize {
        let (mut wanted, mut bytes, mut count) = (HashSet::new(), 0, 0);
        for entry in entries.iter().take(TOGETHER) {
            let Descriptor { digest, size, media_type, .. } = entry;
            bytes += size.min(&TOGETHER_BYTES);
            if count > 0 && bytes > TOGETHER_BYTES {
                break;
            }
            count += 1;
            let is_manifest = media_type.is_empty() || Kind::of_media_type(media_type).is_some();
            if is_manifest && !self.is_asked(entry) && !self.blobs.bad.contains(digest) {
                wanted.insert((digest, media_type, *size));
            }
        }
        if self.look.hands > 1 && wanted.len() >= FEW {
            let wanted: Vec<_> = wanted.into_iter().collect();
            let manifests = &self.manifests;
            let read = hands::each(self.look.hands, &wanted, |(digest, media_type, size)| {
                match manifests.read(digest, media_type, (*size).min(MAX_MANIFEST as u64)) {
                    // What is longer than was said is read when nothing else is held.
                    Err(Unknown::Oversized) => None,
                    read => Some((((*digest).clone(), (*media_type).clone()), read)),
                }
            });
            self.ahead.extend(read.into_iter().flatten());
        }
        count
    }

    fn some(&mut self, entries: &[Descriptor]) {
        let at = self.repo.at(path::INDEX);
        for entry in entries {
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
        let at = || self.repo.at(path::INDEX);
        if entry.media_type.is_empty() {
            let message = format!("the entry of {} has no mediaType", entry.digest);
            self.findings.add(Rule::IndexEntryUntyped, &at(), message);
        } else if Kind::of_media_type(&entry.media_type).is_none() {
            let message = format!("{} is a {:?}, no manifest", entry.digest, entry.media_type);
            self.findings.add(Rule::EntryNotAManifest, &at(), message);
            return self.blob(entry, &Place::Index, false);
        }
        self.child(entry, &Place::Index, true);
    }

    /// A descriptor of a manifest.
    fn child(&mut self, descriptor: &Descriptor, place: &Place<'_>, required: bool) {
        let Some(first) = self.ask(descriptor, required) else { return };
        if first {
            self.data(descriptor, place);
        }
        match self.there(&descriptor.digest) {
            There::Nothing if required => {
                let message = format!("is missing, and named by {place}");
                let at = self.at(&descriptor.digest);
                self.findings.add(Rule::ManifestMissing, &at, message);
            }
            There::File(size) if first => {
                self.size(Rule::ManifestSizeMismatch, descriptor, size, place);
                self.todo.push(descriptor.clone());
            }
            There::Nothing | There::NoFile | There::File(_) => {}
        }
    }

    /// A descriptor of anything else.
    fn blob(&mut self, descriptor: &Descriptor, place: &Place<'_>, required: bool) {
        let Some(first) = self.ask(descriptor, required) else { return };
        if first {
            self.data(descriptor, place);
        }
        match self.there(&descriptor.digest) {
            There::Nothing if required => {
                let message = format!("is missing, and needed by {place}");
                let at = self.at(&descriptor.digest);
                self.findings.add(Rule::BlobMissing, &at, message);
            }
            There::File(size) if first => {
                self.size(Rule::BlobSizeMismatch, descriptor, size, place);
            }
            There::Nothing | There::NoFile | There::File(_) => {}
        }
    }

    fn manifest(&mut self, descriptor: &Descriptor) {
        let digest = &descriptor.digest;
        if self.blobs.bad.contains(digest) {
            return;
        }
        let at = || self.repo.at(&path::blob(digest));
        let read = match self.ahead.is_empty() {
            true => None,
            false => self.ahead.remove(&(digest.clone(), descriptor.media_type.clone())),
        };
        let read = read.unwrap_or_else(|| {
            self.manifests.read(digest, &descriptor.media_type, MAX_MANIFEST as u64)
        });
        let manifest = match read {
            Ok(manifest) => manifest,
            Err(Unknown::Oversized) => {
                let message = "has more than 4 MiB: what it needs was not checked";
                return self.findings.add(Rule::ManifestOversized, &at(), message);
            }
            Err(Unknown::Unreadable(error)) if error.is_absent() => return,
            Err(Unknown::Unreadable(error)) => return probe::unreadable(&error, self.findings),
            Err(Unknown::Wrong(error @ ManifestError::Disagree { .. })) => {
                let message = error.to_string().replace("Content-Type", "the descriptor's type");
                return self.findings.add(Rule::ManifestTypeMismatch, &at(), message);
            }
            Err(Unknown::Wrong(error)) => {
                return self.findings.add(Rule::ManifestMalformed, &at(), error.to_string());
            }
        };
        if self.read.insert(digest) {
            self.needs(digest, &manifest);
        }
    }

    fn needs(&mut self, digest: &Digest, manifest: &Manifest) {
        let place = Place::Manifest(digest);
        let required = !self.look.options.allow_sparse;
        for child in manifest.children() {
            self.child(child, &place, required);
        }
        let plain = |entry: &&Descriptor| {
            !manifest.kind.is_index() || Kind::of_media_type(&entry.media_type).is_none()
        };
        for blob in manifest.references().filter(plain) {
            // Of what lies elsewhere nothing is asked, not even its length if it is here as well: no push
            // asks for that either.
            match blob.urls.is_empty() {
                true => self.blob(blob, &place, required),
                false => self.data(blob, &place),
            }
        }
        if let Some(subject) = &manifest.subject {
            self.data(subject, &place);
        }
    }

    fn size(&mut self, rule: Rule, descriptor: &Descriptor, is: u64, place: &Place<'_>) {
        let said = descriptor.size;
        if is != said {
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

    /// Whether this is asked for the first time; `None` if all is known of it. Asked for by somebody who
    /// can do without it, it has to be looked for once more.
    fn ask(&mut self, descriptor: &Descriptor, required: bool) -> Option<bool> {
        let Descriptor { digest, size, media_type, .. } = descriptor;
        let other = self.asked.has((digest, size, media_type, !required));
        if !required && other {
            return None;
        }
        self.asked.insert((digest, size, media_type, required)).then_some(!other)
    }

    /// Whether it was looked for as something that is needed, which entries are.
    fn is_asked(&self, descriptor: &Descriptor) -> bool {
        let Descriptor { digest, size, media_type, .. } = descriptor;
        self.asked.has((digest, size, media_type, true))
    }

    /// What has the digest's name.
    fn there(&mut self, digest: &Digest) -> There {
        if let Some(size) = self.blobs.size(digest) {
            return There::File(size);
        }
        let Some(dir) = self.manifests.dir(digest) else { return There::Nothing };
        match dir.stat_name(digest.hex()) {
            Ok(Some(stat)) if layout::is_regular(&stat) => There::File(size_of(&stat)),
            Err(error) if probe::is_trouble(&error) => {
                probe::unreadable(&error, self.findings);
                There::NoFile
            }
            Ok(Some(_)) => There::NoFile,
            Ok(None) | Err(_) => There::Nothing,
        }
    }

    fn at(&self, digest: &Digest) -> std::path::PathBuf {
        self.repo.at(&path::blob(digest))
    }
}
