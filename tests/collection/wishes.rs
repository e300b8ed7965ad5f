//! Collection: what may be asked of it: to take more, at once, or nothing yet.

use std::fs;
use std::path::{Path, PathBuf};

use stillage::layout::Account;
use stillage::oci::{Digest, Reference};
use stillage::upkeep::gc::{GcError, Options};

use super::{
    ACTOR, DAY, Fixture, HOUR, IMAGE, Told, ahead, at_once, descriptor, image, index, repo, sha256,
    tag,
};

#[test]
fn at_once_one_repository_gives_back_what_it_has() {
    let f = Fixture::new();
    let gone = f.image("a", "gone");
    let nested = f.blob("a/b", b"nested");
    let other = f.blob("c", b"other");
    let trashed = f.blob("a", b"trashed");
    for (name, digest) in [("a", &trashed), ("a/b", &nested), ("c", &other)] {
        f.runtime.block_on(f.registry.delete_blob(&repo(name), digest, &ACTOR)).unwrap();
    }
    let untouched = f.blob("c", b"abandoned");
    f.image("a", "one");
    f.delete("a", Reference::Digest(gone[0].clone()));
    let told = f.gc(&Options { only: Some(repo("a")), ..at_once() });
    assert_eq!(told.summary.removed, 3, "{:?}", told.lines);
    assert!(gone.iter().chain([&trashed]).all(|digest| !f.has("a", digest) && !f.pooled(digest)));
    assert!(f.has("c", &untouched) && f.pooled(&other) && f.pooled(&nested));
    assert!(!f.at(".stillage/collected").exists(), "that was not all of the tree");
    let absent = Options { only: Some(repo("nowhere")), ..at_once() };
    assert!(matches!(f.try_gc(&absent, |_| {}), Err(GcError::NoRepository(_))));
}

#[test]
fn at_once_says_what_can_be_undone_no_more_and_who_else_has_the_content() {
    let f = Fixture::new();
    let secret = f.image("a", "secret");
    for name in ["b", "c"] {
        let from = stillage::registry::MountFrom::Repo(repo("a"), Account::default());
        let name = repo(name);
        let mount = f.registry.mount(&name, &secret[2], from, &ACTOR);
        assert!(f.runtime.block_on(mount).unwrap());
    }
    fs::remove_dir_all(f.at("c")).unwrap();
    f.image("a", "one");
    f.delete("a", Reference::Digest(secret[0].clone()));
    let told = f.gc(&Options { only: Some(repo("a")), ..at_once() });
    let line = |digest: &Digest| {
        let line = told.lines.iter().find(|line| line.contains(digest.as_str()));
        line.cloned().unwrap_or_default()
    };
    assert!(line(&secret[0]).contains("cannot be undone any more"), "{}", line(&secret[0]));
    assert!(line(&secret[2]).contains("2 other names, among them in b"), "{}", line(&secret[2]));
    assert!(!line(&secret[1]).contains("among them"), "{}", line(&secret[1]));
}

#[test]
fn a_dry_run_changes_nothing_and_says_what_the_run_then_does() {
    let f = Fixture::new();
    let one = f.image("a", "one");
    let two = f.image("a", "two");
    f.blob("a", b"old garbage");
    f.gc(&Options::default());
    f.blob("a", b"new garbage");
    let shared = f.blob("b", b"shared garbage");
    let from = stillage::registry::MountFrom::Repo(repo("b"), Account::default());
    assert!(f.runtime.block_on(f.registry.mount(&repo("c"), &shared, from, &ACTOR)).unwrap());
    let deleted = f.blob("b", b"deleted");
    f.runtime.block_on(f.registry.delete_blob(&repo("b"), &deleted, &ACTOR)).unwrap();
    f.delete("a", tag("one"));
    f.delete("a", Reference::Digest(two[0].clone()));
    f.image("a", "three");
    fs::write(f.at("a/.index.json.0123456789abcdef"), "half").unwrap();
    let runs = [
        Options { untagged: Some(DAY), ..ahead(DAY + HOUR) },
        Options { untagged: Some(DAY), ..ahead(DAY + 2 * HOUR) },
        ahead(DAY + 3 * HOUR).at_once(),
    ];
    for options in runs {
        // The pool goes by the file system's clock.
        fs::remove_file(f.at(".stillage/collected")).unwrap();
        let before = stillage_tree(f.temp.path());
        let dry = f.gc(&Options { dry_run: true, ..options.clone() });
        assert_eq!(stillage_tree(f.temp.path()), before);
        let run = f.gc(&options);
        assert_eq!(dry.summary, run.summary);
        let said = |told: &Told| {
            let lines = told.lines.iter().map(|line| line.replace("would go", "gone"));
            let lines = lines.map(|line| line.replace("would remove", "removed"));
            // The journal's lines of this run are written a moment later, and not by its clock.
            let time = |word: &&str| !(word.starts_with("20") && word.contains('T'));
            lines
                .map(|line| line.split(' ').filter(time).collect::<Vec<_>>().join(" "))
                .collect::<Vec<_>>()
        };
        let (mut dry, mut run) = (said(&dry), said(&run));
        dry.sort();
        run.sort();
        assert_eq!(dry, run);
    }
    assert!(!f.has("a", &one[0]) && !f.pooled(&deleted) && !f.pooled(&shared));
}

