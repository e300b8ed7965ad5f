//! Referrers on the wire: many of one subject, long chains, subjects that are elsewhere, and a
//! circle that somebody wrote into the tree.
//! Each test bears the id of its line in the list of what has gone wrong in registries.

#[path = "support/process.rs"]
mod process;
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::json;
use support::Registry;
use support::content::{
    Image, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, descriptor, index, referrer, sha256,
};
use support::http::{Client, Request, Response};

/// The most that a client reads of one document.
const MOST: usize = 4 * 1024 * 1024;

#[test]
fn referrers() {
    let registry = Registry::start(&["--auth", "none"]);
    let client = registry.client();
    let image = Image::random(1000);
    client.push_image("a", "v1", &image);
    client.push_blob("a", b"{}");
    let list = |path: &str| {
        let answer = client.get(path).expect_status(200);
        assert_eq!(answer.header("content-type"), Some(OCI_INDEX), "{answer:?}");
        answer
    };
    let subject = image.digest.as_str();
    let path = format!("/v2/a/referrers/{subject}");
    assert_eq!(list(&path).json()["manifests"], serde_json::json!([]));
    assert_eq!(
        list(&format!("/v2/none/referrers/{subject}")).json()["manifests"],
        serde_json::json!([])
    );

    // More than a client reads of one document: pages, none lost, none twice.
    let filler = "y".repeat(100_000);
    let mut pushed = Vec::new();
    for number in 0..60 {
        let text = referrer(subject, image.manifest.len(), "application/x.sig+json");
        let text = String::from_utf8(text).expect("text");
        let text = text.replace(r#""nonce":"#, &format!(r#""filler":"{filler}","nonce":"#));
        let digest = sha256(text.as_bytes());
        let request = Request::put(format!("/v2/a/manifests/{digest}"))
            .header("Content-Type", OCI_MANIFEST)
            .body(text);
        let answer = client.send(request).expect_status(201);
        assert_eq!(answer.header("oci-subject"), Some(subject), "{number}");
        pushed.push(digest);
    }
    pushed.sort();
    for filter in
        ["", "?artifactType=application%2Fx.sig%2Bjson", "?artifactType=application/x.sig+json"]
    {
        let mut found = Vec::new();
        let mut pages = 0;
        let mut next = Some(format!("{path}{filter}"));
        while let Some(page) = next {
            let answer = list(&page);
            assert!(answer.body.len() <= MOST, "{} bytes", answer.body.len());
            let applied = (!filter.is_empty()).then_some("artifactType");
            assert_eq!(answer.header("oci-filters-applied"), applied, "{page}");
            let json = answer.json();
            for entry in json["manifests"].as_array().expect("an array") {
                assert_eq!(entry["artifactType"], "application/x.sig+json");
                assert_eq!(entry["annotations"]["filler"].as_str().map(str::len), Some(100_000));
                found.push(entry["digest"].as_str().expect("a digest").to_owned());
            }
            pages += 1;
            next = next_page(&answer);
        }
        found.sort();
        assert_eq!(found, pushed, "{filter}");
        assert!(pages > 1, "{pages}");
    }
    let other = list(&format!("{path}?artifactType=other"));
    assert_eq!(other.json()["manifests"], serde_json::json!([]));
    assert_eq!(other.header("oci-filters-applied"), Some("artifactType"));

    // A subject elsewhere, or nowhere: accepted, listed here, and not there.
    let absent = sha256(b"absent");
    let config = descriptor(OCI_CONFIG, &image.config);
    for repo in ["a", "b"] {
        client.push_blob(repo, &image.config);
        let body = format!(
            r#"{{"schemaVersion":2,"config":{config},"layers":[],"subject":{{"mediaType":"{OCI_MANIFEST}","digest":"{absent}","size":5}},"annotations":{{"in":"{repo}"}}}}"#
        );
        let request = Request::put(format!("/v2/{repo}/manifests/signature"))
            .header("Content-Type", OCI_MANIFEST)
            .body(body);
        client.send(request).expect_status(201);
        let json = list(&format!("/v2/{repo}/referrers/{absent}")).json();
        assert_eq!(json["manifests"].as_array().map(Vec::len), Some(1), "{json}");
        assert_eq!(json["manifests"][0]["annotations"]["in"], repo);
        assert_eq!(json["manifests"][0]["artifactType"], OCI_CONFIG);
    }
}

/// All pages of a list of referrers: their digests in order, and how many pages it took.
fn all_referrers(client: &Client, repo: &str, subject: &str) -> (Vec<String>, usize) {
    let mut found = Vec::new();
    let mut next = Some(format!("/v2/{repo}/referrers/{subject}"));
    let mut pages = 0;
    while let Some(page) = next {
        let answer = client.get(&page).expect_status(200);
        assert!(answer.body.len() <= MOST, "{} bytes", answer.body.len());
        for entry in answer.json()["manifests"].as_array().expect("an array") {
            found.push(entry["digest"].as_str().expect("a digest").to_owned());
        }
        pages += 1;
        assert!(pages < 100, "the list does not end");
        next = next_page(&answer);
    }
    (found, pages)
}

fn next_page(answer: &Response) -> Option<String> {
    let link = answer.header("link")?;
    Some(link.strip_prefix('<').and_then(|l| l.split_once('>')).expect("a Link").0.to_owned())
}

/// A repository as another tool leaves it. `listed`: the manifests of index.json and their types.
fn write_layout(repo: &Path, blobs: &[&[u8]], listed: &[(&str, &[u8])]) {
    let directory = repo.join("blobs/sha256");
    fs::create_dir_all(&directory).expect("the layout's directories");
    for blob in blobs.iter().chain(listed.iter().map(|(_, bytes)| bytes)) {
        fs::write(directory.join(&sha256(blob)["sha256:".len()..]), blob).expect("a blob");
    }
    fs::write(repo.join("index.json"), index(listed)).expect("index.json");
    fs::write(repo.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("oci-layout");
}

/// 10,000 of one subject: pages, each once, and what lists them stays small.
#[test]
fn referrers_by_the_thousand() {
    const MANY: usize = 10_000;
    let registry = Registry::start(&["--auth", "none"]);
    let image = Image::random(1000);
    // As long as a signature with its certificate.
    let filler = format!(r#""filler":"{}","nonce":"#, "y".repeat(1000));
    let manifests: Vec<Vec<u8>> = (0..MANY)
        .map(|_| {
            let text = referrer(&image.digest, image.manifest.len(), "application/x.sig+json");
            let text = String::from_utf8(text).expect("text");
            text.replace(r#""nonce":"#, &filler).into_bytes()
        })
        .collect();
    let mut listed: Vec<(&str, &[u8])> = vec![(OCI_MANIFEST, &image.manifest)];
    listed.extend(manifests.iter().map(|bytes| (OCI_MANIFEST, bytes.as_slice())));
    let blobs = [b"{}", image.config.as_slice(), &image.layers[0]];
    write_layout(&registry.root().join("many"), &blobs, &listed);
    let wanted: BTreeSet<String> = manifests.iter().map(|bytes| sha256(bytes)).collect();

    let client = registry.client();
    let (_, memory) = process::most_memory_during(registry.pid(), || {
        // By several at once, the first of whom reads all manifests.
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let (found, pages) = all_referrers(&client, "many", &image.digest);
                    assert!(pages > 1, "{pages}");
                    assert_eq!(found.len(), MANY);
                    assert!(found.iter().eq(&wanted), "one is lost, or twice there");
                });
            }
        });
    });
    support::measured(format!("{MANY} referrers listed by 4: {} MB", memory >> 20));
    assert!(memory < 256 << 20, "{memory} bytes of memory");
    client.assert_pulls("many", &image.digest, &image);
}

