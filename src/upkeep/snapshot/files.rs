//! Files that a snapshot has of its own.

use std::fs::File;

use rustix::fs::Mode;

use super::{Pair, Run, SnapshotError};
use crate::layout::copy::{self, CopyError};
use crate::layout::{self, At, Attributes, Inode, OrAbsent, path};

type Result<T> = std::result::Result<T, SnapshotError>;

/// A file of the tree that is open to be copied.
pub(super) struct Source {
    pub(super) file: File,
    pub(super) stat: rustix::fs::Stat,
    attributes: Attributes,
}

/// Opens a file to copy; `None` if it is gone, or cannot be read, which is said.
pub(super) fn open(run: &mut Run<'_>, pair: &Pair, name: &str, foreign: bool) -> Option<Source> {
    let opened = pair.from.file_stat(name).and_then(|(file, stat)| {
        let attributes = Attributes::of(&file, &stat, || pair.from.at(name))?;
        Ok(Source { file, stat, attributes })
    });
    match opened.or_absent() {
        Ok(found) => found,
        Err(error) => {
            run.unreadable(pair.path(name), &error, foreign);
            None
        }
    }
}

/// Copies a file that is neither a blob nor index.json.
///
/// An older part of the journal is never written again, by the protocol: it is taken from the earlier
/// snapshot where it is the same there. All others are files that somebody may write in place, also in
/// a snapshot that is served: each has its own.
pub(super) fn copy(run: &mut Run<'_>, pair: &Pair, name: &str, foreign: bool) -> Result<()> {
    match open(run, pair, name, foreign) {
        Some(source) => copy_open(run, pair, name, &source, foreign),
        None => Ok(()),
    }
}

/// The same of a file that is open already: of it as it was then, if it has only grown.
pub(super) fn copy_open(
    run: &mut Run<'_>,
    pair: &Pair,
    name: &str,
    source: &Source,
    foreign: bool,
) -> Result<()> {
    if pair.to.is_none() {
        run.summary.files_copied += 1;
        run.summary.bytes_copied += layout::size_of(&source.stat);
        return Ok(());
    }
    if path::old_journal(name).is_some() && link_earlier(run, pair, name, source)? {
        return Ok(());
    }
    if write(run, pair, name, source, foreign)? {
        run.summary.files_copied += 1;
    }
    Ok(())
}

/// Writes the copy of a file; `false` if the original turned out to be unreadable, which is said.
pub(super) fn write(
    run: &mut Run<'_>,
    pair: &Pair,
    name: &str,
    source: &Source,
    foreign: bool,
) -> Result<bool> {
    let Some(to) = &pair.to else { return Ok(true) };
    let at = || to.at(name);
    let copy = run.disk.create(to, name, Mode::RUSR | Mode::WUSR)?;
    let len = layout::size_of(&source.stat);
    match copy::content(&*run.disk, &source.file, &copy, len) {
        Ok(_) => {}
        Err(CopyError::Write(error)) => return Err(error).at(at).map_err(Into::into),
        Err(CopyError::Read(error)) => {
            run.disk.unlink(to, name)?;
            let error = Err::<(), _>(error).at(|| pair.from.at(name)).unwrap_err();
            run.unreadable(pair.path(name), &error, foreign);
            return Ok(false);
        }
    }
    put_on(run, pair, name, &source.attributes, &copy)?;
    run.summary.bytes_copied += len;
    Ok(true)
}

/// Writes a file of these bytes with the rights of its original.
pub(super) fn write_bytes(
    run: &mut Run<'_>,
    pair: &Pair,
    name: &str,
    source: &Source,
    bytes: &[u8],
) -> Result<()> {
    run.summary.files_copied += 1;
    run.summary.bytes_copied += bytes.len() as u64;
    let Some(to) = &pair.to else { return Ok(()) };
    let copy = run.disk.create(to, name, Mode::RUSR | Mode::WUSR)?;
    run.disk.write(&copy, bytes, 0).at(|| to.at(name))?;
    put_on(run, pair, name, &source.attributes, &copy)
}

fn put_on(
    run: &mut Run<'_>,
    pair: &Pair,
    name: &str,
    attributes: &Attributes,
    copy: &File,
) -> Result<()> {
    let at = || pair.to.as_ref().map_or_else(|| pair.from.at(name), |to| to.at(name));
    if !attributes.put_on(copy, at)? {
        run.narrowed += 1;
    }
    Ok(())
}

/// Makes the file of the earlier snapshot a file of this one, if it is a copy of what the tree has:
/// same length, time, owner and rights. The very file of the tree, which another could change in both,
/// is none.
pub(super) fn link_earlier(
    run: &mut Run<'_>,
    pair: &Pair,
    name: &str,
    source: &Source,
) -> Result<bool> {
    let (Some(before), Some(to)) = (&pair.before, &pair.to) else { return Ok(false) };
    let Ok((file, stat)) = before.file_stat(name) else { return Ok(false) };
    let attributes = Attributes::of(&file, &stat, || before.at(name))?;
    let same = Inode::of(&stat) != Inode::of(&source.stat)
        && layout::size_of(&stat) == layout::size_of(&source.stat)
        && source.attributes.may_be(&attributes);
    if !same {
        return Ok(false);
    }
    match run.disk.link_file(&file, to, name) {
        Ok(()) => {
            run.summary.from_previous += 1;
            Ok(true)
        }
        Err(error) if error.wants_copy() => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Copies a symlink as one.
pub(super) fn symlink(run: &mut Run<'_>, pair: &Pair, name: &str) -> Result<()> {
    run.summary.files_copied += 1;
    let Some(to) = &pair.to else { return Ok(()) };
    if copy::symlink(&*run.disk, &pair.from, to, name)? == Some(false) {
        run.narrowed += 1;
    }
    Ok(())
}
