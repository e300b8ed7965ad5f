//! Collections, time, restarts, snapshots and repairs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;
use std::time::SystemTime;

use stillage::oci::Digest;

use super::face::Collection;
use super::run::{Run, Step, same};
use super::tree::{self, Picture, Status};
use super::world::Repo;
use crate::support::STILLAGE;
use crate::support::random::Random;

/// Grace and undo window lie between the model's hours, which pass by six: the real time that a run
/// takes changes nothing.
pub const HOURS: u64 = 6;
const GRACE: u64 = 24 + HOURS / 2;
const UNDO: u64 = 7 * 24 + HOURS / 2;

/// When collections of everything ran: the pool goes by that.
#[derive(Debug, Default)]
pub struct Collections {
    last: Option<(SystemTime, SystemTime)>,
}

/// A snapshot, and the model at that moment.
#[derive(Debug)]
pub struct Snapshot {
    dir: PathBuf,
    repos: BTreeMap<String, Repo>,
}

impl Run<'_> {
    pub(super) fn time_passes(&mut self, random: &mut Random) -> Step {
        let hours = HOURS * [1, 1, 1, 2, 2, 3, 5, 8, 30][random.below(9)];
        self.tell(format!("{hours} hours pass"));
        tree::age(self.face.root(), hours);
        self.world.now += hours;
        Ok(())
    }

    pub(super) fn restart(&mut self) -> Step {
        self.tell("restart".to_owned());
        if let Some(expiry) = self.face.restart() {
            self.world.end_uploads(expiry);
        }
        Ok(())
    }

    pub(super) fn collect(&mut self, random: &mut Random) -> Step {
        let now = random.chance(10);
        let only = (now && random.chance(50)).then(|| self.world.draw_repo(random));
        // One that is not there is an error of its own.
        let only = only.filter(|name| self.world.repos.contains_key(name));
        let collection = Collection { grace: GRACE, undo_window: UNDO, now, only, dry_run: false };
        if random.chance(20) {
            self.collect_dry(&collection)?;
        }
        self.tell(format!("{collection:?}"));
        let theirs = tree::theirs(self.face.root());
        let (pool, begun) = (tree::laid(self.face.root()).pool, SystemTime::now());
        let did = self.face.collect(&collection)?;
        let ended = SystemTime::now();
        let said = self.world.collect(&collection, &theirs);
        same!(did.stopped, said.stopped, "repositories that were not collected");
        same!(did.unlinked, said.unlinked, "blobs that were unlinked");
        same!(did.noted, said.noted, "blobs that were noted");
        self.promises_are_kept(if now { 0 } else { GRACE })?;
        self.compare_files()?;
        if collection.only.is_none() {
            self.compare_pool(&pool, now)?;
            self.collections.last = Some((begun, ended));
        }
        Ok(())
    }

    /// What `-n` says is what is done, and nothing is done.
    fn collect_dry(&mut self, collection: &Collection) -> Step {
        self.tell("collect -n".to_owned());
        let before = tree::picture(self.face.root());
        let dry = Collection { dry_run: true, ..collection.clone() };
        let would = self.face.collect(&dry)?;
        let after = tree::picture(self.face.root());
        let changed = before.keys().chain(after.keys());
        let served = self.face.writes_by_itself();
        let changed: Vec<&String> = changed
            .filter(|path| before.get(*path) != after.get(*path))
            .filter(|path| !(self.is_learnt(path, &before, &after) || served && is_view(path)))
            .collect();
        same!(changed, Vec::<&String>::new(), "files changed by collect -n");
        let mut then = self.world.clone();
        let said = then.collect(collection, &tree::theirs(self.face.root()));
        same!(would.stopped, said.stopped, "repositories that would not be collected");
        same!(would.unlinked, said.unlinked, "blobs that would be unlinked");
        same!(would.noted, said.noted, "blobs that would be noted");
        Ok(())
    }

    /// Whatever else the model says: a promise is a promise.
    fn promises_are_kept(&self, grace: u64) -> Step {
        if grace == 0 {
            return Ok(());
        }
        let broken = self
            .world
            .promised(grace)
            .find(|(repo, digest)| !tree::blob_path(self.face.root(), repo, digest).exists());
        match broken {
            Some((repo, digest)) => Err(format!("{digest} was promised in {repo} and is gone")),
            None => Ok(()),
        }
    }

    /// A name of the pool that is the last one goes one collection later, and no other ever does.
    fn compare_pool(&self, before: &BTreeMap<Digest, Status>, now: bool) -> Step {
        let after = tree::laid(self.face.root()).pool;
        for (digest, status) in before {
            let (lone, gone) = (status.links == 1, !after.contains_key(digest));
            let (must, must_not) = match self.collections.last {
                _ if now => (lone, false),
                None => (false, lone),
                Some((begun, ended)) => {
                    (lone && status.changed < begun, lone && status.changed > ended)
                }
            };
            // The kernel's clock of files is a few milliseconds behind ours.
            if must && !gone {
                return Err(format!("the pool's last name of {digest} was not collected"));
            }
            if gone && must_not {
                return Err(format!("the pool's name of {digest} went too early"));
            }
        }
        Ok(())
    }

    /// A copy that shares the blobs; it is looked at again as long as it is kept.
    pub(super) fn snapshot(&mut self, random: &mut Random) -> Step {
        if self.snapshots.len() == 3 {
            let old = self.snapshots.remove(random.below(3));
            self.tell(format!("rm -rf {}", old.dir.display()));
            std::fs::remove_dir_all(old.dir).map_err(|error| error.to_string())?;
        }
        self.taken += 1;
        let dir = self.scratch.path().join(format!("snapshot-{}", self.taken));
        self.tell(format!("snapshot {}", dir.display()));
        let mut command = Command::new(STILLAGE);
        run(command.arg("snapshot").arg(self.face.root()).arg(&dir))?;
        self.snapshots.push(Snapshot { dir, repos: self.world.repos.clone() });
        self.compare_snapshots()
    }

    /// Each holds what the model held at that moment.
    pub(super) fn compare_snapshots(&mut self) -> Step {
        for Snapshot { dir, repos } in &self.snapshots {
            let laid = tree::laid(dir);
            same!(laid.unexplained, Vec::<String>::new(), "files in {}", dir.display());
            let blobs = repos.iter().flat_map(|(name, repo)| {
                repo.blobs.iter().map(|digest| (name.clone(), digest.clone()))
            });
            same!(laid.blobs, blobs.collect(), "blobs in {}", dir.display());
            for (name, repo) in repos {
                let index = tree::index(&dir.join(name));
                same!(index, repo.index, "index.json of {name} in {}", dir.display());
            }
        }
        Ok(())
    }

    /// How many names in snapshots an inode has.
    pub(super) fn names_in_snapshots(&self) -> BTreeMap<u64, u64> {
        let mut names = BTreeMap::new();
        for Snapshot { dir, .. } in &self.snapshots {
            for status in tree::files(dir).values() {
                *names.entry(status.ino).or_default() += 1;
            }
        }
        names
    }

    /// Of a sound tree not a byte changes.
    pub(super) fn repair(&mut self) -> Step {
        let sound = |name: &String| self.world.missing(name).is_empty();
        if !self.world.names().iter().all(sound) {
            return Ok(());
        }
        self.tell("check --repair".to_owned());
        let before = tree::picture(self.face.root());
        let mut command = Command::new(STILLAGE);
        run(command.args(["check", "--repair"]).arg(self.face.root()))?;
        let after = tree::picture(self.face.root());
        let changed: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
        // Where an outsider took names from the pool, it gets them back.
        let soiled = &self.world.soiled;
        let pooled = |path: &str| {
            path.starts_with(".stillage/pool/") && soiled.iter().any(|d| path.ends_with(d.hex()))
        };
        // Views of a repository that another tool changed are stale before.
        let differs = |path: &&String| before.get(*path) != after.get(*path);
        let changed: Vec<&String> = changed
            .into_iter()
            .filter(differs)
            .filter(|path| {
                !pooled(path) && !is_view(path) && !self.is_learnt(path, &before, &after)
            })
            .collect();
        same!(changed, Vec::<&String>::new(), "files changed by a repair of a sound tree");
        Ok(())
    }

    /// Whether a server may have appended in these moments what it learnt of manifests.
    fn is_learnt(&self, path: &str, before: &Picture, after: &Picture) -> bool {
        let grew = match (before.get(path), after.get(path)) {
            (Some((old, inode, _, mode)), Some((new, new_inode, _, new_mode))) => {
                (inode, mode) == (new_inode, new_mode) && new.starts_with(old)
            }
            (old, _) => old.is_none(),
        };
        self.face.writes_by_itself() && path.ends_with("/_referrers/facts.jsonl") && grew
    }
}

/// Whether a file is made from index.json: a server makes it some moments after another tool's change.
fn is_view(path: &str) -> bool {
    let of_manifests = path.contains("/_manifests/") || path.ends_with("/_tags.json");
    of_manifests || path.contains("/_referrers/sha")
}

fn run(command: &mut Command) -> Step {
    let output = command.env_remove("STILLAGE_ROOT").output().map_err(|error| error.to_string())?;
    match output.status.code() {
        Some(0) => Ok(()),
        _ => Err(format!("{command:?}: {output:?}")),
    }
}
