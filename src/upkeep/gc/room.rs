//! The room: the pool, the trash, and uploads that nobody goes on with.

use std::time::{Instant, SystemTime};

use rustix::fs::Stat;

use super::event::Event;
use super::turn::{TURN, held};
use super::{Run, repository};
use crate::layout::notes::Notes;
use crate::layout::trash::{self, Removed};
use crate::layout::{OrAbsent, Result, Walk, lock, path, pool, sweep};
use crate::oci::Algorithm;

impl Run<'_> {
    /// Whatever goes wrong is told, and keeps nothing else from being done.
    pub(super) fn room(&mut self) {
        let steps =
            [Run::notes, Run::trash, Run::pool, Run::uploads, Run::tidy_hints, Run::leftovers];
        for step in steps {
            if let Err(error) = step(self) {
                self.tell(Event::Warning(&error));
            }
        }
    }

    /// Notes of what is no repository any more go: one of that name that is begun anew must not find
    /// its grace over. Removing a note is always safe.
    fn notes(&mut self) -> Result<()> {
        let all = self.tree.room.dir(path::UNREFERENCED).or_absent()?;
        let Some(all) = all.filter(|_| self.really() && self.options.only.is_none()) else {
            return Ok(());
        };
        let mut gone = Vec::new();
        for found in Walk::directories(&all)? {
            let (name, _) = found?;
            // What cannot be looked at may be one.
            match self.tree.repository(&name) {
                Ok(Some(dir)) if repository::is_one(&dir) => {}
                Ok(_) => gone.push(name),
                Err(_) => {}
            }
        }
        // The inner ones first, so that the outer ones' directories are empty.
        gone.iter().rev().try_for_each(|name| Notes::clear(self.tree, name))
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
            std::thread::sleep(lock::LEAVE_FREE);
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

    /// What killed writers left beside hints and the certificate.
    fn leftovers(&mut self) -> Result<()> {
        let hints = Algorithm::ALL.map(path::holders_dir);
        for relative in hints.iter().map(String::as_str).chain([path::TLS]) {
            if let Some(dir) = self.tree.room.dir(relative).or_absent()? {
                repository::sweep_beside(self, &dir);
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::{Options, run};
    use crate::layout::{RealDisk, Tree};

    #[test]
    fn notes_of_repositories_that_are_gone_go_too() {
        let temp = tempfile::tempdir().unwrap();
        let tree = Tree::open(temp.path(), Arc::new(RealDisk)).unwrap();
        let digest = format!("sha256:{}", "0".repeat(64));
        let notes = temp.path().join(".stillage/unreferenced");
        for repo in ["a", "a/b", "kept", "kept/gone"] {
            std::fs::create_dir_all(notes.join(repo)).unwrap();
            std::fs::write(notes.join(repo).join(&digest), "").unwrap();
        }
        let blobs = temp.path().join("kept/blobs/sha256");
        std::fs::create_dir_all(&blobs).unwrap();
        std::fs::write(blobs.join(&digest["sha256:".len()..]), "").unwrap();
        let mut untag = |_: &_, _, _: &_| Ok(true);
        for dry_run in [true, false] {
            assert!(notes.join("a/b").join(&digest).exists());
            let options = Options { dry_run, ..Options::default() };
            assert!(run(&tree, &options, &mut untag, &mut |_| {}).unwrap().is_whole());
        }
        assert!(notes.join("kept").join(&digest).exists(), "it is as old as it was");
        let left: Vec<_> = std::fs::read_dir(&notes).unwrap().flatten().collect();
        assert_eq!(left.len(), 1, "{left:?}");
        assert!(!notes.join("kept/gone").exists());
    }
}
