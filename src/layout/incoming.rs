//! Content on its way in, before it has its digest for a name.

use std::fs::File;
use std::path::PathBuf;

use rustix::fs::{self, Mode};
use rustix::io::Errno;

use super::dir::Dir;
use super::error::{At, Result};
use super::tree::Tree;
use super::{inherit, path};

/// Content on its way in: a file of the room's that becomes a blob by being linked.
#[derive(Debug)]
pub struct Incoming {
    pub(super) file: File,
    /// Its name, where the file system has no nameless files, or where it is a session's data.
    name: Option<(Dir, String)>,
}

impl Incoming {
    /// A new file in the room: nameless where the file system can.
    pub fn create(tree: &Tree) -> Result<Incoming> {
        let uploads = tree.room.dir(path::UPLOADS)?;
        let mode = Mode::RUSR | Mode::WUSR;
        match tree.disk.create_unnamed(&uploads, mode) {
            Ok(file) => return Ok(Incoming { file, name: None }),
            Err(error) => match error.errno() {
                Some(Errno::NOTSUP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => {}
                _ => return Err(error),
            },
        }
        let name = path::temporary("blob");
        let file = tree.disk.create(&uploads, &name, mode)?;
        Ok(Incoming { file, name: Some((uploads, name)) })
    }

    /// A file that has a name: the data of an upload session, or a copy beside a blob.
    pub fn named(file: File, dir: Dir, name: &str) -> Incoming {
        Incoming { file, name: Some((dir, name.to_owned())) }
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Writes all of a small blob.
    pub fn write(&self, tree: &Tree, bytes: &[u8]) -> Result<()> {
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
        tree.disk.sync(&self.file).at(at)
    }

    pub(super) fn path(&self, tree: &Tree) -> PathBuf {
        match &self.name {
            Some((dir, name)) => dir.at(name),
            None => tree.room.at(path::UPLOADS),
        }
    }

    /// Removes the name, if it has one: whatever was linked from it stays.
    pub fn discard(self, tree: &Tree) {
        if let Some((dir, name)) = &self.name
            && let Err(error) = tree.disk.unlink(dir, name)
        {
            tracing::warn!(%error, "a temporary file stays until gc removes it");
        }
    }

    /// Does `work` with a new file, and removes its name afterwards, if it has one.
    pub(super) fn with<T>(tree: &Tree, work: impl FnOnce(&Incoming) -> Result<T>) -> Result<T> {
        let incoming = Incoming::create(tree)?;
        let done = work(&incoming);
        incoming.discard(tree);
        done
    }
}
