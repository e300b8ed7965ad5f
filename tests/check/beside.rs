//! What only moves while it is looked at is no damage.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures_util::stream;
use stillage::oci::{Digest, Reference, RepoName, Tag};
use stillage::registry::{Actor, Push, Registry, Settings};

use crate::layouts::repo::Repo;
use crate::layouts::{disk, findings, valid};

#[test]
fn a_writer_at_work_is_no_damage() {
    let temp = tempfile::tempdir().unwrap();
    let registry = Registry::open(temp.path(), Settings::default()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..120 {
                runtime.block_on(push_and_delete(&registry, round));
            }
            done.store(true, Ordering::Relaxed);
        });
        let mut seen = 0;
        while !done.load(Ordering::Relaxed) {
            let (found, summary) = findings(temp.path());
            assert_eq!(found, []);
            seen += summary.manifests;
        }
        assert!(seen > 0);
    });
    assert_eq!(findings(temp.path()).0, []);
}

async fn push_and_delete(registry: &Registry, round: usize) {
    let repo = RepoName::parse("team/app").unwrap();
    let actor = Actor::default();
    let mut made = Repo::new("");
    let image = made.image(&format!("round {round}"));
    let digest = Digest::parse(image["digest"].as_str().unwrap()).unwrap();
    let mut blobs = Vec::new();
    for (name, bytes) in &made.files {
        let Some(hex) = name.strip_prefix("blobs/sha256/") else { continue };
        let blob = Digest::parse(&format!("sha256:{hex}")).unwrap();
        if blob == digest {
            let push = Push {
                reference: Reference::Tag(Tag::parse("latest").unwrap()),
                tags: vec![Tag::parse(&format!("t{round}")).unwrap()],
                content_type: None,
                bytes: bytes.clone().into(),
            };
            blobs.push((blob, Some(push), Bytes::new()));
        } else {
            blobs.push((blob, None, bytes.clone().into()));
        }
    }
    blobs.sort_by_key(|(_, push, _)| push.is_some());
    for (blob, push, bytes) in &mut blobs {
        match push.take() {
            Some(push) => drop(registry.put_manifest(&repo, push, &actor).await.unwrap()),
            None => {
                let body = stream::iter([Ok(bytes.clone())]);
                registry.put_blob(&repo, &actor, body, blob).await.unwrap();
            }
        }
    }
    if round.is_multiple_of(3) {
        let manifest = Reference::Digest(digest);
        registry.delete_manifest(&repo, &manifest, &actor).await.unwrap();
        for (blob, _, _) in &blobs {
            registry.delete_blob(&repo, blob, &actor).await.unwrap();
        }
    }
}

#[test]
fn a_repository_that_is_moved_away_is_no_damage() {
    let temp = disk::place(&valid::written());
    let (here, there) = (temp.path().join("team/app"), temp.path().join("team/moved"));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                fs::rename(&here, &there).unwrap();
                fs::rename(&there, &here).unwrap();
            }
        });
        let found: Vec<_> = (0..40).flat_map(|_| findings(temp.path()).0).collect();
        done.store(true, Ordering::Relaxed);
        assert_eq!(found, []);
    });
}

/// `rm -r` takes names one by one, blobs and index.json as they come.
#[test]
fn a_repository_that_is_being_removed_is_no_damage() {
    let mut repo = Repo::new("copy");
    for number in 0..100 {
        let image = repo.image(&format!("image {number}"));
        repo.tag(&image, &format!("t{number}"));
    }
    let files = repo.finish();
    let temp = tempfile::tempdir().unwrap();
    for round in 0..10 {
        files.iter().for_each(|(name, bytes)| disk::write(temp.path(), name, bytes));
        std::thread::scope(|scope| {
            let remover = scope.spawn(|| {
                // The blobs before index.json in every second round, and after it in the others.
                let mut paths = disk::walk(&temp.path().join("copy"));
                if round % 2 == 0 {
                    paths.reverse();
                }
                paths.retain(|path| path.is_file());
                paths.iter().for_each(|path| fs::remove_file(path).unwrap());
                fs::remove_dir_all(temp.path().join("copy")).unwrap();
            });
            while !remover.is_finished() {
                assert_eq!(findings(temp.path()).0, [], "round {round}");
            }
        });
    }
}
