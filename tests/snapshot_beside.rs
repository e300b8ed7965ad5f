//! `stillage snapshot` beside others: what is left when it is killed, whom it waits for, and who waits for
//! it.

mod layouts;
mod snapshots;
mod support;

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use layouts::findings;
use rustix::fs::Mode;
use snapshots::{Beside, picture, sh};
use stillage::layout::{Dir, Disk, RealDisk, Result, Stamp};
use stillage::upkeep::snapshot::{Options, snapshot};
use support::STILLAGE;
use support::command::run;
use support::random::Random;

/// The calls by which a snapshot changes something.
const CHANGES: [&str; 11] = [
    "mkdirat",
    "linkat",
    "openat2",
    "pwrite64",
    "fchmod",
    "fchown",
    "utimensat",
    "symlinkat",
    "syncfs",
    "renameat2",
    "fsync",
];

/// Killed at its system calls that change something, a snapshot is not there, or whole.
#[test]
fn a_killed_snapshot_is_none_and_the_next_run_removes_what_it_left() {
    let beside = Beside::new();
    let mut kills = 0;
    let mut random = Random::from_env("STILLAGE_SNAPSHOT_SEED");
    for call in CHANGES {
        // In the short form every third, others each time; opens are many, and most of them read.
        let step = match call {
            _ if support::long() => 1,
            "openat2" => 13,
            _ => 3,
        };
        for when in (1 + random.below(step)..).step_by(step) {
            let inject = format!("inject={call}:signal=KILL:when={when}");
            let killed = run(Command::new("strace")
                .current_dir(beside.room.path())
                .args(["-f", "-qq", "-o", "/dev/null", "-e", &inject])
                .args([STILLAGE, "snapshot", "registry", "copy"]));
            if beside.at("copy").exists() {
                assert_eq!(findings(&beside.at("copy")).0, [], "{call} {when}");
                fs::remove_dir_all(beside.at("copy")).unwrap();
                if killed.code == Some(0) {
                    break;
                }
            }
            // strace ends by the signal that its child ended by.
            assert_eq!(killed.code, None, "{killed}");
            kills += 1;
            let left = [".copy.stillage-snapshot", "registry"];
            let nothing = ["registry"];
            let names = beside.names();
            assert!(names == left || names == nothing, "{call} {when}: {names:?}");
        }
    }
    assert!(kills > 20, "{kills} kills");
    beside.snapshot("copy", &[]).ok();
    assert_eq!(beside.names(), ["copy", "registry"]);
    assert_eq!(findings(&beside.at("copy")).0, []);
    assert_eq!(findings(&beside.at("registry")).0, []);
}

/// What was said to be done survives a power cut: everything is on the disk before the name is, and the
/// name before the word. (The crash-state model replays it; here the order is seen on the real thing.)
#[test]
fn the_name_comes_when_all_is_on_the_disk() {
    let beside = Beside::new();
    let trace = beside.at("trace");
    run(Command::new("strace")
        .current_dir(beside.room.path())
        .args(["-f", "-qq", "-o"])
        .arg(&trace)
        .args(["-e", "trace=linkat,mkdirat,pwrite64,syncfs,renameat2,fsync,utimensat"])
        .args([STILLAGE, "snapshot", "registry", "copy"]))
    .ok();
    let calls = fs::read_to_string(&trace).unwrap();
    let calls: Vec<&str> = calls.lines().map(|line| line.split_once(' ').unwrap().1).collect();
    let [.., sync, rename, last] = calls[..] else { panic!("{calls:?}") };
    assert!(sync.contains("syncfs(") && sync.ends_with("= 0"), "{calls:#?}");
    assert!(rename.contains("renameat2(") && rename.contains("\"copy\""), "{calls:#?}");
    assert!(last.contains("fsync(") && last.ends_with("= 0"), "{calls:#?}");
    fs::remove_dir_all(beside.at("copy")).unwrap();
    fs::remove_file(trace).unwrap();

    // A disk that fails: no snapshot, and nothing left.
    for call in ["syncfs", "renameat2", "pwrite64", "linkat", "mkdirat"] {
        let refused = run(Command::new("strace")
            .current_dir(beside.room.path())
            .args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("inject={call}:error=EIO")])
            .args([STILLAGE, "snapshot", "registry", "copy"]))
        .refused();
        assert_eq!(refused.code, Some(1), "{refused}");
        assert!(refused.stderr.contains("Input/output error"), "{refused}");
        assert_eq!(beside.names(), ["registry"], "{call}");
    }
}

