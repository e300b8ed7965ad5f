//! Space that uploads leave free, so that there is always some for index.json.
//!
//! An upload asks before it grows, for a good piece at once, and what was granted and is not yet
//! written counts as taken: a thousand uploads together leave as much free as one.

use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{FallocateFlags, StatVfs};

use super::dir::Dir;
use super::error::{At, Error, Result};
use super::tree::Tree;

/// How much uploads leave free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MinFree {
    /// So many bytes; with 0 nobody looks.
    Bytes(u64),
    /// So many hundredths of the file system.
    Percent(u8),
    /// What suits file systems of all sizes: the larger of 1 GiB and 2 %, but of one smaller than
    /// 10 GiB no more than 10 %.
    Usual,
}

impl MinFree {
    /// In bytes, on a file system of `total`.
    fn of(self, total: u64) -> u64 {
        let share = |percent: u8| total / 100 * u64::from(percent);
        match self {
            MinFree::Bytes(bytes) => bytes,
            MinFree::Percent(percent) => share(percent),
            MinFree::Usual => share(2).max(GIB).min(share(10)),
        }
    }

    fn is_nothing(self) -> bool {
        matches!(self, MinFree::Bytes(0) | MinFree::Percent(0))
    }
}

const GIB: u64 = 1 << 30;

/// So many inodes stay free as well, or 2 % of them: each new index.json takes one for a moment.
const INODES: u64 = 1000;

/// An upload asks again after so many bytes, at the latest; the first ones in smaller pieces.
const STEP: u64 = 16 * 1024 * 1024;
const FIRST_STEP: u64 = 256 * 1024;

/// Nothing is reserved for small uploads.
const RESERVE_FROM: u64 = 4 * 1024 * 1024;
const RESERVE_MOST: u64 = 64 * 1024 * 1024;

/// The space of the file system that holds the room.
#[derive(Debug)]
pub struct Space {
    room: Dir,
    min: MinFree,
    /// Granted, and not yet written.
    promised: Mutex<u64>,
}

impl Space {
    /// Of a tree.
    pub fn new(tree: &Tree, min: MinFree) -> Space {
        Space { room: tree.room.clone(), min, promised: Mutex::new(0) }
    }

    /// Whether there is space for a new upload.
    ///
    /// # Errors
    /// [`Error::Full`] if there is not more than what is kept back.
    pub fn check(&self) -> Result<()> {
        let promised = self.promised();
        self.beyond(&self.room, 1, *promised).map(|_| ())
    }

    /// Whether a blob of `size` bytes may be copied to `dir`, which lies on another file system.
    /// On the same one it is linked, and its space was granted while it arrived.
    ///
    /// # Errors
    /// [`Error::Full`] if less than what is kept back would be left.
    pub fn check_copy(&self, dir: &Dir, size: u64) -> Result<()> {
        if self.min.is_nothing() || dir.inode()?.dev == self.room.inode()?.dev {
            return Ok(());
        }
        self.beyond(dir, size, 0).map(|_| ())
    }

    /// Whether a file of `size` bytes may be copied into the tree.
    ///
    /// # Errors
    /// [`Error::Full`] if less than what is kept back would be left.
    pub fn check_size(&self, size: u64) -> Result<()> {
        let promised = self.promised();
        self.beyond(&self.room, size, *promised).map(|_| ())
    }

    /// The space that one file is going to take.
    pub fn growth(self: &Arc<Space>) -> Growth {
        Growth { space: Arc::clone(self), granted: 0, reserved: 0, reserve_at: RESERVE_FROM }
    }

    /// Grants at least `least` and at most `most` bytes.
    fn grant(&self, least: u64, most: u64) -> Result<u64> {
        let mut promised = self.promised();
        let granted = self.beyond(&self.room, least, *promised)?.min(most);
        *promised += granted;
        Ok(granted)
    }

    fn give_back(&self, bytes: u64) {
        let mut promised = self.promised();
        *promised = promised.saturating_sub(bytes);
    }

    fn promised(&self) -> MutexGuard<'_, u64> {
        self.promised.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many bytes there are beyond what is kept back, of which there must be `least`.
    fn beyond(&self, dir: &Dir, least: u64, promised: u64) -> Result<u64> {
        if self.min.is_nothing() {
            return Ok(u64::MAX - promised);
        }
        let stat = rustix::fs::fstatvfs(dir).at(|| dir.path().to_owned())?;
        let full = |why| Err(Error::Full { path: dir.path().to_owned(), why });
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let keep = self.min.of(stat.f_blocks.saturating_mul(stat.f_frsize));
        let beyond = free.saturating_sub(keep).saturating_sub(promised);
        if beyond < least {
            return full(format!("{free} bytes are free, and uploads leave {keep}"));
        }
        if let Some((free, keep)) = inodes(&stat).filter(|(free, keep)| free <= keep) {
            return full(format!("{free} inodes are free, and uploads leave {keep}"));
        }
        Ok(beyond)
    }
}

/// How many inodes are free, and how many are to stay free; `None` where they are not counted.
fn inodes(stat: &StatVfs) -> Option<(u64, u64)> {
    (stat.f_files > 0).then(|| (stat.f_favail, INODES.min(stat.f_files / 50)))
}

/// The space that one file takes while it grows: granted, or reserved on the disk already.
///
/// Space is reserved behind what has arrived, in steps: as much again as there is, within bounds, so
/// that the file system allocates in large pieces. It goes by bytes received and never by a client's
/// Content-Length: 500 clients announcing 1 GiB each would fill the disk. File systems without
/// fallocate(2) do without.
#[derive(Debug)]
pub struct Growth {
    space: Arc<Space>,
    granted: u64,
    /// The offset up to which the file has space on the disk.
    reserved: u64,
    /// The length at which more is to be reserved.
    reserve_at: u64,
}

