//! `stillage snapshot`: a copy of a tree that shares the blobs with it.
//!
//! Blobs are hard links: a snapshot takes as long as there are files, however large they are, and
//! takes room for what names them only. What names them (index.json, journal, facts, views) are files
//! of the snapshot's own, so that it can be served, pushed to, checked and deleted, and the tree it
//! was made of never notices.
//!
//! Every repository is consistent in itself, whatever is pushed, deleted and collected meanwhile: its
//! index.json is copied first and its blobs are linked afterwards, all while gc.lock is held shared,
//! so that no name of a blob vanishes in between. Most blobs were linked before, without the lock, so
//! that it is held for moments. Pushes take no gc.lock and wait for nothing.
//!
//! It is made under a hidden name and gets its own when all of it is on the disk. Nothing is written
//! in ROOT, but for gc.lock where nobody has made it yet.

mod blobs;
mod files;
mod lease;
mod names;
mod previous;
pub mod report;
mod repository;
mod walk;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::Stat;
use serde::Serialize;
use thiserror::Error;

use crate::layout::lock::Holder;
use crate::layout::{self, Dir, Disk, Inode, OrAbsent, Place, StagingError, path};
use lease::Lease;

/// How to make a snapshot.
#[derive(Clone, Debug)]
pub struct Options {
    /// The snapshot to take from what cannot be linked from the tree; the newest one beside the new
    /// one where none is named.
    pub previous: Option<PathBuf>,
    /// Only look.
    pub dry_run: bool,
    /// How long gc.lock is waited for.
    pub wait: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options { previous: None, dry_run: false, wait: Duration::from_secs(60) }
    }
}

/// Why there is no snapshot.
#[derive(Debug, Error)]
pub enum SnapshotError {
    /// Something cannot be read or written.
    #[error(transparent)]
    Layout(#[from] layout::Error),
    /// It cannot be made there.
    #[error(transparent)]
    Place(#[from] StagingError),
    /// The room of the tree is another account's.
    #[error(
        "{}: this account may not take part in its locks: run the snapshot as root, which keeps \
         owners and groups, or as the account that the server runs as",
        .0.display()
    )]
    Room(PathBuf),
    /// The tree is of another version than this program knows.
    #[error("{}: the layout of this tree is of another version than this program knows", .0.display())]
    Version(PathBuf),
    /// Whoever collects does not end.
    #[error("{}: is held by somebody else ({}): nothing was made", .at.display(), Holder::list(.by))]
    Locked {
        /// The lock.
        at: PathBuf,
        /// Who holds it.
        by: Vec<Holder>,
    },
    /// What was named as an earlier snapshot.
    #[error("{}: is no earlier snapshot: {why}", .at.display())]
    Previous {
        /// The path.
        at: PathBuf,
        /// Why not.
        why: String,
    },
}

/// What came of it, in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Directories with an index.json.
    pub repositories: u64,
    /// All directories.
    pub directories: u64,
    /// Blobs that are one inode with the tree's.
    pub blobs_linked: u64,
    /// Their length; nothing of it was written.
    pub bytes_linked: u64,
    /// Blobs that could not be linked, and were copied.
    pub blobs_copied: u64,
    /// Other files that were copied.
    pub files_copied: u64,
    /// The bytes of all copies; on file systems with reflinks they are shared.
    pub bytes_copied: u64,
    /// Files that were taken from the earlier snapshot.
    pub from_previous: u64,
    /// Files and directories that are not part of the layout; they are copied too.
    pub foreign: u64,
    /// The longest time that deletes and collection had to wait, in milliseconds.
    pub longest_lock_ms: u64,
}

/// Something to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Warning {
    /// Where, from ROOT.
    pub path: PathBuf,
    /// What.
    pub message: String,
    /// A part of the registry is missing in the snapshot.
    pub incomplete: bool,
}

/// A snapshot that was made, or would be.
#[derive(Debug)]
pub struct Snapshot {
    /// The earlier one.
    pub previous: Option<PathBuf>,
    /// The numbers.
    pub summary: Summary,
    /// What is missing or different.
    pub warnings: Vec<Warning>,
}

impl Snapshot {
    /// Whether all of the registry is in it.
    pub fn is_whole(&self) -> bool {
        !self.warnings.iter().any(|warning| warning.incomplete)
    }
}

