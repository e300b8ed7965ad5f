//! A state of a crash, made of real files, judged by the program itself: `check` finds nothing, the
//! registry serves what was acknowledged, and takes a push.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use stillage::layout::Account;
use stillage::oci::{Algorithm, Reference};
use stillage::registry::{Error, Registry, Settings};
use stillage::upkeep::check::{self, Finding, Rule};

use super::deeds::{self, Image, Way};
use super::judge::{Expected, Outsiders, Repo};
use super::model::{Interner, Model, State};

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
        checked(&root, outsiders)?;
    }
    // A snapshot is whole, or not there.
    let snapshot = root.with_file_name(deeds::SNAPSHOT);
    if snapshot.exists() {
        checked(&snapshot, outsiders).map_err(|why| format!("the snapshot: {why}"))?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(serves(&root, expected))?;
    checked(&root, outsiders).map_err(|why| format!("after a push: {why}"))
}

/// Makes the files of a state.
pub fn make(model: &Model, interner: &mut Interner, state: &State, root: &Path) {
    let state = model.whole(interner, state);
    let mut made: Vec<(usize, &str)> = Vec::new();
    for entry in &state.entries {
        let path = match interner.paths[entry.path].as_str() {
            "" => root.to_owned(),
            path if path.starts_with("../") => root.with_file_name(&path["../".len()..]),
            path => root.join(path),
        };
        match (entry.content, made.iter().find(|(id, _)| *id == entry.id)) {
            (None, _) => {
                fs::create_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
            }
            (Some(_), Some((_, other))) => {
                fs::hard_link(root.join(other), &path).expect("a link");
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

fn checked(root: &Path, outsiders: &Outsiders) -> Result<(), String> {
    let mut found: Vec<Finding> = Vec::new();
    let checked = check::check(root, check::Options::default(), &mut |finding| found.push(finding));
    checked.map_err(|error| error.to_string())?;
    found.retain(|finding| !is_swept(finding) && !is_theirs(finding, outsiders));
    if found.is_empty() { Ok(()) } else { Err(format!("check finds {found:#?}")) }
}

/// What goes when collection sweeps the temporary name beside it.
fn is_swept(finding: &Finding) -> bool {
    finding.rule == Rule::FileLinked && finding.path.ends_with("index.json")
}

/// What another tool has not finished, and nobody relies on; and that it was another tool.
fn is_theirs(finding: &Finding, outsiders: &Outsiders) -> bool {
    let name = finding.path.file_name().unwrap_or_default();
    match finding.rule {
        Rule::BlobDigestMismatch => outsiders.blobs.iter().any(|digest| *digest.hex() == *name),
        Rule::JournalStampUnknown => !outsiders.indexes.is_empty(),
        _ => false,
    }
}

async fn serves(root: &Path, expected: &Expected) -> Result<(), String> {
    let registry = Registry::open(root, Settings::default()).map_err(|error| error.to_string())?;
    let own = || expected.repos.iter().filter(|(name, _)| !name.starts_with("../"));
    for (name, may) in own() {
        let is = says(&registry, name).await?;
        if !may.iter().any(|may| may.tags == is.tags) {
            return Err(format!("{name} serves {is:?}, may serve {may:?}"));
        }
    }
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
        if !says(&registry, name).await?.tags.contains_key("after") {
            return Err(format!("a push to {name} after it is not there"));
        }
    }
    Ok(())
}

/// What a repository serves: every tag, whose manifest and blobs are read.
async fn says(registry: &Registry, name: &str) -> Result<Repo, String> {
    let (repo, account) = (deeds::repo(name), Account::default());
    let tags = match registry.tags(&repo, None, 10_000, &account).await {
        Ok(page) => page.items,
        Err(Error::NameUnknown(_)) => return Ok(Repo::default()),
        Err(error) => return Err(format!("the tags of {name}: {error}")),
    };
    let mut is = Repo { manifests: BTreeSet::new(), ..Repo::default() };
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
