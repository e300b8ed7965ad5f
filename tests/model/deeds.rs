//! The deeds of clients.

use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;

use stillage::oci::{Algorithm, Digest};

use super::face::{Pulled, Refused};
use super::run::{Run, Step, same};
use super::world::{Session, World};
use crate::support::random::Random;

/// Where clients push to. Some lie in others' directories.
pub const REPOS: [&str; 8] = ["a", "a/b", "a/b/c", "busy", "team/x", "team/y", "z", "z-0/z"];

const TAGS: [&str; 8] = ["latest", "v1", "v1.0", "v2", "nightly", "_x", "A", "0"];

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

    fn draw_blob(&self, random: &mut Random, repo: &str) -> Digest {
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
    fn draw_entry(&self, random: &mut Random, repo: &str) -> Digest {
        let listed = self.index(repo).into_iter().flat_map(|index| &index.manifests);
        let listed: Vec<&Digest> = listed.collect();
        let drawn =
            if random.chance(90) { random.pick(&listed).map(|d| (*d).clone()) } else { None };
        drawn.unwrap_or_else(|| self.draw_manifest(random))
    }

    fn draw_tag(&self, random: &mut Random, repo: &str) -> String {
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

fn short(digest: &Digest) -> String {
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

    // --- upload sessions --------------------------------------------------------------------

    pub(super) fn session(&mut self, random: &mut Random) -> Step {
        let open = self.world.sessions.len();
        if open == 0 || (open < 8 && random.chance(25)) {
            return self.begin_session(random);
        }
        let at = random.below(open);
        match random.below(20) {
            0 => self.cancel_session(at),
            1 => self.session_elsewhere(random, at),
            2..4 => self.session_status(at),
            4..6 => self.append_in_the_wrong_place(random, at),
            6..14 => self.append(random, at),
            _ => self.finish_session(random, at),
        }
    }

    fn begin_session(&mut self, random: &mut Random) -> Step {
        let repo = self.world.draw_repo(random);
        let target = self.world.draw_blob(random, &repo);
        let algorithm = Algorithm::ALL[usize::from(random.chance(30))];
        let begun = self.face.begin(&repo, algorithm);
        let id = begun.map_err(|refused| format!("a session in {repo}: {refused:?}"))?;
        self.tell(format!("begin {id} in {repo}"));
        let touched = self.world.now;
        self.world.sessions.push(Session { id, repo, target, received: 0, touched });
        Ok(())
    }

    fn append(&mut self, random: &mut Random, at: usize) -> Step {
        let now = self.world.now;
        let contents = Rc::clone(&self.world.contents);
        let session = &mut self.world.sessions[at];
        let rest = contents.bytes(&session.target).slice(session.received..);
        let piece = rest.slice(..random.below(rest.len() + 1));
        // Nothing that arrives is no activity, but some file systems count it as such.
        if piece.is_empty() && session.touched != now {
            return Ok(());
        }
        let first = random.chance(50).then_some(session.received as u64);
        let answer = self.face.append(&session.repo, &session.id, first, piece.clone());
        session.received += piece.len();
        session.touched = now;
        same!(answer, Ok(session.received as u64), "append to {session:?}");
        let text = format!("append {} to {}", piece.len(), session.id);
        self.tell(text);
        Ok(())
    }

    fn append_in_the_wrong_place(&mut self, random: &mut Random, at: usize) -> Step {
        let session = &self.world.sessions[at];
        let first = Some(session.received as u64 + 1 + random.below(3) as u64);
        let answer = self.face.append(&session.repo, &session.id, first, random.bytes(5).into());
        same!(answer, Err(Refused::UploadRange), "append in the wrong place to {session:?}");
        Ok(())
    }

    fn session_status(&mut self, at: usize) -> Step {
        let session = &self.world.sessions[at];
        let answer = self.face.received(&session.repo, &session.id);
        same!(answer, Ok(session.received as u64), "status of {session:?}");
        Ok(())
    }

    /// A session is one repository's.
    fn session_elsewhere(&mut self, random: &mut Random, at: usize) -> Step {
        let session = &self.world.sessions[at];
        let other = REPOS[random.below(REPOS.len())];
        if other != session.repo {
            let answer = self.face.received(other, &session.id);
            same!(answer, Err(Refused::UploadUnknown), "status of {session:?} in {other}");
        }
        Ok(())
    }

    fn cancel_session(&mut self, at: usize) -> Step {
        let session = self.world.sessions.remove(at);
        self.tell(format!("cancel {}", session.id));
        same!(self.face.cancel(&session.repo, &session.id), Ok(()), "cancel of {session:?}");
        let answer = self.face.received(&session.repo, &session.id);
        same!(answer, Err(Refused::UploadUnknown), "status of {session:?} after its end");
        Ok(())
    }

    fn finish_session(&mut self, random: &mut Random, at: usize) -> Step {
        let session = self.world.sessions.remove(at);
        let Session { id, repo, target, received, .. } = &session;
        self.tell(format!("finish {id} as {} in {repo}", short(target)));
        let mut rest = self.world.contents.bytes(target).slice(*received..);
        let wrong = random.chance(10);
        if wrong {
            rest = [&rest[..], b"and more"].concat().into();
        }
        let answer = self.face.finish(repo, id, rest, target);
        if wrong {
            same!(answer, Err(Refused::DigestMismatch), "end of {session:?} with other bytes");
            self.world.forget_note(repo, target);
        } else {
            same!(answer, Ok(()), "end of {session:?}");
            self.world.admit(repo, target);
        }
        let answer = self.face.received(repo, id);
        same!(answer, Err(Refused::UploadUnknown), "status of {session:?} after its end");
        Ok(())
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

    // --- reading ----------------------------------------------------------------------------

    pub(super) fn list_tags(&mut self, random: &mut Random) -> Step {
        let repo = self.world.draw_repo(random);
        let n = [0, 1, 2, 3, 100][random.below(5)];
        let mut last = random.chance(30).then(|| TAGS[random.below(TAGS.len())].to_owned());
        // Page by page to the end.
        loop {
            let answer = self.face.tags(&repo, last.as_deref(), n);
            let said = self.world.tags(&repo, last.as_deref(), n);
            same!(answer, said, "{n} tags of {repo} after {last:?}");
            match said {
                Ok((tags, true)) => last = tags.last().cloned(),
                _ => return Ok(()),
            }
        }
    }

    pub(super) fn list_referrers(&mut self, random: &mut Random) -> Step {
        let repo = self.world.draw_repo(random);
        let subject = random.pick(&self.world.contents.subjects).expect("a subject").clone();
        let of = ["application/vnd.test.0", "application/vnd.test.config", "none"];
        let artifact_type = random.chance(50).then(|| of[random.below(3)]);
        self.referrers(&repo, &subject, artifact_type)
    }

    pub(super) fn referrers(
        &mut self,
        repo: &str,
        subject: &Digest,
        artifact_type: Option<&str>,
    ) -> Step {
        // Facts may tell of what an outsider took away.
        if !self.world.missing(repo).is_empty() {
            return Ok(());
        }
        let answer = self.face.referrers(repo, subject, artifact_type);
        let said = Ok(self.world.referrers(repo, subject, artifact_type));
        same!(answer, said, "referrers of {subject} in {repo}, {artifact_type:?}");
        Ok(())
    }

    pub(super) fn list_catalog(&mut self, random: &mut Random) -> Step {
        let n = [0, 1, 2, 100][random.below(4)];
        let mut last = random.chance(30).then(|| self.world.draw_repo(random));
        loop {
            let answer = self.face.catalog(last.as_deref(), n);
            let said = self.world.catalog(last.as_deref(), n);
            same!(answer, Ok(said.clone()), "{n} repositories after {last:?}");
            match said {
                (names, true) => last = names.last().cloned(),
                _ => return Ok(()),
            }
        }
    }

    pub(super) fn pull_one(&mut self, random: &mut Random) -> Step {
        let repo = self.world.draw_repo(random);
        let contained: Vec<Digest> = self.world.contained(&repo).into_iter().collect();
        let reference = match random.below(10) {
            0..5 => self.world.draw_tag(random, &repo),
            5..8 => self.world.draw_entry(random, &repo).to_string(),
            8 => random
                .pick(&contained)
                .cloned()
                .unwrap_or_else(|| self.world.draw_manifest(random))
                .to_string(),
            _ => self.world.draw_manifest(random).to_string(),
        };
        let Some(digest) = self.pull(&repo, &reference)? else { return Ok(()) };
        let contents = Rc::clone(&self.world.contents);
        let references = contents.shape(&digest).into_iter().flat_map(|shape| &shape.references);
        references.into_iter().try_for_each(|reference| self.blob(&repo, &reference.digest))
    }

    /// Compares what a pull gives; its digest, if it gives anything.
    pub(super) fn pull(&mut self, repo: &str, reference: &str) -> Result<Option<Digest>, String> {
        let answer = self.face.manifest(repo, reference);
        let said = self.world.pull(repo, reference);
        let content = |digest: &Digest| Pulled {
            digest: digest.clone(),
            media_type: self.world.contents.shape(digest).map_or("", |s| s.media_type).to_owned(),
            bytes: self.world.contents.bytes(digest),
        };
        match (&answer, &said) {
            // Facts may tell of what an index contained that an outsider took away.
            (Ok(pulled), Err(Refused::ManifestUnknown))
                if !self.world.missing(repo).is_empty() && reference == pulled.digest.as_str() =>
            {
                same!(*pulled, content(&pulled.digest), "pull of {repo}@{reference}");
            }
            _ => same!(
                answer,
                said.as_ref().map(content).map_err(Clone::clone),
                "pull of {repo}, {reference}"
            ),
        }
        Ok(said.ok())
    }

    pub(super) fn pull_blob(&mut self, random: &mut Random) -> Step {
        let repo = self.world.draw_repo(random);
        let digest = self.world.draw_blob(random, &repo);
        self.blob(&repo, &digest)
    }

    fn blob(&mut self, repo: &str, digest: &Digest) -> Step {
        let there = self.world.has(repo, digest);
        let said =
            if there { Ok(self.world.contents.bytes(digest)) } else { Err(Refused::BlobUnknown) };
        if self.face.blob(repo, digest) != said {
            let answer = self.face.blob(repo, digest).map(|bytes| bytes.len());
            let said = said.map(|bytes| bytes.len());
            return Err(format!("blob {digest} of {repo}: {answer:?} and not {said:?}"));
        }
        Ok(())
    }
}
