//! Sample trees: made here, kept in `fixtures/`, and put on the disk for a test.
//!
//! [`valid`] and [`broken`] make every sample that is not from another tool; the test
//! `the_fixtures_are_what_is_made_here` compares them with what git has.

// Every test file uses another part of this.
#![allow(dead_code, unreachable_pub)]

pub mod broken;
pub mod disk;
pub mod many;
pub mod push;
pub mod repo;
pub mod room;
pub mod valid;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use stillage::upkeep::check::{Finding, Options, Summary, check};

/// A tree's regular files by their paths.
pub type Files = BTreeMap<String, Vec<u8>>;

/// What git cannot keep: modes, links, special files, large files.
pub type Twist = fn(&Path);

/// One sample tree.
pub struct Sample {
    pub name: &'static str,
    pub files: Files,
    pub twist: Option<Twist>,
}

impl Sample {
    pub fn new(name: &'static str, files: Files) -> Sample {
        Sample { name, files, twist: None }
    }

    pub fn twisted(name: &'static str, files: Files, twist: Twist) -> Sample {
        Sample { name, files, twist: Some(twist) }
    }

    /// Puts it on the disk.
    pub fn place(&self) -> tempfile::TempDir {
        let temp = disk::place(&self.files);
        if let Some(twist) = self.twist {
            twist(temp.path());
        }
        temp
    }
}

/// The directory `fixtures/`.
pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// All that a check finds.
pub fn findings(root: &Path) -> (Vec<Finding>, Summary) {
    findings_with(root, Options::default())
}

pub fn findings_with(root: &Path, options: Options) -> (Vec<Finding>, Summary) {
    let mut found = Vec::new();
    let summary = check(root, options, &mut |finding| found.push(finding)).unwrap();
    (found, summary)
}
