//! Content on its way in, before it has its digest for a name.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{self, Mode};
use rustix::io::Errno;

use super::dir::Dir;
use super::disk::Disk;
use super::error::{At, Result};
use super::tree::Tree;
use super::{inherit, path};

/// Only the server's account reads and writes it until it is sealed.
const MODE: Mode = Mode::RUSR.union(Mode::WUSR);

/// Content on its way in: a file of the room's that becomes a blob by being linked.
///
/// A file that was made here loses its name when it is dropped, finished or not: whatever was linked
/// from it stays.
#[derive(Debug)]
pub struct Incoming {
    pub(super) file: File,
    name: Name,
    /// A sync of it failed: what is on the disk is unknown, whatever a second sync says.
    spoiled: AtomicBool,
}

#[derive(Debug)]
enum Name {
    /// The file system has nameless files.
    None,
    /// Ours to remove.
    Made(Arc<dyn Disk>, Dir, String),
    /// Somebody else's: an upload session's data.
    Kept(Dir, String),
}

impl Incoming {
    fn new(file: File, name: Name) -> Incoming {
        Incoming { file, name, spoiled: AtomicBool::new(false) }
    }

    /// A new file in the room: nameless where the file system can.
    pub fn create(tree: &Tree) -> Result<Incoming> {
        let uploads = tree.room.dir(path::UPLOADS)?;
        match tree.disk.create_unnamed(&uploads, MODE) {
            Ok(file) => return Ok(Incoming::new(file, Name::None)),
            Err(error) => match error.errno() {
                Some(Errno::NOTSUP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => {}
                _ => return Err(error),
            },
        }
        Incoming::beside(tree, &uploads)
    }

    /// A new file with a temporary name in a directory. It is locked for as long as it is open: the
    /// sweep takes what nobody holds.
    pub(super) fn beside(tree: &Tree, dir: &Dir) -> Result<Incoming> {
        let name = path::temporary("blob");
        let file = tree.disk.create(dir, &name, MODE)?;
        // Where the file system knows no locks, its age alone protects it.
        let _ = file.try_lock();
        Ok(Incoming::new(file, Name::Made(Arc::clone(&tree.disk), dir.clone(), name)))
    }

    /// The data of an upload session, which keeps its name until the session ends.
    pub fn of_session(file: File, dir: Dir) -> Incoming {
        Incoming::new(file, Name::Kept(dir, path::UPLOAD_DATA.to_owned()))
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Whether a sync of it has failed: then it is to be thrown away.
    pub fn is_spoiled(&self) -> bool {
        self.spoiled.load(Ordering::Relaxed)
    }

    /// Writes all of a small blob.
    pub(super) fn write(&self, tree: &Tree, bytes: &[u8]) -> Result<()> {
        tree.disk.write(&self.file, bytes, 0).at(|| self.path(tree))
    }

    /// Makes the content durable and the inode read-only; nothing writes to it afterwards.
    ///
    /// Cutting the file to its length gives back what was reserved past its end.
    pub(super) fn seal(&self, tree: &Tree, size: u64) -> Result<()> {
        let at = || self.path(tree);
        tree.disk.set_len(&self.file, size).at(at)?;
        inherit::strip_acl(&self.file).at(at)?;
        fs::fchmod(&self.file, Mode::from_raw_mode(0o444)).at(at)?;
        let synced = tree.disk.sync(&self.file).at(at);
        self.spoiled.store(synced.is_err(), Ordering::Relaxed);
        synced
    }

    /// Gives the file its final name by renaming it: for file systems without links.
    pub(super) fn rename_to(mut self, tree: &Tree, to: &str) -> Result<()> {
        if let Name::Made(_, dir, name) = &self.name {
            tree.disk.rename(dir, name, dir, to)?;
            self.name = Name::None;
        }
        Ok(())
    }

    pub(super) fn path(&self, tree: &Tree) -> PathBuf {
        match &self.name {
            Name::Made(_, dir, name) | Name::Kept(dir, name) => dir.at(name),
            Name::None => tree.room.at(path::UPLOADS),
        }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Name::Made(disk, dir, name) = &self.name
            && let Err(error) = disk.unlink(dir, name)
        {
            tracing::warn!(%error, "a temporary file stays until it is swept");
        }
    }
}
