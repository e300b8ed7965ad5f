//! Crashes at every step: each state of the files that a crash may leave is sound, has all that was
//! acknowledged, and the registry goes on from it.
//!
//! What a file system may do is in `crash_states/model.rs`. `STILLAGE_CRASH_SEED` replays what was
//! drawn.

mod crash_states;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crash_states::deeds::{Deed, World};
use crash_states::places::{self, Place};
use crash_states::scenarios::{self, Scenario, room, runtime};
use crash_states::{Bad, Counts, Explorer, Run, repairs};
use support::random::Random;

const SEED: &str = "STILLAGE_CRASH_SEED";

/// More combinations than this, of one moment, are drawn.
const MOST: [usize; 2] = [2_000, 200];

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

/// Syncs of something that was not durable yet, and that may be left out all the same because
/// something else covers them: the place, a part of what is synced or of the scenario's name, and why
/// they are there.
const COVERED: [(&str, &[&str], &str); 9] = [
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
    (
        "layout/quarantine::copy_file",
        &["without links"],
        "that a link is refused is known only afterwards, and what has a name at once is synced itself",
    ),
    (
        "layout/relink::supply",
        &["all blobs are gone"],
        "the sync of the next blob's name covers this one's; that of the last is caught",
    ),
    (
        "layout/quarantine::make",
        &[" of quarantine"],
        "where the list is new, its name is synced in the same directory right after; the list may be \
         there already",
    ),
    (
        "layout/quarantine::append < layout/quarantine::list",
        &["a manifest"],
        "the copy of index.json is written down in the same list before index.json is replaced",
    ),
    (
        "upkeep/check/mend/history::rebuild",
        &["lost during a push"],
        "all that is not durable there is that somebody removed index.json, which comes back",
    ),
    (
        "layout/journal::append < upkeep/check/mend",
        &["a manifest is lost"],
        "index.json is what it was before that manifest came, which the journal knows already",
    ),
];

/// What came of leaving syncs out.
#[derive(Default)]
struct LeftOut {
    /// At each place: how often it was caught, had nothing to do, was covered by something else.
    places: BTreeMap<Place, [usize; 3]>,
    /// States that must not be, with nothing left out.
    unsound: Vec<String>,
    /// Caught by nobody, and not in [`COVERED`].
    unnoticed: Vec<String>,
    /// What was true of [`COVERED`].
    used: BTreeSet<usize>,
    /// Wrong states in which the program itself found the fault, and in which it did not.
    seen: usize,
    unseen: Vec<String>,
    counts: Counts,
}

impl LeftOut {
    /// Of each sync of one scenario in turn.
    fn of(Scenario { name, run, from, first }: &Scenario, random: Random) -> LeftOut {
        let mut left = LeftOut::default();
        let mut explorer = Explorer::new(random, [MOST[0], 60], 500);
        let unsound = explorer.explore(run, *from, None);
        left.unsound.extend(unsound.map(|bad| format!("{name}: {}", bad.describe(run))));
        explorer.open_one_in = 0;
        let mut wrong = Vec::new();
        for (at, step) in run.steps.iter().enumerate().skip(*first) {
            let Some(place) = step.place() else { continue };
            let what = format!("{place} in {name:?}");
            let bad = explorer.explore(run, at.max(*from), Some(at));
            let came = match &bad {
                Some(_) => 0,
                None if run.is_clean(at) => 1,
                None => 2,
            };
            left.places.entry(place.clone()).or_default()[came] += 1;
            if came == 2 {
                left.covered(&what);
            }
            wrong.extend(bad.map(|bad| (what, bad)));
        }
        // A check waits for whoever may be at work, at each fault for half a second.
        std::thread::scope(|scope| {
            let open = |(what, mut bad): (String, Bad)| (bad.is_seen_by_the_program(), what, bad);
            let opened: Vec<_> =
                wrong.into_iter().map(|one| scope.spawn(move || open(one))).collect();
            for opened in opened {
                match opened.join().expect("no panic") {
                    (Some(false), what, bad) => {
                        left.unseen.push(format!("{what}: {}", bad.describe(run)));
                    }
                    (seen, ..) => left.seen += usize::from(seen.is_some()),
                }
            }
        });
        left.counts = explorer.counts;
        left
    }

