//! Slows guessing down without locking anyone out.
//!
//! Failures are counted per address prefix, and per user and address; no account is ever counted
//! across addresses, or anyone could lock anyone out. Above a free number of them, attempts wait
//! for a turn whose distance grows up to [`MAX_DELAY`]. An attempt counts from when it begins, so
//! that many at once gain nothing.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use super::bounded::Bounded;
use super::memory::Mark;

/// The longest distance between two attempts, and the longest that one waits for its turn.
pub(super) const MAX_DELAY: Duration = Duration::from_secs(15);
/// Of the failures half are forgotten after so long without a new one.
const HALVING: Duration = Duration::from_secs(300);
/// An address that logged a user in is not held back for that user by what its neighbours fail at.
const EXEMPT: Duration = Duration::from_secs(3600);
/// How many prefixes, and how many pairs of user and address, are kept in mind.
const CAPACITY: usize = 16_384;

/// A user at an address: an IPv4 address alone, or the IPv6 network of one link (/64).
type Place = (Mark, IpAddr);

/// The counters. Cheap to share.
#[derive(Clone)]
pub(super) struct Gate(Arc<Mutex<Counters>>);

struct Counters {
    prefixes: Bounded<IpAddr, Track>,
    places: Bounded<Place, Track>,
    successes: Bounded<Place, ()>,
}

/// How an address or a user at an address has done lately.
struct Track {
    failures: u32,
    pending: u32,
    /// When the next attempt may begin.
    next: Instant,
    /// When failures were last added or forgotten.
    since: Instant,
}

/// How the delay grows: none up to `free` attempts, then from `first`, doubling every `step`.
struct Rule {
    free: u32,
    step: u32,
    first: Duration,
}

/// A prefix may be a whole office or a cluster behind one address.
const PREFIX: Rule = Rule { free: 50, step: 10, first: Duration::from_millis(250) };
const PLACE: Rule = Rule { free: 5, step: 1, first: Duration::from_millis(500) };

impl Rule {
    fn delay(&self, count: u32) -> Duration {
        let Some(above) = count.checked_sub(self.free + 1) else {
            return Duration::ZERO;
        };
        self.first.saturating_mul(1 << (above / self.step).min(16)).min(MAX_DELAY)
    }
}

impl Track {
    fn new(now: Instant) -> Track {
        Track { failures: 0, pending: 0, next: now, since: now }
    }

    fn forget(&mut self, now: Instant) {
        while self.failures > 0 && now >= self.since + HALVING {
            self.failures /= 2;
            self.since += HALVING;
        }
    }

    /// The distance from one more attempt to the next.
    fn delay(&self, rule: &Rule) -> Duration {
        rule.delay(self.failures.saturating_add(self.pending).saturating_add(1))
    }
}

/// An attempt that was let in. Must be told how it ended; dropped without, it counts for nothing.
pub(super) struct Ticket {
    gate: Gate,
    prefix: IpAddr,
    place: Place,
    /// When the attempt may begin.
    pub(super) begin: Instant,
}

impl Gate {
    pub(super) fn new() -> Gate {
        // Long enough that the largest count has faded before its entry goes.
        let kept = HALVING * 12;
        Gate(Arc::new(Mutex::new(Counters {
            prefixes: Bounded::new(CAPACITY, kept),
            places: Bounded::new(CAPACITY, kept),
            successes: Bounded::new(CAPACITY, EXEMPT),
        })))
    }

    fn counters(&self) -> MutexGuard<'_, Counters> {
        self.0.lock().unwrap_or_else(|held| held.into_inner())
    }

    /// Whether an attempt could begin now, and one more right after it. Only then may a remembered
    /// password be compared without a ticket: otherwise the memory could be guessed against.
    pub(super) fn is_open(&self, user: Mark, peer: IpAddr, now: Instant) -> bool {
        let (_, tracks) = self.counters().tracks(user, peer, now);
        tracks.into_iter().all(|(next, delay)| delay.is_zero() && next <= now)
    }

    /// Lets an attempt in, at once or at a later time; or refuses it, with the time until there is
    /// a turn to be had.
    pub(super) fn admit(&self, user: Mark, peer: IpAddr, now: Instant) -> Result<Ticket, Duration> {
        let mut counters = self.counters();
        let (exempt, tracks) = counters.tracks(user, peer, now);
        let begin = tracks.iter().map(|(next, _)| *next).fold(now, Instant::max);
        if begin - now > MAX_DELAY {
            return Err(begin - now);
        }
        let (prefix, place) = keys(user, peer);
        let [of_prefix, of_place] = counters.touch(prefix, place, now);
        if !exempt {
            of_prefix.next = begin + of_prefix.delay(&PREFIX);
        }
        of_place.next = begin + of_place.delay(&PLACE);
        of_prefix.pending += 1;
        of_place.pending += 1;
        drop(counters);
        Ok(Ticket { gate: self.clone(), prefix, place, begin })
    }
}

impl Counters {
    /// Whether the prefix does not count, and of every track that does: when it lets the next
    /// attempt in, and the distance from that to the one after.
    fn tracks(
        &mut self,
        user: Mark,
        peer: IpAddr,
        now: Instant,
    ) -> (bool, Vec<(Instant, Duration)>) {
        let (prefix, place) = keys(user, peer);
        let exempt = self.successes.get(&place, now).is_some();
        let look = |track: &mut Track, rule| {
            track.forget(now);
            (track.next, track.delay(rule))
        };
        let [of_prefix, of_place] = self.touch(prefix, place, now);
        let mut tracks = vec![look(of_place, &PLACE)];
        if !exempt {
            tracks.push(look(of_prefix, &PREFIX));
        }
        (exempt, tracks)
    }

    fn touch(&mut self, prefix: IpAddr, place: Place, now: Instant) -> [&mut Track; 2] {
        [
            self.prefixes.touch(prefix, now, || Track::new(now)),
            self.places.touch(place, now, || Track::new(now)),
        ]
    }
}

impl Ticket {
    /// The password was wrong.
    pub(super) fn failed(self, now: Instant) {
        let mut counters = self.gate.counters();
        for track in counters.touch(self.prefix, self.place, now) {
            track.failures = track.failures.saturating_add(1);
            track.since = now;
        }
    }

    /// The password was right. The prefix keeps its count: who has one account may guess another's.
    pub(super) fn succeeded(self, now: Instant) {
        let mut counters = self.gate.counters();
        counters.successes.insert(self.place, (), now);
        let [_, track] = counters.touch(self.prefix, self.place, now);
        track.failures = 0;
        track.next = now;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let now = Instant::now();
        let mut counters = self.gate.counters();
        for track in counters.touch(self.prefix, self.place, now) {
            track.pending = track.pending.saturating_sub(1);
        }
    }
}

/// What a peer's attempts for a user are counted under. One customer has a /56 of IPv6 to spend as
/// they like, so that is the prefix there.
fn keys(user: Mark, peer: IpAddr) -> (IpAddr, Place) {
    let peer = peer.to_canonical();
    (network(peer, 56), (user, network(peer, 64)))
}

fn network(peer: IpAddr, bits: u32) -> IpAddr {
    match peer {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !(u128::MAX >> bits)))
        }
    }
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
