//! What other tools put into the tree, take out of it and move about while the server runs: the next
//! request sees it, and the views follow.

mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use support::Registry;
use support::account::Account;
use support::command::run;
use support::containers::Containers;
use support::content::Image;
use support::views;

/// Sample trees whose layouts other tools made, or could have.
const SAMPLES: [&str; 12] = [
    "artifacts",
    "build-cache",
    "docker",
    "foreign-layers",
    "full-reference",
    "image",
    "nested-index",
    "several-tags",
    "sha512",
    "skopeo",
    "skopeo-index",
    "umoci",
];

#[test]
fn layouts_made_elsewhere_are_served_when_they_are_dropped_in() {
    let registry = Registry::start(&["--auth", "none"]);
    let client = registry.client();
    client.push_image("first", "v1", &Image::random(100));
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/valid");
    let mut tags = 0;
    for sample in SAMPLES {
        let to = registry.root().join(format!("dropped-{sample}"));
        run(Command::new("cp").args(["-r", "--"]).arg(samples.join(sample)).arg(&to)).ok();
        let repos = repositories(&to);
        assert!(!repos.is_empty(), "{sample} has no repository");
        for repo in repos {
            let name = repo.strip_prefix(registry.root()).expect("beneath ROOT");
            let name = name.to_str().expect("plain text");
            let wanted = views::wanted(&repo, name);
            let listed = client.tags(name);
            assert_eq!(wanted["_tags.json"]["tags"], serde_json::json!(listed), "{name}");
            for tag in &listed {
                let served = client.get(&format!("/v2/{name}/manifests/{tag}")).expect_status(200);
                let digest = served.header("docker-content-digest").expect("a digest");
                let blob = repo.join("blobs").join(digest.replacen(':', "/", 1));
                assert_eq!(served.body, fs::read(blob).expect("a manifest"), "{name}:{tag}");
                tags += 1;
            }
            views_become_right(&registry, name);
        }
    }
    assert!(tags > SAMPLES.len(), "only {tags} tags were asked for");
}

#[test]
fn copies_moves_and_removals_are_seen_by_the_next_request() {
    let registry = Registry::start(&["--auth", "none"]);
    let client = registry.client();
    let image = Image::random(3_000);
    client.push_image("team/app", "v1", &image);
    client.push_image("team/app/nested", "v1", &image);
    let root = registry.root();
    let at = |name: &str| root.join(name);

    run(Command::new("cp").args(["-a", "--"]).args([at("team/app"), at("copied")])).ok();
    client.assert_pulls("copied", "v1", &image);
    client.assert_pulls("copied/nested", "v1", &image);
    views_become_right(&registry, "copied");
    views_become_right(&registry, "copied/nested");

    run(Command::new("mv").args([at("copied"), at("moved")])).ok();
    client.get("/v2/copied/tags/list").expect_status(404);
    client.assert_pulls("moved", "v1", &image);
    views_become_right(&registry, "moved");
    // A push goes on where it lies now.
    client.push_image("moved", "v2", &Image::random(100));
    views::assert_right(root, "moved");

    // One repository is put back as it was.
    let backup = registry.scratch().join("backup");
    run(Command::new("cp").args(["-a", "--"]).args([at("team/app"), backup.clone()])).ok();
    client.push_image("team/app", "later", &Image::random(100));
    let (from, to) = (format!("{}/", backup.display()), format!("{}/", at("team/app").display()));
    run(Command::new("rsync").args(["-aHA", "--delete", "--exclude=.lock", &from, &to])).ok();
    assert_eq!(client.tags("team/app"), ["v1"]);
    views_become_right(&registry, "team/app");

    run(Command::new("rm").args(["-rf", "--"]).arg(at("team"))).ok();
    client.get("/v2/team/app/tags/list").expect_status(404);
    client.get("/v2/team/app/nested/manifests/v1").expect_status(404);
    client.push_image("team/app", "again", &image);
    client.assert_pulls("team/app", "again", &image);
    views::assert_right(root, "team/app");
}

#[test]
fn what_tools_write_into_a_repository_is_seen_by_the_next_request() {
    let registry = Registry::start(&["--auth", "none"]);
    let client = registry.client();
    client.push_image("team/app", "v1", &Image::random(1_000));
    let home = Containers::new();
    home.image("localhost/made-here", "hello", "amd64");
    let oci = |tag: &str| format!("oci:{}:{tag}", registry.root().join("team/app").display());
    let mut tags = vec!["v1".to_owned()];
    let mut seen = |tag: &str| {
        tags.push(tag.to_owned());
        tags.sort();
        assert_eq!(client.tags("team/app"), tags);
        client.get(&format!("/v2/team/app/manifests/{tag}")).expect_status(200);
        views_become_right(&registry, "team/app");
    };
    home.podman(&["push", "localhost/made-here", &oci("podman")]).ok();
    seen("podman");
    home.buildah(&["push", "localhost/made-here", &oci("buildah")]).ok();
    seen("buildah");
    home.skopeo(&["copy", &oci("podman"), &oci("skopeo")]).ok();
    seen("skopeo");
    let from = oci("skopeo").replacen("oci:", "", 1);
    run(Command::new("umoci").args(["tag", "--image", &from, "umoci"])).ok();
    // umoci gives index.json a mode that lets nobody else read it: then there is nothing for a web server.
    let index = registry.root().join("team/app/index.json");
    assert_eq!(fs::metadata(&index).expect("index.json").permissions().mode() & 0o777, 0o600);
    fs::set_permissions(&index, fs::Permissions::from_mode(0o644)).expect("its mode");
    seen("umoci");
    let oras = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/.tools/oras");
    let to = oci("oras").replacen("oci:", "", 1);
    run(Command::new(oras).args(["cp", "--from-oci-layout", &from, "--to-oci-layout", &to])).ok();
    seen("oras");
    for tag in ["podman", "buildah", "skopeo", "umoci", "oras"] {
        let name =
            format!("docker://{}/team/app:{tag}", support::containers::localhost(registry.addr()));
        let copy = format!("oci:{}:{tag}", registry.scratch().join("pulled").display());
        home.skopeo(&["copy", "--src-tls-verify=false", &name, &copy]).ok();
    }
}

