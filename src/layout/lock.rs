//! The locks: flock(2) on files that any shell can join with flock(1).

use std::fmt;
use std::fs::{File, TryLockError};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::dir::{Dir, Inode, stat_file};
use super::error::{At, Error, OrAbsent, Result};
use super::inherit::{self, Purpose};
use super::path;

/// How long a request waits for a repository's lock.
pub const REQUEST_WAIT: Duration = Duration::from_secs(30);

/// How often a lock that is to be had exclusively is looked for: its holder is another process, and
/// there is nothing to be woken by.
const POLL: Duration = Duration::from_millis(10);

/// How long a lock stays free between two turns, so that whoever looks for it meets it free once.
pub const LEAVE_FREE: Duration = Duration::from_millis(11);

/// A lock that is held; dropping it releases it.
#[derive(Debug)]
pub struct Held {
    file: File,
    inode: Inode,
}

impl Held {
    /// Whether anybody else waits for this lock right now (`/proc/locks`). `false` where the
    /// system does not tell.
    pub fn awaited(&self) -> bool {
        let Ok(table) = std::fs::read_to_string("/proc/locks") else {
            return false;
        };
        table.lines().any(|line| waits_for(line, self.inode.ino))
    }

    /// The locked file's identity.
    pub fn inode(&self) -> Inode {
        self.inode
    }

    /// Releases the lock, as dropping does, and says so where that matters.
    pub fn release(self) {
        drop(self.file);
    }
}

/// `17: -> FLOCK  ADVISORY  WRITE 4711 fe:00:1234 0 EOF` (proc_locks(5)). The device's number is
/// not compared: on btrfs it is not the one that stat(2) gives, and waiting 5 ms in vain for
/// another file of the same inode number harms nobody.
fn waits_for(line: &str, ino: u64) -> bool {
    let mut words = line.split_whitespace().skip(1);
    words.next() == Some("->")
        && words.next() == Some("FLOCK")
        && words.nth(3).and_then(|file| file.rsplit(':').next()) == Some(ino.to_string().as_str())
}

/// Whoever holds a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The process.
    pub pid: u32,
    /// What it runs, if that can be seen.
    pub command: Option<String>,
}

impl Holder {
    /// Several of them, for messages.
    pub fn list(all: &[Holder]) -> String {
        match all {
            [] => "unknown".to_owned(),
            all => all.iter().map(Holder::to_string).collect::<Vec<_>>().join(", "),
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.command {
            Some(command) => write!(f, "process {}: {command}", self.pid),
            None => write!(f, "process {}", self.pid),
        }
    }
}

/// Who holds a lock right now, as far as `/proc/locks` tells.
pub fn holders(dir: &Dir, name: &str) -> Vec<Holder> {
    let Ok(Some(stat)) = dir.stat_name(name) else { return Vec::new() };
    let table = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    let pids = table.lines().filter_map(|line| holder(line, stat.st_ino));
    pids.map(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let command = Some(line.trim().to_owned()).filter(|line| !line.is_empty());
        Holder { pid, command }
    })
    .collect()
}

/// `17: FLOCK  ADVISORY  WRITE 4711 fe:00:1234 0 EOF`, see above.
fn holder(line: &str, ino: u64) -> Option<u32> {
    let words: Vec<&str> = line.split_whitespace().skip(1).collect();
    match words[..] {
        ["FLOCK", _, _, pid, file, ..]
            if file.rsplit(':').next() == Some(ino.to_string().as_str()) =>
        {
            pid.parse().ok()
        }
        _ => None,
    }
}

/// Makes a lock file where there is none yet, so that it can be locked with no space left.
pub(super) fn prepare(dir: &Dir, name: &str) -> Result<()> {
    open_lock(dir, name).map(|_| ())
}

/// Takes a repository's lock, waiting as long as it takes.
///
/// The file is made when it is missing. On return the path names the very file that is locked: who
/// waited for one that was meanwhile replaced begins again.
pub fn repository(dir: &Dir) -> Result<Held> {
    loop {
        let file = open_lock(dir, path::LOCK)?;
        file.lock().at(|| dir.at(path::LOCK))?;
        if let Some(held) = confirmed(dir, path::LOCK, file)?
            && is_alone(dir, path::LOCK, &held)?
        {
            return Ok(held);
        }
    }
}

