//! Crash states: a registry runs on a disk that records every step, and every state in which a crash
//! could have left the files is looked at.
//!
//! - [`record`]: the disk, and what it wrote down.
//! - [`model`]: which states are possible after some steps, and what is assumed for that.
//! - [`promises`]: what was acknowledged by then.
//! - [`judge`]: whether a state is sound and has all that, in memory; [`quarantine`] is its part for
//!   what repairs take out.
//! - [`real`]: the same by the program itself: `check`, a registry, a push.
//! - [`deeds`], [`outsiders`]: what is done meanwhile, by the program and by others.
//! - [`scenarios`], [`repairs`]: both together, for each of the program's [`places`] that syncs.

#![allow(unreachable_pub, reason = "a module of a test binary")]

pub mod deeds;
pub mod image;
pub mod judge;
pub mod model;
pub mod outsiders;
pub mod places;
pub mod promises;
pub mod quarantine;
pub mod real;
pub mod record;
pub mod repairs;
pub mod scenarios;

use std::collections::HashSet;
use std::fmt;

use judge::{Judge, Outsiders, Witness, Wrong};
use model::{Interner, Model, State};
use promises::{Effect, Expected};
use record::Step;

use crate::support::random::Random;

/// What was recorded, and what was promised.
pub struct Run {
    pub steps: Vec<Step>,
    pub effects: Vec<Effect>,
    /// What another tool has put there.
    outsiders: Outsiders,
    /// What files of the room are at the end.
    finally: Expected,
}

impl Run {
    /// Of a world as it is now.
    pub fn of(world: &deeds::World) -> Run {
        let effects = world.effects.clone();
        let mut finally = Expected::default();
        for effect in &effects {
            if let Effect::Keeps(path) = effect {
                let bytes = std::fs::read(world.root.join(path)).expect("a file of the room");
                finally.kept.push(((*path).to_owned(), bytes));
            }
        }
        let outsiders = world.outsiders.clone();
        Run { steps: world.recorder.steps(), effects, outsiders, finally }
    }

    /// Whether the sync at a step has nothing to do.
    pub fn is_clean(&self, at: usize) -> bool {
        let (mut model, mut interner) = (Model::new(), Interner::new());
        self.steps[..at].iter().for_each(|step| model.take(step, &mut interner));
        match &self.steps[at] {
            Step::Sync { id, .. } | Step::SyncDir { id, .. } => model.is_clean(&interner, *id),
            _ => false,
        }
    }

    /// Where the last deed begins.
    pub fn last(&self) -> usize {
        self.steps.iter().rposition(|step| matches!(step, Step::Begin(_))).unwrap_or(0)
    }
}

/// What was looked at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Moments at which the states were looked at: all that comes between two is in the second.
    pub moments: usize,
    /// Of these, how many had too many states to combine all.
    pub drawn: usize,
    /// The same for what no acknowledgement rests on.
    pub aside_drawn: usize,
    /// States, each as often as it was met.
    pub met: usize,
    /// Different states.
    pub states: usize,
    /// States that were opened by the program itself.
    pub opened: usize,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Counts) {
        self.moments += other.moments;
        self.drawn += other.drawn;
        self.aside_drawn += other.aside_drawn;
        self.met += other.met;
        self.states += other.states;
        self.opened += other.opened;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { moments, drawn, aside_drawn, met, states, opened } = self;
        write!(
            f,
            "{states} different states at {moments} moments (met {met} times; drawn instead of combined at \
             {drawn} moments, what is aside at {aside_drawn}), {opened} opened by the program"
        )
    }
}

/// Looks at the states of runs.
pub struct Explorer {
    pub random: Random,
    /// So many combinations at most for each moment: of what acknowledgements rest on, of the rest.
    pub most: [usize; 2],
    /// One in so many states is opened by the program too; none with 0.
    pub open_one_in: usize,
    pub counts: Counts,
}

/// A state that must not be.
pub struct Bad {
    pub wrong: Wrong,
    /// The steps before the crash.
    pub after: usize,
    pub state: State,
    pub expected: Expected,
    pub interner: Interner,
    pub model: Model,
}

impl Explorer {
    pub fn new(random: Random, most: [usize; 2], open_one_in: usize) -> Explorer {
        Explorer { random, most, open_one_in, counts: Counts::default() }
    }

