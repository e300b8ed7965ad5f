//! Directories by descriptor. Every open beneath ROOT refuses symlinks and special files.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::fs::{
    self, AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, StatVfsMountFlags, StatxFlags,
};
use rustix::io::Errno;

use super::error::{At, Error, OrAbsent, Result};
use super::listing::{Listed, Listing};

/// An open directory and the path it was opened by, for messages.
#[derive(Clone, Debug)]
pub struct Dir {
    fd: Arc<OwnedFd>,
    path: Arc<Path>,
}

/// Identifies a directory or file for as long as somebody holds it open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Inode {
    /// The device.
    pub dev: u64,
    /// The inode's number there.
    pub ino: u64,
}

impl Inode {
    /// Of a file's status.
    pub fn of(stat: &Stat) -> Inode {
        Inode { dev: stat.st_dev, ino: stat.st_ino }
    }
}

/// Identifies a directory for good, open or not: inode numbers are used again, but not with the
/// same time of birth. Where the file system knows none, no two are equal.
#[derive(Clone, Copy, Debug)]
pub struct DirId {
    inode: Inode,
    born: Option<(i64, u32)>,
}

impl PartialEq for DirId {
    fn eq(&self, other: &DirId) -> bool {
        self.inode == other.inode && self.born.is_some() && self.born == other.born
    }
}

/// Symlinks are refused on the whole way, and nothing leads out of the directory.
const BENEATH: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

