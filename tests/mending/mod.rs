//! `stillage check --repair` as a deed that is disturbed: trees with damage of every kind that a
//! repair puts right, and what has to be true of one after a repair that was killed or that a
//! system call failed in.

#![allow(dead_code, reason = "every test binary uses its own part")]

pub(crate) mod damage;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use stillage::oci::{Algorithm, Digest};
use stillage::upkeep::check::Severity;

use crate::layouts::{disk, findings};
use crate::support::STILLAGE;
use crate::support::calls::{Answer, Call, Calls, Site, sites};
use crate::support::deeds::is_temporary;
pub(crate) use damage::Damage;

/// Rules and paths from ROOT.
type Places = BTreeSet<(String, PathBuf)>;

/// How a repair ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// None after a kill.
    pub(crate) code: Option<i32>,
    /// What it printed and logged.
    pub(crate) said: String,
}

impl Ended {
    /// What it says that it put right.
    fn claims(&self) -> Places {
        let claim = |line: &str| {
            let (rule, rest) = line.strip_prefix("repaired ")?.split_once(": ")?;
            let (path, _) = rest.split_once(": ")?;
            Some((rule.to_owned(), PathBuf::from(path)))
        };
        self.said.lines().filter_map(claim).collect()
    }
}

/// A damaged tree, and the calls of whoever repairs it.
pub(crate) struct Patient {
    pub(crate) calls: Calls,
    damage: Damage,
    temp: tempfile::TempDir,
    before: Contents,
}

/// What an undisturbed repair leads to.
struct End {
    /// What is wrong before it.
    found: Places,
    state: BTreeMap<PathBuf, String>,
    claims: Places,
    sites: Vec<(Site, Call)>,
}

impl Damage {
    /// Done once for each kind of damage; asserts that the repair did all that it is there for.
    fn end(self) -> &'static End {
        static ENDS: [OnceLock<End>; Damage::ALL.len()] =
            [const { OnceLock::new() }; Damage::ALL.len()];
        ENDS[self as usize].get_or_init(|| {
            let patient = Patient::new(self);
            let found = places(patient.root());
            patient.calls.record();
            let ended = patient.repair();
            let sites = sites(&patient.calls.done());
            assert_eq!(ended.code, Some(0), "{self:?}: {}", ended.said);
            let claims = ended.claims();
            let rules: BTreeSet<&str> = claims.iter().map(|(rule, _)| rule.as_str()).collect();
            assert_eq!(rules, self.mended().iter().copied().collect(), "{self:?}: {}", ended.said);
            assert_eq!(places(patient.root()), Places::new(), "{self:?}");
            patient.before.assert_kept(patient.root());
            End { found, state: state(patient.root()), claims, sites }
        })
    }

    /// The calls of an undisturbed repair, in their order.
    pub(crate) fn sites(self) -> &'static [(Site, Call)] {
        &self.end().sites
    }
}

impl Patient {
    pub(crate) fn new(damage: Damage) -> Patient {
        let temp = damage.place();
        let calls = Calls::on_known(temp.path());
        let before = Contents::of(temp.path());
        Patient { calls, damage, temp, before }
    }

    pub(crate) fn root(&self) -> &Path {
        self.temp.path()
    }

    /// Repairs it, while the rule for calls is in force that was set before.
    pub(crate) fn repair(&self) -> Ended {
        self.run(|command| self.calls.spawn(command))
    }

    fn run(&self, spawn: impl FnOnce(&mut Command) -> io::Result<Child>) -> Ended {
        let mut command = Command::new(STILLAGE);
        command.args(["check", "--repair", "--wait", "5s"]).arg(self.root());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = spawn(&mut command).expect("the command starts");
        let output = child.wait_with_output().expect("the command ends");
        let said = [output.stdout, output.stderr].concat();
        Ended { code: output.status.code(), said: String::from_utf8_lossy(&said).into_owned() }
    }

