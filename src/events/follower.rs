//! Following a whole tree with what was seen of it in memory alone.

use std::collections::BTreeMap;
use std::time::SystemTime;

use super::{Event, Seen, look};
use crate::layout::{Dir, OrAbsent, Result, Walk};
use crate::oci::RepoName;

/// Somebody who follows a tree from some moment on. Nothing is changed on the disk.
#[derive(Debug)]
pub struct Follower {
    root: Dir,
    seen: BTreeMap<RepoName, Seen>,
}

impl Follower {
    /// Takes in what is there now; what journals have since `since` is yet to be told.
    ///
    /// A repository that cannot be read is as one that is not there.
    pub fn start(root: &Dir, since: SystemTime) -> Result<Follower> {
        let mut follower = Follower { root: root.clone(), seen: BTreeMap::new() };
        for (name, dir) in repositories(root)? {
            match Seen::before(&dir, since) {
                Ok(seen) => drop(follower.seen.insert(name, seen)),
                Err(error) => tracing::warn!(%error, "cannot be followed"),
            }
        }
        Ok(follower)
    }

    /// All that are there, and all that were.
    pub fn names(&self) -> Result<Vec<RepoName>> {
        let mut names: Vec<RepoName> = repositories(&self.root)?.map(|(name, _)| name).collect();
        names.extend(self.seen.keys().cloned());
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    /// Tells what happened in a repository since it was looked at last, and gives whether it is to be
    /// looked at again in a moment. What had changed before `since` was looked at before.
    pub fn follow(
        &mut self,
        name: &RepoName,
        since: SystemTime,
        tell: &mut dyn FnMut(&Event),
    ) -> Result<bool> {
        loop {
            let dir = self.root.dir(name.as_str()).or_absent()?;
            let seen = match (self.seen.get(name), &dir) {
                (Some(seen), _) => seen.clone(),
                (None, Some(dir)) => Seen::nothing(dir, since)?,
                (None, None) => return Ok(false),
            };
            let found = look(name, dir.as_ref(), &seen)?;
            found.events.iter().for_each(&mut *tell);
            if dir.is_none() && found.seen.is_empty() {
                self.seen.remove(name);
            } else {
                self.seen.insert(name.clone(), found.seen);
            }
            if !found.more {
                return Ok(found.unsettled);
            }
        }
    }
}

/// What can be read.
fn repositories(root: &Dir) -> Result<impl Iterator<Item = (RepoName, Dir)>> {
    let walk = Walk::after(root, None)?;
    Ok(walk.filter_map(|found| {
        found.inspect_err(|error| tracing::warn!(%error, "cannot be followed")).ok()
    }))
}
