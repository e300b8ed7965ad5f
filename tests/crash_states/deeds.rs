//! What is done to a registry while the disk records: pushes, mounts, tags, deletions, one after the
//! other or several at once.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use rustix::fs::Mode;
use stillage::layout::{Account, Dir, Disk, OwnCertificate, Stamp, Tree, path};
use stillage::oci::{Algorithm, ContentRange, Digest, Index, Kind, Reference, RepoName, Tag};
use stillage::registry::{Actor, KeyNeed, MountFrom, Push, Registry, Result, Settings};

use stillage::upkeep::{check, gc, snapshot};

use super::judge::{Effect, Expected, Outsiders};
use super::record::{Recorder, Step};

/// The repository that is there from the beginning, with two images and two blobs that nobody needs.
pub const OLD: &str = "old";

/// The name of the snapshot, beside ROOT.
pub const SNAPSHOT: &str = "snapshot";

/// One kind of deed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Deed {
    /// An image of its own with a tag of its own, into the old repository.
    Push,
    /// The same into a new one, two directories deep.
    PushNew,
    /// The same by upload sessions.
    Session,
    /// An image of its own under a tag that is there.
    Move,
    /// One more tag for a manifest that is there.
    Retag,
    /// An image's blobs are mounted into another repository, then its manifest is pushed there.
    Mount,
    Untag,
    Remove,
    /// A blob that nobody refers to goes.
    Unlink,
    /// The same content again, with all that is there already.
    Again,
    /// A collection that waits for nothing: all that nothing refers to goes.
    Collect,
    /// A snapshot beside the tree.
    Snapshot,
    /// A repair, which finds nothing to do.
    Repair,
}

impl Deed {
    pub const ALL: [Deed; 13] = [
        Deed::Push,
        Deed::PushNew,
        Deed::Session,
        Deed::Move,
        Deed::Retag,
        Deed::Mount,
        Deed::Untag,
        Deed::Remove,
        Deed::Unlink,
        Deed::Again,
        Deed::Collect,
        Deed::Snapshot,
        Deed::Repair,
    ];
}

/// An image: config, layer, manifest.
#[derive(Clone, Debug)]
pub struct Image {
    pub config: Vec<u8>,
    pub layer: Vec<u8>,
    pub manifest: Vec<u8>,
    pub digest: Digest,
}

impl Image {
    /// The same for the same number. Every second one shares its config with others.
    pub fn numbered(number: usize) -> Image {
        let config = match number % 2 {
            0 => b"{}".to_vec(),
            _ => format!(r#"{{"config":{number}}}"#).into_bytes(),
        };
        let layer = format!("the layer of image {number}, which has a few more bytes").into_bytes();
        Image::of(config, layer, Algorithm::Sha256)
    }

    pub fn of(config: Vec<u8>, layer: Vec<u8>, algorithm: Algorithm) -> Image {
        let described = |media_type: &str, bytes: &[u8]| {
            let digest = Digest::of(algorithm, bytes);
            format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{}}}"#, bytes.len())
        };
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{}","config":{},"layers":[{}]}}"#,
            Kind::OciImage.media_type(),
            described("application/vnd.oci.image.config.v1+json", &config),
            described("application/vnd.oci.image.layer.v1.tar", &layer),
        )
        .into_bytes();
        let digest = Digest::of(Algorithm::Sha256, &manifest);
        Image { config, layer, manifest, digest }
    }
}

pub fn repo(name: &str) -> RepoName {
    RepoName::parse(name).expect("a name")
}

fn tag(text: &str) -> Tag {
    Tag::parse(text).expect("a tag")
}

fn sha256(bytes: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, bytes)
}

fn body(bytes: &[u8]) -> impl futures_util::Stream<Item = std::io::Result<Bytes>> + Send + Unpin {
    stream::iter(vec![Ok(Bytes::copy_from_slice(bytes))])
}

/// A registry on a recording disk, and what was promised there.
pub struct World {
    pub recorder: Arc<Recorder>,
    pub registry: Registry,
    pub root: PathBuf,
    /// What each deed changes, by its number.
    pub effects: Vec<Effect>,
    /// What another tool has put there.
    pub outsiders: Outsiders,
    /// Tags by repository, as the deeds leave them when all are acknowledged.
    tags: BTreeMap<(String, String), usize>,
    free: Vec<Vec<u8>>,
    images: usize,
}

