//! What a server takes, as the kernel counts it: processor time and memory of a process and of all that
//! it started.

use std::collections::HashMap;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// The kernel tells processor time in ticks of so many seconds: a hundred a second, whatever its own
/// clock does (proc(5), `sysconf(_SC_CLK_TCK)`).
pub(crate) const TICK: f64 = 0.01;

/// How often memory and processor time are looked at meanwhile.
const LOOK: Duration = Duration::from_millis(10);

/// A process and its descendants, as they were when somebody looked.
pub(crate) struct Tree(Vec<u32>);

impl Tree {
    pub(crate) fn of(root: u32) -> Tree {
        let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
            let Some(pid) = pid else { continue };
            if let Some(parent) = stat(pid).and_then(|fields| fields.get(1)?.parse().ok()) {
                children.entry(parent).or_default().push(pid);
            }
        }
        let mut all = vec![root];
        let mut at = 0;
        while let Some(pid) = all.get(at) {
            all.extend(children.remove(pid).unwrap_or_default());
            at += 1;
        }
        Tree(all)
    }

    /// Ticks of processor time, in user and kernel, with that of children that have ended.
    pub(crate) fn ticks(&self) -> u64 {
        let of = |pid: &u32| -> Option<u64> {
            let fields = stat(*pid)?;
            // utime, stime, cutime and cstime: the 14th to the 17th in all (proc(5)).
            fields.get(11..15)?.iter().map(|field| field.parse::<u64>().ok()).sum()
        };
        self.0.iter().filter_map(of).sum()
    }

    /// RssAnon in bytes: what the processes hold themselves, without the pages of files.
    pub(crate) fn anonymous(&self) -> u64 {
        self.0.iter().map(|pid| status(*pid, "RssAnon:")).sum()
    }

    /// VmHWM in bytes, added up: the most that each ever had in memory, pages of files included.
    pub(crate) fn peak(&self) -> u64 {
        self.0.iter().map(|pid| status(*pid, "VmHWM:")).sum()
    }
}

/// The fields of /proc/PID/stat from the third on: the second, the name in brackets, may hold blanks.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(')')?;
    Some(fields.split_whitespace().map(str::to_owned).collect())
}

/// A line of /proc/PID/status that is a size, in bytes. A process that has ended holds nothing.
fn status(pid: u32, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kibibytes =
        line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kibibytes.unwrap_or(0) << 10
}

/// What a server took while something was done with it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Taken {
    /// Seconds by the clock.
    pub(crate) wall: f64,
    /// Seconds of processor, in whole ticks.
    pub(crate) cpu: f64,
    /// The most anonymous memory that was seen, in bytes.
    pub(crate) anonymous: u64,
    /// The most memory that its processes ever had, in bytes.
    pub(crate) peak: u64,
}

/// What the processor had to do for whom so far, told while it happens.
pub(crate) struct Meter {
    /// Ticks since the beginning.
    ticks: AtomicU64,
    over: AtomicBool,
}

impl Meter {
    /// Whether the server has had so many seconds of processor.
    pub(crate) fn has_taken(&self, seconds: f64) -> bool {
        self.ticks.load(Ordering::Relaxed) as f64 * TICK >= seconds
    }
}

/// Does something with a server and gives what that took of it.
pub(crate) fn taken<T>(server: u32, deed: impl FnOnce(&Meter) -> T) -> (T, Taken) {
    let before = Tree::of(server);
    let begin_ticks = before.ticks();
    let meter = Meter { ticks: AtomicU64::new(0), over: AtomicBool::new(false) };
    let begin = Instant::now();
    thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut most = before.anonymous();
            while !meter.over.load(Ordering::Relaxed) {
                thread::sleep(LOOK);
                most = most.max(before.anonymous());
                let ticks = before.ticks().saturating_sub(begin_ticks);
                meter.ticks.store(ticks, Ordering::Relaxed);
            }
            most
        });
        // A deed that panics must not leave the watch running for ever.
        let over = Over(&meter.over);
        let done = deed(&meter);
        let wall = begin.elapsed().as_secs_f64();
        let after = Tree::of(server);
        let ticks = after.ticks().saturating_sub(begin_ticks);
        let now = after.anonymous();
        drop(over);
        let anonymous = now.max(watch.join().expect("the watch"));
        let cpu = ticks as f64 * TICK;
        (done, Taken { wall, cpu, anonymous, peak: after.peak() })
    })
}

struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
