//! Power cuts: what was acknowledged is there when the machine comes up again, on ext4 and on XFS,
//! and `check` finds nothing wrong.
//!
//! The power goes exactly at an acknowledgement, because a later fsync anywhere hides a missing one;
//! and at any moment while several clients push, move and delete, beside collections. `STILLAGE_POWERCUT_SEED` replays the
//! choice of deeds. The control in every run is a server whose fsyncs do nothing: it must lose.

#[path = "powercut/load.rs"]
mod load;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::Registry;
use support::content::{Image, OCI_MANIFEST, descriptor, sha256};
use support::http::{Client, Request};
use support::power::{Kind, Power};
use support::random::Random;

const SEED: &str = "STILLAGE_POWERCUT_SEED";

/// So many cuts one file system takes before it is made anew.
const CUTS_PER_TREE: usize = 50;

#[test]
fn on_ext4_nothing_acknowledged_is_lost_by_a_cut_at_the_acknowledgement() {
    at_the_acknowledgement(Kind::Ext4);
}

#[test]
fn on_xfs_nothing_acknowledged_is_lost_by_a_cut_at_the_acknowledgement() {
    at_the_acknowledgement(Kind::Xfs);
}

#[test]
fn on_ext4_nothing_acknowledged_is_lost_by_a_cut_under_load() {
    load::under_load(Kind::Ext4);
}

#[test]
fn on_xfs_nothing_acknowledged_is_lost_by_a_cut_under_load() {
    load::under_load(Kind::Xfs);
}

/// The negative control: without it nobody knows whether the cuts above could find anything.
#[test]
fn a_server_whose_fsyncs_do_nothing_loses() {
    const ROUNDS: usize = 3;
    for kind in [Kind::Ext4, Kind::Xfs] {
        let red = (0..ROUNDS).filter(|_| loses_without_fsync(kind)).count();
        support::measured(format!(
            "{kind:?}: {red} of {ROUNDS} cuts lost something without fsyncs"
        ));
        assert_eq!(red, ROUNDS, "{kind:?}: the cuts do not find what they are made to find");
    }
}

fn cuts(short: usize, long: usize) -> usize {
    if support::long() { long } else { short }
}

fn at_the_acknowledgement(kind: Kind) {
    let mut random = Random::from_env(SEED);
    let total = cuts(10, 500);
    let mut tags = 0;
    let mut left = total;
    while left > 0 {
        let round = left.min(CUTS_PER_TREE);
        let power = Power::new(kind);
        let mut registry = Registry::start_on(&power.root(), &["--auth", "none"]);
        let mut world = World::default();
        for _ in 0..round {
            let client = registry.client();
            for _ in 0..random.below(3) {
                world.deed(&client, &mut random);
            }
            let switch = power.switch();
            world.deed(&client, &mut random);
            switch.cut();
            registry.kill9();
            restore(&power);
            registry.run();
            let wrong = world.differs(&registry);
            assert!(wrong.is_empty(), "{kind:?}, after {:?}: {wrong:#?}", world.deeds);
        }
        tags += world.tags.len();
        becomes_silent(&registry);
        drop(registry);
        left -= round;
    }
    support::measured(format!(
        "{kind:?}: {total} power cuts at an acknowledgement, {tags} tags at the end: none lost"
    ));
}

/// Whether anything is lost when the fsyncs of the server are faked.
fn loses_without_fsync(kind: Kind) -> bool {
    const FAKED: &str = "inject=fsync,fdatasync,sync,syncfs:retval=0";
    let mut random = Random::from_env(SEED);
    let power = Power::new(kind);
    let by = ["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync", "-e", FAKED];
    let mut registry = Registry::start_by(&by, &power.root(), &["--auth", "none"]);
    registry.expect_damage();
    let mut world = World::default();
    let switch = power.switch();
    world.push_new(&registry.client(), &mut random);
    switch.cut();
    registry.kill9();
    drop(registry);
    restore(&power);
    let mut registry = Registry::start_on(&power.root(), &["--auth", "none"]);
    registry.expect_damage();
    !world.differs(&registry).is_empty()
}

