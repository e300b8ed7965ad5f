//! Collection: what it takes beside blobs of repositories.

use std::fs;
use std::time::Duration;

use stillage::layout::{Account, path};
use stillage::oci::{Algorithm, Digest, Reference};
use stillage::upkeep::gc::{Event, Options};

use super::{ACTOR, DAY, Fixture, HOUR, IMAGE, ahead, at_once, descriptor, image, names, repo};

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
