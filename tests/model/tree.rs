//! The tree as it lies on the disk: what outsiders do to it, what time does to it, and whether the
//! model explains every file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use stillage::oci::{Algorithm, Digest};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::world::{Index, Place, World};

/// A file's inode, its number of names, its length, and when its inode changed last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    pub ino: u64,
    pub links: u64,
    pub size: u64,
    pub changed: SystemTime,
}

/// Every file beneath a directory, by its path.
pub fn files(root: &Path) -> BTreeMap<String, Status> {
    let mut found = BTreeMap::new();
    each_file(root, "", &mut |path, meta| {
        let changed = Duration::new(
            u64::try_from(meta.ctime()).expect("after 1970"),
            u32::try_from(meta.ctime_nsec()).expect("below a second"),
        );
        let status = Status {
            ino: meta.ino(),
            links: meta.nlink(),
            size: meta.size(),
            changed: SystemTime::UNIX_EPOCH + changed,
        };
        found.insert(path, status);
    });
    found
}

fn each_file(root: &Path, relative: &str, each: &mut impl FnMut(String, fs::Metadata)) {
    let Ok(entries) = fs::read_dir(root.join(relative)) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if relative.is_empty() { name } else { format!("{relative}/{name}") };
        // What a server that was just ended still removes may be gone.
        let Ok(meta) = entry.metadata() else { continue };
        if meta.is_dir() {
            each_file(root, &path, each);
        } else {
            each(path, meta);
        }
    }
}

/// Of each file its bytes, inode, mtime and mode.
pub type Picture = BTreeMap<String, (Vec<u8>, u64, i64, u32)>;

/// All of a tree's content, to be compared later.
pub fn picture(root: &Path) -> Picture {
    let mut found = BTreeMap::new();
    each_file(root, "", &mut |path, meta| {
        let bytes = fs::read(root.join(&path)).unwrap_or_default();
        found.insert(path, (bytes, meta.ino(), meta.mtime(), meta.mode()));
    });
    found
}

// --- time -----------------------------------------------------------------------------------

/// Lets time pass: everything whose time collection looks at becomes so many hours older.
///
/// The pool is left out: it is collected by the order of collections, and nothing can set a ctime.
pub fn age(root: &Path, hours: u64) {
    let by = Duration::from_secs(hours * 3600);
    let room = root.join(".stillage");
    for dir in ["unreferenced", "uploads"] {
        each_file(&room.join(dir), "", &mut |path, _| older(&room.join(dir).join(path), by));
    }
    for session in fs::read_dir(room.join("uploads")).into_iter().flatten().flatten() {
        older(&session.path(), by);
    }
    let trash = room.join("trash");
    let hours = fs::read_dir(&trash).into_iter().flatten().flatten();
    let mut hours: Vec<String> =
        hours.map(|hour| hour.file_name().to_string_lossy().into_owned()).collect();
    // The older ones first: each makes room for the next.
    hours.sort();
    for hour in hours {
        fs::rename(trash.join(&hour), trash.join(earlier_hour(&hour, by))).expect("older trash");
    }
    each_file(root, "", &mut |path, _| {
        let name = path.rsplit('/').next().unwrap_or_default();
        if !path.starts_with(".stillage/") && name.starts_with("_log") {
            age_journal(&root.join(&path), by);
        }
    });
}

/// Makes a file or a directory older.
pub fn older(path: &Path, by: Duration) {
    let file = File::open(path).expect("a file to make older");
    let modified = file.metadata().and_then(|meta| meta.modified()).expect("a time");
    file.set_modified(modified - by).expect("an older time");
}

/// `20261126T13`, some hours earlier.
fn earlier_hour(name: &str, by: Duration) -> String {
    let number = |range: std::ops::Range<usize>| -> i64 {
        name.get(range).and_then(|text| text.parse().ok()).expect("YYYYMMDDTHH")
    };
    let month = u8::try_from(number(4..6)).ok().and_then(|m| time::Month::try_from(m).ok());
    let day = u8::try_from(number(6..8)).expect("a day");
    let year = i32::try_from(number(0..4)).expect("a year");
    let date = time::Date::from_calendar_date(year, month.expect("a month"), day).expect("a date");
    let hour = u8::try_from(number(9..11)).expect("an hour");
    let then = date.with_hms(hour, 0, 0).expect("a time") - by;
    let (month, day, hour) = (u8::from(then.month()), then.day(), then.hour());
    format!("{:04}{month:02}{day:02}T{hour:02}", then.year())
}

