//! A server whose calls fail, and what has to be true of it then.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::Registry;
use crate::support::calls::{Answer, Call, Calls};
use crate::support::content::{Image, OCI_MANIFEST, referrer, sha256};
use crate::support::deeds::{Chore, Deed, Kind, Step, Told, Work, is_temporary, walk};
use crate::support::http::Client;
use crate::{Fault, was_met};

/// What accept4(2) says of one connection that came to nothing.
pub(crate) const OF_ONE_CONNECTION: [&str; 2] = ["ECONNABORTED", "EPROTO"];

/// What an upload is removed by.
const OF_REMOVING: [&str; 6] = ["openat", "openat2", "getdents64", "newfstatat", "statx", "fstat"];

/// So long the server waits before it asks for a connection again.
const PAUSE: Duration = Duration::from_millis(100);

/// What a descriptor of a client's connection is called.
const CONNECTION: &str = "a connection";

/// A server whose calls are held, and its tree.
pub(crate) struct Stage {
    pub(crate) calls: Calls,
    pub(crate) registry: Registry,
    pub(crate) client: Client,
    base: Image,
    number: usize,
    /// What the server has open when it rests.
    rest: Vec<String>,
    _room: tempfile::TempDir,
}

impl Stage {
    pub(crate) fn new() -> Stage {
        let room = tempfile::Builder::new().prefix("stillage-faults-").tempdir().expect("a room");
        let root = room.path().join("registry");
        let calls = Calls::on(&root);
        let registry = Registry::start_held(&calls, &root, &["--auth", "none"]);
        let client = registry.client();
        let base = Image::random(100_000);
        client.push_image("base", "t", &base);
        client.push_blob("base", b"{}");
        let signature = referrer(&base.digest, base.manifest.len(), "application/dsse");
        let by = sha256(&signature);
        client.put_manifest("base", &by, OCI_MANIFEST, &signature).expect_status(201);
        client.push_image("moving", "t", &Image::random(10));
        // What is read once is remembered.
        Deed::new(Kind::Pull, 0, &client, &base).repeat(&client);
        let mut stage =
            Stage { calls, registry, client, base, number: 0, rest: Vec::new(), _room: room };
        stage.rest = stage.at_rest();
        stage
    }

    pub(crate) fn deed(&mut self, kind: Kind) -> Deed {
        self.number += 1;
        Deed::new(kind, self.number, &self.client, &self.base)
    }

    pub(crate) fn work(&mut self, chore: Chore) -> Work {
        self.number += 1;
        Work::new(chore, self.number, &self.client)
    }

