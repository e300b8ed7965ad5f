//! Views follow each commit, and are renewed where something else changed an index.json.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::Notify;

use super::indexes::Meanwhile;
use super::{Error, Inner, Registry, Result, locked};
use crate::graph::views::{Commit, Place};
use crate::graph::{Delta, Knowledge};
use crate::layout::rights::Way;
use crate::layout::{self, Changed, Dir, IndexFile, Inode, Walk, lock, path, views};
use crate::oci::RepoName;

/// Whether repositories have views.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Views {
    /// All have.
    #[default]
    Make,
    /// Those keep theirs that have some: a command does not know what the server does.
    Keep,
    /// None has: what is there goes, for nothing would keep it true.
    None,
}

/// Repositories whose index.json was read anew, and whose views nobody has looked at since.
#[derive(Debug, Default)]
pub(super) struct Opened {
    names: Mutex<BTreeSet<RepoName>>,
    /// Those whose views were found to be what they say: they are believed from then on.
    sound: Mutex<HashMap<RepoName, Inode>>,
    /// Whether a repository was open to everybody when it was asked for last.
    open: Mutex<HashMap<RepoName, bool>>,
    /// Those in the middle of something, which are looked at again.
    later: Mutex<BTreeSet<RepoName>>,
    /// All are to be looked at.
    all: AtomicBool,
    /// Much memory was taken for views since this was asked last.
    much: AtomicBool,
    bell: Notify,
}

/// So long what changed is left alone before a server renews views: whoever removes or copies a repository
/// is in the middle of it at first, and nobody tells when it is done. `rm -rf` would find a directory that
/// is not empty, and `cp -a` a directory that it is about to make. A repository that is not known yet has
/// to have been left alone for as long.
const REST: Duration = Duration::from_secs(1);

/// So long after its index.json came a repository that is not known yet may lack blobs: then they do not
/// come any more, and what is there is shown.
const INCOMING: Duration = Duration::from_secs(10 * 60);

/// How long a repository is left that is in the middle of something.
const AGAIN: Duration = Duration::from_secs(1);

/// So long a repository's lock is held to take views away: pushes wait meanwhile.
const TURN: Duration = Duration::from_millis(50);

/// To make, compare or remove so many views leaves much memory free, in small pieces between what is kept:
/// the allocator does not give it back to the kernel by itself.
const MANY: usize = 10_000;

/// Of more it is forgotten that they wait, until somebody reads them again, or that their views are
/// sound, until they were looked at again.
const MOST: usize = 100_000;

impl Opened {
    pub(super) fn add(&self, name: &RepoName) {
        let mut names = locked(&self.names);
        if names.len() < MOST && names.insert(name.clone()) {
            self.bell.notify_one();
        }
    }

    pub(super) fn add_all(&self) {
        self.all.store(true, Ordering::Release);
        self.bell.notify_one();
    }

    /// So many views are made, compared or removed: if that is much, the memory is to be given back after it.
    fn takes(&self, views: usize) {
        if views >= MANY {
            self.much.store(true, Ordering::Release);
            self.bell.notify_one();
        }
    }

    /// Whether much memory was taken since this was asked last.
    pub(super) fn took_much(&self) -> bool {
        self.much.swap(false, Ordering::AcqRel)
    }

    /// Waits until there is something to look at.
    async fn rung(&self) {
        let bell = self.bell.notified();
        if locked(&self.later).is_empty() {
            bell.await;
        } else {
            let _ = tokio::time::timeout(AGAIN, bell).await;
            let later = std::mem::take(&mut *locked(&self.later));
            locked(&self.names).extend(later);
        }
    }

    fn add_later(&self, name: RepoName) {
        let mut later = locked(&self.later);
        if later.len() < MOST {
            later.insert(name);
        }
    }

