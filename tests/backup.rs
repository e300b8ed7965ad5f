//! docs/backup.md: every command on it, run as it stands there.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use support::command::run;
use support::content::{Image, random};
use support::http::Request;
use support::recipes::{self, recipe};
use support::{Registry, STILLAGE};

/// The places that the page lets its reader set, on one file system.
struct Places {
    room: tempfile::TempDir,
}

impl Places {
    fn new() -> Places {
        let room = tempfile::Builder::new().prefix("stillage-backup-").tempdir().unwrap();
        for name in ["snapshots", "mnt"] {
            fs::create_dir(room.path().join(name)).unwrap();
        }
        Places { room }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.room.path().join(name)
    }

    fn recipe(&self, name: &str) -> support::command::Outcome {
        let places = [
            ("REGISTRY", "registry"),
            ("SNAPSHOTS", "snapshots"),
            ("BACKUP", "mnt/registry"),
            ("STANDBY", "standby"),
        ]
        .map(|(variable, place)| (variable, self.at(place)));
        let values: Vec<_> = places.iter().map(|(name, at)| (*name, at.as_path())).collect();
        recipe(name, &values)
    }

    fn serve(&self) -> Registry {
        Registry::start_on(&self.at("registry"), &["--auth", "none"])
    }

    /// Snapshots are named after the second, and sorted by it.
    fn next_second(&self) {
        let now = || run(Command::new("date").arg("+%s")).ok().stdout;
        let then = now();
        while now() == then {
            std::thread::yield_now();
        }
    }
}

fn assert_sound(tree: &Path) {
    run(Command::new(STILLAGE).arg("check").arg(tree)).ok();
}

/// The files beneath a tree that a copy has too.
fn files(root: &Path) -> BTreeSet<String> {
    let find = "find . -path ./.stillage -prune -o -type f ! -name .lock -print";
    let found = run(Command::new("sh").current_dir(root).args(["-c", find])).ok();
    found.stdout.lines().map(str::to_owned).collect()
}

#[test]
fn every_block_of_the_page_is_tried() {
    let tried = [
        "setting",
        "snapshot",
        "copy-away",
        "rotate",
        "verify",
        "live",
        "restore-one",
        "restore-all",
        "standby",
    ];
    assert_eq!(recipes::names(), tried);
    // What is exported there is what the tests set.
    let room = tempfile::tempdir().unwrap();
    recipe("setting", &[("HOME", room.path())]).ok();
}

#[test]
fn snapshots_are_copied_away_kept_and_restored() {
    let places = Places::new();
    let registry = places.serve();
    let client = registry.client();
    let [first, second] = [Image::random(40_000), Image::random(50_000)];
    client.push_image("team/app", "1.8", &first);
    client.push_image("team/other", "same", &first);
    places.recipe("snapshot").ok();
    places.recipe("copy-away").ok();
    places.recipe("verify").ok();
    assert_eq!(files(&places.at("mnt/registry")), files(&places.at("registry")));

    // Nine more, of which seven are kept; a tag moves, and an image goes.
    for _ in 0..9 {
        places.next_second();
        client.push_image("team/app", "1.8", &second);
        places.recipe("snapshot").ok();
        places.recipe("copy-away").ok();
        places.recipe("rotate").ok();
    }
    assert_eq!(fs::read_dir(places.at("snapshots")).unwrap().count(), 7);
    let kept: Vec<_> = fs::read_dir(places.at("mnt")).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(kept.len(), 1 + 7, "{kept:?}");
    for copy in kept {
        assert_sound(&copy);
    }
    places.recipe("verify").ok();

    // A blob of the backup that is damaged is found.
    let blob = files(&places.at("mnt/registry")).into_iter().find(|name| name.contains("blobs/"));
    let blob = places.at("mnt/registry").join(blob.unwrap());
    let sound = fs::read(&blob).unwrap();
    fs::remove_file(&blob).unwrap();
    fs::write(&blob, "damaged").unwrap();
    assert_eq!(places.recipe("verify").code, Some(4));
    fs::write(&blob, sound).unwrap();

    // All is lost, and comes back.
    drop(registry);
    fs::remove_dir_all(places.at("registry")).unwrap();
    places.recipe("restore-all").ok();
    let registry = places.serve();
    registry.client().assert_pulls("team/app", "1.8", &second);
    registry.client().assert_pulls("team/other", "same", &first);
}

#[test]
fn one_repository_is_restored_beside_the_running_server() {
    let places = Places::new();
    let mut registry = places.serve();
    let client = registry.client();
    let [old, new, other] = [Image::random(1000), Image::random(1000), Image::random(1000)];
    client.push_image("team/app", "1.8", &old);
    client.push_image("team/app/nested", "1", &other);
    places.recipe("snapshot").ok();
    client.push_image("team/app", "1.8", &new);
    client.push_image("team/app", "1.9", &new);
    client.push_image("team/app/nested", "2", &other);
    places.recipe("restore-one").ok();
    client.assert_pulls("team/app", "1.8", &old);
    assert_eq!(client.tags("team/app/nested"), ["1", "2"], "it was not asked for");
    let (code, text) = registry.check();
    assert!(code == Some(0) && text.contains("journal-stamp-older"), "{text}");
    client.push_image("team/app", "1.9", &new);

    // All of it is gone, and comes back.
    fs::remove_dir_all(places.at("registry/team/app")).unwrap();
    client.get("/v2/team/app/manifests/1.8").expect_status(404);
    places.recipe("restore-one").ok();
    client.assert_pulls("team/app", "1.8", &old);
    client.assert_pulls("team/app/nested", "1", &other);
    assert_eq!(client.tags("team/app"), ["1.8"]);
    client.push_image("team/app", "2.0", &new);
    registry.assert_sound();
    registry.restart();
}

