//! `stillage check --repair` as a command, on trees that a server wrote, and beside one.

mod layouts;

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use layouts::repo::Repo;
use layouts::room::with_room;
use layouts::{broken, disk, findings, push, valid};
use serde_json::Value;
use stillage::oci::{Algorithm, Digest, Reference, RepoName, Tag};
use stillage::registry::{Actor, Registry, Settings};
use tokio::runtime::Runtime;

fn stillage(args: &[&str], root: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stillage"));
    command.arg("check").args(args).arg(root).env_remove("STILLAGE_ROOT").output().unwrap()
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn sample(name: &str) -> tempfile::TempDir {
    broken::all().into_iter().find(|sample| sample.name == name).unwrap().place()
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[test]
fn the_exit_code_tells_what_is_left() {
    let temp = sample("layout-missing");
    let before = disk::fingerprint(temp.path());
    for args in [&["--repair", "-n"][..], &["--repair", "--dry-run", "--quick"]] {
        let output = stillage(args, temp.path());
        let said = text(&output);
        assert!(said.contains("would repair layout-missing: app/oci-layout: written\n"), "{said}");
        assert!(said.ends_with("1 error, 0 warnings; 1 to be repaired\n"), "{said}");
        assert_eq!(code(&output), Some(4), "{said}");
        assert_eq!(disk::fingerprint(temp.path()), before);
    }
    for (done, sums) in [("repaired layout-missing", "1 repaired\n"), ("", "0 repaired\n")] {
        let output = stillage(&["--repair"], temp.path());
        let said = text(&output);
        assert!(said.starts_with(done) && said.ends_with(sums), "{said}");
        assert_eq!((code(&output), output.stderr.len()), (Some(0), 0), "{said}");
    }
    let lost = sample("blob-missing");
    assert_eq!(code(&stillage(&["--repair"], lost.path())), Some(4));
    assert_eq!(code(&stillage(&["--repair"], Path::new("/nonexistent"))), Some(1));
    assert_eq!(code(&stillage(&["-n"], lost.path())), Some(2), "a dry run of nothing");
}

#[test]
fn the_document_tells_what_was_done() {
    let temp = sample("manifest-malformed");
    let output = stillage(&["--repair", "--json"], temp.path());
    assert_eq!(code(&output), Some(0), "{}", text(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["findings"], &report["dryRun"]), (&Value::Array(vec![]), &false.into()));
    let done = &report["repairs"][0];
    assert_eq!((&done["rule"], &done["repository"]), (&"manifest-malformed".into(), &"app".into()));
    assert_eq!(report["summary"]["repaired"], 1);
    // index.json as it was, and the entry by itself.
    let kept = temp.path().join(done["kept"].as_str().unwrap());
    assert!(fs::read_to_string(&kept).unwrap().contains("\"1.8\""));
    let list = kept.ancestors().nth(2).unwrap().with_extension("jsonl");
    let list = fs::read_to_string(list).unwrap();
    let first: Value = serde_json::from_str(list.lines().next().unwrap()).unwrap();
    assert_eq!(first["entry"]["annotations"]["org.opencontainers.image.ref.name"], "1.8");
    assert_eq!(first["path"], "app/index.json");
    // The journal tells it too.
    let log = fs::read_to_string(temp.path().join("app/_log.jsonl")).unwrap();
    let what = |line: &str| serde_json::from_str::<Value>(line).unwrap()["what"].clone();
    assert_eq!(log.lines().map(what).collect::<Vec<_>>(), ["untag", "delete"]);
}

#[test]
fn a_lock_that_somebody_holds_is_waited_for_and_named() {
    for (name, broken) in [(".stillage/gc.lock", "lock-open"), ("app/.lock", "journal-open")] {
        let temp = sample(broken);
        let root = temp.path();
        let held = File::open(root.join(name)).unwrap();
        held.lock_shared().unwrap();
        let before = disk::fingerprint(root);
        let output = stillage(&["--repair", "--wait", "1s"], root);
        let log = String::from_utf8(output.stderr.clone()).unwrap();
        assert_eq!(code(&output), Some(3), "{log}");
        assert!(log.contains(name) && log.contains("somebody holds the lock"), "{log}");
        assert!(log.contains(&format!("{} (", std::process::id())), "{log}");
        assert!(text(&output).ends_with("; 0 repaired; not all, for somebody held a lock\n"));
        assert_eq!(disk::fingerprint(root), before, "{name}");
        drop(held);
        assert_eq!(code(&stillage(&["--repair", "--wait", "1s"], root)), Some(0));
        assert_eq!(findings(root).0, []);
    }
}

/// Somebody holds one repository's lock: the others are not kept waiting, and it is waited for once.
#[test]
fn a_lock_that_is_waited_for_holds_nobody_else_up() {
    let wait = Duration::from_secs(3);
    let temp = sample("journal-open");
    let root = temp.path();
    fs::remove_file(root.join("app/oci-layout")).unwrap();
    for inner in ["app/blobs", "app/blobs/sha256"] {
        disk::set_mode(&root.join(inner), 0o777);
    }
    assert_eq!(findings(root).0.len(), 4);
    let held = File::open(root.join("app/.lock")).unwrap();
    held.lock().unwrap();
    let begun = Instant::now();
    let (output, had) = std::thread::scope(|scope| {
        let repair = scope.spawn(|| stillage(&["--repair", "--wait", "3s"], root));
        let gc = File::open(root.join(".stillage/gc.lock")).unwrap();
        let mut had = [0; 2];
        while !repair.is_finished() {
            // As the server does, which waits for 2 s.
            std::thread::sleep(Duration::from_millis(10));
            let got = gc.try_lock().is_ok();
            had[usize::from(got)] += 1;
            gc.unlock().unwrap();
        }
        (repair.join().unwrap(), had)
    });
    let took = begun.elapsed();
    let log = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(code(&output), Some(3), "{log}");
    // Four things are to be done there.
    assert!(took > wait && took < wait * 3, "{took:?}: {log}");
    let [waited, got] = had;
    assert!(waited > 20 && got > 2, "held {waited} times, free {got} times");
    assert_eq!(log.matches("somebody holds the lock").count(), 1, "{log}");
    drop(held);
    assert_eq!(code(&stillage(&["--repair"], root)), Some(0));
}

/// Whoever may write to the directory puts another file there while the repair waits for the lock.
#[test]
fn what_takes_the_place_of_an_open_journal_keeps_its_rights() {
    const GROUP: u32 = 4243;
    let temp = sample("journal-open");
    let root = temp.path();
    let (app, log) = (root.join("app"), root.join("app/_log.jsonl"));
    chown(&app, None, Some(GROUP)).unwrap();
    disk::set_mode(&app, 0o2775);
    disk::set_mode(&log, 0o666);
    let own = root.join("own");
    fs::write(&own, fs::read(&log).unwrap()).unwrap();
    disk::set_mode(&own, 0o600);
    let held = File::open(app.join(".lock")).unwrap();
    held.lock().unwrap();
    let output = std::thread::scope(|scope| {
        let repair = scope.spawn(|| stillage(&["--repair", "--wait", "30s"], root));
        // It has begun when it takes gc.lock, and then waits for ours.
        let gc = File::open(root.join(".stillage/gc.lock")).unwrap();
        while gc.try_lock().is_ok() {
            gc.unlock().unwrap();
            assert!(!repair.is_finished(), "it did not wait");
            std::thread::yield_now();
        }
        fs::rename(&own, &log).unwrap();
        drop(held);
        repair.join().unwrap()
    });
    let stat = fs::metadata(&log).unwrap();
    let rights = (stat.mode() & 0o7777, stat.gid());
    assert_eq!(rights, (0o600, 0), "{}", text(&output));
    // The one that is meant only loses.
    disk::set_mode(&log, 0o606);
    assert_eq!(code(&stillage(&["--repair"], root)), Some(0));
    let stat = fs::metadata(&log).unwrap();
    assert_eq!((stat.mode() & 0o7777, stat.gid()), (0o600, 0));
}

/// A journal may be made to look as large as anybody likes.
#[test]
fn a_hole_in_a_journal_is_kept_as_a_hole() {
    const LEN: u64 = 1 << 30;
    let temp = sample("journal-malformed");
    let root = temp.path();
    let log = root.join("app/_log.jsonl");
    File::options().append(true).open(&log).unwrap().set_len(LEN).unwrap();
    let output = stillage(&["--repair", "--json"], root);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let done = &report["repairs"][0];
    assert_eq!(done["rule"], "journal-malformed", "{report}");
    let kept = fs::metadata(root.join(done["kept"].as_str().unwrap())).unwrap();
    assert_eq!((kept.len(), kept.nlink()), (LEN, 1));
    assert!(kept.blocks() * 512 < 1 << 20, "{} blocks", kept.blocks());
    assert!(fs::metadata(&log).unwrap().len() < 1 << 20);
}

/// What would take long to be copied under the locks gets a second name.
#[test]
fn a_large_journal_is_kept_and_not_copied() {
    let temp = sample("journal-malformed");
    let root = temp.path();
    let log = root.join("app/_log.jsonl");
    let mut bytes = fs::read(&log).unwrap();
    bytes.resize(65 << 20, b'x');
    fs::write(&log, &bytes).unwrap();
    let before = fs::metadata(&log).unwrap();
    let output = stillage(&["--repair", "--json"], root);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let done = &report["repairs"][0];
    assert_eq!(done["rule"], "journal-malformed", "{report}");
    let kept = fs::metadata(root.join(done["kept"].as_str().unwrap())).unwrap();
    assert_eq!((kept.len(), kept.ino(), kept.nlink()), (before.len(), before.ino(), 1));
    assert_ne!(fs::metadata(&log).unwrap().ino(), before.ino());
}

/// What root made in a service account's tree, its server could not use.
#[test]
fn a_repair_by_root_is_the_owners() {
    const OWNER: u32 = 4242;
    for rooms in [true, false] {
        let mut repo = Repo::new("app");
        let image = repo.image("one");
        repo.tag(&image, "1.8")["size"] = 7.into();
        let path = format!("app/{}", Repo::path(&image));
        let mut files = if rooms { with_room(repo.finish()) } else { repo.finish() };
        files.remove("app/oci-layout").unwrap();
        files.insert(format!("{path}.txt"), b"not ours".to_vec());
        let temp = disk::place(&files);
        fs::write(temp.path().join("app/blobs/sha256").join("0".repeat(64)), "wrong").unwrap();
        for path in disk::walk(temp.path()).iter().chain([&temp.path().to_owned()]) {
            chown(path, Some(OWNER), Some(OWNER)).unwrap();
        }
        let output = stillage(&["--repair"], temp.path());
        assert_eq!(code(&output), Some(0), "{}{:?}", text(&output), output.stderr);
        let said = text(&output);
        assert!(said.contains("manifest-size-mismatch") && said.contains("3 repaired"), "{said}");
        for path in disk::walk(temp.path()) {
            assert_eq!(path.symlink_metadata().unwrap().uid(), OWNER, "{}", path.display());
        }
        assert!(temp.path().join(".stillage/quarantine").is_dir());
    }
}

/// Pushes, moved and deleted tags, a deleted manifest.
fn history(root: &Path) {
    let registry = Registry::open(root, Settings::default()).unwrap();
    let repo = RepoName::parse("team/app").unwrap();
    runtime().block_on(async {
        for round in 0..12 {
            let tag = format!("t{}", round % 5);
            let seed = format!("image {}", round % 8);
            push::image(&registry, &repo, &seed, &[&tag, "latest", "old"]).await;
        }
        let actor = Actor::default();
        for reference in [
            Reference::Tag(Tag::parse("old").unwrap()),
            Reference::Digest(push::image(&registry, &repo, "image 3", &["gone"]).await.0),
        ] {
            registry.delete_manifest(&repo, &reference, &actor).await.unwrap();
        }
        push::image(&registry, &repo, "image 3", &["t3"]).await;
    });
}

#[test]
fn index_json_is_written_again_to_the_byte_as_the_journal_tells_it() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path();
    history(root);
    let index = root.join("team/app/index.json");
    let log = root.join("team/app/_log.jsonl");
    let (truth, journal) = (fs::read(&index).unwrap(), fs::read_to_string(&log).unwrap());
    // Two parts of the journal, and what a crash may leave at its end.
    let cut = journal.match_indices('\n').nth(9).unwrap().0 + 1;
    fs::write(root.join("team/app/_log.1.jsonl"), &journal[..cut]).unwrap();
    fs::write(&log, format!("{}{{\"time\":\"20", &journal[cut..])).unwrap();
    let half = truth[..truth.len() / 2].to_vec();
    for damaged in [None, Some(half), Some(Vec::new()), Some(b"[]".to_vec())] {
        match &damaged {
            None => fs::remove_file(&index).unwrap(),
            Some(bytes) => disk::write(root, "team/app/index.json", bytes),
        }
        let output = stillage(&["--repair"], root);
        let said = text(&output);
        assert_eq!(code(&output), Some(0), "{said}");
        assert!(said.contains("written to the byte as the journal tells it"), "{said}");
        assert!(fs::read(&index).unwrap() == truth, "{said}");
        if let Some(bytes) = damaged {
            let kept = said.split(['(', ')']).nth(1).unwrap();
            assert_eq!(fs::read(root.join(kept)).unwrap(), bytes);
        }
    }
    // Where another tool wrote in between, or the beginning is lost, nothing is made up.
    fs::remove_file(root.join("team/app/_log.1.jsonl")).unwrap();
    disk::write(root, "team/app/index.json", b"[]");
    assert_eq!(code(&stillage(&["--repair"], root)), Some(4));
    assert_eq!(fs::read(&index).unwrap(), b"[]");
}

/// A server pushes while one repository after the other is damaged and repaired, and the pool is
/// taken away.
#[test]
fn a_repair_beside_pushes_harms_none() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path();
    let registry = Registry::open(root, Settings::default()).unwrap();
    let runtime = runtime();
    let busy = RepoName::parse("busy").unwrap();
    let (still, moved) = (RepoName::parse("still").unwrap(), RepoName::parse("moved").unwrap());
    let layer = Digest::of(Algorithm::Sha256, b"layer of still\n");
    for repo in [&still, &moved] {
        runtime.block_on(push::image(&registry, repo, "still", &["1"]));
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..60 {
                let seed = format!("round {}", round % 20);
                let tag = format!("t{}", round % 7);
                runtime.block_on(push::image(&registry, &busy, &seed, &[&tag]));
                runtime.block_on(push::image(&registry, &still, &seed, &[&tag]));
            }
            done.store(true, Ordering::Relaxed);
        });
        for round in 0.. {
            let path = root.join("still/blobs/sha256").join(layer.hex());
            fs::remove_file(&path).unwrap();
            match round % 3 {
                0 => fs::write(&path, b"layer of stilt\n").unwrap(),
                1 => drop(fs::remove_dir_all(root.join(".stillage/pool/sha256"))),
                _ => {}
            }
            let output = stillage(&["--repair"], root);
            assert_eq!(code(&output), Some(0), "{}", text(&output));
            assert_eq!(fs::read(&path).unwrap(), b"layer of still\n", "{}", text(&output));
            if done.load(Ordering::Relaxed) && round > 2 {
                break;
            }
        }
    });
    assert_eq!(findings(root).0, []);
    let tags = fs::read_to_string(root.join("busy/index.json")).unwrap();
    assert_eq!(tags.matches("image.ref.name").count(), 7);
}

#[test]
fn a_quick_check_reads_no_content_and_sees_all_else() {
    let temp = disk::place(&valid::written());
    let output = stillage(&["--quick", "--json"], temp.path());
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["summary"]["bytes_hashed"], 0);
    for sample in broken::all() {
        let temp = sample.place();
        let output = stillage(&["--quick", "--json"], temp.path());
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let rules = report["findings"].as_array().unwrap().iter().map(|found| &found["rule"]);
        let needs_content = ["blob-digest-mismatch", "pool-digest-mismatch"];
        let expected = if needs_content.contains(&sample.name) { "" } else { sample.name };
        let all = rules.clone().all(|rule| rule == expected);
        let found = rules.count() > 0;
        assert!(all && found != expected.is_empty(), "{}: {report}", sample.name);
    }
}
