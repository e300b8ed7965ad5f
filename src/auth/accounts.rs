//! Notices that the host's accounts were edited, so that nothing remembered outlives it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// The files whose change makes remembered logins and groups void.
pub(super) struct AccountFiles(Vec<PathBuf>);

/// What the files looked like; equal stamps mean that none was replaced or written between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stamp(Vec<Option<File>>);

/// Device, inode, length, and the times of the last write and change.
type File = (u64, u64, u64, (i64, i64), (i64, i64));

impl AccountFiles {
    /// Those of this host.
    pub(super) fn of_host() -> AccountFiles {
        AccountFiles(["/etc/passwd", "/etc/shadow", "/etc/group"].map(PathBuf::from).into())
    }

    #[cfg(test)]
    pub(super) fn of(path: PathBuf) -> AccountFiles {
        AccountFiles(vec![path])
    }

    /// Needs no right to read the files, only to see them. A file that is not there has a stamp too.
    pub(super) fn stamp(&self) -> Stamp {
        let stamps = self.0.iter().map(|path| {
            let meta = fs::metadata(path).ok()?;
            let written = (meta.mtime(), meta.mtime_nsec());
            let changed = (meta.ctime(), meta.ctime_nsec());
            Some((meta.dev(), meta.ino(), meta.len(), written, changed))
        });
        Stamp(stamps.collect())
    }
}
