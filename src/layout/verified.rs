//! Which inodes this process knows to hold what their name says.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use rustix::fs::Stat;

/// Inodes are remembered up to this many; then it begins anew.
const MOST: usize = 1 << 16;

/// Inodes of the server's own account whose content was hashed and synced by this process.
///
/// Nobody but that account can write to them, and whoever does changes length or time.
#[derive(Debug, Default)]
pub(super) struct Verified {
    known: Mutex<HashSet<Key>>,
}

/// A link changes an inode's ctime, so that is left out; and some file systems behind FUSE forget the
/// fraction of a second of a file's time while it is open.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    dev: u64,
    ino: u64,
    size: i64,
    mtime: i64,
}

impl Key {
    fn of(stat: &Stat) -> Key {
        Key { dev: stat.st_dev, ino: stat.st_ino, size: stat.st_size, mtime: stat.st_mtime }
    }
}

impl Verified {
    /// Remembers an inode that was just hashed and synced.
    pub(super) fn remember(&self, stat: &Stat) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(Key::of(stat));
    }

    /// Whether an inode is one of them.
    pub(super) fn knows(&self, stat: &Stat) -> bool {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).contains(&Key::of(stat))
    }
}
