//! Commits: shared, durable, and honest when the disk fails.

use std::collections::HashSet;
use std::fs::File;
use std::sync::Mutex;

use rustix::fs::Mode;

use super::*;
use crate::layout::journal::Record;
use crate::layout::{At, Dir, Stamp, lock};

/// The real disk, on which chosen operations fail as a broken device makes them fail.
#[derive(Debug, Default)]
struct Failing {
    /// Names of operations that fail from now on.
    broken: Mutex<HashSet<&'static str>>,
    log: Mutex<Vec<String>>,
}

impl Failing {
    fn set(&self, broken: &[&'static str]) {
        *self.broken.lock().unwrap() = broken.iter().copied().collect();
    }

    fn check(&self, operation: &'static str, what: &str) -> std::io::Result<()> {
        self.log.lock().unwrap().push(format!("{operation} {what}"));
        if self.broken.lock().unwrap().contains(operation) {
            return Err(rustix::io::Errno::IO.into());
        }
        Ok(())
    }

    fn name(dir: &Dir) -> String {
        dir.path().file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

impl Disk for Failing {
    fn make_dir(&self, dir: &Dir, name: &str, mode: Mode) -> layout::Result<()> {
        RealDisk.make_dir(dir, name, mode)
    }
    fn create(&self, dir: &Dir, name: &str, mode: Mode) -> layout::Result<File> {
        RealDisk.create(dir, name, mode)
    }
    fn create_unnamed(&self, dir: &Dir, mode: Mode) -> layout::Result<File> {
        RealDisk.create_unnamed(dir, mode)
    }
    fn open_append(&self, dir: &Dir, name: &str, mode: Mode) -> layout::Result<(File, bool)> {
        RealDisk.open_append(dir, name, mode)
    }
    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        RealDisk.write(file, bytes, offset)
    }
    fn set_len(&self, file: &File, len: u64) -> std::io::Result<()> {
        RealDisk.set_len(file, len)
    }
    fn clone_content(&self, from: &File, to: &File) -> std::io::Result<()> {
        RealDisk.clone_content(from, to)
    }
    fn sync(&self, file: &File) -> std::io::Result<()> {
        self.check("sync", "")?;
        RealDisk.sync(file)
    }
    fn sync_dir(&self, dir: &Dir) -> layout::Result<()> {
        let operation =
            if dir.path().join("index.json").exists() { "sync_repo" } else { "sync_dir" };
        self.check(operation, &Failing::name(dir)).at(|| dir.path().to_owned())?;
        RealDisk.sync_dir(dir)
    }
    fn rename(&self, from: &Dir, old: &str, to: &Dir, new: &str) -> layout::Result<()> {
        self.check("rename", new).at(|| to.at(new))?;
        RealDisk.rename(from, old, to, new)
    }
    fn rename_new(&self, from: &Dir, old: &str, to: &Dir, new: &str) -> layout::Result<()> {
        RealDisk.rename_new(from, old, to, new)
    }
    fn link(&self, from: &Dir, old: &str, to: &Dir, new: &str) -> layout::Result<()> {
        RealDisk.link(from, old, to, new)
    }
    fn link_file(&self, file: &File, to: &Dir, new: &str) -> layout::Result<()> {
        RealDisk.link_file(file, to, new)
    }
    fn unlink(&self, dir: &Dir, name: &str) -> layout::Result<()> {
        RealDisk.unlink(dir, name)
    }
    fn remove_dir(&self, dir: &Dir, name: &str) -> layout::Result<()> {
        RealDisk.remove_dir(dir, name)
    }
    fn symlink(&self, target: &std::ffi::CStr, dir: &Dir, name: &str) -> layout::Result<()> {
        RealDisk.symlink(target, dir, name)
    }
    fn sync_all(&self, dir: &Dir) -> layout::Result<()> {
        self.check("sync_all", &Failing::name(dir)).at(|| dir.path().to_owned())?;
        RealDisk.sync_all(dir)
    }
}

fn journal(fixture: &Fixture, name: &str) -> Vec<Record> {
    let text = std::fs::read_to_string(fixture.path(name).join("_log.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_pushes_share_commits_and_lose_nothing() {
    let f = fixture();
    f.image("a", "first").await.unwrap();
    let layer = b"first";
    // Whoever holds the lock makes the pushes gather.
    let held =
        lock::repository(&f.registry.inner.tree.repository(&repo("a")).unwrap().unwrap()).unwrap();
    let pushes = (0..64).map(|n| {
        let registry = f.registry.clone();
        let reference = tag(&format!("t{n:02}"));
        tokio::spawn(async move {
            let push =
                Push { reference, tags: vec![], content_type: None, bytes: image(b"{}", layer) };
            registry.put_manifest(&repo("a"), push, &Actor::default()).await
        })
    });
    let pushes: Vec<_> = pushes.collect();
    let queue = f.registry.inner.queue(&repo("a"));
    while queue.waiting() < 64 {
        tokio::task::yield_now().await;
    }
    held.release();
    for push in pushes {
        push.await.unwrap().unwrap();
    }
    assert_eq!(f.tags("a").await.len(), 65);
    let stamps: HashSet<Stamp> = journal(&f, "a").iter().map(|record| record.stamp).collect();
    assert_eq!(stamps.len(), 2, "64 pushes that wait together are one commit");
}

#[tokio::test]
async fn the_journal_chains_commits_and_ends_with_the_index() {
    let f = fixture();
    f.image("a", "one").await.unwrap();
    f.image("a", "two").await.unwrap();
    f.registry.delete_manifest(&repo("a"), &tag("one"), &Actor::default()).await.unwrap();
    let records = journal(&f, "a");
    let whats: Vec<_> = records.iter().map(|record| format!("{:?}", record.what)).collect();
    assert_eq!(whats, ["Push", "Tag", "Push", "Tag", "Untag"]);
    assert_eq!(records[0].base, Stamp::nothing());
    assert_eq!(records[2].base, records[1].stamp);
    let index = std::fs::read(f.path("a/index.json")).unwrap();
    assert_eq!(records[4].stamp, Stamp::of(&index));
    assert!(records[4].before.is_some() && records[4].after.is_none());
}

#[tokio::test]
async fn steps_come_in_the_order_that_a_crash_forgives() {
    let disk = Arc::new(Failing::default());
    let f = on(disk.clone());
    f.blob("new/repo", b"{}").await;
    f.blob("new/repo", b"layer").await;
    disk.log.lock().unwrap().clear();
    f.push("new/repo", tag("t"), image(b"{}", b"layer")).await.unwrap();
    let log = disk.log.lock().unwrap().clone();
    let at = |step: &str| {
        log.iter().position(|line| line == step).unwrap_or_else(|| panic!("{step}: {log:?}"))
    };
    let root = Failing::name(&f.registry.inner.tree.root);
    let commit = at("rename index.json");
    for before in ["sync ", "sync_dir sha256", "sync_dir blobs", "sync_dir new"] {
        assert!(at(before) < commit, "{before}: {log:?}");
    }
    assert!(at(&format!("sync_dir {root}")) < commit);
    // An index.json must not outlive `oci-layout`, the journal and `blobs` beside it.
    let own = log[..commit].iter().rposition(|line| line == "sync_dir repo");
    assert!(own.is_some_and(|own| at("rename oci-layout") < own), "{log:?}");
    assert_eq!(at("sync_repo repo"), commit + 1, "{log:?}");
    // The names of the directories are durable by now: only what changed is synced again.
    disk.log.lock().unwrap().clear();
    f.push("new/repo", tag("u"), image(b"{}", b"layer")).await.unwrap();
    let log = disk.log.lock().unwrap().clone();
    assert_eq!(
        log,
        [
            "sync ",
            "sync_dir sha256",
            "sync ",
            "rename index.json",
            "sync_repo repo",
            "rename _tags.json"
        ],
        "journal, blobs' names, index.json, its name; of the views nothing"
    );
    // An upload that makes a directory leaves its name to the next commit.
    disk.log.lock().unwrap().clear();
    let digest = Digest::of(Algorithm::Sha512, b"late");
    let actor = Actor::default();
    f.registry.put_blob(&repo("new/repo"), &actor, body(b"late"), &digest).await.unwrap();
    assert_eq!(*disk.log.lock().unwrap(), ["sync "]);
    disk.log.lock().unwrap().clear();
    f.push("new/repo", tag("v"), image(b"{}", b"layer")).await.unwrap();
    let log = disk.log.lock().unwrap().clone();
    let at = |step: &str| log.iter().position(|line| line == step);
    for before in ["sync_dir sha512", "sync_dir blobs", "sync_repo repo"] {
        assert!(
            at(before).is_some_and(|at_before| Some(at_before) < at("rename index.json")),
            "{log:?}"
        );
    }
}

#[tokio::test]
async fn a_failed_sync_before_the_rename_changes_nothing() {
    let disk = Arc::new(Failing::default());
    let f = on(disk.clone());
    f.image("a", "good").await.unwrap();
    let before = std::fs::read(f.path("a/index.json")).unwrap();
    for step in ["sync", "sync_dir", "rename"] {
        disk.set(&[step]);
        let refused = f.push("a", tag("bad"), image(b"{}", b"good")).await;
        assert!(matches!(refused, Err(Error::Layout(_))), "{step}: {refused:?}");
        disk.set(&[]);
        assert_eq!(std::fs::read(f.path("a/index.json")).unwrap(), before, "{step}");
        assert_eq!(f.tags("a").await, ["good"]);
    }
    // Void lines stand in the journal; the next commit begins from what index.json is.
    f.push("a", tag("next"), image(b"{}", b"good")).await.unwrap();
    let records = journal(&f, "a");
    let last = records.last().unwrap();
    assert_eq!(last.base, Stamp::of(&before));
    assert_ne!(records[records.len() - 2].stamp, last.base);
    let left = std::fs::read_dir(f.path("a")).unwrap();
    let hidden = left.filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_string_lossy().starts_with(".index")
    });
    assert_eq!(hidden.count(), 0);
}

#[tokio::test]
async fn after_a_failed_sync_of_the_directory_nothing_is_acknowledged_until_one_succeeds() {
    let disk = Arc::new(Failing::default());
    let f = on(disk.clone());
    f.image("a", "one").await.unwrap();
    let two = || f.push("a", tag("two"), image(b"{}", b"one"));
    disk.set(&["sync_repo"]);
    assert!(matches!(two().await, Err(Error::Layout(_))));
    disk.set(&[]);
    // The tag is in index.json already, but this acknowledgement writes and syncs it anew.
    disk.log.lock().unwrap().clear();
    two().await.unwrap();
    let log = disk.log.lock().unwrap().join("\n");
    assert!(log.contains("rename index.json"), "{log}");
    disk.set(&["sync_repo"]);
    let three = || f.push("a", tag("three"), image(b"{}", b"one"));
    assert!(matches!(three().await, Err(Error::Layout(_))));
    assert!(matches!(three().await, Err(Error::Layout(_))));
    disk.set(&[]);
    assert!(f.image("b", "other").await.is_ok(), "other repositories go on");
    // However often it failed: what is acknowledged has gone through all steps since.
    disk.set(&["rename"]);
    assert!(matches!(three().await, Err(Error::Layout(_))));
    disk.set(&[]);
    disk.log.lock().unwrap().clear();
    three().await.unwrap();
    let log = disk.log.lock().unwrap().join("\n");
    assert!(log.contains("rename index.json") && log.contains("sync_repo a"), "{log}");
}

/// What another process committed is synced before it is acknowledged a second time; where that
/// fails, a second sync proves nothing.
#[tokio::test]
async fn a_failed_sync_of_what_is_so_already_is_not_asked_for_again() {
    let disk = Arc::new(Failing::default());
    let f = fixture();
    f.image("a", "one").await.unwrap();
    let other = Registry::open_on(f.temp.path(), Settings::default(), disk.clone()).unwrap();
    let other = Fixture { temp: tempfile::tempdir().unwrap(), registry: other };
    let again = || other.push("a", tag("one"), image(b"{}", b"one"));
    disk.set(&["sync"]);
    assert!(matches!(again().await, Err(Error::Layout(_))));
    disk.set(&[]);
    disk.log.lock().unwrap().clear();
    again().await.unwrap();
    let log = disk.log.lock().unwrap().join("\n");
    assert!(log.contains("rename index.json"), "{log}");
}

/// A blob of the server's own that lost its place in the pool: it is hashed, and synced, before a
/// manifest relies on it.
#[tokio::test]
async fn a_blob_whose_sync_failed_is_not_synced_again_but_pushed_again() {
    let disk = Arc::new(Failing::default());
    let f = fixture();
    f.blob("a", b"{}").await;
    let layer = f.blob("a", b"layer").await;
    std::fs::remove_dir_all(f.path(".stillage/pool")).unwrap();
    let other = Registry::open_on(f.temp.path(), Settings::default(), disk.clone()).unwrap();
    let other = Fixture { temp: tempfile::tempdir().unwrap(), registry: other };
    let push = || other.push("a", tag("t"), image(b"{}", b"layer"));
    // The config's sync is the first.
    disk.set(&["sync"]);
    assert!(matches!(push().await, Err(Error::Layout(_))));
    disk.set(&[]);
    let refused = push().await;
    let absent = sha256(b"{}");
    assert!(
        matches!(&refused, Err(Error::ManifestBlobUnknown(d)) if *d == [absent]),
        "{refused:?}"
    );
    other.blob("a", b"{}").await;
    push().await.unwrap();
    assert_eq!(std::fs::read(f.blob_path("a", &layer)).unwrap(), b"layer");
}

#[tokio::test]
async fn only_those_members_fail_whose_references_are_missing() {
    let f = fixture();
    f.image("a", "good").await.unwrap();
    let refused = f.push("a", tag("bad"), image(b"{}", b"absent")).await.unwrap_err();
    assert!(matches!(&refused, Error::ManifestBlobUnknown(d) if d == &[sha256(b"absent")]));
    let refused = f.push("nowhere", tag("bad"), image(b"{}", b"absent")).await.unwrap_err();
    assert!(matches!(refused, Error::ManifestBlobUnknown(_)));
    assert!(!f.path("nowhere").exists());
}

#[tokio::test]
async fn a_blob_that_a_manifest_needs_is_not_deleted_and_a_free_one_is() {
    let f = fixture();
    let pushed = f.image("a", "layer").await.unwrap();
    let (layer, actor) = (sha256(b"layer"), Actor::default());
    let refused = f.registry.delete_blob(&repo("a"), &layer, &actor).await;
    assert!(matches!(refused, Err(Error::BlobInUse { by, .. }) if by == pushed.digest));
    let by_digest = Reference::Digest(pushed.digest);
    f.registry.delete_manifest(&repo("a"), &by_digest, &actor).await.unwrap();
    assert!(matches!(
        f.registry.delete_manifest(&repo("a"), &by_digest, &actor).await,
        Err(Error::ManifestUnknown { .. })
    ));
    f.registry.delete_blob(&repo("a"), &layer, &actor).await.unwrap();
    assert!(matches!(
        f.registry.stat_blob(&repo("a"), &layer, &Account::default(), None).await,
        Err(Error::BlobUnknown { .. })
    ));
    assert!(f.path(".stillage").join(path::pool(&layer)).exists(), "the pool keeps it");
}

#[tokio::test]
async fn a_promise_takes_collections_note_away() {
    let f = fixture();
    let digest = f.blob("a/b", b"layer").await;
    let note = f.path(".stillage/unreferenced/a/b").join(digest.as_str());
    let plant = || {
        std::fs::create_dir_all(note.parent().unwrap()).unwrap();
        std::fs::write(&note, "").unwrap();
    };
    plant();
    f.registry.stat_blob(&repo("a/b"), &digest, &Account::default(), None).await.unwrap();
    assert!(note.exists(), "who may only pull is promised nothing");
    f.registry
        .stat_blob(&repo("a/b"), &digest, &Account::default(), Some(&Actor::default()))
        .await
        .unwrap();
    assert!(!note.exists(), "HEAD by a pusher");
    plant();
    f.blob("a/b", b"layer").await;
    assert!(!note.exists(), "upload");
    plant();
    let from = MountFrom::Repo(repo("a/b"), Account::default());
    f.registry.mount(&repo("a/b"), &digest, from, &Actor::default()).await.unwrap();
    assert!(!note.exists(), "mount");
    f.blob("a/b", b"{}").await;
    plant();
    f.push("a/b", tag("t"), image(b"{}", b"layer")).await.unwrap();
    assert!(!note.exists(), "manifest");
}

/// An administrator removed the repository, and collection had seen its blob.
#[tokio::test]
async fn a_blob_that_begins_a_repository_anew_is_promised_anew() {
    let f = fixture();
    let digest = f.blob("a/b", b"layer").await;
    let note = f.path(".stillage/unreferenced/a/b").join(digest.as_str());
    std::fs::create_dir_all(note.parent().unwrap()).unwrap();
    std::fs::write(&note, "").unwrap();
    std::fs::remove_dir_all(f.path("a")).unwrap();
    f.blob("a/b", b"layer").await;
    assert!(!note.exists(), "the note would be older than the blob");
}

/// Far more requests than there are threads for file work wait for one lock, and others go on.
#[tokio::test]
async fn promises_that_wait_for_a_shells_lock_hold_up_nobody_else() {
    let f = fixture();
    let digest = f.blob("a", b"layer").await;
    let other = f.blob("b", b"other").await;
    let note = f.path(".stillage/unreferenced/a").join(digest.as_str());
    std::fs::create_dir_all(note.parent().unwrap()).unwrap();
    std::fs::write(&note, "").unwrap();
    let held =
        lock::repository(&f.registry.inner.tree.repository(&repo("a")).unwrap().unwrap()).unwrap();
    let waiting: Vec<_> = (0..600)
        .map(|_| {
            let (registry, digest) = (f.registry.clone(), digest.clone());
            let look = async move {
                registry
                    .stat_blob(&repo("a"), &digest, &Account::default(), Some(&Actor::default()))
                    .await
            };
            tokio::spawn(look)
        })
        .collect();
    let queue = f.registry.inner.queue(&repo("a"));
    while queue.waiting() < 600 {
        tokio::task::yield_now().await;
    }
    f.registry
        .stat_blob(&repo("b"), &other, &Account::default(), Some(&Actor::default()))
        .await
        .unwrap();
    assert!(note.exists());
    held.release();
    for looked in waiting {
        looked.await.unwrap().unwrap();
    }
    assert!(!note.exists());
}

#[tokio::test]
async fn a_blob_is_not_deleted_while_a_shell_holds_the_repository() {
    let f = fixture();
    let digest = f.blob("a", b"free").await;
    let held =
        lock::repository(&f.registry.inner.tree.repository(&repo("a")).unwrap().unwrap()).unwrap();
    let refused = f.registry.delete_blob(&repo("a"), &digest, &Actor::default()).await;
    assert!(matches!(refused, Err(Error::Busy { .. })), "{refused:?}");
    held.release();
    f.registry.delete_blob(&repo("a"), &digest, &Actor::default()).await.unwrap();
}

#[tokio::test]
async fn a_blob_whose_sync_failed_is_thrown_away() {
    let disk = Arc::new(Failing::default());
    let f = on(disk.clone());
    let (name, actor, digest) = (repo("a"), Actor::default(), sha256(b"abc"));
    let id = f.registry.begin_upload(&name, None, &actor).await.unwrap().id;
    disk.set(&["sync"]);
    let refused = f.registry.finish_upload(&name, &id, &actor, None, body(b"abc"), &digest).await;
    assert!(matches!(refused, Err(Error::Layout(_))), "{refused:?}");
    disk.set(&[]);
    let refused = f.registry.finish_upload(&name, &id, &actor, None, body(b""), &digest).await;
    assert!(matches!(refused, Err(Error::UploadUnknown(_))), "a second sync proves nothing");
    assert!(!f.blob_path("a", &digest).exists());
    assert_eq!(std::fs::read_dir(f.path(".stillage/uploads")).unwrap().count(), 0);
}

/// A blob whose name goes is proof that index.json does without it: that is made durable first, anew if
/// the disk has failed to.
#[tokio::test]
async fn a_blob_goes_once_index_json_is_durable_again() {
    let disk = Arc::new(Failing::default());
    let f = on(disk.clone());
    f.image("a", "one").await.unwrap();
    let free = f.blob("a", b"free").await;
    disk.set(&["sync_repo"]);
    assert!(f.push("a", tag("two"), image(b"{}", b"one")).await.is_err());
    let (name, actor) = (repo("a"), Actor::default());
    let delete = || f.registry.delete_blob(&name, &free, &actor);
    assert!(matches!(delete().await, Err(Error::Layout(_))));
    assert!(f.blob_path("a", &free).exists());
    disk.set(&[]);
    disk.log.lock().unwrap().clear();
    delete().await.unwrap();
    assert!(!f.blob_path("a", &free).exists());
    let log = disk.log.lock().unwrap().join("\n");
    assert!(log.contains("rename index.json"), "{log}");
}
