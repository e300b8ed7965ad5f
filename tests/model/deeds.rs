//! What clients push and delete, and what is drawn for it.

use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;

use stillage::oci::{Algorithm, Digest};

use super::face::Refused;
use super::run::{Run, Step, same};
use super::world::World;
use crate::support::random::Random;

/// Where clients push to. Some lie in others' directories.
pub const REPOS: [&str; 8] = ["a", "a/b", "a/b/c", "busy", "team/x", "team/y", "z", "z-0/z"];

pub(super) const TAGS: [&str; 8] = ["latest", "v1", "v1.0", "v2", "nightly", "_x", "A", "0"];

/// A push that other deeds come between.
#[derive(Debug)]
pub struct Slow {
    repo: String,
    steps: VecDeque<Todo>,
}

#[derive(Debug)]
enum Todo {
    Provide(Digest),
    Put(Digest, Vec<String>),
}

impl World {
    /// Mostly one that clients push to, sometimes one that an outsider made.
    pub fn draw_repo(&self, random: &mut Random) -> String {
        let names = self.names();
        let drawn = if random.chance(15) { random.pick(&names).cloned() } else { None };
        drawn.unwrap_or_else(|| REPOS[random.below(REPOS.len())].to_owned())
    }

    pub(super) fn draw_blob(&self, random: &mut Random, repo: &str) -> Digest {
        let there: Vec<&Digest> = self.repo(repo).into_iter().flat_map(|r| &r.blobs).collect();
        let drawn = if random.chance(70) { random.pick(&there).copied() } else { None };
        drawn.or_else(|| random.pick(&self.contents.plain)).expect("content").clone()
    }

    pub fn draw_manifest(&self, random: &mut Random) -> Digest {
        let of = match random.below(10) {
            0..6 => &self.contents.images,
            6..8 => &self.contents.indexes,
            _ => &self.contents.referrers,
        };
        random.pick(of).expect("a manifest").clone()
    }

    /// One that the repository lists, or any.
    pub(super) fn draw_entry(&self, random: &mut Random, repo: &str) -> Digest {
        let listed = self.index(repo).into_iter().flat_map(|index| &index.manifests);
        let listed: Vec<&Digest> = listed.collect();
        let drawn =
            if random.chance(90) { random.pick(&listed).map(|d| (*d).clone()) } else { None };
        drawn.unwrap_or_else(|| self.draw_manifest(random))
    }

    pub(super) fn draw_tag(&self, random: &mut Random, repo: &str) -> String {
        let there = self.index(repo).into_iter().flat_map(|index| index.tags.keys());
        let there: Vec<&String> = there.collect();
        let drawn =
            if random.chance(80) { random.pick(&there).map(|t| (*t).clone()) } else { None };
        drawn.unwrap_or_else(|| TAGS[random.below(TAGS.len())].to_owned())
    }
}

fn draw_tags(random: &mut Random) -> Vec<String> {
    let many = [0, 1, 1, 1, 1, 2, 3][random.below(7)];
    let tags: BTreeSet<&str> = (0..many).map(|_| TAGS[random.below(TAGS.len())]).collect();
    tags.into_iter().map(str::to_owned).collect()
}

pub(super) fn short(digest: &Digest) -> String {
    format!("{}:{}", digest.algorithm(), &digest.hex()[..8])
}