#[test]
fn one_run_at_a_time_makes_a_snapshot() {
    let beside = Beside::new();
    fs::create_dir(beside.at(".copy.stillage-snapshot")).unwrap();
    let other = File::open(beside.at(".copy.stillage-snapshot")).unwrap();
    other.lock().unwrap();
    let refused = beside.snapshot("copy", &[]).refused();
    assert!(refused.stderr.contains(&std::process::id().to_string()), "{refused}");
    beside.snapshot("other", &[]).ok();
    drop(other);
    beside.snapshot("copy", &[]).ok();
}

#[test]
fn who_holds_the_lock_too_long_is_named() {
    let beside = Beside::new();
    let lock = File::open(beside.at("registry/.stillage/gc.lock")).unwrap();
    lock.lock().unwrap();
    let refused = beside.snapshot("copy", &["--wait", "1s"]).refused();
    assert_eq!(refused.code, Some(1), "{refused}");
    let own = std::process::id().to_string();
    assert!(refused.stderr.contains("gc.lock") && refused.stderr.contains(&own), "{refused}");
    assert_eq!(beside.names(), ["registry"]);
    drop(lock);
    // A tree that has no lock yet gets one of its owner's; one without a room gets nothing.
    chown(beside.at("registry/.stillage"), Some(4242), None).unwrap();
    fs::remove_file(beside.at("registry/.stillage/gc.lock")).unwrap();
    beside.snapshot("copy", &[]).ok();
    let made = beside.at("registry/.stillage/gc.lock").metadata().unwrap();
    assert_eq!((made.uid(), made.mode() & 0o7777), (4242, 0o600));
    beside.snapshot("again", &[]).ok();
    let copy = run(Command::new(STILLAGE).current_dir(beside.room.path()).args([
        "snapshot",
        "copy",
        "copy-of-copy",
    ]));
    copy.ok();
    assert!(!beside.at("copy/.stillage").exists());
    assert_eq!(picture(&beside.at("copy")), picture(&beside.at("copy-of-copy")));
}

/// What another tool is in the middle of writing is waited for.
#[test]
fn an_index_that_is_being_written_is_waited_for() {
    let beside = Beside::new();
    let index = beside.at("registry/team/app/index.json");
    let whole = fs::read(&index).unwrap();
    let mut writer = None;
    let mut writes = |name: &str, _: &_| {
        if name == "team/app" {
            fs::write(&index, &whole[..whole.len() / 2]).unwrap();
            let (index, whole) = (index.clone(), whole.clone());
            writer = Some(std::thread::spawn(move || {
                // As slow as a tool may be.
                std::thread::sleep(Duration::from_millis(400));
                fs::write(index, whole).unwrap();
            }));
        }
    };
    let (root, copy) = (beside.at("registry"), beside.at("copy"));
    let made = snapshot(&root, &copy, &Options::default(), Arc::new(RealDisk), &mut writes);
    assert!(made.unwrap().is_whole());
    writer.expect("it was visited").join().unwrap();
    assert_eq!(findings(&beside.at("copy")).0, []);

    // One that stays as it is is damage: it is copied, and said.
    fs::write(&index, &whole[..whole.len() / 2]).unwrap();
    let told = beside.snapshot("damaged", &[]);
    assert_eq!(told.code, Some(3), "{told}");
    assert!(told.stdout.contains("team/app/index.json: is damaged"), "{told}");
    assert_eq!(fs::read(beside.at("damaged/team/app/index.json")).unwrap().len(), whole.len() / 2);
}

/// The file system, and for every file that is made whether gc.lock could be had then.
#[derive(Debug)]
struct Watched {
    lock: PathBuf,
    made: Mutex<BTreeMap<String, bool>>,
    /// Changed when the first file of `_manifests` is made.
    meanwhile: Mutex<Option<PathBuf>>,
    /// Grows when its copy is made.
    journal: PathBuf,
}

impl Watched {
    fn note(&self, name: &str) {
        let free = File::open(&self.lock).is_ok_and(|lock| lock.try_lock().is_ok());
        self.made.lock().unwrap().insert(name.to_owned(), free);
    }

    fn free(&self, name: &str) -> bool {
        self.made.lock().unwrap()[name]
    }
}

