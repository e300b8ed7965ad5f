//! The sweep of the room: uploads that nobody goes on with, and what killed servers left there.
//!
//! Whoever writes to a session, or to a temporary file of a blob, holds its lock. The sweep takes only
//! what it could lock, and judges it again under the lock: an upload that lasts longer than any
//! expiry stays, as long as its request does. No blob's name vanishes, so gc.lock is not needed.

use std::fs::File;
use std::time::SystemTime;

use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::dir::{self, Dir, Inode};
use super::error::Result;
use super::path;
use super::tree::Tree;
use super::uploads::{self, UploadId};

/// What a sweep found.
#[derive(Debug, Default)]
pub struct Swept {
    /// The sessions that are open still, and whose they are.
    pub open: Vec<(UploadId, Option<String>)>,
    /// The sessions that were ended.
    pub ended: Vec<UploadId>,
    /// How many temporary files were removed.
    pub files: usize,
    /// How many bytes went.
    pub bytes: u64,
}

/// Ends every session, and removes every temporary file, whose content changed last before a time,
/// unless somebody holds it. Without a time only what has become a blob already goes.
///
/// Whatever else lies there is left alone. What cannot be read is logged, counts as open, and keeps
/// nothing else from being swept.
pub fn sweep(tree: &Tree, before: Option<SystemTime>) -> Result<Swept> {
    sweep_if(tree, before, true)
}

/// The same, or only what it would do.
pub fn sweep_if(tree: &Tree, before: Option<SystemTime>, really: bool) -> Result<Swept> {
    let mut sweep = Sweep { tree, before, really, swept: Swept::default() };
    let uploads = tree.room.dir(path::UPLOADS)?;
    for (name, kind) in uploads.names()? {
        match UploadId::parse(&name) {
            Some(id) if kind == FileType::Directory => sweep.session(&uploads, id),
            _ => sweep.file(&uploads, &name, kind),
        }
    }
    for (name, kind) in tree.room.names()? {
        sweep.file(&tree.room, &name, kind);
    }
    Ok(sweep.swept)
}

/// Removes a temporary name of ours from a repository or the pool, if it was made before a time and
/// nobody holds it; gives the bytes that went with it. A directory goes only if it is empty. Without
/// `really` it only looks.
pub fn leftover(
    tree: &Tree,
    dir: &Dir,
    name: &str,
    kind: FileType,
    before: SystemTime,
    really: bool,
) -> Result<Option<u64>> {
    let made_before = |stat: &Stat| {
        // A link is as old as its inode, but for the time at which the inode got it.
        dir::modified(stat).max(dir::changed(stat)) < before
    };
    if !path::is_temporary(name) || !dir.stat_name(name)?.is_some_and(|stat| made_before(&stat)) {
        return Ok(None);
    }
    match kind {
        FileType::RegularFile => {
            let sweep = Sweep { tree, before: Some(before), really, swept: Swept::default() };
            sweep.try_file(dir, name)
        }
        // A view in the making. What it says is nobody's loss.
        FileType::Symlink => {
            if really {
                tree.disk.unlink(dir, name)?;
            }
            Ok(Some(0))
        }
        FileType::Directory if dir.dir(name)?.entries()?.next().is_none() => {
            if really {
                tree.disk.remove_dir(dir, name)?;
            }
            Ok(Some(0))
        }
        _ => Ok(None),
    }
}

struct Sweep<'a> {
    tree: &'a Tree,
    before: Option<SystemTime>,
    really: bool,
    swept: Swept,
}

