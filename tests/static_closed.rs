//! The tree served by nginx alone: what must not be reached, written to or told of.

mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, lchown, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use support::Registry;
use support::command::run;
use support::content::{Image, sha256};
use support::http::Request;
use support::web::{Served, Web, assert_alike, open_room};

/// An account of every Debian that is neither ours nor nginx's.
const DAEMON: u32 = 1;

/// nginx on a repository and one within it.
fn served() -> Served {
    let served = Served::new();
    for repo in ["a", "a/b"] {
        served.ours().push_image(repo, "v1", &Image::random(1000));
    }
    served
}

#[test]
fn nothing_is_written() {
    let served = served();
    let nginx = served.nginx();
    let blob = format!("/v2/a/blobs/{}", sha256(b"x"));
    for path in ["/", "/v2/", "/v2/a/manifests/v1", &blob, "/v2/a/blobs/uploads/", "/a/index.json"]
    {
        for method in ["PUT", "POST", "PATCH", "DELETE", "OPTIONS", "MKCOL", "MOVE", "TRACE", "X"] {
            let request = Request::new(method, path).body("body");
            let refused = nginx.send(request).expect_error(405, "UNSUPPORTED");
            assert_eq!(refused.header("allow"), Some("GET, HEAD"), "{method} {path}");
        }
    }
    // Nor is a body awaited that is announced.
    let large = Request::put("/v2/a/manifests/v2").header("Content-Length", "999999999999");
    nginx.send(large.header("Expect", "100-continue")).expect_error(405, "UNSUPPORTED");
    assert_eq!(served.ours().tags("a"), ["v1"]);
}

/// Whatever else lies in a repository, by whichever way.
#[test]
fn no_other_file_is_read() {
    let served = served();
    let files = [".lock", "index.json", "oci-layout", "_tags.json", "_log.jsonl", "_manifests/.of"];
    for file in files {
        assert!(served.repo("a").join(file).symlink_metadata().is_ok(), "{file} is there");
    }
    let hex = &sha256(b"x")[7..];
    let inside = files.iter().map(ToString::to_string).chain([
        "_manifests/v1.oci-image".to_owned(),
        "_referrers/facts.jsonl".to_owned(),
        format!("blobs/sha256/{hex}"),
        "blobs/".to_owned(),
        String::new(),
    ]);
    for file in inside {
        for path in [
            format!("/a/{file}"),
            format!("/v2/a/{file}"),
            format!("/v2/a/b/../{file}"),
            format!("/v2/a/manifests/../{file}"),
            format!("/v2/a/manifests/..%2F{file}"),
            format!("/v2/a/manifests/%2e%2e%2f{file}"),
            format!("/v2/a/blobs/sha256:../../{file}"),
            format!("/v2/a/referrers/sha256:%2e%2e/{file}"),
            format!("/v2/../a/{file}"),
            format!("/v2/a%00/{file}"),
            format!("/v2/./a//{file}"),
            format!("//a/{file}"),
        ] {
            let answer = served.nginx().get(&path);
            assert!([400, 404].contains(&answer.status), "{path}: {answer:?}");
        }
    }
}

#[test]
fn what_no_registry_has_is_not_there() {
    let served = served();
    let nginx = served.nginx();
    let stays_out = [
        "/",
        "/.stillage/version",
        "/v2/.stillage/version",
        "/v2/.stillage/tags/list",
        "/v2/_catalog",
        "/v2/A/tags/list",
        "/v2/a//b/tags/list",
        "/v2/a/manifests/.of",
        "/v2/a/manifests/v1%0a",
        "/v2/a/manifests/v1.oci-image",
        "/v2/a/manifests/",
        "/v2/a/manifests/sha256",
        "/v2/a/manifests/sha256:00",
        "/v2/a/blobs/v1",
        "/v2/a/tags/list/",
        "/v2/a/tags/list%0a",
        "/v2/a/tags",
        "/tag.oci-image",
        "/manifest.oci-image",
        "/token",
        "/healthz",
    ];
    for path in stays_out {
        let answer = nginx.get(path).expect_status(404);
        assert!(!answer.code().is_empty(), "{path}: {answer:?}");
    }
    // Of no digest there are referrers anywhere, whoever has the repository.
    for path in ["/v2/a/referrers/sha256:zz", "/v2/none/referrers/v1"] {
        nginx.get(path).expect_error(400, "DIGEST_INVALID");
        served.ours().get(path).expect_error(400, "DIGEST_INVALID");
    }
    // Names of which a component, or all of it, is longer than a file system takes.
    for name in ["a".repeat(300), vec!["abc"; 1200].join("/")] {
        nginx.get(&format!("/v2/{name}/tags/list")).expect_error(404, "NAME_UNKNOWN");
    }
    // The same name, spelled differently, is the same repository.
    for path in ["/v2/a%2Fb/tags/list", "/v2/a/x/../b/tags/list", "/v2/%61/b/tags/list?n=1"] {
        assert_eq!(nginx.get(path).expect_status(200).json()["name"], "a/b", "{path}");
    }
}

