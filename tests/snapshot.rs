//! `stillage snapshot`: what it keeps, what it shares, and what it refuses.

mod layouts;
mod snapshots;
mod support;

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use layouts::{disk, findings, valid};
use serde_json::Value;
use snapshots::{Beside, acls, picture, read_only, sh};
use stillage::layout::{RealDisk, Stamp};
use stillage::upkeep::snapshot::{Options, snapshot};
use support::command::run;
use support::content::{Image, random, sha256};
use support::volume::{MOST_LINKS, Volume};
use support::{Registry, STILLAGE};

#[test]
fn owners_groups_modes_acls_and_times_are_kept_as_rsync_keeps_them() {
    let beside = Beside::new();
    sh(
        &beside,
        "cd registry
         chmod 1775 .
         setfacl -m d:u:4242:rwx,d:g:4343:rx team
         setfacl -m u:4242:rwx team/app
         setfacl -m u:4242:rw team/app/index.json
         chown -R 4244:4345 team/other
         chmod 2770 team/other
         mkdir team/app/_manifests
         ln -s ../blobs/sha256/00 team/app/_manifests/1.8.oci-image
         echo theirs > team/app/.hidden
         chown 4246 team/app/.hidden
         mkdir -m 0500 'team/their things'
         echo more > 'team/their things/more'
         ln -s app team/link
         chown -h 4247 team/link
         find . -path ./.stillage -prune -o -exec touch -h -d '2002-03-04 05:06:07.891' {} +
         touch -h -d '2001-02-03 04:05:06.789' team/link team/app/index.json team/app/blobs",
    )
    .ok();
    // (rsync leaves a time alone that is right to the second: hence old ones.)
    sh(&beside, "rsync -aHA --numeric-ids --exclude=/.stillage/ --exclude=.lock registry/ rsynced")
        .ok();
    beside.snapshot("copy", &[]).ok();
    let (expected, found) = (picture(&beside.at("rsynced")), picture(&beside.at("copy")));
    for (path, expected) in &expected {
        assert_eq!(found.get(path), Some(expected), "{}", path.display());
    }
    assert_eq!(found.len(), expected.len());
    assert_eq!(acls(&beside.at("copy")), acls(&beside.at("rsynced")));
    assert!(expected.len() > 30, "{expected:#?}");
}

#[test]
fn blobs_are_shared_and_what_names_them_is_not() {
    let beside = Beside::new();
    let large = random(64 << 20);
    let blob = format!("team/app/blobs/sha256/{}", &sha256(&large)["sha256:".len()..]);
    fs::write(beside.at("registry").join(&blob), &large).unwrap();
    read_only(&beside.at("registry").join(&blob));
    fs::write(beside.at("registry/team/app/_log.1.jsonl"), "").unwrap();
    let told = beside.json("copy", &[]);
    let mut blobs = 0;
    for path in disk::walk(&beside.at("copy")) {
        let inside = path.strip_prefix(beside.at("copy")).unwrap();
        let twin = beside.at("registry").join(inside);
        let (own, other) = (path.metadata().unwrap(), twin.metadata().unwrap());
        if own.is_file() {
            let is_blob = inside.to_string_lossy().contains("/blobs/");
            blobs += u64::from(is_blob);
            assert_eq!(own.ino() == other.ino(), is_blob, "{}", inside.display());
            assert!(is_blob || own.nlink() == 1, "{}", inside.display());
        }
    }
    assert_eq!(told["summary"]["blobs_linked"], blobs);
    assert_eq!(told["summary"]["blobs_copied"], 0);
    assert!(told["summary"]["bytes_linked"].as_u64().unwrap() > 64 << 20, "{told}");
    assert!(told["summary"]["bytes_copied"].as_u64().unwrap() < 1 << 20, "{told}");
    let room = sh(&beside, "du -sk registry copy | sed -n '2s/\\t.*//p'").ok().stdout;
    assert!(room.trim().parse::<u64>().unwrap() < 1024, "{room} KiB for a copy of 64 MiB");
    assert_eq!(findings(&beside.at("copy")).0, []);
    assert!(!beside.at("copy/.stillage").exists() && !beside.at("copy/team/app/.lock").exists());
}

