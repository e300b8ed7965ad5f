//! Content that is wrong, and content that is missing.

use super::{At, Done, Work};
use crate::layout::quarantine::is_still;
use crate::layout::{self, At as _, Dir, Inode, OrAbsent, relink};
use crate::oci::Digest;

/// The digest of a path that ends in `<alg>/<hex>`, or, in the pool, in `<alg>/<hh>/<hex>`.
pub(super) fn digest_of(within: &str) -> Option<Digest> {
    let mut parts = within.rsplit('/');
    let hex = parts.next()?;
    let parent = parts.next()?;
    Digest::parse(&format!("{parent}:{hex}"))
        .or_else(|_| Digest::parse(&format!("{}:{hex}", parts.next().unwrap_or_default())))
        .ok()
}

impl Work<'_> {
    /// Moves whatever stands at a path to quarantine.
    pub(super) fn set_aside(&mut self, base: &Dir, at: At<'_>) -> Done {
        let Some((dir, name)) = at.open(base)? else { return Ok(()) };
        let Some(stat) = dir.stat_name(name)? else { return Ok(()) };
        if !self.is_dry() {
            // Where a lock should be is something that nobody can lock.
            let _turn = match at.within {
                ".stillage/gc.lock" => None,
                ".lock" => Some(self.turn(None)?),
                _ if self.is_in_room(at) => Some(self.turn(None)?),
                _ => Some(self.turn(Some(base))?),
            };
            if !is_still(&dir, name, &stat)? {
                return Ok(());
            }
            let rule = at.rule.id();
            let kept = self.mender.quarantine()?.take(&dir, name, &at.whole(), rule)?;
            self.say(at, "moved to quarantine", Some(kept));
            return Ok(());
        }
        self.say(at, "moved to quarantine", None);
        Ok(())
    }

    pub(super) fn is_in_room(&self, at: At<'_>) -> bool {
        at.path.starts_with(layout::path::ROOM)
    }

    /// A repository's blob whose content is not what its name says: sound content takes its place,
    /// if there is any.
    pub(super) fn damaged(&mut self, repo: &Dir, at: At<'_>) -> Done {
        let (Some(digest), Some((dir, name))) = (digest_of(at.within), at.open(repo)?) else {
            return Ok(());
        };
        let Some((file, stat)) = dir.file_stat(name).or_absent()? else { return Ok(()) };
        let found = self.hashes.digest(&file, &stat, digest.algorithm());
        if found.at(|| dir.at(name))? == digest {
            return Ok(());
        }
        let source = self.find(repo, &digest, Some(Inode::of(&stat)))?;
        let from = source.as_ref().map(|(_, from)| format!("; linked from {from}"));
        let deed = format!("moved to quarantine{}", from.unwrap_or_default());
        if self.is_dry() {
            self.say(at, deed, None);
            return Ok(());
        }
        let tree = self.mender.tree()?;
        let ready = match source {
            Some((source, _)) => relink::prepare(&tree, source, &digest)?,
            None => None,
        };
        let _turn = self.turn(Some(repo))?;
        if !is_still(&dir, name, &stat)? {
            return Ok(());
        }
        let (path, rule) = (at.whole(), at.rule.id());
        let quarantine = self.mender.quarantine()?;
        let kept = match ready {
            Some(ready) => {
                let kept = quarantine.link(&dir, name, &path, rule)?;
                relink::supply(&tree, repo, &digest, &ready)?;
                kept
            }
            None => quarantine.take(&dir, name, &path, rule)?,
        };
        self.say(at, deed, Some(kept));
        Ok(())
    }

    /// A blob that is needed and not there.
    pub(super) fn missing(&mut self, repo: &Dir, at: At<'_>) -> Done {
        let Some(digest) = digest_of(at.within) else { return Ok(()) };
        if layout::blobs::stat(repo, &digest)?.is_some() {
            return Ok(());
        }
        let Some((source, from)) = self.find(repo, &digest, None)? else { return Ok(()) };
        let deed = format!("linked from {from}");
        if !self.is_dry() {
            let tree = self.mender.tree()?;
            let Some(ready) = relink::prepare(&tree, source, &digest)? else { return Ok(()) };
            let _turn = self.turn(Some(repo))?;
            if layout::blobs::stat(repo, &digest)?.is_some() {
                return Ok(());
            }
            relink::supply(&tree, repo, &digest, &ready)?;
        }
        self.say(at, deed, None);
        Ok(())
    }

    /// A name under sha512 whose inode has one under sha256 gets an inode of its own.
    pub(super) fn separate(&mut self, base: &Dir, at: At<'_>) -> Done {
        let (Some(digest), Some((dir, name))) = (digest_of(at.within), at.open(base)?) else {
            return Ok(());
        };
        let Some((file, stat)) = dir.file_stat(name).or_absent()? else { return Ok(()) };
        let found = self.hashes.digest(&file, &stat, digest.algorithm());
        if found.at(|| dir.at(name))? != digest {
            return Ok(());
        }
        if !self.is_dry() {
            let tree = self.mender.tree()?;
            let in_room = self.is_in_room(at);
            let _turn = self.turn((!in_room).then_some(base))?;
            if !is_still(&dir, name, &stat)? {
                return Ok(());
            }
            relink::separate(&tree, &dir, &digest)?;
        }
        self.say(at, "copied into an inode of its own", None);
        Ok(())
    }
}
