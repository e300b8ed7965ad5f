//! Mirrors: a copy that follows its origin by what `stillage static mirror` does, served by nginx with no
//! server of ours, while images are pushed, moved, deleted and collected at the origin.
//!
//! `STILLAGE_TEST_LONG=1` makes 100 rounds (some ten minutes beside other work). The load is not seeded:
//! what is tried is how processes meet.

mod support;

use std::collections::HashSet;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::command::{Outcome, run};
use support::content::{Image, OCI_INDEX, OCI_MANIFEST, index, random, sha256};
use support::http::{Client, Request};
use support::web::{Web, open_room};
use support::{Registry, STILLAGE};

const WRITERS: usize = 2;
const READERS: usize = 2;
const REPOSITORIES: [&str; 3] = ["m/a", "m/a/nested", "m/b"];

/// A round of the mirror.
fn round(origin: &Path, mirror: &Path) -> Outcome {
    let mut command = Command::new(STILLAGE);
    run(command.args(["static", "mirror", "--run"]).arg(origin).arg(mirror))
}

/// Tags as `repository:tag`, each used once but for the moving ones.
#[derive(Default)]
struct Load {
    /// Acknowledged, and not deleted yet.
    there: Mutex<HashSet<String>>,
    /// Deleted, and acknowledged.
    gone: Mutex<HashSet<String>>,
    pushes: AtomicU64,
    deletes: AtomicU64,
    blob_deletes: AtomicU64,
    collections: AtomicU64,
    /// Tags that were asked for of the copy, and found with all their blobs.
    asked: AtomicU64,
    done: AtomicBool,
}

impl Load {
    fn is_done(&self) -> bool {
        self.done.load(Ordering::Relaxed)
    }

