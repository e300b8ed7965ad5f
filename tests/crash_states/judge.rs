//! Whether a state is one that a crash may leave: sound for every reader, and with all that was
//! acknowledged. In memory, for there are millions of them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

use stillage::layout::journal::Record;
use stillage::layout::{Stamp, path};
use stillage::oci::{Algorithm, Digest, Index, Manifest};

use super::model::{Content, Interner, PathId, State};

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
    /// Something with this content lies in quarantine.
    Quarantined(&'static [u8]),
    /// A file of the room is what it was at the acknowledgement.
    Keeps(&'static str),
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
            Effect::Gone(..) | Effect::Keeps(_) | Effect::Quarantined(_) | Effect::Nothing => {}
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
    /// What must lie in quarantine, somewhere.
    pub quarantined: Vec<&'static [u8]>,
    /// Which moment it is: no two differ by less.
    pub number: u64,
}

impl Expected {
    /// After these deeds were acknowledged, in this order, and while those are in flight.
    pub fn after(acknowledged: &[&Effect], in_flight: &[&Effect]) -> Expected {
        let mut repos = BTreeMap::new();
        for effect in acknowledged {
            effect.apply(&mut repos);
        }
        let mut expected = Expected::default();
        for some in 0..1_u32 << in_flight.len() {
            let mut repos = repos.clone();
            let chosen = in_flight.iter().enumerate().filter(|(at, _)| some & (1 << at) != 0);
            chosen.for_each(|(_, effect)| effect.apply(&mut repos));
            for (name, repo) in repos {
                expected.repos.entry(name).or_default().insert(repo);
            }
        }
        // What only comes into being may be absent.
        for (name, may) in &mut expected.repos {
            if !repos.contains_key(name) {
                may.insert(Repo::default());
            }
        }
        let quarantined = acknowledged.iter().filter_map(|effect| match effect {
            Effect::Quarantined(bytes) => Some(*bytes),
            _ => None,
        });
        expected.quarantined = quarantined.collect();
        let gone = acknowledged.iter().filter_map(|effect| match effect {
            Effect::Gone(repo, digest) => Some((repo.clone(), digest.clone())),
            _ => None,
        });
        expected.gone = gone.collect();
        expected
    }
}

/// Why a state must not be.
#[derive(Clone, Debug)]
pub struct Wrong {
    pub why: String,
    pub witness: Witness,
}

/// Who can notice that a state is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Witness {
    /// Whoever opens what is left, and asks for what was promised.
    Program,
    /// Only who knows what there was. Nothing speaks of a key that never was, of a journal's lines that
    /// are not there, of what lay in quarantine.
    Memory,
}

impl Wrong {
    fn seen(why: impl Into<String>) -> Wrong {
        Wrong { why: why.into(), witness: Witness::Program }
    }

    fn remembered(why: impl Into<String>) -> Wrong {
        Wrong { why: why.into(), witness: Witness::Memory }
    }

    fn within(self, repo: &str) -> Wrong {
        Wrong { why: format!("{repo}: {}", self.why), ..self }
    }
}

/// What a path is for.
#[derive(Clone, Debug)]
enum Role {
    Index(String),
    Layout(String),
    Journal(String),
    Blob(String, Digest),
    Pool(Digest),
    Version,
    Other,
}

impl Role {
    fn of(path: &str) -> Role {
        let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
        let digest = |above: &str| {
            let algorithm = above.rsplit('/').next().unwrap_or_default();
            Digest::parse(&format!("{algorithm}:{name}")).ok()
        };
        if let Some(rest) = path.strip_prefix(path::ROOM) {
            if rest == format!("/{}", path::VERSION) {
                return Role::Version;
            }
            let pooled = rest.starts_with("/pool/").then(|| above.rsplit_once('/')).flatten();
            return pooled.and_then(|(above, _)| digest(above)).map_or(Role::Other, Role::Pool);
        }
        // What is hidden nobody looks at.
        if path.trim_start_matches("../").split('/').any(|part| part.starts_with('.')) {
            return Role::Other;
        }
        match name {
            path::INDEX => Role::Index(above.to_owned()),
            path::OCI_LAYOUT => Role::Layout(above.to_owned()),
            path::JOURNAL => Role::Journal(above.to_owned()),
            name if path::old_journal(name).is_some() => Role::Journal(above.to_owned()),
            _ => {
                let blob = |algorithm| {
                    let repo = above.strip_suffix(&format!("/{}", path::blobs(algorithm)))?;
                    Some(Role::Blob(repo.to_owned(), digest(above)?))
                };
                Algorithm::ALL.into_iter().find_map(blob).unwrap_or(Role::Other)
            }
        }
    }
}

/// What an index.json says, and everything that it needs.
#[derive(Debug)]
struct Said {
    repo: Repo,
    stamp: Stamp,
}

