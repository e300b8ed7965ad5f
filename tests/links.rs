//! Mounts go on when an inode's links run out: ext4 allows 65,000.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;

use support::Registry;
use support::content::random;
use support::http::Request;
use support::volume::{MOST_LINKS, Volume};

/// Links that other repositories would hold already.
const FILLED: u64 = 64_990;
const MOUNTS: u64 = 30;

#[test]
fn a_blob_is_mounted_beyond_the_link_limit_of_the_file_system() {
    let disk = Volume::ext4(256, &[]);
    let root = disk.path().join("registry");
    let registry = Registry::start_on(&root, &["--auth", "none"]);
    let client = registry.client();
    let blob = random(10_000);
    let digest = client.push_blob("first/owner", &blob);
    let hex = &digest["sha256:".len()..];
    let pool = root.join(".stillage/pool/sha256").join(&hex[..2]).join(hex);

    let links = disk.path().join("links");
    fs::create_dir(&links).expect("a directory for links");
    let before = fs::metadata(&pool).expect("the blob is in the pool");
    for number in before.nlink()..FILLED {
        fs::hard_link(&pool, links.join(number.to_string())).expect("a link below the limit");
    }
    assert_eq!(fs::metadata(&pool).expect("the blob is in the pool").nlink(), FILLED);

    let mut inodes = BTreeSet::new();
    for number in 0..MOUNTS {
        let repo = format!("mounted/here{number}");
        let mount = format!("/v2/{repo}/blobs/uploads/?mount={digest}&from=first/owner");
        client.send(Request::post(mount)).expect_status(201);
        let served = client.get(&format!("/v2/{repo}/blobs/{digest}")).expect_status(200);
        assert!(served.body == blob, "the blob in {repo} differs");
        let name = root.join(&repo).join("blobs/sha256").join(hex);
        inodes.insert(fs::metadata(&name).expect("the mounted name").ino());
    }
    assert!(inodes.contains(&before.ino()), "no mount shared the inode while it had links left");
    assert_eq!(inodes.len(), 2, "one copy, and all further mounts share it: {inodes:?}");
    let first = fs::metadata(links.join((FILLED - 1).to_string())).expect("a link").nlink();
    assert!(first > FILLED && first <= MOST_LINKS, "the first inode has {first} links");
}
