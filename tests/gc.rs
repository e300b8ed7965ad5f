//! `upkeep::gc`: what it takes, what it leaves, and what stops it. Each rule by itself, on a real tree.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::stream;
use stillage::layout::{Account, RealDisk, Tree, path};
use stillage::oci::{Algorithm, Digest, Reference, RepoName, Tag};
use stillage::registry::{Actor, Push, Registry, Settings};
use stillage::upkeep::check;
use stillage::upkeep::gc::{self, Event, Fate, GcError, Options, Summary, Why};

const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn repo(name: &str) -> RepoName {
    RepoName::parse(name).unwrap()
}

fn sha256(bytes: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, bytes)
}

fn tag(text: &str) -> Reference {
    Reference::Tag(Tag::parse(text).unwrap())
}

/// In so long.
fn ahead(time: Duration) -> Options {
    Options { clock: Some(SystemTime::now() + time), ..Options::default() }
}

fn at_once() -> Options {
    Options::default().at_once()
}

/// A registry and its tree, which is sound at the end.
struct Fixture {
    temp: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    registry: Registry,
    damaged: bool,
}

/// What a run said.
struct Told {
    summary: Summary,
    /// What became of each digest.
    fates: BTreeMap<String, String>,
    /// What was left, and why.
    left: BTreeMap<String, String>,
    lines: Vec<String>,
}

impl Fixture {
    fn new() -> Fixture {
        let temp = tempfile::tempdir().unwrap();
        let registry = Registry::open(temp.path(), Settings::default()).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        Fixture { temp, runtime, registry, damaged: false }
    }

    fn at(&self, relative: &str) -> PathBuf {
        self.temp.path().join(relative)
    }

    fn blob_path(&self, name: &str, digest: &Digest) -> PathBuf {
        self.at(name).join(path::blob(digest))
    }

    fn has(&self, name: &str, digest: &Digest) -> bool {
        self.blob_path(name, digest).exists()
    }

    fn pooled(&self, digest: &Digest) -> bool {
        self.at(".stillage").join(path::pool(digest)).exists()
    }

    fn note(&self, name: &str, digest: &Digest) -> PathBuf {
        self.at(".stillage").join(path::notes(&repo(name))).join(digest.as_str())
    }

    fn blob(&self, name: &str, bytes: &[u8]) -> Digest {
        self.blob_as(Algorithm::Sha256, name, bytes)
    }

    fn blob_as(&self, algorithm: Algorithm, name: &str, bytes: &[u8]) -> Digest {
        let digest = Digest::of(algorithm, bytes);
        let body = stream::iter(vec![Ok(Bytes::copy_from_slice(bytes))]);
        let name = repo(name);
        let put = self.registry.put_blob(&name, &ACTOR, body, &digest);
        self.runtime.block_on(put).unwrap();
        digest
    }

    fn push(&self, name: &str, reference: Reference, bytes: &[u8]) -> Digest {
        self.try_push(name, reference, bytes).unwrap()
    }

    fn try_push(
        &self,
        name: &str,
        reference: Reference,
        bytes: &[u8],
    ) -> stillage::registry::Result<Digest> {
        let bytes = Bytes::copy_from_slice(bytes);
        let push = Push { reference, tags: Vec::new(), content_type: None, bytes };
        let pushed = self.runtime.block_on(self.registry.put_manifest(&repo(name), push, &ACTOR));
        pushed.map(|pushed| pushed.digest)
    }

    /// An image with one layer, tagged.
    fn image(&self, name: &str, text: &str) -> [Digest; 3] {
        let (config, layer) = (format!("{{\"of\":\"{text}\"}}"), format!("layer of {text}"));
        let config_digest = self.blob(name, config.as_bytes());
        let layer_digest = self.blob(name, layer.as_bytes());
        let manifest = image(config.as_bytes(), &[layer.as_bytes()], "");
        let manifest = self.push(name, tag(text), manifest.as_bytes());
        [manifest, config_digest, layer_digest]
    }

    fn delete(&self, name: &str, reference: Reference) {
        let name = repo(name);
        let delete = self.registry.delete_manifest(&name, &reference, &ACTOR);
        self.runtime.block_on(delete).unwrap();
    }

    fn is_pulled(&self, name: &str, reference: &Reference) -> bool {
        let (name, account) = (repo(name), Account::default());
        let pull = self.registry.manifest(&name, reference, &account);
        self.runtime.block_on(pull).is_ok()
    }

    /// As HEAD by somebody who may push.
    fn promised(&self, name: &str, digest: &Digest) -> bool {
        let (name, account) = (repo(name), Account::default());
        let stat = self.registry.stat_blob(&name, digest, &account, Some(&ACTOR));
        self.runtime.block_on(stat).is_ok()
    }

    fn tree(&self) -> Tree {
        Tree::open(self.temp.path(), Arc::new(RealDisk)).unwrap()
    }

    fn gc(&self, options: &Options) -> Told {
        self.gc_beside(options, |_| {})
    }