impl World {
    /// A new tree in a directory that is there and empty.
    pub fn new(above: &Path, places: bool) -> World {
        let recorder = Recorder::new(above, places);
        let root = above.join("registry");
        recorder.begin(0);
        let registry = open(&root, &recorder);
        recorder.acknowledge(0);
        World {
            recorder,
            registry,
            root,
            // A later program must not take the tree for one of its own version.
            effects: vec![Effect::Keeps(".stillage/version")],
            outsiders: Outsiders::default(),
            tags: BTreeMap::new(),
            free: Vec::new(),
            images: 0,
        }
    }

    /// A tree with the old repository.
    pub async fn old(above: &Path, places: bool) -> World {
        let mut world = World::new(above, places);
        world.push(OLD, "one").await.expect("a push");
        world.push(OLD, "two").await.expect("a push");
        for bytes in [b"nobody needs this blob".to_vec(), b"nor this one".to_vec()] {
            world.blob(OLD, &bytes).await.expect("a blob");
            world.free.push(bytes);
        }
        world.recorder.settle();
        world
    }

    /// Another process takes the tree over.
    pub fn restart(&mut self) {
        self.recorder.revive();
        self.registry = open(&self.root, &self.recorder);
    }

    /// A deed begins: its number.
    pub fn begin(&mut self, effect: Effect) -> usize {
        self.effects.push(effect);
        self.recorder.begin(self.effects.len() - 1);
        self.effects.len() - 1
    }

    /// One deed of a kind; `None` if there is nothing that it could be done to.
    pub async fn deed(&mut self, kind: Deed) -> Option<Result<()>> {
        let number = self.images;
        let some_tag = || self.tags.keys().find(|(repo, _)| repo == OLD).cloned();
        Some(match kind {
            Deed::Push => self.push(OLD, &format!("t{number}")).await,
            Deed::PushNew => self.push("new/deep", &format!("t{number}")).await,
            Deed::Session => {
                let image = self.image();
                self.put(OLD, &format!("t{number}"), image, Way::Session).await
            }
            Deed::Move => {
                let (repo, tag) = some_tag()?;
                self.push(&repo, &tag).await
            }
            Deed::Retag => {
                let image = self.tags[&some_tag()?];
                let name = format!("again{}", self.effects.len());
                self.put(OLD, &name, image, Way::ManifestOnly).await
            }
            Deed::Mount => {
                let image = self.tags[&some_tag()?];
                let name = format!("m{}", self.effects.len());
                self.put("mounted", &name, image, Way::Mount).await
            }
            Deed::Untag => {
                let (repo, name) = some_tag()?;
                self.untag(&repo, &name).await
            }
            Deed::Remove => {
                let (repo, name) = some_tag()?;
                self.remove(&repo, &name).await
            }
            Deed::Unlink => {
                let bytes = self.free.pop()?;
                self.unlink(OLD, &bytes).await
            }
            Deed::Again => {
                let (repo, tag) = some_tag()?;
                let image = self.tags[&(repo.clone(), tag.clone())];
                self.put(&repo, &tag, image, Way::Whole).await
            }
            Deed::Collect => {
                self.collect();
                Ok(())
            }
            Deed::Snapshot if self.root.with_file_name(SNAPSHOT).exists() => return None,
            Deed::Snapshot => {
                self.snapshot();
                Ok(())
            }
            Deed::Repair => {
                self.repair(Effect::Nothing);
                Ok(())
            }
        })
    }

    /// The number of a new image.
    pub fn image(&mut self) -> usize {
        self.images += 1;
        self.images - 1
    }

    /// A new image under a tag.
    pub async fn push(&mut self, repo: &str, tag: &str) -> Result<()> {
        let image = self.image();
        self.put(repo, tag, image, Way::Whole).await
    }

    pub async fn put(&mut self, to: &str, tag: &str, image: usize, way: Way) -> Result<()> {
        let digest = Image::numbered(image).digest;
        let deed = self.begin(Effect::Tag(to.to_owned(), tag.to_owned(), digest));
        put(&self.registry, to, tag, &Image::numbered(image), way).await?;
        self.recorder.acknowledge(deed);
        self.tags.insert((to.to_owned(), tag.to_owned()), image);
        Ok(())
    }

    pub async fn blob(&mut self, to: &str, bytes: &[u8]) -> Result<()> {
        let deed = self.begin(Effect::Nothing);
        self.registry.put_blob(&repo(to), &Actor::default(), body(bytes), &sha256(bytes)).await?;
        self.recorder.acknowledge(deed);
        Ok(())
    }

    async fn untag(&mut self, of: &str, name: &str) -> Result<()> {
        let deed = self.begin(Effect::Untag(of.to_owned(), name.to_owned()));
        let reference = Reference::Tag(tag(name));
        self.registry.delete_manifest(&repo(of), &reference, &Actor::default()).await?;
        self.recorder.acknowledge(deed);
        self.tags.remove(&(of.to_owned(), name.to_owned()));
        Ok(())
    }

