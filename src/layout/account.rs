//! On whose behalf the server reads what others put into the tree, and makes directories.

use std::fmt;
use std::sync::Arc;

use super::rights::Level;

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
}

impl Account {
    /// A user by number, or nobody in particular. `may` says whether they get these bits of a
    /// directory or file with these rights.
    pub fn new(
        uid: Option<u32>,
        may: impl Fn(&Level, u8) -> bool + Send + Sync + 'static,
    ) -> Account {
        Account { uid, may: Arc::new(may) }
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
