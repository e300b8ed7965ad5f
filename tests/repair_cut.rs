//! A repair that is cut short at any of its steps leaves a tree that is no worse, and the next one
//! ends where an undisturbed one would have.

mod layouts;

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use layouts::repo::Repo;
use layouts::room::with_room;
use layouts::{Files, Sample, broken, disk, findings};
use rustix::fs::Mode;
use stillage::layout::{Dir, Disk, Error, RealDisk, Result};
use stillage::oci::{Algorithm, Digest};
use stillage::upkeep::check::{Options, Repairs, Told, repair};

/// Does so many steps and then no more, as if the power had been cut but everything kept.
#[derive(Debug)]
struct Cut {
    left: AtomicI64,
}

impl Cut {
    fn step(&self) -> io::Result<()> {
        match self.left.fetch_sub(1, Ordering::SeqCst) {
            1.. => Ok(()),
            _ => Err(io::Error::other("the power is cut")),
        }
    }

    fn at(&self, dir: &Dir) -> Result<()> {
        let io = |source| Error::Io { path: dir.path().to_owned(), source: Arc::new(source) };
        self.step().map_err(io)
    }
}

impl Disk for Cut {
    fn make_dir(&self, dir: &Dir, name: &str, mode: Mode) -> Result<()> {
        self.at(dir).and_then(|()| RealDisk.make_dir(dir, name, mode))
    }
    fn create(&self, dir: &Dir, name: &str, mode: Mode) -> Result<File> {
        self.at(dir).and_then(|()| RealDisk.create(dir, name, mode))
    }
    fn create_unnamed(&self, dir: &Dir, mode: Mode) -> Result<File> {
        self.at(dir).and_then(|()| RealDisk.create_unnamed(dir, mode))
    }
    fn open_append(&self, dir: &Dir, name: &str, mode: Mode) -> Result<(File, bool)> {
        self.at(dir).and_then(|()| RealDisk.open_append(dir, name, mode))
    }
    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.step().and_then(|()| RealDisk.write(file, bytes, offset))
    }
    fn set_len(&self, file: &File, len: u64) -> io::Result<()> {
        self.step().and_then(|()| RealDisk.set_len(file, len))
    }
    fn clone_content(&self, from: &File, to: &File) -> io::Result<()> {
        self.step().and_then(|()| RealDisk.clone_content(from, to))
    }
    fn sync(&self, file: &File) -> io::Result<()> {
        self.step().and_then(|()| RealDisk.sync(file))
    }
    fn sync_dir(&self, dir: &Dir) -> Result<()> {
        self.at(dir).and_then(|()| RealDisk.sync_dir(dir))
    }
    fn rename(&self, from: &Dir, old: &str, to: &Dir, new: &str) -> Result<()> {
        self.at(from).and_then(|()| RealDisk.rename(from, old, to, new))
    }
    fn rename_new(&self, from: &Dir, old: &str, to: &Dir, new: &str) -> Result<()> {
        self.at(from).and_then(|()| RealDisk.rename_new(from, old, to, new))
    }
    fn link(&self, from: &Dir, old: &str, to: &Dir, new: &str) -> Result<()> {
        self.at(from).and_then(|()| RealDisk.link(from, old, to, new))
    }
    fn link_file(&self, file: &File, to: &Dir, new: &str) -> Result<()> {
        self.at(to).and_then(|()| RealDisk.link_file(file, to, new))
    }
    fn unlink(&self, dir: &Dir, name: &str) -> Result<()> {
        self.at(dir).and_then(|()| RealDisk.unlink(dir, name))
    }
    fn remove_dir(&self, dir: &Dir, name: &str) -> Result<()> {
        self.at(dir).and_then(|()| RealDisk.remove_dir(dir, name))
    }
    fn symlink(&self, target: &CStr, dir: &Dir, name: &str) -> Result<()> {
        self.at(dir).and_then(|()| RealDisk.symlink(target, dir, name))
    }
    fn sync_all(&self, dir: &Dir) -> Result<()> {
        self.at(dir).and_then(|()| RealDisk.sync_all(dir))
    }
}

