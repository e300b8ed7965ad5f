//! Trees that break one rule each, named by the rule.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use stillage::layout::Stamp;
use stillage::oci::{Algorithm, Digest};

use super::repo::{IMAGE, INDEX, Repo, line};
use super::room::session;
use super::valid::{fact, image, roomy};
use super::{Files, Sample, disk};

/// One sample per rule, in the order of rules.md. Those with a twist are not in git. `unreadable`
/// is missing: it takes an account without rights, so the test of it stands alone.
pub fn all() -> Vec<Sample> {
    [layouts(), manifests(), blobs(), rights(), history(), room()].into_iter().flatten().collect()
}

fn changed(mut files: Files, change: impl FnOnce(&mut Files)) -> Files {
    change(&mut files);
    files
}

/// An image whose repository is changed before index.json is written.
fn with(change: impl FnOnce(&mut Repo, &Value)) -> Files {
    let mut repo = Repo::new("app");
    let image = repo.image("one");
    change(&mut repo, &image);
    repo.finish()
}

/// A tagged image whose manifest is changed before it is stored.
fn with_manifest(change: impl FnOnce(&mut Repo, &mut Value)) -> Files {
    let mut repo = Repo::new("app");
    let mut body = repo.image_body("one");
    change(&mut repo, &mut body);
    let image = repo.json(IMAGE, &body);
    repo.tag(&image, "1.8");
    repo.finish()
}

