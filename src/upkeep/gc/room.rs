//! The room: the pool, the trash, and uploads that nobody goes on with.

use std::time::{Duration, Instant, SystemTime};

use rustix::fs::Stat;

use super::Run;
use super::event::Event;
use super::turn::held;
use crate::layout::notes::Notes;
use crate::layout::trash::{self, Removed};
use crate::layout::{Result, Walk, lock, path, pool, sweep};

/// As in a repository's turn.
const TURN: Duration = Duration::from_millis(50);
const LEAVE_FREE: Duration = Duration::from_millis(11);

impl Run<'_> {
    /// Whatever goes wrong is told, and keeps nothing else from being done.
    pub(super) fn room(&mut self) {
        let steps = [Run::trash, Run::pool, Run::uploads, Run::orphans, Run::tidy_hints];
        for step in steps {
            if let Err(error) = step(self) {
                self.tell(Event::Warning(&error));
            }
        }
    }

    /// What was removed longer ago than the undo window goes.
    fn trash(&mut self) -> Result<()> {
        let before = self.before(self.options.undo_window);
        for hour in trash::hours(self.tree)? {
            let over = trash::hour_end(&hour).is_some_and(|end| end <= before);
            if !over && !self.options.now {
                continue;
            }
            let mut removed = Removed::default();
            let emptied = self.empty(&hour, &mut removed);
            if removed.files > 0 {
                let Removed { files, bytes } = removed;
                self.tell(Event::Trash { hour: &hour, files, bytes });
            }
            emptied?;
        }
        Ok(())
    }

    fn empty(&mut self, hour: &str, removed: &mut Removed) -> Result<()> {
        let only = self.options.only.as_ref();
        if self.options.dry_run {
            let count = &mut |stat: &Stat| self.links.unlink(stat).1;
            trash::empty(self.tree, hour, only, None, removed, count)?;
            return Ok(());
        }
        while !self.blocked {
            let Some(_gc) =
                lock::exclusive_within(&self.tree.room, path::GC_LOCK, self.options.wait)?
            else {
                let why = held(&self.tree.room, path::GC_LOCK);
                self.blocked = true;
                self.tell(Event::Blocked(&why));
                break;
            };
            let until = Some(Instant::now() + TURN);
            let count = &mut |stat: &Stat| self.links.unlink(stat).1;
            if trash::empty(self.tree, hour, only, until, removed, count)? {
                break;
            }
            drop(_gc);
            std::thread::sleep(LEAVE_FREE);
        }
        Ok(())
    }

    /// Names in the pool that are their inode's last go: at once, or one collection after they
    /// became that.
    fn pool(&mut self) -> Result<()> {
        let before = match (self.options.now, self.last) {
            (true, _) => None,
            (false, Some(last)) => Some(last.begin()),
            (false, None) => Some(SystemTime::UNIX_EPOCH),
        };
        let (tree, leftovers, really) = (self.tree, self.leftovers_before(), self.really());
        pool::each(tree, leftovers, really, |name| {
            let recent = |before| name.changed() >= before || self.links.is_touched(&name.stat);
            if self.links.others(&name.stat) > 0 || before.is_some_and(recent) {
                return Ok(());
            }
            if really {
                name.unlink()?;
            }
            let (_, bytes) = self.links.unlink(&name.stat);
            self.tell(Event::Pool { digest: &name.digest, bytes });
            Ok(())
        })
    }

    /// Notes of repositories that are gone. Should one come back, everything begins anew for it.
    fn orphans(&mut self) -> Result<()> {
        if self.options.only.is_some() || !self.really() {
            return Ok(());
        }
        for found in Walk::directories(&self.tree.room.dir(path::UNREFERENCED)?)? {
            let (name, _) = found?;
            // A directory on the way to another repository is none.
            if self.tree.repository(&name)?.is_some_and(|dir| super::repository::is_one(&dir)) {
                continue;
            }
            if let Some(notes) = Notes::of(self.tree, &name)? {
                for digest in notes.each()? {
                    notes.forget(self.tree, &digest?)?;
                }
            }
        }
        Ok(())
    }

    fn uploads(&mut self) -> Result<()> {
        let Some(expiry) = self.options.upload_expiry.filter(|_| self.options.only.is_none())
        else {
            return Ok(());
        };
        let swept = sweep::sweep_if(self.tree, Some(self.before(expiry)), self.really())?;
        let (uploads, files) = (swept.ended.len() as u64, swept.files as u64);
        if uploads + files > 0 {
            self.tell(Event::Uploads { uploads, files, bytes: swept.bytes });
        }
        Ok(())
    }
}
