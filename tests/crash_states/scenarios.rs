//! What is done to a tree, on purpose so that each sync in the code is needed by one of them.

use stillage::layout::path;
use stillage::oci::Algorithm;

use super::Run;
use super::deeds::{Deed, Image, OLD, Way, World};
use super::promises::Effect;
use super::record::Step;

/// Something that is done, recorded.
pub struct Scenario {
    pub name: String,
    pub run: Run,
    /// The step from which on states are looked at: what was before is another scenario's.
    pub from: usize,
    /// The step from which on syncs are left out.
    pub first: usize,
}

/// Records scenarios, in whatever thread.
pub type Job = Box<dyn FnOnce() -> Vec<Scenario> + Send>;

pub fn room() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("stillage-crash-").tempdir_in("/dev/shm").expect("a directory")
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Records some deeds on a new tree, or on an old one.
pub fn scenario<F: AsyncFnOnce(&mut World)>(
    name: impl Into<String>,
    old: bool,
    deeds: F,
) -> Scenario {
    let room = room();
    let run = runtime().block_on(async {
        let mut world =
            if old { World::old(room.path(), true).await } else { World::new(room.path(), true) };
        deeds(&mut world).await;
        Run::of(&world)
    });
    let from = run.steps.iter().rposition(|step| matches!(step, Step::Settled)).unwrap_or(0);
    Scenario { name: name.into(), run, from, first: from }
}

impl Scenario {
    /// States are looked at after the last acknowledgement only: what another tool is doing is its own
    /// business until then.
    fn at_the_end(mut self) -> Scenario {
        self.from = self.run.steps.len();
        self
    }

    /// Only what comes from the first sync in a function on is looked at.
    fn since_sync(mut self, function: &str) -> Scenario {
        let is = |step: &Step| step.place().is_some_and(|at| at.functions.starts_with(function));
        self.from = self.run.steps.iter().position(is).expect("such a sync");
        self.first = self.from;
        self
    }

    /// Only the last deed is looked at, and what is left out, that one left out.
    pub fn of_the_last_deed(mut self) -> Scenario {
        self.from = self.run.last();
        self.first = self.from;
        self
    }
}

pub fn job(make: impl FnOnce() -> Scenario + Send + 'static) -> Job {
    Box::new(|| vec![make()])
}

/// Pushes whose commits gather: whether all come in time is the machine's business, so it is tried
/// until they do.
fn three_in_one_commit() -> Scenario {
    let is_commit = |step: &&Step| matches!(step, Step::Rename { new, .. } if new == path::INDEX);
    let mut tries = (0..50)
        .map(|_| scenario("three pushes in one commit", true, async |world| world.group(3).await));
    let one =
        tries.find(|tried| tried.run.steps[tried.from..].iter().filter(is_commit).count() == 1);
    one.expect("three pushes that waited for one lock")
}

/// All but the repairs.
pub fn all() -> Vec<Job> {
    let mut all = vec![
        job(|| {
            scenario("the first push to a new tree", false, async |world| {
                world.push("first", "t").await.expect("a push");
            })
        }),
        job(|| scenario("the key that signs tokens", false, async |world| world.key())),
        job(|| scenario("the server's own certificate", false, async |world| world.certificate())),
        job(|| {
            scenario("the first sha512 in a repository", true, async |world| {
                world.put_image(OLD, "long", &long(), Way::Sha512).await.expect("a push");
            })
        }),
        job(|| {
            scenario("a file system without links", true, async |world| {
                world.recorder.without_links();
                world.push(OLD, "copied").await.expect("a push");
            })
        }),
        job(three_in_one_commit),
        Box::new(|| killed(OLD)),
        Box::new(|| killed("new/deep")),
    ];
    let deed = |deed: Deed| {
        job(move || {
            scenario(format!("{deed:?}"), true, async |world| {
                world.deed(deed).await.expect("possible").expect("done");
            })
        })
    };
    all.extend(Deed::ALL.map(deed));
    all.extend(beside_others());
    all.extend(collected());
    all
}

