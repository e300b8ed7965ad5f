//! Work that threads on all cores share.

use std::panic::resume_unwind;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// More threads than this would only hold more in memory at once.
const MOST: usize = 16;

/// How many threads share the work of a check.
pub(super) fn all() -> usize {
    static ALL: OnceLock<usize> = OnceLock::new();
    *ALL.get_or_init(|| thread::available_parallelism().map_or(1, usize::from).min(MOST))
}

/// Does the work on every item, by so many threads; what comes of it is in the order of the items.
/// All have ended when this returns.
pub(super) fn each<T: Sync, R: Send>(
    hands: usize,
    items: &[T],
    work: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    let hands = hands.min(items.len());
    if hands < 2 {
        return items.iter().map(work).collect();
    }
    let next = AtomicUsize::new(0);
    let some = || {
        let taken = std::iter::from_fn(|| {
            let at = next.fetch_add(1, Ordering::Relaxed);
            items.get(at).map(|item| (at, work(item)))
        });
        taken.collect::<Vec<_>>()
    };
    let mut done = thread::scope(|scope| {
        // Where no thread can be made, this one does the work.
        let hand = |_| thread::Builder::new().spawn_scoped(scope, some).ok();
        let others: Vec<_> = (1..hands).filter_map(hand).collect();
        let mut done = some();
        for other in others {
            done.extend(other.join().unwrap_or_else(|panic| resume_unwind(panic)));
        }
        done
    });
    done.sort_unstable_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, made)| made).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn all_is_done_once_by_all_and_stays_in_order() {
        let items: Vec<usize> = (0..1000).collect();
        for hands in [0, 1, 2, 7, 2000] {
            let done = each(hands, &items, |item| item * 2);
            assert_eq!(done, items.iter().map(|item| item * 2).collect::<Vec<_>>(), "{hands}");
        }
        // Two who wait for each other at every item have one of each pair.
        let pair = Barrier::new(2);
        let done = each(2, &items[..10], |item| {
            pair.wait();
            *item
        });
        assert_eq!(done, items[..10]);
        // Each waits for all others: nobody does two of them.
        let together = Barrier::new(4);
        let threads = each(4, &items[..4], |_| {
            together.wait();
            thread::current().id()
        });
        assert_eq!(threads.into_iter().collect::<HashSet<_>>().len(), 4);
        assert_eq!(each(3, &items[..0], |item| *item), Vec::<usize>::new());
    }
}
