//! Blobs on a real tree.

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use super::super::disk::RealDisk;
use super::*;
use crate::oci::Algorithm;

struct Fixture {
    temp: tempfile::TempDir,
    tree: Tree,
    holders: Holders,
}

fn fixture() -> Fixture {
    let temp = tempfile::tempdir().unwrap();
    let tree = Tree::open(temp.path(), Arc::new(RealDisk)).unwrap();
    Fixture { temp, tree, holders: Holders::default() }
}

impl Fixture {
    fn put(&self, repo: &str, bytes: &[u8]) -> Digest {
        let digest = Digest::of(Algorithm::Sha256, bytes);
        let name = RepoName::parse(repo).unwrap();
        let dir = self.tree.make_repository(&name, &Account::default()).unwrap();
        let target = Target { name: &name, dir: &dir };
        admit_bytes(&self.tree, &self.holders, target, bytes, &digest).unwrap();
        digest
    }

    fn mount(&self, from: &str, to: &str, digest: &Digest) -> bool {
        let name = RepoName::parse(to).unwrap();
        let dir = self.tree.make_repository(&name, &Account::default()).unwrap();
        let source = self.tree.root.dir(from).unwrap();
        let target = Target { name: &name, dir: &dir };
        mount(&self.tree, &self.holders, target, &source, digest, &Account::default()).unwrap()
    }

    fn path(&self, repo: &str, digest: &Digest) -> PathBuf {
        self.temp.path().join(repo).join(path::blob(digest))
    }

    fn pool(&self, digest: &Digest) -> PathBuf {
        self.temp.path().join(".stillage").join(path::pool(digest))
    }

    fn ino(&self, path: &std::path::Path) -> u64 {
        std::fs::metadata(path).unwrap().ino()
    }
}

#[test]
fn equal_content_is_one_read_only_inode_everywhere() {
    let f = fixture();
    let digest = f.put("a", b"content");
    assert_eq!(f.put("b/c", b"content"), digest);
    assert!(f.mount("a", "d", &digest));
    let inode = f.ino(&f.pool(&digest));
    for repo in ["a", "b/c", "d"] {
        assert_eq!(f.ino(&f.path(repo, &digest)), inode, "{repo}");
    }
    let meta = std::fs::metadata(f.pool(&digest)).unwrap();
    assert_eq!((meta.nlink(), meta.mode() & 0o7777), (4, 0o444));
    let names: Vec<_> = f.holders.of(&f.tree, &digest).unwrap();
    assert_eq!(names.iter().map(RepoName::as_str).collect::<Vec<_>>(), ["d", "b/c", "a"]);
    assert_eq!(Holders::default().length(&f.tree, &digest), Some(7));
}

#[test]
fn a_lost_pool_costs_nothing_but_deduplication() {
    let f = fixture();
    let digest = f.put("a", b"content");
    std::fs::remove_dir_all(f.temp.path().join(".stillage/pool")).unwrap();
    assert!(f.mount("a", "b", &digest));
    assert_eq!(std::fs::read(f.path("b", &digest)).unwrap(), b"content");
    assert_eq!(f.ino(&f.pool(&digest)), f.ino(&f.path("b", &digest)));
}

#[test]
fn a_planted_file_gives_nobody_what_the_pool_has() {
    let f = fixture();
    let secret = f.put("private", b"secret");
    f.put("mine", b"other");
    std::fs::write(f.path("mine", &secret), b"sesame").unwrap();
    assert!(!f.mount("mine", "target", &secret));
    assert!(!f.path("target", &secret).exists());
    let name = RepoName::parse("mine").unwrap();
    let dir = f.tree.make_repository(&name, &Account::default()).unwrap();
    let target = Target { name: &name, dir: &dir };
    assert_eq!(presence(&f.tree, &dir, &secret, 6).unwrap(), Presence::Foreign);
    assert!(!adopt(&f.tree, &f.holders, target, &secret, &Account::default()).unwrap());
}

#[test]
fn a_foreign_file_is_copied_before_anybody_shares_it() {
    let f = fixture();
    f.put("a", b"seed");
    let digest = Digest::of(Algorithm::Sha256, b"dropped in");
    std::fs::write(f.path("a", &digest), b"dropped in").unwrap();
    let foreign = f.ino(&f.path("a", &digest));
    assert!(f.mount("a", "b", &digest));
    assert_ne!(f.ino(&f.path("b", &digest)), foreign);
    let name = RepoName::parse("a").unwrap();
    let dir = f.tree.make_repository(&name, &Account::default()).unwrap();
    let target = Target { name: &name, dir: &dir };
    assert!(adopt(&f.tree, &f.holders, target, &digest, &Account::default()).unwrap());
    assert_eq!(f.ino(&f.path("a", &digest)), f.ino(&f.path("b", &digest)));
}

#[test]
fn a_blob_of_the_wrong_length_is_replaced() {
    let f = fixture();
    let digest = f.put("a", b"content");
    std::fs::remove_file(f.path("a", &digest)).unwrap();
    std::fs::write(f.path("a", &digest), b"cont").unwrap();
    f.put("a", b"content");
    assert_eq!(std::fs::read(f.path("a", &digest)).unwrap(), b"content");
    let left: Vec<_> = std::fs::read_dir(f.temp.path().join("a/blobs/sha256")).unwrap().collect();
    assert_eq!(left.len(), 1);
}

#[test]
fn a_target_on_another_file_system_gets_a_copy() {
    let f = fixture();
    let digest = f.put("a", b"content");
    let other = tempfile::tempdir_in("/dev/shm").unwrap();
    assert_ne!(f.ino(f.temp.path()), 0);
    let blobs = Dir::open_root(other.path()).unwrap();
    assert_ne!(blobs.inode().unwrap().dev, f.tree.root.inode().unwrap().dev);
    assert!(link_from_pool(&f.tree, &blobs, &digest).unwrap());
    let copy = other.path().join(digest.hex());
    assert_eq!(std::fs::read(&copy).unwrap(), b"content");
    assert_eq!(std::fs::metadata(&copy).unwrap().mode() & 0o7777, 0o444);
    assert_eq!(std::fs::read_dir(other.path()).unwrap().count(), 1);
}
