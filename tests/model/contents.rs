//! All content that a run may push: few blobs that many images share, so that what one deed leaves
//! is what another meets.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use stillage::oci::{Algorithm, Digest};

use crate::support::random::Random;

pub const OCI_IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_IMAGE: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// A descriptor inside a manifest.
#[derive(Clone, Debug)]
pub struct Reference {
    pub digest: Digest,
    /// What the manifest says; wrong in some.
    pub size: u64,
    /// It stands in an index and has a manifest's media type.
    pub is_child: bool,
    /// A push without it is refused.
    pub is_required: bool,
}

/// What a manifest says.
#[derive(Clone, Debug)]
pub struct Shape {
    pub media_type: &'static str,
    pub references: Vec<Reference>,
    pub subject: Option<Digest>,
    pub artifact_type: Option<String>,
    pub annotations: BTreeMap<String, String>,
}

/// Some bytes, and what they say if they are a manifest.
#[derive(Clone, Debug)]
pub struct Content {
    pub bytes: Bytes,
    pub shape: Option<Shape>,
}

/// Everything there is.
#[derive(Debug, Default)]
pub struct Contents {
    all: Vec<Content>,
    by_digest: HashMap<Digest, usize>,
    pub plain: Vec<Digest>,
    pub images: Vec<Digest>,
    pub indexes: Vec<Digest>,
    pub referrers: Vec<Digest>,
    /// What referrers refer to.
    pub subjects: Vec<Digest>,
}

impl Contents {
    pub fn new(seed: u64) -> Contents {
        let mut random = Random::seeded(seed ^ 0x5eed);
        let mut contents = Contents::default();
        for number in 0..48 {
            contents.add_plain(&mut random, number);
        }
        for number in 0..70 {
            let image = contents.image(&mut random, number, None);
            contents.images.push(image);
        }
        for number in 0..24 {
            let index = contents.index(&mut random, number);
            contents.indexes.push(index);
        }
        for number in 0..50 {
            let subject = match random.below(10) {
                0..6 => random.pick(&contents.images).cloned(),
                6..8 => random.pick(&contents.indexes).cloned(),
                // A signature of a signature, or of what is never pushed.
                8 => random.pick(&contents.referrers).cloned(),
                _ => Some(Digest::of(Algorithm::Sha256, &random.bytes(8))),
            };
            let subject = subject.unwrap_or_else(|| contents.images[0].clone());
            let referrer = contents.image(&mut random, 1000 + number, Some(subject.clone()));
            contents.subjects.push(subject);
            contents.referrers.push(referrer);
        }
        contents
    }

    pub fn get(&self, digest: &Digest) -> Option<&Content> {
        self.by_digest.get(digest).map(|at| &self.all[*at])
    }

    /// The bytes of a digest that a run made up.
    pub fn bytes(&self, digest: &Digest) -> Bytes {
        self.get(digest).map(|content| content.bytes.clone()).unwrap_or_default()
    }

    pub fn size(&self, digest: &Digest) -> u64 {
        self.bytes(digest).len() as u64
    }

    pub fn shape(&self, digest: &Digest) -> Option<&Shape> {
        self.get(digest)?.shape.as_ref()
    }

    /// Adds bytes; gives one of their digests, mostly the one that everybody uses.
    fn add(&mut self, random: &mut Random, bytes: Vec<u8>, shape: Option<Shape>) -> Digest {
        let digests = Algorithm::ALL.map(|algorithm| Digest::of(algorithm, &bytes));
        for digest in &digests {
            self.by_digest.insert(digest.clone(), self.all.len());
        }
        let digest = digests[usize::from(random.chance(15))].clone();
        self.all.push(Content { bytes: bytes.into(), shape });
        digest
    }

    fn add_plain(&mut self, random: &mut Random, number: usize) {
        let bytes = match number {
            0 => b"{}".to_vec(),
            1 => Vec::new(),
            // More than one batch of an upload.
            2 => random.bytes((1 << 20) + 4097),
            3 => random.bytes(300_000),
            4..10 => random.bytes(5_000),
            _ => {
                let len = 1 + random.below(200);
                random.bytes(len)
            }
        };
        let digest = self.add(random, bytes, None);
        self.plain.push(digest);
    }

