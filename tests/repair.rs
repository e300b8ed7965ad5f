//! `stillage check --repair`: every broken tree as far as it can be put right, nothing of content
//! lost, and a second repair with nothing to do.

mod layouts;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use layouts::repo::Repo;
use layouts::room::with_room;
use layouts::{Files, broken, disk, findings, fixtures, valid};
use rustix::fs::{Mode, OFlags};
use stillage::layout::RealDisk;
use stillage::oci::{Algorithm, Digest};
use stillage::upkeep::check::{Mended, Options, Repairs, Rule, Summary, Told, repair};

/// What a repair leaves of the samples in `fixtures/broken/` and their like. What is not named here
/// is repaired without rest.
const LEFT: &[(&str, &[&str])] = &[
    // Nothing else has the content.
    ("wrong-file-type", &["blob-missing"]),
    ("blob-digest-mismatch", &["blob-missing"]),
    ("blob-missing", &["blob-missing"]),
    ("manifest-missing", &["manifest-missing"]),
    // The journal has another tool's index.json, or there is none.
    ("index-malformed", &["index-malformed"]),
    ("index-missing", &["journal-stamp-unknown"]),
    // The line that could not be read was the one that has the stamp.
    ("journal-malformed", &["journal-stamp-unknown"]),
    // Another version is named.
    ("layout-malformed", &["layout-malformed"]),
    ("version-unknown", &["version-unknown"]),
    // What stands in a manifest stays.
    ("descriptor-data-mismatch", &["descriptor-data-mismatch"]),
    ("blob-size-mismatch", &["blob-size-mismatch"]),
    // Somebody's own.
    ("directory-symlinked", &["directory-symlinked"]),
    ("name-unreachable", &["name-unreachable"]),
    ("entry-not-a-manifest", &["entry-not-a-manifest"]),
    ("tag-malformed", &["tag-malformed"]),
    ("manifest-oversized", &["manifest-oversized"]),
    ("blob-name-malformed", &["blob-name-malformed"]),
    ("algorithm-unknown", &["algorithm-unknown"]),
    ("file-closed", &["file-closed"]),
    ("file-linked", &["file-linked"]),
    ("journal-stamp-unknown", &["journal-stamp-unknown"]),
    ("journal-stamp-older", &["journal-stamp-older"]),
];

struct Outcome {
    left: BTreeSet<&'static str>,
    mended: Vec<Mended>,
    summary: Summary,
}

fn run(root: &Path, dry_run: bool) -> Outcome {
    let wait = Duration::from_secs(5);
    let repairs = Repairs { dry_run, wait, disk: Arc::new(RealDisk) };
    let (mut left, mut mended) = (BTreeSet::new(), Vec::new());
    let summary = repair(root, Options::default(), repairs, &mut |told| match told {
        Told::Found(finding) => drop(left.insert(finding.rule.id())),
        Told::Mended(one) => mended.push(one),
    });
    Outcome { left, mended, summary: summary.unwrap() }
}

fn rules(root: &Path) -> BTreeSet<&'static str> {
    findings(root).0.iter().map(|finding| finding.rule.id()).collect()
}

/// The digests of all files that hold content, wherever they lie.
fn contents(root: &Path) -> BTreeSet<Digest> {
    let files = disk::walk(root).into_iter().filter(|path| {
        let text = path.to_str().unwrap();
        let content = text.contains("/blobs/") || text.contains("/pool/");
        content && path.symlink_metadata().unwrap().is_file()
    });
    files.map(|path| Digest::of(Algorithm::Sha256, &fs::read(path).unwrap())).collect()
}

/// Repairs, and asserts what holds of every repair. Gives what is left, and what was done.
fn assert_repairs(root: &Path, name: &str) -> Outcome {
    let (before, content) = (disk::fingerprint(root), contents(root));
    let dry = run(root, true);
    assert_eq!(disk::fingerprint(root), before, "{name}: a dry run changed something");
    let done = run(root, false);
    assert_eq!(dry.mended.is_empty(), done.mended.is_empty(), "{name}: {:?}", dry.mended);
    assert!(dry.summary.pooled_again <= done.summary.pooled_again, "{name}");
    let lost: Vec<_> = content.difference(&contents(root)).cloned().collect();
    assert_eq!(lost, [], "{name}: content was lost: {:?}", done.mended);
    for mended in &done.mended {
        if let Some(kept) = &mended.kept {
            assert!(root.join(kept).symlink_metadata().is_ok(), "{name}: {mended:?}");
        }
    }
    assert_eq!(rules(root), done.left, "{name}: what was reported is what is left");
    let after = disk::fingerprint(root);
    let again = run(root, false);
    assert_eq!(again.mended, [], "{name}: a second repair");
    assert_eq!((again.left, again.summary.pooled_again), (done.left.clone(), 0), "{name}");
    assert_eq!(disk::fingerprint(root), after, "{name}: a second repair changed something");
    done
}

