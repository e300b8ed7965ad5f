//! Passwords that were checked a moment ago, so that PAM is not asked again.
//!
//! Docker asks for a token per repository and operation, containerd twice each; PAM manages some
//! twenty checks a second. What is kept is a keyed hash over user, NUL and password under a key
//! that is never stored: no use to who reads the memory later, and no pair is taken for another's.

use std::sync::Arc;
use std::time::Duration;

use hmac::Mac;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::accounts::Stamp;
use super::bounded::Bounded;
use super::login::Refused;
use super::token::{RandomError, keyed};
use super::user::User;

/// How long a verdict is remembered.
pub(super) const REMEMBERED: Duration = Duration::from_secs(60);
/// How many verdicts of each kind are remembered.
const CAPACITY: usize = 4096;

/// Stands for a text without telling it.
pub(super) type Mark = [u8; 32];

/// Makes marks; the key is drawn at the start of the process.
pub(super) struct Marker(Zeroizing<[u8; 32]>);

impl Marker {
    pub(super) fn new() -> Result<Marker, RandomError> {
        let mut key = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *key)?;
        Ok(Marker(key))
    }

    /// The mark of a user and password; the user holds no NUL.
    pub(super) fn pair(&self, user: &str, password: &[u8]) -> Mark {
        self.mark(&[user.as_bytes(), &[0], password])
    }

    /// The mark of a user. Different from every pair's, which have a NUL in them.
    pub(super) fn user(&self, user: &str) -> Mark {
        self.mark(&[user.as_bytes()])
    }

    fn mark(&self, parts: &[&[u8]]) -> Mark {
        let mut mac = keyed(&self.0);
        parts.iter().for_each(|part| mac.update(part));
        mac.finalize().into_bytes().into()
    }
}

/// What is known of a pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Right(Arc<User>),
    /// Wrong, and why.
    Wrong(Refused),
}

/// Verdicts by mark. All are forgotten when the host's account files change.
pub(super) struct Memory {
    right: Bounded<Mark, Arc<User>>,
    wrong: Bounded<Mark, Refused>,
    stamp: Option<Stamp>,
}

impl Memory {
    pub(super) fn new() -> Memory {
        Memory {
            right: Bounded::new(CAPACITY, REMEMBERED),
            wrong: Bounded::new(CAPACITY, REMEMBERED),
            stamp: None,
        }
    }

    /// What is known, given how the account files look now.
    pub(super) fn recall(&mut self, pair: &Mark, stamp: &Stamp, now: Instant) -> Option<Verdict> {
        self.forget_unless(stamp);
        match self.right.get(pair, now) {
            Some(user) => Some(Verdict::Right(Arc::clone(user))),
            None => self.wrong.get(pair, now).copied().map(Verdict::Wrong),
        }
    }

    /// `stamp` is how the account files looked **before** PAM was asked.
    pub(super) fn note(&mut self, pair: Mark, verdict: Verdict, stamp: &Stamp, now: Instant) {
        if self.stamp.as_ref() != Some(stamp) {
            return;
        }
        match verdict {
            Verdict::Right(user) => self.right.insert(pair, user, now),
            Verdict::Wrong(why) => self.wrong.insert(pair, why, now),
        }
    }

    fn forget_unless(&mut self, stamp: &Stamp) {
        if self.stamp.as_ref() != Some(stamp) {
            self.right.clear();
            self.wrong.clear();
            self.stamp = Some(stamp.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::accounts::AccountFiles;
    use super::*;

    fn anna() -> Arc<User> {
        Arc::new(User { name: "anna".into(), uid: 1000, gid: 1000, groups: vec![1000] })
    }

    #[test]
    fn credential_cache_marks_tell_pairs_apart() {
        let marker = Marker::new().expect("random");
        assert_eq!(marker.pair("anna", b"x"), marker.pair("anna", b"x"));
        for (user, password) in [("ann", &b"ax"[..]), ("bert", b"x"), ("anna", b"y"), ("anna", b"")]
        {
            assert_ne!(marker.pair("anna", b"x"), marker.pair(user, password), "{user}");
        }
        assert_ne!(marker.pair("anna", b""), marker.user("anna"));
        let other = Marker::new().expect("random");
        assert_ne!(marker.pair("anna", b"x"), other.pair("anna", b"x"), "a key per process");
    }

    #[test]
    fn verdicts_last_a_minute_and_no_edit_of_the_accounts() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("shadow");
        std::fs::write(&path, "anna:1").expect("write");
        let files = AccountFiles::of(path.clone());
        let (before, now) = (files.stamp(), Instant::now());
        let mut memory = Memory::new();
        let (right, wrong) = ([1; 32], [2; 32]);
        assert_eq!(memory.recall(&right, &before, now), None);
        memory.note(right, Verdict::Right(anna()), &before, now);
        memory.note(wrong, Verdict::Wrong(Refused::Unknown), &before, now);
        let later = now + REMEMBERED - Duration::from_secs(1);
        assert_eq!(memory.recall(&right, &before, later), Some(Verdict::Right(anna())));
        assert_eq!(memory.recall(&wrong, &before, later), Some(Verdict::Wrong(Refused::Unknown)));
        assert_eq!(memory.recall(&right, &before, now + REMEMBERED), None);
        assert_eq!(memory.recall(&wrong, &before, now + REMEMBERED), None);

        std::fs::write(&path, "anna:22").expect("write");
        let after = files.stamp();
        assert_ne!(before, after);
        assert_eq!(memory.recall(&right, &after, now), None);
        assert_eq!(memory.recall(&wrong, &after, now), None);
        memory.note(right, Verdict::Right(anna()), &before, now);
        assert_eq!(memory.recall(&right, &after, now), None, "checked against the old accounts");
    }
}
