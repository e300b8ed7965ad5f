//! A repository's small files and directories: `oci-layout`, rights, journal, facts.

use std::fs::File;
use std::path::PathBuf;

use rustix::fs::Mode;

use super::super::{facts, journal, lines};
use super::{At, Done, Work, there};
use crate::graph::Knowledge;
use crate::graph::views::Place;
use crate::layout::facts::Fact;
use crate::layout::inherit::{self, Purpose};
use crate::layout::quarantine::is_still;
use crate::layout::rights::Rights;
use crate::layout::{
    self, At as _, Dir, Disk, IndexFile, Inode, OrAbsent, durable, path, read_all,
};
use crate::oci::RepoName;

impl Work<'_> {
    /// Writes `oci-layout`, unless it names another version.
    pub(super) fn oci_layout(&mut self, repo: &Dir, at: At<'_>) -> Done {
        if !matches!(IndexFile::read(repo), Ok(Some(_))) {
            return Ok(());
        }
        let found = repo.file_stat(path::OCI_LAYOUT).or_absent()?;
        if let Some((file, _)) = &found {
            let read = read_all(file, 1 << 16, || repo.at(path::OCI_LAYOUT));
            let bytes = there(read)?.unwrap_or_default();
            let said = serde_json::from_slice::<serde_json::Value>(&bytes).unwrap_or_default();
            if said["imageLayoutVersion"].is_string() {
                return Ok(());
            }
        }
        let mut kept = None;
        if !self.is_dry() {
            let tree = self.mender.tree()?;
            let _turn = self.turn(Some(repo))?;
            match &found {
                Some((_, stat)) if !is_still(repo, path::OCI_LAYOUT, stat)? => return Ok(()),
                Some(_) => {
                    let quarantine = self.mender.quarantine()?;
                    let (name, rule) = (path::OCI_LAYOUT, at.rule.id());
                    kept = Some(quarantine.copy(repo, name, &at.whole(), rule)?);
                }
                None => {}
            }
            let bytes = path::OCI_LAYOUT_BYTES;
            durable::replace(&*tree.disk, repo, path::OCI_LAYOUT, bytes, Purpose::Public)?;
            tree.disk.sync_dir(repo)?;
        }
        self.say(at, "written", kept);
        Ok(())
    }

    /// A directory inside becomes as open as the repository's own.
    pub(super) fn inner(&mut self, repo: &Dir, at: At<'_>) -> Done {
        if !self.is_dry() {
            let tree = self.mender.tree()?;
            let _turn = self.turn(Some(repo))?;
            tree.make_as_open(repo, at.within)?;
        }
        self.say(at, "made as open as the repository", None);
        Ok(())
    }

    /// The lock or the journal, where it is the owner's and has this one name. Whoever may write to
    /// the directory may put another file there meanwhile: permissions are only ever taken away.
    pub(super) fn narrow(&mut self, repo: &Dir, at: At<'_>) -> Done {
        let purpose = match at.within {
            path::LOCK => Purpose::Lock,
            _ => Purpose::Journal,
        };
        let Some(looked) = repo.stat_name(at.within)?.filter(is_owners_one) else { return Ok(()) };
        if !self.is_dry() {
            let _turn = self.turn(Some(repo))?;
            let Some((file, stat)) = repo.file_stat(at.within).or_absent()? else { return Ok(()) };
            let taken = is_owners_one(&stat) && inherit::narrow_only(repo, &file, purpose)?;
            // Whoever takes a lock narrows it.
            let by_the_turn = purpose == Purpose::Lock && Inode::of(&stat) == Inode::of(&looked);
            if !taken && !by_the_turn {
                return Ok(());
            }
        }
        self.say(at, "narrowed", None);
        Ok(())
    }

    /// A part of the journal is written anew without the lines that are none; all of it as it was
    /// is kept.
    pub(super) fn journal(&mut self, repo: &Dir, at: At<'_>) -> Done {
        let name = at.within;
        let is_sound = |line: Option<&[u8]>| journal::parse(line).is_ok();
        self.rewrite(repo, repo, at, Purpose::Journal, name, &|line, to| {
            if let Some(bytes) = line.filter(|_| is_sound(line)) {
                to.extend_from_slice(bytes);
                to.push(b'\n');
            }
            Ok(())
        })
    }

    /// Facts that are wrong are replaced by what the manifests say.
    pub(super) fn facts(&mut self, repo: &Dir, at: At<'_>) -> Done {
        let Some((dir, name)) = at.open(repo)? else { return Ok(()) };
        self.rewrite(repo, &dir, at, Purpose::Public, name, &|line, to| {
            let Some(fact) = line.and_then(Fact::parse) else { return Ok(()) };
            let truth = there(facts::truth(repo, &fact))?.flatten().unwrap_or(fact);
            if serde_json::to_writer(&mut *to, &truth).is_ok() {
                to.push(b'\n');
            }
            Ok(())
        })
    }

    /// Views are made to be those of index.json.
    pub(super) fn views(&mut self, repo: &Dir, at: At<'_>) -> Done {
        let Ok(name) = RepoName::parse(self.repository) else { return Ok(()) };
        if !self.is_dry() {
            let tree = self.mender.tree()?;
            let _turn = self.turn(Some(repo))?;
            let Ok(Some(index)) = IndexFile::read(repo) else { return Ok(()) };
            let known = Knowledge::of(repo, &index.index)?;
            let way = Rights::look(&tree.root, &name)?;
            Place::on(&way, &name, repo)?.renew(&tree, &index, &known)?;
        }
        self.say(at, "views made from index.json", None);
        Ok(())
    }

    /// Writes a file of lines anew, each through `each`; what it was is kept.
    pub(super) fn rewrite(
        &mut self,
        base: &Dir,
        dir: &Dir,
        at: At<'_>,
        purpose: Purpose,
        name: &str,
        each: Rewrite<'_>,
    ) -> Done {
        let mut kept = None;
        if !self.is_dry() {
            let disk = self.mender.tree()?.disk;
            let in_room = self.is_in_room(at);
            let _turn = self.turn((!in_room).then_some(base))?;
            let Some(file) = dir.file(name).or_absent()? else { return Ok(()) };
            let quarantine = self.mender.quarantine()?;
            kept = Some(quarantine.copy(dir, name, &at.whole(), at.rule.id())?);
            rewritten(&*disk, dir, name, purpose, &file, each)?;
        }
        self.say(at, "written anew from what is sound", kept);
        Ok(())
    }
}

