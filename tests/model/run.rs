//! A run: deeds drawn from a seed, done to a registry and to the model.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::contents::Contents;
use super::deeds::Slow;
use super::face::Face;
use super::upkeep::{Collections, Snapshot};
use super::world::World;
use crate::support::random::Random;

/// Nothing to say, or what the registry did otherwise than the model.
pub type Step = Result<(), String>;

/// Fails unless what the registry did is what the model says.
macro_rules! same {
    ($real:expr, $model:expr, $($what:tt)*) => {{
        let (real, model) = (&$real, &$model);
        if real != model {
            let what = format!($($what)*);
            return Err(format!("{what}:\n  the registry: {real:?}\n  the model:    {model:?}"));
        }
    }};
}
pub(super) use same;

/// One deed. What it is done to is drawn from its own seed when its turn comes, so that it still is a
/// deed when others are left out.
#[derive(Clone, Copy, Debug)]
pub struct Op {
    what: What,
    seed: u64,
}

/// What can be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    Push,
    SlowPush,
    GoOn,
    Upload,
    Session,
    Mount,
    Head,
    BarePut,
    Retag,
    DeleteTag,
    DeleteManifest,
    DeleteBlob,
    Tags,
    Referrers,
    Catalog,
    Pull,
    PullBlob,
    Collect,
    TimePasses,
    Restart,
    Snapshot,
    Repair,
    RemoveDirectory,
    CopyDirectory,
    MoveDirectory,
    RemoveBlob,
    WriteLikeSkopeo,
    LosePool,
    LoseHints,
    LoseFacts,
    /// Everything is compared.
    Compare,
}

/// How often each is drawn.
const WEIGHTS: [(What, usize); 30] = [
    (What::Push, 150),
    (What::SlowPush, 60),
    (What::GoOn, 160),
    (What::Upload, 60),
    (What::Session, 90),
    (What::Mount, 70),
    (What::Head, 60),
    (What::BarePut, 50),
    (What::Retag, 60),
    (What::DeleteTag, 50),
    (What::DeleteManifest, 50),
    (What::DeleteBlob, 40),
    (What::Tags, 20),
    (What::Referrers, 20),
    (What::Catalog, 8),
    (What::Pull, 80),
    (What::PullBlob, 40),
    (What::Collect, 24),
    (What::TimePasses, 24),
    (What::Restart, 6),
    (What::Snapshot, 5),
    (What::Repair, 4),
    (What::RemoveDirectory, 4),
    (What::CopyDirectory, 3),
    (What::MoveDirectory, 3),
    (What::RemoveBlob, 5),
    (What::WriteLikeSkopeo, 8),
    (What::LosePool, 1),
    (What::LoseHints, 1),
    (What::LoseFacts, 2),
];

/// The deeds of a seed; everything is compared after every so many.
pub fn plan(seed: u64, operations: usize, compare_every: usize) -> Vec<Op> {
    let mut random = Random::seeded(seed);
    let sum = WEIGHTS.iter().map(|(_, weight)| weight).sum();
    let mut plan = Vec::with_capacity(operations + operations / compare_every + 1);
    for number in 1..=operations {
        let mut at = random.below(sum);
        let drawn = WEIGHTS.iter().find(|(_, weight)| match at.checked_sub(*weight) {
            Some(rest) => {
                at = rest;
                false
            }
            None => true,
        });
        let what = drawn.map_or(What::Compare, |(what, _)| *what);
        plan.push(Op { what, seed: random.next() });
        if number % compare_every == 0 || number == operations {
            plan.push(Op { what: What::Compare, seed: 0 });
        }
    }
    plan
}

/// Where a run ended, and why.
#[derive(Debug)]
pub struct Failure {
    pub at: usize,
    pub why: String,
    /// The last deeds, in words.
    pub tail: Vec<String>,
}

/// So many deeds are told of a failure.
const TOLD: usize = 60;

pub struct Run<'a> {
    pub(super) face: &'a mut dyn Face,
    pub(super) world: World,
    pub(super) slow: Vec<Slow>,
    pub(super) collections: Collections,
    pub(super) snapshots: Vec<Snapshot>,
    /// How many snapshots were taken.
    pub(super) taken: usize,
    pub(super) scratch: tempfile::TempDir,
    at: usize,
    told: VecDeque<String>,
    /// How often what was done.
    pub counts: BTreeMap<What, usize>,
}

