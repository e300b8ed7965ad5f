//! Pushing made images into a registry in this process.

use bytes::Bytes;
use futures_util::stream;
use stillage::oci::{Digest, Reference, RepoName, Tag};
use stillage::registry::{Actor, Push, Registry};

use super::repo::Repo;

/// Pushes the image that is made from a seed under one tag and more. Gives its digest, and those of
/// its blobs.
pub async fn image(
    registry: &Registry,
    repo: &RepoName,
    seed: &str,
    tags: &[&str],
) -> (Digest, Vec<Digest>) {
    let actor = Actor::default();
    let mut made = Repo::new("");
    let image = made.image(seed);
    let digest = Digest::parse(image["digest"].as_str().unwrap()).unwrap();
    let mut blobs = Vec::new();
    for (name, bytes) in &made.files {
        let Some(hex) = name.strip_prefix("blobs/sha256/") else { continue };
        let blob = Digest::parse(&format!("sha256:{hex}")).unwrap();
        if blob != digest {
            let body = stream::iter([Ok(Bytes::from(bytes.clone()))]);
            registry.put_blob(repo, &actor, body, &blob).await.unwrap();
            blobs.push(blob);
        }
    }
    let (first, more) = tags.split_first().unwrap();
    let push = Push {
        reference: Reference::Tag(Tag::parse(first).unwrap()),
        tags: more.iter().map(|tag| Tag::parse(tag).unwrap()).collect(),
        content_type: None,
        bytes: made.files[&Repo::path(&image)].clone().into(),
    };
    registry.put_manifest(repo, push, &actor).await.unwrap();
    (digest, blobs)
}
