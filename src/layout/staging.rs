//! A directory that appears under its name when it is whole and on the disk, and not before.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use thiserror::Error;

use super::dir::{Dir, Inode};
use super::disk::Disk;
use super::error::{self, At, Result};
use super::listing::{Listed, Listing};
use super::lock::{self, HeldDir, Holder};
use super::{inherit, path};

/// Why a place cannot be used.
#[derive(Debug, Error)]
pub enum StagingError {
    /// The file system refused.
    #[error(transparent)]
    Layout(#[from] error::Error),
    /// The path does not end in a name.
    #[error("{}: does not end in the name of a directory to be made", .0.display())]
    NoName(PathBuf),
    /// What is there would be lost.
    #[error("{}: is there already, and is not an empty directory", .0.display())]
    Taken(PathBuf),
    /// It would become a part of its own original.
    #[error("{}: lies in {}: choose a place beside it", .at.display(), .root.display())]
    Beneath {
        /// Where it was to be.
        at: PathBuf,
        /// The original.
        root: PathBuf,
    },
    /// Links do not lead there.
    #[error(
        "{}: is another file system than {}, and blobs can be linked within one only{hint}. Make the \
         snapshot there, and copy it here: rsync -aHA --numeric-ids SNAPSHOT/ {}/",
        .at.display(), .root.display(), .at.display()
    )]
    Elsewhere {
        /// Where it was to be.
        at: PathBuf,
        /// The original.
        root: PathBuf,
        /// What else is to be known.
        hint: &'static str,
    },
    /// Others could put something else in the place of what is being made.
    #[error(
        "{}: its group or everybody may write to it, and could put a directory of their own in the          place of the snapshot: chmod go-w it, or chmod +t, or choose a directory that only this          account may write to (install -d -m 700)",
        .0.display()
    )]
    Open(PathBuf),
    /// Another process makes the same.
    #[error("{}: somebody else is just making it ({})", .at.display(), Holder::list(.by))]
    Busy {
        /// The hidden directory.
        at: PathBuf,
        /// Its makers.
        by: Vec<Holder>,
    },
    /// The hidden name is taken by what was not made by a run of this account.
    #[error("{}: is in the way, and belongs to uid {owner}: remove it", .at.display())]
    Foreign {
        /// The hidden directory.
        at: PathBuf,
        /// Whose it is.
        owner: u32,
    },
}

/// Where a directory is to be made.
#[derive(Debug)]
pub struct Place {
    parent: Dir,
    name: String,
    /// An empty directory is there, to be replaced.
    taken: bool,
}

