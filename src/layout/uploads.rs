//! Upload sessions: data and owner, and no hash state.
//!
//! A session that is taken up after a restart is hashed again from its file: after a power cut a
//! saved state would vouch for bytes that were never written.

use std::fs::{File, TryLockError};
use std::time::{Duration, SystemTime};

use rustix::fs::{Mode, OFlags, Stat, fchmod};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::dir::{self, Dir, Inode};
use super::error::{At, OrAbsent, Result};
use super::path;
use super::tree::Tree;
use crate::oci::{Algorithm, RepoName};

/// Only the server's account reads and writes a session.
const MODE: Mode = Mode::RUSR.union(Mode::WUSR);

/// A worker that is just being started holds all our descriptors until its exec, also one that was
/// closed meanwhile: a lock counts as somebody's when it was not to be had so often, a millisecond
/// apart.
const FORKS: u32 = 20;

/// The name of a session: 128 random bits, so that nobody guesses another's.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UploadId(Box<str>);

impl UploadId {
    /// A new one.
    pub fn random() -> UploadId {
        UploadId(path::random_hex::<16>().into())
    }

    /// 32 lower-case hexadecimal digits, and nothing else.
    pub fn parse(text: &str) -> Option<UploadId> {
        let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        (text.len() == 32 && text.bytes().all(digit)).then(|| UploadId(text.into()))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for UploadId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whose session it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The user; nobody where there is no login.
    pub user: Option<String>,
    /// The one repository that the content may go to.
    pub repository: String,
    /// The algorithm that the bytes are hashed with while they arrive.
    pub algorithm: String,
}

impl Owner {
    /// The owner of a new session.
    pub fn new(user: Option<String>, repository: &RepoName, algorithm: Algorithm) -> Owner {
        let algorithm = algorithm.as_str().to_owned();
        Owner { user, repository: repository.to_string(), algorithm }
    }

    /// The algorithm; SHA-256 if the file names none that is known.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm.parse().unwrap_or(Algorithm::Sha256)
    }
}

/// An open session's directory.
#[derive(Clone, Debug)]
pub struct Session {
    dir: Dir,
    /// Whose it is.
    pub owner: Owner,
}

/// The data of a session, locked: nobody else writes to it meanwhile.
#[derive(Debug)]
pub struct SessionData {
    /// Open for reading and writing.
    pub file: File,
    /// How many bytes have arrived.
    pub size: u64,
    /// The session's directory.
    pub dir: Dir,
}

impl Session {
    /// Opens a new session. On an error nothing is left behind, if that can be helped.
    pub fn create(tree: &Tree, id: &UploadId, owner: Owner) -> Result<Session> {
        let uploads = tree.room.dir(path::UPLOADS)?;
        tree.disk.make_dir(&uploads, id.as_str(), Mode::RWXU)?;
        let made = uploads.dir(id.as_str());
        let filled = made.and_then(|dir| match fill(tree, &dir, &owner) {
            Ok(()) => Ok(Session { dir, owner }),
            Err(error) => {
                // What failed may fail again here; the sweep removes the leftover.
                let _ = unlink_files(tree, &dir);
                Err(error)
            }
        });
        if filled.is_err() {
            let _ = tree.disk.remove_dir(&uploads, id.as_str());
        }
        filled
    }

    /// Finds a session; `None` if there is none, or if its owner's file was torn by a crash.
    pub fn find(tree: &Tree, id: &UploadId) -> Result<Option<Session>> {
        let relative = format!("{}/{id}", path::UPLOADS);
        match tree.room.dir(&relative).or_absent()? {
            Some(dir) => Ok(owner_of(&dir)?.map(|owner| Session { dir, owner })),
            None => Ok(None),
        }
    }

    /// How many bytes have arrived.
    ///
    /// # Errors
    /// "Not found" if the session has ended.
    pub fn size(&self) -> Result<u64> {
        Ok(dir::size_of(&self.stat()?))
    }

    /// When bytes arrived last, or when the session was opened.
    ///
    /// # Errors
    /// "Not found" if the session has ended.
    pub fn last_activity(&self) -> Result<SystemTime> {
        Ok(dir::modified(&self.stat()?))
    }

    fn stat(&self) -> Result<Stat> {
        let name = path::UPLOAD_DATA;
        let Some(stat) = self.dir.stat_name(name)? else {
            return Err(std::io::Error::from(std::io::ErrorKind::NotFound))
                .at(|| self.dir.at(name));
        };
        self.refuse_shared(&stat)?;
        Ok(stat)
    }

