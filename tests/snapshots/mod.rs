//! A tree and the snapshots that are made beside it.

#![allow(dead_code, reason = "every test binary uses its own part")]

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::layouts::{disk, valid};
use crate::support::STILLAGE;
use crate::support::command::{Outcome, run};
use crate::support::content::sha256;

/// A directory with a tree in it that a server wrote, `registry`, and room for snapshots.
pub(crate) struct Beside {
    pub room: tempfile::TempDir,
}

impl Beside {
    pub(crate) fn new() -> Beside {
        let room = tempfile::Builder::new().prefix("stillage-snapshot-").tempdir().unwrap();
        let tree = disk::place(&valid::written());
        fs::rename(tree.path(), room.path().join("registry")).unwrap();
        Beside { room }
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.room.path().join(name)
    }

    /// `stillage snapshot registry NAME MORE…`
    pub(crate) fn snapshot(&self, name: &str, more: &[&str]) -> Outcome {
        run(Command::new(STILLAGE)
            .current_dir(self.room.path())
            .args(["snapshot", "registry", name])
            .args(more))
    }

    pub(crate) fn json(&self, name: &str, more: &[&str]) -> Value {
        let outcome = self.snapshot(name, &[&["--json"], more].concat()).ok();
        serde_json::from_str(&outcome.stdout).expect("one document")
    }

    /// The names beside the tree.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.room.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// Every path with type, rights, owner, length, time and content: all but the link count, which a
/// snapshot changes, and what follows from it. Directories' times tell what came and went in them.
pub(crate) fn picture(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    for path in disk::walk(root).into_iter().chain([root.to_owned()]) {
        let meta = path.symlink_metadata().unwrap();
        let content = match meta.file_type() {
            kind if kind.is_file() => sha256(&fs::read(&path).unwrap()),
            kind if kind.is_symlink() => fs::read_link(&path).unwrap().display().to_string(),
            _ => String::new(),
        };
        let (uid, gid, mode) = (meta.uid(), meta.gid(), meta.mode());
        let time = (meta.mtime(), meta.mtime_nsec());
        let inside = path.strip_prefix(root).unwrap().to_owned();
        all.insert(inside, format!("{mode:o} {uid}:{gid} {time:?} {content}"));
    }
    all
}

pub(crate) fn acls(root: &Path) -> String {
    run(Command::new("getfacl").current_dir(root).args(["-R", "-n", "-p", "."])).ok().stdout
}

pub(crate) fn read_only(path: &Path) {
    fs::set_permissions(path, Permissions::from_mode(0o444)).unwrap();
}

pub(crate) fn sh(beside: &Beside, script: &str) -> Outcome {
    run(Command::new("sh").current_dir(beside.room.path()).args(["-euc", script]))
}
