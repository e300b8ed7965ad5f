//! Others change the tree behind the server's back.

use super::*;
use crate::layout::lock;

#[tokio::test]
async fn an_unreadable_index_blocks_writes_and_is_never_overwritten() {
    let f = fixture();
    f.image("a", "one").await.unwrap();
    f.image("b", "two").await.unwrap();
    let index = f.path("a/index.json");
    std::fs::write(&index, "{ torn").unwrap();
    let past = std::time::SystemTime::now() - Duration::from_secs(60);
    std::fs::File::options().write(true).open(&index).unwrap().set_modified(past).unwrap();
    let refused = f.push("a", tag("x"), image(b"{}", b"one")).await.unwrap_err();
    assert!(refused.to_string().contains("a/index.json"), "{refused}");
    let refused =
        f.registry.manifest(&repo("a"), &tag("one"), &Account::default()).await.unwrap_err();
    assert!(matches!(refused, Error::Layout(layout::Error::Damaged { .. })), "{refused}");
    assert_eq!(std::fs::read_to_string(&index).unwrap(), "{ torn");
    assert_eq!(f.tags("b").await, ["two"]);
}

#[tokio::test]
async fn an_index_that_is_just_being_written_gives_readers_the_last_good_one() {
    let f = fixture();
    f.image("a", "one").await.unwrap();
    assert_eq!(f.tags("a").await, ["one"]);
    let good = std::fs::read(f.path("a/index.json")).unwrap();
    std::fs::write(f.path("a/index.json"), "").unwrap();
    assert_eq!(f.tags("a").await, ["one"]);
    let registry = f.registry.clone();
    let push = Push {
        reference: tag("two"),
        tags: vec![],
        content_type: None,
        bytes: image(b"{}", b"one"),
    };
    let waiting =
        tokio::spawn(
            async move { registry.put_manifest(&repo("a"), push, &Actor::default()).await },
        );
    std::fs::write(f.path("a/index.json"), good).unwrap();
    waiting.await.unwrap().unwrap();
    assert_eq!(f.tags("a").await, ["one", "two"]);
}

#[tokio::test]
async fn a_directory_that_is_moved_under_a_commit_is_a_conflict() {
    let f = fixture();
    f.image("a", "one").await.unwrap();
    let dir = f.registry.inner.tree.repository(&repo("a")).unwrap().unwrap();
    let held = lock::repository(&dir).unwrap();
    let registry = f.registry.clone();
    let push = Push {
        reference: tag("two"),
        tags: vec![],
        content_type: None,
        bytes: image(b"{}", b"one"),
    };
    let push =
        tokio::spawn(
            async move { registry.put_manifest(&repo("a"), push, &Actor::default()).await },
        );
    while !held.awaited() {
        tokio::task::yield_now().await;
    }
    std::fs::rename(f.path("a"), f.path("elsewhere")).unwrap();
    std::fs::create_dir(f.path("a")).unwrap();
    held.release();
    assert!(matches!(push.await.unwrap(), Err(Error::Moved(_))));
}

#[tokio::test]
async fn a_layout_that_was_dropped_in_is_served_and_adopted() {
    let f = fixture();
    let manifest = image(b"{}", b"layer");
    let digest = sha256(&manifest);
    let blobs = f.path("x/y/blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    for bytes in [&b"{}"[..], b"layer", &manifest] {
        std::fs::write(blobs.join(sha256(bytes).hex()), bytes).unwrap();
    }
    std::fs::write(f.path("x/y/oci-layout"), path::OCI_LAYOUT_BYTES).unwrap();
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{}","digest":"{digest}","size":{},"annotations":{{"org.opencontainers.image.ref.name":"docker.io/lib/app:3.1"}}}}]}}"#,
        Kind::OciImage.media_type(),
        manifest.len()
    );
    std::fs::write(f.path("x/y/index.json"), index).unwrap();
    let served = f.registry.manifest(&repo("x/y"), &tag("3.1"), &Account::default()).await.unwrap();
    assert_eq!(served.bytes, manifest);
    f.push("x/y", tag("mine"), manifest).await.unwrap();
    let meta = std::fs::metadata(f.blob_path("x/y", &sha256(b"layer"))).unwrap();
    use std::os::unix::fs::MetadataExt;
    assert_eq!((meta.mode() & 0o777, meta.nlink()), (0o444, 2), "ours, and in the pool");
    let from = MountFrom::Anywhere(Arc::new(|_| Ok(Some(Account::default()))));
    let layer = sha256(b"layer");
    assert!(f.registry.mount(&repo("z"), &layer, from, &Actor::default()).await.unwrap());
}

