//! What was hashed already: content is read once per inode, as far as bounded memory goes.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::Stat;

use crate::layout::{Dir, Inode, path, size_of};
use crate::oci::{Algorithm, Digest, Hasher};

/// So many results are kept, some 100 bytes each; then all are forgotten.
const REMEMBERED: usize = 1 << 17;

/// Names one state of one inode's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Content {
    inode: Inode,
    size: u64,
    modified: (i64, u64),
    algorithm: Algorithm,
}

/// The memory of one run.
#[derive(Debug)]
pub(super) struct Hashes {
    /// The room, once its pool has been hashed.
    room: Option<Dir>,
    /// Inodes of the pool that were not found sound there.
    suspects: HashSet<Inode>,
    /// When the run began, in seconds. Later inodes came into the pool after it was hashed.
    began: i64,
    /// What was hashed, and what came out.
    known: HashMap<Content, Digest>,
    /// How many bytes were read.
    pub(super) bytes: u64,
}

impl Hashes {
    pub(super) fn new() -> Hashes {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
        Hashes {
            room: None,
            suspects: HashSet::new(),
            // A second less: the clock that stamps files ticks behind the one that is read here.
            began: i64::try_from(now).unwrap_or(i64::MAX) - 1,
            known: HashMap::new(),
            bytes: 0,
        }
    }

    /// From now on the pool's sound inodes are trusted.
    pub(super) fn trust_pool(&mut self, room: Dir) {
        self.room = Some(room);
    }

    /// An inode of the pool is not what its name says, or could not be read.
    pub(super) fn suspect(&mut self, inode: Inode) {
        self.suspects.insert(inode);
    }

    /// Whether an inode of the pool was found wanting.
    pub(super) fn is_suspect(&self, inode: Inode) -> bool {
        self.suspects.contains(&inode)
    }

    /// Whether an open file has the digest that its name says.
    pub(super) fn agrees(&mut self, file: &File, stat: &Stat, digest: &Digest) -> io::Result<bool> {
        if self.is_pooled(stat, digest) {
            return Ok(true);
        }
        Ok(self.digest(file, stat, digest.algorithm())? == *digest)
    }

    /// The digest of an open file.
    pub(super) fn digest(
        &mut self,
        file: &File,
        stat: &Stat,
        algorithm: Algorithm,
    ) -> io::Result<Digest> {
        let content = Content {
            inode: Inode::of(stat),
            size: size_of(stat),
            modified: (stat.st_mtime, stat.st_mtime_nsec),
            algorithm,
        };
        if let Some(known) = self.known.get(&content) {
            return Ok(known.clone());
        }
        let digest = self.read(file, algorithm)?;
        if self.known.len() >= REMEMBERED {
            self.known.clear();
        }
        self.known.insert(content, digest.clone());
        Ok(digest)
    }

    fn read(&mut self, file: &File, algorithm: Algorithm) -> io::Result<Digest> {
        let mut hasher = Hasher::new(algorithm);
        let mut buffer = vec![0u8; 1 << 18];
        let mut offset = 0;
        loop {
            let read = file.read_at(&mut buffer, offset)?;
            if read == 0 {
                self.bytes += offset;
                return Ok(hasher.finish());
            }
            hasher.update(&buffer[..read]);
            offset += read as u64;
        }
    }

    /// Whether this is the inode that the pool has under the digest, and that was hashed there.
    fn is_pooled(&self, stat: &Stat, digest: &Digest) -> bool {
        let inode = Inode::of(stat);
        if stat.st_ctime >= self.began || self.suspects.contains(&inode) {
            return false;
        }
        let Some(room) = &self.room else { return false };
        let found = room.dir(&path::pool_dir(digest)).and_then(|dir| dir.stat_name(digest.hex()));
        matches!(found, Ok(Some(found)) if Inode::of(&found) == inode)
    }
}
