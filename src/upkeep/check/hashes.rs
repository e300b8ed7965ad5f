//! What was hashed already: content is read once per inode, as far as bounded memory goes.
//!
//! Threads read ahead of the check, in the order in which it will ask; what they find out lies here
//! until it is asked for. They only save time: whatever is not here is read when it is asked for.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{Advice, Stat, fadvise};

use super::progress::Progress;
use crate::layout::{Dir, Inode, path, size_of};
use crate::oci::{Algorithm, Digest, Hasher};

/// So many results are kept, some 200 bytes each; then the older half is forgotten.
const REMEMBERED: usize = 1 << 17;

/// So much of a file is read at once.
const PIECE: usize = 1 << 20;

/// So much of a file that was short, and may have grown.
const LEAST: usize = 1 << 13;

/// Names one state of one inode's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Content {
    inode: Inode,
    size: u64,
    modified: (i64, u64),
    algorithm: Algorithm,
}

impl Content {
    fn of(stat: &Stat, algorithm: Algorithm) -> Content {
        let modified = (stat.st_mtime, stat.st_mtime_nsec);
        Content { inode: Inode::of(stat), size: size_of(stat), modified, algorithm }
    }
}

/// The memory of one run, shared by all who hash.
#[derive(Debug)]
pub(super) struct Hashes {
    /// Nothing is hashed: everything is what its name says.
    blind: bool,
    /// When the run began, in seconds. Later inodes came into the pool after it was hashed.
    began: i64,
    progress: Arc<Progress>,
    state: Mutex<State>,
    /// A result has come.
    done: Condvar,
    /// Results were taken: there is room for more.
    taken: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The room, once its pool has been hashed.
    room: Option<Dir>,
    /// Inodes of the pool that were not found sound there.
    suspects: HashSet<Inode>,
    /// What was hashed, and what came out: the newer half, and the older one.
    known: HashMap<Content, Known>,
    older: HashMap<Content, Known>,
    /// What somebody is hashing.
    running: HashSet<Content>,
    /// How many results nobody has asked for yet.
    unasked: usize,
    /// How many readers wait for room.
    blocked: usize,
    /// How many wait for what somebody is hashing.
    waiting: usize,
    closed: bool,
}

#[derive(Clone, Debug)]
struct Known {
    digest: Digest,
    unasked: bool,
}

impl State {
    fn put(&mut self, content: Content, digest: Digest, unasked: bool) {
        if self.known.len() >= REMEMBERED / 2 {
            let forgotten = std::mem::replace(&mut self.older, std::mem::take(&mut self.known));
            let lost = forgotten.values().filter(|known| known.unasked).count();
            self.unasked = self.unasked.saturating_sub(lost);
        }
        self.unasked += usize::from(unasked);
        self.known.insert(content, Known { digest, unasked });
    }

    fn ask(&mut self, content: &Content) -> Option<Digest> {
        let known = match self.known.get_mut(content) {
            Some(known) => known,
            None => self.older.get_mut(content)?,
        };
        if std::mem::take(&mut known.unasked) {
            self.unasked = self.unasked.saturating_sub(1);
        }
        Some(known.digest.clone())
    }

    fn has(&self, content: &Content) -> bool {
        self.known.contains_key(content) || self.older.contains_key(content)
    }
}