#[tokio::test]
async fn a_planted_blob_of_the_right_length_counts_as_absent() {
    let f = fixture();
    f.blob("a", b"{}").await;
    let digest = sha256(b"layer");
    std::fs::write(f.blob_path("a", &digest), b"LAYER").unwrap();
    let refused = f.push("a", tag("t"), image(b"{}", b"layer")).await.unwrap_err();
    assert!(matches!(refused, Error::ManifestBlobUnknown(_)), "{refused}");
    f.image("a", "layer").await.unwrap();
    assert_eq!(std::fs::read(f.blob_path("a", &digest)).unwrap(), b"layer");
}

/// As skopeo does with a manifest that is there already.
#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_is_just_written_anew_is_read_again() {
    let f = fixture();
    f.image("a", "one").await.unwrap();
    let bytes = image(b"{}", b"one");
    let path = f.blob_path("a", &sha256(&bytes));
    let done = std::sync::atomic::AtomicBool::new(false);
    let torn = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                std::fs::write(&path, b"").unwrap();
                std::thread::yield_now();
                std::fs::write(&path, &bytes).unwrap();
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let handle = tokio::runtime::Handle::current();
        let get =
            || handle.block_on(f.registry.manifest(&repo("a"), &tag("one"), &Account::default()));
        let torn = tokio::task::block_in_place(|| (0..300).find_map(|_| get().err()));
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        torn
    });
    assert!(torn.is_none(), "{torn:?}");
}

#[tokio::test]
async fn referrers_survive_the_loss_of_all_that_is_derived() {
    let f = fixture();
    f.image("a", "subject").await.unwrap();
    let subject = sha256(&image(b"{}", b"subject"));
    let referrer = format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","artifactType":"x/y","config":{{"mediaType":"e","digest":"{}","size":2}},"layers":[],"subject":{{"mediaType":"m","digest":"{subject}","size":1}},"annotations":{{"k":"v"}}}}"#,
        Kind::OciImage.media_type(),
        sha256(b"{}"),
    );
    let digest = sha256(referrer.as_bytes());
    let by = Reference::Digest(digest.clone());
    let pushed = f.push("a", by.clone(), referrer.into()).await.unwrap();
    assert_eq!(pushed.subject.as_ref(), Some(&subject));
    for lost in ["", "a/_referrers"] {
        if !lost.is_empty() {
            std::fs::remove_dir_all(f.path(lost)).unwrap();
        }
        let found = f
            .reopened()
            .referrers(&repo("a"), &subject, Some("x/y"), None, &Account::default())
            .await
            .unwrap();
        assert_eq!(found.len(), 1, "without {lost:?}");
        assert_eq!(found[0].annotations["k"], "v");
        assert!(
            f.registry
                .referrers(&repo("a"), &subject, Some("z"), None, &Account::default())
                .await
                .unwrap()
                .is_empty()
        );
    }
    // Written down again by who gets the lock without waiting: a program that another test starts
    // has our descriptors, and with them the lock of our last commit, until its exec.
    let begun = std::time::Instant::now();
    while !f.path("a/_referrers/facts.jsonl").exists() {
        assert!(begun.elapsed() < Duration::from_secs(10), "nobody writes facts down");
        f.reopened()
            .referrers(&repo("a"), &subject, None, None, &Account::default())
            .await
            .unwrap();
    }
    f.registry.delete_manifest(&repo("a"), &by, &Actor::default()).await.unwrap();
    assert!(
        f.registry
            .referrers(&repo("a"), &subject, None, None, &Account::default())
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn content_that_no_index_names_is_no_manifest() {
    let f = fixture();
    let loose = image(b"{}", b"x");
    f.blob("a", &loose).await;
    f.image("a", "t").await.unwrap();
    let by = Reference::Digest(sha256(&loose));
    let refused = f.registry.manifest(&repo("a"), &by, &Account::default()).await.unwrap_err();
    assert!(matches!(refused, Error::ManifestUnknown { .. }));
    // An index that contains it makes it one.
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{}","digest":"{}","size":{}}}]}}"#,
        Kind::OciImage.media_type(),
        sha256(&loose),
        loose.len()
    );
    let push = Push {
        reference: tag("list"),
        tags: vec![],
        content_type: Some(Kind::OciIndex.media_type().into()),
        bytes: index.into(),
    };
    f.registry.put_manifest(&repo("a"), push, &Actor::default()).await.unwrap();
    assert_eq!(
        f.registry.manifest(&repo("a"), &by, &Account::default()).await.unwrap().bytes,
        loose
    );
}

