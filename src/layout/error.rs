//! What can go wrong with files: always with the path it went wrong at.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;
use thiserror::Error;

/// A failed operation on the tree. Cheap to clone: everybody in a group commit gets it.
#[derive(Clone, Debug, Error)]
pub enum Error {
    /// The operating system refused.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: Arc<io::Error>,
    },
    /// This account may not open it.
    #[error("{}: {why}", .path.display())]
    Shut {
        /// The file or directory.
        path: PathBuf,
        /// Whose it is, its mode, and who asks.
        why: String,
    },
    /// The file was read and is not what it has to be.
    #[error("{}: {why}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// An upload would take what is kept free for everything else.
    #[error("{}: {why}", .path.display())]
    Full {
        /// A directory of the file system.
        path: PathBuf,
        /// What is left, and what is kept back.
        why: String,
    },
    /// A directory is not the one whose permissions were looked at.
    #[error("{}: was moved or replaced meanwhile", .path.display())]
    Replaced {
        /// The directory.
        path: PathBuf,
    },
    /// A new directory would shut out the user for whom it is made.
    #[error(
        "{}: its rights would shut out whoever makes it, and this file system keeps no ACLs that \
         would let them in: make the directory by hand, of a group that may write to it",
        .path.display()
    )]
    NoAcls {
        /// The directory.
        path: PathBuf,
    },
}

/// Results of this room.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A file that is not what it has to be.
    pub fn damaged(path: impl Into<PathBuf>, why: impl ToString) -> Error {
        Error::Damaged { path: path.into(), why: why.to_string() }
    }

    /// Whether it is one of link(2) or rename(2) for which a copy takes their place.
    pub fn wants_copy(&self) -> bool {
        // ENOTSUP and EOPNOTSUPP are one number on Linux; FUSE file systems answer ENOSYS.
        let kinds = [Errno::XDEV, Errno::PERM, Errno::NOTSUP, Errno::MLINK, Errno::NOSYS];
        self.errno().is_some_and(|errno| kinds.contains(&errno))
    }

    /// An ACL of a form that Linux does not have.
    pub(super) fn unreadable_acl(path: &Path) -> Error {
        Error::damaged(path, "has an ACL that cannot be read")
    }

    /// The error number, if the operating system gave one; it gives the same where space is kept back.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Error::Io { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => Some(Errno::NOENT),
                io::ErrorKind::WouldBlock => Some(Errno::AGAIN),
                _ => Errno::from_io_error(source),
            },
            Error::Full { .. } => Some(Errno::NOSPC),
            Error::Shut { .. } => Some(Errno::ACCESS),
            Error::Damaged { .. } | Error::Replaced { .. } | Error::NoAcls { .. } => None,
        }
    }

    /// Whether there simply is nothing at the path.
    pub fn is_absent(&self) -> bool {
        matches!(self.errno(), Some(Errno::NOENT | Errno::NOTDIR))
    }

    /// The path that the error is about.
    pub fn path(&self) -> &Path {
        match self {
            Error::Io { path, .. }
            | Error::Shut { path, .. }
            | Error::Damaged { path, .. }
            | Error::Full { path, .. }
            | Error::Replaced { path }
            | Error::NoAcls { path } => path,
        }
    }
}

/// Puts the path to an error of the operating system.
pub trait At<T> {
    /// `path` is made only when there is an error.
    fn at(self, path: impl FnOnce() -> PathBuf) -> Result<T>;
}

impl<T, E: Into<io::Error>> At<T> for std::result::Result<T, E> {
    fn at(self, path: impl FnOnce() -> PathBuf) -> Result<T> {
        self.map_err(|error| Error::Io { path: path(), source: Arc::new(error.into()) })
    }
}

/// Absence is an answer, not an error.
pub trait OrAbsent<T> {
    /// `None` where nothing is at the path.
    fn or_absent(self) -> Result<Option<T>>;
}

impl<T> OrAbsent<T> for Result<T> {
    fn or_absent(self) -> Result<Option<T>> {
        match self {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(error),
        }
    }
}
