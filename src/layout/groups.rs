//! The journal from a mark on: what was written since somebody last read it, a part at a time.
//!
//! A mark is a line itself: how long the file was after it, and what it said. So it is found again
//! when the journal was set aside, copied or moved with its repository, and not found in another
//! journal that has taken the place of this one.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::dir::{Dir, Inode};
use super::error::{At, Error, OrAbsent, Result};
use super::history::{self, MAX_LINE, TRIES};
use super::journal::Record;
use super::path;
use super::stamp::Stamp;

/// So many lines are taken at once.
const MOST_LINES: usize = 100;

/// A line of a journal, behind which somebody goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Where it ends in its file, the newline included.
    end: u64,
    /// Which line it is: its length and hash, without the newline.
    line: Stamp,
    /// When it was written, as it says.
    time: String,
}

/// Lines that follow each other and tell of one commit; perhaps not all of them.
#[derive(Clone, Debug)]
pub struct Group {
    /// The index.json from which the change was made.
    pub base: Stamp,
    /// The one that it produced.
    pub stamp: Stamp,
    /// The records, each with its mark. Their descriptors are bare.
    pub lines: Vec<(Record, Mark)>,
    /// There are more lines of it, which were not taken yet.
    pub cut: bool,
}

/// What comes after a mark.
#[derive(Debug, Default)]
pub struct Since {
    /// The groups, oldest first.
    pub groups: Vec<Group>,
    /// From which index.json the group was made that follows them; none if they are the last.
    pub next: Option<Stamp>,
    /// The mark was not in the journal: another one has taken its place. What was written after the
    /// mark, as its lines say, is given.
    pub lost: bool,
}

impl Since {
    /// Reads what comes after a mark, or from the very beginning.
    pub fn read(repo: &Dir, mark: Option<&Mark>) -> Result<Since> {
        let Some(mark) = mark else {
            return Since::read_from(Files::all(repo)?, 0);
        };
        let files = Files::with(repo, mark)?;
        if files.found {
            return Since::read_from(files, mark.end);
        }
        let begin = Begin::of(files, mark.when(), true)?;
        let since = match begin.mark {
            Some(last) => Since::read(repo, Some(&last))?,
            None => Since::read_from(Files::all(repo)?, 0)?,
        };
        Ok(Since { lost: true, ..since })
    }

    fn read_from(files: Files, begin: u64) -> Result<Since> {
        let (mut since, mut begin, mut taken) = (Since::default(), begin, 0);
        for (path, file) in files.files {
            let mut lines = Lines::after(&file, &path, begin)?;
            begin = 0;
            while let Some((record, mark)) = lines.next_record()? {
                let same =
                    |group: &&mut Group| (group.base, group.stamp) == (record.base, record.stamp);
                match since.groups.last_mut().filter(same) {
                    Some(group) if taken >= MOST_LINES => group.cut = true,
                    Some(group) => group.lines.push((record, mark)),
                    None if taken >= MOST_LINES => {
                        since.next = Some(record.base);
                        return Ok(since);
                    }
                    None => {
                        let (base, stamp) = (record.base, record.stamp);
                        let lines = vec![(record, mark)];
                        since.groups.push(Group { base, stamp, lines, cut: false });
                    }
                }
                taken += 1;
            }
        }
        Ok(since)
    }
}

/// Where what was written since a time begins.
#[derive(Debug, Default)]
pub struct Begin {
    /// The last line before; none if that is the very beginning.
    pub mark: Option<Mark>,
    /// From which index.json the first change since then was made; none if there was no change.
    pub base: Option<Stamp>,
}

impl Begin {
    /// The first line that was written at `time` or later, in the order of the journal.
    pub fn at(repo: &Dir, time: SystemTime) -> Result<Begin> {
        Begin::of(Files::all(repo)?, Some(time), false)
    }

    /// With `after`, the first that was written later. Without a time, there is none.
    fn of(files: Files, time: Option<SystemTime>, after: bool) -> Result<Begin> {
        let mut begin = Begin::default();
        for (path, file) in files.files {
            let mut lines = Lines::after(&file, &path, 0)?;
            while let Some((record, mark)) = lines.next_record()? {
                let is_new = match (record.when(), time) {
                    (Some(when), Some(time)) => when > time || when == time && !after,
                    // What has no time that can be read has just happened, for all that is known.
                    (None, _) => true,
                    (Some(_), None) => false,
                };
                if is_new {
                    begin.base = Some(record.base);
                    return Ok(begin);
                }
                begin.mark = Some(mark);
            }
        }
        Ok(begin)
    }
}

