//! Uploads are bounded: whose they are, how many there are, for how long, and what they leave free.
//! Each test bears the id of its line in the list of what has gone wrong in registries.

#[path = "upload_limits/bodies.rs"]
mod bodies;
#[path = "support/pam.rs"]
mod pam;
mod support;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use bodies::{Running, upload};
use pam::{Host, PASSWORD};
use support::Registry;
use support::command::run;
use support::content::{Image, OCI_MANIFEST, random, sha256, with_query};
use support::http::{Client, Framing, Request, Response};
use support::snapshot::snapshot;
use support::tmpfs::Tmpfs;

const MIB: usize = 1024 * 1024;

/// Two users who both may push to everything beneath `team`.
const USERS: [&str; 2] = ["daemon", "games"];

fn team(host: &Host, args: &[&str]) -> Registry {
    let confdir = host.path("pam.d").display().to_string();
    let all = ["--auth", "pam", "--pam-confdir", &confdir].into_iter().chain(args.iter().copied());
    let registry = Registry::start(&all.collect::<Vec<_>>());
    let team = registry.root().join("team");
    fs::create_dir(&team).expect("a directory");
    for user in USERS {
        let rights = format!("u:{user}:rwx,d:u:{user}:rwx");
        run(Command::new("setfacl").args(["-m", &rights]).arg(&team)).ok();
    }
    registry
}

fn member(registry: &Registry, user: &str) -> Client {
    let scopes = ["repository:team/one:pull,push", "repository:team/two:pull,push"];
    let token = registry.client().token(user, PASSWORD, &scopes).expect("a token");
    registry.client().with_authorization(format!("Bearer {token}"))
}

/// GET, PATCH, PUT and DELETE of an upload.
fn touches(location: &str) -> [Request; 4] {
    let end = with_query(location, &format!("digest={}", sha256(b"abcdef")));
    [
        Request::get(location),
        Request::patch(location).body("def"),
        Request::put(end).body("def"),
        Request::delete(location),
    ]
}

#[test]
fn upload_owner() {
    let host = Host::new();
    let registry = team(&host, &[]);
    let [daemon, games] = USERS.map(|user| member(&registry, user));
    let location = daemon.start_upload("team/one");
    daemon.send(Request::patch(location.clone()).body("abc")).expect_status(202);
    let elsewhere = location.replace("team/one", "team/two");
    for (who, location) in [(&games, &location), (&daemon, &elsewhere), (&games, &elsewhere)] {
        for request in touches(location) {
            who.send(request).expect_error(404, "BLOB_UPLOAD_UNKNOWN");
        }
    }
    let status = daemon.get(&location).expect_status(204);
    assert_eq!(status.header("range"), Some("0-2"));
    let [_, _, put, _] = touches(&location);
    daemon.send(put).expect_status(201);
    for request in touches(&location) {
        daemon.send(request).expect_error(404, "BLOB_UPLOAD_UNKNOWN");
    }
}

