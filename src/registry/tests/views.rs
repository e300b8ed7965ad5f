//! Views for plain web servers: they follow every commit, and whatever others did.

use std::fs;

use super::*;

#[path = "../../../tests/support/views.rs"]
mod expected;

use expected::assert_right;

impl Fixture {
    fn right(&self, name: &str) {
        assert_right(self.temp.path(), name);
    }
}

fn index_of(children: &[(Digest, usize)]) -> Bytes {
    let children = children.iter().map(|(digest, size)| (Kind::OciImage, digest, *size));
    index_of_kinds(children)
}

fn index_of_kinds<'a>(children: impl IntoIterator<Item = (Kind, &'a Digest, usize)>) -> Bytes {
    let list: Vec<String> = children
        .into_iter()
        .map(|(kind, digest, size)| {
            let media_type = kind.media_type();
            format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{size}}}"#)
        })
        .collect();
    let own = Kind::OciIndex.media_type();
    format!(r#"{{"schemaVersion":2,"mediaType":"{own}","manifests":[{}]}}"#, list.join(",")).into()
}

fn signature(subject: &Digest, note: &str) -> Bytes {
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","artifactType":"x/y","config":{{"mediaType":"e","digest":"{}","size":2}},"layers":[],"subject":{{"mediaType":"m","digest":"{subject}","size":1}},"annotations":{{"k":"{note}"}}}}"#,
        Kind::OciImage.media_type(),
        sha256(b"{}"),
    )
    .into()
}

#[tokio::test]
async fn views_follow_every_commit() {
    let f = fixture();
    f.image("a/b", "one").await.unwrap();
    f.right("a/b");
    assert_eq!(
        fs::read_link(f.path("a/b/_manifests/one.oci-image")).unwrap(),
        PathBuf::from("..").join(path::blob(&sha256(&image(b"{}", b"one"))))
    );
    // Another kind under the same tag: the old one goes.
    let one = image(b"{}", b"one");
    let index = index_of(&[(sha256(&one), one.len())]);
    f.push("a/b", tag("one"), index.clone()).await.unwrap();
    f.right("a/b");
    assert!(!f.path("a/b/_manifests/one.oci-image").is_symlink());
    // Children that have no entry of their own.
    f.registry
        .delete_manifest(&repo("a/b"), &Reference::Digest(sha256(&one)), &Actor::default())
        .await
        .unwrap();
    f.right("a/b");
    let child = format!("a/b/_manifests/sha256/{}.oci-image", sha256(&one).hex());
    assert!(f.path(&child).is_symlink());
    // Referrers, of what is there and of what is not.
    let other = sha256(b"nothing");
    for (subject, note) in [(sha256(&index), "1"), (sha256(&index), "2"), (other, "3")] {
        let bytes = signature(&subject, note);
        let by = Reference::Digest(sha256(&bytes));
        f.push("a/b", by.clone(), bytes).await.unwrap();
        f.right("a/b");
        if note == "2" {
            f.registry.delete_manifest(&repo("a/b"), &by, &Actor::default()).await.unwrap();
            f.right("a/b");
        }
    }
    f.registry.delete_manifest(&repo("a/b"), &tag("one"), &Actor::default()).await.unwrap();
    f.right("a/b");
    let by = Reference::Digest(sha256(&index));
    f.registry.delete_manifest(&repo("a/b"), &by, &Actor::default()).await.unwrap();
    f.right("a/b");
    assert!(!f.path(&child).is_symlink());
}

/// Whatever goes with a deletion goes, and nobody looks at the rest: what is wrong there stays so.
#[tokio::test]
async fn a_deletion_takes_its_own_views_and_no_others() {
    let f = fixture();
    f.image("a", "stays").await.unwrap();
    let delete = async |digest: &Digest| {
        let by = Reference::Digest(digest.clone());
        f.registry.delete_manifest(&repo("a"), &by, &Actor::default()).await.unwrap();
    };
    let one = image(b"{}", b"one");
    let signed = signature(&sha256(&one), "inside");
    let inner = index_of(&[(sha256(&one), one.len()), (sha256(&signed), signed.len())]);
    let outer = index_of_kinds([
        (Kind::OciIndex, &sha256(&inner), inner.len()),
        (Kind::OciImage, &sha256(&one), one.len()),
    ]);
    for round in 0..2 {
        f.image("a", "one").await.unwrap();
        f.push("a", Reference::Digest(sha256(&signed)), signed.clone()).await.unwrap();
        f.push("a", tag("inner"), inner.clone()).await.unwrap();
        f.push("a", tag("outer"), outer.clone()).await.unwrap();
        f.right("a");
        // The first deletion goes over everything; from then on a renewal would show.
        delete(&sha256(&signed)).await;
        f.right("a");
        let planted = f.path("a/_manifests/planted.oci-image");
        std::os::unix::fs::symlink("nowhere", &planted).unwrap();
        let right = || {
            fs::remove_file(&planted).unwrap();
            f.right("a");
            std::os::unix::fs::symlink("nowhere", &planted).unwrap();
        };
        let order = match round {
            0 => [&one, &inner, &outer],
            _ => [&outer, &one, &inner],
        };
        for gone in order {
            delete(&sha256(gone)).await;
            right();
        }
        fs::remove_file(&planted).unwrap();
        let list = format!("a/_referrers/sha256/{}.json", sha256(&one).hex());
        assert!(!f.path(&list).exists());
        assert_eq!(f.tags("a").await, ["stays"]);
    }
}

