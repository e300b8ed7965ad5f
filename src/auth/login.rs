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
use super::audit::{self, Peer};
use super::bounded::Bounded;
use super::credentials;
use super::frame::{Answer, Ask, Check};
use super::gate::{Gate, Ticket};
use super::memory::{Mark, Marker, Memory, Verdict};
use super::pam::Failure;
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
    /// Not this user with this password, or an account that may not be used: to the client all
    /// alike.
    Refused(Refused),
    /// This address fails too often.
    TooMany(Duration),
    /// Too many logins at once.
    Busy(Duration),
    /// PAM gave no verdict; the log says why.
    Unavailable,
}

/// Why a login was refused: for the record alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    /// PAM was not even asked.
    #[error("no account has such a name or password")]
    Unacceptable,
    /// The host has no such user.
    #[error("no such user")]
    Unknown,
    /// PAM's verdict on a user of the host.
    #[error("{0}")]
    Verdict(Failure),
    /// The password was right.
    #[error("uid 0 may not log in without --allow-root")]
    Root,
}

impl Refused {
    /// Whether what was given for a name is one, and not a password that was typed there.
    pub(super) fn is_name_known(self) -> bool {
        matches!(self, Refused::Verdict(_) | Refused::Root)
    }
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
    /// The request that began it.
    request: String,
    pair: Mark,
    ticket: Ticket,
}

impl Attempt {
    fn peer(&self) -> Peer<'_> {
        Peer { address: self.peer, request: &self.request }
    }
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
    ///
    /// What it came to stands in the record once for each request; but that a pair is right is not
    /// said again while it is remembered.
    pub(super) async fn check(&self, user: &str, password: &[u8], peer: Peer<'_>) -> Outcome {
        let began = Instant::now();
        let peer = Peer { address: peer.address.to_canonical(), ..peer };
        let outcome = self.outcome(user, password, peer).await;
        if matches!(outcome, Err(LoginError::Refused(_) | LoginError::Unavailable)) {
            sleep_until(next_multiple(began, self.inner.rules.floor, Instant::now())).await;
        }
        outcome
    }

    async fn outcome(&self, user: &str, password: &[u8], peer: Peer<'_>) -> Outcome {
        if !credentials::acceptable(user, password) {
            return recorded(Err(LoginError::Refused(Refused::Unacceptable)), user, peer);
        }
        let inner = &self.inner;
        let pair = inner.marker.pair(user, password);
        match inner.remembered(user, &pair, peer.address) {
            Some(Ok(found)) => return Ok(found),
            Some(outcome) => return recorded(outcome, user, peer),
            None => {}
        }
        let (mut flight, joined) = match inner.fly(user, password, peer, pair) {
            Ok(flight) => flight,
            Err(error) => return recorded(Err(error), user, peer),
        };
        let landed = flight.wait_for(Option::is_some).await;
        let outcome = landed.ok().and_then(|outcome| outcome.clone());
        let outcome = outcome.unwrap_or(Err(LoginError::Unavailable));
        // Whoever began the attempt has it recorded, even if they are gone.
        if joined { recorded(outcome, user, peer) } else { outcome }
    }
}

/// The outcome, when it has been written down.
fn recorded(outcome: Outcome, user: &str, peer: Peer<'_>) -> Outcome {
    match &outcome {
        Ok(found) => audit::login(&found.name, peer),
        Err(LoginError::Refused(why)) => audit::refused(user, peer, *why),
        Err(LoginError::TooMany(_)) => audit::turned_away(None, peer, "too many failed logins"),
        // No verdict on anybody; the log says what is wrong.
        Err(LoginError::Busy(_) | LoginError::Unavailable) => {}
    }
    outcome
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
            Verdict::Wrong(why) => Some(Err(LoginError::Refused(why))),
            Verdict::Right(found) => {
                let open = self.gate.is_open(self.marker.user(user), peer, now);
                open.then_some(Ok(found))
            }
        }
    }

    /// Joins the attempt that is under way for this pair and address (`true`), or begins one.
    fn fly(
        self: &Arc<Inner>,
        user: &str,
        password: &[u8],
        peer: Peer<'_>,
        pair: Mark,
    ) -> Result<(watch::Receiver<Option<Outcome>>, bool), LoginError> {
        let Peer { address: peer, request } = peer;
        let mut flights = self.flights();
        if let Some(flight) = flights.get(&(pair, peer)) {
            return Ok((flight.clone(), true));
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
            request: request.to_owned(),
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
        Ok((flight, false))
    }

    async fn run(&self, attempt: Attempt) -> Outcome {
        sleep_until(attempt.ticket.begin).await;
        let user = self.marker.user(&attempt.user);
        let _turn = self.turns.take(user).await.ok_or(LoginError::Busy(BUSY))?;
        let (stamp, now) = (self.files.stamp(), Instant::now());
        match self.memory().recall(&attempt.pair, &stamp, now) {
            Some(Verdict::Right(found)) => {
                return recorded(Ok(found), &attempt.user, attempt.peer());
            }
            Some(Verdict::Wrong(why)) => {
                return recorded(Err(LoginError::Refused(why)), &attempt.user, attempt.peer());
            }
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
                self.refuse(attempt, stamp, Refused::Root)
            }
            Ok(Answer::User(found)) => Ok(self.accept(attempt, Arc::new(found), stamp)),
            Ok(Answer::Absent) => {
                // Not by name: it may be anything that was typed.
                tracing::error!(peer = %attempt.peer,
                    "PAM accepted a user whom the name service does not know: login refused");
                self.refuse(attempt, stamp, Refused::Unknown)
            }
            Ok(Answer::Refused { failure, known: true }) => {
                self.refuse(attempt, stamp, Refused::Verdict(failure))
            }
            Ok(Answer::Refused { known: false, .. }) => {
                self.refuse(attempt, stamp, Refused::Unknown)
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
        audit::login(&found.name, attempt.peer());
        attempt.ticket.succeeded(now);
        self.memory().note(attempt.pair, Verdict::Right(Arc::clone(&found)), stamp, now);
        self.users.found(&found, stamp);
        found
    }

    fn refuse(&self, attempt: Attempt, stamp: &Stamp, why: Refused) -> Outcome {
        let now = Instant::now();
        audit::refused(&attempt.user, attempt.peer(), why);
        attempt.ticket.failed(now);
        self.memory().note(attempt.pair, Verdict::Wrong(why), stamp, now);
        Err(LoginError::Refused(why))
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
