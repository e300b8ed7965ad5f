//! A bounded memory of index.json files, each checked by stat(2) before it is believed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{Inner, Result, locked};
use crate::layout::{
    self, Account, Dir, Error, IndexFile, Older, Overwritten, Stamp, path, readers,
};
use crate::oci::{RepoName, Tag};

/// The most index.json files that are held open.
const MOST: usize = 512;

/// And the most memory that they take together. The last one may take more: 100,000 tags are some 35 MB.
const MOST_BYTES: usize = 64 * 1024 * 1024;

/// How long a request waits for another tool to finish writing: longer than the 2 s for which a file
/// counts as being written, and not for ever if somebody touches it again and again.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long to wait before a file that is just being written is read again.
const AGAIN: Duration = Duration::from_millis(20);

/// The memory.
#[derive(Debug, Default)]
pub(super) struct Indexes {
    state: Mutex<State>,
    /// How many wait for other tools to finish writing.
    waiting: AtomicUsize,
}

/// Who waits holds a thread: whoever writes one repository must not have them all.
const MOST_WAITING: usize = 16;

#[derive(Debug, Default)]
struct State {
    known: HashMap<RepoName, (Arc<IndexFile>, u64)>,
    clock: u64,
    /// What all take.
    bytes: usize,
}

impl State {
    fn remove(&mut self, name: &RepoName) {
        if let Some((file, _)) = self.known.remove(name) {
            self.bytes -= file.weight();
        }
    }
}

impl Indexes {
    /// What was last read or written.
    pub(super) fn last(&self, name: &RepoName) -> Option<Arc<IndexFile>> {
        let mut state = locked(&self.state);
        state.clock += 1;
        let now = state.clock;
        let (file, used) = state.known.get_mut(name)?;
        *used = now;
        Some(Arc::clone(file))
    }

    /// Remembers what was just read or written.
    pub(super) fn put(&self, name: &RepoName, file: Arc<IndexFile>) {
        let mut state = locked(&self.state);
        state.clock += 1;
        let now = state.clock;
        state.remove(name);
        state.bytes += file.weight();
        state.known.insert(name.clone(), (file, now));
        while state.known.len() > MOST || state.bytes > MOST_BYTES && state.known.len() > 1 {
            let oldest = state.known.iter().min_by_key(|(_, (_, used))| *used);
            let Some(oldest) = oldest.map(|(name, _)| name.clone()) else { break };
            state.remove(&oldest);
        }
    }

    /// Nobody tells when the other tool is done; within 2 s it counts as broken.
    fn wait(&self, dir: &Dir) -> Result<()> {
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        if before < MOST_WAITING {
            std::thread::sleep(AGAIN);
        }
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        if before < MOST_WAITING {
            Ok(())
        } else {
            Err(super::Error::Busy { path: dir.at(path::INDEX) })
        }
    }

    pub(super) fn forget(&self, name: &RepoName) {
        locked(&self.state).remove(name);
    }
}

/// What to do with an index.json that another tool is just writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meanwhile {
    /// Readers get the last good one.
    LastGood,
    /// Writers wait.
    Wait,
}

/// No more tags are named in a line of the log.
const MOST_NAMED: usize = 20;

/// The administrator learns of changes that another tool has taken back, by mistake if it took no lock.
/// `seen` is the index.json that stood there before.
fn tell_overwritten(name: &RepoName, dir: &Dir, index: &IndexFile, seen: Stamp) {
    let (path, lock) = (dir.at(path::INDEX), dir.at(path::LOCK));
    match layout::overwritten(dir, index, Some(seen)) {
        Ok(Some(Overwritten::Before(tags))) if !tags.is_empty() => tracing::warn!(
            repo = %name, ?path, tags = ?named(&tags), count = tags.len(),
            "another tool wrote index.json, and these tags are as they were before their last change: \
             it has to run under flock {}", lock.display()
        ),
        Ok(Some(Overwritten::Older(Older { tags, manifests }))) => tracing::warn!(
            repo = %name, ?path, tags = ?named(&tags), count = tags.len(), manifests,
            "an older index.json was put back, and these tags are not what they were since, nor are so \
             many manifests there: what is not meant so has to run under flock {}", lock.display()
        ),
        Ok(_) => {}
        Err(error) => tracing::debug!(%error, "whether changes were overwritten is not known"),
    }
}

fn named(tags: &[Tag]) -> Vec<&str> {
    tags.iter().take(MOST_NAMED).map(Tag::as_str).collect()
}

impl Inner {
    /// The repository's index.json as it stands now; `None` if there is none.
    pub(super) fn index(
        &self,
        name: &RepoName,
        dir: &Dir,
        meanwhile: Meanwhile,
    ) -> Result<Option<Arc<IndexFile>>> {
        let begun = Instant::now();
        loop {
            let last = self.indexes.last(name);
            match self.read_index(dir, last.as_ref(), meanwhile) {
                Ok(Some(file)) => {
                    if last.as_ref().is_none_or(|last| !Arc::ptr_eq(last, &file)) {
                        self.indexes.put(name, Arc::clone(&file));
                    }
                    // What was written here is put there by who wrote it.
                    let last = last.as_deref();
                    let other = last.is_some_and(|last| last.stamp != file.stamp);
                    let open = last.is_some_and(|last| last.readers == file.readers);
                    if (other || !open) && !self.tree.is_read_only() {
                        self.opened.add(name);
                    }
                    if let Some(last) = last.filter(|_| other) {
                        tell_overwritten(name, dir, &file, last.stamp);
                    }
                    return Ok(Some(file));
                }
                Ok(None) => {
                    self.indexes.forget(name);
                    return Ok(None);
                }
                Err(error)
                    if begun.elapsed() > PATIENCE || !IndexFile::being_written(dir, &error) =>
                {
                    return Err(error.into());
                }
                Err(_) => match (meanwhile, last) {
                    (Meanwhile::LastGood, Some(last)) => return Ok(Some(last)),
                    _ => self.indexes.wait(dir)?,
                },
            }
        }
    }

    /// The index.json of which the kernel's memory tells that it is what was read last, for somebody who
    /// was let through to the repository and may read it.
    pub(super) fn known_index(&self, name: &RepoName, reader: &Account) -> Option<Arc<IndexFile>> {
        if self.tree.is_remote() {
            return None;
        }
        let dir = reader.seen(name)?;
        let file = self.indexes.last(name)?;
        (file.stands(&dir).ok()? && file.readers.include(reader)).then_some(file)
    }

    /// The index.json for somebody who reads; `None` also if its own rights do not let them.
    pub(super) fn index_for(
        &self,
        name: &RepoName,
        dir: &Dir,
        reader: &Account,
    ) -> Result<Option<Arc<IndexFile>>> {
        let file = self.index(name, dir, Meanwhile::LastGood)?;
        let file = file.filter(|file| {
            let may = file.readers.include(reader);
            if !may {
                readers::passed_over(&dir.at(path::INDEX));
            }
            may
        });
        Ok(file)
    }

    fn read_index(
        &self,
        dir: &Dir,
        last: Option<&Arc<IndexFile>>,
        meanwhile: Meanwhile,
    ) -> std::result::Result<Option<Arc<IndexFile>>, Error> {
        match last {
            // Another machine's change may not show in what stat(2) tells of a network mount.
            Some(last) if meanwhile == Meanwhile::Wait && self.tree.is_remote() => {
                IndexFile::reread(dir, last)
            }
            Some(last) => IndexFile::refresh(dir, last),
            None => IndexFile::read(dir).map(|read| read.map(Arc::new)),
        }
    }
}
