//! What a check finds, and how much it looked at.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::rule::{Rule, Severity};

/// A rule that is broken somewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Which rule.
    pub rule: Rule,
    /// The repository it was found in; empty for the tree's own files.
    pub repository: String,
    /// The file or directory, relative to ROOT.
    pub path: PathBuf,
    /// What is wrong there, in words.
    pub message: String,
}

/// How much was looked at, and what came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Repositories.
    pub repositories: u64,
    /// Manifests that a repository's index.json reaches, each once per repository.
    pub manifests: u64,
    /// Blobs' names in repositories.
    pub blobs: u64,
    /// Names in the pool.
    pub pooled: u64,
    /// Bytes that were read to hash them.
    pub bytes_hashed: u64,
    /// Broken rules that are damage.
    pub errors: u64,
    /// Broken rules that are worth knowing.
    pub warnings: u64,
    /// What was put right, or would be.
    pub repaired: u64,
    /// Sound blobs that the pool had lost and has again, or would have.
    pub pooled_again: u64,
    /// Whether a lock could not be had, so that something was not repaired.
    pub blocked: bool,
    /// Whether a repair met with an error: something may not be repaired.
    pub failed: bool,
}

impl Summary {
    /// Whether damage was found.
    pub fn is_damaged(&self) -> bool {
        self.errors > 0
    }

    pub(super) fn count(&mut self, severity: Severity) {
        match severity {
            Severity::Error => self.errors += 1,
            Severity::Warning => self.warnings += 1,
        }
    }
}

/// Findings that are not reported yet: they may have to be looked at again.
#[derive(Debug)]
pub(super) struct Findings {
    root: PathBuf,
    repository: String,
    found: Vec<Finding>,
}

impl Findings {
    pub(super) fn new(root: &Path, repository: &str) -> Findings {
        Findings { root: root.to_owned(), repository: repository.to_owned(), found: Vec::new() }
    }

    /// Adds one; `path` is as a [`Dir`](crate::layout::Dir) gives it.
    pub(super) fn add(&mut self, rule: Rule, path: &Path, message: impl Into<String>) {
        let path = path.strip_prefix(&self.root).unwrap_or(path);
        // Several looks at one thing fail alike, one soon after the other.
        let last = self.found.iter().rev().take(16);
        if rule == Rule::Unreadable && last.clone().any(|f| f.rule == rule && f.path == path) {
            return;
        }
        self.found.push(Finding {
            rule,
            repository: self.repository.clone(),
            path: path.to_owned(),
            message: message.into(),
        });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    pub(super) fn as_slice(&self) -> &[Finding] {
        &self.found
    }

    pub(super) fn into_vec(self) -> Vec<Finding> {
        self.found
    }
}
