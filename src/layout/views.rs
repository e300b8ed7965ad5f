//! The views: what a plain web server needs of a repository, made from its index.json and from
//! nothing else (PROTOCOL.md, "Views").
//!
//! Nothing of them is synced, and no answer of the server relies on them. What says which
//! index.json they were made from, `_manifests/.of`, goes before anything is changed and comes when
//! all is done: views that a full disk or a killed server left half-made are known by its absence. It
//! also names the kernel's boot in which it was written: a power cut may take some views and leave it,
//! so what another boot says is not believed, and the views are compared.

use std::collections::HashMap;
use std::ffi::CString;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Instant, SystemTime};

use rustix::fs::{self, FileType};
use rustix::io::Errno;

use super::dir::{self, Dir};
use super::error::{At, OrAbsent, Result};
use super::stamp::Stamp;
use super::tree::Tree;
use super::{durable, path};
use crate::oci::{Algorithm, Digest, DigestBytes, Kind, RepoName, Tag};

/// A list of referrers that has more bytes than this is no list that we wrote.
const MOST_LISTED: u64 = 64 * 1024 * 1024;

/// What views were made from. The name belongs to it because the list of tags contains it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin(String);

impl Origin {
    /// An index.json in a repository, as it is said in this boot.
    pub fn new(repo: &RepoName, stamp: Stamp) -> Origin {
        Origin(format!("{stamp}:{repo}:{}", boot()))
    }

    /// What the views of a repository say that they were made from; `None` if there are none, they are
    /// not whole, or it was said in another boot.
    pub fn read(repo: &Dir) -> Result<Option<Origin>> {
        let Some(dir) = repo.dir(path::MANIFESTS).or_absent()? else { return Ok(None) };
        let said = read_link(&dir, path::VIEWS_OF)?;
        let of_this_boot = |said: &String| said.rsplit(':').next() == Some(boot());
        Ok(said.filter(of_this_boot).map(Origin))
    }
}

/// Which boot of the kernel this is: no two have the same. Where that cannot be known, what this process
/// says is believed by nobody else.
fn boot() -> &'static str {
    static BOOT: OnceLock<String> = OnceLock::new();
    BOOT.get_or_init(|| {
        let read = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        let known = read.map(|text| text.trim().to_owned()).ok().filter(|text| text.len() == 36);
        known.unwrap_or_else(|| {
            let mut bytes = [0; 16];
            let _ = getrandom::fill(&mut bytes);
            format!("{:032x}", u128::from_ne_bytes(bytes))
        })
    })
}

/// A directory in which views lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Where {
    /// The repository's own.
    Repository,
    /// That of the tags.
    Tags,
    /// That of the manifests by digest.
    Manifests(Algorithm),
    /// That of the lists of referrers.
    Referrers(Algorithm),
}

impl Where {
    /// From the repository's; empty for its own.
    fn path(self) -> String {
        match self {
            Where::Repository => String::new(),
            Where::Tags => path::MANIFESTS.to_owned(),
            Where::Manifests(algorithm) => path::manifest_views(algorithm),
            Where::Referrers(algorithm) => path::referrer_views(algorithm),
        }
    }
}

/// One change of the views. There may be hundreds of thousands: they are kept small.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    place: Where,
    name: String,
    what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    /// A symlink to this blob of the repository.
    Link(DigestBytes),
    /// A file of these bytes.
    File(Vec<u8>),
    /// Nothing.
    Gone,
}

impl Step {
    /// A tag names a manifest of this kind.
    pub fn tag(tag: &Tag, digest: &Digest, kind: Kind) -> Step {
        Step::link(Where::Tags, path::tag_view(tag, kind), digest)
    }

    /// A tag names no manifest of this kind any more.
    pub fn untag(tag: &Tag, kind: Kind) -> Step {
        Step::gone(Where::Tags, path::tag_view(tag, kind))
    }

    /// A manifest can be had by its digest.
    pub fn manifest(digest: &Digest, kind: Kind) -> Step {
        Step::link(Where::Manifests(digest.algorithm()), path::digest_view(digest, kind), digest)
    }