impl<'a> Run<'a> {
    pub fn new(face: &'a mut dyn Face, contents: Rc<Contents>) -> Run<'a> {
        // Beside the tree: snapshots are links.
        let beside = face.root().parent().expect("ROOT is not /").to_owned();
        let scratch = tempfile::Builder::new().prefix("stillage-model-").tempdir_in(beside);
        Run {
            face,
            world: World::new(contents),
            slow: Vec::new(),
            collections: Collections::default(),
            snapshots: Vec::new(),
            taken: 0,
            scratch: scratch.expect("a directory beside ROOT"),
            at: 0,
            told: VecDeque::new(),
            counts: BTreeMap::new(),
        }
    }

    /// Does all of it, until something differs.
    pub fn all(&mut self, plan: &[Op]) -> Result<(), Failure> {
        for (at, op) in plan.iter().enumerate() {
            self.at = at;
            let done = catch_unwind(AssertUnwindSafe(|| self.step(*op)));
            let why = match done {
                Ok(Ok(())) => continue,
                Ok(Err(why)) => why,
                Err(panic) => {
                    let text = panic.downcast_ref::<String>().map(String::as_str);
                    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
                    format!("a panic: {}", text.unwrap_or("of another kind"))
                }
            };
            return Err(Failure { at, why, tail: self.told.iter().cloned().collect() });
        }
        Ok(())
    }

    /// Says what is being done.
    pub(super) fn tell(&mut self, text: String) {
        if self.told.len() == TOLD {
            self.told.pop_front();
        }
        self.told.push_back(format!("{:>6} h{} {text}", self.at, self.world.now));
    }

    fn step(&mut self, op: Op) -> Step {
        *self.counts.entry(op.what).or_default() += 1;
        let random = &mut Random::seeded(op.seed);
        match op.what {
            What::Push => self.push(random),
            What::SlowPush => self.slow_push(random),
            What::GoOn => self.go_on(random),
            What::Upload => self.upload_one(random),
            What::Session => self.session(random),
            What::Mount => self.mount_one(random),
            What::Head => self.head_one(random),
            What::BarePut => self.bare_put(random),
            What::Retag => self.retag(random),
            What::DeleteTag => self.delete_tag(random),
            What::DeleteManifest => self.delete_manifest(random),
            What::DeleteBlob => self.delete_blob(random),
            What::Tags => self.list_tags(random),
            What::Referrers => self.list_referrers(random),
            What::Catalog => self.list_catalog(random),
            What::Pull => self.pull_one(random),
            What::PullBlob => self.pull_blob(random),
            What::Collect => self.collect(random),
            What::TimePasses => self.time_passes(random),
            What::Restart => self.restart(),
            What::Snapshot => self.snapshot(random),
            What::Repair => self.repair(),
            What::RemoveDirectory => self.remove_directory(random),
            What::CopyDirectory => self.copy_directory(random),
            What::MoveDirectory => self.move_directory(random),
            What::RemoveBlob => self.remove_blob(random),
            What::WriteLikeSkopeo => self.write_like_skopeo(random),
            What::LosePool => self.lose_pool(),
            What::LoseHints => self.lose_hints(),
            What::LoseFacts => self.lose_facts(random),
            What::Compare => self.compare_all(),
        }
    }
}

/// Leaves deeds out of a plan that fails, as long as it still fails and the time lasts. Gives what is
/// left, and how that ends.
pub fn shrink(
    plan: &[Op],
    failure: Failure,
    within: Duration,
    mut again: impl FnMut(&[Op]) -> Result<(), Failure>,
) -> (Vec<Op>, Failure) {
    let begun = Instant::now();
    let mut failure = failure;
    let mut kept = plan[..=failure.at].to_vec();
    let mut piece = kept.len() / 2;
    while piece > 0 {
        let mut at = 0;
        while at < kept.len() && begun.elapsed() < within {
            let end = (at + piece).min(kept.len());
            let fewer: Vec<Op> = [&kept[..at], &kept[end..]].concat();
            match again(&fewer) {
                Err(still) => {
                    kept = fewer[..=still.at].to_vec();
                    failure = still;
                }
                Ok(()) => at = end,
            }
        }
        piece /= 2;
    }
    (kept, failure)
}
