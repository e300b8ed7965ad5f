//! The power goes at any moment while several clients push, move and delete, beside collections.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::support::content::{Image, OCI_MANIFEST, sha256};
use super::support::http::{Client, Request};
use super::support::power::{Kind, Power};
use super::support::random::Random;
use super::support::{self, Registry, STILLAGE};
use super::{CUTS_PER_TREE, SEED, checked, cuts, lost, restore, some_image};

const WRITERS: usize = 3;

/// So long they may take for what they are to do before the power goes.
const PATIENCE: Duration = Duration::from_secs(120);

pub(super) fn under_load(kind: Kind) {
    let mut random = Random::from_env(SEED);
    let total = cuts(4, 100);
    let (mut acknowledged, mut left) = (0, total);
    let collections = AtomicUsize::new(0);
    while left > 0 {
        let round = left.min(CUTS_PER_TREE / 5);
        let power = Power::new(kind);
        let mut registry = Registry::start_on(&power.root(), &["--auth", "none"]);
        let mut tags: BTreeMap<(String, String), Option<Image>> = BTreeMap::new();
        for _ in 0..round {
            let (written, done) =
                cut_under_load(&power, &registry, &mut random, &tags, &collections);
            acknowledged += done;
            registry.kill9();
            restore(&power);
            registry.run();
            settle(kind, &registry, written, &mut tags);
        }
        drop(registry);
        left -= round;
    }
    support::measured(format!(
        "{kind:?}: {total} power cuts under {WRITERS} writers and {} collections, {acknowledged} deeds \
         acknowledged: none lost",
        collections.load(Ordering::Relaxed)
    ));
    assert!(collections.load(Ordering::Relaxed) > 0, "no collection came to its end");
    assert!(acknowledged > total, "only {acknowledged} deeds came through");
}

/// Tag by tag what it names; `None` is deleted.
type Deed = ((String, String), Option<Image>);

/// What one writer knows when the power is gone.
struct Written {
    acknowledged: Vec<Deed>,
    in_flight: Option<Deed>,
}

/// Runs collections, one after the other, until the power is gone: what nothing refers to goes within
/// a second, and what was undone within none.
fn collect_until(root: &Path, over: &AtomicBool, count: &AtomicUsize) {
    while !over.load(Ordering::Acquire) {
        let mut collect = Command::new(STILLAGE);
        collect.arg("gc").arg(root).args(["--grace", "1s", "--undo-window", "0", "--wait", "1s"]);
        let ended =
            collect.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("gc starts");
        count.fetch_add(usize::from(ended.success()), Ordering::Relaxed);
    }
}

/// Lets writers write, cuts the power after some acknowledgements, and gives what they know.
fn cut_under_load(
    power: &Power,
    registry: &Registry,
    random: &mut Random,
    tags: &BTreeMap<(String, String), Option<Image>>,
    collections: &AtomicUsize,
) -> (Vec<Written>, usize) {
    let count = AtomicUsize::new(0);
    let over = AtomicBool::new(false);
    let cut = AtomicBool::new(false);
    let until = 3 + random.below(40);
    let begun = Instant::now();
    let switch = power.switch();
    let written = thread::scope(|scope| {
        scope.spawn(|| collect_until(registry.root(), &over, collections));
        let writers: Vec<_> = (0..WRITERS)
            .map(|number| {
                let own = |((_, tag), now): &(&(String, String), &Option<Image>)| {
                    now.is_some() && tag.starts_with(&format!("w{number}"))
                };
                let known: Vec<_> = tags.iter().filter(own).map(|(key, _)| key.clone()).collect();
                let (client, random) = (registry.client(), random.fork());
                let writer = Writer { client, count: &count, cut: &cut };
                scope.spawn(move || writer.write_until_it_fails(random, number, known))
            })
            .collect();
        // Whoever failed already is waited for below.
        while count.load(Ordering::Acquire) < until && begun.elapsed() < PATIENCE {
            thread::yield_now();
        }
        cut.store(true, Ordering::Release);
        switch.cut();
        over.store(true, Ordering::Release);
        writers.into_iter().map(|writer| writer.join().expect("a writer")).collect()
    });
    assert!(begun.elapsed() < PATIENCE, "{count:?} of {until} deeds came through");
    (written, count.into_inner())
}