    /// A manifest can be had by its digest no more as one of this kind.
    pub fn no_manifest(digest: &Digest, kind: Kind) -> Step {
        Step::gone(Where::Manifests(digest.algorithm()), path::digest_view(digest, kind))
    }

    /// Nothing refers to a manifest any more.
    pub fn no_referrers(subject: &Digest) -> Step {
        Step::gone(Where::Referrers(subject.algorithm()), path::referrers_view(subject))
    }

    /// The list of tags.
    pub fn tag_list(body: Vec<u8>) -> Step {
        Step { place: Where::Repository, name: path::TAGS.to_owned(), what: What::File(body) }
    }

    /// The list of a manifest's referrers.
    pub fn referrers(subject: &Digest, body: Vec<u8>) -> Step {
        let place = Where::Referrers(subject.algorithm());
        Step { place, name: path::referrers_view(subject), what: What::File(body) }
    }

    /// Where it changes something, from the repository's directory.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(self.place.path()).join(&self.name)
    }

    /// What has to be so.
    pub fn wants(&self) -> String {
        match &self.what {
            What::Link(blob) => format!("has to be a link to {}", target(self.place, blob)),
            What::File(bytes) => format!("has to have {} bytes made from index.json", bytes.len()),
            What::Gone => "has to be gone".to_owned(),
        }
    }

    fn link(place: Where, name: String, digest: &Digest) -> Step {
        Step { place, name, what: What::Link(digest.into()) }
    }

    fn gone(place: Where, name: String) -> Step {
        Step { place, name, what: What::Gone }
    }

    fn apply(&self, tree: &Tree, repo: &Dir, dirs: &mut HashMap<Where, Dir>) -> Result<()> {
        let dir = match dirs.get(&self.place) {
            _ if self.place == Where::Repository => repo.clone(),
            Some(dir) => dir.clone(),
            None => {
                let dir = tree.make_inner(repo, &self.place.path())?;
                dirs.insert(self.place, dir.clone());
                dir
            }
        };
        match &self.what {
            What::Link(blob) => put_link(tree, &dir, &self.name, &target(self.place, blob)),
            What::File(bytes) => durable::put_view(&*tree.disk, &dir, &self.name, bytes),
            What::Gone => tree.disk.unlink(&dir, &self.name).or_absent().map(|_| ()),
        }
    }
}

/// Takes steps, after which the views are those of an index.json; call it under the repository's lock.
/// On an error they are not whole.
pub fn change(tree: &Tree, repo: &Dir, steps: &[Step], origin: &Origin) -> Result<()> {
    let manifests = tree.make_inner(repo, path::MANIFESTS)?;
    tree.disk.unlink(&manifests, path::VIEWS_OF).or_absent()?;
    let mut dirs = HashMap::from([(Where::Tags, manifests.clone())]);
    steps.iter().try_for_each(|step| step.apply(tree, repo, &mut dirs))?;
    symlink(tree, &manifests, path::VIEWS_OF, &origin.0)
}

/// What has to be done to the views that are there, for them to be those of these tags, with their list,
/// manifests and lists of referrers, and no others: first what is to come, then what is to go. What is no
/// view by its name and kind is somebody else's, and stays.
///
/// One after the other is asked for what it has, and compared: all at once would take much memory.
pub fn difference(
    repo: &Dir,
    tags: impl IntoIterator<Item = Result<Step>>,
    manifests: impl IntoIterator<Item = Result<Step>>,
    referrers: impl IntoIterator<Item = Result<Step>>,
) -> Result<Vec<Step>> {
    let mut all = Difference::default();
    all.add(repo, Part::Tags, tags)?;
    all.add(repo, Part::Manifests, manifests)?;
    all.add(repo, Part::Referrers, referrers)?;
    all.come.append(&mut all.go);
    Ok(all.come)
}

/// The views of a repository that are compared at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// The tags, and their list.
    Tags,
    /// The manifests by digest.
    Manifests,
    /// The lists of referrers.
    Referrers,
}