/// What is done to a snapshot that is served stays there.
#[test]
fn serving_pushing_collecting_and_deleting_leave_the_tree_alone() {
    let beside = Beside::new();
    beside.snapshot("copy", &[]).ok();
    let before = picture(&beside.at("registry"));
    {
        let served = Registry::start_on(&beside.at("copy"), &["--auth", "none"]);
        let client = served.client();
        let old = client.get("/v2/team/app/manifests/1.8").expect_status(200);
        client.push_image("team/app", "2.0", &Image::random(1000));
        client.push_image("team/app", "1.8", &Image::random(1000));
        client.push_image("new/one", "latest", &Image::random(1000));
        let other = client.get("/v2/team/other/manifests/copy").expect_status(200);
        let digest = other.header("docker-content-digest").expect("a digest").to_owned();
        client
            .send(support::http::Request::delete(format!("/v2/team/other/manifests/{digest}")))
            .expect_status(202);
        client
            .send(support::http::Request::delete(format!("/v2/team/other/blobs/{digest}")))
            .expect_status(202);
        assert!(old.body != client.get("/v2/team/app/manifests/1.8").body);
        assert_eq!(picture(&beside.at("registry")), before);
    }
    // As skopeo does it: in place.
    fs::write(beside.at("copy/team/app/index.json"), "{}").unwrap();
    assert_eq!(picture(&beside.at("registry")), before);
    fs::remove_dir_all(beside.at("copy")).unwrap();
    assert_eq!(picture(&beside.at("registry")), before);
    assert_eq!(findings(&beside.at("registry")).0, []);
}

#[test]
fn a_place_that_will_not_do_is_refused_and_nothing_is_made() {
    let beside = Beside::new();
    fs::create_dir(beside.at("full")).unwrap();
    fs::write(beside.at("full/file"), "").unwrap();
    fs::write(beside.at("file"), "").unwrap();
    symlink("registry/team", beside.at("way")).unwrap();
    symlink("nowhere", beside.at("dangling")).unwrap();
    let names = beside.names();
    let tree = disk::fingerprint(&beside.at("registry"));
    let elsewhere = format!("/dev/shm/stillage-{}", std::process::id());
    for (dest, words) in [
        ("registry/copy", "lies in registry"),
        ("way/copy", "lies in registry"),
        ("registry", "is not an empty directory"),
        ("full", "is not an empty directory"),
        ("file", "is not an empty directory"),
        ("dangling", "is not an empty directory"),
        ("none/copy", "none"),
        ("..", "does not end in the name"),
        (&elsewhere, "rsync -aHA --numeric-ids SNAPSHOT/ /dev/shm/"),
    ] {
        let refused = beside.snapshot(dest, &[]).refused();
        assert_eq!(refused.code, Some(1), "{refused}");
        assert!(refused.stderr.contains(words), "{dest}: {refused}");
    }
    let refused = beside.snapshot("copy", &["--previous", "registry"]).refused();
    assert!(refused.stderr.contains("the tree itself"), "{refused}");
    fs::write(beside.at("registry/.stillage/version"), "2\n").unwrap();
    let refused = beside.snapshot("copy", &[]).refused();
    assert!(refused.stderr.contains("another version"), "{refused}");
    fs::write(beside.at("registry/.stillage/version"), "1\n").unwrap();
    assert_eq!(beside.names(), names);
    assert_ne!(disk::fingerprint(&beside.at("registry")), tree, "the version was written");

    // An empty directory is a place.
    fs::create_dir(beside.at("empty")).unwrap();
    beside.snapshot("empty/", &[]).ok();
    assert_eq!(findings(&beside.at("empty")).0, []);
}

