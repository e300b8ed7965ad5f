//! What deeds promise, and what may be at some moment.

use std::collections::{BTreeMap, BTreeSet};

use stillage::oci::Digest;

use super::record::Step;

/// What a repository's index.json says: tags, and manifests by digest.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Repo {
    pub tags: BTreeMap<String, Digest>,
    pub manifests: BTreeSet<Digest>,
}

/// What a deed changes, and promises once it is acknowledged.
#[derive(Clone, Debug)]
pub enum Effect {
    /// A manifest is there, and a tag names it.
    Tag(String, String, Digest),
    Untag(String, String),
    /// A manifest is gone, with its tags.
    Remove(String, Digest),
    /// A blob is gone.
    Gone(String, Digest),
    /// All repositories as they are have a copy beneath this.
    Copies(&'static str),
    /// A file of the room is what it was at the acknowledgement.
    Keeps(&'static str),
    /// Something has this path.
    Lies(String),
    /// The file with this path is not this one.
    Without(String, Vec<u8>),
    /// What was damaged is sound again. Until then the tree may be unsound; an index.json that is not
    /// one of these, as they were when it was damaged, is the repair's own, and has to be sound.
    Mends(Vec<Vec<u8>>),
    /// A file with this content is moved to quarantine.
    TakenOut(Vec<u8>),
    /// A file with this content lies in quarantine, and something else in its place: it was at one of
    /// both at every moment.
    Replaced(Vec<u8>),
    /// An entry of index.json is written down in quarantine.
    Listed(Digest),
    /// Nothing that a reader could see.
    Nothing,
}

impl Effect {
    fn apply(&self, repos: &mut BTreeMap<String, Repo>) {
        match self {
            Effect::Tag(repo, tag, digest) => {
                let repo = repos.entry(repo.clone()).or_default();
                repo.tags.insert(tag.clone(), digest.clone());
                repo.manifests.insert(digest.clone());
            }
            Effect::Untag(repo, tag) => {
                repos.entry(repo.clone()).or_default().tags.remove(tag);
            }
            Effect::Remove(repo, digest) => {
                let repo = repos.entry(repo.clone()).or_default();
                repo.tags.retain(|_, tagged| tagged != digest);
                repo.manifests.remove(digest);
            }
            Effect::Copies(beneath) => {
                let own = repos.iter().filter(|(name, _)| !name.starts_with("../"));
                let copies = own.map(|(name, repo)| (format!("{beneath}/{name}"), repo.clone()));
                let copies: Vec<_> = copies.collect();
                repos.extend(copies);
            }
            _ => {}
        }
    }
}

/// What may be, at some moment: what was acknowledged, with any part of what is in flight.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    /// For each repository what it may say.
    pub repos: BTreeMap<String, BTreeSet<Repo>>,
    /// Blobs that were deleted, and that nobody has brought again since.
    pub gone: Vec<(String, Digest)>,
    /// Files of the room that must be what they were.
    pub kept: Vec<(String, Vec<u8>)>,
    /// Paths that must be there.
    pub lies: Vec<String>,
    /// Files that must not be these.
    pub without: Vec<(String, Vec<u8>)>,
    /// What must lie in quarantine, somewhere.
    pub quarantined: Vec<Vec<u8>>,
    /// Entries of index.json that must be written down there.
    pub listed: Vec<Digest>,
    /// While something is damaged: index.json files that need not be sound.
    pub damaged: Option<Vec<Vec<u8>>>,
    /// What is wrong with it: blobs that need not be what they say.
    pub wrong: Vec<Vec<u8>>,
    /// What must be somewhere, in quarantine or where it was.
    pub survives: Vec<Vec<u8>>,
    /// Which moment it is: no two differ by less.
    pub number: u64,
}

impl Expected {
    /// After some steps. What files of the room are at the end is known.
    pub fn after(steps: &[Step], effects: &[Effect], finally: &Expected) -> Expected {
        let mut acknowledged: Vec<usize> = Vec::new();
        let mut in_flight: BTreeSet<usize> = BTreeSet::new();
        for step in steps {
            match step {
                Step::Begin(deed) => drop(in_flight.insert(*deed)),
                Step::Acknowledged(deed) => {
                    in_flight.remove(deed);
                    acknowledged.push(*deed);
                }
                _ => {}
            }
        }
        let mut expected = Expected { number: steps.len() as u64, ..Expected::default() };
        let done = acknowledged.iter().map(|deed| &effects[*deed]);
        let open = in_flight.iter().map(|deed| &effects[*deed]);
        expected.allow(done.clone(), open.clone());
        done.for_each(|effect| expected.acknowledged(effect));
        open.for_each(|effect| expected.begun(effect));
        for deed in acknowledged {
            let Effect::Keeps(path) = &effects[deed] else { continue };
            // Until something else is kept there.
            let is_it = |effect: &Effect| matches!(effect, Effect::Keeps(other) if other == path);
            if effects.iter().rposition(is_it) == Some(deed) {
                let kept = finally.kept.iter().filter(|(known, _)| known == path);
                expected.kept.extend(kept.cloned());
            }
        }
        expected
    }

    /// What repositories may say after these deeds, in this order, and while those are in flight.
    fn allow<'a>(
        &mut self,
        done: impl Iterator<Item = &'a Effect>,
        open: impl Iterator<Item = &'a Effect>,
    ) {
        let mut repos = BTreeMap::new();
        done.for_each(|effect| effect.apply(&mut repos));
        let open: Vec<&Effect> = open.collect();
        for some in 0..1_u32 << open.len() {
            let mut repos = repos.clone();
            let chosen = open.iter().enumerate().filter(|(at, _)| some & (1 << at) != 0);
            chosen.for_each(|(_, effect)| effect.apply(&mut repos));
            for (name, repo) in repos {
                self.repos.entry(name).or_default().insert(repo);
            }
        }
        // What only comes into being may be absent.
        for (name, may) in &mut self.repos {
            if !repos.contains_key(name) {
                may.insert(Repo::default());
            }
        }
    }

    fn acknowledged(&mut self, effect: &Effect) {
        match effect {
            Effect::Gone(repo, digest) => self.gone.push((repo.clone(), digest.clone())),
            Effect::Lies(path) => self.lies.push(path.clone()),
            Effect::Without(path, bytes) => self.without.push((path.clone(), bytes.clone())),
            Effect::TakenOut(bytes) | Effect::Replaced(bytes) => {
                self.quarantined.push(bytes.clone());
            }
            Effect::Listed(digest) => self.listed.push(digest.clone()),
            _ => {}
        }
    }

    fn begun(&mut self, effect: &Effect) {
        match effect {
            Effect::Mends(indexes) => self.damaged = Some(indexes.clone()),
            Effect::TakenOut(bytes) => self.wrong.push(bytes.clone()),
            Effect::Replaced(bytes) => {
                self.wrong.push(bytes.clone());
                self.survives.push(bytes.clone());
            }
            _ => {}
        }
    }
}
