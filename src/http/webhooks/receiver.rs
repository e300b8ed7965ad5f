//! One receiver: what it was told, and what it is told next.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::client::Client;
use super::envelope::Source;
use super::url::WebhookUrl;
use crate::events::{Event, Next, Pending, Seen, look};
use crate::layout::told::Told;
use crate::layout::{self, OrAbsent, Tree, Walk};
use crate::oci::RepoName;

/// So many events are in an envelope.
const MOST: usize = 100;

/// Of so many repositories it is remembered what could not be noted down.
const MOST_UNWRITTEN: usize = 100;

/// Pauses between attempts grow from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LAST_PAUSE: Duration = Duration::from_secs(60);

/// How long to wait before a repository is looked at again that could not be read.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// How long to wait for another server that tells the same receiver.
const OTHER: Duration = Duration::from_secs(5);

/// How often it is noted down that all was told, and how far before that moment it is certain.
const NOTE_EVERY: Duration = Duration::from_secs(10 * 60);
const CERTAIN: Duration = Duration::from_secs(5 * 60);

/// `_receiver.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Known {
    /// Which receiver it is, without password and query: for people.
    url: String,
    /// What had changed before was told, or was there before there was a receiver.
    #[serde(with = "time::serde::rfc3339")]
    since: OffsetDateTime,
    /// It is known of every repository what was there before.
    complete: bool,
}

/// A receiver, in its thread.
pub(super) struct Receiver {
    tree: Tree,
    url: WebhookUrl,
    source: Source,
    pending: Arc<Pending>,
    told: Told,
    known: Known,
    noted: Instant,
    client: Client,
    runtime: tokio::runtime::Runtime,
    /// Repositories that cannot be read, or of which nothing can be noted down; said once.
    failing: BTreeSet<RepoName>,
    /// What could not be noted down, so that it is not told again and again on a full disk.
    unwritten: BTreeMap<RepoName, Seen>,
}

impl Receiver {
    /// Begins to tell it.
    pub(super) fn start(tree: &Tree, url: &WebhookUrl, source: Source) -> io::Result<Arc<Pending>> {
        let now = SystemTime::now();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let pending = Arc::new(Pending::new(now));
        let (tree, url, shared) = (tree.clone(), url.clone(), Arc::clone(&pending));
        let tell = move || {
            let (told, known) = opened(&tree, &url, now);
            shared.add_names([], known.since.into());
            let mut receiver = Receiver {
                tree,
                url,
                source,
                pending: shared,
                told,
                known,
                noted: Instant::now(),
                client: Client::default(),
                runtime,
                failing: BTreeSet::new(),
                unwritten: BTreeMap::new(),
            };
            receiver.tell();
        };
        std::thread::Builder::new().name("webhook".to_owned()).spawn(tell)?;
        Ok(pending)
    }

    /// Tells, for ever.
    fn tell(&mut self) {
        while !self.known.complete {
            if let Err(error) = self.begin() {
                tracing::error!(%error, url = %self.url, "no events are told yet");
                std::thread::sleep(LOOK_AGAIN);
            }
        }
        loop {
            let wait = NOTE_EVERY.saturating_sub(self.noted.elapsed());
            match self.pending.next(wait) {
                Next::Repository(name, since) => self.repository(&name, since),
                Next::All(since) => match self.names() {
                    Ok(names) => self.pending.add_names(names, since),
                    Err(error) => {
                        tracing::error!(%error, url = %self.url, "no events are told at present");
                        std::thread::sleep(LOOK_AGAIN);
                        self.pending.add_names([], since);
                        self.pending.add_all();
                    }
                },
                Next::Nothing if wait.is_zero() => self.note(),
                Next::Nothing => {}
            }
        }
    }

    /// Notes what is there before the first event.
    fn begin(&mut self) -> layout::Result<()> {
        self.keep_known()?;
        for found in Walk::after(&self.tree.root, None)? {
            let noted = found.and_then(|(name, dir)| {
                if self.told.of(&name)?.is_none() {
                    let seen = Seen::before(&dir, self.known.since.into())?;
                    self.keep(&name, &seen)?;
                }
                Ok(())
            });
            if let Err(error) = noted {
                // Once it can be read, all that is in it is news.
                tracing::warn!(%error, url = %self.url, "no events are told of it");
            }
        }
        self.known.complete = true;
        self.keep_known()
    }

    /// All that are there, and all that were.
    fn names(&self) -> layout::Result<Vec<RepoName>> {
        let mut names = self.told.names()?;
        for found in Walk::after(&self.tree.root, None)? {
            match found {
                Ok((name, _)) => names.push(name),
                Err(error) => tracing::warn!(%error, "no events are told of it"),
            }
        }
        Ok(names)
    }