#[test]
fn a_dry_run_says_the_same_and_makes_nothing() {
    let beside = Beside::new();
    let before = (beside.names(), disk::fingerprint(&beside.at("registry")));
    let would = beside.json("copy", &["-n"]);
    assert_eq!((beside.names(), disk::fingerprint(&beside.at("registry"))), before);
    let did = beside.json("copy", &[]);
    let same = |told: &Value| {
        let mut summary = told["summary"].clone();
        summary["longest_lock_ms"] = Value::Null;
        summary
    };
    assert_eq!(same(&would), same(&did));
    assert_eq!((&would["dry_run"], &did["dry_run"]), (&Value::Bool(true), &Value::Bool(false)));
}

/// The owner of the tree may not link what others put there (fs.protected_hardlinks): it is copied,
/// once.
#[test]
fn others_blobs_are_copied_where_they_cannot_be_linked() {
    let protected = fs::read_to_string("/proc/sys/fs/protected_hardlinks").unwrap();
    assert_eq!(protected.trim(), "1", "the kernel's usual setting");
    let beside = Beside::new();
    let owner = ["setpriv", "--reuid=4242", "--regid=4242", "--clear-groups"];
    sh(&beside, "chown -R 4242:4242 . && chgrp 4343 registry/team && chmod 2770 registry/team")
        .ok();
    let theirs = random(5000);
    let name = format!("team/app/blobs/sha256/{}", &sha256(&theirs)["sha256:".len()..]);
    let theirs_at = beside.at("registry").join(&name);
    fs::write(&theirs_at, &theirs).unwrap();
    fs::set_permissions(&theirs_at, Permissions::from_mode(0o644)).unwrap();
    File::options()
        .write(true)
        .open(&theirs_at)
        .unwrap()
        .set_modified(SystemTime::now() - Duration::from_secs(100))
        .unwrap();
    fs::hard_link(&theirs_at, theirs_at.with_file_name("not-a-digest")).unwrap();
    let made = |name: &str| {
        let outcome = run(Command::new(owner[0])
            .args(&owner[1..])
            .current_dir(beside.room.path())
            .args([STILLAGE, "snapshot", "--json", "registry", name]))
        .ok();
        serde_json::from_str::<Value>(&outcome.stdout).unwrap()
    };
    let first = made("copy");
    assert_eq!(first["summary"]["blobs_copied"], 1, "{first}");
    assert_eq!(first["summary"]["from_previous"], 0, "{first}");
    assert!(first["warnings"][0]["message"].as_str().unwrap().contains("as root"), "{first}");
    let copy = beside.at("copy").join(&name);
    assert_eq!(fs::read(&copy).unwrap(), theirs);
    assert_eq!(copy.metadata().unwrap().uid(), 4242);
    // Whoever had rights by the group that could not be kept has none.
    assert_eq!(beside.at("copy/team").metadata().unwrap().mode() & 0o7777, 0o700);
    let second = made("later");
    assert_eq!(second["summary"]["from_previous"], 1, "{second}");
    let later = beside.at("later").join(&name).metadata().unwrap();
    assert_eq!(later.ino(), copy.metadata().unwrap().ino());
    // Another content of the same length is not taken for the same.
    let other: Vec<u8> = theirs.iter().map(|byte| !byte).collect();
    fs::write(&theirs_at, &other).unwrap();
    assert_eq!(made("last")["summary"]["from_previous"], 0);
    assert_eq!(fs::read(beside.at("last").join(&name)).unwrap(), other);
    assert_eq!(fs::read(&copy).unwrap(), theirs);

    // Root copies it too, and keeps the group.
    let whole = beside.json("by-root", &[]);
    assert_eq!(whole["summary"]["blobs_copied"], 1, "{whole}");
    assert_eq!(whole["warnings"], serde_json::json!([]), "{whole}");
    assert_eq!(beside.at("by-root/team").metadata().unwrap().gid(), 4343);

    // Another account takes no part.
    let stranger = run(Command::new("setpriv")
        .args(["--reuid=4299", "--regid=4299", "--clear-groups"])
        .current_dir(beside.room.path())
        .args([STILLAGE, "snapshot", "registry", "/tmp/stillage-stranger"]));
    assert!(stranger.refused().stderr.contains("as root"));
}

