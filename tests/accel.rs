//! nginx with TLS in front, to which blobs are handed (`--accel`): real nginx, whose workers are
//! www-data, real podman, and accounts checked by PAM.

mod support;

#[path = "support/pam.rs"]
mod pam;
#[path = "support/process.rs"]
mod process;

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use pam::{Host, PASSWORD};
use support::Registry;
use support::command::Outcome;
use support::containers::Containers;
use support::content::{random, sha256};
use support::http::{Client, Request, Response};
use support::proxy::{PREFIX, Proxy};

/// A registry in which `daemon` may create repositories, and nginx in front of it.
struct Place {
    nginx: Proxy,
    registry: Registry,
    // Dropped last: the server's services lie in it.
    _host: Host,
}

impl Place {
    fn new() -> Place {
        Place::with(&["--trusted-proxy", "127.0.0.1"])
    }

    fn with(args: &[&str]) -> Place {
        let host = Host::new();
        let confdir = host.path("pam.d").display().to_string();
        let all = ["--anonymous", "none", "--pam-confdir", &confdir, "--accel", PREFIX];
        let registry = Registry::start(&[&all[..], args].concat());
        // Whatever the umask of the tests is.
        let above = registry.root().parent().expect("a directory above");
        set_mode(above, 0o711);
        registry.grant("u:daemon");
        let nginx = Proxy::nginx(&registry);
        Place { nginx, registry, _host: host }
    }

    /// With a token for everything that the permissions allow in one repository; not by nginx.
    fn user(&self, name: &str, repo: &str) -> Client {
        self.registry.client().logged_in(name, PASSWORD, repo)
    }

    /// curl with `Authorization` of a user.
    fn curl(&self, user: &str, args: &[&str], path: &str) -> Outcome {
        let login = format!("{user}:{PASSWORD}");
        let all = [&["--user", login.as_str()][..], args].concat();
        self.nginx.curl().run(&all, path)
    }

    /// GET by nginx, with these additional header lines.
    fn get(&self, user: &str, path: &str, headers: &[&str]) -> Got {
        let (head, body) = (self.nginx.path().join("head"), self.nginx.path().join("got"));
        let plain = |path: &PathBuf| path.to_str().expect("a plain path").to_owned();
        let (head_name, body_name) = (plain(&head), plain(&body));
        let mut args = vec!["--dump-header", &head_name, "--output", &body_name];
        args.extend(headers.iter().flat_map(|header| ["--header", header]));
        let _ = fs::remove_file(&body);
        self.curl(user, &args, path).ok();
        let head = fs::read_to_string(head).expect("the head");
        Got { head, body: fs::read(body).unwrap_or_default() }
    }

    /// How many bytes of a body Stillage itself sent for an answer.
    fn sent(&self, got: &Got) -> u64 {
        let id = got.header("x-request-id").expect("the request's name");
        let end = format!("request=\"{id}\"");
        self.registry.logs(&end);
        let log = self.registry.stderr();
        let access = log.lines().find(|line| line.contains("access") && line.ends_with(&end));
        let access = access.unwrap_or_else(|| panic!("no {end} in\n{log}"));
        let bytes = access.split(" bytes=").nth(1).and_then(|rest| rest.split(' ').next());
        bytes.and_then(|bytes| bytes.parse().ok()).expect("a number of bytes")
    }

    #[track_caller]
    fn assert_by_nginx(&self, user: &str, path: &str, body: &[u8]) {
        let got = self.get(user, path, &[]);
        assert!(got.status() == 200 && got.body == body, "{}", got.head);
        assert_eq!(self.sent(&got), 0, "{}", got.head);
    }

    #[track_caller]
    fn assert_by_stillage(&self, user: &str, path: &str, body: &[u8]) {
        let got = self.get(user, path, &[]);
        assert!(got.status() == 200 && got.body == body, "{}", got.head);
        assert_eq!(self.sent(&got), body.len() as u64, "{}", got.head);
    }
}

/// What curl got.
struct Got {
    head: String,
    body: Vec<u8>,
}

