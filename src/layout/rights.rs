//! What the permissions of a repository's directory and of those above it say, as plain values.
//!
//! Who may do what is not decided here. Every level is looked at anew with one statx(2), relative
//! to the descriptor of the level above and following no symlink; only its ACL, which would cost a
//! second call, is remembered, for as long as the status shows that nobody changed it.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, StatVfsMountFlags, Statx, StatxFlags};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use super::account::{READ, SEARCH};
use super::acl::{self, Acl};
use super::dir::{Dir, Inode};
use super::error::{At, Error, OrAbsent, Result};
use super::tree::Tree;
use crate::oci::RepoName;

/// A directory's permissions at some moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Level {
    /// The directory, for messages.
    pub path: PathBuf,
    /// Which directory it was, for as long as somebody holds it open.
    pub inode: Inode,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Permission bits, set-gid, set-uid and sticky.
    pub mode: u16,
    /// Its ACL, if it has one beyond the mode.
    pub acl: Option<Acl>,
}

impl Level {
    /// Of an open directory, now.
    pub fn of(dir: &Dir) -> Result<Level> {
        let at = || dir.path().to_owned();
        let stat = dir.stat()?;
        let acl = match acl::read(dir, acl::ACCESS).at(at)? {
            None => None,
            Some(bytes) => {
                Some(Acl::parse(&bytes).ok_or_else(|| Error::unreadable_acl(dir.path()))?)
            }
        };
        let mode = u16::try_from(stat.st_mode & 0o7777).unwrap_or(0);
        let (uid, gid) = (stat.st_uid, stat.st_gid);
        Ok(Level { path: at(), inode: Inode::of(&stat), uid, gid, mode, acl })
    }

    /// Of a regular file right in `dir`, which need not be readable; `None` if there is none.
    pub fn of_file(dir: &Dir, name: &str) -> Result<Option<Level>> {
        let opened = dir.regular(name, OFlags::PATH, Mode::empty()).or_absent()?;
        let Some(file) = opened else { return Ok(None) };
        let at = || dir.at(name);
        let stat = fs::fstat(&file).at(at)?;
        let acl = acl::read(&file, acl::ACCESS).at(at)?;
        let acl = match acl {
            None => None,
            Some(bytes) => Some(Acl::parse(&bytes).ok_or_else(|| Error::unreadable_acl(&at()))?),
        };
        let mode = u16::try_from(stat.st_mode & 0o7777).unwrap_or(0);
        let (uid, gid) = (stat.st_uid, stat.st_gid);
        Ok(Some(Level { path: at(), inode: Inode::of(&stat), uid, gid, mode, acl }))
    }
}

/// What lies on the way from ROOT to a repository's directory.
#[derive(Clone, Debug)]
pub struct Way {
    /// From ROOT to the deepest directory that is there and could be looked at; never empty.
    pub levels: Vec<Arc<Level>>,
    /// The repository's own directory is there: it is the last level.
    pub whole: bool,
    /// The last level, open: as long as it is, its number is no other directory's.
    pub held: Option<Arc<OwnedFd>>,
    /// The last level takes no writes, whoever asks, because its mount or its file system is
    /// read-only. Looked at only on a way for writing; false otherwise.
    pub read_only: bool,
    /// Why nothing is known of what lies beneath the last level: the server's own account may not
    /// search it (then the error's path is that level), or what comes next is a symlink or no
    /// directory. It counts only for somebody whom the levels above let through.
    pub stopped: Option<Error>,
}

impl Way {
    /// Whether everybody may enter the repository and list it: others may read and search its own
    /// directory, and search all above it. Whom an ACL names may still be shut out.
    pub fn is_open(&self) -> bool {
        let Some((own, above)) = self.levels.split_last() else { return false };
        let give = |level: &Level, bits| level.mode & u16::from(bits) == u16::from(bits);
        self.whole && give(own, READ | SEARCH) && above.iter().all(|level| give(level, SEARCH))
    }

    /// Whether the last level is this directory.
    pub fn ends_at(&self, dir: Inode) -> bool {
        self.whole && self.levels.last().is_some_and(|level| level.inode == dir)
    }

    /// Whether a name right in the last level is one of this file.
    pub fn names(&self, name: &str, file: Inode) -> bool {
        let Some(held) = &self.held else { return false };
        let found = fs::statat(&**held, name, AtFlags::SYMLINK_NOFOLLOW);
        found.is_ok_and(|stat| Inode::of(&stat) == file)
    }
}

