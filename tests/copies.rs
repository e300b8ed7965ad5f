//! Copies beside everything: snapshots, and rsync of the live tree under the lock, while images are
//! pushed, moved and deleted and garbage is collected without grace. Every copy is a sound registry.
//!
//! `STILLAGE_TEST_LONG=1` makes 50 of each. The load is not seeded: what is tried is how processes
//! meet.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::command::run;
use support::content::{Image, OCI_MANIFEST, random, sha256};
use support::http::{Client, Request};
use support::recipes::recipe;
use support::{Registry, STILLAGE};

const WRITERS: usize = 3;
const REPOSITORIES: usize = 4;

/// What the writers met.
#[derive(Default)]
struct Load {
    pushes: AtomicU64,
    /// A blob was collected before its manifest came, as is right without grace: the push is repeated.
    repeated: AtomicU64,
    /// Blobs that were deleted.
    deleted: AtomicU64,
    /// Deletes that found the lock held for longer than they wait.
    refused: AtomicU64,
    slowest_push_ms: AtomicU64,
    collections: AtomicU64,
}

impl Load {
    fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn of(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }
}

#[test]
fn copies_beside_pushes_deletes_and_collections_are_sound_registries() {
    let many = if support::long() { 50 } else { 6 };
    let room = tempfile::Builder::new().prefix("stillage-copies-").tempdir().unwrap();
    let registry = Registry::start_on(&room.path().join("registry"), &["--auth", "none"]);
    let load = Load::default();
    let done = AtomicBool::new(false);
    let mut held = Vec::new();
    let mut took = [Duration::ZERO; 2];
    thread::scope(|scope| {
        for number in 0..WRITERS {
            let client = registry.client();
            let (load, done) = (&load, &done);
            scope.spawn(move || write(&client, number, load, done));
        }
        scope.spawn(|| collect(registry.root(), &load, &done));
        let end = Ended(&done);
        let begun = Instant::now();
        while Load::of(&load.pushes) < 20 {
            assert!(begun.elapsed() < Duration::from_secs(120), "nothing is pushed");
            thread::yield_now();
        }
        for number in 0..many {
            let begin = Instant::now();
            let copy = room.path().join(format!("snapshot{number}"));
            held.push(snapshot(registry.root(), &copy));
            took[0] += begin.elapsed();
            assert_sound(&copy, true);

            let begin = Instant::now();
            // Into the same place each time, as a backup goes; every fifth begins anew.
            let copy = room.path().join(format!("live{}", number / 5));
            recipe("live", &[("REGISTRY", registry.root()), ("BACKUP", &copy)]).ok();
            took[1] += begin.elapsed();
            assert_sound(&copy, false);
        }
        drop(end);
    });
    // What was deleted and collected meanwhile harmed no snapshot, and neither does deleting one.
    for number in 0..many {
        let copy = room.path().join(format!("snapshot{number}"));
        assert_sound(&copy, true);
        fs::remove_dir_all(copy).unwrap();
    }
    registry.assert_sound();
    support::measured(format!(
        "{many} snapshots ({} ms each, gc.lock held for {} ms at most) and {many} live copies ({} ms \
         each) beside {} pushes (the slowest {} ms, {} repeated), {} deleted blobs ({} deletes told \
         to come again) and {} collections: each sound",
        took[0].as_millis() / many,
        held.iter().max().unwrap(),
        took[1].as_millis() / many,
        Load::of(&load.pushes),
        Load::of(&load.slowest_push_ms),
        Load::of(&load.repeated),
        Load::of(&load.deleted),
        Load::of(&load.refused),
        Load::of(&load.collections),
    ));
    assert!(Load::of(&load.deleted) > 20, "{} blobs were deleted", Load::of(&load.deleted));
    assert!(Load::of(&load.pushes) > 50, "{} pushes", Load::of(&load.pushes));
    let collections = Load::of(&load.collections);
    assert!(collections >= 5, "{collections} collections");
}

/// A moment is less than what a delete waits for the lock, and what collection works for at a time.
fn snapshot(root: &Path, copy: &Path) -> u64 {
    let mut command = Command::new(STILLAGE);
    command.args(["snapshot", "--json"]).arg(root).arg(copy);
    let told: Value = serde_json::from_str(&run(&mut command).ok().stdout).unwrap();
    assert_eq!(told["warnings"], serde_json::json!([]), "{told}");
    told["summary"]["longest_lock_ms"].as_u64().unwrap()
}

