//! What an administrator with a shell does behind the server's back.

use std::fs;

use super::deeds::REPOS;
use super::run::{Run, Step};
use super::tree;
use crate::support::random::Random;

/// Names that copies and moved directories get, beside those that clients push to.
const NEW: [&str; 3] = ["copy", "team/copy", "deep/er/copy"];

impl Run<'_> {
    fn draw_directory(&self, random: &mut Random) -> Option<String> {
        let dirs: Vec<&String> = self.world.dirs.iter().collect();
        random.pick(&dirs).map(|dir| (*dir).clone())
    }

    /// A directory, and a free name that does not lie in it.
    fn draw_directory_and_name(&self, random: &mut Random) -> Option<(String, String)> {
        let from = self.draw_directory(random)?;
        let names: Vec<&str> = NEW.into_iter().chain(REPOS).collect();
        let to = *random.pick(&names)?;
        let free = !self.world.dirs.contains(to) && !to.starts_with(&format!("{from}/"));
        free.then(|| (from, to.to_owned()))
    }

    pub(super) fn remove_directory(&mut self, random: &mut Random) -> Step {
        let Some(dir) = self.draw_directory(random) else { return Ok(()) };
        self.tell(format!("rm -rf {dir}"));
        fs::remove_dir_all(self.face.root().join(&dir)).map_err(|error| error.to_string())?;
        self.world.remove(&dir);
        Ok(())
    }

    pub(super) fn copy_directory(&mut self, random: &mut Random) -> Step {
        let Some((from, to)) = self.draw_directory_and_name(random) else { return Ok(()) };
        self.tell(format!("cp -a {from} {to}"));
        tree::cp_a(self.face.root(), &from, &to);
        self.world.copy(&from, &to);
        Ok(())
    }

    pub(super) fn move_directory(&mut self, random: &mut Random) -> Step {
        let Some((from, to)) = self.draw_directory_and_name(random) else { return Ok(()) };
        self.tell(format!("mv {from} {to}"));
        tree::mv(self.face.root(), &from, &to);
        self.world.rename(&from, &to);
        Ok(())
    }

    /// Also one that a manifest needs: the next push brings it back.
    pub(super) fn remove_blob(&mut self, random: &mut Random) -> Step {
        let repo = self.world.draw_repo(random);
        let there: Vec<_> = self.world.repo(&repo).into_iter().flat_map(|r| &r.blobs).collect();
        let Some(digest) = random.pick(&there).map(|digest| (*digest).clone()) else {
            return Ok(());
        };
        self.tell(format!("rm {digest} of {repo}"));
        let path = tree::blob_path(self.face.root(), &repo, &digest);
        fs::remove_file(path).map_err(|error| error.to_string())?;
        self.world.lose(&repo, &digest);
        Ok(())
    }

    pub(super) fn write_like_skopeo(&mut self, random: &mut Random) -> Step {
        let repo = self.world.draw_repo(random);
        let digest = random.pick(&self.world.contents.images).expect("an image").clone();
        let shape = self.world.contents.shape(&digest).expect("a manifest");
        // Nobody writes an image whose layers are not what it says.
        let sizes = shape.references.iter();
        if sizes.clone().any(|r| self.world.contents.size(&r.digest) != r.size) {
            return Ok(());
        }
        let blobs: Vec<_> = sizes.map(|r| r.digest.clone()).chain([digest.clone()]).collect();
        self.tell(format!("skopeo writes {digest} to {repo}:latest"));
        tree::write_like_skopeo(self.face.root(), &repo, "latest", &digest, &self.world);
        let there = self.world.make(&repo);
        for blob in &blobs {
            there.blobs.insert(blob.clone());
        }
        there.is_foreign = true;
        // Whether what had the tag is listed without one as well, the tool's file says.
        there.index = tree::index(&self.face.root().join(&repo));
        self.world.soiled.extend(blobs);
        Ok(())
    }

    /// Nothing but deduplication is lost.
    pub(super) fn lose_pool(&mut self) -> Step {
        self.tell("rm -rf .stillage/pool".to_owned());
        let pool = self.face.root().join(".stillage/pool");
        if pool.exists() {
            fs::remove_dir_all(pool).map_err(|error| error.to_string())?;
        }
        let digests = self.world.digests();
        self.world.soiled.extend(digests);
        Ok(())
    }

    pub(super) fn lose_hints(&mut self) -> Step {
        self.tell("rm -rf .stillage/holders".to_owned());
        let holders = self.face.root().join(".stillage/holders");
        if holders.exists() {
            fs::remove_dir_all(holders).map_err(|error| error.to_string())?;
        }
        self.world.hints.clear();
        Ok(())
    }

    pub(super) fn lose_facts(&mut self, random: &mut Random) -> Step {
        let repo = self.world.draw_repo(random);
        let facts = self.face.root().join(&repo).join("_referrers/facts.jsonl");
        if facts.exists() {
            self.tell(format!("rm {repo}/_referrers/facts.jsonl"));
            fs::remove_file(facts).map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}
