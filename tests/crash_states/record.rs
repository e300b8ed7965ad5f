//! A disk that writes down every step: what was made, written, synced, linked, renamed and removed, by
//! the identity of files and directories, in the order in which it happened.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use stillage::layout::{At, Dir, Disk, Inode, RealDisk, Result};

use super::places::{Place, base, ours};

/// A file or directory of the record.
pub type Id = usize;

/// The directory in which ROOT is made.
pub const ABOVE: Id = 0;

/// One step. What is not a step cannot change what a crash leaves.
#[derive(Clone, Debug)]
pub enum Step {
    MakeDir {
        dir: Id,
        name: String,
        id: Id,
    },
    /// A file, by its name or without one.
    Create {
        at: Option<(Id, String)>,
        id: Id,
    },
    /// A symlink, which never changes.
    Symlink {
        dir: Id,
        name: String,
        id: Id,
        target: Arc<[u8]>,
    },
    Write {
        id: Id,
        offset: u64,
        bytes: Arc<[u8]>,
    },
    SetLen {
        id: Id,
        len: u64,
    },
    Link {
        dir: Id,
        name: String,
        id: Id,
    },
    Rename {
        from: Id,
        old: String,
        to: Id,
        new: String,
        id: Id,
    },
    Remove {
        dir: Id,
        name: String,
    },
    /// The mode that a file or directory is seen to have.
    Mode {
        id: Id,
        mode: u32,
    },
    Sync {
        id: Id,
        place: Place,
    },
    SyncDir {
        id: Id,
        place: Place,
    },
    /// syncfs(2).
    SyncAll {
        place: Place,
    },
    /// Everything is written to the disk in the end: after half a minute, by the kernel.
    Settled,
    /// A deed begins, or is acknowledged: its number in the test's own list.
    Begin(usize),
    Acknowledged(usize),
}

impl Step {
    /// Whether it makes something durable, and where in the code.
    pub fn place(&self) -> Option<&Place> {
        match self {
            Step::Sync { place, .. } | Step::SyncDir { place, .. } | Step::SyncAll { place } => {
                Some(place)
            }
            _ => None,
        }
    }
}

/// The real disk, with a record. One step at a time.
#[derive(Debug)]
pub struct Recorder {
    /// Whether the places of syncs are looked for, which takes milliseconds each.
    places: bool,
    /// Whether the file system knows links.
    links: AtomicBool,
    tape: Mutex<Tape>,
}

#[derive(Debug, Default)]
struct Tape {
    steps: Vec<Step>,
    ids: HashMap<Inode, Id>,
    modes: HashMap<Id, u32>,
    /// Held open, so that no inode's number is used again.
    held: Vec<OwnedFd>,
    /// Steps until the process dies.
    until_death: Option<usize>,
    /// The sync at which it dies.
    dies_before: Option<&'static str>,
    /// How many times a disk was asked to change something.
    done: usize,
    /// How many times before each sync.
    syncs: Vec<usize>,
}

impl Recorder {
    /// Of everything that happens beneath `above`, where ROOT is made.
    pub fn new(above: &Path, places: bool) -> Arc<Recorder> {
        let dir = Dir::open_root(above).expect("a directory");
        let mut tape = Tape::default();
        tape.meet(dir.inode().expect("its inode"), File::open(above).expect("a directory").into());
        Arc::new(Recorder { places, links: AtomicBool::new(true), tape: Mutex::new(tape) })
    }

