//! How far a check is, for whoever looks on.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts that go up while a check runs.
#[derive(Debug, Default)]
pub struct Progress {
    bytes: AtomicU64,
    names: AtomicU64,
}

impl Progress {
    /// How many bytes were read to hash them.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// How many names of blobs were looked at, in repositories and in the pool.
    pub fn names(&self) -> u64 {
        self.names.load(Ordering::Relaxed)
    }

    pub(super) fn hashed(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn named(&self) {
        self.names.fetch_add(1, Ordering::Relaxed);
    }
}
