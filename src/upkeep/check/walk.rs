//! The walk over a tree, in the order of the names, one list of names per level.

use rustix::fs::FileType;

use super::finding::Findings;
use super::rule::Rule;
use super::{Run, hands, probe, repository};
use crate::layout::{Dir, Result, path, size_of};
use crate::oci::{Algorithm, RepoName};

/// So many places are looked at together; repositories among them are held open until then.
const TOGETHER: usize = 128;

/// A repository with a longer index.json, or with a longer directory of blobs, is looked at alone,
/// by all threads: each would hold one of them.
const LARGE_INDEX: u64 = 256 << 10;
const LARGE_DIR: u64 = 512 << 10;

/// Checks everything beneath `root`, which may be a repository itself.
///
/// # Errors
/// Only if ROOT itself cannot be listed.
pub(super) fn all(run: &mut Run<'_>, root: &Dir) -> Result<()> {
    let mut walk = Walk { run, steps: Vec::new() };
    walk.descend(root, "")?;
    walk.look();
    Ok(())
}

/// What is told in its turn.
enum Step {
    Found(Findings),
    Repository(String, Dir),
}

struct Walk<'w, 'r> {
    run: &'w mut Run<'r>,
    /// What nobody looked at yet, in the order of the tree.
    steps: Vec<Step>,
}

impl Walk<'_, '_> {
    /// Goes to `dir`, if it is a repository, then to everything beneath it. `name` is its path from
    /// ROOT, empty for ROOT itself.
    fn descend(&mut self, dir: &Dir, name: &str) -> Result<()> {
        let mut findings = self.run.findings("");
        let names = match name {
            "" => {
                let mut names = dir.names()?;
                names.sort_unstable_by(|a, b| a.0.cmp(&b.0));
                names
            }
            _ => probe::names(dir, &mut findings),
        };
        let is_repository = is_repository(dir, &names, &mut findings);
        self.found(findings);
        if is_repository {
            self.repository(name, dir);
        }
        for (child, kind) in names {
            let whole = if name.is_empty() { child.clone() } else { format!("{name}/{child}") };
            self.visit(dir, &child, kind, &whole)?;
        }
        Ok(())
    }

    fn found(&mut self, findings: Findings) {
        if !findings.is_empty() {
            self.step(Step::Found(findings));
        }
    }

    fn step(&mut self, step: Step) {
        self.steps.push(step);
        if self.steps.len() >= TOGETHER {
            self.look();
        }
    }

    fn repository(&mut self, name: &str, dir: &Dir) {
        // What is hashed can go into the pool at once, from one repository at a time.
        let in_turn = self.run.mender.is_some() && !self.run.hashes.are_blind();
        if in_turn || is_large(dir) {
            self.look();
            repository::check(self.run, name, dir, None);
        } else {
            self.step(Step::Repository(name.to_owned(), dir.clone()));
        }
    }

    /// Looks at what was come by, each place by one thread, then tells of all in their order.
    fn look(&mut self) {
        let steps = std::mem::take(&mut self.steps);
        // What was hashed in another repository proves nothing here.
        self.run.again = None;
        let (look, _) = self.run.look(1);
        let seen = hands::each(hands::all(), &steps, |step| match step {
            Step::Found(_) => None,
            Step::Repository(name, dir) => Some(repository::glance(&look, None, name, dir)),
        });
        for (step, seen) in steps.into_iter().zip(seen) {
            match step {
                Step::Found(findings) => self.run.hand_on(findings),
                Step::Repository(name, dir) => repository::check(self.run, &name, &dir, seen),
            }
        }
    }

    fn visit(&mut self, parent: &Dir, child: &str, kind: FileType, whole: &str) -> Result<()> {
        // Views, hidden files and the room are no repositories, nor is what an image layout spells.
        if child.starts_with(['.', '_']) {
            return Ok(());
        }
        let mut findings = self.run.findings("");
        let named = RepoName::parse(whole).is_ok();
        match kind {
            FileType::Directory if named => {
                if let Some(dir) = probe::dir(parent, child, &mut findings).there() {
                    self.found(findings);
                    return self.descend(&dir, whole);
                }
            }
            FileType::Directory => unreachable(parent, child, whole, &mut findings),
            FileType::Symlink if named => {
                let message = "is a symlink: nothing behind it is served";
                findings.add(Rule::DirectorySymlinked, &parent.at(child), message);
            }
            _ => {}
        }
        self.found(findings);
        Ok(())
    }
}

/// Whether what one look holds of a repository is much.
fn is_large(dir: &Dir) -> bool {
    let index =
        matches!(dir.stat_name(path::INDEX), Ok(Some(stat)) if size_of(&stat) > LARGE_INDEX);
    let blobs = |algorithm: &Algorithm| {
        let stat = dir.dir(&path::blobs(*algorithm)).and_then(|blobs| blobs.stat());
        stat.is_ok_and(|stat| size_of(&stat) > LARGE_DIR)
    };
    index || Algorithm::ALL.iter().any(blobs)
}

/// Whether a directory is a repository, was one (its index.json may be lost), or has content that
/// waits for its first manifest.
fn is_repository(dir: &Dir, names: &[(String, FileType)], findings: &mut Findings) -> bool {
    let has = |wanted| names.iter().any(|(name, _)| name == wanted);
    let blobs = |algorithm| dir.dir(&path::blobs(algorithm));
    let mut waits =
        || Algorithm::ALL.into_iter().any(|alg| probe::look(blobs(alg), findings).is_some());
    [path::INDEX, path::OCI_LAYOUT, path::JOURNAL].into_iter().any(has)
        || has(path::BLOBS) && waits()
}

/// Reports a layout that no client can ask for. What else cannot be part of a repository's name is
/// not ours: lost+found, editors' files.
fn unreachable(parent: &Dir, child: &str, whole: &str, findings: &mut Findings) {
    let Some(dir) = probe::look(parent.dir(child), findings) else { return };
    let mut has = |name| matches!(probe::look(dir.stat_name(name), findings), Some(Some(_)));
    if has(path::INDEX) && has(path::OCI_LAYOUT) {
        let why = RepoName::parse(whole).err().map(|error| error.to_string());
        findings.add(Rule::NameUnreachable, dir.path(), why.unwrap_or_default());
    }
}