#[test]
fn upload_path() {
    let registry = Registry::start(&["--auth", "none"]);
    let client = registry.client();
    let location = client.start_upload("a");
    client.send(Request::patch(location.clone()).body("abc")).expect_status(202);
    let known = location.rsplit('/').next().expect("an id");
    let before = snapshot(registry.root());

    let long = "a".repeat(4096);
    let ids = [
        "..%2f",
        "..%2F..%2fa",
        ".",
        "..",
        "%2e",
        "%2e%2e%2fx",
        "%2e%2e",
        "%00",
        "%c0%ae%c0%ae",
        "%252e%252e",
        "data",
        "*",
        " ",
        "%0a",
        &long,
    ];
    let of_known = [
        format!("{known}%00"),
        format!("{known}%2f"),
        format!("{known}%2fdata"),
        format!("{known}/data"),
        format!("..%2fuploads%2f{known}"),
        known[1..].to_owned(),
        format!("{known}0"),
        known.to_uppercase().replace(|c: char| c.is_ascii_digit(), "A"),
        "0123456789abcdef0123456789abcdef".to_owned(),
    ];
    let base = location.trim_end_matches(known);
    for id in ids.into_iter().map(str::to_owned).chain(of_known) {
        for request in touches(&format!("{base}{id}")) {
            let line = format!("{} {}", request.method, request.path);
            let answer = client.send(request);
            assert!(matches!(answer.status, 400 | 404), "{line}: {answer:?}");
        }
    }
    for method in ["GET", "PATCH", "PUT", "DELETE"] {
        let head = format!("{method} {base}a\0b HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let answer = client.raw(head.as_bytes());
        assert!(answer.starts_with(b"HTTP/1.1 400"), "{}", String::from_utf8_lossy(&answer));
    }
    assert_eq!(snapshot(registry.root()), before);
    assert_eq!(client.get(&location).expect_status(204).header("range"), Some("0-2"));
}

#[test]
fn upload_cap() {
    const LIMIT: usize = 100;
    const ASKING: usize = 500;
    let mut registry = Registry::start(&["--auth", "none", "--max-uploads", &LIMIT.to_string()]);
    let client = registry.client();
    let together = Barrier::new(ASKING);
    let answers: Vec<Response> = thread::scope(|scope| {
        let ask = || {
            together.wait();
            client.send(post("a"))
        };
        let asking: Vec<_> = (0..ASKING).map(|_| scope.spawn(ask)).collect();
        asking.into_iter().map(|one| one.join().expect("an answer")).collect()
    });
    let (granted, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(|a| a.status == 202);
    assert_eq!(granted.len(), LIMIT);
    for answer in refused {
        let answer = answer.expect_error(429, "TOOMANYREQUESTS");
        let wait = answer.header("retry-after").and_then(|wait| wait.parse::<u64>().ok());
        assert!(wait.is_some_and(|wait| (1..=60).contains(&wait)), "{answer:?}");
    }
    let mut open: Vec<String> = granted.iter().map(Response::location).collect();
    assert_random(&open);

    // Whatever else begins an upload is refused too.
    let blob = random(1000);
    let digest = sha256(&blob);
    let whole = || Request::post(format!("/v2/a/blobs/uploads/?digest={digest}"));
    let absent = Request::post(format!("/v2/a/blobs/uploads/?mount={digest}&from=b"));
    client.send(whole().body(blob.clone())).expect_error(429, "TOOMANYREQUESTS");
    client.send(absent).expect_error(429, "TOOMANYREQUESTS");

    let mut next = || open.pop().expect("an open upload");
    let one_more = |client: &Client| {
        client.send(post("b")).expect_status(202);
        client.send(post("b")).expect_error(429, "TOOMANYREQUESTS");
    };
    client.delete(&next()).expect_status(204);
    one_more(&client);
    let end = with_query(&next(), &format!("digest={digest}"));
    client.send(Request::put(end).body(blob.clone())).expect_status(201);
    one_more(&client);
    let end = with_query(&next(), &format!("digest={digest}"));
    client.send(Request::put(end).body("other")).expect_error(400, "DIGEST_INVALID");
    one_more(&client);

    // A blob in one request counts as long as that lasts.
    client.delete(&next()).expect_status(204);
    let running = Running::begin(registry.addr(), &whole().path, blob.len());
    client.send(post("b")).expect_error(429, "TOOMANYREQUESTS");
    assert!(running.finish(&blob).starts_with("HTTP/1.1 201"));
    one_more(&client);
    client.delete(&next()).expect_status(204);
    drop(Running::begin(registry.addr(), &whole().path, blob.len()));
    until("a broken request gives its place back", || client.send(post("b")).status == 202);

    // What lies on the disk counts after a restart, however the server ended.
    registry.restart();
    registry.client().send(post("b")).expect_error(429, "TOOMANYREQUESTS");
    registry.kill9();
    registry.run();
    registry.client().send(post("b")).expect_error(429, "TOOMANYREQUESTS");

    age(&registry.upload_data(&next()));
    registry.restart();
    let client = registry.client();
    until("the sweep at the start frees one", || client.send(post("b")).status == 202);
    client.send(post("b")).expect_error(429, "TOOMANYREQUESTS");
}

#[test]
fn upload_cap_counts_each_user_alone() {
    let host = Host::new();
    let registry = team(&host, &["--max-uploads", "2"]);
    let [daemon, games] = USERS.map(|user| member(&registry, user));
    for who in [&daemon, &games] {
        let one = who.start_upload("team/one");
        who.start_upload("team/two");
        who.send(post("team/one")).expect_error(429, "TOOMANYREQUESTS");
        who.delete(&one).expect_status(204);
        who.start_upload("team/one");
    }
    daemon.send(post("team/two")).expect_error(429, "TOOMANYREQUESTS");
}

#[test]
fn upload_expiry() {
    let registry = Registry::start(&["--auth", "none", "--upload-expiry", "3s"]);
    let client = registry.client();
    let content = random(3 * MIB);
    // So few that they come at once, and are written at once.
    let (first, second) = content.split_at(10);
    let slow = client.start_upload("a");
    let data = registry.upload_data(&slow);
    let patch = Request::patch(slow.clone());
    let answer = client.stream(&patch, Framing::Chunked, |body| {
        body.write_all(first)?;
        until("the first bytes lie on the disk", || {
            fs::metadata(&data).is_ok_and(|meta| meta.len() == first.len() as u64)
        });
        // Opened after those bytes came: whatever takes it would take the other one, too.
        let idle = client.start_upload("a");
        until("who says nothing is swept", || client.get(&idle).status == 404);
        for request in touches(&idle) {
            client.send(request).expect_error(404, "BLOB_UPLOAD_UNKNOWN");
        }
        let gone = registry.upload_data(&idle);
        until("nothing of it is left", || !gone.parent().is_some_and(Path::exists));
        body.write_all(second)
    });
    answer.expect("an answer").expect_status(202);
    let digest = sha256(&content);
    let end = with_query(&slow, &format!("digest={digest}"));
    client.send(Request::put(end)).expect_status(201);
    let blob = client.get(&format!("/v2/a/blobs/{digest}")).expect_status(200);
    assert!(blob.body == content, "the blob differs");
}

#[test]
fn upload_expiry_takes_what_a_killed_server_left() {
    let mut registry = Registry::start(&["--auth", "none"]);
    let client = registry.client();
    let [old, young] = [0, 1].map(|_| client.start_upload("a"));
    let uploads = registry.root().join(".stillage/uploads");
    let blob = random(1000);
    let path = format!("/v2/a/blobs/uploads/?digest={}", sha256(&blob));
    let running = Running::begin(registry.addr(), &path, blob.len());
    registry.kill9();
    drop(running);
    age(&registry.upload_data(&old));
    let half = uploads.join("0123456789abcdef0123456789abcdef");
    fs::create_dir(&half).expect("half a session");
    let temporary = uploads.join(".blob.0123456789abcdef");
    fs::write(&temporary, "x").expect("a temporary file");
    age(&half);
    age(&temporary);
    registry.run();
    until("only the young one is left", || names(&uploads).len() == 1);
    registry.client().get(&young).expect_status(204);
    registry.client().get(&old).expect_error(404, "BLOB_UPLOAD_UNKNOWN");
}

#[test]
fn anonymous_disk() {
    let host = Host::new();
    let registry = team(&host, &[]);
    let daemon = member(&registry, "daemon");
    let location = daemon.start_upload("team/one");
    let digest = sha256(b"x");
    let scopes = ["repository:team/one:pull,push"];
    let token = registry.client().token("", "", &scopes).expect("an anonymous token");
    let bearer = format!("Authorization: Bearer {token}\r\n");
    let before = snapshot(registry.root());
    for (method, path) in [
        ("POST", "/v2/team/one/blobs/uploads/".to_owned()),
        ("POST", format!("/v2/team/one/blobs/uploads/?digest={digest}")),
        ("PATCH", location.clone()),
        ("PUT", with_query(&location, &format!("digest={digest}"))),
        ("PUT", "/v2/team/one/manifests/v1".to_owned()),
        ("PUT", "/v2/new/manifests/v1".to_owned()),
    ] {
        for who in ["", "Authorization: Basic Og==\r\n", &bearer] {
            for body in [
                "Content-Length: 1099511627776\r\nExpect: 100-continue\r\n",
                "Content-Length: 1099511627776\r\n",
                "Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n",
                "Transfer-Encoding: chunked\r\n",
            ] {
                let host = registry.addr();
                let head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n{who}{body}\r\n");
                let answer = registry.client().raw(head.as_bytes());
                let answer = String::from_utf8_lossy(&answer);
                assert!(answer.starts_with("HTTP/1.1 401"), "{head}{answer}");
            }
        }
    }
    assert_eq!(snapshot(registry.root()), before);
    daemon.get(&location).expect_status(204);
}

/// What the servers below keep back on file systems of 64 MiB, and what it may be short of by
/// directories and files that are no upload's data.
const KEEP: u64 = 16 * MIB as u64;
const SMALL: u64 = MIB as u64 / 2;

fn small(disk: &Tmpfs) -> Registry {
    Registry::start_on(&disk.path().join("registry"), &["--auth", "none", "--min-free", "16M"])
}

#[test]
fn anonymous_disk_a_running_upload_leaves_space() {
    let disk = Tmpfs::new(64);
    let registry = small(&disk);
    let client = registry.client();
    let image = Image::random(MIB);
    client.push_image("a", "t", &image);
    let begun = disk.free();

    let location = client.start_upload("a");
    let answer = upload(&registry, "PATCH", &location, 100 * MIB);
    assert!(answer.starts_with("HTTP/1.1 507"), "{answer}");
    assert!(answer.contains("\r\ncontent-type: application/json\r\n"), "{answer}");
    assert!(disk.free() > KEEP - SMALL, "{} left", disk.free());
    assert!(begun - disk.free() > 20 * MIB as u64, "refused too early: {} left", disk.free());
    // What arrived is there, for when there is space again; or it is given up.
    let data = fs::metadata(registry.upload_data(&location)).expect("its data").len();
    let range = format!("0-{}", data - 1);
    assert_eq!(client.get(&location).expect_status(204).header("range"), Some(range.as_str()));
    client.put_manifest("a", "u", OCI_MANIFEST, &image.manifest).expect_status(201);
    client.delete(&location).expect_status(204);
    assert!(begun - disk.free() < SMALL, "{begun} before, {} after", disk.free());
    assert!(registry.stderr().contains("uploads leave 16777216"), "{}", registry.stderr());

    // Many at once leave as much as one.
    let parallel = 10;
    let answers: Vec<String> = thread::scope(|scope| {
        let one = || {
            let path = format!("/v2/b/blobs/uploads/?digest={}", sha256(b""));
            upload(&registry, "POST", &path, 10 * MIB)
        };
        let all: Vec<_> = (0..parallel).map(|_| scope.spawn(one)).collect();
        let mut lowest = disk.free();
        while all.iter().any(|one| !one.is_finished()) {
            lowest = lowest.min(disk.free());
        }
        assert!(lowest > KEEP - SMALL, "{lowest} left");
        all.into_iter().map(|one| one.join().expect("an answer")).collect()
    });
    let count = |status: &str| {
        answers.iter().filter(|a| a.starts_with(&format!("HTTP/1.1 {status}"))).count()
    };
    // Those for whom there was space have the wrong digest.
    assert!(count("507") >= 1, "{answers:#?}");
    assert_eq!(count("507") + count("400"), parallel, "{answers:#?}");
    until("refused uploads leave nothing", || begun - disk.free() < SMALL);
    client.assert_pulls("a", "u", &image);
}

#[test]
fn anonymous_disk_a_new_upload_leaves_space_and_everything_else_goes_on() {
    let disk = Tmpfs::new(64);
    let registry = small(&disk);
    let client = registry.client();
    let images = [Image::random(MIB), Image::random(1000)];
    client.push_image("a", "t", &images[0]);
    for blob in images[1].layers.iter().chain([&images[1].config]) {
        client.push_blob("a", blob);
    }
    let spare = client.push_blob("a", &random(100));
    let open = client.start_upload("a");
    let digest = sha256(b"abc");

    for leave in [KEEP - SMALL, SMALL] {
        let filler = disk.fill(leave);
        let full = |request: Request| {
            let answer = client.send(request).expect_error(507, "UNKNOWN");
            assert!(answer.message().contains("space"), "{answer:?}");
        };
        full(post("a"));
        // It answers, and is not ready for pushes.
        full(Request::get("/readyz"));
        client.get("/healthz").expect_status(200);
        full(Request::post(format!("/v2/a/blobs/uploads/?digest={digest}")).body("abc"));
        full(Request::post(format!("/v2/b/blobs/uploads/?mount={digest}&from=a")));
        full(Request::patch(open.clone()).body("abc"));
        full(Request::put(with_query(&open, &format!("digest={digest}"))).body("abc"));
        assert_eq!(client.get(&open).expect_status(204).header("range"), Some("0-0"));

        client.assert_pulls("a", "t", &images[0]);
        let tag = format!("t{leave}");
        client.put_manifest("a", &tag, OCI_MANIFEST, &images[1].manifest).expect_status(201);
        client.assert_pulls("a", &tag, &images[1]);
        let mount = format!("/v2/b/blobs/uploads/?mount={spare}&from=a");
        client.send(Request::post(mount)).expect_status(201);
        client.delete(&format!("/v2/a/manifests/{tag}")).expect_status(202);
        client.delete(&format!("/v2/b/blobs/{spare}")).expect_status(202);
        fs::remove_file(filler).expect("the filler goes");
        client.get("/readyz").expect_status(200);
    }
    client.send(Request::patch(open.clone()).body("abc")).expect_status(202);
    client.send(Request::put(with_query(&open, &format!("digest={digest}")))).expect_status(201);
    client.start_upload("a");
}

/// A file that is one large hole is made in a moment; no mount and no manifest copies it.
#[test]
fn anonymous_disk_a_planted_hole_takes_no_space() {
    let disk = Tmpfs::new(64);
    let registry = small(&disk);
    let client = registry.client();
    let image = Image::random(1000);
    client.push_image("a", "t", &image);
    let before = disk.free();
    let digest = sha256(b"what the hole pretends to be");
    let name = digest.trim_start_matches("sha256:");
    for len in [2 << 30, 30 << 20] {
        let planted = registry.root().join("a/blobs/sha256").join(name);
        let hole = File::create(&planted).expect("a file");
        hole.set_len(len).expect("a hole");
        std::os::unix::fs::chown(&planted, Some(1), Some(1)).expect("chown");
        let mount = Request::post(format!("/v2/b/blobs/uploads/?mount={digest}&from=a"));
        client.send(mount).expect_status(202);
        let layer = format!(r#"{{"mediaType":"x","digest":"{digest}","size":{len}}}"#);
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{layer},"layers":[]}}"#
        );
        let refused = client.put_manifest("a", "hole", OCI_MANIFEST, manifest.as_bytes());
        assert!(matches!(refused.status, 400 | 507), "{refused:?}");
        assert!(disk.free() + (1 << 20) > before, "{} of {before} are free", disk.free());
        client.put_manifest("a", "t2", OCI_MANIFEST, &image.manifest).expect_status(201);
        fs::remove_file(planted).expect("the hole goes");
    }
}

