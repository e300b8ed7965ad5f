//! `stillage check --repair`: what layout-spec/rules.md says under *Repair*.
//!
//! A repair works place by place, as the check does: what was found in the room or in a repository
//! is looked at again, put right in short turns under gc.lock and the repository's `.lock`, and the
//! place is checked anew, until nothing more can be done there. Whatever takes long, above all
//! hashing, is done before a lock is taken; under the locks a thing is touched only if it is still
//! what was looked at.
//!
//! Nothing is deleted that could be somebody's: it goes to [`Quarantine`]. Every step leaves a tree
//! that is no worse, so a repair may be cut short anywhere and run again.

mod blobs;
mod content;
mod files;
mod history;
mod index;
mod room;

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::Stat;

use super::finding::Finding;
use super::hashes::Hashes;
use super::probe;
use super::rule::Rule;
use crate::layout::lock::{self, Held, Holder};
use crate::layout::quarantine::Quarantine;
use crate::layout::{self, Dir, Disk, Error, OrAbsent, Tree, path};

/// So often a place is put right and looked at again: one repair may show what the next is for.
pub(super) const ROUNDS: u32 = 6;

/// So long a repository's lock is waited for while gc.lock is held; then that is let go of.
const SHORTLY: Duration = Duration::from_millis(100);

/// How to repair.
#[derive(Clone, Debug)]
pub struct Repairs {
    /// Say what would be done, and do nothing.
    pub dry_run: bool,
    /// How long to wait for each lock.
    pub wait: Duration,
    /// How changes reach the file system.
    pub disk: Arc<dyn Disk>,
}

/// Something that was put right, or would be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mended {
    /// The rule that was broken.
    pub rule: Rule,
    /// In which repository; empty for the tree's own files.
    pub repository: String,
    /// The file or directory, from ROOT.
    pub path: PathBuf,
    /// What was done.
    pub deed: String,
    /// Where it is kept now, from ROOT, if it was taken out or replaced.
    pub kept: Option<String>,
}

/// Why something was not put right.
#[derive(Debug)]
enum Stop {
    /// Somebody holds this lock.
    Blocked(PathBuf, Vec<Holder>),
    Failed(Error),
}

impl Stop {
    fn blocked(dir: &Dir, lock: &str) -> Stop {
        Stop::Blocked(dir.at(lock), lock::holders(dir, lock))
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        Stop::Failed(error)
    }
}

type Done = Result<(), Stop>;

/// What one run of repairs needs and remembers.
#[derive(Debug)]
pub(super) struct Mender {
    repairs: Repairs,
    root: Dir,
    tree: Option<Tree>,
    quarantine: Option<Quarantine>,
    /// Where else content may lie: directories from ROOT that have `blobs/`.
    places: Option<Arc<[String]>>,
    /// There is a server's room: its pool is made whole. A tree without one, as a copy, gets none.
    pools: bool,
    /// Which blobs a dry run would have linked into the pool already.
    said: HashSet<u64>,
    key: RandomState,
    /// A lock could not be had.
    pub(super) blocked: bool,
    /// Something met with an error.
    pub(super) failed: bool,
    /// In this repository, or in the room if that is empty: the rest of it is not waited for.
    shut: Option<String>,
}

