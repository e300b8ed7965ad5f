//! The deeds on a real tree, without a wire.

mod commits;
mod facts;
mod kinds;
mod limits;
mod outsiders;
mod planted;
mod sessions;
mod sources;
mod swapped;
mod views;

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;

use super::*;
use crate::layout::path;
use crate::oci::{Algorithm, Digest, Kind, Reference, Tag};

/// A registry on a directory of its own.
struct Fixture {
    temp: tempfile::TempDir,
    registry: Registry,
}

fn fixture() -> Fixture {
    on(Arc::new(RealDisk))
}

fn on(disk: Arc<dyn Disk>) -> Fixture {
    let temp = tempfile::tempdir().unwrap();
    // As a server makes ROOT.
    chmod(temp.path(), 0o755);
    let registry = Registry::open_on(temp.path(), Settings::default(), disk).unwrap();
    Fixture { temp, registry }
}

fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

fn repo(name: &str) -> RepoName {
    RepoName::parse(name).unwrap()
}

fn tag(text: &str) -> Reference {
    Reference::Tag(Tag::parse(text).unwrap())
}

fn sha256(bytes: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, bytes)
}

fn body(bytes: &[u8]) -> impl futures_util::Stream<Item = std::io::Result<Bytes>> + Send + Unpin {
    stream::iter(vec![Ok(Bytes::copy_from_slice(bytes))])
}

fn image(config: &[u8], layer: &[u8]) -> Bytes {
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","config":{{"mediaType":"c","digest":"{}","size":{}}},"layers":[{{"mediaType":"l","digest":"{}","size":{}}}]}}"#,
        Kind::OciImage.media_type(),
        sha256(config),
        config.len(),
        sha256(layer),
        layer.len()
    )
    .into()
}

impl Fixture {
    async fn blob(&self, name: &str, bytes: &[u8]) -> Digest {
        let digest = sha256(bytes);
        let actor = Actor::default();
        self.registry.put_blob(&repo(name), &actor, body(bytes), &digest).await.unwrap();
        digest
    }

    async fn push(&self, name: &str, reference: Reference, bytes: Bytes) -> Result<Pushed> {
        let push = Push { reference, tags: Vec::new(), content_type: None, bytes };
        self.registry.put_manifest(&repo(name), push, &Actor::default()).await
    }

    /// An image with a layer of its own.
    async fn image(&self, name: &str, text: &str) -> Result<Pushed> {
        self.blob(name, b"{}").await;
        self.blob(name, text.as_bytes()).await;
        self.push(name, tag(text), image(b"{}", text.as_bytes())).await
    }

    async fn tags(&self, name: &str) -> Vec<String> {
        let page =
            self.registry.tags(&repo(name), None, 10_000, &Account::default()).await.unwrap();
        page.items.iter().map(Tag::to_string).collect()
    }

    fn path(&self, relative: &str) -> PathBuf {
        self.temp.path().join(relative)
    }

    fn blob_path(&self, name: &str, digest: &Digest) -> PathBuf {
        self.path(name).join(path::blob(digest))
    }

    /// The same tree, as after a restart.
    fn reopened(&self) -> Registry {
        Registry::open(self.temp.path(), Settings::default()).unwrap()
    }
}
