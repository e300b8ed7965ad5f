//! Crashes at every step: each state of the files that a crash may leave is sound, has all that was
//! acknowledged, and the registry goes on from it.
//!
//! What a file system may do is in `crash_states/model.rs`. `STILLAGE_CRASH_SEED` replays what was
//! drawn.

mod crash_states;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crash_states::deeds::{Deed, Image, OLD, Way, World};
use crash_states::judge::Effect;
use crash_states::record::{Place, Step};
use crash_states::{Counts, Explorer, Run};
use stillage::oci::Algorithm;
use support::random::Random;

const SEED: &str = "STILLAGE_CRASH_SEED";

/// More combinations than this, of one moment, are drawn.
const MOST: [usize; 2] = [2_000, 200];

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn room() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("stillage-crash-").tempdir_in("/dev/shm").expect("a directory")
}

/// Does deeds one after the other on a tree with an old repository. `None` if one of them cannot be.
fn record(deeds: &[Deed], places: bool) -> Option<Run> {
    let room = room();
    runtime().block_on(async {
        let mut world = World::old(room.path(), places).await;
        for deed in deeds {
            world
                .deed(*deed)
                .await?
                .unwrap_or_else(|error| panic!("{deed:?} of {deeds:?}: {error}"));
        }
        Some(Run::of(&world))
    })
}

/// All sequences of deeds of these lengths.
fn sequences(lengths: std::ops::RangeInclusive<usize>) -> Vec<Vec<Deed>> {
    let mut found = vec![Vec::new()];
    let mut all = Vec::new();
    for length in 1..=*lengths.end() {
        let longer = |begin: &Vec<Deed>| {
            let begin = begin.clone();
            Deed::ALL.into_iter().map(move |deed| [begin.as_slice(), &[deed]].concat())
        };
        found = found.iter().flat_map(longer).collect();
        if lengths.contains(&length) {
            all.extend(found.clone());
        }
    }
    all
}

/// CrashMonkey's way: every sequence of up to three deeds, with a crash at every step of the last.
#[test]
fn every_state_after_every_sequence_of_up_to_three_deeds_is_sound() {
    let mut random = Random::from_env(SEED);
    let mut sequences = sequences(1..=3);
    // The longest last, so that the simplest one that fails is told.
    let total = sequences.len();
    if !support::long() {
        let mut drawn = sequences.split_off(13 + 169);
        while drawn.len() > 100 {
            drawn.swap_remove(random.below(drawn.len()));
        }
        sequences.extend(drawn);
    }
    let next = AtomicUsize::new(0);
    let sums = Mutex::new((Counts::default(), 0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let random = random.fork();
            scope.spawn(|| {
                let mut explorer = Explorer::new(random, MOST, 2_000);
                let mut done = 0;
                while let Some(deeds) = sequences.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let Some(run) = record(deeds, false) else { continue };
                    if let Some(bad) = explorer.explore(&run, run.last(), None) {
                        panic!("{deeds:?}: {}", bad.describe(&run));
                    }
                    done += 1;
                }
                let mut sums = sums.lock().expect("the sums");
                sums.0 += explorer.counts;
                sums.1 += done;
            });
        }
    });
    let (counts, done) = sums.into_inner().expect("the sums");
    support::measured(format!("crashes during {done} of {total} sequences of deeds: {counts}"));
    assert!(counts.states > 10_000, "{counts}");
}

/// What is done to a tree, on purpose so that each sync in the code is needed by one of them.
struct Scenario {
    name: String,
    run: Run,
    /// The step from which on states are looked at: what was before is another scenario's.
    from: usize,
}

fn scenario<F: AsyncFnOnce(&mut World)>(name: impl Into<String>, old: bool, deeds: F) -> Scenario {
    let room = room();
    let run = runtime().block_on(async {
        let mut world =
            if old { World::old(room.path(), true).await } else { World::new(room.path(), true) };
        deeds(&mut world).await;
        Run::of(&world)
    });
    let from = run.steps.iter().rposition(|step| matches!(step, Step::Settled)).unwrap_or(0);
    Scenario { name: name.into(), run, from }
}

impl Scenario {
    /// States are looked at after the last acknowledgement only: what another tool is doing is its own
    /// business until then.
    fn at_the_end(mut self) -> Scenario {
        self.from = self.run.steps.len();
        self
    }
}

