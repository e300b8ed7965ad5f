//! Other tools write into the tree beside the server, under `flock REPO/.lock`: no tag is lost, the
//! next request sees what they did, and the views are those of index.json.
//!
//! `STILLAGE_OUTSIDERS_SEED=…` replays the choices of a run.

mod support;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{
    AtFlags, CWD, FlockOperation, Timespec, Timestamps, UTIME_OMIT, flock, utimensat,
};
use serde_json::{Value, json};
use support::Registry;
use support::command::run;
use support::containers::Containers;
use support::content::{Image, OCI_MANIFEST, sha256};
use support::http::{Client, Request};
use support::random::Random;
use support::views;

const REPOS: [&str; 3] = ["plain", "team/app", "team/app/nested"];

/// Pushers, besides the one outsider.
const PUSHERS: usize = 3;

/// Everybody tags with names of his own.
const TAGS: usize = 30;

/// What one of them has tagged: repository and tag, and the digest.
type Own = BTreeMap<(usize, String), String>;

/// What all of them work with.
struct World<'a> {
    root: &'a Path,
    client: Client,
    images: &'a [Image],
    home: &'a Containers,
}

#[test]
fn no_tag_is_lost_whoever_writes_beside_the_server() {
    const ROUNDS: usize = 10;
    const STEPS: usize = 250;
    let mut random = Random::from_env("STILLAGE_OUTSIDERS_SEED");
    let registry = Registry::start(&["--auth", "none"]);
    let home = Containers::new();
    let images: Vec<Image> = (0..12).map(|_| Image::random(500)).collect();
    for (number, image) in images.iter().enumerate() {
        write_image(&home.path().join("layout"), image);
        let tag = format!("image-{number}");
        change_index(&home.path().join("layout"), Way::Renamed, |entries| {
            set(entries, &tag, image)
        });
    }
    let world =
        World { root: registry.root(), client: registry.client(), images: &images, home: &home };
    for name in REPOS {
        world.client.push_image(name, "first", &images[0]);
    }
    let mut own: Vec<Own> = vec![Own::new(); PUSHERS + 1];
    for _ in 0..ROUNDS {
        thread::scope(|scope| {
            let (outsider, pushers) = own.split_last_mut().expect("an outsider");
            for (number, own) in pushers.iter_mut().enumerate() {
                let (mut random, world) = (random.fork(), &world);
                scope.spawn(move || {
                    let mut client = world.client.connect();
                    for _ in 0..STEPS {
                        push(world, &mut client, number, own, &mut random);
                    }
                });
            }
            let (mut random, world) = (random.fork(), &world);
            scope.spawn(move || {
                for step in 0..STEPS {
                    meddle(world, step % (STEPS / 5) == 7, outsider, &mut random);
                }
            });
        });
        for (number, name) in REPOS.iter().enumerate() {
            let all = own.iter().flatten().filter(|((repo, _), _)| *repo == number);
            let mut all: BTreeMap<String, String> =
                all.map(|((_, tag), digest)| (tag.clone(), digest.clone())).collect();
            all.insert("first".to_owned(), images[0].digest.clone());
            assert_eq!(world.tags(name), all, "{name}");
            world.views_become_right(name);
        }
    }
    support::measured(format!(
        "{} interleaved changes, 50 by skopeo and umoci",
        ROUNDS * STEPS * 4
    ));
}

impl World<'_> {
    fn path(&self, repo: usize) -> PathBuf {
        self.root.join(REPOS[repo])
    }

    /// The tags as index.json has them, which are those that the server lists.
    fn tags(&self, name: &str) -> BTreeMap<String, String> {
        let bytes = fs::read(self.root.join(name).join("index.json")).expect("index.json");
        let index: Value = serde_json::from_slice(&bytes).expect("an index");
        let entries = index["manifests"].as_array().expect("entries");
        let tag = |entry: &Value| Some((tag_of(entry)?.to_owned(), digest_of(entry)));
        let tags: BTreeMap<String, String> = entries.iter().filter_map(tag).collect();
        let listed = self.client.tags(name);
        assert_eq!(listed, tags.keys().cloned().collect::<Vec<_>>(), "{name}");
        tags
    }

    /// A request has come since the last change: views follow.
    fn views_become_right(&self, name: &str) {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(20) {
            if views::are_right(self.root, name) {
                break;
            }
            self.client.tags(name);
        }
        views::assert_right(self.root, name);
    }
}

