//! gc.lock, shared, in short turns: what is copied under it is copied whole, and nobody waits long.

use std::thread;
use std::time::{Duration, Instant};

use super::SnapshotError;
use crate::layout::lock::{self, Held};
use crate::layout::{Dir, OrAbsent, Result, path};

/// After so much time with the lock, in one turn or in many, it is left free for [`PAUSE`].
const MOST: Duration = Duration::from_millis(50);

/// Whoever wants the lock exclusively asks for it every 10 ms.
const PAUSE: Duration = Duration::from_millis(15);

/// The right to rely on what lies in the tree: while it is held, no blob's name vanishes.
pub(super) struct Lease {
    root: Dir,
    wait: Duration,
    held: Option<(Option<Held>, Instant)>,
    used: Duration,
    /// The longest turn so far.
    pub(super) longest: Duration,
}

impl Lease {
    pub(super) fn new(root: &Dir, wait: Duration) -> Lease {
        let (used, longest) = (Duration::ZERO, Duration::ZERO);
        Lease { root: root.clone(), wait, held: None, used, longest }
    }

    /// Begins a turn. Where the tree has no room, nobody collects and nobody waits.
    pub(super) fn take(&mut self) -> std::result::Result<(), SnapshotError> {
        if self.used >= MOST {
            thread::sleep(PAUSE);
            self.used = Duration::ZERO;
        }
        let held = match self.room()? {
            None => None,
            Some(room) => match lock::shared_in_turn(&room, path::GC_LOCK, self.wait)? {
                Some(held) => Some(held),
                None => {
                    let by = lock::holders(&room, path::GC_LOCK);
                    return Err(SnapshotError::Locked { at: room.at(path::GC_LOCK), by });
                }
            },
        };
        self.held = Some((held, Instant::now()));
        Ok(())
    }

    /// Ends the turn; whether it was worth anything: a room may have been made since it began.
    pub(super) fn release(&mut self) -> Result<bool> {
        let Some((held, since)) = self.held.take() else { return Ok(false) };
        let sound = held.is_some() || self.room()?.is_none();
        drop(held);
        self.used += since.elapsed();
        self.longest = self.longest.max(since.elapsed());
        Ok(sound)
    }

    fn room(&self) -> Result<Option<Dir>> {
        self.root.dir(path::ROOM).or_absent()
    }
}
