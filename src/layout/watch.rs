//! Which repositories may have changed, as the kernel tells it (inotify), without a request and
//! without looking at them all.
//!
//! Watched are the directories that are repositories or lead to one; never what lies in `blobs`, and
//! never the room: a push of many blobs costs nothing here. A directory is watched by its descriptor,
//! so no symlink is followed, and what lies in it is looked at after the watch is set, so that nothing
//! falls in between. Where only who may read it changed, that is told apart. Nobody may rely on any of
//! this: an index.json that is mapped into memory, another machine's change, a mount over a directory are
//! not told.
//!
//! Where the kernel cannot tell (too many events at once, no more watches, a network file system), that
//! is said once in the log, and everything is to be looked at, again and again, until it can.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::mem::MaybeUninit;
use std::ops::Bound;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FileType;
use rustix::fs::inotify::{self, CreateFlags, Event, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;

use super::dir::{self, Dir};
use super::error::OrAbsent;
use super::path;
use crate::oci::RepoName;

/// How long nothing may happen before a burst counts as over.
const QUIET: Duration = Duration::from_millis(30);

/// The longest burst: whoever writes without end must not keep others from being told.
const BURST: Duration = Duration::from_millis(300);

/// After too many events at once the next attempt comes no sooner.
const AGAIN: Duration = Duration::from_secs(5);

/// More names are "everything".
const MOST: usize = 100_000;

/// What is asked of the kernel: names that come, go, or were written to. Not what is opened or read.
const ASKED: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::ONLYDIR)
    .union(WatchFlags::EXCL_UNLINK);

/// What may have changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// These repositories; they may be gone, or never have been any.
    pub names: BTreeSet<RepoName>,
    /// What these say did not change, but perhaps who may read it.
    pub rights: BTreeSet<RepoName>,
    /// Everything is to be looked at.
    pub all: bool,
    /// What had changed before was told before.
    pub since: SystemTime,
}

impl Changed {
    /// Nothing, since a time.
    pub fn nothing(since: SystemTime) -> Changed {
        Changed { names: BTreeSet::new(), rights: BTreeSet::new(), all: false, since }
    }

    fn is_nothing(&self) -> bool {
        !self.all && self.names.is_empty() && self.rights.is_empty()
    }
}

/// Why the kernel cannot tell all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Trouble {
    Overflow,
    Limit,
    Lost,
    Remote,
}

/// Tells what may have changed beneath a root.
#[derive(Debug)]
pub struct Watcher {
    root: Dir,
    every: Duration,
    remote: bool,
    watches: Watches,
    changed: Changed,
    /// What is wrong, since the last time that nothing was.
    said: BTreeSet<Trouble>,
    /// Nothing is wrong now.
    whole: bool,
    /// Index.json files that changed before are not told while everything is set up.
    news: SystemTime,
    /// When everything was last set up anew, and when it is to be again if something is wrong.
    begun: Instant,
    due: Instant,
}

/// The watched directories, each by its watch and by its path from the root.
#[derive(Debug, Default)]
struct Watches {
    inotify: Option<OwnedFd>,
    paths: HashMap<i32, Arc<str>>,
    numbers: BTreeMap<Arc<str>, i32>,
}

impl Watcher {
    /// Begins to watch: what changes after this has returned is told, and index.json files that have
    /// changed since `news`. Where the kernel cannot tell, everything is to be looked at after `every`
    /// such time. `remote` says that others may change the tree without our kernel.
    pub fn start(root: &Dir, every: Duration, remote: bool, news: SystemTime) -> Watcher {
        let now = Instant::now();
        let changed = Changed::nothing(SystemTime::now());
        let (watches, said) = (Watches::default(), BTreeSet::new());
        let root = root.clone();
        let mut watcher = Watcher {
            root,
            every,
            remote,
            watches,
            changed,
            said,
            whole: true,
            news,
            begun: now,
            due: now,
        };
        watcher.begin();
        watcher.changed.all = false;
        watcher.news = SystemTime::UNIX_EPOCH;
        watcher
    }

    /// Waits until something may have changed.
    pub fn wait(&mut self) -> Changed {
        let mut now = self.changed.since;
        while self.changed.is_nothing() {
            let told = self.ready((!self.whole).then_some(self.due));
            now = SystemTime::now();
            if self.whole {
                // Until just now there was nothing to tell.
                self.changed.since = now;
            }
            if told {
                self.gather();
            }
            if !self.whole && Instant::now() >= self.due {
                self.begin();
                self.changed.all = true;
            }
        }
        let since = if self.changed.all { now } else { self.changed.since };
        std::mem::replace(&mut self.changed, Changed::nothing(since))
    }

