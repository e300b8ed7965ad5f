//! Quarantine: where a repair puts what it takes out of a tree. Nothing is ever deleted from there.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{FileType, Mode};
use rustix::io::Errno;
use serde::Serialize;
use time::OffsetDateTime;
use time::macros::format_description;

use super::copy::{self, CopyError};
use super::dir::{self, Dir};
use super::disk::Disk;
use super::error::{At, Error, OrAbsent, Result};
use super::{facts, make, path};

/// A file with more content than this is not copied while everybody waits for the locks.
const MAX_COPY: u64 = 64 << 20;

/// So many directories of one run are tried where names are taken.
const TRIES: u32 = 1000;

/// The quarantine of one run: `.stillage/quarantine/<time>/`, which mirrors the tree, and
/// `.stillage/quarantine/<time>.jsonl`, which says of each thing where it lay and why it was taken
/// out. Neither is made before there is something to put there.
#[derive(Debug)]
pub struct Quarantine {
    room: Dir,
    disk: Arc<dyn Disk>,
    time: String,
}

/// A line of the list.
#[derive(Serialize)]
struct Line<'a> {
    path: &'a str,
    rule: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    entry: Option<&'a serde_json::Value>,
    kept: Option<&'a str>,
}

/// How something comes into quarantine.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    /// It loses its name.
    Move,
    /// It keeps its name until something else is renamed over it: a second link, where there are
    /// links.
    Link,
    /// It keeps its name until something else is renamed over it, and may be written in place by
    /// others: a copy, or a second link to what would take long to be copied.
    Copy,
}

impl Quarantine {
    /// Of a run that begins now.
    pub fn new(room: &Dir, disk: Arc<dyn Disk>) -> Quarantine {
        let format = format_description!("[year][month][day]T[hour][minute][second]Z");
        let time = OffsetDateTime::now_utc().format(format).unwrap_or_else(|_| "later".to_owned());
        Quarantine { room: room.clone(), disk, time }
    }

    /// Moves a file, a directory or whatever else out of the tree; gives its path from ROOT now.
    ///
    /// What is listed and where it goes is on the disk before it goes; on return, so is that it
    /// went. A regular file or a symlink on another file system is copied first. On an error it lies
    /// where it lay.
    pub fn take(&self, dir: &Dir, name: &str, path: &str, rule: &str) -> Result<String> {
        self.bring(dir, name, path, rule, How::Move)
    }

    /// Gives a blob a second name in quarantine, before sound content is renamed over the first.
    pub fn link(&self, dir: &Dir, name: &str, path: &str, rule: &str) -> Result<String> {
        self.bring(dir, name, path, rule, How::Link)
    }

    /// Puts a copy of a file into quarantine, before the file is replaced.
    pub fn copy(&self, dir: &Dir, name: &str, path: &str, rule: &str) -> Result<String> {
        self.bring(dir, name, path, rule, How::Copy)
    }

    /// Lists something that is written down here and nowhere else: an entry of index.json.
    pub fn list(&self, path: &str, rule: &str, entry: &serde_json::Value) -> Result<()> {
        let quarantine = make::in_room(&*self.disk, &self.room, path::QUARANTINE)?;
        self.append(&quarantine, &Line { path, rule, entry: Some(entry), kept: None })
    }

    fn bring(&self, dir: &Dir, name: &str, path: &str, rule: &str, how: How) -> Result<String> {
        let quarantine = make::in_room(&*self.disk, &self.room, path::QUARANTINE)?;
        let (parent, last) = path.rsplit_once('/').unwrap_or(("", path));
        for number in 1..TRIES {
            let run = match number {
                1 => self.time.clone(),
                _ => format!("{}.{number}", self.time),
            };
            let beneath = format!("{run}/{parent}");
            let Some(to) = self.make(&quarantine, beneath.trim_end_matches('/'))? else {
                continue;
            };
            if to.stat_name(last)?.is_some() {
                continue;
            }
            let kept = format!("{}/{}/{run}/{path}", path::ROOM, path::QUARANTINE);
            self.append(&quarantine, &Line { path, rule, entry: None, kept: Some(&kept) })?;
            self.place(dir, name, &to, last, how)?;
            return Ok(kept);
        }
        Err(Errno::EXIST).at(|| quarantine.at(path))
    }