    fn tape(&self) -> MutexGuard<'_, Tape> {
        self.tape.lock().expect("nobody panics with the tape")
    }

    /// Everything so far.
    pub fn steps(&self) -> Vec<Step> {
        self.tape().steps.clone()
    }

    /// How many times something was asked of the disk so far.
    pub fn done(&self) -> usize {
        self.tape().done
    }

    /// How many times before each sync.
    pub fn syncs(&self) -> Vec<usize> {
        self.tape().syncs.clone()
    }

    /// Half a minute goes by.
    pub fn settle(&self) {
        self.tape().steps.push(Step::Settled);
    }

    /// A deed of the test begins.
    pub fn begin(&self, deed: usize) {
        self.tape().steps.push(Step::Begin(deed));
    }

    /// What the deed promised, it has promised now.
    pub fn acknowledge(&self, deed: usize) {
        self.tape().steps.push(Step::Acknowledged(deed));
    }

    /// After so many more steps the process is dead: nothing that it does reaches the disk.
    pub fn die_after(&self, steps: usize) {
        self.tape().until_death = Some(steps);
    }

    /// The process is dead before it syncs something at such a place; places are to be looked for.
    pub fn die_before(&self, place: &'static str) {
        self.tape().dies_before = Some(place);
    }

    /// Another process takes over.
    pub fn revive(&self) {
        let mut tape = self.tape();
        (tape.until_death, tape.dies_before) = (None, None);
    }

    /// From now on the file system knows no links.
    pub fn without_links(&self) {
        self.links.store(false, Ordering::Relaxed);
    }

    fn refuse_links(&self) -> std::result::Result<(), Errno> {
        if self.links.load(Ordering::Relaxed) { Ok(()) } else { Err(Errno::PERM) }
    }

    fn place(&self, what: String) -> Place {
        if !self.places {
            return Place { what, ..Place::default() };
        }
        let trace = std::backtrace::Backtrace::force_capture().to_string();
        let (line, functions) = ours(&trace);
        Place { line, functions, what }
    }
}

impl Tape {
    fn meet(&mut self, inode: Inode, held: OwnedFd) -> Id {
        let next = self.ids.len();
        self.held.push(held);
        *self.ids.entry(inode).or_insert(next)
    }

    /// The number of what was met before. What never came through a disk may not be relied on.
    fn id(&self, inode: Inode, what: impl FnOnce() -> String) -> Id {
        *self.ids.get(&inode).unwrap_or_else(|| panic!("{} came past the disk", what()))
    }

    fn dir(&mut self, dir: &Dir) -> Result<Id> {
        let stat = dir.stat()?;
        let id = self.id(Inode::of(&stat), || dir.path().display().to_string());
        self.mode(id, stat.st_mode);
        Ok(id)
    }

    fn file(&mut self, file: &File) -> Id {
        let meta = file.metadata().expect("an open file");
        let id = self.id(Inode { dev: meta.dev(), ino: meta.ino() }, || format!("{file:?}"));
        self.mode(id, meta.permissions().mode());
        id
    }

    fn named(&self, dir: &Dir, name: &str) -> Result<Option<Id>> {
        let stat = dir.stat_name(name)?;
        Ok(stat.map(|stat| self.id(Inode::of(&stat), || dir.at(name).display().to_string())))
    }

    fn mode(&mut self, id: Id, mode: u32) {
        let mode = mode & 0o7777;
        if self.modes.insert(id, mode) != Some(mode) {
            self.steps.push(Step::Mode { id, mode });
        }
    }

    /// One more step happens, unless the process is dead.
    fn live(&mut self) -> std::result::Result<(), Errno> {
        match &mut self.until_death {
            Some(0) => return Err(Errno::IO),
            Some(left) => *left -= 1,
            None => {}
        }
        self.done += 1;
        Ok(())
    }

    /// One more step, which is a sync.
    fn syncs_at(&mut self, place: &Place) -> std::result::Result<(), Errno> {
        if self.dies_before.is_some_and(|last| place.functions.starts_with(last)) {
            self.until_death = Some(0);
        }
        self.live()?;
        self.syncs.push(self.done - 1);
        Ok(())
    }

