//! `upkeep::gc`: what it takes, what it leaves, and what stops it. Each rule by itself, on a real tree.

mod collection;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use stillage::oci::{Algorithm, Digest, Reference};
use stillage::upkeep::gc::{GcError, Options};

use collection::{
    DAY, Fixture, HOUR, IMAGE, INDEX, LAYER, ahead, at_once, descriptor, image, index, names,
    sha256, tag,
};

#[test]
fn what_index_json_reaches_stays() {
    let f = Fixture::new();
    let image_of_a = f.image("a", "one");
    // Two platforms, one of them named by the index alone; a layer as in BuildKit's caches.
    f.blob("a", b"{}");
    for blob in ["layer x", "layer y", "cached", "signature"] {
        f.blob("a", blob.as_bytes());
    }
    let [x, y] = ["layer x", "layer y"].map(|layer| image(b"{}", &[layer.as_bytes()], ""));
    f.push("a", Reference::Digest(sha256(x.as_bytes())), x.as_bytes());
    f.push("a", Reference::Digest(sha256(y.as_bytes())), y.as_bytes());
    let whole = index(&[(IMAGE, x.as_bytes()), (IMAGE, y.as_bytes()), (LAYER, b"cached")]);
    let whole_digest = f.push("a", tag("whole"), whole.as_bytes());
    let subject = format!(r#","subject":{}"#, descriptor(INDEX, whole.as_bytes()));
    let signature = image(b"{}", &[b"signature"], &subject);
    f.push("a", Reference::Digest(sha256(signature.as_bytes())), signature.as_bytes());
    // The child goes from index.json, and stays by its parent.
    f.delete("a", Reference::Digest(sha256(x.as_bytes())));
    let garbage = f.blob("a", b"garbage");
    let long = f.blob_as(Algorithm::Sha512, "a", b"garbage of another kind");
    let before = names(&f.at("a/blobs/sha256"));

    let told = f.gc(&at_once());
    assert_eq!(told.left, BTreeMap::new());
    let mut after = names(&f.at("a/blobs/sha256"));
    after.push(garbage.hex().to_owned());
    after.sort();
    assert_eq!(after, before);
    assert!(!f.has("a", &long));
    assert_eq!(told.summary.removed, 2);
    for reference in [tag("one"), tag("whole"), Reference::Digest(whole_digest)] {
        assert!(f.is_pulled("a", &reference), "{reference:?}");
    }
    assert!(image_of_a.iter().all(|digest| f.has("a", digest)));
    assert!(!f.pooled(&garbage) && f.pooled(&image_of_a[2]));
}

/// What has a type that nobody knows may be a manifest all the same.
#[test]
fn what_an_unknown_document_names_stays() {
    let f = Fixture::new();
    f.image("a", "one");
    let (named, other) = (f.blob("a", b"named"), f.blob("a", b"other"));
    let document = format!(r#"{{"blobs":[{{"digest":"{named}"}}]}}"#);
    let document_digest = f.blob("a", document.as_bytes());
    let entry = descriptor("application/vnd.oci.artifact.manifest.v1+json", document.as_bytes());
    // And an index of a type that nobody knows names an image, which needs its layer.
    let layer = f.blob("a", b"a layer beneath");
    f.blob("a", b"{}");
    let beneath = image(b"{}", &[b"a layer beneath"], "");
    let beneath_digest = f.blob("a", beneath.as_bytes());
    let bundle = index(&[(IMAGE, beneath.as_bytes())]);
    f.blob("a", bundle.as_bytes());
    let bundle = descriptor("application/vnd.example.bundle.index+json", bundle.as_bytes());
    let entry = format!("{entry},{bundle}");
    let json = fs::read_to_string(f.at("a/index.json")).unwrap();
    fs::write(
        f.at("a/index.json"),
        json.replace("\"manifests\":[", &format!("\"manifests\":[{entry},")),
    )
    .unwrap();
    f.gc(&at_once());
    assert!(f.has("a", &named) && f.has("a", &document_digest) && !f.has("a", &other));
    assert!(f.has("a", &beneath_digest) && f.has("a", &layer));
    fs::write(f.at("a/index.json"), json).unwrap();
}

#[test]
fn a_blob_goes_after_its_grace_and_the_pools_name_a_collection_later() {
    let f = Fixture::new();
    f.image("a", "one");
    let blob = f.blob("a", b"abandoned");
    assert_eq!(f.gc(&Options::default()).fate("a", &blob), "noted");
    assert!(f.note("a", &blob).exists());
    assert_eq!(f.gc(&ahead(DAY - HOUR)).fate("a", &blob), "waits");
    assert!(f.has("a", &blob));
    let told = f.gc(&ahead(DAY + HOUR));
    assert_eq!(told.fate("a", &blob), "goes");
    assert!(!f.has("a", &blob) && !f.note("a", &blob).exists());
}

/// A note that nobody took away says nothing of what an outsider put there since.
#[test]
fn an_outsiders_blob_under_an_old_note_has_its_own_grace() {
    let f = Fixture::new();
    f.image("a", "one");
    let [written, copied] = ["written", "copied"].map(|blob| f.blob("a", blob.as_bytes()));
    f.gc(&Options::default());
    let past = SystemTime::now() - 3 * DAY;
    let age = |path: &Path| {
        fs::File::options().write(true).open(path).unwrap().set_modified(past).unwrap();
    };
    for (digest, text) in [(&written, "written"), (&copied, "copied")] {
        age(&f.note("a", digest));
        fs::remove_file(f.blob_path("a", digest)).unwrap();
        fs::write(f.blob_path("a", digest), text).unwrap();
    }
    age(&f.blob_path("a", &copied));
    let told = f.gc(&ahead(DAY - HOUR));
    for digest in [&written, &copied] {
        assert_eq!(told.fate("a", digest), "waits");
        assert!(f.has("a", digest));
    }
    let told = f.gc(&ahead(DAY + HOUR));
    for digest in [&written, &copied] {
        assert_eq!(told.fate("a", digest), "goes");
    }
}

#[test]
fn what_can_be_undone_stays_for_the_undo_window() {
    let f = Fixture::new();
    f.image("a", "one");
    let gone = f.image("a", "gone");
    f.delete("a", Reference::Digest(gone[0].clone()));
    let no_grace = Options { grace: Duration::ZERO, ..Options::default() };
    let told = f.gc(&no_grace);
    for digest in &gone {
        assert_eq!(told.fate("a", digest), "kept", "{:?}", told.lines);
    }
    let told = f.gc(&Options { grace: Duration::ZERO, ..ahead(7 * DAY - HOUR) });
    assert_eq!(told.summary.removed, 0);
    let told = f.gc(&Options { grace: Duration::ZERO, ..ahead(7 * DAY + HOUR) });
    assert_eq!(told.summary.removed, 3);
    assert!(gone.iter().all(|digest| !f.has("a", digest)));
    assert!(f.is_pulled("a", &tag("one")));
}

/// A line in an older part of the journal, a void one and one that nobody can read count as well.
#[test]
fn every_line_of_the_journal_counts_void_or_not() {
    let f = Fixture::new();
    let old = f.image("a", "old");
    f.delete("a", Reference::Digest(old[0].clone()));
    fs::rename(f.at("a/_log.jsonl"), f.at("a/_log.3.jsonl")).unwrap();
    f.image("a", "one");
    let (void, torn) = (f.blob("a", b"void"), f.blob("a", b"torn"));
    let journal = fs::read_to_string(f.at("a/_log.jsonl")).unwrap();
    let last = journal.lines().last().unwrap();
    let stamp = &last[last.find("\"stamp\"").unwrap()..];
    let line = last.replace(stamp, "\"stamp\":\"1-00000000000000000000000000000000\"}");
    let manifest = &last[last.find("sha256:").unwrap()..][..71];
    let line = line.replace(manifest, void.as_str()).replace(IMAGE, LAYER);
    let text = format!("{journal}{line}\nnot JSON, but {torn} \n");
    fs::write(f.at("a/_log.jsonl"), text).unwrap();
    let told = f.gc(&Options { grace: Duration::ZERO, ..Options::default() });
    for digest in old.iter().chain([&void, &torn]) {
        assert_eq!(told.fate("a", digest), "kept", "{digest}: {:?}", told.lines);
    }
    fs::write(f.at("a/_log.jsonl"), journal).unwrap();
}

#[test]
fn gc_unreadable() {
    let mut f = Fixture::new();
    f.damaged = true;
    let untouched = |f: &Fixture, name: &str, why: &str| {
        let before = names(&f.at(name).join("blobs/sha256"));
        let told = f.gc(&at_once());
        assert!(told.left[name].contains(why), "{name}: {:?}", told.left);
        assert_eq!(told.left.len(), 1, "{:?}", told.left);
        assert!(!told.summary.is_whole());
        assert_eq!(names(&f.at(name).join("blobs/sha256")), before, "{name}");
        fs::remove_dir_all(f.at(name)).unwrap();
    };
    f.image("sound", "one");
    type Damage<'a> = (&'a str, &'a dyn Fn(&Fixture, &[Digest; 3]));
    let damage: [Damage<'_>; 7] = [
        ("not have the digest", &|f, [manifest, ..]| {
            let path = f.blob_path("a", manifest);
            let mut bytes = fs::read(&path).unwrap();
            bytes[0] ^= 1;
            fs::remove_file(&path).unwrap();
            fs::write(&path, bytes).unwrap();
        }),
        ("is missing, and index.json names it", &|f, [manifest, ..]| {
            fs::remove_file(f.blob_path("a", manifest)).unwrap();
        }),
        ("index.json", &|f, _| fs::write(f.at("a/index.json"), "{").unwrap()),
        ("index.json is gone", &|f, _| {
            f.image("a", "two");
            fs::remove_file(f.at("a/index.json")).unwrap();
        }),
        ("is not a regular file", &|f, _| {
            fs::remove_file(f.at("a/index.json")).unwrap();
            fs::create_dir(f.at("a/index.json")).unwrap();
        }),
        ("symbolic links", &|f, _| {
            fs::rename(f.at("a/blobs"), f.at("elsewhere")).unwrap();
            std::os::unix::fs::symlink("../elsewhere", f.at("a/blobs")).unwrap();
        }),
        // One that the journal names, and that is there.
        ("not have the digest", &|f, _| {
            let [manifest, ..] = f.image("a", "two");
            f.delete("a", Reference::Digest(manifest.clone()));
            let path = f.blob_path("a", &manifest);
            fs::remove_file(&path).unwrap();
            fs::write(&path, "{}").unwrap();
        }),
    ];
    for (n, (why, damage)) in damage.into_iter().enumerate() {
        let image = f.image("a", "one");
        f.blob("a", b"garbage");
        let other = f.blob("sound", format!("other garbage {n}").as_bytes());
        damage(&f, &image);
        if n == 6 {
            // Only within the undo window.
            let options = Options { grace: Duration::ZERO, ..Options::default() };
            assert!(f.gc(&options).left["a"].contains(why));
        } else {
            untouched(&f, "a", why);
        }
        if n < 6 {
            assert!(!f.has("sound", &other), "the other repositories go on");
        }
        let _ = fs::remove_dir_all(f.at("a"));
        let _ = fs::remove_dir_all(f.at("elsewhere"));
    }
}

#[test]
fn a_repository_that_waits_for_its_first_manifest_is_collected_too() {
    let f = Fixture::new();
    let blob = f.blob("new/one", b"abandoned");
    assert_eq!(f.gc(&Options::default()).fate("new/one", &blob), "noted");
    assert_eq!(f.gc(&ahead(DAY + HOUR)).fate("new/one", &blob), "goes");
    assert!(f.at("new/one/blobs/sha256").is_dir(), "directories are not removed");
}

#[test]
fn a_clock_that_is_behind_stops_it() {
    let f = Fixture::new();
    f.image("a", "one");
    f.gc(&ahead(HOUR));
    let behind = f.try_gc(&Options::default(), |_| {});
    assert!(matches!(behind, Err(GcError::ClockBehind { .. })));
    assert_eq!(f.gc(&ahead(HOUR)).left.len(), 0);
    fs::remove_file(f.at(".stillage/collected")).unwrap();
    let garbage = f.blob("b", b"garbage");
    let behind = Options { clock: Some(SystemTime::now() - HOUR), ..at_once() };
    let told = f.gc(&behind);
    assert!(told.left["a"].contains("the clock is behind"), "{:?}", told.left);
    assert!(!f.has("b", &garbage));
}

#[test]
fn a_line_from_the_future_is_named_with_the_command_that_takes_it_out() {
    let f = Fixture::new();
    f.image("a", "one");
    let garbage = f.blob("a", b"garbage");
    let journal = fs::read_to_string(f.at("a/_log.jsonl")).unwrap();
    let (first, rest) = journal.split_once('\n').unwrap();
    let mut line: serde_json::Value = serde_json::from_str(first).unwrap();
    line["time"] = "9998-01-02T03:04:05Z".into();
    fs::write(f.at("a/_log.jsonl"), format!("{first}\n{line}\n{rest}")).unwrap();
    let told = f.gc(&at_once());
    let why = &told.left["a"];
    assert!(why.contains(f.at("a/_log.jsonl").to_str().unwrap()), "{why}");
    assert!(why.contains("line 2") && why.contains("9998-01-02T03:04:05Z"), "{why}");
    assert!(f.has("a", &garbage));
    let (_, command) = why.rsplit_once(": ").unwrap();
    let run = std::process::Command::new("sh").args(["-c", command]).status().unwrap();
    assert!(run.success(), "{command}");
    assert_eq!(fs::read_to_string(f.at("a/_log.jsonl")).unwrap(), journal);
    assert_eq!(f.gc(&at_once()).left.len(), 0);
    assert!(!f.has("a", &garbage));
}

#[test]
fn foreign_files() {
    let f = Fixture::new();
    f.image("a", "one");
    let hex = "ab".repeat(32);
    let foreign = [
        "lost+found/x",
        ".snapshot/a/index.json",
        "a/README",
        "a/.index.json.swp",
        "a/.x.0123456789abcdef/full",
        "a/blobs/sha256/README",
        "a/blobs/sha256/.nfs0000000000000001",
        "a/blobs/sha256/ABCD",
        "a/blobs/md5/d41d8cd98f00b204e9800998ecf8427e",
        "a/blobs/index",
        "A/blobs/sha256/x",
        ".stillage/pool/notes",
        ".stillage/pool/sha256/ab/mine",
        ".stillage/trash/mine/x",
        ".stillage/unreferenced/a/README",
    ];
    for name in foreign {
        fs::create_dir_all(f.at(name).parent().unwrap()).unwrap();
        fs::write(f.at(name), "theirs").unwrap();
    }
    let planted = f.at("a/blobs/sha256").join(&hex);
    std::os::unix::fs::symlink("/etc/passwd", &planted).unwrap();
    fs::create_dir(f.at("a/blobs/sha256").join("cd".repeat(32))).unwrap();
    fs::create_dir(f.at("a/blobs/sha256").join("lost")).unwrap();
    let options = Options { upload_expiry: Some(Duration::ZERO), ..ahead(400 * DAY).at_once() };
    let told = f.gc(&options);
    assert_eq!(told.left, BTreeMap::new());
    for name in foreign {
        assert_eq!(fs::read_to_string(f.at(name)).unwrap(), "theirs", "{name}");
    }
    assert!(planted.is_symlink());
    for name in foreign.into_iter().filter(|name| name.starts_with("a/") || name.starts_with('.')) {
        fs::remove_file(f.at(name)).unwrap();
    }
    fs::remove_file(planted).unwrap();
    for left in ["cd".repeat(32), "lost".to_owned()] {
        fs::remove_dir(f.at("a/blobs/sha256").join(left)).unwrap();
    }
    for left in ["a/.x.0123456789abcdef", "a/blobs/md5", ".stillage/trash/mine"] {
        fs::remove_dir_all(f.at(left)).unwrap();
    }
}

#[test]
fn referrers_in_a_long_chain_of_subjects_end() {
    let f = Fixture::new();
    f.blob("a", b"{}");
    // Digests that refer to each other cannot be made; a manifest that is its own subject's subject by
    // a long chain, and one whose subject is not here, can.
    let mut last = "sha256:".to_owned() + &"0".repeat(64);
    for n in 0..200 {
        let subject = format!(
            r#","subject":{{"mediaType":"{IMAGE}","digest":"{last}","size":1}},"annotations":{{"n":"{n}"}}"#
        );
        let manifest = image(b"{}", &[], &subject);
        last = f
            .push("a", Reference::Digest(sha256(manifest.as_bytes())), manifest.as_bytes())
            .to_string();
    }
    let told = f.gc(&Options { untagged: Some(Duration::ZERO), ..at_once() });
    assert_eq!(told.summary.untagged, 200);
    assert_eq!(told.left, BTreeMap::new());
    assert_eq!(names(&f.at("a/blobs/sha256")).len(), 0);
}
