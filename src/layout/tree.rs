//! A tree: ROOT, and the registry's own room in it.

use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, Stat};
use rustix::io::Errno;

use super::account::Account;
use super::acl;
use super::dir::{self, Dir};
use super::disk::Disk;
use super::error::{At, Error, OrAbsent, Result};
use super::inherit::Purpose;
use super::lock;
use super::make;
use super::verified::{Verdict, Verified};
use super::version::{Version, with_fine_times};
use super::{durable, path};
use crate::oci::{Digest, RepoName};

/// An open tree. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tree {
    /// ROOT.
    pub root: Dir,
    /// `ROOT/.stillage`.
    pub room: Dir,
    /// How changes reach the file system.
    pub disk: Arc<dyn Disk>,
    /// The server's account: only inodes of its own are shared between repositories.
    uid: u32,
    remote: bool,
    /// Nothing of it may be changed.
    pub(super) read_only: bool,
    /// The device on which times of files tell every change, if it is known to.
    fine_times: Option<u64>,
    /// Inodes whose content is known.
    pub(super) verified: Arc<Verified>,
}

impl Tree {
    /// Opens a tree for serving; ROOT and its room are made when they are missing.
    ///
    /// # Errors
    /// A room that others may enter, or one of an unknown version, is refused, saying what to do.
    pub fn open(root: &Path, disk: Arc<dyn Disk>) -> Result<Tree> {
        if !root.is_dir() {
            if root.exists() {
                return Err(Error::damaged(root, "is not a directory"));
            }
            make_root(&*disk, root)?;
        }
        let root = Dir::open_root(root)?;
        let room = make::in_room(&*disk, &root, path::ROOM)?;
        check_room(&root, &room)?;
        check_version(&*disk, &root, &room)?;
        for name in [path::POOL, path::HOLDERS, path::UPLOADS, path::UNREFERENCED] {
            make::in_room(&*disk, &room, name)?;
        }
        // Collection works with no byte free. Where it cannot be made, who needs it says so.
        if let Err(error) = lock::prepare(&room, path::GC_LOCK) {
            tracing::debug!(%error, "no lock for collection yet");
        }
        let uid = rustix::process::geteuid().as_raw();
        let remote = is_remote(&root)?;
        let fine_times = with_fine_times(&room).filter(|_| !remote);
        let verified = Arc::default();
        Ok(Tree { root, room, disk, uid, remote, read_only: false, fine_times, verified })
    }

    /// A room for a tree that has none, as a copy: with the version in it, and nothing that only a
    /// server needs.
    pub fn make_room(root: &Dir, disk: &dyn Disk) -> Result<Dir> {
        let room = make::in_room(disk, root, path::ROOM)?;
        check_room(root, &room)?;
        check_version(disk, root, &room)?;
        Ok(room)
    }

    /// A tree for a repair, which finds out itself what is wrong with it: nothing is checked, and
    /// nothing made.
    pub fn for_repair(root: Dir, room: Dir, disk: Arc<dyn Disk>) -> Result<Tree> {
        let uid = rustix::process::geteuid().as_raw();
        let remote = is_remote(&root)?;
        let fine_times = with_fine_times(&room).filter(|_| !remote);
        let verified = Arc::default();
        Ok(Tree { root, room, disk, uid, remote, read_only: false, fine_times, verified })
    }

    /// A repository's directory, if there is one.
    pub fn repository(&self, name: &RepoName) -> Result<Option<Dir>> {
        self.root.dir(name.as_str()).or_absent()
    }

    /// The same for an account: `None` too where another directory has the name than the one whose
    /// permissions let it through.
    pub fn repository_for(&self, name: &RepoName, account: &Account) -> Result<Option<Dir>> {
        match self.repository(name)? {
            Some(dir) => Ok(account.accepts(name, &dir)?.then_some(dir)),
            None => Ok(None),
        }
    }

    /// A repository's directory, made with its parents when it is missing, with the rights that
    /// mkdir(2) by `maker` would give them.
    ///
    /// Nothing is synced here: the first commit syncs the whole chain.
    ///
    /// # Errors
    /// [`Error::NoAcls`] where the rights would shut out the maker and nothing can be done about it.
    pub fn make_repository(&self, name: &RepoName, maker: &Account) -> Result<Dir> {
        make::repository(&*self.disk, &self.root, name.as_str(), maker)
    }

    /// A directory inside a repository, made when it is missing, as open as the repository is. Its
    /// name may be lost by a crash until the repository's next commit.
    pub fn make_inner(&self, repo: &Dir, relative: &str) -> Result<Dir> {
        make::inner(&*self.disk, repo, relative)
    }

    /// As [`make_inner`](Self::make_inner), but its name is durable on return.
    pub fn make_inner_durable(&self, repo: &Dir, relative: &str) -> Result<Dir> {
        make::inner_durable(&*self.disk, repo, relative)
    }

    /// Makes a directory inside a repository as open as the repository is.
    ///
    /// # Errors
    /// It is somebody else's: only its owner can do that.
    pub fn make_as_open(&self, repo: &Dir, relative: &str) -> Result<()> {
        make::as_open_as(repo, relative)
    }

    /// A directory of the room, made when it is missing.
    pub fn make_in_room(&self, relative: &str) -> Result<Dir> {
        make::in_room(&*self.disk, &self.room, relative)
    }