    fn all(set: &Mutex<HashSet<String>>) -> HashSet<String> {
        set.lock().expect("nobody panics with it").clone()
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn who_pulls_from_a_mirror_never_meets_a_tag_without_its_blobs() {
    let rounds = if support::long() { 100 } else { 8 };
    let room = open_room();
    let [origin, mirror] = ["origin", "mirror"].map(|name| room.path().join(name));
    let registry = Registry::start_on(&origin, &["--auth", "none"]);
    for repo in REPOSITORIES {
        registry.client().push_image(repo, "first", &Image::random(500));
    }
    round(&origin, &mirror).ok();
    let web = Web::nginx(&mirror);
    let load = Load::default();
    let mut took = Vec::new();
    thread::scope(|scope| {
        for number in 0..WRITERS {
            let client = registry.client();
            let load = &load;
            scope.spawn(move || write(&client, number, load));
        }
        scope.spawn(|| collect(&origin, &load));
        for _ in 0..READERS {
            scope.spawn(|| read(&web.client(), &load));
        }
        let end = Ended(&load.done);
        for number in 0..rounds {
            let (before, pushes) = (Instant::now(), load.pushes.load(Ordering::Relaxed));
            while number > 0 && load.pushes.load(Ordering::Relaxed) < pushes + 5 {
                assert!(before.elapsed() < Duration::from_secs(120), "nothing is pushed");
                thread::yield_now();
            }
            let (there, gone) = (Load::all(&load.there), Load::all(&load.gone));
            let begin = Instant::now();
            round(&origin, &mirror).ok();
            took.push(begin.elapsed());
            let still = Load::all(&load.there);
            for tag in there.intersection(&still) {
                assert!(find(&web.client(), tag).is_some(), "{tag} is not on the mirror");
            }
            for tag in gone {
                assert!(find(&web.client(), &tag).is_none(), "{tag} is still on the mirror");
            }
            assert_no_secrets(&mirror);
        }
        drop(end);
    });
    round(&origin, &mirror).ok();
    assert_same(&registry.client(), &web.client());
    let [pushes, deletes, blobs, collections, asked] =
        [&load.pushes, &load.deletes, &load.blob_deletes, &load.collections, &load.asked]
            .map(|counter| counter.load(Ordering::Relaxed));
    took.sort();
    support::measured(format!(
        "{rounds} mirror rounds ({} ms each, {} at most) beside {pushes} pushes, {deletes} deleted tags, \
         {blobs} deleted blobs and {collections} collections: {asked} tags asked for through nginx on the \
         copy, each with all its blobs; no deleted tag after the round",
        took[took.len() / 2].as_millis(),
        took[took.len() - 1].as_millis(),
    ));
    assert!(
        asked > 100 && pushes > 20 && deletes > 5 && blobs > 0 && collections > 0,
        "{asked} {pushes} {deletes} {blobs} {collections}"
    );
}

/// Pushes images and indexes under tags that stay and tags that move, and deletes others, with their
/// blobs.
fn write(client: &Client, number: usize, load: &Load) {
    let mut last: Vec<(String, String, Image)> = Vec::new();
    for count_of in 0.. {
        if load.is_done() {
            return;
        }
        let repo = REPOSITORIES[count_of % REPOSITORIES.len()];
        let image = Image::of(vec![random(300 + 41 * (count_of % 50))], "");
        let tag = format!("w{number}n{count_of}");
        push(client, repo, &tag, &image);
        load.there.lock().expect("a lock").insert(format!("{repo}:{tag}"));
        count(&load.pushes);
        // One that moves, now an image and now an index.
        let moved = Image::random(200 + count_of % 50);
        push(client, repo, &moved.digest, &moved);
        let both = index(&[(OCI_MANIFEST, &moved.manifest)]);
        let (media_type, bytes) = match count_of % 2 {
            0 => (OCI_MANIFEST, &moved.manifest),
            _ => (OCI_INDEX, &both),
        };
        let put = client.put_manifest(repo, &format!("moving{number}"), media_type, bytes);
        put.expect_status(201);
        last.push((repo.to_owned(), tag, image));
        if last.len() > 4 {
            let (repo, tag, image) = last.remove(0);
            let name = format!("{repo}:{tag}");
            load.there.lock().expect("a lock").remove(&name);
            let path = format!("/v2/{repo}/manifests/{}", image.digest);
            client.send(Request::delete(path)).expect_status(202);
            load.gone.lock().expect("a lock").insert(name);
            count(&load.deletes);
            let layer = sha256(&image.layers[0]);
            let deleted = client.send(Request::delete(format!("/v2/{repo}/blobs/{layer}")));
            // A round holds the lock (503), or it was collected (404).
            assert!([202, 404, 503].contains(&deleted.status), "{deleted:?}");
            if deleted.status == 202 {
                count(&load.blob_deletes);
            }
        }
    }
}

/// Without grace a blob may be collected before its manifest comes: then it is pushed again.
fn push(client: &Client, repo: &str, tag: &str, image: &Image) {
    loop {
        for blob in image.layers.iter().chain([&image.config]) {
            let path = format!("/v2/{repo}/blobs/uploads/?digest={}", sha256(blob));
            client.send(Request::post(path).body(blob.as_slice())).expect_status(201);
        }
        let put = client.put_manifest(repo, tag, OCI_MANIFEST, &image.manifest);
        if put.status == 201 {
            return;
        }
        assert!([400, 404].contains(&put.status), "{put:?}");
    }
}

/// One collection after the other, without grace and without undo.
fn collect(root: &Path, load: &Load) {
    while !load.is_done() {
        let mut command = Command::new(STILLAGE);
        command.args(["gc", "--grace", "0", "--undo-window", "0"]).arg(root);
        let ended = run(&mut command);
        match ended.code {
            Some(0) => count(&load.collections),
            // A round held the lock for longer than it waits.
            Some(3) if ended.text().contains("gc.lock") => {}
            _ => panic!("{ended}"),
        }
    }
}

/// Asks for every tag of the copy, and for all that it names.
fn read(client: &Client, load: &Load) {
    while !load.is_done() {
        for repo in REPOSITORIES {
            let list = client.get(&format!("/v2/{repo}/tags/list")).expect_status(200).json();
            for tag in list["tags"].as_array().expect("tags") {
                let name = format!("{repo}:{}", tag.as_str().expect("a tag"));
                if find(client, &name).is_some() {
                    count(&load.asked);
                }
            }
        }
    }
}

/// The manifest that a tag names, which is there by its digest too, with all its blobs; `None` if there is
/// no such tag.
fn find(client: &Client, name: &str) -> Option<Vec<u8>> {
    let (repo, tag) = name.split_once(':').expect("a tag");
    let path = format!("/v2/{repo}/manifests/{tag}");
    loop {
        let answer = client.get(&path);
        if answer.status == 404 {
            return None;
        }
        let answer = answer.expect_status(200);
        let digest = sha256(&answer.body);
        assert_eq!(answer.header("docker-content-digest"), Some(digest.as_str()));
        let by_digest = client.head(&format!("/v2/{repo}/manifests/{digest}"));
        let itself = (by_digest.status != 200).then_some(digest);
        let missing = itself.or_else(|| missing(client, repo, &answer.json()));
        let Some(missing) = missing else { return Some(answer.body) };
        // It may have been deleted, or moved, since it was read: then the tag is another one.
        let again = client.get(&path);
        assert!(
            again.status == 404 || again.body != answer.body,
            "{name} is there without {missing}"
        );
    }
}

/// What a manifest names that is not there.
fn missing(client: &Client, repo: &str, manifest: &Value) -> Option<String> {
    let list = |key: &str| manifest[key].as_array().cloned().unwrap_or_default();
    let digest = |entry: &Value| entry["digest"].as_str().expect("a digest").to_owned();
    for entry in list("manifests") {
        let child = client.get(&format!("/v2/{repo}/manifests/{}", digest(&entry)));
        if child.status != 200 {
            return Some(digest(&entry));
        }
        let below = missing(client, repo, &child.json());
        if below.is_some() {
            return below;
        }
    }
    let config = manifest.get("config").cloned();
    let mut blobs = list("layers").into_iter().chain(config);
    blobs.find_map(|blob| {
        let head = client.head(&format!("/v2/{repo}/blobs/{}", digest(&blob)));
        let whole = head.header("content-length") == Some(&blob["size"].to_string());
        (head.status != 200 || !whole).then(|| digest(&blob))
    })
}

fn assert_no_secrets(mirror: &Path) {
    let find =
        "find . -name .stillage -o -name .lock -o -name '_log*' -o -name '.*.????????????????'";
    let found = run(Command::new("sh").current_dir(mirror).args(["-c", find])).ok();
    assert_eq!(found.stdout, "");
}

/// The copy says of everything what the origin says.
fn assert_same(origin: &Client, mirror: &Client) {
    for repo in REPOSITORIES {
        let path = format!("/v2/{repo}/tags/list");
        let tags = origin.get(&path).expect_status(200);
        assert_eq!(mirror.get(&path).expect_status(200).body, tags.body);
        for tag in tags.json()["tags"].as_array().expect("tags") {
            let tag = tag.as_str().expect("a tag");
            let path = format!("/v2/{repo}/manifests/{tag}");
            let found = find(mirror, &format!("{repo}:{tag}")).expect("on the mirror");
            assert_eq!(found, origin.get(&path).expect_status(200).body);
        }
    }
}
