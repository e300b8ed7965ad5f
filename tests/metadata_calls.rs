//! What requests ask of the tree, however many tags a repository has: the same calls, and of index.json
//! nothing but its status and the one write.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use support::Registry;
use support::calls::Calls;
use support::content::{Image, OCI_MANIFEST, sha256};
use support::http::Request;

/// How often each call is made at each place outside the registry's own room.
type Counts = BTreeMap<(String, String), usize>;

/// A repository as another tool leaves it; every tag has a manifest of its own, of which the files are not
/// there but for the first one's.
fn write_layout(directory: &Path, image: &Image, tags: usize) {
    let blobs = directory.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("the layout's directories");
    for blob in image.layers.iter().chain([&image.config, &image.manifest]) {
        fs::write(blobs.join(&sha256(blob)["sha256:".len()..]), blob).expect("a blob");
    }
    let entries: Vec<serde_json::Value> = (0..tags)
        .map(|number| {
            let other = || sha256(format!("{number}").as_bytes());
            let digest = if number == 0 { image.digest.clone() } else { other() };
            serde_json::json!({
                "mediaType": OCI_MANIFEST,
                "digest": digest,
                "size": image.manifest.len(),
                "annotations": { "org.opencontainers.image.ref.name": format!("t{number:06}") },
            })
        })
        .collect();
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": entries });
    fs::write(directory.join("index.json"), index.to_string()).expect("index.json");
    fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)
        .expect("oci-layout");
}

/// Waits until whatever changes from now on shows in the times of files.
fn settle() {
    let settled = Instant::now() + Duration::from_millis(30);
    while Instant::now() < settled {
        std::hint::spin_loop();
    }
}

fn counted(calls: &Calls, deed: impl FnOnce()) -> Counts {
    calls.record();
    deed();
    let mut counts = Counts::new();
    for (call, _) in calls.done() {
        // In the room it is a matter of chance which directories of the pool are there already.
        if call.name != "accept4" && !call.place.starts_with(".stillage") {
            *counts.entry((call.name.to_owned(), call.place)).or_default() += 1;
        }
    }
    counts
}

/// What each kind of request does in a repository with so many tags, the second time.
fn requests(tags: usize) -> Vec<(&'static str, Counts)> {
    let image = Image::random(1_000);
    let pushed: Vec<Image> = (0..5).map(|_| Image::of(image.layers.clone(), "")).collect();
    let room = tempfile::tempdir().expect("a directory");
    let root = room.path().join("registry");
    write_layout(&root.join("a"), &image, tags);
    let calls = Calls::on(&root);
    let mut registry =
        Registry::start_held(&calls, &root, &["--auth", "none", "--allow-sparse", "--no-views"]);
    registry.expect_damage();
    let client = registry.client();
    for image in &pushed {
        client.push_blob("a", &image.config);
    }
    let push = |image: &Image, tag: &str| {
        client.put_manifest("a", tag, OCI_MANIFEST, &image.manifest).expect_status(201);
    };
    push(&pushed[0], "first");
    push(&pushed[1], "t000003");
    let get = || drop(client.get("/v2/a/manifests/first").expect_status(200));
    get();
    settle();
    get();
    let missing = format!("/v2/a/blobs/{}", sha256(b"missing"));
    client.head(&missing).expect_status(404);
    vec![
        ("GET by tag", counted(&calls, get)),
        (
            "GET by digest",
            counted(&calls, || {
                let path = format!("/v2/a/manifests/{}", pushed[0].digest);
                client.send(Request::get(path)).expect_status(200);
            }),
        ),
        (
            "HEAD of a missing blob",
            counted(&calls, || {
                client.head(&missing).expect_status(404);
            }),
        ),
        ("PUT of a new tag", counted(&calls, || push(&pushed[2], "second"))),
        ("PUT that moves a tag", counted(&calls, || push(&pushed[3], "t000004"))),
        (
            "DELETE of a tag",
            counted(&calls, || {
                client.delete("/v2/a/manifests/second").expect_status(202);
            }),
        ),
        (
            "DELETE of a manifest",
            counted(&calls, || {
                client.delete(&format!("/v2/a/manifests/{}", pushed[0].digest)).expect_status(202);
            }),
        ),
    ]
}

#[test]
fn requests_make_the_same_calls_however_many_tags_there_are() {
    let (few, many) = (requests(10), requests(20_000));
    for ((what, few), (_, many)) in few.into_iter().zip(many) {
        assert_eq!(few, many, "{what}");
        let index = |name: &str| {
            let at = few.iter().filter(|((call, place), _)| {
                call == name && (place.ends_with("index.json") || place.contains(".index.json"))
            });
            at.map(|(_, count)| count).sum::<usize>()
        };
        assert_eq!(index("read") + index("pread64"), 0, "{what}: {few:?}");
        let writes = index("write") + index("pwrite64") + index("writev");
        let changes = what.starts_with("PUT") || what.starts_with("DELETE");
        assert_eq!(writes, usize::from(changes), "{what}: {few:?}");
        support::measured(format!("{what}: {} calls", few.values().sum::<usize>()));
    }
}
