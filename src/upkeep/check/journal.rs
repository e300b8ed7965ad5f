//! The journal of one repository, and how index.json stands to it.

use std::collections::HashSet;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::finding::Findings;
use super::lines;
use super::probe;
use super::rule::Rule;
use crate::layout::journal::Record;
use crate::layout::{Dir, Stamp, path};
use crate::oci::{Tag, What};

/// Checks every line, and what they say of index.json, whose stamp is `now` if there is one.
pub(super) fn check(repo: &Dir, now: Option<Stamp>, findings: &mut Findings) {
    let mut history = History::new(now);
    let all_sound = read(repo, findings, |record| history.take(record));
    let at = repo.at(path::INDEX);
    match (now, history) {
        (None, History { followed: true, .. }) => {
            findings.add(
                Rule::IndexMissing,
                &at,
                "is missing: the journal says that there was one",
            );
        }
        // A line that cannot be read may be the one with the stamp.
        (Some(now), History { any: true, met: false, .. }) if all_sound => {
            let message =
                format!("no line of the journal has its stamp {now}: another tool wrote it");
            findings.add(Rule::JournalStampUnknown, &at, message);
        }
        (Some(now), History { met: true, left: true, .. }) => {
            let message =
                format!("is an older copy: the journal has changes after its stamp {now}");
            findings.add(Rule::JournalStampOlder, &at, message);
        }
        _ => {}
    }
}

/// Checks every line alone, where index.json cannot be compared.
pub(super) fn check_lines(repo: &Dir, findings: &mut Findings) {
    read(repo, findings, |_| {});
}

/// What the groups say, read in their order. All lines of a group say the same, so it does not
/// matter how often each is taken.
struct History {
    now: Stamp,
    /// There is a line at all.
    any: bool,
    /// index.json was at some time what it is now.
    met: bool,
    /// And it was something else afterwards: a later group was made from another one.
    left: bool,
    /// Stamps so far; only needed where there is no index.json.
    produced: Option<HashSet<Stamp>>,
    /// A group was made from what another had produced: that one was committed.
    followed: bool,
}

impl History {
    fn new(now: Option<Stamp>) -> History {
        History {
            now: now.unwrap_or_else(Stamp::nothing),
            any: false,
            met: false,
            left: false,
            produced: now.is_none().then(HashSet::new),
            followed: false,
        }
    }

    fn take(&mut self, record: &Record) {
        self.any = true;
        if record.stamp == self.now || record.base == self.now {
            self.met = true;
            self.left = false;
        } else if self.met {
            self.left = true;
        }
        if let Some(produced) = &mut self.produced {
            self.followed |= record.base != record.stamp && produced.contains(&record.base);
            produced.insert(record.stamp);
        }
    }
}

/// Gives every sound line, older parts first; whether all are sound.
fn read(repo: &Dir, findings: &mut Findings, mut each: impl FnMut(&Record)) -> bool {
    let mut all_sound = true;
    let mut parts: Vec<_> = probe::names(repo, findings)
        .into_iter()
        .filter_map(|(name, _)| Some((path::old_journal(&name)?, name)))
        .collect();
    parts.sort_unstable();
    let names = parts.iter().map(|(_, name)| name.as_str());
    for name in names.chain([path::JOURNAL]) {
        let Some((file, _)) = probe::file(repo, name, findings).there() else {
            continue;
        };
        let at = repo.at(name);
        let read = lines::each(&file, |number, line| match parse(line) {
            Ok(record) => each(&record),
            Err(why) => {
                all_sound = false;
                findings.add(Rule::JournalMalformed, &at, format!("line {number}: {why}"));
            }
        });
        if let Err(error) = read {
            all_sound = false;
            findings.add(Rule::Unreadable, &at, format!("cannot be read: {error}"));
        }
    }
    all_sound
}

fn parse(line: Option<&[u8]>) -> Result<Record, String> {
    let line = line.ok_or("is longer than a line can be")?;
    let record: Record = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    if OffsetDateTime::parse(&record.time, &Rfc3339).is_err() {
        return Err(format!("{:?} is no time", record.time));
    }
    if let Some(tag) = &record.tag {
        Tag::parse(tag).map_err(|error| error.to_string())?;
    }
    let Record { what, tag, before, after, .. } = &record;
    let shape = (tag.is_some(), before.is_some(), after.is_some());
    let good = match what {
        What::Push => shape == (false, false, true),
        What::Tag => matches!(shape, (true, _, true)),
        What::Untag => shape == (true, true, false),
        What::Delete => shape == (false, true, false),
    };
    if good {
        Ok(record)
    } else {
        Err(format!("has fields that {what:?} does not have, or lacks some"))
    }
}
