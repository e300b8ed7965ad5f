//! The command: what it prints, what it ends with, and that it works on what is read-only.

use std::path::Path;
use std::process::{Command, Output};

use crate::layouts::{broken, disk, valid};

fn stillage(args: &[&str], root: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stillage"));
    command.arg("check").args(args).arg(root).env_remove("STILLAGE_ROOT").output().unwrap()
}

fn sample(name: &str) -> tempfile::TempDir {
    broken::all().into_iter().find(|sample| sample.name == name).unwrap().place()
}

#[test]
fn the_exit_code_tells_damage_from_warnings_and_errors() {
    for (root, code, last) in [
        (disk::place(&valid::written()), 0, "0 errors, 0 warnings\n"),
        (sample("tag-doubled"), 0, "0 errors, 1 warning\n"),
        (sample("blob-missing"), 4, "1 error, 0 warnings\n"),
    ] {
        let output = stillage(&[], root.path());
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(text.ends_with(last), "{text}");
        assert_eq!(output.stderr, b"", "{text}");
    }
    let output = stillage(&[], Path::new("/nonexistent/tree"));
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    assert!(String::from_utf8(output.stderr).unwrap().contains("/nonexistent/tree"));
    let sparse = sample("blob-missing");
    assert_eq!(stillage(&["--allow-sparse"], sparse.path()).status.code(), Some(0));
}

#[test]
fn json_is_one_document() {
    let root = sample("blob-missing");
    let output = stillage(&["--json"], root.path());
    assert_eq!(output.status.code(), Some(4));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["root"], root.path().to_str().unwrap());
    let finding = &report["findings"][0];
    assert_eq!(finding["rule"], "blob-missing");
    assert_eq!(finding["severity"], "error");
    assert_eq!(finding["repository"], "app");
    assert!(finding["path"].as_str().unwrap().starts_with("app/blobs/sha256/"), "{finding}");
    assert_eq!(report["summary"]["errors"], 1);
    let sound = disk::place(&valid::written());
    let output = stillage(&["--json"], sound.path());
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["findings"], output.status.code()), (&serde_json::json!([]), Some(0)));
}

/// A directory mounted over itself, read-only.
struct ReadOnly<'a>(&'a Path);

impl ReadOnly<'_> {
    fn new(path: &Path) -> ReadOnly<'_> {
        let mount = |args: &[&str]| Command::new("mount").args(args).arg(path).status().unwrap();
        assert!(mount(&["--bind", path.to_str().unwrap()]).success());
        let mounted = ReadOnly(path);
        assert!(mount(&["-o", "remount,bind,ro"]).success());
        mounted
    }
}

impl Drop for ReadOnly<'_> {
    fn drop(&mut self) {
        let status = Command::new("umount").arg("--lazy").arg(self.0).status();
        assert!(status.is_ok_and(|status| status.success()), "umount {}", self.0.display());
    }
}

/// What a backup is checked on. A repair says at once that it cannot be, whatever there is to repair.
#[test]
fn a_tree_that_is_mounted_read_only_is_checked_as_any_other_and_not_repaired() {
    let samples = ["blob-missing", "tag-doubled", "journal-malformed", "lock-open"];
    let trees = samples.map(sample).into_iter().chain([disk::place(&valid::written())]);
    for tree in trees {
        let text = |output: &Output| String::from_utf8(output.stdout.clone()).unwrap();
        let arguments: [&[&str]; 4] = [&[], &["--quick"], &["--json"], &["--repair", "-n"]];
        let told = || arguments.map(|args| stillage(args, tree.path()));
        let before = told();
        let there = disk::fingerprint(tree.path());
        let mounted = ReadOnly::new(tree.path());
        for ((before, after), args) in before.iter().zip(told()).zip(arguments) {
            assert_eq!((before.status, text(before)), (after.status, text(&after)), "{args:?}");
            assert_eq!(after.stderr, b"", "{args:?}");
        }
        let refused = stillage(&["--repair"], tree.path());
        assert_eq!((refused.status.code(), text(&refused).as_str()), (Some(1), ""));
        let why = String::from_utf8(refused.stderr).unwrap();
        assert!(why.contains("mounted read-only") && why.contains("remount,rw"), "{why}");
        drop(mounted);
        assert_eq!(disk::fingerprint(tree.path()), there);
    }
}

#[test]
fn names_cannot_drive_the_terminal() {
    let temp = disk::place(&valid::image());
    let name = "app/blobs/sha256/\u{1b}[2J\nerror forged";
    disk::write(temp.path(), name, b"");
    let output = stillage(&[], temp.path());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains(r"\u{1b}[2J\nerror forged"), "{text}");
    assert_eq!(text.lines().count(), 2, "{text}");
}
