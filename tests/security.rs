//! The list of what has gone wrong in registries (docs/security.md): none of its lines is missing,
//! and each has its test. And the lines that are about commands and about what is built in.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::command::run;
use support::content::Image;
use support::snapshot::snapshot;
use support::{Registry, STILLAGE};

/// Every id, in the order of the page.
const WIRE: [&str; 22] = [
    "type-confusion",
    "page-size",
    "manifest-size",
    "percent-encoding",
    "control-characters",
    "names",
    "digests",
    "ranges",
    "same-upload-twice",
    "json",
    "content-encoding",
    "headers",
    "smuggling",
    "http2",
    "forwarded",
    "accel",
    "foreign-urls",
    "browser",
    "slow-client",
    "referrers",
    "short-blob",
    "head-changes-nothing",
];
const IDENTITY: [&str; 16] = [
    "token-key",
    "token-claims",
    "scope",
    "revoked",
    "private-dedupe",
    "mount",
    "upload-owner",
    "upload-path",
    "upload-cap",
    "upload-expiry",
    "anonymous-disk",
    "enumeration",
    "guessing",
    "credential-cache",
    "account-phase",
    "log-injection",
];
const TREE: [&str; 8] = [
    "foreign-inode",
    "planted-symlink",
    "shared-inode",
    "lock-holder",
    "foreign-files",
    "gc-live",
    "gc-unreadable",
    "admin-bola",
];

fn at(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(relative)
}

/// A line of the page: its part, its id, what answers it, and its tests.
struct Line {
    part: String,
    id: String,
    answer: String,
    tests: String,
}

fn page() -> Vec<Line> {
    let text = fs::read_to_string(at("docs/security.md")).expect("docs/security.md");
    let mut part = String::new();
    let mut lines = Vec::new();
    for line in text.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            part = title.to_owned();
        }
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        match cells.as_slice() {
            ["id", ..] | ["---", ..] => {}
            [id, _, answer, tests] if line.starts_with("| ") => {
                let [id, answer, tests] = [id, answer, tests].map(|cell| (*cell).to_owned());
                lines.push(Line { part: part.clone(), id, answer, tests });
            }
            _ => assert!(!line.starts_with("| "), "four cells: {line}"),
        }
    }
    lines
}

/// Whether a file of tests has a test of this name.
fn has_test(file: &str, name: &str) -> bool {
    let text = fs::read_to_string(at(&format!("tests/{file}.rs"))).unwrap_or_default();
    text.lines().zip(text.lines().skip(1)).any(|(attribute, function)| {
        let function = function.strip_prefix("async ").unwrap_or(function);
        (attribute == "#[test]" || attribute.starts_with("#[tokio::test"))
            && function.starts_with(&format!("fn {name}()"))
    })
}

#[test]
fn every_line_of_the_list_is_there_and_is_a_test() {
    let lines = page();
    for (part, ids) in [("wire", &WIRE[..]), ("identity", &IDENTITY), ("tree", &TREE)] {
        let there: Vec<&str> =
            lines.iter().filter(|line| line.part == part).map(|line| line.id.as_str()).collect();
        assert_eq!(there, ids, "{part}");
    }
    for Line { id, answer, tests, .. } in &lines {
        assert!(answer.len() > 2, "{id}: no answer");
        let mut answered = false;
        for test in tests.split(", ") {
            let named = test.strip_prefix('`').and_then(|test| test.strip_suffix('`'));
            let (file, name) = named
                .and_then(|test| test.split_once("::"))
                .unwrap_or_else(|| panic!("{id}: {test}"));
            assert!(has_test(file, name), "{id}: tests/{file}.rs has no test {name}");
            answered |= name.contains(&id.replace('-', "_"));
        }
        assert!(answered, "{id}: no test of that name in {tests}");
    }
}

#[test]
fn tests_are_found_where_they_are_only() {
    assert!(has_test("security", "tests_are_found_where_they_are_only"));
    assert!(!has_test("security", "page"));
    assert!(!has_test("security", "tests_are_found"));
    assert!(!has_test("nowhere", "tests_are_found_where_they_are_only"));
}

/// A version as numbers; what is not released is no version of ours.
fn version(text: &str) -> Vec<u64> {
    text.split('.').map(|part| part.parse().unwrap_or(0)).collect()
}

