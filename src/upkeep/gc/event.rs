//! What a collection tells of, and the sums.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Serialize;
use thiserror::Error;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::graph;
use crate::layout::history::Named;
use crate::layout::lock::Holder;
use crate::layout::{self, path};
use crate::oci::{Digest, RepoName, What};

/// Something that happened, or in a dry run would.
#[derive(Debug)]
pub enum Event<'a> {
    /// A repository's turn begins.
    Repository(&'a RepoName),
    /// So many names were looked at since the last time that this was told.
    Looked(u64),
    /// What becomes of one blob of a repository, where nothing refers to it.
    Digest {
        /// The repository.
        repository: &'a RepoName,
        /// The blob.
        digest: &'a Digest,
        /// What becomes of it.
        fate: Fate<'a>,
    },
    /// A manifest without a tag.
    Untagged {
        /// The repository.
        repository: &'a RepoName,
        /// The manifest.
        digest: &'a Digest,
        /// Since when it has had no tag; `None` if the journal does not tell.
        since: Option<SystemTime>,
        /// Whether it goes.
        goes: bool,
    },
    /// A name in the pool that was the last one of its inode, and goes.
    Pool {
        /// The content.
        digest: &'a Digest,
        /// What it gives back.
        bytes: u64,
    },
    /// What was in the trash for longer than it is kept goes.
    Trash {
        /// The hour in which it came there.
        hour: &'a str,
        /// How many files.
        files: u64,
        /// What that gives back.
        bytes: u64,
    },
    /// Uploads that nobody went on with end, and temporary files go.
    Uploads {
        /// How many uploads.
        uploads: u64,
        /// How many temporary files.
        files: u64,
        /// What that gives back.
        bytes: u64,
    },
    /// A temporary file that was left in a repository or in the pool goes.
    Leftover {
        /// What it gives back.
        bytes: u64,
    },
    /// What is only history or a memory was made shorter.
    Tidied {
        /// The repository.
        repository: &'a RepoName,
        /// What was done.
        what: Tidied<'a>,
    },
    /// A repository is left for the next collection.
    Left {
        /// The repository.
        repository: &'a RepoName,
        /// Why.
        why: &'a Why,
    },
    /// Nothing could be removed from here on.
    Blocked(&'a Why),
    /// A directory that cannot be read, and may be anybody's.
    PassedOver(&'a layout::Error),
    /// Something was left undone that no blob depends on.
    Warning(&'a layout::Error),
}

/// What was made shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tidied<'a> {
    /// The journal was so long that a new one begins.
    JournalSetAside,
    /// A part of the journal was so old that it goes.
    JournalPart(&'a str),
    /// The facts of manifests that are gone were dropped.
    Facts,
}

/// What becomes of a blob that index.json does not reach.
#[derive(Clone, Copy, Debug)]
pub enum Fate<'a> {
    /// It was seen without a reference for the first time.
    Noted,
    /// It stays for the grace.
    Waits {
        /// Since when it was seen so.
        since: SystemTime,
    },
    /// It stays for the undo window.
    Kept(&'a KeptBy),
    /// It was promised to a pusher meanwhile, and stays.
    Promised,
    /// It was referred to meanwhile, and stays.
    Referred,
    /// It goes.
    Goes {
        /// Since when it was seen without a reference; `None` without grace.
        since: Option<SystemTime>,
        /// Its length.
        size: u64,
        /// What that gives back: nothing, while the content has other names.
        bytes: u64,
        /// How many other names the content has, the pool's among them.
        others: u64,
        /// The line of the journal that can be undone no more, as it needs this.
        undo: Option<&'a KeptBy>,
        /// Repositories that are known to have the content still; only looked for where one
        /// repository is collected at once.
        elsewhere: &'a [RepoName],
    },
}

/// The line of the journal for which something is kept.
#[derive(Clone, Debug)]
pub struct KeptBy {
    /// When it was written; what it names is kept for the undo window from then.
    pub time: SystemTime,
    /// What happened, and the tag it happened to.
    pub what: Option<(What, Option<String>)>,
}

impl KeptBy {
    pub(super) fn line(named: &Named) -> KeptBy {
        KeptBy { time: named.time, what: Some((named.what, named.tag.clone())) }
    }
}

/// Why a repository, or all of them, are left for the next collection.
#[derive(Debug, Error)]
pub enum Why {
    /// Something cannot be read, and might refer to anything.
    #[error(transparent)]
    Unreadable(layout::Error),
    /// A manifest is not there, and might have referred to anything.
    #[error("{}: is missing, and {} names it", .path.display(), path::INDEX)]
    Missing {
        /// The manifest.
        digest: Digest,
        /// Where it should be.
        path: PathBuf,
    },
    /// It does not come to rest.
    #[error("its {} changes all the while, and what it named is gone", path::INDEX)]
    Restless,
    /// Its index.json is gone, and there was one.
    #[error("{} is gone, and the journal says that there was one", path::INDEX)]
    NoIndex,
    /// Another directory has its name now.
    #[error("it was moved or replaced meanwhile")]
    Moved,
    /// The journal is from the future.
    #[error(
        "line {line} of {} is of {time}, and the clock is behind that: set the clock, or, where that \
         is right, take the line out: {}", .part.display(), out(.part, .line)
    )]
    ClockBehind {
        /// What the line says.
        time: String,
        /// The part of the journal that it stands in.
        part: PathBuf,
        /// Which line of it.
        line: u64,
    },
    /// Its index.json is being written all the time.
    #[error("its {} is being written by another tool", path::INDEX)]
    BeingWritten,
    /// Somebody holds a lock for longer than is waited.
    #[error("{lock} is held{}", by(.holders))]
    Held {
        /// The lock's path.
        lock: String,
        /// Who holds it.
        holders: Vec<Holder>,
    },
    /// A commit that was to take manifests out failed.
    #[error("manifests without a tag were not taken out: {0}")]
    Untag(String),
}

impl From<layout::Error> for Why {
    fn from(error: layout::Error) -> Why {
        Why::Unreadable(error)
    }
}

/// The command that takes a line out of a journal, beside servers and collections.
fn out(part: &Path, line: &u64) -> String {
    let lock = part.with_file_name(path::LOCK);
    let quoted = |path: &Path| format!("'{}'", path.display().to_string().replace('\'', r"'\''"));
    format!("flock {} sed -i {line}d {}", quoted(&lock), quoted(part))
}

fn by(holders: &[Holder]) -> String {
    let named = holders.iter().map(|holder| match &holder.command {
        Some(command) => format!("process {} ({command})", holder.pid),
        None => format!("process {}", holder.pid),
    });
    let named: Vec<String> = named.collect();
    if named.is_empty() { String::new() } else { format!(" by {}", named.join(", ")) }
}

/// The sums of a collection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Repositories that were looked at.
    pub repositories: u64,
    /// Names of blobs that were looked at.
    pub looked: u64,
    /// Blobs that were seen without a reference for the first time.
    pub noted: u64,
    /// Blobs that stay for the grace, or because they were promised.
    pub waiting: u64,
    /// Blobs that stay for the undo window.
    pub undoable: u64,
    /// Manifests that were taken out because they had no tag.
    pub untagged: u64,
    /// Names of blobs that went from repositories.
    pub removed: u64,
    /// Names that went from the pool.
    pub pooled: u64,
    /// Files that went from the trash.
    pub trashed: u64,
    /// Uploads that ended.
    pub uploads: u64,
    /// Temporary files that went.
    pub leftovers: u64,
    /// Bytes that were given back.
    pub bytes: u64,
    /// Repositories that were left for the next collection.
    pub left: u64,
    /// Whether nothing could be removed at all, from some time on.
    pub blocked: bool,
    /// What was left undone that no blob depends on.
    pub warnings: u64,
}