    /// Directories on the way, durable; `None` where something else has one of the names.
    fn make(&self, quarantine: &Dir, beneath: &str) -> Result<Option<Dir>> {
        let mut at = quarantine.clone();
        for name in beneath.split('/') {
            if let Some(stat) = at.stat_name(name)? {
                if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                    return Ok(None);
                }
                at = at.dir(name)?;
                continue;
            }
            let made = make::in_room(&*self.disk, &at, name)?;
            self.disk.sync_dir(&at)?;
            at = made;
        }
        Ok(Some(at))
    }

    fn place(&self, from: &Dir, name: &str, to: &Dir, last: &str, how: How) -> Result<()> {
        let brought = match how {
            How::Move => self.disk.rename(from, name, to, last),
            How::Link => self.disk.link(from, name, to, last),
            How::Copy if takes_long(from, name)? => {
                self.disk.link(from, name, to, last).map_err(|error| match error.wants_copy() {
                    true => Error::damaged(from.at(name), "is too large to be kept as a copy"),
                    false => error,
                })
            }
            How::Copy => self.copy_file(from, name, to, last),
        };
        match brought {
            Err(error) if how != How::Copy && error.wants_copy() => {
                match from.stat_name(name)?.map(|stat| FileType::from_raw_mode(stat.st_mode)) {
                    Some(FileType::RegularFile) => self.copy_file(from, name, to, last)?,
                    Some(FileType::Symlink) => {
                        copy::symlink(&*self.disk, from, to, last)?;
                    }
                    _ => return Err(error),
                }
                self.disk.sync_dir(to)?;
                if how == How::Move {
                    self.disk.unlink(from, name)?;
                }
            }
            brought => {
                brought?;
                self.disk.sync_dir(to)?;
            }
        }
        if how == How::Move { self.disk.sync_dir(from) } else { Ok(()) }
    }

    /// Of a copy that a kill cuts short nothing is left, where the file system has nameless files:
    /// nobody sweeps here.
    fn copy_file(&self, from: &Dir, name: &str, to: &Dir, last: &str) -> Result<()> {
        let mode = Mode::RUSR | Mode::WUSR;
        let nameless = self.disk.create_unnamed(to, mode).and_then(|made| {
            self.fill(from, name, &made, || to.at(last))?;
            self.disk.link_file(&made, to, last)
        });
        match nameless {
            Err(error) if wants_name(&error) || error.wants_copy() => {}
            done => return done,
        }
        let beside = path::temporary("kept");
        let made = self.disk.create(to, &beside, mode)?;
        let copied = self
            .fill(from, name, &made, || to.at(last))
            .and_then(|()| self.disk.rename(to, &beside, to, last));
        if copied.is_err() {
            let _ = self.disk.unlink(to, &beside);
        }
        copied
    }

    /// Copies a file's content, durably.
    fn fill(
        &self,
        from: &Dir,
        name: &str,
        to: &File,
        at: impl Fn() -> PathBuf + Copy,
    ) -> Result<()> {
        let (source, stat) = from.file_stat(name)?;
        let copied = copy::content(&*self.disk, &source, to, dir::size_of(&stat));
        copied.or_else(|error| match error {
            CopyError::Read(error) => Err(error).at(|| from.at(name)),
            CopyError::Write(error) => Err(error).at(at),
        })?;
        self.disk.sync(to).at(at)
    }

    /// Appends a line to the list, durably.
    fn append(&self, quarantine: &Dir, line: &Line<'_>) -> Result<()> {
        let name = format!("{}.jsonl", self.time);
        let at = || quarantine.at(&name);
        let mode = Mode::RUSR | Mode::WUSR;
        let (file, made): (File, bool) = self.disk.open_append(quarantine, &name, mode)?;
        if made {
            self.disk.sync_dir(&self.room)?;
            self.disk.sync_dir(quarantine)?;
        }
        let end = dir::size_of(&dir::stat_file(&file, at)?);
        let mut bytes = Vec::new();
        if facts::is_torn(&file, end).at(at)? {
            bytes.push(b'\n');
        }
        serde_json::to_writer(&mut bytes, line).map_err(std::io::Error::from).at(at)?;
        bytes.push(b'\n');
        self.disk.write(&file, &bytes, end).at(at)?;
        self.disk.sync(&file).at(at)
    }
}

/// Whether a file has so much content, holes not counted.
fn takes_long(dir: &Dir, name: &str) -> Result<bool> {
    let stat = dir.file_stat(name)?.1;
    Ok(u64::try_from(stat.st_blocks).unwrap_or(0) > MAX_COPY / 512)
}

/// Errors of file systems that have no nameless files.
fn wants_name(error: &Error) -> bool {
    let kinds = [Errno::ISDIR, Errno::INVAL, Errno::NOENT];
    error.errno().is_some_and(|errno| kinds.contains(&errno))
}

/// Whether a name is still what was looked at: nobody replaced or wrote it meanwhile.
pub fn is_still(dir: &Dir, name: &str, looked: &rustix::fs::Stat) -> Result<bool> {
    let key = |stat: &rustix::fs::Stat| {
        (dir::Inode::of(stat), stat.st_mode, stat.st_size, stat.st_mtime, stat.st_mtime_nsec)
    };
    Ok(dir.stat_name(name).or_absent()?.flatten().is_some_and(|now| key(&now) == key(looked)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::disk::RealDisk;
    use super::*;

    #[test]
    fn what_is_taken_out_lies_under_its_path_and_is_listed() {
        let temp = tempfile::tempdir().unwrap();
        let room = temp.path().join(".stillage");
        let repo = temp.path().join("a/blobs");
        fs::create_dir_all(&repo).unwrap();
        fs::create_dir(&room).unwrap();
        let quarantine = Quarantine::new(&Dir::open_root(&room).unwrap(), Arc::new(RealDisk));
        let dir = Dir::open_root(&repo).unwrap();
        let mut kept = Vec::new();
        for text in ["one", "two"] {
            fs::write(repo.join("x"), text).unwrap();
            kept.push(quarantine.take(&dir, "x", "a/blobs/x", "some-rule").unwrap());
            assert!(!repo.join("x").exists());
        }
        // What lies there already is never replaced, whether file or directory.
        fs::write(repo.join("x"), "three").unwrap();
        kept.push(quarantine.copy(&dir, "x", "a", "some-rule").unwrap());
        kept.push(quarantine.link(&dir, "x", "a/blobs/x/y", "some-rule").unwrap());
        assert_eq!(fs::read_to_string(repo.join("x")).unwrap(), "three");
        let read = |path: &String| fs::read_to_string(temp.path().join(path)).unwrap();
        assert_eq!(kept.iter().map(read).collect::<Vec<_>>(), ["one", "two", "three", "three"]);
        let list = room.join("quarantine").join(format!("{}.jsonl", quarantine.time));
        let list = fs::read_to_string(list).unwrap();
        let lines = list.lines().map(serde_json::from_str::<serde_json::Value>);
        let listed: Vec<String> =
            lines.map(|line| line.unwrap()["kept"].as_str().unwrap().to_owned()).collect();
        assert_eq!(listed, kept);
        assert!(kept[0].ends_with("Z/a/blobs/x"), "{kept:?}");
    }
}
