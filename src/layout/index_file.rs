//! Reading index.json, which others may change at any moment.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::fs::Stat;

use super::dir::{self, Dir};
use super::error::{Error, OrAbsent, Result};
use super::path;
use super::readers::Readers;
use super::stamp::Stamp;
use super::tree::Tree;
use super::version::Version;
use crate::oci::Index;

/// The largest index.json that is read: ten times what 100,000 tags need.
pub const MAX_INDEX: u64 = 256 * 1024 * 1024;

/// An index.json that does not parse and is younger than this is being written by another tool:
/// skopeo truncates it in place.
const BEING_WRITTEN: Duration = Duration::from_secs(2);

/// An index.json as it was read at some moment.
#[derive(Debug)]
pub struct IndexFile {
    /// What it says.
    pub index: Arc<Index>,
    /// Which bytes they were.
    pub stamp: Stamp,
    /// Who may read it.
    pub readers: Readers,
    version: Version,
    /// The times were old enough when it was read that a later change must show in them; or it was
    /// written here, and any must.
    settled: bool,
    /// Held open, so that the inode's number cannot be given to another file.
    file: File,
}

impl IndexFile {
    /// Reads a repository's index.json; `None` if there is none.
    ///
    /// # Errors
    /// What cannot be read or parsed is an error naming the file, never an empty index.
    pub fn read(dir: &Dir) -> Result<Option<IndexFile>> {
        match Self::open(dir)? {
            Some((file, version)) => Self::load(dir, file, version, None).map(Some),
            None => Ok(None),
        }
    }

    /// Which bytes stand there now, whatever they say; `None` if there is no such file.
    pub fn stamp_now(dir: &Dir) -> Result<Option<Stamp>> {
        let Some(file) = dir.file(path::INDEX).or_absent()? else {
            return Ok(None);
        };
        let bytes = dir::read_all(&file, MAX_INDEX, || dir.at(path::INDEX))?;
        Ok(Some(Stamp::of(&bytes)))
    }

    /// Reads it again unless `last` is certain to be what stands there now. Equal bytes are not
    /// parsed twice.
    pub fn refresh(dir: &Dir, last: &Arc<IndexFile>) -> Result<Option<Arc<IndexFile>>> {
        if last.stands(dir)? {
            return Ok(Some(Arc::clone(last)));
        }
        Self::reread(dir, last)
    }

    /// Whether it is certain to be what stands there now: one look at the name.
    pub fn stands(&self, dir: &Dir) -> Result<bool> {
        if !self.settled {
            return Ok(false);
        }
        let stat = dir.stat_name(path::INDEX)?;
        Ok(stat.is_some_and(|stat| Version::of(&stat) == self.version))
    }

    /// Reads it again whatever stat(2) says, for a writer on a network file system.
    pub fn reread(dir: &Dir, last: &Arc<IndexFile>) -> Result<Option<Arc<IndexFile>>> {
        let Some((file, version)) = Self::open(dir)? else {
            return Ok(None);
        };
        Self::load(dir, file, version, Some(last)).map(|read| Some(Arc::new(read)))
    }

    /// Whether an error of [`read`](Self::read) may go away by itself, because another tool is
    /// just writing the file.
    pub fn being_written(dir: &Dir, error: &Error) -> bool {
        let Error::Damaged { .. } = error else {
            return false;
        };
        let Ok(Some(stat)) = dir.stat_name(path::INDEX) else {
            return false;
        };
        let modified = Duration::new(
            u64::try_from(stat.st_mtime).unwrap_or(0),
            u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
        );
        match SystemTime::now().duration_since(SystemTime::UNIX_EPOCH + modified) {
            Ok(age) => age < BEING_WRITTEN,
            // A file from the future: the clock was set back. It is not waited for.
            Err(_) => false,
        }
    }

    /// What was just written, so that nobody needs to read it: the open file, and its status before it
    /// had its name.
    ///
    /// Where every change shows in a file's times it needs not be read again to be known, though it is
    /// as young as can be. Call it under the repository's lock, which whoever else writes holds.
    pub fn written(
        tree: &Tree,
        dir: &Dir,
        index: Arc<Index>,
        stamp: Stamp,
        (file, before): (File, Stat),
    ) -> Result<IndexFile> {
        let stat = dir::stat_file(&file, || dir.at(path::INDEX))?;
        let version = Version::of(&stat);
        // Somebody without the lock may have met it under its name already.
        let same = unmoved(&stat) == unmoved(&before);
        let settled = version.settled() || same && tree.has_fine_times(version);
        let (readers, file) = (Readers::Everybody, for_reading(file));
        Ok(IndexFile { index, stamp, readers, version, settled, file })
    }

    /// About how much memory it takes, in bytes.
    pub fn weight(&self) -> usize {
        size_of::<IndexFile>() + self.index.weight()
    }

    /// The open file, to sync what another process may have left unsynced.
    pub fn file(&self) -> &File {
        &self.file
    }

    fn open(dir: &Dir) -> Result<Option<(File, Version)>> {
        let Some(file) = dir.file(path::INDEX).or_absent()? else {
            return Ok(None);
        };
        let version = Version::of(&dir::stat_file(&file, || dir.at(path::INDEX))?);
        Ok(Some((file, version)))
    }