fn layouts() -> Vec<Sample> {
    let linked = |root: &Path| {
        let path = blob_of(root, "layer of one");
        let aside = root.join("aside");
        fs::rename(&path, &aside).unwrap();
        symlink(&aside, &path).unwrap();
    };
    vec![
        Sample::twisted("wrong-file-type", image(), linked),
        Sample::twisted("directory-symlinked", image(), |root| {
            symlink("app", root.join("alias")).unwrap();
        }),
        Sample::new("name-unreachable", {
            let files = image().into_iter();
            files.map(|(name, bytes)| (name.replace("app/", "Team/"), bytes)).collect()
        }),
        Sample::new(
            "layout-missing",
            changed(image(), |files| {
                files.remove("app/oci-layout").unwrap();
            }),
        ),
        Sample::new(
            "layout-malformed",
            changed(image(), |files| {
                files
                    .insert("app/oci-layout".into(), br#"{"imageLayoutVersion":"2.0.0"}"#.to_vec());
            }),
        ),
        Sample::new(
            "index-missing",
            changed(roomy(), |files| {
                files.remove("app/index.json").unwrap();
            }),
        ),
        Sample::new(
            "index-malformed",
            changed(image(), |files| {
                files.get_mut("app/index.json").unwrap().pop();
            }),
        ),
        Sample::new(
            "index-entry-untyped",
            with(|repo, image| {
                repo.tag(image, "1.8").as_object_mut().unwrap().remove("mediaType");
            }),
        ),
        Sample::new(
            "entry-not-a-manifest",
            with(|repo, image| {
                repo.tag(image, "1.8");
                let text = repo.blob("text/plain", b"hello\n");
                repo.untagged(&text);
            }),
        ),
        Sample::new(
            "tag-doubled",
            with(|repo, image| {
                let two = repo.image("two");
                repo.tag(image, "1.8");
                repo.tag(&two, "1.8");
            }),
        ),
        Sample::new(
            "tag-malformed",
            with(|repo, image| {
                repo.tag(image, "no tag at all");
            }),
        ),
    ]
}

fn manifests() -> Vec<Sample> {
    let oversized = |root: &Path| {
        let mut repo = Repo::new("app");
        let mut body = repo.image_body("one");
        body["annotations"] = json!({"large": "x".repeat(4 << 20)});
        let image = repo.json(IMAGE, &body);
        repo.tag(&image, "1.8");
        for (name, bytes) in repo.finish() {
            disk::write(root, &name, &bytes);
        }
    };
    vec![
        Sample::new(
            "manifest-missing",
            with(|repo, image| {
                let index = repo.index(std::slice::from_ref(image));
                repo.tag(&index, "1.8");
                repo.drop_file(&Repo::path(image));
            }),
        ),
        Sample::new(
            "manifest-size-mismatch",
            with(|repo, image| {
                repo.tag(image, "1.8")["size"] = json!(7);
            }),
        ),
        Sample::twisted("manifest-oversized", Files::new(), oversized),
        Sample::new(
            "manifest-malformed",
            with_manifest(|_, body| {
                body["manifests"] = json!([]);
            }),
        ),
        Sample::new(
            "manifest-type-mismatch",
            with(|repo, image| {
                repo.tag(image, "1.8")["mediaType"] = json!(INDEX);
            }),
        ),
        Sample::new(
            "descriptor-data-mismatch",
            with_manifest(|_, body| {
                body["config"]["data"] = json!("e30=");
            }),
        ),
    ]
}

fn blobs() -> Vec<Sample> {
    vec![
        Sample::new(
            "blob-missing",
            with_manifest(|repo, body| {
                repo.drop_file(&Repo::path(&body["layers"][0]));
            }),
        ),
        Sample::new(
            "blob-size-mismatch",
            with_manifest(|_, body| {
                body["layers"][0]["size"] = json!(1);
            }),
        ),
        Sample::new(
            "blob-digest-mismatch",
            with_manifest(|repo, body| {
                repo.file(&Repo::path(&body["layers"][0]), b"layer of two\n");
            }),
        ),
        Sample::new(
            "blob-name-malformed",
            changed(image(), |files| {
                files.insert("app/blobs/sha256/README".into(), b"hello\n".to_vec());
            }),
        ),
        Sample::new(
            "algorithm-unknown",
            changed(image(), |files| {
                files.insert("app/blobs/md5/d41d8cd98f00b204e9800998ecf8427e".into(), Vec::new());
            }),
        ),
    ]
}

fn rights() -> Vec<Sample> {
    let mode = |name, files, twist| Sample::twisted(name, files, twist);
    vec![
        mode("inner-wider", image(), |root| {
            disk::set_mode(&root.join("app/blobs/sha256"), 0o775);
        }),
        mode("lock-open", roomy(), |root| disk::set_mode(&root.join("app/.lock"), 0o640)),
        mode("journal-open", roomy(), |root| {
            disk::set_mode(&root.join("app/_log.jsonl"), 0o644);
        }),
        mode("file-closed", image(), |root| {
            disk::set_mode(&blob_of(root, "layer of one"), 0o440);
        }),
        mode("file-linked", roomy(), |root| {
            fs::hard_link(root.join("app/_log.jsonl"), root.join("copy")).unwrap();
        }),
    ]
}

fn history() -> Vec<Sample> {
    let nothing = Stamp::nothing();
    let journal = |files: &mut Files, change: fn(&str) -> String| {
        let log = files.get_mut("app/_log.jsonl").unwrap();
        *log = change(std::str::from_utf8(log).unwrap()).into_bytes();
    };
    vec![
        Sample::new(
            "journal-malformed",
            changed(roomy(), |files| {
                journal(files, |log| log.replacen("\"what\":\"tag\"", "\"what\":\"burnt\"", 1));
            }),
        ),
        Sample::new(
            "journal-stamp-unknown",
            with(|repo, image| {
                let log = line("push", "", &Value::Null, image, nothing, Stamp::of(b"another"));
                repo.file("_log.jsonl", log.as_bytes());
                repo.tag(image, "1.8");
            }),
        ),
        Sample::new(
            "journal-stamp-older",
            with(|repo, image| {
                repo.tag(image, "1.8");
                let (old, new) = (repo.stamp(), Stamp::of(b"newer"));
                let mut log = line("push", "", &Value::Null, image, nothing, old);
                log += &line("push", "", &Value::Null, image, old, new);
                log += &line("push", "", &Value::Null, image, new, Stamp::of(b"newest"));
                repo.file("_log.jsonl", log.as_bytes());
            }),
        ),
        Sample::new(
            "facts-wrong",
            with(|repo, image| {
                let signature = repo.signature(image);
                repo.tag(image, "1.8");
                repo.untagged(&signature);
                let wrong = fact(repo, &signature).replace("alice", "mallory");
                repo.file("_referrers/facts.jsonl", wrong.as_bytes());
            }),
        ),
        Sample::twisted("views-stale", image(), |root| {
            views_made_from(&root.join("app"), b"another index.json");
        }),
        Sample::twisted("view-wrong", image(), |root| {
            let repo = root.join("app");
            views_made_from(&repo, &fs::read(repo.join("index.json")).unwrap());
            symlink("../blobs/sha256/00", repo.join("_manifests/1.8.oci-image")).unwrap();
            symlink("../blobs/sha256/00", repo.join("_manifests/1.9.oci-image")).unwrap();
        }),
    ]
}

/// Views without any, which say that they were made from these bytes.
fn views_made_from(repo: &Path, index: &[u8]) {
    fs::create_dir(repo.join("_manifests")).unwrap();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let of = format!("{}:app:{}", Stamp::of(index), boot.trim());
    symlink(of, repo.join("_manifests/.of")).unwrap();
}

fn room() -> Vec<Sample> {
    let tree = |change: fn(&mut Files)| changed(roomy(), change);
    let rename = |files: &mut Files, from: &str, to: &str| {
        let bytes = files.remove(from).unwrap();
        files.insert(to.to_owned(), bytes);
    };
    vec![
        Sample::new(
            "version-unknown",
            tree(|files| {
                files.insert(".stillage/version".into(), b"2\n".to_vec());
            }),
        ),
        Sample::twisted("room-open", roomy(), |root| {
            disk::set_mode(&root.join(".stillage"), 0o750);
        }),
        Sample::new(
            "token-key-unsafe",
            tree(|files| {
                files.insert(".stillage/token-key".into(), b"short".to_vec());
            }),
        ),
        Sample::twisted(
            "tls-key-unsafe",
            tree(|files| {
                files.insert(".stillage/tls/cert.pem".into(), b"any".to_vec());
                files.insert(".stillage/tls/key.pem".into(), b"any".to_vec());
            }),
            |root| disk::set_mode(&root.join(".stillage/tls/key.pem"), 0o640),
        ),
        Sample::new(
            "pool-digest-mismatch",
            tree(|files| {
                let digest = Digest::of(Algorithm::Sha256, b"other content");
                let hex = digest.hex();
                files.insert(
                    format!(".stillage/pool/sha256/{}/{hex}", &hex[..2]),
                    b"wrong".to_vec(),
                );
            }),
        ),
        Sample::new(
            "pool-name-malformed",
            changed(roomy(), |files| {
                let old = first(files, ".stillage/pool/sha256/");
                rename(files, &old, &old.replace("/sha256/", "/sha256/x"));
            }),
        ),
        Sample::twisted("pool-inode-unsafe", roomy(), |root| {
            disk::set_mode(&pooled(root), 0o664);
        }),
        Sample::twisted("inode-two-algorithms", image(), |root| {
            let path = blob_of(root, "layer of one");
            let digest = Digest::of(Algorithm::Sha512, &fs::read(&path).unwrap());
            fs::create_dir(root.join("app/blobs/sha512")).unwrap();
            fs::hard_link(path, root.join("app/blobs/sha512").join(digest.hex())).unwrap();
        }),
        Sample::new(
            "holder-size-wrong",
            changed(roomy(), |files| {
                let pooled = first(files, ".stillage/pool/sha256/");
                let hex = pooled.rsplit('/').next().unwrap();
                let hints = format!(".stillage/holders/sha256/{}", &hex[..3]);
                let line = format!("{hex} 99999 team/app\n");
                files.get_mut(&hints).unwrap().extend(line.into_bytes());
            }),
        ),
        Sample::new("upload-malformed", tree(|files| session(files, "not-an-id"))),
        Sample::new(
            "note-malformed",
            tree(|files| {
                files.insert(".stillage/unreferenced/app/README".into(), Vec::new());
            }),
        ),
    ]
}

fn first(files: &Files, prefix: &str) -> String {
    files.keys().find(|name| name.starts_with(prefix)).unwrap().clone()
}

/// The blob in `app` with the given beginning.
fn blob_of(root: &Path, beginning: &str) -> PathBuf {
    let begins = |path: &PathBuf| fs::read(path).unwrap().starts_with(beginning.as_bytes());
    disk::walk(&root.join("app/blobs/sha256")).into_iter().find(begins).unwrap()
}

/// A file of the pool.
fn pooled(root: &Path) -> PathBuf {
    let mut pool = disk::walk(&root.join(".stillage/pool")).into_iter();
    pool.find(|path| path.is_file()).unwrap()
}
