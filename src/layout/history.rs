//! Reading the journal: what it names, and what it proves.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::time::SystemTime;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::dir::{self, Dir, Inode};
use super::error::{At, Error, OrAbsent, Result};
use super::journal::Record;
use super::path;
use super::stamp::Stamp;
use crate::oci::{Descriptor, Digest, What};

/// Longer lines are not read: two descriptors of the largest manifest are not so long.
const MAX_LINE: u64 = 32 * 1024 * 1024;

/// One line: what it says, or its bytes if it is none of ours.
type Line<'a> = std::result::Result<Record, &'a [u8]>;

impl Record {
    /// When, as a time; `None` if nobody can read it.
    pub fn when(&self) -> Option<SystemTime> {
        OffsetDateTime::parse(&self.time, &Rfc3339).ok().map(SystemTime::from)
    }
}

/// How much of a journal has been read.
#[derive(Debug, Default)]
pub struct Reading {
    /// Held open, so that the inode's number cannot be given to another file.
    last: Option<(File, Inode, u64)>,
}

/// What the journal named last, and when.
#[derive(Clone, Debug)]
pub struct Named {
    /// The whole descriptor.
    pub descriptor: Descriptor,
    /// When it was named last.
    pub time: SystemTime,
    /// What happened then.
    pub what: What,
    /// The tag it happened to.
    pub tag: Option<String>,
}

/// What the journal names within the undo window, and how far it was read.
#[derive(Debug, Default)]
pub struct Recent {
    /// Each digest once, latest first.
    pub named: Vec<Named>,
    /// Digests in lines that nobody can read.
    pub spelled: Vec<Digest>,
    /// The time of the newest line, of those that were read.
    pub newest: Option<SystemTime>,
    /// How far that was.
    pub reading: Reading,
}

impl Recent {
    /// Reads what lines since `since` name, committed or not; without a time none counts.
    pub fn read(repo: &Dir, since: Option<SystemTime>) -> Result<Recent> {
        let mut found = Found::new(since);
        for part in old_parts(repo)? {
            // A part is no younger than its last line.
            let Some(since) = since else { continue };
            if last_line(repo, &part)?.is_none_or(|time| time >= since) {
                read_part(repo, &part, 0, |line| found.take(line))?;
            }
        }
        let last = read_part(repo, path::JOURNAL, 0, |line| found.take(line))?;
        Ok(found.recent(Reading { last }))
    }

    /// Reads what came since: to be called by whoever holds the repository's lock. `None` if nothing
    /// did.
    pub fn since(
        repo: &Dir,
        before: &Reading,
        since: Option<SystemTime>,
    ) -> Result<Option<Recent>> {
        let now = repo.stat_name(path::JOURNAL)?;
        let begin = match (&before.last, &now) {
            (None, None) => return Ok(None),
            (Some((_, inode, end)), Some(stat)) if *inode == Inode::of(stat) => {
                match dir::size_of(stat) {
                    len if len == *end => return Ok(None),
                    len if len > *end => *end,
                    _ => return Recent::read(repo, since).map(Some),
                }
            }
            // It was set aside meanwhile, or somebody replaced it.
            _ => return Recent::read(repo, since).map(Some),
        };
        let mut found = Found::new(since);
        let last = read_part(repo, path::JOURNAL, begin, |line| found.take(line))?;
        Ok(Some(found.recent(Reading { last })))
    }
}

struct Found {
    since: Option<SystemTime>,
    named: HashMap<Digest, Named>,
    spelled: Vec<Digest>,
    newest: Option<SystemTime>,
}

impl Found {
    fn new(since: Option<SystemTime>) -> Found {
        Found { since, named: HashMap::new(), spelled: Vec::new(), newest: None }
    }

    fn take(&mut self, line: Line<'_>) {
        let record = match line {
            Ok(record) => record,
            Err(bytes) if self.since.is_some() => {
                return self.spelled.extend(Digest::all_in(bytes));
            }
            Err(_) => return,
        };
        // What has no time that can be read has just happened, for all that is known.
        let time = record.when();
        self.newest = self.newest.max(time);
        let time = time.unwrap_or_else(SystemTime::now);
        if self.since.is_none_or(|since| time < since) {
            return;
        }
        let Record { what, tag, before, after, .. } = record;
        for descriptor in [before, after].into_iter().flatten() {
            let named = Named { descriptor, time, what, tag: tag.clone() };
            match self.named.get_mut(&named.descriptor.digest) {
                Some(known) if known.time > time => {}
                Some(known) => *known = named,
                None => {
                    self.named.insert(named.descriptor.digest.clone(), named);
                }
            }
        }
    }