#[tokio::test]
async fn a_pooled_inode_that_was_made_writable_is_replaced_and_nobody_is_stopped() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let f = fixture();
    f.image("a", "layer").await.unwrap();
    let layer = sha256(b"layer");
    let inode = |name: &str| std::fs::metadata(f.blob_path(name, &layer)).unwrap().ino();
    let before = inode("a");
    std::fs::set_permissions(f.blob_path("a", &layer), PermissionsExt::from_mode(0o644)).unwrap();
    f.image("b", "layer").await.unwrap();
    assert_ne!(inode("b"), before, "an inode that may change is not shared any further");
    f.push("a", tag("again"), image(b"{}", b"layer")).await.unwrap();
    assert_eq!(inode("a"), inode("b"));
    std::fs::set_permissions(f.blob_path("a", &layer), PermissionsExt::from_mode(0o644)).unwrap();
    let from = MountFrom::Repo(repo("a"), Account::default());
    assert!(f.registry.mount(&repo("c"), &layer, from, &Actor::default()).await.unwrap());
    assert_ne!(inode("c"), inode("a"));
    assert_eq!(std::fs::metadata(f.blob_path("c", &layer)).unwrap().mode() & 0o777, 0o444);
}

#[tokio::test]
async fn files_that_were_restored_are_hashed_before_a_manifest_relies_on_them() {
    use std::os::unix::fs::PermissionsExt;
    let f = fixture();
    f.image("a", "layer").await.unwrap();
    let layer = sha256(b"layer");
    // As cp -a by the server's own account leaves it: read-only, ours, and never hashed.
    let restore = |bytes: &[u8]| {
        let path = f.blob_path("a", &layer);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o444)).unwrap();
    };
    restore(b"LAYER");
    let refused = f.push("a", tag("bad"), image(b"{}", b"layer")).await.unwrap_err();
    assert!(matches!(refused, Error::ManifestBlobUnknown(_)), "{refused}");
    restore(b"layer");
    f.push("a", tag("good"), image(b"{}", b"layer")).await.unwrap();
}

#[tokio::test]
async fn an_index_that_is_touched_again_and_again_does_not_hold_a_request_for_ever() {
    let f = fixture();
    std::fs::create_dir(f.path("a")).unwrap();
    let index = f.path("a/index.json");
    std::fs::write(&index, "{").unwrap();
    let registry = f.registry.clone();
    let asking =
        tokio::spawn(async move { registry.tags(&repo("a"), None, 1, &Account::default()).await });
    while !asking.is_finished() {
        let now = std::time::SystemTime::now();
        std::fs::File::options().write(true).open(&index).unwrap().set_modified(now).unwrap();
        tokio::task::yield_now().await;
    }
    assert!(matches!(asking.await.unwrap(), Err(Error::Layout(_))));
}
