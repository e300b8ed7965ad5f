//! Every system call with which a push, a move of a tag, a mount, a delete, a pull and a collection touch
//! the tree fails in turn, with each error number that a machine in trouble gives, once and for good.
//!
//! What was acknowledged is there, what was refused is not, the refusal says why; the tree is sound,
//! nothing half-done lies in it, no descriptor and no lock is left, nobody panicked; and when the
//! cause is gone the same deed succeeds, without a restart.
//!
//! The short form tries 200 faults. They are drawn by a seed, which `STILLAGE_FAULTS_SEED` sets; the
//! long form tries all. `STILLAGE_FAULTS_ONLY=Push:fsync:3:EIO:once` tries those that begin so.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;
use support::Registry;
use support::calls::{Answer, Call, Calls};
use support::content::{Image, OCI_MANIFEST, referrer};
use support::deeds::{Chore, Deed, Kind, Step, Told, Work, is_temporary, walk};
use support::http::Client;

/// So many are tried in the short form.
const DRAWN: usize = 200;

/// So many on one server and one tree: what one leaves would show at the next.
const BATCH: usize = 25;

/// What a machine in trouble says.
const ERRNOS: [(&str, i32); 10] = [
    ("ENOSPC", libc::ENOSPC),
    ("EDQUOT", libc::EDQUOT),
    ("EIO", libc::EIO),
    ("EMLINK", libc::EMLINK),
    ("EXDEV", libc::EXDEV),
    ("EPERM", libc::EPERM),
    ("EROFS", libc::EROFS),
    ("EMFILE", libc::EMFILE),
    ("ENFILE", libc::ENFILE),
    ("ENOMEM", libc::ENOMEM),
];

/// Calls that change nothing fail in fewer ways.
const LOOKS: [&str; 11] = [
    "newfstatat",
    "statx",
    "fstat",
    "fstatfs",
    "read",
    "pread64",
    "getdents64",
    "fgetxattr",
    "lseek",
    "readlinkat",
    "fcntl",
];
const LOOK_ERRNOS: [&str; 4] = ["EIO", "EMFILE", "ENOMEM", "EPERM"];

/// What is going on when it happens.
#[derive(Clone, Copy, Debug)]
enum What {
    Deed(Kind),
    Chore(Chore),
}

/// One call fails, or it and all later ones of its name.
#[derive(Clone, Debug)]
struct Fault {
    what: What,
    call: &'static str,
    nth: usize,
    errno: (&'static str, i32),
    for_good: bool,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Fault { what, call, nth, errno, for_good } = self;
        let what: &dyn std::fmt::Debug = match what {
            What::Deed(kind) => kind,
            What::Chore(chore) => chore,
        };
        let often = if *for_good { "good" } else { "once" };
        write!(f, "{what:?}:{call}:{nth}:{}:{often}", errno.0)
    }
}

#[test]
fn whatever_call_fails_nothing_acknowledged_is_harmed_and_the_server_goes_on() {
    let all = every_fault();
    let seed = seed();
    let faults = match std::env::var("STILLAGE_FAULTS_ONLY") {
        Ok(only) => all.into_iter().filter(|f| f.to_string().starts_with(&only)).collect(),
        Err(_) if support::long() => all,
        Err(_) => draw(all, seed, DRAWN),
    };
    let begun = Instant::now();
    let total = faults.len();
    let next = Mutex::new(faults.chunks(BATCH));
    let tally = Mutex::new(Tally::default());
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let batch = next.lock().expect("nobody panics with it").next();
                    let Some(batch) = batch else { return };
                    try_batch(batch, &tally);
                }
            });
        }
    });
    let tally = tally.into_inner().expect("nobody panics with it");
    let Tally { hit, missed, failed } = &tally;
    let which = if support::long() { "all".to_owned() } else { format!("seed {seed}") };
    support::measured(format!(
        "{hit} faults of {total} ({which}): {} lies, leaks or panics, {missed} not met, {} s",
        failed.len(),
        begun.elapsed().as_secs()
    ));
    assert!(failed.is_empty(), "seed {seed}:\n{}", failed.join("\n"));
    // Directories of the pool that are there already are not made again: a few calls do not come.
    assert!(*missed * 10 <= total, "{missed} of {total} were never met");
}

