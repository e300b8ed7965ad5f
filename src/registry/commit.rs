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

use super::group::{Group, Health, State};
use super::manifests::Put;
use super::{Actor, Error, Inner, Registry, Result, locked};
use crate::layout::{Dir, Stamp, lock, path};
use crate::oci::{Change, Digest, RepoName, Tag};

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
    /// Manifests without a tag go, all of them, if index.json has the stamp.
    TakeOut(Vec<Digest>, Stamp),
    /// Collection forgets that it has seen a blob unreferenced.
    Promise(Digest),
}

impl Deed {
    /// How long its requester waits for the lock. Who holds gc.lock keeps others from it.
    fn patience(&self, lock_wait: Duration) -> Duration {
        match self {
            Deed::Unlink(..) => Duration::from_secs(2).min(lock_wait),
            Deed::Put(_)
            | Deed::Untag(_)
            | Deed::Remove(_)
            | Deed::TakeOut(..)
            | Deed::Promise(_) => lock_wait,
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

/// Nothing stands in the way, or what does.
pub(super) type Checked = std::result::Result<(), Refusal>;
/// What changed, or why nothing did.
pub(super) type Outcome = std::result::Result<Vec<Change>, Refusal>;

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

impl Registry {
    /// Proposes a change and waits until it is durable or refused.
    pub(super) async fn commit(&self, repo: &RepoName, deed: Deed, actor: &Actor) -> Outcome {
        let queue = self.inner.queue(repo);
        let settled = Arc::new(AtomicBool::new(false));
        let patience = deed.patience(self.inner.settings.lock_wait);
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
                queue.leave();
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

    /// Lets go of those who gave up: whoever holds the lock may hold it for ever.
    fn leave(&self) {
        locked(&self.waiting).members.retain(|member| !member.settled.load(Ordering::Acquire));
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

    /// Whether somebody waits.
    fn has_more(&self) -> bool {
        !locked(&self.waiting).members.is_empty()
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
                    // Whether other processes wait matters only if this one goes on.
                    let awaited = self.queue.has_more() && held.awaited();
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
        let found = self.tree.repository(repo)?;
        let dir = found.ok_or_else(|| Error::NameUnknown(repo.clone()))?;
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
        let begun = Group::begin(self, repo, dir).and_then(|mut group| {
            group.settle(members.iter().map(|member| &member.deed), &mut state)?;
            Ok(group)
        });
        let mut group = match begun {
            Ok(group) => group,
            Err(error) => return members.iter().map(|_| Err(error.clone().into())).collect(),
        };
        let applied: Vec<Outcome> =
            members.iter().map(|member| group.apply(&member.deed, &member.actor)).collect();
        match group.finish(&mut state) {
            Ok(()) => applied,
            Err(error) => {
                let failed = |outcome: Outcome| outcome.and(Err(Refusal::Error(error.clone())));
                applied.into_iter().map(failed).collect()
            }
        }
    }
}
