//! The fuzz targets in short: every file of their corpus, and variants of it that are the same in
//! every run.

mod support;
#[path = "../fuzz/targets.rs"]
mod targets;

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use support::random::Random;
use targets::FAMILIES;

/// How many variants are tried for each function, of all its files together.
const VARIANTS: usize = 10_000;

#[test]
fn what_outsiders_send_breaks_nothing() {
    let mut known: BTreeSet<String> = BTreeSet::new();
    for family in FAMILIES {
        known.insert(family.name.to_owned());
        let mut files = read_all(&corpus().join(family.name));
        for (letter, member, target) in family.members {
            // The letter stays out of the variants, or they would soon be another function's.
            let own: Vec<(String, Vec<u8>)> = files
                .extract_if(.., |(_, bytes)| bytes.first() == Some(letter))
                .map(|(path, bytes)| (path, bytes[1..].to_vec()))
                .collect();
            assert!(own.len() >= 3, "{member} of {} has {} files", family.name, own.len());
            let mut random = Random::seeded(1);
            for (path, bytes) in &own {
                run(member, path, bytes, *target);
                for _ in 0..VARIANTS / own.len() {
                    let (_, other) = &own[random.below(own.len())];
                    run(member, path, &variant(&mut random, bytes, other), *target);
                }
            }
        }
        assert!(files.is_empty(), "for no function of {}: {files:?}", family.name);
    }
    for (directory, ending) in [(corpus(), ""), (dictionaries(), ".dict")] {
        let there = fs::read_dir(&directory).expect("a directory");
        let there: BTreeSet<String> = there
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
            .collect();
        let wanted = known.iter().map(|name| format!("{name}{ending}")).collect();
        assert_eq!(there, wanted, "{} and families", directory.display());
    }
}

#[test]
fn every_function_has_a_letter_of_its_own_and_no_input_is_lost() {
    for family in FAMILIES {
        let letters: BTreeSet<u8> = family.members.iter().map(|(letter, ..)| *letter).collect();
        assert_eq!(letters.len(), family.members.len(), "{}", family.name);
        assert!(letters.iter().all(u8::is_ascii_uppercase), "{}", family.name);
        let reached: BTreeSet<&str> =
            (0..=255).filter(|byte| !letters.contains(byte)).map(|b| family.member(b).1).collect();
        assert_eq!(reached.len(), family.members.len(), "{}", family.name);
        for (letter, name, _) in family.members {
            assert_eq!(family.member(*letter).1, *name);
        }
    }
}

/// libFuzzer says nothing about words that it does not take.
#[test]
fn the_words_of_the_dictionaries_are_short_enough_to_be_used() {
    for family in FAMILIES {
        let path = dictionaries().join(format!("{}.dict", family.name));
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let word = line.strip_prefix('"').and_then(|word| word.strip_suffix('"'));
            let word = word.unwrap_or_else(|| panic!("{}: {line}", path.display()));
            let escaped = word.matches("\\x").count() * 3
                + word.matches("\\\\").count()
                + word.matches("\\\"").count();
            let length = word.len() - escaped;
            assert!((1..=64).contains(&length), "{}: {line} has {length}", path.display());
        }
    }
}

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/fuzz")
}

fn dictionaries() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/dictionaries")
}

fn run(name: &str, path: &str, bytes: &[u8], target: targets::Target) {
    let outcome = catch_unwind(AssertUnwindSafe(|| target(bytes)));
    assert!(outcome.is_ok(), "{name}, from {path}: {:?}", String::from_utf8_lossy(bytes));
}

fn read_all(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let entries =
        fs::read_dir(directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    let mut files: Vec<(String, Vec<u8>)> = entries
        .map(|entry| {
            let path = entry.expect("an entry").path();
            let bytes = fs::read(&path).expect("a file of the corpus");
            (path.display().to_string(), bytes)
        })
        .collect();
    files.sort();
    files
}

/// Some bytes changed, cut out, doubled, or taken from another file.
fn variant(random: &mut Random, bytes: &[u8], other: &[u8]) -> Vec<u8> {
    const BYTES: &[u8] = b"\0\x7f\xff%/.:\"{}[],-+0129aAzZ_ \n&=?";
    let mut below = |end: usize| random.below(end.max(1));
    let mut bytes = bytes.to_vec();
    for _ in 0..=below(4) {
        let at = below(bytes.len());
        let len = below(16).min(bytes.len() - at);
        match below(6) {
            0 if !bytes.is_empty() => bytes[at] = BYTES[below(BYTES.len())],
            1 => bytes.insert(at, BYTES[below(BYTES.len())]),
            2 => drop(bytes.drain(at..at + len)),
            3 => {
                let piece = bytes[at..at + len].to_vec();
                bytes.splice(at..at, piece);
            }
            4 => {
                let from = below(other.len());
                let piece = &other[from..(from + len).min(other.len())];
                bytes.splice(at..at, piece.iter().copied());
            }
            _ => bytes.truncate(at.max(1)),
        }
    }
    bytes
}