    fn made(&mut self, file: &File, at: Option<(Id, String)>) {
        let meta = file.metadata().expect("a new file");
        let held = file.try_clone().expect("a descriptor").into();
        let id = self.meet(Inode { dev: meta.dev(), ino: meta.ino() }, held);
        self.steps.push(Step::Create { at, id });
        self.mode(id, meta.permissions().mode());
    }
}

impl Disk for Recorder {
    fn make_dir(&self, dir: &Dir, name: &str, mode: Mode) -> Result<()> {
        let mut tape = self.tape();
        tape.live().at(|| dir.at(name))?;
        let parent = tape.dir(dir)?;
        RealDisk.make_dir(dir, name, mode)?;
        let made = dir.dir(name)?;
        let held = rustix::fs::openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let id = tape.meet(made.inode()?, held.at(|| dir.at(name))?);
        tape.steps.push(Step::MakeDir { dir: parent, name: name.to_owned(), id });
        tape.dir(&made).map(|_| ())
    }

    fn create(&self, dir: &Dir, name: &str, mode: Mode) -> Result<File> {
        let mut tape = self.tape();
        tape.live().at(|| dir.at(name))?;
        let parent = tape.dir(dir)?;
        let file = RealDisk.create(dir, name, mode)?;
        tape.made(&file, Some((parent, name.to_owned())));
        Ok(file)
    }

    fn create_unnamed(&self, dir: &Dir, mode: Mode) -> Result<File> {
        let mut tape = self.tape();
        tape.live().at(|| dir.path().to_owned())?;
        let file = RealDisk.create_unnamed(dir, mode)?;
        tape.made(&file, None);
        Ok(file)
    }

