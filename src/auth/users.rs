//! Who a name is: uid and groups of those who come with a token, remembered for a short time.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use super::accounts::{AccountFiles, Stamp};
use super::bounded::Bounded;
use super::frame::{Answer, Ask};
use super::memory::{Mark, Marker};
use super::turns::Turns;
use super::user::User;
use super::workers::{Workers, WorkersError};

/// How long a user's groups are remembered: after that a change shows, wherever they are kept.
const REMEMBERED: Duration = Duration::from_secs(60);
/// How many users are remembered.
const CAPACITY: usize = 4096;
/// A user whom the name service hung for is not asked about again for so long.
const RESTED: Duration = Duration::from_secs(30);

/// Users by name, from workers of their own, so that hanging logins hold up no token.
pub(super) struct Users {
    workers: Workers,
    files: Arc<AccountFiles>,
    marker: Arc<Marker>,
    turns: Turns,
    state: Mutex<State>,
}

struct State {
    known: Bounded<Mark, Arc<User>>,
    hung: Bounded<Mark, ()>,
    stamp: Option<Stamp>,
}

/// Whether the user exists could not be found out; the log has why.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NotToldNow;

impl Users {
    pub(super) fn new(workers: Workers, files: Arc<AccountFiles>, marker: Arc<Marker>) -> Users {
        let state = State {
            known: Bounded::new(CAPACITY, REMEMBERED),
            hung: Bounded::new(CAPACITY, RESTED),
            stamp: None,
        };
        Users { workers, files, marker, turns: Turns::default(), state: Mutex::new(state) }
    }

    /// `None`: there is no such user any more.
    pub(super) async fn find(&self, name: &str) -> Result<Option<Arc<User>>, NotToldNow> {
        let mark = self.marker.user(name);
        if let Some(user) = self.recall(&mark)? {
            return Ok(Some(user));
        }
        let _turn = self.turns.take(mark).await.ok_or(NotToldNow)?;
        // Who stood before in line may have found out.
        if let Some(user) = self.recall(&mark)? {
            return Ok(Some(user));
        }
        let stamp = self.files.stamp();
        match self.workers.ask(&Ask::Lookup(name)).await {
            Ok(Answer::User(user)) => Ok(Some(self.remember(mark, Arc::new(user), &stamp))),
            Ok(Answer::Absent) => Ok(None),
            Ok(answer) => Err(told(name, &format!("{answer:?}"))),
            Err(error) => {
                if matches!(error, WorkersError::Deadline(_)) {
                    self.state().hung.insert(mark, (), Instant::now());
                }
                Err(told(name, &error.to_string()))
            }
        }
    }

    /// A user that a login just found; `stamp` is from before it was looked up.
    pub(super) fn found(&self, user: &Arc<User>, stamp: &Stamp) {
        self.remember(self.marker.user(&user.name), Arc::clone(user), stamp);
    }

    fn recall(&self, mark: &Mark) -> Result<Option<Arc<User>>, NotToldNow> {
        let (stamp, now) = (self.files.stamp(), Instant::now());
        let mut state = self.state();
        if state.stamp.as_ref() != Some(&stamp) {
            state.known.clear();
            state.stamp = Some(stamp);
        }
        if state.hung.get(mark, now).is_some() {
            return Err(NotToldNow);
        }
        Ok(state.known.get(mark, now).cloned())
    }

    fn remember(&self, mark: Mark, user: Arc<User>, stamp: &Stamp) -> Arc<User> {
        let mut state = self.state();
        if state.stamp.as_ref() == Some(stamp) {
            state.known.insert(mark, Arc::clone(&user), Instant::now());
        }
        user
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|held| held.into_inner())
    }
}

fn told(name: &str, why: &str) -> NotToldNow {
    tracing::error!(user = name, "cannot look up a token's user: {why}");
    NotToldNow
}
