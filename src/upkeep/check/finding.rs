//! What a check finds, and how much it looked at.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
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
    /// How many there are: 1, or all beyond the first hundred of one rule and file.
    pub count: u64,
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

    pub(super) fn count(&mut self, finding: &Finding) {
        match finding.rule.severity() {
            Severity::Error => self.errors += finding.count,
            Severity::Warning => self.warnings += finding.count,
        }
    }
}

/// So often one rule is told of one file. A file of lines may break it a million times, and who plants
/// such a one must not fill the memory and the report with it.
const MOST: u64 = 100;

/// Findings that are not reported yet: they may have to be looked at again.
#[derive(Debug)]
pub(super) struct Findings {
    root: PathBuf,
    repository: String,
    found: Vec<Finding>,
    /// How often a rule is told of a file. Their hash stands for them, which is shorter than a path:
    /// two with the same would share a hundred.
    told: HashMap<u64, u64>,
    hasher: RandomState,
    /// What goes beyond that.
    more: BTreeMap<(PathBuf, Rule), u64>,
}

impl Findings {
    pub(super) fn new(root: &Path, repository: &str) -> Findings {
        Findings {
            root: root.to_owned(),
            repository: repository.to_owned(),
            found: Vec::new(),
            told: HashMap::new(),
            hasher: RandomState::new(),
            more: BTreeMap::new(),
        }
    }

    /// Findings about the same place, and none so far.
    pub(super) fn fresh(&self) -> Findings {
        Findings::new(&self.root, &self.repository)
    }

    /// Adds all of another list.
    pub(super) fn append(&mut self, more: Findings) {
        self.found.extend(more.found);
        for (place, count) in more.more {
            *self.more.entry(place).or_default() += count;
        }
    }

    /// Adds one; `path` is as a [`Dir`](crate::layout::Dir) gives it.
    pub(super) fn add(&mut self, rule: Rule, path: &Path, message: impl Into<String>) {
        let path = path.strip_prefix(&self.root).unwrap_or(path);
        // Several looks at one thing fail alike, one soon after the other.
        let last = self.found.iter().rev().take(16);
        if rule == Rule::Unreadable && last.clone().any(|f| f.rule == rule && f.path == path) {
            return;
        }
        let told = self.told.entry(self.hasher.hash_one((rule, path))).or_default();
        *told += 1;
        if *told > MOST {
            *self.more.entry((path.to_owned(), rule)).or_default() += 1;
            return;
        }
        self.push(rule, path.to_owned(), message.into(), 1);
    }

    fn push(&mut self, rule: Rule, path: PathBuf, message: String, count: u64) {
        let repository = self.repository.clone();
        self.found.push(Finding { rule, repository, path, message, count });
    }

    /// Whether a rule is broken anywhere.
    pub(super) fn any(&self, rule: Rule) -> bool {
        self.found.iter().any(|finding| finding.rule == rule)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// What is told of each by its own words: every rule and file is among them.
    pub(super) fn as_slice(&self) -> &[Finding] {
        &self.found
    }

    /// All of them; what goes beyond the first hundred of a rule and file is one, at the end.
    pub(super) fn into_vec(mut self) -> Vec<Finding> {
        for ((path, rule), count) in std::mem::take(&mut self.more) {
            self.push(rule, path, format!("and {count} more"), count);
        }
        self.found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_of_a_kind_are_told_and_the_rest_is_counted() {
        let mut findings = Findings::new(Path::new("/r"), "a");
        for number in 0..250 {
            findings.add(Rule::JournalMalformed, Path::new("/r/a/_log.jsonl"), number.to_string());
            findings.add(Rule::FactsWrong, Path::new("/r/a/facts.jsonl"), number.to_string());
        }
        findings.add(Rule::FactsWrong, Path::new("/r/a/_log.jsonl"), "alone");
        let (mut summary, all) = (Summary::default(), findings.into_vec());
        assert_eq!(all.len(), 203);
        all.iter().for_each(|finding| summary.count(finding));
        assert_eq!(summary.errors + summary.warnings, 501);
        let more: Vec<_> = all.iter().filter(|finding| finding.count > 1).collect();
        assert_eq!(more.len(), 2);
        assert!(more.iter().all(|finding| finding.message == "and 150 more"), "{more:?}");
    }

    #[test]
    fn what_another_list_only_counted_counts_in_both() {
        let mut findings = Findings::new(Path::new("/r"), "a");
        let mut other = findings.fresh();
        for number in 0..150 {
            for list in [&mut findings, &mut other] {
                list.add(Rule::FactsWrong, Path::new("/r/a/facts.jsonl"), number.to_string());
            }
        }
        findings.append(other);
        let counts: u64 = findings.into_vec().iter().map(|finding| finding.count).sum();
        assert_eq!(counts, 300);
    }
}
