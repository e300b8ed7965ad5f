//! Which inodes this process knows to hold, or not to hold, what their names say.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use rustix::fs::Stat;

use super::dir::Inode;
use super::version::Version;
use crate::oci::Digest;

/// Inodes are remembered up to this many; then it begins anew. What is forgotten is hashed again.
const MOST: usize = 1 << 16;

/// And so many of those that hold what they say and are the server's own: of them the pool tells as
/// well, for one system call.
const MOST_SEALED: usize = 1 << 13;

/// Whether a file's content has the digest that its name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It has.
    Right,
    /// It has another.
    Wrong,
}

/// What inodes were found to hold when they were hashed.
///
/// The digest is part of what is known: whoever may write a directory can give an inode another
/// digest's name.
#[derive(Debug, Default)]
pub(super) struct Verified {
    maps: Mutex<Maps>,
}

type Known = HashMap<(Inode, Digest), (Verdict, State)>;

#[derive(Debug, Default)]
struct Maps {
    /// Sealed, and right.
    sealed: Known,
    /// All others.
    others: Known,
}

/// Of which state of the inode it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Sealed and of the server's own account: nobody else can write to it, and whoever does changes
    /// length or time. A link changes an inode's ctime, so that is left out; and some file systems
    /// behind FUSE forget the fraction of a second of a file's time while it is open.
    Sealed { size: i64, mtime: i64 },
    /// Anything else may change at any moment, and its owner can set mtime back, but not ctime.
    Exact(Version),
}

impl State {
    fn sealed(stat: &Stat) -> State {
        State::Sealed { size: stat.st_size, mtime: stat.st_mtime }
    }
}

impl Verified {
    /// Remembers an inode of the server's own that was just hashed and sealed, or that the pool has.
    pub(super) fn remember_sealed(&self, digest: &Digest, stat: &Stat) {
        self.put(digest, stat, Verdict::Right, State::sealed(stat));
    }

    /// Remembers what came out when exactly this state of an inode was hashed: its times were
    /// settled before, and equal afterwards.
    pub(super) fn remember_exact(&self, digest: &Digest, stat: &Stat, verdict: Verdict) {
        self.put(digest, stat, verdict, State::Exact(Version::of(stat)));
    }

    /// What an inode of the server's own holds after a failed sync is unknown, whatever a second sync
    /// says and whatever the kernel still has of it in memory: it counts as damaged.
    pub(super) fn distrust(&self, digest: &Digest, stat: &Stat) {
        self.put(digest, stat, Verdict::Wrong, State::sealed(stat));
    }

    fn put(&self, digest: &Digest, stat: &Stat, verdict: Verdict, state: State) {
        let key = (Inode::of(stat), digest.clone());
        let mut maps = self.maps.lock().unwrap_or_else(PoisonError::into_inner);
        let Maps { sealed, others } = &mut *maps;
        let (map, most, other) = match (verdict, state) {
            (Verdict::Right, State::Sealed { .. }) => (sealed, MOST_SEALED, others),
            _ => (others, MOST, sealed),
        };
        if map.len() >= most {
            map.clear();
        }
        other.remove(&key);
        map.insert(key, (verdict, state));
    }

    /// What is known of an inode under this digest's name. `sealed`: whether it is one that only the
    /// server could change.
    pub(super) fn verdict(&self, digest: &Digest, stat: &Stat, sealed: bool) -> Option<Verdict> {
        let key = (Inode::of(stat), digest.clone());
        let maps = self.maps.lock().unwrap_or_else(PoisonError::into_inner);
        let (verdict, state) = *maps.sealed.get(&key).or_else(|| maps.others.get(&key))?;
        let same = match state {
            State::Sealed { .. } => sealed && state == State::sealed(stat),
            State::Exact(version) => version == Version::of(stat),
        };
        same.then_some(verdict)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn what_is_known_is_known_of_one_digest_and_one_state() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let stat = || rustix::fs::fstat(&file).unwrap();
        let [one, two] = [b"one", b"two"].map(|bytes| Digest::of(Algorithm::Sha256, bytes));
        let known = Verified::default();
        assert_eq!(known.verdict(&one, &stat(), true), None);
        known.remember_sealed(&one, &stat());
        known.remember_exact(&two, &stat(), Verdict::Wrong);
        let both = |sealed| [&one, &two].map(|digest| known.verdict(digest, &stat(), sealed));
        assert_eq!(both(true), [Some(Verdict::Right), Some(Verdict::Wrong)]);
        assert_eq!(both(false), [None, Some(Verdict::Wrong)]);
        // As a link does: the content of what is sealed is the same.
        let settled = Version::of(&stat());
        while !settled.settled() {
            std::thread::yield_now();
        }
        file.as_file().set_permissions(PermissionsExt::from_mode(0o400)).unwrap();
        assert_eq!(both(true), [Some(Verdict::Right), None]);
        file.as_file().set_len(1).unwrap();
        assert_eq!(both(true), [None, None]);
    }

    #[test]
    fn what_is_distrusted_is_not_forgotten_for_what_is_right() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let stat = rustix::fs::fstat(&file).unwrap();
        let digest = |n: usize| Digest::of(Algorithm::Sha256, &n.to_le_bytes());
        let known = Verified::default();
        known.remember_sealed(&digest(0), &stat);
        known.distrust(&digest(0), &stat);
        for n in 1..=2 * MOST_SEALED {
            known.remember_sealed(&digest(n), &stat);
        }
        assert_eq!(known.verdict(&digest(0), &stat, true), Some(Verdict::Wrong));
        assert_eq!(known.verdict(&digest(2 * MOST_SEALED), &stat, true), Some(Verdict::Right));
        assert!(known.maps.lock().unwrap().sealed.len() <= MOST_SEALED);
    }
}