fn scenarios() -> Vec<Scenario> {
    let mut all = Vec::new();
    all.push(scenario("the first push to a new tree", false, async |world| {
        world.push("first", "t").await.expect("a push");
    }));
    for deed in Deed::ALL {
        all.push(scenario(format!("{deed:?}"), true, async |world| {
            world.deed(deed).await.expect("possible").expect("done");
        }));
    }
    all.push(scenario("the first sha512 in a repository", true, async |world| {
        let image = Image::of(b"{}".to_vec(), b"a layer".to_vec(), Algorithm::Sha512);
        world.put_image(OLD, "long", &image, Way::Sha512).await.expect("a push");
    }));
    all.push(scenario("a file system without links", true, async |world| {
        world.recorder.without_links();
        world.push(OLD, "copied").await.expect("a push");
    }));
    for mode in [0o644, 0o444] {
        let name = format!("blobs that another tool put there with mode {mode:o}");
        let adopted = scenario(name, true, async |world| {
            world.outsiders_blobs(OLD, &theirs(), mode);
            world.put_image(OLD, "theirs", &theirs(), Way::ManifestOnly).await.expect("a push");
        });
        all.push(adopted);
    }
    let dropped = scenario("a layout that another tool has dropped in", true, async |world| {
        world.outsiders_layout("dropped", "theirs", &theirs());
        world.put_image("dropped", "theirs", &theirs(), Way::Whole).await.expect("a push");
    });
    all.push(dropped.at_the_end());
    let put_back = scenario("a tag that another tool gave", true, async |world| {
        world.put_image(OLD, "theirs", &theirs(), Way::Whole).await.expect("a push");
        world.recorder.settle();
        world.outsiders_tag(OLD, "more", &theirs());
        world.put_image(OLD, "more", &theirs(), Way::ManifestOnly).await.expect("a push");
    });
    all.push(put_back.at_the_end());
    all.push(scenario("three pushes in one commit", true, async |world| world.group(3).await));
    all.push(scenario("the key that signs tokens", false, async |world| world.key()));
    all.push(scenario("the server's own certificate", false, async |world| world.certificate()));
    for to in [OLD, "new/deep"] {
        all.extend(killed(to));
    }
    all.push(scenario("a collection", true, async |world| world.collect()));
    all.push(removed("a collection", async |world| world.collect()));
    all.push(removed("DELETE of a layer", async |world| {
        let layer = Image::numbered(0).layer;
        world.unlink(OLD, &layer).await.expect("nothing refers to it");
    }));
    let emptied = async |world: &mut World| world.outsider_empties(OLD);
    let after =
        scenario("a collection after another tool emptied a repository", true, async |world| {
            emptied(world).await;
            world.collect();
        });
    all.push(after.at_the_end());
    let after = scenario(
        "DELETE of a layer after another tool emptied a repository",
        true,
        async |world| {
            emptied(world).await;
            world.unlink(OLD, &Image::numbered(0).layer).await.expect("nothing refers to it");
        },
    );
    all.push(after.at_the_end());
    all.extend(repaired());
    all
}

