//! Checks and collections of large trees: bounded memory, and time of the order of a walk. The short
//! form has 20,000 blobs, the long form (`STILLAGE_TEST_LONG=1`) 1,000,000; `STILLAGE_SCALE` names
//! another number, `STILLAGE_SCALE_DIR` where to put them, `STILLAGE_SCALE_BINARY` another build of
//! the program, which is measured after the test's own on the same tree.
//!
//! Run it with `--nocapture` for the figures: a line `measured:` for each command, with the time that
//! went by, the processor time, and the most anonymous memory.

mod layouts;
#[path = "support/process.rs"]
mod process;
mod support;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use layouts::{disk, many};
use process::memory_while;
use serde_json::Value;
use support::{STILLAGE, long, measured};

/// Anonymous memory that a command may take.
const MOST_ANONYMOUS: u64 = 256 << 20;

/// What a command needed.
#[derive(Default)]
struct Cost {
    time: Duration,
    processor: Duration,
    anonymous: u64,
}

impl Cost {
    /// Looks at a process until it ends. It may be missed in its last milliseconds.
    fn of(child: Child) -> (Cost, Output) {
        let (begun, process) = (Instant::now(), child.id());
        let mut cost = Cost::default();
        // What it says is read meanwhile: a full pipe would hold it up.
        let ended = std::thread::spawn(move || {
            let output = child.wait_with_output().unwrap();
            (begun.elapsed(), output)
        });
        while !ended.is_finished() {
            cost.look(process);
            std::thread::sleep(Duration::from_millis(2));
        }
        let (time, output) = ended.join().unwrap();
        cost.time = time;
        (cost, output)
    }

    fn look(&mut self, process: u32) {
        self.anonymous = self.anonymous.max(memory_while(process).unwrap_or(0));
        // After the name in parentheses: utime and stime are the 12th and the 13th (proc(5)).
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
        let ticks =
            fields.split(' ').skip(11).take(2).filter_map(|field| field.parse::<u64>().ok());
        let processor = Duration::from_millis(10 * ticks.sum::<u64>());
        self.processor = self.processor.max(processor);
    }
}

impl std::fmt::Display for Cost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Cost { time, processor, anonymous } = self;
        let mebibytes = anonymous >> 20;
        write!(f, "{time:.2?} ({processor:.2?} of processor), {mebibytes} MiB anonymous")
    }
}

/// Runs a command that gives a document.
fn run(binary: &Path, args: &[&str], root: &Path) -> Value {
    let mut command = Command::new(binary);
    command.args(args).arg("--json").arg(root).env_remove("STILLAGE_ROOT");
    let (cost, output) = Cost::of(command.stdout(Stdio::piped()).spawn().unwrap());
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stdout));
    measured(format!("{}: {cost}", args.join(" ")));
    assert!(cost.anonymous < MOST_ANONYMOUS, "{args:?}: {} bytes", cost.anonymous);
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The walk that everything is compared with; gives how many names there are.
fn find(root: &Path) -> (usize, Cost) {
    let mut find = Command::new("find");
    let mut find = find.arg(root).stdout(Stdio::piped()).spawn().unwrap();
    let mut count = Command::new("wc");
    let count = count.arg("-l").stdin(find.stdout.take().unwrap()).stdout(Stdio::piped());
    let count = count.spawn().unwrap();
    let (cost, _) = Cost::of(find);
    let count = String::from_utf8(count.wait_with_output().unwrap().stdout).unwrap();
    (count.trim().parse().unwrap(), cost)
}

#[test]
fn a_large_tree_is_checked_and_collected_in_bounded_memory() {
    let number = |name| std::env::var(name).ok()?.parse().ok();
    let blobs = number("STILLAGE_SCALE").unwrap_or(if long() { 1_000_000 } else { 20_000 });
    let place = std::env::var_os("STILLAGE_SCALE_DIR").unwrap_or_else(|| "/tmp".into());
    let temp = tempfile::Builder::new().prefix("stillage-scale-").tempdir_in(place).unwrap();
    let root = temp.path();
    disk::set_mode(root, 0o755);
    let made = many::make(root, blobs);
    find(root);
    let (names, walk) = find(root);
    assert!(names > 2 * (blobs - 300), "{names}");
    let repositories = made.repositories;
    measured(format!(
        "find | wc -l of {blobs} blobs, {repositories} repositories, {names} names: {walk}"
    ));
    let other = std::env::var_os("STILLAGE_SCALE_BINARY").map(PathBuf::from);
    for binary in [PathBuf::from(STILLAGE)].into_iter().chain(other) {
        measured(format!("with {}", binary.display()));
        checked(&binary, root, &made);
        collected(&binary, root, &made);
    }
}

fn checked(binary: &Path, root: &Path, made: &many::Made) {
    for args in [&["--quick"][..], &[], &["--repair", "--quick", "-n"], &["--repair"]] {
        let report = run(binary, &[&["check"], args].concat(), root);
        assert_eq!(report["findings"], Value::Array(Vec::new()));
        let summary = &report["summary"];
        assert_eq!(summary["repositories"], made.repositories, "{summary}");
        assert_eq!(summary["manifests"], made.images, "{summary}");
        assert_eq!(summary["blobs"], made.blobs, "{summary}");
        assert_eq!(summary["pooled"], made.blobs, "{summary}");
    }
}

/// The first collection notes what nothing refers to, the second finds it noted.
fn collected(binary: &Path, root: &Path, made: &many::Made) {
    let room = root.join(".stillage");
    let _ = std::fs::remove_dir_all(room.join("unreferenced"));
    let _ = std::fs::remove_file(room.join("collected"));
    for counted in ["noted", "waiting"] {
        let summary = &run(binary, &["gc"], root)["summary"];
        assert_eq!(summary["looked"], made.blobs, "{summary}");
        assert_eq!(summary[counted], made.garbage, "{summary}");
        assert_eq!(summary["removed"], 0, "{summary}");
    }
}
