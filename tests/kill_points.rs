//! `kill -9` right before every system call with which a push, a move of a tag, a mount, a delete and a
//! collection touch the tree, one after the other.
//!
//! The tree is sound, what was acknowledged is there, of what was not nothing half-done is seen; and
//! the restarted server takes the same deed again. The short form stops before those calls that
//! change something, the long form before all.

mod support;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use support::Registry;
use support::calls::{Answer, Call, Calls};
use support::content::{Image, OCI_MANIFEST, referrer, sha256};
use support::deeds::{Chore, Deed, Kind, Work, is_temporary, walk};

/// What can be told apart after a crash.
const CHANGES: [&str; 15] = [
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
    "ftruncate",
    "fchmod",
    "fchown",
    "fsetxattr",
    "fallocate",
];

/// Kills on one tree: it grows.
const PER_TREE: usize = 40;

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
    let mut tally = [0; 2];
    let begun = Instant::now();
    for chore in Chore::ALL {
        let mut stage = Stage::new();
        let work = stage.work(chore);
        stage.calls.record();
        assert!(stage.run(&work).success(), "{chore:?}");
        for point in points(&stage.calls.done()) {
            tally[usize::from(stage.kill_chore(chore, &point))] += 1;
        }
        stage.assert_leftovers_are_swept(&work);
    }
    let [missed, killed] = tally;
    support::measured(format!(
        "{killed} kills before calls of {:?}: nothing lost ({missed} not met, {} s)",
        Chore::ALL,
        begun.elapsed().as_secs()
    ));
    assert!(killed > 20 && missed * 5 <= killed, "{missed} of {killed} were never met");
}

fn kill_everywhere(kinds: &[Kind]) {
    let mut points: Vec<(Kind, Point)> = Vec::new();
    for kind in kinds {
        let mut stage = Stage::new();
        let deed = stage.deed(*kind);
        stage.calls.record();
        let client = stage.registry.client();
        assert!(deed.perform(&client, &|| 0).all_good(), "{kind:?}");
        points.extend(self::points(&stage.calls.done()).into_iter().map(|point| (*kind, point)));
    }
    let begun = Instant::now();
    let next = Mutex::new(points.chunks(PER_TREE));
    let counts = Mutex::new([0; 2]);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let batch = next.lock().expect("nobody panics with it").next();
                    let Some(batch) = batch else { return };
                    let mut stage = Stage::new();
                    for (kind, point) in batch {
                        let killed = stage.kill_at(*kind, point);
                        counts.lock().expect("nobody panics with it")[usize::from(killed)] += 1;
                    }
                }
            });
        }
    });
    let [missed, killed] = counts.into_inner().expect("nobody panics with it");
    support::measured(format!(
        "{killed} kills before calls of {kinds:?}: nothing lost ({missed} not met, {} s)",
        begun.elapsed().as_secs()
    ));
    // Directories of the room that are there already are not made again.
    assert!(missed * 5 <= points.len(), "{missed} of {} were never met", points.len());
}

/// Right before the n-th call of a name.
#[derive(Clone, Debug)]
struct Point {
    call: &'static str,
    nth: usize,
}

/// The calls that were seen, before which a kill can make a difference.
fn points(seen: &[(Call, Answer)]) -> Vec<Point> {
    let mut counts: BTreeMap<&'static str, usize> = BTreeMap::new();
    let mut points = Vec::new();
    for (call, _) in seen {
        let nth = counts.entry(call.name).or_default();
        *nth += 1;
        // Of the opens only those that make a file change something.
        let opens = call.name.starts_with("openat") && !makes(call);
        if call.name != "accept4" && (support::long() || CHANGES.contains(&call.name) && !opens) {
            points.push(Point { call: call.name, nth: *nth });
        }
    }
    points
}

fn makes(call: &Call) -> bool {
    let name = call.path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with('.') || name.ends_with(".jsonl") || name == "data" || name == "owner"
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

    fn arm(&self, point: &Point) {
        let Point { call, nth } = point.clone();
        self.calls.rule(move |met: &Call| match met.name == call && met.nth == nth {
            true => Answer::Kill,
            false => Answer::Go,
        });
    }

    /// Whether the command came to the point. The server goes on beside it.
    fn kill_chore(&mut self, chore: Chore, point: &Point) -> bool {
        let _point = Told(point);
        let work = self.work(chore);
        self.arm(point);
        let ended = self.run(&work);
        let killed = self.calls.done().iter().any(|(_, answer)| *answer == Answer::Kill);
        assert_eq!(ended.code().is_none(), killed, "{ended}");
        self.registry.assert_sound();
        let client = self.registry.client();
        work.judge(&client, self.registry.root(), false);
        client.assert_pulls("base", "t", &self.base);
        assert!(self.run(&work).success(), "again");
        work.judge(&client, self.registry.root(), true);
        killed
    }

    /// What kills left goes once it is as old as anything that somebody may still be writing.
    fn assert_leftovers_are_swept(&self, work: &Work) {
        let leftovers = || {
            let mut left = Vec::new();
            walk(self.registry.root(), &mut left);
            left.retain(|path| is_temporary(path));
            left
        };
        self.calls.rule(|_| Answer::Go);
        // As old as a second has to be, by the time of its last link as well, which nobody can set.
        let end = Instant::now() + Duration::from_secs(20);
        while !leftovers().is_empty() && Instant::now() < end {
            let mut gc = work.command(self.registry.root());
            let done = gc.args(["--upload-expiry", "1s"]).output().expect("a collection");
            assert!(done.status.success(), "{done:?}");
        }
        assert_eq!(leftovers(), Vec::<PathBuf>::new(), "what a kill leaves is swept");
    }

    /// Whether the server came to the point.
    fn kill_at(&mut self, kind: Kind, point: &Point) -> bool {
        // Says at which point a test failed.
        let _point = Told(point);
        let deed = self.deed(kind);
        self.arm(point);
        let client = self.registry.client();
        let told = deed.perform(&client, &|| 0);
        let killed = self.calls.done().iter().any(|(_, answer)| *answer == Answer::Kill);
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

struct Told<'a>(&'a Point);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("killed at {:?}", self.0);
        }
    }
}
