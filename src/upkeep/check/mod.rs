//! `stillage check`: whether a tree keeps the rules of layout-spec/rules.md.
//!
//! It never writes, needs no lock to begin with, and runs beside a server: what it found in a
//! repository is reported only if index.json is afterwards what it was before, and otherwise looked
//! at again. It goes over the tree in the order of the names and holds no more of it than one
//! repository's index.json and the names of one directory per level.
//!
//! Content is hashed once per inode where that matters: what the pool has is hashed there, and
//! a repository's name for the same inode is not read again.

mod blobs;
mod closed;
mod facts;
mod finding;
mod hashes;
mod journal;
mod lines;
mod manifests;
mod pool;
mod probe;
pub mod report;
mod repository;
mod rights;
mod room;
mod rule;
mod walk;

use std::path::Path;

use thiserror::Error;

pub use finding::{Finding, Summary};
pub use rule::{Origin, Rule, Severity};

use crate::layout::{self, Dir, path};
use finding::Findings;
use hashes::Hashes;
use probe::Seen;

/// What to hold a tree to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Manifests may name what is not there, as under `serve --allow-sparse`.
    pub allow_sparse: bool,
}

/// Why a tree could not be checked at all.
#[derive(Debug, Error)]
pub enum CheckError {
    /// ROOT cannot be opened.
    #[error("nothing was checked: {0}")]
    Root(#[from] layout::Error),
}

/// Checks the tree at `root` and gives every finding to `report`, in the order of the tree: first
/// the room, then the repositories by name.
///
/// A directory that is itself an image layout is checked as one. Nothing is written.
///
/// # Errors
/// Only if ROOT itself cannot be read; whatever else cannot be read is a finding.
pub fn check(
    root: &Path,
    options: Options,
    report: &mut dyn FnMut(Finding),
) -> Result<Summary, CheckError> {
    let root = Dir::open_root(root)?;
    let mut run = Run { options, hashes: Hashes::new(), summary: Summary::default(), report, root };
    if run.room()? {
        let root = run.root.clone();
        walk::descend(&mut run, &root, "")?;
    }
    Ok(run.summary)
}

/// One run over one tree.
struct Run<'a> {
    root: Dir,
    options: Options,
    hashes: Hashes,
    summary: Summary,
    report: &'a mut dyn FnMut(Finding),
}

impl Run<'_> {
    /// A list of findings about one repository, or about the tree.
    fn findings(&self, repository: &str) -> Findings {
        Findings::new(self.root.path(), repository)
    }

    /// Hands on what was found.
    fn hand_on(&mut self, findings: Findings) {
        for finding in findings.into_vec() {
            self.summary.count(finding.rule.severity());
            (self.report)(finding);
        }
    }

    /// Checks the room; whether the rest of the tree can be read by the rules of this version.
    fn room(&mut self) -> layout::Result<bool> {
        let mut findings = self.findings("");
        let found = probe::dir(&self.root, path::ROOM, &mut findings);
        self.hand_on(findings);
        match found {
            Seen::There(room) => room::check(self, &room),
            Seen::Absent | Seen::Bad => Ok(true),
        }
    }
}
