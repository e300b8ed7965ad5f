//! A sorted set whose copies share what they have in common: to copy one of 100,000 items and to change
//! the copy costs what a few hundred do.

use std::slice;
use std::sync::Arc;

/// No run has more items than this. A change copies one run.
const MOST: usize = 256;

/// A sorted set.
#[derive(Clone, Debug)]
pub(super) struct Sorted<T> {
    /// None is empty.
    runs: Vec<Arc<Vec<T>>>,
    len: usize,
}

impl<T> Default for Sorted<T> {
    fn default() -> Self {
        Sorted { runs: Vec::new(), len: 0 }
    }
}

impl<T: Ord + Clone> Sorted<T> {
    /// Of items in any order.
    pub(super) fn of(mut items: Vec<T>) -> Sorted<T> {
        items.sort_unstable();
        items.dedup();
        let len = items.len();
        let mut items = items.into_iter().peekable();
        let mut runs = Vec::with_capacity(len.div_ceil(MOST));
        while items.peek().is_some() {
            runs.push(Arc::new(items.by_ref().take(MOST).collect()));
        }
        Sorted { runs, len }
    }

    /// How many items there are.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The items from the first on of which `before` does not hold. It has to hold of none after that.
    pub(super) fn from(&self, before: impl Fn(&T) -> bool) -> Items<'_, T> {
        let (run, at) = self.place(before);
        let first = self.runs.get(run).map_or(&[][..], |run| &run[at..]);
        let others = self.runs.get(run + 1..).unwrap_or_default();
        Items { run: first.iter(), others: others.iter() }
    }

    /// Puts an item in, unless it is there.
    pub(super) fn insert(&mut self, item: T) {
        let (run, at) = self.place(|other| *other < item);
        let Some(items) = self.runs.get(run) else {
            self.runs.push(Arc::new(vec![item]));
            self.len += 1;
            return;
        };
        let next = || self.runs.get(run + 1).and_then(|run| run.first());
        if items.get(at).or_else(next) == Some(&item) {
            return;
        }
        let items = Arc::make_mut(&mut self.runs[run]);
        items.insert(at, item);
        self.len += 1;
        if items.len() > MOST {
            let half = items.split_off(MOST / 2);
            self.runs.insert(run + 1, Arc::new(half));
        }
    }

    /// Takes an item out, if it is there.
    pub(super) fn remove(&mut self, item: &T) {
        let (mut run, mut at) = self.place(|other| other < item);
        if self.runs.get(run).is_some_and(|items| items.len() == at) {
            (run, at) = (run + 1, 0);
        }
        if self.runs.get(run).and_then(|items| items.get(at)) != Some(item) {
            return;
        }
        let items = Arc::make_mut(&mut self.runs[run]);
        items.remove(at);
        self.len -= 1;
        if items.is_empty() {
            self.runs.remove(run);
        } else if items.len() < MOST / 8 && !self.join(run) && run > 0 {
            self.join(run - 1);
        }
    }

    /// Joins a run and the next one, if both have few: runs are never as many as items.
    fn join(&mut self, run: usize) -> bool {
        let items = |run: usize| self.runs.get(run).map_or(MOST, |items| items.len());
        let few = items(run) + items(run + 1) <= MOST / 2;
        if few {
            let next = self.runs.remove(run + 1);
            Arc::make_mut(&mut self.runs[run]).extend(next.iter().cloned());
        }
        few
    }

    /// Changes all items, which must keep their order.
    pub(super) fn change_all(&mut self, change: impl Fn(&mut T)) {
        self.runs.iter_mut().for_each(|run| Arc::make_mut(run).iter_mut().for_each(&change));
    }

    /// The run and the place in it of the first item of which `before` does not hold; at the run's end
    /// that is the first of the next.
    fn place(&self, before: impl Fn(&T) -> bool) -> (usize, usize) {
        let begun = self.runs.partition_point(|run| run.first().is_some_and(&before));
        let run = begun.saturating_sub(1);
        (run, self.runs.get(run).map_or(0, |run| run.partition_point(before)))
    }
}

/// Some items of a set, in their order.
#[derive(Clone, Debug)]
pub(super) struct Items<'a, T> {
    run: slice::Iter<'a, T>,
    others: slice::Iter<'a, Arc<Vec<T>>>,
}

impl<'a, T> Iterator for Items<'a, T> {
    type Item = &'a T;

    fn next(&mut self) -> Option<&'a T> {
        loop {
            match self.run.next() {
                Some(item) => return Some(item),
                None => self.run = self.others.next()?.iter(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against the plainest model; a copy that was made on the way stays as it was.
        #[test]
        fn it_is_a_set(
            first in proptest::collection::vec(0..2000_u32, 0..1500),
            steps in proptest::collection::vec((any::<bool>(), 0..2000_u32), 0..3000),
        ) {
            let mut model: BTreeSet<u32> = first.iter().copied().collect();
            let mut sorted = Sorted::of(first);
            let (copy, then) = (sorted.clone(), model.clone());
            for (puts, item) in steps {
                if puts {
                    sorted.insert(item);
                    model.insert(item);
                } else {
                    sorted.remove(&item);
                    model.remove(&item);
                }
            }
            for (sorted, model) in [(&sorted, &model), (&copy, &then)] {
                prop_assert_eq!(sorted.len(), model.len());
                for begin in [0, 1, 777, 1999, 2000] {
                    let got: Vec<u32> = sorted.from(|item| *item < begin).copied().collect();
                    prop_assert_eq!(got, model.range(begin..).copied().collect::<Vec<_>>());
                }
                let full = sorted.runs.iter().all(|run| (1..=MOST).contains(&run.len()));
                prop_assert!(full);
            }
        }
    }

    #[test]
    fn a_change_of_a_copy_copies_one_run() {
        let all = Sorted::of((0..100_000_u32).map(|n| n * 2).collect());
        let mut changed = all.clone();
        changed.insert(77_777);
        let shared = changed.runs.iter().filter(|run| all.runs.iter().any(|o| Arc::ptr_eq(o, run)));
        assert!(shared.count() + 1 >= all.runs.len());
    }

    #[test]
    fn what_comes_and_goes_leaves_few_runs() {
        let mut sorted = Sorted::of((0..50_000_u32).collect());
        (0..50_000).filter(|n| n % 100 != 0).for_each(|n| sorted.remove(&n));
        assert_eq!(sorted.len(), 500);
        assert!(sorted.runs.len() < 30, "{}", sorted.runs.len());
    }
}