impl Part {
    const ALL: [Part; 3] = [Part::Tags, Part::Manifests, Part::Referrers];

    fn places(self) -> [Where; 2] {
        match self {
            Part::Tags => [Where::Repository, Where::Tags],
            Part::Manifests => Algorithm::ALL.map(Where::Manifests),
            Part::Referrers => Algorithm::ALL.map(Where::Referrers),
        }
    }
}

#[derive(Debug, Default)]
struct Difference {
    come: Vec<Step>,
    go: Vec<Step>,
}

impl Difference {
    fn add(
        &mut self,
        repo: &Dir,
        part: Part,
        wanted: impl IntoIterator<Item = Result<Step>>,
    ) -> Result<()> {
        let mut all: HashMap<Where, HashMap<String, What>> = HashMap::new();
        for step in wanted {
            let Step { place, name, what } = step?;
            debug_assert!(
                part.places().contains(&place),
                "{name} is in another part than {part:?}"
            );
            all.entry(place).or_default().insert(name, what);
        }
        part.places()
            .into_iter()
            .try_for_each(|place| self.compare(repo, place, all.remove(&place).unwrap_or_default()))
    }

    fn compare(
        &mut self,
        repo: &Dir,
        place: Where,
        mut wanted: HashMap<String, What>,
    ) -> Result<()> {
        let path = place.path();
        let dir = match place {
            Where::Repository => Some(repo.clone()),
            _ => repo.dir(&path).or_absent()?,
        };
        if let Some(dir) = dir {
            for entry in dir.entries()? {
                let (name, kind) = entry?;
                let is_view = is_view(&path, &name, kind);
                match wanted.get(&name) {
                    Some(what) if is_view && what.stands(place, &dir, &name)? => {
                        wanted.remove(&name);
                    }
                    None if is_view => self.go.push(Step::gone(place, name)),
                    _ => {}
                }
            }
        }
        self.come.extend(wanted.into_iter().map(|(name, what)| Step { place, name, what }));
        Ok(())
    }
}

impl What {
    fn stands(&self, place: Where, dir: &Dir, name: &str) -> Result<bool> {
        match self {
            What::Link(blob) => Ok(read_link(dir, name)? == Some(target(place, blob))),
            What::File(bytes) => says(dir, name, bytes),
            What::Gone => Ok(false),
        }
    }
}

/// The list of a manifest's referrers as it stands; `None` if there is none.
pub fn referrers(repo: &Dir, subject: &Digest) -> Result<Option<Vec<u8>>> {
    let dir = path::referrer_views(subject.algorithm());
    let name = format!("{dir}/{}", path::referrers_view(subject));
    let Some(file) = repo.file(&name).or_absent()? else { return Ok(None) };
    dir::read_all(&file, MOST_LISTED, || repo.at(&name)).map(Some)
}

/// Whether a repository has views, whole or not.
pub fn are_there(repo: &Dir) -> Result<bool> {
    Ok(repo.stat_name(path::MANIFESTS)?.is_some() || repo.stat_name(path::TAGS)?.is_some())
}

/// Nothing says any more what the views of a repository were made from; whether something did. Call it
/// under its lock. Costs two system calls, however many views there are.
pub fn disown(tree: &Tree, repo: &Dir) -> Result<bool> {
    let Some(manifests) = repo.dir(path::MANIFESTS).or_absent()? else { return Ok(false) };
    Ok(tree.disk.unlink(&manifests, path::VIEWS_OF).or_absent()?.is_some())
}

/// Takes the views of a repository away; call it under its lock. What is no view stays.
pub fn remove(tree: &Tree, repo: &Dir) -> Result<()> {
    disown(tree, repo)?;
    Removal::of(repo)?.go_on(tree, repo, None).map(|_| ())
}

/// The removal of a repository's views, which may be many, in turns.
#[derive(Debug)]
pub struct Removal {
    steps: std::vec::IntoIter<Step>,
}

impl Removal {
    /// Of what is there now.
    pub fn of(repo: &Dir) -> Result<Removal> {
        Ok(Removal { steps: difference(repo, [], [], [])?.into_iter() })
    }

