//! The journal of one repository, and how index.json stands to it.

use std::collections::HashSet;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::finding::Findings;
use super::lines;
use super::probe;
use super::rule::Rule;
use crate::layout::journal::Record;
use crate::layout::{self, Dir, IndexFile, Overwritten, Stamp, path};
use crate::oci::{Tag, What};

/// No more tags are named in a finding.
const MOST_NAMED: usize = 20;

/// Checks every line, and what they say of index.json, whose stamp is `now` if there is one.
pub(super) fn check(repo: &Dir, now: Option<Stamp>, findings: &mut Findings) {
    compare(repo, now, findings, |_| String::new());
}

/// The same for an index.json that was read: what was taken back is said.
pub(super) fn check_read(repo: &Dir, index: &IndexFile, findings: &mut Findings) {
    compare(repo, Some(index.stamp), findings, |last| {
        let (why, tags) = match layout::overwritten(repo, index, last) {
            Ok(Some(Overwritten::Before(tags))) => ("as before their last change", tags),
            Ok(Some(Overwritten::Older(older))) => ("not what they were since", older.tags),
            Ok(None) | Err(_) => return String::new(),
        };
        let named: Vec<&str> = tags.iter().take(MOST_NAMED).map(Tag::as_str).collect();
        match tags.len() {
            0 => String::new(),
            count => {
                let more = if count > named.len() { ", …" } else { "" };
                let named = named.join(", ");
                format!("; {why}, if that was not meant so: {named}{more}")
            }
        }
    });
}

fn compare(
    repo: &Dir,
    now: Option<Stamp>,
    findings: &mut Findings,
    overwritten: impl FnOnce(Option<Stamp>) -> String,
) {
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
            let message = format!(
                "no line of the journal has its stamp {now}: another tool wrote it{}",
                overwritten(None)
            );
            findings.add(Rule::JournalStampUnknown, &at, message);
        }
        (Some(now), History { met: true, left: true, last, .. }) => {
            let message = format!(
                "is an older copy: the journal has changes after its stamp {now}{}",
                overwritten(last)
            );
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
    /// What the last group produced.
    last: Option<Stamp>,
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
            last: None,
            produced: now.is_none().then(HashSet::new),
            followed: false,
        }
    }

    fn take(&mut self, record: &Record) {
        self.any = true;
        self.last = Some(record.stamp);
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

/// Reads a line, without its newline; `None` is one that is too long.
pub(super) fn parse(line: Option<&[u8]>) -> Result<Record, String> {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of an index.json `now` after groups `(base, stamp)`; 0 is no index.json.
    fn verdict(groups: &[(u8, u8)], now: u8) -> Option<Rule> {
        let temp = tempfile::tempdir().unwrap();
        let stamp = |n: u8| if n == 0 { Stamp::nothing() } else { Stamp::of(&[n]) };
        let line = |(base, to): &(u8, u8)| {
            let descriptor = r#"{"mediaType":"m","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0}"#;
            format!(
                r#"{{"time":"2026-11-24T01:02:03Z","who":null,"from":null,"what":"push","before":null,"after":{descriptor},"base":"{}","stamp":"{}"}}"#,
                stamp(*base),
                stamp(*to)
            ) + "\n"
        };
        // The first half lies in an older part.
        let (old, new) = groups.split_at(groups.len() / 2);
        let text = |groups: &[(u8, u8)]| groups.iter().map(line).collect::<String>();
        std::fs::write(temp.path().join("_log.7.jsonl"), text(old)).unwrap();
        std::fs::write(temp.path().join("_log.jsonl"), text(new) + "torn").unwrap();
        let dir = Dir::open_root(temp.path()).unwrap();
        let mut findings = Findings::new(temp.path(), "");
        check(&dir, (now != 0).then(|| stamp(now)), &mut findings);
        let found = findings.into_vec();
        assert!(found.len() <= 1, "{found:?}");
        found.first().map(|finding| finding.rule)
    }

    #[test]
    fn void_groups_and_what_was_before_the_journal_are_no_finding() {
        assert_eq!(verdict(&[], 1), None);
        assert_eq!(verdict(&[(0, 1), (1, 2)], 2), None);
        assert_eq!(verdict(&[(0, 1), (1, 2), (1, 3)], 3), None, "void in the middle");
        assert_eq!(verdict(&[(0, 1), (1, 2), (1, 3)], 1), None, "void at the end, twice");
        assert_eq!(verdict(&[(9, 1)], 9), None, "made from an outsider's, and void");
        assert_eq!(verdict(&[(0, 1), (1, 2), (2, 1)], 1), None, "the same bytes again");
        assert_eq!(verdict(&[(0, 1), (9, 2)], 2), None, "an outsider in between");
    }

    #[test]
    fn an_outsiders_and_an_older_index_are_told_apart() {
        assert_eq!(verdict(&[(0, 1), (1, 2)], 9), Some(Rule::JournalStampUnknown));
        assert_eq!(verdict(&[(0, 1), (1, 2), (2, 3)], 1), Some(Rule::JournalStampOlder));
        assert_eq!(verdict(&[(0, 1), (9, 2)], 1), Some(Rule::JournalStampOlder));
    }

    #[test]
    fn only_a_group_that_was_built_upon_proves_that_there_was_an_index() {
        assert_eq!(verdict(&[(0, 1), (0, 2)], 0), None);
        assert_eq!(verdict(&[(0, 1), (1, 2)], 0), Some(Rule::IndexMissing));
    }
}
