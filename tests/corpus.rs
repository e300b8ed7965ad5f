//! The fuzz targets in short: every file of their corpus, and variants of it that are the same in
//! every run.

#[path = "../fuzz/targets.rs"]
mod targets;

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// How many variants are tried for each target, of all its files together.
const VARIANTS: usize = 10_000;

#[test]
fn what_outsiders_send_breaks_nothing() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let mut known: BTreeSet<String> = BTreeSet::new();
    for (name, target) in targets::ALL {
        known.insert(name.to_owned());
        let files = read_all(&corpus.join(name));
        assert!(files.len() >= 3, "{name} has {} files", files.len());
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        for (path, bytes) in &files {
            run(name, path, bytes, target);
            for _ in 0..VARIANTS / files.len() {
                let (_, other) = &files[random.below(files.len())];
                run(name, path, &random.variant(bytes, other), target);
            }
        }
    }
    let there = fs::read_dir(&corpus).expect("the corpus");
    let there =
        there.map(|entry| entry.expect("an entry").file_name().into_string().expect("text"));
    assert_eq!(there.collect::<BTreeSet<String>>(), known, "corpus and targets");
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

/// xorshift64*: the same numbers in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() >> 33) as usize % end.max(1)
    }

    /// Some bytes changed, cut out, doubled, or taken from another file.
    fn variant(&mut self, bytes: &[u8], other: &[u8]) -> Vec<u8> {
        const BYTES: &[u8] = b"\0\x7f\xff%/.:\"{}[],-+0129aAzZ_ \n&=?";
        let mut bytes = bytes.to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            let len = self.below(16).min(bytes.len() - at);
            match self.below(6) {
                0 if !bytes.is_empty() => bytes[at] = BYTES[self.below(BYTES.len())],
                1 => bytes.insert(at, BYTES[self.below(BYTES.len())]),
                2 => drop(bytes.drain(at..at + len)),
                3 => {
                    let piece = bytes[at..at + len].to_vec();
                    bytes.splice(at..at, piece);
                }
                4 => {
                    let from = self.below(other.len());
                    let piece = &other[from..(from + len).min(other.len())];
                    bytes.splice(at..at, piece.iter().copied());
                }
                _ => bytes.truncate(at.max(1)),
            }
        }
        bytes
    }
}