/// Somebody who may write a repository with a shell plants links to what nginx's account can read.
#[test]
fn planted_symlinks_are_not_followed() {
    let served = Served::new();
    let client = served.ours();
    let image = Image::random(1000);
    client.push_image("a", "v1", &image);
    client.push_image("other", "v1", &Image::random(1000));
    let nginx = served.nginx();
    let plant = |target: &str, at: &str, owner: Option<u32>| {
        let path = served.repo("a").join(at);
        let _ = fs::remove_file(&path);
        fs::create_dir_all(path.parent().expect("a directory")).expect("made");
        symlink(target, &path).expect("planted");
        lchown(&path, owner, owner).expect("root");
    };
    let secret = served.repo("secret.txt");
    fs::write(&secret, "what nginx's account can read").expect("a file");
    let secret = secret.to_str().expect("text");
    let hex = &sha256(b"planted")[7..];
    let real = format!("../blobs/sha256/{}", &image.digest[7..]);
    for owner in [Some(DAEMON), None] {
        for kind in ["oci-image", "oci-index", "docker-image", "docker-list"] {
            plant(secret, &format!("_manifests/evil.{kind}"), owner);
            nginx.get("/v2/a/manifests/evil").expect_error(404, "MANIFEST_UNKNOWN");
            fs::remove_file(served.repo("a").join(format!("_manifests/evil.{kind}")))
                .expect("gone");
        }
        for (at, path, code) in [
            (format!("blobs/sha256/{hex}"), format!("/v2/a/blobs/sha256:{hex}"), "BLOB_UNKNOWN"),
            ("_tags.json".to_owned(), "/v2/a/tags/list".to_owned(), "NAME_UNKNOWN"),
        ] {
            plant(secret, &at, owner);
            nginx.get(&path).expect_error(404, code);
        }
        plant(secret, &format!("_referrers/sha256/{hex}.json"), owner);
        let list = nginx.get(&format!("/v2/a/referrers/sha256:{hex}")).expect_status(200);
        assert_eq!(list.json()["manifests"], serde_json::json!([]));
        // A directory.
        plant("../other", "nested", owner);
        for path in ["/v2/a/nested/tags/list", "/v2/a/nested/manifests/v1"] {
            nginx.get(path).expect_error(404, "NAME_UNKNOWN");
        }
    }
    // By digest the extension decides, and the link counts if its owner has what it names.
    let by_digest = format!("/v2/a/manifests/sha256:{hex}");
    plant(secret, &format!("_manifests/sha256/{hex}.oci-image"), Some(DAEMON));
    nginx.get(&by_digest).expect_error(404, "MANIFEST_UNKNOWN");
    // Somebody's link to what is there: not followed either.
    plant(&real, "_manifests/evil.oci-image", Some(DAEMON));
    nginx.get("/v2/a/manifests/evil").expect_error(404, "MANIFEST_UNKNOWN");
    // By tag nothing but a blob of the repository is sent, whoever made the link.
    plant(&format!("{secret}.d/blobs/sha256/{hex}"), "_manifests/evil.oci-image", None);
    nginx.get("/v2/a/manifests/evil").expect_error(404, "MANIFEST_UNKNOWN");
    let elsewhere = fs::canonicalize(served.repo("other/_manifests/v1.oci-image")).expect("a blob");
    plant(elsewhere.to_str().expect("text"), "_manifests/evil.oci-image", None);
    nginx.get("/v2/a/manifests/evil").expect_error(404, "MANIFEST_UNKNOWN");
    // A file that is no link is no view, and a directory is nothing.
    let view = served.repo("a/_manifests/evil.oci-image");
    fs::remove_file(&view).expect("gone");
    fs::write(&view, "{}").expect("a file");
    nginx.get("/v2/a/manifests/evil").expect_error(404, "MANIFEST_UNKNOWN");
    fs::remove_file(&view).expect("gone");
    fs::create_dir(&view).expect("a directory");
    nginx.get("/v2/a/manifests/evil").expect_error(404, "MANIFEST_UNKNOWN");
    nginx.get("/v2/a/manifests/v1").expect_status(200);
    fs::remove_dir_all(served.repo("a")).expect("what was planted");
}

