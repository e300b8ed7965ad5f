//! A manifest is deleted, and its content right after it, while somebody looks: before every system call
//! with which a pull, a collection, a check and a snapshot touch the repository, in turn.
//!
//! Whoever looks reads index.json first, and later what it names: what has gone by then is not missing.
//! The deletes are requests to a server of their own, as anybody may send them at any time; where the
//! one who looks holds the lock that they need, they would have to wait, and are left out. Of a check the
//! short form takes every third call, others each time, the long form all.

mod delete_stage;
mod support;

use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use delete_stage::{ARGS, REPO, Stage, is_free, opens};
use support::calls::{Answer, Call};
use support::command::run;
use support::content::{Image, OCI_INDEX, OCI_MANIFEST, index, random, sha256};
use support::{Registry, STILLAGE};

/// Somebody who pulls gets it, or hears that it is not there.
#[test]
fn a_pull_of_what_is_being_deleted() {
    let stage = Stage::new();
    let held = Registry::start_held(&stage.calls, &stage.root, &ARGS);
    stage.everywhere("a pull", 1, |n| {
        let (image, between) = (stage.pushed("v1"), stage.between());
        let gone = image.clone();
        stage.before(n, move || between.delete(&gone));
        let got = held.client().get(&format!("/v2/{REPO}/manifests/v1"));
        match got.status {
            200 => assert_eq!(got.body, image.manifest, "call {n}"),
            _ => drop(got.expect_error(404, "MANIFEST_UNKNOWN")),
        }
    });
}

/// A tag that is moved, and what it named before deleted, is there all the time.
#[test]
fn a_pull_of_a_tag_that_is_being_moved() {
    let stage = Stage::new();
    let held = Registry::start_held(&stage.calls, &stage.root, &ARGS);
    stage.everywhere("a pull of a tag that moves", 1, |n| {
        let (new, old) = (stage.pushed("v1"), stage.pushed("v1"));
        let (between, gone, manifest) = (stage.between(), old.clone(), new.manifest.clone());
        stage.before(n, move || {
            between.client.put_manifest(REPO, "v1", OCI_MANIFEST, &manifest).expect_status(201);
            between.delete(&gone);
        });
        let got = held.client().get(&format!("/v2/{REPO}/manifests/v1")).expect_status(200);
        assert!([&old.manifest, &new.manifest].contains(&&got.body), "call {n}");
    });
}

/// Another tool, besides, is just writing index.json: what it said before is not enough any more.
#[test]
fn a_pull_of_what_is_deleted_while_index_json_is_written() {
    let stage = Stage::new();
    let held = Registry::start_held(&stage.calls, &stage.root, &ARGS);
    let (image, between) = (stage.pushed("v1"), stage.between());
    let (gone, index) = (image.clone(), stage.root.join(REPO).join("index.json"));
    let (mut written, mut looks) = (Vec::new(), 0);
    stage.calls.rule(move |call| {
        if looks == 0 && opens(call, &gone.digest) {
            between.delete(&gone);
            written = fs::read(&index).expect("index.json");
            fs::write(&index, "").expect("the other tool begins");
            looks = 1;
        } else if looks > 0 && call.name == "openat2" && call.path == index {
            looks += 1;
            // Who does not wait has looked twice by then, and answered.
            if looks == 4 {
                fs::write(&index, &written).expect("the other tool ends");
            }
        }
        Answer::Go
    });
    let got = held.client().get(&format!("/v2/{REPO}/manifests/v1"));
    got.expect_error(404, "MANIFEST_UNKNOWN");
}

#[test]
fn a_collection_beside_deletes() {
    let stage = Stage::new();
    stage.everywhere("a collection", 1, |n| {
        let (image, between) = (stage.pushed("v1"), stage.between());
        between.client.push_blob(REPO, &random(100));
        stage.before(n, move || between.delete(&image));
        stage.run(&["gc", stage.root(), "--now"]).ok();
    });
}

#[test]
fn a_check_beside_deletes() {
    let stage = Stage::new();
    // It waits for half a second of rest wherever something seems to be missing.
    let every = if support::long() { 1 } else { 3 };
    stage.everywhere("a check", every, |n| {
        let (image, between) = (stage.pushed("v1"), stage.between());
        stage.before(n, move || between.delete(&image));
        stage.run(&["check", stage.root()]).ok();
        run(Command::new(STILLAGE).args(["gc", stage.root(), "--now"])).ok();
    });
}

#[test]
fn a_snapshot_beside_deletes() {
    let stage = Stage::new();
    stage.everywhere("a snapshot", 1, |n| {
        let (image, between) = (stage.pushed("v1"), stage.between());
        stage.before(n, move || between.delete(&image));
        stage.assert_snapshot_is_sound();
    });
}