/// Pushes images, some of their layers in common, under tags that move and tags that stay; deletes
/// others, manifest and blobs.
fn write(client: &Client, number: usize, load: &Load, done: &AtomicBool) {
    let common = [0u8, 1, 2].map(|n| vec![n; 3000]);
    let mut last: Vec<(String, Image)> = Vec::new();
    for count in number.. {
        if done.load(Ordering::Relaxed) {
            return;
        }
        let repo = format!("copied/r{}", count % REPOSITORIES);
        let layers = vec![random(500 + 37 * (count % 90)), common[count % 3].clone()];
        let image = Image::of(layers, "");
        let tag = match count % 3 {
            0 => format!("w{number}n{count}"),
            _ => format!("moving{}", count % 2),
        };
        let begin = Instant::now();
        push(client, &repo, &tag, &image, load);
        let took = u64::try_from(begin.elapsed().as_millis()).unwrap();
        load.slowest_push_ms.fetch_max(took, Ordering::Relaxed);
        Load::count(&load.pushes);
        last.push((repo, image));
        if last.len() > 3 {
            let (repo, image) = last.remove(0);
            delete(client, &repo, &image, load);
        }
    }
}

fn push(client: &Client, repo: &str, tag: &str, image: &Image, load: &Load) {
    loop {
        for blob in image.layers.iter().chain([&image.config]) {
            let path = format!("/v2/{repo}/blobs/uploads/?digest={}", sha256(blob));
            client.send(Request::post(path).body(blob.as_slice())).expect_status(201);
        }
        let put = client.put_manifest(repo, tag, OCI_MANIFEST, &image.manifest);
        if put.status == 201 {
            return;
        }
        // Without grace nothing that no manifest names is safe.
        assert!([400, 404].contains(&put.status), "{put:?}");
        Load::count(&load.repeated);
    }
}

fn delete(client: &Client, repo: &str, image: &Image, load: &Load) {
    let manifest = Request::delete(format!("/v2/{repo}/manifests/{}", image.digest));
    client.send(manifest).expect_status(202);
    let blobs = [&image.manifest, &image.layers[0], &image.config];
    for digest in blobs.map(|bytes| sha256(bytes)) {
        let answer = client.send(Request::delete(format!("/v2/{repo}/blobs/{digest}")));
        match answer.status {
            202 => Load::count(&load.deleted),
            // Collected before.
            404 => {}
            503 => Load::count(&load.refused),
            _ => panic!("{answer:?}"),
        }
    }
}

/// One collection after the other, without grace and without undo.
fn collect(root: &Path, load: &Load, done: &AtomicBool) {
    while !done.load(Ordering::Relaxed) {
        let mut command = Command::new(STILLAGE);
        command.args(["gc", "--grace", "0", "--undo-window", "0"]).arg(root);
        let ended = run(&mut command);
        match ended.code {
            Some(0) => Load::count(&load.collections),
            // A live copy held the lock for longer than it waits.
            Some(3) if ended.stderr.contains("gc.lock") || ended.stdout.contains("gc.lock") => {}
            _ => panic!("{ended}"),
        }
    }
}

/// `check` finds nothing, and every tag is there with all that it needs, as a client without a
/// registry reads it.
fn assert_sound(copy: &Path, exactly: bool) {
    let check = run(Command::new(STILLAGE).args(["check", "--json"]).arg(copy)).ok();
    let report: Value = serde_json::from_str(&check.stdout).unwrap();
    // The journal of a live copy is read after index.json and may know more, and so may views, which say
    // nothing there: whoever serves it compares them.
    let allowed =
        |rule: &Value| !exactly && (rule == "journal-stamp-older" || rule == "views-stale");
    let findings = report["findings"].as_array().unwrap();
    let found: Vec<_> = findings.iter().filter(|finding| !allowed(&finding["rule"])).collect();
    assert!(found.is_empty(), "{}: {found:#?}", copy.display());
    let mut tags = 0;
    for number in 0..REPOSITORIES {
        let repo = copy.join(format!("copied/r{number}"));
        let text = fs::read(repo.join("index.json")).expect("the repository is there");
        let index: Value = serde_json::from_slice(&text).unwrap();
        let mut tag = None;
        for entry in index["manifests"].as_array().unwrap() {
            let manifest = read(&repo, entry);
            let manifest: Value = serde_json::from_slice(&manifest).unwrap();
            let layers = manifest["layers"].as_array().unwrap();
            for blob in layers.iter().chain([&manifest["config"]]) {
                read(&repo, blob);
            }
            let name = &entry["annotations"]["org.opencontainers.image.ref.name"];
            tag = name.as_str().map(str::to_owned).or(tag);
            tags += u64::from(name.is_string());
        }
        if let Some(tag) = tag {
            let reference = format!("oci:{}:{tag}", repo.display());
            run(Command::new("skopeo").args(["inspect", "--raw", &reference])).ok();
        }
    }
    assert!(tags > 0, "no tag in {}", copy.display());
}

/// A blob by its descriptor.
fn read(repo: &Path, descriptor: &Value) -> Vec<u8> {
    let digest = descriptor["digest"].as_str().unwrap();
    let path: PathBuf = repo.join("blobs").join(digest.replace(':', "/"));
    let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(sha256(&bytes), digest);
    bytes
}

struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
