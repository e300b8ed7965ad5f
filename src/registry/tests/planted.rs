//! What people with a shell put into a repository: served to nobody who could not read it there,
//! and never as what it is not.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use super::*;

/// Somebody, as far as owner, group and mode go.
fn account(uid: u32, gid: u32) -> Account {
    Account::new(Some(uid), move |level, bits| {
        let shift = match (level.uid == uid, level.gid == gid) {
            (true, _) => 6,
            (false, true) => 3,
            _ => 0,
        };
        level.mode >> shift & u16::from(bits) == u16::from(bits)
    })
}

const OWNER: u32 = 4711;
const MEMBER: u32 = 4712;
const TEAM: u32 = 4800;

fn stranger() -> Account {
    account(4713, 4801)
}

fn own(path: &Path, uid: u32, gid: u32, mode: u32) {
    chown(path, Some(uid), Some(gid)).expect("these tests run as root");
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

impl Fixture {
    /// Makes a file with these rights a blob of a repository, by a hard link.
    fn plant(&self, name: &str, bytes: &[u8], uid: u32, gid: u32, mode: u32) -> Digest {
        let secret = self.path(&format!("secret-{}", sha256(bytes).hex()));
        std::fs::write(&secret, bytes).unwrap();
        own(&secret, uid, gid, mode);
        let digest = sha256(bytes);
        std::fs::create_dir_all(self.path(name).join("blobs/sha256")).unwrap();
        std::fs::hard_link(secret, self.blob_path(name, &digest)).unwrap();
        digest
    }

    async fn pull(&self, name: &str, digest: &Digest, account: &Account) -> Result<u64> {
        let told = self.registry.stat_blob(&repo(name), digest, account, None).await;
        let opened = self.registry.open_blob(&repo(name), digest, account).await;
        assert_eq!(told.is_ok(), opened.is_ok(), "HEAD {told:?}, GET {opened:?}");
        opened.map(|blob| blob.size)
    }
}

fn is_unknown<T: std::fmt::Debug>(answer: Result<T>) -> bool {
    matches!(answer, Err(Error::BlobUnknown { .. } | Error::ManifestUnknown { .. }))
}

fn actor(account: Account) -> Actor {
    Actor { account, ..Actor::default() }
}

#[tokio::test]
async fn a_file_is_served_to_those_who_could_read_it_with_a_shell() {
    let f = fixture();
    for (text, uid, gid, mode, owner, member, other) in [
        ("root's", 0, 0, 0o600, false, false, false),
        ("root's and sealed", 0, 0, 0o400, false, false, false),
        ("the owner's", OWNER, OWNER, 0o600, true, false, false),
        ("the team's", OWNER, TEAM, 0o640, true, true, false),
        ("not the owner's", OWNER, TEAM, 0o044, false, true, true),
        ("everybody's", OWNER, OWNER, 0o644, true, true, true),
    ] {
        let digest = f.plant("a", text.as_bytes(), uid, gid, mode);
        // The second time from memory.
        for _ in 0..2 {
            f.pull("a", &digest, &Account::default()).await.unwrap();
            for (who, account, may) in [
                ("owner", account(OWNER, OWNER), owner),
                ("member", account(MEMBER, TEAM), member),
                ("stranger", stranger(), other),
            ] {
                let answer = f.pull("a", &digest, &account).await;
                assert_eq!(answer.is_ok(), may, "{text}: {who} gets {answer:?}");
                assert!(may || is_unknown(answer), "{text}: {who}");
            }
        }
    }
}

#[tokio::test]
async fn what_the_pusher_may_not_read_is_adopted_by_no_manifest_and_no_mount() {
    let f = fixture();
    f.blob("a", b"{}").await;
    let layer = f.plant("a", b"layer", OWNER, TEAM, 0o640);
    let push = |account: Account| {
        let push = Push {
            reference: tag("t"),
            tags: vec![],
            content_type: None,
            bytes: image(b"{}", b"layer"),
        };
        let registry = f.registry.clone();
        async move { registry.put_manifest(&repo("a"), push, &actor(account)).await }
    };
    let mount = |from: MountFrom, account: Account| {
        let (registry, layer) = (f.registry.clone(), layer.clone());
        async move { registry.mount(&repo("b"), &layer, from, &actor(account)).await.unwrap() }
    };
    let refused = push(stranger()).await.unwrap_err();
    assert!(matches!(refused, Error::ManifestBlobUnknown(_)), "{refused}");
    assert!(!mount(MountFrom::Repo(repo("a"), stranger()), stranger()).await);
    let meta = std::fs::metadata(f.blob_path("a", &layer)).unwrap();
    assert_eq!((meta.uid(), meta.mode() & 0o777), (OWNER, 0o640), "it is what it was");
    assert!(!f.path(".stillage").join(path::pool(&layer)).exists());
    assert!(!f.blob_path("b", &layer).exists());

    assert!(mount(MountFrom::Repo(repo("a"), account(MEMBER, TEAM)), account(MEMBER, TEAM)).await);
    push(account(MEMBER, TEAM)).await.unwrap();
    let meta = std::fs::metadata(f.blob_path("a", &layer)).unwrap();
    assert_eq!((meta.uid(), meta.mode() & 0o777), (0, 0o444), "a copy, which the member published");
    f.pull("a", &layer, &stranger()).await.unwrap();
}

#[tokio::test]
async fn a_manifest_is_for_those_who_may_read_its_file_and_so_is_what_it_says() {
    let f = fixture();
    f.image("a", "subject").await.unwrap();
    let subject = sha256(&image(b"{}", b"subject"));
    let referrer = format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","config":{{"mediaType":"x/y","digest":"{}","size":2}},"layers":[],"subject":{{"mediaType":"m","digest":"{subject}","size":1}},"annotations":{{"k":"secret"}}}}"#,
        Kind::OciImage.media_type(),
        sha256(b"{}"),
    );
    let digest = f.plant("a", referrer.as_bytes(), OWNER, TEAM, 0o640);
    let index = std::fs::read_to_string(f.path("a/index.json")).unwrap();
    let entry = format!(
        r#""manifests":[{{"mediaType":"{}","digest":"{digest}","size":{},"annotations":{{"org.opencontainers.image.ref.name":"signed"}}}},"#,
        Kind::OciImage.media_type(),
        referrer.len()
    );
    std::fs::write(f.path("a/index.json"), index.replace(r#""manifests":["#, &entry)).unwrap();
    let member = account(MEMBER, TEAM);
    // The member comes first, so that what he is told is in the memory when the stranger asks.
    for registry in [f.registry.clone(), f.reopened()] {
        for reference in [tag("signed"), Reference::Digest(digest.clone())] {
            let read = |account| {
                let registry = registry.clone();
                let reference = reference.clone();
                async move { registry.manifest(&repo("a"), &reference, account).await }
            };
            assert_eq!(read(&member).await.unwrap().bytes, referrer);
            assert!(is_unknown(read(&stranger()).await), "{reference}");
        }
        for (account, listed) in [(&member, 1), (&stranger(), 0), (&Account::default(), 1)] {
            let found = registry.referrers(&repo("a"), &subject, None, None, account).await;
            assert_eq!(found.unwrap().len(), listed);
        }
    }
    let facts = std::fs::read_to_string(f.path("a/_referrers/facts.jsonl")).unwrap_or_default();
    assert!(!facts.contains("secret"), "{facts}");
    own(&f.blob_path("a", &digest), OWNER, TEAM, 0o644);
    let found = f.registry.referrers(&repo("a"), &subject, None, None, &stranger()).await;
    assert_eq!(found.unwrap().len(), 1, "a chmod counts at once");
}

#[tokio::test]
async fn an_index_that_its_owner_keeps_to_himself_is_not_read_out_and_not_published() {
    let f = fixture();
    f.image("a", "one").await.unwrap();
    own(&f.path("a/index.json"), OWNER, TEAM, 0o640);
    let (member, stranger) = (account(MEMBER, TEAM), stranger());
    let all: MayRead = Arc::new(|_| Ok(Some(Account::default())));
    let names = |account: Account| {
        let (registry, all) = (f.registry.clone(), Arc::clone(&all));
        async move { registry.catalog(None, 9, all, &account).await.unwrap().items.len() }
    };
    assert!(f.registry.tags(&repo("a"), None, 9, &member).await.is_ok());
    assert!(f.registry.tags(&repo("a"), None, 9, &stranger).await.is_err());
    assert!(is_unknown(f.registry.manifest(&repo("a"), &tag("one"), &stranger).await));
    assert_eq!((names(member.clone()).await, names(stranger.clone()).await), (1, 0));
    let push = |account: &Account| {
        let push = Push {
            reference: tag("two"),
            tags: vec![],
            content_type: None,
            bytes: image(b"{}", b"one"),
        };
        let (registry, actor) = (f.registry.clone(), actor(account.clone()));
        async move { registry.put_manifest(&repo("a"), push, &actor).await }
    };
    let refused = push(&stranger).await.unwrap_err();
    assert!(matches!(refused, Error::Closed { .. }), "{refused}");
    let by = Reference::Tag(Tag::parse("one").unwrap());
    let refused = f.registry.delete_manifest(&repo("a"), &by, &actor(stranger)).await.unwrap_err();
    assert!(matches!(refused, Error::Closed { .. }), "{refused}");
    assert_eq!(std::fs::metadata(f.path("a/index.json")).unwrap().uid(), OWNER);
    push(&member).await.unwrap();
}

#[tokio::test]
async fn one_of_our_inodes_under_another_name_is_not_what_that_name_says() {
    let f = fixture();
    f.image("a", "ABCDE").await.unwrap();
    let [evil, good] = [f.blob("a", b"evil!").await, f.blob("a", b"good!").await];
    std::fs::rename(f.blob_path("a", &evil), f.blob_path("a", &good)).unwrap();
    // It was hashed by this very process, has the length, and is ours: twice, before and after it
    // was looked at.
    for _ in 0..2 {
        let refused = f.registry.open_blob(&repo("a"), &good, &Account::default()).await;
        assert!(matches!(refused, Err(Error::Layout(layout::Error::Damaged { .. }))));
        let push = f.push("a", tag("x"), image(b"{}", b"good!")).await;
        assert!(push.is_err(), "no manifest relies on it");
        let from = MountFrom::Repo(repo("a"), Account::default());
        let mounted = f.registry.mount(&repo("b"), &good, from, &Actor::default()).await.unwrap();
        assert!(!mounted);
    }
    // Who may push is told that it is not there, and what he then sends takes its place.
    let pusher = Actor::default();
    let told = f.registry.stat_blob(&repo("a"), &good, &Account::default(), Some(&pusher)).await;
    assert!(is_unknown(told));
    f.blob("a", b"good!").await;
    assert_eq!(f.pull("a", &good, &Account::default()).await.unwrap(), 5);
    f.push("a", tag("x"), image(b"{}", b"good!")).await.unwrap();
}

#[tokio::test]
async fn a_foreign_file_is_hashed_again_when_it_changed_and_only_then() {
    let f = fixture();
    let bytes = b"dropped in";
    let digest = f.plant("a", bytes, OWNER, TEAM, 0o644);
    let blob = f.blob_path("a", &digest);
    let known = || {
        let stat = rustix::fs::stat(&blob).unwrap();
        f.registry.inner.tree.known(&digest, &stat)
    };
    assert_eq!(known(), None);
    f.pull("a", &digest, &Account::default()).await.unwrap();
    assert_eq!(known(), Some(layout::Verdict::Right));
    let modified = std::fs::metadata(&blob).unwrap().modified().unwrap();
    let write = |bytes: &[u8]| {
        let file = std::fs::File::options().write(true).open(&blob).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, bytes, 0).unwrap();
        file.set_modified(modified).unwrap();
    };
    write(b"DROPPED IN");
    assert_eq!(known(), None, "its mtime is what it was, its ctime cannot be");
    let open = || async { f.registry.open_blob(&repo("a"), &digest, &Account::default()).await };
    assert!(matches!(open().await, Err(Error::Layout(layout::Error::Damaged { .. }))));
    assert_eq!(known(), Some(layout::Verdict::Wrong));
    write(bytes);
    let opened = open().await.unwrap();
    assert!(opened.is_unchanged().unwrap());
    write(b"DROPPED IN");
    assert!(!opened.is_unchanged().unwrap(), "not one more byte of it goes out");
}

#[tokio::test]
async fn many_who_ask_for_a_file_that_nobody_knows_hash_it_once() {
    let f = fixture();
    let bytes = vec![7; 32 << 20];
    let digest = f.plant("a", &bytes, OWNER, TEAM, 0o644);
    let read = || {
        let io = std::fs::read_to_string("/proc/self/io").unwrap();
        let line = io.lines().find(|line| line.starts_with("rchar")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let before = read();
    let asking = (0..16).map(|_| {
        let (registry, digest) = (f.registry.clone(), digest.clone());
        tokio::spawn(async move {
            registry.open_blob(&repo("a"), &digest, &Account::default()).await.map(|_| ())
        })
    });
    for asked in asking.collect::<Vec<_>>() {
        asked.await.unwrap().unwrap();
    }
    // What other tests read meanwhile counts too.
    assert!(read() - before < 8 * bytes.len() as u64, "{} bytes", read() - before);
}

#[tokio::test]
async fn who_gives_up_leaves_the_queue_of_a_lock_that_is_never_released() {
    let f = fixture();
    f.image("a", "one").await.unwrap();
    let settings = Settings { lock_wait: Duration::from_millis(50), ..Settings::default() };
    let registry = Registry::open(f.temp.path(), settings).unwrap();
    let dir = registry.inner.tree.repository(&repo("a")).unwrap().unwrap();
    let held = layout::lock::repository(&dir).unwrap();
    for _ in 0..3 {
        let by = Reference::Tag(Tag::parse("one").unwrap());
        let refused = registry.delete_manifest(&repo("a"), &by, &Actor::default()).await;
        assert!(matches!(refused, Err(Error::Busy { .. })), "{refused:?}");
    }
    assert_eq!(registry.inner.queue(&repo("a")).waiting(), 0);
    held.release();
}
