//! What is done to a registry while the disk records: pushes, mounts, tags, deletions, one after the
//! other or several at once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use stillage::layout::{Account, Dir, Disk, OwnCertificate, Tree, path};
use stillage::oci::{Algorithm, ContentRange, Digest, Reference, RepoName, Tag};
use stillage::registry::{Actor, KeyNeed, MountFrom, Push, Registry, Result, Settings};

use stillage::upkeep::{check, gc, snapshot};

pub use super::image::Image;
use super::judge::Outsiders;
use super::promises::Effect;
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

pub fn repo(name: &str) -> RepoName {
    RepoName::parse(name).expect("a name")
}

pub(super) fn tag(text: &str) -> Tag {
    Tag::parse(text).expect("a tag")
}

pub(super) fn sha256(bytes: &[u8]) -> Digest {
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
    pub(super) tags: BTreeMap<(String, String), usize>,
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
                self.repair();
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
        let deed = self.begin(Effect::Gone(of.to_owned(), sha256(bytes)));
        self.delete(of, bytes).await?;
        self.recorder.acknowledge(deed);
        Ok(())
    }

    /// DELETE of a blob, whatever comes of it.
    pub async fn delete(&self, of: &str, bytes: &[u8]) -> Result<()> {
        self.registry.delete_blob(&repo(of), &sha256(bytes), &Actor::default()).await
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

    /// A repair of what is sound.
    pub fn repair(&mut self) {
        let deed = self.begin(Effect::Nothing);
        self.run_repair();
        self.recorder.acknowledge(deed);
    }

    /// Something is about to be damaged: until it is repaired nobody may expect a sound tree.
    pub fn damage(&mut self) -> usize {
        self.begin(Effect::Mends(Vec::new()))
    }

    /// It is damaged now, and a repair is to promise this: all deeds of it.
    pub fn damaged(&mut self, damage: usize, promises: Vec<Effect>) -> Vec<usize> {
        let index = std::fs::read(self.root.join(OLD).join(path::INDEX)).ok();
        self.effects[damage] = Effect::Mends(index.into_iter().collect());
        let begun = promises.into_iter().map(|effect| self.begin(effect));
        let mut deeds: Vec<usize> = begun.collect();
        deeds.push(damage);
        deeds
    }

    /// The repair of what was damaged.
    pub fn mend(&self, deeds: &[usize]) {
        self.run_repair();
        deeds.iter().for_each(|deed| self.recorder.acknowledge(*deed));
    }

    /// What is in a file.
    pub fn read(&self, path: &str) -> Vec<u8> {
        std::fs::read(self.root.join(path)).expect("a file")
    }

    /// After which nothing is wrong.
    fn run_repair(&self) {
        let disk: Arc<dyn Disk> = self.recorder.clone();
        let wait = std::time::Duration::from_secs(60);
        let repairs = check::Repairs { dry_run: false, wait, disk };
        let mut told = Vec::new();
        let options = check::Options::default();
        let repaired = check::repair(&self.root, options, repairs, &mut |one| told.push(one));
        let summary = repaired.expect("a repair");
        assert!(!summary.is_damaged() && !summary.blocked, "{told:#?}");
    }

    /// The blobs of a repository.
    pub fn blobs(repo: &Path) -> Vec<String> {
        let names = std::fs::read_dir(repo.join("blobs/sha256")).expect("a directory");
        let name = |entry: std::fs::DirEntry| entry.file_name().into_string().expect("UTF-8");
        names.map(|entry| format!("blobs/sha256/{}", name(entry.expect("a name")))).collect()
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