    fn gc_beside(&self, options: &Options, beside: impl FnMut(&Event<'_>)) -> Told {
        self.try_gc(options, beside).unwrap()
    }

    fn try_gc(
        &self,
        options: &Options,
        mut beside: impl FnMut(&Event<'_>),
    ) -> Result<Told, GcError> {
        let told = RefCell::new((BTreeMap::new(), BTreeMap::new()));
        let mut untag = |name: &RepoName, stamp, digests: &[Digest]| {
            let taken = self.registry.take_out(name, stamp, digests.to_vec());
            self.runtime.block_on(taken).map_err(|error| error.to_string())
        };
        let mut out = Vec::new();
        let mut writer = gc::report::Writer::new(&mut out, gc::report::Format::Text, true, options);
        let mut report = |event: Event<'_>| {
            beside(&event);
            writer.take(&event);
            let mut told = told.borrow_mut();
            match event {
                Event::Digest { repository, digest, fate } => {
                    let fate = match fate {
                        Fate::Noted => "noted",
                        Fate::Waits { .. } => "waits",
                        Fate::Kept(_) => "kept",
                        Fate::Promised => "promised",
                        Fate::Referred => "referred",
                        Fate::Goes { .. } => "goes",
                    };
                    told.0.insert(format!("{repository} {digest}"), fate.to_owned());
                }
                Event::Left { repository, why } => {
                    told.1.insert(repository.to_string(), why.to_string());
                }
                Event::Blocked(why) => {
                    told.1.insert("all".to_owned(), why.to_string());
                }
                Event::Warning(error) => panic!("{error}"),
                _ => {}
            }
        };
        let summary = gc::run(&self.tree(), options, &mut untag, &mut report)?;
        writer.end(&summary).unwrap();
        let lines = String::from_utf8(out).unwrap().lines().map(str::to_owned).collect();
        let (fates, left) = told.into_inner();
        Ok(Told { summary, fates, left, lines })
    }
}

impl Told {
    fn fate(&self, name: &str, digest: &Digest) -> &str {
        self.fates.get(&format!("{name} {digest}")).map_or("not told of", String::as_str)
    }
}

static ACTOR: std::sync::LazyLock<Actor> = std::sync::LazyLock::new(Actor::default);

impl Drop for Fixture {
    fn drop(&mut self) {
        if !std::thread::panicking() && !self.damaged {
            let mut found = Vec::new();
            let report = &mut |finding: check::Finding| {
                found.push(format!("{}: {}", finding.path.display(), finding.message));
            };
            check::check(self.temp.path(), check::Options::default(), report).unwrap();
            assert_eq!(found, Vec::<String>::new());
        }
    }
}

fn descriptor(media_type: &str, bytes: &[u8]) -> String {
    let (digest, size) = (sha256(bytes), bytes.len());
    format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{size}}}"#)
}

fn image(config: &[u8], layers: &[&[u8]], more: &str) -> String {
    let layers: Vec<_> = layers.iter().map(|layer| descriptor(LAYER, layer)).collect();
    let (config, layers) = (descriptor("c", config), layers.join(","));
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{IMAGE}","config":{config},"layers":[{layers}]{more}}}"#
    )
}

