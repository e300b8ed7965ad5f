//! One look at a repository: what was committed since the last one.
//!
//! A group of the journal's lines is committed if index.json has its stamp, or if a later group was
//! made from it. One that the next was not made from, nor from the same, is in doubt: somebody else
//! wrote index.json in between, upon it or instead of it. Then what it did decides: if that is still
//! so, it was committed. Whatever index.json is beyond what was told then, others did.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{By, Event, Manifest, State};
use crate::layout::groups::{Begin, Group, Mark, Since};
use crate::layout::journal::Record;
use crate::layout::{Dir, Error, IndexFile, Result, Stamp};
use crate::oci::{Change, Digest, RepoName, Tag, What};

/// A line that is younger may belong to a commit that is just being made.
const SETTLES: Duration = Duration::from_secs(5);

/// How long the kernel and a busy machine may take to tell of a repository: lines that were older when
/// it came do not belong to it, they came with it from elsewhere.
const SLACK: Duration = Duration::from_secs(10);

/// So often a look begins anew because something changed meanwhile.
const TRIES: usize = 10;

/// What somebody has seen of a repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The last line of the journal that counted; none if that is the very beginning.
    mark: Option<Mark>,
    /// The index.json up to which all was told.
    stamp: Stamp,
    /// Somebody else changed index.json: how, is to be found out once the journal was read.
    broken: bool,
    /// What was there then.
    state: State,
}

/// What a look has found.
#[derive(Debug)]
pub struct Look {
    /// What happened, in its order.
    pub events: Vec<Event>,
    /// What to know for the next look, once these have been told.
    pub seen: Seen,
    /// There is more: look again, once these have been told.
    pub more: bool,
    /// Something was just being written: look again in a moment.
    pub unsettled: bool,
}

impl Seen {
    /// Of a repository that is met for the first time, while everything else had been looked at by
    /// `since`: nothing. Lines of its journal that are older came with it from elsewhere.
    pub fn nothing(repo: &Dir, since: SystemTime) -> Result<Seen> {
        let since = since.checked_sub(SLACK).unwrap_or(SystemTime::UNIX_EPOCH);
        let Begin { mark, .. } = or_closed(Begin::at(repo, since))?.unwrap_or_default();
        let (stamp, state) = (Stamp::nothing(), State::default());
        Ok(Seen { mark, stamp, broken: true, state })
    }

    /// All that a repository has, but for what its journal has since a time.
    pub fn before(repo: &Dir, since: SystemTime) -> Result<Seen> {
        let now = IndexFile::read(repo)?;
        let begin = or_closed(Begin::at(repo, since))?.unwrap_or_default();
        let state = now.as_ref().map(|now| State::of(&now.index)).unwrap_or_default();
        let stamp = now.map_or_else(Stamp::nothing, |now| now.stamp);
        Ok(Seen { mark: begin.mark, stamp: begin.base.unwrap_or(stamp), broken: false, state })
    }

    /// Whether nothing of the repository is left to tell, should it be gone.
    pub fn is_empty(&self) -> bool {
        self.state.is_empty()
    }
}

/// Looks at a repository, or at where one was. Nothing is changed on the disk.
///
/// # Errors
/// Index.json or the journal cannot be read. Nothing is told then, and nothing lost.
pub fn look(name: &RepoName, repo: Option<&Dir>, seen: &Seen) -> Result<Look> {
    for _ in 0..TRIES {
        let before = stamp_of(repo)?;
        let (since, closed) = match repo.map(|repo| Since::read(repo, seen.mark.as_ref())) {
            None => (Since::default(), false),
            Some(Ok(since)) => (since, false),
            Some(Err(error)) if is_closed(&error) => (Since::default(), true),
            Some(Err(error)) => return Err(error),
        };
        if stamp_of(repo)? != before {
            continue;
        }
        let now = before.unwrap_or_else(Stamp::nothing);
        let there = There { repo, now, closed };
        let Some(look) = there.look(name, seen, &since)? else { continue };
        return Ok(look);
    }
    Ok(Look { events: Vec::new(), seen: seen.clone(), more: false, unsettled: true })
}