#[test]
fn every_rule_is_repaired_as_far_as_it_can_be() {
    let left: BTreeMap<&str, &[&str]> = LEFT.iter().copied().collect();
    for sample in broken::all() {
        let temp = sample.place();
        let done = assert_repairs(temp.path(), sample.name);
        let expected = left.get(sample.name).copied().unwrap_or_default();
        let expected: BTreeSet<&str> = expected.iter().copied().collect();
        assert_eq!(done.left, expected, "{}: {:?}", sample.name, done.mended);
        let untouched = expected == BTreeSet::from([sample.name]);
        assert_eq!(done.mended.is_empty(), untouched, "{}: {:?}", sample.name, done.mended);
    }
    let names: BTreeSet<&str> = broken::all().iter().map(|sample| sample.name).collect();
    assert!(left.keys().all(|name| names.contains(name)));
}

#[test]
fn of_a_sound_tree_not_a_byte_a_mode_or_a_time_changes() {
    // A crash may leave a blob that the pool lacks: that is made good.
    let samples = valid::all().into_iter().filter(|(sample, ..)| sample.name != "after-a-crash");
    let made = samples.map(|(sample, ..)| sample.place());
    let foreign = ["skopeo", "skopeo-index", "umoci"]
        .map(|name| disk::place(&disk::read(&fixtures().join("valid").join(name))));
    for temp in made.chain(foreign) {
        let before = disk::fingerprint(temp.path());
        let done = run(temp.path(), false);
        assert_eq!((done.left, done.mended), (BTreeSet::new(), Vec::new()));
        assert_eq!(done.summary.pooled_again, 0);
        assert_eq!(disk::fingerprint(temp.path()), before);
    }
    let (crashed, ..) = valid::all().into_iter().find(|(s, ..)| s.name == "after-a-crash").unwrap();
    assert!(assert_repairs(crashed.place().path(), "after-a-crash").summary.pooled_again > 0);
}

/// Two repositories with the same image; both know their blobs, and the pool has them.
fn pair() -> tempfile::TempDir {
    let mut files = Files::new();
    for name in ["team/one", "team/two"] {
        let mut repo = Repo::new(name);
        let image = repo.image("one");
        repo.tag(&image, "1.8");
        files.extend(repo.finish());
    }
    disk::place(&with_room(files))
}

fn layer() -> Digest {
    Digest::of(Algorithm::Sha256, b"layer of one\n")
}

fn blob(root: &Path, repo: &str) -> PathBuf {
    root.join(repo).join("blobs/sha256").join(layer().hex())
}

/// Writes other bytes under a blob's name, in an inode of its own.
fn damage(path: &Path) {
    fs::remove_file(path).unwrap();
    fs::write(path, b"layer of two\n").unwrap();
    disk::set_mode(path, 0o444);
}

fn deeds(done: &Outcome) -> Vec<(Rule, &str)> {
    done.mended.iter().map(|mended| (mended.rule, mended.deed.as_str())).collect()
}

#[test]
fn what_is_missing_or_damaged_comes_from_the_pool() {
    let temp = pair();
    let root = temp.path();
    fs::remove_file(blob(root, "team/one")).unwrap();
    damage(&blob(root, "team/two"));
    let done = assert_repairs(root, "pool");
    let expected = [
        (Rule::BlobMissing, "linked from the pool"),
        (Rule::BlobDigestMismatch, "moved to quarantine; linked from the pool"),
    ];
    assert_eq!(deeds(&done), expected);
    assert_eq!(done.left, BTreeSet::new());
    let ino = |path: &Path| fs::metadata(path).unwrap().ino();
    assert_eq!(ino(&blob(root, "team/one")), ino(&blob(root, "team/two")));
    let kept = done.mended[1].kept.as_ref().unwrap();
    assert!(kept.ends_with(&format!("Z/team/two/blobs/sha256/{}", layer().hex())), "{kept}");
    assert_eq!(fs::read(root.join(kept)).unwrap(), b"layer of two\n");
}

