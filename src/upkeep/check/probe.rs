//! Opening what the tree spells, and telling apart what can be there instead.

use std::fs::File;

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use super::finding::Findings;
use super::names::Names;
use super::rule::Rule;
use crate::layout::{self, Dir, Error};
use crate::oci::Algorithm;

/// What is at a path.
#[derive(Debug)]
pub(super) enum Seen<T> {
    /// Nothing.
    Absent,
    /// Something that cannot be used; it was reported.
    Bad,
    /// What belongs there.
    There(T),
}

impl<T> Seen<T> {
    /// What is there, if it can be used.
    pub(super) fn there(self) -> Option<T> {
        match self {
            Seen::There(value) => Some(value),
            Seen::Absent | Seen::Bad => None,
        }
    }

    fn of(result: layout::Result<T>, findings: &mut Findings) -> Seen<T> {
        match result {
            Ok(value) => Seen::There(value),
            Err(error) if error.is_absent() => Seen::Absent,
            Err(error) => {
                unreadable(&error, findings);
                Seen::Bad
            }
        }
    }
}

/// Reports an error of reading.
pub(super) fn unreadable(error: &Error, findings: &mut Findings) {
    let why = match error {
        Error::Io { source, .. } => source.to_string(),
        Error::Damaged { why, .. } | Error::Shut { why, .. } => why.clone(),
        // Of making directories and of uploads only.
        Error::NoAcls { .. } | Error::Replaced { .. } | Error::Full { .. } => error.to_string(),
    };
    findings.add(Rule::Unreadable, error.path(), format!("cannot be read: {why}"));
}

/// What a look gives that only some rule needs. What is of another type, or closed to this account, is
/// reported where it is read; that the machine or the disk fails is reported here, or the rule would
/// count as kept.
pub(super) fn look<T>(looked: layout::Result<T>, findings: &mut Findings) -> Option<T> {
    match looked {
        Ok(value) => Some(value),
        Err(error) => {
            if is_trouble(&error) {
                unreadable(&error, findings);
            }
            None
        }
    }
}

/// Whether an error says nothing about what is there: the machine or the disk failed.
pub(super) fn is_trouble(error: &Error) -> bool {
    // A socket is NXIO, and what lies too deep NAMETOOLONG: anybody can make such.
    let told =
        [Errno::NOENT, Errno::NOTDIR, Errno::LOOP, Errno::ACCESS, Errno::NXIO, Errno::NAMETOOLONG];
    error.errno().is_some_and(|errno| !told.contains(&errno))
}

/// The status of a name, which must be of the given type.
pub(super) fn status(
    dir: &Dir,
    name: &str,
    wanted: FileType,
    findings: &mut Findings,
) -> Seen<Stat> {
    let stat = match dir.stat_name(name) {
        Ok(Some(stat)) => stat,
        Ok(None) => return Seen::Absent,
        Err(error) => return Seen::of(Err(error), findings),
    };
    let found = FileType::from_raw_mode(stat.st_mode);
    if found == wanted {
        return Seen::There(stat);
    }
    let message = format!("is {}, and must be {}", word(found), word(wanted));
    findings.add(Rule::WrongFileType, &dir.at(name), message);
    Seen::Bad
}

/// Opens a regular file.
pub(super) fn file(dir: &Dir, name: &str, findings: &mut Findings) -> Seen<(File, Stat)> {
    match status(dir, name, FileType::RegularFile, findings) {
        Seen::There(_) => {}
        Seen::Absent => return Seen::Absent,
        Seen::Bad => return Seen::Bad,
    }
    let opened = dir.file(name).and_then(|file| {
        let stat = layout::stat_file(&file, || dir.at(name))?;
        Ok((file, stat))
    });
    Seen::of(opened, findings)
}

/// Opens a directory.
pub(super) fn dir(parent: &Dir, name: &str, findings: &mut Findings) -> Seen<Dir> {
    match status(parent, name, FileType::Directory, findings) {
        Seen::There(_) => Seen::of(parent.dir(name), findings),
        Seen::Absent => Seen::Absent,
        Seen::Bad => Seen::Bad,
    }
}

/// The names in a directory, in order; none if it cannot be read, which is reported.
pub(super) fn names(dir: &Dir, findings: &mut Findings) -> Vec<(String, FileType)> {
    let mut names = Seen::of(dir.names(), findings).there().unwrap_or_default();
    names.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    names
}

/// The names in a directory of blobs, likewise.
pub(super) fn blobs(dir: &Dir, algorithm: Algorithm, findings: &mut Findings) -> Option<Names> {
    Seen::of(Names::read(dir, algorithm), findings).there()
}

/// A hidden name: temporary, or somebody else's.
pub(super) fn is_hidden(name: &str) -> bool {
    name.starts_with('.')
}

fn word(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "a regular file",
        FileType::Directory => "a directory",
        FileType::Symlink => "a symlink",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        FileType::Unknown => "of an unknown type",
    }
}
