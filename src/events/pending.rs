//! What somebody has yet to look at: names, each once, or everything.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::layout::Changed;
use crate::oci::RepoName;

/// More names are "everything": whoever does not look for long costs no memory.
const MOST: usize = 100_000;

/// How long to wait before something is looked at again that was just being written.
const AGAIN: Duration = Duration::from_millis(500);

/// What is to be looked at. Whoever was told may wait for it.
#[derive(Debug)]
pub struct Pending {
    state: Mutex<State>,
    bell: Condvar,
}

#[derive(Debug)]
struct State {
    names: BTreeSet<RepoName>,
    all: bool,
    /// What had changed before was looked at, or is among the names.
    since: SystemTime,
    /// To be looked at again, and when.
    later: BTreeMap<RepoName, Instant>,
    /// Who was looked at last: the others come first.
    last: Option<RepoName>,
}

/// What to look at next, and the time up to which everything had been looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// A repository, or where one was.
    Repository(RepoName, SystemTime),
    /// All there are, and all there were: to be found out and added.
    All(SystemTime),
    /// Nothing came in time.
    Nothing,
}

impl Pending {
    /// Nothing, at first. What changed before `since` was looked at before.
    pub fn new(since: SystemTime) -> Pending {
        let (names, later) = (BTreeSet::new(), BTreeMap::new());
        let state = State { names, all: false, since, later, last: None };
        Pending { state: Mutex::new(state), bell: Condvar::new() }
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what may have changed.
    pub fn add(&self, changed: &Changed) {
        let mut state = self.locked();
        if state.is_empty() {
            state.since = changed.since;
        }
        if changed.all || state.names.len() + changed.names.len() > MOST {
            (state.all, state.names) = (true, BTreeSet::new());
        } else if !state.all {
            state.names.extend(changed.names.iter().cloned());
        }
        self.bell.notify_all();
    }

    /// Adds all there are, once that is known, with the time that came with [`Next::All`].
    pub fn add_names(&self, names: impl IntoIterator<Item = RepoName>, since: SystemTime) {
        let mut state = self.locked();
        state.since = state.since.min(since);
        state.names.extend(names);
        self.bell.notify_all();
    }

    /// Adds everything, whenever it was looked at before.
    pub fn add_all(&self) {
        self.locked().all = true;
        self.bell.notify_all();
    }

    /// Adds something that is to be looked at again in a moment.
    pub fn add_again(&self, name: &RepoName, since: SystemTime) {
        self.add_later(name, since, AGAIN);
    }

    /// Adds something that is to be looked at again after a time.
    pub fn add_later(&self, name: &RepoName, since: SystemTime, after: Duration) {
        let mut state = self.locked();
        state.since = state.since.min(since);
        state.later.insert(name.clone(), Instant::now() + after);
    }

    /// Takes what is next, and waits for it up to a time.
    pub fn next(&self, wait: Duration) -> Next {
        let end = Instant::now() + wait;
        let mut state = self.locked();
        loop {
            let now = Instant::now();
            if let Some(next) = state.take(now) {
                return next;
            }
            if now >= end {
                return Next::Nothing;
            }
            let due = state.later.values().min().map_or(end, |due| (*due).min(end));
            let wait = due.saturating_duration_since(now);
            let waited = self.bell.wait_timeout(state, wait);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl State {
    fn is_empty(&self) -> bool {
        !self.all && self.names.is_empty() && self.later.is_empty()
    }

    fn take(&mut self, now: Instant) -> Option<Next> {
        if std::mem::take(&mut self.all) {
            return Some(Next::All(self.since));
        }
        let due = self.later.iter().find(|(_, due)| **due <= now).map(|(name, _)| name.clone());
        if let Some(name) = due {
            self.later.remove(&name);
            return Some(Next::Repository(name, self.since));
        }
        let after = self.last.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let mut after = self.names.range::<RepoName, _>((after, Bound::Unbounded));
        let name = after.next().or_else(|| self.names.first()).cloned()?;
        self.names.remove(&name);
        self.last = Some(name.clone());
        Some(Next::Repository(name, self.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(names: &[&str], all: bool) -> Changed {
        let names = names.iter().map(|name| RepoName::parse(name).unwrap()).collect();
        Changed { names, all, ..Changed::nothing(SystemTime::now()) }
    }

    fn next(pending: &Pending) -> String {
        match pending.next(Duration::ZERO) {
            Next::Repository(name, _) => name.to_string(),
            Next::All(_) => "all".to_owned(),
            Next::Nothing => "nothing".to_owned(),
        }
    }

    #[test]
    fn names_come_once_and_in_turn() {
        let pending = Pending::new(SystemTime::now());
        assert_eq!(next(&pending), "nothing");
        pending.add_all();
        assert_eq!(next(&pending), "all");
        pending.add(&changed(&["b", "a"], false));
        pending.add(&changed(&["a"], false));
        assert_eq!(next(&pending), "a");
        // A busy one does not come before those that wait.
        pending.add(&changed(&["a"], false));
        assert_eq!(next(&pending), "b");
        assert_eq!(next(&pending), "a");
        assert_eq!(next(&pending), "nothing");
        pending.add(&changed(&["a"], true));
        pending.add(&changed(&["b"], false));
        assert_eq!(next(&pending), "all");
        assert_eq!(next(&pending), "nothing");
        let name = RepoName::parse("c").unwrap();
        let now = SystemTime::now();
        pending.add_again(&name, now);
        assert_eq!(next(&pending), "nothing");
        let next = pending.next(Duration::from_secs(60));
        assert!(matches!(&next, Next::Repository(found, _) if *found == name), "{next:?}");
    }

    #[test]
    fn what_changed_while_nobody_looked_is_not_taken_for_old() {
        let early = SystemTime::now() - Duration::from_secs(60);
        let pending = Pending::new(early);
        let first = Changed { since: early + Duration::from_secs(10), ..changed(&["a"], false) };
        pending.add(&first);
        pending.add(&changed(&["b"], false));
        for name in ["a", "b"] {
            let name = RepoName::parse(name).unwrap();
            assert_eq!(pending.next(Duration::ZERO), Next::Repository(name, first.since));
        }
        // All there are, found out while something else came.
        pending.add(&changed(&["b"], false));
        pending.add_names([RepoName::parse("a").unwrap()], early);
        let next = pending.next(Duration::ZERO);
        assert!(matches!(next, Next::Repository(_, since) if since == early), "{next:?}");
    }
}
