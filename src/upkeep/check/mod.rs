//! `stillage check`: whether a tree keeps the rules of layout-spec/rules.md.
//!
//! A check never writes, needs no lock to begin with, and runs beside a server: what it found in a
//! repository is reported only if index.json is afterwards what it was before, and otherwise looked
//! at again. It goes over the tree in the order of the names. Threads on all cores look, each at
//! another of a few small repositories or all at one large. What is held of the tree is bounded: one
//! large index.json or a small one per thread, 4,096 manifests that were read ahead, 4 MiB of facts,
//! the findings of 128 small repositories, the names of one directory per level.
//!
//! Content is hashed once per inode where that matters: what the pool has is hashed there, and
//! a repository's name for the same inode is not read again. Threads on all cores read ahead.
//!
//! [`repair`] checks too, and puts right what it can, one place after the other.

mod ahead;
mod blobs;
mod closed;
mod facts;
mod finding;
mod hands;
mod hashes;
mod journal;
mod lines;
mod manifests;
mod mend;
mod names;
mod pool;
mod probe;
mod progress;
pub mod report;
mod repository;
mod rights;
mod room;
mod rule;
mod views;
mod walk;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::Stat;
use thiserror::Error;

pub use finding::{Finding, Summary};
pub use mend::{Mended, Repairs};
pub use progress::Progress;
pub use rule::{Origin, Rule, Severity};

use crate::layout::{self, Dir, path};
use finding::Findings;
use hashes::Hashes;
use mend::Mender;
use probe::Seen;

/// What to hold a tree to.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Manifests may name what is not there, as under `serve --allow-sparse`.
    pub allow_sparse: bool,
    /// Nothing is hashed: content is believed to be what its name says.
    pub quick: bool,
    /// Goes up meanwhile.
    pub progress: Arc<Progress>,
}

/// Why a tree could not be checked at all.
#[derive(Debug, Error)]
pub enum CheckError {
    /// ROOT cannot be opened.
    #[error("nothing was checked: {0}")]
    Root(#[from] layout::Error),
}

/// What a check, with or without repairs, has to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// A rule is broken, and stays broken.
    Found(Finding),
    /// Something was put right, or would be.
    Mended(Mended),
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
    run(root, options, None, &mut |told| {
        if let Told::Found(finding) = told {
            report(finding);
        }
    })
}

/// Checks the tree at `root` and puts right what can be put right; a place where that was done is
/// checked again. What is reported as found is what is left.
///
/// A second repair finds nothing to do, and of a sound tree not a byte changes.
///
/// # Errors
/// ROOT cannot be read, or the tree is another account's.
pub fn repair(
    root: &Path,
    options: Options,
    repairs: Repairs,
    report: &mut dyn FnMut(Told),
) -> Result<Summary, CheckError> {
    let root = Dir::open_root(root)?;
    let mender = Mender::new(repairs, &root)?;
    run(root, options, Some(mender), report)
}

fn run(
    root: Dir,
    options: Options,
    mender: Option<Mender>,
    report: &mut dyn FnMut(Told),
) -> Result<Summary, CheckError> {
    let hashes = Hashes::new(options.quick, Arc::clone(&options.progress));
    let began = hashes.bytes();
    let mut summary = ahead::beside(&root, &hashes, || {
        let summary = Summary::default();
        let (root, hashes) = (root.clone(), &hashes);
        let mut run = Run { root, options, hashes, summary, report, mender, again: None };
        if run.room()? {
            let root = run.root.clone();
            walk::all(&mut run, &root)?;
        }
        if let Some(mender) = run.mender {
            (run.summary.blocked, run.summary.failed) = (mender.blocked, mender.failed);
        }
        Ok::<_, CheckError>(run.summary)
    })?;
    summary.bytes_hashed = hashes.bytes() - began;
    Ok(summary)
}

