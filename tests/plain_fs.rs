//! File systems that know no hard links, no nameless files and no ACLs: everything goes on, with
//! copies where links would be.

mod support;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use support::Registry;
use support::command::run;
use support::content::{Image, random};
use support::http::Request;

#[test]
fn a_file_system_without_links_serves_pushes_mounts_and_restarts() {
    let disk = Plain::new();
    let root = disk.mount.join("registry");
    let probe = disk.mount.join("probe");
    fs::write(&probe, "").expect("a file");
    fs::hard_link(&probe, disk.mount.join("other")).expect_err("this file system knows no links");

    let mut registry = Registry::start_on(&root, &["--auth", "none"]);
    let client = registry.client();
    let image = Image::random(3_000_000);
    client.push_image("plain/one", "t", &image);
    client.push_image("plain/two", "t", &image);
    let blob = random(100_000);
    let digest = client.push_blob("plain/one", &blob);
    let mount = format!("/v2/plain/three/blobs/uploads/?mount={digest}&from=plain/one");
    client.send(Request::post(mount)).expect_status(201);
    let served = client.get(&format!("/v2/plain/three/blobs/{digest}")).expect_status(200);
    assert!(served.body == blob, "the mounted blob differs");
    // An upload session has a file with a name, and survives too.
    let session = client.start_upload("plain/one");
    client.send(Request::patch(session.clone()).body(b"abc".to_vec())).expect_status(202);

    registry.kill9();
    registry.run();
    let client = registry.client();
    client.assert_pulls("plain/one", "t", &image);
    client.assert_pulls("plain/two", "t", &image);
    let name = root.join("plain/one/blobs/sha256").join(&digest["sha256:".len()..]);
    let meta = fs::metadata(name).expect("the blob");
    assert_eq!((meta.nlink(), meta.mode() & 0o777), (1, 0o444));
    client.send(Request::delete(session)).expect_status(204);
    // This file system lets go of a closed file when it likes, and its directory no sooner: what is
    // left of a session then is the sweep's.
    let uploads = root.join(".stillage/uploads");
    let end = Instant::now() + Duration::from_secs(30);
    while !names(&uploads).is_empty() && Instant::now() < end {
        let mut gc = Command::new(support::STILLAGE);
        run(gc.arg("gc").arg(&root).args(["--upload-expiry", "1s"])).ok();
    }
    let left = names(&uploads);
    assert!(left.is_empty(), "left behind: {left:?}");
}

#[test]
fn a_repository_on_another_file_system_gets_copies() {
    let registry = Registry::start(&["--auth", "none"]);
    let there = registry.root().join("far");
    fs::create_dir(&there).expect("the mount point");
    run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=32m", "none"]).arg(&there)).ok();
    let mounted = Mounted(there.clone());
    let client = registry.client();
    let image = Image::random(1_000_000);
    client.push_image("near/one", "t", &image);
    client.push_image("far/two", "t", &image);
    client.assert_pulls("far/two", "t", &image);
    let digest = client.push_blob("near/one", &random(10_000));
    let mount = format!("/v2/far/two/blobs/uploads/?mount={digest}&from=near/one");
    client.send(Request::post(mount)).expect_status(201);
    let hex = &digest["sha256:".len()..];
    let device = |repo: &str| {
        let name = registry.root().join(repo).join("blobs/sha256").join(hex);
        fs::metadata(name).expect("the blob").dev()
    };
    assert_ne!(device("near/one"), device("far/two"));
    registry.assert_sound();
    drop(mounted);
}

fn names(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("a name").path()).collect()
}

/// Unmounted when dropped.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// encfs in its paranoia mode, whose names cannot be linked.
struct Plain {
    /// First, so that it is unmounted before the directory is removed.
    _mounted: Mounted,
    mount: PathBuf,
    _room: tempfile::TempDir,
}

impl Plain {
    fn new() -> Plain {
        let room = tempfile::Builder::new()
            .prefix("stillage-plain-")
            .tempdir()
            .expect("a temporary directory");
        let (cipher, mount) = (room.path().join("cipher"), room.path().join("mount"));
        fs::create_dir(&cipher).and_then(|()| fs::create_dir(&mount)).expect("directories");
        let mut encfs = Command::new("encfs")
            .args(["--paranoia", "--stdinpass"])
            .args([&cipher, &mount])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("encfs");
        let mut password = encfs.stdin.take().expect("its stdin");
        password.write_all(b"password\n").expect("a password");
        drop(password);
        assert!(encfs.wait().expect("encfs").success(), "encfs did not mount");
        Plain { _mounted: Mounted(mount.clone()), _room: room, mount }
    }
}
