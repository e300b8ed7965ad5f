//! The commit: every change of an index.json, shared by all who wait (PROTOCOL.md, "Push").
//!
//! Whoever proposes a change puts it into the repository's queue. The first one leads: it takes
//! the lock, applies what has gathered, and makes all of it durable by one journal sync, one
//! rename and one directory sync. Nobody else blocks a thread meanwhile.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::oneshot;

use super::indexes::Meanwhile;
use super::manifests::Put;
use super::{Actor, Error, Inner, Registry, Result, locked};
use crate::layout::blobs::Presence;
use crate::layout::inherit::Purpose;
use crate::layout::journal::{self, Record};
use crate::layout::{
    Dir, DirId, IndexFile, OrAbsent, Stamp, blobs, durable, facts, lock, notes, path,
};
use crate::oci::{Algorithm, Change, Digest, Index, Reference, RepoName, Tag, What};

/// How long the lock stays free after a commit if another process waits for it.
const LEAVE_FREE: Duration = Duration::from_millis(5);

/// Repositories whose state is remembered while nobody changes them.
const MOST_IDLE: usize = 4096;

/// A change of a repository.
#[derive(Clone, Debug)]
pub(super) enum Deed {
    /// A manifest comes in, and tags name it.
    Put(Box<Put>),
    /// A tag goes.
    Untag(Tag),
    /// A manifest goes, with its tags.
    Remove(Digest),
    /// A blob's name goes; the requester holds gc.lock. No manifest of the index.json with the stamp
    /// refers to it.
    Unlink(Digest, Option<Stamp>),
    /// Collection forgets that it has seen a blob unreferenced.
    Promise(Digest),
}

impl Deed {
    /// How long its requester waits for the lock. Who holds gc.lock keeps others from it.
    fn patience(&self) -> Duration {
        match self {
            Deed::Unlink(..) => Duration::from_secs(2),
            Deed::Put(_) | Deed::Untag(_) | Deed::Remove(_) | Deed::Promise(_) => {
                lock::REQUEST_WAIT
            }
        }
    }
}

/// Why a deed was not done.
#[derive(Clone, Debug)]
pub(super) enum Refusal {
    /// What the deed relies on changed before the lock was taken.
    LookAgain,
    /// It cannot be done.
    Error(Error),
}

impl<E: Into<Error>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Refusal::Error(error.into())
    }
}

type Outcome = std::result::Result<(), Refusal>;

/// A deed that waits for the commit.
#[derive(Debug)]
struct Member {
    deed: Deed,
    actor: Actor,
    /// Set by whoever is first: the leader who takes it, or the requester who gives up.
    settled: Arc<AtomicBool>,
    reply: oneshot::Sender<Outcome>,
}

/// A repository's queue, and what this process knows about its durability.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    /// Only the leader touches it.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct Waiting {
    members: Vec<Member>,
    led: bool,
}

#[derive(Debug, Default)]
struct State {
    health: Health,
    durable: Option<Durable>,
}

/// What this process knows to be durable of a repository.
#[derive(Debug)]
struct Durable {
    /// The directory, with the names of all directories on the way.
    dir: DirId,
    /// The directories of blobs, by their names in `blobs/`. Not of the blobs in them.
    blobs: Vec<DirId>,
    /// The index.json.
    stamp: Stamp,
}

/// Whether what the disk said can be relied on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Health {
    #[default]
    Sound,
    /// A directory's fsync failed after the rename: nothing is acknowledged until a newly written
    /// index.json has gone through all steps.
    Suspect,
    /// That failed too.
    ReadOnly,
}

impl Registry {
    /// Proposes a change and waits until it is durable or refused.
    pub(super) async fn commit(&self, repo: &RepoName, deed: Deed, actor: &Actor) -> Outcome {
        let queue = self.inner.queue(repo);
        let settled = Arc::new(AtomicBool::new(false));
        let patience = deed.patience();
        let (reply, mut answer) = oneshot::channel();
        let member = Member { deed, actor: actor.clone(), settled: Arc::clone(&settled), reply };
        if queue.join(member) {
            let (inner, repo, queue) = (Arc::clone(&self.inner), repo.clone(), Arc::clone(&queue));
            tokio::task::spawn_blocking(move || Leader { queue: &queue }.lead(&inner, &repo));
        }
        let waited = tokio::time::timeout(patience, &mut answer).await;
        let answered = match waited {
            Ok(answered) => answered,
            Err(_) if !settled.swap(true, Ordering::AcqRel) => {
                return Err(Error::Busy { path: self.inner.lock_path(repo) }.into());
            }
            // The leader has taken it: it is being made durable right now.
            Err(_) => answer.await,
        };
        answered.unwrap_or(Err(Refusal::Error(Error::Internal)))
    }
}