/// What came since a collection marked is read once more before it takes its locks.
#[test]
fn a_collection_beside_a_push_that_is_deleted_again() {
    let stage = Stage::new();
    stage.everywhere("a collection, after its marks", 1, |n| {
        stage.registry.client().push_blob(REPO, &random(100));
        stage.between_push_and(n, "getdents64", "blobs/sha256");
        stage.run(&["gc", stage.root(), "--now"]).ok();
    });
}

/// What came since a snapshot brought the blobs is brought with what names it, under gc.lock.
#[test]
fn a_snapshot_beside_a_push_that_is_deleted_again() {
    let stage = Stage::new();
    for n in 1..40 {
        stage.between_push_and(n, "openat2", "index.json");
        stage.assert_snapshot_is_sound();
        stage.clear();
    }
    // While it holds gc.lock, which it does most of the time, the blob stays.
    let manifests = stage.manifests.load(Ordering::Relaxed);
    assert!(manifests > 20, "{manifests}");
}

/// What came since a collection marked, and cannot be read, ends that of the repository: it might
/// refer to anything, also to what was just found unmarked.
#[test]
fn a_collection_beside_a_push_of_what_cannot_be_read() {
    let mut stage = Stage::new();
    stage.registry.expect_damage();
    // An image that only an index will name, and what is called a manifest there and is none.
    let (client, image) = (stage.registry.client(), stage.pushed("v1"));
    client.delete(&format!("/v2/{REPO}/manifests/{}", image.digest)).expect_status(202);
    let none = br#"{"schemaVersion":2,"layers":0}"#;
    client.push_blob(REPO, none);
    let outer = index(&[(OCI_MANIFEST, &image.manifest), (OCI_MANIFEST, none)]);
    let (between, blobs) = (stage.between(), stage.root.join(REPO).join("blobs/sha256"));
    let mut pushed = false;
    stage.calls.rule(move |call| {
        if !pushed && call.name == "getdents64" && call.path == blobs {
            between.client.put_manifest(REPO, "all", OCI_INDEX, &outer).expect_status(201);
            pushed = true;
        }
        Answer::Go
    });
    let told = stage.run(&["gc", stage.root(), "--now"]);
    assert_eq!(told.code, Some(3), "{told}");
    assert!(told.text().contains(&sha256(none)["sha256:".len()..]), "{told}");
    for blob in image.layers.iter().chain([&image.config, &image.manifest]) {
        client.head(&format!("/v2/{REPO}/blobs/{}", sha256(blob))).expect_status(200);
    }
}

/// A repository gets its first manifests: its index.json was not there, and its journal says soon that
/// there was one.
#[test]
fn a_collection_beside_the_first_pushes() {
    let stage = Stage::new();
    let client = stage.registry.client();
    let count = Arc::new(AtomicUsize::new(0));
    for n in 1.. {
        let name = format!("new/{n}");
        client.push_blob(&name, &random(100));
        let (pusher, repo) = (client.clone(), stage.root.join(&name));
        let images = [Image::random(100), Image::random(100)];
        let (lock, pushed, mut calls) = (repo.join(".lock"), images.clone(), 0);
        let (at, done) = (name.clone(), Arc::clone(&count));
        stage.calls.rule(move |call| {
            calls += usize::from(call.path.starts_with(&repo));
            if calls == n && call.path.starts_with(&repo) && (!lock.exists() || is_free(&lock)) {
                pushed.iter().for_each(|image| pusher.push_image(&at, &image.digest, image));
                done.fetch_add(1, Ordering::Relaxed);
            }
            Answer::Go
        });
        stage.run(&["gc", stage.root(), &name, "--now"]).ok();
        let seen = stage.calls.done();
        if seen.iter().filter(|(call, _)| call.path.starts_with(stage.root.join(&name))).count() < n
        {
            let count = count.load(Ordering::Relaxed);
            assert!(3 * count >= n, "{count} of {n}");
            return;
        }
        for image in &images {
            // Where the collection held the lock, nothing was pushed.
            if stage.root.join(&name).join("index.json").exists() {
                client.assert_pulls(&name, &image.digest, image);
            }
        }
    }
}

/// What is missing for good is told at once, however often index.json becomes another one meanwhile.
#[test]
fn a_collection_of_what_is_damaged_beside_pushes() {
    let mut stage = Stage::new();
    stage.registry.expect_damage();
    let image = stage.pushed("v1");
    let blobs = stage.root.join(REPO).join("blobs/sha256");
    fs::remove_file(blobs.join(&image.digest["sha256:".len()..])).expect("the damage");
    let (between, digest) = (stage.between(), image.digest.clone());
    stage.calls.rule(move |call| {
        if opens(call, &digest) && is_free(&between.lock) {
            between.client.push_image(REPO, "other", &Image::random(100));
        }
        Answer::Go
    });
    let told = stage.run(&["gc", stage.root(), "--now"]);
    let marked = |(call, _): &&(Call, Answer)| opens(call, &image.digest);
    let looks = stage.calls.done().iter().filter(marked).count();
    assert_eq!(told.code, Some(3), "{told}");
    assert!(told.text().contains("is missing, and index.json names it"), "{told}");
    assert!(told.text().contains(&image.digest["sha256:".len()..]), "{told}");
    // For the marks, again under the lock, and for who else has what the pool has.
    assert_eq!(looks, 3, "{told}");
}

