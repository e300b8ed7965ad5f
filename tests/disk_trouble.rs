//! A machine in trouble, for real: the disk is full, or out of inodes, or read-only, or over its quota,
//! a repository lies on another file system, no descriptor is left, the log cannot be written.
//!
//! Requests fail and say why, what was pushed before is there, and once the cause is gone all goes on
//! without a restart. Beyond the link limit of ext4: links.rs.

mod support;

use std::fs;
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use support::command::run;
use support::content::{Image, OCI_MANIFEST, random, sha256, with_query};
use support::http::{Client, Request, Response};
use support::tmpfs::Tmpfs;
use support::volume::{Bound, Volume};
use support::{Registry, STILLAGE};

const MIB: usize = 1 << 20;

fn serve(disk: &Volume, args: &[&str]) -> Registry {
    let all: Vec<&str> = ["--auth", "none"].into_iter().chain(args.iter().copied()).collect();
    Registry::start_on(&disk.path().join("registry"), &all)
}

/// Pushes until something is refused.
#[track_caller]
fn push_until_refused(client: &Client, repo: &str, len: usize) -> (Vec<(String, Image)>, Response) {
    let mut pushed = Vec::new();
    for number in 0..10_000 {
        let image = Image::random(len);
        let tag = format!("n{number}");
        match try_push(client, repo, &tag, &image) {
            Ok(()) => pushed.push((tag, image)),
            Err(answer) => return (pushed, answer),
        }
    }
    panic!("nothing was ever refused");
}

fn try_push(client: &Client, repo: &str, tag: &str, image: &Image) -> Result<(), Response> {
    for blob in image.layers.iter().chain([&image.config]) {
        let begun = client.send(Request::post(format!("/v2/{repo}/blobs/uploads/")));
        if begun.status != 202 {
            return Err(begun);
        }
        let put = with_query(&begun.location(), &format!("digest={}", sha256(blob)));
        let put = client.send(Request::put(put).body(blob.as_slice()));
        if put.status != 201 {
            client.delete(&begun.location());
            return Err(put);
        }
    }
    let put = client.put_manifest(repo, tag, OCI_MANIFEST, &image.manifest);
    if put.status == 201 { Ok(()) } else { Err(put) }
}

#[track_caller]
fn assert_all_there(client: &Client, repo: &str, pushed: &[(String, Image)]) {
    for (tag, image) in pushed {
        client.assert_pulls(repo, tag, image);
    }
}