impl Mender {
    /// # Errors
    /// The room is another account's: what this one made there nobody could use. Or nothing can be made
    /// there at all.
    pub(super) fn new(repairs: Repairs, root: &Dir) -> layout::Result<Mender> {
        let own = rustix::process::geteuid().as_raw();
        let stat = root.stat_name(path::ROOM)?;
        if let Some(stat) = stat.filter(|stat| stat.st_uid != own && !repairs.dry_run) {
            let owner = stat.st_uid;
            let why = format!(
                "belongs to uid {owner}, and this is uid {own}: repair it as that account (sudo -u '#{owner}' …)"
            );
            return Err(Error::damaged(root.at(path::ROOM), why));
        }
        if !repairs.dry_run && root.is_read_only()? {
            let why = "is mounted read-only, so nothing can be repaired: remount it (mount -o \
                       remount,rw), or leave out --repair";
            return Err(Error::damaged(root.path().to_owned(), why));
        }
        let root = root.clone();
        let pools = match there(root.dir(path::ROOM))? {
            Some(room) => {
                there(room.dir(path::POOL))?.is_some() || there(room.dir(path::HOLDERS))?.is_some()
            }
            None => false,
        };
        let (tree, quarantine, places) = (None, None, None);
        let (said, key) = (HashSet::new(), RandomState::new());
        let (blocked, failed, shut) = (false, false, None);
        Ok(Mender {
            repairs,
            root,
            tree,
            quarantine,
            places,
            pools,
            said,
            key,
            blocked,
            failed,
            shut,
        })
    }

    pub(super) fn is_dry(&self) -> bool {
        self.repairs.dry_run
    }

    /// The tree, to be changed: its room is made where there is none.
    fn tree(&mut self) -> layout::Result<Tree> {
        if let Some(tree) = &self.tree {
            return Ok(tree.clone());
        }
        let disk = Arc::clone(&self.repairs.disk);
        let room = match self.root.dir(path::ROOM).or_absent()? {
            Some(room) => room,
            None => Tree::make_room(&self.root, &*disk)?,
        };
        let tree = Tree::for_repair(self.root.clone(), room, disk)?;
        Ok(self.tree.insert(tree).clone())
    }

    fn quarantine(&mut self) -> layout::Result<&Quarantine> {
        let tree = self.tree()?;
        let make = || Quarantine::new(&tree.room, Arc::clone(&tree.disk));
        Ok(self.quarantine.get_or_insert_with(make))
    }

    /// Links a sound blob of a repository into the pool, where that lacks it; whether it did, or
    /// would.
    pub(super) fn pool(
        &mut self,
        file: &std::fs::File,
        stat: &Stat,
        digest: &crate::oci::Digest,
    ) -> bool {
        let pooled = if self.pools { self.try_pool(file, stat, digest) } else { Ok(false) };
        pooled.unwrap_or_else(|error| {
            self.failed = true;
            tracing::warn!(cause = ?error.to_string(), "a blob was not linked into the pool");
            false
        })
    }

    fn try_pool(
        &mut self,
        file: &std::fs::File,
        stat: &Stat,
        digest: &crate::oci::Digest,
    ) -> layout::Result<bool> {
        let Some(room) = there(self.root.dir(path::ROOM))? else { return Ok(false) };
        let shelf = room.dir(&path::pool_dir(digest)).or_absent()?;
        let lacks = match &shelf {
            Some(shelf) => shelf.stat_name(digest.hex())?.is_none(),
            None => true,
        };
        if self.is_dry() {
            // The second name of a blob will find that the first was linked.
            return Ok(lacks && self.said.insert(self.key.hash_one(digest)));
        }
        if !lacks {
            return Ok(false);
        }
        let tree = self.tree()?;
        Ok(tree.is_ours(stat) && layout::relink::pool(&tree, file, digest)?)
    }
}

/// What can be opened, if nothing else stands there.
fn there<T>(opened: layout::Result<T>) -> layout::Result<Option<T>> {
    match opened {
        Ok(value) => Ok(Some(value)),
        Err(error) if probe::is_trouble(&error) => Err(error),
        Err(_) => Ok(None),
    }
}

/// The repair of one place.
pub(super) struct Work<'a> {
    mender: &'a mut Mender,
    hashes: &'a Hashes,
    repository: &'a str,
    done: Vec<Mended>,
}

