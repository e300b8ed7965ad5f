//! skopeo, through the server and straight on the tree: both see the same repository.

mod support;

use std::fs;
use std::path::Path;

use support::Registry;
use support::containers::{Containers, localhost};
use support::content::{Image, OCI_INDEX, OCI_MANIFEST, index, sha256};

/// Every `docker://` here is plain HTTP, and nothing is to be compressed on the way.
const OPTIONS: &[&str] =
    &["--src-tls-verify=false", "--dest-tls-verify=false", "--preserve-digests"];

#[test]
fn an_oci_index_is_copied_whole_and_byte_for_byte() {
    let registry = Registry::start(&["--auth", "none"]);
    let server = localhost(registry.addr());
    let home = Containers::new();
    let images = [Image::random(5_000), Image::random(6_000)];
    let whole = index(&[(OCI_MANIFEST, &images[0].manifest), (OCI_MANIFEST, &images[1].manifest)]);
    let layout = home.path().join("layout");
    write_layout(&layout, &images, &whole, "both");

    let source = format!("oci:{}:both", layout.display());
    copy(&home, &["--all"], &source, &format!("docker://{server}/copied/index:both"));

    let client = registry.client();
    let served = client.get("/v2/copied/index/manifests/both").expect_status(200);
    assert_eq!(served.body, whole);
    assert_eq!(served.header("content-type"), Some(OCI_INDEX));
    for image in &images {
        client.assert_pulls("copied/index", &image.digest, image);
    }

    let back = home.path().join("back");
    let target = format!("oci:{}:both", back.display());
    copy(&home, &["--all"], &format!("docker://{server}/copied/index:both"), &target);
    let blob = back.join("blobs/sha256").join(&sha256(&whole)["sha256:".len()..]);
    assert_eq!(fs::read(blob).expect("the index came back"), whole);
}

#[test]
fn tags_are_listed_and_deleted() {
    let registry = Registry::start(&["--auth", "none"]);
    let server = localhost(registry.addr());
    let home = Containers::new();
    let client = registry.client();
    let image = Image::random(1_000);
    for tag in ["b", "a", "c.1_x"] {
        client.push_image("listed/here", tag, &image);
    }
    let repo = format!("docker://{server}/listed/here");
    let list = home.skopeo(&["list-tags", "--tls-verify=false", &repo]).ok();
    let list: serde_json::Value = serde_json::from_str(&list.stdout).expect("a list of tags");
    assert_eq!(list["Tags"], serde_json::json!(["a", "b", "c.1_x"]));

    // skopeo asks for the tag's digest and deletes that: all three tags go.
    home.skopeo(&["delete", "--tls-verify=false", &format!("{repo}:a")]).ok();
    for reference in ["a", "b", "c.1_x", &image.digest] {
        client.get(&format!("/v2/listed/here/manifests/{reference}")).expect_status(404);
    }
}

#[test]
fn inspect_shows_the_same_through_the_server_and_on_the_disk() {
    let registry = Registry::start(&["--auth", "none"]);
    let server = localhost(registry.addr());
    let home = Containers::new();
    registry.client().push_image("looked/at", "v1", &Image::random(1_000));
    let remote = format!("docker://{server}/looked/at:v1");
    let local = format!("oci:{}/looked/at:v1", registry.root().display());
    for what in ["--raw", "--config"] {
        let through = home.skopeo(&["inspect", what, "--tls-verify=false", &remote]).ok();
        let beside = home.skopeo(&["inspect", what, &local]).ok();
        assert_eq!(through.stdout, beside.stdout, "{what}");
    }
}

#[test]
fn what_was_pushed_is_read_from_the_tree() {
    let registry = Registry::start(&["--auth", "none"]);
    let home = Containers::new();
    let image = Image::random(3_000);
    registry.client().push_image("read/me", "v1", &image);
    let away = home.path().join("away");
    let source = format!("oci:{}/read/me:v1", registry.root().display());
    copy(&home, &[], &source, &format!("oci:{}:v1", away.display()));
    let manifest = away.join("blobs/sha256").join(&image.digest["sha256:".len()..]);
    assert_eq!(fs::read(manifest).expect("the manifest was copied"), image.manifest);
}

