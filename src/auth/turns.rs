//! One at a time for every user, so that a user whose checks hang holds one worker and no more.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use super::memory::Mark;

/// How many may stand in line for one user.
const LINE: usize = 32;

/// The lines. Cheap to share.
#[derive(Clone, Default)]
pub(super) struct Turns(Arc<Mutex<Lines>>);

type Lines = HashMap<Mark, Arc<AsyncMutex<()>>>;

/// A place in a user's line, and the turn itself once it came. Given up when dropped.
pub(super) struct Turn {
    turns: Turns,
    user: Mark,
    lock: Arc<AsyncMutex<()>>,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Turns {
    /// Waits for the user's turn; `None` at once if the line is too long.
    pub(super) async fn take(&self, user: Mark) -> Option<Turn> {
        let mut turn = self.line_up(user)?;
        turn.guard = Some(Arc::clone(&turn.lock).lock_owned().await);
        Some(turn)
    }

    fn line_up(&self, user: Mark) -> Option<Turn> {
        let lock = Arc::clone(self.lines().entry(user).or_default());
        // Everyone in line holds two references, at most; the table holds one.
        if Arc::strong_count(&lock) > 2 * LINE {
            return None;
        }
        Some(Turn { turns: self.clone(), user, lock, guard: None })
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.0.lock().unwrap_or_else(|held| held.into_inner())
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.guard = None;
        let mut lines = self.turns.lines();
        // New references are only made under the table's lock: two are the table's and this one.
        if Arc::strong_count(&self.lock) == 2 {
            lines.remove(&self.user);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;

    #[tokio::test(start_paused = true)]
    async fn a_user_waits_for_the_same_user_only() {
        let turns = Turns::default();
        let first = turns.take([1; 32]).await.expect("nobody before");
        assert!(timeout(Duration::from_secs(1), turns.take([1; 32])).await.is_err());
        assert!(turns.take([2; 32]).await.is_some());
        drop(first);
        assert!(turns.take([1; 32]).await.is_some());
        assert!(turns.lines().is_empty(), "nothing is kept of users who are done");
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_is_bounded() {
        let turns = Turns::default();
        let _first = turns.take([1; 32]).await.expect("nobody before");
        let mut line = Vec::new();
        while let Some(turn) = turns.line_up([1; 32]) {
            line.push(turn);
            assert!(line.len() < 1000, "no end");
        }
        drop(line);
        assert!(turns.line_up([1; 32]).is_some());
    }
}