fn post(repo: &str) -> Request {
    Request::post(format!("/v2/{repo}/blobs/uploads/"))
}

/// The ids are 128 bits, and each bit is sometimes set.
fn assert_random(locations: &[String]) {
    let id = |location: &String| {
        let hex = location.rsplit('/').next().expect("an id");
        assert!(hex.len() == 32 && hex.bytes().all(|b| b.is_ascii_hexdigit()), "{location}");
        u128::from_str_radix(hex, 16).expect("hexadecimal")
    };
    let ids: BTreeSet<u128> = locations.iter().map(id).collect();
    assert_eq!(ids.len(), locations.len());
    assert_eq!(ids.iter().fold(0, |all, id| all | id), u128::MAX, "a bit is never set");
    assert_eq!(ids.iter().fold(u128::MAX, |all, id| all & id), 0, "a bit is always set");
}

/// Two days old: past every default.
fn age(path: &Path) {
    let past = SystemTime::now() - Duration::from_secs(2 * 24 * 60 * 60);
    File::open(path).and_then(|file| file.set_modified(past)).expect("a time in the past");
}

/// Waits for something that the server does by itself.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(60), "not within a minute: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("a directory");
    entries.map(|entry| entry.expect("a name").file_name().to_string_lossy().into_owned()).collect()
}
