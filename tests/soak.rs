//! An hour of everything at once: many clients push, pull, mount, refer and delete over the wire, and
//! collections run beside them all the time, with a grace that an honest pusher just needs.
//!
//! Nothing that was acknowledged may be lost, no answer may be a 5xx, and memory, descriptors and disk
//! use must stay where they were.
//!
//! - `STILLAGE_TEST_SOAK_SECONDS=N` says how long; otherwise a minute, and an hour in the long form.
//! - `STILLAGE_TEST_SOAK_FIGURES=FILE` gets a line of figures every so often and the sums at the end.

mod support;

#[path = "soak/client.rs"]
mod client;
#[path = "support/process.rs"]
mod process;
#[path = "soak/warm.rs"]
mod warm;
#[path = "soak/watch.rs"]
mod watch;

use std::process::Command;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use client::{Client, Ground};
use support::{Registry, STILLAGE};
use watch::{Figures, Watch};

/// How many clients there are. They pause between their deeds: all of it takes about one core.
const CLIENTS: usize = 8;

fn seconds() -> u64 {
    match std::env::var("STILLAGE_TEST_SOAK_SECONDS") {
        Ok(text) => text.parse().expect("a number of seconds"),
        Err(_) if support::long() => 3600,
        Err(_) => 60,
    }
}

/// One collection: what it printed, or why it is none.
fn collect(registry: &Registry, args: &[&str]) -> Result<String, String> {
    let mut command = Command::new(STILLAGE);
    let output = command.arg("gc").arg(registry.root()).args(args).output().expect("gc starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    match output.status.code() {
        Some(0) => Ok(text),
        code => {
            let error = String::from_utf8_lossy(&output.stderr);
            Err(format!("gc ended with {code:?}:\n{text}{error}"))
        }
    }
}

/// Collects again and again, at least a hundred times in an hour.
fn collect_until_the_end(registry: &Registry, ground: &Ground, all: Duration) {
    // A collection that is begun when the last one has just ended is the hardest neighbour; but all
    // of this has to leave a core free.
    let every = (all / 240).clamp(Duration::from_millis(500), Duration::from_secs(15));
    let grace = format!("{}s", ground.grace.as_secs());
    while !ground.is_over() {
        let begun = Instant::now();
        let args = ["--grace", &grace, "--undo-window", "10s", "--upload-expiry", "60s"];
        match collect(registry, &args) {
            Ok(_) => ground.collections.fetch_add(1, Ordering::Relaxed),
            Err(why) => return ground.fail(why),
        };
        ground.rest(every.saturating_sub(begun.elapsed()));
    }
}

#[test]
fn an_hour_of_everything_loses_nothing_and_leaves_memory_and_disk_as_they_were() {
    let all = Duration::from_secs(seconds());
    let registry = Registry::start(&["--auth", "none"]);
    // Long enough for the slowest push on a busy machine, short enough to be over many times.
    let ground = Ground::new(Duration::from_secs(if all.as_secs() < 600 { 15 } else { 30 }));
    if watch::is_long(all) {
        warm::fill_what_is_remembered(&registry);
        collect(&registry, &["--now"]).expect("a collection");
    }
    let mut watch = Watch::new(&registry, all);
    let begun = Instant::now();
    thread::scope(|scope| {
        for number in 0..CLIENTS {
            let client = registry.client();
            let ground = &ground;
            scope.spawn(move || Client::new(client, ground, number).until_the_end());
        }
        scope.spawn(|| collect_until_the_end(&registry, &ground, all));
        while begun.elapsed() < all && !ground.is_over() {
            watch.look(&registry, &ground);
            ground.rest(watch.every());
        }
        ground.end();
    });
    let figures = watch.sums(&ground, begun.elapsed());
    figures.print();
    if let Some(why) = ground.failure() {
        panic!("after {} s: {why}", begun.elapsed().as_secs());
    }
    nothing_is_lost(&registry, &ground);
    registry.assert_sound();
    nothing_is_left_over(&registry, &ground);
    figures.assert_flat();
    enough_was_done(&ground, &figures, all);
}

/// Every image that was acknowledged and not deleted is pulled whole.
fn nothing_is_lost(registry: &Registry, ground: &Ground) {
    let mut client = Client::new(registry.client(), ground, CLIENTS);
    let kept = ground.kept();
    for image in &kept {
        client.pull(image).unwrap_or_else(|why| panic!("at the end: {why}"));
    }
    assert!(kept.len() > 10, "only {} images were left to be pulled", kept.len());
}

/// A collection without grace leaves what the images need, and nothing else.
fn nothing_is_left_over(registry: &Registry, ground: &Ground) {
    collect(registry, &["--now"]).expect("a collection");
    let needed = ground.needed();
    let there = watch::blobs(registry.root());
    let more: Vec<_> = there.difference(&needed).take(3).collect();
    let less: Vec<_> = needed.difference(&there).take(3).collect();
    assert!(
        more.is_empty() && less.is_empty(),
        "{} blobs and not {}: too many {more:?}, missing {less:?}",
        there.len(),
        needed.len()
    );
}

fn enough_was_done(ground: &Ground, figures: &Figures, all: Duration) {
    let collections = ground.collections.load(Ordering::Relaxed);
    // A hundred in an hour; on a busy machine one takes a second.
    let least = if all.as_secs() >= 600 { 100 } else { all.as_secs() / 6 };
    assert!(collections as u64 >= least, "only {collections} collections");
    assert!(figures.deeds > all.as_secs(), "only {} deeds", figures.deeds);
    // Slower than the grace is only now and then one, or nothing was promised.
    let slow = ground.counts().get("too slow").copied().unwrap_or(0) as u64;
    assert!(slow * 20 <= figures.deeds, "{slow} of {} deeds were too slow", figures.deeds);
}
