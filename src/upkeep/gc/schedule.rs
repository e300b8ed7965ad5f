//! When a server collects.

use std::time::{Duration, SystemTime};

use crate::layout::{Collected, Tree};

/// After a collection that did not come to its end, or that somebody else kept from anything.
const AGAIN: Duration = Duration::from_secs(60 * 60);

/// When the next collection is due, where one is wanted `every` so often and not before `earliest`.
/// Whoever collected last counts, this server or anybody; `tried` is when this one did.
pub fn next(
    tree: &Tree,
    every: Duration,
    earliest: SystemTime,
    tried: Option<SystemTime>,
) -> SystemTime {
    // A file that cannot be read says nothing, and is told of by the collection itself.
    let last = Collected::last(tree).ok().flatten().map(|last| last.end());
    let after = |time: Option<SystemTime>, pause| time.and_then(|time| time.checked_add(pause));
    let due = [after(last, every), after(tried, every.min(AGAIN))];
    due.into_iter().flatten().fold(earliest, SystemTime::max)
}