    /// Looks at every state from step `from` on, as if the step `without` had never been. The first that
    /// must not be.
    pub fn explore(&mut self, run: &Run, from: usize, without: Option<usize>) -> Option<Bad> {
        let mut interner = Interner::new();
        let mut judge = Judge::knowing(run.outsiders.clone());
        let mut model = Model::new();
        let mut seen = HashSet::new();
        let mut changed = false;
        for (at, step) in run.steps.iter().enumerate() {
            let ends = step.place().is_some() || matches!(step, Step::Settled | Step::Begin(_));
            if without == Some(at) {
                continue;
            }
            if ends && changed && at > from {
                changed = false;
                let bad = self.moment(run, at, &model, &mut interner, &mut judge, &mut seen);
                if let Some((wrong, state, expected)) = bad {
                    return Some(Bad { wrong, after: at, state, expected, interner, model });
                }
            }
            model.take(step, &mut interner);
            changed |= !ends && !matches!(step, Step::Mode { .. });
        }
        let at = run.steps.len();
        let bad = self.moment(run, at, &model, &mut interner, &mut judge, &mut seen);
        self.counts.states += seen.len();
        bad.map(|(wrong, state, expected)| Bad {
            wrong,
            after: at,
            state,
            expected,
            interner,
            model,
        })
    }

    fn moment(
        &mut self,
        run: &Run,
        at: usize,
        model: &Model,
        interner: &mut Interner,
        judge: &mut Judge,
        seen: &mut HashSet<u64>,
    ) -> Option<(Wrong, State, Expected)> {
        let expected = Expected::after(&run.steps[..at], &run.effects, &run.finally);
        let mut states: Vec<(u64, State)> = Vec::new();
        let mut met = 0;
        let mut here = HashSet::new();
        let coverage = model.states(interner, self.most, &mut self.random, &mut |state| {
            met += 1;
            let hash = state.hash();
            if here.insert(hash) {
                states.push((hash, state.clone()));
            }
        });
        self.counts.moments += 1;
        self.counts.met += met;
        self.counts.drawn += usize::from(!coverage.combined);
        self.counts.aside_drawn += usize::from(!coverage.aside_combined);
        for (hash, state) in states {
            // What is expected changes: a state is judged at every moment.
            if let Some(wrong) = judge.wrong(interner, &state, &expected) {
                return Some((wrong, state, expected));
            }
            let new = seen.insert(hash);
            let damaged = expected.damaged.is_some();
            if new && !damaged && self.open_one_in > 0 && self.random.below(self.open_one_in) == 0 {
                self.counts.opened += 1;
                let judged = real::judge(model, interner, &state, &expected, judge.outsiders());
                if let Err(why) = judged {
                    let why = format!("the program says: {why}");
                    return Some((Wrong { why, witness: Witness::Program }, state, expected));
                }
            }
        }
        None
    }
}

impl Bad {
    /// Whether the program itself finds fault with the state; `None` where only who knows what there
    /// was could, and while there is fault enough to find, before the repair is done.
    pub fn is_seen_by_the_program(&mut self) -> Option<bool> {
        if self.wrong.witness == Witness::Memory || self.expected.damaged.is_some() {
            return None;
        }
        let Bad { model, interner, state, expected, .. } = self;
        Some(real::judge(model, interner, state, expected, &Outsiders::default()).is_err())
    }

    /// What there was to see, for a failure's message.
    pub fn describe(&self, run: &Run) -> String {
        let mut text = format!("{}\nafter these steps:\n", self.wrong.why);
        for (at, step) in
            run.steps[..self.after].iter().enumerate().skip(self.after.saturating_sub(60))
        {
            let line = match step {
                Step::Write { id, offset, bytes } => {
                    format!("Write {{ id: {id}, offset: {offset}, {} bytes }}", bytes.len())
                }
                step => format!("{step:?}"),
            };
            text.push_str(&format!("{at:5} {line}\n"));
        }
        text.push_str("the crash left:\n");
        for entry in &self.state.entries {
            let path = &self.interner.paths[entry.path];
            let line = match entry.content {
                None => format!("{path}/"),
                Some(content) => {
                    format!(
                        "{path} (inode {}, {} bytes)",
                        entry.id,
                        self.interner.contents[content].len()
                    )
                }
            };
            text.push_str(&format!("      {line}\n"));
        }
        text
    }
}
