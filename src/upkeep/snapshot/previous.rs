//! The earlier snapshot, from which copies are taken that are still the same.

use std::path::{Path, PathBuf};

use rustix::fs::FileType;

use super::SnapshotError;
use crate::layout::{Dir, Inode, Place};

/// Opens the one that was named, or the newest directory beside the new one that belongs to whoever
/// ROOT belongs to, or to whoever makes snapshots.
///
/// Nothing is believed of it: a file is taken only if it has the name, length, time, owner and rights
/// of the tree's own.
pub(super) fn find(
    named: Option<&Path>,
    place: &Place,
    root: &Dir,
) -> Result<(Option<PathBuf>, Option<Dir>), SnapshotError> {
    if let Some(at) = named {
        let wrong = |why: &str| SnapshotError::Previous { at: at.to_owned(), why: why.to_owned() };
        let dir = Dir::open_root(at)?;
        if dir.inode()? == root.inode()? {
            return Err(wrong("it is the tree itself"));
        }
        if dir.stat()?.st_dev != root.stat()?.st_dev {
            return Err(wrong("it lies on another file system"));
        }
        return Ok((Some(at.to_owned()), Some(dir)));
    }
    let newest = newest_beside(place, root)?;
    Ok((newest.as_ref().map(|dir| dir.path().to_owned()), newest))
}

fn newest_beside(place: &Place, root: &Dir) -> Result<Option<Dir>, SnapshotError> {
    let owners = [root.stat()?.st_uid, rustix::process::geteuid().as_raw()];
    let (own, device) = (root.inode()?, root.stat()?.st_dev);
    let mut newest = None;
    for (name, kind) in place.parent().names()? {
        if kind != FileType::Directory || name.starts_with('.') || name == place.name() {
            continue;
        }
        let Some(stat) = place.parent().stat_name(&name)? else { continue };
        if Inode::of(&stat) == own || stat.st_dev != device || !owners.contains(&stat.st_uid) {
            continue;
        }
        // The kernel's own time: of a snapshot, when it got its name.
        let changed = (stat.st_ctime, stat.st_ctime_nsec);
        if newest.as_ref().is_none_or(|(last, _)| *last < changed) {
            newest = Some((changed, name));
        }
    }
    Ok(newest.and_then(|(_, name)| place.parent().dir(&name).ok()))
}