/// What root restores is as the service's account had it: nobody else is let in, and nobody shut out.
#[test]
fn one_repository_comes_back_with_its_owner_and_its_parents_rights() {
    let places = Places::new();
    {
        let registry = places.serve();
        let image = Image::random(1000);
        for repo in ["team/app", "team/deep/app"] {
            registry.client().push_image(repo, "1.8", &image);
        }
    }
    let sh = |script: &str| {
        run(Command::new("sh").current_dir(places.at("registry")).args(["-euc", script]))
            .ok()
            .stdout
    };
    sh(
        "chown -R 4242:4343 . && chmod 2750 team && chmod 2770 team/deep && setfacl -m u:4444:rx team",
    );
    let status = || {
        sh("find team -path team/deep -prune -o -name .lock -prune -o -printf '%p %m %U:%G\\n' | sort
            getfacl -np team team/app")
    };
    let before = status();
    places.recipe("snapshot").ok();
    let mode = fs::metadata(places.at("snapshots")).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode, 0o700);
    let lock = || sh("stat -c '%a %u:%g' team/app/.lock");
    for lost in ["team/app", "team", "team/app/.lock"] {
        fs::remove_dir_all(places.at("registry").join(lost))
            .or_else(|_| fs::remove_file(places.at("registry").join(lost)))
            .unwrap();
        places.recipe("restore-one").ok();
        assert_eq!(lock(), "600 4242:4343\n", "{lost}");
        assert_eq!(status(), before, "{lost}");
    }
    // What was closed above it since stays closed.
    sh("chmod 2700 team && rm -r team/app");
    places.recipe("restore-one").ok();
    assert_eq!(sh("stat -c %a team"), "2700\n");
}

/// The standby is served while it follows: whoever pulls from it never finds a tag without its blobs.
#[test]
fn a_standby_follows_and_takes_over() {
    let places = Places::new();
    let registry = places.serve();
    let standby = Registry::start_on(&places.at("standby"), &["--auth", "none"]);
    let client = registry.client();
    let images = [Image::random(2000), Image::random(3000), Image::random(2000)];
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let reader = standby.client();
            let mut pulls = 0;
            while !done.load(Ordering::Relaxed) {
                let manifest = reader.get("/v2/team/app/manifests/latest");
                if manifest.status != 404 {
                    let image = images.iter().find(|image| image.manifest == manifest.body);
                    let image = image.unwrap_or_else(|| panic!("{manifest:?}"));
                    let layer = support::content::sha256(&image.layers[0]);
                    let blob = reader.get(&format!("/v2/team/app/blobs/{layer}"));
                    // It may have been deleted since the manifest was read; then so was the tag.
                    assert!(blob.status == 200 || moved(&reader, image), "{layer}: {blob:?}");
                    pulls += usize::from(blob.status == 200);
                }
            }
            assert!(pulls > 0, "nothing was pulled");
        });
        let end = Ended(&done);
        for image in &images {
            client.push_image("team/app", "latest", image);
            client.push_image(&format!("gone/{}", image.layers[0].len()), "latest", image);
            places.next_second();
            places.recipe("snapshot").ok();
            places.recipe("standby").ok();
            standby.client().assert_pulls("team/app", "latest", image);
            // What is deleted goes there too, with the next run.
            for digest in [&image.digest, &support::content::sha256(&image.layers[0])] {
                let kind = if *digest == image.digest { "manifests" } else { "blobs" };
                let path = format!("/v2/team/app/{kind}/{digest}");
                client.send(Request::delete(path)).expect_status(202);
            }
        }
        fs::remove_dir_all(places.at("registry/gone/2000")).unwrap();
        places.next_second();
        places.recipe("snapshot").ok();
        places.recipe("standby").ok();
        drop(end);
    });
    standby.client().get("/v2/team/app/manifests/latest").expect_status(404);
    standby.client().get("/v2/gone/2000/manifests/latest").expect_status(404);
    standby.client().assert_pulls("gone/3000", "latest", &images[1]);
    assert_eq!(files(&places.at("standby")), files(&places.at("registry")));
    // It takes over.
    drop(registry);
    standby.client().push_image("team/app", "latest", &Image::of(vec![random(10)], ""));
}

fn moved(reader: &support::http::Client, image: &Image) -> bool {
    reader.get("/v2/team/app/manifests/latest").body != image.manifest
}

struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn the_live_tree_is_copied_under_the_lock() {
    let places = Places::new();
    let registry = places.serve();
    let client = registry.client();
    let [first, second] = [Image::random(1000), Image::random(1000)];
    client.push_image("team/app", "1.8", &first);
    client.push_image("gone", "1", &second);
    places.recipe("live").ok();
    assert_sound(&places.at("mnt/registry"));
    assert_eq!(files(&places.at("mnt/registry")), files(&places.at("registry")));
    // A tag moves within the second, a repository goes.
    client.push_image("team/app", "1.8", &second);
    client
        .send(Request::delete(format!("/v2/team/app/manifests/{}", first.digest)))
        .expect_status(202);
    client.send(Request::delete(format!("/v2/team/app/blobs/{}", first.digest))).expect_status(202);
    fs::remove_dir_all(places.at("registry/gone")).unwrap();
    places.recipe("live").ok();
    assert_eq!(files(&places.at("mnt/registry")), files(&places.at("registry")));
    assert_sound(&places.at("mnt/registry"));
    let index = |root: &str| fs::read(places.at(root).join("team/app/index.json")).unwrap();
    assert_eq!(index("mnt/registry"), index("registry"));
    assert_eq!(fs::read_dir(places.at("mnt")).unwrap().count(), 1, "what was set aside is gone");
}