    /// Somebody asked for a repository, and looked at the rights on the way to it.
    pub(super) fn asked_for(&self, name: &RepoName, way: &Way) {
        if !way.whole {
            return;
        }
        let (is_open, mut open) = (way.is_open(), locked(&self.open));
        let was = open.get(name).copied();
        if was == Some(is_open) {
            return;
        }
        if was.is_none() && open.len() >= MOST {
            open.clear();
        }
        open.insert(name.clone(), is_open);
        drop(open);
        if was.is_some() || !is_open {
            self.add(name);
        }
    }

    fn take(&self) -> Option<RepoName> {
        locked(&self.names).pop_first()
    }

    fn are_sound(&self, name: &RepoName, dir: Inode) -> bool {
        locked(&self.sound).get(name) == Some(&dir)
    }

    fn found_sound(&self, name: &RepoName, dir: Inode) {
        let mut sound = locked(&self.sound);
        if sound.len() >= MOST {
            sound.clear();
        }
        sound.insert(name.clone(), dir);
    }
}

/// What became of a look at views.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Looked {
    /// They are as they have to be.
    Done,
    /// Somebody is in the middle of something.
    Later,
}

impl Registry {
    /// What may have changed without a request is looked at by [`keep_views`](Self::keep_views).
    pub fn may_have_changed(&self, changed: &Changed) {
        if self.inner.settings.views != Views::Make {
            return;
        }
        if changed.all {
            self.inner.opened.add_all();
        }
        let names = changed.names.iter().chain(&changed.rights);
        names.for_each(|name| self.inner.opened.add(name));
    }

    /// Renews views again and again, of whatever is opened and was changed by others, or takes them away
    /// where there are to be none: run it beside a server. It never ends. When very many were made,
    /// compared or removed, by whomever, `give_back` is called, on a thread that may wait: much of the heap is
    /// free then.
    pub async fn keep_views(&self, give_back: fn()) {
        self.inner.opened.add_all();
        loop {
            self.inner.opened.rung().await;
            tokio::time::sleep(REST).await;
            self.look_at_views(REST).await;
            if self.inner.opened.took_much() {
                let _ = tokio::task::spawn_blocking(give_back).await;
            }
        }
    }

    /// Looks at the views of the repositories whose index.json was read anew since this was called last,
    /// and renews those that are not what index.json asks for. What fails is tried when such a
    /// repository is read anew the next time.
    pub async fn renew_views(&self) {
        self.look_at_views(Duration::ZERO).await;
    }

    /// The same, but a repository that is not known yet and changed within `rest` is left for later.
    async fn look_at_views(&self, rest: Duration) {
        if self.inner.opened.all.swap(false, Ordering::AcqRel)
            && let Err(error) = self.blocking(Inner::open_all).await
        {
            tracing::warn!(%error, "not all views were looked at");
        }
        while let Some(name) = self.inner.opened.take() {
            let looked = name.clone();
            match self.blocking(move |inner| inner.look_at_views(&looked, rest)).await {
                Ok(Looked::Done) => {}
                Ok(Looked::Later) => self.inner.opened.add_later(name),
                Err(error) => tracing::warn!(%error, repo = %name, "views were not renewed"),
            }
        }
    }
}

impl Inner {
    /// All repositories are to be looked at whose views do not say that they are those of index.json:
    /// after the machine's start, all. Where there are to be none, nothing says any more that they are.
    fn open_all(&self) -> Result<()> {
        for found in Walk::after(&self.tree.root, None)? {
            let looked = found.map_err(Error::from).and_then(|(name, dir)| {
                if self.needs_a_look(&name, &dir)? {
                    self.opened.add(&name);
                }
                Ok(())
            });
            if let Err(error) = looked {
                tracing::warn!(%error, "views are not looked at");
            }
        }
        Ok(())
    }

