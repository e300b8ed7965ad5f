//! Looks at repositories that are written by hand: commits, void lines, what others do.

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
            let lines = events
                .iter()
                .filter(|event| matches!(&event.by, By::Us { who: Some(by), .. } if *by == who));
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