#[derive(Default)]
struct Tally {
    hit: usize,
    missed: usize,
    failed: Vec<String>,
}

fn try_batch(faults: &[Fault], tally: &Mutex<Tally>) {
    let mut stage = Stage::new();
    for fault in faults {
        let tried = catch_unwind(AssertUnwindSafe(|| stage.try_fault(fault)));
        let mut tally = tally.lock().expect("nobody panics with it");
        match tried {
            Ok(true) => tally.hit += 1,
            Ok(false) => tally.missed += 1,
            Err(cause) => {
                let cause = cause.downcast::<String>().map_or_else(|_| String::new(), |text| *text);
                eprintln!("{fault}: {cause}\n{}", stage.registry.stderr());
                tally.failed.push(format!("{fault}: {cause}"));
                drop(tally);
                stage.registry.expect_damage();
                stage.calls.done();
                stage = Stage::new();
            }
        }
    }
}

/// The calls of each deed, as they are made when nothing fails.
fn every_fault() -> Vec<Fault> {
    let mut stage = Stage::new();
    let mut faults = Vec::new();
    let deeds = Kind::ALL.map(What::Deed);
    for what in deeds.into_iter().chain(Chore::ALL.map(What::Chore)) {
        match what {
            What::Deed(kind) => {
                let deed = stage.deed(kind);
                stage.calls.record();
                let told = deed.perform(&stage.client, &|| 0);
                assert!(told.all_good(), "{kind:?}");
            }
            What::Chore(chore) => {
                let work = stage.work(chore);
                stage.calls.record();
                assert_eq!(stage.run(&work).0, Some(0), "{chore:?}");
            }
        }
        let mut counts: BTreeMap<&'static str, usize> = BTreeMap::new();
        for (call, _) in stage.calls.done() {
            // Whoever is not let in waits: that has its own test.
            if call.name != "accept4" {
                *counts.entry(call.name).or_default() += 1;
            }
        }
        for (call, count) in counts {
            for nth in 1..=count {
                for errno in ERRNOS {
                    if LOOKS.contains(&call) && !LOOK_ERRNOS.contains(&errno.0) {
                        continue;
                    }
                    for for_good in [false, true] {
                        faults.push(Fault { what, call, nth, errno, for_good });
                    }
                }
            }
        }
    }
    faults
}

/// A few of all, the same for the same seed.
fn draw(mut all: Vec<Fault>, seed: u64, count: usize) -> Vec<Fault> {
    let mut state = seed | 1;
    for at in 0..count.min(all.len()) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let left = u64::try_from(all.len() - at).expect("a few");
        let other = at + usize::try_from(state % left).expect("a few");
        all.swap(at, other);
    }
    all.truncate(count);
    all
}

fn seed() -> u64 {
    match std::env::var("STILLAGE_FAULTS_SEED") {
        Ok(seed) => seed.parse().expect("STILLAGE_FAULTS_SEED is a number"),
        Err(_) => u64::from(std::process::id()) * 7919,
    }
}

/// A server whose calls are held, and its tree.
struct Stage {
    calls: Calls,
    registry: Registry,
    client: Client,
    base: Image,
    number: usize,
    /// What the server has open when it rests.
    rest: Vec<String>,
    _room: tempfile::TempDir,
}

impl Stage {
    fn new() -> Stage {
        let room = tempfile::Builder::new().prefix("stillage-faults-").tempdir().expect("a room");
        let root = room.path().join("registry");
        let calls = Calls::on(&root);
        let registry = Registry::start_held(&calls, &root, &["--auth", "none"]);
        let client = registry.client();
        let base = Image::random(100_000);
        client.push_image("base", "t", &base);
        client.push_blob("base", b"{}");
        let signature = referrer(&base.digest, base.manifest.len(), "application/dsse");
        let by = support::content::sha256(&signature);
        client.put_manifest("base", &by, OCI_MANIFEST, &signature).expect_status(201);
        client.push_image("moving", "t", &Image::random(10));
        // What is read once is remembered.
        Deed::new(Kind::Pull, 0, &client, &base).repeat(&client);
        let mut stage =
            Stage { calls, registry, client, base, number: 0, rest: Vec::new(), _room: room };
        stage.rest = stage.at_rest();
        stage
    }

