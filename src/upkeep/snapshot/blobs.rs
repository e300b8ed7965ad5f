//! Blobs: links, and copies where no link can be.

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use super::{Pair, Run, SnapshotError, files, walk};
use crate::layout::{self, Entry, Inode, Listed, Listing, path};
use crate::oci::Algorithm;

type Result<T> = std::result::Result<T, SnapshotError>;

/// Links all blobs of a repository, and copies what else lies beside them. Without the lock some may
/// vanish meanwhile, and others come.
pub(super) fn bring(run: &mut Run<'_>, pair: &Pair) -> Result<()> {
    let Some((all, _)) = walk::enter(run, pair, path::BLOBS, false)? else { return Ok(()) };
    for entry in walk::names(run, &all, false) {
        if walk::is_passed_over(&entry.name) {
            continue;
        }
        match (entry.kind, algorithm(&entry.name)) {
            (FileType::Directory, Some(algorithm)) => {
                let Some((some, _)) = walk::enter(run, &all, &entry.name, false)? else { continue };
                each(run, &some, algorithm, |run, pair, entry| link(run, pair, &entry.name), true)?;
            }
            (FileType::Directory, None) => {
                run.summary.foreign += 1;
                walk::copy_all(run, &all, &entry.name, true)?;
            }
            _ => walk::foreign(run, &all, &entry)?,
        }
    }
    Ok(())
}

/// Under the lock: brings those that came since, and counts all.
pub(super) fn settle(run: &mut Run<'_>, pair: &Pair) -> Result<()> {
    let Some((all, _)) = walk::enter(run, pair, path::BLOBS, false)? else { return Ok(()) };
    run.summary.directories += 1;
    for algorithm in Algorithm::ALL {
        let Some((some, _)) = walk::enter(run, &all, &algorithm.to_string(), false)? else {
            continue;
        };
        run.summary.directories += 1;
        each(run, &some, algorithm, bring_one, false)?;
    }
    Ok(())
}

/// Gives the directories of blobs their rights, when nothing comes into them any more.
pub(super) fn dress(run: &mut Run<'_>, pair: &Pair) -> Result<()> {
    if pair.to.is_none() {
        return Ok(());
    }
    walk::within(run, pair, path::BLOBS, false, |run, all| {
        for algorithm in Algorithm::ALL {
            walk::within(run, all, &algorithm.to_string(), false, |_, _| Ok(()))?;
        }
        Ok(())
    })
}

fn algorithm(name: &str) -> Option<Algorithm> {
    Algorithm::ALL.iter().find(|algorithm| algorithm.to_string() == name).copied()
}

