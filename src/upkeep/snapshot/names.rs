//! What names blobs. index.json and the journal are of one moment, under gc.lock. The journal is only
//! opened then: what it had at that moment is the beginning of what it has later. It, and what follows
//! from index.json (views), is true at any time (facts) or never changes (older parts of the journal)
//! is copied when nobody waits any more: it may be long.

use std::collections::BTreeMap;
use std::time::Duration;

use rustix::fs::FileType;

use super::files::{self, Source};
use super::{Pair, Run, SnapshotError, walk};
use crate::layout::lock::Held;
use crate::layout::views::Origin;
use crate::layout::{
    self, Dir, Entry, Error, IndexFile, Listed, Listing, MAX_INDEX, OrAbsent, Stamp, lock, path,
};
use crate::oci::{Algorithm, Index, RepoName};

type Result<T> = std::result::Result<T, SnapshotError>;

/// So often it is tried without disturbing anybody.
const ATTEMPTS: u32 = 3;

/// So long the repository's lock is waited for then: gc.lock is held meanwhile.
const LOCK_WAIT: Duration = Duration::from_millis(500);

/// What a repository had at one moment.
pub(super) struct Moment {
    names: BTreeMap<String, Entry>,
    truth: Truth,
    journal: Option<Source>,
}

/// What names blobs, or belongs to them, but for older parts of the journal.
const OWN: [&str; 6] =
    [path::INDEX, path::OCI_LAYOUT, path::JOURNAL, path::TAGS, path::MANIFESTS, path::REFERRERS];

/// Whether a name in a repository's directory is one that names blobs, or belongs to them.
pub(super) fn is_own(name: &str) -> bool {
    OWN.contains(&name) || path::old_journal(name).is_some()
}

/// Whether such a name is a directory's.
fn is_directory(name: &str) -> bool {
    name == path::MANIFESTS || name == path::REFERRERS
}

/// Whether it may be copied later than index.json.
fn can_wait(name: &str) -> bool {
    let is_journal = name == path::JOURNAL || path::old_journal(name).is_some();
    is_view(name) || name == path::REFERRERS || is_journal
}

/// Whether a name is one of what is made from index.json, and from nothing else.
fn is_view(name: &str) -> bool {
    name == path::MANIFESTS || name == path::TAGS
}

/// Copies what cannot wait; `None` if another tool is in the middle of writing index.json: come again.
/// index.json is read first, and its bytes are what the snapshot has: what it names was there when it
/// was read, and stays as long as gc.lock is held.
///
/// The journal belongs to it if index.json and the parts' names are afterwards what they were before.
/// Where that never comes to rest, the repository's lock is taken, shared. If even that is not to be
/// had, they are copied as they are: the journal may then know of more than index.json does.
pub(super) fn settle(run: &mut Run<'_>, pair: &Pair, as_it_is: bool) -> Result<Option<Moment>> {
    let counted = run.summary.clone();
    for attempt in 1u32.. {
        // A lock that cannot be had does not stop the copy: it is the best there is.
        let wanted = attempt > ATTEMPTS;
        let held = wanted.then(|| hold(pair));
        let names = own_names(&pair.from)?;
        let truth = match Truth::read(run, pair) {
            Truth::BeingWritten(..) if !as_it_is => return Ok(None),
            truth => truth,
        };
        truth.write(run, pair)?;
        for entry in names.values().filter(|entry| !can_wait(&entry.name)) {
            copy(run, pair, entry)?;
        }
        let journal = journal(run, pair, &names);
        if own_names(&pair.from)? == names && truth.is_still(&pair.from) {
            return Ok(Some(Moment { names, truth, journal }));
        }
        if attempt > ATTEMPTS + 1 {
            let message = "changed all the while it was copied, and its lock was not to be had: its \
                           journal may name what its index.json does not know yet";
            run.notes(pair.name.clone(), message);
            return Ok(Some(Moment { names, truth, journal }));
        }
        drop(held);
        run.summary = counted.clone();
        clear(run, pair)?;
    }
    Ok(None)
}

/// Holds the repository's lock, if it is to be had soon: nobody commits to it meanwhile.
pub(super) fn hold(pair: &Pair) -> Option<Held> {
    lock::shared_in_turn(&pair.from, path::LOCK, LOCK_WAIT).ok().flatten()
}