/// Another tool has a hand in it.
fn beside_others() -> Vec<Job> {
    let adopted = |mode: u32| {
        job(move || {
            let name = format!("blobs that another tool put there with mode {mode:o}");
            scenario(name, true, async |world| {
                world.outsiders_blobs(OLD, &theirs(), mode);
                world.put_image(OLD, "theirs", &theirs(), Way::ManifestOnly).await.expect("a push");
            })
        })
    };
    vec![
        adopted(0o644),
        adopted(0o444),
        job(|| {
            let dropped =
                scenario("a layout that another tool has dropped in", true, async |world| {
                    world.outsiders_layout("dropped", "theirs", &theirs());
                    world
                        .put_image("dropped", "theirs", &theirs(), Way::Whole)
                        .await
                        .expect("a push");
                });
            dropped.at_the_end()
        }),
        job(|| {
            let name = "a push after another tool emptied a repository and took its blobs away";
            let after = scenario(name, true, async |world| {
                world.outsider_empties(OLD);
                world.outsider_takes_blobs(OLD);
                world.recorder.settle();
                world.push(OLD, "after").await.expect("a push");
            });
            after.of_the_last_deed()
        }),
        job(|| {
            let put_back = scenario("a tag that another tool gave", true, async |world| {
                world.put_image(OLD, "theirs", &theirs(), Way::Whole).await.expect("a push");
                world.recorder.settle();
                world.outsiders_tag(OLD, "more", &theirs());
                world.put_image(OLD, "more", &theirs(), Way::ManifestOnly).await.expect("a push");
            });
            put_back.at_the_end()
        }),
        job(|| {
            scenario("DELETE of what is a directory", true, async |world| {
                let bytes = b"no blob";
                let place = world.outsiders_no_blob(OLD, bytes);
                world.recorder.settle();
                let deed = world.begin(Effect::Lies(place));
                world.delete(OLD, bytes).await.expect_err("it is no blob");
                world.recorder.acknowledge(deed);
            })
        }),
    ]
}

/// Something goes, at last.
fn collected() -> Vec<Job> {
    let layer = || Image::numbered(0).layer;
    vec![
        job(|| scenario("a collection", true, async |world| world.collect())),
        job(|| removed("a collection", async |world| world.collect())),
        job(move || {
            removed("DELETE of a layer", async |world| {
                world.unlink(OLD, &layer()).await.expect("nothing refers to it");
            })
        }),
        job(|| {
            let name = "a collection after another tool emptied a repository";
            let after = scenario(name, true, async |world| {
                world.outsider_empties(OLD);
                world.collect();
            });
            after.at_the_end()
        }),
        job(move || {
            let name = "DELETE of a layer after another tool emptied a repository";
            let after = scenario(name, true, async |world| {
                world.outsider_empties(OLD);
                world.unlink(OLD, &layer()).await.expect("nothing refers to it");
            });
            after.at_the_end()
        }),
        job(|| {
            let name = "a collection of a long journal, and a push";
            let long = scenario(name, true, async |world| {
                world.outsiders_lines(OLD, 16 << 20);
                world.recorder.settle();
                world.collect();
                world.push(OLD, "after").await.expect("a push");
            });
            // Until then the model lets it be at neither of its names.
            long.since_sync("layout/journal::rotate")
        }),
    ]
}

/// A process is killed when it has taken a manifest out and not synced that yet, and another one does
/// something that relies on it.
fn removed<F: AsyncFnOnce(&mut World)>(name: &str, then: F) -> Scenario {
    let mut last = 0;
    scenario("", true, async |world| {
        let begin = world.recorder.done();
        world.deed(Deed::Remove).await.expect("possible").expect("done");
        last = world.recorder.syncs().last().expect("a sync") - begin;
    });
    scenario(format!("{name} after a removal that was killed"), true, async |world| {
        world.recorder.die_after(last);
        world.deed(Deed::Remove).await.expect("possible").expect_err("the process is dead");
        world.restart();
        then(world).await;
    })
}

/// A process is killed right before each sync of a push, and another does the push again.
fn killed(to: &'static str) -> Vec<Scenario> {
    let push = async |world: &mut World| world.put(to, "killed", 9, Way::Whole).await;
    let mut before = Vec::new();
    scenario("", true, async |world| {
        let begin = world.recorder.done();
        push(world).await.expect("a push");
        let syncs = world.recorder.syncs().into_iter().filter(|at| *at >= begin);
        before.extend(syncs.map(|at| at - begin));
    });
    let again = before.into_iter().map(|after| {
        let name = format!("a push to {to} that was killed after {after} steps, again");
        let again = scenario(name, true, async |world| {
            world.recorder.die_after(after);
            // After the last sync but the facts' the push may well be acknowledged still.
            let _ = push(world).await;
            world.restart();
            push(world).await.expect("a push");
        });
        again.of_the_last_deed()
    });
    again.collect()
}

/// An image that another tool has.
fn theirs() -> Image {
    Image::of(br#"{"theirs":true}"#.to_vec(), b"their layer".to_vec(), Algorithm::Sha256)
}

/// An image whose blobs are named by sha512.
pub fn long() -> Image {
    Image::of(b"{}".to_vec(), b"a layer".to_vec(), Algorithm::Sha512)
}

/// A path in the old repository.
pub fn of_old(path: &str) -> String {
    format!("{OLD}/{path}")
}

/// The index.json of the old repository.
pub fn old_index() -> String {
    of_old(path::INDEX)
}
