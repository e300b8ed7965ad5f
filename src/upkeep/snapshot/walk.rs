//! The walk: directory by directory, repositories on the way.

use rustix::fs::{FileType, Mode};
use rustix::io::Errno;

use super::{Pair, Run, SnapshotError, files, repository};
use crate::layout::{Attributes, Dir, Entry, Listed, Listing, OrAbsent, path, remove_all};
use crate::oci::RepoName;

type Result<T> = std::result::Result<T, SnapshotError>;

/// No repository lies deeper than 128; three descriptors are open for each level.
const DEEPEST: usize = 200;

/// Copies everything in ROOT but the room.
pub(super) fn all(run: &mut Run<'_>, root: &Pair) -> Result<()> {
    let rights = rights_of(&root.from)?;
    fill(run, root, 0)?;
    // What was moved from where the walk had not been to where it had.
    newcomers(run, root, 0)?;
    if let Some(to) = &root.to {
        put_on(run, &rights, to)?;
    }
    Ok(())
}

/// What of a directory's names is never copied: the room with its keys, locks, and what a writer makes
/// beside its final name.
pub(super) fn is_passed_over(name: &str) -> bool {
    name == path::ROOM || name == path::LOCK || path::is_temporary(name)
}

/// The names in a directory, in order; none if it cannot be read, which is said.
pub(super) fn names(run: &mut Run<'_>, pair: &Pair, foreign: bool) -> Vec<Entry> {
    let listed =
        Listing::of(&pair.from).and_then(Iterator::collect::<crate::layout::Result<Vec<_>>>);
    let mut names = Vec::new();
    match listed {
        Err(error) => run.unreadable(pair.name.clone(), &error, foreign),
        Ok(listed) => {
            for named in listed {
                match named {
                    Listed::Entry(entry) => names.push(entry),
                    Listed::Foreign(name) => {
                        let path = pair.path(&name.to_string_lossy());
                        run.notes(path, "is left out: its name is not UTF-8");
                    }
                }
            }
        }
    }
    names.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    names
}

fn is_repository(names: &[Entry]) -> bool {
    let marks = [path::INDEX, path::OCI_LAYOUT, path::JOURNAL, path::BLOBS];
    names.iter().any(|entry| marks.contains(&entry.name.as_str()))
}

/// Copies what lies in a directory.
fn fill(run: &mut Run<'_>, pair: &Pair, depth: usize) -> Result<()> {
    run.summary.directories += 1;
    let names = names(run, pair, false);
    let repository = is_repository(&names);
    if repository {
        if names.iter().any(|entry| entry.name == path::INDEX) {
            run.summary.repositories += 1;
        }
        (run.progress)(&pair.name, &run.summary);
        repository::copy(run, pair)?;
    }
    for entry in names {
        if is_passed_over(&entry.name) || repository && repository::is_own(&entry.name) {
            continue;
        }
        match entry.kind {
            FileType::Directory => descend(run, pair, &entry.name, depth)?,
            _ => foreign(run, pair, &entry)?,
        }
    }
    Ok(())
}

fn descend(run: &mut Run<'_>, pair: &Pair, name: &str, depth: usize) -> Result<()> {
    let ours = RepoName::parse(&pair.path(name)).is_ok();
    if depth >= DEEPEST {
        too_deep(run, pair, name);
        return Ok(());
    }
    if !ours {
        run.summary.foreign += 1;
        return or_left_out(run, pair, name, |run| {
            within(run, pair, name, true, |run, child| fill(run, child, depth + 1))
        });
    }
    within(run, pair, name, false, |run, child| fill(run, child, depth + 1))
}

fn too_deep(run: &mut Run<'_>, pair: &Pair, name: &str) {
    run.lacks(pair.path(name), "is left out: it lies deeper than any repository can");
}