/// Where manifests are deleted for ever, a collection ends, and the next one does it.
#[test]
fn a_collection_beside_deletes_without_end() {
    let stage = Stage::new();
    let (mut image, between) = (stage.pushed("v1"), stage.between());
    stage.calls.rule(move |call| {
        if opens(call, &image.digest) && call.path.starts_with(between.lock.with_file_name("blobs"))
        {
            between.delete(&image);
            image = Image::random(100);
            between.client.push_image(REPO, "v1", &image);
        }
        Answer::Go
    });
    let told = stage.run(&["gc", stage.root(), "--now"]);
    assert_eq!(told.code, Some(3), "{told}");
    assert!(told.text().contains("changes all the while"), "{told}");
    assert_eq!(stage.deleted.load(Ordering::Relaxed), 10, "{told}");
    stage.calls.done();
    stage.run(&["gc", stage.root(), "--now"]).ok();
}

/// A child that was not there when its index was read comes, and with it what it refers to: by itself or
/// with an entry of its own before.
#[test]
fn a_collection_beside_a_child_that_comes_after_its_index() {
    for had_an_entry in [false, true] {
        let stage = Stage::new();
        let client = stage.registry.client();
        let image = Image::random(100);
        for blob in image.layers.iter().chain([&image.config]) {
            client.push_blob(REPO, blob);
        }
        let outer = index(&[(OCI_MANIFEST, &image.manifest)]);
        let (between, blobs) = (stage.between(), stage.root.join(REPO).join("blobs/sha256"));
        let (child, outer_digest) = (image.clone(), sha256(&outer));
        let step = Arc::new(AtomicUsize::new(0));
        let at = Arc::clone(&step);
        stage.calls.rule(move |call| {
            let client = &between.client;
            let delete = |what: String| {
                client.delete(&format!("/v2/{REPO}/{what}")).expect_status(202);
            };
            let push = || {
                client.push_blob(REPO, &child.manifest);
                client.put_manifest(REPO, "all", OCI_INDEX, &outer).expect_status(201);
            };
            match at.load(Ordering::Relaxed) {
                0 if call.name == "getdents64" && call.path == blobs => {
                    push();
                    if had_an_entry {
                        let (digest, bytes) = (&child.digest, &child.manifest);
                        client.put_manifest(REPO, digest, OCI_MANIFEST, bytes).expect_status(201);
                    }
                }
                1 if opens(call, &child.digest) && is_free(&between.lock) => {
                    delete(format!("manifests/{outer_digest}"));
                    if had_an_entry {
                        delete(format!("manifests/{}", child.digest));
                    }
                    delete(format!("blobs/{}", child.digest));
                }
                2 if call.path == between.gc_lock => push(),
                _ => return Answer::Go,
            }
            at.fetch_add(1, Ordering::Relaxed);
            Answer::Go
        });
        let told = stage.run(&["gc", stage.root(), "--now"]).ok();
        assert_eq!(step.load(Ordering::Relaxed), 3, "{told}");
        for blob in image.layers.iter().chain([&image.config, &image.manifest]) {
            client.head(&format!("/v2/{REPO}/blobs/{}", sha256(blob))).expect_status(200);
        }
    }
}