/// No digest can be part of itself, so what goes round in a circle was forged or goes two ways:
/// whatever walks along it comes to an end.
#[test]
fn referrers_in_a_circle() {
    const LONG: usize = 1000;
    let mut registry = Registry::start(&["--auth", "none"]);
    let client = registry.client();
    // The first refers to what is not there; each other to the one before it.
    let mut chain = vec![sha256(b"absent")];
    let mut manifests = Vec::new();
    for _ in 0..LONG {
        let body = referrer(chain.last().expect("the first"), 5, "application/x");
        chain.push(sha256(&body));
        manifests.push(body);
    }
    let listed: Vec<(&str, &[u8])> =
        manifests.iter().map(|bytes| (OCI_MANIFEST, bytes.as_slice())).collect();
    write_layout(&registry.root().join("chain"), &[b"{}"], &listed);
    for pair in chain.windows(2) {
        assert_eq!(all_referrers(&client, "chain", &pair[0]).0, pair[1..]);
    }
    // An index whose subject is the manifest that it contains.
    let image = Image::random(100);
    client.push_image("chain", "v1", &image);
    let subject = descriptor(OCI_MANIFEST, &image.manifest);
    let round = format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{subject}],"subject":{subject}}}"#
    );
    client.put_manifest("chain", "round", OCI_INDEX, round.as_bytes()).expect_status(201);
    assert_eq!(all_referrers(&client, "chain", &image.digest).0, [sha256(round.as_bytes())]);
    registry.assert_sound();

    // Two that claim to be each other's subject, and one its own. What was noted of them says so
    // too, and that each contains the others.
    let names = ["1", "2", "3"].map(|digit| format!("sha256:{}", digit.repeat(64)));
    let [a, b, own] = &names;
    let forged: Vec<(&str, Vec<u8>)> = [(a, b), (b, a), (own, own)]
        .map(|(name, subject)| (name.as_str(), referrer(subject, 5, "application/x")))
        .into();
    registry.expect_damage();
    for (repo, noted) in [("forged", false), ("noted", true)] {
        let repo_dir = registry.root().join(repo);
        write_layout(&repo_dir, &[b"{}"], &[]);
        let children: Vec<_> = names
            .iter()
            .map(|digest| json!({ "mediaType": OCI_INDEX, "digest": digest, "size": 5 }))
            .collect();
        let listed = json!({ "schemaVersion": 2, "manifests": children });
        fs::write(repo_dir.join("index.json"), listed.to_string()).expect("index.json");
        let mut facts = String::new();
        for ((name, body), subject) in forged.iter().zip([b, a, own]) {
            fs::write(repo_dir.join("blobs").join(name.replace(':', "/")), body).expect("a blob");
            let fact = json!({
                "digest": name, "mediaType": OCI_INDEX, "size": 5,
                "subject": subject, "children": children,
            });
            facts.push_str(&format!("{fact}\n"));
        }
        if noted {
            fs::create_dir(repo_dir.join("_referrers")).expect("_referrers");
            fs::write(repo_dir.join("_referrers/facts.jsonl"), facts).expect("facts.jsonl");
        }
        for (name, by) in [(a, b), (b, a), (own, own)] {
            let found = all_referrers(&client, repo, name).0;
            // Bytes that do not have their digest say nothing; what was noted is believed.
            assert_eq!(found, if noted { vec![by.clone()] } else { Vec::new() }, "{repo} {name}");
            client.get(&format!("/v2/{repo}/manifests/{name}")).expect_error(500, "UNKNOWN");
        }
        let blob = format!("/v2/{repo}/blobs/{}", sha256(b"{}"));
        let refused = client.delete(&blob);
        assert!(matches!(refused.status, 405 | 500), "{refused:?}");
    }
    let (code, found) = registry.check();
    assert_eq!(code, Some(4), "{found}");
    client.delete("/v2/chain/manifests/v1").expect_status(202);
    client.send(Request::get("/v2/chain/manifests/round")).expect_status(200);
}