#[test]
fn without_a_pool_it_comes_from_another_repository_or_the_trash() {
    for elsewhere in ["team/two", ".stillage/trash/20261126T13/team/two"] {
        let temp = pair();
        let root = temp.path();
        fs::remove_dir_all(root.join(".stillage/pool")).unwrap();
        fs::remove_file(blob(root, "team/one")).unwrap();
        if elsewhere != "team/two" {
            fs::create_dir_all(root.join(elsewhere).parent().unwrap()).unwrap();
            fs::rename(root.join("team/two"), root.join(elsewhere)).unwrap();
        }
        let done = assert_repairs(root, elsewhere);
        let deed = format!("linked from {elsewhere}");
        assert_eq!(deeds(&done), [(Rule::BlobMissing, deed.as_str())]);
        assert_eq!(done.left, BTreeSet::new());
        let ino = |path: &Path| fs::metadata(path).unwrap().ino();
        assert_eq!(ino(&blob(root, "team/one")), ino(&blob(root, elsewhere)));
        // What lies in the trash is not a repository's: only the tree's own blobs are pooled.
        assert!(done.summary.pooled_again >= 3, "{:?}", done.summary);
    }
}

/// A file that only its owner may read is copied for nobody, and a sound one of somebody else's is
/// copied, not linked.
#[test]
fn somebody_elses_file_is_copied_if_everybody_may_read_it() {
    let owner = Some(4242);
    for (mode, found) in [(0o400, false), (0o644, true)] {
        let temp = pair();
        let root = temp.path();
        fs::remove_dir_all(root.join(".stillage/pool")).unwrap();
        fs::remove_file(blob(root, "team/one")).unwrap();
        let other = blob(root, "team/two");
        disk::set_mode(&other, mode);
        chown(&other, owner, owner).unwrap();
        let done = assert_repairs(root, "foreign");
        assert_eq!(blob(root, "team/one").exists(), found, "{:?}", done.mended);
        if found {
            let meta = fs::metadata(blob(root, "team/one")).unwrap();
            assert_eq!((meta.uid(), meta.mode() & 0o777), (0, 0o444));
            assert_eq!(fs::metadata(&other).unwrap().nlink(), 1);
        }
    }
}

/// Whoever may write to a directory can name any digest there. That gets him no content which the
/// server did not give to that repository.
#[test]
fn a_planted_reference_gets_nothing() {
    let temp = pair();
    let root = temp.path();
    let mut repo = Repo::new("mine/planted");
    let image = repo.image("one");
    repo.tag(&image, "1.8");
    repo.drop_file(&format!("blobs/sha256/{}", layer().hex()));
    for (name, bytes) in repo.finish() {
        disk::write(root, &name, &bytes);
    }
    disk::set_mode(&root.join("mine/planted"), 0o775);
    let done = assert_repairs(root, "planted");
    assert_eq!(done.left, BTreeSet::from(["blob-missing"]));
    assert!(!blob(root, "mine/planted").exists());
    // The server gave it that blob before.
    let hex = layer().hex().to_owned();
    let hints = root.join(".stillage/holders/sha256").join(&hex[..3]);
    let text = fs::read_to_string(&hints).unwrap() + &format!("{hex} 13 mine/planted\n");
    fs::write(&hints, text).unwrap();
    assert_eq!(assert_repairs(root, "given").left, BTreeSet::new());
    assert!(blob(root, "mine/planted").exists());
}

/// The hint is about the name, and who may write the directory above gave that to another.
#[test]
fn a_repository_in_the_place_of_another_does_not_get_its_content() {
    const ALICE: u32 = 4711;
    for (mode, sticky) in [(0o2775, "no"), (0o1777, "sticky")] {
        let temp = pair();
        let root = temp.path();
        let (team, secret) = (root.join("team"), root.join("team/one"));
        fs::rename(&secret, root.join("team/old")).unwrap();
        disk::set_mode(&root.join("team/old"), 0o700);
        fs::create_dir(&secret).unwrap();
        for name in ["index.json", "oci-layout"] {
            fs::copy(root.join("team/old").join(name), secret.join(name)).unwrap();
        }
        for path in disk::walk(&secret).iter().chain([&secret]) {
            chown(path, Some(ALICE), Some(ALICE)).unwrap();
        }
        disk::set_mode(&team, mode);
        let done = run(root, false);
        let got = |path: &PathBuf| path.is_file() && path.starts_with(secret.join("blobs"));
        assert!(!disk::walk(&secret).iter().any(got), "{sticky}: {:?}", done.mended);
    }
}