/// Puts right what can be put right of a repository's findings; gives what was done.
pub(super) fn repository(
    mender: &mut Mender,
    hashes: &Hashes,
    (name, dir): (&str, &Dir),
    findings: &[Finding],
) -> Vec<Mended> {
    let mut work = Work { mender, hashes, repository: name, done: Vec::new() };
    work.each(findings, &[Rule::WrongFileType], |work, at| work.set_aside(dir, at));
    work.each(findings, &[Rule::BlobDigestMismatch], |work, at| work.damaged(dir, at));
    work.each(findings, &[Rule::InodeTwoAlgorithms], |work, at| work.separate(dir, at));
    let missing = [Rule::ManifestMissing, Rule::BlobMissing];
    let before = std::mem::take(&mut work.mender.failed);
    work.each(findings, &missing, |work, at| work.missing(dir, at));
    // What could not be looked for may be found the next time: no entry is given up for it.
    let sought = !std::mem::replace(&mut work.mender.failed, before);
    work.mender.failed |= !sought;
    let gone = [Rule::IndexMissing, Rule::IndexMalformed];
    work.each(findings, &gone, |work, at| work.rebuild(dir, at));
    if sought {
        work.index(dir, findings);
    }
    let layout = [Rule::LayoutMissing, Rule::LayoutMalformed];
    work.each(findings, &layout, |work, at| work.oci_layout(dir, at));
    work.each(findings, &[Rule::InnerWider], |work, at| work.inner(dir, at));
    work.each(findings, &[Rule::LockOpen, Rule::JournalOpen], |work, at| work.narrow(dir, at));
    work.each(findings, &[Rule::JournalMalformed], |work, at| work.journal(dir, at));
    work.each(findings, &[Rule::FactsWrong], |work, at| work.facts(dir, at));
    // From an index.json and facts that stay as they are: they are right at the next look otherwise.
    let wrong = [Rule::ViewsStale, Rule::ViewWrong];
    if let Some(first) = findings.iter().find(|finding| wrong.contains(&finding.rule)) {
        work.each(std::slice::from_ref(first), &wrong, |work, at| work.views(dir, at));
    }
    work.done
}

/// The same for what was found in the room.
pub(super) fn room(mender: &mut Mender, hashes: &Hashes, findings: &[Finding]) -> Vec<Mended> {
    let root = mender.root.clone();
    // A symlink or a file in the place of the room: there is no other place to put it.
    let room = match there(root.dir(path::ROOM)) {
        Ok(Some(room)) => room,
        Ok(None) => return Vec::new(),
        Err(error) => {
            mender.failed = true;
            tracing::warn!(cause = ?error.to_string(), "the room was not repaired");
            return Vec::new();
        }
    };
    let mut work = Work { mender, hashes, repository: "", done: Vec::new() };
    work.each(findings, &[Rule::RoomOpen], |work, at| work.close_room(&room, at));
    work.each(findings, &[Rule::WrongFileType], |work, at| work.set_aside(&root, at));
    let keys = [Rule::TokenKeyUnsafe, Rule::TlsKeyUnsafe];
    work.each(findings, &keys, |work, at| work.unsafe_key(&root, at));
    work.each(findings, &[Rule::PoolDigestMismatch], |work, at| work.pooled_wrong(&root, at));
    let foreign = [Rule::PoolNameMalformed, Rule::NoteMalformed];
    work.each(findings, &foreign, |work, at| work.set_aside(&root, at));
    work.each(findings, &[Rule::UploadMalformed], |work, at| work.upload(&root, at));
    work.each(findings, &[Rule::PoolInodeUnsafe], |work, at| work.pooled_unsafe(&root, at));
    work.each(findings, &[Rule::InodeTwoAlgorithms], |work, at| work.separate(&root, at));
    work.each(findings, &[Rule::HolderSizeWrong], |work, at| work.hints(&root, at));
    work.done
}

/// Where a finding is.
#[derive(Clone, Copy)]
struct At<'a> {
    rule: Rule,
    /// From ROOT.
    path: &'a Path,
    /// From the repository's directory, or from ROOT for the room.
    within: &'a str,
}

