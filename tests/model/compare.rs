//! The comparison of everything: what clients are told, what lies on the disk, and what check says.

use std::collections::BTreeSet;

use stillage::oci::Digest;

use super::deeds::REPOS;
use super::run::{Run, Step, same};
use super::tree::{self, Laid};
use crate::support::views;

/// How a repository is damaged by whoever removes one of its blobs.
const OF_REMOVED_BLOBS: [&str; 2] = ["manifest-missing", "blob-missing"];

impl Run<'_> {
    pub(super) fn compare_all(&mut self) -> Step {
        self.compare_answers()?;
        self.compare_indexes()?;
        self.compare_files()?;
        self.compare_check()?;
        self.compare_snapshots()
    }

    fn compare_answers(&mut self) -> Step {
        let mut repos: BTreeSet<String> = self.world.names().into_iter().collect();
        repos.extend(REPOS.map(str::to_owned));
        let subjects: BTreeSet<Digest> = self.world.contents.subjects.iter().cloned().collect();
        for repo in &repos {
            let (answer, said) =
                (self.face.tags(repo, None, 1000), self.world.tags(repo, None, 1000));
            same!(answer, said, "all tags of {repo}");
            let index = self.world.index(repo).cloned().unwrap_or_default();
            for tag in index.tags.keys() {
                self.pull(repo, tag)?;
            }
            for manifest in index.manifests.iter().chain(&self.world.contained(repo)) {
                self.pull(repo, manifest.as_str())?;
            }
            for subject in &subjects {
                self.referrers(repo, subject, None)?;
            }
        }
        same!(self.face.catalog(None, 1000), Ok(self.world.catalog(None, 1000)), "the catalogue");
        Ok(())
    }

    /// Every index.json lists what the model lists, and nothing else.
    pub(super) fn compare_indexes(&self) -> Step {
        for (name, repo) in &self.world.repos {
            let index = tree::index(&self.face.root().join(name));
            same!(index, repo.index, "index.json of {name}");
        }
        Ok(())
    }

    /// Every file is explained, and nothing is missing.
    pub(super) fn compare_files(&mut self) -> Step {
        let laid = tree::laid(self.face.root());
        let repos = &self.world.repos;
        let blobs = repos.iter().flat_map(|(name, repo)| {
            repo.blobs.iter().map(|digest| (name.clone(), digest.clone()))
        });
        only(&laid.blobs, &blobs.collect(), "blobs in repositories")?;
        let indexes = repos.iter().filter(|(_, repo)| repo.index.is_some());
        only(&laid.indexes, &indexes.map(|(name, _)| name.clone()).collect(), "index.json")?;
        only(&laid.notes, &self.world.notes.keys().cloned().collect(), "notes of collection")?;
        let trash = self.world.trash.iter();
        let trash = trash.map(|(_, name, digest)| (name.clone(), digest.clone()));
        only(&laid.trash, &trash.collect(), "blobs in the trash")?;
        // One without data has only its owner's file.
        let sessions = self.world.sessions.iter().map(|session| session.id.clone());
        only(&laid.sessions, &sessions.collect(), "upload sessions")?;
        only(&laid.unexplained.iter().cloned().collect(), &BTreeSet::new(), "files")?;
        self.world.soiled.retain(|digest| laid.inodes.contains_key(digest));
        self.compare_inodes(&laid)
    }

    /// What only the server touched is stored once, and every name that its inode has is known.
    fn compare_inodes(&self, laid: &Laid) -> Step {
        let in_snapshots = self.names_in_snapshots();
        for (digest, names) in &laid.inodes {
            if self.world.contents.get(digest).is_none() {
                return Err(format!("{digest} was never pushed"));
            }
            if self.world.soiled.contains(digest) {
                continue;
            }
            let inodes: BTreeSet<u64> = names.iter().map(|status| status.ino).collect();
            same!(inodes.len(), 1, "inodes of {digest}, which only the server wrote");
            if !laid.pool.contains_key(digest) {
                return Err(format!("the pool lost {digest}, which has {} names", names.len()));
            }
            let beside = in_snapshots.get(&names[0].ino).copied().unwrap_or_default();
            let known = names.len() as u64 + beside;
            same!(names[0].links, known, "names of {digest}");
        }
        Ok(())
    }

    fn compare_check(&mut self) -> Step {
        let damaged: BTreeSet<String> = self
            .world
            .names()
            .into_iter()
            .filter(|name| !self.world.missing(name).is_empty())
            .collect();
        let mut found = BTreeSet::new();
        let mut stale = BTreeSet::new();
        for finding in self.face.check() {
            // Somebody else changed index.json or the name, and nobody opened it since.
            if finding.rule == "views-stale" {
                stale.insert(finding.repository);
                continue;
            }
            // Who removed a manifest took what it says of others from those who read the files.
            if finding.rule == "view-wrong" && damaged.contains(&finding.repository) {
                continue;
            }
            // Whoever wrote index.json wrote no line of the journal.
            let outsider = self.world.repo(&finding.repository).is_some_and(|r| r.is_foreign);
            if finding.rule == "journal-stamp-unknown" && outsider {
                continue;
            }
            let of_removed = OF_REMOVED_BLOBS.contains(&finding.rule.as_str());
            if !of_removed || !damaged.contains(&finding.repository) {
                return Err(format!("check: {finding:?}"));
            }
            found.insert(finding.repository);
        }
        only(&found, &damaged, "repositories in which check finds blobs missing")?;
        self.compare_views(&(&stale | &damaged))
    }

    /// Views that say that they are those of index.json are. What a manifest says that somebody removed
    /// the server may know still, and who reads the files cannot.
    fn compare_views(&self, left_out: &BTreeSet<String>) -> Step {
        for name in self.world.repos.keys().filter(|name| !left_out.contains(*name)) {
            let repo = self.face.root().join(name);
            if repo.join("_manifests/.of").is_symlink() && repo.join("index.json").exists() {
                let (found, wanted) = (views::found(&repo), views::wanted(&repo, name));
                same!(found, wanted, "the views of {name}");
            }
        }
        Ok(())
    }
}

/// Fails unless two sets are one.
fn only<T: Ord + std::fmt::Debug>(real: &BTreeSet<T>, model: &BTreeSet<T>, what: &str) -> Step {
    let more: Vec<&T> = real.difference(model).take(5).collect();
    let less: Vec<&T> = model.difference(real).take(5).collect();
    if more.is_empty() && less.is_empty() {
        return Ok(());
    }
    Err(format!(
        "{what}: the registry has {}, the model {}\n  too many: {more:?}\n  missing:  {less:?}",
        real.len(),
        model.len()
    ))
}