/// How a deed ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tried {
    /// Acknowledged.
    Done,
    /// By a server that works.
    Refused,
    /// The power is gone.
    Gone,
}

/// Who writes until the power is gone.
struct Writer<'a> {
    client: Client,
    /// How many deeds were acknowledged, to all writers.
    count: &'a AtomicUsize,
    /// Whether the power is about to go, or gone.
    cut: &'a AtomicBool,
}

impl Writer<'_> {
    fn write_until_it_fails(
        &self,
        mut random: Random,
        number: usize,
        mut known: Vec<(String, String)>,
    ) -> Written {
        let mut acknowledged = Vec::new();
        loop {
            let deed = match random.below(4) {
                0 if !known.is_empty() => (known.swap_remove(random.below(known.len())), None),
                1 if !known.is_empty() => {
                    (random.one_of(&known).clone(), Some(some_image(&mut random)))
                }
                _ => {
                    // Two repositories that all share, so that commits are shared too.
                    let tag = format!("w{number}t{}", random.next());
                    let key = (format!("r{}", random.below(2)), tag);
                    known.push(key.clone());
                    (key, Some(some_image(&mut random)))
                }
            };
            loop {
                match self.try_deed(&deed) {
                    Tried::Done => break,
                    // A blob was not referred to for a second, and was collected: push it again.
                    Tried::Refused => {}
                    Tried::Gone => return Written { acknowledged, in_flight: Some(deed) },
                }
            }
            acknowledged.push(deed);
            self.count.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn try_deed(&self, ((repo, tag), image): &Deed) -> Tried {
        let send = |request: Request, status: u16| match self.client.try_send(request) {
            Ok(answer) if answer.status == status => Tried::Done,
            Ok(answer) if image.is_some() && matches!(answer.status, 400 | 404 | 409) => {
                Tried::Refused
            }
            answer => {
                let gone = self.cut.load(Ordering::Acquire);
                assert!(gone, "{repo}:{tag} of a server that has power: {answer:?}");
                Tried::Gone
            }
        };
        let manifest = format!("/v2/{repo}/manifests/{tag}");
        let Some(image) = image else {
            return send(Request::delete(manifest), 202);
        };
        for blob in image.layers.iter().chain([&image.config]) {
            let post = Request::post(format!("/v2/{repo}/blobs/uploads/?digest={}", sha256(blob)));
            let sent = send(post.body(blob.as_slice()), 201);
            if sent != Tried::Done {
                return sent;
            }
        }
        let put = Request::put(manifest).header("Content-Type", OCI_MANIFEST);
        send(put.body(image.manifest.as_slice()), 201)
    }
}

/// All that was acknowledged is so; what was in flight is done or not, and nothing between.
fn settle(
    kind: Kind,
    registry: &Registry,
    written: Vec<Written>,
    tags: &mut BTreeMap<(String, String), Option<Image>>,
) {
    let mut wrong = checked(registry);
    let client = registry.client();
    for written in written {
        tags.extend(written.acknowledged);
        if let Some((key, wanted)) = written.in_flight {
            let is = |image: &Option<Image>| differs(&client, &key, image.as_ref()).is_none();
            match is(&wanted) {
                true => drop(tags.insert(key, wanted)),
                // Then it is as it was before: a new one is not there.
                false => drop(tags.entry(key).or_insert(None)),
            }
        }
    }
    let found = tags.iter().filter_map(|(key, image)| differs(&client, key, image.as_ref()));
    wrong.extend(found);
    assert!(wrong.is_empty(), "{kind:?}: {wrong:#?}");
}

fn differs(client: &Client, (repo, tag): &(String, String), is: Option<&Image>) -> Option<String> {
    match is {
        Some(image) => lost(client, repo, tag, image),
        None => {
            let status = client.head(&format!("/v2/{repo}/manifests/{tag}")).status;
            (status != 404).then(|| format!("{repo}:{tag} was deleted: {status}"))
        }
    }
}