/// Takes a lock of the room exclusively within `wait`; `None` if somebody holds it longer.
pub fn exclusive_within(dir: &Dir, name: &str, wait: Duration) -> Result<Option<Held>> {
    let end = Instant::now() + wait;
    loop {
        let file = open_lock(dir, name)?;
        match file.try_lock() {
            Ok(()) => {
                if let Some(held) = confirmed(dir, name, file)?
                    && is_alone(dir, name, &held)?
                {
                    return Ok(Some(held));
                }
            }
            Err(TryLockError::WouldBlock) if Instant::now() >= end => return Ok(None),
            Err(TryLockError::WouldBlock) => std::thread::sleep(POLL),
            Err(TryLockError::Error(error)) => return Err(error).at(|| dir.at(name)),
        }
    }
}

/// Asks writers to wait, for up to `wait` of ours: takes a lock shared that somebody has made
/// already, and changes nothing on the disk. `None` if there is no lock file or somebody holds it
/// longer.
pub fn shared_within(dir: &Dir, name: &str, wait: Duration) -> Result<Option<Held>> {
    let end = Instant::now() + wait;
    while let Some(file) = dir.file(name).or_absent()? {
        match file.try_lock_shared() {
            Ok(()) => {
                if let Some(held) = confirmed(dir, name, file)? {
                    return Ok(Some(held));
                }
            }
            Err(TryLockError::WouldBlock) if Instant::now() >= end => return Ok(None),
            // As above: another process holds it.
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(2)),
            Err(TryLockError::Error(error)) => return Err(error).at(|| dir.at(name)),
        }
    }
    Ok(None)
}

/// Takes a lock shared, in the queue with everybody else who waits for it, for at most `wait`; `None`
/// if it is not to be had in that time. A lock of the room is made when it is missing, and then
/// belongs to whoever the room belongs to; of a repository, where nobody made one, nobody holds it.
pub fn shared_in_turn(dir: &Dir, name: &str, wait: Duration) -> Result<Option<Held>> {
    let end = Instant::now() + wait;
    loop {
        let file = match dir.file(name).or_absent()? {
            Some(file) => file,
            None if name == path::LOCK => return Ok(None),
            None => {
                let made = open_lock(dir, name)?;
                give_to_owner(dir, &made)?;
                made
            }
        };
        if !lock_shared_until(&file, end).at(|| dir.at(name))? {
            return Ok(None);
        }
        if let Some(held) = confirmed(dir, name, file)? {
            return Ok(Some(held));
        }
    }
}

/// Who polls is never seen to wait, and meets a busy lock free by chance only: a thread waits in the
/// kernel's queue instead. One that waits in vain is left behind; what it gets at last it lets go.
fn lock_shared_until(file: &File, end: Instant) -> std::io::Result<bool> {
    match file.try_lock_shared() {
        Ok(()) => return Ok(true),
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(error)) => return Err(error),
    }
    // The lock belongs to the open file, whichever of its descriptors it was taken through.
    let waiter = file.try_clone()?;
    let (done, taken) = mpsc::channel();
    std::thread::Builder::new().spawn(move || done.send(waiter.lock_shared()))?;
    match taken.recv_timeout(end.saturating_duration_since(Instant::now())) {
        Ok(locked) => locked.map(|()| true),
        Err(_) => Ok(false),
    }
}

/// A file that a command of root's made in the room is the room's owner's, or the server could not
/// open it.
fn give_to_owner(dir: &Dir, file: &File) -> Result<()> {
    let (own, room) = (stat_file(file, || dir.path().to_owned())?, dir.stat()?);
    if own.st_uid == room.st_uid {
        return Ok(());
    }
    let owner = rustix::fs::Uid::from_raw(room.st_uid);
    rustix::fs::fchown(file, Some(owner), None).at(|| dir.path().to_owned())
}

/// A directory that is locked exclusively, as a sign that its maker is at work; `None` where somebody
/// else has it.
pub fn directory(dir: &Dir) -> Result<Option<HeldDir>> {
    use rustix::fs::{FlockOperation, flock};
    match flock(dir, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(HeldDir { _dir: dir.clone() })),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error).at(|| dir.path().to_owned()),
    }
}

/// A locked directory; the lock goes when all who have it open are gone.
#[derive(Debug)]
pub struct HeldDir {
    _dir: Dir,
}

