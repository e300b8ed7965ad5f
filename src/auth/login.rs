//! Checks a user's password: remembers, slows guessing, asks the workers, answers all failures alike.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use zeroize::Zeroizing;

use super::accounts::{AccountFiles, Stamp};
use super::bounded::Bounded;
use super::credentials;
use super::frame::{Answer, Ask, Check};
use super::gate::{Gate, Ticket};
use super::memory::{Mark, Marker, Memory, Verdict};
use super::turns::Turns;
use super::user::User;
use super::users::Users;
use super::workers::{Workers, WorkersError};

/// How many attempts may be under way or wait, all addresses together.
const MAX_ATTEMPTS: usize = 256;
/// A user whose check hung is refused for so long without holding another worker.
const RESTED: Duration = Duration::from_secs(30);
/// When to come again after a queue was full.
const BUSY: Duration = Duration::from_secs(2);

/// Why a login did not succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LoginError {
    /// Not this user with this password, or an account that may not be used: all alike.
    Refused,
    /// This address fails too often.
    TooMany(Duration),
    /// Too many logins at once.
    Busy(Duration),
    /// PAM gave no verdict; the log says why.
    Unavailable,
}

/// How PAM is used.
pub(super) struct Rules {
    pub(super) service: String,
    pub(super) confdir: Option<PathBuf>,
    pub(super) allow_root: bool,
    /// A failure is answered at a multiple of this time after the request began.
    pub(super) floor: Duration,
}

/// Logins against PAM.
pub(super) struct Login {
    inner: Arc<Inner>,
}

struct Inner {
    rules: Rules,
    workers: Workers,
    users: Arc<Users>,
    files: Arc<AccountFiles>,
    marker: Arc<Marker>,
    memory: Mutex<Memory>,
    hung: Mutex<Bounded<Mark, ()>>,
    gate: Gate,
    turns: Turns,
    flights: Mutex<HashMap<Flight, watch::Receiver<Option<Outcome>>>>,
}

/// The same pair from the same address, of which one attempt is enough.
type Flight = (Mark, IpAddr);
type Outcome = Result<Arc<User>, LoginError>;

/// One attempt, with all that outlives the request that began it.
struct Attempt {
    user: String,
    password: Zeroizing<Vec<u8>>,
    peer: IpAddr,
    pair: Mark,
    ticket: Ticket,
}

impl Login {
    pub(super) fn new(
        rules: Rules,
        workers: Workers,
        users: Arc<Users>,
        files: Arc<AccountFiles>,
        marker: Arc<Marker>,
    ) -> Login {
        let inner = Inner {
            rules,
            workers,
            users,
            files,
            marker,
            memory: Mutex::new(Memory::new()),
            hung: Mutex::new(Bounded::new(4096, RESTED)),
            gate: Gate::new(),
            turns: Turns::default(),
            flights: Mutex::default(),
        };
        Login { inner: Arc::new(inner) }
    }

    /// Checks a pair. A refusal, and a failure of PAM, takes a multiple of the floor, whatever was
    /// the cause. An attempt once begun is finished and counted even if this future is dropped.
    pub(super) async fn check(&self, user: &str, password: &[u8], peer: IpAddr) -> Outcome {
        let began = Instant::now();
        let outcome = self.outcome(user, password, peer.to_canonical()).await;
        if matches!(outcome, Err(LoginError::Refused | LoginError::Unavailable)) {
            sleep_until(next_multiple(began, self.inner.rules.floor, Instant::now())).await;
        }
        outcome
    }

    async fn outcome(&self, user: &str, password: &[u8], peer: IpAddr) -> Outcome {
        if !credentials::acceptable(user, password) {
            return Err(LoginError::Refused);
        }
        let inner = &self.inner;
        let pair = inner.marker.pair(user, password);
        if let Some(outcome) = inner.remembered(user, &pair, peer) {
            return outcome;
        }
        let mut flight = inner.fly(user, password, peer, pair)?;
        let landed = flight.wait_for(Option::is_some).await;
        landed.ok().and_then(|outcome| outcome.clone()).unwrap_or(Err(LoginError::Unavailable))
    }
}

