//! The names of one directory, as the file system gives them, without holding them all.

use std::ffi::CString;

use rustix::fs::{self, FileType};

use super::dir::Dir;
use super::error::{At, Result};

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name.
    pub name: String,
    /// What it is the name of.
    pub kind: FileType,
    /// The inode's number, as the directory has it.
    pub ino: u64,
}

/// The names in a directory, `.` and `..` left out, in the file system's order. What comes or goes
/// meanwhile may be met or not; what stays is met once.
#[derive(Debug)]
pub struct Listing {
    dir: Dir,
    read: fs::Dir,
}

impl Listing {
    /// Of an open directory.
    pub fn of(dir: &Dir) -> Result<Listing> {
        let read = fs::Dir::read_from(dir).at(|| dir.path().to_owned())?;
        Ok(Listing { dir: dir.clone(), read })
    }

    /// Gives each name that is UTF-8 to a closure, with what it is the name of: nothing is allocated
    /// for one.
    pub(super) fn each(mut self, mut each: impl FnMut(&str, FileType)) -> Result<()> {
        while let Some(entry) = self.read.next() {
            let entry = entry.at(|| self.dir.path().to_owned())?;
            if let Ok(name) = entry.file_name().to_str()
                && let Some(kind) = self.kind(name, &entry)?
            {
                each(name, kind);
            }
        }
        Ok(())
    }

    fn typed(&self, entry: &fs::DirEntry) -> Result<Option<Listed>> {
        let Ok(name) = entry.file_name().to_str() else {
            return Ok(Some(Listed::Foreign(entry.file_name().to_owned())));
        };
        let kind = self.kind(name, entry)?;
        Ok(kind.map(|kind| Listed::Entry(Entry { name: name.to_owned(), kind, ino: entry.ino() })))
    }

    /// What a name is the name of; `None` for the directory itself, the one above, and what went.
    fn kind(&self, name: &str, entry: &fs::DirEntry) -> Result<Option<FileType>> {
        if name == "." || name == ".." {
            return Ok(None);
        }
        Ok(match entry.file_type() {
            FileType::Unknown => {
                self.dir.stat_name(name)?.map(|stat| FileType::from_raw_mode(stat.st_mode))
            }
            known => Some(known),
        })
    }
}

/// What a directory has.
#[derive(Debug, PartialEq, Eq)]
pub enum Listed {
    /// A name that could be ours.
    Entry(Entry),
    /// One that is not UTF-8: nothing of ours has such.
    Foreign(CString),
}

impl Iterator for Listing {
    type Item = Result<Listed>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let typed = match self.read.next()? {
                Ok(entry) => self.typed(&entry),
                Err(error) => Err(error).at(|| self.dir.path().to_owned()),
            };
            match typed {
                Ok(None) => {}
                Ok(Some(named)) => return Some(Ok(named)),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn every_name_is_met_with_its_type_and_inode() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::write(temp.path().join("f"), "").unwrap();
        std::fs::create_dir(temp.path().join("d")).unwrap();
        std::os::unix::fs::symlink("nowhere", temp.path().join("l")).unwrap();
        std::fs::write(temp.path().join(std::ffi::OsStr::from_bytes(b"\xff")), "").unwrap();
        let dir = Dir::open_root(temp.path()).unwrap();
        let mut found: Vec<_> = Listing::of(&dir).unwrap().map(|named| named.unwrap()).collect();
        let foreign = found.iter().position(|named| matches!(named, Listed::Foreign(_))).unwrap();
        assert_eq!(found.swap_remove(foreign), Listed::Foreign(c"\xff".to_owned()));
        assert_eq!(found.len(), 3);
        for named in found {
            let Listed::Entry(entry) = named else { unreachable!() };
            let stat = dir.stat_name(&entry.name).unwrap().unwrap();
            assert_eq!(entry.kind, FileType::from_raw_mode(stat.st_mode), "{}", entry.name);
            assert_eq!(entry.ino, stat.st_ino, "{}", entry.name);
        }
    }
}
