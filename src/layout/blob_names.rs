//! Whether names came to a repository's blobs since somebody looked.

use std::time::Duration;

use super::dir::Dir;
use super::error::{OrAbsent, Result};
use super::path;
use super::tree::is_remote;
use super::version::Version;
use crate::oci::Algorithm;

/// So often directories are looked at whose times are not settled, and so long is waited in between.
const LOOKS: usize = 3;
const TICKS: Duration = Duration::from_millis(12);

/// A state of the directories in which a repository's blobs have their names.
#[derive(Debug, PartialEq, Eq)]
pub struct BlobNames([Option<Version>; Algorithm::ALL.len()]);

impl BlobNames {
    /// The state that they have now.
    ///
    /// # Errors
    /// A directory is there and cannot be looked at.
    pub fn of(repo: &Dir) -> Result<BlobNames> {
        let mut states = [None; Algorithm::ALL.len()];
        for (state, algorithm) in states.iter_mut().zip(Algorithm::ALL) {
            if let Some(blobs) = repo.dir(&path::blobs(algorithm)).or_absent()? {
                *state = Some(Version::of(&blobs.stat()?));
            }
        }
        Ok(BlobNames(states))
    }

    /// A state from which every other one will differ: waits for that, 24 ms at most. `None` where it does
    /// not come to that: names come or go all the while, the file system keeps whole seconds, or is
    /// a network's.
    ///
    /// # Errors
    /// As above.
    pub fn settled(repo: &Dir) -> Result<Option<BlobNames>> {
        // A repository may be a mount of its own.
        for algorithm in Algorithm::ALL {
            if let Some(blobs) = repo.dir(&path::blobs(algorithm)).or_absent()?
                && is_remote(&blobs)?
            {
                return Ok(None);
            }
        }
        for look in 0..LOOKS {
            if look > 0 {
                // There is nothing to be woken by: it is a clock that has to tick.
                std::thread::sleep(TICKS);
            }
            let names = BlobNames::of(repo)?;
            let mut states = names.0.iter().flatten();
            if states.all(|state| state.settled() && !state.is_coarse()) {
                return Ok(Some(names));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Instant;

    use super::*;

    #[test]
    fn every_name_that_comes_shows_however_soon() {
        let temp = tempfile::tempdir().unwrap();
        let repo = Dir::open_root(temp.path()).unwrap();
        let none = BlobNames::settled(&repo).unwrap().unwrap();
        for algorithm in Algorithm::ALL {
            let blobs = temp.path().join(path::blobs(algorithm));
            let mut come = Instant::now();
            fs::create_dir_all(&blobs).unwrap();
            assert_ne!(BlobNames::of(&repo).unwrap(), none, "the directory itself came");
            for n in 0..20 {
                let before = BlobNames::settled(&repo).unwrap().unwrap();
                // Within one tick of the clock two names would come at the same time. The last one's is
                // that of its tick's begin.
                assert!(come.elapsed() > TICKS / 2, "{algorithm} {n}: {:?}", come.elapsed());
                assert_eq!(BlobNames::of(&repo).unwrap(), before);
                come = Instant::now();
                fs::write(blobs.join(n.to_string()), "").unwrap();
                assert_ne!(BlobNames::of(&repo).unwrap(), before, "{algorithm} {n}");
            }
        }
    }
}
