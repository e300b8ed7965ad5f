//! The journal: history, not truth.

use std::fs::File;
use std::net::IpAddr;
use std::os::unix::fs::FileExt;
use std::time::SystemTime;

use rustix::fs::Mode;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::dir::{self, Dir};
use super::disk::Disk;
use super::error::{At, Result};
use super::history;
use super::inherit::{self, Purpose};
use super::path;
use super::stamp::Stamp;
use crate::oci::{Change, Descriptor, Tag, What};

/// One line of `_log.jsonl`: one change of a tag or a manifest.
///
/// All lines of one commit share `base` and `stamp`. A group whose stamp no index.json ever had is
/// void: the next group has the same `base` again, not its `stamp`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// When, in UTC (RFC 3339).
    pub time: String,
    /// Who; nobody where there is no login.
    pub who: Option<String>,
    /// From where.
    pub from: Option<IpAddr>,
    /// What happened.
    pub what: What,
    /// The tag it happened to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// The whole descriptor before.
    pub before: Option<Descriptor>,
    /// The whole descriptor after.
    pub after: Option<Descriptor>,
    /// The index.json that the change was made from.
    pub base: Stamp,
    /// The index.json that the change produced.
    pub stamp: Stamp,
}

impl Record {
    /// The record of a change that is made now.
    pub fn now(
        change: Change,
        who: Option<String>,
        from: Option<IpAddr>,
        base: Stamp,
        stamp: Stamp,
    ) -> Record {
        let Change { what, tag, before, after } = change;
        let tag = tag.as_ref().map(Tag::to_string);
        Record { time: timestamp(), who, from, what, tag, before, after, base, stamp }
    }
}

/// Now, as the journal writes it.
fn timestamp() -> String {
    let now = OffsetDateTime::now_utc();
    let micros = now.nanosecond() / 1000 * 1000;
    now.replace_nanosecond(micros)
        .ok()
        .and_then(|now| now.format(&Rfc3339).ok())
        // Only a year beyond 9999 cannot be written.
        .unwrap_or_else(|| "9999-12-31T23:59:59Z".to_owned())
}

/// Appends records and makes them durable; call it under the repository's lock.
///
/// A tail without a newline, which a crash left there, is cut off first. The journal's name is
/// durable once the caller has synced `dir`. A file that has another name too, anywhere, is not
/// written to: it becomes an older part of the journal, and a new one begins. Whether the journal
/// begins here, and so has a new name.
pub fn append(disk: &dyn Disk, dir: &Dir, records: &[Record]) -> Result<bool> {
    let at = || dir.at(path::JOURNAL);
    let (file, end, made) = open(disk, dir)?;
    let end = cut_torn_tail(disk, &file, end).at(at)?;
    let mut lines = Vec::new();
    for record in records {
        serde_json::to_writer(&mut lines, record).map_err(std::io::Error::from).at(at)?;
        lines.push(b'\n');
    }
    let written = disk.write(&file, &lines, end).and_then(|()| disk.sync(&file));
    if written.is_err() {
        // A second sync would say yes to lines that never reached the disk: the next ones are
        // written anew.
        let _ = disk.set_len(&file, end);
    }
    written.at(at).map(|()| made)
}

/// The journal, open for appending, its length, and whether it was made.
fn open(disk: &dyn Disk, dir: &Dir) -> Result<(File, u64, bool)> {
    loop {
        let (file, made) = disk.open_append(dir, path::JOURNAL, Mode::RUSR | Mode::WUSR)?;
        if made && let Err(error) = inherit::apply(dir, &file, Purpose::Journal) {
            // Whoever finds it would not give it its rights any more.
            let _ = disk.unlink(dir, path::JOURNAL);
            return Err(error);
        }
        let stat = dir::stat_file(&file, || dir.at(path::JOURNAL))?;
        if stat.st_nlink == 1 {
            return Ok((file, dir::size_of(&stat), made));
        }
        set_aside(disk, dir)?;
    }
}

/// The journal becomes an older part of itself.
fn set_aside(disk: &dyn Disk, dir: &Dir) -> Result<()> {
    let parts = dir.names()?.into_iter().filter_map(|(name, _)| path::old_journal(&name));
    let next = parts.max().unwrap_or(0).saturating_add(1);
    disk.rename_new(dir, path::JOURNAL, dir, &path::journal_part(next))
}

