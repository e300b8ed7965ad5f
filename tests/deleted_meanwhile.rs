//! A manifest is deleted, and its content right after it, while somebody looks: before every system call
//! with which a pull, a collection, a check and a snapshot touch the repository, in turn.
//!
//! Whoever looks reads index.json first, and later what it names: what has gone by then is not missing.
//! The deletes are requests to a server of their own, as anybody may send them at any time; where the
//! one who looks holds the lock that they need, they would have to wait, and are left out. Of a check the
//! short form takes every third call, others each time, the long form all.

mod support;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use support::calls::{Answer, Call, Calls};
use support::command::{Outcome, run};
use support::content::{Image, OCI_MANIFEST, random};
use support::http::Client;
use support::random::Random;
use support::{Registry, STILLAGE};

/// Where it all happens.
const REPO: &str = "a";

/// A tree and the server to which the deletes are sent. Its own calls are not held.
struct Stage {
    registry: Registry,
    root: PathBuf,
    /// On the calls of whoever looks, at the tree and at what lies beside it.
    calls: Calls,
    _room: tempfile::TempDir,
}

/// Who may come between two calls: it has the server's client and the locks.
#[derive(Clone)]
struct Between {
    client: Client,
    gc_lock: PathBuf,
    lock: PathBuf,
}

impl Stage {
    fn new() -> Stage {
        let room = tempfile::tempdir().expect("a directory");
        let root = room.path().join("registry");
        let registry = Registry::start_on(&root, &["--auth", "none"]);
        let calls = Calls::on(room.path());
        let stage = Stage { registry, root, calls, _room: room };
        stage.registry.client().push_image(REPO, "stays", &Image::random(100));
        stage
    }

    fn pushed(&self, tag: &str) -> Image {
        let image = Image::random(100);
        self.registry.client().push_image(REPO, tag, &image);
        image
    }

    fn between(&self) -> Between {
        let lock = self.root.join(REPO).join(".lock");
        let gc_lock = self.root.join(".stillage/gc.lock");
        Between { client: self.registry.client(), gc_lock, lock }
    }

    /// Does something right before the n-th call from now on that touches the repository.
    fn before(&self, n: usize, deed: impl Fn() + Send + 'static) {
        let (repo, mut calls) = (self.root.join(REPO), 0);
        self.calls.rule(move |call| {
            calls += usize::from(call.path.starts_with(&repo));
            if calls == n && call.path.starts_with(&repo) {
                deed();
            }
            Answer::Go
        });
    }

    /// Does this over and over, with a delete so many calls later each time, until nothing comes so late.
    fn everywhere(&self, every: usize, mut look: impl FnMut(usize)) -> usize {
        let first = 1 + Random::from_env("STILLAGE_DELETED_SEED").below(every);
        for n in (first..).step_by(every) {
            look(n);
            let repo = self.root.join(REPO);
            let calls = self.calls.done();
            self.clear();
            if calls.iter().filter(|(call, _)| call.path.starts_with(&repo)).count() < n {
                return n;
            }
        }
        unreachable!("a program makes so many calls and no more")
    }

    /// What was not deleted goes now: the repository stays as small as it was.
    fn clear(&self) {
        let (client, manifests) = (self.registry.client(), format!("/v2/{REPO}/manifests"));
        if let Some(digest) =
            client.head(&format!("{manifests}/v1")).header("docker-content-digest")
        {
            client.delete(&format!("{manifests}/{digest}")).expect_status(202);
        }
    }