impl Got {
    fn status(&self) -> u16 {
        let word = self.head.split(' ').nth(1).expect("a status");
        word.trim().parse().expect("a number")
    }

    fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        let found: Vec<&str> = lines
            .filter(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
            .collect();
        assert!(found.len() <= 1, "{name} stands there twice: {}", self.head);
        found.first().copied()
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

fn blob_path(repo: &str, digest: &str) -> String {
    format!("/v2/{repo}/blobs/{digest}")
}

#[test]
fn podman_logs_in_pushes_and_pulls_and_nginx_sends_the_blobs() {
    let place = Place::new();
    let (server, certificates) = (place.nginx.name(), place.nginx.certificates());
    let trust = ["--cert-dir", certificates.as_str()];
    let home = Containers::new();
    let id = home.image("localhost/made-here", "through nginx", "amd64");
    let name = format!("{server}/team/app:v1");
    home.podman(&[&["push"], &trust[..], &["localhost/made-here", &name]].concat()).refused();
    let login = ["login", "-u", "daemon", "-p", PASSWORD];
    home.podman(&[&login, &trust[..], &[&server]].concat()).ok();
    home.podman(&[&["push"], &trust[..], &["localhost/made-here", &name]].concat()).ok();
    home.forget_images();
    home.podman(&[&["pull"], &trust[..], &[&name]].concat()).ok();
    assert_eq!(home.image_id(&name), id);

    let log = place.registry.stderr();
    let blobs: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("method=\"GET\"") && line.contains("/team/app/blobs/sha256"))
        .collect();
    assert!(blobs.len() >= 2, "config and layer:\n{log}");
    for line in blobs {
        assert!(line.contains("status=200 bytes=0 "), "{line}");
        assert!(line.contains("who=\"daemon\""), "{line}");
    }
}

/// What a client sees is what it would see of Stillage itself.
#[test]
fn answers_are_the_same_with_nginx_and_without() {
    let place = Place::new();
    let blob = random(300_000);
    let digest = place.user("daemon", "a").push_blob("a", &blob);
    let path = blob_path("a", &digest);
    let own = |request: Request| place.registry.client().send(request.basic("daemon", PASSWORD));
    let same = |got: &Got, expected: &Response, names: &[&str]| {
        assert_eq!(got.status(), expected.status, "{}", got.head);
        for name in names {
            let expected = expected.header(name);
            assert_eq!(got.header(name), expected, "{name} in {}", got.head);
        }
    };
    let all = [
        "content-type",
        "content-length",
        "content-range",
        "docker-content-digest",
        "etag",
        "cache-control",
        "last-modified",
        "accept-ranges",
        "docker-distribution-api-version",
        "x-content-type-options",
        "content-security-policy",
        "x-accel-redirect",
    ];
    let tag = format!("\"{digest}\"");
    for (range, validator) in [
        (None, None),
        (Some("bytes=0-0"), None),
        (Some("bytes=100-299"), None),
        (Some("bytes=-7"), None),
        (Some("bytes=299990-"), None),
        (Some("bytes=299990-999999999"), None),
        // The part of this very content, or all of another.
        (Some("bytes=5-9"), Some(tag.as_str())),
        (Some("bytes=5-9"), Some("\"another\"")),
        // Several ranges are none.
        (Some("bytes=0-1,7-8"), None),
    ] {
        let (mut request, mut lines) = (Request::get(&path), Vec::new());
        for (name, value) in [("Range", range), ("If-Range", validator)] {
            if let Some(value) = value {
                request = request.header(name, value);
                lines.push(format!("{name}: {value}"));
            }
        }
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let (got, expected) = (place.get("daemon", &path, &lines), own(request));
        let names = all.iter().copied().filter(|name| match *name {
            // nginx leaves it out of 206.
            "accept-ranges" => got.status() == 200,
            // Before nginx knows of a range that it lies outside, it has said this of it.
            "cache-control" => range.is_none(),
            _ => true,
        });
        same(&got, &expected, &names.collect::<Vec<_>>());
        assert!(got.body == expected.body, "{lines:?}");
        assert_eq!(place.sent(&got), 0, "{lines:?}");
    }
    let beyond = place.get("daemon", &path, &["Range: bytes=300000-"]);
    let expected = own(Request::get(&path).header("Range", "bytes=300000-"));
    same(&beyond, &expected, &["content-type", "content-range"]);
    assert_eq!(beyond.header("cache-control"), Some("no-cache"), "nobody keeps it");
    let code = |body: &[u8]| {
        let json: serde_json::Value = serde_json::from_slice(body).expect("JSON");
        json["errors"][0]["code"].as_str().map(str::to_owned)
    };
    assert_eq!(code(&beyond.body), code(&expected.body));

    let known = format!("If-None-Match: {tag}");
    let fresh = place.get("daemon", &path, &[&known]);
    assert_eq!((fresh.status(), fresh.header("etag")), (304, Some(tag.as_str())));
    let head = place.curl("daemon", &["--head"], &path).ok().stdout.to_lowercase();
    assert!(head.contains("content-length: 300000"), "{head}");
    assert!(!head.contains("accel"), "{head}");
    let absent = blob_path("a", &sha256(b"absent"));
    assert_eq!(place.get("daemon", &absent, &[]).status(), 404);
}

#[test]
fn a_large_blob_passes_stillage_by() {
    let place = Place::new();
    let blob = random(32 << 20);
    let path = blob_path("a", &place.user("daemon", "a").push_blob("a", &blob));
    let pid = place.registry.pid();
    let before = process::read_so_far(pid);
    place.assert_by_nginx("daemon", &path, &blob);
    let read = process::read_so_far(pid) - before;
    assert!(read < 4 << 20, "Stillage read {read} bytes");
}

/// The permissions of the directories, for nginx as for everybody: at each request.
#[test]
fn accel_what_nginx_may_not_read_is_sent_by_stillage() {
    let place = Place::new();
    let blob = random(70_000);
    let digest = place.user("daemon", "team/app").push_blob("team/app", &blob);
    let path = blob_path("team/app", &digest);
    let (root, repo) = (place.registry.root(), place.registry.root().join("team/app"));
    place.assert_by_nginx("daemon", &path, &blob);

    // A private repository, of a group that www-data is not in.
    chown(&repo, None, Some(60)).expect("chgrp");
    place.registry.setfacl("u:daemon:rwx,g::rwx,o::-", "team/app");
    place.assert_by_stillage("daemon", &path, &blob);
    let refused = place.get("bin", &path, &[]);
    assert_eq!(refused.status(), 404, "{}", refused.head);
    // By whatever bit or entry lets www-data in.
    place.registry.setfacl("u:www-data:x", "team/app");
    place.assert_by_nginx("daemon", &path, &blob);
    assert_eq!(place.get("bin", &path, &[]).status(), 404, "what nginx may is nobody else's");
    place.registry.setfacl("u:www-data:-", "team/app");
    place.assert_by_stillage("daemon", &path, &blob);
    place.registry.setfacl("u:www-data:x", "team/app");

    // Any directory on the way, also within the repository and above ROOT.
    for closed in [
        repo.join("blobs"),
        repo.join("blobs/sha256"),
        root.join("team"),
        root.to_path_buf(),
        root.parent().expect("one above").to_path_buf(),
    ] {
        let mode = fs::metadata(&closed).expect("its mode").permissions().mode() & 0o7777;
        place.registry.setfacl("u:daemon:rwx,u:www-data:-", closed.to_str().expect("plain"));
        place.assert_by_stillage("daemon", &path, &blob);
        let mut setfacl = std::process::Command::new("setfacl");
        support::command::run(setfacl.args(["-x", "u:www-data"]).arg(&closed)).ok();
        set_mode(&closed, mode);
        place.assert_by_nginx("daemon", &path, &blob);
    }
}

/// What others put there may change under nginx, and has rights of its own.
#[test]
fn what_somebody_dropped_in_is_sent_by_stillage() {
    let place = Place::new();
    let image = support::content::Image::random(5000);
    place.user("daemon", "a").push_image("a", "v1", &image);
    let blob = random(9000);
    let digest = sha256(&blob);
    let name = digest.strip_prefix("sha256:").expect("sha256");
    let file = place.registry.root().join("a/blobs/sha256").join(name);
    fs::write(&file, &blob).expect("a blob");
    chown(&file, Some(1), None).expect("chown");
    place.assert_by_stillage("daemon", &blob_path("a", &digest), &blob);
    place.assert_by_nginx("daemon", &blob_path("a", &sha256(&image.config)), &image.config);
    // A name that leads elsewhere is nobody's way to a file.
    let secret = place.nginx.path().join("secret");
    fs::write(&secret, "of www-data").expect("a file");
    let other = sha256(b"of www-data");
    let link = other.strip_prefix("sha256:").expect("sha256");
    let link = place.registry.root().join("a/blobs/sha256").join(link);
    std::os::unix::fs::symlink(&secret, link).expect("a symlink");
    let got = place.get("daemon", &blob_path("a", &other), &[]);
    assert!(got.status() >= 400 && !got.body.starts_with(b"of"), "{}", got.head);
    fs::remove_file(&file).expect("removed");
    fs::remove_file(place.registry.root().join("a/blobs/sha256").join(&other[7..])).expect("too");
}

#[test]
fn accel_nobody_gains_a_file_by_what_they_send() {
    let place = Place::new();
    let (open, secret) = (random(5000), random(5000));
    let open_path =
        blob_path("open/app", &place.user("daemon", "open/app").push_blob("open/app", &open));
    let digest = place.user("daemon", "private").push_blob("private", &secret);
    place.registry.setfacl("u:www-data:x,o::-", "private");
    let hex = digest.strip_prefix("sha256:").expect("sha256");
    let inner = format!("{PREFIX}/private/blobs/sha256/{hex}");

    // By nginx: the internal location is not there.
    for path in [
        inner.clone(),
        format!("/{inner}"),
        format!("/v2/..{inner}"),
        format!("/v2/%2e%2e{inner}"),
        format!("{PREFIX}/../..{}/private/index.json", place.registry.root().display()),
    ] {
        for user in ["bin", "daemon"] {
            let got = place.curl(user, &["--path-as-is", "--include"], &path);
            assert!(got.stdout.starts_with("HTTP/2 40"), "{path}: {got}");
        }
    }
    // Whatever headers come with it.
    let lines = [
        format!("X-Accel-Redirect: {inner}"),
        format!("X-Accel-Mapping: /={PREFIX}/"),
        "X-Sendfile-Type: X-Accel-Redirect".to_owned(),
        format!("X-Original-URI: {inner}"),
        format!("X-Rewrite-URL: {inner}"),
        "X-Forwarded-For: 127.0.0.1".to_owned(),
        "Forwarded: for=127.0.0.1".to_owned(),
    ];
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let got = place.get("bin", &open_path, &lines);
    assert!(got.body == open && place.sent(&got) == 0, "{}", got.head);
    let got = place.get("bin", &blob_path("private", &digest), &lines);
    assert_eq!(got.status(), 404, "{}", got.head);

    // Without nginx: the bytes, and no word of paths.
    let mut request = Request::get(&open_path).basic("daemon", PASSWORD);
    for line in &lines[..5] {
        let (name, value) = line.split_once(": ").expect("a header");
        request = request.header(name, value);
    }
    let answer = place.registry.client().send(request).expect_status(200);
    assert!(answer.body == open && answer.header("x-accel-redirect").is_none(), "{answer:?}");
}

#[test]
fn accel_only_a_trusted_proxy_is_given_paths() {
    let host = Host::new();
    let confdir = host.path("pam.d").display().to_string();
    let args = ["--anonymous", "none", "--pam-confdir", &confdir, "--accel", PREFIX];
    let trusting = |proxy: &str| {
        let registry = Registry::start(&[&args[..], &["--trusted-proxy", proxy]].concat());
        set_mode(registry.root().parent().expect("one above"), 0o711);
        registry.grant("u:daemon");
        let blob = random(500);
        let path = blob_path(
            "a",
            &registry.client().logged_in("daemon", PASSWORD, "a").push_blob("a", &blob),
        );
        let get = Request::get(path).basic("daemon", PASSWORD);
        let direct = registry.client().send(get.clone()).expect_status(200);
        assert!(direct.body == blob && direct.header("x-accel-redirect").is_none(), "{direct:?}");
        let forwarded = get.header("X-Forwarded-For", "203.0.113.9");
        let forwarded = registry.client().send(forwarded).expect_status(200);
        (forwarded.header("x-accel-redirect").map(str::to_owned), forwarded.body == blob)
    };
    assert_eq!(trusting("10.0.0.0/8"), (None, true));
    let (path, has_body) = trusting("127.0.0.1");
    let path = path.expect("a path");
    assert!(path.starts_with("/_blobs/a/blobs/sha256/") && !has_body, "{path}");
}

/// Stillage believes that nginx is root: a client is told to come again, not that the blob is gone.
#[test]
fn nginx_that_cannot_read_after_all_says_so() {
    let place = Place::with(&["--trusted-proxy", "127.0.0.1", "--accel-user", "root"]);
    let path = blob_path("a", &place.user("daemon", "a").push_blob("a", b"content"));
    place.assert_by_nginx("daemon", &path, b"content");
    place.registry.setfacl("u:daemon:rwx,o::-", "a");
    let got = place.get("daemon", &path, &[]);
    assert_eq!((got.status(), got.header("retry-after")), (503, Some("5")), "{}", got.head);
    assert_eq!(got.header("cache-control"), Some("no-store"), "{}", got.head);
    assert!(String::from_utf8_lossy(&got.body).contains("UNAVAILABLE"), "{}", got.head);
    assert!(place.nginx.log().contains("Permission denied"), "{}", place.nginx.log());
}

#[test]
fn the_start_says_whether_nginx_can_read() {
    let temp = tempfile::tempdir().expect("a directory");
    let args = ["--auth", "none", "--accel", "/_files/", "--trusted-proxy", "127.0.0.1"];
    set_mode(temp.path(), 0o700);
    let registry = Registry::start_on(&temp.path().join("registry"), &args);
    let lines: Vec<String> = (0..4).map(|_| registry.next_line()).collect();
    assert!(lines[3].contains("www-data") && lines[3].contains("/_files/"), "{lines:?}");
    let closed = fs::canonicalize(temp.path()).expect("a path");
    registry.logs(&format!("www-data may not search {}", closed.display()));
}

/// A copy on a read-only mount, with logins, behind nginx.
#[test]
fn a_replica_hands_its_blobs_over_too() {
    let temp = tempfile::Builder::new().prefix("stillage-test-").tempdir().expect("a directory");
    set_mode(temp.path(), 0o755);
    let root = temp.path().join("registry");
    let image = support::content::Image::random(100_000);
    {
        let origin = Registry::start_on(&root, &["--auth", "none"]);
        origin.client().push_image("a", "v1", &image);
    }
    fs::remove_dir_all(root.join(".stillage")).expect("the room");
    let bound = support::volume::Bound::read_only(&root);
    let host = Host::new();
    let confdir = host.path("pam.d").display().to_string();
    let args = ["--read-only", "--anonymous", "none", "--pam-confdir", &confdir];
    let handed = ["--accel", PREFIX, "--trusted-proxy", "127.0.0.1"];
    let registry = Registry::start_on(&root, &[&args[..], &handed].concat());
    let place = Place { nginx: Proxy::nginx(&registry), registry, _host: host };
    for blob in image.layers.iter().chain([&image.config]) {
        place.assert_by_nginx("games", &blob_path("a", &sha256(blob)), blob);
    }
    let pushed =
        place.curl("games", &["--include", "--request", "POST"], "/v2/a/blobs/uploads/").ok();
    assert!(pushed.stdout.contains("405") && pushed.stdout.contains("read-only"), "{pushed}");
    drop(place);
    drop(bound);
}
