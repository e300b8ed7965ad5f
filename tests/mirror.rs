//! Mirrors: a copy that follows its origin by what `stillage static mirror` does, served by nginx with no
//! server of ours, while images are pushed, moved, deleted and collected at the origin.
//!
//! `STILLAGE_TEST_LONG=1` makes 100 rounds (some ten minutes beside other work). The load is not seeded:
//! what is tried is how processes meet.

mod support;

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::command::{Outcome, run};
use support::content::{Image, OCI_INDEX, OCI_MANIFEST, index, random, sha256};
use support::http::{Client, Request};
use support::web::{Web, open_room, print};
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
        asked > 100 && pushes > 20 && deletes > 5 && blobs > 0,
        "{asked} {pushes} {deletes} {blobs}"
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

/// The manifest that a tag names, whose blobs are all there; `None` if there is no such tag.
fn find(client: &Client, name: &str) -> Option<Vec<u8>> {
    let (repo, tag) = name.split_once(':').expect("a tag");
    let path = format!("/v2/{repo}/manifests/{tag}");
    loop {
        let answer = client.get(&path);
        if answer.status == 404 {
            return None;
        }
        let answer = answer.expect_status(200);
        assert_eq!(answer.header("docker-content-digest"), Some(sha256(&answer.body).as_str()));
        let Some(missing) = missing(client, repo, &answer.json()) else { return Some(answer.body) };
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

/// A tree with one image, and where its mirror goes.
struct Pair {
    registry: Registry,
    room: tempfile::TempDir,
}

impl Pair {
    fn new() -> Pair {
        let room = open_room();
        let registry =
            Registry::start_on(&room.path().join("it's the origin"), &["--auth", "none"]);
        registry.client().push_image("a/b", "v1", &Image::random(1000));
        Pair { registry, room }
    }

    fn mirror(&self) -> PathBuf {
        self.room.path().join("mirror")
    }

    fn round(&self) -> Outcome {
        round(self.registry.root(), &self.mirror())
    }

    fn pulls(&self, tag: &str) -> bool {
        let web = Web::nginx(&self.mirror());
        find(&web.client(), &format!("a/b:{tag}")).is_some()
    }
}

#[test]
fn nothing_is_overwritten_that_is_no_mirror() {
    let pair = Pair::new();
    fs::create_dir(pair.mirror()).expect("a directory");
    fs::write(pair.mirror().join("mine"), "mine").expect("a file");
    let refused = pair.round().refused();
    assert!(refused.stderr.contains("is not empty, and no mirror"), "{refused}");
    assert_eq!(fs::read(pair.mirror().join("mine")).expect("there"), b"mine");
    fs::remove_file(pair.mirror().join("mine")).expect("removed");
    pair.round().ok();
    assert!(pair.pulls("v1"));

    // The two the wrong way round.
    let swapped = round(&pair.mirror(), pair.registry.root()).refused();
    assert!(swapped.stderr.contains("is not empty, and no mirror"), "{swapped}");
    // A disk that is not mounted.
    let empty = pair.room.path().join("empty");
    fs::create_dir(&empty).expect("a directory");
    let refused = round(&empty, &pair.mirror()).refused();
    assert!(refused.stderr.contains("there is no repository in"), "{refused}");
    assert!(pair.pulls("v1"));
    for (origin, mirror, why) in [
        ("/a", "/a/b", "lie in one another"),
        ("x:/a", "y:/b", "both on other hosts"),
        ("/a", "/b\n", "cannot be written"),
    ] {
        let refused = print(&["mirror", origin, mirror]);
        assert_eq!(refused.code, Some(2), "{refused}");
        assert!(refused.stderr.contains(why), "{refused}");
    }
}

#[test]
fn rounds_do_not_meet_and_the_next_one_goes_on() {
    let pair = Pair::new();
    pair.round().ok();
    let running = fs::File::open(pair.room.path().join("mirror.names/.running")).expect("there");
    running.lock().expect("the lock");
    let refused = pair.round().refused();
    assert!(refused.stderr.contains("a round is running already"), "{refused}");
    drop(running);

    // A round that ends in the middle, for its rsync cannot write: what was there stays whole.
    pair.registry.client().push_image("a/b", "v2", &Image::random(2000));
    let path = pair.room.path().join("bin");
    fs::create_dir(&path).expect("a directory");
    let rsync = "#!/bin/sh\ncase \"$*\" in *index.json*mirror/) exit 11;; esac\nexec /usr/bin/rsync \"$@\"\n";
    fs::write(path.join("rsync"), rsync).expect("a script");
    run(Command::new("chmod").arg("755").arg(path.join("rsync"))).ok();
    let mut command = Command::new(STILLAGE);
    command.args(["static", "mirror", "--run"]).arg(pair.registry.root()).arg(pair.mirror());
    let env = format!("{}:{}", path.display(), std::env::var("PATH").expect("PATH"));
    let ended = run(command.env("PATH", env));
    assert_eq!(ended.code, Some(1), "{ended}");
    assert!(ended.stderr.contains("exit code 11"), "{ended}");
    assert!(pair.pulls("v1") && !pair.pulls("v2"));
    pair.round().ok();
    assert!(pair.pulls("v1") && pair.pulls("v2"));
}

/// What is printed is what is run, and a daemon's module is an origin like a directory.
#[test]
fn the_script_runs_by_itself_from_a_daemon_too() {
    let pair = Pair::new();
    let (origin, mirror) = (pair.registry.root(), pair.mirror());
    let script = print(&["mirror", origin.to_str().expect("text"), mirror.to_str().expect("text")]);
    run(Command::new("sh").args(["-c", &script.ok().stdout])).ok();
    assert!(pair.pulls("v1"));

    pair.registry.client().push_image("a/b", "v2", &Image::random(2000));
    let daemon = Daemon::new(origin, pair.room.path());
    let url = format!("rsync://127.0.0.1:{}/registry", daemon.port);
    let script = print(&["mirror", &url, mirror.to_str().expect("text")]).ok().stdout;
    assert!(script.contains("Nothing keeps blobs at the origin"), "{script}");
    run(Command::new("sh").args(["-c", &script])).ok();
    assert!(pair.pulls("v2"));
    assert_no_secrets(&mirror);

    // From the origin to another host.
    let pushed = pair.room.path().join("pushed");
    fs::create_dir(&pushed).expect("a directory");
    let url = format!("rsync://127.0.0.1:{}/pushed", daemon.port);
    round(origin, Path::new(&url)).ok();
    let web = Web::nginx(&pushed);
    assert!(find(&web.client(), "a/b:v2").is_some());
    assert_no_secrets(&pushed);
}

/// rsync's daemon on 127.0.0.1, stopped when dropped.
struct Daemon {
    port: u16,
    child: std::process::Child,
}

impl Daemon {
    fn new(tree: &Path, room: &Path) -> Daemon {
        let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = port.local_addr().expect("its address").port();
        let settings = format!(
            "use chroot = no\nuid = root\ngid = root\n[registry]\npath = {}\nread only = yes\nexclude = /.stillage/\n[pushed]\npath = {}\nread only = no\nmunge symlinks = no\n",
            tree.display(),
            room.join("pushed").display()
        );
        fs::write(room.join("rsyncd.conf"), settings).expect("its settings");
        let mut command = Command::new("setpriv");
        command.args([
            "--pdeathsig",
            "TERM",
            "rsync",
            "--daemon",
            "--no-detach",
            "--address=127.0.0.1",
        ]);
        command.arg(format!("--port={port}")).arg("--config").arg(room.join("rsyncd.conf"));
        command.stdin(std::process::Stdio::null());
        let daemon = Daemon { port, child: command.spawn().expect("rsync is installed") };
        let until = Instant::now() + Duration::from_secs(60);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < until, "the daemon does not listen");
            thread::yield_now();
        }
        daemon
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