/// The server must not make what `cp -a` is about to make. strace slows it down: its index.json comes a while
/// before the last blob, or after it, as the directory gives the names.
#[test]
fn a_repository_is_copied_beside_the_server_however_long_it_takes() {
    const IMAGES: usize = 25;
    let registry = Registry::start(&["--auth", "none"]);
    let client = registry.client();
    for number in 0..IMAGES {
        client.push_image("from", &format!("v{number}"), &Image::random(1_000));
    }
    let root = registry.root();
    for to in ["to", "other/place"] {
        fs::create_dir_all(root.join("other")).expect("a directory");
        let slow = "inject=openat:delay_enter=60000";
        let mut copy = Command::new("strace");
        copy.args(["-f", "-o", "/dev/null", "-e", "trace=openat", "-e", slow, "cp", "-a", "--"]);
        run(copy.arg(root.join("from")).arg(root.join(to))).ok();
        assert_eq!(client.tags(to).len(), IMAGES);
        views_become_right(&registry, to);
    }
}

/// Whoever writes index.json as it was takes back what was acknowledged since: that is told.
#[test]
fn an_index_that_is_put_back_is_told_with_what_it_lacks() {
    let registry = Registry::start(&["--auth", "none"]);
    let client = registry.client();
    client.push_image("team/app", "base", &Image::random(100));
    let index = registry.root().join("team/app/index.json");
    let before = fs::read(&index).expect("index.json");
    client.push_image("team/app", "pushed", &Image::random(100));
    fs::write(&index, &before).expect("index.json");
    assert_eq!(client.tags("team/app"), ["base"]);
    registry.logs("an older index.json was put back");
    assert!(registry.stderr().contains(r#"tags=["pushed"]"#), "{}", registry.stderr());
    // Of one change nothing but the log tells: it may never have been made.
    client.push_image("team/app", "pushed", &Image::random(100));
    client.push_image("team/app", "later", &Image::random(100));
    fs::write(&index, &before).expect("index.json");
    assert_eq!(client.tags("team/app"), ["base"]);
    let both = r#"tags=["later", "pushed"]"#;
    registry.logs(both);
    let (code, text) = registry.check();
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("journal-stamp-older") && text.contains("later, pushed"), "{text}");
}

#[test]
fn a_file_that_the_server_cannot_read_is_named_with_its_mode() {
    let account = Account::new();
    let room = tempfile::tempdir().expect("a directory");
    fs::set_permissions(room.path(), fs::Permissions::from_mode(0o755)).expect("its mode");
    let root = room.path().join("registry");
    fs::create_dir(&root).expect("ROOT");
    let (uid, gid) = (account.uid(), account.uid());
    chown(&root, Some(uid), Some(gid)).expect("its owner");
    let by = ["setpriv", &format!("--reuid={uid}"), &format!("--regid={gid}"), "--clear-groups"];
    let mut registry = Registry::start_by(&by, &root, &["--auth", "none"]);
    registry.expect_damage();
    let client = registry.client();
    let image = Image::random(1_000);
    client.push_image("team/app", "v1", &image);
    client.push_image("team/app", "v2", &Image::random(10));

    let blob = root.join("team/app/blobs").join(image.digest.replacen(':', "/", 1));
    let closed = |path: &Path| {
        chown(path, Some(0), Some(0)).expect("its owner");
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("its mode");
    };
    closed(&blob);
    client.get(&format!("/v2/team/app/manifests/{}", image.digest)).expect_status(403);
    registry.logs(&format!("{}: ", blob.display()));
    registry.logs(&format!("it has mode 0600, uid 0 and gid 0, and this is uid {uid}"));
    let index = root.join("team/app/index.json");
    closed(&index);
    client.get("/v2/team/app/tags/list").expect_status(500);
    registry
        .logs(&format!("{}: Permission denied (os error 13): it has mode 0600", index.display()));
    // Others are served.
    client.push_image("team/other", "v1", &image);
    client.assert_pulls("team/other", "v1", &image);
}

/// Directories with an index.json.
fn repositories(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name == "index.json" {
                found.push(dir.clone());
            } else if path.is_dir() && !["blobs", "_manifests", ".stillage"].contains(&name) {
                todo.push(path);
            }
        }
    }
    found.sort();
    found
}

/// A request has come since the last change: views follow.
#[track_caller]
fn views_become_right(registry: &Registry, name: &str) {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(20) {
        if views::are_right(registry.root(), name) {
            break;
        }
        registry.client().tags(name);
    }
    views::assert_right(registry.root(), name);
}