    fn needs_a_look(&self, name: &RepoName, dir: &Dir) -> Result<bool> {
        let place = self.place(name, dir)?;
        if self.settings.views != Views::None && place.open {
            return Ok(!matches!(place.are_current(), Ok(true)));
        }
        let there = views::are_there(dir)?;
        if there && let Some(_held) = lock::exclusive_within(dir, path::LOCK, TURN)? {
            views::disown(&self.tree, dir)?;
        }
        Ok(there)
    }

    fn place<'a>(&self, name: &'a RepoName, dir: &'a Dir) -> Result<Place<'a>> {
        Ok(Place::on(&self.rights.way(&self.tree, name, false)?, name, dir)?)
    }

    /// After a commit, under the repository's lock. The commit stands, whatever becomes of its views:
    /// they are renewed at the next occasion. `before` is what it changed.
    pub(super) fn follow(
        &self,
        (name, dir): (&RepoName, &Dir),
        before: Option<&IndexFile>,
        commit: &Commit<'_>,
    ) {
        if let Err(error) = self.try_follow((name, dir), before, commit) {
            tracing::warn!(%error, repo = %name, "views are not up to date: a web server may serve old ones");
        }
        self.forget_too_much();
    }

    fn try_follow(
        &self,
        (name, dir): (&RepoName, &Dir),
        before: Option<&IndexFile>,
        commit: &Commit<'_>,
    ) -> Result<()> {
        let place = self.place(name, dir)?;
        let makes = self.settings.views == Views::Make || views::are_there(dir)?;
        let shown = makes && self.settings.views != Views::None && place.shows(commit.now);
        let knowledge = if shown && !commit.is_simple() {
            Some(self.knowledge(name))
        } else {
            locked(&self.knowledge).get(name).map(Arc::clone)
        };
        let learnt = knowledge.as_ref().and_then(|known| self.learn(known, &place, before, commit));
        if shown {
            self.show(&place, commit, learnt)?;
        } else if views::are_there(dir)? {
            // Nobody waits for their removal.
            views::disown(&self.tree, dir)?;
            self.opened.add(name);
        }
        Ok(())
    }

    fn show(
        &self,
        place: &Place<'_>,
        commit: &Commit<'_>,
        learnt: Option<(MutexGuard<'_, Knowledge>, Delta)>,
    ) -> Result<()> {
        let done = match learnt {
            Some((known, delta)) => place.follow_known(&self.tree, commit, &known, &delta),
            None => place.follow(&self.tree, commit),
        };
        if done? { Ok(()) } else { self.renew(place, commit.now) }
    }

    /// What is known of the manifests follows a commit if it is up to date: then nobody has to go over
    /// all of them. It is brought up to date first where the commit's changes do not say what changes in
    /// the views; others are not waited for.
    fn learn<'k>(
        &self,
        known: &'k Mutex<Knowledge>,
        place: &Place<'_>,
        before: Option<&IndexFile>,
        commit: &Commit<'_>,
    ) -> Option<(MutexGuard<'k, Knowledge>, Delta)> {
        let mut known = match known.try_lock() {
            Ok(known) => known,
            Err(_) if commit.is_simple() => return None,
            Err(_) => locked(known),
        };
        let mut learn = || {
            if !commit.is_simple()
                && let Some(before) = before
            {
                known.refresh(&self.tree, place.dir, before)?;
            }
            if known.stamp() != Some(commit.before) {
                return Ok(None);
            }
            known.follow(place.dir, commit)
        };
        match learn() {
            Ok(delta) => delta.map(|delta| (known, delta)),
            Err(error) => {
                tracing::debug!(%error, repo = %place.name, "manifests are read anew");
                None
            }
        }
    }

    fn renew(&self, place: &Place<'_>, index: &IndexFile) -> Result<()> {
        let renewed = |known: &_| place.renew(&self.tree, index, known);
        let renewed = self.with_knowledge(place.name, place.dir, index, renewed);
        self.opened.takes(index.index.len());
        Ok(renewed??)
    }