    async fn remove(&mut self, of: &str, name: &str) -> Result<()> {
        let image = self.tags[&(of.to_owned(), name.to_owned())];
        let digest = Image::numbered(image).digest;
        let deed = self.begin(Effect::Remove(of.to_owned(), digest.clone()));
        let reference = Reference::Digest(digest);
        self.registry.delete_manifest(&repo(of), &reference, &Actor::default()).await?;
        self.recorder.acknowledge(deed);
        self.tags.retain(|(repo, _), tagged| repo != of || *tagged != image);
        Ok(())
    }

    pub async fn unlink(&mut self, of: &str, bytes: &[u8]) -> Result<()> {
        let digest = sha256(bytes);
        let deed = self.begin(Effect::Gone(of.to_owned(), digest.clone()));
        self.registry.delete_blob(&repo(of), &digest, &Actor::default()).await?;
        self.recorder.acknowledge(deed);
        Ok(())
    }

    /// Several pushes at once, whose commits gather while somebody holds the repository's lock.
    pub async fn group(&mut self, members: usize) {
        let dir = Dir::open_root(&self.root.join(OLD)).expect("the repository");
        let held = stillage::layout::lock::repository(&dir).expect("its lock");
        let mut pushes = Vec::new();
        for member in 0..members {
            let image = self.image();
            let name = format!("g{member}");
            let digest = Image::numbered(image).digest;
            let deed = self.begin(Effect::Tag(OLD.to_owned(), name.clone(), digest));
            let (registry, recorder) = (self.registry.clone(), Arc::clone(&self.recorder));
            pushes.push(tokio::spawn(async move {
                put(&registry, OLD, &name, &Image::numbered(image), Way::Whole).await.expect("201");
                recorder.acknowledge(deed);
            }));
        }
        // Each stores three blobs, and a hint for each, before it waits for the commit.
        let begun = |steps: &[Step]| {
            let is = |step: &&Step| matches!(step, Step::Link { name, .. } if name.len() == 64);
            steps.iter().rev().take_while(|step| !matches!(step, Step::Begin(_))).filter(is).count()
        };
        while begun(&self.recorder.steps()) < members * 3 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        held.release();
        for push in pushes {
            push.await.expect("a push");
        }
    }

    /// A collection that waits for nothing, by a process of its own. When it was is remembered.
    pub fn collect(&mut self) {
        let deed = self.begin(Effect::Keeps(".stillage/collected"));
        let disk: Arc<dyn Disk> = self.recorder.clone();
        let tree = Tree::open(&self.root, disk).expect("the tree opens");
        let options = gc::Options::default().at_once();
        let mut left = Vec::new();
        let summary = gc::run(&tree, &options, &mut |_, _, _| Ok(true), &mut |event| {
            left.push(format!("{event:?}"));
        });
        assert!(summary.expect("a collection").is_whole(), "{left:#?}");
        self.free.clear();
        self.recorder.acknowledge(deed);
    }

    /// A snapshot beside ROOT.
    pub fn snapshot(&mut self) {
        let deed = self.begin(Effect::Copies("../snapshot"));
        let disk: Arc<dyn Disk> = self.recorder.clone();
        let dest = self.root.with_file_name(SNAPSHOT);
        let options = snapshot::Options::default();
        let made = snapshot::snapshot(&self.root, &dest, &options, disk, &mut |_, _| {});
        assert!(made.expect("a snapshot").is_whole());
        self.recorder.acknowledge(deed);
    }

    /// A repair, after which nothing is wrong.
    pub fn repair(&mut self, effect: Effect) {
        let deed = self.begin(effect);
        let disk: Arc<dyn Disk> = self.recorder.clone();
        let wait = std::time::Duration::from_secs(60);
        let repairs = check::Repairs { dry_run: false, wait, disk };
        let mut told = Vec::new();
        let options = check::Options::default();
        let repaired = check::repair(&self.root, options, repairs, &mut |one| told.push(one));
        let summary = repaired.expect("a repair");
        assert!(!summary.is_damaged() && !summary.blocked, "{told:#?}");
        self.recorder.acknowledge(deed);
    }

    /// Somebody removes a file.
    pub fn outsider_removes(&self, path: &str) {
        let root = Dir::open_root(&self.root).expect("ROOT");
        let (above, name) = path.rsplit_once('/').expect("a path in a repository");
        let dir = root.dir(above).expect("a directory");
        self.recorder.unlink(&dir, name).expect("a file");
    }