/// Repairs with at most so many steps; gives what is left, and whether they were enough.
fn run(root: &Path, steps: i64) -> (BTreeSet<&'static str>, bool) {
    let cut = Arc::new(Cut { left: AtomicI64::new(steps) });
    let disk: Arc<dyn Disk> = Arc::<Cut>::clone(&cut);
    let repairs = Repairs { dry_run: false, wait: Duration::from_secs(5), disk };
    let mut left = BTreeSet::new();
    let summary = repair(root, Options::default(), repairs, &mut |told| {
        if let Told::Found(finding) = told {
            left.insert(finding.rule.id());
        }
    });
    summary.unwrap();
    (left, cut.left.load(Ordering::SeqCst) >= 0)
}

/// Two repositories with one image, of which one has lost the layer and the other has another file
/// in its place; and an entry too many.
fn lost() -> Files {
    let mut files = Files::new();
    for name in ["team/one", "team/two"] {
        let mut repo = Repo::new(name);
        let image = repo.image("one");
        repo.tag(&image, "1.8");
        repo.tag(&image, "1.9")["size"] = 7.into();
        files.extend(repo.finish());
    }
    with_room(files)
}

fn lose(root: &Path) {
    let layer = Digest::of(Algorithm::Sha256, b"layer of one\n");
    let path = |repo: &str| root.join(repo).join("blobs/sha256").join(layer.hex());
    fs::remove_file(path("team/one")).unwrap();
    fs::remove_file(path("team/two")).unwrap();
    fs::write(path("team/two"), b"layer of two\n").unwrap();
    disk::set_mode(&path("team/two"), 0o444);
}

fn contents(root: &Path) -> BTreeSet<Digest> {
    let files = disk::walk(root).into_iter().filter(|path| {
        let text = path.to_str().unwrap();
        path.is_file() && (text.contains("/blobs/") || text.contains("/pool/"))
    });
    files.map(|path| Digest::of(Algorithm::Sha256, &fs::read(path).unwrap())).collect()
}

fn samples() -> Vec<Sample> {
    let cut = [
        "wrong-file-type",
        "layout-missing",
        "index-missing",
        "tag-doubled",
        "manifest-malformed",
        "manifest-size-mismatch",
        "blob-digest-mismatch",
        "journal-malformed",
        "facts-wrong",
        "pool-digest-mismatch",
        "inode-two-algorithms",
        "holder-size-wrong",
    ];
    let mut samples: Vec<Sample> =
        broken::all().into_iter().filter(|sample| cut.contains(&sample.name)).collect();
    assert_eq!(samples.len(), cut.len());
    samples.push(Sample::twisted("lost", lost(), lose));
    samples
}

#[test]
fn a_repair_that_is_cut_short_leaves_nothing_worse() {
    let samples = samples();
    let cuts = AtomicUsize::new(0);
    let long = std::env::var_os("STILLAGE_TEST_LONG").is_some();
    std::thread::scope(|scope| {
        for sample in &samples {
            scope.spawn(|| {
                let whole = sample.place();
                let (end, _) = run(whole.path(), i64::MAX);
                // All places, or every third, beginning with another one for each sample.
                let begin = if long { 0 } else { i64::try_from(sample.name.len()).unwrap() % 3 };
                for steps in (begin..).step_by(if long { 1 } else { 3 }) {
                    let temp = sample.place();
                    let before = contents(temp.path());
                    let found = findings(temp.path()).0.len();
                    let (_, enough) = run(temp.path(), steps);
                    let name = format!("{} after {steps} steps", sample.name);
                    assert!(before.is_subset(&contents(temp.path())), "{name}");
                    let now = findings(temp.path()).0;
                    assert!(now.len() <= found, "{name}: {now:#?}");
                    assert_eq!(run(temp.path(), i64::MAX).0, end, "{name}");
                    assert!(before.is_subset(&contents(temp.path())), "{name}");
                    let print = disk::fingerprint(temp.path());
                    run(temp.path(), i64::MAX);
                    assert_eq!(disk::fingerprint(temp.path()), print, "{name}");
                    cuts.fetch_add(1, Ordering::Relaxed);
                    if enough {
                        break;
                    }
                }
            });
        }
    });
    let cuts = cuts.into_inner();
    assert!(cuts > 60, "{cuts}");
}
