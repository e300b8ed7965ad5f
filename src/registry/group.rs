//! What one group commit does: checks each deed against the files as they are, and makes all changes
//! durable by one journal sync, one rename and one directory sync.

use std::sync::Arc;

use super::commit::{Checked, Deed, Outcome, Refusal};
use super::indexes::Meanwhile;
use super::manifests::Put;
use super::{Actor, Error, Inner, Result};
use crate::graph::views::Commit;
use crate::layout::blobs::Presence;
use crate::layout::inherit::Purpose;
use crate::layout::journal::{self, Record};
use crate::layout::{
    self, At, Dir, DirId, IndexFile, OrAbsent, Stamp, blobs, durable, facts, notes, path, trash,
};
use crate::oci::{Algorithm, Change, Digest, Index, Reference, RepoName, What};

/// What is remembered of a repository from commit to commit.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) health: Health,
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
pub(super) enum Health {
    #[default]
    Sound,
    /// A sync of what readers can see already has failed, and a second one would say yes to what
    /// never reached the disk: nothing is acknowledged until a newly written index.json has gone
    /// through all steps, however often that fails.
    Suspect,
}

/// The changes of one group commit.
pub(super) struct Group<'a> {
    inner: &'a Inner,
    repo: &'a RepoName,
    dir: &'a Dir,
    last: Option<Arc<IndexFile>>,
    index: Arc<Index>,
    changes: Vec<(Change, Actor)>,
    facts: Vec<&'a facts::Fact>,
}