    /// What holds after any disturbance: good content lies where it lay, what was replaced is in
    /// quarantine, and nothing is wrong that was not.
    pub(crate) fn assert_no_worse(&self, ended: &Ended) -> Places {
        self.before.assert_kept(self.root());
        let left = places(self.root());
        // Half of a repair may break another of these rules at the same place: what was damaged is
        // missing, for a moment.
        let known = &self.damage.end().found;
        let is_known = |(rule, path): &&(String, PathBuf)| {
            known.iter().any(|(known, _)| known == rule) && known.iter().any(|(_, at)| at == path)
        };
        let new: Vec<_> = left.iter().filter(|place| !is_known(place)).collect();
        assert!(new.is_empty(), "new: {new:?}: {}", ended.said);
        left
    }

    /// What a repair that came to its own end, whatever failed, has to be true to.
    pub(crate) fn assert_true(&self, ended: &Ended, seen: &[(Call, Answer)]) {
        let said = &ended.said;
        assert!(matches!(ended.code, Some(0 | 1 | 3 | 4)), "ended in {:?}: {said}", ended.code);
        assert!(!said.contains("panicked"), "{said}");
        let left = self.assert_no_worse(ended);
        let lies: Vec<_> = ended.claims().intersection(&left).cloned().collect();
        assert!(lies.is_empty(), "is not repaired: {lies:?}: {said}");
        let end = self.damage.end();
        if ended.code == Some(0) {
            assert_eq!(left, Places::new(), "it ended well: {said}");
            // What has no links gets no pool.
            let spared = seen
                .iter()
                .any(|(call, answer)| call.name == "linkat" && matches!(answer, Answer::Fail(_)));
            assert!(spared || pooled(&end.state).is_subset(&pooled(&state(self.root()))), "{said}");
        } else {
            assert!(
                self.names_the_place(said, seen),
                "{:?} does not say where: {said}",
                ended.code
            );
        }
        self.assert_nothing_half_done(seen);
    }

    /// Whether what was said names what a call failed at, or the directory of that. What was put right
    /// all the same says nothing of it.
    fn names_the_place(&self, said: &str, seen: &[(Call, Answer)]) -> bool {
        let said: Vec<&str> = said.lines().filter(|line| !line.starts_with("repaired ")).collect();
        let names = |path: &str| said.iter().any(|line| names(line, path));
        let failed = seen.iter().filter(|(_, answer)| matches!(answer, Answer::Fail(_)));
        let mut paths = failed.map(|(call, _)| call.path.as_path());
        // What has no name is called by what it was to become.
        let nameless = |path: &Path| path.to_string_lossy().contains("/#");
        let cause = format!("cause=\"{}", self.root().display());
        if paths.clone().any(nameless) && said.iter().any(|line| line.contains(&cause)) {
            return true;
        }
        paths.any(|path| {
            let parent = path.parent().filter(|parent| parent.starts_with(self.root()));
            [Some(path), parent].into_iter().flatten().any(|path| {
                let inside = path.strip_prefix(self.root()).unwrap_or(path);
                let inside = inside.to_string_lossy();
                let inside = inside.trim_end_matches(" (deleted)");
                let root = self.root().to_str().expect("a path of ours");
                names(if inside.is_empty() { root } else { inside })
            })
        })
    }

    /// No temporary name is left, unless the removing itself failed.
    fn assert_nothing_half_done(&self, seen: &[(Call, Answer)]) {
        let stays = |(call, answer): &(Call, Answer)| {
            call.name == "unlinkat" && matches!(answer, Answer::Fail(_))
        };
        if !seen.iter().any(stays) {
            let left: Vec<_> =
                disk::walk(self.root()).into_iter().filter(|path| is_temporary(path)).collect();
            assert!(left.is_empty(), "left behind: {left:?}");
        }
    }

    /// A repair that nobody disturbs ends as if there had been no other before it, and one more has
    /// nothing to do. Its calls are held by `held`.
    pub(crate) fn assert_mends(&self, held: Option<&Calls>) {
        let ended = self.run(|command| match held {
            Some(calls) => calls.spawn(command),
            None => command.spawn(),
        });
        assert_eq!(ended.code, Some(0), "again: {}", ended.said);
        self.before.assert_kept(self.root());
        assert_eq!(places(self.root()), Places::new(), "again: {}", ended.said);
        let (now, end) = (state(self.root()), &self.damage.end().state);
        let differs = |path: &&PathBuf| now.get(*path) != end.get(*path);
        let differ: Vec<_> = now.keys().chain(end.keys()).filter(differs).collect();
        assert!(differ.is_empty(), "not as undisturbed: {differ:?}: {}", ended.said);
        let before = disk::fingerprint(self.root());
        let third = self.run(Command::spawn);
        assert_eq!((third.code, third.claims()), (Some(0), Places::new()), "{}", third.said);
        assert_eq!(disk::fingerprint(self.root()), before, "a third repair changed something");
    }
}

