//! The turns: the only moments in which a collection takes something that somebody might want.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::Run;
use rustix::fs::Stat;

use super::event::{Event, Fate, Why};
use super::repository::Repo;
use crate::layout::history::Recent;
use crate::layout::holders::Holders;
use crate::layout::lock::{self, Held};
use crate::layout::{
    self, At, BlobNames, Dir, IndexFile, Inode, OrAbsent, Stamp, blobs, is_regular, path, size_of,
};
use crate::oci::{Digest, RepoName};

/// A turn holds everybody up for no longer than this.
pub(super) const TURN: Duration = Duration::from_millis(50);

/// What was named and not there is looked for again at each turn, because a repair or an upload may have
/// brought it without a commit: what it needs must stay. So much is looked for under the locks; where it is
/// more, as under `--allow-sparse`, before them, and under them only if a name may have come since, or
/// index.json or the journal changed. Where that cannot be told, as over a network, everybody waits for it.
const FEW_ABSENT: usize = 1000;

/// How long a repository's lock is waited for while gc.lock is held.
pub(super) const SHORTLY: Duration = Duration::from_millis(100);

/// The locks of a turn, taken in their order and given back in the other.
pub(super) struct Locks {
    _repository: Held,
    _gc: Held,
}

impl Repo<'_> {
    /// Takes blobs that nothing refers to and whose grace is over, if all of that is so still.
    pub(super) fn take(
        &mut self,
        run: &mut Run<'_>,
        blobs: &Dir,
        batch: Vec<Digest>,
    ) -> Result<(), Why> {
        if run.options.dry_run {
            return batch.iter().try_for_each(|digest| self.would_take(run, blobs, digest));
        }
        let mut rest = batch.as_slice();
        while !rest.is_empty() && !run.blocked {
            let Some(locks) = self.lock(run)? else { break };
            rest = self.turn(run, blobs, rest)?;
            drop(locks);
            std::thread::sleep(lock::LEAVE_FREE);
        }
        Ok(())
    }

    /// Takes both locks and brings the marks up to date under them. `None` if gc.lock is not to be
    /// had, which ends all turns of this run.
    fn lock(&mut self, run: &mut Run<'_>) -> Result<Option<Locks>, Why> {
        let begun = Instant::now();
        let looked = self.look_before(run)?;
        let left = || run.options.wait.saturating_sub(begun.elapsed());
        loop {
            let gc = lock::exclusive_within(&run.tree.room, path::GC_LOCK, left())?;
            let Some(gc) = gc else {
                let why = held(&run.tree.room, path::GC_LOCK);
                run.blocked = true;
                run.tell(Event::Blocked(&why));
                return Ok(None);
            };
            let repository = lock::exclusive_within(self.dir, path::LOCK, SHORTLY.min(left()))?;
            if let Some(repository) = repository {
                match self.look_again(run, looked.as_ref()) {
                    Ok(()) => return Ok(Some(Locks { _repository: repository, _gc: gc })),
                    Err(Why::BeingWritten) if !left().is_zero() => drop(repository),
                    Err(why) => return Err(why),
                }
            } else if left().is_zero() {
                return Err(held(self.dir, path::LOCK));
            }
            drop(gc);
            // Whoever copies the tree comes in between.
            std::thread::sleep(lock::LEAVE_FREE);
        }
    }

    /// Most of what is new is read before anybody is kept waiting; gives which names there were before
    /// that, where all that is absent was looked for. A manifest that is not there may have been deleted
    /// meanwhile: under the locks it is looked for again.
    fn look_before(&mut self, run: &Run<'_>) -> Result<Option<BlobNames>, Why> {
        if self.index.is_none() {
            return Ok(None);
        }
        let many = self.marks.absent() > FEW_ABSENT;
        let names = if many { BlobNames::settled(self.dir)? } else { None };
        match self.catch_up(run, None) {
            Ok(()) => Ok(names),
            Err(Why::BeingWritten | Why::Missing { .. }) => Ok(None),
            Err(why) => Err(why),
        }
    }

    /// Under both locks: whatever came since the marks were made is marked, too, and index.json is
    /// on the disk before anything goes that an older one may have needed. `looked` says for which names
    /// all that is absent was looked for.
    fn look_again(&mut self, run: &Run<'_>, looked: Option<&BlobNames>) -> Result<(), Why> {
        if !self.is_named(run)? {
            return Err(Why::Moved);
        }
        self.catch_up(run, looked)?;
        let now = stamp(&self.index);
        if self.durable != Some(now) {
            if let Some(file) = &self.index {
                run.tree.disk.sync(file.file()).at(|| self.dir.at(path::INDEX))?;
            }
            run.tree.disk.sync_dir(self.dir)?;
            self.durable = Some(now);
        }
        Ok(())
    }

    /// Marks what index.json and the journal, read in this order, say by now, and what has come of that which
    /// was not there: unless that was looked for among the names that there are still (`looked`; `None` if not).
    fn catch_up(&mut self, run: &Run<'_>, looked: Option<&BlobNames>) -> Result<(), Why> {
        let index = match run.read_again(self.dir, self.index.as_ref()) {
            Err(error) if IndexFile::being_written(self.dir, &error) => {
                return Err(Why::BeingWritten);
            }
            read => read?,
        };
        let recent = Recent::since(self.dir, &self.reading, run.undo_since())?;
        if stamp(&index) != stamp(&self.index) || recent.is_some() {
            self.follow(run, index, recent)?;
        } else if looked.is_none() || looked != Some(&BlobNames::of(self.dir)?) {
            self.marks.again(self.dir)?;
        }
        Ok(())
    }

    /// Takes as many as the time allows; gives the rest.
    fn turn<'b>(
        &mut self,
        run: &mut Run<'_>,
        blobs: &Dir,
        batch: &'b [Digest],
    ) -> Result<&'b [Digest], Why> {
        let begun = Instant::now();
        for (done, digest) in batch.iter().enumerate() {
            if begun.elapsed() > TURN {
                return Ok(&batch[done..]);
            }
            self.take_one(run, blobs, digest)?;
        }
        Ok(&[])
    }

    fn take_one(&mut self, run: &mut Run<'_>, blobs: &Dir, digest: &Digest) -> Result<(), Why> {
        if self.marks.cause(digest).is_some() {
            self.tell(run, digest, Fate::Referred);
            return Ok(());
        }
        let mut noted = None;
        if !run.options.grace.is_zero() {
            noted = self.since(run, blobs, digest)?;
            if noted.is_none_or(|since| since > run.before(run.options.grace)) {
                self.tell(run, digest, Fate::Promised);
                return Ok(());
            }
        }
        self.goes(run, blobs, digest, noted)?;
        match &self.notes {
            Some(notes) => Ok(notes.forget(run.tree, digest)?),
            None => Ok(()),
        }
    }

    fn would_take(&mut self, run: &mut Run<'_>, blobs: &Dir, digest: &Digest) -> Result<(), Why> {
        let since = self.since(run, blobs, digest)?;
        let since = since.filter(|_| !run.options.grace.is_zero());
        Ok(self.goes(run, blobs, digest, since)?)
    }

    /// The name goes, if it is a file's; in a dry run that is told and nothing else.
    fn goes(
        &mut self,
        run: &mut Run<'_>,
        blobs: &Dir,
        digest: &Digest,
        since: Option<SystemTime>,
    ) -> layout::Result<()> {
        let Some(stat) = blobs.stat_name(digest.hex())?.filter(is_regular) else {
            return Ok(());
        };
        if run.really() && run.tree.disk.unlink(blobs, digest.hex()).or_absent()?.is_none() {
            return Ok(());
        }
        let (others, bytes) = run.links.unlink(&stat);
        let explained = run.options.now && run.options.only.is_some() && others > 0;
        let elsewhere = if explained { self.elsewhere(run, digest, &stat)? } else { Vec::new() };
        let (elsewhere, undo) = (elsewhere.as_slice(), self.undoable.get(digest));
        let size = size_of(&stat);
        self.tell(run, digest, Fate::Goes { since, size, bytes, others, undo, elsewhere });
        if run.options.dry_run {
            self.gone.put_new(digest, ());
        }
        Ok(())
    }

    /// Which other repositories have the very inode, by the hints.
    fn elsewhere(
        &self,
        run: &Run<'_>,
        digest: &Digest,
        stat: &Stat,
    ) -> layout::Result<Vec<RepoName>> {
        let mut found = Vec::new();
        for name in Holders::default().of(run.tree, digest)? {
            let Some(dir) = run.tree.repository(&name)?.filter(|_| name != *self.name) else {
                continue;
            };
            let there = blobs::stat(&dir, digest)?;
            if there.is_some_and(|there| Inode::of(&there) == Inode::of(stat)) {
                found.push(name);
            }
        }
        Ok(found)
    }
}

fn stamp(index: &Option<Arc<IndexFile>>) -> Option<Stamp> {
    index.as_ref().map(|file| file.stamp)
}

/// Somebody holds a lock.
pub(super) fn held(dir: &Dir, name: &str) -> Why {
    Why::Held { lock: dir.at(name).display().to_string(), holders: lock::holders(dir, name) }
}
