//! index.json as the journal tells it.

use super::super::{journal, lines, probe};
use super::{At, Done, Work, there};
use crate::layout::inherit::Purpose;
use crate::layout::journal::Record;
use crate::layout::quarantine::is_still;
use crate::layout::{self, At as _, Dir, IndexFile, OrAbsent, Stamp, durable, path};
use crate::oci::{Algorithm, Index, Tag, What};

/// What the journal leads to.
pub(super) struct Told {
    pub(super) index: Index,
    /// The bytes have the stamp that the last group announces.
    pub(super) exact: bool,
}

/// Applies all committed groups, if they lead without a gap from no index.json to the last one.
/// `None` where a line is malformed, where another tool wrote index.json in between, or where the
/// beginning is missing.
///
/// The last group may be void: nothing that was acknowledged is lost by counting it.
pub(super) fn replay(repo: &Dir) -> layout::Result<Option<Told>> {
    let mut groups: Vec<(Stamp, Stamp)> = Vec::new();
    let sound = each(repo, |record| {
        if groups.last() != Some(&(record.base, record.stamp)) {
            groups.push((record.base, record.stamp));
        }
        Some(())
    })?;
    let Some(last) = sound.and(groups.last()).map(|(_, last)| *last) else { return Ok(None) };
    let committed: Vec<bool> = (0..groups.len())
        .map(|at| groups.get(at + 1).is_none_or(|next| next.0 == groups[at].1))
        .collect();
    let (mut index, mut now, mut group) = (Index::default(), Stamp::nothing(), 0);
    let mut begun = false;
    let sound = each(repo, |record| {
        if begun && groups[group] != (record.base, record.stamp) {
            group += 1;
            begun = false;
        }
        if !committed[group] {
            begun = true;
            return (record.base == now).then_some(());
        }
        if !begun {
            if record.base != now {
                return None;
            }
            now = record.stamp;
            begun = true;
        }
        apply(&mut index, record)
    })?;
    let exact = Stamp::of(&index.to_bytes()) == last;
    Ok(sound.map(|()| Told { index, exact }))
}

fn apply(index: &mut Index, record: &Record) -> Option<()> {
    let tag = record.tag.as_deref().map(Tag::parse).transpose().ok()?;
    match (record.what, &record.before, &record.after, tag) {
        (What::Push, _, Some(after), None) => {
            if !index.revise(|entry| entry.digest == after.digest && !has_name(entry), after) {
                index.put(after, &[]);
            }
        }
        (What::Tag, before, Some(after), Some(tag)) => {
            let same = before.as_ref().filter(|before| before.digest == after.digest);
            if !same.is_some_and(|before| index.revise(|entry| entry == before, after)) {
                index.put(after, &[tag]);
            }
        }
        (What::Untag, _, _, Some(tag)) => drop(index.untag(&tag)),
        (What::Delete, Some(before), _, None) => drop(index.remove(&before.digest)),
        _ => return None,
    }
    Some(())
}

fn has_name(entry: &crate::oci::Descriptor) -> bool {
    entry.annotations.contains_key(crate::oci::REF_NAME)
}

/// Every line, older parts first; `None` as soon as one is malformed, or `each` gives up. What cannot
/// be read says nothing about what it is.
fn each(repo: &Dir, mut each: impl FnMut(&Record) -> Option<()>) -> layout::Result<Option<()>> {
    let mut parts: Vec<(u64, String)> = repo
        .names()?
        .into_iter()
        .filter_map(|(name, _)| Some((path::old_journal(&name)?, name)))
        .collect();
    parts.sort_unstable();
    let names = parts.into_iter().map(|(_, name)| name).chain([path::JOURNAL.to_owned()]);
    for name in names {
        let file = match repo.file(&name).or_absent() {
            Ok(None) => continue,
            Ok(Some(file)) => file,
            Err(error) if probe::is_trouble(&error) => return Err(error),
            Err(_) => return Ok(None),
        };
        let mut sound = Some(());
        lines::each(&file, |_, line| {
            if sound.is_some() {
                sound = journal::parse(line).ok().and_then(|record| each(&record));
            }
        })
        .at(|| repo.at(&name))?;
        if sound.is_none() {
            return Ok(None);
        }
    }
    Ok(Some(()))
}

impl Work<'_> {
    /// An index.json that is gone, or cannot be read, is written as the journal tells it.
    pub(super) fn rebuild(&mut self, repo: &Dir, at: At<'_>) -> Done {
        let stat = repo.stat_name(path::INDEX)?;
        if there(IndexFile::read(repo))?.flatten().is_some() {
            return Ok(());
        }
        let Some(told) = replay(repo)? else { return Ok(()) };
        let how = if told.exact { "to the byte" } else { "entry by entry" };
        let mut kept = None;
        if !self.is_dry() {
            let tree = self.mender.tree()?;
            let _turn = self.turn(Some(repo))?;
            match &stat {
                Some(stat) if is_still(repo, path::INDEX, stat)? => {
                    let (path, rule) = (at.whole(), at.rule.id());
                    let quarantine = self.mender.quarantine()?;
                    kept = Some(quarantine.copy(repo, path::INDEX, &path, rule)?);
                }
                None if repo.stat_name(path::INDEX)?.is_none() => {}
                _ => return Ok(()),
            }
            if repo.stat_name(path::OCI_LAYOUT)?.is_none() {
                let bytes = path::OCI_LAYOUT_BYTES;
                durable::replace(&*tree.disk, repo, path::OCI_LAYOUT, bytes, Purpose::Public)?;
            }
            sync_blobs(&tree, repo)?;
            tree.disk.sync_dir(repo)?;
            let bytes = told.index.to_bytes();
            durable::replace(&*tree.disk, repo, path::INDEX, &bytes, Purpose::Public)?;
            tree.disk.sync_dir(repo)?;
        }
        self.say(at, format!("written {how} as the journal tells it"), kept);
        Ok(())
    }
}

/// The names of blobs are on the disk before an index.json that needs them.
pub(super) fn sync_blobs(tree: &layout::Tree, repo: &Dir) -> layout::Result<()> {
    for algorithm in Algorithm::ALL {
        if let Some(blobs) = repo.dir(&path::blobs(algorithm)).or_absent()? {
            tree.disk.sync_dir(&blobs)?;
        }
    }
    match repo.dir(path::BLOBS).or_absent()? {
        Some(blobs) => tree.disk.sync_dir(&blobs),
        None => Ok(()),
    }
}
