//! `stillage gc`: takes what nothing needs any more, beside everything else that goes on.
//!
//! It never stops the world. What is needed is marked without a lock; what is not gets a note, and
//! goes once the note is as old as the grace, in short turns under gc.lock and the repository's lock,
//! in which index.json and the journal are looked at again (PROTOCOL.md, "Promises and collection").
//!
//! It fails closed: a manifest or an index.json that cannot be read ends the collection of that
//! repository, and of no other. What it does not know it leaves alone.

mod event;
mod links;
pub mod report;
mod repository;
mod room;
mod schedule;
mod tidy;
mod turn;
mod untagged;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use rustix::io::Errno;
use thiserror::Error;

pub use event::{Event, Fate, KeptBy, Summary, Tidied, Why};
pub use schedule::next;

use crate::layout::{self, Collected, Stamp, Tree, Walk};
use crate::oci::{Algorithm, Digest, RepoName};

/// How far a clock may be behind what is written in the tree.
const TOLERANCE: Duration = Duration::from_secs(60);

/// What to collect.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long a blob stays after it was first seen unreferenced.
    pub grace: Duration,
    /// How long a change can be undone: what the journal names within that time stays.
    pub undo_window: Duration,
    /// Manifests that have had no tag for so long go, too.
    pub untagged: Option<Duration>,
    /// How long to wait for whoever holds a lock.
    pub wait: Duration,
    /// Uploads that got no byte for so long end, and temporary files that old go; `None` leaves
    /// the uploads to a server that does it itself.
    pub upload_expiry: Option<Duration>,
    /// The pool and the trash give back at once what they keep for later.
    pub now: bool,
    /// This repository alone.
    pub only: Option<RepoName>,
    /// Say what would be done, and change nothing.
    pub dry_run: bool,
    /// The time that counts as now, where it is not the clock's: a test looks into the future.
    pub clock: Option<SystemTime>,
}

impl Default for Options {
    fn default() -> Options {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        Options {
            grace: DAY,
            undo_window: 7 * DAY,
            untagged: None,
            wait: Duration::from_secs(60),
            upload_expiry: Some(DAY),
            now: false,
            only: None,
            dry_run: false,
            clock: None,
        }
    }
}

impl Options {
    /// Neither grace nor undo window: for the full disk, and for the pushed secret.
    pub fn at_once(self) -> Options {
        Options { grace: Duration::ZERO, undo_window: Duration::ZERO, now: true, ..self }
    }
}

/// Why nothing was collected at all.
#[derive(Debug, Error)]
pub enum GcError {
    /// ROOT or its room cannot be read.
    #[error(transparent)]
    Layout(#[from] layout::Error),
    /// Everything would look older than it is.
    #[error(
        "the clock says {now}, which is before the end of the last collection, {last}: set the clock, or remove .stillage/collected"
    )]
    ClockBehind {
        /// What the clock says.
        now: String,
        /// What the tree says.
        last: String,
    },
    /// There is no such repository.
    #[error("there is no repository {0}")]
    NoRepository(RepoName),
}

/// Takes manifests out of a repository's index.json by one commit: called with the stamp of the
/// index.json that was looked at. `false` if it is another one by now.
pub type Untag<'a> = dyn FnMut(&RepoName, Stamp, &[Digest]) -> Result<bool, String> + 'a;