/// Which index.json stands there.
fn stamp_of(repo: Option<&Dir>) -> Result<Option<Stamp>> {
    repo.map_or(Ok(None), IndexFile::stamp_now)
}

/// A journal that is not for whoever looks, or that is no journal.
fn is_closed(error: &Error) -> bool {
    matches!(error, Error::Damaged { .. })
        || matches!(error.errno(), Some(rustix::io::Errno::ACCESS | rustix::io::Errno::LOOP))
}

fn or_closed<T>(read: Result<T>) -> Result<Option<T>> {
    match read {
        Err(error) if is_closed(&error) => Ok(None),
        read => read.map(Some),
    }
}

/// A repository as it is found.
struct There<'a> {
    repo: Option<&'a Dir>,
    now: Stamp,
    /// The journal cannot be read.
    closed: bool,
}

/// What became of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Committed,
    Void,
    /// Nobody knows yet.
    Open,
    /// Others wrote index.json since.
    Doubtful,
}

impl There<'_> {
    /// `None` if index.json changed meanwhile.
    fn look(&self, name: &RepoName, seen: &Seen, since: &Since) -> Result<Option<Look>> {
        let mut seen = seen.clone();
        seen.broken |= since.lost;
        let mut look = Look { events: Vec::new(), seen, more: false, unsettled: false };
        let (mut current, mut open) = (None, false);
        for (at, group) in since.groups.iter().enumerate() {
            let later = &since.groups[at + 1..];
            let next = later.first().map(|next| next.base).or(since.next);
            let committed = match fate(group, next, self.now) {
                Fate::Committed => true,
                Fate::Void => false,
                Fate::Open => {
                    open = true;
                    break;
                }
                Fate::Doubtful => {
                    if current.is_none() {
                        current = Some(match self.state()? {
                            Found::Is(state) => state,
                            Found::Changed => return Ok(None),
                            Found::BeingWritten => {
                                look.unsettled = true;
                                return Ok(Some(look));
                            }
                        });
                    }
                    let holds = current.as_ref().is_some_and(|now| holds(group, later, now));
                    if !holds && next.is_none() && is_young(group) {
                        look.unsettled = true;
                        return Ok(Some(look));
                    }
                    holds
                }
            };
            look.take(name, group, committed);
        }
        let cut = since.groups.last().is_some_and(|group| group.cut);
        if !open && (cut || since.next.is_some()) {
            look.more = true;
            return Ok(Some(look));
        }
        if look.seen.broken || look.seen.stamp != self.now {
            let state = match current.map_or_else(|| self.state(), |state| Ok(Found::Is(state)))? {
                Found::Is(state) => state,
                Found::Changed => return Ok(None),
                Found::BeingWritten => {
                    look.unsettled = true;
                    return Ok(Some(look));
                }
            };
            look.outside(name, self, state);
        }
        Ok(Some(look))
    }

    /// What index.json says.
    fn state(&self) -> Result<Found> {
        let Some(repo) = self.repo else { return Ok(Found::Is(State::default())) };
        match IndexFile::read(repo) {
            Ok(None) if self.now == Stamp::nothing() => Ok(Found::Is(State::default())),
            Ok(Some(file)) if file.stamp == self.now => Ok(Found::Is(State::of(&file.index))),
            Ok(_) => Ok(Found::Changed),
            Err(error) if IndexFile::being_written(repo, &error) => Ok(Found::BeingWritten),
            Err(error) => Err(error),
        }
    }
}

/// What index.json says, if it is still the one that was looked at.
enum Found {
    Is(State),
    Changed,
    BeingWritten,
}

fn fate(group: &Group, next: Option<Stamp>, now: Stamp) -> Fate {
    // The last group is followed by index.json itself.
    match next.unwrap_or(now) {
        to if to == group.stamp => Fate::Committed,
        to if to == group.base && next.is_none() => Fate::Open,
        to if to == group.base => Fate::Void,
        _ => Fate::Doubtful,
    }
}