impl Disk for Watched {
    fn make_dir(&self, dir: &Dir, name: &str, mode: Mode) -> Result<()> {
        RealDisk.make_dir(dir, name, mode)
    }
    fn create(&self, dir: &Dir, name: &str, mode: Mode) -> Result<File> {
        self.note(name);
        if name == "_log.jsonl" {
            let mut journal = File::options().append(true).open(&self.journal).unwrap();
            journal.write_all(b"later\n").unwrap();
        }
        RealDisk.create(dir, name, mode)
    }
    fn create_unnamed(&self, dir: &Dir, mode: Mode) -> Result<File> {
        RealDisk.create_unnamed(dir, mode)
    }
    fn open_append(&self, dir: &Dir, name: &str, mode: Mode) -> Result<(File, bool)> {
        RealDisk.open_append(dir, name, mode)
    }
    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        RealDisk.write(file, bytes, offset)
    }
    fn set_len(&self, file: &File, len: u64) -> std::io::Result<()> {
        RealDisk.set_len(file, len)
    }
    fn clone_content(&self, from: &File, to: &File) -> std::io::Result<()> {
        RealDisk.clone_content(from, to)
    }
    fn sync(&self, file: &File) -> std::io::Result<()> {
        RealDisk.sync(file)
    }
    fn sync_dir(&self, dir: &Dir) -> Result<()> {
        RealDisk.sync_dir(dir)
    }
    fn rename(&self, from: &Dir, old: &str, to: &Dir, new: &str) -> Result<()> {
        RealDisk.rename(from, old, to, new)
    }
    fn rename_new(&self, from: &Dir, old: &str, to: &Dir, new: &str) -> Result<()> {
        RealDisk.rename_new(from, old, to, new)
    }
    fn link(&self, from: &Dir, old: &str, to: &Dir, new: &str) -> Result<()> {
        RealDisk.link(from, old, to, new)
    }
    fn link_file(&self, file: &File, to: &Dir, new: &str) -> Result<()> {
        RealDisk.link_file(file, to, new)
    }
    fn unlink(&self, dir: &Dir, name: &str) -> Result<()> {
        RealDisk.unlink(dir, name)
    }
    fn remove_dir(&self, dir: &Dir, name: &str) -> Result<()> {
        RealDisk.remove_dir(dir, name)
    }
    fn sync_all(&self, dir: &Dir) -> Result<()> {
        RealDisk.sync_all(dir)
    }
    fn symlink(&self, target: &CStr, dir: &Dir, name: &str) -> Result<()> {
        self.note(name);
        if let Some(index) = &*self.meanwhile.lock().unwrap() {
            // Another entry's order, or a blank more: the same for all who read it, and not the same.
            let text = fs::read_to_string(index).unwrap();
            fs::write(index, text + " ").unwrap();
        }
        RealDisk.symlink(target, dir, name)
    }
}

/// Whoever deletes or collects waits for what has to be of one moment, and for nothing else.
#[test]
fn the_lock_is_held_for_what_is_of_one_moment_only() {
    let beside = Beside::new();
    sh(
        &beside,
        "cd registry/team/app
         cp _log.jsonl _log.3.jsonl
         mkdir _manifests
         ln -s ../blobs/sha256/00 _manifests/1.8.oci-image
         echo '{}' > _tags.json",
    )
    .ok();
    let (root, index) = (beside.at("registry"), beside.at("registry/team/app/index.json"));
    // Views that say what they are of are taken at once; others only under the repository's lock.
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let of = format!("{}:team/app:{}", Stamp::of(&fs::read(&index).unwrap()), boot.trim());
    symlink(of, root.join("team/app/_manifests/.of")).unwrap();
    let made = |name: &str, meanwhile| {
        let disk = Arc::new(Watched {
            lock: root.join(".stillage/gc.lock"),
            made: Mutex::default(),
            meanwhile: Mutex::new(meanwhile),
            journal: root.join("team/app/_log.jsonl"),
        });
        let to = beside.at(name);
        let watched = Arc::clone(&disk) as Arc<dyn Disk>;
        let made = snapshot(&root, &to, &Options::default(), watched, &mut |_, _| {}).unwrap();
        assert!(made.is_whole(), "{:?}", made.warnings);
        (disk, made)
    };
    let journal = fs::read(root.join("team/app/_log.jsonl")).unwrap();
    let (disk, told) = made("copy", None);
    assert_eq!(told.warnings, []);
    assert!(!disk.free("index.json"), "it is of one moment with the blobs");
    for name in ["_log.jsonl", "_log.3.jsonl", "1.8.oci-image", "_tags.json", "facts.jsonl"] {
        assert!(disk.free(name), "everybody waited for {name}");
    }
    // It has grown meanwhile, and is of that moment all the same.
    assert_eq!(fs::read(beside.at("copy/team/app/_log.jsonl")).unwrap(), journal);
    for name in ["_log.3.jsonl", "_manifests/1.8.oci-image", "_tags.json"] {
        assert!(beside.at("copy/team/app").join(name).symlink_metadata().is_ok(), "{name}");
    }

    // Views of an index.json that never rests are left out: they would be of another one.
    let (_, told) = made("restless", Some(index));
    let [warning] = &told.warnings[..] else { panic!("{:?}", told.warnings) };
    assert!(warning.message.contains("views"), "{warning:?}");
    let there = |name| beside.at("restless/team/app").join(name).symlink_metadata().is_ok();
    assert!(!there("_manifests") && !there("_tags.json"));
    assert!(there("_log.3.jsonl") && there("_referrers/facts.jsonl"));
}