impl Dir {
    /// Opens ROOT, which may itself be a symlink.
    pub fn open_root(path: &Path) -> Result<Dir> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = fs::open(path, flags, Mode::empty()).at(|| path.to_owned())?;
        Ok(Dir { fd: Arc::new(fd), path: path.into() })
    }

    /// A directory in which nothing is and nothing can be made: it stands where there is none.
    pub(super) fn nowhere(path: PathBuf) -> Result<Dir> {
        // Beneath what is no directory nothing is found, whoever asks and whatever is mounted where.
        let flags = fs::MemfdFlags::CLOEXEC;
        let fd = fs::memfd_create("nowhere", flags).at(|| path.clone())?;
        Ok(Dir { fd: Arc::new(fd), path: path.into() })
    }

    /// One that is open, and the path it was opened by.
    pub(super) fn held(fd: Arc<OwnedFd>, path: &Path) -> Dir {
        Dir { fd, path: path.into() }
    }

    /// Opens a directory beneath this one.
    pub fn dir(&self, relative: &str) -> Result<Dir> {
        let fd = self.open(relative, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
        Ok(Dir { fd: Arc::new(fd), path: self.at(relative).into() })
    }

    /// The same, but never one that something is mounted on.
    pub(super) fn dir_of_this_mount(&self, relative: &str) -> Result<Dir> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = BENEATH | ResolveFlags::NO_XDEV;
        let fd = fs::openat2(&self.fd, relative, flags, Mode::empty(), resolve)
            .at(|| self.at(relative))?;
        Ok(Dir { fd: Arc::new(fd), path: self.at(relative).into() })
    }

    /// Opens a regular file beneath this directory for reading.
    pub fn file(&self, relative: &str) -> Result<File> {
        // Without NONBLOCK a planted FIFO would hold us until somebody writes to it.
        self.regular(relative, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())
    }

    /// The same, with the file's status as it was then.
    pub fn file_stat(&self, relative: &str) -> Result<(File, Stat)> {
        self.regular_stat(relative, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())
    }

    /// Opens, with flags of the caller's, what must be a regular file.
    pub fn regular(&self, relative: &str, flags: OFlags, mode: Mode) -> Result<File> {
        self.regular_stat(relative, flags, mode).map(|(file, _)| file)
    }

    fn regular_stat(&self, relative: &str, flags: OFlags, mode: Mode) -> Result<(File, Stat)> {
        let file = File::from(self.open(relative, flags, mode)?);
        let stat = fs::fstat(&file).at(|| self.at(relative))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Error::damaged(self.at(relative), "is not a regular file"));
        }
        Ok((file, stat))
    }

    /// Makes a file that is not there yet, and opens it. Nothing can fail once it is made, so on an
    /// error nothing is left; what is made needs no look to be known as a regular file.
    pub(super) fn create(&self, name: &str, flags: OFlags, mode: Mode) -> Result<File> {
        self.open(name, flags | OFlags::CREATE | OFlags::EXCL, mode).map(File::from)
    }

    fn open(&self, relative: &str, flags: OFlags, mode: Mode) -> Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC;
        match fs::openat2(&self.fd, relative, flags, mode, BENEATH) {
            Err(Errno::ACCESS) => Err(self.shut(relative)),
            opened => opened.at(|| self.at(relative)),
        }
    }

    /// The error for what this account may not open, with what an administrator wants to know.
    fn shut(&self, relative: &str) -> Error {
        let own = rustix::process::geteuid().as_raw();
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let looked = fs::openat2(&self.fd, relative, flags, Mode::empty(), BENEATH);
        let why = match looked.and_then(fs::fstat) {
            Ok(stat) => {
                let (mode, uid, gid) = (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid);
                format!("it has mode {mode:04o}, uid {uid} and gid {gid}, and this is uid {own}")
            }
            Err(_) => format!("a directory on the way is closed to this account, uid {own}"),
        };
        let why = format!("{}: {why}", std::io::Error::from(Errno::ACCESS));
        Error::Shut { path: self.at(relative), why }
    }

    /// The status of the directory itself.
    pub fn stat(&self) -> Result<Stat> {
        fs::fstat(&self.fd).at(|| self.path.to_path_buf())
    }

    /// The status of a name right in this directory, symlinks not followed; `None` if absent.
    pub fn stat_name(&self, name: &str) -> Result<Option<Stat>> {
        debug_assert!(!name.contains('/'), "only the last component is kept from symlinks");
        match fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            // Beneath [nowhere](Self::nowhere).
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(error).at(|| self.at(name)),
        }
    }

    /// The same of a path beneath. Only where nobody but the server makes names: a symlink on the way is
    /// followed.
    pub(super) fn stat_path(&self, relative: &str) -> Result<Option<Stat>> {
        match fs::statat(&self.fd, relative, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(error).at(|| self.at(relative)),
        }
    }

    /// The status of what lies beneath, no symlink on the whole way; `None` if absent.
    pub(super) fn stat_beneath(&self, relative: &str) -> Result<Option<Stat>> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        match self.open(relative, flags, Mode::empty()).or_absent()? {
            Some(found) => fs::fstat(found).at(|| self.at(relative)).map(Some),
            None => Ok(None),
        }
    }

    /// The same; `None` also where the kernel cannot tell from memory: it never waits for a disk.
    pub fn stat_at_hand(&self, relative: &str) -> Option<Stat> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = BENEATH | ResolveFlags::CACHED;
        fs::fstat(fs::openat2(&self.fd, relative, flags, Mode::empty(), resolve).ok()?).ok()
    }

    /// A regular file beneath, open for reading, without a symlink on the whole way; `None` where there is
    /// none, and also where the kernel cannot tell from memory: it never waits for a disk.
    pub(super) fn file_at_hand(&self, relative: &str) -> Option<(File, Stat)> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let resolve = BENEATH | ResolveFlags::CACHED;
        let file = fs::openat2(&self.fd, relative, flags, Mode::empty(), resolve).ok()?;
        let stat = fs::fstat(&file).ok().filter(is_regular)?;
        Some((File::from(file), stat))
    }

    /// The names in this directory with their types, in the file system's order. Names that are
    /// not UTF-8 are left out: nothing of ours has one.
    pub fn names(&self) -> Result<Vec<(String, FileType)>> {
        self.entries()?.collect()
    }

    /// The same, one name at a time, for directories of a million. What comes and goes meanwhile may
    /// be among them or not; everything else comes once.
    pub fn entries(&self) -> Result<Entries> {
        Listing::of(self).map(Entries)
    }

    /// The same, to a closure.
    pub fn each_name(&self, each: impl FnMut(&str, FileType)) -> Result<()> {
        Listing::of(self)?.each(each)
    }

    /// The path of something beneath, for messages.
    pub fn at(&self, relative: &str) -> PathBuf {
        self.path.join(relative)
    }

    /// The path this directory was opened by, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The same directory under another name, for messages.
    pub(super) fn called(&self, path: &Path) -> Dir {
        Dir { fd: Arc::clone(&self.fd), path: path.into() }
    }

    /// The descriptor, shared.
    pub(super) fn descriptor(&self) -> &Arc<OwnedFd> {
        &self.fd
    }

    /// Its identity, to be compared also after it was closed.
    pub fn id(&self) -> Result<DirId> {
        let flags = AtFlags::EMPTY_PATH;
        let wanted = StatxFlags::BTIME;
        let born = match fs::statx(&self.fd, "", flags, wanted) {
            Ok(found) if found.stx_mask & StatxFlags::BTIME.bits() != 0 => {
                Some((found.stx_btime.tv_sec, found.stx_btime.tv_nsec))
            }
            _ => None,
        };
        Ok(DirId { inode: self.inode()?, born })
    }

    /// Whether nothing can be written there, for the way that it is mounted.
    pub fn is_read_only(&self) -> Result<bool> {
        let flags = fs::fstatvfs(&self.fd).at(|| self.path().to_owned())?.f_flag;
        Ok(flags.contains(StatVfsMountFlags::RDONLY))
    }

    /// Its identity, as long as it is open.
    pub fn inode(&self) -> Result<Inode> {
        Ok(Inode::of(&self.stat()?))
    }
}