impl Place {
    /// Looks whether a copy of the tree `root` that shares its files can be made at `path`. Changes
    /// nothing.
    pub fn look(at: &Path, root: &Dir) -> std::result::Result<Place, StagingError> {
        let name = at.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| StagingError::NoName(at.to_owned()))?.to_owned();
        let parent = match at.parent() {
            Some(parent) if parent != Path::new("") => Dir::open_root(parent)?,
            _ => Dir::open_root(Path::new("."))?,
        };
        let own = root.inode()?;
        if lies_beneath(&parent, own)? {
            return Err(StagingError::Beneath { at: at.to_owned(), root: root.path().to_owned() });
        }
        let taken = match parent.stat_name(&name)? {
            None => false,
            Some(stat) => {
                let empty = FileType::from_raw_mode(stat.st_mode) == FileType::Directory
                    && Inode::of(&stat) != own
                    && parent.dir(&name)?.names()?.is_empty();
                if !empty {
                    return Err(StagingError::Taken(at.to_owned()));
                }
                true
            }
        };
        let place = Place { parent, name, taken };
        place.refuse_elsewhere(at, root)?;
        place.refuse_open()?;
        Ok(place)
    }

    /// Without the sticky bit whoever may write to a directory may rename what others make there. An
    /// ACL lets in nobody whom the group's bits, its mask, do not.
    fn refuse_open(&self) -> std::result::Result<(), StagingError> {
        let mode = Mode::from_raw_mode(self.parent.stat()?.st_mode);
        match mode.intersects(Mode::WGRP | Mode::WOTH) && !mode.contains(Mode::SVTX) {
            true => Err(StagingError::Open(self.parent.path().to_owned())),
            false => Ok(()),
        }
    }

    fn refuse_elsewhere(&self, at: &Path, root: &Dir) -> std::result::Result<(), StagingError> {
        let device = root.stat()?.st_dev;
        let hint = if self.parent.stat()?.st_dev != device {
            let above = fs::openat(root, "..", FOR_PATHS, Mode::empty()).and_then(fs::fstat);
            let whole = above.is_ok_and(|above| above.st_dev != device);
            // Nothing lies beside it.
            if whole {
                " (the registry would have to be a directory in its file system)"
            } else {
                ""
            }
        } else if mount(&self.parent)? != mount(root)? {
            " through one and the same mount only"
        } else {
            return Ok(());
        };
        let (at, root) = (at.to_owned(), root.path().to_owned());
        Err(StagingError::Elsewhere { at, root, hint })
    }

    /// The directory beside whose name it is made.
    pub fn parent(&self) -> &Dir {
        &self.parent
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Begins: a hidden directory that nobody else may enter. What a killed run left under that name
    /// is removed first.
    pub fn begin(self, disk: Arc<dyn Disk>) -> std::result::Result<Staging, StagingError> {
        let hidden = path::staging(&self.name);
        loop {
            if let Some(stat) = self.parent.stat_name(&hidden)? {
                let left = self.parent.at(&hidden);
                if stat.st_uid != rustix::process::geteuid().as_raw() {
                    return Err(StagingError::Foreign { at: left, owner: stat.st_uid });
                }
                let dir = self.parent.dir_of_this_mount(&hidden)?;
                let Some(_held) = lock::directory(&dir)? else {
                    let by = lock::holders(&self.parent, &hidden);
                    return Err(StagingError::Busy { at: left, by });
                };
                remove_all(&*disk, &self.parent, &hidden)?;
            }
            match disk.make_dir(&self.parent, &hidden, Mode::RWXU) {
                Err(error) if error.errno() == Some(Errno::EXIST) => continue,
                made => made?,
            }
            let dir = self.parent.dir_of_this_mount(&hidden)?;
            let at = || dir.path().to_owned();
            if !is_as_made(&dir)? {
                return Err(error::Error::Replaced { path: at() }.into());
            }
            // A default ACL of the parent would be inherited by all that is made here.
            inherit::strip_acl(&dir).and_then(|()| inherit::strip_default_acl(&dir)).at(at)?;
            fs::fchmod(&dir, Mode::RWXU).at(at)?;
            let Some(held) = lock::directory(&dir)? else { continue };
            let named = self.parent.stat_name(&hidden)?.map(|stat| Inode::of(&stat));
            if named == Some(dir.inode()?) {
                return Ok(Staging { place: self, disk, hidden, dir, _held: held });
            }
        }
    }
}

/// Whether a directory is empty, of this account, and closed to all others, as it was made.
fn is_as_made(dir: &Dir) -> Result<bool> {
    let stat = dir.stat()?;
    let ours = stat.st_uid == rustix::process::geteuid().as_raw();
    let closed = Mode::from_raw_mode(stat.st_mode) & (Mode::RWXU | Mode::RWXG | Mode::RWXO);
    Ok(ours && closed == Mode::RWXU && dir.names()?.is_empty())
}

/// A directory in the making. Dropped unpublished, it stays, to be removed by the next run.
#[derive(Debug)]
pub struct Staging {
    place: Place,
    disk: Arc<dyn Disk>,
    hidden: String,
    dir: Dir,
    _held: HeldDir,
}

impl Staging {
    /// The directory to be filled.
    pub fn dir(&self) -> &Dir {
        &self.dir
    }

    /// Gives it its name.
    ///
    /// All that is in it, and all that it shares with others, is on the disk before the name is, and
    /// the name is on return: one syncfs(2) before the rename and one fsync(2) of the directory above
    /// after it, because an fsync for each of thousands of files costs as many flushes of the disk.
    ///
    /// On an error there is no such name, and nothing is left; but for one of the last fsync, which
    /// leaves the name where it is: only a power cut would take it.
    pub fn publish(self) -> Result<()> {
        if let Err(error) = self.appear() {
            // What failed may fail again here: then the next run removes it.
            let _ = self.abandon();
            return Err(error);
        }
        self.disk.sync_dir(&self.place.parent)
    }