fn index(entries: &[(&str, &[u8])]) -> String {
    let entries: Vec<_> =
        entries.iter().map(|(media_type, bytes)| descriptor(media_type, bytes)).collect();
    let entries = entries.join(",");
    format!(r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{entries}]}}"#)
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_index_json_reaches_stays() {
    let f = Fixture::new();
    let image_of_a = f.image("a", "one");
    // Two platforms, one of them named by the index alone; a layer as in BuildKit's caches.
    f.blob("a", b"{}");
    for blob in ["layer x", "layer y", "cached", "signature"] {
        f.blob("a", blob.as_bytes());
    }
    let [x, y] = ["layer x", "layer y"].map(|layer| image(b"{}", &[layer.as_bytes()], ""));
    f.push("a", Reference::Digest(sha256(x.as_bytes())), x.as_bytes());
    f.push("a", Reference::Digest(sha256(y.as_bytes())), y.as_bytes());
    let whole = index(&[(IMAGE, x.as_bytes()), (IMAGE, y.as_bytes()), (LAYER, b"cached")]);
    let whole_digest = f.push("a", tag("whole"), whole.as_bytes());
    let subject = format!(r#","subject":{}"#, descriptor(INDEX, whole.as_bytes()));
    let signature = image(b"{}", &[b"signature"], &subject);
    f.push("a", Reference::Digest(sha256(signature.as_bytes())), signature.as_bytes());
    // The child goes from index.json, and stays by its parent.
    f.delete("a", Reference::Digest(sha256(x.as_bytes())));
    let garbage = f.blob("a", b"garbage");
    let long = f.blob_as(Algorithm::Sha512, "a", b"garbage of another kind");
    let before = names(&f.at("a/blobs/sha256"));

    let told = f.gc(&at_once());
    assert_eq!(told.left, BTreeMap::new());
    let mut after = names(&f.at("a/blobs/sha256"));
    after.push(garbage.hex().to_owned());
    after.sort();
    assert_eq!(after, before);
    assert!(!f.has("a", &long));
    assert_eq!(told.summary.removed, 2);
    for reference in [tag("one"), tag("whole"), Reference::Digest(whole_digest)] {
        assert!(f.is_pulled("a", &reference), "{reference:?}");
    }
    assert!(image_of_a.iter().all(|digest| f.has("a", digest)));
    assert!(!f.pooled(&garbage) && f.pooled(&image_of_a[2]));
}

/// What has a type that nobody knows may be a manifest all the same.
#[test]
fn what_an_unknown_document_names_stays() {
    let f = Fixture::new();
    f.image("a", "one");
    let (named, other) = (f.blob("a", b"named"), f.blob("a", b"other"));
    let document = format!(r#"{{"blobs":[{{"digest":"{named}"}}]}}"#);
    let document_digest = f.blob("a", document.as_bytes());
    let entry = descriptor("application/vnd.oci.artifact.manifest.v1+json", document.as_bytes());
    // And an index of a type that nobody knows names an image, which needs its layer.
    let layer = f.blob("a", b"a layer beneath");
    f.blob("a", b"{}");
    let beneath = image(b"{}", &[b"a layer beneath"], "");
    let beneath_digest = f.blob("a", beneath.as_bytes());
    let bundle = index(&[(IMAGE, beneath.as_bytes())]);
    f.blob("a", bundle.as_bytes());
    let bundle = descriptor("application/vnd.example.bundle.index+json", bundle.as_bytes());
    let entry = format!("{entry},{bundle}");
    let json = fs::read_to_string(f.at("a/index.json")).unwrap();
    fs::write(
        f.at("a/index.json"),
        json.replace("\"manifests\":[", &format!("\"manifests\":[{entry},")),
    )
    .unwrap();
    f.gc(&at_once());
    assert!(f.has("a", &named) && f.has("a", &document_digest) && !f.has("a", &other));
    assert!(f.has("a", &beneath_digest) && f.has("a", &layer));
    fs::write(f.at("a/index.json"), json).unwrap();
}

#[test]
fn a_blob_goes_after_its_grace_and_the_pools_name_a_collection_later() {
    let f = Fixture::new();
    f.image("a", "one");
    let blob = f.blob("a", b"abandoned");
    assert_eq!(f.gc(&Options::default()).fate("a", &blob), "noted");
    assert!(f.note("a", &blob).exists());
    assert_eq!(f.gc(&ahead(DAY - HOUR)).fate("a", &blob), "waits");
    assert!(f.has("a", &blob));
    let told = f.gc(&ahead(DAY + HOUR));
    assert_eq!(told.fate("a", &blob), "goes");
    assert!(!f.has("a", &blob) && !f.note("a", &blob).exists());
}

/// A note that nobody took away says nothing of what an outsider put there since.
#[test]
fn an_outsiders_blob_under_an_old_note_has_its_own_grace() {
    let f = Fixture::new();
    f.image("a", "one");
    let [written, copied] = ["written", "copied"].map(|blob| f.blob("a", blob.as_bytes()));
    f.gc(&Options::default());
    let past = SystemTime::now() - 3 * DAY;
    let age = |path: &Path| {
        fs::File::options().write(true).open(path).unwrap().set_modified(past).unwrap();
    };
    for (digest, text) in [(&written, "written"), (&copied, "copied")] {
        age(&f.note("a", digest));
        fs::remove_file(f.blob_path("a", digest)).unwrap();
        fs::write(f.blob_path("a", digest), text).unwrap();
    }
    age(&f.blob_path("a", &copied));
    let told = f.gc(&ahead(DAY - HOUR));
    for digest in [&written, &copied] {
        assert_eq!(told.fate("a", digest), "waits");
        assert!(f.has("a", digest));
    }
    let told = f.gc(&ahead(DAY + HOUR));
    for digest in [&written, &copied] {
        assert_eq!(told.fate("a", digest), "goes");
    }
}

#[test]
fn the_pools_last_name_goes_a_collection_later() {
    let f = Fixture::new();
    f.image("a", "one");
    let blob = f.blob("a", b"abandoned");
    let no_grace = Options { grace: Duration::ZERO, ..Options::default() };
    // The time of a link's change is a clock tick old at most.
    let told = f.gc_beside(&no_grace, |event| {
        if matches!(event, Event::Looked(1..)) {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    assert_eq!(told.fate("a", &blob), "goes");
    assert!(!f.has("a", &blob) && f.pooled(&blob));
    f.gc(&no_grace);
    assert!(f.pooled(&blob), "it was not the last name yet when the collection before began");
    let told = f.gc(&no_grace);
    assert_eq!((told.summary.pooled, f.pooled(&blob)), (1, false));
    assert!(told.summary.bytes > 0);
}

#[test]
fn a_promise_begins_the_grace_anew() {
    let f = Fixture::new();
    f.image("a", "one");
    let [asked, sent, mounted, put] =
        ["asked", "sent", "mounted", "put"].map(|blob| f.blob("a", blob.as_bytes()));
    f.gc(&Options::default());
    assert!(f.promised("a", &asked));
    f.blob("a", b"sent");
    let from = stillage::registry::MountFrom::Repo(repo("a"), Account::default());
    assert!(f.runtime.block_on(f.registry.mount(&repo("a"), &mounted, from, &ACTOR)).unwrap());
    f.push("a", tag("two"), image(b"{\"of\":\"one\"}", &[b"put"], "").as_bytes());
    for digest in [&asked, &sent, &mounted, &put] {
        assert!(!f.note("a", digest).exists(), "{digest}");
    }
    let told = f.gc(&ahead(DAY + HOUR));
    for digest in [&asked, &sent, &mounted] {
        assert_eq!(told.fate("a", digest), "noted");
    }
    assert_eq!(told.fate("a", &put), "not told of");
    // A pull promises nothing.
    let (name, account) = (repo("a"), Account::default());
    f.runtime.block_on(f.registry.stat_blob(&name, &asked, &account, None)).unwrap();
    assert!(f.note("a", &asked).exists());
}

/// The note is looked at again under the lock.
#[test]
fn a_promise_between_the_look_and_the_turn_counts() {
    let f = Fixture::new();
    f.image("a", "one");
    let blob = f.blob("a", b"abandoned");
    f.gc(&Options::default());
    let mut asked = false;
    let told = f.gc_beside(&ahead(DAY + HOUR), |event| {
        if matches!(event, Event::Looked(1..)) && !std::mem::replace(&mut asked, true) {
            assert!(f.promised("a", &blob));
        }
    });
    assert!(asked);
    assert_eq!(told.fate("a", &blob), "promised");
    assert!(f.has("a", &blob));
}

/// index.json and the journal are looked at again under the lock, also where no note protects anything.
#[test]
fn what_is_pushed_between_the_mark_and_the_turn_stays() {
    let f = Fixture::new();
    f.image("a", "one");
    f.blob("a", b"{}");
    let (direct, below) = (f.blob("a", b"layer"), f.blob("a", b"below"));
    let child = image(b"{}", &[b"below"], "");
    let child_digest = f.blob("a", child.as_bytes());
    let garbage = f.blob("a", b"garbage");
    let whole = index(&[(IMAGE, child.as_bytes())]);
    let mut pushed = false;
    let options = Options { grace: Duration::ZERO, ..Options::default() };
    let told = f.gc_beside(&options, |event| {
        if matches!(event, Event::Looked(1..)) && !std::mem::replace(&mut pushed, true) {
            f.push("a", tag("two"), image(b"{}", &[b"layer"], "").as_bytes());
            f.push("a", tag("whole"), whole.as_bytes());
            // It is gone again, and in the journal: it can be brought back.
            f.delete("a", Reference::Digest(sha256(whole.as_bytes())));
        }
    });
    assert!(pushed);
    for digest in [&direct, &below, &child_digest] {
        assert_eq!(told.fate("a", digest), "referred");
        assert!(f.has("a", digest));
    }
    assert!(!f.has("a", &garbage));
}

#[test]
fn what_can_be_undone_stays_for_the_undo_window() {
    let f = Fixture::new();
    f.image("a", "one");
    let gone = f.image("a", "gone");
    f.delete("a", Reference::Digest(gone[0].clone()));
    let no_grace = Options { grace: Duration::ZERO, ..Options::default() };
    let told = f.gc(&no_grace);
    for digest in &gone {
        assert_eq!(told.fate("a", digest), "kept", "{:?}", told.lines);
    }
    let told = f.gc(&Options { grace: Duration::ZERO, ..ahead(7 * DAY - HOUR) });
    assert_eq!(told.summary.removed, 0);
    let told = f.gc(&Options { grace: Duration::ZERO, ..ahead(7 * DAY + HOUR) });
    assert_eq!(told.summary.removed, 3);
    assert!(gone.iter().all(|digest| !f.has("a", digest)));
    assert!(f.is_pulled("a", &tag("one")));
}

/// A line in an older part of the journal, a void one and one that nobody can read count as well.
#[test]
fn every_line_of_the_journal_counts_void_or_not() {
    let f = Fixture::new();
    let old = f.image("a", "old");
    f.delete("a", Reference::Digest(old[0].clone()));
    fs::rename(f.at("a/_log.jsonl"), f.at("a/_log.3.jsonl")).unwrap();
    f.image("a", "one");
    let (void, torn) = (f.blob("a", b"void"), f.blob("a", b"torn"));
    let journal = fs::read_to_string(f.at("a/_log.jsonl")).unwrap();
    let last = journal.lines().last().unwrap();
    let stamp = &last[last.find("\"stamp\"").unwrap()..];
    let line = last.replace(stamp, "\"stamp\":\"1-00000000000000000000000000000000\"}");
    let manifest = &last[last.find("sha256:").unwrap()..][..71];
    let line = line.replace(manifest, void.as_str()).replace(IMAGE, LAYER);
    let text = format!("{journal}{line}\nnot JSON, but {torn} \n");
    fs::write(f.at("a/_log.jsonl"), text).unwrap();
    let told = f.gc(&Options { grace: Duration::ZERO, ..Options::default() });
    for digest in old.iter().chain([&void, &torn]) {
        assert_eq!(told.fate("a", digest), "kept", "{digest}: {:?}", told.lines);
    }
    fs::write(f.at("a/_log.jsonl"), journal).unwrap();
}

#[test]
fn gc_unreadable() {
    let mut f = Fixture::new();
    f.damaged = true;
    let untouched = |f: &Fixture, name: &str, why: &str| {
        let before = names(&f.at(name).join("blobs/sha256"));
        let told = f.gc(&at_once());
        assert!(told.left[name].contains(why), "{name}: {:?}", told.left);
        assert_eq!(told.left.len(), 1, "{:?}", told.left);
        assert!(!told.summary.is_whole());
        assert_eq!(names(&f.at(name).join("blobs/sha256")), before, "{name}");
        fs::remove_dir_all(f.at(name)).unwrap();
    };
    f.image("sound", "one");
    type Damage<'a> = (&'a str, &'a dyn Fn(&Fixture, &[Digest; 3]));
    let damage: [Damage<'_>; 7] = [
        ("not have the digest", &|f, [manifest, ..]| {
            let path = f.blob_path("a", manifest);
            let mut bytes = fs::read(&path).unwrap();
            bytes[0] ^= 1;
            fs::remove_file(&path).unwrap();
            fs::write(&path, bytes).unwrap();
        }),
        ("is missing, and index.json names it", &|f, [manifest, ..]| {
            fs::remove_file(f.blob_path("a", manifest)).unwrap();
        }),
        ("index.json", &|f, _| fs::write(f.at("a/index.json"), "{").unwrap()),
        ("index.json is gone", &|f, _| {
            f.image("a", "two");
            fs::remove_file(f.at("a/index.json")).unwrap();
        }),
        ("is not a regular file", &|f, _| {
            fs::remove_file(f.at("a/index.json")).unwrap();
            fs::create_dir(f.at("a/index.json")).unwrap();
        }),
        ("symbolic links", &|f, _| {
            fs::rename(f.at("a/blobs"), f.at("elsewhere")).unwrap();
            std::os::unix::fs::symlink("../elsewhere", f.at("a/blobs")).unwrap();
        }),
        // One that the journal names, and that is there.
        ("not have the digest", &|f, _| {
            let [manifest, ..] = f.image("a", "two");
            f.delete("a", Reference::Digest(manifest.clone()));
            let path = f.blob_path("a", &manifest);
            fs::remove_file(&path).unwrap();
            fs::write(&path, "{}").unwrap();
        }),
    ];
    for (n, (why, damage)) in damage.into_iter().enumerate() {
        let image = f.image("a", "one");
        f.blob("a", b"garbage");
        let other = f.blob("sound", format!("other garbage {n}").as_bytes());
        damage(&f, &image);
        if n == 6 {
            // Only within the undo window.
            let options = Options { grace: Duration::ZERO, ..Options::default() };
            assert!(f.gc(&options).left["a"].contains(why));
        } else {
            untouched(&f, "a", why);
        }
        if n < 6 {
            assert!(!f.has("sound", &other), "the other repositories go on");
        }
        let _ = fs::remove_dir_all(f.at("a"));
        let _ = fs::remove_dir_all(f.at("elsewhere"));
    }
}

#[test]
fn a_repository_that_waits_for_its_first_manifest_is_collected_too() {
    let f = Fixture::new();
    let blob = f.blob("new/one", b"abandoned");
    assert_eq!(f.gc(&Options::default()).fate("new/one", &blob), "noted");
    assert_eq!(f.gc(&ahead(DAY + HOUR)).fate("new/one", &blob), "goes");
    assert!(f.at("new/one/blobs/sha256").is_dir(), "directories are not removed");
}

#[test]
fn a_clock_that_is_behind_stops_it() {
    let f = Fixture::new();
    f.image("a", "one");
    f.gc(&ahead(HOUR));
    let behind = f.try_gc(&Options::default(), |_| {});
    assert!(matches!(behind, Err(GcError::ClockBehind { .. })));
    assert_eq!(f.gc(&ahead(HOUR)).left.len(), 0);
    fs::remove_file(f.at(".stillage/collected")).unwrap();
    let garbage = f.blob("b", b"garbage");
    let behind = Options { clock: Some(SystemTime::now() - HOUR), ..at_once() };
    let told = f.gc(&behind);
    assert!(told.left["a"].contains("the clock is behind"), "{:?}", told.left);
    assert!(!f.has("b", &garbage));
}

#[test]
fn foreign_files() {
    let f = Fixture::new();
    f.image("a", "one");
    let hex = "ab".repeat(32);
    let foreign = [
        "lost+found/x",
        ".snapshot/a/index.json",
        "a/README",
        "a/.index.json.swp",
        "a/.x.0123456789abcdef/full",
        "a/blobs/sha256/README",
        "a/blobs/sha256/.nfs0000000000000001",
        "a/blobs/sha256/ABCD",
        "a/blobs/md5/d41d8cd98f00b204e9800998ecf8427e",
        "a/blobs/index",
        "A/blobs/sha256/x",
        ".stillage/pool/notes",
        ".stillage/pool/sha256/ab/mine",
        ".stillage/trash/mine/x",
        ".stillage/unreferenced/a/README",
    ];
    for name in foreign {
        fs::create_dir_all(f.at(name).parent().unwrap()).unwrap();
        fs::write(f.at(name), "theirs").unwrap();
    }
    let planted = f.at("a/blobs/sha256").join(&hex);
    std::os::unix::fs::symlink("/etc/passwd", &planted).unwrap();
    fs::create_dir(f.at("a/blobs/sha256").join("cd".repeat(32))).unwrap();
    fs::create_dir(f.at("a/blobs/sha256").join("lost")).unwrap();
    let options = Options { upload_expiry: Some(Duration::ZERO), ..ahead(400 * DAY).at_once() };
    let told = f.gc(&options);
    assert_eq!(told.left, BTreeMap::new());
    for name in foreign {
        assert_eq!(fs::read_to_string(f.at(name)).unwrap(), "theirs", "{name}");
    }
    assert!(planted.is_symlink());
    for name in foreign.into_iter().filter(|name| name.starts_with("a/") || name.starts_with('.')) {
        fs::remove_file(f.at(name)).unwrap();
    }
    fs::remove_file(planted).unwrap();
    for left in ["cd".repeat(32), "lost".to_owned()] {
        fs::remove_dir(f.at("a/blobs/sha256").join(left)).unwrap();
    }
    for left in ["a/.x.0123456789abcdef", "a/blobs/md5", ".stillage/trash/mine"] {
        fs::remove_dir_all(f.at(left)).unwrap();
    }
}

#[test]
fn referrers_in_a_long_chain_of_subjects_end() {
    let f = Fixture::new();
    f.blob("a", b"{}");
    // Digests that refer to each other cannot be made; a manifest that is its own subject's subject by
    // a long chain, and one whose subject is not here, can.
    let mut last = "sha256:".to_owned() + &"0".repeat(64);
    for n in 0..200 {
        let subject = format!(
            r#","subject":{{"mediaType":"{IMAGE}","digest":"{last}","size":1}},"annotations":{{"n":"{n}"}}"#
        );
        let manifest = image(b"{}", &[], &subject);
        last = f
            .push("a", Reference::Digest(sha256(manifest.as_bytes())), manifest.as_bytes())
            .to_string();
    }
    let told = f.gc(&Options { untagged: Some(Duration::ZERO), ..at_once() });
    assert_eq!(told.summary.untagged, 200);
    assert_eq!(told.left, BTreeMap::new());
    assert_eq!(names(&f.at("a/blobs/sha256")).len(), 0);
}

#[test]
fn what_killed_writers_left_goes_when_it_is_old_and_nobody_holds_it() {
    let f = Fixture::new();
    f.image("a/b", "one");
    let random = "0123456789abcdef";
    let files = [
        format!("a/b/.index.json.{random}"),
        format!("a/b/.oci-layout.{random}"),
        format!("a/b/blobs/sha256/.blob.{random}"),
        format!(".stillage/uploads/.blob.{random}"),
        format!(".stillage/.token-key.{random}"),
    ];
    let directories = [".new.", "a/.new.", "a/b/.new."].map(|name| format!("{name}{random}"));
    for name in &files {
        fs::write(f.at(name), "half").unwrap();
    }
    for name in &directories {
        fs::create_dir(f.at(name)).unwrap();
    }
    let pool = fs::read_dir(f.at(".stillage/pool/sha256")).unwrap().next().unwrap().unwrap().path();
    fs::write(pool.join(format!(".blob.{random}")), "half").unwrap();
    let all = || files.iter().chain(&directories).filter(|name| f.at(name).exists()).count();
    f.gc(&ahead(DAY - HOUR));
    assert_eq!(all(), 8);
    let held = fs::File::open(f.at(&files[2])).unwrap();
    held.lock().unwrap();
    f.gc(&ahead(DAY + HOUR));
    assert_eq!(all(), 1);
    drop(held);
    f.gc(&ahead(DAY + 2 * HOUR));
    assert_eq!(all(), 0);
    assert!(!pool.join(format!(".blob.{random}")).exists());
}

#[test]
fn a_deleted_blob_lies_in_the_trash_for_the_undo_window() {
    let f = Fixture::new();
    f.image("a", "one");
    let blob = f.blob("a", b"deleted");
    let delete = || f.runtime.block_on(f.registry.delete_blob(&repo("a"), &blob, &ACTOR)).unwrap();
    delete();
    assert!(!f.has("a", &blob) && f.pooled(&blob));
    // Twice within an hour.
    f.blob("a", b"deleted");
    delete();
    assert!(!f.has("a", &blob));
    let hour = names(&f.at(".stillage/trash")).remove(0);
    let kept = f.at(&format!(".stillage/trash/{hour}/a/{}", path::blob(&blob)));
    assert_eq!(fs::read(&kept).unwrap(), b"deleted");
    f.gc(&ahead(DAY));
    f.gc(&ahead(7 * DAY - HOUR));
    assert!(kept.exists() && f.pooled(&blob));
    f.gc(&ahead(7 * DAY + 2 * HOUR));
    assert_eq!(names(&f.at(".stillage/trash")), Vec::<String>::new());
    f.gc(&ahead(7 * DAY + 3 * HOUR));
    assert!(!f.pooled(&blob));
}

#[test]
fn at_once_one_repository_gives_back_what_it_has() {
    let f = Fixture::new();
    let gone = f.image("a", "gone");
    let nested = f.blob("a/b", b"nested");
    let other = f.blob("c", b"other");
    let trashed = f.blob("a", b"trashed");
    for (name, digest) in [("a", &trashed), ("a/b", &nested), ("c", &other)] {
        f.runtime.block_on(f.registry.delete_blob(&repo(name), digest, &ACTOR)).unwrap();
    }
    let untouched = f.blob("c", b"abandoned");
    f.image("a", "one");
    f.delete("a", Reference::Digest(gone[0].clone()));
    let told = f.gc(&Options { only: Some(repo("a")), ..at_once() });
    assert_eq!(told.summary.removed, 3, "{:?}", told.lines);
    assert!(gone.iter().chain([&trashed]).all(|digest| !f.has("a", digest) && !f.pooled(digest)));
    assert!(f.has("c", &untouched) && f.pooled(&other) && f.pooled(&nested));
    assert!(!f.at(".stillage/collected").exists(), "that was not all of the tree");
    let absent = Options { only: Some(repo("nowhere")), ..at_once() };
    assert!(matches!(f.try_gc(&absent, |_| {}), Err(GcError::NoRepository(_))));
}

#[test]
fn a_dry_run_changes_nothing_and_says_what_the_run_then_does() {
    let f = Fixture::new();
    let one = f.image("a", "one");
    let two = f.image("a", "two");
    f.blob("a", b"old garbage");
    f.gc(&Options::default());
    f.blob("a", b"new garbage");
    let shared = f.blob("b", b"shared garbage");
    let from = stillage::registry::MountFrom::Repo(repo("b"), Account::default());
    assert!(f.runtime.block_on(f.registry.mount(&repo("c"), &shared, from, &ACTOR)).unwrap());
    let deleted = f.blob("b", b"deleted");
    f.runtime.block_on(f.registry.delete_blob(&repo("b"), &deleted, &ACTOR)).unwrap();
    f.delete("a", tag("one"));
    f.delete("a", Reference::Digest(two[0].clone()));
    f.image("a", "three");
    fs::write(f.at("a/.index.json.0123456789abcdef"), "half").unwrap();
    let runs = [
        Options { untagged: Some(DAY), ..ahead(DAY + HOUR) },
        Options { untagged: Some(DAY), ..ahead(DAY + 2 * HOUR) },
        ahead(DAY + 3 * HOUR).at_once(),
    ];
    for options in runs {
        // The pool goes by the file system's clock.
        fs::remove_file(f.at(".stillage/collected")).unwrap();
        let before = stillage_tree(f.temp.path());
        let dry = f.gc(&Options { dry_run: true, ..options.clone() });
        assert_eq!(stillage_tree(f.temp.path()), before);
        let run = f.gc(&options);
        assert_eq!(dry.summary, run.summary);
        let said = |told: &Told| {
            let lines = told.lines.iter().map(|line| line.replace("would go", "gone"));
            let lines = lines.map(|line| line.replace("would remove", "removed"));
            // The journal's lines of this run are written a moment later, and not by its clock.
            let time = |word: &&str| !(word.starts_with("20") && word.contains('T'));
            lines
                .map(|line| line.split(' ').filter(time).collect::<Vec<_>>().join(" "))
                .collect::<Vec<_>>()
        };
        let (mut dry, mut run) = (said(&dry), said(&run));
        dry.sort();
        run.sort();
        assert_eq!(dry, run);
    }
    assert!(!f.has("a", &one[0]) && !f.pooled(&deleted) && !f.pooled(&shared));
}

/// Every name beneath a directory, with its content and inode.
fn stillage_tree(root: &Path) -> Vec<(PathBuf, u64, Vec<u8>)> {
    use std::os::unix::fs::MetadataExt;
    let mut found = Vec::new();
    let mut todo = vec![root.to_path_buf()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            let content = if meta.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
            if meta.is_dir() {
                todo.push(path.clone());
            }
            found.push((path, meta.ino(), content));
        }
    }
    found.sort();
    found
}

#[test]
fn manifests_that_lost_their_tag_long_ago_go_and_can_be_brought_back() {
    let f = Fixture::new();
    let name = "a";
    let moved = f.image(name, "moved");
    f.blob(name, b"other");
    let config = b"{\"of\":\"moved\"}";
    f.push(name, tag("moved"), image(config, &[b"other"], "").as_bytes());
    let plain = |text: &str| image(config, &[], &format!(r#","annotations":{{"of":"{text}"}}"#));
    let by_digest = |text: &str| {
        let bytes = plain(text);
        f.push(name, Reference::Digest(sha256(bytes.as_bytes())), bytes.as_bytes())
    };
    let (never, child) = (by_digest("never tagged"), by_digest("child"));
    f.push(name, tag("index"), index(&[(IMAGE, plain("child").as_bytes())]).as_bytes());
    let signed = f.push(name, tag("signed"), plain("signed").as_bytes());
    let subject = |of: &str| format!(r#","subject":{}"#, descriptor(IMAGE, of.as_bytes()));
    let signature = image(config, &[], &subject(&plain("signed")));
    let signature_digest = sha256(signature.as_bytes());
    f.push(name, Reference::Digest(signature_digest.clone()), signature.as_bytes());
    let countersignature = image(config, &[], &subject(&signature));
    let countersigned = sha256(countersignature.as_bytes());
    f.push(name, Reference::Digest(countersigned.clone()), countersignature.as_bytes());
    let orphan = image(config, &[], &subject(&plain("never tagged")));
    let orphan_digest = sha256(orphan.as_bytes());
    f.push(name, Reference::Digest(orphan_digest.clone()), orphan.as_bytes());
    // An outsider takes a tag away: nobody knows when.
    let outside = f.push(name, tag("outside"), plain("outside").as_bytes());
    let json = fs::read_to_string(f.at("a/index.json")).unwrap();
    let annotation = r#"{"org.opencontainers.image.ref.name":"outside"}"#;
    assert!(json.contains(annotation));
    fs::write(f.at("a/index.json"), json.replace(annotation, "{}")).unwrap();

    let untagged = |time| Options { untagged: Some(30 * DAY), ..ahead(time) };
    assert_eq!(f.gc(&untagged(30 * DAY - HOUR)).summary.untagged, 0);
    let journal = fs::read_to_string(f.at("a/_log.jsonl")).unwrap();
    let told = f.gc(&untagged(30 * DAY + HOUR));
    assert_eq!(told.summary.untagged, 3, "{:?}", told.lines);
    let lines = fs::read_to_string(f.at("a/_log.jsonl")).unwrap();
    let new: Vec<&str> = lines[journal.len()..].lines().collect();
    assert_eq!(new.len(), 3, "one commit: {new:?}");
    for (line, digest) in new.iter().zip({
        let mut gone = [&moved[0], &never, &orphan_digest];
        gone.sort();
        gone
    }) {
        assert!(line.contains(r#""who":null"#) && line.contains(r#""what":"delete""#), "{line}");
        assert!(line.contains(digest.as_str()), "{line}");
        assert!(!f.is_pulled(name, &Reference::Digest(digest.clone())));
        assert!(f.has(name, digest), "it can be brought back");
    }
    for digest in [&child, &signed, &signature_digest, &countersigned, &outside] {
        assert!(f.is_pulled(name, &Reference::Digest(digest.clone())), "{digest}");
    }
    let said = |digest: &Digest| {
        told.lines.iter().find(|line| line.contains(digest.as_str())).cloned().unwrap_or_default()
    };
    assert!(said(&outside).contains("the journal does not tell"), "{}", said(&outside));
}

#[test]
fn who_holds_a_lock_is_named_and_waited_for_no_longer_than_told() {
    let f = Fixture::new();
    f.image("a", "one");
    f.image("b", "one");
    let garbage = ["a", "b"].map(|name| (name, f.blob(name, b"garbage")));
    let hold = |relative: &str, shared: bool| {
        let file = fs::File::open(f.at(relative)).unwrap();
        if shared { file.lock_shared() } else { file.lock() }.unwrap();
        file
    };
    let me = format!("process {}", std::process::id());
    let options = Options { wait: Duration::from_millis(150), ..at_once() };
    let copying = hold(".stillage/gc.lock", true);
    let told = f.gc(&options);
    assert!(told.summary.blocked && !told.summary.is_whole());
    assert!(told.left["all"].contains(&me), "{:?}", told.left);
    assert!(garbage.iter().all(|(name, digest)| f.has(name, digest)));
    assert!(!f.at(".stillage/collected").exists(), "it did not come to its end");
    drop(copying);
    let pushing = hold("a/.lock", false);
    let told = f.gc(&options);
    assert!(told.left["a"].contains(&me), "{:?}", told.left);
    assert!(told.left["a"].contains("a/.lock"), "{:?}", told.left);
    assert!(f.has("a", &garbage[0].1) && !f.has("b", &garbage[1].1));
    assert!(f.at(".stillage/collected").exists());
    drop(pushing);
    assert_eq!(f.gc(&options).left, BTreeMap::new());
    assert!(!f.has("a", &garbage[0].1));
}

#[test]
fn a_repository_that_is_replaced_meanwhile_is_left() {
    let f = Fixture::new();
    f.image("a", "one");
    let garbage = f.blob("a", b"garbage");
    let told = f.gc_beside(&at_once(), |event| {
        if matches!(event, Event::Looked(1..)) && !f.at("b").exists() {
            fs::rename(f.at("a"), f.at("b")).unwrap();
        }
    });
    assert_eq!(told.left["a"], Why::Moved.to_string());
    assert!(f.has("b", &garbage));
}

/// Many pushers, two collectors with hardly any grace, and deletions that make garbage again: who was
/// promised a blob has it for as long as the grace, and no manifest is acknowledged without its blobs.
#[test]
fn promises_hold_among_many_pushers_and_collectors() {
    use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
    use std::time::Instant;

    const GRACE: Duration = Duration::from_millis(700);
    // A note's time is a tick of the kernel's clock old at most.
    const TICK: Duration = Duration::from_millis(20);
    let f = Fixture::new();
    let (over, acknowledged, taken) =
        (AtomicBool::new(false), AtomicUsize::new(0), AtomicU64::new(0));
    let until = Instant::now() + Duration::from_secs(8);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let options =
                    Options { grace: GRACE, undo_window: Duration::ZERO, ..Options::default() };
                while !over.load(Ordering::Relaxed) {
                    let told = f.gc(&options);
                    taken.fetch_add(told.summary.removed, Ordering::Relaxed);
                }
            });
        }
        let pushers: Vec<_> = (0..6)
            .map(|n| {
                let (f, acknowledged) = (&f, &acknowledged);
                scope.spawn(move || {
                    for round in 0.. {
                        if Instant::now() > until {
                            return;
                        }
                        // Three pushers share each layer, and ask for it in another way each.
                        let name = ["a", "b"][n % 2];
                        let layer = format!("layer {} of {name}", round % 4);
                        let digest = sha256(layer.as_bytes());
                        let promised = Instant::now();
                        let known = round % 3 != n % 3 && f.promised(name, &digest);
                        if !known {
                            f.blob(name, layer.as_bytes());
                        }
                        f.blob(name, b"{}");
                        let tag_name = format!("t{n}");
                        let more = format!(r#","annotations":{{"n":"{n} {round}"}}"#);
                        let manifest = image(b"{}", &[layer.as_bytes()], &more);
                        let put = f.try_push(name, tag(&tag_name), manifest.as_bytes());
                        let late = promised.elapsed() + TICK > GRACE;
                        match put {
                            Ok(manifest) => {
                                acknowledged.fetch_add(1, Ordering::Relaxed);
                                assert!(f.has(name, &digest) && f.has(name, &manifest));
                                f.delete(name, Reference::Digest(manifest));
                            }
                            Err(error) => assert!(late, "{error} after {:?}", promised.elapsed()),
                        }
                        if round % 5 == 4 {
                            std::thread::sleep(GRACE / 2);
                        }
                    }
                })
            })
            .collect();
        let ended: Vec<_> = pushers.into_iter().map(|pusher| pusher.join()).collect();
        over.store(true, Ordering::Relaxed);
        assert!(ended.iter().all(Result::is_ok));
    });
    let (acknowledged, taken) = (acknowledged.into_inner(), taken.into_inner());
    assert!(acknowledged > 20 && taken > 20, "{acknowledged} pushes, {taken} blobs taken");
}

#[test]
fn a_long_journal_is_set_aside_and_an_old_part_goes() {
    let f = Fixture::new();
    f.image("a", "one");
    let journal = fs::read_to_string(f.at("a/_log.jsonl")).unwrap();
    let long = "\n".repeat(16 << 20) + &journal;
    fs::write(f.at("a/_log.jsonl"), &long).unwrap();
    let dry = f.gc(&Options { dry_run: true, ..Options::default() });
    assert!(dry.lines.iter().any(|line| line.contains("a new one begins")), "{:?}", dry.lines);
    assert!(!f.at("a/_log.1.jsonl").exists());
    f.gc(&Options::default());
    assert_eq!(fs::read_to_string(f.at("a/_log.1.jsonl")).unwrap(), long);
    assert!(!f.at("a/_log.jsonl").exists());
    fs::write(f.at("a/_log.1.jsonl"), &journal).unwrap();
    f.image("a", "two");
    f.gc(&ahead(395 * DAY));
    assert!(f.at("a/_log.1.jsonl").exists(), "thirteen months");
    f.gc(&ahead(397 * DAY));
    assert!(!f.at("a/_log.1.jsonl").exists() && f.at("a/_log.jsonl").exists());
}

#[test]
fn facts_and_hints_of_what_is_gone_are_dropped() {
    let f = Fixture::new();
    let [kept, config, _] = f.image("a", "kept");
    let from = stillage::registry::MountFrom::Repo(repo("a"), Account::default());
    assert!(f.runtime.block_on(f.registry.mount(&repo("b"), &config, from, &ACTOR)).unwrap());
    let gone: Vec<_> = (0..3).map(|n| f.image("a", &format!("gone{n}"))).collect();
    for [manifest, ..] in &gone {
        f.delete("a", Reference::Digest(manifest.clone()));
    }
    let facts = || fs::read_to_string(f.at("a/_referrers/facts.jsonl")).unwrap();
    f.gc(&Options::default());
    assert_eq!(facts().lines().count(), 4, "what can be brought back is not gone");
    f.gc(&at_once());
    assert_eq!(facts().lines().count(), 1);
    assert!(facts().contains(kept.as_str()));
    let hints = |digest: &Digest| {
        let dir = f.at(".stillage").join(path::holders_dir(Algorithm::Sha256));
        let text = fs::read_to_string(dir.join(path::holders_name(digest))).unwrap_or_default();
        text.lines().filter(|line| line.starts_with(digest.hex())).count()
    };
    assert!(gone.iter().flatten().all(|digest| hints(digest) == 0));
    // b has it without a reference: it went, too, and a's hint stays.
    assert_eq!((hints(&kept), hints(&config)), (1, 1));
    f.image("a", "after");
    assert_eq!(facts().lines().count(), 2);
}

#[test]
fn at_once_says_what_can_be_undone_no_more_and_who_else_has_the_content() {
    let f = Fixture::new();
    let secret = f.image("a", "secret");
    for name in ["b", "c"] {
        let from = stillage::registry::MountFrom::Repo(repo("a"), Account::default());
        let name = repo(name);
        let mount = f.registry.mount(&name, &secret[2], from, &ACTOR);
        assert!(f.runtime.block_on(mount).unwrap());
    }
    fs::remove_dir_all(f.at("c")).unwrap();
    f.image("a", "one");
    f.delete("a", Reference::Digest(secret[0].clone()));
    let told = f.gc(&Options { only: Some(repo("a")), ..at_once() });
    let line = |digest: &Digest| {
        let line = told.lines.iter().find(|line| line.contains(digest.as_str()));
        line.cloned().unwrap_or_default()
    };
    assert!(line(&secret[0]).contains("cannot be undone any more"), "{}", line(&secret[0]));
    assert!(line(&secret[2]).contains("2 other names, among them in b"), "{}", line(&secret[2]));
    assert!(!line(&secret[1]).contains("among them"), "{}", line(&secret[1]));
}

/// A note is of no use once its blob is needed, or gone.
#[test]
fn notes_of_what_is_needed_or_gone_are_cleared() {
    let f = Fixture::new();
    f.image("a", "one");
    let (needed, gone) = (f.blob("a", b"needed"), f.blob("a", b"gone"));
    f.gc(&Options::default());
    fs::remove_file(f.blob_path("a", &gone)).unwrap();
    // An outsider refers to it: nobody promised anything.
    let manifest = image(b"{\"of\":\"one\"}", &[b"needed"], "");
    let entry = descriptor(IMAGE, manifest.as_bytes());
    f.blob("a", manifest.as_bytes());
    let json = fs::read_to_string(f.at("a/index.json")).unwrap();
    let json = json.replace("\"manifests\":[", &format!("\"manifests\":[{entry},"));
    fs::write(f.at("a/index.json"), json).unwrap();
    f.gc(&Options::default());
    assert!(!f.note("a", &needed).exists() && !f.note("a", &gone).exists());
    // The journal does not know it; that is a warning of check's.
    let other = f.blob("a", b"other");
    f.gc(&Options::default());
    assert!(f.note("a", &other).exists());
    fs::remove_dir_all(f.at("a")).unwrap();
    f.gc(&Options::default());
    assert!(!f.note("a", &other).exists(), "a repository that comes back begins anew");
}