impl Hashes {
    pub(super) fn new(blind: bool, progress: Arc<Progress>) -> Hashes {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
        Hashes {
            blind,
            // A second less: the clock that stamps files ticks behind the one that is read here.
            began: i64::try_from(now).unwrap_or(i64::MAX) - 1,
            progress,
            state: Mutex::default(),
            done: Condvar::new(),
            taken: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing is hashed.
    pub(super) fn are_blind(&self) -> bool {
        self.blind
    }

    /// How many bytes were read.
    pub(super) fn bytes(&self) -> u64 {
        self.progress.bytes()
    }

    /// From now on the pool's sound inodes are trusted.
    pub(super) fn trust_pool(&self, room: Dir) {
        self.state().room = Some(room);
    }

    /// An inode of the pool is not what its name says, or could not be read.
    pub(super) fn suspect(&self, inode: Inode) {
        self.state().suspects.insert(inode);
    }

    /// Suspects nobody any more: the pool is looked at anew. Gives who was suspected.
    pub(super) fn suspect_none(&self) -> HashSet<Inode> {
        std::mem::take(&mut self.state().suspects)
    }

    /// Whether an inode of the pool was found wanting.
    pub(super) fn is_suspect(&self, inode: Inode) -> bool {
        self.state().suspects.contains(&inode)
    }

    /// Whether an open file has the digest that its name says.
    pub(super) fn agrees(&self, file: &File, stat: &Stat, digest: &Digest) -> io::Result<bool> {
        if self.blind || self.is_pooled(stat, digest) {
            return Ok(true);
        }
        Ok(self.digest(file, stat, digest.algorithm())? == *digest)
    }

    /// The digest of an open file.
    pub(super) fn digest(
        &self,
        file: &File,
        stat: &Stat,
        algorithm: Algorithm,
    ) -> io::Result<Digest> {
        let content = Content::of(stat, algorithm);
        let mut state = self.state();
        loop {
            if let Some(known) = state.ask(&content) {
                if state.blocked > 0 {
                    self.taken.notify_all();
                }
                return Ok(known);
            }
            if !state.running.contains(&content) {
                break;
            }
            state.waiting += 1;
            state = self.done.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        }
        if state.blocked > 0 {
            // Results that nobody will ask for, as of files that are gone, must not stop the readers.
            state.unasked = 0;
            self.taken.notify_all();
        }
        state.running.insert(content);
        drop(state);
        self.run(file, content, false)
    }

    /// Hashes a file before anybody asks; nothing where that was done or is being done.
    pub(super) fn read_ahead(&self, file: &File, stat: &Stat, algorithm: Algorithm) {
        let content = Content::of(stat, algorithm);
        let mut state = self.state();
        if state.closed || state.has(&content) || !state.running.insert(content) {
            return;
        }
        drop(state);
        // Whoever asks reads it again, and gets the error.
        let _ = self.run(file, content, true);
    }

    fn run(&self, file: &File, content: Content, unasked: bool) -> io::Result<Digest> {
        let read = self.read(file, content);
        let mut state = self.state();
        state.running.remove(&content);
        if let Ok(digest) = &read {
            state.put(content, digest.clone(), unasked);
        }
        let waited_for = state.waiting > 0;
        drop(state);
        if waited_for {
            self.done.notify_all();
        }
        read
    }

    fn read(&self, file: &File, content: Content) -> io::Result<Digest> {
        // The kernel reads ahead twice as far.
        let _ = fadvise(file, 0, None, Advice::Sequential);
        let mut hasher = Hasher::new(content.algorithm);
        // To clear a large buffer for each small file would take longer than to hash it.
        let size = usize::try_from(content.size).unwrap_or(PIECE);
        let mut buffer = vec![0u8; size.saturating_add(1).clamp(LEAST, PIECE)];
        let mut offset = 0;
        loop {
            let read = file.read_at(&mut buffer, offset)?;
            if read == 0 {
                return Ok(hasher.finish());
            }
            hasher.update(&buffer[..read]);
            offset += read as u64;
            self.progress.hashed(read as u64);
        }
    }

    /// Waits until fewer than `most` results lie here unasked; `false` when nobody will ask again.
    pub(super) fn wait_for_room(&self, most: usize) -> bool {
        let mut state = self.state();
        state.blocked += 1;
        while state.unasked >= most && !state.closed {
            state = self.taken.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.blocked -= 1;
        !state.closed
    }

    /// Nobody asks any more: all who read ahead stop.
    pub(super) fn close(&self) {
        self.state().closed = true;
        self.taken.notify_all();
    }

    /// Whether nobody asks any more.
    pub(super) fn are_closed(&self) -> bool {
        self.state().closed
    }

    /// Whether something happened to a file, or to its names, since the run began.
    pub(super) fn came_later(&self, stat: &Stat) -> bool {
        stat.st_ctime >= self.began
    }

    /// Whether this is the inode that the pool has under the digest, and that was hashed there.
    pub(super) fn is_pooled(&self, stat: &Stat, digest: &Digest) -> bool {
        let state = self.state();
        if self.came_later(stat) || state.suspects.contains(&Inode::of(stat)) {
            return false;
        }
        let Some(room) = state.room.clone() else { return false };
        drop(state);
        is_in_pool(&room, stat, digest)
    }
}

/// Whether the pool has this inode under this digest.
pub(super) fn is_in_pool(room: &Dir, stat: &Stat, digest: &Digest) -> bool {
    let found = room.dir(&path::pool_dir(digest)).and_then(|dir| dir.stat_name(digest.hex()));
    matches!(found, Ok(Some(found)) if Inode::of(&found) == Inode::of(stat))
}