    /// Renews views that are not what index.json asks for. Nobody is kept waiting for it unless there
    /// is something to do.
    fn look_at_views(&self, name: &RepoName, rest: Duration) -> Result<Looked> {
        if self.settings.views == Views::Keep {
            return Ok(Looked::Done);
        }
        let Some(dir) = self.tree.repository(name)? else { return Ok(Looked::Done) };
        let place = self.place(name, &dir)?;
        let inode = dir.inode()?;
        let known = self.opened.are_sound(name, inode);
        if self.settings.views == Views::None || !place.open {
            return self.take_away(&place, known, rest);
        }
        let Some(index) = self.index(name, &dir, Meanwhile::LastGood)? else {
            return Ok(Looked::Done);
        };
        if !place.shows(&index) {
            return self.take_away(&place, known, rest);
        }
        let of_this = place.has_views_of(&index)?;
        if of_this && known {
            return Ok(Looked::Done);
        }
        // Nothing is made here by then, not even a lock.
        let sparse = self.settings.allow_sparse;
        if !known && (is_restless(&dir, rest)? || !sparse && is_incoming(&place, &index)?) {
            return Ok(Looked::Later);
        }
        self.opened.takes(index.index.len());
        let different = |known: &_| place.difference(&index, known);
        if of_this && self.with_knowledge(name, &dir, &index, different)??.is_empty() {
            self.opened.found_sound(name, inode);
            return Ok(Looked::Done);
        }
        let Some(_held) = lock::exclusive_within(&dir, path::LOCK, self.settings.lock_wait)? else {
            return Ok(Looked::Later);
        };
        let Some(index) = self.index(name, &dir, Meanwhile::Wait)? else {
            return Ok(Looked::Done);
        };
        let place = self.place(name, &dir)?;
        if !place.shows(&index) {
            return Ok(Looked::Later);
        }
        self.renew(&place, &index)?;
        self.opened.found_sound(name, inode);
        Ok(Looked::Done)
    }

    /// Takes all views of a repository away, in turns: there may be many, and pushes wait for the lock.
    fn take_away(&self, place: &Place<'_>, known: bool, rest: Duration) -> Result<Looked> {
        let (name, dir) = (place.name, place.dir);
        if !views::are_there(dir)? {
            return Ok(Looked::Done);
        }
        if !known && is_restless(dir, rest)? {
            return Ok(Looked::Later);
        }
        let mut removal = None;
        loop {
            let held = lock::exclusive_within(dir, path::LOCK, self.settings.lock_wait)?;
            let Some(held) = held else { return Ok(Looked::Later) };
            let disowned = views::disown(&self.tree, dir)?;
            let removal = match &mut removal {
                None => removal.insert(views::Removal::of(dir)?),
                // Somebody may have them again.
                Some(_) if disowned => return Ok(Looked::Later),
                Some(removal) => removal,
            };
            self.opened.takes(removal.left());
            if removal.go_on(&self.tree, dir, Some(Instant::now() + TURN))? {
                tracing::debug!(repo = %name, "views were taken away");
                return Ok(Looked::Done);
            }
            held.release();
            std::thread::sleep(lock::LEAVE_FREE);
        }
    }
}

/// Whether names came or went so lately that somebody may be in the middle of it.
fn is_restless(dir: &Dir, rest: Duration) -> Result<bool> {
    // A change in the future is none: some clock is wrong.
    let age = SystemTime::now().duration_since(views::changed(dir)?);
    Ok(!rest.is_zero() && age.is_ok_and(|age| age < rest))
}

/// Whether blobs may still be on their way here.
fn is_incoming(place: &Place<'_>, index: &IndexFile) -> Result<bool> {
    let Some(stat) = place.dir.stat_name(path::INDEX)? else { return Ok(false) };
    let age = SystemTime::now().duration_since(layout::changed(&stat));
    Ok(age.is_ok_and(|age| age < INCOMING) && !place.is_whole(&index.index)?)
}