/// Lines that are older than any undo window are left as they are.
const OLD: Duration = Duration::from_secs(1000 * 3600);

fn age_journal(path: &Path, by: Duration) {
    let mut file = File::options().read(true).write(true).open(path).expect("a journal");
    let len = file.metadata().expect("its status").len();
    let from = len.saturating_sub(4 << 20);
    file.seek(SeekFrom::Start(from)).expect("its tail");
    let mut text = Vec::new();
    file.read_to_end(&mut text).expect("its lines");
    let text = String::from_utf8(text).expect("text");
    let limit = OffsetDateTime::from(SystemTime::now() - OLD);
    let mut new = Vec::new();
    let mut begin = text.len();
    for line in text.split_inclusive('\n').rev() {
        let Some((head, rest)) = line.split_once("\"time\":\"") else { break };
        let (time, tail) = rest.split_once('"').expect("a time");
        let time = OffsetDateTime::parse(time, &Rfc3339).expect("a time");
        if time < limit {
            break;
        }
        let time = (time - by).format(&Rfc3339).expect("a time");
        new.push(format!("{head}\"time\":\"{time}\"{tail}"));
        begin -= line.len();
    }
    assert!(begin > 0 || from == 0, "the journal's young lines are more than 4 MiB");
    new.reverse();
    let begin = from + begin as u64;
    file.set_len(begin).expect("a shorter journal");
    file.seek(SeekFrom::Start(begin)).expect("its end");
    file.write_all(new.concat().as_bytes()).expect("older lines");
}

// --- outsiders ------------------------------------------------------------------------------

/// `cp -a FROM TO`, as a shell does it.
pub fn cp_a(root: &Path, from: &str, to: &str) {
    outside("cp", &["-a"], root, from, to);
}

/// `mv FROM TO`
pub fn mv(root: &Path, from: &str, to: &str) {
    outside("mv", &[], root, from, to);
}

fn outside(program: &str, args: &[&str], root: &Path, from: &str, to: &str) {
    let to = root.join(to);
    fs::create_dir_all(to.parent().expect("ROOT is above")).expect("directories above");
    let status = std::process::Command::new(program)
        .args(args)
        .arg(root.join(from))
        .arg(to)
        .status()
        .expect("a program of the system");
    assert!(status.success(), "{program} {from}");
}

pub fn blob_path(root: &Path, repo: &str, digest: &Digest) -> PathBuf {
    root.join(repo).join("blobs").join(digest.algorithm().as_str()).join(digest.hex())
}

/// Writes an image into a layout as skopeo does: blobs where they are missing, then index.json in
/// place, in which the tag is taken from whatever had it.
pub fn write_like_skopeo(root: &Path, repo: &str, tag: &str, digest: &Digest, world: &World) {
    let shape = world.contents.shape(digest).expect("a manifest");
    let dir = root.join(repo);
    let needed = shape.references.iter().map(|reference| &reference.digest);
    for blob in needed.chain([digest]) {
        let path = blob_path(root, repo, blob);
        fs::create_dir_all(path.parent().expect("blobs/")).expect("directories of blobs");
        if !path.exists() {
            fs::write(path, world.contents.bytes(blob)).expect("a blob");
        }
    }
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("oci-layout");
    let path = dir.join("index.json");
    let mut index: serde_json::Value = match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).expect("an index"),
        Err(_) => serde_json::json!({ "schemaVersion": 2, "manifests": [] }),
    };
    let entries = index["manifests"].as_array_mut().expect("a list");
    let name = "org.opencontainers.image.ref.name";
    entries.retain(|entry| entry["annotations"][name] != tag);
    entries.push(serde_json::json!({
        "mediaType": shape.media_type,
        "digest": digest.as_str(),
        "size": world.contents.size(digest),
        "annotations": { name: tag },
    }));
    fs::write(path, serde_json::to_vec(&index).expect("JSON")).expect("index.json");
}

/// What a repository's index.json says, if there is one.
pub fn index(repo: &Path) -> Option<Index> {
    let bytes = fs::read(repo.join("index.json")).ok()?;
    let read = stillage::oci::Index::parse(&bytes).expect("an index.json");
    let tags = read.tags_after(None).filter_map(|tag| {
        let digest = read.tagged(tag)?.digest;
        Some((tag.to_string(), digest))
    });
    Some(Index { manifests: read.digests().collect(), tags: tags.collect() })
}

