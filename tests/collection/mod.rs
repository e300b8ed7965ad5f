//! A registry in a directory, and what a collection of it tells.

mod promises;
mod tidying;
mod wishes;

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
use stillage::upkeep::gc::{self, Event, Fate, GcError, Options, Summary};

pub(crate) const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const HOUR: Duration = Duration::from_secs(60 * 60);
pub(crate) const DAY: Duration = Duration::from_secs(24 * 60 * 60);

pub(crate) fn repo(name: &str) -> RepoName {
    RepoName::parse(name).unwrap()
}

pub(crate) fn sha256(bytes: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, bytes)
}

pub(crate) fn tag(text: &str) -> Reference {
    Reference::Tag(Tag::parse(text).unwrap())
}

/// In so long.
pub(crate) fn ahead(time: Duration) -> Options {
    Options { clock: Some(SystemTime::now() + time), ..Options::default() }
}

pub(crate) fn at_once() -> Options {
    Options::default().at_once()
}

/// A registry and its tree, which is sound at the end.
pub(crate) struct Fixture {
    pub(crate) temp: tempfile::TempDir,
    pub(crate) runtime: tokio::runtime::Runtime,
    pub(crate) registry: Registry,
    pub(crate) damaged: bool,
}

/// What a run said.
pub(crate) struct Told {
    pub(crate) summary: Summary,
    /// What became of each digest.
    pub(crate) fates: BTreeMap<String, String>,
    /// What was left, and why.
    pub(crate) left: BTreeMap<String, String>,
    pub(crate) lines: Vec<String>,
}

impl Fixture {
    pub(crate) fn new() -> Fixture {
        let temp = tempfile::tempdir().unwrap();
        let registry = Registry::open(temp.path(), Settings::default()).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        Fixture { temp, runtime, registry, damaged: false }
    }

    pub(crate) fn at(&self, relative: &str) -> PathBuf {
        self.temp.path().join(relative)
    }

    pub(crate) fn blob_path(&self, name: &str, digest: &Digest) -> PathBuf {
        self.at(name).join(path::blob(digest))
    }

    pub(crate) fn has(&self, name: &str, digest: &Digest) -> bool {
        self.blob_path(name, digest).exists()
    }

    pub(crate) fn pooled(&self, digest: &Digest) -> bool {
        self.at(".stillage").join(path::pool(digest)).exists()
    }

    pub(crate) fn note(&self, name: &str, digest: &Digest) -> PathBuf {
        self.at(".stillage").join(path::notes(&repo(name))).join(digest.as_str())
    }

    pub(crate) fn blob(&self, name: &str, bytes: &[u8]) -> Digest {
        self.blob_as(Algorithm::Sha256, name, bytes)
    }

    pub(crate) fn blob_as(&self, algorithm: Algorithm, name: &str, bytes: &[u8]) -> Digest {
        let digest = Digest::of(algorithm, bytes);
        let body = stream::iter(vec![Ok(Bytes::copy_from_slice(bytes))]);
        let name = repo(name);
        let put = self.registry.put_blob(&name, &ACTOR, body, &digest);
        self.runtime.block_on(put).unwrap();
        digest
    }

    pub(crate) fn push(&self, name: &str, reference: Reference, bytes: &[u8]) -> Digest {
        self.try_push(name, reference, bytes).unwrap()
    }

    pub(crate) fn try_push(
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
    pub(crate) fn image(&self, name: &str, text: &str) -> [Digest; 3] {
        let (config, layer) = (format!("{{\"of\":\"{text}\"}}"), format!("layer of {text}"));
        let config_digest = self.blob(name, config.as_bytes());
        let layer_digest = self.blob(name, layer.as_bytes());
        let manifest = image(config.as_bytes(), &[layer.as_bytes()], "");
        let manifest = self.push(name, tag(text), manifest.as_bytes());
        [manifest, config_digest, layer_digest]
    }

    pub(crate) fn delete(&self, name: &str, reference: Reference) {
        let name = repo(name);
        let delete = self.registry.delete_manifest(&name, &reference, &ACTOR);
        self.runtime.block_on(delete).unwrap();
    }

    pub(crate) fn is_pulled(&self, name: &str, reference: &Reference) -> bool {
        let (name, account) = (repo(name), Account::default());
        let pull = self.registry.manifest(&name, reference, &account);
        self.runtime.block_on(pull).is_ok()
    }

    /// As HEAD by somebody who may push.
    pub(crate) fn promised(&self, name: &str, digest: &Digest) -> bool {
        let (name, account) = (repo(name), Account::default());
        let stat = self.registry.stat_blob(&name, digest, &account, Some(&ACTOR));
        self.runtime.block_on(stat).is_ok()
    }

    pub(crate) fn tree(&self) -> Tree {
        Tree::open(self.temp.path(), Arc::new(RealDisk)).unwrap()
    }

    pub(crate) fn gc(&self, options: &Options) -> Told {
        self.gc_beside(options, |_| {})
    }

    pub(crate) fn gc_beside(&self, options: &Options, beside: impl FnMut(&Event<'_>)) -> Told {
        self.try_gc(options, beside).unwrap()
    }

    pub(crate) fn try_gc(
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
    pub(crate) fn fate(&self, name: &str, digest: &Digest) -> &str {
        self.fates.get(&format!("{name} {digest}")).map_or("not told of", String::as_str)
    }
}

pub(crate) static ACTOR: std::sync::LazyLock<Actor> = std::sync::LazyLock::new(Actor::default);

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

pub(crate) fn descriptor(media_type: &str, bytes: &[u8]) -> String {
    let (digest, size) = (sha256(bytes), bytes.len());
    format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{size}}}"#)
}

pub(crate) fn image(config: &[u8], layers: &[&[u8]], more: &str) -> String {
    let layers: Vec<_> = layers.iter().map(|layer| descriptor(LAYER, layer)).collect();
    let (config, layers) = (descriptor("c", config), layers.join(","));
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{IMAGE}","config":{config},"layers":[{layers}]{more}}}"#
    )
}

pub(crate) fn index(entries: &[(&str, &[u8])]) -> String {
    let entries: Vec<_> =
        entries.iter().map(|(media_type, bytes)| descriptor(media_type, bytes)).collect();
    let entries = entries.join(",");
    format!(r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{entries}]}}"#)
}

pub(crate) fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
