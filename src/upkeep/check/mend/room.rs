//! The registry's own room: rights, keys, pool, uploads, hints.

use rustix::fs::{Mode, fchmod};

use super::blobs::digest_of;
use super::{At, Done, Stop, Work, there};
use crate::layout::holders::Hint;
use crate::layout::inherit::{Purpose, strip_acl};
use crate::layout::quarantine::is_still;
use crate::layout::{At as _, Dir, OrAbsent, lock, path, size_of};
use crate::oci::Algorithm;

impl Work<'_> {
    /// Nobody else may enter the room.
    pub(super) fn close_room(&mut self, room: &Dir, at: At<'_>) -> Done {
        if !self.is_dry() {
            let path = || room.path().to_owned();
            strip_acl(room).at(path)?;
            fchmod(room, Mode::RWXU).at(path)?;
        }
        self.say(at, "narrowed to its owner", None);
        Ok(())
    }

    /// A key that others could read, or that is none, is deleted: it is no secret, and the server
    /// makes another.
    pub(super) fn unsafe_key(&mut self, root: &Dir, at: At<'_>) -> Done {
        let Some((dir, name)) = at.open(root)? else { return Ok(()) };
        if !self.is_dry() {
            let tree = self.mender.tree()?;
            let wait = self.mender.repairs.wait;
            let held = lock::exclusive_within(&tree.room, path::TOKEN_LOCK, wait)?;
            let _held = held.ok_or_else(|| Stop::blocked(&tree.room, path::TOKEN_LOCK))?;
            tree.disk.unlink(&dir, name).or_absent()?;
            tree.disk.sync_dir(&dir)?;
        }
        self.say(at, "deleted: the server makes another", None);
        Ok(())
    }

    /// The pool's name of content that is not what it says.
    pub(super) fn pooled_wrong(&mut self, root: &Dir, at: At<'_>) -> Done {
        let (Some(digest), Some((dir, name))) = (digest_of(at.within), at.open(root)?) else {
            return Ok(());
        };
        let Some((file, stat)) = dir.file_stat(name).or_absent()? else { return Ok(()) };
        let found = self.hashes.digest(&file, &stat, digest.algorithm());
        match found.at(|| dir.at(name))? == digest {
            true => Ok(()),
            false => self.set_aside(root, at),
        }
    }

    /// A shared inode that somebody could write: the owner's is sealed, another's leaves the pool.
    pub(super) fn pooled_unsafe(&mut self, root: &Dir, at: At<'_>) -> Done {
        let Some((dir, name)) = at.open(root)? else { return Ok(()) };
        let Some((file, stat)) = dir.file_stat(name).or_absent()? else { return Ok(()) };
        if stat.st_uid != rustix::process::geteuid().as_raw() {
            return self.set_aside(root, at);
        }
        if !self.is_dry() {
            let _turn = self.turn(None)?;
            if !is_still(&dir, name, &stat)? {
                return Ok(());
            }
            let path = || dir.at(name);
            strip_acl(&file).at(path)?;
            fchmod(&file, Mode::from_raw_mode(0o444)).at(path)?;
        }
        self.say(at, "made read-only", None);
        Ok(())
    }

    /// Whatever is no session, or one that nobody can take up: the whole of it is moved away, unless
    /// somebody is writing to it.
    pub(super) fn upload(&mut self, root: &Dir, at: At<'_>) -> Done {
        let uploads = format!("{}/{}/", path::ROOM, path::UPLOADS);
        let inside = at.within.strip_prefix(&uploads).unwrap_or_default();
        let Some(session) = inside.split('/').next().filter(|name| !name.is_empty()) else {
            return Ok(());
        };
        let whole = format!("{uploads}{session}");
        let data = format!("{whole}/{}", path::UPLOAD_DATA);
        let data = there(root.file(&data))?;
        if data.as_ref().is_some_and(|data| data.try_lock().is_err()) {
            return Ok(());
        }
        let done = self.done.len();
        self.set_aside(root, At { within: &whole, path: whole.as_ref(), ..at })?;
        for done in &mut self.done[done..] {
            done.path = at.path.to_owned();
        }
        Ok(())
    }

    /// Hints of a length that is not the pool's get that.
    pub(super) fn hints(&mut self, root: &Dir, at: At<'_>) -> Done {
        let Some((dir, name)) = at.open(root)? else { return Ok(()) };
        let algorithm =
            Algorithm::ALL.into_iter().find(|algorithm| dir.path().ends_with(algorithm.as_str()));
        let Some(algorithm) = algorithm else { return Ok(()) };
        let room = root.dir(path::ROOM)?;
        let hashes = self.hashes;
        self.rewrite(root, &dir, at, Purpose::Lock, name, &|line, to| {
            let text = line.and_then(|line| std::str::from_utf8(line).ok());
            let Some(hint) = text.and_then(|line| Hint::parse(line, algorithm)) else {
                return Ok(());
            };
            let pooled = there(room.file_stat(&path::pool(&hint.digest)))?;
            let size = match pooled {
                Some((_, stat)) if !hashes.is_suspect(crate::layout::Inode::of(&stat)) => {
                    size_of(&stat)
                }
                _ => hint.size,
            };
            let line = format!("{} {size} {}\n", hint.digest.hex(), hint.repository);
            to.extend_from_slice(line.as_bytes());
            Ok(())
        })
    }
}
