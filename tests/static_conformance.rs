//! The pull and content-discovery parts of the distribution specification's conformance suite, answered
//! by nginx alone with what `stillage static nginx` prints. What it cannot pass is listed here exactly.

mod support;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::command::run;
use support::content::{Image, OCI_MANIFEST, referrer, sha256, sha512};
use support::web::{Served, Web};

/// What nginx cannot do, because it looks at names only: begin a list after `last=` (the list comes
/// whole: the suite calls that a failure), and leave out referrers of other types (`OCI-Filters-Applied`
/// is not sent, by which clients see that they have to filter: the suite calls that unsupported).
const CANNOT: [&str; 5] = [
    "artifacts-with-subject/referrers",
    "artifacts-with-subject/tag-list",
    "index-with-subject/referrers",
    "index-with-subject/tag-list",
    "missing-subject/referrers",
];

/// A registry whose tree nginx serves.
fn served() -> Served {
    Served::with("registry", &["--allow-sparse"])
}

/// The suite's mode for registries that cannot be pushed to: nothing but nginx is asked.
#[test]
fn of_a_registry_that_cannot_be_pushed_to() {
    let served = served();
    let client = served.registry.client();
    let images = [Image::random(1000), Image::random(2000)];
    let mut referrers = Vec::new();
    for (tag, image) in ["v1", "v2"].into_iter().zip(&images) {
        client.push_image("conformance/repo1", tag, image);
        client.push_blob("conformance/repo1", b"{}");
        let bytes = referrer(&image.digest, image.manifest.len(), "application/x.sig");
        let put = client.put_manifest("conformance/repo1", &sha256(&bytes), OCI_MANIFEST, &bytes);
        put.expect_status(201);
        referrers.push(sha256(&bytes));
    }
    let by_512 = sha512(&images[0].manifest);
    let put = client.put_manifest("conformance/repo1", &by_512, OCI_MANIFEST, &images[0].manifest);
    put.expect_status(201);
    let digests = images.each_ref().map(|image| image.digest.clone());
    let manifests = [&digests[..], &referrers, &[by_512]].concat().join(" ");
    let blobs = images.each_ref().map(|image| sha256(&image.layers[0])).join(" ");
    let settings = [
        ("OCI_API_PUSH", "false"),
        ("OCI_API_BLOBS_DELETE", "false"),
        ("OCI_API_MANIFESTS_DELETE", "false"),
        ("OCI_API_TAGS_DELETE", "false"),
        ("OCI_RO_DATA_TAGS", "v1 v2"),
        ("OCI_RO_DATA_MANIFESTS", &manifests),
        ("OCI_RO_DATA_BLOBS", &blobs),
        ("OCI_RO_DATA_REFERRERS", &digests.join(" ")),
    ];
    let (passed, failed) = conform(served.web.addr(), &served.registry.scratch(), &settings);
    assert_eq!(failed, ["read-only/tag-list"]);
    assert!(passed >= 15, "{passed} cases passed");
}

/// All of the suite's data: what reads is asked of nginx, what writes of the server on the same tree.
#[test]
fn of_everything_that_the_suite_pushes() {
    let served = served();
    // Which of the two is asked depends on the method; upload sessions are read where they are.
    let front = Web::start_with("nginx", |listen| {
        let (reads, writes) = (served.web.addr(), served.registry.addr());
        format!(
            "map \"$request_method $uri\" $asked {{ default http://{writes}; \
             \"~/blobs/uploads/\" http://{writes}; \"~^(GET|HEAD) \" http://{reads}; }}\n\
             server {{ listen {listen}; client_max_body_size 0; proxy_request_buffering off; \
             proxy_http_version 1.1; location / {{ proxy_pass $asked; proxy_set_header Host $http_host; \
             proxy_set_header Connection \"\"; }} }}\n"
        )
    });
    // (Where nothing is pushed the suite asks for the header of an answer that it did not keep.)
    let settings =
        [("OCI_API_BLOBS_DIGEST_HEADER", "true"), ("OCI_API_MANIFESTS_DIGEST_HEADER", "true")];
    let (passed, failed) = conform(front.addr(), &served.registry.scratch(), &settings);
    assert_eq!(failed, CANNOT, "what nginx can do now is to be taken off the list");
    support::measured(format!(
        "conformance of nginx alone: {passed} cases passed, {} not: {}",
        failed.len(),
        failed.join(", ")
    ));
    assert!(passed >= 650, "{passed} cases passed");
}

/// Runs the suite; gives how many cases passed and the names of those that did not. What is turned off
/// counts as neither. They are read from what it prints: where nothing is pushed it breaks before it
/// writes its results.
#[track_caller]
fn conform(addr: SocketAddr, room: &Path, settings: &[(&str, &str)]) -> (usize, Vec<String>) {
    let outcome = run(Command::new(suite())
        .env("OCI_REGISTRY", addr.to_string())
        .env("OCI_TLS", "disabled")
        .env("OCI_VERSION", "1.1")
        .env("OCI_RESULTS_DIR", room.join("results"))
        .envs(settings.iter().copied())
        .current_dir(room));
    let report = outcome.stdout.split("\nConfiguration:").next().unwrap_or_default();
    let cases: Vec<(&str, &str)> = report
        .lines()
        .filter_map(|line| line.trim().strip_prefix("OCI Conformance Test/")?.rsplit_once(": "))
        .collect();
    assert!(!cases.is_empty(), "{outcome}");
    // What has parts is not a case itself.
    let is_case = |name: &str| {
        let parts = format!("{name}/");
        !cases.iter().any(|(other, _)| other.starts_with(&parts))
    };
    let ended: Vec<_> =
        cases.iter().filter(|(name, status)| is_case(name) && *status != "Disabled").collect();
    let unmet = ended.iter().filter(|(_, status)| *status != "Pass");
    let mut unmet: Vec<String> = unmet.map(|(name, _)| (*name).to_owned()).collect();
    unmet.sort();
    if !unmet.is_empty() {
        eprintln!("{report}");
    }
    (ended.len() - unmet.len(), unmet)
}

/// `tests/run` installs the suite; without it `go install` of the same does.
fn suite() -> PathBuf {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/.tools/conformance");
    if installed.exists() { installed } else { PathBuf::from("conformance") }
}