/// A child that somebody lost is brought back by a repair, or whoever uploads it: nothing is committed by
/// that, and what it needs stays all the same. So it is where so many are missing that they are not looked
/// for under the locks each time; whenever it comes before these are taken.
#[test]
fn a_collection_beside_a_child_that_comes_as_a_blob() {
    for (missing, moment) in [(0, 0), (0, 2), (1001, 0), (1001, 1), (1001, 2)] {
        for repaired in [false, true] {
            let mut stage = Stage::with(&["--allow-sparse"]);
            if missing > 0 {
                stage.registry.expect_damage();
            }
            let client = stage.registry.client();
            let image = Image::random(100);
            for blob in image.layers.iter().chain([&image.config, &image.manifest]) {
                client.push_blob(REPO, blob);
            }
            let others: Vec<_> = (0..missing).map(|_| random(10)).collect();
            let others = others.iter().map(|other| (OCI_MANIFEST, other.as_slice()));
            let children: Vec<_> = others.chain([(OCI_MANIFEST, &*image.manifest)]).collect();
            client.put_manifest(REPO, "all", OCI_INDEX, &index(&children)).expect_status(201);
            let blobs = stage.root.join(REPO).join("blobs/sha256");
            fs::remove_file(blobs.join(&image.digest["sha256:".len()..])).expect("the loss");
            let (between, manifest) = (stage.between(), image.manifest.clone());
            let (root, digest) = (stage.root().to_owned(), image.digest.clone());
            let (mut at, mut looked_for) = (0, false);
            stage.calls.rule(move |call| {
                let is_next = match at {
                    // The marks were made.
                    0 => call.name == "getdents64" && call.path == blobs,
                    // It was just looked for before the locks, where that is done.
                    1 => std::mem::replace(&mut looked_for, opens(call, &digest)) || missing == 0,
                    2 => call.path == between.gc_lock,
                    _ => false,
                };
                if is_next && at == moment && repaired {
                    run(Command::new(STILLAGE).args(["check", "--repair", &root]));
                } else if is_next && at == moment {
                    between.client.push_blob(REPO, &manifest);
                }
                at += usize::from(is_next);
                Answer::Go
            });
            let told = stage.run(&["gc", stage.root(), "--now"]).ok();
            assert!(!stage.calls.done().is_empty());
            for blob in image.layers.iter().chain([&image.config, &image.manifest]) {
                let there = client.head(&format!("/v2/{REPO}/blobs/{}", sha256(blob))).status;
                assert_eq!(there, 200, "{missing} {moment} {repaired}: {told}");
            }
        }
    }
}

/// So it is with what only the journal names, and with what index.json names under a type that nobody
/// knows: either may be missing, and come.
#[test]
fn a_collection_beside_what_may_be_missing_and_comes() {
    for by_journal in [true, false] {
        let mut stage = Stage::new();
        let client = stage.registry.client();
        let image = stage.pushed("v1");
        client.delete(&format!("/v2/{REPO}/manifests/{}", image.digest)).expect_status(202);
        let repo = stage.root.join(REPO);
        let lost = repo.join("blobs/sha256").join(&image.digest["sha256:".len()..]);
        fs::remove_file(&lost).expect("the loss");
        if !by_journal {
            stage.registry.expect_damage();
            let index = fs::read_to_string(repo.join("index.json")).expect("index.json");
            let entry = format!(
                r#"{{"mediaType":"application/vnd.example.artifact+json","digest":"{}","size":{}}},"#,
                image.digest,
                image.manifest.len()
            );
            let index = index.replacen(r#""manifests":["#, &format!(r#""manifests":[{entry}"#), 1);
            fs::write(repo.join("index.json"), index).expect("an entry of another tool's");
        }
        let (between, manifest, blobs) =
            (stage.between(), image.manifest.clone(), repo.join("blobs/sha256"));
        let mut come = false;
        stage.calls.rule(move |call| {
            if !come && call.name == "getdents64" && call.path == blobs {
                between.client.push_blob(REPO, &manifest);
                come = true;
            }
            Answer::Go
        });
        let window = if by_journal { "7d" } else { "0" };
        let args = ["gc", stage.root(), "--grace", "0", "--undo-window", window];
        let told = stage.run(&args).ok();
        for blob in image.layers.iter().chain([&image.config, &image.manifest]) {
            let there = client.head(&format!("/v2/{REPO}/blobs/{}", sha256(blob))).status;
            assert_eq!(there, 200, "{by_journal}: {told}");
        }
    }
}

/// Another tool, besides, is just writing index.json: who waits for it keeps nobody from pushing.
#[test]
fn a_collection_beside_deletes_while_index_json_is_written() {
    let stage = Stage::new();
    let (image, between) = (stage.pushed("v1"), stage.between());
    let index = stage.root.join(REPO).join("index.json");
    let (mut written, mut looks) = (Vec::new(), 0);
    let held = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&held);
    stage.calls.rule(move |call| {
        if looks == 0 && opens(call, &image.digest) {
            between.delete(&image);
            written = fs::read(&index).expect("index.json");
            looks = 1;
        } else if looks == 1 && call.name == "flock" && call.path == between.lock {
            fs::write(&index, "").expect("the other tool begins");
            looks = 2;
        } else if looks > 1 && call.name == "openat2" && call.path == index {
            count.fetch_add(usize::from(!is_free(&between.lock)), Ordering::Relaxed);
            looks += 1;
            if looks == 20 {
                fs::write(&index, &written).expect("the other tool ends");
            }
        }
        Answer::Go
    });
    let told = stage.run(&["gc", stage.root(), "--now", "-n"]).ok();
    assert_eq!(held.load(Ordering::Relaxed), 1, "{told}");
}