/// Every name beneath a directory, with its content and inode.
fn stillage_tree(root: &Path) -> Vec<(PathBuf, u64, Vec<u8>)> {
    use std::os::unix::fs::MetadataExt;
    let mut found = Vec::new();
    let mut todo = vec![root.to_path_buf()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            let content = if meta.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
            if meta.is_dir() {
                todo.push(path.clone());
            }
            found.push((path, meta.ino(), content));
        }
    }
    found.sort();
    found
}

#[test]
fn manifests_that_lost_their_tag_long_ago_go_and_can_be_brought_back() {
    let f = Fixture::new();
    let name = "a";
    let moved = f.image(name, "moved");
    f.blob(name, b"other");
    let config = b"{\"of\":\"moved\"}";
    f.push(name, tag("moved"), image(config, &[b"other"], "").as_bytes());
    let plain = |text: &str| image(config, &[], &format!(r#","annotations":{{"of":"{text}"}}"#));
    let by_digest = |text: &str| {
        let bytes = plain(text);
        f.push(name, Reference::Digest(sha256(bytes.as_bytes())), bytes.as_bytes())
    };
    let (never, child) = (by_digest("never tagged"), by_digest("child"));
    f.push(name, tag("index"), index(&[(IMAGE, plain("child").as_bytes())]).as_bytes());
    let signed = f.push(name, tag("signed"), plain("signed").as_bytes());
    let subject = |of: &str| format!(r#","subject":{}"#, descriptor(IMAGE, of.as_bytes()));
    let signature = image(config, &[], &subject(&plain("signed")));
    let signature_digest = sha256(signature.as_bytes());
    f.push(name, Reference::Digest(signature_digest.clone()), signature.as_bytes());
    let countersignature = image(config, &[], &subject(&signature));
    let countersigned = sha256(countersignature.as_bytes());
    f.push(name, Reference::Digest(countersigned.clone()), countersignature.as_bytes());
    let orphan = image(config, &[], &subject(&plain("never tagged")));
    let orphan_digest = sha256(orphan.as_bytes());
    f.push(name, Reference::Digest(orphan_digest.clone()), orphan.as_bytes());
    // An outsider takes a tag away: nobody knows when.
    let outside = f.push(name, tag("outside"), plain("outside").as_bytes());
    let json = fs::read_to_string(f.at("a/index.json")).unwrap();
    let annotation = r#"{"org.opencontainers.image.ref.name":"outside"}"#;
    assert!(json.contains(annotation));
    fs::write(f.at("a/index.json"), json.replace(annotation, "{}")).unwrap();

    let untagged = |time| Options { untagged: Some(30 * DAY), ..ahead(time) };
    assert_eq!(f.gc(&untagged(30 * DAY - HOUR)).summary.untagged, 0);
    let journal = fs::read_to_string(f.at("a/_log.jsonl")).unwrap();
    let told = f.gc(&untagged(30 * DAY + HOUR));
    assert_eq!(told.summary.untagged, 3, "{:?}", told.lines);
    let lines = fs::read_to_string(f.at("a/_log.jsonl")).unwrap();
    let new: Vec<&str> = lines[journal.len()..].lines().collect();
    assert_eq!(new.len(), 3, "one commit: {new:?}");
    for (line, digest) in new.iter().zip({
        let mut gone = [&moved[0], &never, &orphan_digest];
        gone.sort();
        gone
    }) {
        assert!(line.contains(r#""who":null"#) && line.contains(r#""what":"delete""#), "{line}");
        assert!(line.contains(digest.as_str()), "{line}");
        assert!(!f.is_pulled(name, &Reference::Digest(digest.clone())));
        assert!(f.has(name, digest), "it can be brought back");
    }
    for digest in [&child, &signed, &signature_digest, &countersigned, &outside] {
        assert!(f.is_pulled(name, &Reference::Digest(digest.clone())), "{digest}");
    }
    let said = |digest: &Digest| {
        told.lines.iter().find(|line| line.contains(digest.as_str())).cloned().unwrap_or_default()
    };
    assert!(said(&outside).contains("the journal does not tell"), "{}", said(&outside));
}