    fn load(
        dir: &Dir,
        file: File,
        version: Version,
        last: Option<&Arc<IndexFile>>,
    ) -> Result<IndexFile> {
        let at = || -> PathBuf { dir.at(path::INDEX) };
        let settled = version.settled();
        let stat = dir::stat_file(&file, at)?;
        let readers = Readers::of(&file, &stat, &at())?;
        let bytes = dir::read_all(&file, MAX_INDEX, at)?;
        let stamp = Stamp::of(&bytes);
        let index = match last {
            Some(last) if last.stamp == stamp => Arc::clone(&last.index),
            _ => Arc::new(Index::parse(&bytes).map_err(|error| Error::damaged(at(), error))?),
        };
        // Changed while it was read: what was read may be half of each.
        let settled = settled && Version::of(&dir::stat_file(&file, at)?) == version;
        Ok(IndexFile { index, stamp, readers, version, settled, file })
    }
}

/// What a rename leaves as it is.
fn unmoved(stat: &Stat) -> (i64, (i64, u64), (u32, u32, u32)) {
    (stat.st_size, (stat.st_mtime, stat.st_mtime_nsec), (stat.st_uid, stat.st_gid, stat.st_mode))
}

/// The same file, open for reading: it is kept open, and a file system on which something is open for
/// writing cannot be made read-only by its administrator. Where that fails it stays as it is.
fn for_reading(file: File) -> File {
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap_or(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{AtFlags, Mode, Timestamps, UTIME_OMIT};

    use super::super::disk::RealDisk;
    use super::super::durable;
    use super::super::inherit::Purpose;

    const EMPTY: &str = r#"{"schemaVersion":2,"manifests":[]}"#;
    const OTHER: &str = r#"{"schemaVersion":2,"manifests": []}"#;

    #[test]
    fn a_change_is_seen_even_if_all_times_are_equal() {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open_root(temp.path()).unwrap();
        let path = temp.path().join("index.json");
        let mut last: Option<Arc<IndexFile>> = None;
        // As fast as it goes: many of these changes fall into one tick of the kernel's clock.
        for round in 0..200 {
            let text = if round % 2 == 0 { EMPTY } else { OTHER };
            std::fs::write(&path, text).unwrap();
            let read = match &last {
                Some(last) => IndexFile::refresh(&dir, last).unwrap().unwrap(),
                None => Arc::new(IndexFile::read(&dir).unwrap().unwrap()),
            };
            assert_eq!(read.stamp, Stamp::of(text.as_bytes()), "round {round}");
            last = Some(read);
        }
    }

    #[test]
    fn what_was_written_here_is_known_at_once_and_a_change_in_the_same_tick_is_seen() {
        let temp = tempfile::tempdir().unwrap();
        let tree = Tree::open(temp.path(), Arc::new(RealDisk)).unwrap();
        let dir = tree.root.clone();
        let path = temp.path().join("index.json");
        let index = Arc::new(Index::parse(EMPTY.as_bytes()).unwrap());
        let mut known = 0;
        for round in 0..200 {
            let (disk, bytes) = (&RealDisk, EMPTY.as_bytes());
            let name = path::INDEX;
            let file = durable::replace_by_parts(disk, &dir, name, &[bytes], Purpose::Public);
            let file = file.unwrap();
            let (index, stamp) = (Arc::clone(&index), Stamp::of(bytes));
            let written = IndexFile::written(&tree, &dir, index, stamp, file).unwrap();
            known += usize::from(written.stands(&dir).unwrap());
            // As fast as it goes, and as long as it was.
            match round % 3 {
                0 => std::fs::write(&path, EMPTY.replace('2', "1")).unwrap(),
                1 => rustix::fs::chmodat(&dir, path::INDEX, Mode::RUSR, AtFlags::empty()).unwrap(),
                _ => std::fs::remove_file(&path).unwrap(),
            }
            assert!(!written.stands(&dir).unwrap(), "round {round}");
        }
        // Whether that can be known before a while depends on the kernel and the file system.
        let fine = super::super::version::with_fine_times(&tree.room).is_some();
        assert_eq!(known, if fine { 200 } else { known.min(199) });
    }

    #[test]
    fn a_settled_file_is_not_read_again_and_a_broken_one_is_never_empty() {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open_root(temp.path()).unwrap();
        assert!(IndexFile::read(&dir).unwrap().is_none());
        let path = temp.path().join("index.json");
        std::fs::write(&path, EMPTY).unwrap();
        let first = loop {
            let read = IndexFile::read(&dir).unwrap().unwrap();
            if read.settled {
                break Arc::new(read);
            }
        };
        let again = IndexFile::refresh(&dir, &first).unwrap().unwrap();
        assert!(Arc::ptr_eq(&first, &again));
        std::fs::write(&path, "{").unwrap();
        let error = IndexFile::refresh(&dir, &first).unwrap_err();
        assert!(error.to_string().contains("index.json"), "{error}");
        assert!(IndexFile::being_written(&dir, &error));
        let past = rustix::fs::Timespec { tv_sec: 1_000_000_000, tv_nsec: 0 };
        let omit = rustix::fs::Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
        let times = Timestamps { last_access: omit, last_modification: past };
        rustix::fs::utimensat(&dir, "index.json", &times, AtFlags::empty()).unwrap();
        assert!(!IndexFile::being_written(&dir, &error));
    }
}