    /// Waits until the kernel has something to tell, at most until `end`; whether it has.
    fn ready(&self, end: Option<Instant>) -> bool {
        let Some(inotify) = &self.watches.inotify else {
            let end = end.unwrap_or_else(|| Instant::now() + self.every);
            std::thread::sleep(end.saturating_duration_since(Instant::now()));
            return false;
        };
        loop {
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            match poll(&mut [PollFd::new(inotify, PollFlags::IN)], left.as_ref()) {
                Err(Errno::INTR) => {}
                Ok(ready) => return ready > 0,
                // Out of memory, at worst.
                Err(_) => std::thread::sleep(QUIET),
            }
        }
    }

    /// Takes in all that is told until nothing more is.
    fn gather(&mut self) {
        let end = Instant::now() + BURST;
        loop {
            let mut events = Vec::new();
            if let Some(inotify) = &self.watches.inotify {
                let mut buffer = [MaybeUninit::uninit(); 64 * 1024];
                let mut reader = Reader::new(inotify, &mut buffer);
                // Anything but an event means that there is none, for now.
                while let Ok(event) = reader.next() {
                    events.push(Told::of(&event));
                }
            }
            events.into_iter().for_each(|told| self.take(told));
            let now = Instant::now();
            if self.watches.inotify.is_none() || now >= end || !self.ready(Some(now + QUIET)) {
                return;
            }
        }
    }

    fn take(&mut self, told: Told) {
        let Told { watch, flags, name } = told;
        if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            self.trouble(Trouble::Overflow, "too many changes at once");
            return;
        }
        let Some(path) = self.watches.paths.get(&watch).cloned() else { return };
        if flags.contains(ReadFlags::UNMOUNT) {
            self.leave(&path);
            self.trouble(Trouble::Lost, &path);
            return;
        }
        if flags.contains(ReadFlags::IGNORED) {
            self.watches.forget(watch);
            if path.is_empty() {
                self.trouble(Trouble::Lost, "the registry's directory is gone");
            }
            return;
        }
        let Some(name) = name else {
            // A directory is told of by the one above; nobody watches what is above the root.
            if path.is_empty() && flags.contains(ReadFlags::ATTRIB) {
                self.tell_rights("");
            }
            return;
        };
        if !flags.contains(ReadFlags::ISDIR) {
            match flags {
                _ if name != path::INDEX => {}
                // That somebody gave it another time or mode is no change of what it says.
                ReadFlags::ATTRIB => self.tell_rights_of(&path),
                _ => self.tell(&path),
            }
            return;
        }
        let child = join(&path, &name);
        if RepoName::parse(&child).is_err() {
            return;
        }
        if flags.intersects(ReadFlags::MOVED_FROM | ReadFlags::DELETE) {
            self.leave(&child);
        } else if flags.intersects(ReadFlags::MOVED_TO | ReadFlags::CREATE)
            // Perhaps it can be read only now.
            || !self.watches.numbers.contains_key(&*child)
        {
            self.enter(&child);
        } else {
            self.tell_rights(&child);
        }
    }

    /// Others may enter what lies in a directory, or no more.
    fn tell_rights(&mut self, path: &str) {
        for path in self.watches.beneath(path) {
            self.tell_rights_of(&path);
        }
    }

    fn tell_rights_of(&mut self, path: &str) {
        if let Ok(name) = RepoName::parse(path) {
            self.changed.rights.insert(name);
        }
        if self.changed.rights.len() >= MOST {
            self.changed.rights.clear();
            self.changed.all = true;
        }
    }

    fn tell(&mut self, path: &str) {
        if self.changed.names.len() >= MOST {
            self.changed.names.clear();
            self.changed.all = true;
        }
        if !self.changed.all
            && let Ok(name) = RepoName::parse(path)
        {
            self.changed.names.insert(name);
        }
    }

    /// A directory is gone from its name, with all that lies in it.
    fn leave(&mut self, path: &str) {
        self.tell(path);
        for path in self.watches.beneath(path) {
            self.tell(&path);
            self.watches.end(&path);
        }
    }

    /// Watches a directory and all beneath it, and tells of the repositories there.
    fn enter(&mut self, path: &str) {
        let mut todo = vec![path.to_owned()];
        while let Some(path) = todo.pop() {
            match self.look(&path) {
                Ok(found) => todo.extend(found),
                Err(error) if error.is_absent() => {}
                // What the server cannot read, nobody asks it for.
                Err(error) if error.errno() == Some(Errno::ACCESS) => {
                    tracing::debug!(%error, "is not watched");
                }
                Err(error) => self.trouble(Trouble::Lost, &error.to_string()),
            }
        }
    }

    /// One directory; gives those that lie in it.
    fn look(&mut self, path: &str) -> super::Result<Vec<String>> {
        let dir = if path.is_empty() {
            Some(self.root.clone())
        } else {
            self.root.dir(path).or_absent()?
        };
        let Some(dir) = dir else { return Ok(Vec::new()) };
        match self.watches.begin(path, &dir) {
            Ok(()) => {}
            Err(Errno::NOSPC) => self.trouble(Trouble::Limit, path),
            Err(errno) => {
                self.trouble(Trouble::Lost, &format!("{}: {errno}", dir.path().display()))
            }
        }
        if dir.stat_name(path::INDEX)?.is_some_and(|stat| dir::changed(&stat) >= self.news) {
            self.tell(path);
        }
        let mut found = Vec::new();
        dir.each_name(|name, kind| {
            let child = join(path, name);
            if kind == FileType::Directory && RepoName::parse(&child).is_ok() {
                found.push(child);
            }
        })?;
        Ok(found)
    }

    /// Sets everything up anew.
    fn begin(&mut self) {
        (self.begun, self.whole) = (Instant::now(), true);
        // The old watches go first: two of each would be too many where they are few.
        self.watches = Watches::default();
        match inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK) {
            Ok(inotify) => {
                self.watches.inotify = Some(inotify);
                self.enter("");
            }
            Err(errno) => self.trouble(Trouble::Lost, &format!("inotify: {errno}")),
        }
        if self.remote {
            self.trouble(Trouble::Remote, "a network file system");
        }
        if self.whole && !self.said.is_empty() {
            self.said.clear();
            tracing::info!("the kernel tells again what changes in the tree");
        }
    }

    /// Something may not have been told: everything is to be looked at.
    fn trouble(&mut self, what: Trouble, cause: &str) {
        let now = Instant::now();
        let due = match what {
            // At once, but for a storm.
            Trouble::Overflow => (self.begun + AGAIN).max(now),
            Trouble::Limit | Trouble::Lost | Trouble::Remote => now + self.every,
        };
        self.due = if self.whole { due } else { self.due.min(due) };
        self.whole = false;
        self.changed.all = true;
        if self.said.insert(what) {
            let (cause, every) = (cause.escape_debug().to_string(), self.every);
            tracing::warn!(cause, ?every, "{}", what.words());
        }
    }
}