/// Copies something that is no part of the registry. Where that fails, it alone is left out, which is
/// said: whoever can put files into a directory must not keep others from a backup.
fn or_left_out(
    run: &mut Run<'_>,
    pair: &Pair,
    name: &str,
    copy: impl FnOnce(&mut Run<'_>) -> Result<()>,
) -> Result<()> {
    let there = match &pair.to {
        Some(to) => to.stat_name(name)?.is_some(),
        None => true,
    };
    let error = match copy(run) {
        Err(SnapshotError::Layout(error)) => error,
        other => return other,
    };
    if let Some(to) = pair.to.as_ref().filter(|_| !there) {
        // What failed may fail again here: then a part of it stays, closed to all others.
        let _ = match to.stat_name(name)?.map(|stat| FileType::from_raw_mode(stat.st_mode)) {
            None => Ok(()),
            Some(FileType::Directory) => remove_all(&*run.disk, to, name),
            Some(_) => run.disk.unlink(to, name),
        };
    }
    run.lacks(pair.path(name), format!("is left out: {error}"));
    Ok(())
}

/// Looks once more for directories that came meanwhile.
fn newcomers(run: &mut Run<'_>, pair: &Pair, depth: usize) -> Result<()> {
    let Some(to) = &pair.to else { return Ok(()) };
    let listed =
        Listing::of(&pair.from).and_then(Iterator::collect::<crate::layout::Result<Vec<_>>>);
    for named in listed.unwrap_or_default() {
        let Listed::Entry(Entry { name, kind: FileType::Directory, .. }) = named else { continue };
        if is_passed_over(&name) || repository::is_own(&name) || depth >= DEEPEST {
            continue;
        }
        if to.stat_name(&name)?.is_none() {
            descend(run, pair, &name, depth)?;
        } else if RepoName::parse(&pair.path(&name)).is_ok()
            && let (Ok(from), Ok(made)) = (pair.from.dir(&name), to.dir(&name))
        {
            let before = pair.before.as_ref().and_then(|before| before.dir(&name).ok());
            let rights = rights_of(&made)?;
            let known = run.summary.directories;
            let child = Pair { from, to: Some(made.clone()), before, name: pair.path(&name) };
            newcomers(run, &child, depth + 1)?;
            if run.summary.directories > known {
                put_on(run, &rights, &made)?;
            }
        }
    }
    Ok(())
}

/// What is neither a directory nor part of a repository: copied as well, for whoever put it there
/// expects to find it in a backup.
pub(super) fn foreign(run: &mut Run<'_>, pair: &Pair, entry: &Entry) -> Result<()> {
    run.summary.foreign += 1;
    or_left_out(run, pair, &entry.name, |run| leaf(run, pair, entry, true))
}

fn leaf(run: &mut Run<'_>, pair: &Pair, entry: &Entry, foreign: bool) -> Result<()> {
    match entry.kind {
        FileType::RegularFile => files::copy(run, pair, &entry.name, foreign),
        FileType::Symlink => files::symlink(run, pair, &entry.name),
        _ => {
            run.notes(pair.path(&entry.name), "is left out: it is no file and no directory");
            Ok(())
        }
    }
}

/// A directory and all that lies in it, whatever it is.
pub(super) fn copy_all(run: &mut Run<'_>, pair: &Pair, name: &str, foreign: bool) -> Result<()> {
    // Of no depth that the descriptors of one process would not do for.
    if pair.depth() >= DEEPEST {
        too_deep(run, pair, name);
        return Ok(());
    }
    let all = |run: &mut Run<'_>| {
        within(run, pair, name, foreign, |run, child| {
            run.summary.directories += 1;
            for entry in names(run, child, foreign) {
                match entry.kind {
                    _ if is_passed_over(&entry.name) => {}
                    FileType::Directory => copy_all(run, child, &entry.name, foreign)?,
                    _ if foreign => {
                        or_left_out(run, child, &entry.name, |run| leaf(run, child, &entry, true))?;
                    }
                    _ => leaf(run, child, &entry, false)?,
                }
            }
            Ok(())
        })
    };
    if foreign { or_left_out(run, pair, name, all) } else { all(run) }
}

/// Makes a directory, does something in it, then gives it the original's rights and time.
pub(super) fn within(
    run: &mut Run<'_>,
    pair: &Pair,
    name: &str,
    foreign: bool,
    mut deed: impl FnMut(&mut Run<'_>, &Pair) -> Result<()>,
) -> Result<()> {
    if let Some((child, rights)) = enter(run, pair, name, foreign)? {
        deed(run, &child)?;
        if let Some(to) = &child.to {
            put_on(run, &rights, to)?;
        }
    }
    Ok(())
}

/// Opens a directory and makes its copy, without its rights yet: nobody else can come there, and a
/// default ACL would be inherited. `None` if it is gone, or cannot be read, which is said.
pub(super) fn enter(
    run: &mut Run<'_>,
    pair: &Pair,
    name: &str,
    foreign: bool,
) -> Result<Option<(Pair, Attributes)>> {
    let opened = pair.from.dir(name).and_then(|dir| Ok((rights_of(&dir)?, dir)));
    let (rights, from) = match opened.or_absent() {
        Ok(Some(opened)) => opened,
        Ok(None) => return Ok(None),
        Err(error) => {
            run.unreadable(pair.path(name), &error, foreign);
            return Ok(None);
        }
    };
    let to = match &pair.to {
        None => None,
        Some(to) => {
            match run.disk.make_dir(to, name, Mode::RWXU) {
                Err(error) if error.errno() == Some(Errno::EXIST) => {}
                made => made?,
            }
            Some(to.dir(name)?)
        }
    };
    let before = pair.before.as_ref().and_then(|before| before.dir(name).ok());
    Ok(Some((Pair { from, to, before, name: pair.path(name) }, rights)))
}

/// Owner, group, mode, ACLs and time of a directory.
pub(super) fn rights_of(dir: &Dir) -> crate::layout::Result<Attributes> {
    Attributes::of(dir, &dir.stat()?, || dir.path().to_owned())
}

/// Gives them to its copy.
pub(super) fn put_on(run: &mut Run<'_>, rights: &Attributes, to: &Dir) -> Result<()> {
    if !rights.put_on(to, || to.path().to_owned())? {
        run.narrowed += 1;
    }
    Ok(())
}