/// What is remembered of contents and paths: it never changes.
#[derive(Debug, Default)]
pub struct Judge {
    roles: Vec<Role>,
    indexes: HashMap<Content, Result<Said, String>>,
    /// Stamps in a journal's whole lines.
    journals: HashMap<Content, Result<HashSet<Stamp>, String>>,
    /// What a manifest requires.
    required: HashMap<Content, Result<Vec<Digest>, String>>,
    right: Quick<(PathId, Content), bool>,
    /// What was found of everything but the room, by what is expected.
    known: Quick<(u64, u64), Option<Wrong>>,
    outsiders: Outsiders,
}

/// What another tool has put there.
#[derive(Clone, Debug, Default)]
pub struct Outsiders {
    /// index.json files, of which the journal does not know.
    pub indexes: HashSet<Stamp>,
    /// Blobs: that they are half-done is the other tool's business, until a manifest needs them.
    pub blobs: HashSet<Digest>,
}

/// What lies in one repository.
#[derive(Debug, Default)]
struct View<'a> {
    index: Option<Content>,
    layout: Option<Content>,
    journals: Vec<Content>,
    blobs: HashMap<&'a Digest, Content>,
}

impl Judge {
    /// One that has met nothing, but for what another tool wrote.
    pub fn knowing(outsiders: Outsiders) -> Judge {
        Judge { outsiders, ..Judge::default() }
    }

    /// What another tool has put there.
    pub fn outsiders(&self) -> &Outsiders {
        &self.outsiders
    }

    /// Why a state must not be, if so.
    pub fn wrong(
        &mut self,
        interner: &Interner,
        state: &State,
        expected: &Expected,
    ) -> Option<Wrong> {
        let known = self.roles.len();
        self.roles.extend(interner.paths[known..].iter().map(|path| Role::of(path)));
        let mut core = Mix::default();
        for entry in &state.entries {
            let Some(content) = entry.content else { continue };
            let role = &self.roles[entry.path];
            if let Role::Blob(_, digest) | Role::Pool(digest) = role {
                let right = self.right.entry((entry.path, content)).or_insert_with(|| {
                    Digest::of(digest.algorithm(), &interner.contents[content]) == *digest
                });
                let theirs =
                    matches!(role, Role::Blob(_, digest) if self.outsiders.blobs.contains(digest));
                if !*right && !theirs {
                    let path = &interner.paths[entry.path];
                    return Some(Wrong::seen(format!("{path} is half-done")));
                }
            }
            let version = matches!(role, Role::Version);
            if version && *interner.contents[content] != *path::VERSION_TEXT.as_bytes() {
                return Some(Wrong::seen("the version is half-done: nothing would open the tree"));
            }
            if !matches!(role, Role::Pool(_) | Role::Version | Role::Other) {
                core.write_usize(entry.path);
                core.write_usize(content);
            }
        }
        if let Some(why) = self.not_kept(interner, state, expected) {
            return Some(why);
        }
        let key = (core.finish(), expected.number);
        if let Some(known) = self.known.get(&key) {
            return known.clone();
        }
        let why = self.repositories_are_wrong(interner, state, expected);
        self.known.insert(key, why.clone());
        why
    }

    fn repositories_are_wrong(
        &mut self,
        interner: &Interner,
        state: &State,
        expected: &Expected,
    ) -> Option<Wrong> {
        self.read(interner, state);
        let mut repos: BTreeMap<&str, View<'_>> = BTreeMap::new();
        for entry in &state.entries {
            let Some(content) = entry.content else { continue };
            match &self.roles[entry.path] {
                Role::Index(repo) => repos.entry(repo).or_default().index = Some(content),
                Role::Layout(repo) => repos.entry(repo).or_default().layout = Some(content),
                Role::Journal(repo) => repos.entry(repo).or_default().journals.push(content),
                Role::Blob(repo, digest) if self.right[&(entry.path, content)] => {
                    repos.entry(repo).or_default().blobs.insert(digest, content);
                }
                Role::Blob(..) | Role::Pool(_) | Role::Version | Role::Other => {}
            }
        }
        let unsound = repos
            .iter()
            .find_map(|(name, view)| self.unsound(interner, view).map(|wrong| wrong.within(name)));
        unsound.or_else(|| self.lacks(&repos, expected))
    }

    /// Reads what was never met before.
    fn read(&mut self, interner: &Interner, state: &State) {
        for entry in &state.entries {
            let Some(content) = entry.content else { continue };
            let bytes = &interner.contents[content];
            match &self.roles[entry.path] {
                Role::Index(_) => {
                    self.indexes.entry(content).or_insert_with(|| said(bytes));
                }
                Role::Journal(_) => {
                    self.journals.entry(content).or_insert_with(|| stamps(bytes));
                }
                Role::Blob(..) => {
                    self.required.entry(content).or_insert_with(|| required(bytes));
                }
                Role::Layout(_) | Role::Pool(_) | Role::Version | Role::Other => {}
            }
        }
    }