    fn covered(&mut self, what: &str) {
        let covered = COVERED.iter().position(|(place, parts, _)| {
            what.starts_with(place) && parts.iter().any(|part| what.contains(part))
        });
        self.used.extend(covered);
        self.unnoticed.extend(covered.is_none().then(|| what.to_owned()));
    }

    fn add(&mut self, other: LeftOut) {
        for (place, counts) in other.places {
            let sums = self.places.entry(place).or_default();
            counts.into_iter().enumerate().for_each(|(at, count)| sums[at] += count);
        }
        self.unsound.extend(other.unsound);
        self.unnoticed.extend(other.unnoticed);
        self.used.extend(other.used);
        self.seen += other.seen;
        self.unseen.extend(other.unseen);
        self.counts += other.counts;
    }

    /// By lines of the source.
    fn by_line(&self) -> BTreeMap<&str, [usize; 3]> {
        let mut lines: BTreeMap<&str, [usize; 3]> = BTreeMap::new();
        for (place, counts) in &self.places {
            let sums = lines.entry(&place.line).or_default();
            counts.iter().enumerate().for_each(|(at, count)| sums[at] += count);
        }
        lines
    }
}

/// Leaves out every sync of every scenario. Some at a time, because repairs and checks wait.
fn leave_out(random: &mut Random) -> LeftOut {
    let jobs = scenarios::all().into_iter().chain(repairs::all());
    let jobs = Mutex::new(jobs.map(|job| (random.fork(), job)).collect::<Vec<_>>());
    let sum = Mutex::new(LeftOut::default());
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                loop {
                    let Some((mut random, job)) = jobs.lock().expect("the jobs").pop() else {
                        return;
                    };
                    for scenario in job() {
                        let left = LeftOut::of(&scenario, random.fork());
                        sum.lock().expect("the sum").add(left);
                    }
                }
            });
        }
    });
    sum.into_inner().expect("the sum")
}

#[test]
fn every_sync_that_is_left_out_is_caught() {
    let left = leave_out(&mut Random::from_env(SEED));
    for (place, [caught, clean, covered]) in &left.places {
        eprintln!("{}: {place}: caught {caught}, clean {clean}, covered {covered}", place.line);
    }
    assert!(left.unsound.is_empty(), "{}", left.unsound.join("\n"));
    let lines = left.by_line();
    let idle: Vec<_> = lines.iter().filter(|(_, counts)| counts[0] == 0).collect();
    let untrue = (0..COVERED.len()).filter(|at| !left.used.contains(at));
    let untrue: Vec<_> = untrue.map(|at| COVERED[at]).collect();
    let all = places::in_the_code();
    let missed: Vec<_> = all.iter().filter(|line| !lines.contains_key(line.as_str())).collect();
    assert!(
        left.unnoticed.is_empty() && idle.is_empty() && untrue.is_empty() && missed.is_empty(),
        "left out, and nobody noticed: {:#?}\nno scenario needs these: {idle:#?}\nno scenario comes \
         to these: {missed:#?}\nthese cover nothing: {untrue:#?}",
        left.unnoticed
    );
    assert!(
        left.unseen.is_empty(),
        "left out, and the program goes on with what is wrong: {}",
        left.unseen.join("\n")
    );
    let sum = |at: usize| lines.values().map(|counts| counts[at]).sum::<usize>();
    support::measured(format!(
        "syncs left out in turn: {} caught (the program itself saw all {} that it can), {} had \
         nothing to do, {} covered by another ({} places in the code); {}",
        sum(0),
        left.seen,
        sum(1),
        sum(2),
        lines.len(),
        left.counts
    ));
}