/// An index brings manifests that nobody put there as manifests: what they refer to is listed.
#[tokio::test]
async fn what_an_index_contains_refers_too() {
    let f = fixture();
    f.image("a", "one").await.unwrap();
    let signed = signature(&sha256(&image(b"{}", b"one")), "inside");
    f.blob("a", &signed).await;
    let outer = index_of(&[(sha256(&signed), signed.len())]);
    f.push("a", tag("all"), outer).await.unwrap();
    f.right("a");
    let list = format!("a/_referrers/sha256/{}.json", sha256(&image(b"{}", b"one")).hex());
    assert!(fs::read_to_string(f.path(&list)).unwrap().contains(sha256(&signed).hex()));
}

#[tokio::test]
async fn views_of_what_others_did_are_renewed_when_the_repository_is_opened() {
    let f = fixture();
    f.image("a", "one").await.unwrap();
    f.image("a", "two").await.unwrap();
    let open = async |registry: &Registry, name: &str| {
        registry.tags(&repo(name), None, 10, &Account::default()).await.unwrap();
        registry.renew_views().await;
    };
    // Moved: the list of tags has the name in it.
    fs::rename(f.path("a"), f.path("b")).unwrap();
    open(&f.registry, "b").await;
    f.right("b");
    // Copied.
    let mut copy = std::process::Command::new("cp");
    assert!(copy.arg("-a").arg(f.path("b")).arg(f.path("c")).status().unwrap().success());
    open(&f.registry, "c").await;
    f.right("c");
    // Written by another tool.
    let text = fs::read_to_string(f.path("c/index.json")).unwrap();
    fs::write(f.path("c/index.json"), text.replace(r#""two""#, r#""docker.io/x/y:three""#))
        .unwrap();
    open(&f.registry, "c").await;
    f.right("c");
    assert!(f.path("c/_manifests/three.oci-image").is_symlink());
    // Taken away, as a whole and in part, and lied about: whoever opens it first compares.
    for lost in ["c/_manifests", "c/_tags.json", "c/_manifests/three.oci-image"] {
        let path = f.path(lost);
        let removed =
            if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.unwrap();
        open(&f.reopened(), "c").await;
        f.right("c");
    }
    std::os::unix::fs::symlink("../index.json", f.path("c/_manifests/evil.oci-image")).unwrap();
    fs::write(f.path("c/_tags.json"), "{}").unwrap();
    // What is no view is left alone.
    fs::write(f.path("c/_manifests/README"), "mine").unwrap();
    open(&f.reopened(), "c").await;
    f.right("c");
    assert_eq!(fs::read_to_string(f.path("c/_manifests/README")).unwrap(), "mine");
    // And the next commit goes on from there.
    f.image("c", "four").await.unwrap();
    f.right("c");
}

#[tokio::test]
async fn a_push_after_another_tool_makes_all_views() {
    let f = fixture();
    f.image("a", "one").await.unwrap();
    f.image("a", "two").await.unwrap();
    let text = fs::read_to_string(f.path("a/index.json")).unwrap();
    fs::write(f.path("a/index.json"), text.replace(r#""two""#, r#""three""#)).unwrap();
    f.image("a", "four").await.unwrap();
    f.right("a");
    assert_eq!(f.tags("a").await, ["four", "one", "three"]);
}

#[tokio::test]
async fn without_views_there_are_none_and_old_ones_go() {
    let f = fixture();
    f.image("a", "one").await.unwrap();
    fs::write(f.path("a/_manifests/README"), "mine").unwrap();
    let settings = Settings { views: Views::None, ..Settings::default() };
    let without =
        Fixture { registry: Registry::open(f.temp.path(), settings).unwrap(), temp: f.temp };
    without.image("a", "two").await.unwrap();
    without.image("b", "one").await.unwrap();
    without.registry.renew_views().await;
    assert!(!without.path("b/_manifests").exists() && !without.path("b/_tags.json").exists());
    assert!(!without.path("a/_tags.json").exists());
    let left: Vec<_> = fs::read_dir(without.path("a/_manifests")).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(without.tags("a").await, ["one", "two"]);
}

#[tokio::test]
async fn what_is_not_for_everybody_has_no_views() {
    use std::os::unix::fs::PermissionsExt as _;
    let f = fixture();
    f.image("a", "one").await.unwrap();
    let index = f.path("a/index.json");
    std::os::unix::fs::chown(&index, Some(4711), Some(4711)).unwrap();
    fs::set_permissions(&index, fs::Permissions::from_mode(0o600)).unwrap();
    let opened = f.reopened();
    opened.tags(&repo("a"), None, 10, &Account::default()).await.unwrap();
    opened.renew_views().await;
    assert!(!f.path("a/_tags.json").exists());
    assert!(!f.path("a/_manifests/one.oci-image").is_symlink());
}