    fn unsound(&self, interner: &Interner, view: &View<'_>) -> Option<Wrong> {
        let mut stamps = Vec::new();
        for journal in &view.journals {
            match &self.journals[journal] {
                Ok(found) => stamps.push(found),
                Err(why) => return Some(Wrong::seen(format!("the journal: {why}"))),
            }
        }
        let said = match &self.indexes[&view.index?] {
            Ok(said) => said,
            Err(why) => return Some(Wrong::seen(format!("index.json: {why}"))),
        };
        let layout = view.layout.map(|content| &interner.contents[content]);
        if layout.is_none_or(|bytes| **bytes != *path::OCI_LAYOUT_BYTES) {
            return Some(Wrong::seen("an index.json without an oci-layout"));
        }
        for manifest in &said.repo.manifests {
            let Some(content) = view.blobs.get(manifest) else {
                return Some(Wrong::seen(format!("manifest {manifest} is missing")));
            };
            match &self.required[content] {
                Err(why) => return Some(Wrong::seen(format!("manifest {manifest}: {why}"))),
                Ok(required) => {
                    if let Some(missing) = required.iter().find(|d| !view.blobs.contains_key(d)) {
                        return Some(Wrong::seen(format!("blob {missing} is missing")));
                    }
                }
            }
        }
        let known = self.outsiders.indexes.contains(&said.stamp)
            || stamps.iter().any(|found| found.contains(&said.stamp));
        // Another tool may have written it, for all that one can see.
        (!known).then(|| Wrong::remembered("the journal does not know this index.json"))
    }

    fn lacks(&self, repos: &BTreeMap<&str, View<'_>>, expected: &Expected) -> Option<Wrong> {
        let nothing = Repo::default();
        for (name, may) in &expected.repos {
            let index = repos.get(name.as_str()).and_then(|view| view.index);
            let said = index.and_then(|index| self.indexes[&index].as_ref().ok());
            let is = said.map_or(&nothing, |said| &said.repo);
            if !may.contains(is) {
                return Some(Wrong::seen(format!("{name} says {is:?}, may say {may:?}")));
            }
        }
        for (name, view) in repos {
            if view.index.is_some() && !expected.repos.contains_key(*name) {
                let why = format!("{name} has an index.json that nobody asked for");
                return Some(Wrong::seen(why));
            }
        }
        let back = expected.gone.iter().find(|(repo, digest)| {
            repos.get(repo.as_str()).is_some_and(|view| view.blobs.contains_key(digest))
        });
        back.map(|(repo, digest)| {
            Wrong::seen(format!("{repo} has {digest} again, which was deleted"))
        })
    }

    fn not_kept(&self, interner: &Interner, state: &State, expected: &Expected) -> Option<Wrong> {
        let lost = expected.kept.iter().find(|(path, bytes)| {
            let is = state.entries.iter().find(|entry| interner.paths[entry.path] == *path);
            let is = is.and_then(|entry| entry.content).map(|content| &interner.contents[content]);
            is.is_none_or(|is| **is != **bytes)
        });
        let lies = |bytes: &[u8]| {
            state.entries.iter().any(|entry| {
                interner.paths[entry.path].starts_with(".stillage/quarantine/")
                    && entry.content.is_some_and(|content| *interner.contents[content] == *bytes)
            })
        };
        let missing = expected.quarantined.iter().find(|bytes| !lies(bytes));
        lost.map(|(path, _)| Wrong::remembered(format!("{path} is not what it was")))
            .or_else(|| missing.map(|_| Wrong::remembered("what was taken out is not what it was")))
    }
}

/// A map that is asked millions of times, by small numbers.
type Quick<K, V> = HashMap<K, V, BuildHasherDefault<Mix>>;

/// A hash of small numbers.
#[derive(Clone, Copy, Debug, Default)]
struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 29)
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, number: u64) {
        let mixed = (self.0.rotate_left(23) ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }
}

fn said(bytes: &[u8]) -> Result<Said, String> {
    let index = Index::parse(bytes).map_err(|error| error.to_string())?;
    let mut repo = Repo { manifests: index.digests().cloned().collect(), ..Repo::default() };
    for tag in index.tags_after(None) {
        if let Some(descriptor) = index.tagged(tag) {
            repo.tags.insert(tag.to_string(), descriptor.digest.clone());
        }
    }
    Ok(Said { repo, stamp: Stamp::of(bytes) })
}

fn stamps(bytes: &[u8]) -> Result<HashSet<Stamp>, String> {
    // A torn last line is what a crash may leave.
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let lines = bytes[..whole].split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let record = |line: &[u8]| serde_json::from_slice::<Record>(line).map(|record| record.stamp);
    lines.map(record).collect::<Result<_, _>>().map_err(|error| error.to_string())
}

fn required(bytes: &[u8]) -> Result<Vec<Digest>, String> {
    let manifest = Manifest::parse(bytes, None).map_err(|error| error.to_string())?;
    Ok(manifest.required().map(|descriptor| descriptor.digest.clone()).collect())
}
