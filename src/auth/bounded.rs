//! A map that outsiders fill and that cannot grow without bound.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use tokio::time::Instant;

/// A map whose entries are forgotten after a time, and the oldest first where it is full.
pub(super) struct Bounded<K, V> {
    entries: HashMap<K, (Instant, V)>,
    capacity: usize,
    lifetime: Duration,
}

impl<K: Hash + Eq + Clone, V> Bounded<K, V> {
    pub(super) fn new(capacity: usize, lifetime: Duration) -> Bounded<K, V> {
        Bounded { entries: HashMap::new(), capacity, lifetime }
    }

    /// The entry, unless its time is over.
    pub(super) fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q, now: Instant) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let (since, value) = self.entries.get(key)?;
        (now < *since + self.lifetime).then_some(value)
    }

    /// Puts an entry in the place of any old one; its time begins now.
    pub(super) fn insert(&mut self, key: K, value: V, now: Instant) {
        self.make_room(&key, now);
        self.entries.insert(key, (now, value));
    }

    /// The entry, made anew where it is missing or its time is over; its time begins again now.
    pub(super) fn touch(&mut self, key: K, now: Instant, new: impl FnOnce() -> V) -> &mut V {
        if self.get(&key, now).is_none() {
            self.insert(key.clone(), new(), now);
        }
        let entry = self.entries.get_mut(&key);
        let (since, value) = entry.unwrap_or_else(|| unreachable!("put there just above"));
        *since = now;
        value
    }

    pub(super) fn clear(&mut self) {
        self.entries.clear();
    }

    fn make_room(&mut self, key: &K, now: Instant) {
        if self.entries.len() < self.capacity || self.entries.contains_key(key) {
            return;
        }
        let lifetime = self.lifetime;
        self.entries.retain(|_, (since, _)| now < *since + lifetime);
        if self.entries.len() < self.capacity {
            return;
        }
        let oldest = self.entries.iter().min_by_key(|(_, (since, _))| *since);
        if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
            self.entries.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_end_and_the_oldest_makes_room() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut map = Bounded::new(2, Duration::from_secs(10));
        map.insert("a", 1, at(0));
        map.insert("b", 2, at(1));
        assert_eq!(map.get("a", at(9)), Some(&1));
        assert_eq!(map.get("a", at(10)), None);
        map.insert("c", 3, at(2));
        assert_eq!(map.get("a", at(3)), None, "the oldest made room");
        assert_eq!((map.get("b", at(3)), map.get("c", at(3))), (Some(&2), Some(&3)));
        *map.touch("b", at(4), || 0) += 5;
        map.insert("d", 4, at(5));
        assert_eq!((map.get("b", at(12)), map.get("c", at(5))), (Some(&7), None));
        assert_eq!(*map.touch("b", at(60), || 0), 0, "its time was over");
    }
}