/// Whether a lock file has this one name. Another may be anywhere, and those who may open it there
/// are not those who may push: then a new file takes the name, under the lock of the old one, for
/// which everybody else who waits begins again.
fn is_alone(dir: &Dir, name: &str, held: &Held) -> Result<bool> {
    if stat_file(&held.file, || dir.at(name))?.st_nlink == 1 {
        return Ok(true);
    }
    let beside = path::temporary(name);
    create(dir, &beside)?;
    let renamed = rustix::fs::renameat(dir, beside.as_str(), dir, name).at(|| dir.at(name));
    if renamed.is_err() {
        let _ = rustix::fs::unlinkat(dir, beside.as_str(), AtFlags::empty());
    }
    renamed.map(|()| false)
}

fn open_lock(dir: &Dir, name: &str) -> Result<File> {
    if let Some(file) = open_existing(dir, name)? {
        return Ok(file);
    }
    match create(dir, name) {
        // Somebody else made it meanwhile; if it is gone again, that is theirs to explain.
        Err(error) if error.errno() == Some(Errno::EXIST) => open_existing(dir, name)?.ok_or(error),
        made => made,
    }
}

fn create(dir: &Dir, name: &str) -> Result<File> {
    // Born closed to everybody else; the group's bit comes after.
    let file = dir.create(name, OFlags::RDWR, Mode::RUSR | Mode::WUSR)?;
    if let Err(error) = inherit::apply(dir, &file, Purpose::Lock) {
        // Whoever finds it would not give it its rights any more.
        let _ = rustix::fs::unlinkat(dir, name, AtFlags::empty());
        return Err(error);
    }
    Ok(file)
}

/// Opens a lock file that is there. flock(1) makes it as the shell's umask says: what is wider than
/// it may be is narrowed, and one that its maker alone may write is locked through a descriptor for
/// reading. Nobody gets a right by it: the file may be another that was moved here. One that has
/// another name too may be anybody's, and is not touched.
fn open_existing(dir: &Dir, name: &str) -> Result<Option<File>> {
    let open = |access| dir.regular(name, access | OFlags::NONBLOCK, Mode::empty()).or_absent();
    let file = match open(OFlags::RDWR) {
        Err(error) if error.errno() == Some(Errno::ACCESS) => open(OFlags::RDONLY)?,
        opened => opened?,
    };
    if let Some(file) = &file
        && let Err(error) = narrow(dir, name, file)
    {
        tracing::warn!(%error, "a lock file can be held by whoever may read it: chmod o= it");
    }
    Ok(file)
}

/// Most locks are as they should be, and cost no more than their status.
fn narrow(dir: &Dir, name: &str, file: &File) -> Result<()> {
    let stat = stat_file(file, || dir.at(name))?;
    if stat.st_nlink != 1 || stat.st_mode & 0o067 == 0 {
        return Ok(());
    }
    let outer = dir.stat()?;
    let group = outer.st_mode & 0o020 == 0 || outer.st_gid != stat.st_gid;
    if stat.st_mode & 0o007 != 0 || group {
        inherit::narrow_only(dir, file, Purpose::Lock)?;
    }
    Ok(())
}

