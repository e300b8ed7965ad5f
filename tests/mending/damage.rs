//! The damage: five trees, and between them everything that a repair knows to do.

use std::fs;
use std::os::unix::fs::{chown, symlink};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use stillage::layout::Stamp;
use stillage::oci::{Algorithm, Digest, Index};

use crate::layouts::repo::{REF_NAME, Repo, line};
use crate::layouts::room::{session, with_room};
use crate::layouts::valid::fact;
use crate::layouts::{Files, disk};

/// What is wrong with a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Damage {
    /// Blobs are lost or rotted, and good elsewhere: in the pool, in another repository, in a file of
    /// somebody else's.
    Blobs,
    /// index.json is lost, torn, or has wrong entries.
    Index,
    /// `oci-layout`, journal, facts and permissions of a repository.
    Files,
    /// Keys, hints, notes, sessions, and names in the pool.
    Room,
    /// The pool is gone.
    Pool,
}

impl Damage {
    pub(crate) const ALL: [Damage; 5] =
        [Damage::Blobs, Damage::Index, Damage::Files, Damage::Room, Damage::Pool];

    /// The rules that a repair puts right there.
    pub(crate) fn mended(self) -> &'static [&'static str] {
        match self {
            Damage::Blobs => &[
                "blob-digest-mismatch",
                "blob-missing",
                "inode-two-algorithms",
                "pool-digest-mismatch",
                "wrong-file-type",
            ],
            Damage::Index => &[
                "index-entry-untyped",
                "index-malformed",
                "index-missing",
                "manifest-missing",
                "manifest-size-mismatch",
                "tag-doubled",
            ],
            Damage::Files => &[
                "facts-wrong",
                "inner-wider",
                "journal-malformed",
                "journal-open",
                "layout-missing",
                "lock-open",
            ],
            Damage::Room => &[
                "holder-size-wrong",
                "note-malformed",
                "pool-inode-unsafe",
                "pool-name-malformed",
                "room-open",
                "tls-key-unsafe",
                "token-key-unsafe",
                "upload-malformed",
                "wrong-file-type",
            ],
            Damage::Pool => &[],
        }
    }

    /// Puts such a tree on the disk.
    pub(crate) fn place(self) -> tempfile::TempDir {
        let temp = disk::place(&self.files());
        let root = temp.path();
        match self {
            Damage::Blobs => harm_blobs(root),
            Damage::Index => harm_indexes(root),
            Damage::Pool => {}
            Damage::Files => harm_files(root),
            Damage::Room => harm_room(root),
        }
        temp
    }

    fn files(self) -> Files {
        match self {
            Damage::Blobs => with_room(images(&["repo-a", "repo-b", "repo-c", "repo-d", "repo-e"])),
            Damage::Index => indexes(),
            Damage::Files => with_room(history("app")),
            Damage::Room => room(),
            Damage::Pool => {
                let mut files = with_room(images(&["repo-a", "repo-b"]));
                files.retain(|name, _| !name.starts_with(".stillage/pool/"));
                files
            }
        }
    }
}

/// Repositories with one image each, made from their name.
fn images(names: &[&str]) -> Files {
    let mut files = Files::new();
    for name in names {
        let mut repo = Repo::new(name);
        let image = repo.image(name);
        repo.tag(&image, "1.8");
        files.extend(repo.finish());
    }
    files
}

/// What a server writes: an image, a signature for it, the journal and the facts of both.
fn history(name: &str) -> Files {
    let mut repo = Repo::new(name);
    repo.file(".lock", b"");
    let image = repo.image(name);
    let signature = repo.signature(&image);
    let tagged = repo.tag(&image, "1.8").clone();
    let first = written(&repo);
    let stamp = Stamp::of(&first);
    let nothing = Stamp::nothing();
    let mut log = line("push", "", &Value::Null, &image, nothing, stamp);
    log += &line("tag", "1.8", &Value::Null, &tagged, nothing, stamp);
    repo.untagged(&signature);
    let second = written(&repo);
    log += &line("push", "", &Value::Null, &signature, stamp, Stamp::of(&second));
    repo.file("_log.jsonl", log.as_bytes());
    let facts: String = [&image, &signature].map(|of| fact(&repo, of)).concat();
    repo.file("_referrers/facts.jsonl", facts.as_bytes());
    repo.file("index.json", &second);
    repo.files
}

/// index.json as the server writes it.
fn written(repo: &Repo) -> Vec<u8> {
    Index::parse(&repo.index_json()).expect("an index").to_bytes()
}

/// One whose index.json is lost, one whose index.json is torn, one with wrong entries.
fn indexes() -> Files {
    let mut files = history("lost");
    files.remove("lost/index.json").expect("it is there");
    files.remove("lost/oci-layout").expect("it is there");
    files.extend(history("torn"));
    files.get_mut("torn/index.json").expect("it is there").truncate(40);
    let mut repo = Repo::new("wrong");
    let (one, two, gone) = (repo.image("one"), repo.image("two"), repo.image("gone"));
    repo.tag(&one, "1.8")["size"] = json!(7);
    repo.tag(&two, "1.8");
    repo.tag(&two, "untyped").as_object_mut().expect("an entry").remove("mediaType");
    repo.tag(&gone, "gone");
    let back = repo.image("back");
    repo.tag(&back, "back");
    repo.drop_file(&Repo::path(&gone));
    files.extend(repo.finish());
    with_room(files)
}