    fn open_append(&self, dir: &Dir, name: &str, mode: Mode) -> Result<(File, bool)> {
        let mut tape = self.tape();
        tape.live().at(|| dir.at(name))?;
        let parent = tape.dir(dir)?;
        let (file, made) = RealDisk.open_append(dir, name, mode)?;
        if made {
            tape.made(&file, Some((parent, name.to_owned())));
        } else {
            tape.file(&file);
        }
        Ok((file, made))
    }

    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        let mut tape = self.tape();
        tape.live()?;
        let id = tape.file(file);
        // What is opened for appending takes them at its end, whatever the offset.
        let appends = rustix::fs::fcntl_getfl(file)?.contains(OFlags::APPEND);
        let offset = if appends { file.metadata()?.len() } else { offset };
        RealDisk.write(file, bytes, offset)?;
        tape.steps.push(Step::Write { id, offset, bytes: bytes.into() });
        Ok(())
    }

    fn set_len(&self, file: &File, len: u64) -> std::io::Result<()> {
        let mut tape = self.tape();
        tape.live()?;
        let id = tape.file(file);
        RealDisk.set_len(file, len)?;
        tape.steps.push(Step::SetLen { id, len });
        Ok(())
    }

    fn clone_content(&self, _: &File, _: &File) -> std::io::Result<()> {
        // As on ext4: the bytes are copied, and recorded one by one.
        Err(Errno::OPNOTSUPP.into())
    }

    fn sync(&self, file: &File) -> std::io::Result<()> {
        let link =
            std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file)))?;
        let deleted = link.to_string_lossy().ends_with(" (deleted)");
        let place = self.place(if deleted { "a blob".to_owned() } else { base(&link) });
        let mut tape = self.tape();
        tape.syncs_at(&place)?;
        let id = tape.file(file);
        tape.steps.push(Step::Sync { id, place });
        Ok(())
    }

    fn sync_dir(&self, dir: &Dir) -> Result<()> {
        let place = self.place(base(dir.path()));
        let mut tape = self.tape();
        tape.syncs_at(&place).at(|| dir.path().to_owned())?;
        let id = tape.dir(dir)?;
        tape.steps.push(Step::SyncDir { id, place });
        Ok(())
    }

    fn sync_all(&self, dir: &Dir) -> Result<()> {
        let place = self.place("everything".to_owned());
        let mut tape = self.tape();
        tape.syncs_at(&place).at(|| dir.path().to_owned())?;
        tape.steps.push(Step::SyncAll { place });
        Ok(())
    }

    fn rename(&self, from: &Dir, old: &str, to: &Dir, new: &str) -> Result<()> {
        self.renames(from, old, to, new, |disk| disk.rename(from, old, to, new))
    }

    fn rename_new(&self, from: &Dir, old: &str, to: &Dir, new: &str) -> Result<()> {
        self.renames(from, old, to, new, |disk| disk.rename_new(from, old, to, new))
    }

    fn link(&self, from: &Dir, old: &str, to: &Dir, new: &str) -> Result<()> {
        let mut tape = self.tape();
        tape.live().and_then(|()| self.refuse_links()).at(|| to.at(new))?;
        let found = tape.named(from, old)?;
        let dir = tape.dir(to)?;
        RealDisk.link(from, old, to, new)?;
        let id = found.expect("what was linked was there");
        tape.steps.push(Step::Link { dir, name: new.to_owned(), id });
        Ok(())
    }

    fn link_file(&self, file: &File, to: &Dir, new: &str) -> Result<()> {
        let mut tape = self.tape();
        tape.live().and_then(|()| self.refuse_links()).at(|| to.at(new))?;
        let (id, dir) = (tape.file(file), tape.dir(to)?);
        RealDisk.link_file(file, to, new)?;
        tape.steps.push(Step::Link { dir, name: new.to_owned(), id });
        Ok(())
    }

    fn unlink(&self, dir: &Dir, name: &str) -> Result<()> {
        let mut tape = self.tape();
        tape.live().at(|| dir.at(name))?;
        let parent = tape.dir(dir)?;
        RealDisk.unlink(dir, name)?;
        tape.steps.push(Step::Remove { dir: parent, name: name.to_owned() });
        Ok(())
    }

    fn symlink(&self, target: &CStr, dir: &Dir, name: &str) -> Result<()> {
        let mut tape = self.tape();
        tape.live().at(|| dir.at(name))?;
        let parent = tape.dir(dir)?;
        RealDisk.symlink(target, dir, name)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let held = rustix::fs::openat(dir, name, flags, Mode::empty()).at(|| dir.at(name))?;
        let stat = dir.stat_name(name)?.expect("a new symlink");
        let id = tape.meet(Inode::of(&stat), held);
        let target = target.to_bytes().into();
        tape.steps.push(Step::Symlink { dir: parent, name: name.to_owned(), id, target });
        Ok(())
    }

    fn remove_dir(&self, dir: &Dir, name: &str) -> Result<()> {
        let mut tape = self.tape();
        tape.live().at(|| dir.at(name))?;
        let parent = tape.dir(dir)?;
        RealDisk.remove_dir(dir, name)?;
        tape.steps.push(Step::Remove { dir: parent, name: name.to_owned() });
        Ok(())
    }
}

impl Recorder {
    fn renames(
        &self,
        from: &Dir,
        old: &str,
        to: &Dir,
        new: &str,
        rename: impl FnOnce(&RealDisk) -> Result<()>,
    ) -> Result<()> {
        let mut tape = self.tape();
        tape.live().at(|| to.at(new))?;
        let moved = tape.named(from, old)?;
        let replaced = tape.named(to, new)?;
        let (from_id, to_id) = (tape.dir(from)?, tape.dir(to)?);
        rename(&RealDisk)?;
        let id = moved.expect("what was renamed was there");
        // rename(2) of one inode over itself does nothing.
        if replaced != Some(id) {
            let (old, name) = (old.to_owned(), new.to_owned());
            tape.steps.push(Step::Rename { from: from_id, old, to: to_id, new: name, id });
        }
        if let Some(stat) = to.stat_name(new)? {
            tape.mode(id, stat.st_mode);
        }
        Ok(())
    }
}