/// What was acknowledged.
#[derive(Default)]
struct World {
    tags: BTreeMap<(String, String), Image>,
    /// Whatever was ever pushed to.
    repos: BTreeSet<String>,
    /// Manifests that are there, tagged or not, and those that a DELETE's 202 took away.
    manifests: BTreeSet<(String, String)>,
    gone_manifests: BTreeSet<(String, String)>,
    /// Blobs that a DELETE's 202 took away.
    gone: BTreeSet<(String, String)>,
    /// Of manifests that were deleted, the layers: nothing refers to them.
    loose: Vec<(String, Image)>,
    /// For messages.
    deeds: Vec<String>,
}

impl World {
    /// One deed, acknowledged when this returns.
    fn deed(&mut self, client: &Client, random: &mut Random) {
        let known = self.any(random);
        match (random.below(8), known) {
            (0, Some((key, _))) => self.move_tag(client, random, &key),
            (1, Some((key, image))) => self.mount(client, random, &key.0, &image),
            (2, Some((key, _))) => self.delete_tag(client, &key),
            (3, Some((key, image))) => self.delete_manifest(client, &key.0, &image),
            (4, _) if !self.loose.is_empty() => self.delete_blob(client),
            (5, Some((key, image))) => self.tag_again(client, random, &key.0, &image),
            _ => self.push_new(client, random),
        }
    }

    fn any(&self, random: &mut Random) -> Option<((String, String), Image)> {
        let keys: Vec<_> = self.tags.iter().collect();
        (!keys.is_empty()).then(|| {
            let (key, image) = *random.one_of(&keys);
            (key.clone(), image.clone())
        })
    }

    fn push_new(&mut self, client: &Client, random: &mut Random) {
        let repo = match random.below(3) {
            0 => format!("new{}/deep", random.next()),
            _ => format!("r{}", random.below(3)),
        };
        let (tag, image) = (format!("t{}", random.next()), some_image(random));
        client.push_image(&repo, &tag, &image);
        self.acknowledged("push", repo, tag, image);
    }

    fn move_tag(&mut self, client: &Client, random: &mut Random, (repo, tag): &(String, String)) {
        let image = some_image(random);
        client.push_image(repo, tag, &image);
        self.acknowledged("move", repo.clone(), tag.clone(), image);
    }

    /// One more tag for a manifest that is there: the commit alone.
    fn tag_again(&mut self, client: &Client, random: &mut Random, repo: &str, image: &Image) {
        let tag = format!("t{}", random.next());
        client.put_manifest(repo, &tag, OCI_MANIFEST, &image.manifest).expect_status(201);
        self.acknowledged("tag", repo.to_owned(), tag, image.clone());
    }

    fn mount(&mut self, client: &Client, random: &mut Random, from: &str, image: &Image) {
        let (repo, tag) = (format!("mounted{}", random.below(4)), format!("t{}", random.next()));
        for blob in image.layers.iter().chain([&image.config]) {
            let digest = sha256(blob);
            let mount = format!("/v2/{repo}/blobs/uploads/?mount={digest}&from={from}");
            client.send(Request::post(mount)).expect_status(201);
            self.gone.remove(&(repo.clone(), digest));
        }
        client.put_manifest(&repo, &tag, OCI_MANIFEST, &image.manifest).expect_status(201);
        self.acknowledged("mount", repo, tag, image.clone());
    }

    fn delete_tag(&mut self, client: &Client, key: &(String, String)) {
        client.delete(&format!("/v2/{}/manifests/{}", key.0, key.1)).expect_status(202);
        self.tags.remove(key);
        self.deeds.push(format!("untag {key:?}"));
    }

    fn delete_manifest(&mut self, client: &Client, repo: &str, image: &Image) {
        client.delete(&format!("/v2/{repo}/manifests/{}", image.digest)).expect_status(202);
        self.tags.retain(|(of, _), tagged| of != repo || tagged.digest != image.digest);
        let manifest = (repo.to_owned(), image.digest.clone());
        self.manifests.remove(&manifest);
        self.gone_manifests.insert(manifest);
        self.loose.push((repo.to_owned(), image.clone()));
        self.deeds.push(format!("delete {repo}@{}", image.digest));
    }

    fn delete_blob(&mut self, client: &Client) {
        let Some((repo, image)) = self.loose.pop() else { return };
        let digest = sha256(&image.layers[0]);
        // It may have come back by a mount meanwhile.
        let is_back = self.manifests.contains(&(repo.clone(), image.digest.clone()));
        let answer = client.delete(&format!("/v2/{repo}/blobs/{digest}"));
        assert_eq!(answer.status, if is_back { 405 } else { 202 }, "{answer:?}");
        if !is_back {
            self.deeds.push(format!("delete blob {repo}@{digest}"));
            self.gone.insert((repo, digest));
        }
    }