/// Nothing of what was refused is left: no session, no temporary name.
#[track_caller]
fn assert_nothing_left(registry: &Registry) {
    let uploads = fs::read_dir(registry.root().join(".stillage/uploads")).expect("uploads");
    let left: Vec<_> = uploads.map(|entry| entry.expect("a name").file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
    let found = run(Command::new("find").arg(registry.root()).args([
        "-name",
        ".*.*",
        "!",
        "-name",
        ".stillage",
    ]));
    assert_eq!(found.ok().stdout, "", "temporary names are left");
    registry.assert_sound();
}

#[test]
fn a_full_disk_refuses_what_needs_room_and_nothing_else() {
    let disk = Volume::ext4(48, &[]);
    let registry = serve(&disk, &["--min-free", "0"]);
    let client = registry.client();
    let (pushed, refused) = push_until_refused(&client, "a", 3 * MIB);
    assert!(pushed.len() > 5, "{}", pushed.len());
    refused.expect_error(507, "UNKNOWN");
    let filler = disk.fill(0);
    assert_all_there(&client, "a", &pushed);
    // Not one block: neither journal nor index.json can grow.
    let answer = client.put_manifest("a", "again", OCI_MANIFEST, &pushed[0].1.manifest);
    let taken = answer.status == 201;
    assert!(taken || answer.status == 507, "{answer:?}");
    for tag in ["n0", "n1"] {
        let answer = client.delete(&format!("/v2/a/manifests/{tag}"));
        assert!(matches!(answer.status, 202 | 507), "{answer:?}");
        let there = client.get(&format!("/v2/a/manifests/{tag}")).status;
        assert_eq!(there == 404, answer.status == 202, "{tag}: what is refused is not done");
    }
    assert_nothing_left(&registry);
    registry.logs("No space left on device");
    registry.logs("mend");

    fs::remove_file(filler).expect("room");
    client.delete("/v2/a/manifests/n2").expect_status(202);
    let image = Image::random(1000);
    client.push_image("a", "new", &image);
    client.assert_pulls("a", "new", &image);
    assert_all_there(&client, "a", &pushed[3..]);
    assert_nothing_left(&registry);
}

#[test]
fn a_disk_without_inodes_refuses_what_needs_one() {
    let disk = Volume::ext4(64, &["-N", "256"]);
    let registry = serve(&disk, &["--min-free", "0"]);
    let client = registry.client();
    let (pushed, refused) = push_until_refused(&client, "a", 100);
    assert!(pushed.len() > 5, "{}", pushed.len());
    refused.expect_error(507, "UNKNOWN");
    assert_all_there(&client, "a", &pushed);
    assert_nothing_left(&registry);
    // An administrator makes room with what is at hand.
    let (gone, kept) = pushed.split_at(3);
    fs::remove_dir_all(registry.root().join(".stillage/pool")).expect("the pool is only an index");
    let registry_blobs = registry.root().join("a/blobs/sha256");
    for (tag, image) in gone {
        client.delete(&format!("/v2/a/manifests/{tag}"));
        client.delete(&format!("/v2/a/manifests/{}", image.digest));
        let layer = sha256(&image.layers[0]);
        let _ = fs::remove_file(registry_blobs.join(layer.trim_start_matches("sha256:")));
    }
    let image = Image::random(100);
    client.push_image("a", "new", &image);
    client.assert_pulls("a", "new", &image);
    assert_all_there(&client, "a", kept);
}

/// Uploads are refused while there is still room for everything else.
#[test]
fn min_free_stops_uploads_and_lets_pulls_deletes_and_tags_go_on() {
    const KEEP: u64 = 16 << 20;
    let disk = Volume::ext4(64, &[]);
    let registry = serve(&disk, &["--min-free", "16M"]);
    let client = registry.client();
    let (pushed, refused) = push_until_refused(&client, "a", 2 * MIB);
    assert!(pushed.len() > 5, "{}", pushed.len());
    let message = refused.expect_error(507, "UNKNOWN").message();
    assert!(message.contains("space") && message.contains("administrator"), "{message}");
    let free = || {
        let stat = rustix::fs::statvfs(disk.path()).expect("statvfs");
        stat.f_bavail * stat.f_frsize
    };
    assert!(free() + (1 << 20) > KEEP, "{} are left of {KEEP}", free());
    // Others take a part of what is kept back.
    disk.fill(KEEP / 2);
    client.send(Request::post("/v2/a/blobs/uploads/")).expect_error(507, "UNKNOWN");
    client.get("/readyz").expect_status(507);

    assert_all_there(&client, "a", &pushed);
    let (tag, image) = &pushed[0];
    client.put_manifest("a", "moved", OCI_MANIFEST, &image.manifest).expect_status(201);
    let layer = sha256(&image.layers[0]);
    let mount = format!("/v2/b/blobs/uploads/?mount={layer}&from=a");
    client.send(Request::post(mount)).expect_status(201);
    client.delete(&format!("/v2/b/blobs/{layer}")).expect_status(202);
    client.delete(&format!("/v2/a/manifests/{tag}")).expect_status(202);
    for (_, image) in &pushed[..4] {
        client.delete(&format!("/v2/a/manifests/{}", image.digest)).expect_status(202);
    }
    // And collection goes on, which makes room: without a free byte, if need be.
    let more = fs::File::create(disk.path().join("more")).expect("a file");
    let mut written = 0_u64;
    for piece in [4096, 1] {
        // The last block is written to by its first byte.
        while std::os::unix::fs::FileExt::write_at(&more, &[7; 4096][..piece], written).is_ok() {
            written += 1024.max(piece as u64);
        }
    }
    assert_eq!(free(), 0);
    let gc = Command::new(STILLAGE).arg("gc").arg(registry.root()).arg("--now").output();
    let gc = gc.expect("gc runs");
    assert!(gc.status.success(), "{gc:?}");
    assert!(free() > 6 << 20, "{} are free", free());
    assert_all_there(&client, "a", &pushed[4..]);
    for name in ["filler", "more"] {
        fs::remove_file(disk.path().join(name)).expect("room");
    }
    client.push_image("a", "new", &Image::random(MIB));
    assert_nothing_left(&registry);
}

#[test]
fn a_disk_that_becomes_read_only_refuses_changes_until_it_is_writable() {
    let disk = Volume::ext4(48, &[]);
    let registry = serve(&disk, &[]);
    let client = registry.client();
    let image = Image::random(10_000);
    client.push_image("a", "t", &image);
    let open = client.start_upload("a");
    disk.remount("ro");
    client.assert_pulls("a", "t", &image);
    client.get("/readyz").expect_error(503, "UNAVAILABLE");
    let blob = random(1000);
    let whole = format!("/v2/a/blobs/uploads/?digest={}", sha256(&blob));
    for request in [
        Request::post("/v2/a/blobs/uploads/"),
        Request::post(whole.as_str()).body(blob.as_slice()),
        Request::post("/v2/new/blobs/uploads/"),
        Request::patch(open.as_str()).body("abc"),
        Request::put(with_query(&open, &format!("digest={}", sha256(b"abc")))).body("abc"),
        Request::put("/v2/a/manifests/t2")
            .header("Content-Type", OCI_MANIFEST)
            .body(image.manifest.as_slice()),
        Request::delete("/v2/a/manifests/t"),
        Request::delete(format!("/v2/a/manifests/{}", image.digest)),
        Request::delete(open.as_str()),
    ] {
        let line = format!("{} {}", request.method, request.path);
        let answer = client.send(request);
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (503, "UNAVAILABLE"),
            "{line}: {answer:?}"
        );
        assert!(answer.header("retry-after").is_some(), "{line}: {answer:?}");
    }
    disk.remount("rw");
    client.assert_pulls("a", "t", &image);
    client.send(Request::patch(open.as_str()).body("abc")).expect_status(202);
    let end = with_query(&open, &format!("digest={}", sha256(b"abc")));
    client.send(Request::put(end)).expect_status(201);
    client.push_image("a", "t2", &Image::random(1000));
    client.delete("/v2/a/manifests/t").expect_status(202);
    assert_nothing_left(&registry);
}

