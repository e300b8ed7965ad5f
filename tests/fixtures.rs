//! The samples in `fixtures/`: sound ones give no finding, each broken one exactly its own.

mod layouts;

use std::collections::BTreeSet;
use std::path::Path;

use layouts::{Sample, broken, disk, findings, fixtures, valid};
use stillage::upkeep::check::Rule;

/// Set to write what is made here to `fixtures/`, instead of comparing.
const WRITE: &str = "STILLAGE_WRITE_FIXTURES";

/// Directories of `fixtures/valid/` that other tools made: name, manifests, blobs.
const FOREIGN: [(&str, u64, u64); 3] = [("skopeo", 2, 5), ("skopeo-index", 3, 6), ("umoci", 2, 9)];

#[test]
fn the_fixtures_are_what_is_made_here() {
    let valid = valid::all().into_iter().map(|(sample, ..)| ("valid", sample));
    let broken = broken::all().into_iter().map(|sample| ("broken", sample));
    for (kind, sample) in valid.chain(broken).filter(|(_, sample)| sample.twist.is_none()) {
        let dir = fixtures().join(kind).join(sample.name);
        if std::env::var_os(WRITE).is_some() {
            write(&dir, &sample);
        }
        assert!(
            disk::read(&dir) == sample.files,
            "fixtures/{kind}/{} differs from what is made here: run this test with {WRITE}=1",
            sample.name
        );
    }
}

fn write(dir: &Path, sample: &Sample) {
    let _ = std::fs::remove_dir_all(dir);
    for (name, bytes) in &sample.files {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

#[test]
fn nothing_lies_in_fixtures_that_no_test_looks_at() {
    let names = |kind: &str| -> BTreeSet<String> {
        let entries = std::fs::read_dir(fixtures().join(kind)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let made = valid::all().into_iter().map(|(sample, ..)| sample.name);
    let foreign = FOREIGN.into_iter().map(|(name, ..)| name);
    assert_eq!(names("valid"), made.chain(foreign).map(str::to_owned).collect());
    let kept = broken::all().into_iter().filter(|sample| sample.twist.is_none());
    assert_eq!(names("broken"), kept.map(|sample| sample.name.to_owned()).collect());
}

#[test]
fn a_sound_tree_gives_no_finding_and_all_of_it_is_seen() {
    let made = valid::all().into_iter().map(|(sample, m, b)| (sample.name, m, b));
    for (name, manifests, blobs) in made.chain(FOREIGN) {
        let temp = disk::place(&disk::read(&fixtures().join("valid").join(name)));
        let (found, summary) = findings(temp.path());
        assert_eq!(found, [], "{name}");
        assert!(summary.repositories >= 1, "{name}: {summary:?}");
        assert!(summary.manifests >= manifests, "{name}: {summary:?}");
        assert!(summary.blobs >= blobs, "{name}: {summary:?}");
    }
}

#[test]
fn a_broken_tree_gives_exactly_its_rule() {
    for sample in broken::all() {
        let temp = sample.place();
        let (found, summary) = findings(temp.path());
        let rules: BTreeSet<&str> = found.iter().map(|finding| finding.rule.id()).collect();
        assert_eq!(rules, BTreeSet::from([sample.name]), "{found:#?}");
        let errors =
            found.iter().any(|f| f.rule.severity() == stillage::upkeep::check::Severity::Error);
        assert_eq!(summary.is_damaged(), errors, "{}", sample.name);
        for finding in &found {
            let at = temp.path().join(&finding.path);
            let missing =
                [Rule::LayoutMissing, Rule::IndexMissing, Rule::ManifestMissing, Rule::BlobMissing];
            let there = at.symlink_metadata().is_ok();
            // A view may be missing as well as wrong.
            let either = finding.rule == Rule::ViewWrong;
            assert!(either || there != missing.contains(&finding.rule), "{finding:?}");
            assert!(!finding.message.is_empty(), "{finding:?}");
        }
    }
}

#[test]
fn version_1_stays_readable() {
    let versions = fixtures().join("history/v1");
    let mut seen = 0;
    for entry in std::fs::read_dir(versions).unwrap() {
        let dir = entry.unwrap().path();
        let temp = disk::place(&disk::read(&dir));
        let (found, summary) = findings(temp.path());
        assert_eq!(found, [], "{}", dir.display());
        seen += summary.manifests;
    }
    assert!(seen >= 8, "{seen} manifests");
}