/// The first of `began` + 1, 2, 3… times `step` that is not before `now`: what took longer than one
/// step does not tell how much longer.
fn next_multiple(began: Instant, step: Duration, now: Instant) -> Instant {
    let (step, spent) = (step.as_nanos().max(1), (now - began).as_nanos());
    let nanos = spent.div_ceil(step).max(1) * step;
    began + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

impl Inner {
    /// What needs neither PAM nor a turn at the gate.
    fn remembered(&self, user: &str, pair: &Mark, peer: IpAddr) -> Option<Outcome> {
        let now = Instant::now();
        match self.memory().recall(pair, &self.files.stamp(), now)? {
            Verdict::Wrong => Some(Err(LoginError::Refused)),
            Verdict::Right(found) => {
                let open = self.gate.is_open(self.marker.user(user), peer, now);
                open.then_some(Ok(found))
            }
        }
    }

    /// Joins the attempt that is under way for this pair and address, or begins one.
    fn fly(
        self: &Arc<Inner>,
        user: &str,
        password: &[u8],
        peer: IpAddr,
        pair: Mark,
    ) -> Result<watch::Receiver<Option<Outcome>>, LoginError> {
        let mut flights = self.flights();
        if let Some(flight) = flights.get(&(pair, peer)) {
            return Ok(flight.clone());
        }
        if flights.len() >= MAX_ATTEMPTS {
            return Err(LoginError::Busy(BUSY));
        }
        let mark = self.marker.user(user);
        let ticket = self.gate.admit(mark, peer, Instant::now()).map_err(LoginError::TooMany)?;
        let attempt = Attempt {
            user: user.to_owned(),
            password: Zeroizing::new(password.to_vec()),
            peer,
            pair,
            ticket,
        };
        let (landing, flight) = watch::channel(None);
        flights.insert((pair, peer), flight.clone());
        let landing = Landing { inner: Arc::clone(self), flight: (pair, peer), landing };
        // A task of its own: a client that hangs up must not undo the count of its guess.
        tokio::spawn(async move {
            let outcome = landing.inner.run(attempt).await;
            landing.landing.send_replace(Some(outcome));
        });
        Ok(flight)
    }

    async fn run(&self, attempt: Attempt) -> Outcome {
        sleep_until(attempt.ticket.begin).await;
        let user = self.marker.user(&attempt.user);
        let _turn = self.turns.take(user).await.ok_or(LoginError::Busy(BUSY))?;
        let (stamp, now) = (self.files.stamp(), Instant::now());
        match self.memory().recall(&attempt.pair, &stamp, now) {
            Some(Verdict::Right(found)) => return Ok(found),
            Some(Verdict::Wrong) => return Err(LoginError::Refused),
            None => {}
        }
        if self.hung().get(&user, now).is_some() {
            return Err(LoginError::Unavailable);
        }
        let answer = self.ask(&attempt).await;
        self.conclude(attempt, user, &stamp, answer)
    }

    async fn ask(&self, attempt: &Attempt) -> Result<Answer, WorkersError> {
        let confdir = self.rules.confdir.as_deref().map_or(&b""[..], path_bytes);
        let check = Check {
            user: &attempt.user,
            password: &attempt.password,
            service: &self.rules.service,
            confdir,
            rhost: &attempt.peer.to_string(),
        };
        self.workers.ask(&Ask::Check(check)).await
    }

    fn conclude(
        &self,
        attempt: Attempt,
        user: Mark,
        stamp: &Stamp,
        answer: Result<Answer, WorkersError>,
    ) -> Outcome {
        match answer {
            Ok(Answer::User(found)) if found.uid == 0 && !self.rules.allow_root => {
                tracing::warn!(user = %found.name, peer = %attempt.peer,
                    "login refused: uid 0 may not log in without --allow-root");
                self.refuse(attempt, stamp)
            }
            Ok(Answer::User(found)) => Ok(self.accept(attempt, Arc::new(found), stamp)),
            Ok(Answer::Absent) => {
                // Not by name: it may be anything that was typed.
                tracing::error!(peer = %attempt.peer,
                    "PAM accepted a user whom the name service does not know: login refused");
                self.refuse(attempt, stamp)
            }
            Ok(Answer::Refused { failure, known: true }) => {
                tracing::info!(user = %attempt.user, peer = %attempt.peer, "login refused: {failure}");
                self.refuse(attempt, stamp)
            }
            Ok(Answer::Refused { known: false, .. }) => {
                // A password may have been typed for the name.
                tracing::info!(peer = %attempt.peer, "login refused: no such user");
                self.refuse(attempt, stamp)
            }
            Ok(Answer::Broken(why)) => Err(unavailable(attempt.peer, &why)),
            Err(WorkersError::Busy) => Err(LoginError::Busy(BUSY)),
            Err(error) => {
                if matches!(error, WorkersError::Deadline(_)) {
                    self.hung().insert(user, (), Instant::now());
                }
                Err(unavailable(attempt.peer, &error.to_string()))
            }
        }
    }

    fn accept(&self, attempt: Attempt, found: Arc<User>, stamp: &Stamp) -> Arc<User> {
        let now = Instant::now();
        attempt.ticket.succeeded(now);
        self.memory().note(attempt.pair, Verdict::Right(Arc::clone(&found)), stamp, now);
        self.users.found(&found, stamp);
        found
    }

    fn refuse(&self, attempt: Attempt, stamp: &Stamp) -> Outcome {
        let now = Instant::now();
        attempt.ticket.failed(now);
        self.memory().note(attempt.pair, Verdict::Wrong, stamp, now);
        Err(LoginError::Refused)
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(|held| held.into_inner())
    }

    fn hung(&self) -> MutexGuard<'_, Bounded<Mark, ()>> {
        self.hung.lock().unwrap_or_else(|held| held.into_inner())
    }

    fn flights(&self) -> MutexGuard<'_, HashMap<Flight, watch::Receiver<Option<Outcome>>>> {
        self.flights.lock().unwrap_or_else(|held| held.into_inner())
    }
}

/// Takes the flight off the board however its attempt ends, before those who wait are told.
struct Landing {
    inner: Arc<Inner>,
    flight: Flight,
    landing: watch::Sender<Option<Outcome>>,
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.inner.flights().remove(&self.flight);
    }
}

fn unavailable(peer: IpAddr, why: &str) -> LoginError {
    tracing::error!(%peer, "login not possible: {why}");
    LoginError::Unavailable
}

fn path_bytes(path: &Path) -> &[u8] {
    use std::os::unix::ffi::OsStrExt;
    path.as_os_str().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn failures_come_at_multiples_of_the_floor() {
        let (began, floor) = (Instant::now(), Duration::from_millis(1500));
        let at = |spent| {
            let due = next_multiple(began, floor, began + Duration::from_millis(spent));
            (due - began).as_millis()
        };
        assert_eq!(
            [at(0), at(1), at(1500), at(1501), at(2999), at(10_000)],
            [1500, 1500, 1500, 3000, 3000, 10_500]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn no_floor_is_no_wait() {
        let began = Instant::now();
        let now = began + Duration::from_secs(3);
        assert_eq!(next_multiple(began, Duration::ZERO, now), now);
    }
}