/// Whether a line has a path, whole.
fn names(line: &str, path: &str) -> bool {
    line.match_indices(path).any(|(at, _)| {
        let after = line[at + path.len()..].chars().next();
        after.is_none_or(|after| matches!(after, ':' | '"' | ' ' | ','))
    })
}

/// All that is wrong. Errors and warnings alike.
fn places(root: &Path) -> Places {
    let found = findings(root).0.into_iter();
    found
        .filter(|finding| matches!(finding.rule.severity(), Severity::Error | Severity::Warning))
        .map(|finding| (finding.rule.id().to_owned(), finding.path))
        .collect()
}

fn pooled(state: &BTreeMap<PathBuf, String>) -> BTreeSet<&PathBuf> {
    state.keys().filter(|path| path.starts_with(".stillage/pool")).collect()
}

/// Every name with its type, its mode and its content. What is told with the time of day, and what is
/// half done, is left out.
fn state(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut state = BTreeMap::new();
    for path in disk::walk(root) {
        let name = path.strip_prefix(root).expect("beneath it").to_owned();
        if is_temporary(&path) || name.starts_with(".stillage/quarantine") {
            continue;
        }
        let meta = path.symlink_metadata().expect("its status");
        let content = match meta.is_file() && !name.ends_with("_log.jsonl") {
            true => digest(&path).to_string(),
            false => String::new(),
        };
        let (mut mode, uid) = (meta.permissions().mode(), meta.uid());
        if name.ends_with("_log.jsonl") {
            // One that was killed right after it had made it leaves it closed to the group.
            mode &= !0o040;
        }
        state.insert(name, format!("{mode:o} of {uid}: {content}"));
    }
    state
}

fn digest(path: &Path) -> Digest {
    Digest::of(Algorithm::Sha256, &fs::read(path).expect("its content"))
}

/// What a tree's files say, and where good content lies.
struct Contents {
    files: BTreeMap<PathBuf, Vec<u8>>,
}

impl Contents {
    fn of(root: &Path) -> Contents {
        let files = disk::walk(root).into_iter().filter(|path| {
            path.symlink_metadata().is_ok_and(|meta| meta.is_file()) && !is_temporary(path)
        });
        let name = |path: &Path| path.strip_prefix(root).expect("beneath it").to_owned();
        let read = |path: PathBuf| (name(&path), fs::read(&path).expect("its content"));
        Contents { files: files.map(read).collect() }
    }

    /// Good blobs are where they were; of everything else there is a copy at least. Only keys go,
    /// which are no secret any more.
    fn assert_kept(&self, root: &Path) {
        let now = Contents::of(root);
        let all: BTreeSet<&[u8]> = now.files.values().map(Vec::as_slice).collect();
        for (path, bytes) in &self.files {
            let there = now.files.get(path);
            if is_good(path, bytes) {
                assert!(there == Some(bytes), "{} is lost", path.display());
            }
            // Lines come to the journal and to the hints.
            let grown = there.is_some_and(|there| there.starts_with(bytes));
            let key = ["token-key", "key.pem"].iter().any(|name| path.ends_with(name));
            let kept = grown || key || all.contains(bytes.as_slice());
            assert!(kept, "what {} said is nowhere", path.display());
        }
    }
}

/// A blob whose name is its digest.
fn is_good(path: &Path, bytes: &[u8]) -> bool {
    let name = path.to_str().unwrap_or_default();
    let mut parts = name.rsplit('/');
    let (hex, algorithm) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    Digest::parse(&format!("{algorithm}:{hex}"))
        .is_ok_and(|digest| Digest::of(digest.algorithm(), bytes) == digest)
}