/// Something is damaged, and after half a minute repaired.
fn repaired() -> Vec<Scenario> {
    let repair = |name: &str, damage: &dyn Fn(&mut World) -> Effect| {
        let name = format!("the repair after {name}");
        let repaired = scenario(name, true, async |world| {
            let effect = damage(world);
            world.recorder.settle();
            world.repair(effect);
        });
        repaired.at_the_end()
    };
    let of_old = |path: &str| format!("{OLD}/{path}");
    vec![
        repair("a layer is gone", &|world| {
            world.outsider_removes(&of_old(&World::blob_paths(0)[0]));
            Effect::Nothing
        }),
        repair("all blobs are gone", &|world| {
            for path in World::blobs(&world.root.join(OLD)) {
                world.outsider_removes(&of_old(&path));
            }
            world.outsider_removes_dir(&of_old("blobs/sha256"));
            Effect::Nothing
        }),
        repair("an index.json is gone", &|world| {
            world.outsider_removes(&of_old("index.json"));
            Effect::Nothing
        }),
        repair("oci-layout is gone", &|world| {
            world.outsider_removes(&of_old("oci-layout"));
            Effect::Nothing
        }),
        repair("a manifest is lost", &|world| {
            let manifest = Image::numbered(1).digest;
            let pool = stillage::layout::path::pool(&manifest);
            world.outsider_removes(&of_old(&World::blob_paths(1)[1]));
            world.outsider_removes(&format!(".stillage/{pool}"));
            Effect::Remove(OLD.to_owned(), manifest)
        }),
        repair("a blob is not what it says", &|world| {
            let digest = &World::blob_paths(7)[0];
            world.outsider(&of_old(digest), b"wrong", 0o644);
            Effect::Quarantined(b"wrong")
        }),
        repair("the journal is damaged", &|world| {
            world.outsider_appends(&of_old("_log.jsonl"), b"no line\n");
            Effect::Nothing
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
        let mut scenario = scenario(name, true, async |world| {
            world.recorder.die_after(after);
            // After the last sync but the facts' the push may well be acknowledged still.
            let _ = push(world).await;
            world.restart();
            push(world).await.expect("a push");
        });
        // What is left out is left out by the second process.
        let begins = |step: &Step| matches!(step, Step::Begin(_));
        scenario.from = scenario.run.steps.iter().rposition(begins).expect("a deed");
        scenario
    });
    again.collect()
}

/// Syncs of something that was not durable yet, and that may be left out all the same because
/// something else covers them: the place, a part of what is synced or of the scenario's name, and why
/// they are there.
const COVERED: [(&str, &[&str], &str); 9] = [
    (
        "layout/make::inner",
        &[""],
        "a commit syncs what it has not synced itself, whoever made it; but not everybody commits",
    ),
    (
        "registry/group::make_visible_durable",
        &[" of first", " of deep", " of mounted"],
        "where the directory of facts is made right after it, that syncs the repository's directory too",
    ),
    (
        "registry/group::sync_names < registry/group::confirm",
        &[" of old", " of deep", " of dropped"],
        "confirming ends with a sync of the repository's directory, which a known one needs",
    ),
    (
        "layout/journal::append",
        &[", again"],
        "a group that is done again has the stamp of the first one, whose lines were synced",
    ),
    (
        "layout/incoming::seal < layout/blobs::admit",
        &["without links"],
        "that a link is refused is known only afterwards, and the copy is synced itself",
    ),
    ("layout/facts::try_tidy", &[""], "facts are derived: what is lost is read anew"),
    (
        "layout/relink::supply",
        &["all blobs are gone"],
        "the sync of the next blob's name covers this one's; that of the last is caught",
    ),
    (
        "layout/quarantine::",
        &[""],
        "what a repair keeps is for somebody to look at: the scenarios ask for one blob of it only",
    ),
    (
        "layout/journal::append < upkeep/check/mend",
        &["a manifest is lost"],
        "index.json is what it was before that manifest came, which the journal knows already",
    ),
];

/// These no scenario here needs; everything else is caught somewhere.
const NEVER_CAUGHT: [&str; 9] = [
    "layout/facts::try_tidy",
    "layout/make::inner",
    "layout/quarantine::append",
    "layout/quarantine::copy_file",
    "layout/quarantine::make",
    "layout/quarantine::place",
    "upkeep/check/mend/history::rebuild",
    "upkeep/check/mend/history::sync_blobs",
    "upkeep/check/mend/index::revise",
];

/// Files with syncs to which no scenario comes: damage of other kinds, a journal of 16 MiB.
const NOT_REACHED: [&str; 4] = [
    "src/layout/journal.rs",
    "src/layout/quarantine.rs",
    "src/layout/relink.rs",
    "src/upkeep/check/mend/",
];

#[test]
fn every_sync_that_is_left_out_is_caught() {
    let mut explorer = Explorer::new(Random::from_env(SEED), [MOST[0], 60], 500);
    let mut places: BTreeMap<Place, [usize; 3]> = BTreeMap::new();
    let mut unnoticed = Vec::new();
    let mut used = BTreeSet::new();
    let mut opened = 0;
    for Scenario { name, run, from } in scenarios() {
        if let Some(bad) = explorer.explore(&run, from, None) {
            panic!("{name}: {}", bad.describe(&run));
        }
        let open_one_in = std::mem::take(&mut explorer.open_one_in);
        let first = if name.contains("killed") { from } else { last_settled(&run) };
        for (at, step) in run.steps.iter().enumerate().skip(first) {
            let Some(place) = step.place() else { continue };
            let counts = places.entry(place.clone()).or_default();
            let what = format!("{place} in {name:?}");
            if let Some(mut bad) = explorer.explore(&run, at.max(from), Some(at)) {
                counts[0] += 1;
                // No program misses what it cannot know of: a key, a time, a line of the journal.
                const UNKNOWN: [&str; 2] = ["is not what it was", "does not know this index.json"];
                let known = !UNKNOWN.iter().any(|why| bad.why.ends_with(why));
                if known && explorer.random.below(4) == 0 {
                    opened += 1;
                    assert!(
                        bad.is_seen_by_the_program(),
                        "without {what} there can be a state with which the program goes on: {}",
                        bad.describe(&run)
                    );
                }
            } else if run.is_clean(at) {
                counts[1] += 1;
            } else {
                counts[2] += 1;
                let covered = COVERED.iter().position(|(place, parts, _)| {
                    what.starts_with(place) && parts.iter().any(|part| what.contains(part))
                });
                used.extend(covered);
                unnoticed.extend(covered.is_none().then_some(what));
            }
        }
        explorer.open_one_in = open_one_in;
    }
    for (place, [caught, clean, covered]) in &places {
        eprintln!("{}: {place}: caught {caught}, clean {clean}, covered {covered}", place.line);
    }
    assert!(unnoticed.is_empty(), "left out, and nobody noticed: {unnoticed:#?}");
    assert_eq!(used.len(), COVERED.len(), "some of COVERED is true no more: {used:?}");
    let mut by_line: BTreeMap<&str, (usize, &Place)> = BTreeMap::new();
    for (place, [caught, ..]) in &places {
        by_line.entry(&place.line).or_insert((0, place)).0 += caught;
    }
    let never = by_line.values().filter(|(caught, _)| *caught == 0);
    let never: Vec<&str> = never.map(|(_, place)| place.function()).collect();
    let new: Vec<_> = never.iter().filter(|place| !NEVER_CAUGHT.contains(place)).collect();
    assert!(new.is_empty(), "places in the code that could be left out: {new:?}");
    let reached: BTreeSet<String> = by_line.keys().map(|line| (*line).to_owned()).collect();
    let all = places_in_the_code();
    let missed = all.difference(&reached);
    let missed: Vec<_> =
        missed.filter(|line| !NOT_REACHED.iter().any(|file| line.starts_with(file))).collect();
    assert!(missed.is_empty(), "no scenario comes to these syncs: {missed:?}");
    let sum = |at: usize| places.values().map(|counts| counts[at]).sum::<usize>();
    support::measured(format!(
        "syncs left out in turn: {} caught (the program saw {opened} of {opened} too), {} had nothing to do, {} covered by another ({} places in the \
         code); {}",
        sum(0),
        sum(1),
        sum(2),
        by_line.len(),
        explorer.counts
    ));
}

/// Every line of the source that syncs through a disk.
fn places_in_the_code() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut todo = vec![PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(path) = todo.pop() {
        if path.is_dir() {
            let entries = std::fs::read_dir(&path).expect("a directory");
            todo.extend(entries.map(|entry| entry.expect("a name").path()));
            continue;
        }
        let name = path.strip_prefix(env!("CARGO_MANIFEST_DIR")).expect("a file of ours");
        let name = name.to_str().expect("UTF-8");
        if name.contains("test") || name == "src/layout/disk.rs" {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("a source");
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        for (number, line) in code.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let begins = |text: &str| code.trim_start().starts_with(text);
            let calls = ["disk.sync(", "disk.sync_dir(", "disk.sync_all("];
            let broken = [".sync(&", ".sync_dir(", ".sync_all(&"];
            if calls.iter().any(|call| code.contains(call)) || broken.into_iter().any(begins) {
                found.insert(format!("{name}:{}", number + 1));
            }
        }
    }
    found
}

fn last_settled(run: &Run) -> usize {
    run.steps.iter().rposition(|step| matches!(step, Step::Settled)).unwrap_or(0)
}

/// An image that another tool has.
fn theirs() -> Image {
    Image::of(br#"{"theirs":true}"#.to_vec(), b"their layer".to_vec(), Algorithm::Sha256)
}