impl<'a> Group<'a> {
    pub(super) fn begin(inner: &'a Inner, repo: &'a RepoName, dir: &'a Dir) -> Result<Group<'a>> {
        let last = inner.index(repo, dir, Meanwhile::Wait)?;
        let index = last.as_ref().map(|file| Arc::clone(&file.index)).unwrap_or_default();
        Ok(Group { inner, repo, dir, last, index, changes: Vec::new(), facts: Vec::new() })
    }

    /// Checks one deed and applies it to the index in memory.
    pub(super) fn apply(&mut self, deed: &'a Deed, actor: &Actor) -> Outcome {
        if !actor.account.accepts(self.repo, self.dir)? {
            return Err(Error::Moved(self.repo.clone()).into());
        }
        let unknown = |reference| Error::ManifestUnknown { repo: self.repo.clone(), reference };
        self.refuse_closed(deed, actor)?;
        let changes = match deed {
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
            Deed::TakeOut(digests, looked) => {
                if !self.changes.is_empty() || self.last.as_ref().map(|l| l.stamp) != Some(*looked)
                {
                    return Err(Refusal::LookAgain);
                }
                let index = Arc::make_mut(&mut self.index);
                digests.iter().flat_map(|digest| index.remove(digest)).collect()
            }
            Deed::Promise(digest) => {
                notes::promise(&self.inner.tree, self.repo, [digest])?;
                Vec::new()
            }
        };
        self.changes.extend(changes.iter().cloned().map(|change| (change, actor.clone())));
        Ok(changes)
    }

    /// An index.json that its owner keeps to himself is not published by the one who rewrites it.
    fn refuse_closed(&self, deed: &Deed, actor: &Actor) -> Checked {
        match &self.last {
            Some(last) if !last.readers.include(&actor.account) => match deed {
                Deed::Promise(_) => Ok(()),
                _ => Err(Error::Closed { path: self.dir.at(path::INDEX) }.into()),
            },
            _ => Ok(()),
        }
    }

    /// Removes a blob's name, if neither index.json as it stands nor as it is about to be needs it.
    fn unlink(&self, digest: &Digest, looked: Option<Stamp>) -> Checked {
        let stands = self.last.as_ref().filter(|last| looked != Some(last.stamp));
        let indexes = stands.map(|last| &last.index).into_iter();
        for index in indexes.chain((!self.changes.is_empty()).then_some(&self.index)) {
            self.inner.refuse_referenced(self.dir, index, digest)?;
        }
        let unknown = || Error::BlobUnknown { repo: self.repo.clone(), digest: digest.clone() };
        let blobs = self.dir.dir(&path::blobs(digest.algorithm())).or_absent()?;
        let blobs = blobs.ok_or_else(unknown)?;
        let tree = &self.inner.tree;
        if !trash::discard_blob(tree, self.repo, &blobs, digest)? {
            return Err(unknown().into());
        }
        Ok(tree.disk.sync_dir(&blobs)?)
    }

    /// Everything that the manifest relies on is there, in inodes of ours, and no collection has
    /// it on its list any more.
    fn check_references(&self, put: &Put) -> Checked {
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

    /// Makes sure that index.json is on the disk if a blob's name is about to go: an older one, which a
    /// power cut could bring back after its writer was killed, may need the blob.
    pub(super) fn settle<'d>(
        &mut self,
        mut deeds: impl Iterator<Item = &'d Deed>,
        state: &mut State,
    ) -> Result<()> {
        if !deeds.any(|deed| matches!(deed, Deed::Unlink(..))) {
            return Ok(());
        }
        let dir = self.dir.id()?;
        match (state.health, &self.last) {
            (Health::Sound, _) | (_, None) => self.confirm(state, dir),
            (Health::Suspect, Some(_)) => self.publish(state, dir),
        }
    }

    /// Index.json as it is to be goes through all steps.
    fn publish(&mut self, state: &mut State, dir: DirId) -> Result<()> {
        let written = self.write(state, dir);
        if written.is_err() {
            // Which sync failed is not looked at: the next commit syncs the whole chain again.
            state.durable = None;
        }
        let (file, blobs) = written?;
        self.make_visible_durable(state, Durable { dir, blobs, stamp: file.stamp })?;
        self.inner.indexes.put(self.repo, Arc::clone(&file));
        self.last = Some(file);
        Ok(())
    }

    /// Makes the changes durable and visible.
    pub(super) fn finish(mut self, state: &mut State) -> Result<()> {
        let dir = self.dir.id()?;
        if self.changes.is_empty() && state.health == Health::Sound {
            return self.confirm(state, dir);
        }
        let last = self.last.clone();
        let before = last.as_ref().map_or_else(Stamp::nothing, |last| last.stamp);
        self.publish(state, dir)?;
        if !self.facts.is_empty()
            && let Err(error) =
                facts::append(&self.inner.tree, self.dir, self.facts.iter().copied())
        {
            tracing::debug!(%error, "facts of manifests were not written down");
        }
        if let Some(now) = &self.last {
            let changes: Vec<&Change> = self.changes.iter().map(|(change, _)| change).collect();
            let commit = Commit { before, now, changes: &changes, facts: &self.facts };
            self.inner.follow((self.repo, self.dir), last.as_deref(), &commit);
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
        self.layout_file(state, dir)?;
        let blobs = self.sync_names(state, dir)?;
        let sync = |source: std::io::Error| layout::Error::Io {
            path: self.dir.at(path::INDEX),
            source: source.into(),
        };
        let disk = &self.inner.tree.disk;
        let synced = disk.sync(last.file()).map_err(sync);
        let synced = synced.and_then(|()| disk.sync_dir(self.dir));
        if let Err(error) = synced {
            tracing::error!(cause = ?error.to_string(), repo = %self.repo, "an index.json may not be durable");
            state.health = Health::Suspect;
            return Err(error.into());
        }
        state.durable = Some(Durable { dir, blobs, stamp: last.stamp });
        self.still_named()
    }

    /// All steps up to the rename, which is the commit.
    fn write(&self, state: &mut State, dir: DirId) -> Result<(Arc<IndexFile>, Vec<DirId>)> {
        let disk = &*self.inner.tree.disk;
        let parts = self.index.parts();
        let parts: Vec<&[u8]> = parts.iter().map(AsRef::as_ref).collect();
        let stamp = Stamp::of_parts(&parts);
        let base = self.last.as_ref().map_or_else(Stamp::nothing, |last| last.stamp);
        let record = |(change, actor): &(Change, Actor)| {
            Record::now(change.clone(), actor.who.clone(), actor.from, base, stamp)
        };
        let records: Vec<Record> = self.changes.iter().map(record).collect();
        let begins = journal::append(disk, self.dir, &records)?;
        self.layout_file(state, dir)?;
        let blobs = self.sync_names(state, dir)?;
        if begins && state.durable.as_ref().is_some_and(|durable| durable.dir == dir) {
            // The last journal was set aside since: an index.json must not outlive its own lines.
            disk.sync_dir(self.dir)?;
        }
        let file = durable::replace_by_parts(disk, self.dir, path::INDEX, &parts, Purpose::Public)?;
        let index = Arc::clone(&self.index);
        let written = IndexFile::written(&self.inner.tree, self.dir, index, stamp, file)?;
        Ok((Arc::new(written), blobs))
    }

    /// `oci-layout` is there, and what it says is durable: another tool may have made it a moment ago.
    /// Where its sync failed, a second one proves nothing: it is written anew.
    fn layout_file(&self, state: &mut State, dir: DirId) -> Result<()> {
        let disk = &*self.inner.tree.disk;
        let known = state.durable.as_ref().is_some_and(|durable| durable.dir == dir);
        let found = self.dir.stat_name(path::OCI_LAYOUT)?;
        if found.is_none() || (!known && state.health == Health::Suspect) {
            let bytes = path::OCI_LAYOUT_BYTES;
            durable::replace(disk, self.dir, path::OCI_LAYOUT, bytes, Purpose::Public)?;
        } else if !known && found.is_some_and(|found| layout::is_regular(&found)) {
            let file = self.dir.file(path::OCI_LAYOUT)?;
            let synced = disk.sync(&file).at(|| self.dir.at(path::OCI_LAYOUT));
            if synced.is_err() {
                (state.health, state.durable) = (Health::Suspect, None);
            }
            synced?;
        }
        Ok(())
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
        // Who makes a directory does not sync its name.
        if known.is_none_or(|known| named.iter().any(|blobs| !known.blobs.contains(blobs))) {
            if let Some(blobs) = self.dir.dir(path::BLOBS).or_absent()? {
                tree.disk.sync_dir(&blobs)?;
            }
            // `blobs`, `oci-layout`, the journal: an index.json must not outlive what it stands on.
            tree.disk.sync_dir(self.dir)?;
        }
        if known.is_none() {
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
                state.health = Health::Suspect;
                tracing::error!(cause = ?error.to_string(), repo = %self.repo, "a commit may not be durable");
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
