//! `kill -9` right before every system call with which a push, a move of a tag, a mount, a delete, a
//! collection and a repair touch the tree, one after the other.
//!
//! The tree is sound, what was acknowledged is there, of what was not nothing half-done is seen; and
//! the restarted server takes the same deed again. A repair has lost nothing of content and made
//! nothing worse, and the next one ends as if there had been no kill. The short form stops before
//! those calls that change something, the long form before all, or with `STILLAGE_TEST_PART=2/4`
//! before the second quarter of them.

mod layouts;
mod mending;
mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use mending::{Damage, Patient};
use support::calls::{Answer, Call, Calls, Often, Site, makes, sites};
use support::content::{Image, OCI_MANIFEST, referrer, sha256};
use support::deeds::{Chore, Deed, Kind, Work, is_temporary, walk};
use support::random::Random;
use support::{Registry, STILLAGE};

/// What can be told apart after a crash.
const CHANGES: [&str; 21] = [
    "openat",
    "openat2",
    "mkdirat",
    "linkat",
    "renameat",
    "renameat2",
    "unlinkat",
    "symlinkat",
    "write",
    "pwrite64",
    "writev",
    "ftruncate",
    "fchmod",
    "fchmodat",
    "fchown",
    "fchownat",
    "utimensat",
    "fsetxattr",
    "fremovexattr",
    "fallocate",
    "ioctl",
];

/// Kills on one tree: it grows.
const PER_TREE: usize = 40;

/// So many repairs at a time: most of each is waiting for the tree to come to rest.
const REPAIRS: usize = 8;

#[test]
fn a_push_killed_at_any_call_leaves_nothing_and_is_taken_again() {
    kill_everywhere(&[Kind::Push, Kind::Retag]);
}

#[test]
fn a_mount_or_a_delete_killed_at_any_call_leaves_nothing_and_is_taken_again() {
    kill_everywhere(&[Kind::Mount, Kind::Delete]);
}

#[test]
fn a_collection_killed_at_any_call_takes_nothing_that_is_needed_and_is_done_again() {
    let total = AtomicUsize::new(0);
    let tally = in_turn(&Chore::ALL, 1, Chore::ALL.len(), |chores| {
        let chore = chores[0];
        let (mut stage, mut tally) = (Stage::new(), Tally::default());
        // The first one of a tree has more to do than all that follow.
        let work = stage.work(chore);
        assert!(stage.run(&work).success(), "{chore:?}");
        let work = stage.work(chore);
        stage.calls.record();
        assert!(stage.run(&work).success(), "{chore:?}");
        let points = support::part(points(&sites(&stage.calls.done())));
        total.fetch_add(points.len(), Ordering::Relaxed);
        points.iter().for_each(|site| tally.count(stage.kill_chore(chore, site)));
        assert_leftovers_are_swept(stage.registry.root());
        tally
    });
    tally.tell(&format!("{:?}", Chore::ALL), total.into_inner());
}

#[test]
fn a_repair_killed_at_any_call_makes_nothing_worse_and_is_done_again() {
    let all = Damage::ALL
        .into_iter()
        .flat_map(|damage| points(damage.sites()).into_iter().map(move |site| (damage, site)));
    // The short form leaves three of four to the long one, other ones each time.
    let every = if support::long() { 1 } else { 4 };
    let begin = Random::from_env("STILLAGE_KILLS_SEED").below(every);
    let points = support::part(all.skip(begin).step_by(every).collect());
    let tally = in_turn(&points, 1, REPAIRS, |points| {
        let mut tally = Tally::default();
        points.iter().for_each(|(damage, site)| tally.count(kill_repair(*damage, site)));
        tally
    });
    tally.tell("repairs", points.len());
}

/// Whether the repair came to the point.
fn kill_repair(damage: Damage, site: &Site) -> bool {
    let _point = Told(format!("{damage:?}"), site);
    let patient = Patient::new(damage);
    patient.calls.answer_at(site, Answer::Kill, Often::Once);
    let ended = patient.repair();
    let killed = was_killed(&patient.calls.done());
    assert_eq!(ended.code.is_none(), killed, "{:?}: {}", ended.code, ended.said);
    patient.assert_no_worse(&ended);
    patient.assert_mends(None);
    assert_leftovers_are_swept(patient.root());
    killed
}

fn kill_everywhere(kinds: &[Kind]) {
    let mut all: Vec<(Kind, Site)> = Vec::new();
    for kind in kinds {
        let mut stage = Stage::new();
        let deed = stage.deed(*kind);
        stage.calls.record();
        let client = stage.registry.client();
        assert!(deed.perform(&client, &|| 0).all_good(), "{kind:?}");
        let seen = sites(&stage.calls.done());
        all.extend(points(&seen).into_iter().map(|point| (*kind, point)));
    }
    let points = support::part(all);
    let tally = in_turn(&points, PER_TREE, 2, |batch| {
        let (mut stage, mut tally) = (Stage::new(), Tally::default());
        batch.iter().for_each(|(kind, site)| tally.count(stage.kill_at(*kind, site)));
        assert_leftovers_are_swept(stage.registry.root());
        tally
    });
    tally.tell(&format!("{kinds:?}"), points.len());
}

/// Does something with all of a list, so many at a time and by so many threads.
fn in_turn<T: Sync>(
    all: &[T],
    size: usize,
    threads: usize,
    deed: impl Fn(&[T]) -> Tally + Sync,
) -> Tally {
    let next = Mutex::new(all.chunks(size));
    let whole = Mutex::new(Tally::default());
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let batch = next.lock().expect("nobody panics with it").next();
                    let Some(batch) = batch else { return };
                    let tally = deed(batch);
                    let mut whole = whole.lock().expect("nobody panics with it");
                    whole.killed += tally.killed;
                    whole.missed += tally.missed;
                }
            });
        }
    });
    whole.into_inner().expect("nobody panics with it")
}