/// Collects, and tells `report` of everything that happens.
///
/// Whoever runs this owns the tree. Any number of collections, pushes, pulls and deletes may go on
/// meanwhile.
///
/// # Errors
/// Only what concerns the whole tree; what was left undone for another reason is told, and counted
/// in the summary.
pub fn run(
    tree: &Tree,
    options: &Options,
    untag: &mut Untag<'_>,
    report: &mut dyn FnMut(Event<'_>),
) -> Result<Summary, GcError> {
    let begun = options.clock.unwrap_or_else(SystemTime::now);
    let last = last(tree)?;
    if let Some(last) = &last
        && begun + TOLERANCE < last.end()
    {
        let [now, last] = [begun, last.end()].map(event::written);
        return Err(GcError::ClockBehind { now, last });
    }
    let (summary, links) = (Summary::default(), links::Links::new(options.dry_run));
    let hints = BTreeMap::new();
    let mut run = Run { tree, options, begun, last, report, summary, links, blocked: false, hints };
    match &options.only {
        Some(name) => run.only(name, untag)?,
        None => run.all(untag)?,
    }
    run.room();
    run.end();
    Ok(run.summary)
}

/// When the last collection was. A file that nobody can read says nothing.
fn last(tree: &Tree) -> Result<Option<Collected>, GcError> {
    match Collected::last(tree) {
        Err(error @ layout::Error::Damaged { .. }) => {
            tracing::warn!(%error, "it is not known when the last collection was");
            Ok(None)
        }
        last => Ok(last?),
    }
}

/// One run over one tree.
struct Run<'a> {
    tree: &'a Tree,
    options: &'a Options,
    /// What counts as now, for all of the run.
    begun: SystemTime,
    last: Option<Collected>,
    report: &'a mut dyn FnMut(Event<'_>),
    summary: Summary,
    links: links::Links,
    /// Somebody holds gc.lock for longer than this run waits: nothing can be removed under it.
    blocked: bool,
    /// A digest of each file of hints in which some became false.
    hints: BTreeMap<(Algorithm, String), Digest>,
}

impl Run<'_> {
    fn only(&mut self, name: &RepoName, untag: &mut Untag<'_>) -> Result<(), GcError> {
        let found = self.tree.repository(name)?;
        let dir = found.ok_or_else(|| GcError::NoRepository(name.clone()))?;
        repository::collect(self, name, &dir, untag);
        Ok(())
    }

    fn all(&mut self, untag: &mut Untag<'_>) -> Result<(), GcError> {
        let root = &self.tree.root;
        repository::sweep_beside(self, root);
        for found in Walk::directories(root)? {
            match found {
                Ok((name, dir)) if repository::is_one(&dir) => {
                    repository::collect(self, &name, &dir, untag);
                }
                Ok((_, dir)) => repository::sweep_beside(self, &dir),
                // Somebody else's directory: nothing that is in it can be pulled, or is kept from
                // being collected elsewhere.
                Err(error) if error.errno() == Some(Errno::ACCESS) => {
                    self.tell(Event::PassedOver(&error));
                }
                Err(error) => self.tell(Event::Warning(&error)),
            }
        }
        Ok(())
    }

    fn tell(&mut self, event: Event<'_>) {
        if let Event::Digest { digest, fate: Fate::Goes { .. }, .. } | Event::Pool { digest, .. } =
            &event
        {
            let name = layout::path::holders_name(digest).to_owned();
            self.hints.entry((digest.algorithm(), name)).or_insert_with(|| (*digest).clone());
        }
        self.summary.count(&event);
        (self.report)(event);
    }

    /// What must be older than this, if it was there for `age`.
    fn before(&self, age: Duration) -> SystemTime {
        self.begun.checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// Temporary names that were made before this are nobody's any more.
    fn leftovers_before(&self) -> SystemTime {
        let usual = Options::default().upload_expiry.unwrap_or_default();
        self.before(self.options.upload_expiry.unwrap_or(usual))
    }

    fn really(&self) -> bool {
        !self.options.dry_run
    }

    /// Writes down that a whole collection came to its end.
    fn end(&mut self) {
        let Options { only, dry_run, clock, .. } = self.options;
        if only.is_some() || *dry_run || self.blocked {
            return;
        }
        let now = clock.unwrap_or_else(SystemTime::now);
        if let Err(error) = Collected::new(self.begun, now.max(self.begun)).keep(self.tree) {
            self.tell(Event::Warning(&error));
        }
    }
}
