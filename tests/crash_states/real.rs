//! A state of a crash, made of real files, judged by the program itself: `check` finds nothing, the
//! registry serves what was acknowledged, and takes a push.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use stillage::layout::{Account, path};
use stillage::oci::{Algorithm, Reference};
use stillage::registry::{Error, Registry, Settings};
use stillage::upkeep::check::{self, Finding, Rule};

use super::deeds::{self, Image, Way};
use super::judge::Outsiders;
use super::model::{Interner, Model, State};
use super::promises::{Expected, Repo};
use crate::support::views;

/// Why the program finds a state wrong, if it does.
pub fn judge(
    model: &Model,
    interner: &mut Interner,
    state: &State,
    expected: &Expected,
    outsiders: &Outsiders,
) -> Result<(), String> {
    let temp = tempfile::tempdir_in("/dev/shm").expect("a temporary directory");
    let root = temp.path().join("registry");
    make(model, interner, state, &root);
    // Before the first promise there may be nothing at all.
    if root.exists() {
        checked(&root, outsiders, stale)?;
    }
    // A snapshot is whole, or not there.
    let snapshot = root.with_file_name(deeds::SNAPSHOT);
    if snapshot.exists() {
        checked(&snapshot, outsiders, stale).map_err(|why| format!("the snapshot: {why}"))?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    runtime
        .block_on(has_copies(&snapshot, expected))
        .map_err(|why| format!("the snapshot: {why}"))?;
    runtime.block_on(serves(&root, expected))?;
    checked(&root, outsiders, |_| false).map_err(|why| format!("after a push: {why}"))
}

/// Where a path of the model is.
fn place(root: &Path, path: &str) -> PathBuf {
    match path.strip_prefix("../") {
        Some(beside) => root.with_file_name(beside),
        None if path.is_empty() => root.to_owned(),
        None => root.join(path),
    }
}

/// Makes the files of a state.
pub fn make(model: &Model, interner: &mut Interner, state: &State, root: &Path) {
    let state = model.whole(interner, state);
    let mut made: Vec<(usize, &str)> = Vec::new();
    for entry in &state.entries {
        let path = place(root, &interner.paths[entry.path]);
        match (entry.content, made.iter().find(|(id, _)| *id == entry.id)) {
            (None, _) => {
                fs::create_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
            }
            (Some(_), Some((_, other))) => {
                fs::hard_link(place(root, other), &path).expect("a link");
                continue;
            }
            (Some(content), None) if model.is_symlink(entry.id) => {
                let target = Path::new(OsStr::from_bytes(&interner.contents[content]));
                // The machine was started again.
                let said = path.ends_with("_manifests/.of").then(|| views::another_boot(target));
                let target = said.as_ref().map_or(target, Path::new);
                std::os::unix::fs::symlink(target, &path).expect("a symlink");
                made.push((entry.id, &interner.paths[entry.path]));
                continue;
            }
            (Some(content), None) => {
                fs::write(&path, &interner.contents[content]).expect("a file");
                made.push((entry.id, &interner.paths[entry.path]));
            }
        }
        let mode = Permissions::from_mode(model.mode(entry.id));
        fs::set_permissions(&path, mode).expect("its mode");
    }
}

/// Nobody has opened the tree since the crash: its views, which nothing says anything of, may be anything.
fn stale(rule: Rule) -> bool {
    rule == Rule::ViewsStale
}

fn checked(root: &Path, outsiders: &Outsiders, may: fn(Rule) -> bool) -> Result<(), String> {
    let mut found: Vec<Finding> = Vec::new();
    let checked = check::check(root, check::Options::default(), &mut |finding| found.push(finding));
    checked.map_err(|error| error.to_string())?;
    found.retain(|finding| {
        !is_swept(finding) && !is_theirs(finding, outsiders) && !may(finding.rule)
    });
    if found.is_empty() { Ok(()) } else { Err(format!("check finds {found:#?}")) }
}

/// What goes when collection sweeps the temporary name beside it.
fn is_swept(finding: &Finding) -> bool {
    let name = finding.path.file_name().unwrap_or_default();
    finding.rule == Rule::FileLinked && (name == path::INDEX || name == path::FACTS)
}

/// What another tool has not finished, and nobody relies on; and that it was another tool.
fn is_theirs(finding: &Finding, outsiders: &Outsiders) -> bool {
    let name = finding.path.file_name().unwrap_or_default();
    match finding.rule {
        Rule::BlobDigestMismatch | Rule::WrongFileType => {
            outsiders.blobs.iter().any(|digest| *digest.hex() == *name)
        }
        Rule::JournalStampUnknown => !outsiders.indexes.is_empty(),
        _ => false,
    }
}

/// A snapshot that was promised is there, and has what was promised.
async fn has_copies(snapshot: &Path, expected: &Expected) -> Result<(), String> {
    let beneath = format!("../{}/", deeds::SNAPSHOT);
    let copies = expected
        .repos
        .iter()
        .filter_map(|(name, may)| name.strip_prefix(&beneath).map(|name| (name.to_owned(), may)));
    let copies: BTreeMap<String, &BTreeSet<Repo>> = copies.collect();
    if !snapshot.exists() {
        let lost = copies.iter().find(|(_, may)| !may.contains(&Repo::default()));
        return lost.map_or(Ok(()), |(name, _)| Err(format!("{name} is lost with it")));
    }
    let registry = Registry::open(snapshot, Settings::default());
    says_only(&registry.map_err(|error| error.to_string())?, &copies).await
}

/// Each of these repositories serves what it may, and there is no other.
async fn says_only(
    registry: &Registry,
    repos: &BTreeMap<String, &BTreeSet<Repo>>,
) -> Result<(), String> {
    for (name, may) in repos {
        let is = says(registry, name, may).await?;
        if !may.contains(&is) {
            return Err(format!("{name} serves {is:?}, may serve {may:?}"));
        }
    }
    let all = registry
        .catalog(None, 10_000, Arc::new(|_| Ok(Some(Account::default()))), &Account::default())
        .await;
    let all = all.map_err(|error| error.to_string())?;
    let other = all.items.iter().find(|name| !repos.contains_key(name.as_str()));
    other.map_or(Ok(()), |name| Err(format!("nobody asked for {name}")))
}

async fn serves(root: &Path, expected: &Expected) -> Result<(), String> {
    let registry = Registry::open(root, Settings::default()).map_err(|error| error.to_string())?;
    let own = || expected.repos.iter().filter(|(name, _)| !name.starts_with("../"));
    says_only(&registry, &own().map(|(name, may)| (name.clone(), may)).collect()).await?;
    for (name, digest) in &expected.gone {
        let name = deeds::repo(name);
        match registry.stat_blob(&name, digest, &Account::default(), None).await {
            Err(Error::BlobUnknown { .. } | Error::NameUnknown(_)) => {}
            other => return Err(format!("{name}@{digest} was deleted: {other:?}")),
        }
    }
    let image = Image::of(b"{}".to_vec(), b"pushed after the crash".to_vec(), Algorithm::Sha256);
    for name in own().map(|(name, _)| name.as_str()).chain(["after/crash"]) {
        let pushed = deeds::put(&registry, name, "after", &image, Way::Whole).await;
        pushed.map_err(|error| format!("a push to {name} after it: {error}"))?;
        if !says(&registry, name, &BTreeSet::new()).await?.tags.contains_key("after") {
            return Err(format!("a push to {name} after it is not there"));
        }
    }
    registry.renew_views().await;
    Ok(())
}

/// What a repository serves: every tag, whose manifest and blobs are read, and which of the manifests
/// that it may have.
async fn says(registry: &Registry, name: &str, may: &BTreeSet<Repo>) -> Result<Repo, String> {
    let (repo, account) = (deeds::repo(name), Account::default());
    let tags = match registry.tags(&repo, None, 10_000, &account).await {
        Ok(page) => page.items,
        Err(Error::NameUnknown(_)) => return Ok(Repo::default()),
        Err(error) => return Err(format!("the tags of {name}: {error}")),
    };
    let mut is = Repo::default();
    for digest in may.iter().flat_map(|may| &may.manifests).collect::<BTreeSet<_>>() {
        match registry.manifest(&repo, &Reference::Digest(digest.clone()), &account).await {
            Ok(_) => drop(is.manifests.insert(digest.clone())),
            Err(Error::ManifestUnknown { .. }) => {}
            Err(error) => return Err(format!("{name}@{digest}: {error}")),
        }
    }
    for tag in tags {
        let reference = Reference::Tag(tag.clone());
        let stored = registry.manifest(&repo, &reference, &account).await;
        let stored = stored.map_err(|error| format!("{name}:{tag}: {error}"))?;
        let manifest = stillage::oci::Manifest::parse(&stored.bytes, Some(&stored.media_type));
        for blob in manifest.map_err(|error| error.to_string())?.required() {
            let opened = registry.open_blob(&repo, &blob.digest, &account).await;
            opened.map_err(|error| format!("{name}:{tag}: {error}"))?;
        }
        is.tags.insert(tag.to_string(), stored.digest);
    }
    Ok(is)
}