/// Whether the journal is so long that it is to be set aside.
pub fn is_long(dir: &Dir, limit: u64) -> Result<bool> {
    Ok(dir.stat_name(path::JOURNAL)?.is_some_and(|stat| dir::size_of(&stat) >= limit))
}

/// Sets the journal aside; call it under the repository's lock. It is durable on return: a new journal
/// must not outlive the older part's name.
pub fn rotate(disk: &dyn Disk, dir: &Dir) -> Result<()> {
    set_aside(disk, dir)?;
    disk.sync_dir(dir)
}

/// The older parts whose last line was written before a time.
pub fn parts_before(dir: &Dir, before: SystemTime) -> Result<Vec<String>> {
    let mut old = Vec::new();
    for part in history::old_parts(dir)? {
        if history::last_line(dir, &part)?.is_some_and(|last| last < before) {
            old.push(part);
        }
    }
    Ok(old)
}

/// Where the last whole line ends; what comes after it is cut off.
fn cut_torn_tail(disk: &dyn Disk, file: &File, len: u64) -> std::io::Result<u64> {
    let whole = whole_lines(file, len)?;
    if whole < len {
        disk.set_len(file, whole)?;
    }
    Ok(whole)
}

fn whole_lines(file: &File, len: u64) -> std::io::Result<u64> {
    let mut end = len;
    let mut block = [0u8; 4096];
    while end > 0 {
        let begin = end.saturating_sub(block.len() as u64);
        let part = &mut block[..usize::try_from(end - begin).unwrap_or(0)];
        file.read_exact_at(part, begin)?;
        if let Some(newline) = part.iter().rposition(|byte| *byte == b'\n') {
            return Ok(begin + newline as u64 + 1);
        }
        end = begin;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::super::disk::RealDisk;
    use super::*;

    fn record() -> Record {
        let change = Change { what: What::Untag, tag: None, before: None, after: None };
        Record::now(change, Some("alice".into()), None, Stamp::nothing(), Stamp::of(b"x"))
    }

    #[test]
    fn a_torn_tail_is_cut_off_and_lines_read_back() {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open_root(temp.path()).unwrap();
        let path = temp.path().join("_log.jsonl");
        append(&RealDisk, &dir, &[record()]).unwrap();
        let whole = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{whole}{}", "torn ".repeat(3000))).unwrap();
        append(&RealDisk, &dir, &[record(), record()]).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let records: Vec<Record> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(records.len(), 3);
        assert_eq!(records[0].who.as_deref(), Some("alice"));
        assert!(records[0].time.ends_with('Z'));
    }

    #[test]
    fn a_file_that_is_also_another_one_is_not_written_to() {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open_root(temp.path()).unwrap();
        let at = |name: &str| temp.path().join(name);
        append(&RealDisk, &dir, &[record()]).unwrap();
        let first = std::fs::read(at("_log.jsonl")).unwrap();
        // As `cp -al` leaves it, and as somebody plants it.
        std::fs::hard_link(at("_log.jsonl"), at("copy")).unwrap();
        append(&RealDisk, &dir, &[record()]).unwrap();
        assert_eq!(std::fs::read(at("copy")).unwrap(), first);
        assert_eq!(std::fs::read(at("_log.1.jsonl")).unwrap(), first);
        std::fs::write(at("crontab"), "no newline").unwrap();
        std::fs::remove_file(at("_log.jsonl")).unwrap();
        std::fs::hard_link(at("crontab"), at("_log.jsonl")).unwrap();
        append(&RealDisk, &dir, &[record(), record()]).unwrap();
        assert_eq!(std::fs::read(at("crontab")).unwrap(), b"no newline");
        assert_eq!(std::fs::read_to_string(at("_log.jsonl")).unwrap().lines().count(), 2);
        assert!(at("_log.2.jsonl").exists());
    }

    #[test]
    fn a_journal_that_is_one_torn_line_becomes_empty() {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open_root(temp.path()).unwrap();
        std::fs::write(temp.path().join("_log.jsonl"), "torn").unwrap();
        append(&RealDisk, &dir, &[]).unwrap();
        assert_eq!(std::fs::read(temp.path().join("_log.jsonl")).unwrap(), b"");
    }
}
