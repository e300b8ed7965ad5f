//! A bounded memory of manifests' bytes, each believed only of the inode that it was read from.

use std::collections::HashMap;
use std::sync::Mutex;

use bytes::Bytes;
use rustix::fs::Stat;

use super::locked;
use crate::layout::{Inode, size_of};
use crate::oci::Digest;

/// How much one generation holds, of which there are two.
const GENERATION: usize = 4 * 1024 * 1024;

/// Larger ones are read again: some thousand others have room in their place.
const LARGEST: usize = 256 * 1024;

/// What an entry takes besides the bytes, about.
const OVERHEAD: usize = 256;

/// Manifests that were read and have their digest. What was not asked for while a whole generation of
/// others was, is forgotten.
#[derive(Debug, Default)]
pub(super) struct Contents {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    young: HashMap<Digest, Known>,
    old: HashMap<Digest, Known>,
    /// What the young take.
    bytes: usize,
}

/// Of a file that only the server could change: whoever does all the same changes length or time.
#[derive(Debug)]
struct Known {
    file: (Inode, u64, (i64, u64)),
    bytes: Bytes,
}

fn file_of(stat: &Stat) -> (Inode, u64, (i64, u64)) {
    (Inode::of(stat), size_of(stat), (stat.st_mtime, stat.st_mtime_nsec))
}

impl Contents {
    /// The bytes of a file that has this status, if they are known.
    pub(super) fn get(&self, digest: &Digest, stat: &Stat) -> Option<Bytes> {
        let mut state = locked(&self.state);
        if !state.young.contains_key(digest) {
            let (digest, known) = state.old.remove_entry(digest)?;
            state.insert(digest, known);
        }
        let known = state.young.get(digest)?;
        (known.file == file_of(stat)).then(|| known.bytes.clone())
    }

    /// Remembers the bytes of a file that nobody but the server can change; they have the digest.
    pub(super) fn put(&self, digest: &Digest, stat: &Stat, bytes: &Bytes) {
        if bytes.len() > LARGEST {
            return;
        }
        let known = Known { file: file_of(stat), bytes: bytes.clone() };
        locked(&self.state).insert(digest.clone(), known);
    }
}

impl State {
    fn insert(&mut self, digest: Digest, known: Known) {
        let weight = |known: &Known| known.bytes.len() + OVERHEAD;
        self.old.remove(&digest);
        if self.bytes + weight(&known) > GENERATION {
            self.old = std::mem::take(&mut self.young);
            self.bytes = 0;
        }
        self.bytes += weight(&known);
        if let Some(before) = self.young.insert(digest, known) {
            self.bytes -= weight(&before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn bytes_are_known_of_one_file_and_no_more_than_so_many() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let stat = || rustix::fs::fstat(&file).unwrap();
        let contents = Contents::default();
        let digest = |n: usize| Digest::of(Algorithm::Sha256, &n.to_le_bytes());
        let bytes = Bytes::from(vec![7; 100 * 1024]);
        contents.put(&digest(0), &stat(), &bytes);
        assert_eq!(contents.get(&digest(0), &stat()), Some(bytes.clone()));
        assert_eq!(contents.get(&digest(1), &stat()), None);
        for n in 1..=1000 {
            contents.put(&digest(n), &stat(), &bytes);
            // What is asked for stays.
            assert!(contents.get(&digest(0), &stat()).is_some(), "after {n}");
        }
        let held: usize = {
            let state = locked(&contents.state);
            state.young.values().chain(state.old.values()).map(|known| known.bytes.len()).sum()
        };
        assert!((GENERATION..=2 * GENERATION).contains(&(held + bytes.len())), "{held}");
        contents.put(&digest(7), &stat(), &Bytes::from(vec![7; LARGEST + 1]));
        assert_eq!(contents.get(&digest(7), &stat()), None);
        file.as_file().set_len(1).unwrap();
        assert_eq!(contents.get(&digest(0), &stat()), None);
    }
}
