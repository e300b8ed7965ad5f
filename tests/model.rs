//! Random deeds against a registry and against an in-memory model of it: no difference at any step.
//!
//! A run is made of a seed: pushes, uploads in pieces, mounts, promises, tags, deletes, lists, pulls,
//! collections, hours that pass, restarts, and what an administrator does with a shell. After each
//! deed the answer is compared with the model's, and after every hundred everything: every tag, every
//! list, every file of the tree, and what check says.
//!
//! - `STILLAGE_TEST_SEED=N` replays a run; the seed is printed at its begin.
//! - `STILLAGE_TEST_OPERATIONS=N` says how long it is; otherwise 10,000, and 100,000 in the long form.
//!
//! A run that fails prints the last deeds, and then those that are left when all are left out without
//! which it fails as well.

mod support;

#[path = "model/mod.rs"]
mod model;

use std::rc::Rc;
use std::time::{Duration, Instant};

use model::{Contents, Face, Failure, InProcess, Op, Run, Wire, plan, shrink};

/// How long leaving out may take.
const SHRINKING: Duration = Duration::from_secs(120);

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

fn seed() -> u64 {
    number("STILLAGE_TEST_SEED").unwrap_or_else(|| {
        let mut bytes = [0; 4];
        getrandom::fill(&mut bytes).expect("randomness");
        u64::from(u32::from_le_bytes(bytes))
    })
}

fn operations(otherwise: usize) -> usize {
    number("STILLAGE_TEST_OPERATIONS")
        .map_or(otherwise, |number| usize::try_from(number).expect("not that many"))
}

fn run(seed: u64, plan: &[Op], face: &mut dyn Face, say: bool) -> Result<(), Failure> {
    let mut run = Run::new(face, Rc::new(Contents::new(seed)));
    let done = run.all(plan);
    if say && done.is_ok() {
        let counts: Vec<String> =
            run.counts.iter().map(|(what, count)| format!("{what:?} {count}")).collect();
        eprintln!("{}", counts.join(", "));
    }
    done
}

fn compare<F: Face>(what: &str, operations: usize, every: usize, face: impl Fn() -> F) {
    let (seed, begun) = (seed(), Instant::now());
    eprintln!("{what}: STILLAGE_TEST_SEED={seed} STILLAGE_TEST_OPERATIONS={operations}");
    let plan = plan(seed, operations, every);
    let Err(failure) = run(seed, &plan, &mut face(), true) else {
        let seconds = begun.elapsed().as_secs();
        support::measured(format!(
            "{what}: {operations} operations of seed {seed}: no difference, {seconds} s"
        ));
        return;
    };
    eprintln!("after {} operations: {}", failure.at, failure.why);
    eprintln!("{}", failure.tail.join("\n"));
    let again = |fewer: &[Op]| run(seed, fewer, &mut face(), false);
    let (kept, last) = shrink(&plan, failure, SHRINKING, again);
    panic!(
        "seed {seed}: {} of the operations suffice for this:\n{}\n{}",
        kept.len(),
        last.tail.join("\n"),
        last.why
    );
}

#[test]
fn random_operations_do_what_the_model_says() {
    let operations = operations(if support::long() { 100_000 } else { 10_000 });
    compare("model in process", operations, 100, InProcess::new);
}

#[test]
fn random_operations_over_the_wire_do_what_the_model_says() {
    let operations = operations(if support::long() { 5_000 } else { 1_500 });
    compare("model over the wire", operations, 250, Wire::new);
}