// --- does the model explain it ---------------------------------------------------------------

/// What lies in a tree, sorted by what it is.
#[derive(Debug, Default)]
pub struct Laid {
    pub blobs: BTreeSet<(String, Digest)>,
    pub indexes: BTreeSet<String>,
    pub notes: BTreeSet<(String, Digest)>,
    pub trash: BTreeSet<(String, Digest)>,
    pub sessions: BTreeSet<String>,
    pub pool: BTreeMap<Digest, Status>,
    /// All names that blobs' inodes have, by digest.
    pub inodes: BTreeMap<Digest, Vec<Status>>,
    pub unexplained: Vec<String>,
}

pub fn laid(root: &Path) -> Laid {
    let mut laid = Laid::default();
    for (path, status) in files(root) {
        let known = match path.strip_prefix(".stillage/") {
            Some(in_room) => laid.room(in_room, status),
            None => laid.repository(&path, status),
        };
        if known.is_none() {
            laid.unexplained.push(path);
        }
    }
    laid
}

/// The blobs whose files nobody but an outsider can have written: they may change at any time.
pub fn theirs(root: &Path) -> BTreeSet<Place> {
    let mut theirs = BTreeSet::new();
    each_file(root, "", &mut |path, meta| {
        if !path.starts_with(".stillage/") && meta.mode() & 0o666 != 0o444 {
            theirs.extend(blob(&path));
        }
    });
    theirs
}

/// `<repo>/blobs/<alg>/<hex>`
fn blob(path: &str) -> Option<(String, Digest)> {
    let (rest, hex) = path.rsplit_once('/')?;
    let (rest, algorithm) = rest.rsplit_once('/')?;
    let repo = rest.strip_suffix("/blobs")?;
    Some((repo.to_owned(), Digest::parse(&format!("{algorithm}:{hex}")).ok()?))
}

impl Laid {
    fn repository(&mut self, path: &str, status: Status) -> Option<()> {
        if let Some((repo, digest)) = blob(path) {
            self.inodes.entry(digest.clone()).or_default().push(status);
            self.blobs.insert((repo, digest));
            return Some(());
        }
        let (repo, name) = path.rsplit_once('/')?;
        // Views are compared by what they say.
        let lists = Algorithm::ALL.map(|algorithm| format!("/_referrers/{algorithm}/"));
        let is_view = path.contains("/_manifests/") || name == "_tags.json";
        if is_view || lists.iter().any(|lists| path.contains(lists)) {
            return Some(());
        }
        match name {
            "index.json" => {
                self.indexes.insert(repo.to_owned());
            }
            "oci-layout" | ".lock" => {}
            "facts.jsonl" => {
                repo.strip_suffix("/_referrers")?;
            }
            _ => {
                name.strip_prefix("_log")?.strip_suffix(".jsonl")?;
            }
        }
        Some(())
    }

    fn room(&mut self, path: &str, status: Status) -> Option<()> {
        let Some((first, rest)) = path.split_once('/') else {
            return ["version", "gc.lock", "collected", "token-key", "token-key.lock"]
                .contains(&path)
                .then_some(());
        };
        match first {
            "holders" => {}
            "uploads" => {
                let (id, name) = rest.split_once('/')?;
                ["data", "owner"].contains(&name).then_some(())?;
                self.sessions.insert(id.to_owned());
            }
            "unreferenced" => {
                let (repo, digest) = rest.rsplit_once('/')?;
                self.notes.insert((repo.to_owned(), Digest::parse(digest).ok()?));
            }
            "trash" => {
                let (repo, digest) = blob(rest.split_once('/')?.1)?;
                self.inodes.entry(digest.clone()).or_default().push(status);
                self.trash.insert((repo, digest));
            }
            "pool" => {
                let [algorithm, _, hex] = rest.split('/').collect::<Vec<_>>()[..] else {
                    return None;
                };
                let digest = Digest::parse(&format!("{algorithm}:{hex}")).ok()?;
                self.inodes.entry(digest.clone()).or_default().push(status);
                self.pool.insert(digest, status);
            }
            _ => return None,
        }
        Some(())
    }
}