/// The database of advisories is on a host of its own; where that is reached `tests/run` asks it
/// (`cargo deny check advisories`). These are known, and hold without it.
#[test]
fn http2_and_what_else_is_built_in_is_past_its_advisories() {
    const FIXED: [(&str, &str, &str); 12] = [
        ("h2", "0.4.16", "RUSTSEC-2026-0258: empty DATA frames without end"),
        ("h2", "0.4.4", "RUSTSEC-2024-0332: CONTINUATION frames without end"),
        ("h2", "0.4.2", "RUSTSEC-2024-0003: resets without end"),
        ("hyper", "0.14.10", "RUSTSEC-2021-0078 and -0079: smuggling"),
        ("rustls", "0.23.18", "RUSTSEC-2024-0399: a panic in the acceptor"),
        ("rustls", "0.23.5", "RUSTSEC-2024-0336: a loop without end"),
        ("ring", "0.17.12", "RUSTSEC-2025-0009: a panic on overflow"),
        ("rustls-webpki", "0.101.4", "RUSTSEC-2023-0053: processor time by chains"),
        ("tokio", "1.44.2", "RUSTSEC-2025-0023: broadcast"),
        ("tracing-subscriber", "0.3.20", "RUSTSEC-2025-0055: escapes in the log"),
        ("time", "0.2.23", "RUSTSEC-2020-0071: a crash in localtime"),
        ("smallvec", "1.6.1", "RUSTSEC-2021-0003: a buffer overflow"),
    ];
    let lock = fs::read_to_string(at("Cargo.lock")).expect("Cargo.lock");
    let mut locked: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for package in lock.split("[[package]]") {
        let field = |name: &str| {
            let line = package.lines().find_map(|line| line.strip_prefix(&format!("{name} = \"")));
            line.and_then(|rest| rest.strip_suffix('"'))
        };
        if let (Some(name), Some(version)) = (field("name"), field("version")) {
            locked.entry(name).or_default().push(version);
        }
    }
    assert!(locked.len() > 50, "{locked:?}");
    for (name, least, advisory) in FIXED {
        let found = locked.get(name).unwrap_or_else(|| panic!("{name} is not built in any more"));
        for found in found {
            assert!(version(found) >= version(least), "{name} {found}: {advisory}");
        }
    }
}

/// Names that are no repository's: of other trees, of the registry's own room, of nothing.
const NO_NAMES: [&str; 12] = [
    "..",
    "../other",
    "a/../../other",
    "/etc",
    ".stillage",
    ".stillage/uploads",
    "a/.stillage",
    "a/blobs",
    "a/index.json",
    "A",
    "a\nb",
    "a/",
];

#[test]
fn admin_bola_no_name_leads_out_of_the_tree() {
    let registry = Registry::start(&["--auth", "none"]);
    let image = Image::random(100);
    registry.client().push_image("a", "v1", &image);
    let other = registry.scratch().join("other");
    fs::create_dir(&other).expect("a directory");
    fs::write(other.join("index.json"), "{}").expect("a file");
    let (root, before) = (registry.root(), snapshot(registry.root()));
    let beside = root.parent().expect("its directory").join("other");
    std::os::unix::fs::symlink(&other, &beside).expect("a symlink");
    for (command, more) in [("access", &[][..]), ("gc", &["--now"]), ("gc", &["-n"])] {
        for name in NO_NAMES {
            let outcome = run(Command::new(STILLAGE).arg(command).arg(root).arg(name).args(more));
            assert_eq!(outcome.code, Some(2), "{name:?}: {outcome}");
            assert!(outcome.text().contains("name"), "{name:?}: {outcome}");
            assert!(!outcome.text().contains("\nb"), "a forged line: {outcome}");
        }
    }
    // A directory that is another's, reached by a symlink: as if it were not there, or refused.
    std::os::unix::fs::symlink(&other, root.join("way")).expect("a symlink");
    let outcome = run(Command::new(STILLAGE).arg("access").arg(root).arg("way"));
    assert!(!outcome.text().contains(&other.display().to_string()), "{outcome}");
    fs::remove_file(root.join("way")).expect("the symlink");
    fs::remove_file(beside).expect("the symlink");
    assert_eq!(before, snapshot(root), "something was changed");
    assert_eq!(fs::read(other.join("index.json")).expect("the other"), b"{}");
}

#[test]
fn admin_bola_what_is_not_known_is_refused() {
    let registry = Registry::start(&["--auth", "none"]);
    let root = registry.root();
    let help = run(Command::new(STILLAGE).arg("--help")).ok();
    let list = help.text().split("Commands:").nth(1).expect("commands").to_owned();
    let list = list.split("\n\n").next().expect("a list").to_owned();
    let names: Vec<&str> = list.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(names.contains(&"check") && names.contains(&"access"), "{names:?}");
    for name in names.into_iter().filter(|name| *name != "help") {
        for unknown in [&["--unknown-flag"][..], &["--json=perhaps"], &["--root", "x"]] {
            let outcome = run(Command::new(STILLAGE).arg(name).arg(root).args(unknown));
            assert_eq!(outcome.code, Some(2), "{name} {unknown:?}: {outcome}");
        }
    }
    let outcome = run(Command::new(STILLAGE).arg("unknown").arg(root));
    assert_eq!(outcome.code, Some(2), "{outcome}");
}
