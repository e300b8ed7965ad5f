//! What the views of a repository have to be, by a reading of its files of the tests' own.

#![allow(dead_code, unreachable_pub, reason = "every test binary uses another part of this")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

/// Views by their paths in the repository: what a symlink says, or the document.
pub type Views = BTreeMap<String, Value>;

const KINDS: [(&str, &str); 4] = [
    ("application/vnd.oci.image.manifest.v1+json", "oci-image"),
    ("application/vnd.oci.image.index.v1+json", "oci-index"),
    ("application/vnd.docker.distribution.manifest.v2+json", "docker-image"),
    ("application/vnd.docker.distribution.manifest.list.v2+json", "docker-list"),
];

/// The views that are there, but for what says what they were made from.
pub fn found(repo: &Path) -> Views {
    let mut found = Views::new();
    let manifests = repo.join("_manifests");
    for dir in ["_manifests", "_manifests/sha256", "_manifests/sha512"] {
        for name in names(&repo.join(dir)) {
            let path = repo.join(dir).join(&name);
            if name != ".of" && path.is_symlink() {
                let target = fs::read_link(&path).expect("a symlink");
                let target = format!("-> {}", target.to_str().expect("plain text"));
                found.insert(format!("{dir}/{name}"), target.into());
            }
        }
    }
    assert!(!manifests.join(".of").exists(), "what .of says is no file");
    for dir in ["_referrers/sha256", "_referrers/sha512"] {
        for name in names(&repo.join(dir)) {
            found.insert(format!("{dir}/{name}"), document(&repo.join(dir).join(&name)));
        }
    }
    if repo.join("_tags.json").exists() {
        found.insert("_tags.json".to_owned(), document(&repo.join("_tags.json")));
    }
    found
}

/// What has to be there of a repository.
pub fn wanted(repo: &Path, name: &str) -> Views {
    let mut wanted = Views::new();
    let mut tags: Vec<&str> = Vec::new();
    let mut referrers: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    let index = document(&repo.join("index.json"));
    let entries = index["manifests"].as_array().expect("entries");
    for entry in entries {
        let noted = entry["annotations"]["org.opencontainers.image.ref.name"].as_str();
        let Some(tag) = noted.and_then(tag_of).filter(|tag| !tags.contains(tag)) else { continue };
        tags.push(tag);
        if let Some((kind, target)) = manifest(repo, entry) {
            wanted.insert(format!("_manifests/{tag}.{kind}"), format!("-> ../{target}").into());
        }
    }
    tags.sort_unstable();
    wanted.insert("_tags.json".to_owned(), json!({ "name": name, "tags": tags }));
    let mut todo: Vec<Value> = entries.iter().rev().cloned().collect();
    let mut seen: Vec<Value> = Vec::new();
    while let Some(entry) = todo.pop() {
        let Some((kind, target)) = manifest(repo, &entry) else { continue };
        if seen.contains(&entry["digest"]) {
            continue;
        }
        seen.push(entry["digest"].clone());
        let path = target.replacen("blobs", "_manifests", 1);
        wanted.insert(format!("{path}.{kind}"), format!("-> ../../{target}").into());
        // An index may list what is not there.
        let Ok(bytes) = fs::read(repo.join(&target)) else { continue };
        let read: Value = serde_json::from_slice(&bytes).expect("a manifest");
        todo.extend(read["manifests"].as_array().into_iter().flatten().cloned());
        if let Some(subject) = read["subject"]["digest"].as_str() {
            let mut listed = json!({
                "mediaType": media_type_of(kind), "digest": entry["digest"], "size": bytes.len(),
            });
            let config = Some(&read["config"]["mediaType"]).filter(|_| kind.ends_with("image"));
            let artifact = Some(&read["artifactType"]).filter(|said| !said.is_null()).or(config);
            if let Some(artifact) = artifact.filter(|said| said.is_string()) {
                listed["artifactType"] = artifact.clone();
            }
            if read["annotations"].as_object().is_some_and(|notes| !notes.is_empty()) {
                listed["annotations"] = read["annotations"].clone();
            }
            referrers.entry(subject.to_owned()).or_default().push(listed);
        }
    }
    for (subject, mut list) in referrers {
        list.sort_by_key(|entry| entry["digest"].as_str().map(str::to_owned));
        let body = json!({
            "schemaVersion": 2, "mediaType": media_type_of("oci-index"), "manifests": list,
        });
        wanted.insert(format!("_referrers/{}.json", subject.replacen(':', "/", 1)), body);
    }
    wanted
}

/// Whether the views of a repository are what they have to be, and say so.
pub fn are_right(root: &Path, name: &str) -> bool {
    let repo = root.join(name);
    repo.join("_manifests/.of").is_symlink() && found(&repo) == wanted(&repo, name)
}

/// The views of a repository are what they have to be, and say so.
#[track_caller]
pub fn assert_right(root: &Path, name: &str) {
    let repo = root.join(name);
    let (found, wanted) = (found(&repo), wanted(&repo, name));
    assert_eq!(found, wanted, "the views of {name}");
    let of = fs::read_link(repo.join("_manifests/.of")).expect("what they were made from");
    let of = of.to_str().expect("plain text").to_owned();
    let length = fs::metadata(repo.join("index.json")).expect("index.json").len();
    assert!(of.starts_with(&format!("{length}-")) && of.contains(&format!(":{name}:")), "{of}");
}

/// The kind and the blob of an entry that names a manifest.
fn manifest(repo: &Path, entry: &Value) -> Option<(&'static str, String)> {
    let target = format!("blobs/{}", entry["digest"].as_str()?.replacen(':', "/", 1));
    let said = match entry["mediaType"].as_str().filter(|said| !said.is_empty()) {
        Some(said) => said.to_owned(),
        None => document(&repo.join(&target))["mediaType"].as_str()?.to_owned(),
    };
    let (_, kind) = KINDS.iter().find(|(media_type, _)| *media_type == said)?;
    Some((kind, target))
}

fn media_type_of(kind: &str) -> &'static str {
    KINDS.iter().find(|(_, short)| *short == kind).expect("a kind").0
}

/// The tag in an annotation: all of it, or the end of a full reference.
fn tag_of(text: &str) -> Option<&str> {
    let plain = |tag: &&str| {
        !tag.starts_with(['.', '-'])
            && (1..=128).contains(&tag.len())
            && tag.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    let last = text.split('@').next()?.rsplit('/').next()?;
    Some(text).filter(plain).or_else(|| Some(last.split_once(':')?.1).filter(plain))
}

fn document(path: &Path) -> Value {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let name = |entry: std::io::Result<fs::DirEntry>| {
        entry.expect("an entry").file_name().into_string().expect("plain text")
    };
    entries.map(name).collect()
}

/// What the views beneath a directory say, they say as if the machine had been started since.
pub fn as_after_a_start(root: &Path) {
    for name in names(root) {
        let path = root.join(&name);
        if path.is_dir() && !path.is_symlink() && !["blobs", ".stillage"].contains(&name.as_str()) {
            as_after_a_start(&path);
        }
        if name == ".of" {
            let said = fs::read_link(&path).expect("a symlink");
            fs::remove_file(&path).expect("removed");
            std::os::unix::fs::symlink(another_boot(&said), &path).expect("a symlink");
        }
    }
}

/// What `.of` says, as another boot would have said it.
pub fn another_boot(said: &Path) -> String {
    let said = said.to_str().expect("plain text");
    let (rest, _) = said.rsplit_once(':').expect("a boot");
    format!("{rest}:00000000-0000-0000-0000-000000000000")
}