/// Reads ways, and remembers a bounded number of levels.
#[derive(Debug, Default)]
pub struct Rights {
    remembered: Mutex<Remembered>,
}

impl Rights {
    /// What lies on the way to a repository, now. On a warm server this is one statx(2) a level,
    /// and for writing one statfs(2) more; blocks only as long as those do. On a network file
    /// system nothing is remembered, and the server there is asked.
    ///
    /// # Errors
    /// ROOT itself cannot be looked at. Whatever happens further down is in [`Way::stopped`].
    pub fn way(&self, tree: &Tree, repo: &RepoName, write: bool) -> Result<Way> {
        self.beneath(&tree.root, tree.is_remote(), repo.as_str(), write)
    }

    /// The same once, for a command: it needs no tree that is open for serving, makes nothing, and
    /// remembers nothing.
    pub fn look(root: &Dir, repo: &RepoName) -> Result<Way> {
        Rights::default().beneath(root, true, repo.as_str(), true)
    }

    /// The same of any path beneath a directory. To look beneath another directory takes other
    /// [`Rights`].
    pub fn beneath(&self, root_dir: &Dir, remote: bool, path: &str, write: bool) -> Result<Way> {
        let reader = Reader { rights: self, remote };
        let (mut fd, root) = reader.root(root_dir)?;
        let levels = vec![root];
        let mut way = Way { levels, whole: false, held: None, read_only: false, stopped: None };
        for end in ends(path) {
            match reader.step(root_dir, &fd, &path[..end]) {
                Ok(Some((next, level))) => {
                    fd = next;
                    way.levels.push(level);
                    way.whole = end == path.len();
                }
                Ok(None) => break,
                Err(error) => {
                    way.stopped = Some(error);
                    break;
                }
            }
        }
        if write {
            let flags = fs::fstatvfs(&*fd).at(|| last(&way.levels))?.f_flag;
            way.read_only = flags.contains(StatVfsMountFlags::RDONLY);
        }
        way.held = Some(fd);
        Ok(way)
    }
}

fn last(levels: &[Arc<Level>]) -> PathBuf {
    levels.last().map_or_else(PathBuf::new, |level| level.path.clone())
}

/// Where the components of a name end.
fn ends(name: &str) -> impl Iterator<Item = usize> {
    name.match_indices('/').map(|(at, _)| at).chain([name.len()])
}

/// One look at a way.
struct Reader<'a> {
    rights: &'a Rights,
    remote: bool,
}

impl Reader<'_> {
    fn root(&self, root: &Dir) -> Result<(Arc<OwnedFd>, Arc<Level>)> {
        let facts = self.facts_of(root.descriptor()).at(|| root.path().to_owned())?;
        if let Some(known) = self.known("", &facts) {
            return Ok(known);
        }
        self.read("", Arc::clone(root.descriptor()), root.path())
    }

    /// The level `name`, a path beneath ROOT, whose parent is open as `above`; `None` if nothing
    /// is there.
    fn step(
        &self,
        root: &Dir,
        above: &OwnedFd,
        name: &str,
    ) -> Result<Option<(Arc<OwnedFd>, Arc<Level>)>> {
        let (parent, own) = name.rsplit_once('/').unwrap_or(("", name));
        let at = || root.at(name);
        // What may not be searched is the directory above.
        let refused = |error: Errno| {
            let path = if error == Errno::ACCESS { root.at(parent) } else { at() };
            Err::<(), Errno>(error).at(|| path)
        };
        let facts = match self.facts(above, own, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(facts) => facts,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return refused(error).map(|()| None),
        };
        if !self.remote
            && let Some(known) = self.known(name, &facts)
        {
            return Ok(Some(known));
        }
        match facts.kind {
            FileType::Directory => {}
            FileType::Symlink => {
                return Err(Error::damaged(at(), "is a symlink: bind mounts are the way"));
            }
            _ => return Err(Error::damaged(at(), "is not a directory")),
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = fs::openat(above, own, flags, Mode::empty()).at(at).or_absent()?;
        let Some(fd) = opened else { return Ok(None) };
        self.read(name, Arc::new(fd), &at()).map(Some)
    }

    fn facts_of(&self, fd: &OwnedFd) -> std::result::Result<Facts, Errno> {
        self.facts(fd, "", AtFlags::EMPTY_PATH)
    }

    fn facts(
        &self,
        dir: &OwnedFd,
        name: &str,
        flags: AtFlags,
    ) -> std::result::Result<Facts, Errno> {
        let sync = if self.remote { AtFlags::STATX_FORCE_SYNC } else { AtFlags::empty() };
        let wanted = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
        fs::statx(dir, name, flags | sync, wanted).map(|found| Facts::of(&found))
    }

    fn known(&self, name: &str, facts: &Facts) -> Option<(Arc<OwnedFd>, Arc<Level>)> {
        let mut remembered = self.rights.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        let found = remembered.get(name)?;
        (found.settled && found.facts == *facts)
            .then(|| (Arc::clone(&found.fd), Arc::clone(&found.level)))
    }

    /// Reads a level with its ACL, of one and the same moment.
    fn read(
        &self,
        name: &str,
        fd: Arc<OwnedFd>,
        path: &Path,
    ) -> Result<(Arc<OwnedFd>, Arc<Level>)> {
        let at = || path.to_owned();
        let mut facts = self.facts_of(&fd).at(at)?;
        let (acl, settled) = loop {
            let settled = facts.settled();
            let acl = acl::read(&fd, acl::ACCESS).at(at)?;
            let after = self.facts_of(&fd).at(at)?;
            if after == facts {
                break (acl, settled);
            }
            // Somebody changed it meanwhile: bits and ACL may be of different moments.
            facts = after;
        };
        let acl = match acl {
            None => None,
            Some(bytes) => Some(Acl::parse(&bytes).ok_or_else(|| Error::unreadable_acl(path))?),
        };
        let Facts { inode, uid, gid, mode, .. } = facts;
        let level = Arc::new(Level { path: at(), inode, uid, gid, mode, acl });
        if !self.remote {
            let known = Known { fd: Arc::clone(&fd), facts, settled, level: Arc::clone(&level) };
            let remembered = &self.rights.remembered;
            remembered.lock().unwrap_or_else(PoisonError::into_inner).put(name, known);
        }
        Ok((fd, level))
    }
}