impl At<'_> {
    /// The directory it lies in, and its name there; `None` where that is gone or no directory.
    fn open(&self, base: &Dir) -> layout::Result<Option<(Dir, &str)>> {
        match self.within.rsplit_once('/') {
            None => Ok(Some((base.clone(), self.within))),
            Some((parent, name)) => Ok(base.dir(parent).or_absent()?.map(|dir| (dir, name))),
        }
    }

    fn whole(&self) -> String {
        self.path.to_string_lossy().into_owned()
    }
}

impl Work<'_> {
    /// Does something for every path at which one of the rules is broken, once.
    fn each(
        &mut self,
        findings: &[Finding],
        rules: &[Rule],
        mut deed: impl FnMut(&mut Self, At<'_>) -> Done,
    ) {
        let mut seen = HashSet::new();
        for finding in findings.iter().filter(|finding| rules.contains(&finding.rule)) {
            let within = finding.path.strip_prefix(self.repository).unwrap_or(&finding.path);
            let Some(within) = within.to_str().filter(|within| !within.is_empty()) else {
                continue;
            };
            if seen.insert(&finding.path) && !self.is_shut() {
                let at = At { rule: finding.rule, path: &finding.path, within };
                let done = deed(self, at);
                self.outcome(finding.rule, &finding.path, done);
            }
        }
    }

    fn outcome(&mut self, rule: Rule, path: &Path, done: Done) {
        match done {
            Ok(()) => {}
            Err(Stop::Blocked(lock, holders)) => {
                self.mender.blocked = true;
                self.mender.shut = Some(self.repository.to_owned());
                let by = |holder: &Holder| match &holder.command {
                    Some(command) => format!("{} ({command})", holder.pid),
                    None => holder.pid.to_string(),
                };
                let by: Vec<String> = holders.iter().map(by).collect();
                tracing::warn!(%rule, ?path, ?lock, ?by, "not repaired: somebody holds the lock");
            }
            Err(Stop::Failed(error)) => {
                self.mender.failed = true;
                tracing::warn!(%rule, ?path, cause = ?error.to_string(), "not repaired");
            }
        }
    }

    fn is_dry(&self) -> bool {
        self.mender.is_dry()
    }

    /// A lock was waited for in vain here: whoever holds it is not waited for again.
    fn is_shut(&self) -> bool {
        self.mender.shut.as_deref() == Some(self.repository)
    }

    fn say(&mut self, at: At<'_>, deed: impl Into<String>, kept: Option<String>) {
        let repository = self.repository.to_owned();
        let (rule, path, deed) = (at.rule, at.path.to_owned(), deed.into());
        self.done.push(Mended { rule, repository, path, deed, kept });
    }

    /// gc.lock, then the repository's lock: nobody copies the tree, collects or commits meanwhile.
    fn turn(&mut self, repo: Option<&Dir>) -> Result<Turn, Stop> {
        let room = self.mender.tree()?.room;
        let end = Instant::now() + self.mender.repairs.wait;
        loop {
            let left = || end.saturating_duration_since(Instant::now());
            let Some(gc) = lock::exclusive_within(&room, path::GC_LOCK, left())? else {
                return Err(Stop::blocked(&room, path::GC_LOCK));
            };
            let Some(repo) = repo else { return Ok(Turn { _held: [Some(gc), None] }) };
            if let Some(own) = lock::exclusive_within(repo, path::LOCK, left().min(SHORTLY))? {
                return Ok(Turn { _held: [Some(gc), Some(own)] });
            }
            if left().is_zero() {
                return Err(Stop::blocked(repo, path::LOCK));
            }
            drop(gc);
            // Whoever deletes elsewhere or copies the tree comes in between.
            std::thread::sleep(lock::LEAVE_FREE);
        }
    }
}

/// The locks of one short turn.
struct Turn {
    _held: [Option<Held>; 2],
}
