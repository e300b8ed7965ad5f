//! How long uploads live, and how much they take.

use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use super::*;

fn alice() -> Actor {
    Actor { who: Some("alice".into()), ..Actor::default() }
}

fn with(settings: Settings) -> Fixture {
    let temp = tempfile::tempdir().unwrap();
    let registry = Registry::open(temp.path(), settings).unwrap();
    Fixture { temp, registry }
}

impl Fixture {
    fn data(&self, id: &UploadId) -> PathBuf {
        self.path(".stillage/uploads").join(id.as_str()).join("data")
    }

    fn uploads(&self) -> usize {
        std::fs::read_dir(self.path(".stillage/uploads")).unwrap().count()
    }
}

fn age(path: PathBuf) {
    let past = SystemTime::now() - Duration::from_secs(48 * 60 * 60);
    std::fs::File::open(path).unwrap().set_modified(past).unwrap();
}

#[tokio::test]
async fn upload_expiry_is_measured_from_the_last_byte() {
    let f = fixture();
    let (name, actor) = (repo("a"), alice());
    let [goes_on, idle] = [0, 1].map(|_| f.registry.begin_upload(&name, None, &actor));
    let (goes_on, idle) = (goes_on.await.unwrap().id, idle.await.unwrap().id);
    age(f.data(&goes_on));
    age(f.data(&idle));
    f.registry.append_upload(&name, &goes_on, &actor, None, body(b"abc")).await.unwrap();
    f.registry.sweep_uploads().await.unwrap();
    assert_eq!(f.registry.upload_status(&name, &goes_on, &actor).await.unwrap().size, 3);
    let gone = f.registry.upload_status(&name, &idle, &actor).await;
    assert!(matches!(gone, Err(Error::UploadUnknown(_))), "{gone:?}");
    assert_eq!(f.uploads(), 1);
}

/// Every session is old the moment that nobody holds it, and the sweep never rests.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn upload_expiry_takes_all_of_an_upload_or_nothing() {
    let f = with(Settings { upload_expiry: Duration::ZERO, ..Settings::default() });
    let (name, actor) = (repo("a"), alice());
    let (mut kept, mut gone) = (0, 0);
    for round in 0..2000_u32 {
        if round >= 20 && kept > 0 && gone > 0 {
            break;
        }
        let mut ids = Vec::new();
        for _ in 0..4 {
            ids.push(f.registry.begin_upload(&name, None, &actor).await.unwrap().id);
        }
        let enough = Arc::new(AtomicBool::new(false));
        let sweeper = tokio::spawn({
            let (registry, enough) = (f.registry.clone(), Arc::clone(&enough));
            async move {
                while !enough.load(Ordering::Relaxed) {
                    registry.sweep_uploads().await.unwrap();
                }
            }
        });
        let pushes: Vec<_> = ids
            .into_iter()
            .map(|id| {
                let (registry, name, actor) = (f.registry.clone(), name.clone(), actor.clone());
                tokio::spawn(async move {
                    let bytes = path::random_hex::<16>();
                    let digest = sha256(bytes.as_bytes());
                    let end = body(bytes.as_bytes());
                    let done = registry.finish_upload(&name, &id, &actor, None, end, &digest).await;
                    (digest, done)
                })
            })
            .collect();
        for push in pushes {
            let (digest, done) = push.await.unwrap();
            let there = f.blob_path("a", &digest).exists();
            match done {
                Ok(()) => kept += 1,
                Err(Error::UploadUnknown(_)) => gone += 1,
                // The sweep looked at it under its lock, and left it.
                Err(Error::UploadBusy(_)) => {}
                Err(error) => panic!("{error}"),
            }
            assert_eq!(done.is_ok(), there, "half of {digest} is there");
        }
        enough.store(true, Ordering::Relaxed);
        sweeper.await.unwrap();
    }
    assert!(kept > 0 && gone > 0, "{kept} kept, {gone} gone");
    f.registry.sweep_uploads().await.unwrap();
    assert_eq!(f.uploads(), 0);
    assert!(f.registry.inner.slots.is_empty());
}