/// Whoever may still change a file shares it with no snapshot.
#[test]
fn what_others_may_change_is_copied() {
    let beside = Beside::new();
    sh(&beside, "chown -R 4242:4242 registry").ok();
    let blobs = beside.at("registry/team/app/blobs/sha256");
    let put = |mode: u32, uid: u32| {
        let content = random(3000);
        let at = blobs.join(&sha256(&content)["sha256:".len()..]);
        fs::write(&at, &content).unwrap();
        chown(&at, Some(uid), Some(4242)).unwrap();
        fs::set_permissions(&at, Permissions::from_mode(mode)).unwrap();
        (at, content)
    };
    let (theirs, own) = ([put(0o644, 5151), put(0o444, 5151), put(0o644, 4242)], put(0o444, 4242));
    let would = beside.json("copy", &["-n"]);
    let did = beside.json("copy", &[]);
    for told in [&would, &did] {
        assert_eq!(told["summary"]["blobs_copied"], 3, "{told}");
    }
    assert_eq!(would["summary"]["blobs_linked"], did["summary"]["blobs_linked"]);
    let inside = |root: &str, at: &Path| {
        beside.at(root).join(at.strip_prefix(beside.at("registry")).unwrap())
    };
    let ino = |at: &Path| at.metadata().unwrap().ino();
    assert_eq!(ino(&inside("copy", &own.0)), ino(&own.0));
    let later = beside.json("later", &[]);
    assert_eq!(later["summary"]["from_previous"], 3, "{later}");
    for (at, content) in &theirs {
        let copy = inside("copy", at);
        assert_eq!(ino(&copy), ino(&inside("later", at)), "it is copied once");
        // As its owner may.
        fs::write(at, "another").unwrap();
        assert_eq!(&fs::read(&copy).unwrap(), content);
    }

    // An earlier snapshot that shares it is no place to take it from.
    fs::remove_dir_all(beside.at("copy")).unwrap();
    let (at, _) = &theirs[0];
    let shared = inside("later", at);
    fs::remove_file(&shared).unwrap();
    fs::hard_link(at, &shared).unwrap();
    beside.json("last", &["--previous", "later"]);
    assert_ne!(ino(&inside("last", at)), ino(at));
}

#[test]
fn where_no_link_is_left_one_copy_serves_all() {
    let ext4 = Volume::ext4(256, &[]);
    let tree = disk::place(&valid::written());
    let at = |name: &str| ext4.path().join(name);
    run(Command::new("cp").arg("-a").arg(tree.path()).arg(at("registry"))).ok();
    let blobs = |root: &str, repo: &str| at(root).join(repo).join("blobs/sha256");
    let shared = fs::read_dir(blobs("registry", "team/other")).unwrap();
    let name = shared.map(|entry| entry.unwrap().file_name()).min().unwrap();
    let blob = blobs("registry", "team/other").join(&name);
    assert_eq!(
        blob.metadata().unwrap().ino(),
        blobs("registry", "team/app").join(&name).metadata().unwrap().ino()
    );
    fs::create_dir(at("links")).unwrap();
    for number in blob.metadata().unwrap().nlink()..MOST_LINKS {
        fs::hard_link(&blob, at("links").join(number.to_string())).unwrap();
    }
    let options = Options::default();
    let made = |name: &str| {
        let disk = Arc::new(RealDisk);
        snapshot(&at("registry"), &at(name), &options, disk, &mut |_, _| {}).unwrap().summary
    };
    let first = made("first");
    assert_eq!((first.blobs_copied, first.from_previous), (2, 0), "{first:?}");
    let copies = ["team/app", "team/other"].map(|repo| blobs("first", repo).join(&name));
    let [one, other] = copies.map(|copy| copy.metadata().unwrap());
    assert_eq!((one.ino(), one.nlink()), (other.ino(), 2));
    assert_eq!(one.mode() & 0o7777, 0o444);
    let second = made("second");
    assert_eq!((second.blobs_copied, second.from_previous), (2, 1), "{second:?}");
    assert_eq!(one.ino(), blobs("second", "team/app").join(&name).metadata().unwrap().ino());
    for name in ["first", "second"] {
        assert_eq!(findings(&at(name)).0, []);
    }
}