    /// All was told, some time ago.
    fn note(&mut self) {
        let certain = SystemTime::now().checked_sub(CERTAIN).unwrap_or(SystemTime::UNIX_EPOCH);
        self.known.since = self.known.since.max(certain.into());
        self.noted = Instant::now();
        if let Err(error) = self.keep_known() {
            tracing::warn!(%error, url = %self.url, "cannot be noted down");
        }
    }

    /// Tells what happened in a repository, and notes down that it was told.
    fn repository(&mut self, name: &RepoName, since: SystemTime) {
        match self.follow(name, since) {
            Ok(unsettled) => {
                self.failing.remove(name);
                if unsettled {
                    self.pending.add_again(name, since);
                }
            }
            Err(error) => {
                if self.failing.insert(name.clone()) {
                    tracing::error!(%error, repo = %name, url = %self.url, "no events are told of it");
                }
                self.pending.add_later(name, since, LOOK_AGAIN);
            }
        }
    }

    fn follow(&mut self, name: &RepoName, since: SystemTime) -> layout::Result<bool> {
        loop {
            let dir = self.tree.root.dir(name.as_str()).or_absent()?;
            let seen = match (self.seen(name)?, &dir) {
                (Some(seen), _) => seen,
                (None, Some(dir)) => Seen::nothing(dir, since)?,
                (None, None) => return Ok(false),
            };
            let found = look(name, dir.as_ref(), &seen)?;
            for events in found.events.chunks(MOST) {
                self.post(events);
            }
            if dir.is_none() && found.seen.is_empty() {
                self.told.forget(name)?;
                self.unwritten.remove(name);
            } else if found.seen != seen || self.unwritten.contains_key(name) {
                self.keep_or_remember(name, found.seen)?;
            }
            if !found.more {
                return Ok(found.unsettled);
            }
        }
    }

    /// Posts until the receiver has taken it.
    fn post(&mut self, events: &[Event]) {
        let body = self.source.envelope(events);
        let (mut pause, mut failed) = (FIRST_PAUSE, None);
        loop {
            let posted = self.runtime.block_on(self.client.post(&self.url, body.clone()));
            let Err(error) = posted else { break };
            if failed.is_none() {
                let cause = error.to_string();
                tracing::warn!(?cause, url = %self.url, "a receiver takes no events: they wait for it");
                failed = Some(Instant::now());
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LAST_PAUSE);
        }
        if let Some(failed) = failed {
            let after = failed.elapsed().as_secs();
            tracing::info!(after, url = %self.url, "a receiver takes events again");
        }
    }

    fn keep_or_remember(&mut self, name: &RepoName, seen: Seen) -> layout::Result<()> {
        let kept = self.keep(name, &seen);
        if kept.is_ok() {
            self.unwritten.remove(name);
        } else if self.unwritten.len() < MOST_UNWRITTEN {
            self.unwritten.insert(name.clone(), seen);
        }
        kept
    }

    /// How far it was told of a repository. What cannot be made out counts as nothing.
    fn seen(&self, name: &RepoName) -> layout::Result<Option<Seen>> {
        if let Some(seen) = self.unwritten.get(name) {
            return Ok(Some(seen.clone()));
        }
        let Some(bytes) = self.told.of(name)? else { return Ok(None) };
        let read = serde_json::from_slice(&bytes).inspect_err(|error| {
            tracing::warn!(%error, repo = %name, "what a receiver was told is not known any more");
        });
        Ok(read.ok())
    }

    fn keep(&self, name: &RepoName, seen: &Seen) -> layout::Result<()> {
        self.told.keep(name, &serde_json::to_vec(seen).unwrap_or_default())
    }

    fn keep_known(&self) -> layout::Result<()> {
        self.told.keep_receiver(&spelled(&self.known))
    }
}

fn spelled(known: &Known) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(known).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// What is kept of a receiver, once nobody else tells it.
fn opened(tree: &Tree, url: &WebhookUrl, now: SystemTime) -> (Told, Known) {
    let mut said = false;
    loop {
        let why = match open(tree, url, now) {
            Ok(Some(opened)) => return opened,
            Ok(None) => "another server tells it".to_owned(),
            Err(error) => error.to_string(),
        };
        if !std::mem::replace(&mut said, true) {
            tracing::warn!(?why, %url, "no events are told yet");
        }
        std::thread::sleep(OTHER);
    }
}

fn open(tree: &Tree, url: &WebhookUrl, now: SystemTime) -> layout::Result<Option<(Told, Known)>> {
    let Some(told) = Told::open(tree, &url.id())? else { return Ok(None) };
    let known = told.receiver()?.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let known =
        known.unwrap_or_else(|| Known { url: url.to_string(), since: now.into(), complete: false });
    Ok(Some((told, known)))
}