    fn deed(&mut self, kind: Kind) -> Deed {
        self.number += 1;
        Deed::new(kind, self.number, &self.client, &self.base)
    }

    fn work(&mut self, chore: Chore) -> Work {
        self.number += 1;
        Work::new(chore, self.number, &self.client)
    }

    /// A chore's command; how it ended and what it said.
    fn run(&self, work: &Work) -> (Option<i32>, String) {
        let mut command = work.command(self.registry.root());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = self.calls.spawn(&mut command).expect("the command starts");
        let output = child.wait_with_output().expect("the command ends");
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&said).into_owned())
    }

    /// From now on the fault happens.
    fn arm(&self, fault: &Fault) {
        let Fault { call, nth, errno, for_good, .. } = fault.clone();
        self.calls.rule(move |met: &Call| match met.name == call {
            true if met.nth == nth || for_good && met.nth > nth => Answer::Fail(errno.1),
            _ => Answer::Go,
        });
    }

    /// Whether the fault was met.
    fn try_fault(&mut self, fault: &Fault) -> bool {
        match fault.what {
            What::Deed(kind) => self.try_deed(kind, fault),
            What::Chore(chore) => self.try_chore(chore, fault),
        }
    }

    fn try_chore(&mut self, chore: Chore, fault: &Fault) -> bool {
        let work = self.work(chore);
        self.arm(fault);
        let (code, said) = self.run(&work);
        let met = self.calls.done().iter().any(|(_, answer)| *answer != Answer::Go);
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

    fn try_deed(&mut self, kind: Kind, fault: &Fault) -> bool {
        let Fault { errno, for_good, .. } = fault.clone();
        let deed = self.deed(kind);
        self.arm(fault);
        let mark = || self.calls.count();
        let told = deed.perform(&self.client, &mark);
        let seen = self.calls.done();
        let met = seen.iter().any(|(_, answer)| *answer != Answer::Go);

        assert_refusals_say_why(&told, errno);
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
            let opens = call.name == "openat2" || for_good;
            let removes = call.name == "unlinkat" || opens && call.path.starts_with(&uploads);
            removes && matches!(answer, Answer::Fail(_))
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

    /// What the server holds when nobody asks it anything: nothing changes for a while.
    fn at_rest(&self) -> Vec<String> {
        let mut last = Vec::new();
        loop {
            let now = held(self.registry.pid(), self.registry.root());
            if now == last {
                return now;
            }
            last = now;
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// The same, once it is no more than it was; after ten seconds whatever it is.
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
fn assert_refusals_say_why(told: &Told<'_>, errno: (&str, i32)) {
    for step in told.steps.iter().filter(|step| !step.good) {
        let Some(answer) = &step.answer else {
            // The head of the answer was sent already.
            assert!(matches!(step.name, "blob"), "{}: no answer", step.name);
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
    for step in told.steps.iter().filter(|step| step.good && !step.name.starts_with("mount")) {
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
fn assert_no_second_sync(first: &[(Call, Answer)], second: &[(Call, Answer)]) {
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
            ("write" | "pwrite64" | "ftruncate", Answer::Go) => {
                failed.remove(&inode);
            }
            _ => {}
        }
    }
}

/// Open files beneath `root`, sockets, and locks, of a process. Directories of repositories and their
/// index.json are remembered open, a few hundred at most.
fn held(pid: u32, root: &Path) -> Vec<String> {
    let mut held = Vec::new();
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).expect("the server runs");
    for target in fds.flatten().filter_map(|fd| fs::read_link(fd.path()).ok()) {
        let text = target.to_string_lossy().into_owned();
        let is_index = text.trim_end_matches(" (deleted)").ends_with("/index.json")
            || text.contains("/.index.json.");
        let is_repository =
            target.is_dir() && !text.contains("/.stillage/") && !text.contains("/blobs");
        if target.starts_with(root) && !is_index && !is_repository {
            held.push(text);
        } else if text.starts_with("socket:") {
            // Its number says nothing.
            held.push("a socket".to_owned());
        }
    }
    let locks = fs::read_to_string("/proc/locks").expect("the locks");
    let own = locks.lines().filter(|line| line.split_whitespace().nth(4) == Some(&pid.to_string()));
    held.extend(own.map(|_| "a lock".to_owned()));
    held.sort();
    held
}
