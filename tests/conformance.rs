//! The conformance suite of the distribution specification: nothing failed, nothing skipped.
//!
//! The runner exits 0 when its configuration is wrong and nothing was tried: what counts is in
//! its results files, which `tests/run` counts once more.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::Registry;
use support::account::Account;
use support::command::run;

/// Fewer cases than this and the suite did not run as it should; it had 848 (1.1) when written.
const PLAUSIBLE: u32 = 800;

/// Everything that a registry may leave out is to be tried.
const OPTIONAL: [(&str, &str); 5] = [
    ("OCI_API_BLOBS_UPLOAD_CANCEL", "true"),
    ("OCI_API_BLOBS_DIGEST_HEADER", "true"),
    ("OCI_API_MANIFESTS_DIGEST_HEADER", "true"),
    ("OCI_API_MANIFESTS_TAG_PARAM", "true"),
    ("OCI_DATA_SPARSE", "true"),
];

#[test]
fn version_1_1() {
    let registry = Registry::start(&["--auth", "none", "--allow-sparse"]);
    let unmet = conform(&registry, "1.1", &[("OCI_VERSION", "1.1")]);
    assert_eq!(unmet, [0; 4], "failures, errors, skipped, disabled");
}

#[test]
fn development_version_with_every_optional_api() {
    let registry = Registry::start(&["--auth", "none", "--allow-sparse"]);
    let unmet = conform(&registry, "dev", &[("OCI_VERSION", "dev")]);
    assert_eq!(unmet, [0; 4], "failures, errors, skipped, disabled");
}

/// The suite asks for a token of the target alone and keeps it. A mount whose token does not name
/// the source is an upload (202, never 401): the suite skips its two mounts with a source then, and
/// nothing else.
#[test]
fn the_same_with_a_login() {
    let account = Account::new();
    let registry = Registry::start(&["--auth", "pam", "--allow-sparse"]);
    registry.grant(&format!("u:{}", account.name()));
    let settings = [
        ("OCI_VERSION", "dev"),
        ("OCI_USERNAME", account.name()),
        ("OCI_PASSWORD", account.password()),
    ];
    let unmet = conform(&registry, "login", &settings);
    assert_eq!(unmet, [0, 0, 2, 0], "failures, errors, skipped, disabled");
}

/// Runs the suite with these settings; its results stay where `tests/run` wants them. Gives how many
/// cases failed, broke, were skipped and were off.
#[track_caller]
fn conform(registry: &Registry, name: &str, settings: &[(&str, &str)]) -> [u32; 4] {
    let results = match std::env::var_os("STILLAGE_CONFORMANCE_RESULTS") {
        Some(kept) => PathBuf::from(kept).join(name),
        None => registry.scratch().join(name),
    };
    let outcome = run(Command::new(suite())
        .env("OCI_REGISTRY", registry.addr().to_string())
        .env("OCI_TLS", "disabled")
        .env("OCI_RESULTS_DIR", &results)
        .envs(OPTIONAL)
        .envs(settings.iter().copied())
        .current_dir(registry.scratch()));
    let junit = results.join("junit.xml");
    let text = fs::read_to_string(&junit)
        .unwrap_or_else(|error| panic!("{}: {error}\n{outcome}", junit.display()));
    let count = |what: &str| attribute(&text, what);
    let counts = ["failures", "errors", "skipped", "disabled"].map(count);
    eprintln!("{}", unmet(&outcome.stdout));
    assert!(count("tests") >= PLAUSIBLE, "only {} cases ran: {outcome}", count("tests"));
    assert_eq!(outcome.code, Some(0), "{outcome}");
    counts
}

/// `tests/run` installs the suite; without it `go install` of the same does.
fn suite() -> PathBuf {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/.tools/conformance");
    if installed.exists() { installed } else { PathBuf::from("conformance") }
}

/// A number in the first `<testsuites …>` tag; one that is zero is left out of the file.
fn attribute(junit: &str, name: &str) -> u32 {
    let tag = junit.lines().find(|line| line.starts_with("<testsuites ")).expect("a result");
    tag.split_once(&format!(" {name}=\""))
        .and_then(|(_, rest)| rest.split('"').next())
        .map_or(0, |number| number.parse().expect("a number"))
}

/// The report's lines of what neither passed nor contains what did not pass, with their reasons.
fn unmet(report: &str) -> String {
    let tree = report.split("\nConfiguration:").next().unwrap_or_default();
    let unmet: Vec<&str> = tree.lines().filter(|line| !line.ends_with(": Pass")).collect();
    unmet.join("\n")
}
