//! What is measured meanwhile.

use std::collections::{BTreeSet, HashSet};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::client::Ground;
use crate::process;
use crate::support::{self, Registry};

/// What was seen at one moment.
#[derive(Clone, Copy, Debug)]
struct Look {
    seconds: f64,
    memory: u64,
    descriptors: u64,
    disk: u64,
}

/// Whether what the server remembers is filled before it begins: in less time all of it only grows.
pub(crate) fn is_long(all: Duration) -> bool {
    all >= Duration::from_secs(1800)
}

/// Looks again and again.
pub(crate) struct Watch {
    begun: Instant,
    all: Duration,
    looks: Vec<Look>,
    file: Option<File>,
}

impl Watch {
    pub(crate) fn new(registry: &Registry, all: Duration) -> Watch {
        let path = std::env::var_os("STILLAGE_TEST_SOAK_FIGURES").map(PathBuf::from);
        let file = path.map(|path| {
            let mut file = File::options().create(true).append(true).open(path).expect("a file");
            writeln!(file, "# a soak of {} s, server {}", all.as_secs(), registry.pid())
                .and_then(|()| writeln!(file, "seconds\tRssAnon\tdescriptors\tdisk\tcollections"))
                .expect("figures are written");
            file
        });
        Watch { begun: Instant::now(), all, looks: Vec::new(), file }
    }

    pub(crate) fn every(&self) -> Duration {
        (self.all / 240).clamp(Duration::from_millis(250), Duration::from_secs(15))
    }

    pub(crate) fn look(&mut self, registry: &Registry, ground: &Ground) {
        let look = Look {
            seconds: self.begun.elapsed().as_secs_f64(),
            memory: process::memory(registry.pid()),
            descriptors: process::descriptors(registry.pid()),
            disk: disk_use(registry.root()),
        };
        if let Some(file) = &mut self.file {
            let collections = ground.collections.load(Ordering::Relaxed);
            let Look { seconds, memory, descriptors, disk } = look;
            writeln!(file, "{seconds:.0}\t{memory}\t{descriptors}\t{disk}\t{collections}")
                .expect("figures are written");
        }
        self.looks.push(look);
    }

    pub(crate) fn sums(self, ground: &Ground, took: Duration) -> Figures {
        let counts = ground.counts();
        let mut text = format!(
            "soak: {} s, {} collections, {} images at the end",
            took.as_secs(),
            ground.collections.load(Ordering::Relaxed),
            ground.kept().len()
        );
        for (what, count) in &counts {
            let _ = write!(text, ", {count} {what}");
        }
        let deeds = counts.iter().filter(|(what, _)| **what != "requests");
        let deeds = deeds.map(|(_, count)| *count as u64).sum();
        let is_long = is_long(self.all);
        Figures { deeds, text, looks: self.looks, file: self.file, is_long }
    }
}

/// The sums of a soak.
pub(crate) struct Figures {
    pub(crate) deeds: u64,
    text: String,
    looks: Vec<Look>,
    file: Option<File>,
    is_long: bool,
}

/// What it was at first, at last, and how much more in an hour, over the last two thirds: by then the
/// caches are warm.
struct Course {
    what: &'static str,
    unit: &'static str,
    early: f64,
    late: f64,
    an_hour: f64,
}

impl Figures {
    fn courses(&self) -> Vec<Course> {
        vec![
            self.course("RssAnon", " MiB", |look| mib(look.memory)),
            self.course("descriptors", "", |look| look.descriptors as f64),
            self.course("disk", " MiB", |look| mib(look.disk)),
        ]
    }

    fn course(&self, what: &'static str, unit: &'static str, of: fn(&Look) -> f64) -> Course {
        let third = self.looks.len() / 3;
        let most = |looks: &[Look]| looks.iter().map(of).fold(0.0, f64::max);
        let warm = &self.looks[third..];
        let early = most(&self.looks[third..2 * third]);
        let late = most(&self.looks[2 * third..]);
        // Least squares.
        let n = warm.len() as f64;
        let mean = |of: &dyn Fn(&Look) -> f64| warm.iter().map(of).sum::<f64>() / n.max(1.0);
        let (x, y) = (mean(&|look| look.seconds), mean(&of));
        let slope = warm.iter().map(|look| (look.seconds - x) * (of(look) - y)).sum::<f64>()
            / warm.iter().map(|look| (look.seconds - x).powi(2)).sum::<f64>().max(1e-9);
        Course { what, unit, early, late, an_hour: slope * 3600.0 }
    }

    pub(crate) fn print(&self) {
        let mut text = self.text.clone();
        for Course { what, unit, early, late, an_hour } in self.courses() {
            let _ = write!(
                text,
                "; {what} at most {early:.1}{unit} in the second third and {late:.1}{unit} in the last, \
                 {an_hour:+.1}{unit} an hour"
            );
        }
        support::measured(&text);
        if let Some(mut file) = self.file.as_ref() {
            writeln!(file, "{text}").expect("figures are written");
        }
    }

    /// The last third must look like the one before: what leaks grows all the time.
    pub(crate) fn assert_flat(&self) {
        for Course { what, unit, early, late, .. } in self.courses() {
            let more = match what {
                "descriptors" => 24.0,
                // In a minute what is remembered of everything is still growing to its bounds.
                "RssAnon" if !self.is_long => 8.0 + early * 0.2,
                "RssAnon" => 2.0 + early * 0.1,
                _ => 16.0 + early * 0.5,
            };
            assert!(late <= early + more, "{what} grew from {early:.1}{unit} to {late:.1}{unit}");
        }
    }
}

/// Bytes that the files beneath a directory take, each inode once.
fn disk_use(root: &Path) -> u64 {
    let (mut seen, mut sum) = (HashSet::new(), 0);
    each_file(root, &mut |_, meta| {
        if seen.insert(meta.ino()) {
            sum += meta.blocks() * 512;
        }
    });
    sum
}

/// The blobs of all repositories, as `<repo> <digest>`.
pub(crate) fn blobs(root: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    each_file(root, &mut |path, _| {
        let path = path.strip_prefix(root).expect("beneath ROOT").to_string_lossy().into_owned();
        if let Some((repo, digest)) = path.split_once("/blobs/")
            && !repo.starts_with(".stillage")
        {
            found.insert(format!("{repo} {}", digest.replace('/', ":")));
        }
    });
    found
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn each_file(dir: &Path, each: &mut impl FnMut(&Path, &fs::Metadata)) {
    // Whatever vanishes meanwhile is not counted.
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.metadata() {
            Ok(meta) if meta.is_dir() => each_file(&entry.path(), each),
            Ok(meta) => each(&entry.path(), &meta),
            Err(_) => {}
        }
    }
}
