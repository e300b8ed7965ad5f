//! An index.json that is no index: an error on the wire, the file named in the log, nothing
//! overwritten, and every other repository as before.
//! Each test bears the id of its line in the list of what has gone wrong in registries.

mod support;

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime};

use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};
use support::Registry;
use support::content::{Image, OCI_MANIFEST, random, sha256};
use support::http::Request;

/// Texts that have no meaning, or two.
fn broken_texts() -> Vec<(&'static str, String)> {
    let digest = sha256(b"{}");
    let entry = |fields: &str| format!(r#"{{"schemaVersion":2,"manifests":[{{{fields}}}]}}"#);
    let typed = format!(r#""mediaType":"{OCI_MANIFEST}","digest":"{digest}""#);
    let size = |size: &str| entry(&format!(r#"{typed},"size":{size}"#));
    let name = "org.opencontainers.image.ref.name";
    vec![
        ("empty", String::new()),
        ("null", "null".to_owned()),
        ("cut", r#"{"schemaVersion":2,"manifests":[{"mediaType":"#.to_owned()),
        ("more", r#"{"schemaVersion":2,"manifests":[]}{}"#.to_owned()),
        ("arrays", format!(r#"{{"schemaVersion":2,"manifests":{}"#, "[".repeat(100_000))),
        (
            "deep",
            format!(
                r#"{{"schemaVersion":2,"manifests":[],"x":{}1{}}}"#,
                r#"{"y":"#.repeat(100_000),
                "}".repeat(100_000)
            ),
        ),
        ("twice", r#"{"schemaVersion":2,"manifests":[],"manifests":[]}"#.to_owned()),
        ("version-twice", r#"{"schemaVersion":2,"schemaVersion":2,"manifests":[]}"#.to_owned()),
        ("digest-twice", entry(&format!(r#"{typed},"digest":"{digest}","size":2"#))),
        ("size-twice", entry(&format!(r#"{typed},"size":2,"size":2"#))),
        (
            "annotation-twice",
            entry(&format!(
                r#"{typed},"size":2,"annotations":{{"{name}":"v1","x":"y","{name}":"v2"}}"#
            )),
        ),
        ("exponent", size("1e3")),
        ("fraction", size("2.0")),
        ("huge", size("9223372036854775808")),
        ("negative", size("-1")),
        ("text", size("\"2\"")),
        ("no-size", entry(&typed)),
        (
            "no-digest",
            entry(&format!(r#""mediaType":"{OCI_MANIFEST}","digest":"sha256:00","size":1"#)),
        ),
    ]
}

/// The repository answers 500 to all that needs its index.json, which stays as it is.
fn expect_broken(registry: &Registry, repo: &str, image: &Image) {
    let client = registry.client();
    let push = |tag: &str| {
        Request::put(format!("/v2/{repo}/manifests/{tag}"))
            .header("Content-Type", OCI_MANIFEST)
            .body(image.manifest.as_slice())
    };
    let root = registry.root().display().to_string();
    for request in [
        Request::get(format!("/v2/{repo}/manifests/v1")),
        Request::get(format!("/v2/{repo}/manifests/{}", image.digest)),
        Request::get(format!("/v2/{repo}/tags/list")),
        Request::get(format!("/v2/{repo}/referrers/{}", image.digest)),
        push("v1"),
        push("v2"),
        Request::delete(format!("/v2/{repo}/manifests/v1")),
    ] {
        let line = format!("{} {}", request.method, request.path);
        let answer = client.send(request);
        assert_eq!((answer.status, answer.code().as_str()), (500, "UNKNOWN"), "{line}: {answer:?}");
        assert!(!answer.text().contains(&root), "our paths are not the client's: {answer:?}");
    }
    client.head(&format!("/v2/{repo}/manifests/v1")).expect_status(500);
    let log = registry.stderr();
    let path = format!("{root}/{repo}/index.json");
    assert!(log.contains(&path), "no {path} in the log:\n{log}");
}

/// Younger than two seconds it might be half written: then the last good one counts.
fn make_old(path: &Path) {
    let past = SystemTime::now() - Duration::from_secs(60);
    File::options().write(true).open(path).expect("open").set_modified(past).expect("time");
}

#[test]
fn json() {
    let mut registry = Registry::start(&["--auth", "none"]);
    let image = Image::random(1000);
    registry.client().push_image("fine", "v1", &image);
    registry.expect_damage();
    let texts = broken_texts();
    for (repo, text) in &texts {
        registry.client().push_image(repo, "v1", &image);
        let path = registry.root().join(repo).join("index.json");
        fs::write(&path, text).expect("index.json");
        make_old(&path);
    }
    // What was read before it broke is not what counts, before and after a restart.
    for _ in 0..2 {
        for (repo, text) in &texts {
            expect_broken(&registry, repo, &image);
            let path = registry.root().join(repo).join("index.json");
            assert!(fs::read(&path).expect("index.json") == text.as_bytes(), "{repo} overwritten");
        }
        registry.client().assert_pulls("fine", "v1", &image);
        registry.client().push_image("fine", "v2", &image);
        registry.restart();
    }
    let (code, found) = registry.check();
    assert_eq!(code, Some(4), "{found}");
    for (repo, _) in &texts {
        assert!(found.contains(&format!("{repo}/index.json")), "{repo} not in:\n{found}");
    }
}

#[test]
fn an_index_that_is_no_file() {
    let mut registry = Registry::start(&["--auth", "none"]);
    let image = Image::random(1000);
    for repo in ["fine", "directory", "fifo", "symlink"] {
        registry.client().push_image(repo, "v1", &image);
    }
    registry.expect_damage();
    let index = |repo: &str| registry.root().join(repo).join("index.json");
    for repo in ["directory", "fifo", "symlink"] {
        fs::remove_file(index(repo)).expect("index.json");
    }
    fs::create_dir(index("directory")).expect("a directory");
    support::command::run(std::process::Command::new("mkfifo").arg(index("fifo"))).ok();
    symlink("../fine/index.json", index("symlink")).expect("a symlink");
    // A FIFO's age counts too.
    thread::sleep(Duration::from_millis(2100));
    for repo in ["directory", "fifo", "symlink"] {
        expect_broken(&registry, repo, &image);
    }
    assert!(index("directory").is_dir());
    assert!(fs::symlink_metadata(index("fifo")).expect("the FIFO").file_type().is_fifo());
    assert!(index("symlink").is_symlink());
    registry.client().assert_pulls("fine", "v1", &image);
}

/// A server whose account may not read an index.json; even root's, without its power over modes.
#[test]
fn an_index_that_may_not_be_read() {
    // The bounding set is of the thread and of what it starts.
    let server = thread::spawn(|| {
        for power in [CapabilitySet::DAC_OVERRIDE, CapabilitySet::DAC_READ_SEARCH] {
            // An ordinary account has not got it, nor the right to give it up.
            let _ = remove_capability_from_bounding_set(power);
        }
        Registry::start(&["--auth", "none"])
    });
    let mut registry = server.join().expect("a server");
    let image = Image::random(1000);
    for repo in ["fine", "closed"] {
        registry.client().push_image(repo, "v1", &image);
    }
    registry.expect_damage();
    let index = registry.root().join("closed/index.json");
    let text = fs::read(&index).expect("index.json");
    fs::set_permissions(&index, Permissions::from_mode(0o000)).expect("chmod");
    expect_broken(&registry, "closed", &image);
    let log = registry.stderr();
    assert!(log.contains("Permission denied") && log.contains("setfacl"), "{log}");
    assert_eq!(fs::metadata(&index).expect("index.json").permissions().mode() & 0o777, 0);
    // Blobs of it need no index.json, and others nothing of it.
    let digest = sha256(&image.config);
    registry.client().get(&format!("/v2/closed/blobs/{digest}")).expect_status(200);
    registry.client().assert_pulls("fine", "v1", &image);
    registry.client().push_blob("fine", &random(1000));

    fs::set_permissions(&index, Permissions::from_mode(0o644)).expect("chmod");
    assert!(fs::read(&index).expect("index.json") == text, "it was overwritten");
    registry.client().assert_pulls("closed", "v1", &image);
    registry.client().push_image("closed", "v2", &image);
    registry.assert_sound();
}
