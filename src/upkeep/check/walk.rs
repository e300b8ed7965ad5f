//! The walk over a tree, in the order of the names, one list of names per level.

use rustix::fs::FileType;

use super::finding::Findings;
use super::rule::Rule;
use super::{Run, probe, repository};
use crate::layout::{Dir, Result, path};
use crate::oci::{Algorithm, RepoName};

/// Checks `dir` as a repository if it is one, then everything beneath it. `name` is its path from
/// ROOT, empty for ROOT itself.
///
/// # Errors
/// Only if ROOT itself cannot be listed.
pub(super) fn descend(run: &mut Run<'_>, dir: &Dir, name: &str) -> Result<()> {
    let mut findings = run.findings("");
    let names = match name {
        "" => {
            let mut names = dir.names()?;
            names.sort_unstable_by(|a, b| a.0.cmp(&b.0));
            names
        }
        _ => probe::names(dir, &mut findings),
    };
    let is_repository = is_repository(dir, &names, &mut findings);
    run.hand_on(findings);
    if is_repository {
        repository::check(run, name, dir);
    }
    for (child, kind) in names {
        let whole = if name.is_empty() { child.clone() } else { format!("{name}/{child}") };
        visit(run, dir, &child, kind, &whole)?;
    }
    Ok(())
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

fn visit(run: &mut Run<'_>, parent: &Dir, child: &str, kind: FileType, whole: &str) -> Result<()> {
    // Views, hidden files and the room are no repositories, nor is what an image layout spells.
    if child.starts_with(['.', '_']) {
        return Ok(());
    }
    let mut findings = run.findings("");
    let named = RepoName::parse(whole).is_ok();
    match kind {
        FileType::Directory if named => {
            if let Some(dir) = probe::dir(parent, child, &mut findings).there() {
                run.hand_on(findings);
                return descend(run, &dir, whole);
            }
        }
        FileType::Directory => unreachable(parent, child, whole, &mut findings),
        FileType::Symlink if named => {
            let message = "is a symlink: nothing behind it is served";
            findings.add(Rule::DirectorySymlinked, &parent.at(child), message);
        }
        _ => {}
    }
    run.hand_on(findings);
    Ok(())
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