    /// An error where the room lies on a file system or a mount that takes no writes.
    pub fn refuse_read_only(&self) -> Result<()> {
        let at = || self.room.path().to_owned();
        let flags = rustix::fs::fstatvfs(&self.room).at(at)?.f_flag;
        if flags.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
            return Err(Errno::ROFS).at(at);
        }
        Ok(())
    }

    /// Whether other machines may change the tree behind the kernel's back.
    pub fn is_remote(&self) -> bool {
        self.remote
    }

    /// Whether every change of a file shows that comes after its version was looked at, however soon.
    pub(super) fn has_fine_times(&self, version: Version) -> bool {
        self.fine_times == Some(version.device())
    }

    /// Whether an inode can be one that the server wrote, hashed and sealed itself: a regular file of
    /// the server's account that everybody may read, where they can come to it, and nobody may write.
    /// Whether its content is what its name says is another question.
    pub fn is_ours(&self, stat: &Stat) -> bool {
        dir::is_regular(stat) && stat.st_uid == self.uid && stat.st_mode & 0o666 == 0o444
    }

    /// What this process remembers of an inode under this digest's name, and nothing that costs a
    /// system call.
    pub fn known(&self, digest: &Digest, stat: &Stat) -> Option<Verdict> {
        self.verified.verdict(digest, stat, self.is_ours(stat))
    }
}

/// mkdir -p for ROOT. Its name is durable on return: what is pushed relies on it.
fn make_root(disk: &dyn Disk, root: &Path) -> Result<()> {
    let above = match root.parent() {
        Some(above) if above.as_os_str().is_empty() => Path::new("."),
        Some(above) => above,
        None => return Ok(()),
    };
    if !above.is_dir() {
        make_root(disk, above)?;
    }
    let above = Dir::open_root(above)?;
    let mode = Mode::from_raw_mode(0o755);
    match root.file_name().and_then(|name| name.to_str()) {
        Some(name) => match disk.make_dir(&above, name, mode) {
            Err(error) if error.errno() == Some(Errno::EXIST) => {}
            made => made?,
        },
        // A name that is not UTF-8, or `..`.
        None => std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(root)
            .at(|| root.to_owned())?,
    }
    disk.sync_dir(&above)
}

/// Network file systems and FUSE, behind which one may be, by their magic numbers (statfs(2)).
pub fn is_remote(root: &Dir) -> Result<bool> {
    const NFS: i64 = 0x6969;
    const SMB: i64 = 0x517b;
    const CIFS: i64 = 0xff53_4d42;
    const SMB2: i64 = 0xfe53_4d42;
    const FUSE: i64 = 0x6573_5546;
    const CEPH: i64 = 0x00c3_6400;
    const V9FS: i64 = 0x0102_1997;
    const AFS: i64 = 0x6b41_4653;
    let kind = rustix::fs::fstatfs(root).at(|| root.path().to_owned())?.f_type;
    Ok([NFS, SMB, CIFS, SMB2, FUSE, CEPH, V9FS, AFS].contains(&kind))
}

/// The room holds the key and other people's uploads: nobody else may enter.
pub(super) fn check_room(root: &Dir, room: &Dir) -> Result<()> {
    let stat = room.stat()?;
    let own = rustix::process::geteuid().as_raw();
    if stat.st_uid != own {
        return Err(Error::damaged(room.path(), others_room(root, stat.st_uid, own)?));
    }
    let open = stat.st_mode & 0o077 != 0;
    let acl = acl::read(room, acl::ACCESS).at(|| room.path().to_owned())?;
    if open || acl.is_some() {
        let path = room.path().display();
        let why = format!(
            "others may enter the registry's own room: run `setfacl -b {path}; chmod 700 {path}`"
        );
        return Err(Error::damaged(room.path(), why));
    }
    Ok(())
}

/// Whoever may write ROOT can put a room of their own there: only where ROOT is theirs too is it that
/// account's registry.
fn others_room(root: &Dir, owner: u32, own: u32) -> Result<String> {
    let registry = root.stat()?.st_uid;
    Ok(if registry == owner {
        format!(
            "belongs to uid {owner}, and this is uid {own}: run it as that account (sudo -u '#{owner}' …)"
        )
    } else {
        format!(
            "belongs to uid {owner}, and this is uid {own}; {} belongs to uid {registry}: somebody \
             else put this room there, look for the registry's own beside it",
            root.path().display()
        )
    })
}

/// Whether a room says which version it has.
///
/// # Errors
/// It says one that this program does not know.
pub(super) fn known_version(room: &Dir) -> Result<bool> {
    let at = || room.at(path::VERSION);
    let file = room.regular(path::VERSION, OFlags::RDONLY, Mode::empty()).or_absent()?;
    let Some(file) = file else { return Ok(false) };
    let bytes = dir::read_all(&file, 64, at)?;
    if bytes != path::VERSION_TEXT.as_bytes() {
        let found = String::from_utf8_lossy(&bytes).trim().escape_debug().to_string();
        let why = format!("layout version {found} is not known to this program, which knows 1");
        return Err(Error::damaged(at(), why));
    }
    Ok(true)
}

fn check_version(disk: &dyn Disk, root: &Dir, room: &Dir) -> Result<()> {
    if known_version(room)? {
        return Ok(());
    }
    let text = path::VERSION_TEXT.as_bytes();
    durable::replace(disk, room, path::VERSION, text, Purpose::Lock)?;
    disk.sync_dir(room)?;
    // Whatever is kept in the room relies on its name.
    disk.sync_dir(root)
}
