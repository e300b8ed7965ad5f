//! A tree that is only read: how it is opened, and what keeps everybody from writing to it.

use std::ffi::CStr;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::Mode;
use rustix::io::Errno;

use super::dir::Dir;
use super::disk::Disk;
use super::error::{At, OrAbsent, Result};
use super::path;
use super::tree::{self, Tree};

impl Tree {
    /// Opens a tree that is never written to: a read-only mount, a copy without a room of its own, or
    /// one that another server writes to.
    ///
    /// A room counts if it is this account's: then content that the pool has need not be hashed, and
    /// tokens are signed with the tree's own key. Somebody else's is left alone, and it is as if there
    /// were none.
    ///
    /// # Errors
    /// There is no such directory. A room of our own that others may enter, or one of an unknown
    /// version, is refused as it is by [`Tree::open`].
    pub fn open_read_only(root: &Path) -> Result<Tree> {
        let root = Dir::open_root(root)?;
        let room = match root.stat_name(path::ROOM)? {
            Some(stat) if stat.st_uid == rustix::process::geteuid().as_raw() => {
                let room = root.dir(path::ROOM).or_absent()?;
                room.map(|room| trusted(&root, room)).transpose()?
            }
            Some(stat) => {
                let (path, owner) = (root.at(path::ROOM), stat.st_uid);
                tracing::info!(?path, owner, "this room is another account's and is not used");
                None
            }
            None => None,
        };
        let room = match room {
            Some(room) => room,
            None => Dir::nowhere(root.at(path::ROOM))?,
        };
        let mut tree = Tree::for_repair(root, room, Arc::new(NoWrites))?;
        tree.read_only = true;
        Ok(tree)
    }
}

fn trusted(root: &Dir, room: Dir) -> Result<Dir> {
    tree::check_room(root, &room)?;
    // One without a version is being made at this moment, or was never used.
    tree::known_version(&room)?;
    Ok(room)
}

/// A file system that takes no writes, wherever the tree lies.
#[derive(Clone, Copy, Debug)]
struct NoWrites;

fn refused<T>(dir: &Dir, name: &str) -> Result<T> {
    Err(Errno::ROFS).at(|| dir.at(name))
}

impl Disk for NoWrites {
    fn make_dir(&self, dir: &Dir, name: &str, _: Mode) -> Result<()> {
        refused(dir, name)
    }

    fn create(&self, dir: &Dir, name: &str, _: Mode) -> Result<File> {
        refused(dir, name)
    }

    fn create_unnamed(&self, dir: &Dir, _: Mode) -> Result<File> {
        refused(dir, ".")
    }

    fn open_append(&self, dir: &Dir, name: &str, _: Mode) -> Result<(File, bool)> {
        refused(dir, name)
    }

    fn write(&self, _: &File, _: &[u8], _: u64) -> std::io::Result<()> {
        Err(Errno::ROFS.into())
    }

    fn set_len(&self, _: &File, _: u64) -> std::io::Result<()> {
        Err(Errno::ROFS.into())
    }

    fn clone_content(&self, _: &File, _: &File) -> std::io::Result<()> {
        Err(Errno::ROFS.into())
    }

    fn sync(&self, _: &File) -> std::io::Result<()> {
        Err(Errno::ROFS.into())
    }

    fn sync_dir(&self, dir: &Dir) -> Result<()> {
        refused(dir, ".")
    }

    fn rename(&self, _: &Dir, _: &str, to: &Dir, new: &str) -> Result<()> {
        refused(to, new)
    }

    fn rename_new(&self, _: &Dir, _: &str, to: &Dir, new: &str) -> Result<()> {
        refused(to, new)
    }

    fn link(&self, _: &Dir, _: &str, to: &Dir, new: &str) -> Result<()> {
        refused(to, new)
    }

    fn link_file(&self, _: &File, to: &Dir, new: &str) -> Result<()> {
        refused(to, new)
    }

    fn unlink(&self, dir: &Dir, name: &str) -> Result<()> {
        refused(dir, name)
    }

    fn remove_dir(&self, dir: &Dir, name: &str) -> Result<()> {
        refused(dir, name)
    }

    fn symlink(&self, _: &CStr, dir: &Dir, name: &str) -> Result<()> {
        refused(dir, name)
    }

    fn sync_all(&self, dir: &Dir) -> Result<()> {
        refused(dir, ".")
    }
}

impl Tree {
    /// Whether it was opened to be read only.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// An error where the tree cannot be listed any more: its disk or its server is gone.
    ///
    /// # Errors
    /// What the system said.
    pub fn refuse_unreadable(&self) -> Result<()> {
        self.root.entries()?.next().transpose().map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown};

    use super::super::RealDisk;
    use super::*;
    use crate::layout::{Account, Error};
    use crate::oci::RepoName;

    fn read_only(root: &Path) -> std::result::Result<Tree, String> {
        Tree::open_read_only(root).map_err(|error: Error| error.to_string())
    }

    #[test]
    fn a_tree_without_a_room_has_none_afterwards() {
        let temp = tempfile::tempdir().unwrap();
        let tree = read_only(temp.path()).unwrap();
        assert!(tree.is_read_only() && tree.room.dir(path::POOL).unwrap_err().is_absent());
        let name = RepoName::parse("a/b").unwrap();
        let error = tree.make_repository(&name, &Account::default()).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::ROFS));
        assert!(tree.make_in_room(path::UPLOADS).is_err());
        assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 0);
        let error = read_only(&temp.path().join("none")).unwrap_err();
        assert!(error.ends_with("none: No such file or directory (os error 2)"), "{error}");
    }

    #[test]
    fn a_room_counts_if_it_is_our_own_and_closed() {
        let temp = tempfile::tempdir().unwrap();
        Tree::open(temp.path(), Arc::new(RealDisk)).unwrap();
        assert!(read_only(temp.path()).unwrap().room.dir(path::POOL).is_ok());
        let room = temp.path().join(path::ROOM);
        std::fs::set_permissions(&room, PermissionsExt::from_mode(0o755)).unwrap();
        assert!(read_only(temp.path()).unwrap_err().contains("others may enter"));
        std::fs::set_permissions(&room, PermissionsExt::from_mode(0o700)).unwrap();
        std::fs::write(room.join(path::VERSION), "2\n").unwrap();
        assert!(read_only(temp.path()).unwrap_err().contains("layout version 2"));
        chown(&room, Some(4711), None).unwrap();
        assert!(read_only(temp.path()).unwrap().room.dir(path::POOL).unwrap_err().is_absent());
    }
}