    /// Somebody removes an empty directory.
    pub fn outsider_removes_dir(&self, path: &str) {
        let root = Dir::open_root(&self.root).expect("ROOT");
        let (above, name) = path.rsplit_once('/').expect("a path in a repository");
        let dir = root.dir(above).expect("a directory");
        self.recorder.remove_dir(&dir, name).expect("an empty directory");
    }

    /// The blobs of a repository.
    pub fn blobs(repo: &Path) -> Vec<String> {
        let names = std::fs::read_dir(repo.join("blobs/sha256")).expect("a directory");
        let name = |entry: std::fs::DirEntry| entry.file_name().into_string().expect("UTF-8");
        names.map(|entry| format!("blobs/sha256/{}", name(entry.expect("a name")))).collect()
    }

    /// Somebody appends to a file.
    pub fn outsider_appends(&self, path: &str, bytes: &[u8]) {
        let file = std::fs::File::options().append(true).open(self.root.join(path));
        self.recorder.write(&file.expect("a file"), bytes, 0).expect("bytes");
    }

    /// Of an image that is numbered, what lies under the digests of layer and manifest.
    pub fn blob_paths(number: usize) -> [String; 2] {
        let image = Image::numbered(number);
        [path::blob(&sha256(&image.layer)), path::blob(&image.digest)]
    }

    /// The key that signs tokens is made.
    pub fn key(&mut self) {
        let deed = self.begin(Effect::Keeps(".stillage/token-key"));
        self.registry.token_keys(KeyNeed::Sign).expect("a key");
        self.recorder.acknowledge(deed);
    }

    /// The server's own certificate is kept.
    pub fn certificate(&mut self) {
        let made = OwnCertificate {
            certificate: b"a certificate".to_vec(),
            key: b"its key".to_vec().into(),
        };
        let deed = self.begin(Effect::Keeps(".stillage/tls/cert.pem"));
        let key = self.begin(Effect::Keeps(".stillage/tls/key.pem"));
        self.registry.keep_certificate(&made).expect("kept");
        self.recorder.acknowledge(deed);
        self.recorder.acknowledge(key);
    }

    /// Another tool writes a file, and syncs nothing.
    pub fn outsider(&self, path: &str, bytes: &[u8], mode: u32) {
        let mut dir = Dir::open_root(&self.root).expect("ROOT");
        let (above, name) = path.rsplit_once('/').expect("a path in a repository");
        for part in above.split('/') {
            if !dir.path().join(part).exists() {
                self.recorder.make_dir(&dir, part, Mode::from_raw_mode(0o755)).expect("mkdir");
            }
            dir = dir.dir(part).expect("a directory");
        }
        let mode = Mode::from_raw_mode(mode);
        let file = self.recorder.create(&dir, name, mode).expect("a file");
        self.recorder.write(&file, bytes, 0).expect("bytes");
    }

    /// Another tool drops an image into a repository.
    pub fn outsiders_blobs(&mut self, to: &str, image: &Image, mode: u32) {
        for bytes in [&image.config, &image.layer] {
            self.outsiders.blobs.insert(sha256(bytes));
            self.outsider(&format!("{to}/{}", path::blob(&sha256(bytes))), bytes, mode);
        }
    }

