//! Directories that change places between the look at their permissions and the deed.

use super::*;

/// Somebody who may do everything, let through to a repository as it is now.
fn let_through(f: &Fixture, name: &str) -> Actor {
    let repo = repo(name);
    let way = f.registry.way(&repo, true).unwrap();
    let account = Account::new(None, |_, _| true).having_seen(&repo, &way);
    Actor { who: Some("alice".into()), account, ..Actor::default() }
}

fn swap(f: &Fixture, one: &str, other: &str) {
    let [one, other, aside] = [one, other, "aside"].map(|name| f.path(name));
    std::fs::rename(&one, &aside).unwrap();
    std::fs::rename(&other, &one).unwrap();
    std::fs::rename(&aside, &other).unwrap();
}

#[tokio::test]
async fn what_takes_the_name_of_what_was_looked_at_is_not_read() {
    let f = fixture();
    let public = f.image("public", "1").await.unwrap().digest;
    f.image("private", "2").await.unwrap();
    let secret = f.blob("private", b"only there").await;
    let actor = let_through(&f, "public");
    let name = repo("public");
    f.registry.manifest(&name, &tag("1"), &actor.account).await.unwrap();
    swap(&f, "public", "private");

    let reader = &actor.account;
    let opened = f.registry.open_blob(&name, &secret, reader).await;
    assert!(matches!(opened, Err(Error::BlobUnknown { .. })), "{opened:?}");
    let looked = f.registry.stat_blob(&name, &secret, reader, None).await;
    assert!(matches!(looked, Err(Error::BlobUnknown { .. })), "{looked:?}");
    // What the look let through to is still open: that is read, or nothing.
    let read = f.registry.manifest(&name, &tag("2"), reader).await;
    assert!(matches!(read, Err(Error::ManifestUnknown { .. })), "{read:?}");
    assert_eq!(f.registry.manifest(&name, &tag("1"), reader).await.unwrap().digest, public);
    let tags = f.registry.tags(&name, None, 10, reader).await.unwrap();
    assert_eq!(tags.items.iter().map(Tag::as_str).collect::<Vec<_>>(), ["1"]);
    let referrers = f.registry.referrers(&name, &public, None, None, reader).await.unwrap();
    assert!(referrers.is_empty());
    let from = MountFrom::Repo(name.clone(), reader.clone());
    let mounted = f.registry.mount(&repo("mine"), &secret, from, &Actor::default()).await;
    assert!(!mounted.unwrap());

    swap(&f, "public", "private");
    f.registry.manifest(&name, &tag("1"), reader).await.unwrap();
}

#[tokio::test]
async fn what_takes_the_name_of_what_was_looked_at_is_not_written() {
    let f = fixture();
    f.image("mine", "1").await.unwrap();
    let theirs = f.image("theirs", "1").await.unwrap().digest;
    let blob = f.blob("theirs", b"unreferenced").await;
    let actor = let_through(&f, "mine");
    let name = repo("mine");
    swap(&f, "mine", "theirs");
    let before = std::fs::read(f.path("mine/index.json")).unwrap();

    for reference in [tag("1"), Reference::Digest(theirs)] {
        let deleted = f.registry.delete_manifest(&name, &reference, &actor).await;
        assert!(matches!(deleted, Err(Error::Moved(_))), "{deleted:?}");
    }
    let deleted = f.registry.delete_blob(&name, &blob, &actor).await;
    assert!(matches!(deleted, Err(Error::BlobUnknown { .. })), "{deleted:?}");
    let bytes = b"pushed";
    let put = f.registry.put_blob(&name, &actor, body(bytes), &sha256(bytes)).await;
    let replaced = |error: &Error| matches!(error, Error::Layout(layout::Error::Replaced { .. }));
    assert!(put.as_ref().is_err_and(replaced), "{put:?}");
    assert_eq!(std::fs::read(f.path("mine/index.json")).unwrap(), before);
    assert!(!f.blob_path("mine", &sha256(bytes)).exists());
}

#[tokio::test]
async fn a_repository_is_made_where_it_was_looked_at() {
    let f = fixture();
    for name in ["team", "other"] {
        std::fs::create_dir(f.path(name)).unwrap();
    }
    let (name, bytes) = (repo("team/new/app"), b"pushed");
    let actor = let_through(&f, "team/new/app");
    swap(&f, "team", "other");
    let put = f.registry.put_blob(&name, &actor, body(bytes), &sha256(bytes)).await;
    assert!(put.is_err(), "{put:?}");
    assert_eq!(std::fs::read_dir(f.path("team")).unwrap().count(), 0);

    swap(&f, "team", "other");
    f.registry.put_blob(&name, &actor, body(bytes), &sha256(bytes)).await.unwrap();
    // Of several first requests one makes it, and the others find it made.
    f.registry.put_blob(&name, &actor, body(b"2"), &sha256(b"2")).await.unwrap();
    // What was made since is judged by itself.
    let refused = Account::new(Some(4242), |_, _| false);
    let way = f.registry.way(&repo("team/none/app"), true).unwrap();
    std::fs::create_dir_all(f.path("team/none/app")).unwrap();
    let late = refused.having_seen(&repo("team/none/app"), &way);
    let late = Actor { account: late, ..Actor::default() };
    let put = f.registry.put_blob(&repo("team/none/app"), &late, body(b"3"), &sha256(b"3")).await;
    assert!(put.is_err(), "{put:?}");
    assert!(!f.path("team/none/app/blobs").exists());
}
