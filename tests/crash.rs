//! Crashes at every step: each state of the files that a crash may leave is sound, has all that was
//! acknowledged, and the registry goes on from it.
//!
//! What a file system may do is in `crash_states/model.rs`. `STILLAGE_CRASH_SEED` replays what was
//! drawn.

mod crash_states;
mod support;

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crash_states::deeds::{Deed, OLD, World};
use crash_states::{Counts, Explorer, Run};
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
        Some(Run::of(&world, room.path()))
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
    let begin = std::time::Instant::now();
    if !support::long() {
        let mut drawn = sequences.split_off(10 + 100);
        while drawn.len() > 200 {
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
                let mut explorer = Explorer::new(random, MOST, 200);
                let mut done = 0;
                let mut spent = [std::time::Duration::ZERO; 2];
                while let Some(deeds) = sequences.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let at = std::time::Instant::now();
                    let Some(run) = record(deeds, false) else { continue };
                    spent[0] += at.elapsed();
                    let at = std::time::Instant::now();
                    if let Some(bad) = explorer.explore(&run, run.last(), None, &HashSet::new()) {
                        panic!("{deeds:?}: {}", bad.describe(&run));
                    }
                    done += 1;
                    spent[1] += at.elapsed();
                    if done % 20 == 0 {
                        eprintln!("{done} {:?} {spent:?} {}", begin.elapsed(), explorer.counts);
                    }
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