    fn appear(&self) -> Result<()> {
        let Place { parent, name, taken } = &self.place;
        self.disk.sync_all(&self.dir)?;
        if *taken {
            // Fails unless the directory is still empty.
            self.disk.rename(parent, &self.hidden, parent, name)
        } else {
            self.disk.rename_new(parent, &self.hidden, parent, name)
        }
    }

    /// Gives up: what was made is removed.
    pub fn abandon(self) -> Result<()> {
        remove_all(&*self.disk, &self.place.parent, &self.hidden)
    }
}

/// Removes a directory of ours with all that lies in it, but nothing beyond a mount.
pub fn remove_all(disk: &dyn Disk, parent: &Dir, name: &str) -> Result<()> {
    let dir = parent.dir_of_this_mount(name)?;
    fs::fchmod(&dir, Mode::RWXU).at(|| dir.path().to_owned())?;
    let mut rest = true;
    while rest {
        rest = false;
        // Not while it is being read: what is unlinked then may hide what is not.
        let mut names = Vec::new();
        for named in Listing::of(&dir)? {
            if let Listed::Entry(entry) = named? {
                names.push((entry.name, entry.kind));
            }
            if names.len() == MANY {
                rest = true;
                break;
            }
        }
        for (name, kind) in names {
            match kind {
                FileType::Directory => remove_all(disk, &dir, &name)?,
                _ => disk.unlink(&dir, &name)?,
            }
        }
    }
    disk.remove_dir(parent, name)
}

/// To look at directories on the way up, which need not be readable.
const FOR_PATHS: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// So many names are held at once.
const MANY: usize = 10_000;

/// Whether `dir` is the directory `above` or lies somewhere in it, by whatever path it was opened.
fn lies_beneath(dir: &Dir, above: Inode) -> Result<bool> {
    let at = || dir.path().to_owned();
    let mut here = fs::openat(dir, ".", FOR_PATHS, Mode::empty()).at(at)?;
    loop {
        let inode = Inode::of(&fs::fstat(&here).at(at)?);
        if inode == above {
            return Ok(true);
        }
        let up = fs::openat(&here, "..", FOR_PATHS, Mode::empty()).at(at)?;
        if Inode::of(&fs::fstat(&up).at(at)?) == inode {
            return Ok(false);
        }
        here = up;
    }
}