/// Gives every blob in a directory to `deed`. What is no blob is copied, if that is wanted.
fn each(
    run: &mut Run<'_>,
    pair: &Pair,
    algorithm: Algorithm,
    mut deed: impl FnMut(&mut Run<'_>, &Pair, &Entry) -> Result<()>,
    others: bool,
) -> Result<()> {
    let entries = match Listing::of(&pair.from) {
        Ok(entries) => entries,
        Err(error) => {
            run.unreadable(pair.name.clone(), &error, false);
            return Ok(());
        }
    };
    for named in entries {
        let entry = match named {
            Ok(Listed::Entry(entry)) => entry,
            Ok(Listed::Foreign(name)) => {
                if others {
                    let path = pair.path(&name.to_string_lossy());
                    run.notes(path, "is left out: its name is not UTF-8");
                }
                continue;
            }
            Err(error) => {
                run.unreadable(pair.name.clone(), &error, false);
                break;
            }
        };
        let blob = entry.kind == FileType::RegularFile && is_digits(&entry.name, algorithm);
        if blob {
            deed(run, pair, &entry)?;
        } else if others && !walk::is_passed_over(&entry.name) {
            match entry.kind {
                FileType::Directory => walk::copy_all(run, pair, &entry.name, true)?,
                _ => walk::foreign(run, pair, &entry)?,
            }
        }
    }
    Ok(())
}

fn is_digits(name: &str, algorithm: Algorithm) -> bool {
    crate::oci::Digest::parse(&format!("{algorithm}:{name}")).is_ok()
}

/// Makes sure that the snapshot has what the tree has under the name now: another may have taken it.
fn bring_one(run: &mut Run<'_>, pair: &Pair, entry: &Entry) -> Result<()> {
    let name = &entry.name;
    let Some(to) = &pair.to else {
        match pair.from.stat_name(name)? {
            None => {}
            Some(stat) if run.is_trees_own(&stat) => {
                run.summary.blobs_linked += 1;
                run.summary.bytes_linked += layout::size_of(&stat);
            }
            Some(stat) => {
                run.summary.blobs_copied += 1;
                run.summary.bytes_copied += layout::size_of(&stat);
            }
        }
        return Ok(());
    };
    let found = to.stat_name(name)?;
    if let Some(found) = found.as_ref().filter(|found| found.st_ino == entry.ino) {
        run.summary.blobs_linked += 1;
        run.summary.bytes_linked += layout::size_of(found);
        return Ok(());
    }
    let Some(wanted) = pair.from.stat_name(name)? else { return Ok(()) };
    if !found.as_ref().is_some_and(|found| is_copy(found, &wanted)) {
        if found.is_some() {
            run.disk.unlink(to, name)?;
        }
        link(run, pair, name)?;
    }
    match to.stat_name(name)? {
        Some(found) if Inode::of(&found) == Inode::of(&wanted) => {
            run.summary.blobs_linked += 1;
            run.summary.bytes_linked += layout::size_of(&found);
        }
        Some(_) => run.summary.blobs_copied += 1,
        // Gone again, or unreadable, which was said.
        None => {}
    }
    Ok(())
}

/// Whether a file is the very one, or a copy that was made of it: copies get the original's time.
fn is_copy(found: &Stat, original: &Stat) -> bool {
    Inode::of(found) == Inode::of(original)
        || layout::size_of(found) == layout::size_of(original)
            && layout::modified(found) == layout::modified(original)
}

/// Links a blob; where that cannot be, or its owner could change it in both places at once, a copy
/// takes its place.
fn link(run: &mut Run<'_>, pair: &Pair, name: &str) -> Result<()> {
    let Some(to) = &pair.to else { return Ok(()) };
    match run.disk.link(&pair.from, name, to, name) {
        // What was linked is looked at: the name in the tree may be another file's by now, but nobody
        // else comes here.
        Ok(()) => match to.stat_name(name)? {
            Some(linked) if run.is_trees_own(&linked) => Ok(()),
            _ => {
                run.disk.unlink(to, name)?;
                copy(run, pair, name)
            }
        },
        // A directory that changes while it is read may tell a name twice.
        Err(error) if error.errno() == Some(Errno::EXIST) => Ok(()),
        Err(error) if error.is_absent() && pair.from.stat_name(name)?.is_none() => Ok(()),
        Err(error) if error.wants_copy() => copy(run, pair, name),
        Err(error) => Err(error.into()),
    }
}

/// The inode has no links to give, is not the tree's own, or lies on a file system that is mounted in
/// ROOT. What was copied once is linked from then on, here and from snapshot
/// to snapshot.
fn copy(run: &mut Run<'_>, pair: &Pair, name: &str) -> Result<()> {
    let (Some(to), Some(top)) = (pair.to.clone(), run.top.clone()) else { return Ok(()) };
    if to.stat_name(name)?.is_some() {
        return Ok(());
    }
    let Some(source) = files::open(run, pair, name, false) else { return Ok(()) };
    let inode = Inode::of(&source.stat);
    if let Some((dir, other)) = run.copies.get(&inode).cloned() {
        let dir = top.dir(&dir)?;
        match run.disk.link(&dir, &other, &to, name) {
            Ok(()) => return Ok(()),
            Err(error) if error.wants_copy() => {}
            Err(error) => return Err(error.into()),
        }
    }
    let made = files::link_earlier(run, pair, name, &source)?
        || files::write(run, pair, name, &source, false)?;
    if made && source.stat.st_nlink > 1 {
        run.copies.insert(inode, (pair.name.clone(), name.to_owned()));
    }
    Ok(())
}
