//! On whose behalf the server reads what others put into the tree, and makes directories.

use std::cmp::Ordering;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::dir::Dir;
use super::error::Result;
use super::rights::{Level, Way};
use crate::oci::RepoName;

/// Read, as [`Account::may`] has it.
pub const READ: u8 = 4;
/// Write.
pub const WRITE: u8 = 2;
/// Search a directory.
pub const SEARCH: u8 = 1;

/// Whether somebody gets these bits of something with these rights.
type Decide = dyn Fn(&Level, u8) -> bool + Send + Sync;

/// The account for which the server acts. Who may do what is decided elsewhere; here it is a
/// question that can be asked.
#[derive(Clone)]
pub struct Account {
    uid: Option<u32>,
    may: Arc<Decide>,
    seen: Option<Seen>,
}

/// The directory on whose permissions an account was let through.
#[derive(Clone)]
struct Seen {
    repo: RepoName,
    /// How many directories lie above it, ROOT included.
    depth: usize,
    /// It is the repository's own; otherwise the nearest that was there.
    whole: bool,
    level: Arc<Level>,
    /// Held open, so that its number is no other's meanwhile.
    held: Option<Arc<OwnedFd>>,
}

impl Account {
    /// A user by number, or nobody in particular. `may` says whether they get these bits of a
    /// directory or file with these rights.
    pub fn new(
        uid: Option<u32>,
        may: impl Fn(&Level, u8) -> bool + Send + Sync + 'static,
    ) -> Account {
        Account { uid, may: Arc::new(may), seen: None }
    }

    /// The same account, let through to a repository by what lay on the way to it. Whoever may write
    /// a directory can rename what lies in it, also between the look and the deed: from now on the
    /// name stands for the directory that was looked at, and for no other.
    pub fn having_seen(self, repo: &RepoName, way: &Way) -> Account {
        let seen = way.levels.last().map(|last| Seen {
            repo: repo.clone(),
            depth: way.levels.len() - 1,
            whole: way.whole,
            level: Arc::clone(last),
            held: way.held.clone(),
        });
        Account { seen, ..self }
    }

    /// Whether a repository's directory is the one whose permissions let the account through. One
    /// that was made since is judged by itself.
    pub fn accepts(&self, repo: &RepoName, dir: &Dir) -> Result<bool> {
        match self.seen_of(repo.as_str()) {
            None => Ok(true),
            Some(seen) if seen.whole => Ok(dir.inode()? == seen.level.inode),
            Some(_) => Ok(self.may(&Level::of(dir)?, WRITE | SEARCH)),
        }
    }

    /// The very directory of a repository whose permissions let the account through, to look up names
    /// in it: it can neither be locked nor synced. `None` where that is not its own.
    pub fn seen(&self, repo: &RepoName) -> Option<Dir> {
        let seen = self.seen_of(repo.as_str()).filter(|seen| seen.whole)?;
        Some(Dir::held(Arc::clone(seen.held.as_ref()?), &seen.level.path))
    }

    /// The same of a directory on the way to a repository that is to be made, `depth` beneath ROOT.
    pub(super) fn accepts_on_the_way(&self, repo: &str, depth: usize, dir: &Dir) -> Result<bool> {
        let Some(seen) = self.seen_of(repo) else { return Ok(true) };
        match depth.cmp(&seen.depth) {
            Ordering::Less => Ok(true),
            Ordering::Equal => Ok(dir.inode()? == seen.level.inode),
            Ordering::Greater if repo.split('/').count() == depth => {
                Ok(!seen.whole && self.may(&Level::of(dir)?, WRITE | SEARCH))
            }
            Ordering::Greater => Ok(self.may(&Level::of(dir)?, SEARCH)),
        }
    }

    fn seen_of(&self, repo: &str) -> Option<&Seen> {
        self.seen.as_ref().filter(|seen| seen.repo.as_str() == repo)
    }

    /// The user's number; `None` for those who need no entry of their own: the server itself,
    /// administrators, and whoever never logged in.
    pub fn uid(&self) -> Option<u32> {
        self.uid
    }

    /// Whether the account gets all of `bits` ([`READ`], [`WRITE`], [`SEARCH`]).
    pub fn may(&self, level: &Level, bits: u8) -> bool {
        (self.may)(level, bits)
    }
}

/// The server itself, which owns what it makes.
impl Default for Account {
    fn default() -> Account {
        Account::new(None, |_, _| true)
    }
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Account").field("uid", &self.uid).finish_non_exhaustive()
    }
}