    /// Runs `stillage` with its calls held.
    fn run(&self, args: &[&str]) -> Outcome {
        let mut command = Command::new(STILLAGE);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = self.calls.spawn(&mut command).expect("the command starts");
        let output = child.wait_with_output().expect("the command ends");
        Outcome {
            line: format!("stillage {}", args.join(" ")),
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    fn root(&self) -> &str {
        self.root.to_str().expect("a path of ours")
    }
}

impl Between {
    /// Deletes a manifest, and then its bytes.
    fn delete(&self, image: &Image) {
        if !is_free(&self.lock) {
            return;
        }
        let digest = &image.digest;
        self.client.delete(&format!("/v2/{REPO}/manifests/{digest}")).expect_status(202);
        if is_free(&self.gc_lock) {
            self.client.delete(&format!("/v2/{REPO}/blobs/{digest}")).expect_status(202);
        }
    }
}

/// Whether nobody holds a lock.
fn is_free(lock: &Path) -> bool {
    File::open(lock).expect("a lock").try_lock().is_ok()
}

/// Whether a call opens a manifest's bytes.
fn opens(call: &Call, digest: &str) -> bool {
    call.name.starts_with("openat") && call.path.ends_with(&digest["sha256:".len()..])
}

/// Somebody who pulls gets it, or hears that it is not there.
#[test]
fn a_pull_of_what_is_being_deleted() {
    let stage = Stage::new();
    let held = Registry::start_held(&stage.calls, &stage.root, &["--auth", "none"]);
    let last = stage.everywhere(1, |n| {
        let (image, between) = (stage.pushed("v1"), stage.between());
        let gone = image.clone();
        stage.before(n, move || between.delete(&gone));
        let got = held.client().get(&format!("/v2/{REPO}/manifests/v1"));
        match got.status {
            200 => assert_eq!(got.body, image.manifest, "call {n}"),
            _ => drop(got.expect_error(404, "MANIFEST_UNKNOWN")),
        }
    });
    support::measured(format!("deleted before each of {last} calls of a pull"));
}

/// A tag that is moved, and what it named before deleted, is there all the time.
#[test]
fn a_pull_of_a_tag_that_is_being_moved() {
    let stage = Stage::new();
    let held = Registry::start_held(&stage.calls, &stage.root, &["--auth", "none"]);
    stage.everywhere(1, |n| {
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

#[test]
fn a_collection_beside_deletes() {
    let stage = Stage::new();
    let last = stage.everywhere(1, |n| {
        let (image, between) = (stage.pushed("v1"), stage.between());
        between.client.push_blob(REPO, &random(100));
        stage.before(n, move || between.delete(&image));
        stage.run(&["gc", stage.root(), "--now"]).ok();
    });
    support::measured(format!("deleted before each of {last} calls of a collection"));
}

#[test]
fn a_check_beside_deletes() {
    let stage = Stage::new();
    // It waits for half a second of rest wherever something seems to be missing.
    let every = if support::long() { 1 } else { 3 };
    let last = stage.everywhere(every, |n| {
        let (image, between) = (stage.pushed("v1"), stage.between());
        stage.before(n, move || between.delete(&image));
        stage.run(&["check", stage.root()]).ok();
        run(Command::new(STILLAGE).args(["gc", stage.root(), "--now"])).ok();
    });
    support::measured(format!("deleted before {} of {last} calls of a check", last / every));
}

#[test]
fn a_snapshot_beside_deletes() {
    let stage = Stage::new();
    let copy = stage.root.with_file_name("copy");
    let to = copy.to_str().expect("a path of ours");
    let last = stage.everywhere(1, |n| {
        let (image, between) = (stage.pushed("v1"), stage.between());
        stage.before(n, move || between.delete(&image));
        stage.run(&["snapshot", stage.root(), to]).ok();
        run(Command::new(STILLAGE).args(["check", to])).ok();
        fs::remove_dir_all(&copy).expect("the snapshot goes");
        run(Command::new(STILLAGE).args(["gc", stage.root(), "--now"])).ok();
    });
    support::measured(format!("deleted before each of {last} calls of a snapshot"));
}

/// What came since a collection marked is read once more before it takes its locks.
#[test]
fn a_collection_beside_a_push_that_is_deleted_again() {
    let stage = Stage::new();
    let garbage = stage.registry.client().push_blob(REPO, b"garbage");
    let image = Image::random(100);
    let (between, newcomer) = (stage.between(), image.clone());
    let blobs = stage.root.join(REPO).join("blobs/sha256");
    let (mut pushed, deleted) = (false, Arc::new(AtomicBool::new(false)));
    let done = Arc::clone(&deleted);
    stage.calls.rule(move |call| {
        if !pushed && call.name == "getdents64" && call.path == blobs {
            between.client.push_image(REPO, "v1", &newcomer);
            pushed = true;
        }
        let first = opens(call, &newcomer.digest) && !done.load(Ordering::Relaxed);
        if pushed && first && is_free(&between.lock) {
            between.delete(&newcomer);
            done.store(true, Ordering::Relaxed);
        }
        Answer::Go
    });
    let told = stage.run(&["gc", stage.root(), "--now"]).ok();
    assert!(deleted.load(Ordering::Relaxed), "{told}");
    assert!(!stage.root.join(REPO).join("blobs/sha256").join(&garbage["sha256:".len()..]).exists());
}

/// What is missing for good is told, however often index.json becomes another one meanwhile.
#[test]
fn a_collection_of_what_is_damaged_beside_pushes() {
    let mut stage = Stage::new();
    stage.registry.expect_damage();
    let image = stage.pushed("v1");
    let bytes = stage.root.join(REPO).join("blobs/sha256").join(&image.digest["sha256:".len()..]);
    fs::remove_file(bytes).expect("the damage");
    let looks = Arc::new(AtomicUsize::new(0));
    let (client, digest, count) =
        (stage.registry.client(), image.digest.clone(), Arc::clone(&looks));
    stage.calls.rule(move |call| {
        if opens(call, &digest) {
            client.push_image(REPO, "other", &Image::random(100));
            count.fetch_add(1, Ordering::Relaxed);
        }
        Answer::Go
    });
    let told = stage.run(&["gc", stage.root(), "--now"]);
    assert_eq!(told.code, Some(3), "{told}");
    assert!(told.text().contains("is missing, and index.json names it"), "{told}");
    assert!(told.text().contains(&image.digest["sha256:".len()..]), "{told}");
    // Ten times by the repository's collection, and once by that of the pool.
    assert_eq!(looks.load(Ordering::Relaxed), 11, "{told}");
}