/// The names in a directory, see [`Dir::entries`].
#[derive(Debug)]
pub struct Entries(Listing);

impl Iterator for Entries {
    type Item = Result<(String, FileType)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.find_map(|listed| match listed {
            Ok(Listed::Entry(entry)) => Some(Ok((entry.name, entry.kind))),
            Ok(Listed::Foreign(_)) => None,
            Err(error) => Some(Err(error)),
        })
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Where an open file lies now, for messages.
pub(super) fn path_of(file: &File) -> PathBuf {
    let own = format!("/proc/self/fd/{}", file.as_raw_fd());
    std::fs::read_link(&own).unwrap_or_else(|_| PathBuf::from(own))
}

/// Whether a status is a regular file's.
pub fn is_regular(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

/// A size as the system gives it; it is never negative.
pub fn size_of(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

/// When a file's content changed last, by its status.
pub fn modified(stat: &Stat) -> SystemTime {
    time_of(stat.st_mtime, stat.st_mtime_nsec)
}

/// When anything of an inode changed last, its links too. Nobody can set that back.
pub fn changed(stat: &Stat) -> SystemTime {
    time_of(stat.st_ctime, stat.st_ctime_nsec)
}

fn time_of(seconds: i64, nanoseconds: u64) -> SystemTime {
    let nanoseconds = Duration::from_nanos(nanoseconds);
    let whole = match seconds {
        0.. => SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds.unsigned_abs())),
        _ => SystemTime::UNIX_EPOCH.checked_sub(Duration::from_secs(seconds.unsigned_abs())),
    };
    whole.map_or(SystemTime::UNIX_EPOCH, |whole| whole + nanoseconds)
}

/// The status of an open file.
pub fn stat_file(file: &File, path: impl FnOnce() -> PathBuf) -> Result<Stat> {
    fs::fstat(file).at(path)
}

/// Reads a whole small file, at most `limit` bytes.
///
/// # Errors
/// A larger one is not what it has to be: damage, as if its content were wrong.
pub fn read_all(file: &File, limit: u64, path: impl Fn() -> PathBuf) -> Result<Vec<u8>> {
    let stat = stat_file(file, &path)?;
    read_known(file, &stat, limit, path)
}

/// The same where the file's status is known.
///
/// # Errors
/// As above.
pub fn read_known(
    file: &File,
    stat: &Stat,
    limit: u64,
    path: impl Fn() -> PathBuf,
) -> Result<Vec<u8>> {
    use std::io::Read;
    let size = usize::try_from(size_of(stat).min(limit)).unwrap_or(0);
    // A byte more: where nothing comes for it, that was all, and nobody needs to ask again.
    let mut bytes = vec![0; size + 1];
    let mut len = 0;
    while let read @ 1.. = read_some(file, &mut bytes[len..]).at(&path)? {
        len += read;
        if len == size {
            break;
        }
        if len == bytes.len() {
            // It has grown.
            bytes.truncate(len);
            file.take(limit.saturating_sub(len as u64) + 1).read_to_end(&mut bytes).at(&path)?;
            len = bytes.len();
            break;
        }
    }
    bytes.truncate(len);
    if bytes.len() as u64 > limit {
        return Err(Error::damaged(path(), format!("is larger than {limit} bytes")));
    }
    Ok(bytes)
}

fn read_some(mut file: &File, bytes: &mut [u8]) -> std::io::Result<usize> {
    use std::io::Read;
    loop {
        match file.read(bytes) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symlinks_fifos_and_ways_out_are_refused() {
        let temp = tempfile::tempdir().unwrap();
        let root = Dir::open_root(temp.path()).unwrap();
        std::fs::create_dir(temp.path().join("d")).unwrap();
        std::fs::write(temp.path().join("d/f"), "x").unwrap();
        std::os::unix::fs::symlink("d", temp.path().join("l")).unwrap();
        std::os::unix::fs::symlink("f", temp.path().join("d/l")).unwrap();
        fs::mknodat(&root, "fifo", FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert!(root.file("d/f").is_ok());
        assert_eq!(root.file("l/f").unwrap_err().errno(), Some(Errno::LOOP));
        assert_eq!(root.file("d/l").unwrap_err().errno(), Some(Errno::LOOP));
        assert_eq!(root.dir("l").unwrap_err().errno(), Some(Errno::LOOP));
        assert!(matches!(root.file("fifo"), Err(Error::Damaged { .. })));
        assert_eq!(root.dir("d").unwrap().file("../d/f").unwrap_err().errno(), Some(Errno::XDEV));
        assert!(root.file("none").unwrap_err().is_absent());
        assert!(root.file("d/f").is_ok_and(|f| read_all(&f, 0, PathBuf::new).is_err()));
    }

    #[test]
    fn nothing_is_nowhere() {
        let nowhere = Dir::nowhere("/r/.stillage".into()).unwrap();
        assert!(nowhere.dir("pool").unwrap_err().is_absent());
        assert!(nowhere.file("pool/sha256/00").unwrap_err().is_absent());
        assert!(nowhere.stat_name("token-key").unwrap().is_none());
        assert!(nowhere.create("token-key", OFlags::RDWR, Mode::RUSR).is_err());
        assert!(fs::mkdirat(&nowhere, "pool", Mode::RWXU).is_err());
    }

    #[test]
    fn a_file_is_read_whole_whatever_was_known_of_it() {
        let temp = tempfile::tempdir().unwrap();
        let root = Dir::open_root(temp.path()).unwrap();
        for known in [0usize, 1, 5, 100, 5000] {
            for len in [0usize, 1, 4, 5, 6, 99, 101, 70_000] {
                let bytes = vec![7; len];
                std::fs::write(temp.path().join("f"), vec![1; known]).unwrap();
                let (_, stat) = root.file_stat("f").unwrap();
                std::fs::write(temp.path().join("f"), &bytes).unwrap();
                let read =
                    |limit| read_known(&root.file("f").unwrap(), &stat, limit, PathBuf::new).ok();
                let whole = Some(bytes.clone());
                assert_eq!(read(70_000), whole, "{len} bytes, known as {known}");
                assert_eq!(read(len as u64), whole, "{len} bytes, known as {known}");
                if len > 0 {
                    assert_eq!(read(len as u64 - 1), None, "{len} bytes, known as {known}");
                }
            }
        }
    }
}