impl Summary {
    /// Whether all was done that was to be done.
    pub fn is_whole(&self) -> bool {
        self.left == 0 && !self.blocked && self.warnings == 0
    }

    pub(super) fn count(&mut self, event: &Event<'_>) {
        match event {
            Event::Repository(_) => self.repositories += 1,
            Event::Looked(names) => self.looked += names,
            Event::Digest { fate, .. } => self.blob(fate),
            Event::Untagged { goes, .. } => self.untagged += u64::from(*goes),
            Event::Pool { bytes, .. } => {
                self.pooled += 1;
                self.bytes += bytes;
            }
            Event::Trash { files, bytes, .. } => {
                self.trashed += files;
                self.bytes += bytes;
            }
            Event::Uploads { uploads, files, bytes } => {
                self.uploads += uploads;
                self.leftovers += files;
                self.bytes += bytes;
            }
            Event::Leftover { bytes } => {
                self.leftovers += 1;
                self.bytes += bytes;
            }
            Event::Left { .. } => self.left += 1,
            Event::Blocked(_) => self.blocked = true,
            Event::PassedOver(_) | Event::Tidied { .. } => {}
            Event::Warning(_) => self.warnings += 1,
        }
    }

    fn blob(&mut self, fate: &Fate<'_>) {
        match fate {
            Fate::Noted => self.noted += 1,
            Fate::Waits { .. } | Fate::Promised => self.waiting += 1,
            Fate::Referred => {}
            Fate::Kept(_) => self.undoable += 1,
            Fate::Goes { bytes, .. } => {
                self.removed += 1;
                self.bytes += bytes;
            }
        }
    }
}

/// A time as it is written for people and programs.
pub(super) fn written(time: SystemTime) -> String {
    let time = OffsetDateTime::from(time);
    let whole = time.replace_nanosecond(0).unwrap_or(time);
    whole.format(&Rfc3339).unwrap_or_else(|_| time.to_string())
}

const _: () = assert!(graph::INDEX == 0, "causes of the journal are counted from 1");
