//! Damage at seeded places of a tree: bits flipped, files cut short, blocks of zeros. Neither check
//! nor repair ever panics, and no repair makes good content unreachable.
//!
//! `STILLAGE_DAMAGE_SEED` replays a run of one round, which a failure names; the long form
//! (`STILLAGE_TEST_LONG=1`) has 4,000 rounds.

mod layouts;
#[path = "support/random.rs"]
#[allow(dead_code, unreachable_pub, reason = "not every test draws in every way")]
mod random;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use layouts::{disk, findings, valid};
use random::Random;
use stillage::layout::RealDisk;
use stillage::oci::Index;
use stillage::upkeep::check::{Mended, Options, Repairs, Told, repair};

fn run(root: &Path) -> (BTreeSet<(&'static str, PathBuf)>, Vec<Mended>) {
    let wait = Duration::from_secs(5);
    let repairs = Repairs { dry_run: false, wait, disk: Arc::new(RealDisk) };
    let (mut left, mut mended) = (BTreeSet::new(), Vec::new());
    let summary = repair(root, Options::default(), repairs, &mut |told| match told {
        Told::Found(finding) => drop(left.insert((finding.rule.id(), finding.path))),
        Told::Mended(one) => mended.push(one),
    });
    summary.unwrap();
    (left, mended)
}

/// The blobs of repositories, by their paths.
fn blobs(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let paths = disk::walk(root).into_iter();
    let blobs = paths.filter(|path| {
        let text = path.strip_prefix(root).unwrap().to_str().unwrap();
        !text.starts_with(".stillage") && text.contains("/blobs/") && path.is_file()
    });
    blobs.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

fn damaged(random: &mut Random, mut bytes: Vec<u8>) -> Vec<u8> {
    let at = random.below(bytes.len());
    match random.below(5) {
        0 | 1 => bytes[at] ^= 1 << random.below(8),
        2 => bytes.truncate(at),
        3 => {
            let end = bytes.len().min(at + 1 + random.below(512));
            bytes[at..end].fill(0);
        }
        _ => bytes.extend_from_slice(b"\0{\"more\":\n"),
    }
    bytes
}

fn entries(root: &Path, repo: &str) -> Option<Vec<stillage::oci::Descriptor>> {
    let bytes = fs::read(root.join(repo).join("index.json")).ok()?;
    Some(Index::parse(&bytes).ok()?.entries().collect())
}

fn round(seed: u64) {
    let random = &mut Random::seeded(seed);
    let temp = disk::place(&valid::written());
    let root = temp.path();
    let files: Vec<PathBuf> = disk::walk(root)
        .into_iter()
        .filter(|path| path.is_file() && fs::metadata(path).unwrap().len() > 0)
        .collect();
    let path = &files[random.below(files.len())];
    let name = path.strip_prefix(root).unwrap().to_str().unwrap();
    let before = blobs(root);
    let repositories = ["team/app", "team/other"];
    let truth = repositories.map(|repo| entries(root, repo).unwrap());

    // In all names of the inode, or in this one.
    let bytes = damaged(random, fs::read(path).unwrap());
    let mode = fs::metadata(path).unwrap().permissions();
    if random.below(2) == 0 {
        fs::remove_file(path).unwrap();
    } else {
        disk::set_mode(path, 0o600);
    }
    fs::write(path, &bytes).unwrap();
    fs::set_permissions(path, mode).unwrap();
    let hour = std::time::SystemTime::now() - Duration::from_secs(3600);
    fs::File::open(path).unwrap().set_modified(hour).unwrap();

    let harmed = blobs(root);
    let good: BTreeMap<_, _> = harmed.iter().filter(|(path, b)| before[*path] == **b).collect();
    findings(root);
    let (left, mended) = run(root);
    let after = blobs(root);
    for (path, bytes) in good {
        assert!(after.get(path) == Some(bytes), "{name}: {} went: {mended:?}", path.display());
    }
    // What is bad lies in quarantine, and nothing is served that is.
    for (path, bytes) in &after {
        assert!(before[path] == *bytes, "{name}: {} is bad: {left:?}", path.display());
    }
    for (repo, truth) in repositories.into_iter().zip(truth) {
        if name == format!("{repo}/index.json") {
            continue;
        }
        // Every tag whose manifest is there still names it.
        let now = entries(root, repo).unwrap();
        for entry in &truth {
            let manifest = root.join(repo).join("blobs/sha256").join(entry.digest.hex());
            let kept = now.contains(entry);
            assert_eq!(kept, manifest.exists(), "{name}: {entry:?}: {mended:?}");
        }
    }
    let print = disk::fingerprint(root);
    let (again, more) = run(root);
    assert_eq!((again, more), (left, Vec::new()), "{name}: a second repair of {mended:?}");
    assert_eq!(disk::fingerprint(root), print, "{name}");
}

#[test]
fn damage_anywhere_is_repaired_without_harm() {
    let seed = std::env::var("STILLAGE_DAMAGE_SEED").ok().and_then(|text| text.parse().ok());
    let long = std::env::var_os("STILLAGE_TEST_LONG").is_some();
    let rounds = if seed.is_some() {
        1
    } else if long {
        4000
    } else {
        120
    };
    let first = seed.unwrap_or(0x5711_1a9e);
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        // Most of a round is waiting for the tree to come to rest.
        for _ in 0..8 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= rounds {
                        break;
                    }
                    let seed = first + number;
                    let outcome = std::panic::catch_unwind(|| round(seed));
                    assert!(outcome.is_ok(), "replay it with STILLAGE_DAMAGE_SEED={seed}");
                }
            });
        }
    });
}
