//! Reading the journal: what it names, and what it proves.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
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
pub(super) const MAX_LINE: u64 = 32 * 1024 * 1024;

/// A journal that names more digests is not kept in memory.
const MAX_DIGESTS: usize = 1_000_000;

/// No tag is longer (the distribution specification says so).
const MAX_TAG: usize = 128;

/// No media type is longer: two names of 127 characters (RFC 6838), and room for parameters.
const MAX_MEDIA_TYPE: usize = 1024;

/// So often the journal may be set aside while it is being looked for.
pub(super) const TRIES: usize = 100;

/// One line: what it says, or its bytes if it is none of ours.
type Line<'a> = std::result::Result<Record, &'a [u8]>;

/// What is wrong with a line, where that ends the reading.
type Taken = std::result::Result<(), String>;

impl Record {
    /// When, as a time; `None` if nobody can read it.
    pub fn when(&self) -> Option<SystemTime> {
        OffsetDateTime::parse(&self.time, &Rfc3339).ok().map(SystemTime::from)
    }
}

/// How much of a journal has been read.
#[derive(Debug, Default)]
pub struct Reading {
    last: Option<Last>,
}

/// The journal, and where its last whole line ended.
#[derive(Debug)]
struct Last {
    /// Held open, so that the inode's number cannot be given to another file.
    _file: File,
    inode: Inode,
    end: End,
}

/// The end of a line: behind so many bytes and so many lines.
#[derive(Clone, Copy, Debug, Default)]
struct End {
    bytes: u64,
    lines: u64,
}

/// The newest line that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Newest {
    /// When it was written, as it says.
    pub time: SystemTime,
    /// The part of the journal that it stands in.
    pub part: String,
    /// Which line of it, from 1.
    pub line: u64,
}

/// What the journal named last, and when.
#[derive(Clone, Debug)]
pub struct Named {
    /// What it was, without what is only written beside it: annotations and the like.
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
    /// The newest line, of those that were read.
    pub newest: Option<Newest>,
    /// How far that was.
    pub reading: Reading,
}

impl Recent {
    /// Reads what lines since `since` name, committed or not; without a time none counts.
    ///
    /// The journal comes before its older parts: set aside in between, it is read twice. The other
    /// way round it would be in neither.
    pub fn read(repo: &Dir, since: Option<SystemTime>) -> Result<Recent> {
        Recent::read_beside(repo, since, || {})
    }

    fn read_beside(
        repo: &Dir,
        since: Option<SystemTime>,
        between: impl FnOnce(),
    ) -> Result<Recent> {
        let mut found = Found::new(since);
        let last = found.part(repo, path::JOURNAL, End::default())?;
        between();
        for part in old_parts(repo)? {
            // A part is no younger than its last line.
            let Some(since) = since else { continue };
            if last_line(repo, &part)?.is_none_or(|time| time >= since) {
                found.part(repo, &part, End::default())?;
            }
        }
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
            (Some(Last { inode, end, .. }), Some(stat)) if *inode == Inode::of(stat) => {
                match dir::size_of(stat) {
                    len if len == end.bytes => return Ok(None),
                    len if len > end.bytes => *end,
                    _ => return Recent::read(repo, since).map(Some),
                }
            }
            // It was set aside meanwhile, or somebody replaced it.
            _ => return Recent::read(repo, since).map(Some),
        };
        let mut found = Found::new(since);
        let last = found.part(repo, path::JOURNAL, begin)?;
        if last.as_ref().map(|last| last.inode) != now.as_ref().map(Inode::of) {
            // Without the lock that may happen after the look, too.
            return Recent::read(repo, since).map(Some);
        }
        Ok(Some(found.recent(Reading { last })))
    }
}

struct Found {
    since: Option<SystemTime>,
    named: HashMap<Digest, Named>,
    spelled: Vec<Digest>,
    newest: Option<Newest>,
}

impl Found {
    fn new(since: Option<SystemTime>) -> Found {
        Found { since, named: HashMap::new(), spelled: Vec::new(), newest: None }
    }

    /// Reads what comes after `begin` in a part.
    fn part(&mut self, repo: &Dir, part: &str, begin: End) -> Result<Option<Last>> {
        read_part(repo, part, begin, |line, number| self.take(line, part, number))
    }

