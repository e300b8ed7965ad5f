//! Many clients at one repository at once: nothing is lost, and commits are shared.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::sync::Barrier;
use std::thread;

use support::Registry;
use support::content::{Image, OCI_MANIFEST, referrer, sha256};
use support::http::Request;

#[test]
fn two_hundred_referrers_pushed_by_sixteen_clients_are_all_listed() {
    const CLIENTS: usize = 16;
    const REFERRERS: usize = 200;
    let mut registry = Registry::start(&["--auth", "none"]);
    let client = registry.client();
    let subject = Image::random(1_000);
    client.push_image("signed/app", "v1", &subject);
    client.push_blob("signed/app", b"{}");
    let signatures: Vec<Vec<u8>> = (0..REFERRERS)
        .map(|_| {
            referrer(&subject.digest, subject.manifest.len(), "application/vnd.test.signature")
        })
        .collect();

    let start = Barrier::new(CLIENTS);
    thread::scope(|scope| {
        for share in signatures.chunks(REFERRERS.div_ceil(CLIENTS)) {
            let (start, client) = (&start, client.clone());
            scope.spawn(move || {
                start.wait();
                for signature in share {
                    let answer = client
                        .put_manifest("signed/app", &sha256(signature), OCI_MANIFEST, signature)
                        .expect_status(201);
                    assert_eq!(answer.header("oci-subject"), Some(subject_of(signature).as_str()));
                }
            });
        }
    });

    let pushed: BTreeSet<String> = signatures.iter().map(|bytes| sha256(bytes)).collect();
    assert_eq!(listed(&registry, &subject.digest), pushed);
    support::measured(format!("{} referrers by {CLIENTS} clients: all listed", pushed.len()));
    registry.restart();
    assert_eq!(listed(&registry, &subject.digest), pushed, "after a restart");
}

#[test]
fn sixty_four_clients_pushing_different_tags_share_their_commits() {
    const CLIENTS: usize = 64;
    let registry = Registry::start(&["--auth", "none"]);
    let client = registry.client();
    let images: Vec<Image> = (0..CLIENTS).map(|_| Image::random(100)).collect();
    for image in &images {
        client.push_blob("busy/app", &image.config);
        client.push_blob("busy/app", &image.layers[0]);
    }

    let start = Barrier::new(CLIENTS);
    thread::scope(|scope| {
        for (number, image) in images.iter().enumerate() {
            let (start, mut connection) = (&start, client.connect());
            scope.spawn(move || {
                let put = Request::put(format!("/v2/busy/app/manifests/tag-{number:02}"))
                    .header("Content-Type", OCI_MANIFEST)
                    .body(image.manifest.as_slice());
                start.wait();
                connection.send(&put).expect_status(201);
            });
        }
    });

    let tags: Vec<String> = (0..CLIENTS).map(|number| format!("tag-{number:02}")).collect();
    assert_eq!(client.tags("busy/app"), tags);
    for (tag, image) in tags.iter().zip(&images) {
        client.assert_pulls("busy/app", tag, image);
    }
    let rewrites = stamps(&registry, "busy/app").len();
    support::measured(format!("{CLIENTS} pushes at once: {rewrites} rewrites of index.json"));
    assert!(rewrites < CLIENTS, "{rewrites} rewrites of index.json for {CLIENTS} pushes");
}

/// The digests that the referrers API lists for this subject.
#[track_caller]
fn listed(registry: &Registry, subject: &str) -> BTreeSet<String> {
    let path = format!("/v2/signed/app/referrers/{subject}");
    let list = registry.client().get(&path).expect_status(200).json();
    let entries = list["manifests"].as_array().expect("a list").clone();
    let digests: BTreeSet<String> = entries
        .iter()
        .map(|entry| entry["digest"].as_str().expect("a digest").to_owned())
        .collect();
    assert_eq!(digests.len(), entries.len(), "a referrer is listed twice");
    digests
}

/// The journal names the index.json that each change produced: one stamp for each rewrite.
#[track_caller]
fn stamps(registry: &Registry, repo: &str) -> BTreeSet<String> {
    let path = registry.root().join(repo).join("_log.jsonl");
    let journal =
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    journal
        .lines()
        .map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).expect("a line is JSON");
            assert!(line["stamp"].is_string(), "no stamp in {line}");
            line["stamp"].to_string()
        })
        .collect()
}

fn subject_of(manifest: &[u8]) -> String {
    let manifest: serde_json::Value = serde_json::from_slice(manifest).expect("JSON");
    manifest["subject"]["digest"].as_str().expect("a subject").to_owned()
}