impl Run<'_> {
    // --- pushing ----------------------------------------------------------------------------

    /// All that a manifest needs, lowest first, and the manifest itself.
    fn todo(&self, digest: &Digest, tags: Vec<String>, steps: &mut VecDeque<Todo>) {
        let references = self.world.contents.shape(digest).map(|shape| shape.references.clone());
        for reference in references.unwrap_or_default() {
            if reference.is_child {
                self.todo(&reference.digest, Vec::new(), steps);
            } else if reference.is_required {
                steps.push_back(Todo::Provide(reference.digest));
            }
        }
        steps.push_back(Todo::Put(digest.clone(), tags));
    }

    pub(super) fn push(&mut self, random: &mut Random) -> Step {
        let (repo, digest) = (self.world.draw_repo(random), self.world.draw_manifest(random));
        let mut steps = VecDeque::new();
        self.todo(&digest, draw_tags(random), &mut steps);
        self.tell(format!("push {} to {repo}", short(&digest)));
        steps.into_iter().try_for_each(|step| self.push_step(random, &repo, step))
    }

    pub(super) fn slow_push(&mut self, random: &mut Random) -> Step {
        if self.slow.len() < 6 {
            let (repo, digest) = (self.world.draw_repo(random), self.world.draw_manifest(random));
            let mut steps = VecDeque::new();
            self.todo(&digest, draw_tags(random), &mut steps);
            self.tell(format!("begin to push {} to {repo}", short(&digest)));
            self.slow.push(Slow { repo, steps });
        }
        self.go_on(random)
    }

    pub(super) fn go_on(&mut self, random: &mut Random) -> Step {
        if self.slow.is_empty() {
            return Ok(());
        }
        let at = random.below(self.slow.len());
        let slow = &mut self.slow[at];
        let repo = slow.repo.clone();
        match slow.steps.pop_front() {
            Some(step) => self.push_step(random, &repo, step),
            None => {
                self.slow.remove(at);
                Ok(())
            }
        }
    }

    fn push_step(&mut self, random: &mut Random, repo: &str, step: Todo) -> Step {
        match step {
            Todo::Provide(digest) => self.provide(random, repo, &digest),
            Todo::Put(digest, tags) => self.put(random, repo, &digest, tags),
        }
    }

    /// As clients do: some ask first, some mount, some just send it.
    fn provide(&mut self, random: &mut Random, repo: &str, digest: &Digest) -> Step {
        let there = match random.below(10) {
            0..5 => self.head(repo, digest)?,
            5..8 => {
                let from = self.world.draw_repo(random);
                self.mount(repo, digest, (!random.chance(30)).then_some(from.as_str()))?
            }
            _ => false,
        };
        if there { Ok(()) } else { self.upload(repo, digest) }
    }

    fn upload(&mut self, repo: &str, digest: &Digest) -> Step {
        self.tell(format!("upload {} to {repo}", short(digest)));
        let bytes = self.world.contents.bytes(digest);
        same!(self.face.put_blob(repo, digest, bytes), Ok(()), "upload of {digest} to {repo}");
        self.world.admit(repo, digest);
        Ok(())
    }

    pub(super) fn upload_one(&mut self, random: &mut Random) -> Step {
        let repo = self.world.draw_repo(random);
        let digest = self.world.draw_blob(random, &repo);
        if !random.chance(10) {
            return self.upload(&repo, &digest);
        }
        self.tell(format!("upload something else as {} to {repo}", short(&digest)));
        let answer = self.face.put_blob(&repo, &digest, random.bytes(20).into());
        same!(answer, Err(Refused::DigestMismatch), "upload of something else as {digest}");
        self.world.forget_note(&repo, &digest);
        Ok(())
    }

    pub(super) fn head_one(&mut self, random: &mut Random) -> Step {
        let repo = self.world.draw_repo(random);
        let digest = self.world.draw_blob(random, &repo);
        self.head(&repo, &digest).map(|_| ())
    }

    fn head(&mut self, repo: &str, digest: &Digest) -> Result<bool, String> {
        self.tell(format!("HEAD {} in {repo}", short(digest)));
        let answer = self.face.head(repo, digest);
        let said = self.world.head(repo, digest);
        // In a repository that is not there nothing is promised: its note may go, and need not.
        let notes = self.face.root().join(".stillage/unreferenced").join(repo);
        if !self.world.repos.contains_key(repo) && !notes.join(digest.as_str()).exists() {
            self.world.forget_note(repo, digest);
        }
        same!(answer, said, "HEAD of {digest} in {repo}");
        Ok(said.is_ok())
    }

    pub(super) fn mount_one(&mut self, random: &mut Random) -> Step {
        let (repo, from) = (self.world.draw_repo(random), self.world.draw_repo(random));
        let digest = self.world.draw_blob(random, &from);
        self.mount(&repo, &digest, (!random.chance(30)).then_some(from.as_str())).map(|_| ())
    }

    fn mount(&mut self, repo: &str, digest: &Digest, from: Option<&str>) -> Result<bool, String> {
        self.tell(format!("mount {} from {from:?} to {repo}", short(digest)));
        self.world.forget_note(repo, digest);
        let answer = self.face.mount(repo, digest, from);
        let mounted = match self.world.mount(digest, from) {
            Some(said) => said,
            None => answer == Ok(true),
        };
        same!(answer, Ok(mounted), "mount of {digest} from {from:?} to {repo}");
        if mounted {
            self.world.admit(repo, digest);
        }
        Ok(mounted)
    }

    /// By a tag, by the digest, or by the digest with tags.
    fn put(
        &mut self,
        random: &mut Random,
        repo: &str,
        digest: &Digest,
        mut tags: Vec<String>,
    ) -> Step {
        let contents = Rc::clone(&self.world.contents);
        let shape = contents.shape(digest).ok_or("no manifest")?;
        let named = tags.clone();
        let reference = match tags.last() {
            // A tag stands for the SHA-256.
            Some(_) if digest.algorithm() == Algorithm::Sha256 && !random.chance(20) => {
                tags.pop().unwrap_or_default()
            }
            _ => digest.to_string(),
        };
        self.tell(format!("put {} in {repo} as {reference}, {tags:?}", short(digest)));
        let bytes = contents.bytes(digest);
        let answer = self.face.put_manifest(repo, &reference, &tags, shape.media_type, bytes);
        let said = self.world.put(repo, digest, &named);
        let said = said.map(|()| (digest.clone(), shape.subject.clone()));
        same!(answer, said, "put of {digest} in {repo} as {reference}, {tags:?}");
        Ok(())
    }

    /// What it needs may be there or not.
    pub(super) fn bare_put(&mut self, random: &mut Random) -> Step {
        let (repo, digest) = (self.world.draw_repo(random), self.world.draw_manifest(random));
        let tags = draw_tags(random);
        self.put(random, &repo, &digest, tags)
    }

    pub(super) fn retag(&mut self, random: &mut Random) -> Step {
        let repo = self.world.draw_repo(random);
        let (digest, tags) = (self.world.draw_entry(random, &repo), draw_tags(random));
        self.put(random, &repo, &digest, tags)
    }

    // --- deleting ---------------------------------------------------------------------------

    pub(super) fn delete_tag(&mut self, random: &mut Random) -> Step {
        let repo = self.world.draw_repo(random);
        let tag = self.world.draw_tag(random, &repo);
        self.tell(format!("delete {repo}:{tag}"));
        let answer = self.face.delete_manifest(&repo, &tag);
        same!(answer, self.world.delete_tag(&repo, &tag), "delete {repo}:{tag}");
        Ok(())
    }

    pub(super) fn delete_manifest(&mut self, random: &mut Random) -> Step {
        let repo = self.world.draw_repo(random);
        let digest = self.world.draw_entry(random, &repo);
        self.tell(format!("delete {repo}@{}", short(&digest)));
        let answer = self.face.delete_manifest(&repo, digest.as_str());
        same!(answer, self.world.delete_manifest(&repo, &digest), "delete {repo}@{digest}");
        Ok(())
    }

    pub(super) fn delete_blob(&mut self, random: &mut Random) -> Step {
        let repo = self.world.draw_repo(random);
        let digest = self.world.draw_blob(random, &repo);
        self.tell(format!("delete blob {} of {repo}", short(&digest)));
        let answer = self.face.delete_blob(&repo, &digest);
        same!(answer, self.world.delete_blob(&repo, &digest), "delete blob {digest} of {repo}");
        Ok(())
    }
}
