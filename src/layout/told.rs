//! `.stillage/webhooks/<id>/`: how far a receiver of events was told.
//!
//! A small file for the receiver and one for each repository, each replaced as a whole and durable
//! when that has returned. What they say belongs to whoever tells.

use super::dir::{self, Dir};
use super::durable;
use super::error::{OrAbsent, Result};
use super::inherit::Purpose;
use super::lock::{self, HeldDir};
use super::path;
use super::tree::Tree;
use super::walk::Walk;
use crate::oci::RepoName;

/// The most that is read: as much as the largest index.json.
const MOST: u64 = super::MAX_INDEX;

/// What is kept of one receiver; nobody else writes there while this is held.
#[derive(Debug)]
pub struct Told {
    tree: Tree,
    dir: Dir,
    _held: HeldDir,
}

impl Told {
    /// Opens what is kept of the receiver `id`; made when it is missing. `None` if somebody else has it
    /// open: another server tells this receiver.
    pub fn open(tree: &Tree, id: &str) -> Result<Option<Told>> {
        let dir = made(tree, &tree.room, &path::receiver(id))?;
        let Some(held) = lock::directory(&dir)? else { return Ok(None) };
        Ok(Some(Told { tree: tree.clone(), dir, _held: held }))
    }

    /// What is known of the receiver itself.
    pub fn receiver(&self) -> Result<Option<Vec<u8>>> {
        read(&self.dir, path::RECEIVER)
    }

    /// Keeps what is known of the receiver itself.
    pub fn keep_receiver(&self, bytes: &[u8]) -> Result<()> {
        self.keep_in(&self.dir, path::RECEIVER, bytes)
    }

    /// How far it was told of a repository.
    pub fn of(&self, name: &RepoName) -> Result<Option<Vec<u8>>> {
        match self.dir.dir(name.as_str()).or_absent()? {
            Some(dir) => read(&dir, path::TOLD),
            None => Ok(None),
        }
    }

    /// Keeps how far it was told of a repository.
    pub fn keep(&self, name: &RepoName, bytes: &[u8]) -> Result<()> {
        let dir = made(&self.tree, &self.dir, name.as_str())?;
        self.keep_in(&dir, path::TOLD, bytes)
    }

    /// Keeps nothing of a repository any more: it is gone, and that was told.
    pub fn forget(&self, name: &RepoName) -> Result<()> {
        let Some(dir) = self.dir.dir(name.as_str()).or_absent()? else { return Ok(()) };
        self.tree.disk.unlink(&dir, path::TOLD).or_absent()?;
        self.tree.disk.sync_dir(&dir)?;
        // The directories stay where there are others beneath.
        let mut name = name.as_str();
        loop {
            let (above, last) = name.rsplit_once('/').unwrap_or(("", name));
            let outer = if above.is_empty() { self.dir.clone() } else { self.dir.dir(above)? };
            if self.tree.disk.remove_dir(&outer, last).is_err() || above.is_empty() {
                return Ok(());
            }
            name = above;
        }
    }

    /// The repositories of which something is kept. What a crash left beside is removed on the way.
    pub fn names(&self) -> Result<Vec<RepoName>> {
        let mut names = Vec::new();
        self.tidy(&self.dir)?;
        for found in Walk::directories(&self.dir)? {
            let (name, dir) = found?;
            self.tidy(&dir)?;
            if dir.stat_name(path::TOLD)?.is_some() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn tidy(&self, dir: &Dir) -> Result<()> {
        for (file, _) in dir.names()? {
            if path::is_temporary(&file) {
                self.tree.disk.unlink(dir, &file).or_absent()?;
            }
        }
        Ok(())
    }

    fn keep_in(&self, dir: &Dir, name: &str, bytes: &[u8]) -> Result<()> {
        let disk = &*self.tree.disk;
        durable::replace(disk, dir, name, bytes, Purpose::Lock)?;
        disk.sync_dir(dir)
    }
}

/// A directory whose name is durable, and those on the way.
fn made(tree: &Tree, outer: &Dir, relative: &str) -> Result<Dir> {
    if let Some(found) = outer.dir(relative).or_absent()? {
        return Ok(found);
    }
    let dir = super::make::in_room(&*tree.disk, outer, relative)?;
    tree.disk.sync_dir(outer)?;
    for (end, _) in relative.match_indices('/') {
        tree.disk.sync_dir(&outer.dir(&relative[..end])?)?;
    }
    Ok(dir)
}

fn read(dir: &Dir, name: &str) -> Result<Option<Vec<u8>>> {
    match dir.file(name).or_absent()? {
        Some(file) => dir::read_all(&file, MOST, || dir.at(name)).map(Some),
        None => Ok(None),
    }
}