    fn image(&mut self, random: &mut Random, number: usize, subject: Option<Digest>) -> Digest {
        let docker = subject.is_none() && random.chance(20);
        let media_type = if docker { DOCKER_IMAGE } else { OCI_IMAGE };
        let mut references = Vec::new();
        let mut described = Vec::new();
        for at in 0..=random.below(5) {
            // Sometimes a layer is what elsewhere is a manifest: content is content.
            let of = if at > 0 && random.chance(3) { &self.images } else { &self.plain };
            let digest = random.pick(of).unwrap_or(&self.plain[0]).clone();
            let elsewhere = at > 0 && random.chance(4);
            let wrong = at > 0 && random.chance(1);
            let size = self.size(&digest) + u64::from(wrong);
            let urls = if elsewhere { r#","urls":["https://127.0.0.1/x"]"# } else { "" };
            let kind = if at == 0 { "config" } else { "layer" };
            described.push(format!(
                r#"{{"mediaType":"application/vnd.test.{kind}","digest":"{digest}","size":{size}{urls}}}"#
            ));
            references.push(Reference { digest, size, is_child: false, is_required: !elsewhere });
        }
        let config = described.remove(0);
        let refers = subject.is_some();
        let own_type = refers && random.chance(70);
        let artifact_type = own_type.then(|| format!("application/vnd.test.{}", random.below(3)));
        let mut annotations = BTreeMap::from([("n".to_owned(), number.to_string())]);
        if refers && random.chance(10) {
            // Longer than what is kept beside the manifests.
            annotations.insert("long".to_owned(), "x".repeat(5000));
        }
        let mut more = String::new();
        if let Some(artifact_type) = &artifact_type {
            more += &format!(r#","artifactType":"{artifact_type}""#);
        }
        if let Some(subject) = &subject {
            let size = self.size(subject).max(2);
            more += &format!(
                r#","subject":{{"mediaType":"{OCI_IMAGE}","digest":"{subject}","size":{size}}}"#
            );
        }
        let notes = serde_json::to_string(&annotations).expect("strings");
        let bytes = format!(
            r#"{{"schemaVersion":2,"mediaType":"{media_type}","config":{config},"layers":[{}]{more},"annotations":{notes}}}"#,
            described.join(",")
        );
        let artifact_type =
            artifact_type.or_else(|| Some("application/vnd.test.config".to_owned()));
        let shape = Shape { media_type, references, subject, artifact_type, annotations };
        self.add(random, bytes.into_bytes(), Some(shape))
    }

    fn index(&mut self, random: &mut Random, number: usize) -> Digest {
        let docker = random.chance(20);
        let media_type = if docker { DOCKER_LIST } else { OCI_INDEX };
        let mut references = Vec::new();
        let mut described = Vec::new();
        for _ in 0..random.below(4) {
            let of = match random.below(10) {
                // As BuildKit's caches do.
                0..2 => &self.plain,
                2..4 => &self.indexes,
                _ => &self.images,
            };
            let Some(digest) = random.pick(of).cloned() else { continue };
            let child = self.shape(&digest).map(|shape| shape.media_type);
            let size = self.size(&digest);
            let kind = child.unwrap_or("application/vnd.test.layer");
            described
                .push(format!(r#"{{"mediaType":"{kind}","digest":"{digest}","size":{size}}}"#));
            let is_child = child.is_some();
            references.push(Reference { digest, size, is_child, is_required: true });
        }
        let subject = random.pick(&self.images).filter(|_| number % 6 == 5).cloned();
        let mut more = String::new();
        if let Some(subject) = &subject {
            more = format!(
                r#","subject":{{"mediaType":"{OCI_IMAGE}","digest":"{subject}","size":{}}}"#,
                self.size(subject)
            );
            self.subjects.push(subject.clone());
        }
        let annotations = BTreeMap::from([("i".to_owned(), number.to_string())]);
        let bytes = format!(
            r#"{{"schemaVersion":2,"mediaType":"{media_type}","manifests":[{}]{more},"annotations":{{"i":"{number}"}}}}"#,
            described.join(",")
        );
        let shape = Shape { media_type, references, subject, artifact_type: None, annotations };
        self.add(random, bytes.into_bytes(), Some(shape))
    }
}