    /// Opens and locks the data; `None` if another request is writing to it.
    ///
    /// # Errors
    /// "Not found" if the session has ended. That includes one whose data is a blob already, because
    /// the server was killed right before it removed the session: nobody may write to it any more.
    pub fn lock(&self) -> Result<Option<SessionData>> {
        let open = || self.dir.regular(path::UPLOAD_DATA, OFlags::RDWR, Mode::empty());
        let file = match open() {
            Err(error) if error.errno() == Some(Errno::ACCESS) => {
                let read_only = self.dir.file(path::UPLOAD_DATA)?;
                if self.hold(&read_only)?.is_none() {
                    return Ok(None);
                }
                open()?
            }
            opened => opened?,
        };
        let Some(size) = self.hold(&file)? else { return Ok(None) };
        Ok(Some(SessionData { size, file, dir: self.dir.clone() }))
    }

    /// Locks the data, and makes sure, under the lock, that it is the session's still: it has the
    /// session's name and no other. Then it may be written to, even if it was sealed before a kill.
    fn hold(&self, file: &File) -> Result<Option<u64>> {
        let at = || self.dir.at(path::UPLOAD_DATA);
        let mut again = FORKS;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if again > 0 => {
                    again -= 1;
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error).at(at),
            }
        }
        let stat = dir::stat_file(file, at)?;
        let named = self.dir.stat_name(path::UPLOAD_DATA)?;
        if named.is_none_or(|named| Inode::of(&named) != Inode::of(&stat)) {
            return Err(std::io::Error::from(std::io::ErrorKind::NotFound)).at(at);
        }
        self.refuse_shared(&stat)?;
        if stat.st_mode & 0o200 == 0 {
            fchmod(file, MODE).at(at)?;
        }
        Ok(Some(dir::size_of(&stat)))
    }

    /// Data with more names than one is a blob.
    fn refuse_shared(&self, stat: &Stat) -> Result<()> {
        if stat.st_nlink == 1 {
            return Ok(());
        }
        let gone = std::io::Error::from(std::io::ErrorKind::NotFound);
        Err(gone).at(|| self.dir.at(path::UPLOAD_DATA))
    }

    /// Ends a session: its directory goes, whatever was linked from its data stays.
    pub fn remove(&self, tree: &Tree, id: &UploadId, data: SessionData) -> Result<()> {
        end(tree, &self.dir, id, Some(data.file))
    }
}

/// The files of a new session. The owner comes last: a session without one is no session.
fn fill(tree: &Tree, dir: &Dir, owner: &Owner) -> Result<()> {
    let at = || dir.at(path::UPLOAD_OWNER);
    tree.disk.create(dir, path::UPLOAD_DATA, MODE)?;
    let file = tree.disk.create(dir, path::UPLOAD_OWNER, MODE)?;
    let bytes = serde_json::to_vec(owner).map_err(std::io::Error::from).at(at)?;
    tree.disk.write(&file, &bytes, 0).at(at)
}

/// Whose session lies in a directory; `None` if that was never written, or torn by a crash.
pub(super) fn owner_of(dir: &Dir) -> Result<Option<Owner>> {
    let Some(file) = dir.file(path::UPLOAD_OWNER).or_absent()? else {
        return Ok(None);
    };
    let bytes = dir::read_all(&file, 4096, || dir.at(path::UPLOAD_OWNER))?;
    Ok(serde_json::from_slice(&bytes).ok())
}

/// Removes what a session's directory holds, and the directory.
///
/// Its data is closed before the directory is removed: FUSE and NFS keep the name of an open file
/// that was unlinked. Where one is open still, the empty shell is left to the sweep.
pub(super) fn end(tree: &Tree, dir: &Dir, id: &UploadId, data: Option<File>) -> Result<()> {
    // Before anything goes: where the server has no descriptor left, the session stays whole.
    let uploads = tree.room.dir(path::UPLOADS)?;
    unlink_files(tree, dir)?;
    drop(data);
    match tree.disk.remove_dir(&uploads, id.as_str()).or_absent() {
        Err(error) if error.errno() == Some(Errno::NOTEMPTY) => Ok(()),
        removed => removed.map(|_| ()),
    }
}

/// The owner goes first: a session without one is no session.
fn unlink_files(tree: &Tree, dir: &Dir) -> Result<()> {
    [path::UPLOAD_OWNER, path::UPLOAD_DATA]
        .into_iter()
        .try_for_each(|name| tree.disk.unlink(dir, name).or_absent().map(|_| ()))
}