/// A manifest that is another account's, as after `skopeo copy … oci:`: the link to it is the server's.
/// Its layers are files like any other.
#[test]
fn what_another_account_put_there_is_served_once_it_is_the_registrys() {
    let served = Served::new();
    let image = Image::random(1000);
    served.ours().push_image("a", "v1", &image);
    let blob = |digest: &str| served.repo("a/blobs/sha256").join(&digest[7..]);
    let layer = sha256(&image.layers[0]);
    for digest in [&image.digest, &layer] {
        // Another inode, as another tool writes one.
        let bytes = fs::read(blob(digest)).expect("a blob");
        fs::remove_file(blob(digest)).expect("removed");
        fs::write(blob(digest), bytes).expect("written");
        lchown(blob(digest), Some(DAEMON), Some(DAEMON)).expect("root");
    }
    let paths = ["v1", &image.digest].map(|reference| format!("/v2/a/manifests/{reference}"));
    for path in &paths {
        served.ours().get(path).expect_status(200);
        served.nginx().get(path).expect_error(404, "MANIFEST_UNKNOWN");
    }
    served.nginx().get(&format!("/v2/a/blobs/{layer}")).expect_status(200);
    served.ours().push_image("a", "v1", &image);
    for path in &paths {
        served.nginx().get(path).expect_status(200);
    }
}

#[test]
fn private_repositories_are_those_that_www_data_cannot_enter() {
    let served = Served::new();
    let client = served.ours();
    let image = Image::random(1000);
    for repo in ["team/app", "team/app/nested", "open/app", "listed/app"] {
        client.push_image(repo, "v1", &image);
    }
    let mode = |path: &str, mode: u32| {
        fs::set_permissions(served.repo(path), Permissions::from_mode(mode)).expect("its mode");
    };
    let paths = |repo: &str| {
        [
            format!("/v2/{repo}/manifests/v1"),
            format!("/v2/{repo}/manifests/{}", image.digest),
            format!("/v2/{repo}/blobs/{}", sha256(&image.layers[0])),
            format!("/v2/{repo}/tags/list"),
            format!("/v2/{repo}/referrers/{}", image.digest),
            format!("/v2/{repo}/blobs/x"),
        ]
    };
    let nginx = served.nginx();
    for path in paths("team/app") {
        if !path.ends_with("/x") {
            nginx.get(&path).expect_status(200);
        }
    }
    for closed in ["team/app", "team"] {
        let before = fs::metadata(served.repo(closed)).expect("there").permissions().mode();
        for bits in [0o700, 0o750, 0o2770, 0o754] {
            mode(closed, bits);
            for repo in ["team/app", "team/app/nested"] {
                for (path, other) in paths(repo).iter().zip(paths("none")) {
                    // Word for word what is said of a repository that nobody has.
                    assert_alike(&nginx.get(&other), &nginx.get(path), path);
                }
            }
        }
        mode(closed, before);
    }
    for path in paths("open/app").iter().filter(|path| !path.ends_with("/x")) {
        nginx.get(path).expect_status(200);
    }
}

