//! One repository in the making: layout-spec/tree.md, "In a repository".

use serde_json::{Value, json};
use stillage::layout::Stamp;
use stillage::oci::{Algorithm, Digest};

use super::Files;

pub const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub const DOCKER_IMAGE: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Files of a repository, and the entries of its index.json.
pub struct Repo {
    dir: String,
    pub files: Files,
    pub entries: Vec<Value>,
    pub algorithm: Algorithm,
}

impl Repo {
    /// With an `oci-layout` and nothing else. The empty name is ROOT itself.
    pub fn new(name: &str) -> Repo {
        let dir = if name.is_empty() { String::new() } else { format!("{name}/") };
        let mut repo =
            Repo { dir, files: Files::new(), entries: Vec::new(), algorithm: Algorithm::Sha256 };
        repo.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
        repo
    }

    pub fn file(&mut self, name: &str, bytes: &[u8]) {
        self.files.insert(format!("{}{name}", self.dir), bytes.to_vec());
    }

    pub fn drop_file(&mut self, name: &str) {
        self.files.remove(&format!("{}{name}", self.dir)).unwrap();
    }

    /// The path of a descriptor's content, in the repository.
    pub fn path(descriptor: &Value) -> String {
        format!("blobs/{}", descriptor["digest"].as_str().unwrap().replace(':', "/"))
    }

    pub fn blob(&mut self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(self.algorithm, bytes);
        let descriptor =
            json!({"mediaType": media_type, "digest": digest.as_str(), "size": bytes.len()});
        self.file(&Repo::path(&descriptor), bytes);
        descriptor
    }

    pub fn json(&mut self, media_type: &str, value: &Value) -> Value {
        self.blob(media_type, value.to_string().as_bytes())
    }

    /// An image with a configuration and one layer, both made from `seed`.
    pub fn image(&mut self, seed: &str) -> Value {
        let body = self.image_body(seed);
        self.json(IMAGE, &body)
    }

    pub fn image_body(&mut self, seed: &str) -> Value {
        let config = json!({"architecture": "amd64", "os": "linux", "author": seed});
        let config = self.json(CONFIG, &config);
        let layer = self.blob(LAYER, format!("layer of {seed}\n").as_bytes());
        json!({"schemaVersion": 2, "mediaType": IMAGE, "config": config, "layers": [layer]})
    }

    pub fn index(&mut self, manifests: &[Value]) -> Value {
        let body = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
        self.json(INDEX, &body)
    }

    /// An artifact that refers to `subject`.
    pub fn signature(&mut self, subject: &Value) -> Value {
        let empty = self.blob("application/vnd.oci.empty.v1+json", b"{}");
        let body = json!({
            "schemaVersion": 2, "mediaType": IMAGE,
            "artifactType": "application/vnd.example.signature",
            "config": empty, "layers": [empty], "subject": subject,
            "annotations": {"org.example.signer": "alice"},
        });
        self.json(IMAGE, &body)
    }

    pub fn untagged(&mut self, descriptor: &Value) -> &mut Value {
        self.entries.push(descriptor.clone());
        self.entries.last_mut().unwrap()
    }

    pub fn tag(&mut self, descriptor: &Value, name: &str) -> &mut Value {
        let entry = self.untagged(descriptor);
        entry["annotations"] = json!({REF_NAME: name});
        entry
    }

    pub fn index_json(&self) -> Vec<u8> {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": self.entries});
        index.to_string().into_bytes()
    }

    /// The stamp of index.json as it would be written now.
    pub fn stamp(&self) -> Stamp {
        Stamp::of(&self.index_json())
    }

    /// With index.json.
    pub fn finish(mut self) -> Files {
        let index = self.index_json();
        self.file("index.json", &index);
        self.files
    }
}

/// A line of the journal; an empty `tag` is none.
pub fn line(
    what: &str,
    tag: &str,
    before: &Value,
    after: &Value,
    base: Stamp,
    to: Stamp,
) -> String {
    let mut line = json!({
        "time": "2026-11-24T01:02:03.123456Z", "who": "alice", "from": "192.0.2.1",
        "what": what, "before": before, "after": after,
        "base": base.to_string(), "stamp": to.to_string(),
    });
    if !tag.is_empty() {
        line["tag"] = json!(tag);
    }
    format!("{line}\n")
}