    fn take(&mut self, line: Line<'_>, part: &str, number: u64) -> Taken {
        let record = match line {
            Ok(record) => record,
            Err(bytes) if self.since.is_some() => {
                let room = MAX_DIGESTS.saturating_sub(self.named.len() + self.spelled.len());
                self.spelled.extend(Digest::all_in(bytes).take(room + 1));
                return self.check();
            }
            Err(_) => return Ok(()),
        };
        // What has no time that can be read has just happened, for all that is known.
        let time = record.when();
        if let Some(time) = time
            && self.newest.as_ref().is_none_or(|newest| newest.time < time)
        {
            self.newest = Some(Newest { time, part: part.to_owned(), line: number });
        }
        let time = time.unwrap_or_else(SystemTime::now);
        if self.since.is_none_or(|since| time < since) {
            return Ok(());
        }
        let Record { what, tag, before, after, .. } = record;
        let tag = tag.filter(|tag| tag.len() <= MAX_TAG);
        for descriptor in [before, after].into_iter().flatten() {
            let descriptor = bare(descriptor);
            let named = Named { descriptor, time, what, tag: tag.clone() };
            match self.named.get_mut(&named.descriptor.digest) {
                Some(known) if known.time > time => {}
                Some(known) => *known = named,
                None => {
                    self.named.insert(named.descriptor.digest.clone(), named);
                }
            }
        }
        self.check()
    }

    fn check(&self) -> Taken {
        match self.named.len() + self.spelled.len() {
            ..=MAX_DIGESTS => Ok(()),
            _ => Err(format!("names more than {MAX_DIGESTS} digests")),
        }
    }

    fn recent(self, reading: Reading) -> Recent {
        let mut named: Vec<Named> = self.named.into_values().collect();
        named.sort_by_key(|named| std::cmp::Reverse(named.time));
        Recent { named, spelled: self.spelled, newest: self.newest, reading }
    }
}

/// What is needed of a descriptor to find what it refers to. A line may be as long as a line can be,
/// and a million of them held would be the memory's end. A type that is none may stand for anything:
/// whatever the content spells counts then.
pub(super) fn bare(descriptor: Descriptor) -> Descriptor {
    let Descriptor { media_type, digest, size, .. } = descriptor;
    let media_type = Some(media_type).filter(|text| text.len() <= MAX_MEDIA_TYPE);
    Descriptor::new(media_type.as_deref().unwrap_or("application/json"), digest, size)
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

fn each(repo: &Dir, take: impl FnMut(Line<'_>)) -> Result<()> {
    each_beside(repo, || {}, take)
}

fn each_beside(
    repo: &Dir,
    mut between: impl FnMut(),
    mut take: impl FnMut(Line<'_>),
) -> Result<()> {
    let mut take = |line: Line<'_>, _| {
        take(line);
        Ok(())
    };
    for _ in 0..TRIES {
        // The journal is held open and read last. If it was set aside between the list and the open,
        // there is another list, or another journal, and nothing has been told yet.
        let parts = old_parts(repo)?;
        between();
        let journal = repo.file_stat(path::JOURNAL).or_absent()?;
        let now = repo.stat_name(path::JOURNAL)?;
        let same = now.as_ref().map(Inode::of) == journal.as_ref().map(|(_, stat)| Inode::of(stat));
        if !same || old_parts(repo)? != parts {
            continue;
        }
        between();
        for part in &parts {
            read_part(repo, part, End::default(), &mut take)?;
        }
        if let Some((file, _)) = &journal {
            read_lines(file, End::default(), || repo.at(path::JOURNAL), &mut take)?;
        }
        return Ok(());
    }
    Err(Error::damaged(repo.at(path::JOURNAL), "is set aside all the time"))
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

/// Gives each whole line of a part that comes after `begin`, with its number; gives the file and where
/// the last one ends, if there is such a part.
fn read_part(
    repo: &Dir,
    part: &str,
    begin: End,
    take: impl FnMut(Line<'_>, u64) -> Taken,
) -> Result<Option<Last>> {
    let Some((file, stat)) = repo.file_stat(part).or_absent()? else {
        return Ok(None);
    };
    let end = read_lines(&file, begin, || repo.at(part), take)?;
    Ok(Some(Last { inode: Inode::of(&stat), end, _file: file }))
}

/// The same of an open file; gives where the last line ends.
fn read_lines(
    mut file: &File,
    begin: End,
    at: impl Fn() -> PathBuf + Copy,
    mut take: impl FnMut(Line<'_>, u64) -> Taken,
) -> Result<End> {
    file.seek(SeekFrom::Start(begin.bytes)).at(at)?;
    let mut reader = BufReader::with_capacity(1 << 16, file);
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
        end.bytes += line.len() as u64 + 1;
        end.lines += 1;
        if !line.is_empty() {
            take(serde_json::from_slice::<Record>(&line).map_err(|_| &line[..]), end.lines)
                .map_err(|why| Error::damaged(at(), why))?;
        }
    }
    Ok(end)
}

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;
