//! What clients read: lists, page by page, manifests and blobs.

use std::rc::Rc;

use stillage::oci::Digest;

use super::deeds::TAGS;
use super::face::{Pulled, Refused};
use super::run::{Run, Step, same};
use crate::support::random::Random;

impl Run<'_> {
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