/// The mount that a directory was opened through: link(2) does not lead from one to another, though
/// they be of one file system. `None` where the kernel does not tell.
fn mount(dir: &Dir) -> Result<Option<u64>> {
    let found =
        fs::statx(dir, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).at(|| dir.path().to_owned())?;
    Ok((found.stx_mask & StatxFlags::MNT_ID.bits() != 0).then_some(found.stx_mnt_id))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::disk::RealDisk;
    use super::*;

    fn begin(temp: &Path) -> std::result::Result<Staging, StagingError> {
        let root = Dir::open_root(&temp.join("root")).unwrap();
        Place::look(&temp.join("copy"), &root)?.begin(Arc::new(RealDisk))
    }

    fn fixture() -> tempfile::TempDir {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir(temp.path().join("root")).unwrap();
        temp
    }

    #[test]
    fn it_appears_whole_or_not_and_the_next_run_removes_what_is_left() {
        let temp = fixture();
        let names = || {
            let mut names: Vec<_> = std::fs::read_dir(temp.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        let first = begin(temp.path()).unwrap();
        std::fs::create_dir_all(temp.path().join(".copy.stillage-snapshot/a/b")).unwrap();
        std::fs::write(temp.path().join(".copy.stillage-snapshot/a/b/f"), "x").unwrap();
        std::fs::set_permissions(
            temp.path().join(".copy.stillage-snapshot/a/b"),
            std::fs::Permissions::from_mode(0o500),
        )
        .unwrap();
        assert!(matches!(begin(temp.path()), Err(StagingError::Busy { .. })));
        drop(first);
        assert_eq!(names(), [".copy.stillage-snapshot", "root"]);
        let second = begin(temp.path()).unwrap();
        assert_eq!(second.dir().names().unwrap(), []);
        second.publish().unwrap();
        assert_eq!(names(), ["copy", "root"]);
        std::fs::write(temp.path().join("copy/f"), "x").unwrap();
        assert!(matches!(begin(temp.path()), Err(StagingError::Taken(_))));
        std::fs::remove_file(temp.path().join("copy/f")).unwrap();
        begin(temp.path()).unwrap().abandon().unwrap();
        assert_eq!(names(), ["copy", "root"]);
        begin(temp.path()).unwrap().publish().unwrap();
        assert_eq!(names(), ["copy", "root"]);
    }

    #[test]
    fn a_name_that_was_taken_meanwhile_is_left_alone() {
        let temp = fixture();
        let staging = begin(temp.path()).unwrap();
        std::fs::create_dir(temp.path().join("copy")).unwrap();
        assert_eq!(staging.publish().unwrap_err().errno(), Some(Errno::EXIST));
        let staging = begin(temp.path()).unwrap();
        std::fs::write(temp.path().join("copy/f"), "x").unwrap();
        assert_eq!(staging.publish().unwrap_err().errno(), Some(Errno::NOTEMPTY));
        assert!(temp.path().join("copy/f").exists());
    }

    #[test]
    fn the_original_and_what_lies_in_it_are_no_place() {
        let temp = fixture();
        let root = Dir::open_root(&temp.path().join("root")).unwrap();
        std::fs::create_dir_all(temp.path().join("root/a/b")).unwrap();
        std::os::unix::fs::symlink("root/a", temp.path().join("way")).unwrap();
        for inside in ["root/new", "root/a/b/new", "way/new", "way/b/../new", "root/../root/new"] {
            let place = Place::look(&temp.path().join(inside), &root);
            assert!(matches!(place, Err(StagingError::Beneath { .. })), "{inside}");
        }
        assert!(Place::look(&temp.path().join("rooted"), &root).is_ok());
        for taken in ["root", "way"] {
            let place = Place::look(&temp.path().join(taken), &root);
            assert!(matches!(place, Err(StagingError::Taken(_))), "{taken}");
        }
        let place = Place::look(&temp.path().join("root/.."), &root);
        assert!(matches!(place, Err(StagingError::NoName(_))));
    }

    #[test]
    fn where_others_may_rename_nothing_is_made() {
        let temp = fixture();
        for (mode, good) in [
            (0o700, true),
            (0o755, true),
            (0o1777, true),
            (0o1770, true),
            (0o777, false),
            (0o770, false),
            (0o2775, false),
            (0o702, false),
        ] {
            std::fs::set_permissions(temp.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            match begin(temp.path()) {
                Ok(staging) if good => staging.abandon().unwrap(),
                Err(StagingError::Open(_)) if !good => {}
                other => panic!("{mode:o}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_directory_that_was_put_there_is_not_as_made() {
        let temp = fixture();
        let at = temp.path().join("root");
        let dir = Dir::open_root(&at).unwrap();
        let mode = |mode| std::fs::set_permissions(&at, std::fs::Permissions::from_mode(mode));
        mode(0o755).unwrap();
        assert!(!is_as_made(&dir).unwrap());
        mode(0o2700).unwrap();
        assert!(is_as_made(&dir).unwrap());
        std::fs::write(at.join("file"), "").unwrap();
        assert!(!is_as_made(&dir).unwrap());
        std::fs::remove_file(at.join("file")).unwrap();
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&at, Some(4242), None).unwrap();
            assert!(!is_as_made(&dir).unwrap());
        }
    }

    #[test]
    fn links_do_not_lead_to_another_file_system() {
        let temp = fixture();
        let root = Dir::open_root(&temp.path().join("root")).unwrap();
        // devtmpfs or tmpfs, on every Linux.
        let place = Place::look(Path::new("/dev/shm/stillage-new"), &root);
        let text = place.unwrap_err().to_string();
        assert!(text.contains("another file system") && text.contains("rsync -aHA"), "{text}");
    }
}