    fn recent(self, reading: Reading) -> Recent {
        let mut named: Vec<Named> = self.named.into_values().collect();
        named.sort_by_key(|named| std::cmp::Reverse(named.time));
        Recent { named, spelled: self.spelled, newest: self.newest, reading }
    }
}

/// Whether the journal proves that there was an index.json: a change was made from one. The first
/// group alone proves nothing, for it may be void.
pub fn proves_index(repo: &Dir) -> Result<bool> {
    let mut proven = false;
    each(repo, |line| proven |= line.is_ok_and(|record| record.base != Stamp::nothing()))?;
    Ok(proven)
}

/// Gives every record whose change was committed, oldest first. A group that the next one has the
/// same base as was void; the last one is where index.json, with the stamp `now`, is its base still.
pub fn each_committed(repo: &Dir, now: Option<Stamp>, mut take: impl FnMut(&Record)) -> Result<()> {
    let now = now.unwrap_or_else(Stamp::nothing);
    let mut group: Vec<Record> = Vec::new();
    let mut end = |group: &mut Vec<Record>, next: Stamp| {
        let void = group.first().is_some_and(|first| first.base == next && first.stamp != next);
        group.drain(..).filter(|_| !void).for_each(|record| take(&record));
    };
    each(repo, |line| {
        let Ok(record) = line else { return };
        let same = |first: &Record| (first.base, first.stamp) == (record.base, record.stamp);
        if !group.first().is_some_and(same) {
            end(&mut group, record.base);
        }
        group.push(record);
    })?;
    end(&mut group, now);
    Ok(())
}

fn each(repo: &Dir, mut take: impl FnMut(Line<'_>)) -> Result<()> {
    for part in old_parts(repo)?.iter().map(String::as_str).chain([path::JOURNAL]) {
        read_part(repo, part, 0, &mut take)?;
    }
    Ok(())
}

/// The older parts, oldest first.
pub(super) fn old_parts(repo: &Dir) -> Result<Vec<String>> {
    let mut parts = Vec::new();
    for entry in repo.entries()? {
        let (name, _) = entry?;
        parts.extend(path::old_journal(&name).map(|number| (number, name)));
    }
    parts.sort_unstable();
    Ok(parts.into_iter().map(|(_, name)| name).collect())
}

/// When the last whole line of a part was written; `None` if that cannot be told.
pub(super) fn last_line(repo: &Dir, part: &str) -> Result<Option<SystemTime>> {
    let Some((file, stat)) = repo.file_stat(part).or_absent()? else {
        return Ok(None);
    };
    let len = dir::size_of(&stat);
    for back in [4096, 1 << 16, MAX_LINE] {
        let begin = len.saturating_sub(back);
        let mut tail = vec![0; usize::try_from(len - begin).unwrap_or(0)];
        file.read_exact_at(&mut tail, begin).at(|| repo.at(part))?;
        let lines: Vec<&[u8]> = tail.split(|byte| *byte == b'\n').collect();
        // The first piece may be half a line, and what follows the last newline is torn.
        if let [_, .., last, _] = lines[..] {
            return Ok(serde_json::from_slice::<Record>(last).ok().and_then(|r| r.when()));
        }
        if begin == 0 {
            break;
        }
    }
    Ok(None)
}

/// Gives each whole line of a part that comes after `begin`; gives the file and where the last one
/// ends, if there is such a part.
fn read_part(
    repo: &Dir,
    part: &str,
    begin: u64,
    mut take: impl FnMut(Line<'_>),
) -> Result<Option<(File, Inode, u64)>> {
    let Some((mut file, stat)) = repo.file_stat(part).or_absent()? else {
        return Ok(None);
    };
    let at = || repo.at(part);
    file.seek(SeekFrom::Start(begin)).at(at)?;
    let mut reader = BufReader::with_capacity(1 << 16, &file);
    let (mut line, mut end) = (Vec::new(), begin);
    loop {
        line.clear();
        (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line).at(at)?;
        if line.len() as u64 == MAX_LINE {
            return Err(Error::damaged(at(), "has a line that is longer than a line can be"));
        }
        if line.pop() != Some(b'\n') {
            break;
        }
        end += line.len() as u64 + 1;
        if !line.is_empty() {
            take(serde_json::from_slice::<Record>(&line).map_err(|_| &line[..]));
        }
    }
    drop(reader);
    let inode = Inode::of(&stat);
    Ok(Some((file, inode, end)))
}
