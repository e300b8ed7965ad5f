//! What no blob depends on: the journal's length, facts of manifests that are gone, false hints.

use std::time::{Duration, Instant};

use super::Run;
use super::event::{Event, Tidied};
use super::repository::Repo;
use super::turn::SHORTLY;
use crate::layout::{Result, blobs, facts, holders, journal, lock, path};
use crate::oci::Digest;

/// A journal that is longer becomes an older part.
const LONG: u64 = 16 * 1024 * 1024;

/// Older parts are kept for thirteen months from their last line.
const KEPT: Duration = Duration::from_secs(396 * 24 * 60 * 60);

impl Repo<'_> {
    /// Whatever goes wrong is told; with no space left it is done the next time.
    pub(super) fn tidy(&self, run: &mut Run<'_>) {
        if let Err(error) = self.try_tidy(run) {
            run.tell(Event::Warning(&error));
        }
    }

    fn try_tidy(&self, run: &mut Run<'_>) -> Result<()> {
        let long = journal::is_long(self.dir, LONG)?;
        let old = journal::parts_before(self.dir, run.before(KEPT))?;
        let facts = facts::compact(run.tree, self.dir, false, |digest| self.is_gone(digest))?;
        if !long && old.is_empty() && !facts {
            return Ok(());
        }
        let tell = |run: &mut Run<'_>, what| {
            run.tell(Event::Tidied { repository: self.name, what });
        };
        let disk = &*run.tree.disk;
        // No blob's name vanishes: gc.lock is not needed. Who is busy is left in peace.
        let held = match run.really() {
            true => lock::exclusive_within(self.dir, path::LOCK, SHORTLY)?,
            false => None,
        };
        if run.really() && (held.is_none() || !self.is_named(run)?) {
            return Ok(());
        }
        if held.is_some() {
            if journal::is_long(self.dir, LONG)? {
                journal::rotate(disk, self.dir)?;
            }
            for part in &old {
                disk.unlink(self.dir, part)?;
            }
            facts::compact(run.tree, self.dir, true, |digest| self.is_gone(digest))?;
        }
        drop(held);
        if long {
            tell(run, Tidied::JournalSetAside);
        }
        old.iter().for_each(|part| tell(run, Tidied::JournalPart(part)));
        if facts {
            tell(run, Tidied::Facts);
        }
        Ok(())
    }

    fn is_gone(&self, digest: &Digest) -> Result<bool> {
        let needed = self.marks.cause(digest).is_some();
        Ok(!needed && (self.gone.contains(digest) || blobs::stat(self.dir, digest)?.is_none()))
    }
}

impl Run<'_> {
    /// Drops hints that became false by what this run took. For a while, no longer.
    pub(super) fn tidy_hints(&mut self) -> Result<()> {
        let begun = Instant::now();
        for digest in std::mem::take(&mut self.hints).into_values() {
            if !self.really() || begun.elapsed() > Duration::from_secs(60) {
                break;
            }
            holders::compact(self.tree, &digest)?;
        }
        Ok(())
    }
}