impl Growth {
    /// Makes sure that `len` bytes may be written at `at`.
    ///
    /// # Errors
    /// [`Error::Full`] if less than what is kept back would be left.
    pub fn before(&mut self, file: &File, at: u64, len: u64) -> Result<()> {
        if at >= self.reserve_at {
            self.reserve(file, at);
        }
        let least = self.unreserved(at, len).saturating_sub(self.granted);
        if least > 0 {
            let ahead = at.clamp(FIRST_STEP, STEP);
            self.granted += self.space.grant(least, least.max(ahead))?;
        }
        Ok(())
    }

    /// `len` bytes were written at `at`: from now on the file system counts them itself.
    pub fn after(&mut self, at: u64, len: u64) {
        let used = self.unreserved(at, len).min(self.granted);
        self.granted -= used;
        self.space.give_back(used);
    }

    /// Whether a file of `len` bytes has space reserved past its end.
    pub fn is_ahead_of(&self, len: u64) -> bool {
        self.reserved > len
    }

    fn reserve(&mut self, file: &File, at: u64) {
        let ahead = at.min(RESERVE_MOST);
        // Where there is not so much left, the next bytes are still asked for one by one.
        let Ok(granted) = self.space.grant(ahead, ahead) else {
            self.reserve_at = at + STEP;
            return;
        };
        match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, at, ahead) {
            Ok(()) => {
                self.reserved = at + ahead;
                self.reserve_at = self.reserved - RESERVE_FROM / 2;
                // What was granted lies in what is reserved now.
                self.space.give_back(std::mem::take(&mut self.granted));
            }
            Err(_) => self.reserve_at = u64::MAX,
        }
        self.space.give_back(granted);
    }

    fn unreserved(&self, at: u64, len: u64) -> u64 {
        (at + len).saturating_sub(self.reserved.max(at))
    }
}

impl Drop for Growth {
    fn drop(&mut self) {
        self.space.give_back(self.granted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn what_is_usual_suits_every_size() {
        let usual = |total| MinFree::Usual.of(total);
        assert_eq!(usual(64 * MIB) / MIB, 6);
        assert_eq!(usual(2 * GIB) / MIB, 204);
        assert_eq!(usual(10 * GIB) / MIB, 1023);
        assert_eq!(usual(20 * GIB), GIB);
        assert_eq!(usual(100 * GIB), 2 * GIB);
        assert_eq!(MinFree::Percent(3).of(100 * GIB), 3 * GIB);
        assert_eq!(MinFree::Bytes(7).of(1), 7);
    }

    #[test]
    fn nothing_is_kept_back_where_nobody_looks() {
        for min in [MinFree::Bytes(0), MinFree::Percent(0)] {
            let temp = tempfile::tempdir().unwrap();
            let room = Dir::open_root(temp.path()).unwrap();
            let space = Arc::new(Space { room, min, promised: Mutex::new(0) });
            space.check().unwrap();
            let file = tempfile::tempfile().unwrap();
            let mut growth = space.growth();
            growth.before(&file, 0, 1 << 60).unwrap();
            growth.after(0, 1 << 60);
            drop(growth);
            assert_eq!(*space.promised(), 0);
        }
    }

    #[test]
    fn what_was_granted_counts_until_it_is_written_or_given_up() {
        let temp = tempfile::tempdir().unwrap();
        let room = Dir::open_root(temp.path()).unwrap();
        let space = Arc::new(Space { room, min: MinFree::Bytes(1), promised: Mutex::new(0) });
        let file = tempfile::tempfile().unwrap();
        let (mut one, mut two) = (space.growth(), space.growth());
        one.before(&file, 0, 10).unwrap();
        one.before(&file, 0, 10).unwrap();
        assert_eq!(*space.promised(), FIRST_STEP);
        two.before(&file, 0, MIB).unwrap();
        assert_eq!(*space.promised(), FIRST_STEP + MIB);
        one.after(0, 10);
        two.after(0, MIB);
        assert_eq!(*space.promised(), FIRST_STEP - 10);
        drop(one);
        assert_eq!(*space.promised(), 0);
        // The disk holds what was reserved: nothing is promised for it.
        two.before(&file, RESERVE_FROM, MIB).unwrap();
        assert_eq!(*space.promised(), 0);
        assert!(two.is_ahead_of(2 * RESERVE_FROM - 1) && !two.is_ahead_of(2 * RESERVE_FROM));
        two.before(&file, 2 * RESERVE_FROM - 10, 30).unwrap();
        assert_eq!(*space.promised(), 0, "more was reserved in time");
    }

    #[test]
    fn a_full_file_system_says_what_is_left() {
        let temp = tempfile::tempdir().unwrap();
        let room = Dir::open_root(temp.path()).unwrap();
        let space = Space { room, min: MinFree::Bytes(u64::MAX), promised: Mutex::new(0) };
        let error = space.check().unwrap_err();
        assert_eq!(error.errno(), Some(rustix::io::Errno::NOSPC));
        assert!(error.to_string().contains("bytes are free, and uploads leave"), "{error}");
    }

    #[test]
    fn inodes_are_kept_back_too() {
        let stat = |files, free| {
            let mut stat = rustix::fs::statvfs("/").unwrap();
            (stat.f_files, stat.f_favail) = (files, free);
            inodes(&stat)
        };
        assert_eq!(stat(0, 0), None);
        assert_eq!(stat(1 << 20, 999), Some((999, 1000)));
        assert_eq!(stat(500, 11), Some((11, 10)));
    }
}