#[test]
fn what_is_no_part_of_the_layout_is_copied_or_named() {
    let beside = Beside::new();
    sh(
        &beside,
        "cd registry
         mkdir lost+found Upper team/app/blobs/md5
         echo 1 > lost+found/file
         echo 2 > team/app/README
         echo 3 > team/app/blobs/sha256/not-a-digest
         echo 4 > team/app/blobs/md5/file
         echo 5 > Upper/file
         truncate -s 100G Upper/hole
         mkfifo team/fifo
         touch team/app/.index.json.0123456789abcdef
         printf x > \"$(printf 'team/\\377')\"",
    )
    .ok();
    let told = beside.json("copy", &[]);
    for (name, content) in [
        ("lost+found/file", "1\n"),
        ("team/app/README", "2\n"),
        ("team/app/blobs/sha256/not-a-digest", "3\n"),
        ("team/app/blobs/md5/file", "4\n"),
        ("Upper/file", "5\n"),
    ] {
        assert_eq!(fs::read_to_string(beside.at("copy").join(name)).unwrap(), content, "{name}");
    }
    assert!(beside.at("copy/Upper/hole").metadata().unwrap().blocks() < 100);
    assert!(!beside.at("copy/team/app/.index.json.0123456789abcdef").exists());
    let left: Vec<_> = told["warnings"].as_array().unwrap().iter().map(|w| &w["path"]).collect();
    assert_eq!(left.len(), 2, "{told}");
    assert!(left.contains(&&Value::from("team/fifo")), "{told}");
    assert_eq!(told["whole"], true);
    // For whoever makes it without being root, what is closed to him is missing.
    sh(&beside, "chown -R 4242 . && chown 0 registry/Upper registry/team/other && chmod 0700 registry/Upper registry/team/other").ok();
    let told = run(Command::new("setpriv")
        .args(["--reuid=4242", "--regid=4242", "--clear-groups"])
        .current_dir(beside.room.path())
        .args([STILLAGE, "snapshot", "registry", "less"]));
    assert_eq!(told.code, Some(3), "{told}");
    assert!(told.stdout.contains("registry/team/other: "), "{told}");
    assert!(told.stdout.contains("registry/Upper: is left out"), "{told}");
    assert!(told.stdout.contains("less lacks what is named above"), "{told}");
}