#[test]
fn a_quota_that_is_used_up_is_told_and_pushes_go_on_when_it_is_raised() {
    let disk = Volume::btrfs_with_quota(256, "8M");
    let root = disk.path().join("quota/registry");
    let registry = Registry::start_on(&root, &["--auth", "none"]);
    let client = registry.client();
    let (pushed, refused) = push_until_refused(&client, "a", MIB);
    assert!(pushed.len() > 1, "{}", pushed.len());
    let message = refused.expect_error(507, "UNKNOWN").message();
    assert!(message.contains("quota"), "{message}");
    assert_all_there(&client, "a", &pushed);
    assert_nothing_left(&registry);
    let limit = ["qgroup", "limit", "64M"];
    run(Command::new("btrfs").args(limit).arg(disk.path().join("quota"))).ok();
    let image = Image::random(MIB);
    client.push_image("a", "new", &image);
    client.assert_pulls("a", "new", &image);
    assert_all_there(&client, "a", &pushed);
}

#[test]
fn a_repository_on_another_file_system_gets_copies() {
    let (disk, other) = (Volume::ext4(64, &[]), Tmpfs::new(32));
    let registry = serve(&disk, &[]);
    let client = registry.client();
    let image = Image::random(100_000);
    client.push_image("a", "t", &image);
    let below = registry.root().join("other");
    fs::create_dir(&below).expect("a directory");
    let bound = Bound::new(&other.path(), &below);
    for blob in image.layers.iter().chain([&image.config]) {
        let mount = format!("/v2/other/b/blobs/uploads/?mount={}&from=a", sha256(blob));
        client.send(Request::post(mount)).expect_status(201);
    }
    client.put_manifest("other/b", "t", OCI_MANIFEST, &image.manifest).expect_status(201);
    client.assert_pulls("other/b", "t", &image);
    let pushed = Image::random(100_000);
    client.push_image("other/b", "u", &pushed);
    client.assert_pulls("other/b", "u", &pushed);
    // Full there, and not here.
    let filler = other.path().join("filler");
    fs::write(&filler, vec![0; usize::try_from(other.free()).expect("a few MiB") - 65_536])
        .expect("space");
    let large = Image::random(MIB);
    let refused = try_push(&client, "other/b", "large", &large).expect_err("no space");
    refused.expect_error(507, "UNKNOWN");
    client.push_image("a", "large", &large);
    fs::remove_file(filler).expect("room");
    client.push_image("other/b", "large", &large);
    client.delete("/v2/other/b/manifests/u").expect_status(202);
    assert_nothing_left(&registry);
    drop(registry);
    drop(bound);
}