impl Mark {
    /// When the line was written.
    pub fn when(&self) -> Option<SystemTime> {
        OffsetDateTime::parse(&self.time, &Rfc3339).ok().map(SystemTime::from)
    }

    /// A text that no other line of any journal has.
    pub fn spelled(&self) -> String {
        format!("{}/{}", self.end, self.line)
    }

    /// Whether a file has the line where the mark says.
    fn is_in(&self, file: &File) -> bool {
        let len = self.line.len_of();
        let Some(begin) = self.end.checked_sub(len + 1) else { return false };
        let Some(len) = usize::try_from(len).ok().filter(|len| *len as u64 <= MAX_LINE) else {
            return false;
        };
        let mut line = vec![0; len + 1];
        file.read_exact_at(&mut line, begin).is_ok()
            && line.pop() == Some(b'\n')
            && Stamp::of(&line) == self.line
    }
}

/// The files of a journal, oldest first, as they were at one moment.
struct Files {
    files: Vec<(PathBuf, File)>,
    /// The first one has the mark that was looked for.
    found: bool,
}

impl Files {
    fn all(repo: &Dir) -> Result<Files> {
        Files::back_to(repo, |_| false)
    }

    /// From the one that has the mark on; all, if none has it.
    fn with(repo: &Dir, mark: &Mark) -> Result<Files> {
        Files::back_to(repo, |file| mark.is_in(file))
    }

    /// Opens the journal, then its older parts, latest first, up to the one that is wanted.
    fn back_to(repo: &Dir, wanted: impl Fn(&File) -> bool) -> Result<Files> {
        for _ in 0..TRIES {
            let parts = history::old_parts(repo)?;
            let journal = repo.file_stat(path::JOURNAL).or_absent()?;
            let now = repo.stat_name(path::JOURNAL)?;
            let opened = journal.as_ref().map(|(_, stat)| Inode::of(stat));
            // If it was set aside between the list and the open, there is another list.
            if now.as_ref().map(Inode::of) != opened || history::old_parts(repo)? != parts {
                continue;
            }
            let mut files = Vec::new();
            let mut found = false;
            if let Some((file, _)) = journal {
                found = wanted(&file);
                files.push((repo.at(path::JOURNAL), file));
            }
            for part in parts.iter().rev() {
                if found {
                    break;
                }
                // What collection has just removed is history.
                if let Some(file) = repo.file(part).or_absent()? {
                    found = wanted(&file);
                    files.push((repo.at(part), file));
                }
            }
            files.reverse();
            return Ok(Files { files, found });
        }
        Err(Error::damaged(repo.at(path::JOURNAL), "is set aside all the time"))
    }
}

/// The whole lines of a file, from somewhere on.
struct Lines<'a> {
    path: &'a PathBuf,
    reader: BufReader<&'a File>,
    end: u64,
    line: Vec<u8>,
}

impl<'a> Lines<'a> {
    fn after(mut file: &'a File, path: &'a PathBuf, begin: u64) -> Result<Lines<'a>> {
        file.seek(SeekFrom::Start(begin)).at(|| path.clone())?;
        let reader = BufReader::with_capacity(1 << 16, file);
        Ok(Lines { path, reader, end: begin, line: Vec::new() })
    }

    /// The next line that is a record. What follows the last newline was torn, or is being written.
    fn next_record(&mut self) -> Result<Option<(Record, Mark)>> {
        loop {
            self.line.clear();
            let mut reader = (&mut self.reader).take(MAX_LINE);
            reader.read_until(b'\n', &mut self.line).at(|| self.path.clone())?;
            if self.line.len() as u64 == MAX_LINE {
                let why = "has a line that is longer than a line can be";
                return Err(Error::damaged(self.path.clone(), why));
            }
            if self.line.pop() != Some(b'\n') {
                return Ok(None);
            }
            self.end += self.line.len() as u64 + 1;
            if let Ok(mut record) = serde_json::from_slice::<Record>(&self.line) {
                let (line, time) = (Stamp::of(&self.line), record.time.clone());
                record.before = record.before.map(history::bare);
                record.after = record.after.map(history::bare);
                return Ok(Some((record, Mark { end: self.end, line, time })));
            }
        }
    }
}