/// Whoever can write into one repository does not keep all others from a backup.
#[test]
fn what_cannot_be_copied_beside_the_layout_is_left_out_alone() {
    let beside = Beside::new();
    let deep = |at: &str| {
        let script = format!(
            "cd registry/{at}
             n=0
             while [ $n -lt 700 ]; do mkdir d; cd -P d; n=$((n+1)); done"
        );
        sh(&beside, &script).ok();
    };
    for at in ["team/app/_z", "team/app/blobs/md5", "Upper", "team/plain"] {
        fs::create_dir_all(beside.at("registry").join(at)).unwrap();
        fs::write(beside.at("registry").join(at).join("file"), at).unwrap();
        deep(at);
    }
    let limited = format!("ulimit -n 1024; exec {STILLAGE} snapshot --json registry copy");
    let told = sh(&beside, &limited);
    assert_eq!(told.code, Some(3), "{told}");
    let told: Value = serde_json::from_str(&told.stdout).unwrap();
    for at in ["team/app/_z", "team/app/blobs/md5", "Upper", "team/plain"] {
        assert_eq!(fs::read_to_string(beside.at("copy").join(at).join("file")).unwrap(), at);
        let named = told["warnings"].as_array().unwrap().iter().filter(|warning| {
            warning["path"].as_str().unwrap().starts_with(&format!("{at}/d/"))
                && warning["message"].as_str().unwrap().contains("deeper than any repository")
        });
        assert_eq!(named.count(), 1, "{at}: {told}");
    }
    assert!(beside.at("copy/team/app/index.json").exists());

    // A file that is longer than the disk lets it be.
    fs::write(beside.at("registry/team/app/_z/long"), vec![7; 1 << 20]).unwrap();
    let limited = "ulimit -f 1000; trap '' XFSZ; exec ";
    let told = sh(&beside, &format!("{limited}{STILLAGE} snapshot registry short"));
    assert_eq!(told.code, Some(3), "{told}");
    assert!(told.stdout.contains("team/app/_z/long: is left out"), "{told}");
    assert!(beside.at("short/team/app/_z/file").exists());
    assert!(!beside.at("short/team/app/_z/long").exists());
    assert!(beside.at("short/team/app/index.json").exists());
}

/// Older parts of the journal are shared between snapshots; what somebody may write in place is not.
#[test]
fn an_incremental_snapshot_takes_closed_parts_of_the_journal_from_the_last() {
    let beside = Beside::new();
    let log = beside.at("registry/team/app/_log.jsonl");
    fs::copy(&log, log.with_file_name("_log.1.jsonl")).unwrap();
    fs::write(&log, "").unwrap();
    let first = beside.json("first", &[]);
    let second = beside.json("second", &[]);
    let third = beside.json("third", &["--previous", "first"]);
    assert_eq!(first["previous"], Value::Null);
    for told in [&second, &third] {
        assert!(told["previous"].as_str().unwrap().ends_with("first"), "{told}");
        assert_eq!(told["summary"]["from_previous"], 1, "{told}");
    }
    let links = |name: &str| beside.at(name).metadata().unwrap().nlink();
    assert_eq!(links("first/team/app/_log.1.jsonl"), 3);
    assert_eq!(links("registry/team/app/_log.1.jsonl"), 1);
    for name in ["index.json", "_log.jsonl", "_referrers/facts.jsonl", "oci-layout"] {
        assert_eq!(links(&format!("second/team/app/{name}")), 1, "{name}");
    }
    for name in ["first", "second", "third"] {
        assert_eq!(findings(&beside.at(name)).0, []);
    }
}

/// Between a commit and its views, or after another tool, they are of another index.json.
#[test]
fn views_are_copied_if_they_are_those_of_index_json() {
    let beside = Beside::new();
    let repo = beside.at("registry/team/app");
    let index = fs::read(repo.join("index.json")).expect("index.json");
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("the boot's id");
    fs::create_dir(repo.join("_manifests")).expect("a directory");
    for (copy, of, there) in [("one", &index[..], true), ("two", b"another", false)] {
        let said = format!("{}:team/app:{}", Stamp::of(of), boot.trim());
        let _ = fs::remove_file(repo.join("_manifests/.of"));
        symlink(said, repo.join("_manifests/.of")).expect("a symlink");
        beside.snapshot(copy, &[]).ok();
        let manifests = beside.at(copy).join("team/app/_manifests");
        assert_eq!(manifests.join(".of").is_symlink(), there, "{copy}");
        assert_eq!(manifests.exists(), there, "{copy}");
        assert_eq!(fs::read(beside.at(copy).join("team/app/index.json")).expect("copied"), index);
    }
}