#[tokio::test]
async fn a_chunk_reserves_nothing_past_its_end() {
    let f = fixture();
    let (name, actor) = (repo("a"), alice());
    let id = f.registry.begin_upload(&name, None, &actor).await.unwrap().id;
    let reserved = |len: u64| {
        let meta = std::fs::metadata(f.data(&id)).unwrap();
        assert_eq!(meta.len(), len);
        (meta.blocks() * 512).saturating_sub(len)
    };
    let chunk = vec![7u8; 9 * 1024 * 1024 + 13];
    let pieces = || chunk.chunks(100_000).map(|piece| Ok(Bytes::copy_from_slice(piece)));
    f.registry
        .append_upload(&name, &id, &actor, None, stream::iter(pieces().collect::<Vec<_>>()))
        .await
        .unwrap();
    let len = chunk.len() as u64;
    assert!(reserved(len) < 1 << 20, "{} past the end", reserved(len));
    let broken = pieces().chain([Err(std::io::ErrorKind::ConnectionReset.into())]);
    let broken = stream::iter(broken.collect::<Vec<_>>());
    let refused = f.registry.append_upload(&name, &id, &actor, None, broken).await;
    assert!(matches!(refused, Err(Error::Body(_))));
    assert!(reserved(2 * len) < 1 << 20, "{} past the end", reserved(2 * len));
    let digest = sha256(&[chunk.as_slice(), &chunk].concat());
    f.registry.finish_upload(&name, &id, &actor, None, body(b""), &digest).await.unwrap();
}

#[tokio::test]
async fn upload_cap_sees_what_others_ended() {
    let f = with(Settings { max_uploads: 1, ..Settings::default() });
    let id = f.registry.begin_upload(&repo("a"), None, &alice()).await.unwrap().id;
    let refused = f.registry.begin_upload(&repo("a"), None, &alice()).await;
    assert!(matches!(refused, Err(Error::TooManyUploads { limit: 1 })), "{refused:?}");
    // Another server on the same tree, or gc.
    f.reopened().cancel_upload(&repo("a"), &id, &alice()).await.unwrap();
    f.registry.sweep_uploads().await.unwrap();
    f.registry.begin_upload(&repo("a"), None, &alice()).await.unwrap();
}

#[tokio::test]
async fn work_that_would_block_waits_for_its_turn_and_not_for_ever() {
    let f = with(Settings { lock_wait: Duration::from_millis(50), ..Settings::default() });
    let threads = Arc::clone(&f.registry.inner.threads);
    let all = threads.acquire_many(u32::try_from(THREADS).unwrap()).await.unwrap();
    let (name, actor) = (repo("a"), alice());
    let refused = f.registry.begin_upload(&name, None, &actor).await;
    assert!(matches!(refused, Err(Error::Overloaded)), "{refused:?}");
    assert_eq!(f.uploads(), 0, "nothing was done");
    let waiting = f.registry.begin_upload(&name, None, &actor);
    let freed = async {
        tokio::time::sleep(Duration::from_millis(10)).await;
        drop(all);
    };
    assert!(tokio::join!(waiting, freed).0.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whoever_meets_the_limit_while_another_compares_waits_for_what_comes_of_it() {
    let f = with(Settings { max_uploads: 100, ..Settings::default() });
    for round in 0..20 {
        for _ in f.uploads()..100 {
            f.registry.begin_upload(&repo("a"), None, &alice()).await.unwrap();
        }
        // As a collection does, which is another process.
        for entry in std::fs::read_dir(f.path(".stillage/uploads")).unwrap() {
            std::fs::remove_dir_all(entry.unwrap().path()).unwrap();
        }
        f.registry.inner.slots.forget_comparison();
        let begin = |_| {
            let registry = f.registry.clone();
            tokio::spawn(async move { registry.begin_upload(&repo("a"), None, &alice()).await })
        };
        for begun in (0..16).map(begin).collect::<Vec<_>>() {
            begun.await.unwrap().unwrap_or_else(|error| panic!("round {round}: {error}"));
        }
    }
}