/// Copies what could wait, as far as it was there at that moment: parts that came since have newer
/// lines than index.json. `false` if index.json is another one by now and there are views, which then
/// may be of that one.
pub(super) fn rest(
    run: &mut Run<'_>,
    pair: &Pair,
    moment: &Moment,
    still: Option<&Held>,
) -> Result<bool> {
    let waiting = moment.names.values().filter(|entry| can_wait(&entry.name));
    let mut views = false;
    for entry in waiting {
        if entry.name != path::JOURNAL || entry.kind != FileType::RegularFile {
            copy(run, pair, entry)?;
        } else if let Some(journal) = &moment.journal {
            files::copy_open(run, pair, path::JOURNAL, journal, false)?;
        }
        views |= is_view(&entry.name);
    }
    Ok(!views || moment.truth.is_still(&pair.from) && fit(pair, &moment.truth, still)?)
}

/// Whether the views that were copied are those of index.json: a commit makes them a moment after it. Where
/// nothing says what they are of, somebody may be making them; under the repository's lock nobody is.
fn fit(pair: &Pair, truth: &Truth, still: Option<&Held>) -> Result<bool> {
    let (Some(to), Ok(name)) = (&pair.to, RepoName::parse(&pair.name)) else { return Ok(true) };
    let stamp = truth.bytes().map_or_else(Stamp::nothing, |(_, bytes)| Stamp::of(bytes));
    Ok(match Origin::read(to)? {
        Some(said) => said == Origin::new(&name, stamp),
        None => still.is_some(),
    })
}

/// Leaves the views out: whoever serves the snapshot makes them anew.
pub(super) fn without_views(run: &mut Run<'_>, pair: &Pair) -> Result<()> {
    let message = "its views are of another index.json, or changed all the while: they are left out, and \
                   are made again by whoever serves the snapshot";
    run.notes(pair.name.clone(), message);
    remove(run, pair, is_view)?;
    let Some(to) = &pair.to else { return Ok(()) };
    let Some(lists) = to.dir(path::REFERRERS).or_absent()? else { return Ok(()) };
    for algorithm in Algorithm::ALL {
        layout::remove_all(&*run.disk, &lists, algorithm.as_str()).or_absent()?;
    }
    Ok(())
}

/// The journal, open, with the length that it has now.
fn journal(run: &mut Run<'_>, pair: &Pair, names: &BTreeMap<String, Entry>) -> Option<Source> {
    let kind = names.get(path::JOURNAL)?.kind;
    (kind == FileType::RegularFile).then(|| files::open(run, pair, path::JOURNAL, false))?
}

fn own_names(dir: &Dir) -> layout::Result<BTreeMap<String, Entry>> {
    let mut found = BTreeMap::new();
    for named in Listing::of(dir)? {
        if let Listed::Entry(entry) = named?
            && is_own(&entry.name)
        {
            found.insert(entry.name.clone(), entry);
        }
    }
    Ok(found)
}

fn copy(run: &mut Run<'_>, pair: &Pair, entry: &Entry) -> Result<()> {
    let name = &entry.name;
    match entry.kind {
        // Written as it was read.
        FileType::RegularFile if name == path::INDEX => Ok(()),
        FileType::RegularFile if !is_directory(name) => files::copy(run, pair, name, false),
        FileType::Directory if name == path::REFERRERS => {
            walk::within(run, pair, name, false, |run, child| {
                run.summary.directories += 1;
                files::copy(run, child, path::FACTS, false)?;
                for algorithm in Algorithm::ALL {
                    walk::copy_all(run, child, algorithm.as_str(), false)?;
                }
                Ok(())
            })
        }
        FileType::Directory if is_directory(name) => walk::copy_all(run, pair, name, false),
        // However much it is, nobody waits for it.
        FileType::RegularFile | FileType::Directory => Ok(()),
        _ => walk::foreign(run, pair, entry),
    }
}