/// One run over one tree.
struct Run<'a> {
    root: Dir,
    options: Options,
    hashes: &'a Hashes,
    summary: Summary,
    report: &'a mut dyn FnMut(Told),
    /// Puts right what is found.
    mender: Option<Mender>,
    /// A place is looked at again after a repair: only these paths need to be hashed.
    again: Option<HashSet<PathBuf>>,
}

/// What all share who look at a place.
#[derive(Clone, Copy)]
struct Look<'a> {
    root: &'a Path,
    options: &'a Options,
    hashes: &'a Hashes,
    /// As in [`Run`].
    again: Option<&'a HashSet<PathBuf>>,
    /// So many threads look at one place.
    hands: usize,
    /// What is found is put right.
    repairing: bool,
}

impl Look<'_> {
    /// A list of findings about one repository, or about the tree.
    fn findings(&self, repository: &str) -> Findings {
        Findings::new(self.root, repository)
    }

    /// Whether a file was hashed in an earlier look at this place, and found sound: it was there when the
    /// run began, and nothing was found at it, nor at a directory above, which might not have been read. (A
    /// whole directory that was renamed into place since is not told from what was there.)
    fn is_known(&self, stat: &Stat, path: impl FnOnce() -> PathBuf) -> bool {
        let Some(again) = self.again.filter(|_| !self.hashes.came_later(stat)) else {
            return false;
        };
        let path = path();
        let within = path.strip_prefix(self.root).unwrap_or(&path);
        !within.ancestors().any(|above| again.contains(above))
    }
}

impl Run<'_> {
    /// To look at a place with so many threads. Who repairs while looking is given apart.
    fn look(&mut self, hands: usize) -> (Look<'_>, Option<&mut Mender>) {
        let (root, again) = (self.root.path(), self.again.as_ref());
        let repairing = self.mender.is_some();
        let (options, hashes) = (&self.options, self.hashes);
        let look = Look { root, options, hashes, again, hands, repairing };
        (look, self.mender.as_mut())
    }

    /// A list of findings about one repository, or about the tree.
    fn findings(&self, repository: &str) -> Findings {
        Findings::new(self.root.path(), repository)
    }

    /// Hands on what was found.
    fn hand_on(&mut self, findings: Findings) {
        for finding in findings.into_vec() {
            self.summary.count(&finding);
            (self.report)(Told::Found(finding));
        }
    }

    /// Repairs a place, the room or a repository; whether anything changed there.
    fn mend(&mut self, repository: Option<(&str, &Dir)>, findings: &Findings) -> bool {
        let (Some(mender), found) = (&mut self.mender, findings.as_slice()) else { return false };
        let mended = match repository {
            Some(place) => mend::repository(mender, self.hashes, place, found),
            None => mend::room(mender, self.hashes, found),
        };
        let changed = !mended.is_empty() && !mender.is_dry();
        self.summary.repaired += mended.len() as u64;
        mended.into_iter().for_each(|mended| (self.report)(Told::Mended(mended)));
        if changed {
            let again = self.again.get_or_insert_default();
            again.extend(found.iter().map(|finding| finding.path.clone()));
        }
        changed
    }

    /// Checks the room; whether the rest of the tree can be read by the rules of this version.
    fn room(&mut self) -> layout::Result<bool> {
        for round in 1.. {
            let before = self.summary;
            let mut findings = self.findings("");
            let pooled = match probe::dir(&self.root, path::ROOM, &mut findings) {
                Seen::There(room) => room::check(&self.look(hands::all()).0, &room, &mut findings)?,
                Seen::Absent | Seen::Bad => Some(0),
            };
            let known = pooled.is_some();
            self.summary.pooled += pooled.unwrap_or(0);
            if !known || round > mend::ROUNDS || !self.mend(None, &findings) {
                self.hand_on(findings);
                self.again = None;
                return Ok(known);
            }
            self.summary = Summary { repaired: self.summary.repaired, ..before };
        }
        Ok(true)
    }
}
