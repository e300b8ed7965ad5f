//! One repository: what it had at one moment.

use std::thread;
use std::time::{Duration, Instant};

use super::{Pair, Run, SnapshotError, blobs, names};
use crate::layout::path;

type Result<T> = std::result::Result<T, SnapshotError>;

/// An index.json that another tool never finishes writing is taken as it is after so long.
const PATIENCE: Duration = Duration::from_secs(10);

/// How soon such a one is looked at again.
const PAUSE: Duration = Duration::from_millis(50);

/// Whether a name in a repository's directory belongs to the repository. None is another repository's,
/// and every other name that begins with `_` is somebody else's.
pub(super) fn is_own(name: &str) -> bool {
    names::is_own(name) || name == path::BLOBS
}

/// So often index.json may change while its views are copied. The last time its lock is held meanwhile,
/// if it is to be had: pushes to this one repository wait as long as its views take.
const ATTEMPTS: usize = 3;

/// Copies a repository: its blobs without the lock first, then, under the lock, what names them and the
/// blobs that came meanwhile, and without the lock again what need not be of that moment.
pub(super) fn copy(run: &mut Run<'_>, pair: &Pair) -> Result<()> {
    let begun = Instant::now();
    if pair.to.is_some() {
        blobs::bring(run, pair)?;
    }
    let mut attempts = 0;
    loop {
        let counted = run.summary.clone();
        run.lease.take()?;
        let still = (attempts + 1 == ATTEMPTS).then(|| names::hold(pair)).flatten();
        let settled = names::settle(run, pair, begun.elapsed() > PATIENCE);
        let settled = settled.and_then(|settled| {
            blobs::settle(run, pair)?;
            Ok(settled)
        });
        let sound = run.lease.release()?;
        match settled? {
            Some(moment) if sound => {
                attempts += 1;
                if names::rest(run, pair, &moment, still.as_ref())? {
                    break;
                }
                if attempts == ATTEMPTS {
                    names::without_views(run, pair)?;
                    break;
                }
            }
            Some(_) => {}
            None => thread::sleep(PAUSE),
        }
        run.summary = counted;
        names::clear(run, pair)?;
    }
    names::others(run, pair)?;
    blobs::dress(run, pair)
}
