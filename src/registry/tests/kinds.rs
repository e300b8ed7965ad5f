//! One content, one meaning: what a manifest is called, and what is no manifest at all.

use super::*;

fn untyped(config: &[u8], layer: &[u8]) -> Bytes {
    let text = String::from_utf8(image(config, layer).to_vec()).unwrap();
    let media_type = format!(r#""mediaType":"{}","#, Kind::OciImage.media_type());
    text.replacen(&media_type, "", 1).into()
}

impl Fixture {
    async fn push_as(&self, reference: Reference, kind: Kind, bytes: Bytes) -> Result<Pushed> {
        let content_type = Some(kind.media_type().to_owned());
        let push = Push { reference, tags: Vec::new(), content_type, bytes };
        self.registry.put_manifest(&repo("a"), push, &Actor::default()).await
    }

    async fn delete(&self, digest: &Digest) -> Result<()> {
        self.registry.delete_blob(&repo("a"), digest, &Actor::default()).await
    }
}

#[tokio::test]
async fn one_body_does_not_get_two_types() {
    let f = fixture();
    f.blob("a", b"{}").await;
    let layer = f.blob("a", b"layer").await;
    let body = untyped(b"{}", b"layer");
    f.push_as(tag("one"), Kind::OciImage, body.clone()).await.unwrap();
    let refused = f.push_as(tag("two"), Kind::DockerImage, body.clone()).await.unwrap_err();
    assert!(matches!(refused, Error::Manifest(_)), "{refused}");
    for kind in [Kind::OciImage, Kind::DockerImage] {
        assert!(refused.to_string().contains(kind.media_type()), "{refused}");
    }
    assert_eq!(f.tags("a").await, ["one"]);
    f.push_as(tag("two"), Kind::OciImage, body).await.unwrap();
    assert_eq!(f.tags("a").await, ["one", "two"]);
    assert!(matches!(f.delete(&layer).await, Err(Error::BlobInUse { .. })));
}

#[tokio::test]
async fn a_blob_that_an_index_lists_is_not_read_as_a_manifest() {
    let f = fixture();
    f.image("a", "layer").await.unwrap();
    let cached = f.blob("a", b"a layer of a cache, and no manifest").await;
    let nameless = f.blob("a", b"said to be nothing at all").await;
    let free = f.blob("a", b"free").await;
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.buildkit.layer","digest":"{cached}","size":35}},{{"digest":"{nameless}","size":25}}]}}"#
    );
    f.push_as(tag("cache"), Kind::OciIndex, index.into()).await.unwrap();
    // Another tool lists a blob in index.json itself, and a manifest without its type.
    f.blob("a", b"config").await;
    let old = f.blob("a", &untyped(b"config", b"layer")).await;
    let text = std::fs::read_to_string(f.path("a/index.json")).unwrap();
    let more = format!(
        r#""manifests":[{{"mediaType":"x/y","digest":"{cached}","size":35}},{{"digest":"{old}","size":1}},"#
    );
    std::fs::write(f.path("a/index.json"), text.replacen(r#""manifests":["#, &more, 1)).unwrap();
    f.delete(&free).await.unwrap();
    for used in [&cached, &nameless, &old, &sha256(b"config")] {
        assert!(matches!(f.delete(used).await, Err(Error::BlobInUse { .. })), "{used}");
    }
}

#[tokio::test]
async fn a_damaged_manifest_might_refer_to_anything() {
    let f = fixture();
    let pushed = f.image("a", "layer").await.unwrap();
    let free = f.blob("a", b"free").await;
    let path = f.blob_path("a", &pushed.digest);
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "{}").unwrap();
    let refused = f.delete(&free).await.unwrap_err();
    assert!(matches!(refused, Error::Layout(layout::Error::Damaged { .. })), "{refused}");
}

#[tokio::test]
async fn a_sparse_push_takes_a_planted_file_for_absent() {
    let temp = tempfile::tempdir().unwrap();
    let registry =
        Registry::open(temp.path(), Settings { allow_sparse: true, ..Settings::default() })
            .unwrap();
    let f = Fixture { temp, registry };
    f.blob("a", b"{}").await;
    let layer = f.blob_path("a", &sha256(b"layer"));
    std::fs::write(&layer, b"LAYER").unwrap();
    f.push("a", tag("t"), image(b"{}", b"layer")).await.unwrap();
    assert_eq!(f.tags("a").await, ["t"]);
    assert_eq!(std::fs::read(&layer).unwrap(), b"LAYER");
}