impl Queue {
    /// Adds a member; whether the caller has to lead.
    fn join(&self, member: Member) -> bool {
        let mut waiting = locked(&self.waiting);
        waiting.members.push(member);
        !std::mem::replace(&mut waiting.led, true)
    }

    /// Takes all who have not given up.
    fn take(&self) -> Vec<Member> {
        let mut members = std::mem::take(&mut locked(&self.waiting).members);
        members.retain(|member| !member.settled.swap(true, Ordering::AcqRel));
        members
    }

    /// Ends the lead if nobody waits.
    fn end(&self) -> bool {
        let mut waiting = locked(&self.waiting);
        waiting.led = !waiting.members.is_empty();
        !waiting.led
    }

    /// How many wait right now.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        locked(&self.waiting).members.len()
    }

    fn is_idle(&self) -> bool {
        !locked(&self.waiting).led && locked(&self.state).health == Health::Sound
    }
}

/// Whoever leads the queue. If it panics, its members get no answer, and the next one leads.
struct Leader<'a> {
    queue: &'a Queue,
}

impl Drop for Leader<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut waiting = locked(&self.queue.waiting);
            waiting.led = false;
            waiting.members.clear();
        }
    }
}

impl Leader<'_> {
    fn lead(self, inner: &Inner, repo: &RepoName) {
        loop {
            let awaited = match inner.locked_repository(repo) {
                Ok((dir, held)) => {
                    let members = self.queue.take();
                    let outcomes = inner.commit_group(repo, &dir, self.queue, &members);
                    let awaited = held.awaited();
                    held.release();
                    answer(members, outcomes);
                    awaited
                }
                Err(error) => {
                    let members = self.queue.take();
                    let outcomes = members.iter().map(|_| Err(error.clone().into())).collect();
                    answer(members, outcomes);
                    false
                }
            };
            if self.queue.end() {
                return;
            }
            if awaited {
                // A shell's flock(1) has no chance against us otherwise.
                std::thread::sleep(LEAVE_FREE);
            }
        }
    }
}

fn answer(members: Vec<Member>, outcomes: Vec<Outcome>) {
    for (member, outcome) in members.into_iter().zip(outcomes) {
        // Whoever went away does not hear of it; the change stays.
        let _ = member.reply.send(outcome);
    }
}

impl Inner {
    pub(super) fn queue(&self, repo: &RepoName) -> Arc<Queue> {
        let mut queues = locked(&self.queues);
        if queues.len() > MOST_IDLE {
            queues.retain(|_, queue| Arc::strong_count(queue) > 1 || !queue.is_idle());
        }
        Arc::clone(queues.entry(repo.clone()).or_default())
    }

    fn lock_path(&self, repo: &RepoName) -> PathBuf {
        self.tree.root.at(repo.as_str()).join(path::LOCK)
    }

    fn locked_repository(&self, repo: &RepoName) -> Result<(Dir, lock::Held)> {
        let dir = self.repository(repo)?;
        let held = lock::repository(&dir)?;
        Ok((dir, held))
    }

    /// Applies and commits what has gathered. One outcome for each member, in their order.
    fn commit_group(
        &self,
        repo: &RepoName,
        dir: &Dir,
        queue: &Queue,
        members: &[Member],
    ) -> Vec<Outcome> {
        let mut state = locked(&queue.state);
        if members.is_empty() {
            return Vec::new();
        }
        let mut group = match Group::begin(self, repo, dir) {
            Ok(group) => group,
            Err(error) => return members.iter().map(|_| Err(error.clone().into())).collect(),
        };
        let applied: Vec<Outcome> = members.iter().map(|member| group.apply(member)).collect();
        match group.finish(&mut state) {
            Ok(()) => applied,
            Err(error) => {
                let failed = |outcome: Outcome| outcome.and(Err(Refusal::Error(error.clone())));
                applied.into_iter().map(failed).collect()
            }
        }
    }
}

/// The changes of one group commit.
struct Group<'a> {
    inner: &'a Inner,
    repo: &'a RepoName,
    dir: &'a Dir,
    last: Option<Arc<IndexFile>>,
    index: Arc<Index>,
    changes: Vec<(Change, Actor)>,
    facts: Vec<&'a facts::Fact>,
}