/// Makes a snapshot of the tree at `root` as `dest`, and tells `progress` of every repository.
///
/// On return it is on the disk. On an error there is no `dest`, and what was made so far is removed;
/// a killed run leaves a hidden directory beside `dest` that the next run for the same `dest` removes.
pub fn snapshot(
    root: &Path,
    dest: &Path,
    options: &Options,
    disk: Arc<dyn Disk>,
    progress: &mut dyn FnMut(&str, &Summary),
) -> Result<Snapshot, SnapshotError> {
    let from = Dir::open_root(root)?;
    look_at_room(&from)?;
    let place = Place::look(dest, &from)?;
    let (at, previous) = previous::find(options.previous.as_deref(), &place, &from)?;
    let staging = match options.dry_run {
        true => None,
        false => Some(place.begin(Arc::clone(&disk))?),
    };
    let to = staging.as_ref().map(|staging| staging.dir().clone());
    let mut run = Run {
        owners: owners(&from)?,
        disk,
        lease: Lease::new(&from, options.wait),
        top: to.clone(),
        copies: HashMap::new(),
        narrowed: 0,
        summary: Summary::default(),
        warnings: Vec::new(),
        progress,
    };
    let pair = Pair { from, to, before: previous, name: String::new() };
    let made = walk::all(&mut run, &pair);
    let (summary, warnings) = run.end();
    match (staging, made) {
        (None, made) => made?,
        (Some(staging), Ok(())) => staging.publish()?,
        (Some(staging), Err(error)) => {
            // What failed may fail again here: then the next run removes it.
            let _ = staging.abandon();
            return Err(error);
        }
    }
    Ok(Snapshot { previous: at, summary, warnings })
}

/// The accounts that the tree's own files belong to: ROOT's, and the one that the server runs as.
fn owners(root: &Dir) -> Result<Vec<u32>, SnapshotError> {
    let room = root.stat_name(path::ROOM)?.map(|stat| stat.st_uid);
    Ok(room.into_iter().chain([root.stat()?.st_uid]).collect())
}

/// Whoever cannot enter the room cannot hold its lock; one of another version may have other locks.
fn look_at_room(root: &Dir) -> Result<(), SnapshotError> {
    let room = match root.dir(path::ROOM).or_absent() {
        Ok(Some(room)) => room,
        Ok(None) => return Ok(()),
        Err(error) => match error.errno() {
            Some(rustix::io::Errno::ACCESS) => {
                return Err(SnapshotError::Room(root.at(path::ROOM)));
            }
            _ => return Err(error.into()),
        },
    };
    let Some(file) = room.file(path::VERSION).or_absent()? else { return Ok(()) };
    let at = || room.at(path::VERSION);
    match layout::read_all(&file, 64, at)? == path::VERSION_TEXT.as_bytes() {
        true => Ok(()),
        false => Err(SnapshotError::Version(at())),
    }
}

/// A directory of the tree, what becomes of it, and what it was in the earlier snapshot.
struct Pair {
    from: Dir,
    /// None where nothing is to be made.
    to: Option<Dir>,
    before: Option<Dir>,
    /// Its path from ROOT.
    name: String,
}

impl Pair {
    /// The path of something in it, from ROOT.
    fn path(&self, name: &str) -> String {
        match self.name.as_str() {
            "" => name.to_owned(),
            own => format!("{own}/{name}"),
        }
    }

    /// How deep it lies in ROOT.
    fn depth(&self) -> usize {
        self.name.split('/').filter(|name| !name.is_empty()).count()
    }
}

/// One run over one tree.
struct Run<'a> {
    disk: Arc<dyn Disk>,
    lease: Lease,
    /// Whose the tree's own files are.
    owners: Vec<u32>,
    /// The snapshot's ROOT.
    top: Option<Dir>,
    /// Copies of files with several names, by the file they are copies of: directory and name.
    copies: HashMap<Inode, (String, String)>,
    /// So many files and directories did not get all rights of their originals.
    narrowed: u64,
    summary: Summary,
    warnings: Vec<Warning>,
    progress: &'a mut dyn FnMut(&str, &Summary),
}

impl Run<'_> {
    /// Whether a file is one that nobody changes any more, so that it can be shared.
    fn is_trees_own(&self, stat: &Stat) -> bool {
        let writable = stat.st_mode & 0o222 != 0;
        layout::is_regular(stat) && !writable && self.owners.contains(&stat.st_uid)
    }

    /// A part of the registry is missing.
    fn lacks(&mut self, path: String, message: impl ToString) {
        let message = message.to_string();
        self.warnings.push(Warning { path: path.into(), message, incomplete: true });
    }

    /// Something is to be known.
    fn notes(&mut self, path: String, message: impl ToString) {
        let message = message.to_string();
        self.warnings.push(Warning { path: path.into(), message, incomplete: false });
    }

    /// Something that is part of the registry, or is not, cannot be read.
    fn unreadable(&mut self, path: String, error: &layout::Error, foreign: bool) {
        match foreign {
            true => self.notes(path, format!("is left out: {error}")),
            false => self.lacks(path, error),
        }
    }

    fn end(mut self) -> (Summary, Vec<Warning>) {
        self.summary.longest_lock_ms =
            u64::try_from(self.lease.longest.as_millis()).unwrap_or(u64::MAX);
        if self.narrowed > 0 {
            let message = format!(
                "owner, group or ACL of {} files and directories could not be kept, and they are \
                 closed to those who had rights by them: run the snapshot as root",
                self.narrowed
            );
            self.notes(String::new(), message);
        }
        (self.summary, self.warnings)
    }
}
