//! Whether a state is one that a crash may leave: sound for every reader, and with all that was
//! acknowledged. In memory, for there are millions of them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

use stillage::layout::journal::Record;
use stillage::layout::{Stamp, path};
use stillage::oci::{Algorithm, Digest, Index, Manifest};

use super::model::{Content, Interner, PathId, State};
use super::promises::{Expected, Repo};
use super::quarantine::Lists;

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
    pub fn seen(why: impl Into<String>) -> Wrong {
        Wrong { why: why.into(), witness: Witness::Program }
    }

    pub fn remembered(why: impl Into<String>) -> Wrong {
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
    lists: Lists,
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
        let is_known = |content: Content| {
            expected.wrong.iter().any(|bytes| **bytes == *interner.contents[content])
        };
        for entry in &state.entries {
            let Some(content) = entry.content else { continue };
            let role = &self.roles[entry.path];
            if let Role::Blob(_, digest) | Role::Pool(digest) = role {
                let right = self.right.entry((entry.path, content)).or_insert_with(|| {
                    Digest::of(digest.algorithm(), &interner.contents[content]) == *digest
                });
                let theirs =
                    matches!(role, Role::Blob(_, digest) if self.outsiders.blobs.contains(digest));
                if !*right && !theirs && !is_known(content) {
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
        let aside = not_kept(interner, state, expected)
            .or_else(|| self.lists.wrong(interner, state, expected))
            .or_else(|| self.shared_by_two(interner, state, expected));
        if aside.is_some() {
            return aside;
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
        let wrong_within = |(name, view): (&&str, &View<'_>)| {
            self.unsound(interner, view).map(|wrong| wrong.within(name))
        };
        let Some(damaged) = &expected.damaged else {
            let unsound = repos.iter().find_map(wrong_within);
            return unsound.or_else(|| self.lacks(&repos, expected));
        };
        // What the repair has written is sound from the beginning.
        let is_written = |view: &View<'_>| {
            let is = view.index.map(|index| &interner.contents[index]);
            is.is_some_and(|is| !damaged.iter().any(|damaged| **damaged == **is))
        };
        repos.iter().filter(|(_, view)| is_written(view)).find_map(wrong_within)
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

    /// One inode with names under two algorithms cannot be told from what somebody planted.
    fn shared_by_two(
        &self,
        interner: &Interner,
        state: &State,
        expected: &Expected,
    ) -> Option<Wrong> {
        let under = |of: Algorithm| {
            state.entries.iter().filter(move |entry| match &self.roles[entry.path] {
                Role::Blob(_, digest) | Role::Pool(digest) => digest.algorithm() == of,
                _ => false,
            })
        };
        let is_shared = |id| under(Algorithm::Sha256).any(|other| other.id == id);
        let shared = under(Algorithm::Sha512).find(|entry| is_shared(entry.id));
        let shared = shared.filter(|_| expected.damaged.is_none())?;
        let path = &interner.paths[shared.path];
        Some(Wrong::seen(format!("{path} has a name under sha256 too")))
    }
}

fn not_kept(interner: &Interner, state: &State, expected: &Expected) -> Option<Wrong> {
    let at = |path: &str| state.entries.iter().find(|entry| interner.paths[entry.path] == *path);
    let is = |path: &str, bytes: &[u8]| {
        let content = at(path).and_then(|entry| entry.content);
        content.is_some_and(|content| *interner.contents[content] == *bytes)
    };
    let lost = expected.kept.iter().find(|(path, bytes)| !is(path, bytes));
    let lost = lost.map(|(path, _)| Wrong::remembered(format!("{path} is not what it was")));
    let away = || expected.lies.iter().find(|path| at(path).is_none());
    let back = || expected.without.iter().find(|(path, bytes)| is(path, bytes));
    lost.or_else(|| away().map(|path| Wrong::remembered(format!("{path} is gone"))))
        .or_else(|| back().map(|(path, _)| Wrong::seen(format!("{path} is there again"))))
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
    let mut repo = Repo { manifests: index.digests().collect(), ..Repo::default() };
    for tag in index.tags_after(None) {
        if let Some(descriptor) = index.tagged(tag) {
            repo.tags.insert(tag.to_string(), descriptor.digest);
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