impl<'a> Group<'a> {
    fn begin(inner: &'a Inner, repo: &'a RepoName, dir: &'a Dir) -> Result<Group<'a>> {
        let last = inner.index(repo, dir, Meanwhile::Wait)?;
        let index = last.as_ref().map(|file| Arc::clone(&file.index)).unwrap_or_default();
        Ok(Group { inner, repo, dir, last, index, changes: Vec::new(), facts: Vec::new() })
    }

    /// Checks one member and applies it to the index in memory.
    fn apply(&mut self, member: &'a Member) -> Outcome {
        let unknown = |reference| Error::ManifestUnknown { repo: self.repo.clone(), reference };
        let changes = match &member.deed {
            Deed::Put(put) => {
                self.index.agrees(&put.descriptor)?;
                self.check_references(put)?;
                let changes = Arc::make_mut(&mut self.index).put(&put.descriptor, &put.tags);
                // Of a manifest that was there the facts are known: a tag says nothing new.
                if changes.iter().any(|change| change.what == What::Push) {
                    self.facts.push(&put.fact);
                }
                changes
            }
            Deed::Untag(tag) => {
                let change = Arc::make_mut(&mut self.index).untag(tag);
                vec![change.ok_or_else(|| unknown(Reference::Tag(tag.clone())))?]
            }
            Deed::Remove(digest) => {
                let changes = Arc::make_mut(&mut self.index).remove(digest);
                if changes.is_empty() {
                    return Err(unknown(Reference::Digest(digest.clone())).into());
                }
                changes
            }
            Deed::Unlink(digest, looked) => {
                self.unlink(digest, *looked)?;
                Vec::new()
            }
            Deed::Promise(digest) => {
                notes::promise(&self.inner.tree, self.repo, [digest])?;
                Vec::new()
            }
        };
        self.changes.extend(changes.into_iter().map(|change| (change, member.actor.clone())));
        Ok(())
    }

    /// Removes a blob's name, if neither index.json as it stands nor as it is about to be needs it.
    fn unlink(&self, digest: &Digest, looked: Option<Stamp>) -> Outcome {
        let stands = self.last.as_ref().filter(|last| looked != Some(last.stamp));
        let indexes = stands.map(|last| &last.index).into_iter();
        for index in indexes.chain((!self.changes.is_empty()).then_some(&self.index)) {
            self.inner.refuse_referenced(self.dir, index, digest)?;
        }
        let unknown = || Error::BlobUnknown { repo: self.repo.clone(), digest: digest.clone() };
        let blobs = self.dir.dir(&path::blobs(digest.algorithm())).or_absent()?;
        let blobs = blobs.ok_or_else(unknown)?;
        let disk = &self.inner.tree.disk;
        disk.unlink(&blobs, digest.hex()).or_absent()?.ok_or_else(unknown)?;
        Ok(disk.sync_dir(&blobs)?)
    }

    /// Everything that the manifest relies on is there, in inodes of ours, and no collection has
    /// it on its list any more.
    fn check_references(&self, put: &Put) -> Outcome {
        let tree = &self.inner.tree;
        let all = || std::iter::once(&put.descriptor).chain(&put.required);
        notes::promise(tree, self.repo, all().map(|descriptor| &descriptor.digest))?;
        let mut absent = Vec::new();
        for descriptor in all() {
            match blobs::presence(tree, self.dir, &descriptor.digest, descriptor.size)? {
                Presence::Ours => {}
                Presence::Foreign if put.bad.contains(&descriptor.digest) => {
                    absent.push(descriptor.digest.clone());
                }
                Presence::Foreign => return Err(Refusal::LookAgain),
                Presence::Absent if descriptor.digest == put.descriptor.digest => {
                    return Err(Refusal::LookAgain);
                }
                Presence::Absent => absent.push(descriptor.digest.clone()),
            }
        }
        Ok(self.inner.refuse_absent(absent)?)
    }

    /// Makes the changes durable and visible.
    fn finish(self, state: &mut State) -> Result<()> {
        if state.health == Health::ReadOnly {
            return Err(Error::ReadOnly(self.repo.clone()));
        }
        let dir = self.dir.id()?;
        if self.changes.is_empty() && state.health == Health::Sound {
            return self.confirm(state, dir);
        }
        let written = self.write(state, dir);
        if written.is_err() && state.health == Health::Suspect {
            tracing::error!(repo = %self.repo, "the disk failed again: read-only until restart");
            state.health = Health::ReadOnly;
        }
        let (file, blobs) = written?;
        self.make_visible_durable(state, Durable { dir, blobs, stamp: file.stamp })?;
        self.inner.indexes.put(self.repo, file);
        if let Err(error) = facts::append(&self.inner.tree, self.dir, self.facts.iter().copied()) {
            tracing::debug!(%error, "facts of manifests were not written down");
        }
        self.still_named()
    }

    /// Nothing changed: everybody asked for what is so already. It is acknowledged once it is
    /// known to be durable; another process may have been killed right before its last sync.
    fn confirm(&self, state: &mut State, dir: DirId) -> Result<()> {
        let Some(last) = &self.last else {
            return Ok(());
        };
        if state.durable.as_ref().is_some_and(|d| d.dir == dir && d.stamp == last.stamp) {
            return Ok(());
        }
        let blobs = self.sync_names(state, dir)?;
        let sync = |source: std::io::Error| crate::layout::Error::Io {
            path: self.dir.at(path::INDEX),
            source: source.into(),
        };
        self.inner.tree.disk.sync(last.file()).map_err(sync)?;
        self.inner.tree.disk.sync_dir(self.dir)?;
        state.durable = Some(Durable { dir, blobs, stamp: last.stamp });
        self.still_named()
    }

    /// All steps up to the rename, which is the commit.
    fn write(&self, state: &State, dir: DirId) -> Result<(Arc<IndexFile>, Vec<DirId>)> {
        let disk = &*self.inner.tree.disk;
        let bytes = self.index.to_bytes();
        let stamp = Stamp::of(&bytes);
        let base = self.last.as_ref().map_or_else(Stamp::nothing, |last| last.stamp);
        let record = |(change, actor): &(Change, Actor)| {
            Record::now(change.clone(), actor.who.clone(), actor.from, base, stamp)
        };
        let records: Vec<Record> = self.changes.iter().map(record).collect();
        journal::append(disk, self.dir, &records)?;
        if self.dir.stat_name(path::OCI_LAYOUT)?.is_none() {
            let bytes = path::OCI_LAYOUT_BYTES;
            durable::replace(disk, self.dir, path::OCI_LAYOUT, bytes, Purpose::Public)?;
        }
        let blobs = self.sync_names(state, dir)?;
        let file = durable::replace(disk, self.dir, path::INDEX, &bytes, Purpose::Public)?;
        let index = Arc::clone(&self.index);
        Ok((Arc::new(IndexFile::written(self.dir, index, stamp, file)?), blobs))
    }

    /// The names of blobs become durable before a manifest that needs them can be seen; and, the
    /// first time that this process commits here, the names of all directories on the way. Gives the
    /// directories of blobs whose own names are durable now.
    fn sync_names(&self, state: &State, dir: DirId) -> Result<Vec<DirId>> {
        let tree = &self.inner.tree;
        let known = state.durable.as_ref().filter(|durable| durable.dir == dir);
        let mut named = Vec::new();
        for algorithm in Algorithm::ALL {
            if let Some(blobs) = self.dir.dir(&path::blobs(algorithm)).or_absent()? {
                tree.disk.sync_dir(&blobs)?;
                named.push(blobs.id()?);
            }
        }
        // Who made the directory syncs its name, but may be about to, or may have been killed.
        if known.is_none_or(|known| named.iter().any(|blobs| !known.blobs.contains(blobs)))
            && let Some(blobs) = self.dir.dir(path::BLOBS).or_absent()?
        {
            tree.disk.sync_dir(&blobs)?;
        }
        if known.is_none() {
            // `blobs`, `oci-layout`, the journal: an index.json must not outlive what it stands on.
            tree.disk.sync_dir(self.dir)?;
            tree.disk.sync_dir(&tree.root)?;
            for (end, _) in self.repo.as_str().match_indices('/') {
                tree.disk.sync_dir(&tree.root.dir(&self.repo.as_str()[..end])?)?;
            }
        }
        Ok(named)
    }

    /// The directory's sync after the rename. If it fails, readers see what a power cut may take
    /// back: nobody is told that it was done.
    fn make_visible_durable(&self, state: &mut State, durable: Durable) -> Result<()> {
        match self.inner.tree.disk.sync_dir(self.dir) {
            Ok(()) => {
                state.health = Health::Sound;
                state.durable = Some(durable);
                Ok(())
            }
            Err(error) => {
                state.durable = None;
                state.health = match state.health {
                    Health::Sound => Health::Suspect,
                    Health::Suspect | Health::ReadOnly => Health::ReadOnly,
                };
                tracing::error!(%error, repo = %self.repo, "a commit may not be durable");
                Err(error.into())
            }
        }
    }

    /// Somebody may have moved the directory away while it was written to.
    fn still_named(&self) -> Result<()> {
        match self.inner.tree.repository(self.repo)? {
            Some(there) if there.inode()? == self.dir.inode()? => Ok(()),
            _ => Err(Error::Moved(self.repo.clone())),
        }
    }
}