impl Sweep<'_> {
    fn session(&mut self, uploads: &Dir, id: UploadId) {
        match self.try_session(uploads, &id) {
            Ok(Some(Fate::Open(user))) => self.swept.open.push((id, user)),
            Ok(Some(Fate::Ended { bytes })) => {
                self.swept.ended.push(id);
                self.swept.bytes += bytes;
            }
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(cause = ?error.to_string(), "an upload cannot be judged and stays");
                self.swept.open.push((id, None));
            }
        }
    }

    /// `None` for what ended meanwhile, and for what is not a session yet or any more.
    fn try_session(&self, uploads: &Dir, id: &UploadId) -> Result<Option<Fate>> {
        let dir = match uploads.dir(id.as_str()) {
            Err(error) if error.is_absent() => return Ok(None),
            opened => opened?,
        };
        let data = dir.stat_name(path::UPLOAD_DATA)?;
        let held = match data {
            // Half made by a server that was killed, or the shell of one that ended.
            None if self.is_old(&dir.stat()?) => None,
            Some(stat) if self.is_dead(&stat) => match self.hold(&dir, path::UPLOAD_DATA)? {
                Some(held) => Some(held),
                None => return open(&dir),
            },
            _ => return open(&dir),
        };
        let bytes = held.as_ref().map_or(0, |(_, stat)| freed(stat));
        if self.really {
            uploads::end(self.tree, &dir, id, held.map(|(file, _)| file))?;
        }
        Ok(Some(Fate::Ended { bytes }))
    }

    fn file(&mut self, dir: &Dir, name: &str, kind: FileType) {
        if kind != FileType::RegularFile || !path::is_temporary(name) {
            return;
        }
        match self.try_file(dir, name) {
            Ok(Some(bytes)) => {
                self.swept.files += 1;
                self.swept.bytes += bytes;
            }
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(cause = ?error.to_string(), "a temporary file is not swept");
            }
        }
    }

    fn try_file(&self, dir: &Dir, name: &str) -> Result<Option<u64>> {
        if !dir.stat_name(name)?.is_some_and(|stat| self.is_old(&stat)) {
            return Ok(None);
        }
        let Some((_held, stat)) = self.hold(dir, name)? else {
            return Ok(None);
        };
        if self.really {
            self.tree.disk.unlink(dir, name)?;
        }
        Ok(Some(freed(&stat)))
    }

    /// Locks a file that is to go; `None` if somebody else has it, or it is alive after all.
    fn hold(&self, dir: &Dir, name: &str) -> Result<Option<(File, Stat)>> {
        // Some network file systems lock only what is open for writing. Without NONBLOCK whoever has a
        // lease of the file would hold us for as long as the kernel lets them.
        let opened = match dir.regular(name, OFlags::RDWR | OFlags::NONBLOCK, Mode::empty()) {
            Err(error) if error.errno() == Some(Errno::ACCESS) => dir.file(name),
            opened => opened,
        };
        let file = match opened {
            Err(error) if error.is_absent() || error.errno() == Some(Errno::AGAIN) => {
                return Ok(None);
            }
            opened => opened?,
        };
        if file.try_lock().is_err() {
            return Ok(None);
        }
        let stat = dir::stat_file(&file, || dir.at(name))?;
        let named = dir.stat_name(name)?;
        let same = named.is_some_and(|named| Inode::of(&named) == Inode::of(&stat));
        Ok((same && self.is_dead(&stat)).then_some((file, stat)))
    }

    fn is_old(&self, stat: &Stat) -> bool {
        self.before.is_some_and(|before| dir::modified(stat) < before)
    }

    /// Data with a second name is a blob: the server was killed before it could end the session.
    fn is_dead(&self, stat: &Stat) -> bool {
        stat.st_nlink > 1 || self.is_old(stat)
    }
}

enum Fate {
    Open(Option<String>),
    Ended { bytes: u64 },
}

/// A session that stays. One without an owner is in the making, or will be swept when it is old.
fn open(dir: &Dir) -> Result<Option<Fate>> {
    Ok(uploads::owner_of(dir)?.map(|owner| Fate::Open(owner.user)))
}

