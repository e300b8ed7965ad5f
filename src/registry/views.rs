//! Views follow each commit, and are renewed where something else changed an index.json.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;

use super::indexes::Meanwhile;
use super::{Inner, Registry, Result, locked};
use crate::graph::views::{Commit, Place};
use crate::graph::{Delta, Knowledge};
use crate::layout::readers::Readers;
use crate::layout::{Changed, IndexFile, Inode, Walk, lock, path, views};
use crate::oci::RepoName;

/// Whether repositories have views.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Views {
    /// All have.
    #[default]
    Make,
    /// Those keep theirs that have some: a command does not know what the server does.
    Keep,
    /// None has: what is there goes with the next change, for nothing would keep it true.
    None,
}

/// Repositories whose index.json was read anew, and whose views nobody has looked at since.
#[derive(Debug, Default)]
pub(super) struct Opened {
    names: Mutex<BTreeSet<RepoName>>,
    /// Those whose views were found to be what they say: they are believed from then on.
    sound: Mutex<HashMap<RepoName, Inode>>,
    /// All are to be looked at.
    all: AtomicBool,
    bell: Notify,
}

/// So long what changed is left alone before a server renews views: whoever removes or copies a repository
/// is in the middle of it at first, and nobody tells when it is done. `rm -rf` would find a directory that
/// is not empty.
const REST: Duration = Duration::from_secs(1);

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

    fn add_all(&self) {
        self.all.store(true, Ordering::Release);
        self.bell.notify_one();
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

impl Registry {
    /// What may have changed without a request is looked at by [`keep_views`](Self::keep_views).
    pub fn may_have_changed(&self, changed: &Changed) {
        if self.inner.settings.views != Views::Make {
            return;
        }
        if changed.all {
            self.inner.opened.add_all();
        }
        changed.names.iter().for_each(|name| self.inner.opened.add(name));
    }

    /// Renews views again and again, of whatever is opened and was changed by others: run it beside a
    /// server. It never ends.
    pub async fn keep_views(&self) {
        self.inner.opened.add_all();
        loop {
            self.inner.opened.bell.notified().await;
            tokio::time::sleep(REST).await;
            self.renew_views().await;
        }
    }

    /// Looks at the views of the repositories whose index.json was read anew since this was called last,
    /// and renews those that are not what index.json asks for. What fails is tried when such a
    /// repository is read anew the next time.
    pub async fn renew_views(&self) {
        if self.inner.opened.all.swap(false, Ordering::AcqRel)
            && let Err(error) = self.blocking(Inner::open_all).await
        {
            tracing::warn!(%error, "not all views were looked at");
        }
        while let Some(name) = self.inner.opened.take() {
            let looked = name.clone();
            let renewed = self.blocking(move |inner| inner.look_at_views(&looked)).await;
            if let Err(error) = renewed {
                tracing::warn!(%error, repo = %name, "views were not renewed");
            }
        }
    }
}

impl Inner {
    /// All repositories are to be looked at whose views do not say that they are those of index.json:
    /// after the machine's start, all.
    fn open_all(&self) -> Result<()> {
        for found in Walk::after(&self.tree.root, None)? {
            match found {
                Ok((name, dir)) => {
                    if !matches!((Place { name: &name, dir: &dir }).are_current(), Ok(true)) {
                        self.opened.add(&name);
                    }
                }
                Err(error) => tracing::warn!(%error, "views are not looked at"),
            }
        }
        Ok(())
    }

    /// After a commit, under the repository's lock. The commit stands, whatever becomes of its views:
    /// they are renewed at the next occasion. `before` is what it changed.
    pub(super) fn follow(
        &self,
        place: &Place<'_>,
        before: Option<&IndexFile>,
        commit: &Commit<'_>,
    ) {
        let none =
            self.settings.views != Views::Make && matches!(views::are_there(place.dir), Ok(false));
        let shown = !none && self.settings.views != Views::None;
        let knowledge = if shown && !commit.is_simple() {
            Some(self.knowledge(place.name))
        } else {
            locked(&self.knowledge).get(place.name).map(Arc::clone)
        };
        let learnt = knowledge.as_ref().and_then(|known| self.learn(known, place, before, commit));
        let followed = match (self.settings.views, learnt) {
            _ if none => Ok(()),
            (Views::None, _) => views::remove(&self.tree, place.dir).map_err(Into::into),
            (_, learnt) => self.show(place, commit, learnt),
        };
        self.forget_too_much();
        if let Err(error) = followed {
            tracing::warn!(%error, repo = %place.name, "views are not up to date: a web server may serve old ones");
        }
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
        Ok(self.with_knowledge(place.name, place.dir, index, renewed)??)
    }

    /// Renews views that are not what index.json asks for. Nobody is kept waiting for it unless there
    /// is something to do.
    fn look_at_views(&self, name: &RepoName) -> Result<()> {
        if self.settings.views != Views::Make {
            return Ok(());
        }
        let Some(dir) = self.tree.repository(name)? else { return Ok(()) };
        let place = Place { name, dir: &dir };
        let inode = dir.inode()?;
        let Some(index) = self.index(name, &dir, Meanwhile::LastGood)? else { return Ok(()) };
        if place.has_views_of(&index)? {
            let different = |known: &_| place.difference(&index, known);
            let open = index.readers == Readers::Everybody;
            if open && self.opened.are_sound(name, inode)
                || self.with_knowledge(name, &dir, &index, different)??.is_empty()
            {
                self.opened.found_sound(name, inode);
                return Ok(());
            }
        }
        let Some(_held) = lock::exclusive_within(&dir, path::LOCK, self.settings.lock_wait)? else {
            return Ok(());
        };
        let Some(index) = self.index(name, &dir, Meanwhile::Wait)? else { return Ok(()) };
        self.renew(&place, &index)?;
        self.opened.found_sound(name, inode);
        Ok(())
    }
}