/// Connections wait for a descriptor; they are not lost, and the log does not grow meanwhile.
#[test]
fn without_descriptors_connections_wait_and_requests_say_so() {
    let room = tempfile::tempdir().expect("a room");
    let root = room.path().join("registry");
    let registry = Registry::start_on(&root, &["--auth", "none"]);
    let client = registry.client();
    let image = Image::random(10_000);
    client.push_image("a", "t", &image);
    let open = || fs::read_dir(format!("/proc/{}/fd", registry.pid())).expect("alive").count();
    let mut talking = client.connect();
    talking.send(&Request::get("/healthz"));
    // It keeps some back for files, counted at its start: they are taken from it now.
    let (pid, most) = (registry.pid().to_string(), open() + 20);
    let mut prlimit = Command::new("prlimit");
    let limited = prlimit.args(["--pid", &pid, &format!("--nofile={most}")]);
    assert!(limited.status().expect("prlimit runs").success());
    let mut idle = Vec::new();
    while idle.len() < 40 {
        idle.push(TcpStream::connect(registry.addr()).expect("the backlog has room"));
    }
    until("all descriptors are taken", || open() >= most);
    for request in [
        Request::get("/v2/a/manifests/t"),
        Request::post("/v2/a/blobs/uploads/"),
        Request::put("/v2/a/manifests/u")
            .header("Content-Type", OCI_MANIFEST)
            .body(image.manifest.as_slice()),
        Request::delete("/v2/a/manifests/t"),
    ] {
        let answer = talking.send(&request);
        assert!(matches!(answer.status, 200 | 503), "{}: {answer:?}", request.path);
        assert!(answer.status == 200 || answer.header("retry-after").is_some(), "{answer:?}");
    }
    registry.logs("no connection is accepted at present");
    drop(idle);
    client.assert_pulls("a", "t", &image);
    client.push_image("a", "u", &image);
    let said = registry.stderr().matches("no connection is accepted").count();
    assert!(said <= 3, "said {said} times");
    assert_nothing_left(&registry);
}

/// A log that lies on the full disk costs lines, and no request.
#[test]
fn a_log_that_cannot_be_written_fails_no_request() {
    let room = tempfile::tempdir().expect("a room");
    let root = room.path().join("registry");
    let by = ["sh", "-c", r#"exec "$0" "$@" 2>/dev/full"#];
    let registry = Registry::start_by(&by, &root, &["--auth", "none", "--log-level", "debug"]);
    let client = registry.client();
    let image = Image::random(10_000);
    client.push_image("a", "t", &image);
    client.assert_pulls("a", "t", &image);
    client.get("/v2/a/manifests/none").expect_status(404);
    client.delete("/v2/a/manifests/t").expect_status(202);
}

/// Waits for something that the server does by itself.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(60), "not within a minute: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