#[test]
fn what_was_written_into_the_tree_is_served_at_once() {
    let registry = Registry::start(&["--auth", "none"]);
    let server = localhost(registry.addr());
    let home = Containers::new();
    let client = registry.client();
    let ours = Image::random(1_000);
    client.push_image("shared/one", "ours", &ours);
    assert_eq!(client.tags("shared/one"), ["ours"]);

    let theirs = Image::random(2_000);
    let layout = home.path().join("layout");
    write_layout(&layout, std::slice::from_ref(&theirs), &theirs.manifest, "x");
    let source = format!("oci:{}:x", layout.display());
    for repo in ["shared/one", "shared/new"] {
        // Asked for before it is there: what the server remembers must not outlive the change.
        client.get(&format!("/v2/{repo}/manifests/theirs")).expect_status(404);
        let target = format!("oci:{}/{repo}:theirs", registry.root().display());
        copy(&home, &[], &source, &target);
        client.assert_pulls(repo, "theirs", &theirs);
        client.assert_pulls(repo, &theirs.digest, &theirs);
    }
    assert_eq!(client.tags("shared/one"), ["ours", "theirs"]);
    assert_eq!(client.tags("shared/new"), ["theirs"]);
    client.assert_pulls("shared/one", "ours", &ours);

    // The next push goes on from what skopeo left.
    client.push_image("shared/new", "third", &ours);
    assert_eq!(client.tags("shared/new"), ["theirs", "third"]);
    let away = format!("oci:{}:t", home.path().join("away").display());
    copy(&home, &[], &format!("docker://{server}/shared/new:theirs"), &away);
}

/// All tags at once: from one repository to another, to a directory, and from there back.
#[test]
fn sync_takes_every_tag_in_and_out() {
    let registry = Registry::start(&["--auth", "none"]);
    let server = localhost(registry.addr());
    let home = Containers::new();
    let client = registry.client();
    let images = ["one", "two"].map(|tag| (tag, Image::random(1_000)));
    for (tag, image) in &images {
        client.push_image("synced/app", tag, image);
    }
    let away = home.path().join("away").display().to_string();
    let sync = |from: [&str; 2], to: [&str; 2]| {
        let way = ["--src", from[0], "--dest", to[0], from[1], to[1]];
        home.skopeo(&[&["sync"], OPTIONS, &way].concat()).ok();
    };
    let app = format!("{server}/synced/app");
    sync(["docker", &app], ["docker", &format!("{server}/copies")]);
    sync(["docker", &app], ["dir", &away]);
    sync(["dir", &away], ["docker", &format!("{server}/back")]);
    for repo in ["copies/app", "back/app"] {
        assert_eq!(client.tags(repo), ["one", "two"]);
        for (tag, image) in &images {
            client.assert_pulls(repo, tag, image);
        }
    }
}

#[track_caller]
fn copy(home: &Containers, options: &[&str], source: &str, target: &str) {
    let mut args = vec!["copy"];
    args.extend(OPTIONS);
    args.extend(options);
    args.extend([source, target]);
    home.skopeo(&args).ok();
}

/// An OCI layout as another tool would leave it: `top` is the manifest or index that the tag names.
fn write_layout(directory: &Path, images: &[Image], top: &[u8], tag: &str) {
    let blobs = directory.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("the layout's directories");
    let put = |bytes: &[u8]| {
        fs::write(blobs.join(&sha256(bytes)["sha256:".len()..]), bytes).expect("a blob");
    };
    for image in images {
        image.layers.iter().chain([&image.config, &image.manifest]).for_each(|blob| put(blob));
    }
    put(top);
    let media_type = if images.len() == 1 { OCI_MANIFEST } else { OCI_INDEX };
    let index = serde_json::json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": media_type,
            "digest": sha256(top),
            "size": top.len(),
            "annotations": { "org.opencontainers.image.ref.name": tag },
        }],
    });
    fs::write(directory.join("index.json"), index.to_string()).expect("index.json");
    fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)
        .expect("oci-layout");
}