/// What statx(2) tells of a directory. As long as it is held open, equal facts mean the same
/// directory with the same permissions, once its times are settled.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Facts {
    kind: FileType,
    inode: Inode,
    /// The mount: the same directory may be mounted over itself, read-only.
    mount: u64,
    ctime: (i64, u32),
    uid: u32,
    gid: u32,
    mode: u16,
}

impl Facts {
    fn of(found: &Statx) -> Facts {
        Facts {
            kind: FileType::from_raw_mode(found.stx_mode.into()),
            inode: Inode {
                dev: fs::makedev(found.stx_dev_major, found.stx_dev_minor),
                ino: found.stx_ino,
            },
            mount: found.stx_mnt_id,
            ctime: (found.stx_ctime.tv_sec, found.stx_ctime.tv_nsec),
            uid: found.stx_uid,
            gid: found.stx_gid,
            mode: found.stx_mode & 0o7777,
        }
    }

    /// Whether a change from now on must show in the time of the last one: kernels before 6.13
    /// stamp files with a clock that ticks every 4 ms, old file systems with whole seconds.
    fn settled(&self) -> bool {
        let now = clock_gettime(ClockId::RealtimeCoarse);
        let age = (i128::from(now.tv_sec) - i128::from(self.ctime.0)) * 1_000_000_000
            + i128::from(now.tv_nsec)
            - i128::from(self.ctime.1);
        let least = if self.ctime.1 == 0 { 2_000_000_000 } else { 10_000_000 };
        age > least
    }
}

/// A level that was read.
#[derive(Debug)]
struct Known {
    /// Held open, so that the inode's number cannot be given to another directory. What lies
    /// beneath is looked up from here.
    fd: Arc<OwnedFd>,
    facts: Facts,
    /// The times were old enough when the ACL was read.
    settled: bool,
    level: Arc<Level>,
}

/// Each remembered level holds a descriptor; there are two generations of so many.
const GENERATION: usize = 256;

/// Levels by their paths beneath ROOT. What was not asked for while a whole generation of others
/// was, is forgotten.
#[derive(Debug, Default)]
struct Remembered {
    young: HashMap<Box<str>, Known>,
    old: HashMap<Box<str>, Known>,
}

impl Remembered {
    fn get(&mut self, name: &str) -> Option<&Known> {
        if let Some((name, known)) = self.old.remove_entry(name) {
            self.insert(name, known);
        }
        self.young.get(name)
    }

    fn put(&mut self, name: &str, known: Known) {
        self.old.remove(name);
        self.insert(name.into(), known);
    }

    fn insert(&mut self, name: Box<str>, known: Known) {
        if self.young.len() >= GENERATION && !self.young.contains_key(&name) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(name, known);
    }
}