/// A regular file of this account's, with one name.
fn is_owners_one(stat: &rustix::fs::Stat) -> bool {
    let own = rustix::process::geteuid().as_raw();
    layout::is_regular(stat) && stat.st_uid == own && stat.st_nlink == 1
}

/// Takes a line, which is `None` if it is too long, and writes what becomes of it.
pub(super) type Rewrite<'a> = &'a dyn Fn(Option<&[u8]>, &mut Vec<u8>) -> layout::Result<()>;

/// So much is written at once.
const PIECE: usize = 1 << 20;

fn rewritten(
    disk: &dyn Disk,
    dir: &Dir,
    name: &str,
    purpose: Purpose,
    from: &File,
    each: Rewrite<'_>,
) -> layout::Result<()> {
    let beside = path::temporary(name);
    let at = || -> PathBuf { dir.at(&beside) };
    let to = disk.create(dir, &beside, Mode::RUSR | Mode::WUSR)?;
    let mut pending = Vec::new();
    let mut offset = 0;
    let (mut failed, mut known) = (Ok(()), Ok(()));
    let mut flush = |pending: &mut Vec<u8>, least: usize| {
        if failed.is_ok() && pending.len() > least {
            failed = disk.write(&to, pending, offset);
            offset += pending.len() as u64;
            pending.clear();
        }
    };
    let read = lines::each(from, |_, line| {
        if known.is_ok() {
            known = each(line, &mut pending);
        }
        flush(&mut pending, PIECE);
    });
    flush(&mut pending, 0);
    let written = read
        .and(failed)
        .at(at)
        .and(known)
        .and_then(|()| inherit::apply(dir, &to, purpose))
        .and_then(|()| disk.sync(&to).at(at))
        .and_then(|()| disk.rename(dir, &beside, dir, name));
    if written.is_err() {
        let _ = disk.unlink(dir, &beside);
        return written;
    }
    disk.sync_dir(dir)
}
