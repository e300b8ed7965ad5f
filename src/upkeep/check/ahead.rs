//! Reading ahead of the check, on all cores.
//!
//! One thread goes over the tree in the order of the check and names what will have to be hashed;
//! others hash it. A large file is begun as soon as it is seen, so that it is not what all wait for
//! in the end. All of it is bounded: what is named and not begun, and what is hashed and not asked
//! for yet.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rustix::fs::FileType;

use super::hashes::{self, Hashes};
use super::names::{Name, Names};
use crate::layout::{self, Dir, path, size_of};
use crate::oci::{Algorithm, Digest, RepoName};

/// So many files are named and not begun.
const MOST_NAMED: usize = 1 << 13;

/// So many results lie unasked.
const MOST_UNASKED: usize = 1 << 14;

/// A file from this size on is begun before smaller ones.
const LARGE: u64 = 16 << 20;

/// Runs `check` while others read ahead of it; they have stopped when this returns.
pub(super) fn beside<T>(root: &Dir, hashes: &Hashes, check: impl FnOnce() -> T) -> T {
    if hashes.are_blind() {
        return check();
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let queue = Queue::default();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            Scan { root, hashes, queue: &queue }.tree();
            queue.end();
        });
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(job) = queue.next() {
                    if hashes.wait_for_room(MOST_UNASKED) {
                        job.run(root, hashes);
                    }
                }
            });
        }
        // Also when the check panics: a scope waits for its threads.
        let _stop = Stop { hashes, queue: &queue };
        check()
    })
}

struct Stop<'a> {
    hashes: &'a Hashes,
    queue: &'a Queue,
}

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.hashes.close();
        self.queue.end();
    }
}

/// A file that will have to be hashed.
#[derive(Debug)]
struct Job {
    size: u64,
    /// From ROOT.
    path: String,
    digest: Digest,
}

impl Job {
    fn run(self, root: &Dir, hashes: &Hashes) {
        if let Ok((file, stat)) = root.file_stat(&self.path) {
            hashes.read_ahead(&file, &stat, self.digest.algorithm());
        }
    }
}

/// Large files first, the largest before all.
impl Ord for Job {
    fn cmp(&self, other: &Job) -> Ordering {
        self.size.cmp(&other.size).then_with(|| other.path.cmp(&self.path))
    }
}

impl PartialOrd for Job {
    fn partial_cmp(&self, other: &Job) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Job {
    fn eq(&self, other: &Job) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Job {}

/// What is named and not begun.
#[derive(Debug, Default)]
struct Queue {
    state: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    large: BinaryHeap<Job>,
    others: VecDeque<Job>,
    ended: bool,
}

impl Waiting {
    fn len(&self) -> usize {
        self.large.len() + self.others.len()
    }
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, Waiting> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for room.
    fn push(&self, job: Job) {
        let mut state = self.state();
        while state.len() >= MOST_NAMED && !state.ended {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if job.size >= LARGE {
            state.large.push(job);
        } else {
            state.others.push_back(job);
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Waits for a job; `None` when none is left and none will come.
    fn next(&self) -> Option<Job> {
        let mut state = self.state();
        loop {
            let job = state.large.pop().or_else(|| state.others.pop_front());
            if job.is_some() || state.ended {
                let full = state.len() + 1 == MOST_NAMED;
                drop(state);
                if full {
                    self.changed.notify_all();
                }
                return job;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn end(&self) {
        self.state().ended = true;
        self.changed.notify_all();
    }
}

/// Goes where the check will go. What it cannot read, or does not find again, the check will see.
struct Scan<'a> {
    root: &'a Dir,
    hashes: &'a Hashes,
    queue: &'a Queue,
}

impl Scan<'_> {
    fn tree(&self) {
        let room = self.root.dir(path::ROOM).ok();
        for algorithm in Algorithm::ALL {
            let pool = format!("{}/{}/{algorithm}", path::ROOM, path::POOL);
            let Ok(shelves) = self.root.dir(&pool) else { continue };
            for shelf in children(&shelves) {
                self.blobs(&format!("{pool}/{shelf}"), algorithm, None);
            }
        }
        self.descend(self.root, "", room.as_ref());
    }

    fn descend(&self, dir: &Dir, name: &str, room: Option<&Dir>) {
        let beneath = |child: &str| match name {
            "" => child.to_owned(),
            _ => format!("{name}/{child}"),
        };
        for algorithm in Algorithm::ALL {
            self.blobs(&beneath(&path::blobs(algorithm)), algorithm, room);
        }
        for child in children(dir) {
            let whole = beneath(&child);
            if self.hashes.are_closed() {
                return;
            }
            if RepoName::parse(&whole).is_ok()
                && let Ok(dir) = dir.dir(&child)
            {
                self.descend(&dir, &whole, room);
            }
        }
    }

    /// What the pool of this room has is hashed there.
    fn blobs(&self, place: &str, algorithm: Algorithm, room: Option<&Dir>) {
        let Ok(dir) = self.root.dir(place) else { return };
        let Ok(names) = Names::read(&dir, algorithm) else { return };
        for name in names.iter() {
            let Name::Of(digest) = name else { continue };
            let Ok(Some(stat)) = dir.stat_name(digest.hex()) else { continue };
            if self.hashes.are_closed() {
                return;
            }
            let pooled = room.is_some_and(|room| hashes::is_in_pool(room, &stat, &digest));
            if layout::is_regular(&stat) && !pooled {
                let path = format!("{place}/{}", digest.hex());
                self.queue.push(Job { size: size_of(&stat), path, digest });
            }
        }
    }
}

/// The directories in a directory, in order.
fn children(dir: &Dir) -> Vec<String> {
    let mut found = Vec::new();
    let read = dir.each_name(|name, kind| {
        if kind == FileType::Directory {
            found.push(name.to_owned());
        }
    });
    found.sort_unstable();
    if read.is_ok() { found } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(size: u64, path: &str) -> Job {
        let digest = Digest::of(Algorithm::Sha256, path.as_bytes());
        Job { size, path: path.to_owned(), digest }
    }

    #[test]
    fn large_files_are_begun_first_and_the_others_in_their_order() {
        let queue = Queue::default();
        for (size, path) in [(1, "a"), (LARGE, "b"), (9, "c"), (LARGE + 1, "d"), (LARGE, "e")] {
            queue.push(job(size, path));
        }
        queue.end();
        let order: Vec<String> = std::iter::from_fn(|| queue.next()).map(|job| job.path).collect();
        assert_eq!(order, ["d", "b", "e", "a", "c"]);
    }
}
