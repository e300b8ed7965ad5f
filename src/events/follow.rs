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
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use super::*;
    use crate::layout::{RealDisk, journal};
    use crate::oci::{Algorithm, Descriptor, Index};

    /// A repository that is written by hand.
    struct Repo {
        temp: tempfile::TempDir,
        dir: Dir,
        index: Index,
        number: usize,
    }

    impl Repo {
        fn new() -> Repo {
            let temp = tempfile::tempdir().unwrap();
            let dir = Dir::open_root(temp.path()).unwrap();
            Repo { temp, dir, index: Index::default(), number: 0 }
        }

        fn stamp(&self) -> Stamp {
            let bytes = fs::read(self.temp.path().join("index.json"));
            bytes.map_or_else(|_| Stamp::nothing(), |bytes| Stamp::of(&bytes))
        }

        fn fresh(&mut self) -> Descriptor {
            self.number += 1;
            let digest = Digest::of(Algorithm::Sha256, self.number.to_string().as_bytes());
            Descriptor::new("a/b", digest, 1)
        }

        /// The lines of a change come into the journal; `who` tells them apart later.
        fn announce(&self, who: &str, changed: &Index, changes: Vec<Change>) {
            let (base, stamp) = (self.stamp(), Stamp::of(&changed.to_bytes()));
            let record = |change| Record::now(change, Some(who.into()), None, base, stamp);
            let records: Vec<Record> = changes.into_iter().map(record).collect();
            journal::append(&RealDisk, &self.dir, &records).unwrap();
        }

        fn write(&mut self, index: Index) {
            fs::write(self.temp.path().join("index.json"), index.to_bytes()).unwrap();
            self.index = index;
        }

        /// A push as the server makes it.
        fn push(&mut self, tags: &[&str]) -> String {
            let (descriptor, mut index) = (self.fresh(), self.index.clone());
            let tags: Vec<Tag> = tags.iter().map(|tag| Tag::parse(tag).unwrap()).collect();
            let changes = index.put(&descriptor, &tags);
            let who = format!("us{}", self.number);
            self.announce(&who, &index, changes);
            self.write(index);
            who
        }

        /// A push that was killed before its rename.
        fn void(&mut self, tags: &[&str]) {
            let (descriptor, mut index) = (self.fresh(), self.index.clone());
            let tags: Vec<Tag> = tags.iter().map(|tag| Tag::parse(tag).unwrap()).collect();
            let changes = index.put(&descriptor, &tags);
            self.announce("void", &index, changes);
        }

        /// What another tool does.
        fn outside(&mut self, tags: &[&str]) {
            let (descriptor, mut index) = (self.fresh(), self.index.clone());
            let tags: Vec<Tag> = tags.iter().map(|tag| Tag::parse(tag).unwrap()).collect();
            index.put(&descriptor, &tags);
            self.write(index);
        }

        fn look(&self, seen: &mut Seen) -> Vec<Event> {
            let name = RepoName::parse("a").unwrap();
            let mut events = Vec::new();
            loop {
                let found = look(&name, Some(&self.dir), seen).unwrap();
                events.extend(found.events);
                // What is kept is what is read again.
                let kept = serde_json::to_vec(&found.seen).unwrap();
                *seen = serde_json::from_slice(&kept).unwrap();
                assert_eq!(*seen, found.seen);
                if !found.more {
                    return events;
                }
            }
        }

        fn seen(&self) -> Seen {
            Seen::before(&self.dir, SystemTime::now()).unwrap()
        }
    }

    fn told(events: &[Event]) -> String {
        let word = |event: &Event| {
            let tag = event.tag.as_ref().map_or("-", Tag::as_str);
            let by = match &event.by {
                By::Us { who, .. } => who.clone().unwrap_or_default(),
                By::Outside => "outside".to_owned(),
                By::Unknown => "unknown".to_owned(),
            };
            format!("{:?} {tag} {by}", event.what).to_lowercase()
        };
        events.iter().map(word).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn committed_lines_are_told_once_and_void_ones_never() {
        let mut repo = Repo::new();
        let mut seen = repo.seen();
        repo.push(&["t"]);
        assert_eq!(told(&repo.look(&mut seen)), "push - us1, tag t us1");
        assert_eq!(told(&repo.look(&mut seen)), "");
        repo.void(&["t"]);
        assert_eq!(told(&repo.look(&mut seen)), "", "nobody knows yet");
        journal::rotate(&RealDisk, &repo.dir).unwrap();
        repo.push(&[]);
        repo.void(&["v"]);
        repo.void(&["w"]);
        assert_eq!(told(&repo.look(&mut seen)), "push - us3");
        // Announced, then seen, then committed.
        let mut index = repo.index.clone();
        let changes = vec![index.untag(&Tag::parse("t").unwrap()).unwrap()];
        repo.announce("late", &index, changes);
        assert_eq!(told(&repo.look(&mut seen)), "");
        repo.write(index);
        assert_eq!(told(&repo.look(&mut seen)), "untag t late");
        assert_eq!(told(&repo.look(&mut seen)), "");
    }

    #[test]
    fn what_others_did_is_told_as_the_difference() {
        let mut repo = Repo::new();
        let mut seen = repo.seen();
        repo.push(&["t"]);
        repo.outside(&["t", "u"]);
        // Nothing but what it did shows that the first was committed: the manifest is still there.
        let first = repo.look(&mut seen);
        let wanted = "push - us1, tag t us1, push - outside, tag t outside, tag u outside";
        assert_eq!(told(&first), wanted);
        repo.void(&["x"]);
        repo.outside(&[]);
        repo.push(&["y"]);
        assert_eq!(told(&repo.look(&mut seen)), "push - us5, tag y us5, push - outside");
        // An older index.json is put back, then all is gone.
        let old = Index::parse(&fs::read(repo.temp.path().join("index.json")).unwrap()).unwrap();
        repo.push(&["z"]);
        assert_eq!(told(&repo.look(&mut seen)), "push - us6, tag z us6");
        repo.write(old);
        assert_eq!(told(&repo.look(&mut seen)), "untag z outside, delete - outside");
        let name = RepoName::parse("a").unwrap();
        let gone = look(&name, None, &seen).unwrap();
        assert!(gone.seen.is_empty());
        assert_eq!(gone.events.len(), 3 + 4, "{}", told(&gone.events));
    }

    #[test]
    fn a_repository_that_came_with_its_history_is_not_told_as_new_pushes() {
        let mut repo = Repo::new();
        repo.push(&["t"]);
        let later = SystemTime::now() + 2 * SLACK;
        let mut seen = Seen::nothing(&repo.dir, later).unwrap();
        assert_eq!(told(&repo.look(&mut seen)), "push - outside, tag t outside");
        let mut seen = Seen::nothing(&repo.dir, SystemTime::now()).unwrap();
        assert_eq!(told(&repo.look(&mut seen)), "push - us1, tag t us1");
        // The journal is another one now: what is newer than what was told last is news.
        fs::remove_file(repo.temp.path().join("_log.jsonl")).unwrap();
        repo.push(&["u"]);
        assert_eq!(told(&repo.look(&mut seen)), "push - us2, tag u us2");
    }

    #[test]
    fn many_lines_come_in_parts_also_of_one_commit() {
        let mut repo = Repo::new();
        let mut seen = repo.seen();
        let mut index = Index::default();
        let mut changes = Vec::new();
        for _ in 0..250 {
            let descriptor = repo.fresh();
            changes.extend(index.put(&descriptor, &[]));
        }
        repo.announce("us", &index, changes);
        assert!(repo.look(&mut seen).is_empty(), "not committed");
        repo.write(index);
        repo.push(&[]);
        let events = repo.look(&mut seen);
        assert_eq!(events.len(), 251);
        assert!(events.iter().all(|event| event.by != By::Outside));
        let ids: BTreeSet<&str> = events.iter().map(|event| event.id.as_str()).collect();
        assert_eq!(ids.len(), 251);
    }

    /// Any order of pushes, void lines, others' changes and looks. `STILLAGE_FOLLOW_SEED` replays one.
    #[test]
    fn whatever_the_order_nothing_void_is_told_and_the_end_is_known() {
        let seed = std::env::var("STILLAGE_FOLLOW_SEED").ok().and_then(|seed| seed.parse().ok());
        let first = seed.unwrap_or_else(|| u64::from(std::process::id()) << 20);
        let rounds = if seed.is_some() { 1 } else { 60 };
        for seed in first..first + rounds {
            let mut random = Xorshift(seed * 2 + 1);
            let mut repo = Repo::new();
            let mut seen = repo.seen();
            let (mut events, mut sure, mut last) = (Vec::new(), BTreeSet::new(), None);
            for step in 0..60 {
                let tag = format!("t{}", random.below(5));
                let tags = if random.below(4) == 0 { vec![] } else { vec![tag.as_str()] };
                match random.below(8) {
                    0..3 => {
                        sure.extend(last.take());
                        last = Some(repo.push(&tags));
                    }
                    3 => repo.void(&[&format!("v{step}")]),
                    // If nobody looked, what came right before it may not be known.
                    4 => {
                        last = None;
                        repo.outside(&tags);
                    }
                    5 => journal::rotate(&RealDisk, &repo.dir).unwrap_or_default(),
                    _ => {
                        sure.extend(last.take());
                        events.extend(repo.look(&mut seen));
                    }
                }
            }
            sure.extend(last.take());
            // What is in doubt and young is waited for, unless something follows it.
            sure.insert(repo.push(&[]));
            events.extend(repo.look(&mut seen));
            let text = told(&events);
            assert!(!text.contains("void"), "seed {seed}: {text}");
            for who in sure {
                let lines = events.iter().filter(
                    |event| matches!(&event.by, By::Us { who: Some(by), .. } if *by == who),
                );
                let of = lines.filter(|event| event.what == What::Push).count();
                assert_eq!(of, 1, "seed {seed}: {who} in {text}");
            }
            let mut state = State::default();
            for event in &events {
                let of = Descriptor::new("a/b", event.digest.clone(), 1);
                state.apply(event.what, event.tag.as_ref(), &of);
            }
            assert_eq!(state, State::of(&repo.index), "seed {seed}: {text}");
        }
    }

    struct Xorshift(u64);

    impl Xorshift {
        fn below(&mut self, end: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 >> 20) % end
        }
    }
}