    /// A chore's command; how it ended and what it said.
    pub(crate) fn run(&self, work: &Work) -> (Option<i32>, String) {
        let mut command = work.command(self.registry.root());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = self.calls.spawn(&mut command).expect("the command starts");
        let output = child.wait_with_output().expect("the command ends");
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&said).into_owned())
    }

    /// Whether the fault was met.
    pub(crate) fn try_chore(&mut self, chore: Chore, fault: &Fault) -> bool {
        let work = self.work(chore);
        fault.arm(&self.calls);
        let (code, said) = self.run(&work);
        let met = was_met(&self.calls.done());
        assert!(Work::may_end_in(code) && !said.contains("panicked"), "ended in {code:?}: {said}");
        assert!(code == Some(0) || !said.is_empty(), "{code:?} without a word");
        let root = self.registry.root();
        work.judge(&self.client, root, code == Some(0));
        self.client.assert_pulls("base", "t", &self.base);
        let (sound, text) = self.registry.check();
        assert_eq!(sound, Some(0), "check: {text}");
        let (code, said) = self.run(&work);
        assert_eq!(code, Some(0), "again: {said}");
        work.judge(&self.client, root, true);
        let rest = self.settled();
        assert_eq!(rest, self.rest, "descriptors or locks were left");
        assert!(!self.registry.stderr().contains("panicked"), "the server panicked");
        met
    }

    /// The server is not given a connection, and takes it when it is: nobody is told of that. Whether the
    /// fault was met.
    pub(crate) fn try_accept(&mut self, kind: Kind, fault: &Fault) -> bool {
        let deed = self.deed(kind);
        let said = self.registry.stderr().len();
        let begun = Instant::now();
        fault.arm(&self.calls);
        let told = deed.perform(&self.client, &|| 0);
        let took = begun.elapsed();
        let seen = self.calls.done();
        let failed = seen.iter().filter(|(_, answer)| *answer != Answer::Go).count();

        for step in &told.steps {
            assert!(step.good, "{}: {:?}", step.name, step.answer);
        }
        deed.judge(&self.client, &told, &|_| true);
        let said = self.registry.stderr().split_off(said);
        let lines = said.matches("no connection is accepted at present").count();
        if OF_ONE_CONNECTION.contains(&fault.errno.0) {
            assert_eq!(lines, 0, "nothing is wrong with the machine: {said}");
        } else if failed > 0 {
            assert_eq!(lines, 1, "once, not {failed} times: {said}");
            // It does not spin until there is a descriptor.
            let pauses = u32::try_from(failed - 1).expect("a few");
            assert!(took >= PAUSE * pauses, "{failed} in {took:?}");
        }
        assert_eq!(self.settled(), self.rest, "descriptors or locks were left");
        assert!(!said.contains("panicked"), "the server panicked");
        failed > 0
    }

    /// Whether the fault was met.
    pub(crate) fn try_deed(&mut self, kind: Kind, fault: &Fault) -> bool {
        let errno = fault.errno;
        let deed = self.deed(kind);
        fault.arm(&self.calls);
        let mark = || self.calls.count();
        let told = deed.perform(&self.client, &mark);
        let seen = self.calls.done();
        let met = was_met(&seen);

        assert_refusals_say_why(&told, kind, errno);
        assert_no_lie(&told, &seen, &deed);
        deed.judge(&self.client, &told, &|step| was_committed(step, &seen));
        self.client.assert_pulls("base", "t", &self.base);
        let (code, text) = self.registry.check();
        assert_eq!(code, Some(0), "check: {text}");
        if let Some(session) = &told.session {
            let ended = self.client.delete(session);
            assert!(matches!(ended.status, 204 | 404), "{ended:?}");
        }
        // What cannot be removed stays until it is swept.
        let uploads = self.registry.root().join(".stillage/uploads");
        let kept = |(call, answer): &(Call, Answer)| {
            let looks = OF_REMOVING.contains(&call.name) && call.path.starts_with(&uploads);
            matches!(answer, Answer::Fail(_)) && (call.name == "unlinkat" || looks)
        };
        self.assert_nothing_half_done(&deed, seen.iter().any(kept));

        self.calls.record();
        deed.repeat(&self.client);
        assert_no_second_sync(&seen, &self.calls.done());
        self.assert_usual_rights(&deed);
        let rest = self.settled();
        assert_eq!(rest, self.rest, "descriptors or locks were left");
        let said = self.registry.stderr();
        assert!(!said.contains("panicked"), "the server panicked");
        met
    }

    /// What was made under a fault has the rights that it would have had without.
    fn assert_usual_rights(&self, deed: &Deed) {
        let mode = |repo: &str, name: &str| {
            let path = self.registry.root().join(repo).join(name);
            fs::metadata(path).map(|meta| format!("{:o}", meta.mode())).ok()
        };
        for name in [".lock", "_log.jsonl", "index.json", "oci-layout", "blobs", "blobs/sha256"] {
            assert_eq!(mode(&deed.repo, name), mode("base", name), "{name}");
        }
        // It may be missing: it is made anew from the manifests.
        if let Some(facts) = mode(&deed.repo, "_referrers/facts.jsonl") {
            assert_eq!(Some(facts), mode("base", "_referrers/facts.jsonl"));
        }
    }

    /// No temporary name and no session is left, unless the removing itself failed.
    fn assert_nothing_half_done(&self, deed: &Deed, may_be_left: bool) {
        let root = self.registry.root();
        let mut left = Vec::new();
        for dir in [root.join(&deed.repo), root.join(".stillage")] {
            walk(&dir, &mut left);
        }
        let uploads = root.join(".stillage/uploads");
        left.retain(|path| is_temporary(path) || path.parent() == Some(&uploads));
        if may_be_left {
            // What a sweep takes one day is taken now: it says nothing about the next fault.
            for path in left {
                let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
            }
            return;
        }
        assert!(left.is_empty(), "left behind: {left:?}");
    }

    /// What the server holds when nobody asks it anything: the last client's connection is closed, and
    /// nothing changes for a while.
    fn at_rest(&self) -> Vec<String> {
        let (mut last, until) = (Vec::new(), Instant::now() + Duration::from_secs(60));
        loop {
            assert!(Instant::now() < until, "the server does not come to rest: {last:?}");
            let now = held(self.registry.pid(), self.registry.root());
            if now == last && !now.iter().any(|what| what == CONNECTION) {
                return now;
            }
            last = now;
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// The same, once it is what it was; after ten seconds whatever it is.
    fn settled(&self) -> Vec<String> {
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            let held = held(self.registry.pid(), self.registry.root());
            if held == self.rest || Instant::now() > until {
                return held;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A refusal of the machine is 507, or 503 with a time to wait; where the server lacks a right, 403.
fn assert_refusals_say_why(told: &Told<'_>, kind: Kind, errno: (&str, i32)) {
    for step in told.steps.iter().filter(|step| !step.good) {
        let Some(answer) = &step.answer else {
            // The head of the answer was sent already.
            assert!(kind == Kind::Pull && step.name == "blob", "{}: no answer", step.name);
            continue;
        };
        let said = match answer.status {
            507 => matches!(errno.0, "ENOSPC" | "EDQUOT" | "EMLINK"),
            503 => answer.header("retry-after").is_some(),
            403 => errno.0 == "EPERM",
            _ => false,
        };
        let message = answer.message().len() > 20 || step.name == "head";
        assert!(said && message, "{}: {errno:?} is told as {answer:?}", step.name);
    }
}

/// Whether a step may have been done although it was refused: what readers see was changed.
fn was_committed(step: &Step, seen: &[(Call, Answer)]) -> bool {
    of_step(step, seen).iter().any(|(call, answer)| *answer == Answer::Go && is_commit(call))
}

fn of_step<'a>(step: &Step, seen: &'a [(Call, Answer)]) -> &'a [(Call, Answer)] {
    let end = step.marks.1.min(seen.len());
    &seen[step.marks.0.min(end)..end]
}

/// The renaming of an index.json, or the end of a blob's name.
fn is_commit(call: &Call) -> bool {
    let path = call.path.to_string_lossy();
    let is_index = call.name.starts_with("rename") && path.ends_with("/index.json");
    let is_blob =
        call.name == "unlinkat" && path.contains("/blobs/sha256/") && !is_temporary(&call.path);
    let is_trash = call.name.starts_with("rename") && path.contains("/.stillage/trash/");
    is_index || is_blob || is_trash
}

/// No step is acknowledged whose sync failed. What comes after a commit is durable is only for speed.
fn assert_no_lie(told: &Told<'_>, seen: &[(Call, Answer)], deed: &Deed) {
    // A mount that did not come about, and is told so.
    let is_refused = |step: &&Step| step.answer.as_ref().is_some_and(|answer| answer.status == 202);
    let is_mount = |step: &&Step| step.name.starts_with("mount");
    let claims = |step: &&Step| step.good && !(is_mount(step) && is_refused(step));
    for step in told.steps.iter().filter(claims) {
        let calls = of_step(step, seen);
        let committed = calls.iter().position(|(call, _)| is_commit(call)).unwrap_or(calls.len());
        let is_dir = |call: &Call| call.inode.is_some_and(|(_, is_dir)| is_dir);
        let durable = calls.iter().enumerate().position(|(at, (call, answer))| {
            at > committed && call.name == "fsync" && is_dir(call) && *answer == Answer::Go
        });
        let lie = calls[..durable.unwrap_or(calls.len())].iter().find(|(call, answer)| {
            call.name.ends_with("sync") && matches!(answer, Answer::Fail(_))
        });
        assert!(lie.is_none(), "{:?} {}: acknowledged after {lie:?}", deed.kind, step.name);
    }
}

/// A file whose sync failed is not synced again before it was written to: the second one says yes to
/// what is lost.
pub(crate) fn assert_no_second_sync(first: &[(Call, Answer)], second: &[(Call, Answer)]) {
    let mut failed: BTreeMap<u64, PathBuf> = BTreeMap::new();
    for (call, answer) in first.iter().chain(second) {
        let Some((inode, false)) = call.inode else { continue };
        match (call.name, answer) {
            ("fsync" | "fdatasync", Answer::Fail(_)) => {
                failed.insert(inode, call.path.clone());
            }
            ("fsync" | "fdatasync", _) => {
                assert!(!failed.contains_key(&inode), "synced again: {failed:?}");
            }
            ("write" | "pwrite64" | "writev" | "ftruncate", Answer::Go) => {
                failed.remove(&inode);
            }
            _ => {}
        }
    }
}

/// A repository's directory and its index.json are remembered open, each in at most so many places.
const REMEMBERED: usize = 3;

/// Open files beneath `root`, sockets, and locks, of a process; but for what it remembers open of each
/// repository, which is bounded.
#[track_caller]
fn held(pid: u32, root: &Path) -> Vec<String> {
    let mut held = Vec::new();
    let mut remembered: BTreeMap<(PathBuf, bool), usize> = BTreeMap::new();
    let connections = connections(pid);
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).expect("the server runs");
    for target in fds.flatten().filter_map(|fd| fs::read_link(fd.path()).ok()) {
        let text = target.to_string_lossy().into_owned();
        let is_index = text.trim_end_matches(" (deleted)").ends_with("/index.json")
            || text.contains("/.index.json.");
        let is_repository =
            target.is_dir() && !text.contains("/.stillage/") && !text.contains("/blobs");
        if target.starts_with(root) && (is_index || is_repository) {
            let repository = if is_index { target.parent() } else { Some(target.as_path()) };
            let repository = repository.unwrap_or(root).to_owned();
            *remembered.entry((repository, is_index)).or_default() += 1;
        } else if target.starts_with(root) {
            held.push(text);
        } else if text.starts_with("socket:") {
            // Its number says nothing.
            let what = if connections.contains(&text) { CONNECTION } else { "a socket" };
            held.push(what.to_owned());
        }
    }
    let locks = fs::read_to_string("/proc/locks").expect("the locks");
    let own = locks.lines().filter(|line| line.split_whitespace().nth(4) == Some(&pid.to_string()));
    held.extend(own.map(|_| "a lock".to_owned()));
    let many = remembered.iter().filter(|(_, count)| **count > REMEMBERED);
    held.extend(many.map(|((of, _), count)| format!("{count} descriptors of {}", of.display())));
    held.sort();
    held
}

/// How descriptors of a process name the TCP connections of its network; it listens on 127.0.0.1.
fn connections(pid: u32) -> BTreeSet<String> {
    const LISTENS: &str = "0A";
    let table = fs::read_to_string(format!("/proc/{pid}/net/tcp")).expect("the server runs");
    let sockets = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let connected = sockets.filter(|fields| fields[3] != LISTENS);
    connected.map(|fields| format!("socket:[{}]", fields[9])).collect()
}