#[test]
fn a_pool_that_was_deleted_is_made_again() {
    let temp = pair();
    let root = temp.path();
    let pool = root.join(".stillage/pool");
    let count = disk::walk(&pool).into_iter().filter(|path| path.is_file()).count();
    fs::remove_dir_all(&pool).unwrap();
    let done = assert_repairs(root, "no pool");
    assert_eq!((done.mended.len(), done.summary.pooled_again), (0, count as u64));
    for path in disk::walk(&pool).into_iter().filter(|path| path.is_file()) {
        assert_eq!(fs::metadata(&path).unwrap().nlink(), 3, "{}", path.display());
    }
}

#[test]
fn the_inode_that_all_share_is_replaced_everywhere() {
    let temp = pair();
    let root = temp.path();
    let path = blob(root, "team/one");
    disk::set_mode(&path, 0o644);
    fs::write(&path, b"layer of two\n").unwrap();
    disk::set_mode(&path, 0o444);
    let copy = root.join("zz/copy/blobs/sha256");
    fs::create_dir_all(&copy).unwrap();
    fs::write(copy.join(layer().hex()), b"layer of one\n").unwrap();
    disk::set_mode(&copy.join(layer().hex()), 0o444);
    let done = assert_repairs(root, "shared");
    assert_eq!(done.left, BTreeSet::new(), "{:?}", done.mended);
    let expected = [
        (Rule::PoolDigestMismatch, "moved to quarantine"),
        (Rule::BlobDigestMismatch, "moved to quarantine; linked from zz/copy"),
        (Rule::BlobDigestMismatch, "moved to quarantine; linked from the pool"),
    ];
    assert_eq!(deeds(&done), expected);
}

#[test]
fn what_stands_in_the_way_of_the_room_goes_to_quarantine() {
    for name in ["gc.lock", "pool", "uploads", "holders", "unreferenced"] {
        let temp = pair();
        let root = temp.path();
        let path = root.join(".stillage").join(name);
        let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
        symlink("/etc", &path).unwrap();
        let done = assert_repairs(root, name);
        assert_eq!(deeds(&done), [(Rule::WrongFileType, "moved to quarantine")], "{name}");
        assert_eq!(done.left, BTreeSet::new(), "{name}");
        let kept = root.join(done.mended[0].kept.as_ref().unwrap());
        assert_eq!(fs::read_link(kept).unwrap(), Path::new("/etc"));
    }
}

/// Anybody who may make a directory may make such: what is missing elsewhere is settled all the same.
#[test]
fn what_lies_too_deep_and_a_socket_keep_no_repair_from_its_end() {
    let sample = broken::all().into_iter().find(|sample| sample.name == "blob-missing").unwrap();
    let temp = sample.place();
    let missing = findings(temp.path()).0.remove(0).path;
    let blob = missing.strip_prefix("app").unwrap();
    for dir in ["evil", "Evil"] {
        let socket = temp.path().join(dir).join(blob);
        fs::create_dir_all(socket.parent().unwrap()).unwrap();
        // Its own path would be too long for a socket's.
        let bound = temp.path().join("s");
        drop(std::os::unix::net::UnixListener::bind(&bound).unwrap());
        fs::rename(bound, socket).unwrap();
    }
    let mut deep = rustix::fs::open(temp.path().join("evil"), OFlags::PATH, Mode::empty()).unwrap();
    for _ in 0..3000 {
        rustix::fs::mkdirat(&deep, "d", Mode::RWXU).unwrap();
        deep = rustix::fs::openat(&deep, "d", OFlags::PATH, Mode::empty()).unwrap();
    }
    let done = run(temp.path(), false);
    assert!(!done.summary.failed, "{:?} {:?}", done.left, done.mended);
    assert!(done.left.contains("blob-missing"), "{:?}", done.left);
    // What the library's removal of a directory cannot.
    assert!(
        Command::new("rm").arg("-rf").arg(temp.path().join("evil")).status().unwrap().success()
    );
}
