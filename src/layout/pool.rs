//! The pool's names, one by one.
//!
//! The pool is only an index, and its names are taken without a lock: whoever links from it at that
//! moment has the content, and the pool gets it back from the next who hashes it.

use std::time::SystemTime;

use rustix::fs::{FileType, Stat};

use super::dir::{self, Dir};
use super::error::{OrAbsent, Result};
use super::path;
use super::sweep;
use super::tree::Tree;
use crate::oci::{Algorithm, Digest};

/// A name in the pool, and what is known of its inode.
#[derive(Debug)]
pub struct Name<'a> {
    tree: &'a Tree,
    dir: &'a Dir,
    /// Which content it is.
    pub digest: Digest,
    /// The inode's status.
    pub stat: Stat,
}

impl Name<'_> {
    /// When it got or lost a name last.
    pub fn changed(&self) -> SystemTime {
        dir::changed(&self.stat)
    }

    /// Takes the name away.
    pub fn unlink(&self) -> Result<()> {
        self.tree.disk.unlink(self.dir, self.digest.hex()).or_absent().map(|_| ())
    }
}

/// Gives every name of a digest that is a regular file, in no order. Temporary names that were made
/// before a time and that nobody holds go on the way, or are only looked at, without `really`.
pub fn each(
    tree: &Tree,
    before: SystemTime,
    really: bool,
    mut take: impl FnMut(&Name<'_>) -> Result<()>,
) -> Result<()> {
    for algorithm in Algorithm::ALL {
        let Some(all) = tree.room.dir(&path::pool_of(algorithm)).or_absent()? else { continue };
        for entry in all.names()? {
            let Some(dir) = subdirectory(&all, &entry)? else { continue };
            for entry in dir.entries()? {
                let (name, kind) = entry?;
                let Ok(digest) = Digest::parse(&format!("{algorithm}:{name}")) else {
                    sweep::leftover(tree, &dir, &name, kind, before, really)?;
                    continue;
                };
                if let Some(stat) = dir.stat_name(&name)?.filter(dir::is_regular) {
                    take(&Name { tree, dir: &dir, digest, stat })?;
                }
            }
        }
    }
    Ok(())
}

fn subdirectory(all: &Dir, (name, kind): &(String, FileType)) -> Result<Option<Dir>> {
    if *kind != FileType::Directory || name.len() != 2 {
        return Ok(None);
    }
    all.dir(name).or_absent()
}