struct Tally {
    begun: Instant,
    killed: usize,
    missed: usize,
}

impl Default for Tally {
    fn default() -> Tally {
        Tally { begun: Instant::now(), killed: 0, missed: 0 }
    }
}

impl Tally {
    fn count(&mut self, killed: bool) {
        *if killed { &mut self.killed } else { &mut self.missed } += 1;
    }

    fn tell(self, of: &str, total: usize) {
        let Tally { begun, killed, missed } = self;
        support::measured(format!(
            "{killed} kills before calls of {of}: nothing lost ({missed} not met, {} s)",
            begun.elapsed().as_secs()
        ));
        // Directories of the room that are there already are not made again.
        assert!(killed > 0 && missed * 5 <= total, "{missed} of {total} were never met");
    }
}

/// The calls before which a kill can make a difference.
fn points(seen: &[(Site, Call)]) -> Vec<Site> {
    let counts = |(site, call): &&(Site, Call)| {
        // Of the opens only those that make a file change something.
        let opens = site.call.starts_with("openat") && !makes(call);
        let changes = CHANGES.contains(&site.call) && !opens;
        site.call != "accept4" && (support::long() || changes)
    };
    seen.iter().filter(counts).map(|(site, _)| site.clone()).collect()
}

fn was_killed(seen: &[(Call, Answer)]) -> bool {
    seen.iter().any(|(_, answer)| *answer == Answer::Kill)
}

/// What kills left goes once it is as old as anything that somebody may still be writing.
fn assert_leftovers_are_swept(root: &Path) {
    let leftovers = || {
        let mut left = Vec::new();
        walk(root, &mut left);
        left.retain(|path| is_temporary(path));
        left
    };
    // As old as a second has to be, by the time of its last link as well, which nobody can set.
    let end = Instant::now() + Duration::from_secs(20);
    while !leftovers().is_empty() && Instant::now() < end {
        let mut gc = Command::new(STILLAGE);
        let done = gc.arg("gc").arg(root).args(["--upload-expiry", "1s"]).output();
        let done = done.expect("a collection");
        assert!(done.status.success(), "{done:?}");
    }
    assert_eq!(leftovers(), Vec::<PathBuf>::new(), "what a kill leaves is swept");
}

struct Stage {
    calls: Calls,
    registry: Registry,
    base: Image,
    number: usize,
    _room: tempfile::TempDir,
}

impl Stage {
    fn new() -> Stage {
        let room = tempfile::Builder::new().prefix("stillage-kills-").tempdir().expect("a room");
        let root = room.path().join("registry");
        let calls = Calls::on(&root);
        let registry = Registry::start_held(&calls, &root, &["--auth", "none"]);
        let client = registry.client();
        let base = Image::random(10_000);
        client.push_image("base", "t", &base);
        client.push_blob("base", b"{}");
        let signature = referrer(&base.digest, base.manifest.len(), "application/dsse");
        let by = sha256(&signature);
        client.put_manifest("base", &by, OCI_MANIFEST, &signature).expect_status(201);
        Stage { calls, registry, base, number: 0, _room: room }
    }

    fn deed(&mut self, kind: Kind) -> Deed {
        self.number += 1;
        Deed::new(kind, self.number, &self.registry.client(), &self.base)
    }

    fn work(&mut self, chore: Chore) -> Work {
        self.number += 1;
        Work::new(chore, self.number, &self.registry.client())
    }

    fn run(&self, work: &Work) -> ExitStatus {
        let mut command = work.command(self.registry.root());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = self.calls.spawn(&mut command).expect("the command starts");
        child.wait().expect("the command ends")
    }

    /// Whether the command came to the point. The server goes on beside it.
    fn kill_chore(&mut self, chore: Chore, site: &Site) -> bool {
        let _point = Told(format!("{chore:?}"), site);
        let work = self.work(chore);
        self.calls.answer_at(site, Answer::Kill, Often::Once);
        let ended = self.run(&work);
        let killed = was_killed(&self.calls.done());
        assert_eq!(ended.code().is_none(), killed, "{ended}");
        self.registry.assert_sound();
        let client = self.registry.client();
        work.judge(&client, self.registry.root(), false);
        client.assert_pulls("base", "t", &self.base);
        assert!(self.run(&work).success(), "again");
        work.judge(&client, self.registry.root(), true);
        killed
    }

    /// Whether the server came to the point.
    fn kill_at(&mut self, kind: Kind, site: &Site) -> bool {
        let _point = Told(format!("{kind:?}"), site);
        let deed = self.deed(kind);
        self.calls.answer_at(site, Answer::Kill, Often::Once);
        let client = self.registry.client();
        let told = deed.perform(&client, &|| 0);
        let killed = was_killed(&self.calls.done());
        let refused = told.steps.iter().filter(|step| !step.good);
        for step in refused.clone() {
            assert!(step.answer.is_none(), "{}: {:?}", step.name, step.answer);
        }
        assert_eq!(killed, refused.count() == 1, "one request is cut off by a kill");
        if killed {
            self.registry.kill9();
            self.registry.run();
        }
        let client = self.registry.client();
        self.registry.assert_sound();
        // Of the request that was cut off nobody knows whether it was done.
        deed.judge(&client, &told, &|_| true);
        client.assert_pulls("base", "t", &self.base);
        deed.repeat(&client);
        killed
    }
}

/// Says at which point a test failed.
struct Told<'a>(String, &'a Site);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{} killed at {}", self.0, self.1);
        }
    }
}