/// Copies, when nobody waits any more, what others put where the repository's own might be.
pub(super) fn others(run: &mut Run<'_>, pair: &Pair) -> Result<()> {
    for entry in own_names(&pair.from)?.values() {
        let name = &entry.name;
        let directory = entry.kind == FileType::Directory;
        if directory && name == path::REFERRERS {
            walk::within(run, pair, name, false, |run, child| {
                for entry in walk::names(run, child, false) {
                    let lists = Algorithm::ALL.iter().any(|known| known.as_str() == entry.name);
                    let expected = if lists { FileType::Directory } else { FileType::RegularFile };
                    if !(lists || entry.name == path::FACTS) || entry.kind != expected {
                        other(run, child, &entry)?;
                    }
                }
                Ok(())
            })?;
        } else if directory != is_directory(name)
            && (directory || entry.kind == FileType::RegularFile)
        {
            other(run, pair, entry)?;
        }
    }
    Ok(())
}

fn other(run: &mut Run<'_>, pair: &Pair, entry: &Entry) -> Result<()> {
    let there = match &pair.to {
        Some(to) => to.stat_name(&entry.name)?.is_some(),
        None => false,
    };
    match entry.kind {
        // It was the repository's own a moment ago.
        _ if there || walk::is_passed_over(&entry.name) => Ok(()),
        FileType::Directory => {
            run.summary.foreign += 1;
            walk::copy_all(run, pair, &entry.name, true)
        }
        _ => walk::foreign(run, pair, entry),
    }
}

/// Takes back what an attempt wrote.
pub(super) fn clear(run: &mut Run<'_>, pair: &Pair) -> Result<()> {
    remove(run, pair, is_own)
}

fn remove(run: &mut Run<'_>, pair: &Pair, which: fn(&str) -> bool) -> Result<()> {
    let Some(to) = &pair.to else { return Ok(()) };
    for (name, kind) in to.names()? {
        match kind {
            _ if !which(&name) => {}
            FileType::Directory => layout::remove_all(&*run.disk, to, &name)?,
            _ => run.disk.unlink(to, &name)?,
        }
    }
    Ok(())
}

/// index.json as it was read.
enum Truth {
    Absent,
    Read(Source, Vec<u8>),
    BeingWritten(Source, Vec<u8>),
}

impl Truth {
    fn read(run: &mut Run<'_>, pair: &Pair) -> Truth {
        let Some(source) = files::open(run, pair, path::INDEX, false) else {
            return Truth::Absent;
        };
        let at = || pair.from.at(path::INDEX);
        let read = layout::read_all(&source.file, MAX_INDEX, at);
        match read {
            Err(error) => {
                run.unreadable(pair.path(path::INDEX), &error, false);
                Truth::Absent
            }
            Ok(bytes) => match Index::parse(&bytes) {
                Ok(_) => Truth::Read(source, bytes),
                Err(error) => {
                    let error = Error::damaged(at(), error);
                    if IndexFile::being_written(&pair.from, &error) {
                        return Truth::BeingWritten(source, bytes);
                    }
                    run.lacks(pair.path(path::INDEX), format!("is damaged, as copied: {error}"));
                    Truth::Read(source, bytes)
                }
            },
        }
    }

    fn bytes(&self) -> Option<(&Source, &[u8])> {
        match self {
            Truth::Absent => None,
            Truth::Read(source, bytes) | Truth::BeingWritten(source, bytes) => {
                Some((source, bytes))
            }
        }
    }

    fn write(&self, run: &mut Run<'_>, pair: &Pair) -> Result<()> {
        match self.bytes() {
            None => Ok(()),
            Some((source, bytes)) => files::write_bytes(run, pair, path::INDEX, source, bytes),
        }
    }

    /// Whether the same bytes stand there now.
    fn is_still(&self, dir: &Dir) -> bool {
        let now = dir.file(path::INDEX).or_absent().and_then(|file| {
            let Some(file) = file else { return Ok(None) };
            layout::read_all(&file, MAX_INDEX, || dir.at(path::INDEX)).map(Some)
        });
        let stamp = |bytes: &[u8]| Stamp::of(bytes);
        match now {
            Ok(now) => now.as_deref().map(stamp) == self.bytes().map(|(_, bytes)| stamp(bytes)),
            // What could not be read before cannot be read now.
            Err(_) => self.bytes().is_none(),
        }
    }
}