/// One thing that a client does.
fn push(
    world: &World<'_>,
    client: &mut support::http::Connection,
    number: usize,
    own: &mut Own,
    random: &mut Random,
) {
    let repo = random.below(REPOS.len());
    let name = REPOS[repo];
    let tag = format!("p{number}-{}", random.below(TAGS));
    let path = format!("/v2/{name}/manifests/{tag}");
    let key = (repo, tag.clone());
    match random.below(100) {
        0..55 => {
            let image = random.one_of(world.images);
            let put = || Request::put(&path).header("Content-Type", OCI_MANIFEST);
            if client.send(&put().body(image.manifest.as_slice())).status != 201 {
                world.client.push_image(name, &tag, image);
            }
            own.insert(key, image.digest.clone());
        }
        55..80 => {
            let gone = if own.remove(&key).is_some() { 202 } else { 404 };
            client.send(&Request::delete(&path)).expect_status(gone);
        }
        _ => {
            let answer = client.send(&Request::get(&path));
            assert_eq!(answer.header("docker-content-digest"), own.get(&key).map(String::as_str));
        }
    }
}

/// How an outsider writes index.json.
#[derive(Clone, Copy)]
enum Way {
    /// As skopeo does: cut to nothing and written again.
    InPlace,
    /// Beside, and renamed over it.
    Renamed,
    /// In place, and the time of the last change is what it was.
    SameTime,
}

/// One thing that an outsider does, with the repository's lock; then the server is asked for it.
fn meddle(world: &World<'_>, really: bool, own: &mut Own, random: &mut Random) {
    let repo = random.below(REPOS.len());
    let tag = format!("o-{:02}", random.below(TAGS));
    let way = *random.one_of(&[Way::InPlace, Way::Renamed, Way::SameTime]);
    let number = random.below(world.images.len());
    let image = &world.images[number];
    let place = world.path(repo);
    let key = (repo, tag.clone());
    let others = own.keys().filter(|(at, _)| *at == repo).cloned().collect::<Vec<_>>();
    match (random.below(100), random.pick(&others)) {
        (0..30, Some(from)) if really => {
            let (image, digest) = (format!("{}:{}", place.display(), from.1), own[from].clone());
            run(flock_of(&place).args(["umoci", "tag", "--image", &image, &tag])).ok();
            // umoci makes it one that nobody else may read.
            let index = place.join("index.json");
            fs::set_permissions(index, fs::Permissions::from_mode(0o644)).expect("its mode");
            own.insert(key, digest);
        }
        _ if really => {
            let from = format!("oci:{}/layout:image-{number}", world.home.path().display());
            let to = format!("oci:{}:{tag}", place.display());
            run(flock_of(&place).args(["skopeo", "copy", "-q", "--preserve-digests", &from, &to]))
                .ok();
            own.insert(key, image.digest.clone());
        }
        (0..60, _) => {
            write_image(&place, image);
            locked(&place, || change_index(&place, way, |entries| set(entries, &tag, image)));
            own.insert(key, image.digest.clone());
        }
        // As long as before: nothing but its content tells that it is another one.
        (60..75, Some(from)) => {
            let mut renamed = None;
            locked(&place, || {
                change_index(&place, Way::SameTime, |entries| {
                    if entries.iter().any(|entry| tag_of(entry) == Some(&tag)) {
                        return;
                    }
                    let old = entries.iter_mut().find(|entry| tag_of(entry) == Some(&from.1));
                    let old = old.expect("one's own tag");
                    old["annotations"][REF_NAME] = tag.clone().into();
                    renamed = Some(digest_of(old));
                });
            });
            if let Some(digest) = renamed {
                own.remove(from);
                own.insert(key, digest);
            }
        }
        _ => {
            locked(&place, || change_index(&place, way, |entries| unset(entries, &tag)));
            own.remove(&key);
        }
    }
    let path = format!("/v2/{}/manifests/{tag}", REPOS[repo]);
    let answer = world.client.get(&path);
    let expected = own.get(&(repo, tag)).map(String::as_str);
    assert_eq!(answer.header("docker-content-digest"), expected, "{path}: {answer:?}");
}

const REF_NAME: &str = "org.opencontainers.image.ref.name";

fn tag_of(entry: &Value) -> Option<&str> {
    entry["annotations"][REF_NAME].as_str()
}

fn digest_of(entry: &Value) -> String {
    entry["digest"].as_str().expect("a digest").to_owned()
}

