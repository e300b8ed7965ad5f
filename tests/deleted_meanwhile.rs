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
use std::sync::atomic::{AtomicUsize, Ordering};

use support::calls::{Answer, Call, Calls};
use support::command::{Outcome, run};
use support::content::{Image, OCI_INDEX, OCI_MANIFEST, index, random, sha256};
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
    /// So many manifests were deleted with their content.
    deleted: Arc<AtomicUsize>,
    /// So many manifests were deleted, with their content or without.
    manifests: Arc<AtomicUsize>,
    _room: tempfile::TempDir,
}

/// Who may come between two calls: it has the server's client and the locks.
#[derive(Clone)]
struct Between {
    client: Client,
    gc_lock: PathBuf,
    lock: PathBuf,
    deleted: Arc<AtomicUsize>,
    manifests: Arc<AtomicUsize>,
}

/// Without views: a server that follows those of another makes calls of its own.
const ARGS: [&str; 3] = ["--auth", "none", "--no-views"];

impl Stage {
    fn new() -> Stage {
        let room = tempfile::tempdir().expect("a directory");
        let root = room.path().join("registry");
        let registry = Registry::start_on(&root, &ARGS);
        let (calls, [deleted, manifests]) = (Calls::on(room.path()), Default::default());
        let stage = Stage { registry, root, calls, deleted, manifests, _room: room };
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
        let [deleted, manifests] = [&self.deleted, &self.manifests].map(Arc::clone);
        Between { client: self.registry.client(), gc_lock, lock, deleted, manifests }
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

    /// Pushes an image right before the first call that is such a one, of the name and at the place in
    /// the repository, and deletes it right before the n-th call after that.
    fn between_push_and(&self, n: usize, name: &'static str, place: &str) {
        let (repo, between) = (self.root.join(REPO), self.between());
        let (place, image) = (repo.join(place), Image::random(100));
        let (mut pushed, mut calls) = (false, 0);
        self.calls.rule(move |call| {
            if pushed && call.path.starts_with(&repo) {
                calls += 1;
                if calls == n {
                    between.delete(&image);
                }
            } else if !pushed && call.name == name && call.path == place {
                between.client.push_image(REPO, "v1", &image);
                pushed = true;
            }
            Answer::Go
        });
    }

    /// Does this over and over, with a delete so many calls later each time, until nothing comes so late.
    /// Before a third of all calls at least nobody holds a lock.
    fn everywhere(&self, what: &str, every: usize, mut look: impl FnMut(usize)) {
        let first = 1 + Random::from_env("STILLAGE_DELETED_SEED").below(every);
        let repo = self.root.join(REPO);
        for (looks, n) in (first..).step_by(every).enumerate() {
            look(n);
            let calls = self.calls.done();
            self.clear();
            let calls = calls.iter().filter(|(call, _)| call.path.starts_with(&repo)).count();
            if calls < n {
                let deleted = self.deleted.load(Ordering::Relaxed);
                support::measured(format!(
                    "{what}: {deleted} deletes, each before another of {calls} calls"
                ));
                assert!(looks > 2 && 3 * deleted >= looks, "{deleted} deletes in {looks} looks");
                return;
            }
        }
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

    /// Makes a snapshot with its calls held, checks it, and clears up.
    fn assert_snapshot_is_sound(&self) {
        let copy = self.root.with_file_name("copy");
        let to = copy.to_str().expect("a path of ours");
        self.run(&["snapshot", self.root(), to]).ok();
        run(Command::new(STILLAGE).args(["check", to])).ok();
        fs::remove_dir_all(&copy).expect("the snapshot goes");
        run(Command::new(STILLAGE).args(["gc", self.root(), "--now"])).ok();
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
        self.manifests.fetch_add(1, Ordering::Relaxed);
        if is_free(&self.gc_lock) {
            self.client.delete(&format!("/v2/{REPO}/blobs/{digest}")).expect_status(202);
            self.deleted.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Whether nobody holds a lock.
fn is_free(lock: &Path) -> bool {
    let lock = File::open(lock).expect("a lock");
    // A child that another test just forks has it open too: closing it is not enough.
    lock.try_lock().is_ok() && lock.unlock().is_ok()
}

/// Whether a call opens a manifest's bytes.
fn opens(call: &Call, digest: &str) -> bool {
    call.name.starts_with("openat") && call.path.ends_with(&digest["sha256:".len()..])
}

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
/// that, and what it needs stays all the same.
#[test]
fn a_collection_beside_a_child_that_comes_as_a_blob() {
    let stage = Stage::new();
    let client = stage.registry.client();
    let image = Image::random(100);
    for blob in image.layers.iter().chain([&image.config, &image.manifest]) {
        client.push_blob(REPO, blob);
    }
    let outer = index(&[(OCI_MANIFEST, &image.manifest)]);
    client.put_manifest(REPO, "all", OCI_INDEX, &outer).expect_status(201);
    let blobs = stage.root.join(REPO).join("blobs/sha256");
    fs::remove_file(blobs.join(&image.digest["sha256:".len()..])).expect("the loss");
    let (between, manifest) = (stage.between(), image.manifest.clone());
    let mut come = false;
    stage.calls.rule(move |call| {
        if !come && call.name == "getdents64" && call.path == blobs {
            between.client.push_blob(REPO, &manifest);
            come = true;
        }
        Answer::Go
    });
    stage.run(&["gc", stage.root(), "--now"]).ok();
    for blob in image.layers.iter().chain([&image.config, &image.manifest]) {
        client.head(&format!("/v2/{REPO}/blobs/{}", sha256(blob))).expect_status(200);
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