impl Trouble {
    fn words(self) -> &'static str {
        match self {
            Trouble::Overflow => {
                "the kernel dropped events about the tree: all of it is looked at \
                 (fs.inotify.max_queued_events)"
            }
            Trouble::Limit => {
                "the kernel watches no more directories of the tree: all of it is looked at every so \
                 often, until fs.inotify.max_user_watches is raised"
            }
            Trouble::Lost => {
                "the kernel cannot tell what changes in the tree: all of it is looked at every so often"
            }
            Trouble::Remote => {
                "the kernel does not tell what other machines change in the tree: all of it is looked \
                 at every so often"
            }
        }
    }
}

impl Watches {
    /// Watches a directory; one that is watched already has this path from now on.
    fn begin(&mut self, path: &str, dir: &Dir) -> Result<(), Errno> {
        let Some(inotify) = &self.inotify else { return Ok(()) };
        let by_descriptor = format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd());
        let number = inotify::add_watch(inotify, by_descriptor, ASKED)?;
        let path: Arc<str> = path.into();
        if let Some(before) = self.paths.insert(number, Arc::clone(&path))
            && before != path
            && self.numbers.get(&before) == Some(&number)
        {
            self.numbers.remove(&before);
        }
        self.numbers.insert(path, number);
        Ok(())
    }

    /// The watched paths from here down.
    fn beneath(&self, path: &str) -> Vec<Arc<str>> {
        let from = (Bound::Included(path), Bound::Unbounded);
        let all = self.numbers.range::<str, _>(from).map(|(path, _)| path);
        // Between `a` and `a/b` there may be `a-b`.
        let near = all.take_while(|found| found.starts_with(path));
        let within = |found: &&Arc<str>| {
            path.is_empty() || matches!(found.as_bytes().get(path.len()), None | Some(b'/'))
        };
        near.filter(within).cloned().collect()
    }

    /// Watches a path no more.
    fn end(&mut self, path: &str) {
        let Some(number) = self.numbers.remove(path) else { return };
        if self.paths.get(&number).is_some_and(|now| &**now == path) {
            self.paths.remove(&number);
            if let Some(inotify) = &self.inotify {
                // It is gone with the directory already, mostly.
                let _ = inotify::remove_watch(inotify, number);
            }
        }
    }

    /// The kernel has ended a watch.
    fn forget(&mut self, number: i32) {
        if let Some(path) = self.paths.remove(&number)
            && self.numbers.get(&path) == Some(&number)
        {
            self.numbers.remove(&path);
        }
    }
}

/// An event, kept.
struct Told {
    watch: i32,
    flags: ReadFlags,
    name: Option<String>,
}

impl Told {
    fn of(event: &Event<'_>) -> Told {
        let name = event.file_name().and_then(|name| name.to_str().ok()).map(str::to_owned);
        Told { watch: event.wd(), flags: event.events(), name }
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") }
}