fn set(entries: &mut Vec<Value>, tag: &str, image: &Image) {
    unset(entries, tag);
    entries.push(json!({
        "mediaType": OCI_MANIFEST, "digest": image.digest, "size": image.manifest.len(),
        "annotations": { REF_NAME: tag },
    }));
}

fn unset(entries: &mut Vec<Value>, tag: &str) {
    entries.retain(|entry| tag_of(entry) != Some(tag));
}

/// Blobs as another tool leaves them: under their names at once, writable.
fn write_image(place: &Path, image: &Image) {
    let blobs = place.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("a directory");
    fs::write(place.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("oci-layout");
    for bytes in image.layers.iter().chain([&image.config, &image.manifest]) {
        let path = blobs.join(&sha256(bytes)["sha256:".len()..]);
        // Another one may have it open meanwhile: it is as good.
        if !path.exists() {
            let beside = path.with_extension("outsider");
            fs::write(&beside, bytes).and_then(|()| fs::rename(&beside, &path)).expect("a blob");
        }
    }
}

fn change_index(place: &Path, way: Way, change: impl FnOnce(&mut Vec<Value>)) {
    let path = place.join("index.json");
    let mut index = match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).expect("an index"),
        Err(_) => json!({ "schemaVersion": 2, "manifests": [] }),
    };
    change(index["manifests"].as_array_mut().expect("entries"));
    let bytes = index.to_string();
    match way {
        Way::InPlace => fs::write(&path, bytes).expect("index.json"),
        Way::Renamed => {
            let beside = place.join(".index.json.outsider");
            fs::write(&beside, bytes).and_then(|()| fs::rename(&beside, &path)).expect("renamed");
        }
        Way::SameTime => {
            let before = fs::metadata(&path).expect("index.json");
            let mut file = File::create(&path).expect("index.json");
            file.write_all(bytes.as_bytes()).expect("written");
            let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
            let then = Timespec { tv_sec: before.mtime(), tv_nsec: before.mtime_nsec() };
            let times = Timestamps { last_access: omit, last_modification: then };
            utimensat(CWD, &path, &times, AtFlags::empty()).expect("its time");
        }
    }
}

fn locked(place: &Path, deed: impl FnOnce()) {
    let file = File::options().create(true).append(true).open(place.join(".lock")).expect("a lock");
    flock(&file, FlockOperation::LockExclusive).expect("the lock");
    deed();
}

/// `flock REPO/.lock …`
fn flock_of(place: &Path) -> Command {
    let mut command = Command::new("flock");
    command.arg(place.join(".lock"));
    command
}

#[test]
fn twenty_copies_under_flock_beside_pushes_are_all_there() {
    const COPIES: usize = 20;
    let registry = Registry::start(&["--auth", "none"]);
    let home = Containers::new();
    let images: Vec<Image> = (0..COPIES).map(|_| Image::random(20_000)).collect();
    let layout = home.path().join("layout");
    for (number, image) in images.iter().enumerate() {
        write_image(&layout, image);
        let tag = format!("copied-{number:02}");
        change_index(&layout, Way::Renamed, |entries| set(entries, &tag, image));
    }
    let client = registry.client();
    let place = registry.root().join("shared/by/all");
    // As the guide has it, for a repository that is new.
    fs::create_dir_all(&place).expect("mkdir -p");
    thread::scope(|scope| {
        for number in 0..COPIES {
            let (place, layout) = (&place, &layout);
            scope.spawn(move || {
                let from = format!("oci:{}:copied-{number:02}", layout.display());
                let to = format!("oci:{}:copied-{number:02}", place.display());
                run(flock_of(place).args([
                    "skopeo",
                    "copy",
                    "-q",
                    "--preserve-digests",
                    &from,
                    &to,
                ]))
                .ok();
            });
        }
        let (images, client) = (&images, &client);
        scope.spawn(move || {
            for (number, image) in images.iter().enumerate() {
                client.push_image("shared/by/all", &format!("pushed-{number:02}"), image);
            }
        });
    });
    let numbers = 0..COPIES;
    let copied = numbers.clone().map(|number| format!("copied-{number:02}"));
    let all: Vec<String> = copied.chain(numbers.map(|n| format!("pushed-{n:02}"))).collect();
    assert_eq!(client.tags("shared/by/all"), all);
    for (number, image) in images.iter().enumerate() {
        client.assert_pulls("shared/by/all", &format!("copied-{number:02}"), image);
        client.assert_pulls("shared/by/all", &format!("pushed-{number:02}"), image);
    }
}