    fn acknowledged(&mut self, what: &str, repo: String, tag: String, image: Image) {
        self.deeds.push(format!("{what} {repo}:{tag}"));
        let manifest = (repo.clone(), image.digest.clone());
        self.gone_manifests.remove(&manifest);
        self.manifests.insert(manifest);
        self.repos.insert(repo.clone());
        self.tags.insert((repo, tag), image);
    }

    /// In what a tree, and the server on it, is not what was acknowledged.
    fn differs(&self, registry: &Registry) -> Vec<String> {
        let mut wrong = checked(registry);
        let client = registry.client();
        let mut of_repo: BTreeMap<&str, BTreeSet<&str>> =
            self.repos.iter().map(|repo| (repo.as_str(), BTreeSet::new())).collect();
        for ((repo, tag), image) in &self.tags {
            of_repo.entry(repo).or_default().insert(tag);
            wrong.extend(lost(&client, repo, tag, image));
        }
        for (repo, tags) in of_repo {
            let list = client.get(&format!("/v2/{repo}/tags/list"));
            // A repository without a manifest is unknown.
            let json =
                if list.status == 404 { Value::Null } else { list.expect_status(200).json() };
            let found = json["tags"].as_array().into_iter().flatten();
            let found: BTreeSet<&str> = found.filter_map(|tag| tag.as_str()).collect();
            if found != tags {
                wrong.push(format!("{repo} has {found:?}, not {tags:?}"));
            }
        }
        let there = self.manifests.iter().map(|manifest| (manifest, 200));
        let gone = self.gone_manifests.iter().map(|manifest| (manifest, 404));
        for ((repo, digest), expected) in there.chain(gone) {
            let status = client.head(&format!("/v2/{repo}/manifests/{digest}")).status;
            if status != expected {
                wrong.push(format!("manifest {repo}@{digest} is {status}, not {expected}"));
            }
        }
        for (repo, digest) in &self.gone {
            let status = client.head(&format!("/v2/{repo}/blobs/{digest}")).status;
            if status != 404 {
                wrong.push(format!("{repo}@{digest} was deleted: {status}"));
            }
        }
        wrong
    }
}

/// What `check` finds: after a cut there is nothing that it would have to report.
/// Views are nothing that survives a power cut: the server, which has just started, makes those anew of
/// which nothing is known. Until then `check` may warn of them.
fn checked(registry: &Registry) -> Vec<String> {
    let (code, text) = registry.check();
    let stale = text.lines().filter(|line| line.contains("views-stale")).count();
    let warnings = if stale == 1 { "1 warning".to_owned() } else { format!("{stale} warnings") };
    let sound = code == Some(0) && text.contains(&format!(": 0 errors, {warnings}"));
    if sound { Vec::new() } else { vec![format!("check ended with {code:?}:\n{text}")] }
}

/// Then it has nothing to say any more.
fn becomes_silent(registry: &Registry) {
    let until = Instant::now() + Duration::from_secs(60);
    while let (_, text) = registry.check()
        && !text.contains(": 0 errors, 0 warnings")
    {
        assert!(Instant::now() < until, "{text}");
    }
}

/// How a tag is not what it should be, if so. That its blobs have the right content `check` says.
fn lost(client: &Client, repo: &str, tag: &str, image: &Image) -> Option<String> {
    let answer = client.get(&format!("/v2/{repo}/manifests/{tag}"));
    if answer.status != 200 || answer.body != image.manifest {
        return Some(format!("{repo}:{tag} is not {}: {answer:?}", image.digest));
    }
    let absent =
        image.layers.iter().chain([&image.config]).find(|blob| {
            client.head(&format!("/v2/{repo}/blobs/{}", sha256(blob))).status != 200
        })?;
    Some(format!("{repo}:{tag} lacks {}", descriptor("a blob", absent)))
}

/// An image of some bytes; one in four has a layer beyond what is written at once.
fn some_image(random: &mut Random) -> Image {
    let len = match random.below(4) {
        0 => 300_000 + random.below(900_000),
        _ => 1 + random.below(20_000),
    };
    Image::random(len)
}

/// The power is back, and the machine starts: with another boot of the kernel, which this one is not.
fn restore(power: &Power) {
    power.restore();
    support::views::as_after_a_start(&power.root());
}