    fn outsiders_index(name: &str, image: &Image) -> Vec<u8> {
        format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{}","digest":"{}","size":{},"annotations":{{"org.opencontainers.image.ref.name":"{name}"}}}}]}}"#,
            Kind::OciImage.media_type(),
            image.digest,
            image.manifest.len()
        )
        .into_bytes()
    }

    /// Another tool makes a whole layout.
    pub fn outsiders_layout(&mut self, to: &str, name: &str, image: &Image) {
        self.outsider(&format!("{to}/oci-layout"), path::OCI_LAYOUT_BYTES, 0o644);
        self.outsiders_blobs(to, image, 0o644);
        let manifest = format!("{to}/{}", path::blob(&image.digest));
        self.outsider(&manifest, &image.manifest, 0o644);
        self.outsiders.blobs.insert(image.digest.clone());
        let index = World::outsiders_index(name, image);
        self.outsiders.indexes.insert(Stamp::of(&index));
        self.outsider(&format!("{to}/index.json"), &index, 0o644);
    }

    /// Another tool gives a manifest that is there one more tag: it writes an index.json anew, replaces
    /// it by a rename, and syncs nothing.
    pub fn outsiders_tag(&mut self, of: &str, name: &str, image: &Image) {
        let root = Dir::open_root(&self.root).expect("ROOT");
        let dir = root.dir(of).expect("the repository");
        let bytes = std::fs::read(dir.at(path::INDEX)).expect("an index.json");
        let mut index = Index::parse(&bytes).expect("an index");
        let descriptor = index.find(&image.digest).expect("the manifest is there").clone();
        let mut bare = descriptor;
        bare.annotations.clear();
        index.put(&bare, &[tag(name)]);
        let bytes = index.to_bytes();
        self.outsider(&format!("{of}/theirs"), &bytes, 0o644);
        self.outsiders.indexes.insert(Stamp::of(&bytes));
        self.recorder.rename(&dir, "theirs", &dir, path::INDEX).expect("a rename");
    }

    /// Another tool empties a repository: it writes index.json in place, as skopeo does.
    pub fn outsider_empties(&mut self, of: &str) {
        let root = Dir::open_root(&self.root).expect("ROOT");
        let dir = root.dir(of).expect("the repository");
        let bytes = br#"{"schemaVersion":2,"manifests":[]}"#;
        self.outsiders.indexes.insert(Stamp::of(bytes));
        let file = std::fs::File::options().write(true).open(dir.at(path::INDEX)).expect("a file");
        self.recorder.set_len(&file, 0).expect("cut");
        self.recorder.write(&file, bytes, 0).expect("bytes");
        // Whoever did this takes all tags away, and knows it.
        let mut deeds = Vec::new();
        for ((repo, _), image) in self.tags.iter().filter(|((repo, _), _)| repo == of) {
            deeds.push(Effect::Remove(repo.clone(), Image::numbered(*image).digest));
        }
        for effect in deeds {
            let deed = self.begin(effect);
            self.recorder.acknowledge(deed);
        }
        self.tags.retain(|(repo, _), _| repo != of);
    }

    /// An image that is no numbered one.
    pub async fn put_image(&mut self, to: &str, name: &str, image: &Image, way: Way) -> Result<()> {
        let effect = Effect::Tag(to.to_owned(), name.to_owned(), image.digest.clone());
        let deed = self.begin(effect);
        put(&self.registry, to, name, image, way).await?;
        self.recorder.acknowledge(deed);
        Ok(())
    }
}

/// How an image comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Whole,
    Session,
    /// From the old repository.
    Mount,
    ManifestOnly,
    /// Blobs that are named by sha512.
    Sha512,
}

fn open(root: &Path, recorder: &Arc<Recorder>) -> Registry {
    let disk: Arc<dyn Disk> = recorder.clone();
    Registry::open_on(root, Settings::default(), disk).expect("the tree opens")
}

/// A whole push.
pub async fn put(registry: &Registry, to: &str, name: &str, image: &Image, way: Way) -> Result<()> {
    let (to, actor) = (repo(to), Actor::default());
    for bytes in [&image.config, &image.layer] {
        let digest = sha256(bytes);
        match way {
            Way::Whole => registry.put_blob(&to, &actor, body(bytes), &digest).await?,
            Way::Sha512 => {
                let digest = Digest::of(Algorithm::Sha512, bytes);
                registry.put_blob(&to, &actor, body(bytes), &digest).await?;
            }
            Way::Session => {
                let id = registry.begin_upload(&to, None, &actor).await?.id;
                let (first, rest) = bytes.split_at(bytes.len() / 2);
                let range = None::<ContentRange>;
                registry.append_upload(&to, &id, &actor, range, body(first)).await?;
                registry.finish_upload(&to, &id, &actor, None, body(rest), &digest).await?;
            }
            Way::Mount => {
                let from = MountFrom::Repo(repo(OLD), Account::default());
                let mounted = registry.mount(&to, &digest, from, &actor).await?;
                assert!(mounted, "the source has {digest}");
            }
            Way::ManifestOnly => {}
        }
    }
    let reference = Reference::Tag(tag(name));
    let bytes = Bytes::copy_from_slice(&image.manifest);
    let push = Push { reference, tags: Vec::new(), content_type: None, bytes };
    registry.put_manifest(&to, push, &actor).await.map(|_| ())
}

/// What may be after some steps: `upto` of them.
pub fn expected(steps: &[Step], effects: &[Effect], finally: &Expected) -> Expected {
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
    let of = |deeds: &mut dyn Iterator<Item = usize>| -> Vec<&Effect> {
        deeds.map(|deed| &effects[deed]).collect()
    };
    let done = of(&mut acknowledged.iter().copied());
    let open = of(&mut in_flight.into_iter());
    let mut expected = Expected::after(&done, &open);
    expected.number = steps.len() as u64;
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