/// What goes with the last name of an inode.
fn freed(stat: &Stat) -> u64 {
    if stat.st_nlink == 1 { u64::try_from(stat.st_blocks).unwrap_or(0) * 512 } else { 0 }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::sync::Arc;
    use std::time::Duration;

    use super::super::disk::RealDisk;
    use super::super::incoming::Incoming;
    use super::super::uploads::{Owner, Session};
    use super::*;
    use crate::oci::{Algorithm, RepoName};

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    struct Fixture {
        temp: tempfile::TempDir,
        tree: Tree,
    }

    fn fixture() -> Fixture {
        let temp = tempfile::tempdir().unwrap();
        let tree = Tree::open(temp.path(), Arc::new(RealDisk)).unwrap();
        Fixture { temp, tree }
    }

    impl Fixture {
        fn session(&self) -> (UploadId, Session) {
            let id = UploadId::random();
            let repo = RepoName::parse("a").unwrap();
            let owner = Owner::new(Some("alice".into()), &repo, Algorithm::Sha256);
            let session = Session::create(&self.tree, &id, owner).unwrap();
            (id, session)
        }

        fn sweep(&self) -> Swept {
            sweep(&self.tree, Some(SystemTime::now() - DAY)).unwrap()
        }

        fn at(&self, relative: impl AsRef<Path>) -> PathBuf {
            self.temp.path().join(".stillage").join(relative)
        }

        fn data(&self, id: &UploadId) -> PathBuf {
            self.at("uploads").join(id.as_str()).join("data")
        }

        fn uploads(&self) -> Vec<String> {
            let entries = fs::read_dir(self.at("uploads")).unwrap();
            let mut names: Vec<String> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }
    }

    /// Two days old.
    fn age(path: impl AsRef<Path>) {
        let file = File::open(path).unwrap();
        file.set_modified(SystemTime::now() - 2 * DAY).unwrap();
    }

    #[test]
    fn upload_expiry_goes_by_the_last_byte_and_spares_what_is_held() {
        let f = fixture();
        let (fresh, _) = f.session();
        let (old, _) = f.session();
        let (held, session) = f.session();
        fs::write(f.data(&old), vec![1; 1 << 16]).unwrap();
        age(f.data(&old));
        age(f.data(&held));
        let lock = session.lock().unwrap().unwrap();
        let swept = f.sweep();
        assert_eq!(swept.ended, [old]);
        assert!(swept.bytes >= 1 << 16, "{}", swept.bytes);
        assert!(swept.open.iter().all(|(_, user)| user.as_deref() == Some("alice")));
        assert_eq!(swept.open.len(), 2);
        assert_eq!(f.uploads().len(), 2);
        drop(lock);
        assert_eq!(f.sweep().ended, [held]);
        assert_eq!(f.uploads(), [fresh.to_string()]);
    }

    #[test]
    fn upload_expiry_takes_what_killed_servers_left() {
        let f = fixture();
        let half = |old: bool| {
            let dir = f.at("uploads").join(UploadId::random().as_str());
            fs::create_dir(&dir).unwrap();
            if old {
                age(&dir);
            }
        };
        half(true);
        half(false);
        let (torn, _) = f.session();
        fs::write(f.data(&torn).with_file_name("owner"), "{\"us").unwrap();
        age(f.data(&torn));
        let temporaries = ["uploads/.blob.0123456789abcdef", ".token-key.0123456789abcdef"];
        for name in temporaries {
            fs::write(f.at(name), "x").unwrap();
            age(f.at(name));
        }
        fs::write(f.at("uploads/.blob.fedcba9876543210"), "young").unwrap();
        let foreign = ["uploads/notes.txt", "uploads/.blob.0123", ".hidden"];
        for name in foreign {
            fs::write(f.at(name), "x").unwrap();
            age(f.at(name));
        }
        let swept = f.sweep();
        assert_eq!((swept.ended.len(), swept.files), (2, 2), "{swept:?}");
        assert!(swept.open.is_empty(), "{swept:?}");
        for name in temporaries {
            assert!(!f.at(name).exists(), "{name}");
        }
        for name in foreign {
            assert!(f.at(name).exists(), "{name}");
        }
        // These, the young file and the young half.
        assert_eq!(f.uploads().len(), 4, "{:?}", f.uploads());
    }

    #[test]
    fn a_temporary_file_that_is_being_written_stays() {
        let f = fixture();
        let uploads = f.tree.room.dir(path::UPLOADS).unwrap();
        let incoming = Incoming::beside(&f.tree, &uploads).unwrap();
        age(f.at("uploads").join(&f.uploads()[0]));
        assert_eq!(f.sweep().files, 0);
        assert_eq!(f.uploads().len(), 1);
        // The lock goes with the file.
        incoming.file().unlock().unwrap();
        assert_eq!(f.sweep().files, 1);
        drop(incoming);
    }

    #[test]
    fn a_session_that_has_become_a_blob_goes_at_once() {
        let f = fixture();
        let (id, session) = f.session();
        let blob = f.temp.path().join("blob");
        fs::hard_link(f.data(&id), &blob).unwrap();
        // Whoever finishes it holds it.
        let lock = File::open(f.data(&id)).unwrap();
        lock.lock().unwrap();
        assert_eq!(sweep(&f.tree, None).unwrap().ended, []);
        drop((lock, session));
        let swept = sweep(&f.tree, None).unwrap();
        assert_eq!((swept.ended, swept.bytes), (vec![id], 0));
        assert!(blob.exists());
        assert!(f.uploads().is_empty());
    }

    #[test]
    fn without_a_time_nothing_is_old() {
        let f = fixture();
        let (id, _) = f.session();
        age(f.data(&id));
        assert_eq!(sweep(&f.tree, None).unwrap().open.len(), 1);
        assert_eq!(f.uploads().len(), 1);
    }
}
