//! Which state of a file it is, as stat(2) tells.

use rustix::fs::{self, Mode, OFlags, Stat};
use rustix::time::{ClockId, clock_gettime};

use super::dir::Dir;

/// What stat(2) tells of a file's content: equal versions of one inode mean equal bytes, once the
/// times are settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    dev: u64,
    ino: u64,
    size: i64,
    mtime: (i64, u64),
    ctime: (i64, u64),
}

impl Version {
    /// Of a file's status.
    pub fn of(stat: &Stat) -> Version {
        Version {
            dev: stat.st_dev,
            ino: stat.st_ino,
            size: stat.st_size,
            mtime: (stat.st_mtime, stat.st_mtime_nsec),
            ctime: (stat.st_ctime, stat.st_ctime_nsec),
        }
    }

    /// Whether a change from now on must show in the times: kernels before 6.13 stamp files with a
    /// clock that ticks every 4 ms, and within two ticks a second change may leave all times equal;
    /// old file systems have whole seconds only.
    pub(super) fn settled(self) -> bool {
        let now = clock_gettime(ClockId::RealtimeCoarse);
        let age = (i128::from(now.tv_sec) - i128::from(self.ctime.0)) * 1_000_000_000
            + i128::from(now.tv_nsec)
            - i128::from(self.ctime.1);
        age > if self.is_coarse() { 2_000_000_000 } else { 10_000_000 }
    }

    /// The device that the file lies on.
    pub(super) fn device(self) -> u64 {
        self.dev
    }

    /// Whether the file system seems to keep whole seconds only.
    pub(super) fn is_coarse(self) -> bool {
        self.ctime.1 == 0
    }
}

/// So many changes in a row show, each for itself: within one tick of the clock they would not.
const ROUNDS: usize = 4;

/// The device of a directory, if every change of a file there shows in its times to somebody who has
/// looked at them before, however soon it comes: since Linux 6.13, where the file system takes part. It is
/// tried, with a nameless file that goes again.
pub(super) fn with_fine_times(dir: &Dir) -> Option<u64> {
    let (mode, flags) = (Mode::RUSR | Mode::WUSR, OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC);
    let file = fs::openat(dir, ".", flags, mode).ok()?;
    let mut last = Version::of(&fs::fstat(&file).ok()?);
    for _ in 0..ROUNDS {
        fs::fchmod(&file, mode).ok()?;
        let now = Version::of(&fs::fstat(&file).ok()?);
        if std::mem::replace(&mut last, now) == now {
            return None;
        }
    }
    Some(last.dev)
}