    /// How many views are left to be removed.
    pub fn left(&self) -> usize {
        self.steps.len()
    }

    /// Removes some, until a time, under the repository's lock; whether that was all. [`disown`] them
    /// first.
    pub fn go_on(&mut self, tree: &Tree, repo: &Dir, until: Option<Instant>) -> Result<bool> {
        let mut dirs = HashMap::new();
        for step in self.steps.by_ref() {
            step.apply(tree, repo, &mut dirs)?;
            if until.is_some_and(|until| Instant::now() >= until) {
                return Ok(false);
            }
        }
        for name in self::dirs().iter().rev() {
            let (above, last) = name.rsplit_once('/').unwrap_or(("", name));
            let parent =
                if above.is_empty() { Some(repo.clone()) } else { repo.dir(above).or_absent()? };
            let Some(parent) = parent else { continue };
            match tree.disk.remove_dir(&parent, last).or_absent() {
                Err(error) if error.errno() == Some(Errno::NOTEMPTY) => {}
                removed => drop(removed?),
            }
        }
        Ok(true)
    }
}

/// When a name came or went last where views lie, or what they are made from: whoever copies a repository
/// here is still at it.
pub fn changed(repo: &Dir) -> Result<SystemTime> {
    let mut last = dir::changed(&repo.stat()?);
    for name in dirs().into_iter().chain(Algorithm::ALL.map(path::blobs)) {
        if let Some(dir) = repo.dir(&name).or_absent()? {
            last = last.max(dir::changed(&dir.stat()?));
        }
    }
    Ok(last)
}

/// The directories of views, from the repository's, each after what it lies in.
pub fn dirs() -> Vec<String> {
    let all = Part::ALL.into_iter().flat_map(Part::places);
    all.filter(|place| *place != Where::Repository).map(Where::path).collect()
}

/// Whether what has a name there can be a view, or what a killed server left of one.
fn is_view(dir: &str, name: &str, kind: FileType) -> bool {
    let in_manifests = dir.starts_with(path::MANIFESTS);
    let expected = if in_manifests { FileType::Symlink } else { FileType::RegularFile };
    let named = path::is_view(dir, name);
    kind == expected && (named || !dir.is_empty() && path::is_temporary(name))
}

/// What a symlink says; `None` if there is no symlink of that name, or it does not say text.
fn read_link(dir: &Dir, name: &str) -> Result<Option<String>> {
    match fs::readlinkat(dir, name, Vec::new()) {
        // No symlink.
        Err(Errno::INVAL) => Ok(None),
        read => Ok(read.at(|| dir.at(name)).or_absent()?.and_then(|said| said.into_string().ok())),
    }
}

/// Whether a regular file has these bytes.
fn says(dir: &Dir, name: &str, bytes: &[u8]) -> Result<bool> {
    let Some((file, stat)) = dir.file_stat(name).or_absent()? else { return Ok(false) };
    let same_length = dir::size_of(&stat) == bytes.len() as u64;
    Ok(same_length && dir::read_all(&file, bytes.len() as u64, || dir.at(name))? == bytes)
}

fn put_link(tree: &Tree, dir: &Dir, name: &str, target: &str) -> Result<()> {
    match symlink(tree, dir, name, target) {
        Err(error) if error.errno() == Some(Errno::EXIST) => {
            let beside = path::temporary(name);
            symlink(tree, dir, &beside, target)?;
            let put = tree.disk.rename(dir, &beside, dir, name);
            if put.is_err() {
                let _ = tree.disk.unlink(dir, &beside);
            }
            put
        }
        made => made,
    }
}

fn symlink(tree: &Tree, dir: &Dir, name: &str, target: &str) -> Result<()> {
    let text = CString::new(target).map_err(std::io::Error::from).at(|| dir.at(name))?;
    tree.disk.symlink(&text, dir, name)
}

/// What a symlink says that leads from there to a blob of the repository.
fn target(from: Where, blob: &DigestBytes) -> String {
    let up = "../".repeat(from.path().split('/').count());
    format!("{up}{}", path::blob(&blob.into()))
}