/// The lock counts only if the path still names the locked file.
fn confirmed(dir: &Dir, name: &str, file: File) -> Result<Option<Held>> {
    let inode = Inode::of(&stat_file(&file, || dir.at(name))?);
    match dir.stat_name(name)? {
        Some(stat) if Inode::of(&stat) == inode => Ok(Some(Held { file, inode })),
        Some(_) | None => {
            if dir.stat()?.st_nlink == 0 {
                // The directory itself is gone: a new lock file could not even be made there.
                let gone = std::io::Error::from(std::io::ErrorKind::NotFound);
                return Err(Error::Io { path: dir.at(name), source: gone.into() });
            }
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_lock_excludes_and_its_waiters_are_seen() {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open_root(temp.path()).unwrap();
        let held = repository(&dir).unwrap();
        assert!(!held.awaited());
        assert!(exclusive_within(&dir, ".lock", Duration::ZERO).unwrap().is_none());
        let waiter = std::thread::spawn({
            let dir = dir.clone();
            move || repository(&dir).map(|_| ())
        });
        while !held.awaited() {
            std::thread::yield_now();
        }
        held.release();
        waiter.join().unwrap().unwrap();
    }

    #[test]
    fn a_shared_lock_makes_no_file_and_waits_for_the_writer() {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open_root(temp.path()).unwrap();
        let shared = |wait| shared_within(&dir, ".lock", wait).unwrap();
        assert!(shared(Duration::ZERO).is_none());
        assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 0);
        let held = repository(&dir).unwrap();
        assert!(shared(Duration::ZERO).is_none());
        held.release();
        // Not at once: a program that another test starts has our descriptors until its exec.
        let first = shared(Duration::from_secs(10)).unwrap();
        let second = shared(Duration::from_secs(10)).unwrap();
        assert_eq!(first.inode(), second.inode());
        assert!(exclusive_within(&dir, ".lock", Duration::ZERO).unwrap().is_none());
    }

    #[test]
    fn a_lock_file_that_a_shell_made_is_narrowed() {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open_root(temp.path()).unwrap();
        let mode = || dir.stat_name(".lock").unwrap().unwrap().st_mode & 0o777;
        // What it has not is not given: the group locks it by reading.
        for (directory, expected) in [(0o755, 0o600), (0o2775, 0o640)] {
            rustix::fs::fchmod(&dir, Mode::from_raw_mode(directory)).unwrap();
            std::fs::write(temp.path().join(".lock"), "").unwrap();
            assert_ne!(mode(), expected);
            repository(&dir).unwrap();
            assert_eq!(mode(), expected, "in a directory of mode {directory:o}");
            std::fs::remove_file(temp.path().join(".lock")).unwrap();
        }
    }

    #[test]
    fn a_file_that_was_moved_here_gives_nobody_a_right_that_it_did_not_have() {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open_root(temp.path()).unwrap();
        std::os::unix::fs::chown(temp.path(), None, Some(4711)).unwrap();
        let named = temp.path().join(".lock");
        // The file's mode, its group, the directory's mode; and what the file's mode is then.
        for (mode, group, directory, expected) in [
            (0o644, 0, 0o2775, 0o600),
            (0o664, 0, 0o2775, 0o600),
            (0o604, 4711, 0o2775, 0o600),
            (0o646, 4711, 0o2775, 0o640),
            (0o660, 4711, 0o2775, 0o660),
            (0o660, 4711, 0o2755, 0o600),
            (0o404, 4711, 0o2775, 0o400),
        ] {
            rustix::fs::fchmod(&dir, Mode::from_raw_mode(directory)).unwrap();
            std::fs::write(&named, "root's").unwrap();
            std::os::unix::fs::chown(&named, None, Some(group)).unwrap();
            std::fs::set_permissions(&named, PermissionsExt::from_mode(mode)).unwrap();
            repository(&dir).unwrap();
            let stat = dir.stat_name(".lock").unwrap().unwrap();
            let found = (stat.st_mode & 0o7777, stat.st_gid);
            assert_eq!(found, (expected, group), "{mode:o} in a directory of {directory:o}");
            std::fs::remove_file(&named).unwrap();
        }
    }

    #[test]
    fn a_lock_file_that_is_also_another_file_is_replaced_and_the_other_is_left_alone() {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open_root(temp.path()).unwrap();
        rustix::fs::fchmod(&dir, Mode::from_raw_mode(0o2775)).unwrap();
        let other = temp.path().join("passwd");
        std::fs::write(&other, "root").unwrap();
        std::os::unix::fs::chown(&other, None, Some(4711)).unwrap();
        let other = || {
            let stat = dir.stat_name("passwd").unwrap().unwrap();
            (stat.st_mode & 0o7777, stat.st_gid, stat.st_nlink)
        };
        let before = other();
        let plant =
            || std::fs::hard_link(temp.path().join("passwd"), temp.path().join(".lock")).unwrap();
        plant();
        let held = repository(&dir).unwrap();
        assert_eq!(held.inode(), Inode::of(&dir.stat_name(".lock").unwrap().unwrap()));
        assert_eq!(other(), before);
        assert_eq!(dir.stat_name(".lock").unwrap().unwrap().st_mode & 0o777, 0o660);
        std::fs::remove_file(temp.path().join(".lock")).unwrap();
        plant();
        assert!(exclusive_within(&dir, ".lock", Duration::from_secs(10)).unwrap().is_some());
        assert_eq!(other(), before);
        assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_replaced_lock_file_is_locked_anew() {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open_root(temp.path()).unwrap();
        let held = repository(&dir).unwrap();
        let waiter = std::thread::spawn({
            let dir = dir.clone();
            move || repository(&dir).unwrap().inode()
        });
        while !held.awaited() {
            std::thread::yield_now();
        }
        // The old inode stays in use, so its number cannot come back.
        std::fs::rename(temp.path().join(".lock"), temp.path().join("old")).unwrap();
        std::fs::write(temp.path().join(".lock"), "").unwrap();
        let fresh = Inode::of(&dir.stat_name(".lock").unwrap().unwrap());
        held.release();
        assert_eq!(waiter.join().unwrap(), fresh);
    }
}