/// A repository that moves from where the walk has not been to where it was is not missed.
#[test]
fn what_is_moved_meanwhile_is_found() {
    let beside = Beside::new();
    let root = beside.at("registry");
    let mut moves = |name: &str, _: &_| {
        if name == "team/app" {
            fs::create_dir(root.join("alpha")).unwrap();
            fs::rename(root.join("team/other"), root.join("alpha/moved")).unwrap();
        }
    };
    let copy = beside.at("copy");
    snapshot(&root, &copy, &Options::default(), Arc::new(RealDisk), &mut moves).unwrap();
    assert!(copy.join("alpha/moved/index.json").exists());
    assert_eq!(findings(&copy).0, []);
    // A directory's time is the one it had when it was looked at first.
    let but_root = |mut picture: BTreeMap<PathBuf, String>| {
        picture.retain(|path, _| {
            let path = path.to_string_lossy();
            !path.is_empty()
                && path != "team"
                && !path.starts_with(".stillage")
                && !path.ends_with(".lock")
        });
        picture
    };
    assert_eq!(but_root(picture(&copy)), but_root(picture(&root)));
}

/// Nobody waits for what others put into a repository, however much it is.
#[test]
fn the_lock_is_held_for_the_repositorys_own_only() {
    let beside = Beside::new();
    sh(
        &beside,
        "cd registry/team/app
         mkdir _z _tags.json
         for name in _big _z/file _tags.json/within _referrers/beside _manifests _log.x.jsonl
         do echo theirs > $name; done
         echo part > _log.1.jsonl",
    )
    .ok();
    let trace = beside.at("trace");
    run(Command::new("strace")
        .current_dir(beside.room.path())
        .args(["-f", "-qq", "-y", "-o"])
        .arg(&trace)
        .args(["-e", "trace=flock,close,openat2", STILLAGE, "snapshot", "registry", "copy"]))
    .ok();
    let theirs = ["_big", "file", "within", "beside", "_manifests", "_log.x.jsonl"];
    let own = ["_log.jsonl", "index.json"];
    let later = ["_log.1.jsonl", "facts.jsonl"];
    let (mut held, mut seen) = (false, Vec::new());
    for call in fs::read_to_string(&trace).unwrap().lines() {
        match call {
            _ if call.contains("gc.lock>, LOCK_SH") => held = true,
            _ if call.contains(" close(") && call.contains("gc.lock>") => held = false,
            _ if call.contains("O_RDONLY") => {
                let named = |name: &&&str| call.contains(&format!("\"{name}\""));
                assert!(!held || !theirs.iter().chain(&later).any(|name| named(&name)), "{call}");
                seen.extend(own.iter().filter(|name| held && named(name)));
            }
            _ => {}
        }
    }
    for name in own {
        assert!(seen.contains(&name), "{name} is read under the lock: {seen:?}");
    }
    let facts = beside.at("copy/team/app/_referrers/facts.jsonl");
    assert!(facts.exists() && beside.at("copy/team/app/_log.1.jsonl").exists());
    for name in ["_big", "_z/file", "_tags.json/within", "_referrers/beside", "_manifests"] {
        let copied = fs::read_to_string(beside.at("copy/team/app").join(name)).unwrap();
        assert_eq!(copied, "theirs\n", "{name}");
    }
    let time = |root: &str| {
        beside.at(root).join("team/app/_referrers").metadata().unwrap().modified().unwrap()
    };
    assert_eq!(time("copy"), time("registry"));
}
