//! What a repository that is left as it is needs, and the pool alone has.

use std::fs;
use std::path::Path;
use std::process::Command;

use stillage::oci::Reference;
use stillage::upkeep::gc::Options;

use super::{Fixture, IMAGE, at_once, image, index, sha256, tag};

/// However often is collected meanwhile, a repair finds it.
#[test]
fn what_a_damaged_repository_lacks_stays_in_the_pool() {
    let f = Fixture::new();
    let [manifest, config, layer] = f.image("a", "one");
    // And an image that only an index names, of another platform.
    for blob in ["{}", "layer x"] {
        f.blob("a", blob.as_bytes());
    }
    let x = image(b"{}", &[b"layer x"], "");
    f.push("a", Reference::Digest(sha256(x.as_bytes())), x.as_bytes());
    let whole = index(&[(IMAGE, x.as_bytes())]);
    let whole_digest = f.push("a", tag("whole"), whole.as_bytes());
    f.delete("a", Reference::Digest(sha256(x.as_bytes())));
    let [inner, inner_layer] = [x.as_bytes(), b"layer x"].map(sha256);
    // And one of which the manifest stays.
    let [.., kept_layer] = f.image("a", "kept");
    let lost = [manifest, config, layer, whole_digest, inner, inner_layer, kept_layer];
    for digest in &lost {
        fs::remove_file(f.blob_path("a", digest)).unwrap();
    }
    let other = f.image("b", "other");
    f.delete("b", Reference::Digest(other[0].clone()));

    for options in
        [Options { dry_run: true, ..at_once() }, at_once(), Options::default(), Options::default()]
    {
        let told = f.gc(&options);
        assert_eq!(told.left.keys().collect::<Vec<_>>(), ["a"], "{options:?}");
        for digest in &lost {
            assert!(f.pooled(digest), "{options:?}: {digest}");
            let stays = format!("pool {digest}: stays: ");
            // Otherwise one collection later.
            assert!(!options.now || told.lines.iter().any(|line| line.starts_with(&stays)));
        }
        assert!(!options.now || told.summary.spared == lost.len() as u64, "{:?}", told.lines);
        for digest in &other {
            assert_eq!(f.pooled(digest), options.dry_run, "what nobody needs goes");
        }
    }

    repair(&f);
    assert!(f.is_pulled("a", &tag("one")) && f.is_pulled("a", &tag("whole")));
    assert!(lost.iter().all(|digest| f.has("a", digest)));
    f.delete("a", tag("one"));
    assert!(f.gc(&at_once()).summary.is_whole());
}

/// Content that is not what its name says is somebody else's inode, and the pool's is the last good one.
#[test]
fn what_a_damaged_repository_has_wrongly_stays_in_the_pool() {
    let f = Fixture::new();
    let lost = f.image("a", "one");
    for digest in &lost {
        let path = f.blob_path("a", digest);
        let mut bytes = fs::read(&path).unwrap();
        bytes[0] ^= 1;
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes).unwrap();
    }
    let told = f.gc(&at_once());
    assert!(told.left["a"].contains("not have the digest"), "{:?}", told.left);
    assert!(lost.iter().all(|digest| f.pooled(digest)));

    repair(&f);
    assert!(f.is_pulled("a", &tag("one")));
}

/// So is it where index.json is gone, or cannot be read: a repair makes it anew from the journal.
#[test]
fn what_a_repository_without_index_json_lacks_stays_in_the_pool() {
    type Damage<'a> = &'a dyn Fn(&Path);
    let damage: [Damage<'_>; 2] =
        [&|index| fs::remove_file(index).unwrap(), &|index| fs::write(index, "{").unwrap()];
    for damage in damage {
        let f = Fixture::new();
        let lost = f.image("a", "one");
        // With one commit alone the journal does not prove that there was an index.json.
        f.image("a", "two");
        for digest in &lost {
            fs::remove_file(f.blob_path("a", digest)).unwrap();
        }
        damage(&f.at("a/index.json"));
        assert!(f.gc(&at_once()).left.contains_key("a"));
        assert!(lost.iter().all(|digest| f.pooled(digest)));
        repair(&f);
        for text in ["one", "two"] {
            assert!(f.is_pulled("a", &tag(text)), "{text}");
        }
    }
}

fn repair(f: &Fixture) {
    let mut check = Command::new(env!("CARGO_BIN_EXE_stillage"));
    let done = check.args(["check", "--repair"]).arg(f.temp.path()).output().unwrap();
    assert!(done.status.success(), "{done:?}");
}