/// A manifest is lost that the pool has.
fn harm_indexes(root: &Path) {
    let index = fs::read(root.join("wrong/index.json")).expect("it is there");
    let index: Value = serde_json::from_slice(&index).expect("an index");
    let entries = index["manifests"].as_array().expect("entries");
    let back = entries.iter().find(|entry| entry["annotations"][REF_NAME] == "back");
    let path = Repo::path(back.expect("an entry"));
    fs::remove_file(root.join("wrong").join(path)).expect("it is there");
}

fn room() -> Files {
    let mut files = with_room(images(&["repo-a"]));
    let pooled: Vec<String> =
        files.keys().filter(|name| name.starts_with(".stillage/pool/")).cloned().collect();
    // The pool loses it by this, and gets it again.
    let bytes = files.remove(&pooled[0]).expect("it is there");
    files.insert(pooled[0].replace("/sha256/", "/sha256/x"), bytes);
    let hex = pooled[1].rsplit('/').next().expect("a name");
    let hints = format!(".stillage/holders/sha256/{}", &hex[..3]);
    let hint = format!("{hex} 99999 repo-a\n");
    files.get_mut(&hints).expect("it is there").extend(hint.into_bytes());
    session(&mut files, "not-an-id");
    files.insert(".stillage/token-key".into(), b"short".to_vec());
    files.insert(".stillage/tls/cert.pem".into(), b"any".to_vec());
    files.insert(".stillage/tls/key.pem".into(), b"any key".to_vec());
    files.insert(".stillage/unreferenced/repo-a/README".into(), b"a note".to_vec());
    files
}

fn layer(of: &str) -> String {
    let digest = Digest::of(Algorithm::Sha256, format!("layer of {of}\n").as_bytes());
    digest.hex().to_owned()
}

fn blob(root: &Path, repo: &str) -> PathBuf {
    root.join(repo).join("blobs/sha256").join(layer(repo))
}

/// Other bytes under a blob's name, in an inode of its own.
fn rot(path: &Path, bytes: &[u8]) {
    fs::remove_file(path).expect("it is there");
    fs::write(path, bytes).expect("a file");
    disk::set_mode(path, 0o444);
}

fn harm_blobs(root: &Path) {
    let pooled = |of: &str| {
        let hex = layer(of);
        root.join(".stillage/pool/sha256").join(&hex[..2]).join(hex)
    };
    let elsewhere = |of: &str, mode| {
        let copy = root.join("zz/copy/blobs/sha256");
        fs::create_dir_all(&copy).expect("directories");
        let path = copy.join(layer(of));
        fs::write(&path, format!("layer of {of}\n")).expect("a file");
        disk::set_mode(&path, mode);
        path
    };
    // Gone, and in the pool.
    fs::remove_file(blob(root, "repo-a")).expect("it is there");
    // Rotted by itself, and in the pool.
    rot(&blob(root, "repo-b"), b"layer of repo-8\n");
    // Rotted in the inode that the pool has too, and in another repository.
    disk::set_mode(&blob(root, "repo-c"), 0o644);
    fs::write(blob(root, "repo-c"), b"layer of repo-6\n").expect("a file");
    disk::set_mode(&blob(root, "repo-c"), 0o444);
    elsewhere("repo-c", 0o444);
    // A symlink, and a file of somebody else's, who lets everybody read it.
    fs::remove_file(blob(root, "repo-d")).expect("it is there");
    fs::remove_file(pooled("repo-d")).expect("it is there");
    symlink("/etc/hostname", blob(root, "repo-d")).expect("a symlink");
    chown(elsewhere("repo-d", 0o644), Some(4242), Some(4242)).expect("root may");
    // One inode under two algorithms.
    let bytes = fs::read(blob(root, "repo-e")).expect("it is there");
    fs::create_dir(root.join("repo-e/blobs/sha512")).expect("a directory");
    let other = root.join("repo-e/blobs/sha512").join(Digest::of(Algorithm::Sha512, &bytes).hex());
    fs::hard_link(blob(root, "repo-e"), other).expect("a link");
}

fn harm_files(root: &Path) {
    let app = root.join("app");
    let log = fs::read_to_string(app.join("_log.jsonl")).expect("a journal");
    let log = log.replacen("\"what\":\"tag\"", "\"what\":\"burnt\"", 1);
    disk::write(root, "app/_log.jsonl", log.as_bytes());
    let facts = fs::read_to_string(app.join("_referrers/facts.jsonl")).expect("facts");
    let facts = facts.replace("alice", "mallory");
    disk::write(root, "app/_referrers/facts.jsonl", facts.as_bytes());
    fs::remove_file(app.join("oci-layout")).expect("it is there");
    disk::set_mode(&app.join("blobs/sha256"), 0o775);
    disk::set_mode(&app.join(".lock"), 0o644);
    disk::set_mode(&app.join("_log.jsonl"), 0o644);
}

fn harm_room(root: &Path) {
    let room = root.join(".stillage");
    let pool = disk::walk(&room.join("pool"));
    let named = |path: &&PathBuf| path.is_file() && !path.to_string_lossy().contains("/sha256/x");
    disk::set_mode(pool.iter().find(named).expect("a blob"), 0o664);
    fs::remove_file(room.join("gc.lock")).expect("it is there");
    symlink("/etc/hostname", room.join("gc.lock")).expect("a symlink");
    disk::set_mode(&room.join("tls/key.pem"), 0o640);
    disk::set_mode(&room, 0o750);
}