/// Whether anything that a group did is still so, or was when later groups came.
fn holds(group: &Group, later: &[Group], now: &State) -> bool {
    group.lines.iter().any(|(record, _)| {
        let Some(of) = named(record) else { return false };
        let same = |other: &&Record| match &record.tag {
            Some(_) => other.tag == record.tag,
            None => other.tag.is_none() && named(other) == Some(of),
        };
        let mut after = later.iter().flat_map(|group| group.lines.iter().map(|(record, _)| record));
        if let Some(after) = after.find(same) {
            let met = after.before.as_ref().map(|before| &before.digest);
            return met == record.after.as_ref().map(|after| &after.digest);
        }
        let tagged = tag(record).and_then(|tag| now.tagged(&tag).cloned());
        match record.what {
            What::Push => now.has(of),
            What::Tag => tagged.as_ref() == Some(of),
            What::Untag => tagged.as_ref() != Some(of),
            What::Delete => !now.has(of),
        }
    })
}

/// The manifest that a record is about.
fn named(record: &Record) -> Option<&Digest> {
    record.after.as_ref().or(record.before.as_ref()).map(|of| &of.digest)
}

fn tag(record: &Record) -> Option<Tag> {
    record.tag.as_deref().and_then(|tag| Tag::parse(tag).ok())
}

fn is_young(group: &Group) -> bool {
    let last = group.lines.last().and_then(|(record, _)| record.when());
    last.is_some_and(|last| SystemTime::now().duration_since(last).is_ok_and(|age| age < SETTLES))
}

impl Look {
    /// Takes a group in: what it did is told, if it was committed.
    fn take(&mut self, name: &RepoName, group: &Group, committed: bool) {
        if committed {
            self.seen.broken |= group.base != self.seen.stamp;
            for (record, mark) in &group.lines {
                let tag = tag(record);
                let Some(of) = record.after.as_ref().or(record.before.as_ref()) else { continue };
                self.seen.state.apply(record.what, tag.as_ref(), of);
                let before = record.before.as_ref().map(|before| before.digest.clone());
                let event = Event {
                    id: id(&format!("{name}/{}", mark.spelled())),
                    time: record.time.clone(),
                    repository: name.clone(),
                    what: record.what,
                    tag,
                    digest: of.digest.clone(),
                    manifest: Manifest::from(of),
                    before: before.filter(|_| record.what == What::Tag),
                    by: By::Us { who: record.who.clone(), from: record.from },
                };
                self.events.push(event);
            }
            // The rest of a group that was cut has the same base still.
            self.seen.stamp = if group.cut { group.base } else { group.stamp };
        }
        if let Some((_, mark)) = group.lines.last() {
            self.seen.mark = Some(mark.clone());
        }
    }

    /// Whatever is so beyond what was told: somebody else did it.
    fn outside(&mut self, name: &RepoName, there: &There<'_>, state: State) {
        let from = self.seen.stamp;
        let time = OffsetDateTime::now_utc();
        let time = time.replace_nanosecond(time.nanosecond() / 1000 * 1000).unwrap_or(time);
        let time = time.format(&Rfc3339).unwrap_or_default();
        for Change { what, tag, before, after } in self.seen.state.difference(&state) {
            let Some(of) = after.as_ref().or(before.as_ref()) else { continue };
            let to = there.now;
            let tag_text = tag.as_ref().map_or("", Tag::as_str);
            let event = Event {
                id: id(&format!("{name}/{from}/{to}/{what:?}/{tag_text}/{}", of.digest)),
                time: time.clone(),
                repository: name.clone(),
                what,
                tag,
                digest: of.digest.clone(),
                manifest: Manifest::from(of),
                before: before.map(|before| before.digest).filter(|_| what == What::Tag),
                by: if there.closed { By::Unknown } else { By::Outside },
            };
            self.events.push(event);
        }
        (self.seen.stamp, self.seen.broken, self.seen.state) = (there.now, false, state);
    }
}

/// A name for what a text describes, of the form that people know from other registries.
fn id(text: &str) -> String {
    let hash = Digest::of(crate::oci::Algorithm::Sha256, text.as_bytes());
    let hex = hash.hex();
    let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..32]];
    parts.join("-")
}

#[cfg(test)]
#[path = "follow_tests.rs"]
mod tests;