/// `access` says of all of these that everybody else may not pull: no manifest is to be had, no tag, no list.
#[test]
fn what_www_data_may_only_enter_is_not_shown() {
    let served = Served::new();
    let image = Image::random(1000);
    served.ours().push_image("team/app", "v1", &image);
    let paths = |repo: &str| {
        [
            format!("/v2/{repo}/manifests/v1"),
            format!("/v2/{repo}/manifests/{}", image.digest),
            format!("/v2/{repo}/tags/list"),
            format!("/v2/{repo}/referrers/{}", image.digest),
        ]
    };
    let nginx = served.nginx();
    let becomes = |status: u16, mode: u32| {
        let end = Instant::now() + Duration::from_secs(60);
        // Of referrers nginx says of everybody's that there are none.
        while paths("team/app")[..3].iter().any(|path| nginx.get(path).status != status) {
            assert!(
                Instant::now() < end,
                "not {status} with {mode:o}; {}",
                served.registry.stderr()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    let mode = |mode: u32| {
        let path = served.repo("team/app");
        fs::set_permissions(path, Permissions::from_mode(mode)).expect("its mode");
    };
    let closed: [(u32, &[&str]); 3] =
        [(0o711, &[]), (0o751, &[]), (0o700, &["-m", "u:www-data:x"])];
    for (bits, acl) in closed {
        becomes(200, 0o755);
        mode(bits);
        if !acl.is_empty() {
            run(Command::new("setfacl").args(acl).arg(served.repo("team/app"))).ok();
        }
        becomes(404, bits);
        let [.., list] = paths("team/app");
        let list = nginx.get(&list).expect_status(200).json();
        assert_eq!(list["manifests"], serde_json::json!([]));
        run(Command::new("setfacl").arg("-b").arg(served.repo("team/app"))).ok();
        mode(0o755);
    }
    becomes(200, 0o755);
}

/// umoci 0.4.7 makes every file that it writes one for its owner alone (docs/other-tools.md).
#[test]
fn what_umoci_made_is_for_everybody_after_two_commands() {
    let room = open_room();
    let registry = Registry::start_on(&room.path().join("registry"), &["--auth", "pam"]);
    let nginx = Web::nginx(registry.root());
    let place = registry.root().join("made");
    let umoci = |args: &[&str]| run(Command::new("umoci").args(args)).ok();
    let layout = place.to_str().expect("text").to_owned();
    umoci(&["init", "--layout", &layout]);
    umoci(&["new", "--image", &format!("{layout}:v1")]);
    umoci(&["config", "--image", &format!("{layout}:v1"), "--config.user", "65534"]);
    // As podman does that has no credentials.
    let token = "/token?service=stillage&scope=repository:made:pull";
    let token = registry.client().get(token).expect_status(200).json();
    let bearer = format!("Bearer {}", token["token"].as_str().expect("a token"));
    let anonymous = registry.client().with_authorization(&bearer);
    let index = fs::read(place.join("index.json")).expect("index.json");
    let index: serde_json::Value = serde_json::from_slice(&index).expect("an index");
    let entry = index["manifests"].as_array().expect("entries").last().expect("one");
    let digest = entry["digest"].as_str().expect("a digest");
    let manifest = fs::read(place.join("blobs/sha256").join(&digest[7..])).expect("a manifest");
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).expect("a manifest");
    let config = manifest["config"]["digest"].as_str().expect("a digest");
    let paths = ["/v2/made/manifests/v1".to_owned(), format!("/v2/made/blobs/{config}")];
    let everybody = [&anonymous, &nginx.client()];
    for client in everybody {
        for path in &paths {
            assert!([401, 404].contains(&client.get(path).status), "{path}");
        }
    }
    // index.json alone is not enough.
    run(Command::new("chmod").arg("644").arg(place.join("index.json"))).ok();
    for path in &paths {
        assert!([401, 404].contains(&anonymous.get(path).status), "{path}");
    }
    run(Command::new("chmod").args(["-R", "a+rX"]).arg(place.join("blobs"))).ok();
    for path in &paths {
        anonymous.get(path).expect_status(200);
        let end = Instant::now() + Duration::from_secs(60);
        while nginx.client().get(path).status != 200 {
            assert!(Instant::now() < end, "{path}; {}", registry.stderr());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Layouts that another tool left, and what nobody can read, are no reason for another answer.
#[test]
fn what_cannot_be_read_is_not_there() {
    let served = Served::new();
    let image = Image::random(1000);
    served.ours().push_image("a", "v1", &image);
    let hide = |path: &Path, mode: u32| {
        fs::set_permissions(path, Permissions::from_mode(mode)).expect("its mode");
    };
    let blob = served.repo("a/blobs/sha256").join(&sha256(&image.layers[0])[7..]);
    let path = format!("/v2/a/blobs/{}", sha256(&image.layers[0]));
    hide(&blob, 0o400);
    served.nginx().get(&path).expect_error(404, "BLOB_UNKNOWN");
    hide(&blob, 0o444);
    served.nginx().get(&path).expect_status(200);
    let manifest = served.repo("a/blobs/sha256").join(&image.digest[7..]);
    hide(&manifest, 0o400);
    for reference in ["v1", &image.digest] {
        let path = format!("/v2/a/manifests/{reference}");
        served.nginx().get(&path).expect_error(404, "MANIFEST_UNKNOWN");
    }
    hide(&manifest, 0o444);
}
